//! Ranks come and go: the run goes on without loss, and nothing is done twice.

use crate::state::{Effect, Event, Outcome, RunPhase, RunPlan};
use g2rl_common::ids::{GroupEpoch, MinibatchIndex, PolicyVersion, StepIndex, WorkerId};

use super::support::worker::{Behavior, Command, Fault};
use super::support::{Sim, Source, plan};

/// Workers `a`, `b` and `c`; one is enough to go on.
fn three(fault: Option<(&str, Fault, Command, u32)>) -> Sim {
    let mut plan = plan(3);
    plan.cluster.min_workers = 1;
    plan.cluster.max_workers = 3;
    let mut sim = Sim::new(RunPlan { evaluation: None, ..plan }, 0);
    for name in ["a", "b", "c"] {
        let fault = fault.filter(|(who, ..)| *who == name).map(|(_, fault, at, obeyed)| (fault, at, obeyed));
        sim.connect(name, 0, Behavior { fault, ..Behavior::default() });
    }
    sim
}

fn count(sim: &Sim, wanted: impl Fn(&Effect) -> bool) -> usize {
    sim.log.iter().filter(|effect| wanted(effect)).count()
}

fn epochs(sim: &Sim) -> Vec<(u64, usize)> {
    let started = sim.log.iter().filter_map(|effect| match effect {
        Effect::EpochStarted { epoch, ranks, .. } => Some((epoch.0, ranks.len())),
        _ => None,
    });
    started.collect()
}

/// What each step trained on, and the policy after it.
fn steps(sim: &Sim) -> Vec<(StepIndex, PolicyVersion, u64)> {
    let records = sim.log.iter().filter_map(|effect| match effect {
        Effect::StepCompleted(record) => Some((record.step, record.policy_version, record.stats.tokens)),
        _ => None,
    });
    records.collect()
}

#[test]
fn a_rank_that_goes_in_any_phase_in_any_way_costs_no_step() {
    let mut undisturbed = three(None);
    assert_eq!(undisturbed.run(), Outcome::Completed);
    for fault in [Fault::Disconnect, Fault::Fail, Fault::Silent, Fault::Stuck] {
        for at in [Command::Prepare, Command::FormEpoch, Command::Lease, Command::Train, Command::Apply] {
            for obeyed in [0, 2] {
                for who in ["a", "c"] {
                    let mut sim = three(Some((who, fault, at, obeyed)));
                    let outcome = sim.run();
                    let case = format!("{fault:?} {at:?} {obeyed} {who}");
                    assert_eq!(outcome, Outcome::Completed, "{case}");
                    assert_eq!(steps(&sim), steps(&undisturbed), "{case}");
                    if sim.workers[&WorkerId::from(who)].faulty {
                        assert_eq!(epochs(&sim).last().unwrap().1, 2, "{case}: {:?}", epochs(&sim));
                    }
                }
            }
        }
    }
    // Rank 0 owes the checkpoint; the next rank 0 writes it.
    let mut sim = three(Some(("a", Fault::Disconnect, Command::Save, 0)));
    assert_eq!(sim.run(), Outcome::Completed);
    let writers: Vec<_> = sim
        .log
        .iter()
        .filter_map(|effect| match effect {
            Effect::SaveCheckpoint { worker, step, .. } => Some((worker.0.as_str(), step.0)),
            _ => None,
        })
        .collect();
    assert_eq!(writers, [("a", 2), ("b", 2), ("b", 3)]);
}

#[test]
fn a_failed_collective_costs_an_epoch_but_no_rank() {
    let mut sim = three(Some(("b", Fault::EpochFailed, Command::Train, 1)));
    assert_eq!(sim.run(), Outcome::Completed);
    assert_eq!(epochs(&sim), [(1, 3), (2, 3)]);
    let recovery = sim.log.iter().find_map(|effect| match effect {
        Effect::EpochStarted { recovery: Some(recovery), .. } => Some(recovery.clone()),
        _ => None,
    });
    let recovery = recovery.unwrap();
    assert!(matches!(recovery.phase, RunPhase::Gradients(StepIndex(0), minibatch) if minibatch.0 == 1));
    assert!(recovery.cause.contains("rank 1 (worker b) failed") && recovery.cause.contains("broken pipe"));
    assert_eq!(recovery.rollouts_redone, 0);
}

#[test]
fn survivors_keep_their_leases() {
    let mut sim = three(Some(("b", Fault::Disconnect, Command::Lease, 0)));
    sim.weather.max_delay_ms = 300;
    assert_eq!(sim.run(), Outcome::Completed);
    // 3 steps of 4 groups: only what b had is leased twice.
    let leased: u32 = sim
        .log
        .iter()
        .map(|effect| if let Effect::Lease { order, .. } = effect { order.rollouts } else { 0 })
        .sum();
    let redone = sim.machine.status().rollouts_redone;
    assert!(redone > 0);
    assert_eq!(u64::from(leased), 3 * 16 + redone);
}

/// All were told to apply. Whoever is left has done it, or has not.
#[test]
fn an_optimizer_step_that_was_told_is_done_once() {
    // b dies before it applies; a and c have applied: nothing is computed again.
    let mut sim = three(Some(("b", Fault::Disconnect, Command::Apply, 0)));
    assert_eq!(sim.run(), Outcome::Completed);
    let trained = |sim: &Sim| {
        count(
            sim,
            |e| matches!(e, Effect::TrainMinibatch { minibatch, step, .. } if minibatch.0 == 0 && step.0 == 0),
        )
    };
    assert_eq!(trained(&sim), 3);

    // The word is lost on its way to a and c, whose streams break; b has applied and dies.
    let mut sim = three(None);
    sim.run_until(|effect| matches!(effect, Effect::TrainMinibatch { .. }));
    sim.cut("a", true, 200);
    sim.cut("c", false, 300);
    // Nobody can be ready before the streams broke, so b cannot have been told.
    assert_eq!(sim.run(), Outcome::Completed);
    assert_eq!(steps(&sim).len(), 3);
}

#[test]
fn a_policy_that_nobody_holds_ends_the_run_and_says_how_to_go_on() {
    let mut sim = three(None);
    sim.run_until(|effect| matches!(effect, Effect::StepCompleted(record) if record.step == StepIndex(1)));
    for name in ["a", "b", "c"] {
        sim.kill(name, true);
    }
    sim.connect("d", 1_000, Behavior::default());
    let text = sim.failure();
    for part in ["policy version 4", "newest that is left is 0", "--resume"] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    // Not before a holder had the time to connect again.
    assert!(sim.now < 20_000, "{}", sim.now);
}

#[test]
fn a_worker_that_was_cut_off_brings_its_policy_back() {
    let mut plan = plan(1);
    plan.cluster.max_workers = 1;
    let mut sim = Sim::new(RunPlan { evaluation: None, ..plan }, 0);
    sim.connect("a", 0, Behavior::default());
    sim.run_until(|effect| matches!(effect, Effect::StepCompleted(record) if record.step == StepIndex(1)));
    sim.cut("a", true, 3_000);
    assert_eq!(sim.run(), Outcome::Completed);
    assert_eq!(steps(&sim).len(), 3);
    let waiting = sim.machine.status().waiting_ms;
    assert!((2_900..3_200).contains(&waiting), "{waiting} ms");
}

#[test]
fn a_run_with_too_few_workers_waits_for_them_and_says_so() {
    let mut plan = plan(2);
    plan.cluster.max_workers = 2;
    let mut sim = Sim::new(RunPlan { evaluation: None, ..plan }, 0);
    sim.connect("a", 0, Behavior::default());
    sim.connect("b", 0, Behavior::default());
    sim.run_until(|effect| matches!(effect, Effect::TrainMinibatch { .. }));
    sim.kill("b", true);
    sim.connect("c", 8_000, Behavior::default());
    sim.run_until(|effect| matches!(effect, Effect::EpochEnded { .. }));
    let status = sim.machine.status();
    assert_eq!((status.phase, status.waiting_for.as_str()), (RunPhase::Gathering, "workers (1 of 2)"));
    // In the middle of the update: c gets a's policy and its share of the mini-batch.
    sim.run_until(|effect| matches!(effect, Effect::EpochStarted { .. }));
    sim.run_until(|effect| matches!(effect, Effect::TrainMinibatch { worker, .. } if worker.0 == "c"));
    assert_eq!(sim.run(), Outcome::Completed);
    assert!(sim.machine.status().waiting_ms > 7_000);
}

#[test]
fn a_worker_that_comes_later_joins_between_two_steps() {
    let mut plan = plan(1);
    plan.cluster.max_workers = 2;
    let mut sim = Sim::new(RunPlan { evaluation: None, ..plan }, 0);
    sim.weather.max_delay_ms = 50;
    sim.connect("a", 0, Behavior::default());
    sim.run_until(|effect| matches!(effect, Effect::StepStarted { .. }));
    sim.connect("b", 0, Behavior::default());
    assert_eq!(sim.run(), Outcome::Completed);
    let position = |wanted: &dyn Fn(&Effect) -> bool| sim.log.iter().position(wanted).unwrap();
    let grown = position(&|e| matches!(e, Effect::EpochStarted { epoch: GroupEpoch(2), .. }));
    let welcome = position(&|e| matches!(e, Effect::Welcome { worker } if worker.0 == "b"));
    let step = sim.log[welcome..grown].iter().filter(|e| matches!(e, Effect::StepCompleted(_))).count();
    assert!(step > 0, "b had to wait for the end of a step");
    assert!(matches!(&sim.log[grown], Effect::EpochStarted { recovery: None, .. }));
}

#[test]
fn epochs_that_end_one_after_another_end_the_run() {
    let mut plan = plan(1);
    plan.cluster.max_epoch_failures = 3;
    let mut sim = Sim::new(RunPlan { evaluation: None, ..plan }, 0);
    sim.connect("a", 0, Behavior::default());
    sim.run_until(|effect| matches!(effect, Effect::StepStarted { .. }));
    while sim.outcome().is_none() {
        sim.collective_fails("a");
        if !sim.advance() {
            break;
        }
    }
    let text = sim.failure();
    assert!(text.contains("3 epochs") && text.contains("max_epoch_failures"), "{text}");
    assert!(text.contains("connection closed by peer"), "{text}");
}

#[test]
fn a_policy_from_the_future_ends_the_run() {
    let mut sim = three(None);
    sim.run_until(|effect| matches!(effect, Effect::StepStarted { .. }));
    let held = Some(("run".into(), PolicyVersion(9)));
    let hello = g2rl_proto::Hello { held, ..super::support::worker::hello("b") };
    let mut worker = super::support::worker::FakeWorker::new("b".into(), Behavior::default());
    worker.version = PolicyVersion(9);
    sim.workers.insert("b".into(), worker);
    sim.send_at(Source::Worker("b".into()), Event::Connected { hello }, 1);
    let text = sim.failure();
    assert!(text.contains("worker b") && text.contains("version 9") && text.contains("older"), "{text}");
}

/// What a worker says it holds is compared with what it can hold whenever it says so, also late.
#[test]
fn a_policy_that_nobody_can_hold_is_not_believed() {
    let formed = |epoch| Event::EpochFormed {
        worker: "b".into(),
        epoch: GroupEpoch(epoch),
        policy_version: PolicyVersion(9),
        weights_digest: 1,
        decode_slots: 4,
    };
    let applied = |epoch| Event::MinibatchApplied {
        worker: "b".into(),
        epoch: GroupEpoch(epoch),
        step: StepIndex(0),
        minibatch: MinibatchIndex(0),
        policy_version: PolicyVersion(9),
        weights_digest: 1,
    };
    let in_epoch_2 = || {
        let mut sim = three(Some(("c", Fault::Disconnect, Command::Lease, 0)));
        sim.run_until(|effect| matches!(effect, Effect::EpochStarted { epoch: GroupEpoch(2), .. }));
        sim
    };
    for said in [formed(2), formed(1), applied(1)] {
        let mut sim = in_epoch_2();
        sim.deliver(said.clone());
        let text = sim.failure();
        assert!(text.contains("rank 1 (worker b) holds policy version 9"), "{said:?}: {text}");
    }
    // Of a mini-batch that nobody computes: no word of this epoch's, and the policy is not what is sought when
    // the next one is formed.
    let mut sim = in_epoch_2();
    sim.deliver(applied(2));
    sim.kill("a", true);
    assert_eq!(sim.run(), Outcome::Completed);
    assert_eq!(steps(&sim).len(), 3);
}

/// b is given the policy, but the epoch ends before it says so, and the next one is a's alone. Then a is gone.
#[test]
fn a_worker_without_a_rank_may_be_the_last_that_holds_the_policy() {
    let mut plan = plan(1);
    plan.cluster.max_workers = 2;
    let mut sim = Sim::new(RunPlan { evaluation: None, ..plan }, 0);
    sim.connect("a", 0, Behavior::default());
    sim.run_until(|effect| matches!(effect, Effect::StepStarted { .. }));
    sim.connect("b", 0, Behavior::default());
    // In epoch 2; the collective of a fails, and epoch 3 is formed by a.
    sim.run_until(|effect| matches!(effect, Effect::FormEpoch { worker, .. } if worker.0 == "b"));
    sim.deliver(Event::EpochFailed { worker: "a".into(), epoch: GroupEpoch(2), error: "broken pipe".into() });
    sim.kill("a", true);
    assert_eq!(sim.run(), Outcome::Completed);
    assert_eq!(epochs(&sim).last(), Some(&(4, 1)));
    assert_eq!(steps(&sim).len(), 3);
}

/// b has other weights than a, and c never says what it has: the epoch would end before all have answered.
#[test]
fn ranks_that_disagree_are_noticed_before_all_have_answered() {
    let mut sim = three(Some(("b", Fault::WrongAnswer, Command::Apply, 0)));
    let stuck = Some((Fault::Stuck, Command::Apply, 0));
    sim.workers.get_mut(&"c".into()).unwrap().behavior.fault = stuck;
    let text = sim.failure();
    for part in ["digest of the weights", "rank 1 (worker b)", "optimizer step of step 0, mini-batch 0"] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
}

/// The only rank that is left has other weights than those that all ranks had said they had.
#[test]
fn a_policy_that_is_not_the_runs_is_not_gone_on_with() {
    let mut sim = three(None);
    sim.run_until(|effect| matches!(effect, Effect::StepCompleted(_)));
    sim.workers.get_mut(&"b".into()).unwrap().weights += 16;
    sim.kill("a", true);
    sim.kill("c", true);
    let text = sim.failure();
    for part in ["digest of the weights", "the journal: ", "rank 0 (worker b)"] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
}

/// With a divided optimizer nobody else has what a lost rank held.
#[test]
fn a_lost_part_of_the_optimizer_state_ends_the_run_with_the_way_on() {
    let divided = |fault| {
        let mut sim_plan = plan(3);
        sim_plan.cluster.min_workers = 1;
        sim_plan.cluster.max_workers = 3;
        sim_plan.optimizer.shard = true;
        let mut sim = Sim::new(RunPlan { evaluation: None, ..sim_plan }, 0);
        for name in ["a", "b", "c"] {
            let fault = if name == "b" { fault } else { None };
            sim.connect(name, 0, Behavior { fault, ..Behavior::default() });
        }
        sim
    };
    for at in [Command::Lease, Command::Train, Command::Apply] {
        let mut sim = divided(Some((Fault::Disconnect, at, 0)));
        let outcome = sim.run();
        let Outcome::Failed(text) = outcome else { panic!("{at:?}: {outcome:?}") };
        assert!(text.contains("rank 1 (worker b)"), "{at:?}: {text}");
        assert!(text.contains("optimizer.shard") && text.contains("--resume"), "{at:?}: {text}");
        assert_eq!(epochs(&sim), [(1, 3)], "{at:?}: no epoch follows");
    }
    // Before the first epoch stands nothing is divided yet.
    let mut sim = divided(Some((Fault::Disconnect, Command::FormEpoch, 0)));
    assert_eq!(sim.run(), Outcome::Completed);

    // Every rank hands over its part of a checkpoint, and the one that writes is asked last.
    let mut sim = divided(None);
    assert_eq!(sim.run(), Outcome::Completed);
    let asked: Vec<_> = sim
        .log
        .iter()
        .filter_map(|effect| match effect {
            Effect::SaveCheckpoint { worker, step, .. } => Some((worker.0.as_str(), step.0)),
            _ => None,
        })
        .collect();
    assert_eq!(asked, [("c", 2), ("b", 2), ("a", 2), ("c", 3), ("b", 3), ("a", 3)]);
}

/// Somebody who comes later would need a part, which nobody can give.
#[test]
fn nobody_is_taken_in_while_the_optimizer_state_is_divided() {
    let mut plan = plan(2);
    plan.cluster.min_workers = 1;
    plan.cluster.max_workers = 3;
    plan.optimizer.shard = true;
    let mut sim = Sim::new(RunPlan { evaluation: None, ..plan }, 0);
    sim.connect("a", 0, Behavior::default());
    sim.connect("b", 0, Behavior::default());
    sim.run_until(|effect| matches!(effect, Effect::StepStarted { .. }));
    sim.connect("late", 0, Behavior::default());
    assert_eq!(sim.run(), Outcome::Completed);
    assert_eq!(epochs(&sim), [(1, 2)]);
}
