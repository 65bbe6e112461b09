//! The shell around the state machine: hears the world, performs what the machine wants.
//!
//! One task owns the machine and everything it decides about. Around it:
//!
//! | task | on cancel | on error |
//! |---|---|---|
//! | session server | stops accepting, streams end with the shell | run fails |
//! | stream of a worker | ends | the worker is disconnected |
//! | verification (threads, reward services) | result is dropped | run fails; waits while a service is down |
//! | shaping (CPU pool) | result is dropped | run fails |
//! | journal writer (own thread) | writes what is queued | run fails, also if a transaction hangs |
//! | watch over the shell's loop (own thread) | ends | ends the process if the loop hangs |
//! | HTTP server | ends | logged |
//! | local workers | terminated, killed after a deadline | killed if given up, started again; run fails if that does not help |
//!
//! A run's directory:
//!
//! ```text
//! journal.sqlite        every rollout, group, step and evaluation
//! wal/N.log             the work under way, for a restart
//! address               where workers find the coordinator
//! lock                  held by the coordinator
//! checkpoints/step-N    Hugging Face directory with optimizer and trainer state
//! checkpoints/best       link to the one with the highest score, if `checkpoint.best_by` names one
//! evaluations/step-N.jsonl, step-N-NAME.jsonl of further data sets
//! logs/worker-I.log     of local workers; their processes are in worker-I.pid
//! summary.json          written at the end
//! config.toml           the configuration, defaults filled in
//! chronicle.jsonl       which processes worked on the run, and how each ended
//! metrics.jsonl, tensorboard/   curves, by option
//! ```

mod effects;
mod outage;
mod pool;
mod restart;
mod stalls;
mod store;

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use g2rl_common::config::RunConfig;
use g2rl_common::ids::{PolicyVersion, RolloutId, RunId, WorkerId};
use g2rl_proto::{Command, Hello, WorkerEvent};
use tokio::sync::mpsc;

pub(crate) use self::outage::OutageClock;
use self::pool::Pool;
pub(crate) use self::stalls::StallBoard;
use self::stalls::StallLog;
pub(crate) use self::store::Kept;
use self::store::Store;
use crate::dataset::Problem;
use crate::evaluate::HeldOutSet;
use crate::export::{Exports, Traces};
use crate::failpoint;
use crate::journal::Journal;
use crate::lineage;
use crate::progress::Progress;
use crate::reward::{Judgement, Judges, Outages};
use crate::session::{ConnectionId, Outgoing};
use crate::shaping::{GroupOutcome, Shaper};
use crate::standing::{Standing, Standings};
use crate::state::{Coordinator, Event, Millis, Outcome, ResumeState};
use crate::summary::Results;
use crate::telemetry::Telemetry;
use crate::wal;

/// Inputs waiting for the shell. Streams wait when it is full, which is the back-pressure.
pub(crate) const INPUT_QUEUE: usize = 4096;

/// Time given to streams to carry the last messages.
const FAREWELL: Duration = Duration::from_millis(500);

/// How old the exported status may be.
const STATUS_INTERVAL: Duration = Duration::from_millis(100);

/// What the shell hears.
#[derive(Debug)]
pub(crate) enum Input {
    /// A stream said hello.
    Connected { connection: ConnectionId, hello: Hello, outgoing: Outgoing },
    /// A stream ended.
    Disconnected { connection: ConnectionId, worker: WorkerId, reason: String },
    /// A worker said something.
    Worker { connection: ConnectionId, worker: WorkerId, event: WorkerEvent },
    /// An answer was judged.
    Verified { rollout: RolloutId, judgement: Judgement },
    /// An answer cannot be judged.
    NotJudged(String),
    /// Reward services went or came back.
    Outages(Outages),
    /// A group has its advantages.
    Shaped(Box<GroupOutcome>),
    /// Something the shell relies on failed.
    Failed(String),
    /// The user wants the run to end.
    Stop,
}

impl Input {
    /// What the shell does with it, for people.
    fn kind(&self) -> &'static str {
        match self {
            Self::Connected { .. } => "a worker's hello",
            Self::Disconnected { .. } => "a stream's end",
            Self::Worker { .. } => "a worker's message",
            Self::Verified { .. } | Self::NotJudged(_) => "a judgement",
            Self::Outages(_) => "an outage of a reward service",
            Self::Shaped(_) => "a group's advantages",
            Self::Failed(_) => "a failure",
            Self::Stop => "the user's stop",
        }
    }
}

/// Everything a run starts from.
#[derive(Debug, Clone)]
pub struct RunInputs {
    /// The configuration.
    pub config: RunConfig,
    /// Training problems.
    pub train: Arc<Vec<Problem>>,
    /// Held-out problems.
    pub evaluation: Arc<Vec<Problem>>,
    /// Which of them belong together.
    pub evaluation_sets: Vec<HeldOutSet>,
    /// State of the checkpoint to start from.
    pub resume: Option<ResumeState>,
    /// What an earlier process of the run was doing.
    pub left: Option<wal::Contents>,
    /// See [`RunPlan::response_lengths`].
    pub response_lengths: BTreeMap<u32, f64>,
    /// Directory of the policy to start from.
    pub model_path: PathBuf,
    /// Optimizer steps behind it.
    pub policy_version: PolicyVersion,
}

/// A stream in use.
#[derive(Debug)]
struct Connection {
    id: ConnectionId,
    outgoing: Outgoing,
}

/// See the module's documentation.
pub(crate) struct Shell {
    run: RunInputs,
    run_id: RunId,
    dir: PathBuf,
    config_toml: String,
    machine: Coordinator,
    started: Instant,
    connections: BTreeMap<WorkerId, Connection>,
    /// The stream whose hello the machine is looking at.
    knocking: Option<Connection>,
    queue: VecDeque<Event>,
    /// Something was promised that the journal may not have on the disk.
    promised: bool,
    /// Commands that wait for that.
    outbox: Vec<(WorkerId, Command)>,
    store: Store,
    pool: Pool,
    journal: Journal,
    telemetry: Telemetry,
    exports: Exports,
    traces: Traces,
    progress: Progress,
    results: Results,
    outage: OutageClock,
    stalls: StallBoard,
    stall_log: StallLog,
    standings: Standings,
    outcome: Option<Outcome>,
}

/// What the shell works with.
pub(crate) struct Services {
    pub(crate) judges: Judges,
    pub(crate) shaper: Shaper,
    pub(crate) journal: Journal,
    pub(crate) telemetry: Telemetry,
    pub(crate) exports: Exports,
    pub(crate) traces: Traces,
    pub(crate) progress: Progress,
    /// Where the stall report is left.
    pub(crate) stalls: StallBoard,
    /// Where local workers hear what has become of them.
    pub(crate) standings: Standings,
    /// Where pool tasks put their results.
    pub(crate) inputs: mpsc::Sender<Input>,
}

impl Shell {
    /// A shell that goes on where an earlier process stopped, or from the checkpoint, or begins.
    ///
    /// # Errors
    /// If the write-ahead log cannot be made, or the watch over the loop cannot be started.
    pub(crate) async fn new(mut run: RunInputs, services: Services) -> anyhow::Result<Self> {
        let pool = Pool::new(services.judges, services.shaper, services.inputs);
        let left = run.left.take();
        services.stalls.watch(run.config.cluster.stall_after_ms, run.config.watchdog.coordinator_ms)?;
        services.stalls.busy("the work that a process before left");
        let mut shell = Self {
            run_id: lineage::begin(&run.config.run.name),
            dir: PathBuf::from(&run.config.run.dir),
            config_toml: run.config.to_toml(),
            machine: Coordinator::new(restart::plan(&run)),
            started: Instant::now(),
            connections: BTreeMap::new(),
            knocking: None,
            queue: VecDeque::new(),
            promised: false,
            outbox: Vec::new(),
            store: Store::default(),
            pool,
            journal: services.journal,
            telemetry: services.telemetry,
            exports: services.exports,
            traces: services.traces,
            progress: services.progress,
            results: Results::new(&run.config),
            outage: OutageClock::default(),
            stalls: services.stalls,
            stall_log: StallLog::default(),
            standings: services.standings,
            outcome: None,
            run,
        };
        shell.begin(left).await?;
        shell.stalls.idle();
        Ok(shell)
    }

    /// Runs until the machine says that the run is over.
    pub(crate) async fn run(mut self, mut inputs: mpsc::Receiver<Input>) -> (Outcome, Results) {
        let report_interval = stalls::interval(self.run.config.cluster.stall_after_ms);
        let mut report_at = Instant::now();
        self.step(Event::Tick);
        self.keep_promises().await;
        // The status is of all ranks: too much work for every message of a large cluster.
        let mut status_at = Instant::now();
        while self.outcome.is_none() {
            let deadline = self.machine.next_deadline().map_or(Duration::from_secs(3600), |at| {
                Duration::from_millis(at.0).saturating_sub(self.started.elapsed())
            });
            let deadline = deadline.min(status_at.saturating_duration_since(Instant::now()));
            let input = tokio::select! {
                // Messages first: a deadline is looked at after what has already arrived.
                biased;
                input = inputs.recv() => input,
                () = tokio::time::sleep(deadline) => None,
            };
            self.stalls.busy(input.as_ref().map_or("a deadline", Input::kind));
            if let Some(input) = input {
                self.hear(input);
            }
            // Steady messages must not starve the deadlines.
            if self.machine.next_deadline().is_some_and(|at| at <= self.now()) {
                self.step(Event::Tick);
            }
            self.keep_promises().await;
            if Instant::now() >= status_at {
                self.publish_status();
                status_at = Instant::now() + STATUS_INTERVAL;
            }
            if Instant::now() >= report_at {
                self.report_stalls(inputs.len());
                report_at = Instant::now() + report_interval;
            }
            self.stalls.idle();
        }
        self.publish_status();
        self.progress.finish();
        let outcome =
            self.outcome.take().unwrap_or(Outcome::Failed("the run ended without an outcome".into()));
        if matches!(outcome, Outcome::Failed(_)) {
            self.telemetry.run_failed();
        }
        tokio::time::sleep(FAREWELL).await;
        tokio::task::block_in_place(|| self.traces.close());
        (outcome, self.results)
    }

    fn publish_status(&self) {
        let status = self.machine.status();
        self.telemetry.status(&status);
        self.progress.status(&status, self.now());
        self.telemetry.reward_service(&self.outage, self.pool.waiting());
    }

    fn now(&self) -> Millis {
        Millis(self.started.elapsed().as_millis() as u64)
    }

    /// Gives the machine an event and performs what it wants, and what that leads to.
    fn step(&mut self, event: Event) {
        self.queue.push_back(event);
        self.work_off();
    }

    fn work_off(&mut self) {
        while let Some(event) = self.queue.pop_front() {
            if self.outcome.is_some() {
                return;
            }
            let now = self.now();
            self.traces.event(&event);
            for effect in self.machine.step(event, now) {
                self.traces.effect(&effect);
                self.perform(effect);
            }
        }
    }

    /// Waits for the disk, then sends what was promised.
    async fn keep_promises(&mut self) {
        while self.promised {
            let limit = self.journal.limit();
            let synced = tokio::time::timeout(limit, self.journal.sync()).await;
            self.promised = false;
            let commands = std::mem::take(&mut self.outbox);
            match synced {
                Ok(Ok(())) => {}
                // The journal's writer has said why.
                Ok(Err(_)) => return,
                Err(_) => {
                    let error = format!("the journal was not on the disk within {limit:?}");
                    return self.step(Event::ShellFailed { error });
                }
            }
            let applies = commands.iter().any(|(_, command)| matches!(command, Command::Apply { .. }));
            failpoint::reach(if applies { "told" } else { "" });
            for (worker, command) in commands {
                self.send_now(&worker, command);
            }
            failpoint::reach(if applies { "after_apply" } else { "" });
            self.work_off();
        }
    }

    fn hear(&mut self, input: Input) {
        match input {
            Input::Connected { connection, mut hello, outgoing } => {
                if let Some(error) = self.is_behind(&hello) {
                    return self.step(Event::ShellFailed { error });
                }
                // What it holds of another run, or of an earlier course of this one, is of no use.
                hello.held = hello.held.filter(|(run, _)| *run == self.run_id);
                tracing::info!(worker = %hello.worker, host = hello.hostname, device = hello.device, "worker connected");
                self.knocking = Some(Connection { id: connection, outgoing });
                self.step(Event::Connected { hello });
                self.knocking = None;
            }
            Input::Disconnected { connection, worker, reason } => {
                if self.connections.get(&worker).is_some_and(|c| c.id == connection) {
                    self.connections.remove(&worker);
                    self.standings.set(&worker, Standing::Lost);
                    self.step(Event::Disconnected { worker, reason });
                }
            }
            Input::Worker { connection, worker, event } => {
                if self.connections.get(&worker).is_some_and(|c| c.id == connection) {
                    self.hear_worker(worker, event);
                }
            }
            Input::Verified { rollout, judgement } => {
                if judgement.timed_out {
                    tracing::warn!(%rollout, reason = judgement.verdict.reason, "counts as wrong");
                    self.telemetry.verification_timeout();
                }
                if self.store.judge(rollout, judgement) {
                    self.step(Event::RolloutVerified { rollout });
                }
            }
            Input::Outages(outages) => {
                self.outage.report(&outages);
                self.step(match outages.0.is_empty() {
                    true => Event::JudgingResumed,
                    false => Event::JudgingPaused { cause: outages.to_string() },
                });
            }
            Input::Shaped(outcome) => {
                let (group, advantages) = (outcome.group, outcome.advantages_f32());
                let skipped = outcome.skipped;
                self.journal.group(&outcome);
                self.store.shaped(*outcome);
                self.step(Event::GroupShaped { group, advantages, skipped });
            }
            Input::NotJudged(error) => self.step(Event::JudgingFailed { error }),
            Input::Failed(error) => self.step(Event::ShellFailed { error }),
            Input::Stop => self.step(Event::StopRequested),
        }
    }

    fn hear_worker(&mut self, worker: WorkerId, event: WorkerEvent) {
        let event = match event {
            WorkerEvent::Hello(_) => {
                let error = "said hello twice".to_owned();
                Event::WorkerFailed { worker, error }
            }
            WorkerEvent::EpochPrepared { epoch, policy_version, port } => {
                Event::EpochPrepared { worker, epoch, policy_version, port }
            }
            WorkerEvent::EpochFormed {
                epoch,
                policy_version,
                weights_digest,
                decode_slots,
                hidden_size: _,
            } => Event::EpochFormed { worker, epoch, policy_version, weights_digest, decode_slots },
            WorkerEvent::EpochFailed { epoch, error } => Event::EpochFailed { worker, epoch, error },
            WorkerEvent::Heartbeat { epoch, status } => Event::Heartbeat { worker, epoch, status },
            WorkerEvent::RolloutDone { epoch, lease, rollout } => {
                let event = Event::RolloutArrived {
                    worker,
                    epoch,
                    lease,
                    rollout: rollout.id,
                    policy_version: rollout.policy_version,
                    prompt_tokens: rollout.prompt_tokens.len() as u32,
                    response_tokens: rollout.response_tokens.len() as u32,
                };
                // Kept until the machine asks for its verification; a stale one is dropped there.
                self.store.arrived(rollout);
                event
            }
            WorkerEvent::LeaseRejected { epoch, lease, reason, detail } => {
                Event::LeaseRejected { worker, epoch, lease, reason, detail }
            }
            WorkerEvent::GradientsReady { epoch, step, minibatch, stats, gradient_norm, not_finite } => {
                Event::GradientsReady { worker, epoch, step, minibatch, stats, gradient_norm, not_finite }
            }
            WorkerEvent::MinibatchApplied { epoch, step, minibatch, policy_version, weights_digest } => {
                Event::MinibatchApplied { worker, epoch, step, minibatch, policy_version, weights_digest }
            }
            WorkerEvent::CheckpointDone { epoch, step, error } => {
                Event::CheckpointDone { worker, epoch, step, error }
            }
            WorkerEvent::Failed { error } => Event::WorkerFailed { worker, error },
        };
        self.step(event);
    }
}
