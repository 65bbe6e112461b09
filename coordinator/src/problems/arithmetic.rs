//! Arithmetic problems with integer answers in `\boxed{}`: `12+30*2=`.

use g2rl_common::seed::CounterRng;

use super::ProblemRow;

/// Random sums and products of three numbers up to `largest`.
#[must_use]
pub fn problems(count: usize, largest: u32, seed: u64) -> Vec<ProblemRow> {
    let mut random = CounterRng::new(seed, "arithmetic");
    let mut number = || random.below(u64::from(largest.max(1))) as i64 + 1;
    (0..count)
        .map(|index| {
            let (a, b, c, kind) = (number(), number(), number(), number() % 3);
            let (problem, value) = match kind {
                0 => (format!("{a}+{b}*{c}="), a + b * c),
                1 => (format!("{a}*{b}-{c}="), a * b - c),
                _ => (format!("({a}+{b})*{c}="), (a + b) * c),
            };
            ProblemRow {
                id: format!("arithmetic-{index}"),
                problem,
                answer: value.to_string(),
                solution: format!("\\boxed{{{value}}}"),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reward::Reward;
    use crate::reward::math::MathReward;

    #[test]
    fn solutions_verify() {
        for row in problems(100, 50, 3) {
            assert!(MathReward::default().verify(&row.answer, &row.solution).correct, "{row:?}");
            // The problem itself has the value of its answer.
            let value = format!("\\boxed{{{}}}", row.problem.trim_end_matches('='));
            assert!(MathReward::default().verify(&row.answer, &value).correct, "{row:?}");
        }
        assert_eq!(problems(5, 50, 3), problems(5, 50, 3));
    }
}
