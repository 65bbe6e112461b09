//! `g2rl-coordinator eval`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use g2rl_common::config::{EvaluationConfig, EvaluationSet, ImitationConfig};
use g2rl_common::ids::StepIndex;

use super::config::FileArgs;
use crate::evaluate;
use crate::run::{Existing, RunOptions, run as run_to_end};
use crate::state::Outcome;
use crate::wal;

/// Measure a model on problems.
///
/// Uses the configuration's prompt, reward and cluster sections with another model and data set, and
/// prints pass@k, maj@k, distinct right answers and response lengths with 95 % intervals over problems. Every answer
/// is in DIR/evaluations.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  g2rl-coordinator eval --config configs/demo.toml --model runs/demo/checkpoints/step-000500 \\
      --data runs/demo-data/heldout.jsonl --samples 16 --k 1,4,16 --local-workers 2
  g2rl-coordinator eval --config configs/qwen3-1.7b-math.toml --model runs/math/checkpoints/best \\
      --data math500=data/math500.jsonl --data aime24=data/aime24.jsonl --out runs/math-eval --resume")]
pub struct EvalArgs {
    #[command(flatten)]
    file: FileArgs,
    /// Model directory, or a name of the Hugging Face hub.
    #[arg(long, value_name = "MODEL")]
    model: String,
    /// Problems: a file, a directory, or a data set of the Hugging Face hub; may be given several times, with
    /// a name for each.
    #[arg(long, value_name = "[NAME=]DATA", required = true)]
    data: Vec<String>,
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
    /// Longest response, tokens; the configuration's by default.
    #[arg(long, value_name = "TOKENS")]
    max_new_tokens: Option<u32>,
    /// Directory of the results; an earlier evaluation in it is removed.
    #[arg(long, value_name = "DIR", default_value = "runs/eval")]
    out: PathBuf,
    /// Go on with an evaluation in the directory that did not come to its end: its answers are kept.
    #[arg(long)]
    resume: bool,
    /// Also compute gradient features, and write their cosines beside the answers.
    #[arg(long)]
    features: bool,
    /// Start this many workers on this machine.
    #[arg(long, value_name = "N", default_value_t = 0)]
    local_workers: u32,
    /// Devices of the local workers, in turn; the CPU by default.
    #[arg(long, value_name = "DEVICES", value_delimiter = ',')]
    local_devices: Vec<String>,
}

/// What is measured once, on one or more data sets.
fn measurement(sets: &[EvaluationSet], (samples, k): (u32, &[u32])) -> EvaluationConfig {
    let (first, more) = sets.split_first().expect("a command asks for at least one data set");
    EvaluationConfig {
        name: first.name.clone(),
        data: Some(first.data.clone()),
        subset: first.subset.clone(),
        split: first.split.clone(),
        fraction: None,
        every: 0,
        at_start: true,
        at_end: false,
        samples,
        k: k.to_vec(),
        temperature: 1.0,
        max_new_tokens: None,
        max_problems: first.max_problems,
        features: false,
        more: more.to_vec(),
    }
}

/// `NAME=DATA`, or data that is named by its file.
fn named_set(text: &str) -> EvaluationSet {
    let (name, data) = match text.split_once('=') {
        Some((name, data)) if !name.contains('/') => (name.to_owned(), data),
        _ => (file_stem(text), text),
    };
    EvaluationSet { name, data: data.to_owned(), subset: None, split: None, max_problems: None }
}

fn file_stem(data: &str) -> String {
    let stem = Path::new(data).file_stem().map(|stem| stem.to_string_lossy().into_owned());
    let plain = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '-' | '_') { c } else { '-' };
    stem.unwrap_or_default().chars().map(plain).collect()
}

impl EvalArgs {
    fn sets(&self) -> Vec<EvaluationSet> {
        let of = |text: &String| EvaluationSet {
            subset: self.subset.clone(),
            split: self.split.clone(),
            ..named_set(text)
        };
        self.data.iter().map(of).collect()
    }
}

/// Runs the command.
///
/// # Errors
/// If the evaluation cannot start or fails.
pub async fn run(args: &EvalArgs) -> anyhow::Result<ExitCode> {
    let done = evaluate::path(&args.out, StepIndex(0), None);
    if args.resume && done.exists() {
        println!("the evaluation in {} is complete: see its summary.json", args.out.display());
        return Ok(ExitCode::SUCCESS);
    }
    let mut config = args.file.load()?;
    config.run.steps = 0;
    config.run.name = format!("{}-eval", config.run.name);
    config.run.dir = args.out.display().to_string();
    config.model.path = args.model.clone();
    config.checkpoint.best_by = None;
    config.imitation = ImitationConfig::default();
    let configured = config.evaluation.as_ref().and_then(|evaluation| evaluation.max_new_tokens);
    config.evaluation = Some(EvaluationConfig {
        temperature: args.temperature,
        max_new_tokens: args.max_new_tokens.or(configured),
        features: args.features,
        ..measurement(&args.sets(), (args.samples, &args.k))
    });
    config.validate()?;
    let begun = matches!(wal::read(&args.out), Ok(Some(_)));
    let options = RunOptions {
        config,
        existing: if args.resume && begun { Existing::Resume } else { Existing::Overwrite },
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_sets_are_named_by_the_user_or_by_their_files() {
        for (text, name, data) in [
            ("math500=data/m.jsonl", "math500", "data/m.jsonl"),
            ("data/aime.24.jsonl", "aime-24", "data/aime.24.jsonl"),
            ("owner/name@v1", "name-v1", "owner/name@v1"),
            ("/tmp/a=b/c.jsonl", "c", "/tmp/a=b/c.jsonl"),
        ] {
            let set = named_set(text);
            assert_eq!((set.name.as_str(), set.data.as_str()), (name, data));
        }
    }
}
