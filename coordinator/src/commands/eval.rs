//! `g2rl-coordinator eval`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::bail;
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
/// Uses the configuration's prompt, reward and cluster sections with another model, on the data sets of its
/// `[evaluation]` or on others, and prints pass@k, maj@k, distinct right answers and response lengths with 95 % intervals
/// over problems. Every answer is in DIR/evaluations.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  g2rl-coordinator eval --config configs/demo.toml --model runs/demo/checkpoints/step-000500 \\
      --data runs/demo-data/heldout.jsonl --samples 16 --k 1,4,16 --local-workers 2
  g2rl-coordinator eval --config configs/qwen3-1.7b-math.toml --model runs/math/checkpoints/best \\
      --data math500=data/math500.jsonl --data aime24=data/aime24.jsonl --out runs/math-eval --resume
  g2rl-coordinator eval --config configs/reproduce/evaluate.toml --model runs/math/checkpoints/best \\
      --only math500,aime24 --local-workers 8 --local-devices cuda:0,cuda:1,cuda:2,cuda:3,cuda:4,cuda:5,cuda:6,cuda:7")]
pub struct EvalArgs {
    #[command(flatten)]
    file: FileArgs,
    /// Model directory, or a name of the Hugging Face hub.
    #[arg(long, value_name = "MODEL")]
    model: String,
    /// Problems: a file, a directory, or a data set of the Hugging Face hub; may be given several times, with
    /// a name for each. A name of the configuration's [evaluation] is read and judged as it says there. By default the
    /// configuration's data sets.
    #[arg(long, value_name = "[NAME=]DATA")]
    data: Vec<String>,
    /// Only these of the configuration's data sets.
    #[arg(long, value_name = "NAMES", value_delimiter = ',', conflicts_with = "data")]
    only: Vec<String>,
    /// Folder of a data set that has several.
    #[arg(long, value_name = "NAME")]
    subset: Option<String>,
    /// Split of a directory or data set; test by default.
    #[arg(long, value_name = "NAME")]
    split: Option<String>,
    /// Answers for each problem; 16 by default with --data, else the configuration's.
    #[arg(long)]
    samples: Option<u32>,
    /// The k of pass@k and maj@k; 1,4,16 by default with --data, else the configuration's.
    #[arg(long, value_delimiter = ',')]
    k: Vec<u32>,
    /// Softmax temperature of the answers; 1 by default with --data, else the configuration's.
    #[arg(long)]
    temperature: Option<f64>,
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

/// The settings of an evaluation whose data sets the command line names.
fn plain() -> EvaluationConfig {
    EvaluationConfig {
        name: String::new(),
        data: None,
        subset: None,
        split: None,
        columns: None,
        answer_pattern: None,
        template: None,
        reward: None,
        fraction: None,
        every: 0,
        at_start: true,
        at_end: false,
        samples: 16,
        k: vec![1, 4, 16],
        temperature: 1.0,
        max_new_tokens: None,
        max_problems: None,
        features: false,
        more: Vec::new(),
    }
}

/// `NAME=DATA`, or data that is named by its file; of a set that is configured only the data is another.
fn named_set(text: &str, configured: &[EvaluationSet]) -> EvaluationSet {
    let (name, data) = match text.split_once('=') {
        Some((name, data)) if !name.contains('/') => (name.to_owned(), data),
        _ => (file_stem(text), text),
    };
    let known = configured.iter().find(|set| set.name == name);
    let known = known.cloned().unwrap_or_else(|| EvaluationSet::new(name, String::new()));
    EvaluationSet { data: data.to_owned(), ..known }
}

fn file_stem(data: &str) -> String {
    let stem = Path::new(data).file_stem().map(|stem| stem.to_string_lossy().into_owned());
    let plain = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '-' | '_') { c } else { '-' };
    stem.unwrap_or_default().chars().map(plain).collect()
}

impl EvalArgs {
    /// What is measured, once.
    fn measurement(&self, configured: Option<&EvaluationConfig>) -> anyhow::Result<EvaluationConfig> {
        let first = configured.and_then(EvaluationConfig::first_set);
        let more = configured.map(|evaluation| evaluation.more.clone()).unwrap_or_default();
        let known: Vec<EvaluationSet> = first.into_iter().chain(more).collect();
        let (base, mut sets) = match (self.data.is_empty(), configured) {
            (false, _) => (plain(), self.data.iter().map(|text| named_set(text, &known)).collect()),
            (true, Some(evaluation)) if !known.is_empty() => (evaluation.clone(), self.chosen(known)?),
            (true, _) => bail!("--data is missing, and the configuration's [evaluation] names no data sets"),
        };
        for set in &mut sets {
            set.subset = self.subset.clone().or(set.subset.take());
            set.split = self.split.clone().or(set.split.take());
        }
        Ok(EvaluationConfig {
            every: 0,
            at_start: true,
            at_end: false,
            samples: self.samples.unwrap_or(base.samples),
            k: if self.k.is_empty() { base.k.clone() } else { self.k.clone() },
            temperature: self.temperature.unwrap_or(base.temperature),
            max_new_tokens: self
                .max_new_tokens
                .or(configured.and_then(|evaluation| evaluation.max_new_tokens)),
            features: self.features,
            ..base.with_sets(&sets)
        })
    }

    /// Those that `--only` names, in the configuration's order.
    fn chosen(&self, known: Vec<EvaluationSet>) -> anyhow::Result<Vec<EvaluationSet>> {
        let names: Vec<&str> = known.iter().map(|set| set.name.as_str()).collect();
        if let Some(name) = self.only.iter().find(|name| !names.contains(&name.as_str())) {
            bail!("--only {name}: the configuration's [evaluation] has {}", names.join(", "));
        }
        let wanted = |set: &EvaluationSet| self.only.is_empty() || self.only.contains(&set.name);
        Ok(known.into_iter().filter(wanted).collect())
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
    config.evaluation = Some(args.measurement(config.evaluation.as_ref())?);
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
            let set = named_set(text, &[]);
            assert_eq!((set.name.as_str(), set.data.as_str()), (name, data));
        }
    }

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: EvalArgs,
    }

    fn measured(more: &[&str], configured: &str) -> anyhow::Result<EvaluationConfig> {
        let line = ["eval", "--config", "c", "--model", "m"].into_iter().chain(more.iter().copied());
        let configured: Option<EvaluationConfig> =
            (!configured.is_empty()).then(|| toml::from_str(configured).unwrap());
        <Line as clap::Parser>::try_parse_from(line)?.args.measurement(configured.as_ref())
    }

    const TWO: &str = "name = 'a'\ndata = 'a.jsonl'\nsamples = 4\nk = [1, 4]\nevery = 9\ntemperature = 0.5\n\
                       [[more]]\nname = 'b'\ndata = 'o/b'\nsplit = 's'\nreward = { kind = 'choice' }";

    #[test]
    fn configured_sets_are_measured_as_they_are_or_with_other_data() {
        let found = measured(&[], TWO).unwrap();
        assert_eq!((found.every, found.at_end, found.samples, found.temperature), (0, false, 4, 0.5));
        assert_eq!((found.name.as_str(), found.more.len()), ("a", 1));
        let found = measured(&["--only", "b", "--samples", "8", "--k", "8"], TWO).unwrap();
        assert_eq!((found.name.as_str(), found.data.as_deref(), found.samples), ("b", Some("o/b"), 8));
        assert_eq!((found.split.as_deref(), found.reward.is_some(), found.more.len()), (Some("s"), true, 0));
        let found = measured(&["--data", "b=b.csv", "--data", "c.jsonl"], TWO).unwrap();
        assert_eq!((found.data.as_deref(), found.reward.is_some()), (Some("b.csv"), true));
        assert_eq!((found.more[0].name.as_str(), found.more[0].reward.is_some()), ("c", false));
        // As without a configuration.
        assert_eq!((found.samples, found.k, found.temperature), (16, vec![1, 4, 16], 1.0));
        for (arguments, configured, word) in [
            (&["--only", "c"][..], TWO, "has a, b"),
            (&[], "", "--data is missing"),
            (&[], "fraction = 0.1", "--data is missing"),
        ] {
            let error = measured(arguments, configured).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
