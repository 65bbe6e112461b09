//! Where nobody takes the place of a lost rank, every kind of failure ends the run within its deadlines, and
//! its text names who and when.

use crate::state::{Coordinator, Effect, Event, Millis, Outcome, Record, RunPlan};
use g2rl_common::ids::{GroupEpoch, LeaseId, MinibatchIndex, PolicyVersion, RolloutId, StepIndex};
use g2rl_common::ids::{GroupId, WorkerId};
use g2rl_proto::{Hello, RejectReason};

use super::support::worker::{Behavior, Command, Fault, hello};
use super::support::{Sim, plan};

/// Two workers; `b`, which is rank 1, goes wrong.
fn faulty(fault: Fault, at: Command, obeyed: u32) -> Sim {
    let mut sim = Sim::new(RunPlan { evaluation: None, ..plan(2) }, 0);
    sim.connect("a", 0, Behavior::default());
    sim.connect("b", 0, Behavior { fault: Some((fault, at, obeyed)), ..Behavior::default() });
    sim
}

fn assert_names(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in {text:?}");
    }
}

/// The workers that were told that the run failed.
fn told(sim: &Sim) -> Vec<String> {
    let told = sim.log.iter().filter_map(|effect| match effect {
        Effect::Shutdown { worker, failed: true, .. } => Some(worker.to_string()),
        _ => None,
    });
    told.collect()
}

#[test]
fn a_rank_that_disconnects() {
    let mut sim = faulty(Fault::Disconnect, Command::Lease, 2);
    let text = sim.failure();
    assert_names(&text, &["rank 1 (worker b) was lost", "rollout of step", "connection reset", "it owed"]);
    assert_eq!(told(&sim), ["a"]);
}

#[test]
fn a_rank_that_fails_in_an_update() {
    let text = faulty(Fault::Fail, Command::Train, 1).failure();
    let parts =
        ["rank 1 (worker b) was lost", "gradients of step 0, mini-batch 1", "out of memory", "its gradients"];
    assert_names(&text, &parts);
}

#[test]
fn a_rank_that_falls_silent() {
    let mut sim = faulty(Fault::Silent, Command::Apply, 0);
    let text = sim.failure();
    let parts = [
        "rank 1 (worker b)",
        "optimizer step of step 0",
        "no sign of life for 5000 ms",
        "its optimizer step",
    ];
    assert_names(&text, &parts);
    let cut = |effect: &Effect| matches!(effect, Effect::Refuse { worker, may_return: true, .. } if worker.0 == "b");
    assert!(sim.log.iter().any(cut), "its stream is ended");
    assert_eq!(told(&sim), ["a"]);
}

#[test]
fn a_rank_that_beats_but_does_nothing() {
    let cases = [
        (
            Command::FormEpoch,
            vec!["forming of epoch 1", "20000 ms", "rank 1 (worker b): its part in the epoch"],
        ),
        (
            Command::Lease,
            vec!["rollout of step 0", "30000 ms", "rank 1 (worker b): 4 rollouts of group 1 (training"],
        ),
        (
            Command::Train,
            vec!["gradients of step 0, mini-batch 0", "15000 ms", "rank 1 (worker b): its gradients"],
        ),
        (
            Command::Apply,
            vec!["optimizer step of step 0", "15000 ms", "rank 1 (worker b): its optimizer step"],
        ),
    ];
    for (at, parts) in cases {
        let mut sim = faulty(Fault::Stuck, at, 0);
        assert_names(&sim.failure(), &parts);
        assert_eq!(told(&sim), ["a"], "its stream was ended");
        assert!(sim.now < 60_000, "{at:?} took {} ms", sim.now);
    }
}

#[test]
fn rank_0_that_does_not_open_its_store_or_write_its_checkpoint() {
    for (at, phase) in [(Command::Prepare, "forming of epoch 1"), (Command::Save, "checkpoint after 3 steps")]
    {
        let mut sim = Sim::new(RunPlan { checkpoint_every: 0, evaluation: None, ..plan(2) }, 0);
        sim.connect("a", 0, Behavior { fault: Some((Fault::Stuck, at, 0)), ..Behavior::default() });
        sim.connect("b", 0, Behavior::default());
        assert_names(&sim.failure(), &["rank 0 (worker a)", phase]);
    }
}

#[test]
fn ranks_that_disagree() {
    let cases = [
        (Command::FormEpoch, ["digest of the weights", "forming of epoch 1"]),
        (Command::Train, ["gradient norm", "gradients of step 0, mini-batch 0"]),
        (Command::Apply, ["digest of the weights", "optimizer step of step 0, mini-batch 0"]),
    ];
    for (at, parts) in cases {
        let mut sim = faulty(Fault::WrongAnswer, at, 0);
        let text = sim.failure();
        assert_names(&text, &parts);
        assert_names(&text, &["disagree", "rank 0 (worker a): ", "rank 1 (worker b): "]);
        let applied = sim.log.iter().any(|effect| matches!(effect, Effect::Apply { .. }));
        assert_eq!(applied, at == Command::Apply);
    }
}

#[test]
fn rollouts_of_another_policy() {
    let text = faulty(Fault::WrongAnswer, Command::Lease, 0).failure();
    assert_names(&text, &["rank 1 (worker b)", "rollout of step 0", "of policy 1 instead of 0"]);
}

#[test]
fn too_few_workers() {
    let mut machine = Coordinator::new(plan(2));
    let _ = machine.step(Event::Connected { hello: hello("a") }, Millis(0));
    let gone = Event::WorkerFailed { worker: "a".into(), error: "no such model".into() };
    let _ = machine.step(gone, Millis(10));
    assert_eq!(machine.next_deadline(), Some(Millis(20_000)));
    let effects = machine.step(Event::Tick, Millis(20_000));
    let [Effect::Finished(Outcome::Failed(text))] = effects.as_slice() else { panic!("{effects:?}") };
    assert_names(text, &["0 of 2", "20000 ms", "worker a left: it failed: no such model"]);
}

/// A machine that has recorded where it begins.
fn begun(plan: RunPlan) -> Coordinator {
    let mut machine = Coordinator::new(plan);
    let effects = machine.step(Event::Tick, Millis(0));
    assert!(matches!(effects[..], [Effect::Record(Record::Position { .. })]), "{effects:?}");
    machine
}

#[test]
fn workers_that_cannot_be_used_are_refused() {
    let mut machine = begun(plan(2));
    let mut say = |hello: Hello| machine.step(Event::Connected { hello }, Millis(0));
    let old = Hello { protocol_version: 0, ..hello("old") };
    let refused = say(old);
    let [Effect::Refuse { worker, reason, may_return: false }] = refused.as_slice() else {
        panic!("{refused:?}")
    };
    assert_eq!(worker.0, "old");
    assert_names(reason, &["old", "protocol version 0", "same release"]);
    assert_eq!(say(hello("a")), [Effect::Welcome { worker: "a".into() }]);
    // Gradients could not go between two hosts.
    let far = Hello { hostname: "far".into(), address: "127.0.0.1".into(), ..hello("far") };
    let refused = say(far);
    let [Effect::Refuse { reason, .. }] = refused.as_slice() else { panic!("{refused:?}") };
    assert_names(reason, &["far is reached at 127.0.0.1", "worker a at a.example", "--interface"]);
    // A worker whose old stream is not known to be broken: the new one takes its place.
    assert_eq!(say(hello("a")), [Effect::Welcome { worker: "a".into() }]);
    // plan(2) allows 4.
    for name in ["b", "c", "d"] {
        assert_eq!(say(hello(name))[0], Effect::Welcome { worker: name.into() });
    }
    let full = say(hello("e"));
    assert!(
        matches!(full.as_slice(), [Effect::Refuse { reason, .. }] if reason.contains("max_workers")),
        "{full:?}"
    );
}

#[test]
fn an_epoch_waits_for_the_grace_time_and_begins_at_once_when_full() {
    let mut machine = begun(plan(1));
    assert_eq!(machine.step(Event::Connected { hello: hello("a") }, Millis(50)).len(), 1);
    assert_eq!(machine.next_deadline(), Some(Millis(150)));
    assert!(machine.step(Event::Tick, Millis(149)).is_empty());
    let began = Effect::Record(Record::EpochBegan { epoch: GroupEpoch(1) });
    let host = Effect::PrepareEpoch { worker: "a".into(), epoch: GroupEpoch(1), host: true };
    assert_eq!(machine.step(Event::Tick, Millis(150)), [began, host]);

    // One that leaves in time takes the grace time with it.
    let mut machine = Coordinator::new(plan(1));
    let _ = machine.step(Event::Connected { hello: hello("a") }, Millis(50));
    let _ = machine.step(Event::Disconnected { worker: "a".into(), reason: "gone".into() }, Millis(60));
    let _ = machine.step(Event::Connected { hello: hello("b") }, Millis(70));
    assert_eq!(machine.next_deadline(), Some(Millis(170)));

    let mut machine = Coordinator::new(plan(1));
    let mut last = Vec::new();
    for name in ["a", "b", "c", "d"] {
        last = machine.step(Event::Connected { hello: hello(name) }, Millis(50));
    }
    assert_eq!(last.len(), 1 + 1 + 4, "welcome, the record, and four to prepare: {last:?}");
}

#[test]
fn messages_of_another_epoch_lease_or_worker_are_dropped() {
    let mut sim = faulty(Fault::Stuck, Command::Lease, 0);
    sim.run_until(|effect| matches!(effect, Effect::StepStarted { .. }));
    let ready = |worker: &str, epoch| Event::GradientsReady {
        worker: worker.into(),
        epoch: GroupEpoch(epoch),
        step: StepIndex(0),
        minibatch: MinibatchIndex(0),
        stats: Default::default(),
        gradient_norm: 1.0,
        not_finite: Vec::new(),
    };
    let arrived = |lease, epoch| Event::RolloutArrived {
        worker: "a".into(),
        epoch: GroupEpoch(epoch),
        lease: LeaseId(lease),
        rollout: RolloutId { group: GroupId(lease), index: 0 },
        policy_version: PolicyVersion(0),
        prompt_tokens: 1,
        response_tokens: 1,
    };
    // From a stranger, before its time, of another epoch, of a lease that b has, of none.
    for event in [ready("z", 1), ready("a", 1), ready("a", 0), arrived(1, 1), arrived(99, 1)] {
        let effects = sim.machine.step(event.clone(), Millis(sim.now));
        assert!(matches!(effects.as_slice(), [Effect::StaleMessage { .. }]), "{event:?} led to {effects:?}");
    }
}

#[test]
fn what_was_said_before_is_dropped_and_counted() {
    let mut sim = Sim::new(RunPlan { evaluation: None, ..plan(2) }, 0);
    sim.connect("a", 0, Behavior::default());
    sim.connect("b", 0, Behavior { fault: Some((Fault::Stuck, Command::Train, 0)), ..Behavior::default() });
    sim.run_until(|effect| matches!(effect, Effect::TrainMinibatch { .. }));
    let ready = Event::GradientsReady {
        worker: "a".into(),
        epoch: GroupEpoch(1),
        step: StepIndex(0),
        minibatch: MinibatchIndex(0),
        stats: Default::default(),
        gradient_norm: 1.0,
        not_finite: Vec::new(),
    };
    assert_eq!(sim.machine.step(ready.clone(), Millis(sim.now)), []);
    let stale = |worker: &str, kind| Effect::StaleMessage { worker: worker.into(), kind };
    assert_eq!(sim.machine.step(ready, Millis(sim.now)), [stale("a", "gradients_ready")]);

    let mut sim = Sim::new(plan(2), 0);
    sim.connect("a", 0, Behavior { fault: Some((Fault::Stuck, Command::Save, 0)), ..Behavior::default() });
    sim.connect("b", 0, Behavior::default());
    sim.run_until(|effect| matches!(effect, Effect::SaveCheckpoint { .. }));
    // Rank 1 writes none, and rank 0's is the one after 2 steps.
    for (worker, steps) in [("b", 2), ("a", 1)] {
        let done = Event::CheckpointDone {
            worker: worker.into(),
            epoch: GroupEpoch(1),
            step: StepIndex(steps),
            error: None,
        };
        assert_eq!(sim.machine.step(done, Millis(sim.now)), [stale(worker, "checkpoint_done")]);
    }
}

/// Every phase of every mini-batch has the whole limit: with answers up to 300 ms late, 2
/// mini-batches of 2 phases take longer than the 301 ms that each may take.
#[test]
fn the_update_deadline_is_for_each_phase() {
    let mut slow = plan(2);
    slow.cluster.update_timeout_ms = 301;
    let mut sim = Sim::new(slow, 0);
    sim.weather.max_delay_ms = 300;
    sim.connect("a", 0, Behavior::default());
    sim.connect("b", 0, Behavior::default());
    assert_eq!(sim.run(), Outcome::Completed);
    let longest = sim.log.iter().filter_map(|effect| match effect {
        Effect::StepCompleted(record) => Some(record.times.update_ms),
        _ => None,
    });
    assert!(longest.max() > Some(602), "the updates were too fast to show anything");
}

#[test]
fn what_cannot_be_ends_the_run() {
    let to_a = |log: &[Effect]| {
        log.iter().find_map(|effect| match effect {
            Effect::Lease { worker, order, .. } if worker.0 == "a" => Some(order.clone()),
            _ => None,
        })
    };
    let worker = WorkerId::from("a");
    let epoch = GroupEpoch(1);
    let start = || {
        let mut sim = faulty(Fault::Stuck, Command::Lease, 0);
        sim.run_until(|effect| matches!(effect, Effect::Lease { .. }));
        let order = to_a(&sim.log).unwrap();
        (sim, order)
    };

    let (mut sim, order) = start();
    sim.deliver(Event::RolloutArrived {
        worker: worker.clone(),
        epoch,
        lease: order.lease,
        rollout: RolloutId { group: order.group, index: 44 },
        policy_version: order.policy_version,
        prompt_tokens: 1,
        response_tokens: 1,
    });
    assert_names(&sim.failure(), &["rank 0 (worker a)", "rollout of step 0", "does not ask for it"]);

    let (mut sim, order) = start();
    sim.deliver(Event::LeaseRejected {
        worker: worker.clone(),
        epoch,
        lease: order.lease,
        reason: RejectReason::InvalidPrompt,
        detail: "the template raised an error".into(),
    });
    let problem = order.problem.to_string();
    assert_names(&sim.failure(), &["rank 0 (worker a)", &problem, "rollout of step 0", "raised an error"]);

    let (mut sim, _) = start();
    sim.deliver(Event::ShellFailed { error: "journal: disk full".into() });
    assert_names(&sim.failure(), &["the coordinator failed", "rollout of step 0", "disk full"]);

    // Optimizer steps nobody asked for.
    let mut sim = faulty(Fault::Stuck, Command::Train, 0);
    sim.run_until(|effect| matches!(effect, Effect::TrainMinibatch { .. }));
    sim.deliver(Event::MinibatchApplied {
        worker,
        epoch,
        step: StepIndex(0),
        minibatch: MinibatchIndex(0),
        policy_version: PolicyVersion(1),
        weights_digest: 0,
    });
    assert_names(&sim.failure(), &["rank 0 (worker a)", "without being told"]);
}

#[test]
fn a_verification_that_does_not_end() {
    let mut machine =
        Coordinator::new(RunPlan { evaluation: None, train_problems: 2, prompts_per_step: 2, ..plan(1) });
    let mut now = 0;
    let mut events = vec![Event::Connected { hello: hello("a") }];
    let mut worker = super::support::worker::FakeWorker::new("a".into(), Behavior::default());
    // One of the two prompts is left out, which must not hide that only the other is waited for.
    worker.too_long = |index| index == 1;
    // Rollouts come back, verifications do not.
    let text = loop {
        let event = match events.pop() {
            Some(event) => event,
            None => {
                now = now.max(machine.next_deadline().unwrap().0.min(now + 1_000));
                let beat = super::support::worker::heartbeat(&"a".into());
                let _ = machine.step(beat, Millis(now));
                Event::Tick
            }
        };
        let effects = machine.step(event, Millis(now));
        if let Some(Effect::Finished(Outcome::Failed(text))) = effects.last() {
            break text.clone();
        }
        let commands = effects.iter().filter(|effect| super::support::worker::addressee(effect).is_some());
        events.extend(commands.flat_map(|effect| worker.react(effect)).map(|said| said.event));
    };
    assert_names(
        &text,
        &["rollout of step 0", "30000 ms", "the verification of group", "(training problem 0)"],
    );
}
