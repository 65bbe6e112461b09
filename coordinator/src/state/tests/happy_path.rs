//! Two simulated workers, nothing goes wrong: the order of phases, the counts, and resuming.

use std::collections::BTreeSet;

use super::support::worker::{Behavior, response_tokens};
use super::support::{Sim, plan};
use crate::state::{
    Effect, EvaluationPlan, Event, Millis, Outcome, ResponseSource, ResumeState, RunPhase, RunPlan,
    StepRecord,
};
use g2rl_common::config::{ImitationConfig, LearningRateSchedule};
use g2rl_common::ids::{GroupId, PolicyVersion, Rank, StepIndex, WorkerId};
use g2rl_common::rollout::Purpose;

/// The phases of a run, one word each.
fn phases(log: &[Effect]) -> Vec<String> {
    let phase = |effect: &Effect| match effect {
        Effect::Welcome { worker } => Some(format!("welcome {worker}")),
        Effect::PrepareEpoch { worker, epoch, host } => {
            Some(format!("{} {epoch} {worker}", if *host { "host" } else { "prepare" }))
        }
        Effect::FormEpoch { worker, plan } => Some(format!("form {} {worker} as {}", plan.epoch, plan.rank)),
        Effect::EpochStarted { epoch, .. } => Some(format!("epoch {epoch}")),
        Effect::EvaluationStarted { step, rollouts } => Some(format!("evaluate {step}: {rollouts}")),
        Effect::EvaluationCompleted { step, .. } => Some(format!("evaluated {step}")),
        Effect::StepStarted { step, rollouts } => Some(format!("step {step}: {rollouts}")),
        Effect::TrainMinibatch { worker, step, minibatch, .. } => {
            Some(format!("train {step}.{minibatch} {worker}"))
        }
        Effect::Apply { worker, step, minibatch, .. } => Some(format!("apply {step}.{minibatch} {worker}")),
        Effect::StepCompleted(record) => {
            Some(format!("stepped {} to {}", record.step, record.policy_version))
        }
        Effect::SaveCheckpoint { worker, step, .. } => Some(format!("save {step} {worker}")),
        Effect::CheckpointWritten { step } => Some(format!("saved {step}")),
        Effect::Shutdown { worker, failed, .. } => Some(format!("shutdown {worker} {failed}")),
        Effect::Finished(outcome) => Some(format!("{outcome:?}")),
        _ => None,
    };
    log.iter().filter_map(phase).collect()
}

fn records(log: &[Effect]) -> impl Iterator<Item = &StepRecord> {
    log.iter().filter_map(|effect| match effect {
        Effect::StepCompleted(record) => Some(record),
        _ => None,
    })
}

fn two_workers(plan: RunPlan) -> Sim {
    let mut sim = Sim::new(plan, 0);
    // b comes first: ranks go by name, not by arrival.
    sim.connect("b", 0, Behavior::default());
    sim.connect("a", 5, Behavior::default());
    sim
}

#[test]
fn three_steps_with_two_workers() {
    let mut sim = two_workers(plan(2));
    assert_eq!(sim.run(), Outcome::Completed);
    let mut expected = vec![
        "welcome b".to_owned(),
        "welcome a".to_owned(),
        "host 1 a".to_owned(),
        "prepare 1 b".to_owned(),
        "form 1 a as 0".to_owned(),
        "form 1 b as 1".to_owned(),
        "epoch 1".to_owned(),
        // 5 problems x 2 samples.
        "evaluate 0: 10".to_owned(),
        "evaluated 0".to_owned(),
    ];
    for step in 0..3 {
        // 4 prompts x 4 rollouts, cut into 2 mini-batches of 8.
        expected.push(format!("step {step}: 16"));
        // Written while the next step's rollouts are generated.
        if step == 2 {
            expected.push("saved 2".to_owned());
        }
        for minibatch in 0..2 {
            for command in ["train", "apply"] {
                expected.extend(["a", "b"].map(|worker| format!("{command} {step}.{minibatch} {worker}")));
            }
        }
        expected.push(format!("stepped {step} to {}", 2 * (step + 1)));
        // Every 2 steps, and at the end.
        if step > 0 {
            expected.push(format!("save {} a", step + 1));
        }
    }
    let end =
        ["evaluate 3: 10", "saved 3", "evaluated 3", "shutdown a false", "shutdown b false", "Completed"];
    expected.extend(end.map(str::to_owned));
    assert_eq!(phases(&sim.log), expected);

    let count = |wanted: fn(&Effect) -> bool| sim.log.iter().filter(|effect| wanted(effect)).count();
    // 3 steps x 16 + 2 evaluations x 10.
    assert_eq!(count(|effect| matches!(effect, Effect::VerifyRollout { .. })), 68);
    // 3 steps x 4 groups; evaluations are not shaped.
    assert_eq!(count(|effect| matches!(effect, Effect::ShapeGroup { .. })), 12);
    assert_eq!(count(|effect| matches!(effect, Effect::StaleMessage { .. })), 0);
    for worker in ["a", "b"].map(WorkerId::from) {
        let leased = |effect: &&Effect| matches!(effect, Effect::Lease { worker: to, .. } if *to == worker);
        assert!(sim.log.iter().filter(leased).count() >= 5, "{worker} got a fair part of the work");
    }
}

#[test]
fn a_step_record_adds_up() {
    let mut sim = two_workers(plan(2));
    sim.run();
    for record in records(&sim.log) {
        assert_eq!(record.groups.len(), 4);
        assert_eq!((record.stats.sequences, record.first_minibatch_stats.sequences), (16, 8));
        assert_eq!(record.stats.tokens, record.response_tokens);
        assert_eq!(record.gradient_norm, 2.0);
        assert_eq!(record.learning_rate, 1e-6);
        assert!(record.times.rollout_ms > 0 && record.times.update_ms > 0);
    }
}

#[test]
fn imitation_takes_one_given_response_of_each_prompt() {
    let plan = RunPlan {
        responses: ResponseSource::Given,
        group_size: 1,
        evaluation: None,
        sequences_per_minibatch: 0,
        imitation_coef: 0.5,
        ..plan(2)
    };
    let mut sim = two_workers(plan);
    assert_eq!(sim.run(), Outcome::Completed);
    let mut step_weights = [0.0f64; 3];
    for effect in &sim.log {
        let Effect::TrainMinibatch { step, sequences, .. } = effect else { continue };
        for sequence in sequences {
            assert_eq!(sequence.policy_weight, 0.0);
            let tokens = f64::from(response_tokens(sequence.rollout));
            step_weights[step.0 as usize] += f64::from(sequence.imitation_weight) * tokens;
        }
    }
    // The token mean over the step: weights of all tokens add up to the coefficient.
    for weight in step_weights {
        assert!((weight - 0.5).abs() < 1e-6, "{weight}");
    }
}

#[test]
fn given_solutions_are_imitated_beside_the_policys_answers() {
    let imitation = ImitationConfig { solutions_per_step: 2, schedule: LearningRateSchedule::Linear };
    let plan =
        RunPlan { imitation, imitation_coef: 0.5, evaluation: None, sequences_per_minibatch: 0, ..plan(2) };
    let mut sim = two_workers(plan);
    assert_eq!(sim.run(), Outcome::Completed);
    let mut given = BTreeSet::new();
    let mut imitated = [0.0f64; 3];
    let mut policy = [0.0f64; 3];
    for effect in &sim.log {
        match effect {
            Effect::VerifyRollout { rollout, source: ResponseSource::Given, .. } => {
                given.insert(rollout.group);
            }
            Effect::ShapeGroup { group, .. } => assert!(!given.contains(group), "a solution is not shaped"),
            Effect::TrainMinibatch { step, sequences, .. } => {
                for order in sequences {
                    let tokens = f64::from(response_tokens(order.rollout));
                    let is_given = given.contains(&order.rollout.group);
                    assert_eq!(order.policy_weight == 0.0, is_given);
                    imitated[step.0 as usize] += f64::from(order.imitation_weight) * tokens;
                    policy[step.0 as usize] += f64::from(order.policy_weight) * tokens;
                }
            }
            Effect::StepCompleted(record) => {
                assert_eq!((record.groups.len(), record.imitated.len()), (4, 2));
                assert_eq!(record.stats.sequences, 4 * 4 + 2);
            }
            _ => {}
        }
    }
    // Token means: all weights add up to 1, and to the coefficient on its line to 0 after 3 steps.
    for (step, (policy, imitated)) in policy.iter().zip(imitated).enumerate() {
        assert!((policy - 1.0).abs() < 1e-6, "step {step}: {policy}");
        assert!((imitated - 0.5 * (1.0 - step as f64 / 3.0)).abs() < 1e-6, "step {step}: {imitated}");
    }
}

#[test]
fn skipped_groups_are_replaced_up_to_the_limit() {
    // Of groups 0, 3, 6 and so on nothing is learnt.
    let plan = RunPlan { refill_to: Some(12), evaluation: None, train_problems: 40, ..plan(2) };
    let mut sim = two_workers(plan.clone());
    sim.skip = |group| group.0 % 3 == 0;
    assert_eq!(sim.run(), Outcome::Completed);
    for record in records(&sim.log) {
        let kept = record.groups.iter().filter(|group| group.0 % 3 != 0).count();
        assert_eq!((kept, record.stats.sequences), (4, 16), "{:?}", record.groups);
    }
    // Nothing is ever learnt: each step gives up after 12 prompts, and applies nothing.
    let mut sim = two_workers(plan);
    sim.skip = |_| true;
    assert_eq!(sim.run(), Outcome::Completed);
    let found: Vec<_> =
        records(&sim.log).map(|record| (record.groups.len(), record.stats.sequences)).collect();
    assert_eq!(found, [(12, 0); 3]);
}

#[test]
fn a_run_without_steps_evaluates_once() {
    let plan = RunPlan { steps: 0, train_problems: 0, ..plan(1) };
    let mut sim = Sim::new(plan, 0);
    sim.connect("a", 0, Behavior::default());
    assert_eq!(sim.run(), Outcome::Completed);
    let log = phases(&sim.log);
    assert_eq!(
        log[4..],
        ["evaluate 0: 10", "evaluated 0", "shutdown a false", "Completed"].map(str::to_owned)
    );
}

#[test]
fn evaluations_and_checkpoints_come_when_due() {
    let evaluation = EvaluationPlan { problems: 2, samples: 1, every: 2, at_start: false, at_end: false };
    let plan = RunPlan { steps: 5, evaluation: Some(evaluation), checkpoint_every: 0, ..plan(2) };
    let mut sim = two_workers(plan);
    sim.run();
    let log = phases(&sim.log);
    let of = |word: &str| log.iter().filter(|line| line.starts_with(word)).cloned().collect::<Vec<_>>();
    assert_eq!(of("evaluated"), ["evaluated 2", "evaluated 4"]);
    assert_eq!(of("saved"), ["saved 5"]);
}

#[test]
fn a_step_with_nothing_to_train_on_applies_nothing() {
    let mut sim = two_workers(plan(2));
    // Groups 0 to 4 are the evaluation's; step 0 has 5 to 8.
    sim.skip = |group| (5..9).contains(&group.0);
    assert_eq!(sim.run(), Outcome::Completed);
    let log = phases(&sim.log);
    let start = log.iter().position(|line| line == "step 0: 16").unwrap();
    assert_eq!(log[start + 1], "stepped 0 to 0");
    assert!(log.contains(&"stepped 2 to 4".to_owned()));
}

#[test]
fn a_prompt_that_is_too_long_is_left_out() {
    let mut sim = two_workers(plan(2));
    for worker in sim.workers.values_mut() {
        worker.too_long = |index| index == 3;
    }
    assert_eq!(sim.run(), Outcome::Completed);
    let skipped: Vec<u32> = sim
        .log
        .iter()
        .filter_map(|effect| match effect {
            Effect::PromptSkipped { problem, .. } => Some(problem.index),
            _ => None,
        })
        .collect();
    // Once in each evaluation, and once or twice in the 12 draws from 10 training problems.
    assert!((3..=4).contains(&skipped.len()), "{skipped:?}");
    assert!(skipped.iter().all(|&index| index == 3));
    let evaluated = sim.log.iter().find_map(|effect| match effect {
        Effect::EvaluationCompleted { groups, .. } => Some(groups.len()),
        _ => None,
    });
    assert_eq!(evaluated, Some(4));
}

/// What decides the random streams of each step's rollouts.
fn streams(log: &[Effect]) -> Vec<Vec<(u32, u32, PolicyVersion)>> {
    let mut steps: Vec<Vec<_>> = Vec::new();
    for effect in log {
        match effect {
            Effect::StepStarted { .. } => steps.push(Vec::new()),
            Effect::Lease { order, .. } if order.problem.purpose == Purpose::Train => {
                for index in order.first_rollout..order.first_rollout + order.rollouts {
                    let stream = order.stream_offset + index;
                    steps.last_mut().expect("a lease follows a start").push((
                        order.problem.index,
                        stream,
                        order.policy_version,
                    ));
                }
            }
            _ => {}
        }
    }
    for step in &mut steps {
        step.sort_unstable();
    }
    steps
}

/// 3 problems for 4 prompts a step, and every second step applies nothing: repeated prompts must
/// get other streams, also across steps and across a resume.
fn repeating_plan() -> RunPlan {
    RunPlan { steps: 6, train_problems: 3, evaluation: None, checkpoint_every: 1, ..plan(2) }
}

#[test]
fn a_resumed_run_draws_what_an_uninterrupted_one_draws() {
    let skip = |group: GroupId| (group.0 / 4).is_multiple_of(2);
    let mut whole = two_workers(repeating_plan());
    whole.skip = skip;
    assert_eq!(whole.run(), Outcome::Completed);
    let expected = streams(&whole.log);
    assert_eq!(expected.len(), 6);
    let mut all: Vec<_> = expected.concat();
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), 6 * 16, "no two rollouts share a stream");

    let checkpoints: Vec<ResumeState> = whole
        .log
        .iter()
        .filter_map(|effect| match effect {
            Effect::SaveCheckpoint { state, .. } => Some(*state),
            _ => None,
        })
        .collect();
    assert_eq!(checkpoints.len(), 6);
    for state in checkpoints {
        let mut resumed = two_workers(RunPlan { resume: Some(state), ..repeating_plan() });
        resumed.skip = skip;
        assert_eq!(resumed.run(), Outcome::Completed);
        assert_eq!(streams(&resumed.log), expected[state.steps_done.0 as usize..]);
    }
}

#[test]
fn a_new_policy_begins_the_streams_again() {
    let mut sim = two_workers(repeating_plan());
    sim.run();
    // 4 draws from 3 problems: one comes twice in a step, none a third time.
    for step in streams(&sim.log) {
        assert_eq!(step.iter().map(|&(_, stream, _)| stream).max(), Some(7));
    }
}

#[test]
fn a_stop_gives_up_rollouts_and_saves_the_completed_steps() {
    let mut sim = two_workers(RunPlan { checkpoint_every: 0, ..repeating_plan() });
    sim.run_until(|effect| matches!(effect, Effect::StepStarted { step: StepIndex(2), .. }));
    sim.deliver(Event::StopRequested);
    assert_eq!(sim.run(), Outcome::Stopped);
    let log = phases(&sim.log);
    let end = ["step 2: 16", "save 2 a", "saved 2", "shutdown a false", "shutdown b false", "Stopped"];
    assert_eq!(log[log.len() - 6..], end.map(str::to_owned));
    let state = sim.log.iter().find_map(|effect| match effect {
        Effect::SaveCheckpoint { state, .. } => Some(*state),
        _ => None,
    });

    let mut whole = two_workers(repeating_plan());
    whole.run();
    let mut resumed = two_workers(RunPlan { resume: state, ..repeating_plan() });
    assert_eq!(resumed.run(), Outcome::Completed);
    assert_eq!(streams(&resumed.log), streams(&whole.log)[2..]);
}

#[test]
fn a_stop_in_an_update_completes_the_step() {
    let mut sim = two_workers(plan(2));
    sim.run_until(|effect| matches!(effect, Effect::TrainMinibatch { .. }));
    sim.deliver(Event::StopRequested);
    assert_eq!(sim.run(), Outcome::Stopped);
    let log = phases(&sim.log);
    let end = ["stepped 0 to 2", "save 1 a", "saved 1", "shutdown a false", "shutdown b false", "Stopped"];
    assert_eq!(log[log.len() - 6..], end.map(str::to_owned));
}

#[test]
fn a_supervised_run_that_is_stopped_leaves_its_workers_to_its_next_coordinator() {
    let mut plan = plan(2);
    plan.cluster.keep_workers = true;
    let mut sim = two_workers(plan.clone());
    sim.run_until(|effect| matches!(effect, Effect::TrainMinibatch { .. }));
    sim.deliver(Event::StopRequested);
    assert_eq!(sim.run(), Outcome::Stopped);
    assert_eq!(phases(&sim.log).last_chunk(), Some(&["saved 1", "Stopped"].map(str::to_owned)));
    // At its end they are told.
    let mut sim = two_workers(plan);
    assert_eq!(sim.run(), Outcome::Completed);
    assert!(phases(&sim.log).contains(&"shutdown b false".to_owned()));
}

#[test]
fn a_worker_that_comes_later_waits_as_a_spare_and_may_leave() {
    let mut sim = two_workers(plan(2));
    sim.run_until(|effect| matches!(effect, Effect::EpochStarted { .. }));
    sim.connect("c", 1, Behavior::default());
    sim.run_until(|effect| matches!(effect, Effect::Welcome { .. }));
    let status = sim.machine.status();
    assert_eq!(status.waiting_workers, [WorkerId::from("c")]);
    assert_eq!(status.ranks.iter().map(|rank| rank.rank).collect::<Vec<_>>(), [Rank(0), Rank(1)]);
    sim.deliver(Event::Disconnected { worker: "c".into(), reason: "gone".into() });
    assert_eq!(sim.run(), Outcome::Completed);
}

#[test]
fn a_status_says_what_is_waited_for() {
    let mut sim = two_workers(plan(2));
    assert_eq!(sim.machine.next_deadline(), Some(Millis(0)), "a tick starts the clock");
    sim.deliver(Event::Tick);
    let status = sim.machine.status();
    assert_eq!((status.phase, status.waiting_for.as_str()), (RunPhase::Gathering, "workers (0 of 2)"));
    sim.run_until(|effect| matches!(effect, Effect::EvaluationStarted { .. }));
    let status = sim.machine.status();
    assert_eq!(status.phase, RunPhase::Evaluation(StepIndex(0)));
    // 5 whole groups of 2 on 2 ranks with 4 slots and one more.
    assert_eq!((status.outstanding_rollouts, status.queued_rollouts, status.free_slots), (8, 2, 0));
    assert!(status.waiting_for.contains("rank 1 (worker b): 2 rollouts of group"), "{}", status.waiting_for);
}
