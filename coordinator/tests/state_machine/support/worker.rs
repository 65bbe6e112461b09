//! A worker that answers commands, and may go wrong at a chosen one.

use g2rl_common::ids::{GroupEpoch, MinibatchIndex, PolicyVersion, RolloutId, StepIndex, WorkerId};
use g2rl_common::update::UpdateStats;
use g2rl_coordinator::state::{Effect, Event};
use g2rl_proto::{Hello, PROTOCOL_VERSION, RejectReason, WorkerStatus};

/// What a worker does wrong, from one command on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The stream ends.
    Disconnect,
    /// It reports that it cannot go on.
    Fail,
    /// It does nothing any more, not even beat.
    Silent,
    /// It beats but does nothing.
    Stuck,
    /// A collective fails.
    EpochFailed,
    /// The answer is wrong: another gradient norm, digest, or policy version.
    WrongAnswer,
}

/// How a worker behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Behavior {
    /// 0 stands for 4.
    pub(crate) slots: u32,
    /// The fault, and the commands that are obeyed before it.
    pub(crate) fault: Option<(Fault, Command, u32)>,
}

/// Kinds of commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Command {
    Prepare,
    FormEpoch,
    Lease,
    Train,
    Apply,
    Save,
}

#[derive(Debug)]
pub(crate) struct FakeWorker {
    pub(crate) id: WorkerId,
    pub(crate) behavior: Behavior,
    /// The fault happened.
    pub(crate) faulty: bool,
    /// Problems whose prompts it refuses.
    pub(crate) too_long: fn(u32) -> bool,
    /// Whether it says that a checkpoint is done.
    pub(crate) saves: bool,
    /// The norm of a mini-batch's gradients.
    pub(crate) norm: fn(StepIndex, MinibatchIndex) -> f64,
    /// Mini-batches in which its first sequence is not finite.
    pub(crate) broken: fn(StepIndex, MinibatchIndex) -> bool,
    stopped: bool,
    beats: bool,
    /// The policy it holds.
    pub(crate) version: PolicyVersion,
    epoch: GroupEpoch,
    /// The mini-batch whose gradients it has.
    pending: Option<(GroupEpoch, StepIndex, MinibatchIndex)>,
    seen: u32,
}

pub(crate) fn hello(name: &str) -> Hello {
    Hello {
        protocol_version: PROTOCOL_VERSION,
        worker: name.into(),
        hostname: "host".into(),
        address: format!("{name}.example"),
        device: "cpu".into(),
        held: None,
    }
}

pub(crate) fn heartbeat(worker: &WorkerId) -> Event {
    Event::Heartbeat { worker: worker.clone(), epoch: GroupEpoch(1), status: WorkerStatus::default() }
}

/// Whom an effect is sent to.
pub(crate) fn addressee(effect: &Effect) -> Option<&WorkerId> {
    match effect {
        Effect::PrepareEpoch { worker, .. }
        | Effect::FormEpoch { worker, .. }
        | Effect::Lease { worker, .. }
        | Effect::TrainMinibatch { worker, .. }
        | Effect::Apply { worker, .. }
        | Effect::SaveCheckpoint { worker, .. } => Some(worker),
        _ => None,
    }
}

fn command(effect: &Effect) -> Command {
    match effect {
        Effect::PrepareEpoch { .. } => Command::Prepare,
        Effect::FormEpoch { .. } => Command::FormEpoch,
        Effect::Lease { .. } => Command::Lease,
        Effect::TrainMinibatch { .. } => Command::Train,
        Effect::Apply { .. } => Command::Apply,
        Effect::SaveCheckpoint { .. } => Command::Save,
        other => panic!("not a command: {other:?}"),
    }
}

/// Tokens of a response: uneven, decided by the rollout.
pub(crate) fn response_tokens(rollout: RolloutId) -> u32 {
    1 + ((rollout.group.0 * 31 + u64::from(rollout.index) * 17) % 23) as u32
}

impl FakeWorker {
    pub(crate) fn new(id: WorkerId, behavior: Behavior) -> Self {
        Self {
            id,
            behavior,
            faulty: false,
            too_long: |_| false,
            saves: true,
            norm: |_, _| 2.0,
            broken: |_, _| false,
            stopped: false,
            beats: true,
            version: PolicyVersion(0),
            epoch: GroupEpoch(0),
            pending: None,
            seen: 0,
        }
    }

    pub(crate) fn beats(&self) -> bool {
        self.beats
    }

    /// Whether it still does what it is told.
    pub(crate) fn lives(&self) -> bool {
        !self.stopped
    }

    /// The process is gone, or does nothing any more.
    pub(crate) fn stop(&mut self) {
        (self.stopped, self.beats) = (true, false);
    }

    /// It connects anew: its policy is all it keeps.
    pub(crate) fn leave_epoch(&mut self) {
        self.pending = None;
    }

    /// It leaves its epoch because a peer is gone: what it says then. With its gradients summed it waits
    /// for nobody.
    pub(crate) fn peer_lost(&mut self) -> Option<Event> {
        self.pending.is_none().then(|| Event::EpochFailed {
            worker: self.id.clone(),
            epoch: self.epoch,
            error: "connection closed by peer".into(),
        })
    }

    /// Whether the fault begins with this command.
    fn fault(&mut self, effect: &Effect) -> Option<Fault> {
        let (fault, at, obeyed) = self.behavior.fault?;
        if self.faulty || command(effect) != at {
            return None;
        }
        self.seen += 1;
        self.faulty = self.seen > obeyed;
        self.faulty.then_some(fault)
    }

    /// What it says to a command.
    pub(crate) fn react(&mut self, effect: &Effect) -> Vec<Event> {
        if self.stopped {
            return Vec::new();
        }
        let worker = self.id.clone();
        let Some(fault) = self.fault(effect) else { return self.answer(effect, false) };
        self.stopped = !matches!(fault, Fault::WrongAnswer | Fault::EpochFailed);
        self.beats = matches!(fault, Fault::Stuck | Fault::EpochFailed | Fault::WrongAnswer);
        match fault {
            Fault::Disconnect => vec![Event::Disconnected { worker, reason: "connection reset".into() }],
            Fault::Fail => vec![Event::WorkerFailed { worker, error: "out of memory".into() }],
            Fault::Silent | Fault::Stuck => Vec::new(),
            Fault::EpochFailed => {
                vec![Event::EpochFailed { worker, epoch: self.epoch, error: "broken pipe".into() }]
            }
            Fault::WrongAnswer => self.answer(effect, true),
        }
    }

    fn answer(&mut self, effect: &Effect, wrong: bool) -> Vec<Event> {
        let worker = self.id.clone();
        match effect {
            Effect::PrepareEpoch { epoch, host, .. } => {
                (self.epoch, self.pending) = (*epoch, None);
                let (policy_version, port) = (self.version, host.then_some(4_000));
                vec![Event::EpochPrepared { worker, epoch: *epoch, policy_version, port }]
            }
            Effect::FormEpoch { plan, .. } => {
                if plan.share_policy {
                    self.version = plan.policy_version;
                }
                assert_eq!(self.version, plan.policy_version, "{worker} goes on with another policy");
                let decode_slots = if self.behavior.slots == 0 { 4 } else { self.behavior.slots };
                vec![Event::EpochFormed {
                    worker,
                    epoch: plan.epoch,
                    policy_version: plan.policy_version,
                    weights_digest: digest(plan.policy_version) + u64::from(wrong),
                    decode_slots,
                }]
            }
            Effect::Lease { epoch, order, .. } => {
                if (self.too_long)(order.problem.index) {
                    let (reason, detail) = (RejectReason::PromptTooLong, "5000 tokens".to_owned());
                    return vec![Event::LeaseRejected {
                        worker,
                        epoch: *epoch,
                        lease: order.lease,
                        reason,
                        detail,
                    }];
                }
                // Back to front: rollouts of a lease come in any order.
                let indices = (order.first_rollout..order.first_rollout + order.rollouts).rev();
                let rollouts = indices.map(|index| RolloutId { group: order.group, index });
                rollouts
                    .map(|rollout| Event::RolloutArrived {
                        worker: worker.clone(),
                        epoch: *epoch,
                        lease: order.lease,
                        rollout,
                        policy_version: PolicyVersion(order.policy_version.0 + u64::from(wrong)),
                        prompt_tokens: 7,
                        response_tokens: response_tokens(rollout),
                    })
                    .collect()
            }
            Effect::TrainMinibatch { epoch, step, minibatch, sequences, .. } => {
                let tokens = sequences.iter().map(|order| u64::from(response_tokens(order.rollout))).sum();
                let (epoch, step, minibatch) = (*epoch, *step, *minibatch);
                let broken = usize::from((self.broken)(step, minibatch));
                let not_finite = sequences.iter().take(broken).map(|order| order.rollout).collect();
                let sequences = sequences.len() as u64;
                let stats = UpdateStats { tokens, sequences, ..UpdateStats::default() };
                let gradient_norm = (self.norm)(step, minibatch) + if wrong { 0.5 } else { 0.0 };
                self.pending = Some((epoch, step, minibatch));
                vec![Event::GradientsReady {
                    worker,
                    epoch,
                    step,
                    minibatch,
                    stats,
                    gradient_norm,
                    not_finite,
                }]
            }
            Effect::Apply { epoch, step, minibatch, .. } => {
                let (epoch, step, minibatch) = (*epoch, *step, *minibatch);
                assert_eq!(
                    self.pending.take(),
                    Some((epoch, step, minibatch)),
                    "{worker} has no such gradients"
                );
                self.version = self.version.next();
                let weights_digest = digest(self.version) + u64::from(wrong);
                vec![Event::MinibatchApplied {
                    worker,
                    epoch,
                    step,
                    minibatch,
                    policy_version: self.version,
                    weights_digest,
                }]
            }
            Effect::SaveCheckpoint { epoch, step, .. } if self.saves => {
                let error = wrong.then(|| "no space left on device".to_owned());
                vec![Event::CheckpointDone { worker, epoch: *epoch, step: *step, error }]
            }
            _ => Vec::new(),
        }
    }
}

pub(crate) fn digest(version: PolicyVersion) -> u64 {
    0xabcd + version.0 * 16
}
