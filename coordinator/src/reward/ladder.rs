//! Ladder: from a start to a target in at most three steps.
//!
//! The reference is `7>52`. An answer is a chain of steps, `7*7=49,49+3=52`: each has the last number (the start at
//! first) on its left, then +, - or *, then 2 to 9, and states the result, 1 to 99. The chain comes to no number twice.

use super::steps::{self, Step, Token};
use super::{Reward, Verdict};
use crate::problems::ladder::{LARGEST, MAX_STEPS, OPERANDS};

/// See the module's documentation.
#[derive(Debug, Clone, Copy)]
pub struct LadderReward;

impl Reward for LadderReward {
    fn name(&self) -> &'static str {
        "ladder"
    }

    fn verify(&self, gold: &str, response: &str) -> Verdict {
        let Some((start, target)) = parse(gold) else {
            return Verdict::without_answer("the reference is not of the form 7>52, two numbers of 1 to 99");
        };
        steps::verify(response, |tokens| judge(start, target, tokens))
    }
}

/// Start and target of `7>52`.
fn parse(text: &str) -> Option<(i128, i128)> {
    let (start, target) = text.trim().split_once('>')?;
    let number = |text: &str| text.trim().parse().ok().filter(|n| is_number(*n));
    let (start, target) = (number(start)?, number(target.trim().trim_end_matches(':'))?);
    (start != target).then_some((start, target))
}

fn is_number(n: i128) -> bool {
    (1..=i128::from(LARGEST)).contains(&n)
}

/// The canonical form of a right chain, or why it is wrong. Chains that differ in a step are different answers, whatever
/// the order of their operands would be worth elsewhere: the left one is given.
fn judge(start: i128, target: i128, tokens: &[Token]) -> Result<String, &'static str> {
    let mut numbers = vec![start];
    for (at, tokens) in tokens.split(|token| *token == Token::Comma).enumerate() {
        if at == MAX_STEPS {
            return Err("more than three steps");
        }
        let step = steps::step(tokens).ok_or(steps::NO_STEP)?;
        if numbers.last() != Some(&step.left) {
            return Err("a step does not begin with the last number");
        }
        let result = result(step)?;
        if numbers.contains(&result) {
            return Err("a number occurs twice");
        }
        numbers.push(result);
    }
    if numbers.last() != Some(&target) {
        return Err("the result is not the target");
    }
    Ok(steps::plain(tokens))
}

/// The result of a step, if it is what the step says and allowed.
fn result(step: Step) -> Result<i128, &'static str> {
    let Step { left, operator, right, result } = step;
    if !u32::try_from(right).is_ok_and(|n| OPERANDS.contains(&n)) {
        return Err("a step takes a number that is not 2 to 9");
    }
    // `left` is 1 to 99: nothing overflows.
    let value = match operator {
        '+' => left + right,
        '-' => left - right,
        '*' => left * right,
        _ => return Err("a step has an operator other than + - *"),
    };
    if value != result {
        return Err("a step's arithmetic is wrong");
    }
    if !is_number(result) {
        return Err("a result is not 1 to 99");
    }
    Ok(result)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn verdict(response: &str) -> Verdict {
        LadderReward.verify("7>52", response)
    }

    #[test]
    fn right_answers() {
        for answer in [
            "7*7=49,49+3=52",
            " 7 \u{d7} 7 = 49, 49 + 3 = 52 ",
            "7*8=56,56-4=52",
            "7-2=5,5*9=45,45+7=52",
            "<think>7+9=16</think>7*7=49,49+3=52",
            "So \\boxed{7*7=49,49+3=52}",
            "<answer>7*7=49;49+3=52</answer>",
        ] {
            assert!(verdict(answer).correct, "{answer}: {}", verdict(answer).reason);
        }
        // One step is right where it leads there, though no generated problem is like that.
        assert!(LadderReward.verify("7>49:", "7*7=49").correct);
    }

    #[test]
    fn wrong_answers_and_why() {
        for (answer, reason) in [
            ("", "no answer"),
            ("7*7=49", "the result is not the target"),
            ("7*7=49,3+49=52", "a step does not begin with the last number"),
            ("8*6=48,48+4=52", "a step does not begin with the last number"),
            ("7*7=48,48+4=52", "a step's arithmetic is wrong"),
            ("7*1=7,7*7=49,49+3=52", "a step takes a number that is not 2 to 9"),
            ("7+10=17,17*3=51", "a step takes a number that is not 2 to 9"),
            ("7/7=1", "a step has an operator other than + - *"),
            ("7*9=63,63*2=126,126-74=52", "a result is not 1 to 99"),
            ("7-7=0", "a result is not 1 to 99"),
            ("7+2=9,9-2=7,7*7=49", "a number occurs twice"),
            ("7+2=9,9+2=11,11+2=13,13*4=52", "more than three steps"),
            ("7*7=49,,49+3=52", "a step is not of the form a*b=c"),
            ("7*7=49,49+3=52,", "a step is not of the form a*b=c"),
            ("7*7+3=52", "a step is not of the form a*b=c"),
            ("52", "a step is not of the form a*b=c"),
            ("7*7=49,49+3=52 yes", "the answer holds something other than arithmetic"),
        ] {
            let verdict = verdict(answer);
            assert!(!verdict.correct, "{answer}");
            assert_eq!(verdict.reason, reason, "{answer}");
        }
        for gold in ["", "7", "7>7", "0>5", "7>100", "7,3>5", "-7>5"] {
            assert!(!LadderReward.verify(gold, "7*7=49").correct, "{gold}");
            assert!(LadderReward.verify(gold, "7*7=49").reason.starts_with("the reference"), "{gold}");
        }
    }

    #[test]
    fn different_chains_have_different_forms() {
        let form = |answer: &str| verdict(answer).canonical.unwrap();
        assert_eq!(form("7*7=49,49+3=52"), form(" 7 \u{b7} 7=49 ; 49+3 = 52"));
        assert_ne!(form("7*7=49,49+3=52"), form("7*8=56,56-4=52"));
        assert_eq!(form("7*7=49,49+4=53"), "7*7=49,49+4=53");
    }

    #[test]
    fn hostile_input_ends_at_once() {
        let start = std::time::Instant::now();
        for answer in ["(".repeat(1_000_000), "7*7=49,".repeat(200_000), "\\boxed{".repeat(100_000)] {
            assert!(!verdict(&answer).correct);
        }
        assert!(!verdict(&format!("7*{}=49", "9".repeat(900))).correct);
        assert!(!verdict(&format!("7*{}=49", i128::MAX)).correct);
        assert!(!LadderReward.verify(&"9>".repeat(1_000_000), "7*7=49").correct);
        assert!(start.elapsed().as_millis() < 1_000);
    }

    /// Every right chain, by trying all triples of operators and operands.
    fn brute_force(start: i64, target: i64) -> BTreeSet<String> {
        let moves: Vec<(char, i64)> =
            ['+', '-', '*'].into_iter().flat_map(|o| (2..10).map(move |n| (o, n))).collect();
        let mut right = BTreeSet::new();
        let mut partial = vec![(String::new(), vec![start])];
        for _ in 0..3 {
            let mut longer = Vec::new();
            for (text, path) in &partial {
                for (operator, n) in &moves {
                    let last = path[path.len() - 1];
                    let next = match operator {
                        '+' => last + n,
                        '-' => last - n,
                        _ => last * n,
                    };
                    if !(1..=99).contains(&next) || path.contains(&next) {
                        continue;
                    }
                    let comma = if text.is_empty() { "" } else { "," };
                    let text = format!("{text}{comma}{last}{operator}{n}={next}");
                    if next == target {
                        right.insert(text.clone());
                    }
                    longer.push((text, [path.as_slice(), &[next]].concat()));
                }
            }
            partial = longer;
        }
        right
    }

    /// Numbers and signs of a chain.
    fn pieces(chain: &str) -> Vec<String> {
        let mut pieces: Vec<String> = Vec::new();
        for c in chain.chars() {
            match pieces.last_mut() {
                Some(last) if c.is_ascii_digit() && last.ends_with(|l: char| l.is_ascii_digit()) => {
                    last.push(c)
                }
                _ => pieces.push(c.to_string()),
            }
        }
        pieces
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn mutations_are_judged_as_by_brute_force(
            start in 1_i64..=99,
            target in 1_i64..=99,
            pick in any::<prop::sample::Index>(),
            mutations in prop::collection::vec((0_u8..4, any::<prop::sample::Index>(), 0_i64..105, 0_usize..6), 40),
        ) {
            prop_assume!(start != target);
            let right = brute_force(start, target);
            prop_assume!(!right.is_empty());
            let chain: Vec<&String> = right.iter().collect();
            let chain = chain[pick.index(chain.len())];
            let gold = format!("{start}>{target}");
            prop_assert!(LadderReward.verify(&gold, chain).correct, "{} {}", gold, chain);
            for (kind, at, number, sign) in mutations {
                let mut pieces = pieces(chain);
                let at = at.index(pieces.len());
                let is_number = pieces[at].starts_with(|c: char| c.is_ascii_digit());
                match kind {
                    // Often another chain that is right too: an operand by another one.
                    0 if is_number => pieces[at] = (number % 10).to_string(),
                    1 if is_number => pieces[at] = number.to_string(),
                    0 | 1 => pieces[at] = ["+", "-", "*", "/", "=", ","][sign].to_owned(),
                    2 => drop(pieces.remove(at)),
                    _ => pieces.insert(at, pieces[at].clone()),
                }
                let mutated = pieces.concat();
                let judged = LadderReward.verify(&gold, &mutated).correct;
                prop_assert_eq!(judged, right.contains(&mutated), "{} {}", gold, mutated);
            }
        }

        #[test]
        fn the_generator_knows_all_right_chains(start in 1_u32..=99, target in 1_u32..=99) {
            prop_assume!(start != target);
            let count = brute_force(start.into(), target.into()).len();
            let problem = crate::problems::ladder::Problem { start, target };
            let family = family();
            prop_assert_eq!(family.solutions(problem), count);
        }
    }

    fn family() -> &'static crate::problems::ladder::Ladder {
        static FAMILY: std::sync::OnceLock<crate::problems::ladder::Ladder> = std::sync::OnceLock::new();
        FAMILY.get_or_init(crate::problems::ladder::Ladder::default)
    }
}
