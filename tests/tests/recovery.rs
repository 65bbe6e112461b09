//! Ranks of a real run are killed or stopped at named points and replaced: the run ends as if nothing had
//! happened.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that is not as expected")]

use std::path::PathBuf;

use g2rl_tests::scenario::{
    JournaledRollout, Running, checkpoint, difference, rollouts, settings, start_worker,
};

/// What a run left.
struct Left {
    _dir: tempfile::TempDir,
    run: PathBuf,
}

impl Left {
    fn rollouts(&self) -> Vec<JournaledRollout> {
        rollouts(&self.run).unwrap()
    }

    fn difference(&self, other: &Self) -> (f64, f32) {
        difference(&checkpoint(&self.run, 3), &checkpoint(&other.run, 3)).unwrap()
    }

    fn recoveries(&self) -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(self.run.join("summary.json")).unwrap();
        let summary: serde_json::Value = serde_json::from_str(&text).unwrap();
        summary["recoveries"].as_array().unwrap().clone()
    }
}

/// Three steps with two ranks; one of them has a failpoint and is replaced once it is lost.
fn run(failpoint: Option<&str>) -> Left {
    let dir = tempfile::tempdir().unwrap();
    let cluster = ["cluster.min_workers=2", "cluster.max_workers=3", "cluster.heartbeat_timeout_ms=2000"];
    let mut running = Running::start(&settings(dir.path(), &cluster).unwrap(), None).unwrap();
    let url = running.url().unwrap();
    // The failing one is rank 0, which writes checkpoints and hosts the store.
    let start = |name: &str, failpoint| start_worker(&url, name, failpoint, dir.path()).unwrap();
    let mut workers = vec![start("a-failing", failpoint), start("b-steady", None)];
    if let Some(failpoint) = failpoint {
        running.wait_for("epoch ended").expect(failpoint);
        workers.push(start("c-replacement", None));
    }
    let (status, text) = running.end().unwrap();
    assert!(status.success(), "{failpoint:?}:\n{text}");
    let run = dir.path().join("run");
    Left { _dir: dir, run }
}

#[test]
fn a_rank_killed_anywhere_changes_neither_rollouts_nor_weights() {
    let undisturbed = run(None);
    let expected = undisturbed.rollouts();
    assert_eq!(expected.len(), 3 * 6 * 4);
    assert!(undisturbed.recoveries().is_empty());
    println!(
        "| point | phase | recovery s | rollouts redone | weight difference | largest |\n|---|---|---|---|---|---|"
    );
    let again = run(None);
    assert_eq!(again.rollouts(), expected);
    let (difference, largest) = again.difference(&undisturbed);
    println!("| none | | | | {difference:.1e} | {largest:.1e} |");
    for failpoint in [
        "rollout:5",
        "gradients:2",
        "ready:2",
        "after_ready:1",
        "apply:2",
        "after_apply:3",
        "checkpoint:1",
        "rollout:30:stop",
    ] {
        let left = run(Some(failpoint));
        assert_eq!(left.rollouts(), expected, "{failpoint}");
        let (difference, largest) = left.difference(&undisturbed);
        for recovery in left.recoveries() {
            println!(
                "| {failpoint} | {} | {} | {} | {difference:.1e} | {largest:.1e} |",
                recovery["phase"].as_str().unwrap(),
                recovery["seconds"],
                recovery["rollouts_redone"]
            );
        }
        // Other ranks decode other batches, so that log-probabilities differ by rounding; a few weights with
        // next to no gradient feel that, because AdamW divides by its size.
        assert!(difference < 1e-6 && largest < 1e-4, "{failpoint}: {difference:e} {largest:e}");
    }
}
