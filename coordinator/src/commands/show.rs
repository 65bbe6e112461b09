//! `g2rl-coordinator show`.

use std::path::PathBuf;

use clap::Args;

use crate::history;

/// Show a run, finished or not.
///
/// Prints its settings, evaluations with intervals, curves, where its time went, and where its files are.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  g2rl-coordinator show --run runs/demo
  g2rl-coordinator show --run runs/demo --json | jq .evaluations.best")]
pub struct ShowArgs {
    /// The run's directory.
    #[arg(long, value_name = "DIR")]
    run: PathBuf,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// If the directory holds no run; names it.
pub fn run(args: &ShowArgs) -> anyhow::Result<()> {
    match args.json {
        true => super::print(&format!("{:#}\n", history::show_json(&args.run)?)),
        false => super::print(&history::show_text(&args.run)?),
    }
}
