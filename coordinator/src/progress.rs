//! What a person sees of a running run: a view on a terminal, a line a step in a pipe.

use std::time::Instant;

use g2rl_common::algorithm;
use g2rl_common::config::RunConfig;
use g2rl_common::ids::StepIndex;

use crate::evaluate::Evaluation;
use crate::state::{Millis, RunStatus, Stall, StepRecord};
use crate::summary::StepSummary;
use crate::terminal::View;

/// The progress of a run.
#[derive(Debug)]
pub(crate) struct Progress {
    view: Option<View>,
    started: Instant,
    first_step: Option<u64>,
    steps: u64,
    imitates: bool,
}

impl Progress {
    pub(crate) fn new(config: &RunConfig) -> Self {
        let imitates = !algorithm::build(&config.algorithm).needs_rollouts();
        let view = View::open(config);
        Self { view, started: Instant::now(), first_step: None, steps: config.run.steps, imitates }
    }

    pub(crate) fn step(&mut self, record: &StepRecord, step: &StepSummary) {
        if let Some(view) = &self.view {
            return view.step(record, step);
        }
        let done = record.step.0 + 1;
        let first = *self.first_step.get_or_insert(record.step.0);
        if done == first + 1 {
            self.started = Instant::now();
        }
        // The first step's own time is not known here; later ones give the pace.
        let counted = done - first - 1;
        let left = match counted {
            0 => "-".to_owned(),
            _ => readable(self.started.elapsed().as_secs_f64() / counted as f64 * (self.steps - done) as f64),
        };
        let rate = format!("step {done}/{}  {:.0} tokens/s", self.steps, step.tokens_per_s);
        let rest = format!("gradient norm {:.3}  {:.2} s", record.gradient_norm, step.seconds);
        let stats = &record.stats;
        if self.imitates {
            tracing::info!("{rate}  loss {:.4}  left {left}  {rest}", stats.loss);
            return;
        }
        // The loss of a policy update on its own rollouts is about zero whatever it learns.
        let entropy = stats.per_token(stats.entropy);
        let cosine = step.pairs.as_ref().and_then(|p| p.mean_cosine());
        let cosine = cosine.map_or(String::new(), |c| format!("  cosine {c:.3}"));
        let first = &record.first_minibatch_stats;
        tracing::info!(
            "{rate}  reward {:+.3}  entropy {entropy:.3}  left {left}  length {:.1}{cosine}  drift {:.1e} (max {:.1e})  {rest}",
            step.reward,
            step.length,
            first.per_token(first.drift),
            first.drift_max,
        );
    }

    pub(crate) fn evaluation(&self, step: StepIndex, evaluation: &Evaluation) {
        if let Some(view) = &self.view {
            view.evaluation(step, evaluation);
        }
    }

    pub(crate) fn status(&self, status: &RunStatus, now: Millis) {
        if let Some(view) = &self.view {
            view.status(status, now);
        }
    }

    pub(crate) fn stalls(&self, stalls: &[Stall]) {
        if let Some(view) = &self.view {
            view.stalls(stalls);
        }
    }

    pub(crate) fn finish(&mut self) {
        if let Some(view) = &mut self.view {
            view.close();
        }
    }
}

/// Seconds for people: `1 h 02 min`, `3 min 20 s`, `5 s`.
pub(crate) fn readable(seconds: f64) -> String {
    let seconds = seconds.round() as u64;
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, s) => format!("{s} s"),
        (0, m, s) => format!("{m} min {s:02} s"),
        (h, m, _) => format!("{h} h {m:02} min"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_well() {
        assert_eq!(readable(4.6), "5 s");
        assert_eq!(readable(200.0), "3 min 20 s");
        assert_eq!(readable(3_720.0), "1 h 02 min");
    }
}
