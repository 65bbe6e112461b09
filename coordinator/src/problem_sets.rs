//! The problems of a run: what it trains on, and what it is measured on.
//!
//! In: a configuration. Out: problems that were read and checked, with unique ids on each side.

use anyhow::bail;
use g2rl_common::algorithm;
use g2rl_common::config::{EvaluationSet, RunConfig};

use crate::dataset::{Dataset, Problem, ReadOptions, Source, hold_out};
use crate::evaluate::HeldOutSet;

/// Training and held-out problems.
pub(crate) struct ProblemSets {
    pub(crate) train: Vec<Problem>,
    /// Those of all sets.
    pub(crate) held_out: Vec<Problem>,
    /// The first one is `evaluation.data`; none without evaluation.
    pub(crate) sets: Vec<HeldOutSet>,
}

impl ProblemSets {
    /// Reads all that the run needs.
    ///
    /// # Errors
    /// If a data set cannot be used; names file and row.
    pub(crate) fn read(config: &RunConfig) -> anyhow::Result<Self> {
        let options = ReadOptions::new(&config.data)?;
        let fraction = config.evaluation.as_ref().and_then(|evaluation| evaluation.fraction);
        let train = match (config.run.steps, fraction) {
            (0, None) => Vec::new(),
            _ => read_training(config, &options)?,
        };
        let mut sets = Self { train, held_out: Vec::new(), sets: Vec::new() };
        let Some(evaluation) = &config.evaluation else { return Ok(sets) };
        let first = match (evaluation.first_set(), fraction) {
            (None, Some(fraction)) => sets.take_out(fraction, config.run.seed)?,
            (Some(set), _) => read_set(config, &set, "evaluation")?,
            (None, None) => bail!("evaluation.data: set either evaluation.data or evaluation.fraction"),
        };
        sets.add(&evaluation.name, first, evaluation.max_problems);
        for (at, set) in evaluation.more.iter().enumerate() {
            let mut problems = read_set(config, set, &format!("evaluation.more.{at}"))?;
            // Rows of two files may have the same id, which decides their random streams.
            problems.iter_mut().for_each(|problem| problem.id = format!("{}/{}", set.name, problem.id));
            sets.add(&set.name, problems, set.max_problems);
        }
        Ok(sets)
    }

    fn take_out(&mut self, fraction: f64, seed: u64) -> anyhow::Result<Vec<Problem>> {
        let (train, held_out) = hold_out(std::mem::take(&mut self.train), fraction, seed);
        if held_out.is_empty() || train.is_empty() {
            bail!("evaluation.fraction leaves {} problems and holds out {}", train.len(), held_out.len());
        }
        self.train = train;
        Ok(held_out)
    }

    fn add(&mut self, name: &str, mut problems: Vec<Problem>, most: Option<u64>) {
        problems.truncate(most.map_or(usize::MAX, |most| most as usize));
        let begin = self.held_out.len();
        self.held_out.extend(problems);
        self.sets.push(HeldOutSet { name: name.to_owned(), problems: begin..self.held_out.len() });
    }
}

fn read_training(config: &RunConfig, options: &ReadOptions) -> anyhow::Result<Vec<Problem>> {
    let imitates = !algorithm::build(&config.algorithm).needs_rollouts();
    let needs_solution = imitates || config.imitation.solutions_per_step > 0;
    let data = &config.data;
    let source = source(&data.train, &data.subset, &data.split, "train");
    read(&source, &ReadOptions { needs_solution, ..options.clone() })
}

/// `key` is where the set stands in the configuration.
fn read_set(config: &RunConfig, set: &EvaluationSet, key: &str) -> anyhow::Result<Vec<Problem>> {
    let options = ReadOptions::of_rows(&config.data, set.row_form(&config.data, key))?;
    let source = source(&set.data, &set.subset, &set.split, "test");
    read(&source, &ReadOptions { max_problems: set.max_problems, ..options })
}

fn source(name: &str, subset: &Option<String>, split: &Option<String>, otherwise: &str) -> Source {
    Source {
        name: name.to_owned(),
        subset: subset.clone(),
        split: split.clone().unwrap_or_else(|| otherwise.to_owned()),
    }
}

fn read(source: &Source, options: &ReadOptions) -> anyhow::Result<Vec<Problem>> {
    let dataset = Dataset::read(source, options)?;
    let (skipped, filtered) = (dataset.skipped, dataset.filtered);
    if skipped + filtered > 0 {
        tracing::warn!(%source, skipped, filtered, used = dataset.problems.len(), "rows left out");
    }
    Ok(dataset.problems)
}
