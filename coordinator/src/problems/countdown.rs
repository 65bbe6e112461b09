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

/// One way to combine the numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Chain {
    steps: String,
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
            let mut targets: Vec<u32> = chains(&numbers).into_iter().map(|chain| chain.result).collect();
            targets.sort_unstable();
            targets.dedup();
            let wanted = targets.into_iter().filter(|target| split.holds(&text(&numbers, *target)));
            problems.extend(wanted.map(|target| (numbers.clone(), target)));
            // The next non-decreasing sequence.
            let Some(at) = numbers.iter().rposition(|n| *n < self.max_number) else { return problems };
            let next = numbers[at] + 1;
            numbers[at..].fill(next);
        }
    }

    fn solution(&self, (numbers, target): &Self::Problem, wrong: bool, random: &mut CounterRng) -> String {
        let chains = chains(numbers);
        let fitting: Vec<&Chain> = chains.iter().filter(|chain| (chain.result == *target) != wrong).collect();
        // Numbers that reach nothing but the target have no wrong way.
        let all: Vec<&Chain> = chains.iter().collect();
        let from = if fitting.is_empty() { &all } else { &fitting };
        from[random.below(from.len() as u64) as usize].steps.clone()
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

/// All chains that use all numbers, with results 1 to [`LARGEST`] on the way.
fn chains(numbers: &[u32]) -> Vec<Chain> {
    let mut found = Vec::new();
    extend(numbers, "", &mut found);
    found
}

fn extend(pool: &[u32], steps: &str, found: &mut Vec<Chain>) {
    if let [result] = pool {
        found.push(Chain { steps: steps.to_owned(), result: *result });
        return;
    }
    for i in 0..pool.len() {
        for j in (0..pool.len()).filter(|j| *j != i) {
            let (a, b) = (pool[i], pool[j]);
            let results = [('+', a + b), ('*', a * b), ('-', a.saturating_sub(b))];
            for (operator, result) in results.into_iter().filter(|(_, r)| (1..=LARGEST).contains(r)) {
                let mut rest: Vec<u32> =
                    pool.iter().enumerate().filter(|(k, _)| *k != i && *k != j).map(|(_, n)| *n).collect();
                rest.push(result);
                let comma = if steps.is_empty() { "" } else { "," };
                extend(&rest, &format!("{steps}{comma}{a}{operator}{b}={result}"), found);
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
