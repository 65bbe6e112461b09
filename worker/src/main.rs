//! `g2rl-worker`: parses the command line and runs the command.

use std::io::{self, IsTerminal};
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand, ValueEnum};
use g2rl_cli::{CompletionsArgs, ManArgs};
use g2rl_worker::commands::{bench, generate, init, run, score};
use tracing_subscriber::EnvFilter;

/// One rank of a G2RL run: generates rollouts and updates the policy with libtorch.
#[derive(Debug, Parser)]
#[command(name = "g2rl-worker", version, max_term_width = 100)]
struct Cli {
    /// How log lines are written to standard error.
    #[arg(long, value_enum, default_value_t = LogFormat::Text, global = true)]
    log_format: LogFormat,
    /// Also log what is only of interest when looking for a fault.
    #[arg(short, long, global = true)]
    verbose: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(run::RunArgs),
    Init(init::InitArgs),
    Generate(generate::GenerateArgs),
    Score(score::ScoreArgs),
    Bench(bench::BenchArgs),
    Completions(CompletionsArgs),
    Man(ManArgs),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let level = if cli.verbose { "debug,h2=info,hyper=info,tower=info" } else { "info" };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    let color = io::stderr().is_terminal();
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(color).with_writer(io::stderr);
    match cli.log_format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().init(),
    }
    let result = match &cli.command {
        Command::Run(args) => run::run(args),
        Command::Init(args) => init::run(args),
        Command::Generate(args) => generate::run(args),
        Command::Score(args) => score::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Completions(args) => args.run(Cli::command(), &mut io::stdout()).map(|()| ExitCode::SUCCESS),
        Command::Man(args) => args.run(Cli::command()).map(|_| ExitCode::SUCCESS),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
