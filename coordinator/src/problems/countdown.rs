//! Countdown problems: `4,7,2>30:` asks for steps such as `4*7=28,28+2=30` that use all numbers.
//!
//! Problems with the same numbers in another order are the same problem.

use g2rl_common::seed::CounterRng;

use super::family::{Family, Split};

/// Results and targets are 1 to this number.
const LARGEST: u32 = 99;

/// The family of problems with so many numbers.
#[derive(Debug, Clone, Copy)]
pub struct Countdown {
    /// How many numbers.
    pub numbers: usize,
    /// Numbers are 1 to this.
    pub max_number: u32,
}

/// Two numbers and what they make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Step {
    operator: char,
    operands: [u32; 2],
    result: u32,
}

impl Family for Countdown {
    /// Sorted numbers and target.
    type Problem = (Vec<u32>, u32);

    fn name(&self) -> &'static str {
        "countdown"
    }

    fn distinct(&self, split: Split) -> Vec<Self::Problem> {
        let mut problems = Vec::new();
        let mut numbers = vec![1; self.numbers];
        loop {
            let mut reached = [false; LARGEST as usize + 1];
            each_chain(&numbers, &mut |_, result| reached[result as usize] = true);
            let wanted = (1..=LARGEST)
                .filter(|target| reached[*target as usize] && split.holds(&text(&numbers, *target)));
            problems.extend(wanted.map(|target| (numbers.clone(), target)));
            // The next non-decreasing sequence.
            let Some(at) = numbers.iter().rposition(|n| *n < self.max_number) else { return problems };
            let next = numbers[at] + 1;
            numbers[at..].fill(next);
        }
    }

    fn solution(&self, (numbers, target): &Self::Problem, wrong: bool, random: &mut CounterRng) -> String {
        let fits = |result: u32| (result == *target) != wrong;
        let count = |wanted: &dyn Fn(u32) -> bool| {
            let mut count = 0;
            each_chain(numbers, &mut |_, result| count += u64::from(wanted(result)));
            count
        };
        match count(&fits) {
            // Numbers that reach nothing but the target have no wrong way.
            0 => chain(numbers, &|_| true, random.below(count(&|_| true))),
            fitting => chain(numbers, &fits, random.below(fitting)),
        }
    }

    /// Numbers in random order.
    fn text(&self, (numbers, target): &Self::Problem, random: &mut CounterRng) -> String {
        let mut numbers = numbers.clone();
        random.shuffle(&mut numbers);
        text(&numbers, *target)
    }
}

fn text(numbers: &[u32], target: u32) -> String {
    let numbers: Vec<String> = numbers.iter().map(u32::to_string).collect();
    format!("{}>{target}", numbers.join(","))
}

/// The steps of the chain before which there are `place` others with wanted results.
fn chain(numbers: &[u32], wanted: &dyn Fn(u32) -> bool, place: u64) -> String {
    let (mut before, mut found) = (0, String::new());
    each_chain(numbers, &mut |steps, result| {
        if wanted(result) {
            if before == place {
                found = steps.iter().map(Step::text).collect::<Vec<_>>().join(",");
            }
            before += 1;
        }
    });
    found
}

impl Step {
    fn text(&self) -> String {
        let Self { operator, operands: [a, b], result } = self;
        format!("{a}{operator}{b}={result}")
    }
}

/// Shows all chains that use all numbers, with results 1 to [`LARGEST`] on the way, and what each makes.
fn each_chain(numbers: &[u32], show: &mut dyn FnMut(&[Step], u32)) {
    extend(numbers, &mut Vec::with_capacity(numbers.len()), show);
}

fn extend(pool: &[u32], steps: &mut Vec<Step>, show: &mut dyn FnMut(&[Step], u32)) {
    if let [result] = pool {
        show(steps, *result);
        return;
    }
    let mut rest = Vec::with_capacity(pool.len());
    for i in 0..pool.len() {
        for j in (0..pool.len()).filter(|j| *j != i) {
            let (a, b) = (pool[i], pool[j]);
            rest.clear();
            rest.extend(pool.iter().enumerate().filter(|(k, _)| *k != i && *k != j).map(|(_, n)| *n));
            let results = [('+', a + b), ('*', a * b), ('-', a.saturating_sub(b))];
            for (operator, result) in results.into_iter().filter(|(_, r)| (1..=LARGEST).contains(r)) {
                rest.push(result);
                steps.push(Step { operator, operands: [a, b], result });
                extend(&rest, steps, show);
                steps.pop();
                rest.pop();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::family::{DrawOptions, every_distinct, fresh};
    use super::*;
    use crate::reward::Reward;
    use crate::reward::countdown::CountdownReward;

    const FAMILY: Countdown = Countdown { numbers: 3, max_number: 12 };

    fn options(split: Split, unsure: f64) -> DrawOptions {
        DrawOptions { split, unsure, seed: 5 }
    }

    #[test]
    fn splits_are_disjoint_and_large_enough() {
        let sets: Vec<BTreeSet<_>> = [Split::Train, Split::Heldout, Split::Tune]
            .map(|split| FAMILY.distinct(split).into_iter().collect())
            .into();
        let all = FAMILY.distinct(Split::All).len();
        println!("train {}, held out {}, tune {} of {all}", sets[0].len(), sets[1].len(), sets[2].len());
        assert_eq!(sets.iter().map(BTreeSet::len).sum::<usize>(), all);
        assert!(
            sets[0].is_disjoint(&sets[1]) && sets[0].is_disjoint(&sets[2]) && sets[1].is_disjoint(&sets[2])
        );
        assert!(sets[1].len() >= 400);
    }

    #[test]
    fn solutions_verify_unless_they_are_unsure() {
        for row in fresh(&FAMILY, &options(Split::Train, 0.0), 300) {
            assert!(CountdownReward.verify(&row.answer, &row.solution).correct, "{row:?}");
        }
        let unsure = fresh(&FAMILY, &options(Split::Train, 1.0), 300);
        let wrong = unsure.iter().filter(|r| !CountdownReward.verify(&r.answer, &r.solution).correct).count();
        assert!(wrong >= 299, "{wrong}");
    }

    #[test]
    fn the_same_seed_gives_the_same_rows() {
        let tune = options(Split::Tune, 0.3);
        assert_eq!(fresh(&FAMILY, &tune, 50), fresh(&FAMILY, &tune, 50));
        let rows = every_distinct(&FAMILY, &options(Split::Heldout, 0.0));
        let ids: BTreeSet<_> = rows.iter().map(|row| &row.id).collect();
        assert_eq!(ids.len(), FAMILY.distinct(Split::Heldout).len());
    }
}
