//! The coordinator of a real run is killed at named points and started again: the run ends as if nothing had
//! happened. Workers keep their policy; with all of them gone too the last checkpoint is gone on from.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that is not as expected")]

use std::path::Path;
use std::time::Instant;

use g2rl_tests::cluster::{Cluster, CoordinatorOptions, DEADLINE, Run, WorkerOptions};
use g2rl_tests::journal::{RolloutRow, StepShape};
use g2rl_tests::process::{lives, local_workers, send_signal};
use g2rl_tests::until;

const STEPS: u64 = 3;
const SHAPE: StepShape = StepShape { groups: 6, group_size: 4, minibatches: 2 };

/// Of runs of this many ranks.
fn settings(ranks: usize) -> Vec<String> {
    [
        format!("run.steps={STEPS}"),
        "checkpoint.every=2".to_owned(),
        "checkpoint.keep=2".to_owned(),
        format!("cluster.min_workers={ranks}"),
        format!("cluster.max_workers={ranks}"),
        // A worker needs up to two seconds to try again.
        "cluster.heartbeat_timeout_ms=8000".to_owned(),
    ]
    .to_vec()
}

fn start(settings: &[String], failpoint: Option<&str>, arguments: &[&str]) -> Cluster {
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    let options = CoordinatorOptions { settings: &settings, host: None, failpoint, arguments };
    Cluster::start_with(&options).unwrap()
}

/// Workers of rank 0 and so on.
fn add(cluster: &mut Cluster, ranks: usize) {
    for name in &["a", "b", "c", "d"][..ranks] {
        cluster.add(name, &WorkerOptions::default()).unwrap();
    }
}

fn rollouts(run: &Run) -> Vec<RolloutRow> {
    let journal = run.journal().unwrap();
    journal.check(STEPS, SHAPE).unwrap();
    journal.rollouts().unwrap()
}

/// A position is written at once.
fn has_a_log(run: &Path) -> bool {
    let Ok(entries) = std::fs::read_dir(run.join("wal")) else { return false };
    entries.flatten().any(|entry| entry.metadata().is_ok_and(|file| file.len() > 0))
}

/// Two ranks whose coordinator may be killed once; the seconds until all ranks are in place again.
fn run(failpoint: Option<&str>) -> (Run, f64) {
    let mut cluster = start(&settings(2), failpoint.filter(|point| *point != "idle"), &[]);
    if failpoint == Some("idle") {
        let there = until(DEADLINE, || has_a_log(&cluster.path()).then_some(()));
        assert!(there.is_some(), "it does not record where it begins");
        cluster.kill_coordinator().unwrap();
        cluster.restart(None).unwrap();
    }
    add(&mut cluster, 2);
    let mut seconds = 0.0;
    if failpoint.is_some_and(|point| point != "idle") {
        cluster.coordinator_is_killed().unwrap();
        let since = Instant::now();
        cluster.restart(None).unwrap();
        cluster.wait_for("goes on where its coordinator stopped").unwrap();
        cluster.wait_for("all ranks are in place").unwrap();
        seconds = since.elapsed().as_secs_f64();
    }
    let run = cluster.finish().unwrap_or_else(|error| panic!("{failpoint:?}: {error}"));
    assert!(!run.log().contains("goes on from its checkpoint"), "{failpoint:?}:\n{}", run.log());
    (run, seconds)
}

#[test]
fn a_coordinator_killed_anywhere_changes_neither_rollouts_nor_weights() {
    let (undisturbed, _) = run(None);
    println!("| killed | all ranks in place again, s | weight difference |\n|---|---|---|");
    for failpoint in [
        "idle",
        "accepted:5",
        "accepted:40",
        "told:2",
        "after_apply:3",
        "done:2",
        "done:6",
        "position:2",
        "checkpoint:1",
    ] {
        let (run, seconds) = run(Some(failpoint));
        let apart = run.difference(&undisturbed, STEPS).unwrap();
        println!("| {failpoint} | {seconds:.2} | {:.1e} |", apart.norm);
        assert_eq!(rollouts(&run), rollouts(&undisturbed), "{failpoint}");
        assert_eq!(apart.largest, 0.0, "{failpoint}");
    }
}

/// What a worker that joins reads is there, however many checkpoints came after it.
#[test]
fn a_worker_joins_long_after_a_resume() {
    const STEPS: u64 = 9;
    let own = ["run.steps=9", "checkpoint.every=1", "checkpoint.keep=1"].map(str::to_owned);
    let mut cluster = start(&[&settings(2)[..], &own].concat(), None, &[]);
    add(&mut cluster, 2);
    cluster.wait_for("checkpoint written").unwrap();
    cluster.kill_coordinator().unwrap();
    cluster.restart(None).unwrap();
    for _ in 0..3 {
        cluster.wait_for("checkpoint written").unwrap();
    }
    cluster.signal("a", "-KILL").unwrap();
    cluster.wait_for("epoch ended").unwrap();
    cluster.add("c", &WorkerOptions::default()).unwrap();
    cluster.finish().unwrap().journal().unwrap().check(STEPS, SHAPE).unwrap();
}

/// Runs to the middle of the third step, then everything is killed; the last checkpoint is the second step's.
fn all_killed(settings: &[String], ranks: usize) -> Run {
    let mut cluster = start(settings, Some("told:6"), &[]);
    add(&mut cluster, ranks);
    cluster.coordinator_is_killed().unwrap();
    // It may still be written.
    let checkpoint = cluster.path().join("checkpoints/step-000002");
    assert!(until(DEADLINE, || checkpoint.exists().then_some(())).is_some(), "no checkpoint");
    cluster.abandon()
}

/// Goes on with so many new workers to the end.
fn go_on(run: Run, settings: &[String], ranks: usize) -> Run {
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    let mut cluster = Cluster::resume(run, &settings).unwrap();
    add(&mut cluster, ranks);
    cluster.wait_for("no worker holds the policy").unwrap();
    cluster.finish().unwrap()
}

#[test]
fn with_all_processes_gone_the_last_checkpoint_gives_the_same_bits() {
    let mut cluster = start(&settings(2), None, &[]);
    add(&mut cluster, 2);
    let whole = cluster.finish().unwrap();
    let run = go_on(all_killed(&settings(2), 2), &settings(2), 2);
    assert_eq!(rollouts(&run), rollouts(&whole));
    for file in ["model.safetensors", "optimizer.safetensors"] {
        let bytes = |run: &Run| std::fs::read(run.checkpoint(STEPS, file)).unwrap();
        assert!(bytes(&run) == bytes(&whole), "{file} is not the same");
    }
}

#[test]
fn a_checkpoint_of_two_ranks_is_gone_on_from_by_any_number() {
    let (undisturbed, _) = run(None);
    for ranks in [1, 3, 4] {
        let run = go_on(all_killed(&settings(2), 2), &settings(ranks), ranks);
        assert_eq!(rollouts(&run), rollouts(&undisturbed), "{ranks} ranks");
        let apart = run.difference(&undisturbed, STEPS).unwrap();
        println!("{ranks} ranks: {apart:?}");
        // Gradients of other ranks are summed in another order.
        assert!(apart.norm < 1e-6 && apart.largest < 1e-4, "{ranks} ranks: {apart:?}");
    }
}

#[test]
fn local_workers_are_taken_over_or_replaced() {
    let mut cluster = start(&settings(2), Some("told:2"), &["--local-workers", "2"]);
    cluster.coordinator_is_killed().unwrap();
    let before = local_workers(&cluster.path(), 2).unwrap();
    assert!(before.iter().all(|&process| lives(process)), "workers outlive their coordinator");

    // One of them is stopped: it can answer nobody.
    send_signal(before[1], "-STOP").unwrap();
    cluster.restart(None).unwrap();
    let run = cluster.finish().unwrap();
    assert_eq!(run.log().matches("is taken over").count(), 1, "{}", run.log());
    assert_eq!(run.log().matches("worker of an earlier coordinator is killed").count(), 1, "{}", run.log());
    run.journal().unwrap().check(STEPS, SHAPE).unwrap();
    let after = local_workers(&run.path(), 2).unwrap();
    assert!(after[0] == before[0] && after[1] != before[1], "{before:?} {after:?}");
    let all = [before, after].concat();
    let gone = until(DEADLINE, || all.iter().all(|&process| !lives(process)).then_some(()));
    assert!(gone.is_some(), "a worker is left behind");
}

#[test]
fn a_run_directory_has_one_coordinator() {
    let cluster = start(&settings(1), None, &[]);
    for argument in ["--resume", "--overwrite"] {
        let rival = cluster.rival(argument).unwrap();
        assert!(!rival.success && rival.text.contains("another coordinator works in"), "{}", rival.text);
    }
}
