//! Ladder problems: `7>52:` asks for steps such as `7*7=49,49+3=52` from a start to a target.
//!
//! Each step takes the last number (the start at first), adds, subtracts or multiplies by 2 to 9, and states the result.
//! A chain has at most three steps and comes to no number twice. A problem has usually dozens of right chains; those
//! that one step solves are left out, so that there is something to find.
//!
//! Solutions can think first ([`Thinking`]): `<think>7*8=56,56-3=53;7*7=49,49+3=52</think>7*7=49,49+3=52`.

use g2rl_common::seed::CounterRng;

use super::family::{Family, Split};

/// Start, results and target are 1 to this number.
pub const LARGEST: u32 = 99;

/// The numbers that a step can add, subtract or multiply by.
pub const OPERANDS: std::ops::RangeInclusive<u32> = 2..=9;

/// Longest chain.
pub const MAX_STEPS: usize = 3;

/// The family, with all chains from every start.
#[derive(Debug, Clone)]
pub struct Ladder {
    /// By start - 1; sorted by result.
    chains: Vec<Vec<Chain>>,
    thinking: Option<Thinking>,
}

/// Solutions that try in `<think>` tags before they answer.
///
/// Each try is a chain drawn among all that end near the target, all as likely, whatever was tried before. After a right
/// one, or after as many as there may be, the last one is the answer: a model that imitates this has to learn how to aim
/// and when to stop, and longer answers are right more often.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Thinking {
    /// At most so many tries; at least one.
    pub tries: u32,
    /// No try ends further than this from the target.
    pub near: u32,
}

/// A start and a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// Where chains begin.
    pub start: u32,
    /// Where right ones end.
    pub target: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Step {
    operator: char,
    operand: u32,
    result: u32,
}

/// Steps from a start; at least one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Chain {
    steps: [Option<Step>; MAX_STEPS],
    result: u32,
}

impl Chain {
    fn len(&self) -> usize {
        self.steps.iter().flatten().count()
    }

    /// This chain and one step more.
    fn with(mut self, step: Step) -> Self {
        self.steps[self.len()] = Some(step);
        self.result = step.result;
        self
    }

    fn text(&self, start: u32) -> String {
        let mut last = start;
        let mut texts = Vec::new();
        for Step { operator, operand, result } in self.steps.iter().flatten() {
            texts.push(format!("{last}{operator}{operand}={result}"));
            last = *result;
        }
        texts.join(",")
    }
}

impl Default for Ladder {
    fn default() -> Self {
        let chains = (1..=LARGEST).map(|start| {
            let mut found = Vec::new();
            extend(start, start, Chain::default(), &mut found);
            found.sort_by_key(|chain: &Chain| chain.result);
            found
        });
        Self { chains: chains.collect(), thinking: None }
    }
}

/// All chains that go on from `last`, where `chain` ends.
fn extend(start: u32, last: u32, chain: Chain, found: &mut Vec<Chain>) {
    if chain.len() == MAX_STEPS {
        return;
    }
    for operand in OPERANDS {
        let results = [('+', last + operand), ('*', last * operand), ('-', last.saturating_sub(operand))];
        for (operator, result) in results.into_iter().filter(|(_, result)| (1..=LARGEST).contains(result)) {
            let visited = chain.steps.iter().flatten().any(|step| step.result == result);
            if result != start && !visited {
                let longer = chain.with(Step { operator, operand, result });
                found.push(longer);
                extend(start, result, longer, found);
            }
        }
    }
}

impl Ladder {
    /// The family with solutions that think first.
    #[must_use]
    pub fn thinking(thinking: Thinking) -> Self {
        Self { thinking: Some(thinking), ..Self::default() }
    }

    /// All chains from the start, and which of them are right.
    fn of(&self, problem: Problem) -> (&[Chain], std::ops::Range<usize>) {
        self.near(problem, 0)
    }

    /// All chains from the start, and which of them end within `distance` of the target.
    fn near(&self, problem: Problem, distance: u32) -> (&[Chain], std::ops::Range<usize>) {
        let chains = &self.chains[problem.start as usize - 1];
        let lowest = problem.target.saturating_sub(distance);
        let begin = chains.partition_point(|chain| chain.result < lowest);
        let end = chains.partition_point(|chain| chain.result <= problem.target + distance);
        (chains, begin..end)
    }

    /// Tries until one is right or there may be no more, and the last one again.
    fn think(&self, problem: Problem, thinking: Thinking, random: &mut CounterRng) -> String {
        let (chains, near) = self.near(problem, thinking.near);
        let mut tries = Vec::new();
        loop {
            let chain = chains[near.start + random.below(near.len() as u64) as usize];
            let text = chain.text(problem.start);
            tries.push(text.clone());
            if chain.result == problem.target || tries.len() as u32 >= thinking.tries {
                return format!("<think>{}</think>{text}", tries.join(";"));
            }
        }
    }

    /// How many right chains a problem has.
    #[must_use]
    pub fn solutions(&self, problem: Problem) -> usize {
        self.of(problem).1.len()
    }

    fn is_wanted(&self, problem: Problem) -> bool {
        let (chains, right) = self.of(problem);
        !right.is_empty() && chains[right].iter().all(|chain| chain.len() > 1)
    }
}

impl Family for Ladder {
    type Problem = Problem;

    fn name(&self) -> &'static str {
        "ladder"
    }

    fn distinct(&self, split: Split) -> Vec<Problem> {
        let problems =
            (1..=LARGEST).flat_map(|start| (1..=LARGEST).map(move |target| Problem { start, target }));
        problems.filter(|problem| self.is_wanted(*problem) && split.holds(&text(*problem))).collect()
    }

    /// With [`Thinking`], `wrong` does not matter.
    fn solution(&self, problem: &Problem, wrong: bool, random: &mut CounterRng) -> String {
        if let Some(thinking) = self.thinking {
            return self.think(*problem, thinking, random);
        }
        let (chains, right) = self.of(*problem);
        let at = if wrong {
            // Every start leads to more than one number, so there is a wrong chain.
            let at = random.below((chains.len() - right.len()) as u64) as usize;
            if at < right.start { at } else { at + right.len() }
        } else {
            right.start + random.below(right.len() as u64) as usize
        };
        chains[at].text(problem.start)
    }

    fn text(&self, problem: &Problem, _: &mut CounterRng) -> String {
        text(*problem)
    }
}

fn text(problem: Problem) -> String {
    format!("{}>{}", problem.start, problem.target)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::family::{DrawOptions, every_distinct, fresh};
    use super::*;
    use crate::reward::Reward;
    use crate::reward::ladder::LadderReward;

    fn options(split: Split, unsure: f64) -> DrawOptions {
        DrawOptions { split, unsure, seed: 5 }
    }

    #[test]
    fn splits_are_disjoint_and_as_large_as_documented() {
        let family = Ladder::default();
        let sets: Vec<BTreeSet<Problem>> = [Split::Train, Split::Heldout, Split::Tune]
            .map(|split| family.distinct(split).into_iter().collect())
            .into();
        let all = family.distinct(Split::All);
        // docs/data.md; the sums are those of a program that tries all chains.
        assert_eq!(sets.iter().map(BTreeSet::len).collect::<Vec<_>>(), [4_065, 821, 547]);
        let solutions = all.iter().map(|problem| family.solutions(*problem));
        assert_eq!((solutions.clone().min(), solutions.clone().max()), (Some(1), Some(231)));
        let mean = solutions.sum::<usize>() as f64 / all.len() as f64;
        assert!((mean - 48.684).abs() < 0.001, "{mean}");
        assert_eq!(sets.iter().map(BTreeSet::len).sum::<usize>(), all.len());
        assert_eq!(sets.iter().flatten().collect::<BTreeSet<_>>().len(), all.len());
    }

    #[test]
    fn no_problem_is_solved_by_one_step() {
        for Problem { start, target } in Ladder::default().distinct(Split::All) {
            assert_ne!(start, target);
            let one = OPERANDS
                .into_iter()
                .any(|n| start + n == target || start * n == target || start.checked_sub(n) == Some(target));
            assert!(!one, "{start}>{target}");
        }
    }

    #[test]
    fn solutions_verify_unless_they_are_unsure() {
        let family = Ladder::default();
        for row in fresh(&family, &options(Split::All, 0.0), 3_000) {
            assert!(LadderReward.verify(&row.answer, &row.solution).correct, "{row:?}");
        }
        for row in fresh(&family, &options(Split::All, 1.0), 3_000) {
            let verdict = LadderReward.verify(&row.answer, &row.solution);
            assert!(!verdict.correct, "{row:?}");
            // The arithmetic is sound.
            assert_eq!(verdict.reason, "the result is not the target", "{row:?}");
        }
        let mixed = fresh(&family, &options(Split::Train, 0.25), 4_000);
        let wrong =
            mixed.iter().filter(|row| !LadderReward.verify(&row.answer, &row.solution).correct).count();
        // 4000 draws of probability 1/4: five standard deviations of 27.4.
        assert!((863..=1_137).contains(&wrong), "{wrong}");
    }

    #[test]
    fn every_right_chain_is_drawn_about_as_often() {
        let family = Ladder::default();
        let problem = Problem { start: 7, target: 52 };
        let mut random = CounterRng::new(1, "test");
        let mut seen = std::collections::BTreeMap::new();
        let count = family.solutions(problem);
        for _ in 0..count * 100 {
            *seen.entry(family.solution(&problem, false, &mut random)).or_insert(0) += 1;
        }
        assert_eq!(seen.len(), count);
        // Poisson of mean 100: six standard deviations of 10.
        assert!(seen.values().all(|n| (40..=160).contains(n)), "{seen:?}");
        assert!(seen.contains_key("7*7=49,49+3=52"));
    }

    #[test]
    fn a_thinking_solution_tries_until_it_is_right() {
        let thinking = Thinking { tries: 4, near: 3 };
        let (short, family) = (Ladder::default(), Ladder::thinking(thinking));
        let mut wanted = 0.0;
        let mut right = 0;
        let rows = fresh(&family, &options(Split::All, 0.0), 3_000);
        for row in &rows {
            let (start, target) = row.answer.split_once('>').unwrap();
            let problem = Problem { start: start.parse().unwrap(), target: target.parse().unwrap() };
            let near: usize = (problem.target.saturating_sub(3).max(1)..=(problem.target + 3).min(LARGEST))
                .map(|target| short.solutions(Problem { target, ..problem }))
                .sum();
            wanted += 1.0 - (1.0 - short.solutions(problem) as f64 / near as f64).powi(4);

            let (thought, answer) = row.solution.split_once("</think>").unwrap();
            let tries: Vec<&str> = thought.strip_prefix("<think>").unwrap().split(';').collect();
            assert!(tries.len() <= 4, "{row:?}");
            assert_eq!(tries.last(), Some(&answer), "{row:?}");
            for (at, chain) in tries.iter().enumerate() {
                let verdict = LadderReward.verify(&row.answer, chain);
                let end: u32 = chain.rsplit('=').next().unwrap().parse().unwrap();
                assert!(end.abs_diff(problem.target) <= 3, "{row:?}");
                assert!(verdict.correct || verdict.reason == "the result is not the target", "{row:?}");
                assert!(!verdict.correct || at + 1 == tries.len(), "{row:?}");
            }
            let correct = LadderReward.verify(&row.answer, &row.solution).correct;
            assert!(correct || tries.len() == 4, "{row:?}");
            right += usize::from(correct);
        }
        // At most 3,000 / 4 variance: five standard deviations of 27.4.
        assert!((right as f64 - wanted).abs() < 137.0, "{right} of {wanted}");
    }

    #[test]
    fn the_same_seed_gives_the_same_rows() {
        let (family, tune) = (Ladder::default(), options(Split::Tune, 0.3));
        assert_eq!(fresh(&family, &tune, 50), fresh(&family, &tune, 50));
        assert_ne!(fresh(&family, &tune, 50), fresh(&family, &DrawOptions { seed: 6, ..tune }, 50));
        let rows = every_distinct(&family, &options(Split::Heldout, 0.0));
        let answers: BTreeSet<_> = rows.iter().map(|row| &row.answer).collect();
        assert_eq!(answers.len(), family.distinct(Split::Heldout).len());
    }
}
