//! `g2rl-coordinator bench`: how large a cluster one coordinator can serve.

mod load;
mod rank;

use std::process::ExitCode;

use clap::{Args, Subcommand};

/// Measure the coordinator.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  g2rl-coordinator bench load
  g2rl-coordinator bench load --ranks 256 --rollouts-per-rank 16 --hidden 2560 --json")]
pub struct BenchArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    Load(load::LoadArgs),
}

/// Runs the command.
///
/// # Errors
/// If the run of the measurement fails.
pub async fn run(args: &BenchArgs) -> anyhow::Result<ExitCode> {
    match &args.what {
        What::Load(args) => load::run(args).await?,
    }
    Ok(ExitCode::SUCCESS)
}
