//! The manifests: rendered as `kubectl kustomize` does, against the API's types, and in force.

mod kubelet;
mod overlays;
mod schema;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use g2rl_tests::{finish, tool};
use serde::Deserialize;
use serde_json::Value;

use super::{deploy, read};

const DEADLINE: Duration = Duration::from_secs(120);

fn overlay(name: &str) -> PathBuf {
    deploy("kubernetes/overlays").join(name)
}

/// Documents of a YAML text.
fn documents(text: &str) -> Vec<Value> {
    serde_yaml_ng::Deserializer::from_str(text)
        .map(|document| Value::deserialize(document).unwrap())
        .collect()
}

fn kubectl(arguments: &[&str]) -> Option<String> {
    let mut command = Command::new(tool("kubectl")?);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let finished = finish(command, DEADLINE).unwrap();
    assert!(finished.success, "kubectl {}: {}", arguments.join(" "), finished.text);
    Some(finished.text)
}

/// What would be applied; `None`, with a message, without a kubectl that can do it.
fn render(directory: &Path) -> Option<Vec<Value>> {
    let version = kubectl(&["version", "--client"])?;
    let kustomize = version.lines().find_map(|line| line.strip_prefix("Kustomize Version: v"));
    let major = kustomize.and_then(|version| version.split('.').next()?.parse::<u32>().ok());
    if major.is_none_or(|major| major < 5) {
        eprintln!("skipped: this kubectl has no kustomize of version 5:\n{version}");
        return None;
    }
    Some(documents(&kubectl(&["kustomize", &directory.display().to_string()])?))
}

/// The Secrets that `make-secrets.sh` prints.
fn secrets(directory: &Path) -> Vec<Value> {
    let mut command = Command::new(deploy("kubernetes/make-secrets.sh"));
    command.arg(directory).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let finished = finish(command, DEADLINE).unwrap();
    assert!(finished.success, "{}", finished.text);
    documents(&finished.text)
}
