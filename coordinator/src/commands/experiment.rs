//! `g2rl-coordinator experiment`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;

use super::child::{self, Ended};
use crate::experiment::{
    Comparison, DataFile, ExperimentConfig, PlannedRun, RunResult, is_complete, markdown,
};
use crate::{checkpoints, journal, wal};

/// Run methods, warm starts and seeds, and compare them.
///
/// Runs one after the other, each as `train` in a process of its own, from the same models with the same budget. What
/// is complete is not run again, and what was interrupted goes on, so the same command finishes an experiment. The
/// comparison is in DIR/summary.md and summary.json after every run.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  g2rl-coordinator experiment --config configs/experiments/countdown.toml
  g2rl-coordinator experiment --config configs/experiments/countdown.toml --only g2rl --only grpo
  g2rl-coordinator experiment --config configs/experiments/countdown.toml --summary")]
pub struct ExperimentArgs {
    /// The experiment.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Run this method alone; may be given several times.
    #[arg(long, value_name = "METHOD")]
    only: Vec<String>,
    /// Run nothing: compare what is complete.
    #[arg(long)]
    summary: bool,
}

/// Runs the command.
///
/// # Errors
/// If the experiment cannot be used or a run fails; what is complete is kept.
pub async fn run(args: &ExperimentArgs) -> anyhow::Result<ExitCode> {
    let experiment = ExperimentConfig::load(&args.config)?;
    let runs = experiment.runs();
    if let Some(name) = args.only.iter().find(|name| !runs.iter().any(|run| run.method == **name)) {
        bail!("{name} is none of the experiment's methods");
    }
    if !args.summary {
        for file in &experiment.data {
            make(file).await?;
        }
        let wanted = |run: &&PlannedRun| args.only.is_empty() || args.only.contains(&run.method);
        let wanted: Vec<&PlannedRun> = runs.iter().filter(wanted).collect();
        for (at, run) in wanted.iter().enumerate() {
            if is_complete(&run.dir) {
                check_settings(&experiment, run)?;
                continue;
            }
            let PlannedRun { method, warm_start, seed, .. } = run;
            tracing::info!("run {} of {}: {method} from {warm_start}, seed {seed}", at + 1, wanted.len());
            if train(&experiment, run).await? == Ended::Interrupted {
                println!("interrupted; the same command goes on");
                return Ok(ExitCode::SUCCESS);
            }
            write_summary(&experiment, &runs)?;
        }
    }
    print!("{}", write_summary(&experiment, &runs)?);
    Ok(ExitCode::SUCCESS)
}

/// Makes a file of problems if it is not there.
async fn make(file: &DataFile) -> anyhow::Result<()> {
    if file.file.exists() {
        return Ok(());
    }
    if let Some(folder) = file.file.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    }
    let mut arguments: Vec<OsString> = vec!["data".into()];
    arguments.extend(file.arguments.iter().map(Into::into));
    arguments.extend(["--out".into(), file.file.clone().into()]);
    match child::run(arguments).await? {
        Ended::Alone(status) if status.success() => Ok(()),
        _ => bail!("{} was not made", file.file.display()),
    }
}

fn settings_file(dir: &Path) -> PathBuf {
    dir.join("settings.txt")
}

fn settings(experiment: &ExperimentConfig, run: &PlannedRun) -> String {
    format!("{}\n{}\n", experiment.config.display(), run.settings.join("\n"))
}

/// A run that was begun with other settings is no run of this experiment.
fn check_settings(experiment: &ExperimentConfig, run: &PlannedRun) -> anyhow::Result<()> {
    let path = settings_file(&run.dir);
    let before = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    if before != settings(experiment, run) {
        bail!(
            "{} was run with other settings, see {}: remove it or choose another dir",
            run.dir.display(),
            path.display()
        );
    }
    Ok(())
}

/// Begins or continues a run, to its end.
async fn train(experiment: &ExperimentConfig, run: &PlannedRun) -> anyhow::Result<Ended> {
    let begun = journal::path(&run.dir).exists();
    let mut arguments: Vec<OsString> =
        vec!["train".into(), "--config".into(), experiment.config.clone().into()];
    for setting in &run.settings {
        arguments.extend(["--set".into(), setting.into()]);
    }
    arguments.extend(["--local-workers".into(), experiment.local_workers.to_string().into()]);
    if !experiment.local_devices.is_empty() {
        arguments.extend(["--local-devices".into(), experiment.local_devices.join(",").into()]);
    }
    if begun {
        check_settings(experiment, run)?;
        // One that has neither was killed before it did anything.
        let left = checkpoints::exist(&run.dir) || matches!(wal::read(&run.dir), Ok(Some(_)));
        arguments.push(if left { "--resume" } else { "--overwrite" }.into());
    } else {
        std::fs::create_dir_all(&run.dir).with_context(|| format!("cannot create {}", run.dir.display()))?;
        std::fs::write(settings_file(&run.dir), settings(experiment, run))
            .with_context(|| format!("cannot write into {}", run.dir.display()))?;
    }
    let ended = child::run(arguments).await?;
    match ended {
        Ended::Interrupted => {}
        Ended::Alone(status) if status.success() && is_complete(&run.dir) => {}
        Ended::Alone(_) => bail!("the run in {} failed; the same command tries it again", run.dir.display()),
    }
    Ok(ended)
}

/// Compares what is complete; returns the text.
fn write_summary(experiment: &ExperimentConfig, runs: &[PlannedRun]) -> anyhow::Result<String> {
    let complete = runs.iter().filter(|run| is_complete(&run.dir));
    let results: Vec<RunResult> =
        complete.map(|run| RunResult::read(run, &experiment.scores)).collect::<anyhow::Result<_>>()?;
    let comparison = Comparison::new(experiment, &results)?;
    let text = markdown(&comparison);
    let json = format!("{}\n", serde_json::to_string_pretty(&comparison)?);
    std::fs::create_dir_all(&experiment.dir)
        .with_context(|| format!("cannot create {}", experiment.dir.display()))?;
    for (name, content) in [("summary.md", &text), ("summary.json", &json)] {
        let path = experiment.dir.join(name);
        std::fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(text)
}
