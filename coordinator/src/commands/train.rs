//! `g2rl-coordinator train`.

use std::process::ExitCode;

use clap::Args;

use super::config::FileArgs;
use crate::run::{Existing, RunOptions, run as run_to_end};
use crate::state::Outcome;

/// Train a policy.
///
/// Waits for workers, trains, writes checkpoints, and ends with a table of what changed. Ctrl-C ends
/// the run at the next safe point with a checkpoint; a second one leaves at once.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  g2rl-coordinator train --config configs/demo.toml --local-workers 2
  g2rl-coordinator train --config configs/qwen3-1.7b-math.toml --set model.path=/models/Qwen3-1.7B-Base
  g2rl-coordinator train --config configs/demo.toml --local-workers 2 --resume")]
pub struct TrainArgs {
    #[command(flatten)]
    file: FileArgs,
    /// Start this many workers on this machine.
    #[arg(long, value_name = "N", default_value_t = 0)]
    local_workers: u32,
    /// Devices of the local workers, in turn, such as cuda:0,cuda:1; the CPU by default.
    #[arg(long, value_name = "DEVICES", value_delimiter = ',')]
    local_devices: Vec<String>,
    /// Continue the run in run.dir from its last checkpoint.
    #[arg(long, conflicts_with = "overwrite")]
    resume: bool,
    /// Remove an earlier run in run.dir first.
    #[arg(long)]
    overwrite: bool,
}

/// Runs the command.
///
/// # Errors
/// If the run cannot start or fails.
pub async fn run(args: &TrainArgs) -> anyhow::Result<ExitCode> {
    let existing = match (args.resume, args.overwrite) {
        (true, _) => Existing::Resume,
        (false, true) => Existing::Overwrite,
        (false, false) => Existing::Refuse,
    };
    let options = RunOptions {
        config: args.file.load()?,
        existing,
        local_workers: args.local_workers,
        local_devices: args.local_devices.clone(),
    };
    let finished = run_to_end(&options).await?;
    match finished.outcome {
        Outcome::Completed => {
            print!("{}", finished.results.table());
            Ok(ExitCode::SUCCESS)
        }
        Outcome::Stopped => {
            let file = args.file.config.display();
            println!("stopped; continue with: g2rl-coordinator train --config {file} --resume");
            Ok(ExitCode::SUCCESS)
        }
        Outcome::Failed(error) => anyhow::bail!("the run failed: {error}"),
    }
}
