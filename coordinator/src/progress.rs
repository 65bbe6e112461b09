//! What a person sees of a running run: a bar on a terminal, a line a step in a pipe.

use std::io::{self, IsTerminal, Write};
use std::sync::OnceLock;
use std::time::Instant;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use tracing_subscriber::fmt::MakeWriter;

use crate::state::StepRecord;
use crate::summary::StepSummary;

static BARS: OnceLock<MultiProgress> = OnceLock::new();

fn bars() -> &'static MultiProgress {
    BARS.get_or_init(MultiProgress::new)
}

/// Standard error for the log: lines go above the bar instead of through it.
#[derive(Debug, Clone, Copy, Default)]
pub struct LogWriter;

impl Write for LogWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        bars().suspend(|| io::stderr().write(line))
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

impl<'a> MakeWriter<'a> for LogWriter {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        *self
    }
}

/// The progress of a run.
#[derive(Debug)]
pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    started: Instant,
    first_step: Option<u64>,
    steps: u64,
    imitates: bool,
}

impl Progress {
    pub(crate) fn new(steps: u64, imitates: bool) -> Self {
        let bar = (io::stderr().is_terminal() && steps > 0).then(|| {
            let style = ProgressStyle::with_template("step {pos}/{len} {wide_bar} {msg}")
                .unwrap_or_else(|_| ProgressStyle::default_bar());
            bars().add(ProgressBar::new(steps)).with_style(style)
        });
        Self { bar, started: Instant::now(), first_step: None, steps, imitates }
    }

    pub(crate) fn step(&mut self, record: &StepRecord, step: &StepSummary) {
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
        // The loss of a policy update on its own rollouts is about zero whatever it learns.
        let stats = &record.stats;
        let learning = match self.imitates {
            true => format!("loss {:.4}", stats.loss),
            false => format!("entropy {:.3}", stats.per_token(stats.entropy)),
        };
        let message =
            format!("{:.0} tokens/s  reward {:+.3}  {learning}  left {left}", step.tokens_per_s, step.reward);
        match &self.bar {
            Some(bar) => {
                bar.set_position(done);
                bar.set_message(message);
            }
            None => {
                let cosine = step.pairs.as_ref().and_then(|p| p.mean_cosine());
                let cosine = cosine.map_or(String::new(), |c| format!("  cosine {c:.3}"));
                let first = &record.first_minibatch_stats;
                tracing::info!(
                    "step {done}/{}  {message}  length {:.1}  gradient norm {:.3}{cosine}  drift {:.1e} (max {:.1e})  {:.2} s",
                    self.steps,
                    step.length,
                    record.gradient_norm,
                    first.per_token(first.drift),
                    first.drift_max,
                    step.seconds
                );
            }
        }
    }

    pub(crate) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish();
            // The bar leaves the cursor at its end.
            bars().suspend(|| eprintln!());
        }
    }
}

/// Seconds for people: `1 h 02 min`, `3 min 20 s`, `5 s`.
fn readable(seconds: f64) -> String {
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
