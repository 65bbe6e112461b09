//! `g2rl-coordinator eval`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use g2rl_common::config::EvaluationConfig;

use super::config::FileArgs;
use crate::run::{Existing, RunOptions, run as run_to_end};
use crate::state::Outcome;

/// Measure a model on problems.
///
/// Uses the configuration's prompt, reward and cluster sections with another model and data set, and
/// prints pass@k and maj@k with 95 % intervals over problems.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  g2rl-coordinator eval --config configs/demo.toml --model runs/demo/checkpoints/step-000500 \\
      --data runs/demo-data/heldout.jsonl --samples 16 --k 1,4,16 --local-workers 2")]
pub struct EvalArgs {
    #[command(flatten)]
    file: FileArgs,
    /// Model directory, or a name of the Hugging Face hub.
    #[arg(long, value_name = "MODEL")]
    model: String,
    /// Problems: a file, a directory, or a data set of the Hugging Face hub.
    #[arg(long, value_name = "DATA")]
    data: String,
    /// Folder of a data set that has several.
    #[arg(long, value_name = "NAME")]
    subset: Option<String>,
    /// Split of a directory or data set; test by default.
    #[arg(long, value_name = "NAME")]
    split: Option<String>,
    /// Answers for each problem.
    #[arg(long, default_value_t = 16)]
    samples: u32,
    /// The k of pass@k and maj@k.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 4, 16])]
    k: Vec<u32>,
    /// Softmax temperature of the answers.
    #[arg(long, default_value_t = 1.0)]
    temperature: f64,
    /// Directory of the results.
    #[arg(long, value_name = "DIR", default_value = "runs/eval")]
    out: PathBuf,
    /// Start this many workers on this machine.
    #[arg(long, value_name = "N", default_value_t = 0)]
    local_workers: u32,
    /// Devices of the local workers, in turn; the CPU by default.
    #[arg(long, value_name = "DEVICES", value_delimiter = ',')]
    local_devices: Vec<String>,
}

/// Runs the command.
///
/// # Errors
/// If the evaluation cannot start or fails.
pub async fn run(args: &EvalArgs) -> anyhow::Result<ExitCode> {
    let mut config = args.file.load()?;
    config.run.steps = 0;
    config.run.name = format!("{}-eval", config.run.name);
    config.run.dir = args.out.display().to_string();
    config.model.path = args.model.clone();
    let max_new_tokens = config.evaluation.as_ref().and_then(|evaluation| evaluation.max_new_tokens);
    config.evaluation = Some(EvaluationConfig {
        data: Some(args.data.clone()),
        subset: args.subset.clone(),
        split: args.split.clone(),
        fraction: None,
        every: 0,
        at_start: true,
        at_end: false,
        samples: args.samples,
        k: args.k.clone(),
        temperature: args.temperature,
        max_new_tokens,
        max_problems: None,
    });
    config.validate()?;
    let options = RunOptions {
        config,
        existing: Existing::Overwrite,
        local_workers: args.local_workers,
        local_devices: args.local_devices.clone(),
    };
    let finished = run_to_end(&options).await?;
    match finished.outcome {
        Outcome::Completed => {
            print!("{}", finished.results.table());
            Ok(ExitCode::SUCCESS)
        }
        Outcome::Stopped => anyhow::bail!("stopped before the evaluation was complete"),
        Outcome::Failed(error) => anyhow::bail!("the evaluation failed: {error}"),
    }
}
