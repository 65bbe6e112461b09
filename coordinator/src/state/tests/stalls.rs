//! The stall report names who is waited for, for what and since when, in every activity.

use g2rl_common::ids::{GroupEpoch, LeaseId, Rank};
use g2rl_proto::{LeaseProgress, Phase, WorkerStatus};

use super::support::worker::{Behavior, Command, Fault};
use super::support::{Sim, plan};
use crate::state::{Effect, Event, Millis, RunPlan, StallReport};

const STALL_MS: u64 = 3_000;

fn stall_plan(workers: u32) -> RunPlan {
    // Nothing goes on beside the checkpoint at the end.
    let mut plan = RunPlan { evaluation: None, steps: 2, checkpoint_every: 2, ..plan(workers) };
    plan.cluster.stall_after_ms = STALL_MS;
    plan
}

/// Two workers, of which one still beats but does nothing more from a command on.
fn stuck(name: &str, at: Command) -> Sim {
    let mut sim = Sim::new(stall_plan(2), 0);
    for worker in ["a", "b"] {
        let fault = (worker == name).then_some((Fault::Stuck, at, 0));
        sim.connect(worker, 0, Behavior { fault, ..Behavior::default() });
    }
    sim
}

fn report(sim: &Sim) -> StallReport {
    sim.machine.stall_report(Millis(sim.now))
}

/// Runs until something stalls.
fn stalled(sim: &mut Sim) -> StallReport {
    loop {
        let now = report(sim);
        if !now.stalls.is_empty() {
            return now;
        }
        assert!(sim.advance(), "the run ended before anything stalled: {:?}", sim.outcome());
    }
}

#[test]
fn a_rank_that_hangs_is_named_in_every_activity() {
    let forming = "forming of epoch 1";
    for (name, at, phase, during, owes, state) in [
        ("b", Command::Prepare, "forming", forming, "its part in the epoch", "preparing"),
        ("b", Command::FormEpoch, "forming", forming, "its part in the epoch", "joining"),
        ("b", Command::Lease, "rollout", "rollout of step 0", "4 rollouts of group 1 (training", "standing"),
        ("b", Command::Train, "gradients", "gradients of step 0, mini-batch 0", "its gradients", "standing"),
        ("b", Command::Apply, "apply", "optimizer step of step 0", "its optimizer step", "standing"),
        ("a", Command::Save, "checkpoint", "checkpoint after 2 steps", "the checkpoint", "standing"),
    ] {
        let mut sim = stuck(name, at);
        let report = stalled(&mut sim);
        let rank = if name == "a" { Rank(0) } else { Rank(1) };
        let [stall] = report.stalls.as_slice() else { panic!("{at:?}: {:?}", report.stalls) };
        assert_eq!(stall.who, format!("rank {rank} (worker {name})"), "{at:?}");
        assert!(stall.what.contains(owes), "{at:?}: {}", stall.what);
        // A look for every event, and a heartbeat a second from each worker.
        assert!((STALL_MS..STALL_MS + 1_100).contains(&stall.for_ms), "{at:?}: {} ms", stall.for_ms);
        assert_eq!((report.phase, report.epoch.state), (phase, state), "{at:?}");
        assert!(report.during.contains(during), "{at:?}: {}", report.during);
        let first = &report.ranks[0];
        assert_eq!((first.rank, first.worker.0.as_str()), (rank, name), "who is waited for comes first");
        assert!(first.owes.as_deref().is_some_and(|text| text.contains(owes)), "{at:?}: {:?}", first.owes);
        assert!(first.still_ms >= STALL_MS && first.silent_ms.is_some_and(|ms| ms <= 1_100), "{first:?}");
        let forms = report.epoch.missing == [rank];
        assert_eq!(forms, phase == "forming", "{at:?}: {:?}", report.epoch);
        assert!(report.deadline_in_ms.is_some());
        let leases = &report.leases;
        assert_eq!(leases.outstanding > 0, at == Command::Lease, "{at:?}");
        assert!(leases.oldest.iter().all(|lease| lease.rank == rank && lease.for_ms >= STALL_MS));
        assert_eq!(report.groups.is_some(), phase == "rollout");
    }
}

#[test]
fn a_silent_rank_shows_by_the_age_of_its_last_message() {
    let mut sim = Sim::new(stall_plan(2), 0);
    sim.connect("a", 0, Behavior::default());
    sim.connect("b", 0, Behavior { fault: Some((Fault::Silent, Command::Lease, 0)), ..Behavior::default() });
    let report = stalled(&mut sim);
    let b = report.ranks.iter().find(|rank| rank.worker.0 == "b").unwrap();
    assert!(b.silent_ms.is_some_and(|ms| ms >= STALL_MS), "{b:?}");
}

#[test]
fn workers_that_do_not_come_are_waited_for_by_number() {
    let mut sim = Sim::new(stall_plan(2), 0);
    sim.connect("a", 0, Behavior::default());
    let report = stalled(&mut sim);
    assert_eq!(report.stalls[0].who, "workers");
    assert_eq!(report.stalls[0].what, "workers (1 of 2)");
    assert_eq!((report.epoch.state, report.epoch.workers, report.epoch.min_workers), ("gathering", 1, 2));
    assert_eq!(report.epoch.without_rank.iter().map(|w| w.0.as_str()).collect::<Vec<_>>(), ["a"]);
    assert!(report.epoch.for_ms.is_some_and(|ms| ms >= STALL_MS));
}

#[test]
fn answers_that_are_not_judged_are_the_coordinators() {
    let mut sim = Sim::new(stall_plan(1), 0);
    sim.connect("a", 0, Behavior::default());
    sim.judge_ms = 25_000;
    let report = stalled(&mut sim);
    let [stall] = report.stalls.as_slice() else { panic!("{:?}", report.stalls) };
    assert_eq!(stall.who, "the coordinator");
    assert!(stall.what.contains("the verification of group 0"), "{}", stall.what);
    let groups = report.groups.unwrap();
    assert_eq!((groups.open, groups.rollouts_missing, groups.rollouts_unjudged), (4, 0, 16));
    assert!(report.ranks.iter().all(|rank| rank.owes.is_none()));

    sim.deliver(Event::JudgingPaused { cause: "reward service http://judge failed: 503".to_owned() });
    let paused = sim.machine.stall_report(Millis(sim.now));
    assert!(paused.judging_paused.is_some_and(|cause| cause.contains("http://judge")));
    assert!(paused.stalls[0].what.contains("503"), "{:?}", paused.stalls);
}

/// A long response is no stall, however long nothing comes back; its tokens show.
#[test]
fn a_rank_that_goes_on_does_not_stall() {
    let mut sim = stuck("b", Command::Lease);
    sim.run_until(|effect| matches!(effect, Effect::Lease { worker, .. } if worker.0 == "b"));
    let lease = sim.log.iter().find_map(|effect| match effect {
        Effect::Lease { worker, order, .. } if worker.0 == "b" => Some(order.lease),
        _ => None,
    });
    let lease: LeaseId = lease.unwrap();
    let beat = |progress: u64, still_ms: u64| Event::Heartbeat {
        worker: "b".into(),
        epoch: GroupEpoch(1),
        status: WorkerStatus {
            phase: Phase::Rollout,
            work: "products".to_owned(),
            progress,
            still_ms,
            leases: vec![LeaseProgress { lease, rollouts: 4, tokens: 10 * progress }],
            ..WorkerStatus::default()
        },
    };
    let start = sim.now;
    for second in 1..=20 {
        sim.now = start + 1_000 * second;
        let heartbeat =
            Event::Heartbeat { worker: "a".into(), epoch: GroupEpoch(1), status: WorkerStatus::default() };
        sim.deliver(heartbeat);
        sim.deliver(beat(second, 100));
        let now = report(&sim);
        let stalls = now.stalls.iter().filter(|stall| stall.who.contains("worker b")).count();
        assert_eq!(stalls, 0, "{second}: {:?}", now.stalls);
        let known = now.leases.oldest.iter().find(|known| known.lease == lease).unwrap();
        assert_eq!((known.tokens, known.for_ms), (Some(10 * second), sim.now - start));
    }
    // The same count once more: since the last one it stands still.
    sim.now += STALL_MS;
    sim.deliver(beat(20, STALL_MS));
    let now = report(&sim);
    let stall = now.stalls.iter().find(|stall| stall.who.contains("worker b")).unwrap();
    assert_eq!(stall.for_ms, STALL_MS + 100);
    let rank = &now.ranks.iter().find(|rank| rank.worker.0 == "b").unwrap();
    assert_eq!((rank.phase, rank.work.as_str()), ("rollout", "products"));
}

#[test]
fn a_report_is_bounded_and_counts_what_it_leaves_out() {
    let mut plan = stall_plan(70);
    (plan.cluster.max_workers, plan.prompts_per_step, plan.train_problems) = (100, 70, 70);
    let mut sim = Sim::new(plan, 0);
    for worker in 0..70 {
        let fault = Some((Fault::Stuck, Command::Lease, 0));
        sim.connect(&format!("w{worker:03}"), 0, Behavior { fault, ..Behavior::default() });
    }
    let report = stalled(&mut sim);
    assert_eq!((report.ranks.len(), report.more_ranks, report.stalls.len()), (64, 6, 64));
    assert_eq!((report.leases.outstanding, report.leases.oldest.len()), (70, 20));
    assert_eq!(report.leases.rollouts, 70 * 4);
    let text = serde_json::to_string(&report).unwrap();
    assert!(text.len() < 64 << 10, "{} bytes", text.len());
    // What is waited for is gone with the run.
    let _ = sim.failure();
    assert!(self::report(&sim).stalls.is_empty());
}
