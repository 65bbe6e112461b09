//! Ranks on several hosts, which are network namespaces of this machine: they train together over their own
//! addresses, and one that is cut off comes back.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that is not as expected")]

use g2rl_tests::cluster::{Cluster, WorkerOptions};
use g2rl_tests::hosts::{HUB, Hosts};
use g2rl_tests::journal::StepShape;

#[test]
fn a_host_that_is_cut_off_comes_back() {
    let hosts = match Hosts::new(&["one", "two"]) {
        Ok(hosts) => hosts,
        Err(error) => return eprintln!("skipped: network namespaces are not permitted here: {error:#}"),
    };
    let settings =
        ["run.steps=1000", "checkpoint.every=1000", "cluster.min_workers=1", "cluster.max_workers=2"];
    let mut cluster = Cluster::start(&settings, Some(&hosts.get(HUB))).unwrap();
    let (one, two) = (hosts.get("one"), hosts.get("two"));
    // The address is found by the way to the coordinator, or named by its interface.
    let by_way = WorkerOptions { host: Some(&one), ..WorkerOptions::default() };
    cluster.add("one", &by_way).unwrap();
    let arguments = ["--interface", "eth0"];
    cluster.add("two", &WorkerOptions { host: Some(&two), arguments: &arguments, ..by_way }).unwrap();
    let stands = |cluster: &mut Cluster, ranks: u64| {
        while cluster.wait_for("all ranks are in place").unwrap()["ranks"] != ranks {}
    };
    stands(&mut cluster, 2);
    cluster.wait_for("step 2/").unwrap();

    hosts.cut_off("two").unwrap();
    let ended = cluster.wait_for("epoch ended").unwrap();
    assert!(ended["cause"].as_str().unwrap().contains("two-cpu"), "{ended}");
    stands(&mut cluster, 1);
    cluster.wait_for("step ").unwrap();

    hosts.put_back("two").unwrap();
    stands(&mut cluster, 2);
    cluster.wait_for("step ").unwrap();
    cluster.interrupt().unwrap();
    let run = cluster.finish().unwrap();
    let journal = run.journal().unwrap();
    let shape = StepShape { groups: 6, group_size: 4, minibatches: 2 };
    journal.check(journal.rewards().unwrap().len() as u64, shape).unwrap();
}
