//! Mathematical answers: find the answer in a response, understand it, compare it with the reference.
//!
//! The stages, each a file: `extract` finds the answer's text, `lexer` makes tokens of it, `answer`
//! (with `parser`, `matrix`, `units`) a meaning, and `compare` decides whether two meanings are equal:
//! exactly where they have a normal form (`rational`, `polynomial`, `region`), else by their values at
//! chosen points with error bounds (`numeric`). Lengths, depths and steps are bounded, so that every
//! verdict comes within a fraction of a second; what exceeds a bound is not equal. What is accepted and
//! what is not stands in `docs/verifier.md`.

mod answer;
mod choice;
mod compare;
mod expression;
pub mod extract;
mod lexer;
mod matrix;
mod names;
mod numeric;
mod parser;
mod polynomial;
pub mod rational;
mod region;
mod token;
mod units;

use self::answer::{Answer, MAX_LENGTH, plain};
use self::expression::Budget;
use self::extract::{Extracted, Source};
use super::{Reward, Verdict};

/// Longest response whose answer is looked for, bytes from its end.
const MAX_RESPONSE: usize = 1 << 20;

/// See the module's documentation.
#[derive(Debug, Clone, Copy, Default)]
pub struct MathReward {
    /// Take the last formula or number of a response that has neither a box nor "the answer is".
    pub last_number: bool,
}

impl Reward for MathReward {
    fn name(&self) -> &'static str {
        "math"
    }

    fn verify(&self, gold: &str, response: &str) -> Verdict {
        let Some(extracted) = extract::answer(extract::tail(response, MAX_RESPONSE), self.last_number) else {
            return Verdict::without_answer("no answer found: no \\boxed{} in the response");
        };
        judge(&extract::reference(gold), extracted)
    }
}

/// Compares a response's answer with the reference's.
fn judge(gold: &str, extracted: Extracted<'_>) -> Verdict {
    let text = extracted.text.as_ref();
    let verdict = |correct, canonical: String, reason: &str| Verdict {
        correct,
        extracted: Some(text.chars().take(MAX_LENGTH).collect()),
        canonical: Some(canonical),
        reason: reason.to_owned(),
    };
    if let Some((letter, chosen)) = choice::letters(gold, text) {
        let correct = letter == chosen;
        return verdict(correct, chosen.to_string(), if correct { "same choice" } else { "another choice" });
    }
    let (answer, reference) = (Answer::parse(text), Answer::parse(gold));
    let budget = Budget::new();
    let reason = equality(&Side { text: gold, answer: &reference }, &Side { text, answer: &answer }, &budget)
        .or_else(|| {
            let comma = extracted.source == Source::Text && decimal_commas(gold, text, &budget);
            comma.then_some("equal, with a decimal comma")
        });
    // What the comparison left of the budget; longer answers stay as they are written.
    let canonical = compare::canonical(&answer, &budget);
    match reason {
        Some(reason) => verdict(true, canonical, reason),
        None if budget.exhausted() => verdict(false, canonical, "too complicated to compare"),
        None => {
            let reason = format!("not equal to {}", compare::canonical(&reference, &budget));
            verdict(false, canonical, &reason)
        }
    }
}

/// An answer as written and understood.
struct Side<'a> {
    text: &'a str,
    answer: &'a Answer,
}

/// Why two answers are equal, if they are.
fn equality(gold: &Side<'_>, side: &Side<'_>, budget: &Budget) -> Option<&'static str> {
    if side.text.len() > MAX_LENGTH {
        return None;
    }
    let is_text = |side: &Side<'_>| matches!(side.answer, Answer::Text(_));
    let same_text = || {
        let (text, gold) = (plain(side.text), plain(gold.text));
        text == gold && !text.is_empty()
    };
    if side.text == gold.text || (is_text(side) || is_text(gold)) && same_text() {
        return Some("equal, the same text");
    }
    compare::equal(gold.answer, side.answer, budget).then_some("equal")
}

/// Whether one side equals the other read with a decimal comma: 1000,99 for 1000.99.
fn decimal_commas(gold: &str, text: &str, budget: &Budget) -> bool {
    let equal = |a: &str, b: &str| compare::equal(&Answer::parse(a), &Answer::parse(b), budget);
    decimal_comma(text).is_some_and(|text| equal(gold, &text))
        || decimal_comma(gold).is_some_and(|gold| equal(&gold, text))
}

/// `1000,99` as `1000.99`.
fn decimal_comma(text: &str) -> Option<String> {
    let (whole, fraction) = text.trim().split_once(',')?;
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    (digits(whole.trim_start_matches('-')) && digits(fraction)).then(|| format!("{whole}.{fraction}"))
}
