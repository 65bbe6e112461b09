//! This project's programs.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Context;
use serde_json::Value;

use super::profile::Profiled;
use super::workload::Workload;
use crate::run::{root, stdout};
use crate::tasks;

/// Ranks of the load test.
const LOADS: [u64; 3] = [64, 256, 1024];

/// The built programs.
pub(super) struct Ours {
    workload: Workload,
    config: PathBuf,
}

/// Tokens a second of rollouts, seconds of the rest.
#[derive(Debug, Clone, Copy)]
pub(super) struct Measured {
    pub(super) rollout: f64,
    pub(super) rollout_bf16: f64,
    pub(super) rollout_16: f64,
    pub(super) rollout_1: f64,
    /// Time with features over time without.
    pub(super) feature_cost: f64,
    pub(super) update: f64,
    pub(super) update_bf16: f64,
    pub(super) step: f64,
    pub(super) step_bf16: f64,
    /// Two ranks with one thread each.
    pub(super) two_ranks: f64,
    /// Bytes of a gradient, and seconds for its sum over two ranks.
    pub(super) collective: (f64, f64),
    /// Of the f32 step, bytes.
    pub(super) peak_memory: f64,
}

impl Ours {
    /// Builds the programs.
    pub(super) fn build(workload: Workload) -> anyhow::Result<Self> {
        tasks::build_programs()?;
        let config = root().join("target").join(format!("bench-{}.json", workload.name));
        std::fs::write(&config, workload.config().to_string())
            .with_context(|| format!("cannot write {}", config.display()))?;
        Ok(Self { workload, config })
    }

    fn worker(&self, what: &str, batch: u64, more: &[&str]) -> anyhow::Result<Value> {
        let workload = &self.workload;
        let group = workload.group_size.min(batch).to_string();
        eprintln!("bench: g2rl-worker bench {what} --batch {batch} {}", more.join(" "));
        let text = stdout(
            Command::new(root().join("target/debug/g2rl-worker"))
                .args(["bench", what, "--json", "--architecture"])
                .arg(&self.config)
                .args(["--batch", &batch.to_string(), "--group-size", &group])
                .args(["--prompt-tokens", &workload.prompt_tokens.to_string()])
                .args(["--new-tokens", &workload.new_tokens.to_string()])
                .args(more),
        )?;
        serde_json::from_str(&text).with_context(|| format!("bench {what} printed {text}"))
    }

    /// All measurements of the worker, once.
    pub(super) fn measure(&self) -> anyhow::Result<Measured> {
        const TWO: [&str; 2] = ["--threads", "2"];
        let batch = self.workload.batch();
        let rollout = |batch, more: &[&str]| -> anyhow::Result<f64> {
            number(&self.worker("rollout", batch, &[&TWO[..], more].concat())?, "tokens_per_s")
        };
        let seconds = |what, more: &[&str]| -> anyhow::Result<f64> {
            number(&self.worker(what, batch, &[&TWO[..], more].concat())?, "seconds")
        };
        // With and without features in turn, so that both see the same machine.
        let (mut with, mut without) = (Vec::new(), Vec::new());
        for _ in 0..3 {
            with.push(rollout(batch, &["--features", "on"])?);
            without.push(rollout(batch, &["--features", "off"])?);
        }
        let (with, without) = (median(&mut with), median(&mut without));
        let step = self.worker("step", batch, &TWO)?;
        let collective = self.worker("collective", batch, &[])?;
        Ok(Measured {
            rollout: with,
            rollout_bf16: rollout(batch, &["--dtype", "bf16"])?,
            rollout_16: rollout(16, &[])?,
            rollout_1: rollout(1, &[])?,
            feature_cost: without / with,
            update: seconds("update", &[])?,
            update_bf16: seconds("update", &["--dtype", "bf16"])?,
            step: number(&step, "seconds")?,
            step_bf16: seconds("step", &["--dtype", "bf16"])?,
            two_ranks: number(&self.worker("step", batch, &["--threads", "1", "--ranks", "2"])?, "seconds")?,
            collective: (number(&collective, "bytes")?, number(&collective, "seconds")?),
            peak_memory: number(&step, "peak_rss_bytes")?,
        })
    }

    /// Where the time of rollouts and updates goes.
    pub(super) fn profiles(&self) -> anyhow::Result<Vec<Profiled>> {
        let workload = &self.workload;
        let mut columns = Vec::new();
        for (what, dtype) in [("rollout", "f32"), ("rollout", "bf16"), ("update", "f32"), ("update", "bf16")]
        {
            let rollout = what == "rollout";
            let bytes = if dtype == "f32" { 4 } else { 2 };
            columns.push(Profiled {
                name: format!("{what}, {dtype}"),
                report: self.worker(what, workload.batch(), &["--threads", "2", "--dtype", dtype])?,
                product_flops: match rollout {
                    true => workload.decode_flops() * workload.decoded_tokens(),
                    false => workload.update_layer_flops(),
                },
                cache_bytes: rollout.then(|| workload.cache_bytes(bytes)),
                bf16: dtype == "bf16",
            });
        }
        Ok(columns)
    }

    /// The coordinator's load at several numbers of ranks.
    pub(super) fn load(&self) -> anyhow::Result<Vec<Value>> {
        LOADS
            .iter()
            .map(|ranks| {
                eprintln!("bench: g2rl-coordinator bench load --ranks {ranks}");
                let text = stdout(Command::new(root().join("target/debug/g2rl-coordinator")).args([
                    "bench",
                    "load",
                    "--json",
                    "--ranks",
                    &ranks.to_string(),
                ]))?;
                serde_json::from_str(&text).with_context(|| format!("bench load printed {text}"))
            })
            .collect()
    }
}

impl Measured {
    /// The mean of two measurements; the larger peak.
    pub(super) fn mean(&self, other: &Self) -> Self {
        let mean = |f: fn(&Self) -> f64| (f(self) + f(other)) / 2.0;
        Self {
            rollout: mean(|m| m.rollout),
            rollout_bf16: mean(|m| m.rollout_bf16),
            rollout_16: mean(|m| m.rollout_16),
            rollout_1: mean(|m| m.rollout_1),
            feature_cost: mean(|m| m.feature_cost),
            update: mean(|m| m.update),
            update_bf16: mean(|m| m.update_bf16),
            step: mean(|m| m.step),
            step_bf16: mean(|m| m.step_bf16),
            two_ranks: mean(|m| m.two_ranks),
            collective: (self.collective.0, mean(|m| m.collective.1)),
            peak_memory: self.peak_memory.max(other.peak_memory),
        }
    }
}

/// A number of a JSON object.
pub(super) fn number(object: &Value, key: &str) -> anyhow::Result<f64> {
    object[key].as_f64().with_context(|| format!("no {key} in {object}"))
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
