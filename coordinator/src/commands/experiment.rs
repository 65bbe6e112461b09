//! `g2rl-coordinator experiment`.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, bail};
use clap::Args;

use super::child::{Child, Ended};
use super::side_by_side::{Place, run_all};
use crate::experiment::{
    Comparison, DataFile, ExperimentConfig, PlannedRun, RunResult, WarmStartRun, is_complete, markdown,
};
use crate::local_workers::{self, THREADS_VARIABLE};
use crate::{checkpoints, journal, wal};

/// Run methods, warm starts and seeds, and compare them.
///
/// Each run is `train` in a process of its own, from the same models with the same budget; models that are not there are
/// made first, where the experiment says how. What is complete is not run again, and what was interrupted goes on, so the
/// same command finishes an experiment. The comparison is in DIR/summary.md and summary.json; it is written again as runs
/// complete, as often as that costs less than a twentieth of the time.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  g2rl-coordinator experiment --config configs/experiments/countdown.toml
  g2rl-coordinator experiment --config configs/experiments/countdown.toml --only g2rl --only grpo
  g2rl-coordinator experiment --config configs/experiments/countdown.toml --parallel 8
  g2rl-coordinator experiment --config configs/experiments/countdown.toml --summary")]
pub struct ExperimentArgs {
    /// The experiment.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Run this method alone; may be given several times.
    #[arg(long, value_name = "METHOD")]
    only: Vec<String>,
    /// Run so many side by side. Cores and local_devices are shared out, and runs share devices if there are fewer; what a
    /// run prints is in its train.log.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    parallel: u16,
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
        let wanted = |run: &&PlannedRun| args.only.is_empty() || args.only.contains(&run.method);
        let wanted: Vec<&PlannedRun> = runs.iter().filter(wanted).collect();
        if run_missing(&experiment, &runs, &wanted, args.parallel).await? == Ended::Interrupted {
            Summary::new(&experiment, &runs).write()?;
            println!("interrupted; the same command goes on");
            return Ok(ExitCode::SUCCESS);
        }
    }
    print!("{}", Summary::new(&experiment, &runs).write()?);
    Ok(ExitCode::SUCCESS)
}

/// Makes the files and models that are not there, and runs what is `wanted` and not complete.
async fn run_missing(
    experiment: &ExperimentConfig,
    runs: &[PlannedRun],
    wanted: &[&PlannedRun],
    parallel: u16,
) -> anyhow::Result<Ended> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let (workers, devices) = (experiment.local_workers as usize, &experiment.local_devices);
    let places = Place::share(parallel.into(), workers, devices, cores)?;
    let models = to_make(experiment, wanted)?;
    for run in wanted.iter().filter(|run| is_complete(&run.dir)) {
        Job::of_run(experiment, run).check_settings()?;
    }
    let files = run_all(&places, &experiment.data, async |file, _| make(file).await);
    if files.await? == Ended::Interrupted {
        return Ok(Ended::Interrupted);
    }
    let made = run_all(&places, &models, async |warm, place| {
        tracing::info!("warm start {} is made: {}", warm.name, warm.model.display());
        make_model(experiment, warm, place).await
    });
    if made.await? == Ended::Interrupted {
        return Ok(Ended::Interrupted);
    }
    let summary = RefCell::new(Summary::new(experiment, runs));
    let missing = wanted.iter().enumerate().filter(|(_, run)| !is_complete(&run.dir));
    run_all(&places, missing, async |(at, run), place| {
        let PlannedRun { method, warm_start, seed, .. } = run;
        tracing::info!("run {} of {}: {method} from {warm_start}, seed {seed}", at + 1, wanted.len());
        let ended = Job::of_run(experiment, run).train(place).await?;
        if matches!(ended, Ended::Alone(_)) {
            summary.borrow_mut().write_if_due()?;
        }
        Ok(ended)
    })
    .await
}

/// Makes a file of problems if it is not there; it gets its name when it is whole.
async fn make(data: &DataFile) -> anyhow::Result<Ended> {
    let file = &data.file;
    if file.exists() {
        return Ok(Ended::default());
    }
    if let Some(folder) = file.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    }
    let mut partial = file.clone().into_os_string();
    partial.push(".partial");
    let mut arguments: Vec<OsString> = vec!["data".into()];
    arguments.extend(data.arguments.iter().map(Into::into));
    arguments.extend(["--out".into(), partial.clone()]);
    let ended = Child::coordinator(arguments)?.run().await?;
    match ended {
        Ended::Alone(status) if status.success() => {
            std::fs::rename(&partial, file).with_context(|| format!("cannot write {}", file.display()))?;
        }
        Ended::Alone(_) => bail!("{} was not made", file.display()),
        Ended::Interrupted => {}
    }
    Ok(ended)
}

/// A run as it is started.
struct Job<'a> {
    experiment: &'a ExperimentConfig,
    config: &'a Path,
    dir: &'a Path,
    settings: &'a [String],
}

impl<'a> Job<'a> {
    fn of_run(experiment: &'a ExperimentConfig, run: &'a PlannedRun) -> Self {
        Self { experiment, config: &experiment.config, dir: &run.dir, settings: &run.settings }
    }

    fn of_warm_start(experiment: &'a ExperimentConfig, warm: &'a WarmStartRun) -> Self {
        Self { experiment, config: &warm.config, dir: &warm.dir, settings: &warm.settings }
    }

    fn settings_file(&self) -> PathBuf {
        self.dir.join("settings.txt")
    }

    fn settings(&self) -> String {
        format!("{}\n{}\n", self.config.display(), self.settings.join("\n"))
    }

    /// Something of it has been done.
    fn is_begun(&self) -> bool {
        journal::path(self.dir).exists()
    }

    /// A run that was begun with other settings is no run of this experiment.
    fn check_settings(&self) -> anyhow::Result<()> {
        let path = self.settings_file();
        let before =
            std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        if before != self.settings() {
            bail!(
                "{} was run with other settings, see {}: remove it or choose another dir",
                self.dir.display(),
                path.display()
            );
        }
        Ok(())
    }

    /// Begins or continues the run, to its end.
    async fn train(&self, place: &Place) -> anyhow::Result<Ended> {
        let Self { experiment, dir, .. } = self;
        let mut arguments: Vec<OsString> = vec!["train".into(), "--config".into(), self.config.into()];
        for setting in self.settings {
            arguments.extend(["--set".into(), setting.into()]);
        }
        arguments.extend(["--local-workers".into(), experiment.local_workers.to_string().into()]);
        if !place.devices.is_empty() {
            arguments.extend(["--local-devices".into(), place.devices.join(",").into()]);
        }
        if self.is_begun() {
            self.check_settings()?;
            // One that has neither was killed before it did anything.
            let left = checkpoints::exist(dir) || matches!(wal::read(dir), Ok(Some(_)));
            arguments.push(if left { "--resume" } else { "--overwrite" }.into());
        } else {
            std::fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
            std::fs::write(self.settings_file(), self.settings())
                .with_context(|| format!("cannot write into {}", dir.display()))?;
        }
        let mut child = Child::coordinator(arguments)?;
        let log = dir.join("train.log");
        if let Some(threads) = place.threads {
            child = child.with_log(log.clone());
            if std::env::var_os(THREADS_VARIABLE).is_none() {
                child = child.with_env(THREADS_VARIABLE, threads.to_string());
            }
        }
        let ended = child.run().await?;
        match ended {
            Ended::Interrupted => {}
            Ended::Alone(status) if status.success() && is_complete(dir) => {}
            Ended::Alone(_) if place.threads.is_some() => {
                bail!(
                    "the run in {} failed, see {}; the same command tries it again",
                    dir.display(),
                    log.display()
                )
            }
            Ended::Alone(_) => bail!("the run in {} failed; the same command tries it again", dir.display()),
        }
        Ok(ended)
    }
}

/// What has to be made before these runs; what is there already is left as it is.
fn to_make(experiment: &ExperimentConfig, runs: &[&PlannedRun]) -> anyhow::Result<Vec<WarmStartRun>> {
    let mut wanted = Vec::new();
    for warm in experiment.warm_start_runs()? {
        let job = Job::of_warm_start(experiment, &warm);
        if job.is_begun() {
            job.check_settings()?;
        }
        let needed = |run: &&PlannedRun| run.warm_start == warm.name && !is_complete(&run.dir);
        if warm.is_wanted() && runs.iter().any(needed) {
            warm.check_files()?;
            wanted.push(warm);
        }
    }
    if !wanted.is_empty() {
        local_workers::program()?;
    }
    Ok(wanted)
}

/// Makes a model that runs begin with, or goes on with it.
async fn make_model(
    experiment: &ExperimentConfig,
    warm: &WarmStartRun,
    place: &Place,
) -> anyhow::Result<Ended> {
    let job = Job::of_warm_start(experiment, warm);
    let init = &warm.init;
    if is_complete(job.dir) && !checkpoints::exist(job.dir) {
        // Its model was put in its place, and removed since.
        std::fs::remove_dir_all(job.dir).with_context(|| format!("cannot remove {}", job.dir.display()))?;
    }
    if !is_complete(&warm.dir) {
        if !job.is_begun() {
            // It may be half written.
            if init.exists() {
                std::fs::remove_dir_all(init).with_context(|| format!("cannot remove {}", init.display()))?;
            }
            let seed = warm.seed.to_string();
            let mut arguments: Vec<OsString> = vec!["init".into(), "--architecture".into()];
            arguments.extend([warm.architecture.clone().into(), "--tokenizer".into()]);
            arguments.extend([warm.tokenizer.clone().into(), "--out".into(), init.clone().into()]);
            arguments.extend(["--seed".into(), seed.into()]);
            match Child::new(&local_workers::program()?, arguments).run().await? {
                Ended::Alone(status) if status.success() => {}
                Ended::Interrupted => return Ok(Ended::Interrupted),
                Ended::Alone(_) => bail!("{} was not made", init.display()),
            }
        }
        if job.train(place).await? == Ended::Interrupted && !is_complete(&warm.dir) {
            return Ok(Ended::Interrupted);
        }
    }
    warm.keep()?;
    Ok(Ended::default())
}

/// The comparison of what is complete.
struct Summary<'a> {
    experiment: &'a ExperimentConfig,
    runs: &'a [PlannedRun],
    /// What is complete has been read once, by its directory.
    results: BTreeMap<&'a Path, RunResult>,
    /// When it may be written again.
    due: Instant,
}

impl<'a> Summary<'a> {
    /// The time between two summaries is so many times what the first one took.
    const PAUSE: u32 = 20;

    fn new(experiment: &'a ExperimentConfig, runs: &'a [PlannedRun]) -> Self {
        Self { experiment, runs, results: BTreeMap::new(), due: Instant::now() }
    }

    /// Writes it unless that would take too much of the time: it grows with the number of runs.
    fn write_if_due(&mut self) -> anyhow::Result<()> {
        let begun = Instant::now();
        if begun >= self.due {
            self.write()?;
            self.due = Instant::now() + Self::PAUSE * begun.elapsed();
        }
        Ok(())
    }

    /// Writes it; returns the text.
    fn write(&mut self) -> anyhow::Result<String> {
        for run in self.runs {
            if !self.results.contains_key(run.dir.as_path()) && is_complete(&run.dir) {
                self.results.insert(&run.dir, RunResult::read(run, &self.experiment.scores)?);
            }
        }
        let results: Vec<&RunResult> =
            self.runs.iter().filter_map(|run| self.results.get(run.dir.as_path())).collect();
        let comparison = Comparison::new(self.experiment, &results)?;
        let text = markdown(&comparison);
        let json = format!("{}\n", serde_json::to_string_pretty(&comparison)?);
        let dir = &self.experiment.dir;
        std::fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        for (name, content) in [("summary.md", &text), ("summary.json", &json)] {
            let path = dir.join(name);
            std::fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(text)
    }
}
