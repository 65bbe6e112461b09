//! `g2rl-coordinator`: parses the command line and runs the command.

use std::io;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand, ValueEnum};
use g2rl_cli::{CompletionsArgs, ManArgs};
use g2rl_coordinator::alerts::AlertLayer;
use g2rl_coordinator::commands::{
    bench, config, dashboard, data, eval, experiment, geometry, report, runs, shape, show, train, verify,
};
use g2rl_coordinator::terminal::{self, LogWriter};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

/// Trains language models with G2RL: gradient-guided reinforcement learning.
#[derive(Debug, Parser)]
#[command(name = "g2rl-coordinator", version, max_term_width = 100)]
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
    Train(train::TrainArgs),
    Eval(eval::EvalArgs),
    Experiment(experiment::ExperimentArgs),
    Geometry(geometry::GeometryArgs),
    Runs(runs::RunsArgs),
    Show(show::ShowArgs),
    Report(report::ReportArgs),
    Verify(verify::VerifyArgs),
    Shape(shape::ShapeArgs),
    Data(data::DataArgs),
    Config(config::ConfigArgs),
    Dashboard(dashboard::DashboardArgs),
    Bench(bench::BenchArgs),
    Completions(CompletionsArgs),
    Man(ManArgs),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let level = match (&cli.command, cli.verbose) {
        (_, true) => "debug,h2=info,hyper=info,tower=info",
        // Its output is the measurement.
        (Command::Bench(_), false) => "error",
        (_, false) => "info",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    let log = tracing_subscriber::fmt::layer()
        .with_ansi(terminal::has_colors())
        .with_target(false)
        .with_writer(LogWriter);
    let log = match cli.log_format {
        LogFormat::Text => log.boxed(),
        LogFormat::Json => {
            // Whoever reads it is no person.
            terminal::forbid();
            log.json().boxed()
        }
    };
    tracing_subscriber::registry().with(filter).with(AlertLayer).with(log).init();
    match execute(cli.command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn execute(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Train(args) => asynchronous(train::run(&args)),
        Command::Eval(args) => asynchronous(eval::run(&args)),
        Command::Experiment(args) => asynchronous(experiment::run(&args)),
        Command::Geometry(args) => asynchronous(geometry::run(&args)),
        Command::Runs(args) => runs::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Show(args) => show::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Report(args) => report::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Verify(args) => asynchronous(async { verify::run(&args).await.map(|()| ExitCode::SUCCESS) }),
        Command::Shape(args) => shape::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Data(args) => data::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Bench(args) => asynchronous(async move { bench::run(&args).await }),
        Command::Dashboard(args) => asynchronous(async move { dashboard::run(&args).await }),
        Command::Config(args) => config::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Completions(args) => args.run(Cli::command(), &mut io::stdout()).map(|()| ExitCode::SUCCESS),
        Command::Man(args) => args.run(Cli::command()).map(|_| ExitCode::SUCCESS),
    }
}

fn asynchronous(work: impl Future<Output = anyhow::Result<ExitCode>>) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(work);
    // A verifier that hangs must not keep the process.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    result
}
