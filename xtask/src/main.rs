//! The developer's entry point; see `cargo xtask help`.

mod bench;
mod deny;
mod docs;
mod readme;
mod run;
mod setup;
mod tasks;
mod verify;

use clap::{Parser, Subcommand};

/// Set-up, demo, tests and verification of g2rl.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Install libtorch once, into the user's cache directory.
    Setup {
        /// Also install transformers, which some tests compare with.
        #[arg(long)]
        reference: bool,
    },
    /// Print the environment for plain cargo: eval "$(cargo xtask env)".
    Env,
    /// Train the demo's model with G2RL on two ranks, in a few minutes; always starts afresh.
    Demo {
        /// Further arguments for `g2rl-coordinator train`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Build everything and run all tests.
    Test {
        /// Further arguments for the test runner.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Measure speed and memory, beside other programs where they are given, and append the table to
    /// docs/performance.md.
    Bench(bench::BenchArgs),
    /// Everything that continuous integration runs.
    Verify,
    /// Make the pages that are made from the code: docs/configuration.md.
    Docs,
    /// Make the demo's warm-started model again.
    Model,
    /// Write the files that tests compare with, by transformers.
    Golden,
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Setup { reference } => setup::setup(reference).map(|_| ()),
        Command::Env => tasks::print_environment(),
        Command::Demo { arguments } => tasks::demo(&arguments),
        Command::Test { arguments } => tasks::test(&arguments),
        Command::Bench(args) => bench::bench(&args),
        Command::Verify => verify::verify(),
        Command::Docs => docs::docs(),
        Command::Model => tasks::model(),
        Command::Golden => tasks::golden(),
    }
}
