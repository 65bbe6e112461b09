//! The dashboard: complete in itself, and each query answered by a real Prometheus that reads a real run.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};

use g2rl_tests::cluster::{Cluster, DEADLINE};
use g2rl_tests::http::{encode, free_ports, get};
use g2rl_tests::process::Process;
use g2rl_tests::{tool, until};
use serde_json::Value;

use super::supervisor::Supervisor;
use super::{deploy, read};

fn dashboard() -> Value {
    serde_json::from_str(&read(&deploy("grafana/dashboards/g2rl.json"))).unwrap()
}

fn panels(dashboard: &Value) -> Vec<&Value> {
    dashboard["panels"].as_array().unwrap().iter().collect()
}

/// Every query of panels and annotations, with a name for messages.
fn queries(dashboard: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let mut found = Vec::new();
    for panel in panels(dashboard) {
        for target in panel["targets"].as_array().into_iter().flatten() {
            found.push((
                format!("{} {}", text(&panel["title"]), text(&target["refId"])),
                text(&target["expr"]),
            ));
        }
    }
    for annotation in dashboard["annotations"]["list"].as_array().unwrap() {
        found.push((text(&annotation["name"]), text(&annotation["expr"])));
    }
    found
}

#[test]
fn the_dashboard_is_complete_in_itself() {
    let dashboard = dashboard();
    let variables: BTreeSet<&str> = dashboard["templating"]["list"]
        .as_array()
        .unwrap()
        .iter()
        .map(|variable| variable["name"].as_str().unwrap())
        .collect();
    let mut ids = BTreeSet::new();
    let mut places: Vec<(&str, [u64; 4])> = Vec::new();
    for panel in panels(&dashboard) {
        let title = panel["title"].as_str().unwrap();
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{title}: its id is another panel's");
        let at = |key: &str| panel["gridPos"][key].as_u64().unwrap();
        assert!(at("x") + at("w") <= 24, "{title} is wider than the grid");
        for (other, [x, y, w, h]) in &places {
            let apart =
                at("x") >= x + w || *x >= at("x") + at("w") || at("y") >= y + h || *y >= at("y") + at("h");
            assert!(apart, "{title} lies over {other}");
        }
        places.push((title, [at("x"), at("y"), at("w"), at("h")]));
        if panel["type"] != "row" {
            assert_eq!(panel["datasource"]["uid"], "${datasource}", "{title}");
            assert!(!panel["description"].as_str().unwrap().is_empty(), "{title} has no description");
        }
    }
    for (name, query) in queries(&dashboard) {
        for used in query.split('$').skip(1) {
            let end = used.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(used.len());
            let used = &used[..end];
            assert!(used == "__rate_interval" || variables.contains(used), "{name}: no variable {used}");
        }
    }
}

/// A Prometheus with the shipped rules.
struct Prometheus {
    address: String,
    _process: Process,
}

impl Prometheus {
    fn start(program: &Path, dir: &Path, coordinator: &str, workers: &[String]) -> Self {
        let rules = deploy("prometheus/rules").canonicalize().unwrap();
        let shipped = read(&deploy("prometheus/prometheus.yml"));
        let targets = |list: &[String]| format!("targets: {}", serde_json::to_string(list).unwrap());
        let lines = shipped.lines().map(|line| match line.trim() {
            "scrape_interval: 15s" | "evaluation_interval: 15s" => line.replace("15s", "1s"),
            "- rules/*.yml" => line.replace("rules", &rules.display().to_string()),
            "- targets: [\"127.0.0.1:7701\"]" => format!("      - {}", targets(&[coordinator.to_owned()])),
            rest if rest.starts_with("- targets:") => format!("      - {}", targets(workers)),
            _ => line.to_owned(),
        });
        let config = dir.join("prometheus.yml");
        std::fs::write(&config, lines.collect::<Vec<_>>().join("\n")).unwrap();
        let address = format!("127.0.0.1:{}", free_ports(1).unwrap());
        let mut command = Command::new(program);
        command.arg(format!("--config.file={}", config.display()));
        command.arg(format!("--storage.tsdb.path={}", dir.join("tsdb").display()));
        command.arg(format!("--web.listen-address={address}"));
        let log = std::fs::File::create(dir.join("prometheus.log")).unwrap();
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let process = Process::spawn(command).unwrap();
        let ready = || get(&address, "/-/ready").is_ok_and(|(status, _)| status == 200).then_some(());
        until(DEADLINE, ready).unwrap_or_else(|| panic!("{}", read(&dir.join("prometheus.log"))));
        Self { address, _process: process }
    }

    /// The answer of a path of the API.
    fn ask(&self, path: &str) -> Value {
        let (status, body) = get(&self.address, &format!("/api/v1/{path}")).unwrap();
        assert_eq!(status, 200, "{path}: {body}");
        let mut answer: Value = serde_json::from_str(&body).unwrap();
        answer["data"].take()
    }

    /// All rules, recording and alerting.
    fn rules(&self) -> Vec<Value> {
        let groups = self.ask("rules")["groups"].take();
        let groups = groups.as_array().unwrap().iter();
        groups.flat_map(|group| group["rules"].as_array().unwrap().clone()).collect()
    }

    /// How many series a query has.
    fn series(&self, query: &str) -> usize {
        let answer = self.ask(&format!("query?query={}", encode(query)));
        answer["result"].as_array().unwrap().len()
    }
}

#[test]
fn every_query_is_answered_from_a_real_run() {
    let Some(program) = tool("prometheus") else { return };
    let settings =
        ["run.steps=100000", "evaluation.at_start=true", "cluster.min_workers=2", "cluster.max_workers=2"];
    let mut cluster = Cluster::start(&settings, None).unwrap();
    let supervisor = Supervisor::start(cluster.url(), cluster.dir()).unwrap();
    let metrics = cluster.http().address();
    let prometheus = Prometheus::start(&program, cluster.dir(), metrics, &supervisor.ports(3));
    cluster.wait_for("step 2/").unwrap();

    // What has grown before the first look has not grown.
    let looked = until(DEADLINE, || (prometheus.series("g2rl_epochs_failed_total == 0") == 1).then_some(()));
    assert!(looked.is_some(), "the coordinator is not read");

    // An epoch that ends early is something that the dashboard shows, too.
    supervisor.kill_a_rank(0).unwrap();
    cluster.wait_for("epoch ended").unwrap();
    cluster.wait_for("all ranks are in place").unwrap();
    cluster.wait_for("step ").unwrap();

    let queries: Vec<(String, String)> = queries(&dashboard())
        .into_iter()
        .map(|(name, query)| {
            let query = query.replace("$__rate_interval", "30s").replace("$worker_job", "g2rl-worker");
            (name, query.replace("$job", "g2rl-coordinator").replace("$run", ".+"))
        })
        .collect();
    assert!(queries.len() > 40 && queries.iter().all(|(_, query)| !query.contains('$')), "{queries:?}");
    let mut left: Vec<&(String, String)> = queries.iter().collect();
    // Rates need two scrapes, what is recorded another evaluation.
    let all = until(DEADLINE, || {
        left.retain(|(_, query)| prometheus.series(query) == 0);
        left.is_empty().then_some(())
    });
    assert!(all.is_some(), "no answer to {left:#?}");

    let rules: Vec<Value> = prometheus.rules();
    assert!(rules.iter().all(|rule| rule["health"] == "ok"), "{rules:#?}");
    let firing = || {
        let firing = prometheus.rules().into_iter().filter(|rule| rule["state"] == "firing");
        firing.map(|rule| rule["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let told = until(DEADLINE, || (firing() == ["G2rlRankLost"]).then_some(()));
    assert!(told.is_some(), "of a lost rank this alerts: {:?}", firing());
    // Coordinator, supervisor and two ranks, of which one was started again.
    let up = until(DEADLINE, || (prometheus.series("up == 1") == 4).then_some(()));
    assert!(up.is_some(), "{} are up", prometheus.series("up == 1"));
    println!("{} queries answered, {} rules evaluated", queries.len(), rules.len());
}
