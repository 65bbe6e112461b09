//! `[watchdog]`: when a process that does not get on with its work ends itself.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ConfigError;
use super::validate::at_least_one;

/// `[watchdog]`: how long each kind of work may go without any progress, milliseconds. Progress is a piece of
/// work that ends, such as one product of matrices, not a whole phase. A collective that is waited for has
/// `cluster.collective_timeout_ms` besides.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct WatchdogConfig {
    /// Downloading and reading the model.
    #[schemars(range(min = 1))]
    pub loading_ms: u64,
    /// Joining an epoch.
    #[schemars(range(min = 1))]
    pub forming_ms: u64,
    /// Generating rollouts.
    #[schemars(range(min = 1))]
    pub rollout_ms: u64,
    /// Forward and backward.
    #[schemars(range(min = 1))]
    pub update_ms: u64,
    /// The optimizer step.
    #[schemars(range(min = 1))]
    pub apply_ms: u64,
    /// Writing a checkpoint.
    #[schemars(range(min = 1))]
    pub checkpoint_ms: u64,
    /// The coordinator's own loop, which never waits for a worker.
    #[schemars(range(min = 1))]
    pub coordinator_ms: u64,
    /// What the coordinator writes at once to its journal and its write-ahead log, until it is on the disk.
    #[schemars(range(min = 1))]
    pub journal_ms: u64,
}

impl Default for WatchdogConfig {
    fn default() -> Self {
        Self {
            loading_ms: 7_200_000,
            forming_ms: 600_000,
            rollout_ms: 300_000,
            update_ms: 600_000,
            apply_ms: 600_000,
            checkpoint_ms: 3_600_000,
            coordinator_ms: 600_000,
            journal_ms: 120_000,
        }
    }
}

impl WatchdogConfig {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        for (key, value) in [
            ("watchdog.loading_ms", self.loading_ms),
            ("watchdog.forming_ms", self.forming_ms),
            ("watchdog.rollout_ms", self.rollout_ms),
            ("watchdog.update_ms", self.update_ms),
            ("watchdog.apply_ms", self.apply_ms),
            ("watchdog.checkpoint_ms", self.checkpoint_ms),
            ("watchdog.coordinator_ms", self.coordinator_ms),
            ("watchdog.journal_ms", self.journal_ms),
        ] {
            at_least_one(key, value)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::RunConfig;

    const TEXT: &str =
        "[run]\nname = 't'\ndir = 'd'\nsteps = 1\n[model]\npath = 'm'\n[data]\ntrain = 't'\n[watchdog]\n";

    /// The table of all waits names deadlines that can be set, and all of them.
    #[test]
    fn docs_know_every_deadline() {
        let page = include_str!("../../../docs/stalls.md");
        let config = serde_json::to_value(RunConfig::from_toml(TEXT).unwrap()).unwrap();
        let sections = ["cluster", "watchdog", "security", "checkpoint"];
        let mut named = Vec::new();
        for (section, key) in page.split('`').skip(1).step_by(2).filter_map(|code| code.split_once('.')) {
            if sections.contains(&section) {
                let key = key.split(' ').next().unwrap_or(key);
                assert!(!config[section][key].is_null(), "{section}.{key} is no setting");
                named.push((section, key.to_owned()));
            }
        }
        for section in ["cluster", "watchdog"] {
            let keys = config[section].as_object().unwrap().keys();
            for key in keys.filter(|key| key.ends_with("_ms") && *key != "grace_ms") {
                assert!(named.contains(&(section, key.clone())), "{section}.{key} is not in docs/stalls.md");
            }
        }
    }

    #[test]
    fn a_limit_of_nothing_is_refused_by_its_name() {
        let text = TEXT;
        let config = RunConfig::from_toml(&format!("{text}rollout_ms = 7")).unwrap();
        assert_eq!((config.watchdog.rollout_ms, config.watchdog.update_ms), (7, 600_000));
        for key in ["loading_ms", "rollout_ms", "coordinator_ms", "journal_ms"] {
            let error = RunConfig::from_toml(&format!("{text}{key} = 0")).unwrap_err().to_string();
            assert!(error.contains(&format!("watchdog.{key}")), "{error}");
        }
    }
}
