//! The rules: checked and tested by promtool, each alert with a test and a section of the runbook, and all of them about
//! metrics that exist.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use g2rl_tests::{finish, root, tool};

use super::{deploy, read};

const DEADLINE: Duration = Duration::from_secs(60);

fn promtool(arguments: &[&str], files: &[PathBuf]) -> Option<String> {
    let mut command = Command::new(tool("promtool")?);
    command.args(arguments).args(files);
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let finished = finish(command, DEADLINE).unwrap();
    assert!(finished.success, "{}", finished.text);
    Some(finished.text)
}

fn rules() -> [PathBuf; 2] {
    ["recording", "alerts"].map(|name| deploy(&format!("prometheus/rules/{name}.yml")))
}

/// What follows a key in lines such as `- alert: NAME`.
fn values(text: &str, key: &str) -> BTreeSet<String> {
    let of_line = |line: &str| {
        let (_, rest) = line.split_once(&format!("{key}: "))?;
        Some(rest.split([',', '}']).next()?.trim().to_owned())
    };
    text.lines().filter(|line| !line.trim_start().starts_with('#')).filter_map(of_line).collect()
}

#[test]
fn the_rules_are_valid_and_do_what_their_tests_say() {
    let tests = ["alerts", "recording"].map(|name| deploy(&format!("prometheus/tests/{name}.yml")));
    promtool(&["check", "rules"], &rules());
    promtool(&["check", "config"], &[deploy("prometheus/prometheus.yml")]);
    if let Some(text) = promtool(&["test", "rules"], &tests) {
        assert_eq!(text.matches("SUCCESS").count(), tests.len(), "{text}");
    }
}

#[test]
fn each_alert_has_a_test_and_a_section_of_the_runbook() {
    let rules = read(&deploy("prometheus/rules/alerts.yml"));
    let alerts = values(&rules, "alert");
    assert!(alerts.len() > 10, "{alerts:?}");
    assert_eq!(values(&read(&deploy("prometheus/tests/alerts.yml")), "alertname"), alerts);
    let runbook = read(&root().join("docs/runbook.md"));
    let sections: BTreeSet<String> =
        runbook.lines().filter_map(|line| line.strip_prefix("## ").map(str::to_owned)).collect();
    assert_eq!(sections, alerts);
    for alert in alerts {
        let link = format!("docs/runbook.md#{}\"", alert.to_lowercase());
        assert!(rules.contains(&link), "{alert} has no link {link}");
    }
}

/// Names of the form `g2rl_...` in a text.
fn metrics(text: &str) -> BTreeSet<&str> {
    let word = |c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':');
    text.split(word).filter(|name| name.starts_with("g2rl_")).collect()
}

#[test]
fn rules_and_dashboard_are_about_metrics_that_exist() {
    let documented = read(&root().join("docs/metrics.md"));
    let known = metrics(&documented);
    let files = [&rules()[..], &[deploy("grafana/dashboards/g2rl.json")]].concat();
    for file in files {
        let text = read(&file);
        for name in metrics(&text) {
            let name = name.strip_suffix("_bucket").unwrap_or(name);
            assert!(known.contains(name), "{}: {name} is not in docs/metrics.md", file.display());
        }
    }
    let recorded = values(&read(&rules()[0]), "record");
    let dashboard = read(&deploy("grafana/dashboards/g2rl.json"));
    let used = dashboard.split(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '_' | ':')));
    for name in used.filter(|name| name.starts_with("instance") && name.contains(':')) {
        assert!(recorded.contains(name), "the dashboard's {name} is not recorded");
    }
}
