//! One run, decided by its seed: its plan, its workers, and what goes wrong when.

use g2rl_common::config::ImitationConfig;
use g2rl_common::ids::{GroupEpoch, GroupId, MinibatchIndex, PolicyVersion, StepIndex, WorkerId};
use g2rl_common::seed::CounterRng;

use crate::state::tests::support::lie::Lie;
use crate::state::tests::support::worker::{Behavior, Command, FakeWorker, Fault};
use crate::state::tests::support::{Sim, Source, plan};
use crate::state::{Effect, EvaluationPlan, Event, Outcome, Record, ResumeState, RunPlan};

const NAMES: [&str; 4] = ["alpha", "beta", "gamma", "delta"];

const FAULTS: [Fault; 6] =
    [Fault::Disconnect, Fault::Fail, Fault::Silent, Fault::Stuck, Fault::EpochFailed, Fault::WrongAnswer];

const COMMANDS: [Command; 6] =
    [Command::Prepare, Command::FormEpoch, Command::Lease, Command::Train, Command::Apply, Command::Save];

/// A run that takes more events than this does not end.
const MOST_EVENTS: u64 = 100_000;

/// What may go wrong in a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// One worker does one thing wrong, and nobody takes its place.
    OneFault,
    /// Workers are killed, hang, are cut off, restart and are replaced, and so is the coordinator; messages are
    /// lost.
    Storm,
    /// The same, and one worker lies.
    Liar,
    /// The same without lies, and rewards fail.
    Rewards,
}

/// What came of a run.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) kind: Kind,
    pub(super) outcome: Outcome,
    pub(super) events: u64,
    pub(super) epochs_failed: u64,
    /// Coordinators that took another's place, and those that went back to the checkpoint.
    pub(super) restarts: u32,
    pub(super) started_over: u32,
    pub(super) skipped_minibatches: u64,
}

pub(super) struct Schedule {
    pub(super) sim: Sim,
    kind: Kind,
    random: CounterRng,
    workers: u32,
    /// Who does what it must not.
    culprit: Option<&'static str>,
    stop_after: Option<u64>,
    events: u64,
    /// What is still to go wrong.
    troubles: u32,
    born: u32,
    judging_failed: bool,
    /// Coordinators that are still to die.
    deaths: u32,
    broken: Broken,
}

/// Mini-batches in which a rank finds something that is not finite.
type Broken = fn(StepIndex, MinibatchIndex) -> bool;

fn pick<T: Copy>(random: &mut CounterRng, items: &[T]) -> T {
    items[random.below(items.len() as u64) as usize]
}

fn between(random: &mut CounterRng, low: u32, high: u32) -> u32 {
    low + random.below(u64::from(high - low) + 1) as u32
}

fn chance(random: &mut CounterRng, one_in: u64) -> bool {
    random.below(one_in) == 0
}

fn random_plan(random: &mut CounterRng, workers: u32) -> RunPlan {
    let evaluation = EvaluationPlan {
        problems: between(random, 1, 6),
        samples: between(random, 1, 5),
        every: random.below(3),
        at_start: random.below(2) == 0,
        at_end: random.below(2) == 0,
    };
    let (steps, prompts_per_step) = (random.below(5), between(random, 1, 6));
    let drawn = u64::from(prompts_per_step);
    let resume = ResumeState {
        steps_done: StepIndex(1),
        policy_version: PolicyVersion(3),
        prompts_drawn: drawn,
        policy_since_prompt: drawn,
        next_group: GroupId(drawn),
    };
    RunPlan {
        seed: random.next_u64(),
        shuffle: true,
        steps,
        train_problems: between(random, 1, 12),
        prompts_per_step,
        group_size: between(random, 1, 9),
        sequences_per_minibatch: between(random, 0, 12),
        max_nonfinite: between(random, 1, 4),
        evaluation: (random.below(4) > 0).then_some(evaluation),
        checkpoint_every: random.below(3),
        resume: (steps > 1 && chance(random, 4)).then_some(resume),
        refill_to: chance(random, 2).then(|| between(random, 1, 20)),
        imitation: ImitationConfig {
            solutions_per_step: if chance(random, 2) { between(random, 0, prompts_per_step) } else { 0 },
            ..ImitationConfig::default()
        },
        ..plan(workers)
    }
}

impl Schedule {
    pub(super) fn new(seed: u64) -> Self {
        let mut random = CounterRng::new(seed, "schedule");
        let kinds = [
            Kind::OneFault,
            Kind::OneFault,
            Kind::Storm,
            Kind::Storm,
            Kind::Storm,
            Kind::Liar,
            Kind::Rewards,
        ];
        let kind = pick(&mut random, &kinds);
        let workers = between(&mut random, 1, 4);
        let mut plan = random_plan(&mut random, workers);
        if kind != Kind::OneFault {
            plan.cluster.min_workers = between(&mut random, 1, workers);
            plan.cluster.max_workers = pick(&mut random, &[workers, 8, 8]);
            plan.cluster.max_epoch_failures = 1_000;
            plan.optimizer.shard = chance(&mut random, 16);
        }
        let mut sim = Sim::new(plan, seed);
        sim.trouble(|| format!("schedule {seed}: {kind:?} with {workers} workers"));
        sim.weather.max_delay_ms = pick(&mut random, &[1, 20, 300]);
        sim.weather.duplicates_percent = pick(&mut random, &[0, 0, 20]);
        sim.weather.reordered_percent = pick(&mut random, &[0, 0, 20]);
        sim.weather.command_delay_ms = pick(&mut random, &[0, 5, 200]);
        if kind != Kind::OneFault {
            sim.weather.lost_of_10000 = pick(&mut random, &[0, 0, 0, 20, 100]);
        }
        sim.skip = pick(&mut random, &[(|_| false) as fn(_) -> bool, |group| group.0 % 3 == 0, |_| true]);
        let stop_after = chance(&mut random, 6).then(|| random.below(300));
        let troubles = if kind == Kind::OneFault { 0 } else { between(&mut random, 1, 8) };
        let culprit = match kind {
            Kind::OneFault => chance(&mut random, 2),
            Kind::Liar => true,
            Kind::Storm | Kind::Rewards => false,
        };
        let culprit = culprit.then(|| pick(&mut random, &NAMES[..workers as usize]));
        let none: Broken = |_, _| false;
        let broken: [Broken; 6] =
            [none, none, none, none, |step, minibatch| (step.0 + minibatch.0) % 3 == 1, |_, _| true];
        let broken = if kind == Kind::OneFault { none } else { pick(&mut random, &broken) };
        let dies = kind != Kind::OneFault && chance(&mut random, 2);
        let deaths = if dies { between(&mut random, 1, 4) } else { 0 };
        sim.disk.lose_tail = chance(&mut random, 2);
        let mut schedule = Self {
            sim,
            kind,
            random,
            workers,
            culprit,
            stop_after,
            events: 0,
            troubles,
            born: 0,
            judging_failed: false,
            deaths,
            broken,
        };
        schedule.bring_workers();
        schedule
    }

    fn bring_workers(&mut self) {
        let random = &mut self.random;
        let too_long = pick(random, &[(|_| false) as fn(u32) -> bool, |_| false, |index| index % 4 == 1]);
        for name in &NAMES[..self.workers as usize] {
            let fault = (self.culprit == Some(*name)).then(|| match self.kind {
                Kind::Liar => {
                    let lie = pick(random, &Lie::ALL);
                    (Fault::Lie(lie), pick(random, lie.commands()), between(random, 0, 5))
                }
                _ => (pick(random, &FAULTS), pick(random, &COMMANDS), between(random, 0, 3)),
            });
            let slow_ms = match self.kind {
                Kind::OneFault => 0,
                _ => pick(random, &[0, 0, 0, 0, 0, 2_000, 8_000, 20_000]),
            };
            let (delay, slots) = (random.below(200), between(random, 1, 12));
            let worker = self.sim.connect(name, delay, Behavior { slots, fault, slow_ms });
            (worker.too_long, worker.broken) = (too_long, self.broken);
        }
        if self.kind == Kind::OneFault {
            self.bring_a_spare();
        }
    }

    /// A worker that comes when the epoch is formed, says what it must not, and goes.
    fn bring_a_spare(&mut self) {
        let spare = WorkerId::from("spare");
        let source = Source::Worker(spare.clone());
        self.sim.connect("spare", 500 + self.random.below(500), Behavior::default());
        let nonsense = Event::CheckpointDone {
            worker: spare.clone(),
            epoch: GroupEpoch(1),
            step: StepIndex(2),
            error: Some("not my task".into()),
        };
        self.sim.send_at(source.clone(), nonsense, 1_000);
        self.sim.send_at(source, Event::Disconnected { worker: spare, reason: "bored".into() }, 1_100);
    }

    /// Runs to the end, and checks that it may end like this.
    pub(super) fn run(&mut self) -> Report {
        while self.sim.advance() {
            self.events += 1;
            assert!(self.events < MOST_EVENTS, "no end in sight: {:?}", self.sim.machine.status());
            if self.stop_after == Some(self.events) {
                self.sim.deliver(Event::StopRequested);
            }
            if self.kind == Kind::Rewards && chance(&mut self.random, 40) {
                self.reward_trouble();
            }
            if self.kind != Kind::OneFault {
                self.trouble();
                self.replace();
                self.let_coordinator_die();
            }
        }
        let outcome = self.sim.outcome().expect("a run without a deadline is over");
        self.judge(&outcome);
        // Nothing more, whatever still arrives.
        self.sim.deliver(Event::Tick);
        self.sim.deliver(Event::StopRequested);
        let epochs_failed = self.sim.machine.status().epochs_failed;
        let (restarts, started_over) = (self.sim.disk.restarts, self.sim.disk.started_over);
        let skipped = |effect: &&Effect| matches!(effect, Effect::MinibatchSkipped { .. });
        let skipped_minibatches = self.sim.log.iter().filter(skipped).count() as u64;
        Report {
            kind: self.kind,
            outcome,
            events: self.events,
            epochs_failed,
            restarts,
            started_over,
            skipped_minibatches,
        }
    }

    /// Between any two effects, several times in a run.
    fn let_coordinator_die(&mut self) {
        if self.deaths > 0 && self.sim.disk.die_after.is_none() {
            self.deaths -= 1;
            let effects = self.random.below(120) as usize;
            self.sim.disk.die_after = Some(self.sim.disk.performed() + effects);
        }
    }

    /// The workers that do what they are told.
    fn alive(&self) -> Vec<WorkerId> {
        self.sim.workers.values().filter(|worker| worker.lives()).map(|worker| worker.id.clone()).collect()
    }

    fn trouble(&mut self) {
        if self.troubles == 0 || !chance(&mut self.random, 25) {
            return;
        }
        let alive = self.alive();
        if alive.is_empty() || self.sim.machine.members.epoch() == GroupEpoch(0) {
            return;
        }
        self.troubles -= 1;
        let random = &mut self.random;
        let WorkerId(victim) = &alive[random.below(alive.len() as u64) as usize];
        let noticed = chance(random, 2);
        match random.below(7) {
            0 => self.sim.kill(victim, noticed),
            1 => self.sim.kill(victim, false),
            2 | 3 if !self.sim.cut_off.contains(&WorkerId::from(victim.as_str())) => {
                self.sim.cut(victim, noticed, random.below(3_000));
            }
            4 => self.sim.hang(victim, 100 + random.below(9_000)),
            5 => self.sim.respawn(victim, noticed, random.below(2_000)),
            _ => self.sim.collective_fails(victim),
        }
    }

    fn replace(&mut self) {
        let alive = self.sim.workers.values().filter(|worker| worker.lives()).count();
        if alive < self.workers as usize && (alive == 0 || chance(&mut self.random, 4)) {
            self.born += 1;
            let (slots, delay) = (between(&mut self.random, 1, 12), self.random.below(3_000));
            let behavior = Behavior { slots, ..Behavior::default() };
            self.sim.connect(&format!("new-{}", self.born), delay, behavior).broken = self.broken;
        }
    }

    /// A reward service goes down and comes back, or fails for good, or answers never.
    fn reward_trouble(&mut self) {
        match self.random.below(20) {
            0 => {
                self.judging_failed = true;
                self.sim.trouble(|| "answers cannot be judged".into());
                self.sim.deliver(Event::JudgingFailed { error: "503".into() });
            }
            1 => {
                self.sim.trouble(|| "the judge hangs".into());
                self.sim.judge_hangs = true;
            }
            _ => {
                let back = 1 + self.random.below(60_000);
                self.sim.trouble(|| format!("the judge is down for {back} ms"));
                self.sim.deliver(Event::JudgingPaused { cause: "503".into() });
                self.sim.send_at(Source::Pool, Event::JudgingResumed, back);
            }
        }
    }

    /// Whether the run may end like this.
    fn judge(&self, outcome: &Outcome) {
        let guilty = self.culprit.filter(|name| self.sim.guilty.contains(&WorkerId::from(*name)));
        match outcome {
            Outcome::Failed(text) => assert!(self.excuses(text, guilty), "guilty: {guilty:?}, but {text}"),
            Outcome::Completed if self.kind == Kind::OneFault => {
                let noticed = self.sim.machine.status().epochs_failed > 0;
                assert!(guilty.is_none() || noticed || self.is_harmless(), "a fault went unnoticed");
            }
            Outcome::Completed => {}
            Outcome::Stopped => assert!(self.stop_after.is_some(), "nobody asked for a stop"),
        }
    }

    fn excuses(&self, text: &str, guilty: Option<&str>) -> bool {
        let named = |name: &str| text.contains(&format!("worker {name})"));
        if guilty.is_some_and(named) {
            return true;
        }
        if self.kind == Kind::OneFault {
            // The spare leaves too, after the culprit.
            return guilty.is_some() && text.contains("worker spare");
        }
        let version = self.sim.machine.policy_version;
        // Who has been away for too long, or says so too late, holds it in vain.
        let most_ms = self.sim.machine.plan.cluster.heartbeat_timeout_ms;
        let in_time = |worker: &FakeWorker| worker.behavior.slow_ms < most_ms;
        let there = |worker: &FakeWorker| worker.lives() && self.sim.hears(&worker.id) && in_time(worker);
        let holds = self.sim.workers.values().any(|worker| there(worker) && worker.version >= version);
        let few = self.alive().len() < self.workers as usize;
        (text.contains("were there after") && few)
            || (text.contains("policy version") && text.contains("--resume") && !holds)
            || (text.contains("optimizer.shard") && self.sim.machine.plan.optimizer.shard)
            || (text.contains("cannot be judged") && self.judging_failed)
            || (text.contains("of group") && self.sim.judge_hangs)
            || (text.contains("update.max_nonfinite") && self.is_not_finite())
    }

    /// Some rank had a mini-batch that is not finite.
    fn is_not_finite(&self) -> bool {
        let skipped = |effect: &Effect| matches!(effect, Effect::Record(Record::MinibatchSkipped { .. }));
        self.sim.log.iter().any(skipped)
    }

    /// With one rank there is nobody to disagree with, what is refused as too long can be neither wrong nor missing,
    /// and a checkpoint that fails costs nothing else.
    fn is_harmless(&self) -> bool {
        // The spare has no rank.
        let alone = self.sim.workers.len() == 2;
        let refused = self.sim.log.iter().any(|effect| matches!(effect, Effect::PromptSkipped { .. }));
        self.sim.workers.values().filter(|worker| worker.faulty).all(|worker| match worker.behavior.fault {
            Some((Fault::WrongAnswer, at, _)) => {
                alone || matches!(at, Command::Prepare | Command::Lease | Command::Save)
            }
            Some((_, Command::Lease, _)) => refused,
            _ => false,
        })
    }
}
