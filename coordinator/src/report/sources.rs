//! Which runs belong together, and the comparison of an experiment.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};

use super::ReportOptions;
use super::data::RunData;
use super::groups::{self, SampleGroup};
use crate::experiment::{Comparison, ExperimentConfig, PlannedRun, RunResult, is_complete};
use crate::geometry::ModelGeometry;
use crate::journal;

/// All that a report shows, read.
#[derive(Debug, Clone)]
pub struct Report {
    /// Its title.
    pub(super) title: String,
    /// What the data is called.
    pub(super) data: Option<String>,
    /// Names of the methods, in the order of everything.
    pub(super) methods: Vec<String>,
    /// The method that means nothing, if there is one.
    pub(super) control: Option<String>,
    /// Runs, by method.
    pub(super) runs: Vec<RunData>,
    /// Runs that are left out, because they are not complete.
    pub(super) left_out: usize,
    /// The comparison of an experiment.
    pub(super) comparison: Option<Comparison>,
    /// Geometries of models.
    pub(super) geometry: Vec<ModelGeometry>,
    /// Sample groups.
    pub(super) groups: Vec<SampleGroup>,
}

/// A run that is to be read.
struct Source {
    method: String,
    label: String,
    dir: PathBuf,
}

impl Report {
    /// Reads what a report is about.
    ///
    /// # Errors
    /// If something is not there or not what it should be; names it.
    pub fn read(options: &ReportOptions) -> anyhow::Result<Self> {
        let (experiment, comparison) = match &options.experiment {
            Some(path) => of_experiment(path)?,
            None => (Vec::new(), None),
        };
        let named = options.runs.iter().map(|(method, dir)| Source {
            method: method.clone(),
            label: dir.file_name().map_or(String::new(), |name| name.to_string_lossy().into_owned()),
            dir: dir.clone(),
        });
        let all: Vec<Source> = experiment.into_iter().chain(named).collect();
        ensure!(!all.is_empty(), "there is no run to report");
        let complete = all.iter().filter(|source| is_complete(&source.dir)).count();
        // A run that is under way is shown where it was asked for, or where there is nothing else.
        let experiment_only = options.runs.is_empty() && complete > 0;
        let wanted: Vec<&Source> =
            all.iter().filter(|source| !experiment_only || is_complete(&source.dir)).collect();
        let mut runs: Vec<RunData> = wanted
            .iter()
            .map(|source| RunData::read(&source.method, &source.label, &source.dir))
            .collect::<anyhow::Result<_>>()?;
        let methods = order(comparison.as_ref(), &runs);
        let place = |run: &RunData| methods.iter().position(|method| *method == run.method);
        runs.sort_by(|a, b| (place(a), &a.label, &a.dir).cmp(&(place(b), &b.label, &b.dir)));
        let geometry = options.geometry.as_deref().map(geometries).transpose()?.unwrap_or_default();
        let mut groups = groups::of_runs(&runs)?;
        if let Some(dir) = &options.geometry {
            groups.extend(groups::of_geometry(dir, &geometry)?);
        }
        Ok(Self {
            title: comparison.as_ref().map_or_else(|| methods.join(", "), |c| c.name.clone()),
            data: options.data_name.clone().or_else(|| data_name(&runs)),
            control: comparison.as_ref().and_then(|comparison| comparison.control.clone()),
            left_out: all.len() - runs.len(),
            methods,
            runs,
            comparison,
            geometry,
            groups,
        })
    }

    /// The runs of a method.
    pub(super) fn of<'a>(&'a self, method: &'a str) -> impl Iterator<Item = &'a RunData> + Clone {
        self.runs.iter().filter(move |run| run.method == method)
    }
}

/// Methods in the comparison's order, then in that of the runs.
fn order(comparison: Option<&Comparison>, runs: &[RunData]) -> Vec<String> {
    let compared = comparison.into_iter().flat_map(|c| c.methods.iter().map(|m| m.method.clone()));
    let mut methods: Vec<String> = Vec::new();
    for method in compared.chain(runs.iter().map(|run| run.method.clone())) {
        if !methods.contains(&method) && runs.iter().any(|run| run.method == method) {
            methods.push(method);
        }
    }
    methods
}

/// The name of the training data that all runs share.
fn data_name(runs: &[RunData]) -> Option<String> {
    let mut names = runs.iter().filter_map(|run| run.config.as_ref()).map(|config| &config.data.train);
    let first = names.next()?;
    names.all(|name| name == first).then(|| {
        let file = Path::new(first).file_name().filter(|_| Path::new(first).extension().is_some());
        file.map_or(first.clone(), |file| file.to_string_lossy().into_owned())
    })
}

/// Runs and comparison of an experiment: from its file, or from what it left in its directory.
fn of_experiment(path: &Path) -> anyhow::Result<(Vec<Source>, Option<Comparison>)> {
    if path.is_dir() {
        return of_directory(path);
    }
    let experiment = ExperimentConfig::load(path)?;
    let planned = experiment.runs();
    let complete = planned.iter().filter(|run| is_complete(&run.dir));
    let results: Vec<RunResult> =
        complete.map(|run| RunResult::read(run, &experiment.scores)).collect::<anyhow::Result<_>>()?;
    let comparison = Comparison::new(&experiment, &results.iter().collect::<Vec<_>>())?;
    let source = |run: PlannedRun| Source {
        label: format!("{}, seed {}", run.warm_start, run.seed),
        method: run.method,
        dir: run.dir,
    };
    let begun = planned.into_iter().filter(|run| journal::path(&run.dir).exists());
    Ok((begun.map(source).collect(), Some(comparison)))
}

/// `summary.json` and `runs/METHOD/WARM-seedN`.
fn of_directory(dir: &Path) -> anyhow::Result<(Vec<Source>, Option<Comparison>)> {
    let comparison: Comparison = read_json(&dir.join("summary.json"))?;
    let mut sources = Vec::new();
    for method in folders(&dir.join("runs"))? {
        for run in folders(&method)? {
            let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if journal::path(&run).exists() {
                let label = name(&run).replace("-seed", ", seed ");
                sources.push(Source { method: name(&method), label, dir: run });
            }
        }
    }
    if sources.is_empty() {
        bail!("{} holds no run", dir.join("runs").display());
    }
    Ok((sources, Some(comparison)))
}

fn folders(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = dir.read_dir().with_context(|| format!("cannot read {}", dir.display()))?;
    let mut found: Vec<PathBuf> =
        entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<PathBuf>>>()?;
    found.retain(|path| path.is_dir());
    found.sort();
    Ok(found)
}

fn geometries(dir: &Path) -> anyhow::Result<Vec<ModelGeometry>> {
    read_json(&dir.join("geometry.json"))
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> anyhow::Result<T> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| path.display().to_string())
}
