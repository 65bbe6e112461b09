//! `g2rl-coordinator geometry`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;
use g2rl_common::config::RunConfig;
use g2rl_common::geometry::GroupGeometry;
use g2rl_common::ids::StepIndex;

use super::child::{Child, Ended};
use super::config::FileArgs;
use crate::embeddings::Embedder;
use crate::evaluate::{self, ProblemRow};
use crate::geometry::{ModelGeometry, Setting, tables};
use crate::reward::after_thinking;

/// Compare how models explore: the geometry of their answers to the same problems.
///
/// For each model answers are generated with gradient features; the tables have the cosines of pairs of answers to
/// one problem: mean, negative and orthogonal pairs, by correctness, with and without identical responses, and the same for
/// embeddings of the texts if the configuration or --embeddings names a service. DIR/geometry.json also has the histograms.
/// Answers that are there already are not generated again.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  g2rl-coordinator geometry --config configs/demo.toml --model configs/demo/model \\
      --compare grpo=runs/demo-grpo/checkpoints/step-001000 --compare g2rl=runs/demo/checkpoints/step-001000 \\
      --data runs/demo-data/heldout.jsonl --local-workers 2")]
pub struct GeometryArgs {
    #[command(flatten)]
    file: FileArgs,
    /// Model directory, or a name of the Hugging Face hub.
    #[arg(long, value_name = "[NAME=]MODEL")]
    model: String,
    /// Another model; may be given several times.
    #[arg(long, value_name = "[NAME=]MODEL")]
    compare: Vec<String>,
    /// Problems: a file, a directory, or a data set of the Hugging Face hub.
    #[arg(long, value_name = "DATA")]
    data: String,
    /// Answers for each problem.
    #[arg(long, default_value_t = 16)]
    samples: u32,
    /// Softmax temperature of the answers; cosines depend on it.
    #[arg(long, default_value_t = 1.0)]
    temperature: f64,
    /// An OpenAI-compatible service that embeds texts, instead of the configuration's.
    #[arg(long, value_name = "URL")]
    embeddings: Option<String>,
    /// Directory of the results.
    #[arg(long, value_name = "DIR", default_value = "runs/geometry")]
    out: PathBuf,
    /// Start this many workers on this machine.
    #[arg(long, value_name = "N", default_value_t = 0)]
    local_workers: u32,
    /// Devices of the local workers, in turn; the CPU by default.
    #[arg(long, value_name = "DEVICES", value_delimiter = ',')]
    local_devices: Vec<String>,
}

/// `NAME=MODEL`, or a model that is named by its path: `runs/demo/checkpoints/step-000500` is `demo-step-000500`.
fn named_model(text: &str) -> (String, &str) {
    if let Some((name, model)) = text.split_once('=').filter(|(name, _)| !name.contains('/')) {
        return (name.to_owned(), model);
    }
    let parts = text.split('/').filter(|part| !matches!(*part, "" | "." | ".." | "checkpoints"));
    let mut last: Vec<&str> = parts.collect();
    last.drain(..last.len().saturating_sub(2));
    (last.join("-"), text)
}

/// Runs the command.
///
/// # Errors
/// If answers cannot be generated or compared.
pub async fn run(args: &GeometryArgs) -> anyhow::Result<ExitCode> {
    let mut config = args.file.load()?;
    if let Some(url) = &args.embeddings {
        config.embeddings.url.clone_from(url);
    }
    let embedder = match config.embeddings.url.is_empty() {
        true => None,
        false => Some(Embedder::new(&config.embeddings)?),
    };
    let mut models: Vec<ModelGeometry> = Vec::new();
    for text in std::iter::once(&args.model).chain(&args.compare) {
        let (name, model) = named_model(text);
        if models.iter().any(|other| other.model == name) {
            bail!("two models are called {name}; name them as NAME=MODEL");
        }
        let Some(rows) = answers(args, &args.out.join(&name), model).await? else {
            println!("interrupted; the same command goes on");
            return Ok(ExitCode::SUCCESS);
        };
        models.push(analyse(&name, &rows, (args, &config), embedder.as_ref()).await?);
    }
    let path = args.out.join("geometry.json");
    std::fs::write(&path, format!("{}\n", serde_json::to_string_pretty(&models)?))
        .with_context(|| format!("cannot write {}", path.display()))?;
    print!("{}", tables(&models));
    Ok(ExitCode::SUCCESS)
}

async fn analyse(
    name: &str,
    rows: &[ProblemRow],
    (args, config): (&GeometryArgs, &RunConfig),
    embedder: Option<&Embedder>,
) -> anyhow::Result<ModelGeometry> {
    let semantic = match embedder {
        Some(embedder) => Some(semantic_cosines(embedder, rows).await?),
        None => None,
    };
    let setting = Setting { model: name.to_owned(), temperature: args.temperature, seed: config.run.seed };
    ModelGeometry::new(&setting, rows, semantic.as_deref()).with_context(|| format!("model {name}"))
}

/// Generates a model's answers, or reads those that are there; `None` if the user does not want to wait.
async fn answers(args: &GeometryArgs, dir: &Path, model: &str) -> anyhow::Result<Option<Vec<ProblemRow>>> {
    // Answers to another question are no answers to this one; who answers does not matter.
    let asked = dir.join("asked.txt");
    let question = question(args, model);
    if std::fs::read_to_string(&asked).ok().as_ref() != Some(&question.join("\n")) {
        if dir.exists() {
            std::fs::remove_dir_all(dir).with_context(|| format!("cannot replace {}", dir.display()))?;
        }
        std::fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        std::fs::write(&asked, question.join("\n"))
            .with_context(|| format!("cannot write {}", asked.display()))?;
    }
    let path = evaluate::path(dir, StepIndex(0), None);
    if !path.exists() {
        match Child::coordinator(evaluation(args, dir, question))?.run().await? {
            Ended::Interrupted => return Ok(None),
            Ended::Alone(status) if !status.success() => bail!("the evaluation of {model} failed"),
            Ended::Alone(_) => {}
        }
    }
    evaluate::read(&path).map(Some)
}

/// What is asked of a model.
fn question(args: &GeometryArgs, model: &str) -> Vec<String> {
    let mut question = vec!["--config".to_owned(), args.file.config.display().to_string()];
    for set in &args.file.set {
        question.extend(["--set".to_owned(), set.clone()]);
    }
    for (flag, value) in [
        ("--model", model.to_owned()),
        ("--data", format!("problems={}", args.data)),
        ("--samples", args.samples.to_string()),
        ("--k", "1".to_owned()),
        ("--temperature", args.temperature.to_string()),
    ] {
        question.extend([flag.to_owned(), value]);
    }
    question
}

/// The command that generates a model's answers.
fn evaluation(args: &GeometryArgs, dir: &Path, question: Vec<String>) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = ["eval", "--features", "--resume", "--out"].map(Into::into).into();
    arguments.push(dir.into());
    arguments.extend(question.into_iter().map(Into::into));
    arguments.extend(["--local-workers".into(), args.local_workers.to_string().into()]);
    if !args.local_devices.is_empty() {
        arguments.extend(["--local-devices".into(), args.local_devices.join(",").into()]);
    }
    arguments
}

/// For each problem the cosines of its texts.
async fn semantic_cosines(embedder: &Embedder, rows: &[ProblemRow]) -> anyhow::Result<Vec<Vec<f32>>> {
    let answers = rows.iter().flat_map(|row| &row.answers);
    let texts: Vec<&str> = answers.map(|answer| after_thinking(&answer.text).trim()).collect();
    let mut vectors = embedder.embed(&texts).await?.into_iter();
    let mut cosines = Vec::with_capacity(rows.len());
    for row in rows {
        let of_row: Vec<Vec<f32>> = vectors.by_ref().take(row.answers.len()).collect();
        let geometry = GroupGeometry::from_features(&of_row)?;
        cosines.push(geometry.matrix().iter().map(|&cosine| cosine as f32).collect());
    }
    Ok(cosines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_are_named_by_the_user_or_by_their_paths() {
        for (text, name, model) in [
            ("grpo=runs/a/checkpoints/step-1", "grpo", "runs/a/checkpoints/step-1"),
            ("runs/demo/checkpoints/step-000500", "demo-step-000500", "runs/demo/checkpoints/step-000500"),
            ("./model/", "model", "./model/"),
            ("owner/name", "owner-name", "owner/name"),
        ] {
            assert_eq!(named_model(text), (name.to_owned(), model));
        }
    }
}
