//! What the coordinator measures for Prometheus; `http` serves it.
//!
//! [`METRICS`] is the one table of what is exported; `docs/metrics.md` holds the same.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use g2rl_common::geometry::PairStatistics;
use metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

use crate::dashboard::StatusBoard;
use crate::evaluate::Evaluation;
use crate::shaping::GroupOutcome;
use crate::shell::OutageClock;
use crate::state::{RunStatus, StepRecord};
use crate::summary::StepSummary;

/// One exported metric.
#[derive(Debug, Clone, Copy)]
pub struct Metric {
    /// Name in Prometheus.
    pub name: &'static str,
    /// `counter`, `gauge` or `histogram`.
    pub kind: &'static str,
    /// Unit.
    pub unit: &'static str,
    /// Meaning.
    pub help: &'static str,
}

const fn metric(name: &'static str, kind: &'static str, unit: &'static str, help: &'static str) -> Metric {
    Metric { name, kind, unit, help }
}

/// Everything the coordinator exports.
pub const METRICS: [Metric; 56] = [
    metric("g2rl_steps_total", "counter", "steps", "Training steps completed by this process."),
    metric("g2rl_step", "gauge", "steps", "Training steps completed in the run."),
    metric("g2rl_steps", "gauge", "steps", "Training steps of the whole run."),
    metric(
        "g2rl_run_failed",
        "gauge",
        "0 or 1",
        "1 once the run has failed, for as long as cluster.http_linger_ms lets it be seen.",
    ),
    metric("g2rl_policy_version", "gauge", "optimizer steps", "Optimizer steps behind the policy."),
    metric("g2rl_epoch", "gauge", "epochs", "Membership generation; 0 before the first."),
    metric("g2rl_ranks", "gauge", "ranks", "Ranks of the epoch."),
    metric(
        "g2rl_epochs_failed_total",
        "counter",
        "epochs",
        "Epochs that ended before their work was done: a rank was lost or a collective failed.",
    ),
    metric(
        "g2rl_disagreements_total",
        "counter",
        "failures",
        "Times that ranks held different weights, gradients or policy versions, which ends the run.",
    ),
    metric(
        "g2rl_rollouts_redone_total",
        "counter",
        "rollouts",
        "Leased rollouts that were lost with their rank and leased again.",
    ),
    metric("g2rl_stalled", "gauge", "waits", "Waits in which nothing has moved for cluster.stall_after_ms."),
    metric("g2rl_stalls_total", "counter", "waits", "Such waits so far."),
    metric("g2rl_waiting_seconds_total", "counter", "seconds", "Time without enough workers."),
    metric("g2rl_free_slots", "gauge", "slots", "Decode slots without a rollout."),
    metric("g2rl_outstanding_rollouts", "gauge", "rollouts", "Rollouts leased to ranks and not back."),
    metric(
        "g2rl_tokens_per_second",
        "gauge",
        "tokens/s",
        "Response tokens per second of the last step: generated ones over its rollout phase, given ones (sft) over all of it.",
    ),
    metric("g2rl_generated_tokens_total", "counter", "tokens", "Response tokens generated for training."),
    metric(
        "g2rl_phase_seconds",
        "gauge",
        "seconds",
        "Duration of a phase (label phase: rollout, reward, shaping, update) of the last step.",
    ),
    metric(
        "g2rl_rollout_idle_ratio",
        "gauge",
        "0 to 1",
        "Share of the decode slots' time without a rollout in the last step's rollout phase: the tail.",
    ),
    metric("g2rl_reward_mean", "gauge", "reward", "Mean base reward of the last step."),
    metric("g2rl_correct_ratio", "gauge", "0 to 1", "Share of right answers in the last step."),
    metric("g2rl_score_mean", "gauge", "0 to 1", "Mean score of the answers in the last step."),
    metric("g2rl_response_length_mean", "gauge", "tokens", "Mean response length of the last step."),
    metric("g2rl_loss", "gauge", "loss", "Loss of the last step, summed over its mini-batches."),
    metric("g2rl_kl", "gauge", "nats/token", "Mean k3 estimate of KL(policy || reference)."),
    metric("g2rl_clip_fraction", "gauge", "0 to 1", "Share of tokens whose gradient the clip removed."),
    metric("g2rl_entropy", "gauge", "nats/token", "Mean entropy of the policy over response tokens."),
    metric("g2rl_gradient_norm", "gauge", "norm", "Mean gradient norm before clipping."),
    metric("g2rl_learning_rate", "gauge", "1", "Learning rate of the last step."),
    metric(
        "g2rl_logprob_drift_mean",
        "gauge",
        "nats",
        "Mean |policy - behaviour log-probability| in the first mini-batch of a step: disagreement of sampler and update.",
    ),
    metric(
        "g2rl_logprob_drift_max",
        "gauge",
        "nats",
        "Largest |policy - behaviour log-probability| in the first mini-batch of a step.",
    ),
    metric(
        "g2rl_logprob_drift_limit",
        "gauge",
        "nats",
        "Mean drift above which the coordinator warns (update.drift_warning).",
    ),
    metric("g2rl_cosine_mean", "gauge", "-1 to 1", "Mean gradient cosine of pairs inside groups."),
    metric("g2rl_cosine_mean_distinct", "gauge", "-1 to 1", "The same without pairs of identical responses."),
    metric("g2rl_cosine", "histogram", "-1 to 1", "Gradient cosines of pairs inside groups."),
    metric("g2rl_orthogonal_pair_ratio", "gauge", "0 to 1", "Share of pairs with |cosine| below 0.1."),
    metric("g2rl_negative_pair_ratio", "gauge", "0 to 1", "Share of pairs with a negative cosine."),
    metric("g2rl_novelty_mean", "gauge", "0 to 1", "Mean novelty of rollouts."),
    metric("g2rl_duplicate_pair_ratio", "gauge", "0 to 1", "Share of pairs of identical responses."),
    metric("g2rl_degenerate_groups_total", "counter", "groups", "Groups whose base rewards are all equal."),
    metric(
        "g2rl_skipped_prompts_total",
        "counter",
        "prompts",
        "Prompts left out, such as those over the length limit.",
    ),
    metric(
        "g2rl_stale_messages_total",
        "counter",
        "messages",
        "Messages dropped because they named another epoch or lease.",
    ),
    metric(
        "g2rl_nonfinite_minibatches_total",
        "counter",
        "mini-batches",
        "Mini-batches whose loss or gradient was not finite: no rank applied them.",
    ),
    metric(
        "g2rl_checkpoint_failures_total",
        "counter",
        "checkpoints",
        "Checkpoints that could not be written or were lost with their rank; the ones before them stay.",
    ),
    metric(
        "g2rl_auth_failures_total",
        "counter",
        "requests",
        "Requests to the workers' port with a wrong token or none.",
    ),
    metric(
        "g2rl_connections_refused_total",
        "counter",
        "connections",
        "Connections to the workers' port that ended without a hello (label reason: full, rate, silent, unfinished).",
    ),
    metric("g2rl_disk_bytes", "gauge", "bytes", "Size of the file system of the run directory."),
    metric(
        "g2rl_disk_free_bytes",
        "gauge",
        "bytes",
        "What this process may still write to the file system of the run directory.",
    ),
    metric("g2rl_verification_timeouts_total", "counter", "rollouts", "Verifications that took too long."),
    metric("g2rl_reward_waiting", "gauge", "rollouts", "Rollouts that wait for their reward."),
    metric("g2rl_reward_service_up", "gauge", "0 or 1", "0 while a reward service is down."),
    metric("g2rl_reward_paused_seconds_total", "counter", "seconds", "Time a reward service was down."),
    metric(
        "g2rl_evaluation_score",
        "gauge",
        "0 to 1",
        "Score (labels score: pass@k, maj@k, and set: the data set) of the last evaluation.",
    ),
    metric(
        "g2rl_evaluation_response_length_mean",
        "gauge",
        "tokens",
        "Mean response length of the last evaluation (label set).",
    ),
    metric(
        "g2rl_evaluation_reward_score_mean",
        "gauge",
        "0 to 1",
        "Mean score of the answers in the last evaluation (label set).",
    ),
    metric(
        "g2rl_evaluation_distinct_correct_mean",
        "gauge",
        "answers",
        "Mean number of distinct right answers of a problem in the last evaluation (label set).",
    ),
];

/// Edges of the cosine histogram: those of the pair statistics, every second one.
fn cosine_buckets() -> Vec<f64> {
    (0..=20).map(|i| -1.0 + 0.1 * f64::from(i)).collect()
}

fn builder() -> PrometheusBuilder {
    PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Full("g2rl_cosine".into()), &cosine_buckets())
        .expect("the list of buckets is not empty")
}

fn describe() {
    for metric in METRICS {
        match metric.kind {
            "counter" => describe_counter!(metric.name, metric.help),
            "histogram" => describe_histogram!(metric.name, metric.help),
            _ => describe_gauge!(metric.name, metric.help),
        }
    }
}

/// Records what the shell sees.
#[derive(Debug, Clone, Default)]
pub(crate) struct Telemetry {
    ready: Arc<AtomicBool>,
    /// Mean difference of the sampler's and the update's log-probabilities that is worth a warning, nats.
    drift_warning: f64,
    run_dir: PathBuf,
    /// The newest status, for the dashboard.
    board: StatusBoard,
}

impl Telemetry {
    pub(crate) fn new(drift_warning: f64, run_dir: &Path) -> Self {
        // Counters are exported from the start, at 0.
        for metric in METRICS.iter().filter(|metric| metric.kind == "counter") {
            counter!(metric.name).increment(0);
        }
        gauge!("g2rl_logprob_drift_limit").set(drift_warning);
        gauge!("g2rl_run_failed").set(0.0);
        let board = StatusBoard::default();
        Self { ready: Arc::default(), drift_warning, run_dir: run_dir.to_owned(), board }
    }

    /// Whether the ranks are in place.
    pub(crate) fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Relaxed)
    }

    /// Where the newest status is.
    pub(crate) fn board(&self) -> StatusBoard {
        self.board.clone()
    }

    /// Looks at the disk; called when metrics are read.
    pub(crate) fn disk(&self) {
        // Without an answer the last values stay.
        if let Ok(disk) = rustix::fs::statvfs(&self.run_dir) {
            gauge!("g2rl_disk_bytes").set((disk.f_blocks * disk.f_frsize) as f64);
            gauge!("g2rl_disk_free_bytes").set((disk.f_bavail * disk.f_frsize) as f64);
        }
    }

    pub(crate) fn run_failed(&self) {
        gauge!("g2rl_run_failed").set(1.0);
    }

    pub(crate) fn status(&self, status: &RunStatus) {
        self.ready.store(status.epoch_stands, Ordering::Relaxed);
        self.board.publish(status);
        gauge!("g2rl_step").set(status.steps_done.0 as f64);
        gauge!("g2rl_steps").set(status.steps as f64);
        gauge!("g2rl_policy_version").set(status.policy_version.0 as f64);
        gauge!("g2rl_epoch").set(status.epoch.0 as f64);
        gauge!("g2rl_ranks").set(status.ranks.len() as f64);
        gauge!("g2rl_free_slots").set(f64::from(status.free_slots));
        gauge!("g2rl_outstanding_rollouts").set(f64::from(status.outstanding_rollouts));
        counter!("g2rl_epochs_failed_total").absolute(status.epochs_failed);
        counter!("g2rl_disagreements_total").absolute(status.disagreements);
        counter!("g2rl_rollouts_redone_total").absolute(status.rollouts_redone);
        counter!("g2rl_waiting_seconds_total").absolute(status.waiting_ms / 1000);
    }

    pub(crate) fn stalls(&self, now: usize, total: u64) {
        gauge!("g2rl_stalled").set(now as f64);
        counter!("g2rl_stalls_total").absolute(total);
    }

    pub(crate) fn prompt_skipped(&self) {
        counter!("g2rl_skipped_prompts_total").increment(1);
    }

    pub(crate) fn checkpoint_failed(&self) {
        counter!("g2rl_checkpoint_failures_total").increment(1);
    }

    pub(crate) fn minibatch_skipped(&self) {
        counter!("g2rl_nonfinite_minibatches_total").increment(1);
    }

    pub(crate) fn verification_timeout(&self) {
        counter!("g2rl_verification_timeouts_total").increment(1);
    }

    pub(crate) fn reward_service(&self, outage: &OutageClock, waiting: usize) {
        gauge!("g2rl_reward_waiting").set(waiting as f64);
        gauge!("g2rl_reward_service_up").set(f64::from(u8::from(!outage.is_paused())));
        counter!("g2rl_reward_paused_seconds_total").absolute(outage.paused().as_secs());
    }

    pub(crate) fn stale_message(&self) {
        counter!("g2rl_stale_messages_total").increment(1);
    }

    pub(crate) fn step(&self, record: &StepRecord, step: &StepSummary, outcomes: &[GroupOutcome]) {
        let first = &record.first_minibatch_stats;
        counter!("g2rl_steps_total").increment(1);
        counter!("g2rl_generated_tokens_total").increment(record.response_tokens);
        counter!("g2rl_degenerate_groups_total").increment(step.equal_reward_groups as u64);
        for (phase, ms) in [
            ("rollout", record.times.rollout_ms),
            ("reward", record.times.reward_ms),
            ("shaping", record.times.shaping_ms),
            ("update", record.times.update_ms),
        ] {
            gauge!("g2rl_phase_seconds", "phase" => phase).set(ms as f64 / 1e3);
        }
        for (name, value) in step.values(record) {
            gauge!(format!("g2rl_{name}")).set(value);
        }
        if first.per_token(first.drift) > self.drift_warning {
            tracing::warn!(
                step = %record.step,
                mean = first.per_token(first.drift),
                largest = first.drift_max,
                "sampler and update disagree on log-probabilities (update.drift_warning = {})",
                self.drift_warning
            );
        }
        let cosines = histogram!("g2rl_cosine");
        for pairs in outcomes.iter().filter_map(|outcome| outcome.pairs.as_ref()) {
            for (bin, count) in pairs.histogram.iter().enumerate().filter(|(_, count)| **count > 0) {
                let (low, high) = PairStatistics::bin_edges(bin);
                cosines.record_many((low + high) / 2.0, *count as usize);
            }
        }
    }

    pub(crate) fn evaluation(&self, evaluation: &Evaluation) {
        let set = || evaluation.set.clone();
        for (name, score) in &evaluation.scores {
            gauge!("g2rl_evaluation_score", "score" => name.clone(), "set" => set()).set(score.mean);
        }
        for (name, score) in evaluation.means() {
            gauge!(format!("g2rl_evaluation_{name}"), "set" => set()).set(score.mean);
        }
    }
}

/// Installs the recorder of this process.
///
/// # Errors
/// If there is one already.
pub(crate) fn install() -> anyhow::Result<PrometheusHandle> {
    let handle = builder().install_recorder()?;
    describe();
    Ok(handle)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use g2rl_common::ids::{GroupId, PolicyVersion, StepIndex};
    use g2rl_common::rollout::Purpose;
    use g2rl_common::update::UpdateStats;

    use super::*;
    use crate::evaluate::Score;
    use crate::state::{Coordinator, ProblemRef, RunPlan, StepTimes};

    fn record_everything(telemetry: &Telemetry) {
        let pairs = PairStatistics { pairs: 1, cosine_sum: 0.5, ..PairStatistics::default() };
        let pairs = PairStatistics { histogram: vec![1; pairs.histogram.len()], ..pairs };
        let step = StepSummary {
            reward: 0.0,
            correct: 0.5,
            score: 0.5,
            length: 3.0,
            novelty: Some(0.5),
            pairs: Some(pairs.clone()),
            equal_reward_groups: 1,
            groups: 1,
            tokens_per_s: 5.0,
            seconds: 1.0,
        };
        let record = StepRecord {
            step: StepIndex(0),
            policy_version: PolicyVersion(1),
            groups: vec![GroupId(0)],
            imitated: Vec::new(),
            stats: UpdateStats::default(),
            first_minibatch_stats: UpdateStats::default(),
            gradient_norm: 1.0,
            learning_rate: 0.1,
            response_tokens: 5,
            rollout_idle_ratio: 0.25,
            times: StepTimes::default(),
        };
        let outcome = GroupOutcome {
            group: GroupId(0),
            step: StepIndex(0),
            problem: ProblemRef { purpose: Purpose::Train, index: 0 },
            rollouts: Vec::new(),
            pairs: Some(pairs),
            geometry: None,
            equal_rewards: true,
            skipped: false,
        };
        telemetry.step(&record, &step, &[outcome]);
        telemetry.prompt_skipped();
        telemetry.verification_timeout();
        telemetry.reward_service(&OutageClock::default(), 3);
        telemetry.stale_message();
        telemetry.stalls(1, 2);
        telemetry.run_failed();
        telemetry.disk();
        let score = Score { mean: 0.5, interval: [0.4, 0.6] };
        telemetry.evaluation(&Evaluation {
            set: "heldout".into(),
            problems: 1,
            samples: 1,
            scores: vec![("pass@1".into(), score)],
            length: score,
            reward_score: score,
            distinct_correct: score,
            finish_reasons: Default::default(),
        });
        let text =
            "[run]\nname = \"t\"\ndir = \"d\"\nsteps = 1\n[model]\npath = \"m\"\n[data]\ntrain = \"t\"\n";
        let config = g2rl_common::config::RunConfig::from_toml(text).unwrap();
        telemetry.status(&Coordinator::new(RunPlan::from_config(&config, 1, 0, None)).status());
    }

    #[test]
    fn what_is_exported_is_what_is_described_and_documented() {
        let recorder = builder().build_recorder();
        let handle = recorder.handle();
        metrics::with_local_recorder(&recorder, || record_everything(&Telemetry::new(1e-4, Path::new("."))));
        let text = handle.render();
        let docs =
            std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/metrics.md")).unwrap();
        for metric in METRICS {
            assert!(
                text.contains(&format!("# TYPE {} {}", metric.name, metric.kind)),
                "{} is not exported",
                metric.name
            );
            let row = format!("| `{}` | {} | {} | {} |", metric.name, metric.kind, metric.unit, metric.help);
            assert!(docs.contains(&row), "docs/metrics.md lacks the row {row}");
        }
        let exported: BTreeSet<&str> =
            text.lines().filter_map(|l| l.strip_prefix("# TYPE ")?.split(' ').next()).collect();
        assert_eq!(exported, METRICS.iter().map(|metric| metric.name).collect());
    }
}
