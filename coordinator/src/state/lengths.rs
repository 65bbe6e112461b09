//! How long the answers to a problem will be: what they were when it was last asked.
//!
//! Invariant: expectations decide the order and the place of work, never its result.

use std::collections::BTreeMap;

use super::interface::ProblemRef;

/// Weight of the newest answers against all before.
const NEWEST: f64 = 0.5;

/// Mean response lengths by problem, tokens.
#[derive(Debug, Clone, Default)]
pub(super) struct Lengths {
    seen: BTreeMap<ProblemRef, f64>,
    /// Of everything seen; what is expected of a new problem.
    mean: Option<f64>,
}

impl Lengths {
    /// A history that an earlier process of the run has left.
    pub(super) fn new(history: impl IntoIterator<Item = (ProblemRef, f64)>) -> Self {
        let seen: BTreeMap<_, _> = history.into_iter().collect();
        let mean = (!seen.is_empty()).then(|| seen.values().sum::<f64>() / seen.len() as f64);
        Self { seen, mean }
    }

    /// Takes in the mean length of a group's answers.
    pub(super) fn observe(&mut self, problem: ProblemRef, length: f64) {
        let blend = |old: f64| old + NEWEST * (length - old);
        self.seen.entry(problem).and_modify(|old| *old = blend(*old)).or_insert(length);
        // Of some hundred groups.
        self.mean = Some(self.mean.map_or(length, |mean| mean + (length - mean) / 256.0));
    }

    /// Tokens of an answer, at least 1.
    pub(super) fn expected(&self, problem: ProblemRef) -> u32 {
        let length = self.seen.get(&problem).copied().or(self.mean).unwrap_or(1.0);
        length.round().clamp(1.0, f64::from(u32::MAX)) as u32
    }
}

#[cfg(test)]
mod tests {
    use g2rl_common::rollout::Purpose;

    use super::*;

    #[test]
    fn the_newest_answers_count_most_and_a_new_problem_is_like_the_others() {
        let problem = |index| ProblemRef { purpose: Purpose::Train, index };
        let mut lengths = Lengths::default();
        assert_eq!(lengths.expected(problem(0)), 1);
        lengths.observe(problem(0), 100.0);
        lengths.observe(problem(0), 200.0);
        assert_eq!(lengths.expected(problem(0)), 150);
        assert_eq!(lengths.expected(problem(1)), 100);
        let lengths = Lengths::new([(problem(0), 100.0), (problem(1), 300.0)]);
        assert_eq!((lengths.expected(problem(1)), lengths.expected(problem(2))), (300, 200));
    }
}
