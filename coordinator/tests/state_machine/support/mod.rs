//! Simulated workers around the state machine: a fake clock, one ordered link for each worker, a
//! fake shell that verifies and shapes, and checks of every effect.

pub(crate) mod checks;
pub(crate) mod restart;
pub(crate) mod worker;

use std::collections::{BTreeMap, BTreeSet};

use g2rl_common::config::{ClusterConfig, ImitationConfig, OptimizerConfig};
use g2rl_common::ids::{GroupId, WorkerId};
use g2rl_common::objective::Aggregation;
use g2rl_common::seed::CounterRng;
use g2rl_coordinator::state::{
    Coordinator, Effect, EvaluationPlan, Event, Millis, Outcome, ResponseSource, RunPlan,
};

use checks::Checks;
use restart::Disk;
use worker::{Behavior, FakeWorker};

pub(crate) const HEARTBEAT_MS: u64 = 1_000;

/// A run of 3 steps with 4 prompts of 4 rollouts, evaluated at start and end.
pub(crate) fn plan(workers: u32) -> RunPlan {
    RunPlan {
        seed: 5,
        shuffle: true,
        steps: 3,
        train_problems: 10,
        prompts_per_step: 4,
        group_size: 4,
        responses: ResponseSource::Generated,
        sequences_per_minibatch: 8,
        max_nonfinite: 3,
        aggregation: Aggregation::TokenMean,
        imitation_coef: 1.0,
        imitation: ImitationConfig::default(),
        refill_to: None,
        optimizer: OptimizerConfig::default(),
        evaluation: Some(EvaluationPlan { problems: 5, samples: 2, every: 0, at_start: true, at_end: true }),
        checkpoint_every: 2,
        checkpoint_evaluated: false,
        cluster: ClusterConfig {
            min_workers: workers,
            max_workers: workers.max(4),
            grace_ms: 100,
            join_timeout_ms: 20_000,
            heartbeat_timeout_ms: 5_000,
            lease_timeout_ms: 30_000,
            update_timeout_ms: 15_000,
            collective_timeout_ms: 3_000,
            checkpoint_timeout_ms: 10_000,
            ..ClusterConfig::default()
        },
        resume: None,
        response_lengths: BTreeMap::new(),
    }
}

/// Where an event comes from: events of one source arrive in the order they were sent.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Source {
    Worker(WorkerId),
    /// The verification pool: no order at all.
    Pool,
}

pub(crate) struct Sim {
    pub(crate) machine: Coordinator,
    pub(crate) now: u64,
    pub(crate) log: Vec<Effect>,
    pub(crate) workers: BTreeMap<WorkerId, FakeWorker>,
    pub(crate) checks: Checks,
    /// What outlives the coordinator's process.
    pub(crate) disk: Disk,
    /// Delays are drawn from `1..=max_delay_ms`.
    pub(crate) max_delay_ms: u64,
    /// Chance in percent that a message is sent twice.
    pub(crate) duplicates_percent: u64,
    /// How long a verification takes besides.
    pub(crate) judge_ms: u64,
    /// Groups that the fake shaping skips.
    pub(crate) skip: fn(GroupId) -> bool,
    /// Workers whose stream is broken and that will connect again.
    pub(crate) cut_off: BTreeSet<WorkerId>,
    random: CounterRng,
    queue: BTreeMap<(u64, u64), (Source, Event)>,
    sequence: u64,
    last_due: BTreeMap<Source, u64>,
}

impl Sim {
    pub(crate) fn new(plan: RunPlan, seed: u64) -> Self {
        Self {
            checks: Checks::new(&plan),
            disk: Disk::new(plan.clone()),
            machine: Coordinator::new(plan),
            now: 1_000,
            log: Vec::new(),
            workers: BTreeMap::new(),
            max_delay_ms: 1,
            duplicates_percent: 0,
            judge_ms: 0,
            skip: |_| false,
            cut_off: BTreeSet::new(),
            random: CounterRng::new(seed, "simulator"),
            queue: BTreeMap::new(),
            sequence: 0,
            last_due: BTreeMap::new(),
        }
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.random.below(bound)
    }

    /// A worker that connects after `delay_ms`.
    pub(crate) fn connect(&mut self, name: &str, delay_ms: u64, behavior: Behavior) -> &mut FakeWorker {
        let id = WorkerId::from(name);
        self.send_at(Source::Worker(id.clone()), Event::Connected { hello: worker::hello(name) }, delay_ms);
        self.workers.entry(id.clone()).or_insert_with(|| FakeWorker::new(id, behavior))
    }

    pub(crate) fn send_at(&mut self, source: Source, event: Event, delay_ms: u64) {
        let mut due = self.now + delay_ms;
        if source != Source::Pool {
            let last = self.last_due.entry(source.clone()).or_insert(0);
            due = due.max(*last);
            *last = due;
        }
        self.sequence += 1;
        self.queue.insert((due, self.sequence), (source, event));
    }

    fn send(&mut self, source: Source, event: Event) {
        let delay = 1 + self.random.below(self.max_delay_ms);
        let repeat = matches!(&source, Source::Worker(_))
            && !matches!(event, Event::Disconnected { .. } | Event::WorkerFailed { .. })
            && self.random.below(100) < self.duplicates_percent;
        self.send_at(source.clone(), event.clone(), delay);
        if repeat {
            // Long after the first, in whatever epoch that is; so not over the ordered link.
            let delay = 1 + self.random.below(20 * self.max_delay_ms);
            self.send_at(Source::Pool, event, delay);
        }
    }

    /// A worker's stream breaks: of what is on its way only the first messages arrive.
    fn break_stream(&mut self, worker: &WorkerId) {
        let until = self.now + self.random.below(self.max_delay_ms + 1);
        let source = Source::Worker(worker.clone());
        let lost = |due: u64, from: &Source, event: &Event| {
            *from == source && due > until && !matches!(event, Event::Heartbeat { .. })
        };
        self.queue.retain(|(due, _), (from, event)| !lost(*due, from, event));
        self.last_due.insert(source, until);
    }

    /// A worker's process dies. That is noticed by its stream's end, or only by its silence.
    pub(crate) fn kill(&mut self, name: &str, noticed: bool) {
        let worker = WorkerId::from(name);
        self.break_stream(&worker);
        if let Some(fake) = self.workers.get_mut(&worker) {
            fake.stop();
        }
        if noticed && !self.cut_off.contains(&worker) {
            let event = Event::Disconnected { worker: worker.clone(), reason: "killed".into() };
            self.send(Source::Worker(worker), event);
        }
    }

    /// A worker's stream breaks; it connects again after `delay_ms`, before or after that is noticed.
    pub(crate) fn cut(&mut self, name: &str, noticed: bool, delay_ms: u64) {
        let worker = WorkerId::from(name);
        self.break_stream(&worker);
        self.cut_off.insert(worker.clone());
        let source = Source::Worker(worker.clone());
        if noticed {
            let event = Event::Disconnected { worker: worker.clone(), reason: "connection reset".into() };
            self.send_at(source.clone(), event, delay_ms.min(50));
        }
        let held = self.workers[&worker].version;
        let hello = g2rl_proto::Hello { held: Some(("run".into(), held)), ..worker::hello(name) };
        self.send_at(source, Event::Connected { hello }, delay_ms);
    }

    /// A collective fails on a worker because of a peer.
    pub(crate) fn collective_fails(&mut self, name: &str) {
        let worker = WorkerId::from(name);
        if let Some(event) = self.workers.get_mut(&worker).and_then(FakeWorker::peer_lost) {
            self.send(Source::Worker(worker), event);
        }
    }

    /// Gives an event to the machine, checks the effects and lets the workers react.
    pub(crate) fn deliver(&mut self, event: Event) {
        if let Event::Connected { hello } = &event {
            self.cut_off.remove(&hello.worker);
            if let Some(fake) = self.workers.get_mut(&hello.worker) {
                fake.leave_epoch();
            }
        }
        let effects = self.machine.step(event.clone(), Millis(self.now));
        if let Some(performed) = self.disk.dies_within(effects.len()) {
            return self.die(&event, effects.into_iter().take(performed).collect());
        }
        self.checks.after_event(&event, &effects, &self.machine);
        for effect in effects {
            self.perform(effect);
        }
    }

    fn perform(&mut self, effect: Effect) {
        self.disk.note(&effect);
        self.react(&effect);
        let starts_over = matches!(effect, Effect::StartOver { .. });
        self.log.push(effect);
        if starts_over {
            self.start_over();
        }
    }

    fn react(&mut self, effect: &Effect) {
        match effect {
            Effect::VerifyRollout { rollout, .. } => {
                let delay = self.judge_ms + 1 + self.random.below(self.max_delay_ms);
                self.send_at(Source::Pool, Event::RolloutVerified { rollout: *rollout }, delay);
            }
            Effect::ShapeGroup { group, .. } => {
                let advantages = vec![0.5; self.checks.group_size as usize];
                let skipped = (self.skip)(*group);
                self.send(Source::Pool, Event::GroupShaped { group: *group, advantages, skipped });
            }
            Effect::TrainMinibatch { worker, .. } if !self.cut_off.contains(worker) => {
                let (held, policy) = (self.workers[worker].version, self.machine.status().policy_version);
                assert_eq!(held, policy, "{worker} begins a mini-batch with another policy");
            }
            Effect::Refuse { worker, .. } if !self.cut_off.contains(worker) => {
                if let Some(fake) = self.workers.get_mut(worker) {
                    fake.stop();
                }
            }
            Effect::Welcome { worker } => {
                self.send_at(Source::Worker(worker.clone()), worker::heartbeat(worker), 1);
            }
            _ => {}
        }
        if let Some(worker) = worker::addressee(effect).cloned().filter(|to| !self.cut_off.contains(to)) {
            let events = self.workers.get_mut(&worker).map(|fake| fake.react(effect)).unwrap_or_default();
            for event in events {
                self.send(Source::Worker(worker.clone()), event);
            }
        }
    }

    /// Delivers the next event or tick; false once the run is over.
    pub(crate) fn advance(&mut self) -> bool {
        let Some(Millis(deadline)) = self.machine.next_deadline() else { return false };
        match self.queue.keys().next().copied() {
            // What waits in a queue is delivered before a tick of the same time.
            Some(key) if key.0 <= deadline.max(self.now) => {
                let (source, event) = self.queue.remove(&key).expect("the key was just read");
                self.now = self.now.max(key.0);
                if let (Event::Heartbeat { worker, .. }, Source::Worker(_)) = (&event, &source) {
                    if self.workers.get(worker).is_none_or(|fake| !fake.beats()) {
                        return true;
                    }
                    let cut_off = self.cut_off.contains(worker);
                    // Not over the ordered link: a heartbeat far ahead would hold back messages.
                    self.sequence += 1;
                    self.queue.insert(
                        (self.now + HEARTBEAT_MS, self.sequence),
                        (source, worker::heartbeat(worker)),
                    );
                    if cut_off {
                        return true;
                    }
                }
                self.deliver(event);
            }
            _ => {
                self.now = self.now.max(deadline);
                self.deliver(Event::Tick);
            }
        }
        true
    }

    /// Runs to the end and returns the outcome.
    pub(crate) fn run(&mut self) -> Outcome {
        for _ in 0..200_000 {
            if !self.advance() {
                return self.outcome().expect("a run without a deadline is over");
            }
        }
        panic!("no end in sight at {} ms: {:?}", self.now, self.machine.status());
    }

    /// Runs until an effect that `wanted` accepts.
    pub(crate) fn run_until(&mut self, wanted: impl Fn(&Effect) -> bool) {
        let mut seen = self.log.len();
        while !self.log[seen..].iter().any(&wanted) {
            seen = self.log.len();
            assert!(self.advance(), "the run ended before: {:?}", self.outcome());
        }
    }

    pub(crate) fn outcome(&self) -> Option<Outcome> {
        match self.log.last() {
            Some(Effect::Finished(outcome)) => Some(outcome.clone()),
            _ => None,
        }
    }

    /// The text of the failure the run ends with.
    pub(crate) fn failure(&mut self) -> String {
        match self.run() {
            Outcome::Failed(text) => text,
            other => panic!("the run should have failed, not {other:?}"),
        }
    }
}
