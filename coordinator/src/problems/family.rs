//! What families of problems have in common: splits, and rows drawn from them.
//!
//! In: a [`Family`], which knows its problems and their solutions. Out: [`ProblemRow`]s. A hash of the problem decides
//! the split it belongs to, so that splits are disjoint whoever generates them and with whatever seed.

use g2rl_common::seed::{CounterRng, prompt_hash};

use super::ProblemRow;

/// Which problems.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    /// 75 in 100, for training.
    Train,
    /// 15 in 100, for measuring.
    Heldout,
    /// 10 in 100, for choosing settings.
    Tune,
    /// Every problem.
    All,
}

impl Split {
    /// Whether a problem belongs to the split. `problem` is its text in one form: equal problems have equal forms.
    #[must_use]
    pub fn holds(self, problem: &str) -> bool {
        let share = prompt_hash(problem) % 100;
        match self {
            Self::All => true,
            Self::Heldout => share < 15,
            Self::Tune => (15..25).contains(&share),
            Self::Train => share >= 25,
        }
    }
}

/// How rows are drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DrawOptions {
    /// Which problems.
    pub split: Split,
    /// Share of rows whose solution ends at a wrong target, 0 to 1.
    pub unsure: f64,
    /// The same seed gives the same rows.
    pub seed: u64,
}

/// Problems of one kind, each with several solutions.
pub trait Family {
    /// One problem.
    type Problem: Clone;

    /// Its name, in ids.
    fn name(&self) -> &'static str;

    /// Every problem of a split once.
    fn distinct(&self, split: Split) -> Vec<Self::Problem>;

    /// One of a problem's solutions, all as likely; if `wrong`, sound arithmetic that ends at another number.
    fn solution(&self, problem: &Self::Problem, wrong: bool, random: &mut CounterRng) -> String;

    /// A way to write the problem, without the colon: the reference answer.
    fn text(&self, problem: &Self::Problem, random: &mut CounterRng) -> String;
}

/// Every problem of the split once, in random order.
#[must_use]
pub fn every_distinct<F: Family>(family: &F, options: &DrawOptions) -> Vec<ProblemRow> {
    let mut random = CounterRng::new(options.seed, family.name());
    let mut problems = family.distinct(options.split);
    random.shuffle(&mut problems);
    let row = |(index, problem)| row(family, index, &problem, options, &mut random);
    problems.into_iter().enumerate().map(row).collect()
}

/// Rows drawn freshly: a problem may come again, with another solution.
///
/// # Panics
/// If the split has no problem and rows are wanted.
#[must_use]
pub fn fresh<F: Family>(family: &F, options: &DrawOptions, count: usize) -> Vec<ProblemRow> {
    let mut random = CounterRng::new(options.seed, family.name());
    let problems = family.distinct(options.split);
    assert!(!problems.is_empty() || count == 0, "the family has no problem in this split");
    (0..count)
        .map(|index| {
            let problem = &problems[random.below(problems.len() as u64) as usize];
            row(family, index, problem, options, &mut random)
        })
        .collect()
}

fn row<F: Family>(
    family: &F,
    index: usize,
    problem: &F::Problem,
    options: &DrawOptions,
    random: &mut CounterRng,
) -> ProblemRow {
    let unsure = random.next_f64() < options.unsure;
    let solution = family.solution(problem, unsure, random);
    let answer = family.text(problem, random);
    let id = format!("{}-{index}-{answer}", family.name());
    ProblemRow { id, problem: format!("{answer}:"), answer, solution }
}
