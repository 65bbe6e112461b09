//! Ranges, and values that exclude each other.

use std::ops::RangeInclusive;

use super::{ConfigError, EvaluationConfig, RunConfig};
use crate::algorithm;

/// `Err` that names the key unless the value is in the range.
pub(super) fn within(key: &str, value: f64, range: RangeInclusive<f64>) -> Result<(), ConfigError> {
    if range.contains(&value) {
        return Ok(());
    }
    let message = format!("{value} is not between {} and {}", range.start(), range.end());
    Err(ConfigError::OutOfRange { key: key.to_owned(), message })
}

pub(super) fn at_least_one(key: &str, value: u64) -> Result<(), ConfigError> {
    if value > 0 {
        return Ok(());
    }
    Err(ConfigError::OutOfRange { key: key.to_owned(), message: "must be at least 1".to_owned() })
}

pub(super) fn refuse(key: &str, message: impl Into<String>) -> ConfigError {
    ConfigError::OutOfRange { key: key.to_owned(), message: message.into() }
}

impl RunConfig {
    /// Checks every range that the types do not.
    ///
    /// # Errors
    /// [`ConfigError::OutOfRange`] with the first key that is wrong.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.validate_rollout()?;
        self.validate_update()?;
        self.validate_cluster()?;
        self.security.validate()?;
        self.watchdog.validate()?;
        if let Some(evaluation) = &self.evaluation {
            evaluation.validate()?;
            evaluation.validate_rows(&self.data)?;
        }
        self.data.row_form().validate()?;
        at_least_one("checkpoint.keep", self.checkpoint.keep.into())?;
        if let Some(name) = &self.checkpoint.best_by {
            let scores = self.evaluation.as_ref().map(EvaluationConfig::score_names).unwrap_or_default();
            if !scores.contains(name) {
                let known =
                    if scores.is_empty() { "nothing is evaluated".to_owned() } else { scores.join(", ") };
                return Err(refuse(
                    "checkpoint.best_by",
                    format!("{name} is no score of the evaluation: {known}"),
                ));
            }
        }
        if self.run.name.is_empty() {
            return Err(refuse("run.name", "must not be empty"));
        }
        self.algorithm.validate().map_err(|e| refuse("algorithm", e.to_string()))?;
        self.validate_imitation()?;
        self.embeddings.validate(algorithm::build(&self.algorithm).needs_embeddings())?;
        self.objective.validate().map_err(|e| refuse("objective", e.to_string()))
    }

    fn validate_rollout(&self) -> Result<(), ConfigError> {
        let rollout = &self.rollout;
        at_least_one("rollout.prompts_per_step", rollout.prompts_per_step.into())?;
        at_least_one("rollout.group_size", rollout.group_size.into())?;
        at_least_one("rollout.max_new_tokens", rollout.max_new_tokens.into())?;
        // The policy gradient needs the distribution that was sampled: T = 0 has none.
        within("rollout.temperature", rollout.temperature, 0.01..=100.0)?;
        within("rollout.top_p", rollout.top_p, 0.001..=1.0)?;
        within("rollout.min_p", rollout.min_p, 0.0..=1.0)?;
        if rollout.top_k == Some(0) {
            return Err(refuse("rollout.top_k", "must be at least 1; leave it out to keep all tokens"));
        }
        at_least_one("prompt.max_tokens", self.prompt.max_tokens.into())?;
        self.reward.validate()
    }

    fn validate_imitation(&self) -> Result<(), ConfigError> {
        let (solutions, prompts) = (self.imitation.solutions_per_step, self.rollout.prompts_per_step);
        if solutions > prompts {
            let message = format!("{solutions} solutions, but a step has {prompts} prompts");
            return Err(refuse("imitation.solutions_per_step", message));
        }
        if solutions > 0 && !algorithm::build(&self.algorithm).needs_rollouts() {
            return Err(refuse("imitation.solutions_per_step", "sft imitates all solutions anyway"));
        }
        Ok(())
    }

    fn validate_update(&self) -> Result<(), ConfigError> {
        let optimizer = &self.optimizer;
        within("optimizer.learning_rate", optimizer.learning_rate, 0.0..=10.0)?;
        within("optimizer.beta1", optimizer.beta1, 0.0..=0.999_999)?;
        within("optimizer.beta2", optimizer.beta2, 0.0..=0.999_999)?;
        within("optimizer.eps", optimizer.eps, 1e-16..=1.0)?;
        within("optimizer.weight_decay", optimizer.weight_decay, 0.0..=10.0)?;
        within("optimizer.max_grad_norm", optimizer.max_grad_norm, 0.0..=1e9)?;
        if let Some(warning) = self.update.drift_warning {
            within("update.drift_warning", warning, 0.0..=100.0)?;
        }
        at_least_one("update.max_nonfinite", self.update.max_nonfinite.into())?;
        at_least_one("update.head_chunk_tokens", self.update.head_chunk_tokens.into())
    }

    fn validate_cluster(&self) -> Result<(), ConfigError> {
        let cluster = &self.cluster;
        at_least_one("cluster.min_workers", cluster.min_workers.into())?;
        at_least_one("cluster.max_epoch_failures", cluster.max_epoch_failures.into())?;
        if cluster.max_workers < cluster.min_workers {
            return Err(refuse("cluster.max_workers", "must not be below cluster.min_workers"));
        }
        for (key, value) in [
            ("cluster.join_timeout_ms", cluster.join_timeout_ms),
            ("cluster.heartbeat_timeout_ms", cluster.heartbeat_timeout_ms),
            ("cluster.lease_timeout_ms", cluster.lease_timeout_ms),
            ("cluster.update_timeout_ms", cluster.update_timeout_ms),
            ("cluster.collective_timeout_ms", cluster.collective_timeout_ms),
            ("cluster.checkpoint_timeout_ms", cluster.checkpoint_timeout_ms),
            ("cluster.stall_after_ms", cluster.stall_after_ms),
        ] {
            at_least_one(key, value)?;
        }
        for (key, address) in [("cluster.listen", &cluster.listen), ("cluster.http", &cluster.http)] {
            if address.parse::<std::net::SocketAddr>().is_err() {
                return Err(refuse(key, format!("{address} is not an address such as 0.0.0.0:7700")));
            }
        }
        Ok(())
    }
}
