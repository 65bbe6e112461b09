//! A whole run: data and directory checked, services started, the shell run, everything stopped.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use g2rl_common::config::RunConfig;
use g2rl_common::ids::PolicyVersion;
use g2rl_hub::{Reference, manifest};
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::checkpoints;
use crate::chronicle::Chronicle;
use crate::dashboard::{Access as DashboardAccess, Dashboard, DashboardOptions};
use crate::export::{Exports, Traces};
use crate::http;
use crate::journal::{self, Journal};
use crate::local_workers::{self, Access, LocalOptions, LocalWorkers};
use crate::problem_sets::ProblemSets;
use crate::progress::Progress;
use crate::reward::Judges;
use crate::run_lock::RunLock;
use crate::security::Security;
use crate::session;
use crate::shaping::Shaper;
use crate::shell::{INPUT_QUEUE, Input, RunInputs, Services, Shell, StallBoard};
use crate::state::Outcome;
use crate::summary::Results;
use crate::telemetry::{self, Telemetry};
use crate::wal::{self, WalError};

/// Connections that wait to be accepted.
const BACKLOG: u32 = 4096;

/// What happens to an earlier run in the same directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// It is an error.
    Refuse,
    /// The run continues it where its coordinator stopped, or from its last checkpoint if no worker is left.
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

/// What a supervisor wants that starts the same command again and again: go on with the run that is there, else
/// begin it.
#[must_use]
pub fn resume_or_begin(dir: &Path) -> Existing {
    if !journal::path(dir).exists() {
        Existing::Refuse
    } else if checkpoints::exist(dir) || !matches!(wal::read(dir), Ok(None)) {
        Existing::Resume
    } else {
        // Killed before anything was on the disk that could be gone on from.
        Existing::Overwrite
    }
}

/// Reads the data sets and decides where to start from.
///
/// # Errors
/// If a file is missing or unusable, or the directory holds another run.
pub fn prepare(options: &RunOptions) -> anyhow::Result<RunInputs> {
    let config = options.config.clone();
    let dir = Path::new(&config.run.dir);
    let model = Path::new(&config.model.path);
    // A name is looked up by the workers, each in its own cache.
    let named = !model.exists() && Reference::parse(&config.model.path).is_ok();
    if !named && !model.join("config.json").exists() {
        let from = match std::env::current_dir() {
            Ok(folder) if model.is_relative() => format!(" (paths are relative to {})", folder.display()),
            _ => String::new(),
        };
        bail!(
            "model.path: {} holds no config.json and is no name of the form owner/name{from}",
            model.display()
        );
    }
    if options.existing != Existing::Resume {
        // One of this program's own checkpoints. What is needed to train on may be left out of a copy.
        manifest::check_if_noted(model, |name| {
            !matches!(name, "optimizer.safetensors" | "trainer_state.json")
        })
        .context("model.path")?;
    }
    let ProblemSets { train, held_out, sets } = ProblemSets::read(&config)?;

    let left = match options.existing {
        Existing::Resume => left_by_another(dir)?,
        _ => None,
    };
    let resume = match (options.existing, journal::path(dir).exists()) {
        // Without a checkpoint the log says how far it was.
        (Existing::Resume, _) if left.is_some() && !checkpoints::exist(dir) => None,
        (Existing::Resume, _) => Some(checkpoints::latest(dir)?),
        (Existing::Refuse, true) => bail!(
            "{} already holds a run; continue it with --resume, replace it with --overwrite, or choose another run.dir",
            dir.display()
        ),
        (Existing::Overwrite, true) => {
            local_workers::end_leftovers(dir);
            checkpoints::clear_run(dir).with_context(|| format!("cannot clear {}", dir.display()))?;
            None
        }
        (_, false) => None,
    };
    std::fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    // Workers may have another working directory.
    let (model_path, state) = match resume {
        Some((path, state)) => (std::path::absolute(path)?, Some(state)),
        None if named => (model.to_owned(), None),
        None => (std::path::absolute(model)?, None),
    };
    let response_lengths = match journal::path(dir).exists() {
        true => journal::response_lengths(dir)?,
        false => BTreeMap::new(),
    };
    Ok(RunInputs {
        response_lengths,
        config,
        train: Arc::new(train),
        evaluation: Arc::new(held_out),
        evaluation_sets: sets,
        policy_version: state.map_or(PolicyVersion(0), |state| state.policy_version),
        resume: state,
        left,
        model_path,
    })
}

/// The log of a process that was killed, or stopped before its work was done.
fn left_by_another(dir: &Path) -> anyhow::Result<Option<wal::Contents>> {
    match wal::read(dir) {
        Err(error @ WalError::Format { .. }) => {
            tracing::warn!(%error, "the write-ahead log is dropped: the run goes on from its checkpoint");
            Ok(None)
        }
        read => read.context("the write-ahead log cannot be read"),
    }
}

/// Runs to the end.
///
/// # Errors
/// If a service cannot be started; a run that fails is an [`Outcome`], not an error.
pub async fn run(options: &RunOptions) -> anyhow::Result<Finished> {
    run_with(options, |_| ()).await
}

/// Runs to the end; `listening` hears the address for workers once there is one.
///
/// # Errors
/// See [`run`].
pub(crate) async fn run_with(options: &RunOptions, listening: impl FnOnce(&str)) -> anyhow::Result<Finished> {
    // First: what is wrong with it shows before anything is touched.
    let judges = Judges::build(&options.config)?;
    let shaper = Shaper::new(&options.config)?;
    let security = Security::load(&options.config)?;
    let access = match options.local_workers {
        0 => Access::default(),
        _ => Access::new(&options.config.security, security.token.clone())?,
    };
    let run_dir = Path::new(&options.config.run.dir);
    let held = run_dir.exists().then(|| RunLock::take(run_dir)).transpose()?;
    let mut inputs = prepare(options)?;
    // A new run's directory is there only now.
    let _held = held.map_or_else(|| RunLock::take(run_dir), Ok)?;
    if Path::new(&inputs.config.model.path).exists() {
        inputs.config.model.path = std::path::absolute(&inputs.config.model.path)?.display().to_string();
    }
    let (local, least) = (options.local_workers, inputs.config.cluster.min_workers);
    if (1..least).contains(&local) {
        bail!(
            "cluster.min_workers is {least}, but --local-workers starts {local}: start more, set \
             cluster.min_workers, or start all workers yourself"
        );
    }
    let started = Instant::now();
    let chronicle = Chronicle::begin(Path::new(&inputs.config.run.dir))?;
    let dir = PathBuf::from(&inputs.config.run.dir);
    let config_file = dir.join("config.toml");
    std::fs::write(&config_file, inputs.config.to_toml())
        .with_context(|| format!("cannot write {}", config_file.display()))?;
    let (heard, hears) = mpsc::channel(INPUT_QUEUE);
    let shutdown = CancellationToken::new();

    let cluster = &inputs.config.cluster;
    let bind =
        async |address: &str| listen(address).await.with_context(|| format!("cannot listen on {address}"));
    let address_file = dir.join(checkpoints::ADDRESS);
    let grpc = match address_before(options.existing, &cluster.listen, &address_file) {
        // Where workers that are left look for it.
        Some(before) => match listen(&before).await {
            Ok(listener) => listener,
            Err(_) => bind(&cluster.listen).await?,
        },
        None => bind(&cluster.listen).await?,
    };
    let http_port = bind(&cluster.http).await?;
    let linger = Duration::from_millis(cluster.http_linger_ms);
    std::fs::write(&address_file, format!("{}\n", grpc.local_addr()?))
        .with_context(|| format!("cannot write {}", address_file.display()))?;
    let url = session::local_url(grpc.local_addr()?, security.tls.is_some());
    let shown = format!("http://{}", http_port.local_addr()?);
    tracing::info!(workers = %grpc.local_addr()?, metrics = %format!("{shown}/metrics"), dashboard = %format!("{shown}/"), "listening");
    let recorder = telemetry::install().context("metrics")?;
    let telemetry = Telemetry::new(inputs.config.update.drift_warning(inputs.config.model.dtype), &dir);
    let stalls = StallBoard::default();
    let dashboard = Dashboard::start(DashboardOptions {
        dir: dir.clone(),
        config: inputs.config.clone(),
        problems: inputs.train.clone(),
        access: DashboardAccess::new(security.token.clone(), http_port.local_addr()?),
        board: Some(telemetry.board()),
        stalls: stalls.clone(),
    })?;
    let shown =
        http::Shown { telemetry: telemetry.clone(), stalls: stalls.clone(), metrics: recorder, dashboard };
    tokio::spawn(http::serve(shown, http_port, shutdown.clone()));
    let server = {
        let (heard, shutdown) = (heard.clone(), shutdown.clone());
        tokio::spawn(async move {
            if let Err(error) = session::serve(grpc, security, heard.clone(), shutdown).await {
                // The run ends with this; if it has already ended, nobody listens.
                let _ = heard.send(Input::Failed(format!("gRPC server: {error}"))).await;
            }
        })
    };
    let asked_to_stop = CancellationToken::new();
    tokio::spawn(stop_on_signal(heard.clone(), asked_to_stop.clone()));
    let journal_limit = Duration::from_millis(inputs.config.watchdog.journal_ms);
    let journal = Journal::open(&dir, heard.clone(), journal_limit)?;
    listening(&url);
    let local =
        LocalOptions { count: options.local_workers, devices: options.local_devices.clone(), url, access };
    let (workers, standings) = LocalWorkers::start(local, &dir, &heard)?;
    let progress = Progress::new(&inputs.config);
    let exports = Exports::open(&dir, &inputs.config.export).context("[export]")?;
    let traces = Traces::open(&inputs.config.export.otlp, &inputs.config.run.name)?;
    let services = Services {
        judges,
        shaper,
        journal,
        telemetry,
        exports,
        traces,
        progress,
        stalls,
        standings,
        inputs: heard,
    };
    let (outcome, results) = Shell::new(inputs, services).await?.run(hears).await;
    workers.stop().await;
    server.abort();
    results.write(&dir, &outcome, started.elapsed().as_secs_f64()).context("cannot write summary.json")?;
    chronicle.end(&outcome);
    if let Outcome::Failed(error) = &outcome
        && !linger.is_zero()
    {
        tracing::error!("the run failed, its metrics stay for {linger:?}: {error}");
        // A timeout is the end of the wait, too.
        let _ = tokio::time::timeout(linger, asked_to_stop.cancelled()).await;
    }
    shutdown.cancel();
    Ok(Finished { outcome, results })
}

/// The address of the process before, if the configuration leaves the port to the system.
fn address_before(existing: Existing, listen: &str, file: &Path) -> Option<String> {
    let free = existing == Existing::Resume && listen.ends_with(":0");
    let before = std::fs::read_to_string(file).ok().filter(|_| free)?;
    Some(before.trim().to_owned())
}

/// Listens where a whole cluster may connect at the same moment: a connection that finds the queue full is
/// reset only after many seconds.
async fn listen(address: &str) -> std::io::Result<TcpListener> {
    let mut error = std::io::Error::new(std::io::ErrorKind::AddrNotAvailable, "the name has no address");
    for address in tokio::net::lookup_host(address).await? {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.set_reuseaddr(true)?;
        match socket.bind(address).and_then(|()| socket.listen(BACKLOG)) {
            Ok(listener) => return Ok(listener),
            Err(refused) => error = refused,
        }
    }
    Err(error)
}

/// The first SIGINT or SIGTERM asks the run to end, the second ends the process.
async fn stop_on_signal(inputs: mpsc::Sender<Input>, asked_to_stop: CancellationToken) {
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
        asked_to_stop.cancel();
        tracing::warn!("stopping at the next safe point, with a checkpoint; once more to leave at once");
        // Nobody listens only when the run is already over.
        let _ = inputs.send(Input::Stop).await;
    }
}
