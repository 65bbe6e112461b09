//! `g2rl-coordinator runs`.

use std::path::PathBuf;

use clap::Args;

use crate::history;

/// List the runs under a directory, the newest first.
///
/// A run is running while a coordinator works on it; finished, if all its steps are done; failed, if it could not go
/// on; else interrupted: stopped or killed, to be continued with `train --resume`.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  g2rl-coordinator runs
  g2rl-coordinator runs /scratch/runs --json | jq '.[] | select(.state == \"failed\") | .dir'")]
pub struct RunsArgs {
    /// The directory; a run's own directory lists that run.
    #[arg(value_name = "DIR", default_value = "runs")]
    dir: PathBuf,
    /// Print a list of JSON objects.
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// If the directory cannot be read; names it.
pub fn run(args: &RunsArgs) -> anyhow::Result<()> {
    let runs = history::find(&args.dir)?;
    if args.json {
        return super::print(&format!("{:#}\n", history::list_json(&runs)));
    }
    match runs.is_empty() {
        true => super::print(&format!("no runs in {}\n", args.dir.display())),
        false => super::print(&history::list_table(&runs)),
    }
}
