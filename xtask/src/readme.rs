//! The commands that the README promises.

use std::fs;

use anyhow::{Context, bail};

use crate::run::root;

/// Tasks named in fenced blocks as `cargo xtask NAME`.
fn tasks(text: &str) -> Vec<String> {
    let mut inside = false;
    let mut found = Vec::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            inside = !inside;
        } else if inside && let Some(rest) = line.trim().strip_prefix("cargo xtask ") {
            found.extend(rest.split_whitespace().next().map(str::to_owned));
        }
    }
    found
}

/// Checks that every task exists and that the first two are those that a new user needs.
pub(crate) fn check() -> anyhow::Result<()> {
    let text = fs::read_to_string(root().join("README.md")).context("cannot read README.md")?;
    let tasks = tasks(&text);
    if tasks.first().map(String::as_str) != Some("demo") || tasks.get(1).map(String::as_str) != Some("test") {
        bail!("README.md must begin with `cargo xtask demo` and `cargo xtask test`, not {tasks:?}");
    }
    let known = ["setup", "env", "demo", "test", "verify", "docs", "model", "golden"];
    match tasks.iter().find(|task| !known.contains(&task.as_str())) {
        Some(task) => bail!("README.md names `cargo xtask {task}`, which does not exist"),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_fenced_commands_count() {
        let text =
            "cargo xtask no\n```sh\ncargo xtask demo\n  cargo xtask test --release\n```\ncargo xtask no\n";
        assert_eq!(tasks(text), ["demo", "test"]);
    }
}
