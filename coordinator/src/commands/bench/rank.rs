//! A simulated rank: speaks the protocol, generates random rollouts at once, updates nothing.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use g2rl_common::ids::{GroupEpoch, MinibatchIndex, PolicyVersion, RolloutId, StepIndex, WorkerId};
use g2rl_common::rollout::{FinishReason, GroupLease, Rollout};
use g2rl_common::seed::CounterRng;
use g2rl_common::update::UpdateStats;
use g2rl_proto::wire::WorkerMessage;
use g2rl_proto::wire::session_client::SessionClient;
use g2rl_proto::{Command, Hello, MAX_MESSAGE_BYTES, PROTOCOL_VERSION, WorkerEvent, WorkerStatus};
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

use super::load::LoadArgs;

/// Events waiting for the network.
const QUEUE: usize = 64;

/// Random numbers that features are cut from.
const RANDOM: usize = 1 << 16;

/// What all ranks generate from.
pub(super) struct Load {
    hidden: usize,
    prompt_tokens: usize,
    new_tokens: usize,
    random: Vec<f32>,
}

impl Load {
    pub(super) fn new(args: &LoadArgs) -> Self {
        let mut random = CounterRng::new(0, "load");
        let count = RANDOM + args.hidden + args.new_tokens;
        let random = (0..count).map(|_| (random.next_f64() - 0.5) as f32).collect();
        let (hidden, prompt_tokens, new_tokens) = (args.hidden, args.prompt_tokens, args.new_tokens);
        Self { hidden, prompt_tokens, new_tokens, random }
    }

    /// Three in four answers are right.
    fn rollout(&self, lease: &GroupLease, index: u32) -> Rollout {
        let id = RolloutId { group: lease.group, index };
        let mut draw = CounterRng::new(lease.group.0, &format!("rollout {index}"));
        let length = self.new_tokens - draw.below(self.new_tokens as u64 / 4 + 1) as usize;
        let start = draw.below(RANDOM as u64) as usize;
        let answer = lease.problem.split(' ').nth(2).and_then(|n| n.parse::<u64>().ok()).unwrap_or(0) + 1;
        let answer = if draw.below(4) == 0 { answer + 1 } else { answer };
        Rollout {
            id,
            policy_version: lease.policy_version,
            prompt_tokens: vec![7; self.prompt_tokens],
            response_tokens: (0..length as u32).collect(),
            behavior_logprobs: self.random[start..start + length].iter().map(|x| x - 0.5).collect(),
            mean_entropy: 0.5,
            text: format!("{}Hence the answer is \\boxed{{{answer}}}.", "we add one. ".repeat(length / 4)),
            finish_reason: FinishReason::EndToken,
            feature: Some(self.random[start..start + self.hidden].to_vec()),
        }
    }
}

/// What the ranks saw, and when.
#[derive(Debug, Default)]
pub(super) struct Observations {
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    /// The first lease of each policy that leases began with.
    steps: BTreeMap<PolicyVersion, Instant>,
    /// When the last rank was ready.
    ready: BTreeMap<(StepIndex, MinibatchIndex), Instant>,
    apply: Vec<Duration>,
}

impl Observations {
    fn note(&self, note: impl FnOnce(&mut Seen)) {
        // Nothing is left half done by a panic elsewhere.
        note(&mut self.seen.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// The time of every step, from its first lease to the next's.
    pub(super) fn step_seconds(&self, ended: Instant) -> Vec<f64> {
        let mut starts: Vec<Instant> = Vec::new();
        self.note(|seen| starts = seen.steps.values().copied().chain([ended]).collect());
        starts.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64()).collect()
    }

    /// From the last rank that was ready to each rank's "apply", milliseconds, sorted.
    pub(super) fn apply_ms(&self) -> Vec<f64> {
        let mut times = Vec::new();
        self.note(|seen| times = seen.apply.iter().map(|time| time.as_secs_f64() * 1e3).collect());
        times.sort_by(f64::total_cmp);
        times
    }
}

/// Joins the run and answers until it is over. A rank that fails is missed by the coordinator, which says so.
pub(super) async fn serve(
    url: String,
    number: u32,
    load: std::sync::Arc<Load>,
    observations: std::sync::Arc<Observations>,
) {
    if let Err(error) = answer(&url, number, &load, &observations).await {
        tracing::error!(number, "simulated rank: {error:#}");
    }
}

async fn answer(url: &str, number: u32, load: &Load, observations: &Observations) -> anyhow::Result<()> {
    let mut client = SessionClient::connect(url.to_owned())
        .await?
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    let (events, outgoing) = mpsc::channel(QUEUE);
    events
        .send(WorkerEvent::Hello(Hello {
            protocol_version: PROTOCOL_VERSION,
            worker: WorkerId(format!("rank-{number:05}")),
            hostname: "simulated".into(),
            address: "127.0.0.1".into(),
            device: "none".into(),
            held: None,
        }))
        .await?;
    let outgoing = ReceiverStream::new(outgoing).map(WorkerMessage::from);
    let mut incoming = client.join(outgoing).await?.into_inner();
    let (mut epoch, mut held) = (GroupEpoch::default(), PolicyVersion(0));
    let mut beat = tokio::time::interval(Duration::from_secs(5));
    loop {
        let message = tokio::select! {
            message = incoming.message() => message?,
            _ = beat.tick() => {
                events.send(WorkerEvent::Heartbeat { epoch, status: WorkerStatus::default() }).await?;
                continue;
            }
        };
        let Some(message) = message else { return Ok(()) };
        match Command::try_from(message)? {
            Command::Welcome(_) => {}
            Command::PrepareEpoch { epoch, host } => {
                let (policy_version, port) = (held, host.then_some(1));
                events.send(WorkerEvent::EpochPrepared { epoch, policy_version, port }).await?;
            }
            Command::FormEpoch(plan) => {
                (epoch, held) = (plan.epoch, plan.policy_version);
                let (policy_version, weights_digest) = (plan.policy_version, plan.policy_version.0);
                let (decode_slots, hidden_size) = (64, load.hidden as u32);
                let formed = WorkerEvent::EpochFormed {
                    epoch,
                    policy_version,
                    weights_digest,
                    decode_slots,
                    hidden_size,
                };
                events.send(formed).await?;
            }
            Command::Lease { epoch, lease } => {
                observations.note(|seen| {
                    seen.steps.entry(lease.policy_version).or_insert_with(Instant::now);
                });
                for index in lease.first_rollout..lease.first_rollout + lease.rollouts {
                    let rollout = load.rollout(&lease, index);
                    events.send(WorkerEvent::RolloutDone { epoch, lease: lease.lease, rollout }).await?;
                }
            }
            Command::TrainMinibatch { epoch, step, minibatch, sequences, .. } => {
                let stats = UpdateStats { sequences: sequences.len() as u64, ..UpdateStats::default() };
                let (gradient_norm, not_finite) = (1.0, Vec::new());
                let ready =
                    WorkerEvent::GradientsReady { epoch, step, minibatch, stats, gradient_norm, not_finite };
                observations.note(|seen| {
                    seen.ready.insert((step, minibatch), Instant::now());
                });
                events.send(ready).await?;
            }
            Command::Apply { epoch, step, minibatch } => {
                let mut policy = 0;
                observations.note(|seen| {
                    let ready = seen.ready.get(&(step, minibatch));
                    seen.apply.extend(ready.map(Instant::elapsed));
                    // Every mini-batch so far was an optimizer step.
                    policy = seen.ready.len() as u64;
                });
                held = PolicyVersion(policy);
                let (policy_version, weights_digest) = (held, policy);
                let applied =
                    WorkerEvent::MinibatchApplied { epoch, step, minibatch, policy_version, weights_digest };
                events.send(applied).await?;
            }
            Command::SaveCheckpoint { epoch, step, .. } => {
                events.send(WorkerEvent::CheckpointDone { epoch, step, error: None }).await?;
            }
            Command::Shutdown { .. } => return Ok(()),
        }
    }
}
