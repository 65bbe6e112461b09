//! `g2rl-coordinator train`.

use std::path::Path;
use std::process::ExitCode;

use clap::Args;

use super::config::FileArgs;
use crate::run::{Existing, RunOptions, resume_or_begin, run as run_to_end};
use crate::state::Outcome;
use crate::terminal;

/// Exit code of a supervised run that was stopped before its end: `EX_TEMPFAIL` of sysexits.h.
pub const EXIT_STOPPED: u8 = 75;

/// Train a policy.
///
/// Waits for workers, trains, writes checkpoints, and ends with a table of what changed. Ctrl-C ends
/// the run at the next safe point with a checkpoint; a second one leaves at once.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  g2rl-coordinator train --config configs/demo.toml --local-workers 2
  g2rl-coordinator train --config configs/qwen3-1.7b-math.toml --set model.path=/models/Qwen3-1.7B-Base
  g2rl-coordinator train --config configs/demo.toml --local-workers 2 --resume
  g2rl-coordinator train --config /etc/g2rl/run.toml --supervised")]
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
    /// For Kubernetes, Slurm and whatever else starts this command again and again: continue the run in run.dir
    /// if there is one, else begin it; if stopped before its end, exit with 75 and let workers wait.
    #[arg(long, conflicts_with_all = ["resume", "overwrite"])]
    supervised: bool,
    /// Log a line a step instead of showing a live view. So it is in any case if standard error is no terminal, with
    /// --log-format json, or if NO_COLOR or CI is set.
    #[arg(long)]
    plain: bool,
}

/// Runs the command.
///
/// # Errors
/// If the run cannot start or fails.
pub async fn run(args: &TrainArgs) -> anyhow::Result<ExitCode> {
    let mut config = args.file.load()?;
    config.cluster.keep_workers |= args.supervised;
    let existing = if args.supervised {
        resume_or_begin(Path::new(&config.run.dir))
    } else if args.resume {
        Existing::Resume
    } else if args.overwrite {
        Existing::Overwrite
    } else {
        Existing::Refuse
    };
    let options = RunOptions {
        config,
        existing,
        local_workers: args.local_workers,
        local_devices: args.local_devices.clone(),
    };
    if !args.plain {
        terminal::want();
    }
    let finished = run_to_end(&options).await?;
    match finished.outcome {
        Outcome::Completed => {
            print!("{}", finished.results.table());
            Ok(ExitCode::SUCCESS)
        }
        Outcome::Stopped if args.supervised => Ok(ExitCode::from(EXIT_STOPPED)),
        Outcome::Stopped => {
            let file = args.file.config.display();
            println!("stopped; continue with: g2rl-coordinator train --config {file} --resume");
            Ok(ExitCode::SUCCESS)
        }
        Outcome::Failed(error) => anyhow::bail!("the run failed: {error}"),
    }
}
