//! How well the decode slots are used, with ranks that decode rollouts of uneven lengths: a slot gives one
//! token a millisecond.

use std::collections::{BTreeMap, VecDeque};

use crate::state::{Coordinator, Effect, Event, LeaseOrder, Millis, RunPlan, StepRecord};
use g2rl_common::ids::{GroupId, LeaseId, PolicyVersion, RolloutId, WorkerId};
use g2rl_common::seed::CounterRng;
use g2rl_common::update::UpdateStats;

use super::support::plan;
use super::support::worker::{digest, hello};

const SLOTS: u32 = 8;

/// A rank's rollouts in the order of their leases.
#[derive(Debug, Default)]
struct Decoder {
    waiting: VecDeque<(LeaseId, RolloutId, u64)>,
    /// By the time at which they are complete.
    running: BTreeMap<(u64, RolloutId), (LeaseId, u64)>,
}

impl Decoder {
    fn lease(&mut self, order: &LeaseOrder, now: u64, length: impl Fn(RolloutId) -> u64) {
        for index in order.first_rollout..order.first_rollout + order.rollouts {
            let rollout = RolloutId { group: order.group, index };
            self.waiting.push_back((order.lease, rollout, length(rollout)));
        }
        self.fill(now);
    }

    fn fill(&mut self, now: u64) {
        while self.running.len() < SLOTS as usize
            && let Some((lease, rollout, length)) = self.waiting.pop_front()
        {
            self.running.insert((now + length, rollout), (lease, length));
        }
    }
}

/// A completed step.
struct Step {
    record: StepRecord,
    /// Its longest response.
    longest: u64,
}

/// A run whose ranks do nothing but decode, in simulated time.
struct Cluster {
    machine: Coordinator,
    now: u64,
    decoders: Vec<Decoder>,
    events: VecDeque<Event>,
    steps: Vec<Step>,
    longest: u64,
    group_size: u32,
    seed: u64,
    over: bool,
}

/// A problem's typical length has a heavy tail, its answers vary by a half around it.
fn length(seed: u64, problem: u32, rollout: RolloutId) -> u64 {
    let typical = 50.0 * (1.2 * normal(seed, &format!("problem {problem}"))).exp();
    (typical * (0.3 * normal(seed, &format!("rollout {rollout}"))).exp()).clamp(5.0, 2_000.0) as u64
}

/// Nearly normal: a sum of twelve.
fn normal(seed: u64, name: &str) -> f64 {
    let mut random = CounterRng::new(seed, name);
    (0..12).map(|_| random.next_f64()).sum::<f64>() - 6.0
}

impl Cluster {
    fn run(plan: RunPlan, ranks: u32, seed: u64) -> Vec<Step> {
        let hellos = (0..ranks).map(|rank| Event::Connected { hello: hello(&name(rank)) });
        let mut cluster = Self {
            group_size: plan.group_size,
            machine: Coordinator::new(plan),
            now: 0,
            decoders: (0..ranks).map(|_| Decoder::default()).collect(),
            events: hellos.collect(),
            steps: Vec::new(),
            longest: 0,
            seed,
            over: false,
        };
        while !cluster.over {
            match cluster.events.pop_front() {
                Some(event) => cluster.deliver(event),
                None => cluster.complete_next(),
            }
        }
        cluster.steps
    }

    /// Time goes on to the next complete rollout.
    fn complete_next(&mut self) {
        let next = |decoder: &Decoder| decoder.running.keys().next().copied();
        let ranked = self.decoders.iter().enumerate();
        let Some((at, rank)) = ranked.filter_map(|(rank, d)| Some((next(d)?, rank))).min() else {
            panic!("nothing runs: {:?}", self.machine.status());
        };
        self.now = at.0;
        let decoder = &mut self.decoders[rank];
        let (lease, length) = decoder.running.remove(&at).expect("it was just found");
        decoder.fill(self.now);
        self.longest = self.longest.max(length);
        self.deliver(Event::RolloutArrived {
            worker: WorkerId(name(rank as u32)),
            epoch: self.machine.status().epoch,
            lease,
            rollout: at.1,
            policy_version: PolicyVersion(self.steps.len() as u64),
            prompt_tokens: 10,
            response_tokens: length as u32,
        });
    }

    fn deliver(&mut self, event: Event) {
        for effect in self.machine.step(event, Millis(self.now)) {
            self.react(effect);
        }
    }

    fn react(&mut self, effect: Effect) {
        let version = PolicyVersion(self.steps.len() as u64);
        match effect {
            Effect::PrepareEpoch { worker, epoch, host } => {
                let port = host.then_some(1);
                self.events.push_back(Event::EpochPrepared { worker, epoch, policy_version: version, port });
            }
            Effect::FormEpoch { worker, plan } => self.events.push_back(Event::EpochFormed {
                worker,
                epoch: plan.epoch,
                policy_version: version,
                weights_digest: digest(version),
                decode_slots: SLOTS,
            }),
            Effect::Lease { worker, order, .. } => {
                let rank: usize = worker.0.trim_start_matches('w').parse().expect("a rank's name");
                let (seed, problem) = (self.seed, order.problem.index);
                let now = self.now;
                self.decoders[rank].lease(&order, now, |rollout| length(seed, problem, rollout));
            }
            Effect::VerifyRollout { rollout, .. } => {
                self.events.push_back(Event::RolloutVerified { rollout });
            }
            Effect::ShapeGroup { group, .. } => {
                let advantages = vec![1.0; self.group_size as usize];
                self.events.push_back(Event::GroupShaped { group, advantages, skipped: false });
            }
            Effect::TrainMinibatch { worker, epoch, step, minibatch, .. } => {
                let stats = UpdateStats::default();
                self.events.push_back(Event::GradientsReady {
                    worker,
                    epoch,
                    step,
                    minibatch,
                    stats,
                    gradient_norm: 1.0,
                    not_finite: Vec::new(),
                });
            }
            Effect::Apply { worker, epoch, step, minibatch } => {
                let policy_version = version.next();
                self.events.push_back(Event::MinibatchApplied {
                    worker,
                    epoch,
                    step,
                    minibatch,
                    policy_version,
                    weights_digest: digest(policy_version),
                });
            }
            Effect::SaveCheckpoint { worker, epoch, step, .. } => {
                self.events.push_back(Event::CheckpointDone { worker, epoch, step, error: None });
            }
            Effect::StepCompleted(record) => {
                self.steps.push(Step { record, longest: std::mem::take(&mut self.longest) });
            }
            Effect::Finished(_) => self.over = true,
            _ => {}
        }
    }
}

fn name(rank: u32) -> String {
    format!("w{rank:02}")
}

/// 4 ranks of 8 slots, 16 prompts of 8 rollouts a step, 5 steps to a pass.
fn uneven(passes: u64, response_lengths: BTreeMap<u32, f64>) -> RunPlan {
    let mut plan = plan(4);
    plan.steps = 5 * passes;
    plan.train_problems = 80;
    plan.prompts_per_step = 16;
    plan.group_size = 8;
    plan.sequences_per_minibatch = 0;
    plan.evaluation = None;
    plan.checkpoint_every = 0;
    plan.response_lengths = response_lengths;
    plan.cluster.heartbeat_timeout_ms = u64::MAX / 2;
    plan
}

/// Time of the rollouts over the least possible: the longest rollout, or all tokens over all slots.
fn stretch(steps: &[Step]) -> f64 {
    let taken: u64 = steps.iter().map(|step| step.record.times.rollout_ms).sum();
    let least = |step: &Step| (step.record.response_tokens / u64::from(4 * SLOTS)).max(step.longest);
    taken as f64 / steps.iter().map(least).sum::<u64>() as f64
}

fn mean_idle(steps: &[Step]) -> f64 {
    steps.iter().map(|step| step.record.rollout_idle_ratio).sum::<f64>() / steps.len() as f64
}

#[test]
fn history_shortens_the_tail() {
    let (mut first, mut second, mut resumed, mut idle) = (0.0, 0.0, 0.0, [0.0; 2]);
    for seed in 0..8 {
        let steps = Cluster::run(uneven(2, BTreeMap::new()), 4, seed);
        assert_eq!(steps.len(), 10);
        assert!(steps.iter().all(|step| (0.0..1.0).contains(&step.record.rollout_idle_ratio)));
        first += stretch(&steps[..5]) / 8.0;
        second += stretch(&steps[5..]) / 8.0;
        idle = [idle[0] + mean_idle(&steps[..5]) / 8.0, idle[1] + mean_idle(&steps[5..]) / 8.0];
        // What a resumed run reads of the steps before it.
        let rollouts = (0..8).map(|index| RolloutId { group: GroupId(9_999), index });
        let typical = |problem| rollouts.clone().map(|r| length(seed, problem, r) as f64).sum::<f64>() / 8.0;
        let history = (0..80).map(|problem| (problem, typical(problem))).collect();
        resumed += stretch(&Cluster::run(uneven(1, history), 4, seed)) / 8.0;
    }
    println!(
        "time over the least: {first:.3}, {second:.3} with history, {resumed:.3} after a resume; idle {idle:?}"
    );
    assert!(first > 1.1 && second < 1.03 && resumed < 1.03, "{first} {second} {resumed}");
    assert!(idle[1] < idle[0], "{idle:?}");
}

#[test]
fn few_groups_are_spread_over_all_ranks() {
    // 2 groups of 16 on 4 ranks of 8 slots: whole groups would leave two ranks without work and let half of
    // the rollouts wait.
    let mut plan = uneven(1, BTreeMap::new());
    (plan.prompts_per_step, plan.group_size, plan.steps, plan.train_problems) = (2, 16, 1, 2);
    plan.shuffle = false;
    let steps = Cluster::run(plan, 4, 3);
    // All decode at once: the step takes as long as its longest rollout.
    assert_eq!(steps[0].record.times.rollout_ms, steps[0].longest);
}
