//! `[watchdog]`: when a process that does not get on with its work ends itself.

use serde::{Deserialize, Serialize};

use super::ConfigError;
use super::validate::at_least_one;

/// `[watchdog]`: how long each kind of work may go without any progress, milliseconds. Progress is a piece of
/// work that ends, such as one product of matrices, not a whole phase. A collective that is waited for has
/// `cluster.collective_timeout_ms` besides.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WatchdogConfig {
    /// Downloading and reading the model.
    pub loading_ms: u64,
    /// Joining an epoch.
    pub forming_ms: u64,
    /// Generating rollouts.
    pub rollout_ms: u64,
    /// Forward and backward.
    pub update_ms: u64,
    /// The optimizer step.
    pub apply_ms: u64,
    /// Writing a checkpoint.
    pub checkpoint_ms: u64,
    /// The coordinator's own loop, which never waits for a worker.
    pub coordinator_ms: u64,
    /// What the coordinator writes at once to its journal and its write-ahead log, until it is on the disk.
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

    #[test]
    fn a_limit_of_nothing_is_refused_by_its_name() {
        let text =
            "[run]\nname = 't'\ndir = 'd'\nsteps = 1\n[model]\npath = 'm'\n[data]\ntrain = 't'\n[watchdog]\n";
        let config = RunConfig::from_toml(&format!("{text}rollout_ms = 7")).unwrap();
        assert_eq!((config.watchdog.rollout_ms, config.watchdog.update_ms), (7, 600_000));
        for key in ["loading_ms", "rollout_ms", "coordinator_ms", "journal_ms"] {
            let error = RunConfig::from_toml(&format!("{text}{key} = 0")).unwrap_err().to_string();
            assert!(error.contains(&format!("watchdog.{key}")), "{error}");
        }
    }
}
