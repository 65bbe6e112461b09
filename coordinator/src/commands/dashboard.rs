//! `g2rl-coordinator dashboard`: shows a run directory, whether its run goes on or not.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use clap::Args;
use g2rl_common::config::{LoadOptions, RunConfig};
use g2rl_common::secret::Secret;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::dashboard::{Access, Dashboard, DashboardOptions};
use crate::problem_sets::ProblemSets;
use crate::shell::StallBoard;
use crate::{http, journal};

/// Show the dashboard of a run that is over, or of a copy of its directory.
///
/// Reads the run's journal, and its data set for the prompts. A run that goes on shows the same on its own HTTP port, with
/// what its ranks do. Ctrl-C ends it.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  g2rl-coordinator dashboard --run runs/demo
  g2rl-coordinator dashboard --run runs/demo --listen 127.0.0.1:8080")]
pub struct DashboardArgs {
    /// The run directory.
    #[arg(long, value_name = "DIR")]
    run: PathBuf,
    /// Where to listen. Texts are shown on loopback only, or to whoever sends the token of G2RL_TOKEN.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:7701")]
    listen: String,
}

/// Runs the command.
///
/// # Errors
/// If there is no run, or nothing can listen there.
pub async fn run(args: &DashboardArgs) -> anyhow::Result<ExitCode> {
    let listener =
        TcpListener::bind(&args.listen).await.with_context(|| format!("cannot listen on {}", args.listen))?;
    let dashboard = open(&args.run, &listener)?;
    let shutdown = CancellationToken::new();
    tracing::info!(dashboard = %format!("http://{}/", listener.local_addr()?), "listening");
    let ended = shutdown.clone();
    tokio::spawn(async move {
        // Without the signal the process is ended by its default action.
        if tokio::signal::ctrl_c().await.is_ok() {
            ended.cancel();
        }
    });
    tokio::select! {
        () = http::serve_router(dashboard.router(), listener, shutdown.clone()) => {}
        // Streams of events would keep it.
        () = shutdown.cancelled() => {}
    }
    Ok(ExitCode::SUCCESS)
}

fn open(dir: &Path, listener: &TcpListener) -> anyhow::Result<Dashboard> {
    let path = journal::path(dir);
    anyhow::ensure!(path.exists(), "{} holds no run: {} is not there", dir.display(), path.display());
    let config = RunConfig::load(&LoadOptions { path: dir.join("config.toml"), overrides: Vec::new() })?;
    let problems = ProblemSets::read(&config).map(|sets| sets.train).unwrap_or_else(|error| {
        tracing::warn!("prompts are not shown: {error:#}");
        Vec::new()
    });
    let token = Secret::find(config.security.token_file.as_deref()).unwrap_or_else(|error| {
        tracing::warn!("{error}");
        None
    });
    Ok(Dashboard::start(DashboardOptions {
        dir: dir.to_owned(),
        config,
        problems: Arc::new(problems),
        access: Access::new(token.map(Arc::new), listener.local_addr()?),
        board: None,
        stalls: StallBoard::default(),
    })?)
}
