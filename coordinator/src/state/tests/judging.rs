//! A reward service that is down pauses the run; one that stays down ends it with a checkpoint.

use crate::state::{Effect, Event, Outcome, RunPlan};
use g2rl_common::ids::StepIndex;

use super::support::worker::Behavior;
use super::support::{Sim, plan};

const OUTAGE: &str = "reward service http://judge failed: 503";

fn two_workers(plan: RunPlan) -> Sim {
    let mut sim = Sim::new(plan, 0);
    sim.connect("a", 0, Behavior::default());
    sim.connect("b", 0, Behavior::default());
    sim
}

/// The first step's answers are with the judge, which takes 100 s; the deadline is 30 s.
fn judging() -> Sim {
    let mut sim = two_workers(RunPlan { evaluation: None, ..plan(2) });
    sim.judge_ms = 100_000;
    sim.run_until(|effect| matches!(effect, Effect::VerifyRollout { .. }));
    sim
}

#[test]
fn judging_has_a_deadline() {
    let text = judging().failure();
    assert!(text.contains("30000 ms") && text.contains("the verification of group"), "{text}");
}

#[test]
fn a_pause_has_none_and_says_what_is_down() {
    let mut sim = judging();
    sim.deliver(Event::JudgingPaused { cause: OUTAGE.to_owned() });
    let start = sim.now;
    while sim.now < start + 90_000 {
        assert!(sim.advance(), "{:?}", sim.outcome());
    }
    let status = sim.machine.status();
    assert!(status.waiting_for.contains(OUTAGE), "{}", status.waiting_for);
    // The time until here is not the judge's: the 10 s that are left are within its 30 s.
    sim.deliver(Event::JudgingResumed);
    assert!(!sim.machine.status().waiting_for.contains(OUTAGE));
    sim.judge_ms = 0;
    assert_eq!(sim.run(), Outcome::Completed);
}

#[test]
fn after_a_pause_the_deadline_holds_again() {
    let mut sim = judging();
    sim.deliver(Event::JudgingPaused { cause: OUTAGE.to_owned() });
    sim.deliver(Event::JudgingResumed);
    let text = sim.failure();
    assert!(text.contains("30000 ms") && !text.contains(OUTAGE), "{text}");
}

#[test]
fn a_pause_outlasts_its_collection() {
    // A stop gives the rollouts up; the pause must not keep the run.
    let mut sim = judging();
    sim.deliver(Event::JudgingPaused { cause: OUTAGE.to_owned() });
    sim.deliver(Event::StopRequested);
    assert_eq!(sim.run(), Outcome::Stopped);
}

#[test]
fn answers_that_cannot_be_judged_end_the_run_with_a_checkpoint() {
    let mut sim = two_workers(RunPlan { checkpoint_every: 0, evaluation: None, ..plan(2) });
    sim.run_until(|effect| matches!(effect, Effect::StepStarted { step: StepIndex(2), .. }));
    // Every rollout of a request says so; the first one counts.
    sim.deliver(Event::JudgingFailed { error: OUTAGE.to_owned() });
    sim.deliver(Event::JudgingFailed { error: "another".to_owned() });
    let text = sim.failure();
    assert!(text.contains("rollout of step 2") && text.contains(OUTAGE), "{text}");
    let saved = |effect: &Effect| matches!(effect, Effect::CheckpointWritten { step: StepIndex(2) });
    assert!(sim.log.iter().any(saved));
    let told = |effect: &&Effect| matches!(effect, Effect::Shutdown { failed: true, .. });
    assert_eq!(sim.log.iter().filter(told).count(), 2);
}
