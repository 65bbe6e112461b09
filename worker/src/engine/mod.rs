//! The thread that owns the model: everything libtorch does for a run happens here, in order.
//!
//! In: [`Command`]s of the coordinator. Out: [`WorkerEvent`]s. Between commands it decodes, one
//! step at a time, so that a command waits at most one decode step, one prefill or one mini-batch.
//!
//! Invariants: a command of another epoch than the current one is dropped and counted; rollouts and
//! policy outlive an epoch, gradients do not; no rollouts run while gradients are computed; an optimizer
//! step is never interrupted. A collective that fails ends the epoch, not the engine.

mod checkpoint;
mod epoch;
mod policy;
mod status;
mod update;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use g2rl_common::config::{ConfigError, RunConfig};
use g2rl_common::ids::{GroupEpoch, LeaseId, MinibatchIndex, RolloutId, StepIndex};
use g2rl_common::rollout::{FinishReason, GroupLease, Rollout};
use g2rl_ffi::FfiError;
use g2rl_hub::HubError;
use g2rl_proto::{Command, MAX_LEASES_REPORTED, Phase, RejectReason, Welcome, WorkerEvent};
use tch::Device;
use tokio::sync::mpsc;

pub use self::epoch::Interrupt;
use self::epoch::{Epoch, EpochError, HostedStore};
use self::policy::Policy;
pub use self::status::SharedStatus;
use crate::checkpoint::background::Writer;
use crate::failpoint;
use crate::model::files::WeightsError;
use crate::planner::PlanError;
use crate::pulse::{self, Work};
use crate::rollout::{RolloutError, RolloutRequest};
use crate::tokenizer::TokenizerError;
use crate::update::UpdateError;
use crate::watchdog::Limits;

/// Why a worker cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The coordinator's configuration.
    #[error("the run's configuration: {0}")]
    Config(#[from] ConfigError),
    /// The model's files.
    #[error("the run's model: {0}")]
    Hub(#[from] HubError),
    /// The model directory.
    #[error("the run's model: {0}")]
    Weights(#[from] WeightsError),
    /// The tokenizer.
    #[error("the run's tokenizer: {0}")]
    Tokenizer(#[from] TokenizerError),
    /// The memory.
    #[error("memory plan: {0}")]
    Plan(#[from] PlanError),
    /// Generation.
    #[error("rollout: {0}")]
    Rollout(#[from] RolloutError),
    /// The update.
    #[error("update: {0}")]
    Update(#[from] UpdateError),
    /// The process group.
    #[error("process group: {0}")]
    Group(#[from] FfiError),
    /// A command that makes no sense now.
    #[error("protocol: {0}")]
    Protocol(String),
    /// The coordinator ended the run.
    #[error("the coordinator ended the run: {0}")]
    RunFailed(String),
}

/// What the engine needs to know of its surroundings.
#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// The device of this rank.
    pub device: Device,
    /// Address under which other ranks reach this one.
    pub address: String,
}

/// The engine and the channel it answers on.
pub struct Engine {
    options: EngineOptions,
    events: mpsc::Sender<WorkerEvent>,
    status: Arc<SharedStatus>,
    policy: Option<Policy>,
    store: Option<HostedStore>,
    epoch: Option<Epoch>,
    interrupt: Arc<Interrupt>,
    /// Of the run that the policy belongs to.
    welcome: Option<Welcome>,
    writer: Writer,
    /// The mini-batch whose gradients wait to be applied, and its epoch.
    pending: Option<(GroupEpoch, StepIndex, MinibatchIndex)>,
    /// When the status last heard how far the leases are.
    leases_told: Option<Instant>,
}

/// How often the status hears how far the leases are.
const LEASES_INTERVAL: Duration = Duration::from_millis(500);

/// Whether the engine goes on after a command.
enum Next {
    Continue,
    Stop,
}

impl Engine {
    /// An engine without model yet; the coordinator's welcome says which to load.
    #[must_use]
    pub fn new(options: EngineOptions, events: mpsc::Sender<WorkerEvent>, status: Arc<SharedStatus>) -> Self {
        let (interrupt, writer) = (Arc::default(), Writer::new(status.writing().clone()));
        Self {
            options,
            events,
            status,
            policy: None,
            store: None,
            epoch: None,
            interrupt,
            welcome: None,
            writer,
            pending: None,
            leases_told: None,
        }
    }

    /// What other threads need to end a collective of the engine.
    #[must_use]
    pub fn interrupt(&self) -> Arc<Interrupt> {
        self.interrupt.clone()
    }

    /// Serves commands until the run is over or the channel is closed.
    ///
    /// # Errors
    /// [`EngineError`]; it has been reported to the coordinator.
    pub fn run(mut self, mut commands: mpsc::Receiver<Command>) -> Result<(), EngineError> {
        pulse::install(self.status.pulse().clone());
        let result = self.serve(&mut commands);
        if let Err(error) = &result
            && !matches!(error, EngineError::RunFailed(_))
        {
            self.send(WorkerEvent::Failed { error: error.to_string() });
        }
        result
    }

    fn serve(&mut self, commands: &mut mpsc::Receiver<Command>) -> Result<(), EngineError> {
        loop {
            let idle = self.policy.as_ref().is_none_or(|p| p.rollouts.is_idle());
            let command = if idle {
                let waits_for_apply = self.pending.is_some();
                self.status.set_phase(if waits_for_apply { Phase::WaitingForApply } else { Phase::Idle });
                if self.leases_told.take().is_some() {
                    self.status.set_leases(Vec::new());
                }
                failpoint::reach("idle");
                match commands.blocking_recv() {
                    Some(command) => Some(command),
                    None => return Ok(()),
                }
            } else {
                match commands.try_recv() {
                    Ok(command) => Some(command),
                    Err(mpsc::error::TryRecvError::Empty) => None,
                    Err(mpsc::error::TryRecvError::Disconnected) => return Ok(()),
                }
            };
            match command {
                Some(command) => {
                    if let Next::Stop = self.handle(command)? {
                        return Ok(());
                    }
                }
                None => self.decode()?,
            }
        }
    }

    /// Sends an event. A closed channel means that the session is over; the command channel is
    /// then closed too, and [`Self::serve`] ends.
    fn send(&self, event: WorkerEvent) {
        pulse::piece(Work::Send, || {
            let _ = self.events.blocking_send(event);
        });
    }

    fn handle(&mut self, command: Command) -> Result<Next, EngineError> {
        match command {
            Command::Welcome(welcome) => {
                self.interrupt.handled();
                self.load(&welcome)?;
            }
            Command::PrepareEpoch { epoch, host } => {
                self.interrupt.handled();
                self.prepare_epoch(epoch, host)?;
            }
            Command::FormEpoch(plan) => self.form_epoch(&plan)?,
            Command::Shutdown { reason, failed: false } => {
                tracing::info!(reason, "the run is over");
                return Ok(Next::Stop);
            }
            Command::Shutdown { reason, failed: true } => return Err(EngineError::RunFailed(reason)),
            Command::Lease { epoch, lease } => {
                if self.is_current(epoch, "lease") {
                    self.lease(lease)?;
                }
            }
            Command::TrainMinibatch { epoch, step, minibatch, learning_rate, sequences } => {
                if self.is_current(epoch, "train_minibatch") {
                    self.compute((step, minibatch), learning_rate, &sequences)?;
                }
            }
            Command::Apply { epoch, step, minibatch } => {
                if self.is_current(epoch, "apply") {
                    self.apply(step, minibatch)?;
                }
            }
            Command::SaveCheckpoint { epoch, step, path, trainer_state_json } => {
                if self.is_current(epoch, "save_checkpoint") {
                    self.checkpoint(step, Path::new(&path), &trainer_state_json)?;
                }
            }
        }
        Ok(Next::Continue)
    }

    fn is_current(&self, epoch: GroupEpoch, command: &'static str) -> bool {
        let current = self.epoch.as_ref().map(|e| e.plan.epoch);
        if current == Some(epoch) {
            return true;
        }
        tracing::debug!(%epoch, ?current, command, "dropped a command of another epoch");
        self.status.count_stale();
        false
    }

    fn load(&mut self, welcome: &Welcome) -> Result<(), EngineError> {
        self.status.set_phase(Phase::Loading);
        self.leave_epoch();
        if let Some(policy) = self.policy.as_mut().filter(|policy| policy.run == welcome.run) {
            // The stream broke; the leases went with it, the policy did not.
            policy.rollouts.cancel_all();
            return Ok(());
        }
        self.welcome = Some(welcome.clone());
        self.read_policy(welcome)
    }

    fn read_policy(&mut self, welcome: &Welcome) -> Result<(), EngineError> {
        self.policy = None;
        self.status.set_phase(Phase::Loading);
        let config = RunConfig::from_toml(&welcome.config_toml)?;
        let collective_ms = config.cluster.collective_timeout_ms;
        self.status.set_limits(Limits { phases: config.watchdog.clone(), collective_ms });
        let device = self.options.device;
        let policy = pulse::piece(Work::Read, || Policy::load(config, welcome, device))?;
        self.status.set_held(&policy.run, policy.version);
        self.policy = Some(policy);
        Ok(())
    }

    /// Gradients of an epoch are of no use in another: the mini-batch is divided anew.
    fn leave_epoch(&mut self) {
        (self.epoch, self.pending) = (None, None);
        self.interrupt.settle();
    }

    fn policy(&mut self) -> Result<&mut Policy, EngineError> {
        self.policy.as_mut().ok_or_else(|| EngineError::Protocol("a command came before the welcome".into()))
    }

    fn prepare_epoch(&mut self, epoch: GroupEpoch, host: bool) -> Result<(), EngineError> {
        self.status.set_phase(Phase::Forming);
        self.leave_epoch();
        self.store = None;
        let policy_version = self.policy()?.version;
        if host {
            match HostedStore::open(epoch, &self.options.address) {
                Ok(store) => self.store = Some(store),
                Err(error) => {
                    self.send(WorkerEvent::EpochFailed { epoch, error: error.to_string() });
                    return Ok(());
                }
            }
        }
        let port = self.store.as_ref().map(HostedStore::port);
        self.send(WorkerEvent::EpochPrepared { epoch, policy_version, port });
        Ok(())
    }

    fn form_epoch(&mut self, plan: &g2rl_proto::EpochPlan) -> Result<(), EngineError> {
        self.status.set_phase(Phase::Forming);
        self.leave_epoch();
        let (store, address, device) = (self.store.take(), self.options.address.clone(), self.options.device);
        let interrupt = self.interrupt.clone();
        let policy = self.policy()?;
        if policy.version != plan.policy_version {
            policy.rollouts.cancel_all();
        }
        // Whether part of another policy may have arrived.
        let mut torn = false;
        let formed = Epoch::form(plan, store, &address, device, &interrupt)
            .map_err(EpochError::from)
            .and_then(|epoch| {
                torn = plan.share_policy && policy.version != plan.policy_version;
                epoch.share_policy(policy)?;
                Ok(epoch)
            });
        match formed {
            Ok(epoch) => {
                let held = (policy.run.clone(), policy.version);
                let event = WorkerEvent::EpochFormed {
                    epoch: plan.epoch,
                    policy_version: policy.version,
                    weights_digest: policy.model.weights().digest(),
                    decode_slots: policy.slots,
                    hidden_size: policy.model.config().hidden_size as u32,
                };
                self.status.set_held(&held.0, held.1);
                self.status.set_epoch(plan.epoch);
                self.epoch = Some(epoch);
                self.send(event);
            }
            Err(error) => {
                self.send(WorkerEvent::EpochFailed { epoch: plan.epoch, error: error.to_string() });
                if let Some(welcome) = self.welcome.clone().filter(|_| torn) {
                    self.read_policy(&welcome)?;
                }
            }
        }
        Ok(())
    }

    fn lease(&mut self, lease: GroupLease) -> Result<(), EngineError> {
        self.status.set_phase(Phase::Rollout);
        let Some(epoch) = self.epoch.as_ref().map(|e| e.plan.epoch) else { return Ok(()) };
        let policy = self.policy()?;
        if lease.policy_version != policy.version {
            let (asked, held) = (lease.policy_version, policy.version);
            return Err(EngineError::Protocol(format!("lease for policy {asked}, this rank holds {held}")));
        }
        let prompt = match policy.tokenizer.encode_prompt(&policy.config.prompt, &lease.problem) {
            Ok(prompt) => prompt,
            Err(error) => {
                self.reject(epoch, lease.lease, RejectReason::InvalidPrompt, error.to_string());
                return Ok(());
            }
        };
        let limit = policy.config.prompt.max_tokens as usize;
        if prompt.len() > limit || prompt.is_empty() {
            let detail = format!("prompt {}: {} tokens, the limit is {limit}", lease.prompt_id, prompt.len());
            let reason =
                if prompt.is_empty() { RejectReason::InvalidPrompt } else { RejectReason::PromptTooLong };
            self.reject(epoch, lease.lease, reason, detail);
            return Ok(());
        }
        match &lease.given_response {
            Some(text) => {
                let rollout = given_rollout(&lease, &prompt, text, policy)?;
                self.send(WorkerEvent::RolloutDone { epoch, lease: lease.lease, rollout });
            }
            None => {
                policy.rollouts.submit(RolloutRequest { lease, prompt_tokens: prompt.into() })?;
                // Of a new one the next step tells.
                self.leases_told = None;
            }
        }
        Ok(())
    }

    fn reject(&self, epoch: GroupEpoch, lease: LeaseId, reason: RejectReason, detail: String) {
        self.send(WorkerEvent::LeaseRejected { epoch, lease, reason, detail });
    }

    /// One decode step, and the rollouts it completed.
    fn decode(&mut self) -> Result<(), EngineError> {
        self.status.set_phase(Phase::Rollout);
        // Between two epochs the leases go on.
        let epoch = self.status.epoch();
        let tell = self.leases_told.is_none_or(|told| told.elapsed() >= LEASES_INTERVAL);
        let policy = self.policy()?;
        let finished = policy.rollouts.step(&policy.model, &policy.tokenizer)?;
        let leases = tell.then(|| policy.rollouts.progress(MAX_LEASES_REPORTED));
        let (slots, tokens) = (policy.rollouts.slots_in_use(), policy.rollouts.generated_tokens());
        self.status.set_rollout(slots, tokens);
        if let Some(leases) = leases {
            self.status.set_leases(leases);
            self.leases_told = Some(Instant::now());
        }
        for done in finished {
            failpoint::reach("rollout");
            self.send(WorkerEvent::RolloutDone { epoch, lease: done.lease, rollout: done.rollout });
        }
        Ok(())
    }
}

/// A given solution as a rollout: tokens without log-probabilities, entropy and feature.
fn given_rollout(
    lease: &GroupLease,
    prompt: &[u32],
    text: &str,
    policy: &Policy,
) -> Result<Rollout, EngineError> {
    let response_tokens = policy.tokenizer.encode_response(text)?;
    Ok(Rollout {
        id: RolloutId { group: lease.group, index: lease.first_rollout },
        policy_version: lease.policy_version,
        prompt_tokens: prompt.to_vec(),
        response_tokens,
        behavior_logprobs: Vec::new(),
        mean_entropy: 0.0,
        text: text.to_owned(),
        finish_reason: FinishReason::EndToken,
        feature: None,
    })
}
