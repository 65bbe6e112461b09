//! Countdown problems: `4,7,2>30:` asks for steps such as `4*7=28,28+2=30` that use all numbers.
//!
//! Problems with the same numbers in another order are the same problem. A hash of the problem decides
//! the split it belongs to, so that splits are disjoint whoever generates them and with whatever seed.

use g2rl_common::seed::{CounterRng, prompt_hash};

use super::ProblemRow;

/// Results and targets are 1 to this number.
const LARGEST: u32 = 99;

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

/// Options of the generator.
#[derive(Debug, Clone)]
pub struct CountdownOptions {
    /// How many numbers.
    pub numbers: usize,
    /// Numbers are 1 to this.
    pub max_number: u32,
    /// Which problems.
    pub split: Split,
    /// Share of rows whose solution ends at a wrong target.
    pub unsure: f64,
    /// The same seed gives the same rows.
    pub seed: u64,
}

/// One way to combine the numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Chain {
    steps: String,
    result: u32,
}

/// All problems of a split: sorted numbers and target.
#[must_use]
pub fn distinct(options: &CountdownOptions) -> Vec<(Vec<u32>, u32)> {
    let mut problems = Vec::new();
    let mut numbers = vec![1; options.numbers];
    loop {
        let mut targets: Vec<u32> = chains(&numbers).into_iter().map(|chain| chain.result).collect();
        targets.sort_unstable();
        targets.dedup();
        let wanted = targets.into_iter().filter(|target| belongs(&numbers, *target, options.split));
        problems.extend(wanted.map(|target| (numbers.clone(), target)));
        // The next non-decreasing sequence.
        let Some(at) = numbers.iter().rposition(|n| *n < options.max_number) else { return problems };
        let next = numbers[at] + 1;
        numbers[at..].fill(next);
    }
}

/// Whether a problem belongs to a split. `numbers` are sorted.
#[must_use]
pub fn belongs(numbers: &[u32], target: u32, split: Split) -> bool {
    let text: Vec<String> = numbers.iter().map(u32::to_string).collect();
    let share = prompt_hash(&format!("{}>{target}", text.join(","))) % 100;
    match split {
        Split::All => true,
        Split::Heldout => share < 15,
        Split::Tune => (15..25).contains(&share),
        Split::Train => share >= 25,
    }
}

/// Every problem of the split once, numbers in random order, problems in random order.
#[must_use]
pub fn every_distinct(options: &CountdownOptions) -> Vec<ProblemRow> {
    let mut random = CounterRng::new(options.seed, "countdown");
    let mut problems = distinct(options);
    random.shuffle(&mut problems);
    let row = |(index, (numbers, target)): (usize, (Vec<u32>, u32))| {
        row(index, numbers, target, options, &mut random)
    };
    problems.into_iter().enumerate().map(row).collect()
}

/// Rows drawn freshly: random numbers, a random reachable target of the split.
#[must_use]
pub fn fresh(options: &CountdownOptions, count: usize) -> Vec<ProblemRow> {
    let mut random = CounterRng::new(options.seed, "countdown");
    let problems = distinct(options);
    assert!(!problems.is_empty() || count == 0, "the family has no problem in this split");
    (0..count)
        .map(|index| {
            let (numbers, target) = problems[random.below(problems.len() as u64) as usize].clone();
            row(index, numbers, target, options, &mut random)
        })
        .collect()
}

fn row(
    index: usize,
    mut numbers: Vec<u32>,
    target: u32,
    options: &CountdownOptions,
    random: &mut CounterRng,
) -> ProblemRow {
    let chains = chains(&numbers);
    let unsure = random.next_f64() < options.unsure;
    let fitting: Vec<&Chain> = chains.iter().filter(|chain| (chain.result == target) != unsure).collect();
    // Numbers that reach nothing but the target have no wrong way.
    let all: Vec<&Chain> = chains.iter().collect();
    let from = if fitting.is_empty() { &all } else { &fitting };
    let solution = from[random.below(from.len() as u64) as usize].steps.clone();
    random.shuffle(&mut numbers);
    let text: Vec<String> = numbers.iter().map(u32::to_string).collect();
    let answer = format!("{}>{target}", text.join(","));
    ProblemRow { id: format!("countdown-{index}-{answer}"), problem: format!("{answer}:"), answer, solution }
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

    use super::*;
    use crate::reward::Reward;
    use crate::reward::countdown::CountdownReward;

    fn options(split: Split, unsure: f64) -> CountdownOptions {
        CountdownOptions { numbers: 3, max_number: 12, split, unsure, seed: 5 }
    }

    #[test]
    fn splits_are_disjoint_and_large_enough() {
        let sets: Vec<BTreeSet<_>> = [Split::Train, Split::Heldout, Split::Tune]
            .map(|split| distinct(&options(split, 0.0)).into_iter().collect())
            .into();
        let all = distinct(&options(Split::All, 0.0)).len();
        println!("train {}, held out {}, tune {} of {all}", sets[0].len(), sets[1].len(), sets[2].len());
        assert_eq!(sets.iter().map(BTreeSet::len).sum::<usize>(), all);
        assert!(
            sets[0].is_disjoint(&sets[1]) && sets[0].is_disjoint(&sets[2]) && sets[1].is_disjoint(&sets[2])
        );
        assert!(sets[1].len() >= 400);
    }

    #[test]
    fn solutions_verify_unless_they_are_unsure() {
        for row in fresh(&options(Split::Train, 0.0), 300) {
            assert!(CountdownReward.verify(&row.answer, &row.solution).correct, "{row:?}");
        }
        let unsure = fresh(&options(Split::Train, 1.0), 300);
        let wrong = unsure.iter().filter(|r| !CountdownReward.verify(&r.answer, &r.solution).correct).count();
        assert!(wrong >= 299, "{wrong}");
    }

    #[test]
    fn the_same_seed_gives_the_same_rows() {
        assert_eq!(fresh(&options(Split::Tune, 0.3), 50), fresh(&options(Split::Tune, 0.3), 50));
        let rows = every_distinct(&options(Split::Heldout, 0.0));
        let ids: BTreeSet<_> = rows.iter().map(|row| &row.id).collect();
        assert_eq!(ids.len(), distinct(&options(Split::Heldout, 0.0)).len());
    }
}
