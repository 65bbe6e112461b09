//! Methods beside each other: at equal steps, against the baseline, and at equal first score.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::ensure;
use g2rl_common::bootstrap::Interval;
use serde::{Deserialize, Serialize};

use super::config::ExperimentConfig;
use super::curves::{self, Curve};
use super::result::{MEASURES, Measured, RunResult};
use super::statistics::crossed;

/// Numbers of `summary.json` that are averaged over runs: the geometry of the last fifth of the steps.
const GEOMETRY: [&str; 5] = [
    "mean_cosine",
    "mean_cosine_without_duplicates",
    "negative_pair_ratio",
    "orthogonal_pair_ratio",
    "duplicate_ratio",
];

/// One method.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MethodSummary {
    /// Its name.
    pub method: String,
    /// What makes it.
    pub settings: Vec<String>,
    /// Runs that are complete.
    pub runs: usize,
    /// Runs that it has in the experiment.
    pub planned: usize,
    /// Each measure after the last step: mean over runs and problems.
    pub scores: Vec<(String, Interval)>,
    /// Its difference to the baseline's, over pairs of runs with the same warm start and seed; empty for the
    /// baseline and without pairs.
    pub differences: Vec<(String, Interval)>,
    /// Each further measure when the first score has first reached [`Comparison::level`], from the mean curves of all runs;
    /// empty for methods with fewer runs than others.
    pub at_level: Vec<(String, f64)>,
    /// The difference of each further measure to the baseline's over the same pairs as `differences`, at the highest first
    /// score that the mean curves of both reach; runs are resampled.
    #[serde(default)]
    pub differences_at_equal: Vec<(String, Interval)>,
    /// Mean over runs of the geometry of the last steps; of what is measured.
    pub geometry: BTreeMap<String, f64>,
    /// For each evaluated step: scores and measures, means over runs and problems.
    pub curve: Vec<(u64, Vec<f64>)>,
    /// Rollouts of all its runs.
    pub rollouts: u64,
    /// Wall time of all its runs, seconds.
    pub seconds: f64,
}

/// All methods.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// The experiment's name.
    pub name: String,
    /// See [`ExperimentConfig::baseline`].
    pub baseline: String,
    /// See [`ExperimentConfig::control`].
    pub control: Option<String>,
    /// Names of the scores.
    pub scores: Vec<String>,
    /// Held-out problems.
    pub problems: usize,
    /// The value of the first score that every method with all runs reaches.
    pub level: Option<f64>,
    /// The methods that have runs.
    pub methods: Vec<MethodSummary>,
}

impl Comparison {
    /// Compares completed runs.
    ///
    /// # Errors
    /// If runs answered different problems; names one.
    pub fn new(experiment: &ExperimentConfig, results: &[&RunResult]) -> anyhow::Result<Self> {
        let first = results.first().map(|result| ids(result.last())).unwrap_or_default();
        for result in results {
            for (step, measured) in &result.evaluations {
                let (run, same) = (result.run.dir.display(), ids(measured) == first);
                ensure!(same, "{run} answered other problems after {step} steps than the first run");
            }
        }
        let of = |name: &str| -> Vec<&RunResult> {
            results.iter().copied().filter(|result| result.run.method == name).collect()
        };
        let baseline = of(&experiment.baseline);
        let methods = experiment.methods.iter().filter(|method| !of(&method.name).is_empty());
        let mut methods: Vec<MethodSummary> =
            methods.map(|method| summary(experiment, &method.name, &of(&method.name), &baseline)).collect();
        // Ablations with fewer runs begin with other models: their curves are no others' at any level.
        let most = methods.iter().map(|method| method.planned).max();
        let is_whole = |method: &MethodSummary| Some(method.planned) == most;
        let level = methods
            .iter()
            .filter(|method| is_whole(method))
            .map(|method| curves::best(&method.curve))
            .reduce(f64::min);
        if let Some(level) = level {
            for method in methods.iter_mut().filter(|method| is_whole(method)) {
                let value = |(at, name): (usize, &str)| {
                    Some((name.to_owned(), curves::at_level(&method.curve, at, level)?))
                };
                method.at_level = measures(experiment).skip(1).filter_map(value).collect();
            }
        }
        Ok(Self {
            name: experiment.name.clone(),
            baseline: experiment.baseline.clone(),
            control: experiment.control.clone(),
            scores: experiment.scores.clone(),
            problems: first.len(),
            level,
            methods,
        })
    }
}

fn ids(measured: &Measured) -> BTreeSet<&String> {
    measured.keys().collect()
}

/// What is measured, with its place.
fn measures(experiment: &ExperimentConfig) -> impl Iterator<Item = (usize, &str)> {
    experiment.scores.iter().map(String::as_str).chain(MEASURES).enumerate()
}

fn summary(
    experiment: &ExperimentConfig,
    name: &str,
    runs: &[&RunResult],
    baseline: &[&RunResult],
) -> MethodSummary {
    let intervals = |values: &dyn Fn(usize) -> Vec<Vec<f64>>| -> Vec<(String, Interval)> {
        let of = |(at, measure): (usize, &str)| Some((measure.to_owned(), crossed(&values(at), 0)?));
        measures(experiment).filter_map(of).collect()
    };
    let column = |measured: &Measured, at: usize| measured.values().map(|numbers| numbers[at]).collect();
    let last = |at: usize| -> Vec<Vec<f64>> { runs.iter().map(|run| column(run.last(), at)).collect() };
    // The same warm start, seed and problems: what they have in common cancels.
    let pairs: Vec<(&RunResult, &RunResult)> = runs
        .iter()
        .filter_map(|run| {
            let key = (&run.run.warm_start, run.run.seed);
            let other = baseline.iter().find(|other| (&other.run.warm_start, other.run.seed) == key)?;
            Some((*run, *other))
        })
        .collect();
    let differences = |at: usize| -> Vec<Vec<f64>> {
        let of = |(run, other): &(&RunResult, &RunResult)| {
            let numbers = run.last().values().zip(other.last().values());
            numbers.map(|(one, other)| one[at] - other[at]).collect()
        };
        pairs.iter().map(of).collect()
    };
    let geometry = GEOMETRY.iter().filter_map(|key| {
        let values: Vec<f64> = runs.iter().filter_map(|run| run.number(key)).collect();
        (!values.is_empty()).then(|| ((*key).to_owned(), mean(&values)))
    });
    let curves_of_pairs: Vec<(Curve, Curve)> =
        pairs.iter().map(|(run, other)| (curves::of_run(run), curves::of_run(other))).collect();
    let at_equal = |(at, measure): (usize, &str)| {
        Some((measure.to_owned(), curves::difference_at_equal(&curves_of_pairs, at)?))
    };
    let is_baseline = name == experiment.baseline;
    let method = experiment.methods.iter().find(|method| method.name == name);
    MethodSummary {
        method: name.to_owned(),
        settings: method.map(|method| method.set.clone()).unwrap_or_default(),
        runs: runs.len(),
        planned: experiment.runs().iter().filter(|run| run.method == name).count(),
        scores: intervals(&last),
        differences: if is_baseline { Vec::new() } else { intervals(&differences) },
        at_level: Vec::new(),
        differences_at_equal: if is_baseline {
            Vec::new()
        } else {
            measures(experiment).skip(1).filter_map(at_equal).collect()
        },
        geometry: geometry.collect(),
        curve: curves::mean(&runs.iter().map(|run| curves::of_run(run)).collect::<Vec<_>>()),
        rollouts: runs.iter().map(|run| run.rollouts).sum(),
        seconds: runs.iter().filter_map(|run| run.number("seconds")).sum(),
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::json;

    use super::super::config::MethodConfig;
    use super::super::warm::WarmStart;
    use super::*;

    pub(in crate::experiment) fn experiment() -> ExperimentConfig {
        let method = |name: &str| MethodConfig {
            name: name.to_owned(),
            set: vec![format!("algorithm.kind={name}")],
            seeds: None,
            warm_starts: None,
        };
        ExperimentConfig {
            name: "e".to_owned(),
            dir: "d".into(),
            config: "c".into(),
            set: Vec::new(),
            seeds: vec![1, 2],
            baseline: "grpo".to_owned(),
            control: Some("random".to_owned()),
            scores: vec!["pass@1".to_owned(), "pass@4".to_owned()],
            local_workers: 1,
            local_devices: Vec::new(),
            data: Vec::new(),
            warm_starts: vec![WarmStart {
                name: "w".to_owned(),
                model: "m".to_owned(),
                ..WarmStart::default()
            }],
            methods: ["grpo", "g2rl", "random"].map(method).into(),
        }
    }

    pub(in crate::experiment) fn each(results: &[RunResult]) -> Vec<&RunResult> {
        results.iter().collect()
    }

    /// Runs of two problems, evaluated after 0 and 5 steps: `end` is what the second problem scores then.
    pub(in crate::experiment) fn results(ends: &[(&str, u64, f64)]) -> Vec<RunResult> {
        let experiment = experiment();
        let measured = |one: f64, two: f64| -> Measured {
            let numbers = |x: f64| vec![x, 1.0 - x, 1.0, 10.0];
            [("a".to_owned(), numbers(one)), ("b".to_owned(), numbers(two))].into()
        };
        let result = |&(method, seed, end): &(&str, u64, f64)| RunResult {
            run: experiment.runs().into_iter().find(|r| r.method == method && r.seed == seed).unwrap(),
            evaluations: [(0, measured(0.0, 0.0)), (5, measured(0.5, end))].into(),
            summary: json!({"seconds": 3.0, "negative_pair_ratio": 0.25}),
            rollouts: 7,
        };
        ends.iter().map(result).collect()
    }

    #[test]
    fn methods_are_compared_at_equal_steps_and_at_an_equal_score() {
        let results = results(&[
            ("grpo", 1, 0.5),
            ("grpo", 2, 0.7),
            ("g2rl", 1, 0.6),
            ("g2rl", 2, 0.9),
            ("random", 1, 0.5),
        ]);
        let found = Comparison::new(&experiment(), &each(&results)).unwrap();
        assert_eq!(found.problems, 2);
        let [grpo, g2rl, random] = found.methods.as_slice() else { panic!("{found:?}") };
        assert_eq!((grpo.runs, grpo.planned, random.runs, random.planned), (2, 2, 1, 2));
        // (0.5 + 0.5) / 2 and (0.5 + 0.7) / 2.
        assert!((grpo.scores[0].1.mean - 0.55).abs() < 1e-12);
        // Problem a: 0 and 0; problem b: 0.1 and 0.2.
        assert!((g2rl.differences[0].1.mean - 0.075).abs() < 1e-12);
        assert!(grpo.differences.is_empty() && random.differences[0].1.mean.abs() < 1e-12);
        // The lowest end is random's 0.5; pass@4 falls from 1 on a line of slope -1.
        assert!((found.level.unwrap() - 0.5).abs() < 1e-12);
        for method in &found.methods {
            assert!((method.at_level[0].1 - 0.5).abs() < 1e-12, "{method:?}");
        }
        // Both reach grpo's 0.6 after 5 steps and on the way there, where pass@4 is 1 less the score: no difference.
        let (name, equal) = &g2rl.differences_at_equal[0];
        assert!(name == "pass@4" && equal.mean.abs() < 1e-12, "{equal:?}");
        assert!(grpo.differences_at_equal.is_empty());
        assert_eq!((g2rl.geometry["negative_pair_ratio"], g2rl.rollouts, g2rl.seconds), (0.25, 14, 6.0));
    }

    #[test]
    fn runs_on_other_problems_are_not_compared() {
        let mut results = results(&[("grpo", 1, 0.5), ("g2rl", 1, 0.5)]);
        results[1].evaluations.get_mut(&5).unwrap().insert("c".to_owned(), vec![0.0; 4]);
        let error = Comparison::new(&experiment(), &each(&results)).unwrap_err().to_string();
        assert!(error.contains("d/runs/g2rl/w-seed1 answered other problems after 5 steps"), "{error}");
    }
}
