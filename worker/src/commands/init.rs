//! `g2rl-worker init`: a model directory with random weights.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;
use tch::Device;

use super::DtypeArg;
use crate::checkpoint::copy_companions;
use crate::model::{ModelConfig, Placement, Weights};

/// Make a model directory with random weights from a config.json.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  g2rl-worker init --architecture configs/demo/architecture.json --tokenizer configs/demo/tokenizer --out runs/init
  g2rl-worker init --architecture Qwen3-1.7B/config.json --out /tmp/random --dtype bf16 --seed 3")]
pub struct InitArgs {
    /// A Hugging Face config.json.
    #[arg(long, value_name = "FILE")]
    architecture: PathBuf,
    /// Directory to create.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Directory whose tokenizer files are copied beside the weights.
    #[arg(long, value_name = "DIR")]
    tokenizer: Option<PathBuf>,
    /// The same seed gives the same weights.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Number format of the files.
    #[arg(long, value_enum, default_value_t = DtypeArg::F32)]
    dtype: DtypeArg,
}

/// Runs the command.
///
/// # Errors
/// If a file cannot be read or written, or the directory already holds a model.
pub fn run(args: &InitArgs) -> anyhow::Result<ExitCode> {
    if args.out.join("config.json").exists() {
        bail!("{} already holds a model; remove it or choose another directory", args.out.display());
    }
    let config = ModelConfig::load_file(&args.architecture)?;
    let placement =
        Placement { device: Device::Cpu, dtype: args.dtype.into(), trainable: false, offload: false };
    let weights = Weights::random(config, args.seed, placement)?;
    weights.save(&args.out)?;
    if let Some(tokenizer) = &args.tokenizer {
        copy_companions(tokenizer, &args.out).context("cannot copy the tokenizer")?;
    }
    println!("{}: {} parameters", args.out.display(), weights.config().parameters());
    Ok(ExitCode::SUCCESS)
}
