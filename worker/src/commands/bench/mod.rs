//! `g2rl-worker bench`: how fast one rank rolls out, updates, and sums gradients.

mod collective;
mod report;
mod rollout;
mod update;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Subcommand};
use tch::Device;

use self::report::Report;
use super::{DtypeArg, RecomputeArg, one_device};
use crate::model::{Model, ModelConfig, Placement, Weights};
use crate::planner::{MemoryPlan, PlanInput};

/// Measure the speed of one rank.
///
/// Prints one JSON object: tokens_per_s where tokens are generated or trained on, seconds (median of
/// the repetitions), seconds_min, seconds_max, profile (seconds of each phase in the fastest repetition),
/// peak_rss_bytes, threads, dtype, the sizes and the device; on a GPU also peak_device_bytes.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  g2rl-worker bench rollout --architecture config.json --batch 128 --prompt-tokens 32 --new-tokens 128 --json
  g2rl-worker bench update --model DIR --sequences 128 --prompt-tokens 32 --new-tokens 128 --json
  g2rl-worker bench step --architecture config.json --batch 128 --group-size 8 --json
  g2rl-worker bench collective --architecture config.json --json")]
pub struct BenchArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Generate rollouts of an exact length.
    Rollout(SizeArgs),
    /// Forward, backward and optimizer step over given sequences.
    Update(SizeArgs),
    /// A whole step: rollouts, then the update over them.
    Step(SizeArgs),
    /// Sum a model's gradients over two ranks on this machine.
    Collective(SizeArgs),
}

/// Sizes of a measurement.
#[derive(Debug, Clone, Args)]
pub struct SizeArgs {
    /// Model directory.
    #[arg(
        long,
        value_name = "DIR",
        conflicts_with = "architecture",
        required_unless_present = "architecture"
    )]
    model: Option<PathBuf>,
    /// A config.json; the weights are random.
    #[arg(long, value_name = "FILE")]
    architecture: Option<PathBuf>,
    /// Sequences, all in flight at the same time.
    #[arg(long, visible_alias = "sequences", default_value_t = 128)]
    batch: usize,
    /// Prompt tokens of each sequence.
    #[arg(long, default_value_t = 32)]
    prompt_tokens: usize,
    /// Response tokens of each sequence, exactly.
    #[arg(long, default_value_t = 128)]
    new_tokens: usize,
    /// Sequences that share a prompt.
    #[arg(long, default_value_t = 8)]
    group_size: usize,
    /// Compute sensitivity features.
    #[arg(long, default_value = "on", value_parser = ["on", "off"])]
    features: String,
    /// Tokens of a packed micro-batch; by default the memory plan decides.
    #[arg(long)]
    tokens_per_microbatch: Option<u32>,
    /// What the backward computes again: none, all-but-attention or layer; by default the memory plan decides.
    #[arg(long, value_enum)]
    recompute: Option<RecomputeArg>,
    /// Ranks that share the batch, for `step`: each a thread with the given threads of its own.
    #[arg(long, default_value_t = 1)]
    ranks: usize,
    /// Divide the optimizer state among the ranks.
    #[arg(long)]
    shard: bool,
    /// Keep optimizer state in host memory.
    #[arg(long)]
    offload: bool,
    /// Ranks that the optimizer state is divided among: `ranks`, also in a rank's share.
    #[arg(skip = 1usize)]
    of_ranks: usize,
    /// Coefficient of the KL term; above 0 a reference model takes part in the update.
    #[arg(long, default_value_t = 0.001)]
    kl_coef: f64,
    /// Repetitions after one warm-up.
    #[arg(long, default_value_t = 5)]
    repetitions: usize,
    /// CPU threads; by default libtorch decides.
    #[arg(long, env = "G2RL_THREADS")]
    threads: Option<i32>,
    /// Number format of the computation.
    #[arg(long, value_enum, default_value_t = DtypeArg::F32)]
    dtype: DtypeArg,
    /// cpu or cuda:N.
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Print JSON on one line (the default prints it over several).
    #[arg(long)]
    json: bool,
}

impl SizeArgs {
    fn placement(&self) -> anyhow::Result<Placement> {
        Ok(Placement {
            device: one_device(&self.device)?,
            dtype: self.dtype.into(),
            trainable: true,
            offload: self.offload,
        })
    }

    fn load(&self) -> anyhow::Result<Model> {
        let weights = match &self.model {
            Some(dir) => Weights::load(dir, self.placement()?)?,
            None => Weights::random(self.shape()?, 0, self.placement()?)?,
        };
        Ok(Model::new(weights))
    }

    fn shape(&self) -> anyhow::Result<ModelConfig> {
        match (&self.model, &self.architecture) {
            (Some(dir), _) => Ok(ModelConfig::load(dir)?),
            (None, Some(file)) => Ok(ModelConfig::load_file(file)?),
            (None, None) => anyhow::bail!("give --model or --architecture"),
        }
    }

    /// The plan of a rank that does all of it; to be asked for before anything is loaded.
    fn plan(&self, model: &ModelConfig) -> anyhow::Result<MemoryPlan> {
        Ok(MemoryPlan::new(&PlanInput {
            model,
            device: one_device(&self.device)?,
            dtype: self.dtype.into(),
            reference: self.kl_coef > 0.0,
            prompt_tokens: self.prompt_tokens as u64,
            new_tokens: self.new_tokens as u64,
            rollouts: self.batch as u64,
            group_size: self.group_size as u64,
            slots: Some(self.batch as u64),
            microbatch: self.tokens_per_microbatch.map(u64::from),
            head_chunk: update::HEAD_CHUNK as u64,
            recompute: self.recompute.map(Into::into),
            optimizer_ranks: if self.shard { self.of_ranks as u64 } else { 1 },
            offload: self.offload,
            background: false,
        })?)
    }

    /// A rank's share of the batch.
    fn share(&self) -> anyhow::Result<Self> {
        anyhow::ensure!(
            self.ranks > 0 && (self.batch / self.group_size).is_multiple_of(self.ranks),
            "--batch must be a multiple of --group-size times --ranks"
        );
        Ok(Self { batch: self.batch / self.ranks, ranks: 1, of_ranks: self.ranks, ..self.clone() })
    }

    fn check(&self) -> anyhow::Result<()> {
        let sizes = [self.batch, self.prompt_tokens, self.new_tokens, self.group_size, self.repetitions];
        anyhow::ensure!(sizes.iter().all(|size| *size > 0), "all sizes must be at least 1");
        anyhow::ensure!(
            self.batch.is_multiple_of(self.group_size),
            "--batch must be a multiple of --group-size"
        );
        Ok(())
    }
}

/// Runs the command.
///
/// # Errors
/// If the model cannot be loaded or the sizes do not fit it.
pub fn run(args: &BenchArgs) -> anyhow::Result<ExitCode> {
    let (name, sizes) = match &args.what {
        What::Rollout(sizes) => ("rollout", sizes),
        What::Update(sizes) => ("update", sizes),
        What::Step(sizes) => ("step", sizes),
        What::Collective(sizes) => ("collective", sizes),
    };
    sizes.check()?;
    if let Some(threads) = sizes.threads {
        tch::set_num_threads(threads);
    }
    let mut report = Report::new(name, sizes);
    match &args.what {
        What::Rollout(_) => rollout::measure(sizes, &mut report),
        What::Update(_) => update::measure(sizes, &mut report),
        What::Step(_) => update::measure_step(sizes, &mut report),
        What::Collective(_) => collective::measure(sizes, &mut report),
    }
    .with_context(|| format!("bench {name}"))?;
    report.set("device", sizes.device.as_str().into());
    if let Device::Cuda(index) = one_device(&sizes.device)? {
        report.set("peak_device_bytes", g2rl_ffi::cuda::memory_stats(index)?.peak_allocated.into());
    }
    report.print(sizes.json)?;
    Ok(ExitCode::SUCCESS)
}

/// Waits until a GPU has done what it was given.
fn synchronize(device: Device) -> anyhow::Result<()> {
    if let Device::Cuda(index) = device {
        g2rl_ffi::cuda::synchronize(index)?;
    }
    Ok(())
}
