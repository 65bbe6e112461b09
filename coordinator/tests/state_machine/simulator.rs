//! Many runs with random sizes, delays, duplicates and faults; [`super::support::checks`] looks at
//! every effect of every event.
//!
//! `G2RL_SIMULATOR_SEED=n` replays one run.

use g2rl_common::ids::{GroupEpoch, StepIndex, WorkerId};
use g2rl_common::seed::CounterRng;
use g2rl_coordinator::state::{Effect, EvaluationPlan, Event, Outcome, RunPlan};

use crate::support::worker::{Behavior, Command, Fault};
use crate::support::{Sim, Source, plan};

const SEEDS: u64 = 2_000;
const NAMES: [&str; 4] = ["alpha", "beta", "gamma", "delta"];

const FAULTS: [Fault; 6] =
    [Fault::Disconnect, Fault::Fail, Fault::Silent, Fault::Stuck, Fault::EpochFailed, Fault::WrongAnswer];

const COMMANDS: [Command; 6] =
    [Command::Prepare, Command::FormEpoch, Command::Lease, Command::Train, Command::Apply, Command::Save];

fn pick<T: Copy>(random: &mut CounterRng, items: &[T]) -> T {
    items[random.below(items.len() as u64) as usize]
}

fn between(random: &mut CounterRng, low: u32, high: u32) -> u32 {
    low + random.below(u64::from(high - low) + 1) as u32
}

fn random_plan(random: &mut CounterRng, workers: u32) -> RunPlan {
    let evaluation = EvaluationPlan {
        problems: between(random, 1, 6),
        samples: between(random, 1, 5),
        every: random.below(3),
        at_start: random.below(2) == 0,
        at_end: random.below(2) == 0,
    };
    RunPlan {
        seed: random.next_u64(),
        shuffle: true,
        steps: random.below(5),
        train_problems: between(random, 1, 12),
        prompts_per_step: between(random, 1, 6),
        group_size: between(random, 1, 9),
        sequences_per_minibatch: between(random, 0, 12),
        evaluation: (random.below(4) > 0).then_some(evaluation),
        checkpoint_every: random.below(3),
        refill_to: (random.below(2) == 0).then(|| between(random, 1, 20)),
        ..plan(workers)
    }
}

/// One run, and the worker with a fault.
fn random_run(seed: u64) -> (Sim, Option<&'static str>) {
    let mut random = CounterRng::new(seed, "simulated run");
    let workers = between(&mut random, 1, 4);
    let mut plan = random_plan(&mut random, workers);
    plan.imitation.solutions_per_step = between(&mut random, 0, plan.prompts_per_step);
    let mut sim = Sim::new(plan, seed);
    sim.max_delay_ms = pick(&mut random, &[1, 20, 300]);
    sim.duplicates_percent = pick(&mut random, &[0, 0, 20]);
    sim.skip = pick(&mut random, &[(|_| false) as fn(_) -> bool, |group| group.0 % 3 == 0, |_| true]);
    let too_long = pick(&mut random, &[(|_| false) as fn(u32) -> bool, |_| false, |index| index % 4 == 1]);
    let culprit = (random.below(2) == 0).then(|| pick(&mut random, &NAMES[..workers as usize]));
    for name in &NAMES[..workers as usize] {
        let fault = (culprit == Some(*name))
            .then(|| (pick(&mut random, &FAULTS), pick(&mut random, &COMMANDS), between(&mut random, 0, 3)));
        let delay = random.below(200);
        let slots = between(&mut random, 1, 12);
        sim.connect(name, delay, Behavior { slots, fault }).too_long = too_long;
    }
    // A worker that comes when the epoch is formed, says what it must not, and goes.
    let spare = WorkerId::from("spare");
    let source = Source::Worker(spare.clone());
    sim.connect("spare", 500 + random.below(500), Behavior::default());
    let nonsense = Event::CheckpointDone {
        worker: spare.clone(),
        epoch: GroupEpoch(1),
        step: StepIndex(2),
        error: Some("not my task".into()),
    };
    sim.send_at(source.clone(), nonsense, 1_000);
    sim.send_at(source, Event::Disconnected { worker: spare, reason: "bored".into() }, 1_100);
    (sim, culprit)
}

fn check_run(seed: u64) -> Outcome {
    let (mut sim, culprit) = random_run(seed);
    let stop_after = seed.is_multiple_of(5).then(|| sim.below(150));
    let mut events = 0;
    while sim.advance() {
        events += 1;
        if stop_after == Some(events) {
            sim.deliver(Event::StopRequested);
        }
        assert!(events < 100_000, "no end in sight: {:?}", sim.machine.status());
    }
    let outcome = sim.outcome().expect("a run without a deadline is over");
    let happened = sim.workers.values().any(|worker| worker.faulty);
    match &outcome {
        Outcome::Failed(text) => {
            assert!(happened, "failed without a fault: {text}");
            let name = culprit.expect("a fault has a culprit");
            // The spare leaves too, after the culprit.
            let named = text.contains(&format!("worker {name})")) || text.contains("worker spare");
            assert!(named, "{name} is not named in {text:?}");
        }
        // With one rank there is nobody to disagree with; a stop may come before the consequence.
        Outcome::Completed => {
            let noticed = sim.machine.status().epochs_failed > 0;
            assert!(!happened || noticed || only_wrong(&sim), "a fault went unnoticed: {:?}", sim.workers)
        }
        Outcome::Stopped => assert!(stop_after.is_some(), "nobody asked for a stop"),
    }
    // Nothing more, whatever still arrives.
    sim.deliver(Event::Tick);
    sim.deliver(Event::StopRequested);
    outcome
}

fn only_wrong(sim: &Sim) -> bool {
    // The spare has no rank.
    let alone = sim.workers.len() == 2;
    let harmless = |fault| matches!(fault, Some((Fault::WrongAnswer, Command::Prepare, _)));
    let wrong = |fault| alone && matches!(fault, Some((Fault::WrongAnswer, _, _)));
    sim.workers.values().filter(|worker| worker.faulty).all(|worker| {
        harmless(worker.behavior.fault)
            || wrong(worker.behavior.fault)
            // All its rollouts may have been refused as too long: nothing wrong was said.
            || matches!(worker.behavior.fault, Some((Fault::WrongAnswer, Command::Lease, _)))
            // A checkpoint that fails costs nothing else.
            || sim.log.iter().any(|effect| matches!(effect, Effect::CheckpointFailed { .. }))
    })
}

/// The workers that do what they are told.
fn alive_in(sim: &Sim) -> Vec<WorkerId> {
    sim.workers.values().filter(|worker| worker.lives()).map(|worker| worker.id.clone()).collect()
}

/// A run in which workers die, hang, lose their streams and are replaced; with one it goes on.
fn check_chaos(seed: u64) -> Outcome {
    let mut random = CounterRng::new(seed, "chaos");
    let workers = between(&mut random, 1, 4);
    let mut plan = random_plan(&mut random, workers);
    plan.cluster.min_workers = between(&mut random, 1, workers);
    plan.cluster.max_workers = 8;
    plan.cluster.max_epoch_failures = 1_000;
    let mut sim = Sim::new(plan, seed);
    sim.max_delay_ms = pick(&mut random, &[1, 20, 300]);
    sim.duplicates_percent = pick(&mut random, &[0, 20]);
    for name in &NAMES[..workers as usize] {
        let slots = between(&mut random, 1, 12);
        sim.connect(name, random.below(200), Behavior { slots, fault: None });
    }
    let stop_after = seed.is_multiple_of(7).then(|| random.below(300));
    let (mut events, mut born) = (0, 0);
    let mut trouble = between(&mut random, 1, 8);
    while sim.advance() {
        events += 1;
        assert!(events < 200_000, "no end in sight: {:?}", sim.machine.status());
        if stop_after == Some(events) {
            sim.deliver(Event::StopRequested);
        }
        // 1. Trouble.
        let alive = alive_in(&sim);
        let calm = trouble == 0 || alive.is_empty() || sim.machine.status().epoch == GroupEpoch(0);
        if !calm && random.below(25) == 0 {
            trouble -= 1;
            let victim = &alive[random.below(alive.len() as u64) as usize];
            let noticed = random.below(2) == 0;
            match random.below(4) {
                0 => sim.kill(&victim.0, noticed),
                // A process that hangs: its silence is all that is seen.
                1 => sim.kill(&victim.0, false),
                2 if !sim.cut_off.contains(victim) => sim.cut(&victim.0, noticed, random.below(3_000)),
                _ => sim.collective_fails(&victim.0),
            }
        }
        // 2. Replacements.
        let alive = alive_in(&sim).len();
        if alive < workers as usize && (alive == 0 || random.below(4) == 0) {
            born += 1;
            let slots = between(&mut random, 1, 12);
            sim.connect(&format!("new-{born}"), random.below(3_000), Behavior { slots, fault: None });
        }
    }
    let outcome = sim.outcome().expect("a run without a deadline is over");
    if let Outcome::Failed(text) = &outcome {
        let version = sim.machine.status().policy_version;
        let holders = sim.workers.values().filter(|w| w.lives() && w.version >= version).count();
        let waits = text.contains("were there after") && alive_in(&sim).len() < workers as usize;
        assert!(
            waits || (text.contains("--resume") && holders == 0),
            "{holders} hold the policy, but {text}"
        );
    }
    outcome
}

/// Runs seeds, or the one that is asked for, and counts the outcomes.
fn outcomes(check: fn(u64) -> Outcome) -> [u64; 3] {
    let seeds = match std::env::var("G2RL_SIMULATOR_SEED") {
        Ok(seed) => vec![seed.parse().expect("G2RL_SIMULATOR_SEED is a number")],
        Err(_) => (0..SEEDS).collect(),
    };
    let mut counts = [0; 3];
    for seed in seeds {
        match std::panic::catch_unwind(|| check(seed)) {
            Ok(Outcome::Completed) => counts[0] += 1,
            Ok(Outcome::Stopped) => counts[1] += 1,
            Ok(Outcome::Failed(_)) => counts[2] += 1,
            Err(_) => {
                panic!("seed {seed} broke an invariant, see above; G2RL_SIMULATOR_SEED={seed} replays it")
            }
        }
    }
    println!("completed, stopped, failed: {counts:?}");
    counts
}

#[test]
fn invariants_hold_in_random_runs() {
    let counts = outcomes(check_run);
    assert!(counts.iter().all(|&count| count > 100), "every outcome is exercised: {counts:?}");
}

#[test]
fn invariants_hold_while_workers_come_and_go() {
    let counts = outcomes(check_chaos);
    assert!(counts.iter().all(|&count| count > 50), "every outcome is exercised: {counts:?}");
    assert!(counts[0] > SEEDS / 2, "most runs go on: {counts:?}");
}

#[test]
fn the_same_seed_gives_the_same_effects() {
    for seed in 0..20 {
        let effects = || {
            let (mut sim, _) = random_run(seed);
            sim.run();
            sim.log
        };
        assert_eq!(effects(), effects(), "seed {seed}");
    }
}

/// Rollouts and mini-batches do not depend on workers, delays or the order of arrival.
#[test]
fn the_number_of_workers_changes_neither_prompts_nor_minibatches() {
    let minibatches = |workers: u32, delay| {
        let mut sim = Sim::new(plan(workers), 9);
        sim.max_delay_ms = delay;
        for name in &NAMES[..workers as usize] {
            sim.connect(name, 0, Behavior { slots: 3 + workers, fault: None });
        }
        assert_eq!(sim.run(), Outcome::Completed);
        let mut trained: Vec<_> = sim
            .log
            .iter()
            .filter_map(|effect| match effect {
                Effect::TrainMinibatch { step, minibatch, sequences, .. } => {
                    Some((step, minibatch, sequences))
                }
                _ => None,
            })
            .flat_map(|(step, minibatch, sequences)| {
                sequences.iter().map(|order| {
                    (
                        *step,
                        *minibatch,
                        order.rollout,
                        order.policy_weight.to_bits(),
                        order.advantage.to_bits(),
                    )
                })
            })
            .collect();
        trained.sort_unstable();
        trained
    };
    let expected = minibatches(1, 1);
    assert_eq!(expected.len(), 3 * 16);
    for workers in 2..=4 {
        assert_eq!(minibatches(workers, 50), expected, "{workers} workers");
    }
}
