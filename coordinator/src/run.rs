//! A whole run: data and directory checked, services started, the shell run, everything stopped.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, bail};
use g2rl_common::algorithm;
use g2rl_common::config::{Dtype, RunConfig};
use g2rl_common::ids::PolicyVersion;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::checkpoints;
use crate::dataset::{Dataset, Problem, ReadOptions};
use crate::journal::{self, Journal};
use crate::local_workers::LocalWorkers;
use crate::progress::Progress;
use crate::reward::Judge;
use crate::session;
use crate::shell::{INPUT_QUEUE, Input, RunInputs, Services, Shell};
use crate::state::Outcome;
use crate::summary::Results;
use crate::telemetry::{self, Telemetry};

/// What happens to an earlier run in the same directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// It is an error.
    Refuse,
    /// The run continues it from its last checkpoint.
    Resume,
    /// It is removed.
    Overwrite,
}

/// How to run.
#[derive(Debug, Clone)]
pub struct RunOptions {
    /// The configuration.
    pub config: RunConfig,
    /// What happens to an earlier run in the same directory.
    pub existing: Existing,
    /// Ranks to start on this machine.
    pub local_workers: u32,
    /// Their devices, in turn; the CPU if empty.
    pub local_devices: Vec<String>,
}

/// What a run ended with.
#[derive(Debug)]
pub struct Finished {
    /// Why it ended.
    pub outcome: Outcome,
    /// What it measured.
    pub results: Results,
}

/// Reads the data sets and decides where to start from.
///
/// # Errors
/// If a file is missing or unusable, or the directory holds another run.
pub fn prepare(options: &RunOptions) -> anyhow::Result<RunInputs> {
    let config = options.config.clone();
    let dir = Path::new(&config.run.dir);
    let model = Path::new(&config.model.path);
    if !model.join("config.json").exists() {
        bail!("model.path: {} holds no config.json", model.display());
    }
    let imitates = !algorithm::build(&config.algorithm).needs_rollouts();
    let read = |file: &str, most: Option<u64>, needs_solution: bool| -> anyhow::Result<Vec<Problem>> {
        let read = ReadOptions {
            columns: config.data.columns.clone(),
            on_bad_row: config.data.on_bad_row,
            max_problems: most,
            needs_solution,
        };
        let dataset = Dataset::read(Path::new(file), &read)?;
        if dataset.skipped > 0 {
            tracing::warn!(file, skipped = dataset.skipped, "rows left out");
        }
        Ok(dataset.problems)
    };
    let train = match config.run.steps {
        0 => Vec::new(),
        _ => read(&config.data.train, config.data.max_problems, imitates)?,
    };
    let evaluation = match &config.evaluation {
        Some(evaluation) => read(&evaluation.data, evaluation.max_problems, false)?,
        None => Vec::new(),
    };

    let resume = match (options.existing, journal::path(dir).exists()) {
        (Existing::Resume, _) => Some(checkpoints::latest(dir)?),
        (Existing::Refuse, true) => bail!(
            "{} already holds a run; continue it with --resume, replace it with --overwrite, or choose another run.dir",
            dir.display()
        ),
        (Existing::Overwrite, true) => {
            checkpoints::clear_run(dir).with_context(|| format!("cannot clear {}", dir.display()))?;
            None
        }
        (_, false) => None,
    };
    std::fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let (model_path, state) = match resume {
        Some((path, state)) => (path, Some(state)),
        None => (PathBuf::from(&config.model.path), None),
    };
    Ok(RunInputs {
        config,
        train: Arc::new(train),
        evaluation: Arc::new(evaluation),
        policy_version: state.map_or(PolicyVersion(0), |state| state.policy_version),
        resume: state,
        // Workers may have another working directory.
        model_path: std::path::absolute(model_path)?,
    })
}

/// Runs to the end.
///
/// # Errors
/// If a service cannot be started; a run that fails is an [`Outcome`], not an error.
pub async fn run(options: &RunOptions) -> anyhow::Result<Finished> {
    // First: what is wrong with it shows before anything is touched.
    let judge = Judge::build(&options.config.reward)?;
    let mut inputs = prepare(options)?;
    inputs.config.model.path = std::path::absolute(&inputs.config.model.path)?.display().to_string();
    let started = Instant::now();
    let (dir, steps) = (PathBuf::from(&inputs.config.run.dir), inputs.config.run.steps);
    let config_file = dir.join("config.toml");
    std::fs::write(&config_file, inputs.config.to_toml())
        .with_context(|| format!("cannot write {}", config_file.display()))?;
    let (heard, hears) = mpsc::channel(INPUT_QUEUE);
    let shutdown = CancellationToken::new();

    let cluster = &inputs.config.cluster;
    let bind = async |address: &str| {
        TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))
    };
    let (grpc, http) = (bind(&cluster.listen).await?, bind(&cluster.http).await?);
    let url = session::local_url(grpc.local_addr()?);
    tracing::info!(workers = %grpc.local_addr()?, metrics = %format!("http://{}/metrics", http.local_addr()?), "listening");
    let recorder = telemetry::install().context("metrics")?;
    let telemetry = Telemetry::new(inputs.config.model.dtype == Dtype::F32);
    tokio::spawn(telemetry.clone().serve(http, recorder, shutdown.clone()));
    let server = {
        let (heard, shutdown) = (heard.clone(), shutdown.clone());
        tokio::spawn(async move {
            if let Err(error) = session::serve(grpc, heard.clone(), shutdown).await {
                // The run ends with this; if it has already ended, nobody listens.
                let _ = heard.send(Input::Failed(format!("gRPC server: {error}"))).await;
            }
        })
    };
    tokio::spawn(stop_on_signal(heard.clone()));
    let journal = Journal::open(&dir, heard.clone())?;
    let workers = LocalWorkers::start(options.local_workers, &url, &dir, &heard, &options.local_devices)?;
    let imitates = !algorithm::build(&inputs.config.algorithm).needs_rollouts();
    let progress = Progress::new(steps, imitates);
    let services = Services { judge, journal, telemetry, progress, inputs: heard };
    let (outcome, results) = Shell::new(inputs, services).run(hears).await;
    workers.stop().await;
    shutdown.cancel();
    server.abort();
    results.write(&dir, steps, started.elapsed().as_secs_f64()).context("cannot write summary.json")?;
    Ok(Finished { outcome, results })
}

/// The first SIGINT or SIGTERM asks the run to end, the second ends the process.
async fn stop_on_signal(inputs: mpsc::Sender<Input>) {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut interrupt), Ok(mut terminate)) =
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        // Without handlers the signals' default action ends the process.
        return;
    };
    let mut asked = false;
    loop {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        if asked {
            std::process::exit(130);
        }
        asked = true;
        tracing::warn!("stopping at the next safe point, with a checkpoint; once more to leave at once");
        // Nobody listens only when the run is already over.
        let _ = inputs.send(Input::Stop).await;
    }
}
