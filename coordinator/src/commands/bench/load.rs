//! A whole run against simulated ranks: real gRPC streams on loopback, answers that are verified, features
//! that are compared, a journal on disk. The ranks answer at once, so all time is the coordinator's and theirs.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, bail};
use clap::Args;
use g2rl_common::config::RunConfig;
use serde_json::{Value, json};

use super::rank::{self, Load, Observations};
use crate::run::{Existing, RunOptions, run_with};
use crate::state::Outcome;

/// Serve simulated ranks on this machine and measure the coordinator's part of a step.
///
/// Prints one JSON object. seconds is the median of the steps, from a step's first lease to the next's; the
/// process also is all the ranks, so seconds, cpu_seconds and peak_rss_bytes include their share. apply_ms is
/// the time from the last rank's "gradients ready" to a rank's "apply".
#[derive(Debug, Clone, Args)]
pub(super) struct LoadArgs {
    /// Simulated ranks, each with a connection of its own.
    #[arg(long, default_value_t = 1024)]
    pub(super) ranks: u32,
    /// Rollouts of a step for each rank.
    #[arg(long, default_value_t = 16)]
    rollouts_per_rank: u32,
    /// Rollouts of a prompt.
    #[arg(long, default_value_t = 16)]
    group_size: u32,
    /// Length of a feature.
    #[arg(long, default_value_t = 2560)]
    pub(super) hidden: usize,
    /// Prompt tokens of a rollout.
    #[arg(long, default_value_t = 128)]
    pub(super) prompt_tokens: usize,
    /// Response tokens of a rollout, about.
    #[arg(long, default_value_t = 512)]
    pub(super) new_tokens: usize,
    /// Training steps, after a first one that is not measured.
    #[arg(long, default_value_t = 3)]
    steps: u64,
    /// Mini-batches of a step.
    #[arg(long, default_value_t = 4)]
    minibatches: u32,
    /// Print JSON on one line (the default prints it over several).
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: &LoadArgs) -> anyhow::Result<()> {
    let rollouts = args.ranks * args.rollouts_per_rank;
    if rollouts == 0 || !rollouts.is_multiple_of(args.group_size) || args.steps == 0 {
        bail!("--ranks times --rollouts-per-rank must be a multiple of --group-size, and --steps at least 1");
    }
    let folder = std::env::temp_dir().join(format!("g2rl-load-{}", uuid::Uuid::new_v4().simple()));
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let result = measure(args, rollouts, &folder).await;
    // What is left in the temporary folder harms nobody.
    let _ = std::fs::remove_dir_all(&folder);
    let report = result?;
    if args.json {
        println!("{report}")
    } else {
        println!("{report:#}")
    }
    Ok(())
}

async fn measure(args: &LoadArgs, rollouts: u32, folder: &Path) -> anyhow::Result<Value> {
    let options = RunOptions {
        config: config(args, rollouts, folder)?,
        existing: Existing::Refuse,
        local_workers: 0,
        local_devices: Vec::new(),
    };
    let observations = Arc::new(Observations::default());
    let load = Arc::new(Load::new(args));
    let ranks = |url: &str| {
        for number in 0..args.ranks {
            tokio::spawn(rank::serve(url.to_owned(), number, load.clone(), observations.clone()));
        }
    };
    let finished = run_with(&options, ranks).await?;
    let ended = Instant::now();
    if finished.outcome != Outcome::Completed {
        bail!("the run ended otherwise: {:?}", finished.outcome);
    }
    let mut seconds = observations.step_seconds(ended);
    // The first one opens what the others use.
    seconds.remove(0);
    seconds.sort_by(f64::total_cmp);
    let applies = observations.apply_ms();
    let cpu = cpu_seconds()? / (args.steps + 1) as f64;
    Ok(json!({
        "bench": "load",
        "ranks": args.ranks,
        "rollouts": rollouts,
        "hidden": args.hidden,
        "new_tokens": args.new_tokens,
        "seconds": percentile(&seconds, 0.5),
        "seconds_max": seconds.last(),
        "cpu_seconds": cpu,
        "apply_ms_p50": percentile(&applies, 0.5),
        "apply_ms_p99": percentile(&applies, 0.99),
        "applies": applies.len(),
        "peak_rss_bytes": peak_resident_bytes()?,
        "cores": std::thread::available_parallelism().map_or(0, usize::from),
    }))
}

/// Writes the problems and a model's shape, and returns the run's configuration.
fn config(args: &LoadArgs, rollouts: u32, folder: &Path) -> anyhow::Result<RunConfig> {
    let prompts = rollouts / args.group_size;
    let problems: String = (0..prompts)
        .map(|index| {
            json!({"id": format!("p{index}"), "problem": format!("What is {index} + 1?"), "answer": (index + 1).to_string()})
                .to_string()
                + "\n"
        })
        .collect();
    let file = folder.join("problems.jsonl");
    std::fs::write(&file, problems).with_context(|| format!("cannot write {}", file.display()))?;
    std::fs::write(folder.join("config.json"), "{}")?;
    let value = json!({
        "run": {"name": "load", "dir": folder.join("run"), "steps": args.steps + 1},
        "model": {"path": folder},
        "data": {"train": file},
        "algorithm": {"kind": "g2rl"},
        "rollout": {
            "prompts_per_step": prompts, "group_size": args.group_size, "max_new_tokens": args.new_tokens,
        },
        "update": {"sequences_per_minibatch": rollouts.div_ceil(args.minibatches.max(1))},
        "checkpoint": {"every": 0},
        "cluster": {"min_workers": args.ranks, "max_workers": args.ranks},
        // All ranks have one address and come at the same moment.
        "security": {"max_connections": 8 * args.ranks, "connections_per_minute": 8 * args.ranks},
    });
    serde_json::from_value(value).context("the measurement's configuration")
}

/// Of sorted values.
fn percentile(sorted: &[f64], share: f64) -> Option<f64> {
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied()
}

/// Processor time of this process, all threads.
fn cpu_seconds() -> anyhow::Result<f64> {
    /// Ticks a second of `/proc` on Linux.
    const TICKS: f64 = 100.0;
    let text = std::fs::read_to_string("/proc/self/stat").context("cannot read /proc/self/stat")?;
    // The name in parentheses may hold anything; user and system time are the 12th and 13th after it.
    let fields: Vec<&str> = text.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    let ticks = |index: usize| fields.get(index).and_then(|field| field.parse::<f64>().ok());
    Ok((ticks(11).context("no user time")? + ticks(12).context("no system time")?) / TICKS)
}

fn peak_resident_bytes() -> anyhow::Result<u64> {
    let text = std::fs::read_to_string("/proc/self/status").context("cannot read /proc/self/status")?;
    let kilobytes = text.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    Ok(kilobytes.trim().trim_end_matches("kB").trim().parse::<u64>()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_seen() {
        let values: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(percentile(&values, 0.5), Some(50.0));
        assert_eq!(percentile(&values, 0.99), Some(99.0));
        assert_eq!(percentile(&[7.0], 0.99), Some(7.0));
        assert_eq!(percentile(&[], 0.5), None);
    }

    /// The whole measurement, small: every part of a step runs.
    #[tokio::test(flavor = "multi_thread")]
    async fn simulated_ranks_complete_a_run() {
        let args = LoadArgs {
            ranks: 8,
            rollouts_per_rank: 4,
            group_size: 4,
            hidden: 16,
            prompt_tokens: 3,
            new_tokens: 12,
            steps: 2,
            minibatches: 2,
            json: true,
        };
        let folder = tempfile::tempdir().unwrap();
        let report = measure(&args, 32, folder.path()).await.unwrap();
        // 3 steps of 2 mini-batches on 8 ranks.
        assert_eq!(report["applies"], 48);
        assert!(report["seconds"].as_f64().unwrap() > 0.0);
        assert!(report["apply_ms_p99"].as_f64().unwrap() >= report["apply_ms_p50"].as_f64().unwrap());
        assert!(report["cpu_seconds"].as_f64().unwrap() < 60.0);
        assert!(report["peak_rss_bytes"].as_u64().unwrap() > 1 << 20);
    }
}
