//! `cargo xtask bench`: this project's speed beside what others reach, in one run on one machine.
//!
//! Ours is measured before and after the others, and the mean counts: a machine that slows down in between
//! shows in both.

mod ours;
mod peers;
mod profile;
mod report;
mod workload;

use std::path::PathBuf;

use clap::Args;

use self::ours::Ours;
use self::peers::Peers;
use self::profile::Profiles;
use self::report::Report;
use self::workload::Workload;

/// Arguments of the command.
#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// The size: W1 (3.7 million parameters) or W2 (29 million).
    #[arg(long, default_value = "W1", value_parser = ["W1", "W2"])]
    workload: String,
    /// Folder with the programs to measure beside: hf_generate.py, trl_grpo.py and torch_limits.py.
    #[arg(long, value_name = "DIR", requires = "python")]
    peers: Option<PathBuf>,
    /// A Python in which those programs run.
    #[arg(long, value_name = "FILE", requires = "peers")]
    python: Option<PathBuf>,
    /// A built candle_decode program, and the folder with its model.
    #[arg(long, num_args = 2, value_names = ["FILE", "DIR"])]
    candle: Option<Vec<PathBuf>>,
    /// Only print: do not append the table to docs/performance.md.
    #[arg(long)]
    print_only: bool,
}

/// Measures, prints the table and appends it to `docs/performance.md`.
pub(crate) fn bench(args: &BenchArgs) -> anyhow::Result<()> {
    let workload = Workload::named(&args.workload);
    let peers = Peers {
        folder: args.peers.as_deref().zip(args.python.as_deref()),
        candle: args.candle.as_deref(),
        workload,
    };
    let ours = Ours::build(workload)?;
    let mut report = Report::new(workload);

    let limits = peers.limits()?;
    let before = ours.measure()?;
    let theirs = peers.measure()?;
    let after = ours.measure()?;
    report.compare(&before.mean(&after), &theirs, &limits);
    report.profile(&Profiles::new(ours.profiles()?, limits))?;
    report.load(&ours.load()?);

    print!("{report}");
    if !args.print_only {
        report.append()?;
    }
    Ok(())
}
