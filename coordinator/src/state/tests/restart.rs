//! The coordinator dies and is started again: the run goes on from its records as if nothing had happened.

use std::collections::{BTreeMap, BTreeSet};

use crate::state::{Coordinator, Effect, Event, Millis, Outcome, Position, Record, RunPlan};
use g2rl_common::ids::{GroupEpoch, GroupId, MinibatchIndex, PolicyVersion, RolloutId, StepIndex, WorkerId};
use g2rl_common::seed::CounterRng;

use super::support::worker::{self, Behavior};
use super::support::{Sim, plan};

/// Two mini-batches a step, a checkpoint after the first step, an evaluation before it.
fn small() -> RunPlan {
    let mut plan = plan(2);
    (plan.steps, plan.prompts_per_step, plan.group_size) = (2, 3, 3);
    (plan.sequences_per_minibatch, plan.checkpoint_every) = (5, 1);
    plan.cluster.min_workers = 1;
    plan.cluster.max_epoch_failures = 1_000;
    plan
}

fn two_workers(plan: RunPlan, seed: u64) -> Sim {
    let mut sim = Sim::new(plan, seed);
    for name in ["a", "b"] {
        sim.connect(name, 0, Behavior::default());
    }
    sim
}

/// What a run did, however often and in whatever order.
#[derive(Debug, PartialEq)]
struct Did {
    rollouts: BTreeSet<(RolloutId, u32)>,
    /// Of each sequence that was trained on: advantage and weight.
    trained: BTreeSet<(StepIndex, MinibatchIndex, RolloutId, u32, u32)>,
    steps: BTreeMap<StepIndex, (PolicyVersion, u64, u64, Vec<GroupId>)>,
    evaluations: BTreeMap<StepIndex, usize>,
    /// The random streams that were asked for.
    streams: BTreeSet<(GroupId, PolicyVersion, u32)>,
    skipped: BTreeSet<(StepIndex, MinibatchIndex)>,
}

fn did(sim: &Sim) -> Did {
    let mut did = Did {
        rollouts: BTreeSet::new(),
        trained: BTreeSet::new(),
        steps: BTreeMap::new(),
        evaluations: BTreeMap::new(),
        streams: BTreeSet::new(),
        skipped: BTreeSet::new(),
    };
    for effect in &sim.log {
        match effect {
            Effect::Record(Record::RolloutAccepted { rollout, response_tokens, .. }) => {
                did.rollouts.insert((*rollout, *response_tokens));
            }
            Effect::Lease { order, .. } => {
                did.streams.insert((order.group, order.policy_version, order.stream_offset));
            }
            Effect::Record(Record::MinibatchSkipped { step, minibatch, .. }) => {
                did.skipped.insert((*step, *minibatch));
            }
            Effect::TrainMinibatch { step, minibatch, sequences, .. } => {
                did.trained.extend(sequences.iter().map(|order| {
                    let (advantage, weight) = (order.advantage.to_bits(), order.policy_weight.to_bits());
                    (*step, *minibatch, order.rollout, advantage, weight)
                }));
            }
            Effect::StepCompleted(record) => {
                let stats = (record.stats.tokens, record.stats.sequences);
                let done = (record.policy_version, stats.0, stats.1, record.groups.clone());
                let before = did.steps.insert(record.step, done.clone());
                assert!(before.is_none_or(|before| before == done), "a step was done in two ways");
            }
            Effect::EvaluationCompleted { step, groups, .. } => {
                did.evaluations.insert(*step, groups.len());
            }
            _ => {}
        }
    }
    did
}

type Broken = fn(StepIndex, MinibatchIndex) -> bool;

/// The coordinator dies after each effect of a whole run. In the third the first step applies nothing, so prompts come
/// again under the same policy; in the fourth it applies only its second mini-batch; in the last skipped groups are
/// replaced, and solutions are imitated.
#[test]
fn a_restart_anywhere_changes_nothing() {
    for (too_long, skip, broken, refill_to) in [
        ((|_| false) as fn(u32) -> bool, (|_| false) as fn(GroupId) -> bool, (|_, _| false) as Broken, None),
        (|index| index % 4 == 1, |group| group.0 % 3 == 0, |_, _| false, None),
        (|_| false, |_| false, |step, _| step.0 == 0, None),
        (|_| false, |_| false, |_, minibatch| minibatch.0 == 0, None),
        (|index| index % 4 == 1, |group| group.0 % 2 == 0, |_, _| false, Some(6)),
    ] {
        let begin = || {
            let mut plan = RunPlan { train_problems: 4, refill_to, ..small() };
            plan.imitation.solutions_per_step = refill_to.map_or(0, |_| 2);
            let mut sim = two_workers(plan, 0);
            sim.skip = skip;
            for worker in sim.workers.values_mut() {
                (worker.too_long, worker.broken) = (too_long, broken);
            }
            sim
        };
        let mut undisturbed = begin();
        assert_eq!(undisturbed.run(), Outcome::Completed);
        let expected = did(&undisturbed);
        assert_eq!(expected.steps.len(), 2);
        for lose_tail in [false, true] {
            for at in 1..undisturbed.disk.performed() {
                let mut sim = begin();
                sim.disk.lose_tail = lose_tail;
                sim.disk.die_after = Some(at);
                let outcome = sim.run();
                assert_eq!((outcome, sim.disk.restarts), (Outcome::Completed, 1), "effect {at}, {lose_tail}");
                assert_eq!(did(&sim), expected, "effect {at}, {lose_tail}");
                assert_eq!(sim.disk.started_over, 0, "effect {at}, {lose_tail}");
            }
        }
    }
}

#[test]
fn a_coordinator_that_dies_at_the_very_end_waits_for_nobody() {
    let mut sim = two_workers(small(), 0);
    assert_eq!(sim.run(), Outcome::Completed);
    for worker in ["a", "b"] {
        sim.kill(worker, true);
    }
    let before = sim.now;
    sim.restart();
    assert_eq!(sim.run(), Outcome::Completed);
    let waited = sim.now - before;
    assert!(waited <= sim.machine.plan.cluster.heartbeat_timeout_ms + 1, "{waited} ms");
}

/// Random sizes, delays and repeated messages, several restarts, and ranks that die meanwhile.
#[test]
fn restarts_of_random_runs_change_nothing() {
    let mut lost = 0;
    for seed in 0..300 {
        let mut random = CounterRng::new(seed, "restarts");
        let mut plan = small();
        plan.seed = random.next_u64();
        plan.prompts_per_step = 1 + random.below(5) as u32;
        plan.group_size = 1 + random.below(6) as u32;
        plan.sequences_per_minibatch = random.below(9) as u32;
        plan.checkpoint_every = random.below(3);
        plan.steps = 1 + random.below(3);
        let max_delay_ms = [1, 20, 300][random.below(3) as usize];
        // Never as many in a row as end a run.
        let broken: Broken = match random.below(3) {
            0 => |step, minibatch| (step.0 + minibatch.0) % 3 == 0,
            _ => |_, _| false,
        };
        let begin = || {
            let mut sim = two_workers(plan.clone(), seed);
            sim.weather.max_delay_ms = max_delay_ms;
            sim.workers.values_mut().for_each(|worker| worker.broken = broken);
            sim
        };
        let mut undisturbed = begin();
        assert_eq!(undisturbed.run(), Outcome::Completed);
        let mut sim = begin();
        sim.weather.duplicates_percent = 10 * random.below(3);
        sim.disk.lose_tail = true;
        let restarts = 1 + random.below(4) as u32;
        sim.disk.die_after = Some(1 + random.below(100) as usize);
        let mut kills = random.below(2);
        while sim.advance() {
            if sim.disk.die_after.is_none() && sim.disk.restarts < restarts {
                sim.disk.die_after = Some(sim.disk.performed() + random.below(150) as usize);
            }
            if kills > 0 && sim.disk.restarts > 0 && random.below(20) == 0 {
                kills -= 1;
                sim.kill("a", random.below(2) == 0);
            }
        }
        assert!(sim.disk.restarts >= 1, "seed {seed}");
        match sim.outcome() {
            // The rank that died was alone in its epoch.
            Some(Outcome::Failed(text)) if text.contains("--resume") && kills == 0 => lost += 1,
            outcome => {
                assert_eq!(outcome, Some(Outcome::Completed), "seed {seed}");
                assert_eq!(did(&sim), did(&undisturbed), "seed {seed}");
            }
        }
    }
    assert!(lost < 10, "{lost} runs lost their policy");
}

/// After the word to apply one worker has applied and all others are gone: the optimizer step is done.
#[test]
fn an_optimizer_step_that_somebody_has_done_is_not_done_again() {
    let mut sim = two_workers(small(), 0);
    sim.run_until(|effect| matches!(effect, Effect::Apply { .. }));
    assert_eq!(sim.workers[&WorkerId::from("b")].version, PolicyVersion(1));
    sim.kill("a", false);
    sim.restart();
    assert_eq!(sim.run(), Outcome::Completed);
    let first = |effect: &&Effect| {
        matches!(effect, Effect::TrainMinibatch { step: StepIndex(0), minibatch: MinibatchIndex(0), .. })
    };
    assert_eq!(sim.log.iter().filter(first).count(), 2, "once on each of two ranks");
    // Of the first step nothing is lost in its sums: 9 sequences.
    assert_eq!(did(&sim).steps[&StepIndex(0)].2, 9);
}

/// The word to apply is on the disk and was not sent: nobody has applied, so it is computed again.
#[test]
fn an_optimizer_step_that_nobody_has_done_is_done() {
    let mut undisturbed = two_workers(small(), 0);
    assert_eq!(undisturbed.run(), Outcome::Completed);
    let told = |effect: &Effect| matches!(effect, Effect::Record(Record::ApplyTold { .. }));
    let at = undisturbed.log.iter().position(told).unwrap() + 1;
    let mut sim = two_workers(small(), 0);
    sim.disk.die_after = Some(at);
    assert_eq!(sim.run(), Outcome::Completed);
    let first = |effect: &&Effect| {
        matches!(effect, Effect::TrainMinibatch { step: StepIndex(0), minibatch: MinibatchIndex(0), .. })
    };
    assert_eq!(sim.log.iter().filter(first).count(), 4, "twice on each of two ranks");
    assert_eq!(did(&sim), did(&undisturbed));
}

/// Two of them before a restart, one after it.
#[test]
fn mini_batches_in_a_row_are_counted_across_a_restart() {
    for later in [false, true] {
        let mut sim = two_workers(RunPlan { evaluation: None, ..small() }, 0);
        sim.workers.values_mut().for_each(|worker| worker.broken = |_, _| true);
        match later {
            true => sim.run_until(|effect| matches!(effect, Effect::StepStarted { step: StepIndex(1), .. })),
            false => {
                let second = |effect: &Effect| {
                    matches!(effect, Effect::MinibatchSkipped { minibatch: MinibatchIndex(1), .. })
                };
                sim.run_until(second);
            }
        }
        sim.restart();
        let text = sim.failure();
        assert!(text.contains("3 mini-batches in a row") && text.contains("step 1, mini-batch 0"), "{text}");
        // The second step is completed, and nobody has another policy than before.
        assert_eq!(did(&sim).steps[&StepIndex(1)].0, PolicyVersion(0));
        assert_eq!(did(&sim).skipped.len(), 4);
    }
}

/// A run in the rollout of its second step, with a checkpoint after the first one that nobody has heard the end of.
fn while_a_checkpoint_is_written() -> Sim {
    let mut sim = two_workers(RunPlan { evaluation: None, ..small() }, 0);
    sim.workers.values_mut().for_each(|worker| worker.saves = false);
    sim.run_until(|effect| matches!(effect, Effect::VerifyRollout { rollout, .. } if rollout.group.0 > 2));
    sim
}

fn checkpoints(sim: &Sim) -> Vec<String> {
    let line = |effect: &Effect| match effect {
        Effect::SaveCheckpoint { step, state, .. } => Some(format!("save {step} {}", state.next_group)),
        Effect::CheckpointWritten { step } => Some(format!("saved {step}")),
        Effect::StepCompleted(record) => Some(format!("step {}", record.step)),
        Effect::StaleMessage { kind: "checkpoint_done", .. } => Some("stale".to_owned()),
        _ => None,
    };
    sim.log.iter().filter_map(line).collect()
}

/// What became of a checkpoint under way the disk says: if it is not there, it is asked for again, of the same state.
/// The word of the rank that wrote the first one counts for nothing.
#[test]
fn a_checkpoint_under_way_counts_only_if_it_is_there() {
    for completes in [false, true] {
        let mut sim = while_a_checkpoint_is_written();
        sim.disk.completes = Some(completes);
        assert_eq!(checkpoints(&sim), ["step 0", "save 1 3"]);
        sim.restart();
        sim.run_until(|effect| matches!(effect, Effect::EpochStarted { .. }));
        let (epoch, step) = (GroupEpoch(1), StepIndex(1));
        sim.deliver(Event::CheckpointDone { worker: "a".into(), epoch, step, error: None });
        sim.workers.values_mut().for_each(|worker| worker.saves = true);
        let asked = ["save 1 3", "stale"];
        let seen = checkpoints(&sim);
        assert_eq!(seen[2..], asked[usize::from(completes)..], "{completes}");
        if completes {
            assert_eq!(sim.run(), Outcome::Completed);
            assert_eq!(checkpoints(&sim)[seen.len()..], ["step 1", "save 2 6", "saved 2"]);
        }
    }
}

/// A checkpoint that is refused is none: the run goes on from the workers' policy and writes one at once; without
/// workers it goes on from the checkpoint before, and does again what came after that.
#[test]
fn a_refused_checkpoint_is_replaced_or_gone_behind() {
    let begin = || {
        let mut sim = two_workers(RunPlan { evaluation: None, ..small() }, 0);
        sim.run_until(
            |effect| matches!(effect, Effect::VerifyRollout { rollout, .. } if rollout.group.0 > 2),
        );
        assert_eq!(checkpoints(&sim), ["step 0", "save 1 3", "saved 1"]);
        sim.disk.checkpoint = None;
        sim
    };
    let mut undisturbed = two_workers(RunPlan { evaluation: None, ..small() }, 0);
    assert_eq!(undisturbed.run(), Outcome::Completed);

    let mut sim = begin();
    sim.restart();
    assert_eq!(sim.run(), Outcome::Completed);
    assert_eq!(did(&sim), did(&undisturbed));
    let again = ["save 1 3", "saved 1", "step 1", "save 2 6", "saved 2"];
    assert_eq!(checkpoints(&sim)[3..], again);

    let mut sim = begin();
    for name in ["a", "b"] {
        sim.kill(name, false);
    }
    sim.restart();
    sim.connect("c", 100, Behavior::default());
    assert_eq!(sim.run(), Outcome::Completed);
    assert_eq!(sim.disk.started_over, 1);
    assert_eq!(checkpoints(&sim)[3..], ["step 0", "save 1 3", "saved 1", "step 1", "save 2 6", "saved 2"]);
    assert_eq!(did(&sim), did(&undisturbed));
}

/// Everybody is gone: after the time that a worker may need to come back the checkpoint is read.
#[test]
fn a_policy_that_is_gone_is_begun_again_at_the_checkpoint() {
    let mut undisturbed = two_workers(small(), 0);
    assert_eq!(undisturbed.run(), Outcome::Completed);
    let mut sim = two_workers(small(), 0);
    // In the second step, whose checkpoint is the first step's.
    sim.run_until(|effect| {
        matches!(effect, Effect::TrainMinibatch { step: StepIndex(1), minibatch: MinibatchIndex(1), .. })
    });
    for name in ["a", "b"] {
        sim.kill(name, false);
    }
    sim.restart();
    let died = sim.now;
    for name in ["c", "d", "e"] {
        sim.connect(name, 100, Behavior::default());
    }
    sim.run_until(|effect| matches!(effect, Effect::StartOver { policy_version: PolicyVersion(3) }));
    // `cluster.heartbeat_timeout_ms`.
    assert!((5_000..5_200).contains(&(sim.now - died)), "{} ms", sim.now - died);
    assert_eq!(sim.run(), Outcome::Completed);
    assert_eq!(sim.disk.started_over, 1);
    assert_eq!(did(&sim), did(&undisturbed));
}

/// A worker that comes back after the run began again at its checkpoint still says what belongs to the course before.
#[test]
fn words_of_an_earlier_course_count_for_nothing() {
    let mut machine = Coordinator::after(small(), GroupEpoch(7));
    let worker = WorkerId::from("a");
    let _ = machine.step(Event::Connected { hello: worker::hello("a") }, Millis(0));
    // `cluster.grace_ms`.
    let effects = machine.step(Event::Tick, Millis(100));
    let epoch = GroupEpoch(8);
    let prepare = Effect::PrepareEpoch { worker: worker.clone(), epoch, host: true };
    assert!(effects.contains(&prepare), "{effects:?}");
    let late = Event::MinibatchApplied {
        worker: worker.clone(),
        epoch: GroupEpoch(7),
        step: StepIndex(3),
        minibatch: MinibatchIndex(0),
        policy_version: PolicyVersion(6),
        weights_digest: 1,
    };
    let stale = Effect::StaleMessage { worker: worker.clone(), kind: "minibatch_applied" };
    assert_eq!(machine.step(late, Millis(101)), [stale]);
    let policy_version = PolicyVersion(0);
    let prepared = Event::EpochPrepared { worker, epoch, policy_version, port: Some(4_000) };
    let effects = machine.step(prepared, Millis(102));
    assert!(matches!(effects[..], [Effect::FormEpoch { .. }]), "{effects:?}");
}

/// The policy is the checkpoint's: nobody has to be waited for.
#[test]
fn rollouts_of_the_checkpoints_policy_are_kept_without_their_workers() {
    let mut sim = two_workers(small(), 0);
    let accepted = |effect: &Effect| matches!(effect, Effect::Record(Record::RolloutAccepted { rollout, .. }) if rollout.group.0 > 8);
    // The first step's groups follow those of the evaluation's 5 problems, the second step's those.
    sim.run_until(accepted);
    for name in ["a", "b"] {
        sim.kill(name, false);
    }
    sim.restart();
    sim.connect("c", 100, Behavior::default());
    assert_eq!(sim.run(), Outcome::Completed);
    assert_eq!(sim.disk.started_over, 0);
    let asked: Vec<RolloutId> = sim
        .log
        .iter()
        .filter_map(|effect| match effect {
            Effect::Record(Record::RolloutAccepted { rollout, .. }) => Some(*rollout),
            _ => None,
        })
        .collect();
    assert_eq!(asked.len(), asked.iter().collect::<BTreeSet<_>>().len(), "none is drawn twice");
}

#[test]
fn records_that_are_older_than_the_workers_end_the_run_and_leave_the_workers_alone() {
    let mut sim = two_workers(small(), 0);
    let mut old = Vec::new();
    sim.run_until(|effect| matches!(effect, Effect::StepStarted { step: StepIndex(0), .. }));
    old.extend(sim.log.iter().filter_map(|effect| match effect {
        Effect::Record(record) => Some(record.clone()),
        _ => None,
    }));
    let begin = old.iter().rposition(|record| matches!(record, Record::Position { .. })).unwrap();
    sim.run_until(|effect| matches!(effect, Effect::StepStarted { step: StepIndex(1), .. }));
    sim.restart_from(old.split_off(begin));
    let seen = sim.log.len();
    let text = sim.failure();
    assert!(text.contains("holds policy version 2") && text.contains("ends at 0"), "{text}");
    let told = sim.log[seen..].iter().any(|effect| matches!(effect, Effect::Shutdown { .. }));
    assert!(!told, "workers go on looking for a coordinator that knows as much as they do");
}

/// A lost rank that comes back with another policy of the same version would let the ranks diverge.
#[test]
fn weights_that_are_not_the_recorded_ones_end_the_run() {
    let mut sim = two_workers(RunPlan { checkpoint_every: 0, ..small() }, 0);
    sim.run_until(|effect| matches!(effect, Effect::StepStarted { step: StepIndex(1), .. }));
    let mut records: Vec<Record> = sim
        .log
        .iter()
        .filter_map(|effect| match effect {
            Effect::Record(record) => Some(record.clone()),
            _ => None,
        })
        .collect();
    let begin = records.iter().rposition(|record| matches!(record, Record::Position { .. })).unwrap();
    let mut records = records.split_off(begin);
    if let Record::Position { position, .. } = &mut records[0] {
        position.weights_digest = Some(1);
    }
    sim.restart_from(records);
    let text = sim.failure();
    assert!(
        text.contains("digest of the weights") && text.contains("the journal: 0000000000000001"),
        "{text}"
    );
}

/// What an undisturbed run records.
fn records() -> Vec<Record> {
    let mut sim = two_workers(small(), 0);
    assert_eq!(sim.run(), Outcome::Completed);
    let records = sim.log.iter().filter_map(|effect| match effect {
        Effect::Record(record) => Some(record.clone()),
        _ => None,
    });
    records.collect()
}

/// Records with their checksums may still hold numbers that cannot be counted on from.
#[test]
fn numbers_that_no_run_gets_to_are_refused() {
    type Change = fn(&mut GroupEpoch, &mut Position);
    let all = records();
    let Some(&Record::Position { epoch, position }) = all.first() else { panic!("{:?}", all.first()) };
    let reason = |records: &[Record]| Coordinator::restore(small(), records).unwrap_err().reason;
    let changes: [(&str, Change); 6] = [
        ("steps", |_, position| position.state.steps_done = StepIndex(u64::MAX)),
        ("optimizer steps", |_, position| position.state.policy_version = PolicyVersion(u64::MAX)),
        ("groups", |_, position| position.state.next_group = GroupId(u64::MAX)),
        ("epochs", |epoch, _| *epoch = GroupEpoch(u64::MAX)),
        ("prompts", |_, position| {
            (position.state.prompts_drawn, position.state.policy_since_prompt) = (u64::MAX, u64::MAX);
        }),
        // They would all be drawn again.
        ("the policy began after", |_, position| position.state.prompts_drawn = 1 << 40),
    ];
    for (what, change) in changes {
        let (mut epoch, mut position) = (epoch, position);
        change(&mut epoch, &mut position);
        let reason = reason(&[Record::Position { epoch, position }]);
        assert!(reason.contains(what), "{what}: {reason}");
    }
    let at = all.iter().position(|record| matches!(record, Record::StepBegan { .. })).unwrap();
    let begin = all[..at].iter().rposition(|record| matches!(record, Record::Position { .. })).unwrap();
    let mut longest = all[begin..=at].to_vec();
    let rollout = RolloutId { group: position.state.next_group, index: 0 };
    longest.push(Record::RolloutAccepted { rollout, prompt_tokens: u32::MAX, response_tokens: 1 });
    assert!(reason(&longest).contains("longer"), "{}", reason(&longest));
}

/// Whatever records say: they are understood or refused, never a panic.
#[test]
fn damaged_records_are_refused() {
    let all = records();
    let (mut taken, mut refused) = (0, 0);
    for seed in 0..2_000 {
        let mut random = CounterRng::new(seed, "damage");
        let begin = all
            .iter()
            .enumerate()
            .filter(|(_, record)| matches!(record, Record::Position { .. }))
            .map(|(at, _)| at)
            .nth(random.below(3) as usize)
            .unwrap();
        let end = (begin + 1 + random.below(60) as usize).min(all.len());
        let mut records = all[begin..end].to_vec();
        for _ in 0..random.below(3) {
            let (one, other) = (random.below(records.len() as u64), random.below(records.len() as u64));
            match random.below(3) {
                0 => records.swap(one as usize, other as usize),
                1 => records.insert(one as usize, records[other as usize].clone()),
                _ if records.len() > 1 => drop(records.remove(one as usize)),
                _ => {}
            }
        }
        match Coordinator::restore(small(), &records) {
            Ok((mut machine, _)) => {
                taken += 1;
                let _ = machine.step(Event::Connected { hello: worker::hello("a") }, Millis(0));
            }
            Err(error) => {
                refused += 1;
                assert!(error.at < records.len() && !error.reason.is_empty());
            }
        }
    }
    assert!(taken > 100 && refused > 100, "{taken} {refused}");
}
