//! Mathematical answers: find the last `\boxed{}`, understand it, compare it with the reference.
//!
//! `extract` finds the answer, `parse` makes an [`parse::Answer`] of it with exact arithmetic
//! (`rational`, `polynomial`), and two answers are equal if their meanings or their plain texts are.

pub mod extract;
pub mod parse;
pub mod polynomial;
pub mod rational;

use self::parse::Answer;
use super::{Reward, Verdict};

/// Longest response whose answer is looked for, bytes from its end.
const MAX_RESPONSE: usize = 1 << 20;

/// See the module's documentation.
#[derive(Debug, Clone, Copy, Default)]
pub struct MathReward {
    /// Take the last number of a response without a box as its answer.
    pub last_number: bool,
}

impl Reward for MathReward {
    fn name(&self) -> &'static str {
        "math"
    }

    fn verify(&self, gold: &str, response: &str) -> Verdict {
        let Some(extracted) = extract::answer(tail(response), self.last_number) else {
            return Verdict::without_answer("no \\boxed{} in the response");
        };
        let answer = Answer::parse(extracted);
        // A reference may itself stand in a box.
        let gold = Answer::parse(extract::last_boxed(gold).unwrap_or(gold));
        let correct = answer == gold;
        Verdict {
            correct,
            extracted: Some(extracted.to_owned()),
            canonical: Some(answer.canonical()),
            reason: if correct { "equal".into() } else { format!("not equal to {}", gold.canonical()) },
        }
    }
}

/// The end of a text, at a character's border.
fn tail(text: &str) -> &str {
    let start = text.len().saturating_sub(MAX_RESPONSE);
    let start = (start..text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(text.len());
    &text[start..]
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use serde_json::Value;

    use super::*;

    fn correct(gold: &str, answer: &str) -> bool {
        MathReward::default().verify(gold, &format!("So it is \\boxed{{{answer}}}.")).correct
    }

    #[test]
    fn equal_answers() {
        for (gold, answer) in [
            ("42", "42.0"),
            ("1,234", "1234"),
            ("1234", "1{,}234"),
            ("\\frac{1}{2}", "0.5"),
            ("\\frac12", "1/2"),
            ("-\\dfrac{3}{4}", "\\frac{-3}{4}"),
            ("3\\frac{1}{2}", "7/2"),
            ("50\\%", "50"),
            ("90^\\circ", "90"),
            ("\\$18.90", "18.9"),
            ("5\\text{ cm}^2", "5"),
            ("2\\sqrt{3}", "\\sqrt{12}"),
            ("\\frac{1}{\\sqrt{2}}", "\\frac{\\sqrt{2}}{2}"),
            ("\\frac{\\pi}{4}", "\\frac14\\pi"),
            ("2^{10}", "1024"),
            ("(1, 2)", "\\left(1,\\,2\\right)"),
            ("\\{1,2\\}", "\\{2,1\\}"),
            ("[0,\\infty)", "[0, \\infty)"),
            ("x^2+x", "x(x+1)"),
            ("5", "x = 5"),
            ("\\text{Evelyn}", "evelyn"),
            ("(C)", "C"),
            ("\\text{(C)}", "\\text{C}"),
        ] {
            assert!(
                correct(gold, answer),
                "{gold} and {answer}: {:?} {:?}",
                Answer::parse(gold),
                Answer::parse(answer)
            );
        }
    }

    #[test]
    fn different_answers() {
        for (gold, answer) in [
            ("42", "43"),
            ("\\frac{1}{2}", "\\frac{1}{3}"),
            ("(1,2)", "(2,1)"),
            ("(1,2)", "[1,2]"),
            ("\\sqrt{2}", "1.414"),
            ("x+1", "x-1"),
            ("A", "B"),
            ("7", ""),
            ("0", "\\frac{1}{0}"),
        ] {
            assert!(!correct(gold, answer), "{gold} and {answer}");
        }
        assert!(!MathReward::default().verify("5", "the answer is 5").correct);
        assert!(MathReward { last_number: true }.verify("5", "the answer is 5").correct);
    }

    #[test]
    fn hostile_input_ends_within_a_tenth_of_a_second() {
        let cases = [
            "\\boxed{".to_owned() + &"{".repeat(10_000_000),
            format!("\\boxed{{{}}}", "(".repeat(1_900)),
            "\\boxed{9^9^9^9}".to_owned(),
            format!("\\boxed{{{}}}", "9".repeat(1_900)),
            format!("\\boxed{{{}}}", "(x+y+z)".repeat(200)),
            "\\boxed".repeat(1_000_000),
        ];
        for case in &cases {
            // The best of three: what else runs on the machine is not the verifier's time.
            let time = || {
                let start = std::time::Instant::now();
                assert!(!MathReward::default().verify("1", case).correct);
                start.elapsed()
            };
            let best = (0..3).map(|_| time()).min().unwrap_or_default();
            assert!(best.as_millis() < 100, "{}...: {best:?}", &case[..11]);
        }
    }

    /// Rows of a file of real problems, if they are there.
    fn rows(name: &str) -> Vec<Value> {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/data").join(name);
        let Ok(text) = std::fs::read_to_string(&path) else {
            eprintln!("skipped: {} is not there", path.display());
            return Vec::new();
        };
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn real_answers_equal_themselves_and_not_each_other() {
        for name in ["math500.jsonl", "gsm8k_test.jsonl", "aime24.jsonl", "aime25.jsonl", "amc23.jsonl"] {
            let rows = rows(name);
            for row in &rows {
                let gold = row["answer"].as_str().unwrap();
                assert!(correct(gold, gold), "{name}: {gold}");
            }
            for pair in rows.windows(2) {
                let (a, b) = (pair[0]["answer"].as_str().unwrap(), pair[1]["answer"].as_str().unwrap());
                if let (Ok(a_value), Ok(b_value)) = (a.parse::<f64>(), b.parse::<f64>()) {
                    assert_eq!(correct(a, b), a_value == b_value, "{name}: {a} and {b}");
                }
            }
        }
    }

    #[test]
    fn agreement_with_other_graders() {
        // Floors against getting worse; many of these cases need more notation than is known so far.
        for (name, floor) in [("hendrycks_equiv_cases.jsonl", 13), ("math_verify_cases_dev.jsonl", 37)] {
            let rows = rows(name);
            let verify = MathReward { last_number: true };
            let agree = rows.iter().filter(|row| {
                let text = |key: &str| row[key].as_str().unwrap_or_default();
                let prediction = match extract::answer(text("prediction"), false) {
                    Some(_) => text("prediction").to_owned(),
                    None => format!("\\boxed{{{}}}", text("prediction")),
                };
                verify.verify(text("gold"), &prediction).correct
                    == row["expected"].as_bool().unwrap_or_default()
            });
            let (agree, all) = (agree.count(), rows.len());
            println!("{name}: {agree} of {all} agree");
            assert!(rows.is_empty() || agree >= floor, "{name}: {agree} of {all}");
        }
    }
}
