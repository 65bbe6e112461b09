//! `g2rl-coordinator verify`: judge answers from a file.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use clap::{Args, ValueEnum};
use futures::{StreamExt, TryStreamExt, stream};
use g2rl_common::config::{LoadOptions, RegexOptions, RewardConfig, RewardKindName, RunConfig};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::lines;
use crate::reward::{self, Judge};

/// Cases that are judged at the same time: enough to fill the requests of a reward service.
const AT_A_TIME: usize = 1_024;

/// Judge answers.
///
/// Reads {"gold","prediction"}, one object a line, and writes {"correct","score","extracted",
/// "canonical","reason"} in the same order, with the input's id if it has one. A case's "prompt" goes to
/// a reward service.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  g2rl-coordinator verify --input cases.jsonl --output verdicts.jsonl
  echo '{\"gold\":\"1/2\",\"prediction\":\"so \\\\boxed{0.5}\"}' | g2rl-coordinator verify --input -
  g2rl-coordinator verify --input countdown.jsonl --kind countdown
  g2rl-coordinator verify --input cases.jsonl --kind regex --pattern '#### (.*)'
  g2rl-coordinator verify --input cases.jsonl --config configs/demo.toml")]
pub struct VerifyArgs {
    /// Cases; - is standard input.
    #[arg(long, value_name = "FILE")]
    input: PathBuf,
    /// Where to write; standard output by default.
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Which verifier.
    #[arg(long, alias = "reward", value_enum, default_value_t = KindArg::Math)]
    kind: KindArg,
    /// Take the last formula or number of a prediction that has neither \boxed{} nor "the answer is" as its
    /// answer. Training does not, unless reward.last_number is set.
    #[arg(long, value_name = "BOOL", default_value_t = true, default_missing_value = "true",
          num_args = 0..=1, action = clap::ArgAction::Set)]
    last_number: bool,
    /// The pattern of --kind regex.
    #[arg(long, value_name = "REGEX", required_if_eq("kind", "regex"))]
    pattern: Option<String>,
    /// Letters are equal to their capitals (exact and regex).
    #[arg(long)]
    case_insensitive: bool,
    /// Judge as this configuration's [reward] does.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["kind", "last_number", "pattern", "case_insensitive"])]
    config: Option<PathBuf>,
    /// Override a key of the configuration, such as reward.timeout_ms=100; may be given several times.
    #[arg(long, value_name = "KEY=VALUE", requires = "config")]
    set: Vec<String>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum KindArg {
    Math,
    Countdown,
    Ladder,
    Exact,
    Choice,
    Regex,
}

#[derive(Debug, Deserialize)]
struct Case {
    id: Option<Value>,
    #[serde(default)]
    prompt: String,
    gold: String,
    prediction: String,
}

#[derive(Debug, Serialize)]
struct VerdictRow {
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<Value>,
    correct: bool,
    score: f64,
    extracted: Option<String>,
    canonical: Option<String>,
    reason: String,
}

impl VerifyArgs {
    fn reward(&self) -> anyhow::Result<RewardConfig> {
        if let Some(path) = &self.config {
            let options = LoadOptions { path: path.clone(), overrides: self.set.clone() };
            return Ok(RunConfig::load(&options)?.reward);
        }
        let mut config = RewardConfig { last_number: self.last_number, ..RewardConfig::default() };
        config.exact.case_insensitive = self.case_insensitive;
        config.regex = self.pattern.clone().map(|pattern| RegexOptions {
            pattern,
            case_insensitive: self.case_insensitive,
            after_thinking: true,
        });
        config.kind = match self.kind {
            KindArg::Math => RewardKindName::Math,
            KindArg::Countdown => RewardKindName::Countdown,
            KindArg::Ladder => RewardKindName::Ladder,
            KindArg::Exact => RewardKindName::Exact,
            KindArg::Choice => RewardKindName::Choice,
            KindArg::Regex => RewardKindName::Regex,
        };
        config.validate()?;
        Ok(config)
    }
}

async fn judge(judge: &Judge, place: String, case: Case) -> anyhow::Result<VerdictRow> {
    let judged = Arc::new(reward::Case {
        id: place.clone(),
        prompt: case.prompt,
        response: case.prediction,
        answer: case.gold,
    });
    let judgement = judge.judge(&judged).await.context(place)?;
    Ok(VerdictRow {
        id: case.id,
        correct: judgement.verdict.correct,
        score: judgement.score,
        extracted: judgement.verdict.extracted,
        canonical: judgement.verdict.canonical,
        reason: judgement.verdict.reason,
    })
}

/// Runs the command.
///
/// # Errors
/// If a file cannot be read or written, or a case cannot be judged; names file and line.
pub async fn run(args: &VerifyArgs) -> anyhow::Result<()> {
    let reward = Judge::build(&args.reward()?)?;
    let cases: Vec<(String, Case)> = lines::read(&args.input)?;
    let verdicts: Vec<VerdictRow> = stream::iter(cases)
        .map(|(place, case)| judge(&reward, place, case))
        .buffered(AT_A_TIME)
        .try_collect()
        .await?;
    lines::write(args.output.as_deref(), verdicts)
}
