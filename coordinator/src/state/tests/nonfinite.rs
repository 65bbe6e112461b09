//! Losses and gradients that are not finite: no rank applies them, nothing is computed for ever.

use crate::state::{Effect, Outcome, ResumeState, RunPlan};
use g2rl_common::ids::{MinibatchIndex, RolloutId, StepIndex};

use super::support::worker::{Behavior, Command, Fault};
use super::support::{Sim, plan};

/// 3 steps of 2 mini-batches of 8 sequences on ranks a and b.
fn two() -> Sim {
    let mut sim = Sim::new(RunPlan { evaluation: None, ..plan(2) }, 0);
    sim.connect("a", 0, Behavior::default());
    sim.connect("b", 0, Behavior::default());
    sim
}

/// Step, mini-batch and rollouts of what was skipped.
fn skipped(sim: &Sim) -> Vec<(u64, u64, Vec<RolloutId>)> {
    let skipped = sim.log.iter().filter_map(|effect| match effect {
        Effect::MinibatchSkipped { step, minibatch, rollouts } => {
            Some((step.0, minibatch.0, rollouts.clone()))
        }
        _ => None,
    });
    skipped.collect()
}

/// Policy version and mean norm after each step.
fn steps(sim: &Sim) -> Vec<(u64, f64)> {
    let steps = sim.log.iter().filter_map(|effect| match effect {
        Effect::StepCompleted(record) => Some((record.policy_version.0, record.gradient_norm)),
        _ => None,
    });
    steps.collect()
}

/// The rollouts that a rank trains on in a mini-batch.
fn share(sim: &Sim, of: (u64, u64), name: &str) -> Vec<RolloutId> {
    let share = sim.log.iter().find_map(|effect| match effect {
        Effect::TrainMinibatch { worker, step, minibatch, sequences, .. }
            if worker.0 == name && (step.0, minibatch.0) == of =>
        {
            Some(sequences.iter().map(|order| order.rollout).collect())
        }
        _ => None,
    });
    share.expect("every rank has a share")
}

fn first_of_step_1(step: StepIndex, minibatch: MinibatchIndex) -> bool {
    (step.0, minibatch.0) == (1, 0)
}

#[test]
fn one_rank_names_a_rollout_and_all_skip_the_mini_batch() {
    let mut sim = two();
    sim.workers.get_mut(&"b".into()).unwrap().broken = first_of_step_1;
    assert_eq!(sim.run(), Outcome::Completed);
    assert_eq!(skipped(&sim), [(1, 0, vec![share(&sim, (1, 0), "b")[0]])]);
    // 2 + 1 + 2 optimizer steps; the skipped one is in no mean.
    assert_eq!(steps(&sim), [(2, 2.0), (3, 2.0), (5, 2.0)]);
    assert_eq!(sim.workers.values().map(|worker| worker.version.0).collect::<Vec<_>>(), [5, 5]);
}

#[test]
fn a_sum_that_is_not_finite_names_all_rollouts() {
    let mut sim = two();
    for worker in sim.workers.values_mut() {
        worker.norm = |step, minibatch| if first_of_step_1(step, minibatch) { f64::NAN } else { 2.0 };
    }
    assert_eq!(sim.run(), Outcome::Completed);
    let mut all = [share(&sim, (1, 0), "a"), share(&sim, (1, 0), "b")].concat();
    all.sort_unstable();
    assert_eq!(all.len(), 8);
    assert_eq!(skipped(&sim), [(1, 0, all)]);
    assert_eq!(steps(&sim), [(2, 2.0), (3, 2.0), (5, 2.0)]);
}

/// A step that applied nothing leaves the policy: prompts that come again get other random streams, also
/// after a resume.
#[test]
fn a_step_whose_mini_batches_were_all_skipped_leaves_the_policy() {
    let mut sim = two();
    sim.workers.get_mut(&"a".into()).unwrap().broken = |step, _| step.0 == 1;
    assert_eq!(sim.run(), Outcome::Completed);
    assert_eq!(steps(&sim), [(2, 2.0), (2, 0.0), (4, 2.0)]);
    let states: Vec<ResumeState> = sim
        .log
        .iter()
        .filter_map(|effect| match effect {
            Effect::SaveCheckpoint { state, .. } => Some(*state),
            _ => None,
        })
        .collect();
    // After 2 steps of 4 prompts: the policy is the one that came to be after the first 4.
    assert_eq!(
        (states[0].policy_version.0, states[0].policy_since_prompt, states[0].prompts_drawn),
        (2, 4, 8)
    );
}

#[test]
fn a_rank_that_is_lost_afterwards_does_not_bring_a_skipped_mini_batch_back() {
    let mut sim = Sim::new(RunPlan { evaluation: None, ..plan(1) }, 0);
    let fault = Some((Fault::Disconnect, Command::Train, 3));
    sim.connect("a", 0, Behavior::default()).broken = first_of_step_1;
    sim.connect("b", 0, Behavior { fault, ..Behavior::default() });
    assert_eq!(sim.run(), Outcome::Completed);
    assert!(sim.workers[&"b".into()].faulty && sim.machine.status().epochs_failed == 1);
    assert_eq!(skipped(&sim).len(), 1);
    assert_eq!(steps(&sim), [(2, 2.0), (3, 2.0), (5, 2.0)]);
}

/// The third in a row is the first of step 1: the step is completed and saved, then the run ends.
#[test]
fn too_many_in_a_row_end_the_run_with_a_checkpoint_and_the_rollouts() {
    let mut sim = two();
    sim.workers.get_mut(&"b".into()).unwrap().broken = |step, minibatch| step.0 == 0 || minibatch.0 == 0;
    let text = sim.failure();
    let named = skipped(&sim)[2].2[0].to_string();
    for part in ["3 mini-batches in a row (update.max_nonfinite)", "step 1, mini-batch 0", &named] {
        assert!(text.contains(part), "{part:?} is not in {text:?}");
    }
    assert_eq!(steps(&sim), [(0, 0.0), (1, 2.0)]);
    let saved = |effect: &Effect| matches!(effect, Effect::CheckpointWritten { step: StepIndex(2) });
    assert!(sim.log.iter().any(saved));

    // One that is applied in between begins the count again.
    let mut sim = two();
    sim.workers.get_mut(&"b".into()).unwrap().broken = |_, minibatch| minibatch.0 == 0;
    assert_eq!(sim.run(), Outcome::Completed);
    assert_eq!(skipped(&sim).len(), 3);
}
