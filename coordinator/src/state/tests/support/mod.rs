//! Simulated workers around the state machine: a fake clock, one ordered link for each worker, a
//! fake shell that verifies, shapes and records, and checks of every effect.

pub(crate) mod checks;
pub(crate) mod lie;
mod memory;
mod network;
mod progress;
pub(crate) mod restart;
mod trace;
mod trouble;
pub(crate) mod worker;

use std::collections::{BTreeMap, BTreeSet};

use crate::state::{Coordinator, Effect, EvaluationPlan, Event, Millis, Outcome, ResponseSource, RunPlan};
use g2rl_common::config::{ClusterConfig, ImitationConfig, OptimizerConfig};
use g2rl_common::ids::{GroupEpoch, GroupId, PolicyVersion, WorkerId};
use g2rl_common::objective::Aggregation;
use g2rl_common::seed::CounterRng;

use checks::Checks;
pub(crate) use network::Source;
use network::{Network, Parcel, Sent};
use progress::Progress;
use restart::Disk;
use trace::Trace;
use worker::{Behavior, FakeWorker, Said};

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

/// What may happen to a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Weather {
    /// The delay of a worker's message is drawn from `1..=max_delay_ms`.
    pub(crate) max_delay_ms: u64,
    /// That of a command from `0..=command_delay_ms`.
    pub(crate) command_delay_ms: u64,
    /// Chance in percent that a worker's message comes again, later.
    pub(crate) duplicates_percent: u64,
    /// Chance in percent that it overtakes others.
    pub(crate) reordered_percent: u64,
    /// Chance in 10,000 that a message or a command is lost.
    pub(crate) lost_of_10000: u64,
}

pub(crate) struct Sim {
    pub(crate) machine: Coordinator,
    pub(crate) now: u64,
    pub(crate) log: Vec<Effect>,
    pub(crate) workers: BTreeMap<WorkerId, FakeWorker>,
    pub(crate) checks: Checks,
    /// What outlives the coordinator's process.
    pub(crate) disk: Disk,
    pub(crate) weather: Weather,
    /// How long a verification takes besides.
    pub(crate) judge_ms: u64,
    /// Verifications and advantages never come.
    pub(crate) judge_hangs: bool,
    /// Groups that the fake shaping skips.
    pub(crate) skip: fn(GroupId) -> bool,
    /// Workers whose stream is broken and that will connect again.
    pub(crate) cut_off: BTreeSet<WorkerId>,
    /// Workers that did what they must not, whatever has become of them.
    pub(crate) guilty: BTreeSet<WorkerId>,
    /// The policy that is broadcast in the newest epoch, if its holder is there.
    source: Option<(GroupEpoch, (PolicyVersion, u64))>,
    progress: Progress,
    trace: Trace,
    random: CounterRng,
    network: Network,
}

impl Sim {
    pub(crate) fn new(plan: RunPlan, seed: u64) -> Self {
        let now = 1_000;
        Self {
            checks: Checks::new(&plan),
            progress: Progress::new(&plan, now),
            disk: Disk::new(plan.clone()),
            machine: Coordinator::new(plan),
            now,
            log: Vec::new(),
            workers: BTreeMap::new(),
            weather: Weather {
                max_delay_ms: 1,
                command_delay_ms: 0,
                duplicates_percent: 0,
                reordered_percent: 0,
                lost_of_10000: 0,
            },
            judge_ms: 0,
            judge_hangs: false,
            skip: |_| false,
            cut_off: BTreeSet::new(),
            guilty: BTreeSet::new(),
            source: None,
            trace: Trace::from_environment(),
            random: CounterRng::new(seed, "simulator"),
            network: Network::default(),
        }
    }

    /// A worker that connects after `delay_ms`.
    pub(crate) fn connect(&mut self, name: &str, delay_ms: u64, behavior: Behavior) -> &mut FakeWorker {
        let id = WorkerId::from(name);
        self.send_at(Source::Worker(id.clone()), Event::Connected { hello: worker::hello(name) }, delay_ms);
        self.workers.entry(id.clone()).or_insert_with(|| FakeWorker::new(id, behavior))
    }

    pub(crate) fn send_at(&mut self, source: Source, event: Event, delay_ms: u64) {
        self.network.send(source, Parcel::Event { event, lie: false }, self.now + delay_ms, true);
    }

    /// A worker says something, and the network does what it does.
    fn say(&mut self, worker: &WorkerId, said: Said) {
        let Weather { max_delay_ms, duplicates_percent, reordered_percent, lost_of_10000, .. } = self.weather;
        let Said { event, lie } = said;
        let last_words = matches!(event, Event::Disconnected { .. } | Event::WorkerFailed { .. });
        if !last_words && self.random.below(10_000) < lost_of_10000 {
            return self.trouble(|| format!("lost: {event:?}"));
        }
        let slow_ms = self.workers.get(worker).map_or(0, |fake| fake.behavior.slow_ms);
        let due = self.now + 1 + self.random.below(max_delay_ms) + self.random.below(slow_ms + 1);
        let in_order = last_words || self.random.below(100) >= reordered_percent;
        let again = !last_words && self.random.below(100) < duplicates_percent;
        let source = Source::Worker(worker.clone());
        if again {
            // Long after the first, in whatever epoch that is.
            let due = due + self.random.below(20 * max_delay_ms);
            self.network.send(source.clone(), Parcel::Event { event: event.clone(), lie }, due, false);
        }
        self.network.send(source, Parcel::Event { event, lie }, due, in_order);
    }

    /// Gives an event to the machine, checks the effects and lets the workers react.
    pub(crate) fn deliver(&mut self, event: Event) {
        self.hear(event, false);
    }

    fn hear(&mut self, event: Event, lie: bool) {
        if let Event::Connected { hello } = &event {
            self.cut_off.remove(&hello.worker);
            if let Some(fake) = self.workers.get_mut(&hello.worker) {
                fake.leave_epoch();
            }
        }
        let effects = self.machine.step(event.clone(), Millis(self.now));
        self.trace.step(self.now, &event, &effects);
        if let Some(performed) = self.disk.dies_within(&effects) {
            return self.die((&event, lie), effects.into_iter().take(performed).collect());
        }
        self.checks.after_event((&event, lie), &effects, &self.machine);
        let seen = self.log.len();
        for effect in effects {
            self.perform(effect);
        }
        self.check_network();
        self.check_progress(seen);
    }

    fn perform(&mut self, effect: Effect) {
        self.disk.note(&effect, &self.workers);
        self.react(&effect);
        let policy_is_gone = matches!(effect, Effect::StartOver { .. });
        self.log.push(effect);
        if policy_is_gone {
            self.start_over();
        }
    }

    /// Commands that wait for a worker: its leases, and what an epoch needs.
    fn check_network(&self) {
        for worker in self.network.accepted() {
            let most = memory::most_commands(&self.machine, worker);
            let waiting = self.network.commands_to(worker);
            assert!(waiting <= most, "{waiting} commands wait for {worker}, {most} are enough");
        }
    }

    /// `seen` effects were there before the event.
    fn check_progress(&mut self, seen: usize) {
        let obeys = |worker: &&WorkerId| {
            let fake = self.workers.get(*worker);
            let obeys = |fake: &FakeWorker| fake.lives() && !fake.faulty && fake.hangs_until <= self.now;
            fake.is_some_and(obeys) && !self.cut_off.contains(*worker)
        };
        let obedient = self.network.accepted().filter(obeys).count();
        let enough = obedient >= self.machine.plan.cluster.min_workers as usize;
        if !enough || self.judge_hangs || self.machine.judging_paused.is_some() {
            self.progress.trouble(self.now);
        }
        let slowest = self.workers.values().map(|fake| fake.behavior.slow_ms).max().unwrap_or(0);
        let message = self.weather.max_delay_ms + self.weather.command_delay_ms + slowest + self.judge_ms;
        self.progress.after_event(&self.log[seen..], self.now, message);
    }

    fn react(&mut self, effect: &Effect) {
        match effect {
            Effect::VerifyRollout { rollout, .. } if !self.judge_hangs => {
                let delay = self.judge_ms + 1 + self.random.below(self.weather.max_delay_ms);
                self.send_at(Source::Pool, Event::RolloutVerified { rollout: *rollout }, delay);
            }
            Effect::ShapeGroup { group, .. } if !self.judge_hangs => {
                let advantages = vec![0.5; self.checks.group_size as usize];
                let skipped = (self.skip)(*group);
                let delay = 1 + self.random.below(self.weather.max_delay_ms);
                self.send_at(Source::Pool, Event::GroupShaped { group: *group, advantages, skipped }, delay);
            }
            Effect::Refuse { worker, may_return, .. } => self.refused(worker, *may_return),
            Effect::FormEpoch { plan, .. } if self.source.is_none_or(|(epoch, _)| epoch != plan.epoch) => {
                let holder = self.workers.get(self.machine.members.worker(plan.source_rank));
                let holder = holder.filter(|fake| fake.lives() && fake.version == plan.policy_version);
                self.source = holder.map(|fake| (plan.epoch, (fake.version, fake.weights)));
            }
            Effect::Welcome { worker } => {
                if let Some(fake) = self.workers.get_mut(worker).filter(|fake| !fake.loaded) {
                    fake.loaded = true;
                    fake.take(self.disk.policy(self.machine.loaded_version));
                }
                self.network.accept(worker);
                self.network.send(Source::Worker(worker.clone()), Parcel::Beat, self.now + 1, false);
            }
            _ => {}
        }
        let reached = |to: &&WorkerId| !self.cut_off.contains(*to) && self.network.reaches(to);
        let Some(worker) = worker::addressee(effect).filter(reached) else { return };
        if self.random.below(10_000) < self.weather.lost_of_10000 {
            return self.trouble(|| format!("lost: {effect:?}"));
        }
        let hangs = self.workers.get(worker).is_some_and(|fake| fake.hangs_until > self.now);
        let waits = hangs || self.network.commands_to(worker) > 0;
        if self.weather.command_delay_ms == 0 && !waits {
            return self.obey(worker, effect);
        }
        let due = self.now + self.random.below(self.weather.command_delay_ms + 1);
        self.network.command(worker, effect.clone(), due);
    }

    /// A command reaches its worker.
    fn obey(&mut self, worker: &WorkerId, effect: &Effect) {
        let Some(fake) = self.workers.get_mut(worker).filter(|fake| fake.lives()) else { return };
        if let Effect::TrainMinibatch { epoch, .. } = effect
            && *epoch == self.machine.members.epoch()
        {
            assert_eq!(fake.version, self.machine.policy_version, "{worker} trains another policy");
        }
        if let Effect::FormEpoch { plan, .. } = effect
            && plan.share_policy
        {
            match self.source.filter(|(epoch, _)| *epoch == plan.epoch) {
                Some((_, policy)) => fake.take(policy),
                None => {
                    let error = "connection closed by peer".to_owned();
                    let event = Event::EpochFailed { worker: worker.clone(), epoch: plan.epoch, error };
                    return self.say(worker, Said { event, lie: false });
                }
            }
        }
        let was_faulty = fake.faulty;
        let answer = fake.react(effect);
        let fails = fake.faulty && !was_faulty;
        if fails {
            self.guilty.insert(worker.clone());
            self.trouble(|| format!("{worker} does what it must not"));
        }
        for said in answer {
            self.say(worker, said);
        }
    }

    /// The coordinator listens to the worker.
    pub(crate) fn hears(&self, worker: &WorkerId) -> bool {
        self.network.accepted().any(|accepted| accepted == worker)
    }

    /// Delivers the next event or tick; false once the run is over.
    pub(crate) fn advance(&mut self) -> bool {
        let Some(Millis(deadline)) = self.machine.next_deadline() else { return false };
        // What waits in a queue is delivered before a tick of the same time.
        if self.network.next_due().is_none_or(|due| due > deadline.max(self.now)) {
            self.now = self.now.max(deadline);
            self.deliver(Event::Tick);
            return true;
        }
        let (due, sent) = self.network.pop().expect("something is due");
        self.now = self.now.max(due);
        match sent {
            Sent { source: Source::Pool, parcel: Parcel::Event { event, .. }, .. } => self.deliver(event),
            Sent { source: Source::Worker(worker), stream, parcel } => self.carry(worker, stream, parcel),
            other => unreachable!("the pool says only events: {other:?}"),
        }
        true
    }

    fn carry(&mut self, worker: WorkerId, stream: u64, parcel: Parcel) {
        let hangs_until = self.workers.get(&worker).map_or(0, |fake| fake.hangs_until);
        let hangs = hangs_until > self.now;
        match parcel {
            Parcel::Event { event: event @ Event::Connected { .. }, .. } => {
                self.network.knock(&worker, stream);
                self.hear(event, false);
            }
            Parcel::Event { event, lie } => {
                if !self.network.is_accepted(&worker, stream) {
                    return;
                }
                if matches!(event, Event::Disconnected { .. }) {
                    self.network.close(&worker);
                }
                self.hear(event, lie);
            }
            _ if !self.network.is_open(&worker, stream) => {}
            Parcel::Command(command) if hangs => self.network.postpone(&worker, command, hangs_until),
            Parcel::Command(command) => {
                self.network.arrived(&worker);
                self.trace.command(self.now, &worker, &command);
                self.obey(&worker, &command);
            }
            Parcel::Beat => {
                if self.workers.get(&worker).is_none_or(|fake| !fake.beats())
                    || self.cut_off.contains(&worker)
                {
                    return;
                }
                let due = self.now.max(hangs_until) + HEARTBEAT_MS;
                self.network.send(Source::Worker(worker.clone()), Parcel::Beat, due, false);
                if !hangs && self.network.is_accepted(&worker, stream) {
                    self.hear(worker::heartbeat(&worker), false);
                }
            }
        }
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
