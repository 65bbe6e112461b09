//! `g2rl-coordinator shape`: geometry, shaped rewards and advantages of groups from a file.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use g2rl_common::algorithm::{self, AlgorithmOptions, GroupInput};
use g2rl_common::novelty::NoveltyKind;
use g2rl_common::shaping::Scaler;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::lines;

/// Shape the rewards of groups.
///
/// Reads {"id","features" (a list of m lists of d numbers),"rewards" (m numbers)}, one group a line, and
/// writes {"id","cosine",
/// "novelty","novelty_normalized","degenerate","shaped_rewards","advantages"}.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  g2rl-coordinator shape --input groups.jsonl --output shaped.jsonl
  g2rl-coordinator shape --input - --novelty linear --scaler equation --lambda 0.5 < groups.jsonl")]
pub struct ShapeArgs {
    /// Groups; - is standard input.
    #[arg(long, value_name = "FILE")]
    input: PathBuf,
    /// Where to write; standard output by default.
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Score of a rollout's novelty.
    #[arg(long, value_enum, default_value_t = NoveltyArg::Sqrt)]
    novelty: NoveltyArg,
    /// How novelty scales a reward.
    #[arg(long, value_enum, default_value_t = ScalerArg::Amplify)]
    scaler: ScalerArg,
    /// Strength of the scaling.
    #[arg(long, default_value_t = 1.0)]
    lambda: f64,
    /// Shaped rewards are clipped to this size.
    #[arg(long, default_value_t = 3.0)]
    clip: f64,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum NoveltyArg {
    Sqrt,
    Linear,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ScalerArg {
    Amplify,
    Equation,
}

#[derive(Debug, Deserialize)]
struct GroupRow {
    id: Value,
    features: Vec<Vec<f32>>,
    rewards: Vec<f64>,
}

#[derive(Debug, Serialize)]
struct ShapedRow {
    id: Value,
    cosine: Vec<Vec<f64>>,
    novelty: Vec<f64>,
    novelty_normalized: Vec<f64>,
    degenerate: bool,
    shaped_rewards: Vec<f64>,
    advantages: Vec<f64>,
}

impl ShapeArgs {
    fn options(&self) -> AlgorithmOptions {
        AlgorithmOptions {
            novelty: match self.novelty {
                NoveltyArg::Sqrt => NoveltyKind::Sqrt,
                NoveltyArg::Linear => NoveltyKind::Linear,
            },
            scaler: match self.scaler {
                ScalerArg::Amplify => Scaler::Amplify,
                ScalerArg::Equation => Scaler::Equation,
            },
            lambda: self.lambda,
            clip: self.clip,
            ..AlgorithmOptions::default()
        }
    }
}

/// Runs the command.
///
/// # Errors
/// If a file cannot be read or written, or a group cannot be shaped; names file and line.
pub fn run(args: &ShapeArgs) -> anyhow::Result<()> {
    let options = args.options();
    options.validate()?;
    let mut shaped = Vec::new();
    for (place, row) in lines::read::<GroupRow>(&args.input)? {
        shaped.push(shape(row, &options).map_err(|e| anyhow::anyhow!("{place}: {e}"))?);
    }
    lines::write(args.output.as_deref(), shaped)
}

fn shape(row: GroupRow, options: &AlgorithmOptions) -> anyhow::Result<ShapedRow> {
    let features: Vec<&[f32]> = row.features.iter().map(Vec::as_slice).collect();
    let input = GroupInput { rewards: &row.rewards, features: &features, ..GroupInput::default() };
    let group = algorithm::build(options).group_advantages(&input)?;
    let geometry = group.geometry.ok_or_else(|| anyhow::anyhow!("the group has no features"))?;
    Ok(ShapedRow {
        id: row.id,
        cosine: geometry.rows().map(<[f64]>::to_vec).collect(),
        novelty: group.novelty,
        novelty_normalized: group.novelty_normalized,
        degenerate: group.degenerate_geometry,
        shaped_rewards: group.shaped_rewards,
        advantages: group.advantages,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reference_groups_come_out_as_they_should() {
        let text = include_str!("../../../common/tests/golden/golden_shaping.json");
        let golden: Value = serde_json::from_str(text).unwrap();
        let numbers = |value: &Value| -> Vec<f64> { serde_json::from_value(value.clone()).unwrap() };
        let mut compared = 0;
        for case in golden["cases"].as_array().unwrap() {
            // The command's features are f32, so groups whose scores hang on the last digits are left
            // to the f64 tests of the arithmetic.
            if case["degenerate"].as_bool().unwrap() {
                continue;
            }
            let features: Vec<Vec<f32>> = serde_json::from_value(case["Phi_hat"].clone()).unwrap();
            let row = GroupRow { id: case["name"].clone(), features, rewards: numbers(&case["rewards"]) };
            let options = AlgorithmOptions {
                lambda: case["lambda"].as_f64().unwrap(),
                clip: case["c"].as_f64().unwrap(),
                ..AlgorithmOptions::default()
            };
            let shaped = shape(row, &options).unwrap();
            let expected = numbers(&case["sqrt"]["amplify"]["advantage"]);
            for (got, want) in shaped.advantages.iter().zip(&expected) {
                assert!((got - want).abs() < 2e-5, "{}: {got} {want}", case["name"]);
            }
            compared += 1;
        }
        assert!(compared >= 12, "{compared}");
    }
}
