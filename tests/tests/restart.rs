//! The coordinator of a real run is killed at named points and started again: the run ends as if nothing had
//! happened. Workers keep their policy; with all of them gone too the last checkpoint is gone on from.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that is not as expected")]

use std::path::{Path, PathBuf};
use std::time::Instant;

use g2rl_tests::process::{lives, local_workers, send_signal};
use g2rl_tests::scenario::{
    DEADLINE, Guard, Running, checkpoint, difference, rollouts, settings, start_worker,
};
use g2rl_tests::until;

/// A run's directory, and what it lies in.
struct Left {
    _dir: tempfile::TempDir,
    run: PathBuf,
}

/// Workers of rank 0 and so on.
fn workers(url: &str, count: usize, logs: &Path) -> Vec<Guard> {
    ["a", "b", "c", "d"][..count].iter().map(|name| start_worker(url, name, None, logs).unwrap()).collect()
}

fn cluster(ranks: usize) -> Vec<String> {
    let least = format!("cluster.min_workers={ranks}");
    let most = format!("cluster.max_workers={ranks}");
    // A worker needs up to two seconds to try again.
    vec![least, most, "cluster.heartbeat_timeout_ms=8000".into()]
}

fn arguments(dir: &Path, ranks: usize) -> Vec<String> {
    let cluster = cluster(ranks);
    settings(dir, &cluster.iter().map(String::as_str).collect::<Vec<_>>()).unwrap()
}

fn resumed(arguments: &[String]) -> Vec<String> {
    [arguments, &["--resume".to_owned()]].concat()
}

/// A position is written at once.
fn has_a_log(run: &Path) -> bool {
    let Ok(entries) = std::fs::read_dir(run.join("wal")) else { return false };
    entries.flatten().any(|entry| entry.metadata().is_ok_and(|file| file.len() > 0))
}

/// Three steps with two ranks; the coordinator may be killed once.
fn run(failpoint: Option<&str>) -> (Left, f64) {
    let dir = tempfile::tempdir().unwrap();
    let arguments = arguments(dir.path(), 2);
    let mut running = Running::start(&arguments, failpoint.filter(|point| *point != "idle")).unwrap();
    let url = running.url().unwrap();
    if failpoint == Some("idle") {
        let there = until(DEADLINE, || has_a_log(&dir.path().join("run")).then_some(()));
        assert!(there.is_some(), "it does not record where it begins");
        running.kill().unwrap();
        running = Running::start(&resumed(&arguments), None).unwrap();
        assert_eq!(running.url().unwrap(), url, "workers find it where it was");
    }
    let _workers = workers(&url, 2, dir.path());
    let mut seconds = 0.0;
    if failpoint.is_some_and(|point| point != "idle") {
        let (status, text) = running.end().unwrap();
        assert!(!status.success() && status.code().is_none(), "{failpoint:?} is not reached:\n{text}");
        let since = Instant::now();
        running = Running::start(&resumed(&arguments), None).unwrap();
        assert_eq!(running.url().unwrap(), url, "workers find it where it was");
        running.wait_for("goes on where its coordinator stopped").unwrap();
        running.wait_for("all ranks are in place").unwrap();
        seconds = since.elapsed().as_secs_f64();
    }
    let (status, text) = running.end().unwrap();
    assert!(status.success(), "{failpoint:?}:\n{text}");
    assert!(!text.contains("goes on from its checkpoint"), "{failpoint:?}:\n{text}");
    let run = dir.path().join("run");
    (Left { _dir: dir, run }, seconds)
}

fn steps(run: &Path) -> Vec<(i64, i64)> {
    let journal = rusqlite::Connection::open(run.join("journal.sqlite")).unwrap();
    let mut query = journal.prepare("SELECT step, policy_version FROM step ORDER BY step").unwrap();
    let rows = query.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    rows.map(Result::unwrap).collect()
}

#[test]
fn a_coordinator_killed_anywhere_changes_neither_rollouts_nor_weights() {
    let (undisturbed, _) = run(None);
    let expected = rollouts(&undisturbed.run).unwrap();
    assert_eq!(expected.len(), 3 * 6 * 4);
    println!("| killed | all ranks in place again, s | weight difference | largest |\n|---|---|---|---|");
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
        let (left, seconds) = run(Some(failpoint));
        assert_eq!(rollouts(&left.run).unwrap(), expected, "{failpoint}");
        // Two mini-batches a step, each applied once.
        assert_eq!(steps(&left.run), [(0, 2), (1, 4), (2, 6)], "{failpoint}");
        let of = |left: &Left| checkpoint(&left.run, 3);
        let (apart, largest) = difference(&of(&left), &of(&undisturbed)).unwrap();
        println!("| {failpoint} | {seconds:.2} | {apart:.1e} | {largest:.1e} |");
        // Other batches round otherwise; see `recovery`.
        assert!(apart < 1e-6 && largest < 1e-4, "{failpoint}: {apart:e} {largest:e}");
    }
}

/// Runs to the middle of the third step, then everything is killed; the last checkpoint is the second step's.
fn all_killed(arguments: &[String], ranks: usize, dir: &Path) {
    let mut running = Running::start(arguments, Some("told:6")).unwrap();
    let url = running.url().unwrap();
    let workers = workers(&url, ranks, dir);
    let (status, text) = running.end().unwrap();
    assert!(!status.success(), "{text}");
    // It may still be written.
    let there = until(DEADLINE, || checkpoint(&dir.join("run"), 2).exists().then_some(()));
    assert!(there.is_some(), "no checkpoint:\n{text}");
    drop(workers);
}

/// Goes on with so many new workers to the end.
fn go_on(arguments: &[String], ranks: usize, dir: &Path) -> PathBuf {
    let mut running = Running::start(&resumed(arguments), None).unwrap();
    let url = running.url().unwrap();
    let _workers = workers(&url, ranks, dir);
    running.wait_for("no worker holds the policy").unwrap();
    let (status, text) = running.end().unwrap();
    assert!(status.success(), "{text}");
    dir.join("run")
}

/// With one slot a rollout's log-probabilities do not depend on which others are decoded beside it, which depends on
/// when leases come.
#[test]
fn with_all_processes_gone_the_last_checkpoint_gives_the_same_bits() {
    let whole = tempfile::tempdir().unwrap();
    let one_slot = |dir: &Path| [arguments(dir, 1), vec!["--set".into(), "rollout.slots=1".into()]].concat();
    let mut running = Running::start(&one_slot(whole.path()), None).unwrap();
    let url = running.url().unwrap();
    let _workers = workers(&url, 1, whole.path());
    assert!(running.end().unwrap().0.success());
    let whole = whole.path().join("run");
    let dir = tempfile::tempdir().unwrap();
    all_killed(&one_slot(dir.path()), 1, dir.path());
    let run = go_on(&one_slot(dir.path()), 1, dir.path());
    assert_eq!(rollouts(&run).unwrap(), rollouts(&whole).unwrap());
    assert_eq!(steps(&run), steps(&whole));
    for file in ["model.safetensors", "optimizer.safetensors"] {
        let bytes = |run: &Path| std::fs::read(checkpoint(run, 3).join(file)).unwrap();
        assert!(bytes(&run) == bytes(&whole), "{file} is not the same");
    }
}

#[test]
fn a_checkpoint_of_two_ranks_is_gone_on_from_by_any_number() {
    let (undisturbed, _) = run(None);
    for ranks in [1, 3, 4] {
        let dir = tempfile::tempdir().unwrap();
        all_killed(&arguments(dir.path(), 2), 2, dir.path());
        let run = go_on(&arguments(dir.path(), ranks), ranks, dir.path());
        assert_eq!(rollouts(&run).unwrap(), rollouts(&undisturbed.run).unwrap(), "{ranks} ranks");
        let (apart, largest) = difference(&checkpoint(&run, 3), &checkpoint(&undisturbed.run, 3)).unwrap();
        println!("{ranks} ranks: {apart:.1e} {largest:.1e}");
        assert!(apart < 1e-6 && largest < 1e-4, "{ranks} ranks: {apart:e} {largest:e}");
    }
}

#[test]
fn local_workers_are_taken_over_or_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let arguments = [arguments(dir.path(), 2), vec!["--local-workers".into(), "2".into()]].concat();
    let (status, text) = Running::start(&arguments, Some("told:2")).unwrap().end().unwrap();
    assert!(!status.success(), "{text}");
    let run = dir.path().join("run");
    let before = local_workers(&run, 2).unwrap();
    assert!(before.iter().all(|&process| lives(process)), "workers outlive their coordinator");

    // One of them is stopped: it can answer nobody.
    send_signal(before[1], "-STOP").unwrap();
    let (status, text) = Running::start(&resumed(&arguments), None).unwrap().end().unwrap();
    assert!(status.success(), "{text}");
    assert_eq!(text.matches("is taken over").count(), 1, "{text}");
    assert_eq!(text.matches("worker of an earlier coordinator is killed").count(), 1, "{text}");
    assert_eq!(steps(&run), [(0, 2), (1, 4), (2, 6)]);
    let after = local_workers(&run, 2).unwrap();
    assert!(after[0] == before[0] && after[1] != before[1], "{before:?} {after:?}");
    let all = [before, after].concat();
    let gone = until(DEADLINE, || all.iter().all(|&process| !lives(process)).then_some(()));
    assert!(gone.is_some(), "a worker is left behind");
}

#[test]
fn a_run_directory_has_one_coordinator() {
    let dir = tempfile::tempdir().unwrap();
    let arguments = arguments(dir.path(), 1);
    let mut running = Running::start(&arguments, None).unwrap();
    running.url().unwrap();
    for more in ["--resume", "--overwrite"] {
        let (status, text) =
            Running::start(&[&arguments[..], &[more.to_owned()]].concat(), None).unwrap().end().unwrap();
        assert!(!status.success() && text.contains("another coordinator works in"), "{text}");
    }
    running.kill().unwrap();
}
