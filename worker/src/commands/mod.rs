//! The subcommands of `g2rl-worker`.

pub mod bench;
pub mod generate;
pub mod init;
pub mod jsonl;
pub mod run;
pub mod score;

use clap::ValueEnum;
use g2rl_common::config::{Dtype, Recompute};

use crate::devices;

/// `--dtype`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DtypeArg {
    /// 32-bit floats.
    F32,
    /// bfloat16.
    Bf16,
}

impl From<DtypeArg> for Dtype {
    fn from(dtype: DtypeArg) -> Self {
        match dtype {
            DtypeArg::F32 => Self::F32,
            DtypeArg::Bf16 => Self::Bf16,
        }
    }
}

/// `--recompute`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RecomputeArg {
    /// Nothing.
    None,
    /// All but the attention.
    AllButAttention,
    /// The whole layer.
    Layer,
}

impl From<RecomputeArg> for Recompute {
    fn from(recompute: RecomputeArg) -> Self {
        match recompute {
            RecomputeArg::None => Self::Nothing,
            RecomputeArg::AllButAttention => Self::AllButAttention,
            RecomputeArg::Layer => Self::Layer,
        }
    }
}

/// A single device, for the commands that work alone.
///
/// # Errors
/// If the name is unknown or the device is not there.
pub fn one_device(name: &str) -> anyhow::Result<tch::Device> {
    match devices::parse(name)?.ranks[..] {
        [device] => Ok(device),
        _ => anyhow::bail!("--device takes one device, such as cpu or cuda:0"),
    }
}
