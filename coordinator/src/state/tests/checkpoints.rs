//! Checkpoints that are written while the run goes on, and what becomes of those that fail.

use crate::state::{Effect, Event, Outcome, RunPhase, RunPlan};
use g2rl_common::ids::{GroupEpoch, StepIndex};

use super::support::worker::{Behavior, Command, Fault};
use super::support::{Sim, Source, plan};

/// What happens to checkpoints and steps, in order.
fn story(sim: &Sim) -> Vec<String> {
    let line = |effect: &Effect| match effect {
        Effect::SaveCheckpoint { worker, step, .. } => Some(format!("save {step} {worker}")),
        Effect::CheckpointWritten { step } => Some(format!("saved {step}")),
        Effect::CheckpointFailed { step, .. } => Some(format!("failed {step}")),
        Effect::StepCompleted(record) => Some(format!("step {}", record.step)),
        Effect::EvaluationCompleted { step, .. } => Some(format!("evaluated {step}")),
        Effect::Finished(Outcome::Failed(_)) => Some("failed".to_owned()),
        Effect::Finished(outcome) => Some(format!("{outcome:?}")),
        _ => None,
    };
    sim.log.iter().filter_map(line).collect()
}

/// A run of 3 steps, with a checkpoint after each, on ranks a and b. What a says of its checkpoints is lost: the
/// test says it.
fn mute(plan: RunPlan) -> Sim {
    let mut sim = Sim::new(RunPlan { checkpoint_every: 1, ..plan }, 0);
    sim.connect("a", 0, Behavior::default()).saves = false;
    sim.connect("b", 0, Behavior::default());
    sim
}

fn say(sim: &mut Sim, step: u64, error: Option<&str>) {
    let (epoch, step, error) = (GroupEpoch(1), StepIndex(step), error.map(str::to_owned));
    sim.deliver(Event::CheckpointDone { worker: "a".into(), epoch, step, error });
}

#[test]
fn training_goes_on_while_a_checkpoint_is_written_and_the_next_one_waits() {
    let mut sim = mute(RunPlan { evaluation: None, ..plan(2) });
    // The second step is trained before the first checkpoint is durable; then its own is due.
    sim.run_until(|effect| matches!(effect, Effect::StepCompleted(record) if record.step.0 == 1));
    assert_eq!(story(&sim), ["step 0", "save 1 a", "step 1"]);
    assert_eq!(sim.machine.status().phase, RunPhase::Checkpoint(StepIndex(2)));
    assert!(sim.machine.status().waiting_for.contains("rank 0 (worker a): the checkpoint"));
    say(&mut sim, 1, None);
    assert_eq!(story(&sim)[3..], ["saved 1", "save 2 a"]);
    // The end waits too.
    sim.run_until(|effect| matches!(effect, Effect::StepCompleted(record) if record.step.0 == 2));
    assert_eq!(sim.machine.status().phase, RunPhase::Checkpoint(StepIndex(3)));
    say(&mut sim, 2, None);
    assert_eq!(sim.machine.status().phase, RunPhase::Checkpoint(StepIndex(3)));
    say(&mut sim, 3, None);
    assert_eq!(sim.outcome(), Some(Outcome::Completed));
    assert_eq!(story(&sim)[5..], ["step 2", "saved 2", "save 3 a", "saved 3", "Completed"]);
}

#[test]
fn the_last_evaluation_is_done_while_the_last_checkpoint_is_written() {
    let mut sim = mute(RunPlan { steps: 1, ..plan(2) });
    sim.run_until(|effect| matches!(effect, Effect::EvaluationCompleted { step: StepIndex(1), .. }));
    assert_eq!(sim.machine.status().phase, RunPhase::Checkpoint(StepIndex(1)));
    say(&mut sim, 1, None);
    assert_eq!(story(&sim), ["evaluated 0", "step 0", "save 1 a", "evaluated 1", "saved 1", "Completed"]);
}

#[test]
fn a_full_disk_costs_a_checkpoint_and_the_next_is_tried_when_it_is_due() {
    let mut sim = Sim::new(RunPlan { steps: 5, evaluation: None, ..plan(1) }, 0);
    let fault = Some((Fault::WrongAnswer, Command::Save, 0));
    sim.connect("a", 0, Behavior { fault, ..Behavior::default() });
    assert_eq!(sim.run(), Outcome::Completed);
    let story = story(&sim);
    let of = |word: &str| story.iter().filter(|line| line.starts_with(word)).cloned().collect::<Vec<_>>();
    assert_eq!(of("save "), ["save 2 a", "save 4 a", "save 5 a"]);
    assert_eq!(
        (of("failed"), of("saved")),
        (vec!["failed 2".to_owned()], vec!["saved 4".into(), "saved 5".into()])
    );
    let error = sim.log.iter().find_map(|effect| match effect {
        Effect::CheckpointFailed { error, .. } => Some(error.clone()),
        _ => None,
    });
    let error = error.unwrap();
    for part in ["rank 0 (worker a)", "checkpoint after 2 steps", "no space left on device"] {
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn the_last_checkpoint_must_not_fail() {
    let mut sim = Sim::new(RunPlan { checkpoint_every: 0, evaluation: None, ..plan(1) }, 0);
    let fault = Some((Fault::WrongAnswer, Command::Save, 0));
    sim.connect("a", 0, Behavior { fault, ..Behavior::default() });
    let text = sim.failure();
    assert!(text.contains("checkpoint after 3 steps") && text.contains("no space left"), "{text}");

    // A stop tries once more what failed before; the reason of an end is not hidden by a checkpoint that fails.
    let mut sim = mute(RunPlan { evaluation: None, ..plan(2) });
    sim.run_until(|effect| matches!(effect, Effect::SaveCheckpoint { .. }));
    say(&mut sim, 1, Some("no space left on device"));
    sim.deliver(Event::JudgingFailed { error: "the reward service is gone".into() });
    assert_eq!(story(&sim), ["step 0", "save 1 a", "failed 1", "save 1 a"]);
    say(&mut sim, 1, Some("no space left on device"));
    let text = sim.failure();
    assert!(text.contains("the reward service is gone") && text.contains("no space left"), "{text}");
}

#[test]
fn a_checkpoint_that_is_not_done_in_time_has_failed() {
    let mut slow = plan(2);
    slow.cluster.checkpoint_timeout_ms = 400;
    let mut sim = mute(RunPlan { steps: 2, evaluation: None, ..slow });
    sim.weather.max_delay_ms = 200;
    sim.run_until(|effect| matches!(effect, Effect::CheckpointFailed { .. }));
    assert!(story(&sim).starts_with(&["step 0".to_owned(), "save 1 a".to_owned()]));
    // Nobody lost its place for that.
    assert_eq!(sim.machine.status().epochs_failed, 0);
    // It comes late: not counted, and not taken for the one that follows.
    say(&mut sim, 1, None);
    let stale = |effect: &Effect| matches!(effect, Effect::StaleMessage { kind: "checkpoint_done", .. });
    assert!(sim.log.last().is_some_and(stale));
}

#[test]
fn a_stop_waits_for_the_checkpoint_under_way_and_writes_no_second_one() {
    let mut sim = mute(RunPlan { evaluation: None, ..plan(2) });
    sim.run_until(|effect| matches!(effect, Effect::SaveCheckpoint { .. }));
    sim.deliver(Event::StopRequested);
    assert_eq!(sim.outcome(), None);
    say(&mut sim, 1, None);
    assert_eq!(sim.outcome(), Some(Outcome::Stopped));
    assert_eq!(story(&sim), ["step 0", "save 1 a", "saved 1", "Stopped"]);
}

/// Its rank is lost in the rollout that follows: the next rank 0 writes the same policy at once. In an update there is
/// no such policy any more: the next one is written.
#[test]
fn a_checkpoint_that_was_lost_with_its_rank_is_written_by_another() {
    type Moment = fn(&Effect) -> bool;
    let wanted: [(Moment, &str); 2] = [
        (|effect| matches!(effect, Effect::StepStarted { step: StepIndex(1), .. }), "save 1 b"),
        (|effect| matches!(effect, Effect::TrainMinibatch { step: StepIndex(1), .. }), "save 2 b"),
    ];
    for (moment, expected) in wanted {
        let mut sim = mute(RunPlan { evaluation: None, ..plan(1) });
        sim.run_until(moment);
        let gone = Event::Disconnected { worker: "a".into(), reason: "killed".into() };
        sim.workers.get_mut(&"a".into()).unwrap().stop();
        sim.send_at(Source::Worker("a".into()), gone, 0);
        assert_eq!(sim.run(), Outcome::Completed);
        let story = story(&sim);
        let failed = story.iter().position(|line| line == "failed 1").unwrap();
        let next = story[failed..].iter().find(|line| line.starts_with("save "));
        assert_eq!(next.map(String::as_str), Some(expected), "{story:?}");
        assert_eq!(story[story.len() - 2..], ["saved 3", "Completed"]);
    }
}
