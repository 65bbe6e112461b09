//! A rank that hangs is named while it hangs, ended, and replaced: the run goes on.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that is not as expected")]

use std::time::Duration;

use g2rl_tests::cluster::{Cluster, CoordinatorOptions, DEADLINE, WorkerOptions};
use g2rl_tests::http::Http;
use g2rl_tests::journal::StepShape;
use g2rl_tests::process::{lives, local_workers, send_signal};
use g2rl_tests::until;
use serde_json::Value;

const SHAPE: StepShape = StepShape { groups: 6, group_size: 4, minibatches: 2 };

/// The first stall report that is accepted.
fn report(http: &Http, accepted: impl Fn(&Value) -> bool) -> Value {
    let mut last = None;
    let found = until(DEADLINE, || {
        // One address may not ask as often as it likes.
        std::thread::park_timeout(Duration::from_millis(50));
        last = http.stall_report().unwrap();
        last.clone().filter(&accepted)
    });
    found.unwrap_or_else(|| panic!("no such report; the last is {last:?}"))
}

fn ms(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is no time"))
}

#[test]
fn a_hung_engine_is_named_by_its_phase_and_ended_by_its_watchdog() {
    let settings = [
        "run.steps=3",
        "cluster.min_workers=2",
        "cluster.max_workers=3",
        "cluster.lease_timeout_ms=600000",
        "cluster.stall_after_ms=1000",
        "watchdog.rollout_ms=4000",
    ];
    let mut cluster = Cluster::start(&settings, None).unwrap();
    let hangs = WorkerOptions { failpoint: Some("rollout:5:hang"), ..WorkerOptions::default() };
    cluster.add("a-hanging", &hangs).unwrap();
    cluster.add("b-steady", &WorkerOptions::default()).unwrap();

    // It still shows signs of life, and says that it does not move.
    let named = report(cluster.http(), |report| {
        let stall = &report["stalls"][0];
        report["phase"] == "rollout" && stall["who"].as_str().is_some_and(|who| who.contains("a-hanging"))
    });
    let (stall, rank) = (&named["stalls"][0], &named["ranks"][0]);
    assert!(stall["what"].as_str().unwrap().contains("rollouts of group") && ms(&stall["for_ms"]) >= 1_000);
    assert!(rank["worker"].as_str().unwrap().contains("a-hanging") && rank["owes"].is_string(), "{rank}");
    assert!(rank["phase"] == "rollout" && ms(&rank["still_ms"]) >= 1_000, "{rank}");
    assert!(ms(&rank["silent_ms"]) < 2_000, "{rank}");
    let mut leases = named["leases"]["oldest"].as_array().unwrap().iter();
    assert!(leases.any(|lease| lease["rank"] == rank["rank"] && lease["tokens"].is_u64()), "{named}");
    assert!(named["queues"]["inputs"].is_u64(), "{named}");
    cluster.wait_for("nothing moves").unwrap();
    assert!(cluster.http().metric("g2rl_stalls_total").unwrap().unwrap() >= 1.0);

    let (code, log) = cluster.ended("a-hanging").unwrap();
    assert_eq!(code, Some(70), "{log}");
    let line = log.lines().find(|line| line.contains("the engine hangs")).unwrap_or_else(|| panic!("{log}"));
    for part in ["watchdog.rollout_ms", "policy_version", "leases=", "rollouts,", "still_seconds=4"] {
        assert!(line.contains(part), "{part} is not in {line}");
    }
    cluster.wait_for("epoch ended").unwrap();
    cluster.add("c-replacement", &WorkerOptions::default()).unwrap();
    cluster.finish().unwrap().journal().unwrap().check(3, SHAPE).unwrap();
}

#[test]
fn a_stopped_local_worker_is_killed_and_replaced() {
    const STEPS: u64 = 12;
    let steps = format!("run.steps={STEPS}");
    let options = CoordinatorOptions {
        settings: &[&steps, "cluster.stall_after_ms=1000", "cluster.min_workers=2", "cluster.max_workers=2"],
        arguments: &["--local-workers", "2"],
        ..CoordinatorOptions::default()
    };
    let mut cluster = Cluster::start_with(&options).unwrap();
    cluster.wait_for("all ranks are in place").unwrap();
    let before = local_workers(&cluster.path(), 2).unwrap();
    send_signal(before[0], "-STOP").unwrap();

    cluster.wait_for("epoch ended").unwrap();
    let killed = cluster.wait_for("is killed").unwrap();
    assert!(killed.to_string().contains("worker-0.log"), "{killed}");
    cluster.wait_for("another is started").unwrap();
    assert!(!lives(before[0]), "a stopped process cannot end by itself");
    let run = cluster.finish().unwrap();
    let after = local_workers(&run.path(), 2).unwrap();
    assert!(after[0] != before[0] && after[1] == before[1], "{before:?} {after:?}");
    run.journal().unwrap().check(STEPS, SHAPE).unwrap();
}
