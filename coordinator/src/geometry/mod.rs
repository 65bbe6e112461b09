//! How the answers to one problem lie to each other, over the problems of an evaluation.
//!
//! In: the answers of an evaluation ([`ProblemRow`]) with a cosine for each pair, of gradient features or of
//! embeddings. Out: for each kind of pair the mean cosine, the shares of negative and orthogonal pairs, and the
//! histogram, with and without pairs of identical responses: those have cosine 1, and a small model has many
//! ([`ModelGeometry`]). Intervals are over problems. Must not know: where cosines come from.

mod table;

use anyhow::ensure;
use g2rl_common::bootstrap::{BootstrapOptions, Interval, mean_interval, ratio_interval};
use g2rl_common::geometry::PairStatistics;
use serde::{Deserialize, Serialize};

pub use self::table::tables;
use crate::evaluate::ProblemRow;

/// Which pairs of answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PairKind {
    /// All.
    All,
    /// Both right.
    CorrectCorrect,
    /// One right, one wrong.
    CorrectWrong,
    /// Both wrong.
    WrongWrong,
}

impl PairKind {
    /// All kinds.
    pub const ALL: [Self; 4] = [Self::All, Self::CorrectCorrect, Self::CorrectWrong, Self::WrongWrong];

    /// As tables name it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::CorrectCorrect => "correct-correct",
            Self::CorrectWrong => "correct-wrong",
            Self::WrongWrong => "wrong-wrong",
        }
    }

    fn holds(self, first: bool, second: bool) -> bool {
        match self {
            Self::All => true,
            Self::CorrectCorrect => first && second,
            Self::CorrectWrong => first != second,
            Self::WrongWrong => !first && !second,
        }
    }
}

/// The cosines of some pairs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CosineReport {
    /// Number of pairs.
    pub pairs: u64,
    /// Mean cosine.
    pub mean: Interval,
    /// Share of pairs with cosine < 0.
    pub negative: Interval,
    /// Share of pairs with |cosine| < 0.1.
    pub orthogonal: Interval,
    /// See [`PairStatistics::histogram`].
    pub histogram: Vec<u64>,
}

/// The pairs of a kind.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PairReport {
    /// Which.
    pub kind: PairKind,
    /// All of them; `None` without pairs.
    pub with_identical: Option<CosineReport>,
    /// Those whose tokens differ.
    pub without_identical: Option<CosineReport>,
}

/// What an evaluation says about one model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelGeometry {
    /// Its name.
    pub model: String,
    /// Number of problems.
    pub problems: usize,
    /// Answers for each.
    pub samples: usize,
    /// Softmax temperature of the answers, which cosines depend on.
    pub temperature: f64,
    /// Share of right answers.
    pub pass_at_1: Option<Interval>,
    /// Distinct right answers of a problem.
    pub distinct_correct: Option<Interval>,
    /// Share of pairs with the same tokens.
    pub identical: Option<Interval>,
    /// Cosines of gradient features.
    pub gradient: Vec<PairReport>,
    /// Cosines of the texts' embeddings, if there are any.
    pub semantic: Option<Vec<PairReport>>,
}

/// How a model's answers were made.
#[derive(Debug, Clone)]
pub struct Setting {
    /// Its name.
    pub model: String,
    /// See [`ModelGeometry::temperature`].
    pub temperature: f64,
    /// Seed of the intervals.
    pub seed: u64,
}

impl ModelGeometry {
    /// Analyses the answers of a model; `semantic` holds for each problem the cosines of its texts, row-major
    /// `[samples, samples]`.
    ///
    /// # Errors
    /// If cosines are missing, which an evaluation without features has none of; names the problem.
    pub fn new(
        setting: &Setting,
        rows: &[ProblemRow],
        semantic: Option<&[Vec<f32>]>,
    ) -> anyhow::Result<Self> {
        let options =
            BootstrapOptions { seed: setting.seed, resamples: 2_000, ..BootstrapOptions::default() };
        let gradient: Vec<Vec<f32>> = rows.iter().map(|row| row.cosine.clone().unwrap_or_default()).collect();
        let over_problems = |f: fn(&ProblemRow) -> Option<f64>| {
            mean_interval(&rows.iter().filter_map(f).collect::<Vec<f64>>(), &options)
        };
        Ok(Self {
            model: setting.model.clone(),
            problems: rows.len(),
            samples: rows.iter().map(|row| row.samples).max().unwrap_or(0),
            temperature: setting.temperature,
            pass_at_1: over_problems(|row| row.score("pass@1")),
            distinct_correct: over_problems(|row| Some(row.distinct_correct() as f64)),
            identical: over_problems(identical),
            gradient: reports(rows, &gradient, &options)?,
            semantic: semantic.map(|cosines| reports(rows, cosines, &options)).transpose()?,
        })
    }
}

/// Share of a problem's pairs with the same tokens.
fn identical(row: &ProblemRow) -> Option<f64> {
    let mut statistics = PairStatistics::default();
    let classes = &row.duplicate_of;
    for i in 0..row.samples {
        (i + 1..row.samples).for_each(|j| statistics.add(0.0, classes[i] == classes[j]));
    }
    statistics.duplicate_ratio()
}

/// All kinds of pairs.
fn reports(
    rows: &[ProblemRow],
    cosines: &[Vec<f32>],
    options: &BootstrapOptions,
) -> anyhow::Result<Vec<PairReport>> {
    for (row, cosines) in rows.iter().zip(cosines) {
        let complete = cosines.len() == row.samples * row.samples && row.duplicate_of.len() == row.samples;
        ensure!(complete, "problem {}: {} cosines of {} answers", row.id, cosines.len(), row.samples);
    }
    let report = |kind| {
        let of_problems = |identical| -> Vec<PairStatistics> {
            let pairs = rows.iter().zip(cosines).map(|(row, cosines)| pairs(row, cosines, kind, identical));
            pairs.collect()
        };
        PairReport {
            kind,
            with_identical: summary(&of_problems(true), options),
            without_identical: summary(&of_problems(false), options),
        }
    };
    Ok(PairKind::ALL.into_iter().map(report).collect())
}

/// The pairs of one problem.
fn pairs(row: &ProblemRow, cosines: &[f32], kind: PairKind, identical: bool) -> PairStatistics {
    let mut statistics = PairStatistics::default();
    for i in 0..row.samples {
        for j in i + 1..row.samples {
            let same = row.duplicate_of[i] == row.duplicate_of[j];
            if kind.holds(row.answers[i].correct, row.answers[j].correct) && (identical || !same) {
                statistics.add(cosines[i * row.samples + j].into(), same);
            }
        }
    }
    statistics
}

fn summary(of_problems: &[PairStatistics], options: &BootstrapOptions) -> Option<CosineReport> {
    let mut all = PairStatistics::default();
    of_problems.iter().for_each(|pairs| all.merge(pairs));
    let share = |of: fn(&PairStatistics) -> f64| {
        let parts: Vec<(f64, f64)> =
            of_problems.iter().map(|pairs| (of(pairs), pairs.pairs as f64)).collect();
        ratio_interval(&parts, options)
    };
    Some(CosineReport {
        pairs: all.pairs,
        mean: share(|pairs| pairs.cosine_sum)?,
        negative: share(|pairs| pairs.negative_pairs as f64)?,
        orthogonal: share(|pairs| pairs.orthogonal_pairs as f64)?,
        histogram: all.histogram,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::AnswerRow;

    /// Four answers: 0 and 1 are right and identical, 2 right, 3 wrong.
    fn row() -> ProblemRow {
        let answer = |correct: bool, canonical: &str| AnswerRow {
            text: canonical.to_owned(),
            correct,
            score: f64::from(u8::from(correct)),
            extracted: None,
            canonical: Some(canonical.to_owned()),
            tokens: 1,
            finish_reason: "end_token".to_owned(),
        };
        let cosine =
            [[1.0, 1.0, 0.5, -0.5], [1.0, 1.0, 0.5, -0.5], [0.5, 0.5, 1.0, 0.05], [-0.5, -0.5, 0.05, 1.0]];
        ProblemRow {
            id: "p".to_owned(),
            samples: 4,
            correct: 3,
            answers: vec![answer(true, "a"), answer(true, "a"), answer(true, "b"), answer(false, "c")],
            duplicate_of: vec![0, 0, 2, 3],
            cosine: Some(cosine.concat()),
        }
    }

    fn setting() -> Setting {
        Setting { model: "m".to_owned(), temperature: 1.0, seed: 1 }
    }

    #[test]
    fn pairs_are_split_by_correctness_with_and_without_identical_ones() {
        let found = ModelGeometry::new(&setting(), &[row(), row()], None).unwrap();
        let of = |kind: usize, identical: bool| {
            let report = &found.gradient[kind];
            let report = if identical { &report.with_identical } else { &report.without_identical };
            report.as_ref().map(|r| (r.pairs, r.mean.mean, r.negative.mean, r.orthogonal.mean))
        };
        let close = |found: Option<(u64, f64, f64, f64)>, expected: (u64, f64, f64, f64)| {
            let (pairs, mean, negative, orthogonal) = found.unwrap();
            assert_eq!((pairs, negative, orthogonal), (expected.0, expected.2, expected.3));
            assert!((mean - expected.1).abs() < 1e-7, "{mean} {expected:?}");
        };
        // 01: 1; 02, 12: 1/2; 03, 13: -1/2; 23: 1/20. All sum to 1.05, twice over two problems.
        close(of(0, true), (12, 1.05 / 6.0, 2.0 / 6.0, 1.0 / 6.0));
        close(of(0, false), (10, 0.05 / 5.0, 2.0 / 5.0, 1.0 / 5.0));
        close(of(1, true), (6, 2.0 / 3.0, 0.0, 0.0));
        close(of(1, false), (4, 0.5, 0.0, 0.0));
        close(of(2, true), (6, -0.95 / 3.0, 2.0 / 3.0, 1.0 / 3.0));
        assert_eq!(of(2, true), of(2, false));
        assert_eq!(of(3, true), None);
        let mean = |interval: Option<Interval>| interval.unwrap().mean;
        assert_eq!((mean(found.pass_at_1), mean(found.distinct_correct)), (0.75, 2.0));
        assert!((mean(found.identical) - 1.0 / 6.0).abs() < 1e-12);
    }

    #[test]
    fn cosines_that_are_missing_are_named() {
        let without = ProblemRow { cosine: None, ..row() };
        let error = ModelGeometry::new(&setting(), &[row(), without], None).unwrap_err().to_string();
        assert_eq!(error, "problem p: 0 cosines of 4 answers");
    }

    #[test]
    fn models_stand_beside_each_other_in_the_tables() {
        let semantic = [row().cosine.unwrap()];
        let one = ModelGeometry::new(&setting(), &[row()], Some(&semantic)).unwrap();
        let other = ModelGeometry { model: "n".to_owned(), ..one.clone() };
        let text = tables(&[one, other]);
        for word in
            ["gradient cosines", "semantic cosines", "correct-wrong", "temperature 1", "33.3 [33.3, 33.3]"]
        {
            assert!(text.contains(word), "{word} in {text}");
        }
    }
}
