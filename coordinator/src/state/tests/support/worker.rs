//! A worker that answers commands, and may go wrong at a chosen one, or say what is not true.

use crate::state::{Effect, Event, LeaseOrder, SequenceOrder};
use g2rl_common::ids::{GroupEpoch, MinibatchIndex, PolicyVersion, RolloutId, StepIndex, WorkerId};
use g2rl_common::rollout::{FinishReason, Rollout};
use g2rl_common::update::UpdateStats;
use g2rl_proto::wire::WorkerMessage;
use g2rl_proto::{Hello, PROTOCOL_VERSION, RejectReason, WorkerEvent, WorkerStatus};

use super::lie::Lie;

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
    /// The answer is this lie.
    Lie(Lie),
}

/// How a worker behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Behavior {
    /// 0 stands for 4.
    pub(crate) slots: u32,
    /// The fault, and the commands that are obeyed before it.
    pub(crate) fault: Option<(Fault, Command, u32)>,
    /// Its answers take up to this long besides.
    pub(crate) slow_ms: u64,
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

/// What a worker says.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Said {
    pub(crate) event: Event,
    /// It is not true.
    pub(crate) lie: bool,
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
    /// It does nothing until then, and then everything that waits.
    pub(crate) hangs_until: u64,
    /// It has been welcomed, and has read its model.
    pub(crate) loaded: bool,
    stopped: bool,
    beats: bool,
    /// The policy it holds: how many mini-batches it has applied, and which.
    pub(crate) version: PolicyVersion,
    pub(crate) weights: u64,
    /// How its weights differ from those of the others.
    skew: u64,
    epoch: GroupEpoch,
    ranks: u32,
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
            hangs_until: 0,
            loaded: false,
            stopped: false,
            beats: true,
            version: PolicyVersion(0),
            weights: digest(PolicyVersion(0)),
            skew: 0,
            epoch: GroupEpoch(0),
            ranks: 0,
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

    /// It gets or reads a policy.
    pub(crate) fn take(&mut self, (version, weights): (PolicyVersion, u64)) {
        (self.version, self.weights, self.skew) = (version, weights, 0);
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
    pub(crate) fn react(&mut self, effect: &Effect) -> Vec<Said> {
        if self.stopped {
            return Vec::new();
        }
        let worker = self.id.clone();
        let event = match self.fault(effect) {
            None => return self.answer(effect, None),
            Some(Fault::WrongAnswer) => {
                return self.answer(effect, Lie::to(command(effect)));
            }
            Some(Fault::Lie(lie)) => return self.answer(effect, Some(lie)),
            Some(Fault::EpochFailed) => {
                Event::EpochFailed { worker, epoch: self.epoch, error: "broken pipe".into() }
            }
            Some(fault) => {
                (self.stopped, self.beats) = (true, fault == Fault::Stuck);
                match fault {
                    Fault::Disconnect => Event::Disconnected { worker, reason: "connection reset".into() },
                    Fault::Fail => Event::WorkerFailed { worker, error: "out of memory".into() },
                    _ => return Vec::new(),
                }
            }
        };
        vec![Said { event, lie: false }]
    }

    fn answer(&mut self, effect: &Effect, lie: Option<Lie>) -> Vec<Said> {
        let worker = self.id.clone();
        let version_lie = u64::from(lie == Some(Lie::Version)) * 7;
        // With weights of its own a rank says what is not true whenever it says their digest.
        let said = |event, lie| vec![Said { event, lie }];
        match effect {
            Effect::PrepareEpoch { epoch, host, .. } => {
                (self.epoch, self.pending) = (*epoch, None);
                let port = host.then_some(4_000);
                let policy_version = PolicyVersion(self.version.0 + version_lie);
                said(Event::EpochPrepared { worker, epoch: *epoch, policy_version, port }, version_lie > 0)
            }
            Effect::FormEpoch { plan, .. } => {
                self.ranks = plan.world_size;
                assert_eq!(self.version, plan.policy_version, "{worker} goes on with another policy");
                self.spoil_weights(lie);
                let event = Event::EpochFormed {
                    worker,
                    epoch: plan.epoch,
                    policy_version: PolicyVersion(plan.policy_version.0 + version_lie),
                    weights_digest: self.weights + self.skew,
                    decode_slots: if self.behavior.slots == 0 { 4 } else { self.behavior.slots },
                };
                said(event, self.skew > 0 || version_lie > 0)
            }
            Effect::Lease { epoch, order, .. } => {
                if (self.too_long)(order.problem.index) {
                    let (reason, detail) = (RejectReason::PromptTooLong, "5000 tokens".to_owned());
                    let (epoch, lease) = (*epoch, order.lease);
                    return said(Event::LeaseRejected { worker, epoch, lease, reason, detail }, false);
                }
                self.generate(*epoch, order, lie)
            }
            Effect::TrainMinibatch { epoch, step, minibatch, sequences, .. } => {
                let of = (*epoch, *step, *minibatch);
                self.pending = Some(of);
                match lie {
                    Some(Lie::Untold) => said(self.applied(of, self.version.next()), true),
                    _ => said(self.ready(of, sequences, lie), lie == Some(Lie::Norm) && self.ranks > 1),
                }
            }
            Effect::Apply { epoch, step, minibatch, .. } => {
                let of = (*epoch, *step, *minibatch);
                assert_eq!(self.pending.take(), Some(of), "{worker} has no such gradients");
                self.version = self.version.next();
                self.weights = after(self.weights, *step, *minibatch);
                self.spoil_weights(lie);
                let event = self.applied(of, PolicyVersion(self.version.0 + version_lie));
                said(event, self.skew > 0 || version_lie > 0)
            }
            Effect::SaveCheckpoint { epoch, step, .. } if self.saves => {
                let error = lie.map(|_| "no space left on device".to_owned());
                said(Event::CheckpointDone { worker, epoch: *epoch, step: *step, error }, false)
            }
            _ => Vec::new(),
        }
    }

    fn ready(
        &self,
        (epoch, step, minibatch): (GroupEpoch, StepIndex, MinibatchIndex),
        share: &[SequenceOrder],
        lie: Option<Lie>,
    ) -> Event {
        let broken = usize::from((self.broken)(step, minibatch));
        let norm = (self.norm)(step, minibatch);
        Event::GradientsReady {
            worker: self.id.clone(),
            epoch,
            step,
            minibatch,
            stats: UpdateStats {
                tokens: share.iter().map(|order| u64::from(response_tokens(order.rollout))).sum(),
                sequences: share.len() as u64,
                kl: if lie == Some(Lie::Sums) { f64::NAN } else { 0.0 },
                ..UpdateStats::default()
            },
            gradient_norm: if lie == Some(Lie::Norm) { norm + 0.5 } else { norm },
            not_finite: share.iter().take(broken).map(|order| order.rollout).collect(),
        }
    }

    fn applied(
        &self,
        (epoch, step, minibatch): (GroupEpoch, StepIndex, MinibatchIndex),
        policy_version: PolicyVersion,
    ) -> Event {
        let (worker, weights_digest) = (self.id.clone(), self.weights + self.skew);
        Event::MinibatchApplied { worker, epoch, step, minibatch, policy_version, weights_digest }
    }

    /// Its weights are other than the others'; alone it has nobody to differ from.
    fn spoil_weights(&mut self, lie: Option<Lie>) {
        self.skew += u64::from(lie == Some(Lie::Digest) && self.ranks > 1);
        self.skew *= u64::from(self.ranks > 1);
    }

    /// Back to front: rollouts of a lease come in any order.
    fn generate(&mut self, epoch: GroupEpoch, order: &LeaseOrder, lie: Option<Lie>) -> Vec<Said> {
        let policy = |wrong: bool| PolicyVersion(order.policy_version.0 + u64::from(wrong));
        if lie == Some(Lie::Feature) {
            let rollout = RolloutId { group: order.group, index: order.first_rollout };
            let reason = refused_feature(&self.id, epoch, order, rollout);
            self.stop();
            return vec![Said { event: Event::Disconnected { worker: self.id.clone(), reason }, lie: false }];
        }
        let unasked = (lie == Some(Lie::Unasked)).then_some(order.first_rollout + order.rollouts);
        let indices =
            unasked.into_iter().chain((order.first_rollout..order.first_rollout + order.rollouts).rev());
        indices
            .map(|index| {
                let rollout = RolloutId { group: order.group, index };
                let event = Event::RolloutArrived {
                    worker: self.id.clone(),
                    epoch,
                    lease: order.lease,
                    rollout,
                    policy_version: policy(lie == Some(Lie::Version)),
                    prompt_tokens: 7,
                    response_tokens: response_tokens(rollout),
                };
                Said { event, lie: lie == Some(Lie::Version) || unasked == Some(index) }
            })
            .collect()
    }
}

/// Why the wire ends the stream of a worker that sends a feature which is not a number.
fn refused_feature(worker: &WorkerId, epoch: GroupEpoch, order: &LeaseOrder, id: RolloutId) -> String {
    let rollout = Rollout {
        id,
        policy_version: order.policy_version,
        prompt_tokens: vec![1],
        response_tokens: vec![2],
        behavior_logprobs: vec![-0.5],
        mean_entropy: 0.1,
        text: "x".into(),
        finish_reason: FinishReason::EndToken,
        feature: Some(vec![0.5, f32::NAN]),
    };
    let message = WorkerMessage::from(WorkerEvent::RolloutDone { epoch, lease: order.lease, rollout });
    let error = WorkerEvent::try_from(message).expect_err("a feature is finite");
    format!("message from worker {worker}: {error}")
}

/// Of the weights that a run begins with.
pub(crate) fn digest(version: PolicyVersion) -> u64 {
    0xabcd + version.0 * 16
}

/// The weights after a mini-batch. The lowest bits are left to those who lie.
fn after(weights: u64, step: StepIndex, minibatch: MinibatchIndex) -> u64 {
    let applied = 1 + (step.0 << 16) + minibatch.0;
    (weights.rotate_left(7) ^ applied).wrapping_mul(0x9E37_79B9_7F4A_7C15) & 0x0FFF_FFFF_FFFF_FFF0
}
