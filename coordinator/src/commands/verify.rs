//! `g2rl-coordinator verify`: judge answers from a file.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use g2rl_common::config::{RewardConfig, RewardKindName};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::lines;
use crate::reward;

/// Judge answers.
///
/// Reads {"gold","prediction"}, one object a line, and writes {"correct","extracted","canonical",
/// "reason"} in the same order, with the input's id if it has one.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  g2rl-coordinator verify --input cases.jsonl --output verdicts.jsonl
  echo '{\"gold\":\"1/2\",\"prediction\":\"so \\\\boxed{0.5}\"}' | g2rl-coordinator verify --input -
  g2rl-coordinator verify --input countdown.jsonl --reward countdown")]
pub struct VerifyArgs {
    /// Cases; - is standard input.
    #[arg(long, value_name = "FILE")]
    input: PathBuf,
    /// Where to write; standard output by default.
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Which verifier.
    #[arg(long, value_enum, default_value_t = RewardArg::Math)]
    reward: RewardArg,
    /// Take the last number of a prediction without \boxed{} as its answer.
    #[arg(long)]
    last_number: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum RewardArg {
    Math,
    Countdown,
}

#[derive(Debug, Deserialize)]
struct Case {
    id: Option<Value>,
    gold: String,
    prediction: String,
}

#[derive(Debug, Serialize)]
struct VerdictRow {
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<Value>,
    correct: bool,
    extracted: Option<String>,
    canonical: Option<String>,
    reason: String,
}

/// Runs the command.
///
/// # Errors
/// If a file cannot be read or written; names file and line.
pub fn run(args: &VerifyArgs) -> anyhow::Result<()> {
    let kind = match args.reward {
        RewardArg::Math => RewardKindName::Math,
        RewardArg::Countdown => RewardKindName::Countdown,
    };
    let reward =
        reward::build(&RewardConfig { kind, last_number: args.last_number, ..RewardConfig::default() });
    let cases: Vec<(String, Case)> = lines::read(&args.input)?;
    let verdicts: Vec<VerdictRow> = cases
        .into_par_iter()
        .map(|(_, case)| {
            let verdict = reward.verify(&case.gold, &case.prediction);
            VerdictRow {
                id: case.id,
                correct: verdict.correct,
                extracted: verdict.extracted,
                canonical: verdict.canonical,
                reason: verdict.reason,
            }
        })
        .collect();
    lines::write(args.output.as_deref(), verdicts)
}
