//! Other programs for the same work. Each prints one JSON object a line.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;
use serde_json::Value;

use super::ours::number;
use super::workload::Workload;
use crate::run::{root, stdout};

/// More cores than this in use by others make a measurement worthless.
const QUIET: f64 = 0.2;

/// What the scripts call a megabyte.
const MIB: f64 = 1_048_576.0;

/// Where the programs are.
pub(super) struct Peers<'a> {
    /// The scripts' folder and the Python to run them.
    pub(super) folder: Option<(&'a Path, &'a Path)>,
    /// The program and its model's folder.
    pub(super) candle: Option<&'a [PathBuf]>,
    pub(super) workload: Workload,
}

/// What the machine can do.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Limits {
    pub(super) gflops_f32: Option<f64>,
    pub(super) gflops_bf16: Option<f64>,
    /// A matrix-vector product, GB/s read.
    pub(super) read: Option<f64>,
    /// Gloo's sum over two processes, GB/s.
    pub(super) gloo: Option<f64>,
}

/// The best of each measurement, with its name; tokens a second, seconds and bytes.
#[derive(Debug, Clone, Default)]
pub(super) struct Theirs {
    pub(super) rollout: Best,
    pub(super) rollout_16: Best,
    pub(super) rollout_1: Best,
    pub(super) step_f32: Best,
    pub(super) step_any: Best,
    pub(super) peak_memory: Best,
}

/// The best value seen so far, and whose it is.
#[derive(Debug, Clone, Default)]
pub(super) struct Best(pub(super) Option<(f64, String)>);

impl Best {
    fn higher(&mut self, value: f64, name: &str) {
        if self.0.as_ref().is_none_or(|(best, _)| value > *best) {
            self.0 = Some((value, name.to_owned()));
        }
    }

    fn lower(&mut self, value: f64, name: &str) {
        if self.0.as_ref().is_none_or(|(best, _)| value < *best) {
            self.0 = Some((value, name.to_owned()));
        }
    }
}

impl Peers<'_> {
    fn script(&self, name: &str, arguments: &[&str]) -> anyhow::Result<Vec<Value>> {
        let Some((folder, _)) = self.folder else { return Ok(Vec::new()) };
        self.run(&folder.join(name), arguments)
    }

    fn run(&self, script: &Path, arguments: &[&str]) -> anyhow::Result<Vec<Value>> {
        let Some((folder, python)) = self.folder else { return Ok(Vec::new()) };
        eprintln!("bench: {} {}", script.display(), arguments.join(" "));
        let text = stdout(
            Command::new(python).arg(script).args(arguments).current_dir(folder).env("PYTHONPATH", folder),
        )?;
        let lines = text.lines().filter(|line| line.starts_with('{'));
        let results: Vec<Value> = lines.map(serde_json::from_str).collect::<Result<_, _>>()?;
        for result in &results {
            let busy = result["other_cores_busy"].as_f64().unwrap_or(0.0);
            if busy > QUIET {
                eprintln!("bench: {busy:.1} cores were busy with other things: distrust this line");
            }
        }
        Ok(results)
    }

    pub(super) fn limits(&self) -> anyhow::Result<Limits> {
        let Some(limits) = self.script("torch_limits.py", &["--threads", "2"])?.pop() else {
            return Ok(Limits::default());
        };
        let best = |kind: &str| {
            let all = limits["matmul_gflops"].as_object()?;
            let medians = all
                .iter()
                .filter(|(name, _)| name.starts_with(kind))
                .filter_map(|(_, v)| v["median"].as_f64());
            medians.max_by(f64::total_cmp)
        };
        Ok(Limits {
            gflops_f32: best("f32"),
            gflops_bf16: best("bf16"),
            read: limits["matvec_read_gb_s"]["median"].as_f64(),
            gloo: limits["gloo_allreduce"]["algo_gb_s"].as_f64(),
        })
    }

    pub(super) fn measure(&self) -> anyhow::Result<Theirs> {
        let mut theirs = Theirs::default();
        let size = ["--workload", self.workload.name];
        let batch = self.workload.batch();
        let batches = format!("1,16,{batch}");
        for threads in ["1", "2"] {
            let generate = ["--batches", &batches, "--reps", "3", "--threads", threads];
            for line in self.script("hf_generate.py", &[&size[..], &generate].concat())? {
                let (at, speed) = (number(&line, "batch")? as u64, number(&line, "tokens_per_s")?);
                match at {
                    1 => theirs.rollout_1.higher(speed, "transformers"),
                    16 => theirs.rollout_16.higher(speed, "transformers"),
                    _ => theirs.rollout.higher(speed, "transformers"),
                }
            }
        }
        for dtype in ["float32", "bfloat16"] {
            self.trl(dtype, &size, &mut theirs)?;
        }
        for (batch, best) in [(1, &mut theirs.rollout_1), (16, &mut theirs.rollout_16)] {
            if let Some([program, model]) = self.candle {
                let text =
                    stdout(Command::new(program).arg(model).args([&batch.to_string(), "32", "128", "3"]))?;
                let line: Value = serde_json::from_str(text.lines().last().unwrap_or_default())
                    .with_context(|| format!("candle printed {text}"))?;
                best.higher(number(&line, "tokens_per_s")?, "candle");
            }
        }
        Ok(theirs)
    }

    /// TRL's whole step; its script has no switch for the number format, so a copy with another one runs.
    fn trl(&self, dtype: &str, size: &[&str], theirs: &mut Theirs) -> anyhow::Result<()> {
        let Some((folder, _)) = self.folder else { return Ok(()) };
        let original = folder.join("trl_grpo.py");
        let text = std::fs::read_to_string(&original)
            .with_context(|| format!("cannot read {}", original.display()))?;
        let copy = root().join("target").join(format!("trl_grpo_{dtype}.py"));
        std::fs::write(&copy, text.replace("\"dtype\": \"float32\"", &format!("\"dtype\": \"{dtype}\"")))?;
        let micro = self.workload.trl_micro.to_string();
        let steps = ["--steps", "3", "--warmup", "1", "--threads", "2", "--micro", &micro];
        for line in self.run(&copy, &[size, &steps[..]].concat())? {
            let name = format!("TRL {dtype}");
            let seconds = number(&line["step_s"], "median")?;
            theirs.step_any.lower(seconds, &name);
            if dtype == "float32" {
                theirs.step_f32.lower(seconds, &name);
                theirs.rollout.higher(number(&line, "tokens_per_s_generate")?, &name);
                theirs.peak_memory.lower(number(&line, "peak_rss_mb")? * MIB, &name);
            }
        }
        if dtype == "float32" {
            // Its least memory: smaller micro-batches, slower.
            let least = (self.workload.trl_micro / 2).to_string();
            let steps = ["--steps", "1", "--warmup", "1", "--threads", "2", "--micro", &least];
            for line in self.run(&copy, &[size, &steps[..]].concat())? {
                theirs.peak_memory.lower(number(&line, "peak_rss_mb")? * MIB, "TRL, micro-batch of a half");
            }
        }
        Ok(())
    }
}
