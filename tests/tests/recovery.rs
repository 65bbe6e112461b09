//! Ranks of a real run are killed or stopped at named points and replaced: the run ends as if nothing had
//! happened. Prints the table of docs/recovery.md.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that is not as expected")]

use g2rl_tests::cluster::{Cluster, Difference, Run, WorkerOptions};
use g2rl_tests::journal::{RolloutRow, StepShape};

const STEPS: u64 = 3;
const SHAPE: StepShape = StepShape { groups: 6, group_size: 4, minibatches: 2 };

/// Three steps with two ranks; one of them has a failpoint and is replaced once it is lost. The other goes on
/// alone until then if one rank is enough.
fn run(failpoint: Option<&str>, min_workers: u32) -> Run {
    let workers = format!("cluster.min_workers={min_workers}");
    let settings =
        ["run.steps=3", "checkpoint.every=2", "checkpoint.keep=2", "cluster.max_workers=3", &workers];
    let mut cluster = Cluster::start(&settings, None).unwrap();
    // The failing one is rank 0, which writes checkpoints and hosts the store.
    cluster.add("a-failing", &WorkerOptions { failpoint, ..WorkerOptions::default() }).unwrap();
    cluster.add("b-steady", &WorkerOptions::default()).unwrap();
    if failpoint.is_some() {
        cluster.wait_for("epoch ended").unwrap();
        cluster.add("c-replacement", &WorkerOptions::default()).unwrap();
    }
    let run = cluster.finish().unwrap_or_else(|error| panic!("{failpoint:?}: {error}"));
    run.journal().unwrap().check(STEPS, SHAPE).unwrap_or_else(|error| panic!("{failpoint:?}: {error}"));
    run
}

/// Rollouts without their advantages, which have the rounding of the policy.
fn rollouts(run: &Run) -> Vec<RolloutRow> {
    let rollouts = run.journal().unwrap().rollouts().unwrap();
    rollouts.into_iter().map(|row| RolloutRow { rewards: (row.rewards.0, 0.0), ..row }).collect()
}

#[test]
fn a_rank_killed_anywhere_changes_neither_rollouts_nor_weights() {
    let undisturbed = run(None, 2);
    assert!(undisturbed.recoveries().unwrap().is_empty());
    println!(
        "| point | ranks at least | phase | recovery s | rollouts redone | weights differ by | largest |"
    );
    println!("|---|---|---|---|---|---|---|");
    let compare = |failpoint: Option<&str>, min_workers: u32| {
        let run = run(failpoint, min_workers);
        let point = failpoint.unwrap_or("none");
        let Difference { norm, largest } = run.difference(&undisturbed, STEPS).unwrap();
        let recoveries = run.recoveries().unwrap();
        for recovery in &recoveries {
            let phase = recovery["phase"].as_str().unwrap();
            let (seconds, redone) = (&recovery["seconds"], &recovery["rollouts_redone"]);
            println!(
                "| {point} | {min_workers} | {phase} | {seconds} | {redone} | {norm:.1e} | {largest:.1e} |"
            );
        }
        assert_eq!(recoveries.is_empty(), failpoint.is_none(), "{point}");
        assert_eq!(rollouts(&run), rollouts(&undisturbed), "{point}");
        // One rank alone sums its gradients in another order.
        let bound = if min_workers == 1 { 1e-5 } else { 0.0 };
        assert!(largest <= bound, "{point}: {norm:e} {largest:e}");
    };
    compare(None, 2);
    for failpoint in [
        "idle:6",
        "join:1",
        "prefill:4",
        "rollout:5",
        "gradients:2",
        "all_reduce:2",
        "ready:2",
        "after_ready:1",
        "apply:2",
        "after_apply:3",
        "checkpoint:1",
        "checkpoint_write:1",
        "checkpoint_report:1",
        "rollout:30:stop",
        "all_reduce:3:stop",
    ] {
        compare(Some(failpoint), 2);
    }
    for failpoint in ["rollout:5", "all_reduce:2", "after_apply:3"] {
        compare(Some(failpoint), 1);
    }
}

/// Each rank has a part of the optimizer state that nobody else has.
#[test]
fn a_rank_lost_between_a_divided_step_and_its_gather_ends_the_run_which_resumes() {
    let settings = [
        "run.steps=3",
        "checkpoint.every=2",
        "optimizer.shard=true",
        "cluster.min_workers=2",
        "cluster.max_workers=2",
    ];
    let start = |cluster: &mut Cluster, failpoint: Option<&str>| {
        cluster.add("a", &WorkerOptions { failpoint, ..WorkerOptions::default() }).unwrap();
        cluster.add("b", &WorkerOptions::default()).unwrap();
    };
    let mut undisturbed = Cluster::start(&settings, None).unwrap();
    start(&mut undisturbed, None);
    let undisturbed = undisturbed.finish().unwrap();

    // Two mini-batches a step: the first of the third.
    let mut cluster = Cluster::start(&settings, None).unwrap();
    start(&mut cluster, Some("gather:5"));
    let (run, text) = cluster.fail().unwrap();
    assert!(text.contains("optimizer.shard") && text.contains("--resume"), "{text}");

    let mut cluster = Cluster::resume(run, &settings).unwrap();
    start(&mut cluster, None);
    let resumed = cluster.finish().unwrap();
    resumed.journal().unwrap().check(STEPS, SHAPE).unwrap();
    assert_eq!(rollouts(&resumed), rollouts(&undisturbed));
    assert_eq!(resumed.difference(&undisturbed, STEPS).unwrap().largest, 0.0);
}
