//! Problems held out of training.

use std::collections::HashMap;

use g2rl_common::seed::CounterRng;

use super::Problem;

/// Splits problems into training and held-out ones.
///
/// The problem's text and the seed decide its side, whatever else is in the data set and in whatever
/// order: a text that occurs twice is on one side, and a data set that grows moves no problem. About
/// `fraction` of the texts are held out.
#[must_use]
pub fn hold_out(problems: Vec<Problem>, fraction: f64, seed: u64) -> (Vec<Problem>, Vec<Problem>) {
    let mut sides: HashMap<String, bool> = HashMap::new();
    problems.into_iter().partition(|problem| {
        let draw = || CounterRng::new(seed, &format!("held out: {}", problem.problem)).next_f64() >= fraction;
        *sides.entry(problem.problem.clone()).or_insert_with(draw)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(count: u32) -> Vec<Problem> {
        let problem = |n: u32| Problem {
            id: n.to_string(),
            // Each text twice.
            problem: format!("What is {} + 1?", n / 2),
            answer: String::new(),
            solution: None,
        };
        (0..count).map(problem).collect()
    }

    #[test]
    fn sides_are_disjoint_and_do_not_depend_on_order() {
        let (train, held_out) = hold_out(problems(4_000), 0.2, 3);
        assert_eq!(train.len() + held_out.len(), 4_000);
        // 2,000 texts with probability 0.2: 400 +- 4 standard deviations of 18.
        assert!((656..=944).contains(&held_out.len()), "{}", held_out.len());
        assert!(held_out.iter().all(|out| train.iter().all(|kept| kept.problem != out.problem)));
        let backwards: Vec<Problem> = problems(4_000).into_iter().rev().take(1_000).collect();
        let (again, _) = hold_out(backwards, 0.2, 3);
        assert!(again.iter().all(|kept| train.contains(kept)));
        assert_ne!(hold_out(problems(4_000), 0.2, 4).1, held_out);
    }
}
