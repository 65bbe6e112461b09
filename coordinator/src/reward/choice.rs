//! Multiple choice: the letter of an answer, A to J, against the reference's letter.
//!
//! Looked for after the last `</think>`, in this order: the last `\boxed{B}`; the last "answer is (B)" or
//! its like; the one letter that begins lines of the form "B. text"; a response or last line that is
//! nothing but the letter.

use ::regex::Regex;

use super::math::extract::last_boxed;
use super::{Reward, Verdict, after_thinking};

/// "answer is", "answer:", "option", with what may open the letter, then the letter.
const STATED: &str = r"\b(?i:answer|option|choice)(?i:\s+is|\s+would\s+be|\s+should\s+be)?\s*[:=]?\s*[*_$]*\s*(?:\\text\{)?([(\[])?[*_]*([A-J])\b";

/// "B. text", "B) text", "(B) text", "**B.** text" at the beginning of a line.
const LISTED: &str = r"(?m)^[ \t]*[*_]*\(?([A-J])(?:[.):]|\*+[.):])";

/// Response beyond which only the end is looked at, bytes.
const MAX_RESPONSE: usize = 1 << 20;

/// See the module's documentation.
#[derive(Debug, Clone)]
pub struct ChoiceReward {
    stated: Regex,
    listed: Regex,
}

impl Default for ChoiceReward {
    fn default() -> Self {
        Self::new()
    }
}

impl ChoiceReward {
    /// The reward.
    #[must_use]
    pub fn new() -> Self {
        let compile = |pattern| Regex::new(pattern).expect("the pattern is a constant that compiles");
        Self { stated: compile(STATED), listed: compile(LISTED) }
    }

    /// The letter of a response.
    fn letter(&self, response: &str) -> Option<char> {
        let text = end(after_thinking(response));
        if let Some(boxed) = last_boxed(text) {
            // What stands in a box is the answer, also where it is no letter.
            return bare(boxed).or_else(|| self.begins(boxed));
        }
        let stated = self.stated.captures_iter(text).filter_map(|captures| {
            let letter = captures.get(2)?;
            let opened = captures.get(1).is_some();
            (opened || !is_word(letter.as_str(), &text[letter.end()..])).then_some(letter.as_str())
        });
        stated.last().and_then(single).or_else(|| self.only_listed(text)).or_else(|| {
            let last_line = text.trim().lines().last().and_then(bare);
            bare(text).or(last_line)
        })
    }

    /// The letter that begins a text such as "B. Paris".
    fn begins(&self, text: &str) -> Option<char> {
        let captures = self.listed.captures(text.trim())?;
        let letter = captures.get(1).filter(|_| captures.get(0).is_some_and(|all| all.start() == 0))?;
        single(letter.as_str())
    }

    /// The letter of all lines such as "B. Paris"; a list of several is not an answer.
    fn only_listed(&self, text: &str) -> Option<char> {
        let mut letters = self.listed.captures_iter(text).filter_map(|c| single(c.get(1)?.as_str()));
        let first = letters.next()?;
        letters.all(|letter| letter == first).then_some(first)
    }
}

/// "answer is a number", "answer is I think": an article or a pronoun, no letter of a choice.
fn is_word(letter: &str, rest: &str) -> bool {
    let mut rest = rest.chars();
    matches!(letter, "A" | "I")
        && rest.next() == Some(' ')
        && rest.next().is_some_and(|c| c.is_lowercase() || c == '\'')
}

fn single(letter: &str) -> Option<char> {
    let mut chars = letter.chars();
    let letter = chars.next()?.to_ascii_uppercase();
    (chars.next().is_none() && ('A'..='J').contains(&letter)).then_some(letter)
}

/// A text that is one letter, in whatever wrapping.
fn bare(text: &str) -> Option<char> {
    let mut text = text.trim();
    for command in ["\\text{", "\\mathrm{", "\\textbf{", "\\mathbf{"] {
        if let Some(inside) = text.strip_prefix(command) {
            text = inside.strip_suffix('}').unwrap_or(inside);
        }
    }
    let wrapping = |c: char| {
        c.is_whitespace()
            || matches!(c, '(' | ')' | '[' | ']' | '.' | ':' | ',' | '*' | '_' | '$' | '"' | '\'')
    };
    single(text.trim_matches(wrapping))
}

/// The end of a text, at a character's border.
fn end(text: &str) -> &str {
    let start = text.len().saturating_sub(MAX_RESPONSE);
    let start = (start..text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    &text[start..]
}

impl Reward for ChoiceReward {
    fn name(&self) -> &'static str {
        "choice"
    }

    fn verify(&self, gold: &str, response: &str) -> Verdict {
        let Some(gold) = bare(gold).or_else(|| self.begins(gold)) else {
            return Verdict::without_answer("the reference is not a letter from A to J");
        };
        let Some(letter) = self.letter(response) else {
            return Verdict::without_answer("no letter from A to J");
        };
        let correct = letter == gold;
        Verdict {
            correct,
            extracted: Some(letter.to_string()),
            canonical: Some(letter.to_string()),
            reason: if correct { "equal".to_owned() } else { format!("not equal to {gold}") },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letter(response: &str) -> Option<char> {
        ChoiceReward::new().letter(response)
    }

    #[test]
    fn letters_are_found() {
        for (response, expected) in [
            ("\\boxed{B}", 'B'),
            ("\\boxed{b}", 'B'),
            ("\\boxed{(B)}", 'B'),
            ("\\boxed{\\text{B}}", 'B'),
            ("\\boxed{\\text{(B)}}", 'B'),
            ("\\boxed{B. Paris}", 'B'),
            ("The answer is (A). No: \\boxed{C}", 'C'),
            ("The answer is (B).", 'B'),
            ("the answer is B", 'B'),
            ("Answer: **D**", 'D'),
            ("**Answer:** D", 'D'),
            ("Answer: A", 'A'),
            ("The correct option is C, because A is false.", 'C'),
            ("The answer is A. At first I thought the answer would be J.", 'J'),
            ("B. Paris", 'B'),
            ("B) Paris", 'B'),
            ("(B) Paris", 'B'),
            ("Let me see.\n\n**B.** Paris", 'B'),
            ("B", 'B'),
            (" b. ", 'B'),
            ("(B)", 'B'),
            ("Well.\nB", 'B'),
            ("<think>A? The answer is A.</think>B", 'B'),
        ] {
            assert_eq!(letter(response), Some(expected), "{response}");
        }
    }

    #[test]
    fn other_texts_hold_no_letter() {
        for response in [
            "",
            "The answer is a number.",
            "The answer is A number.",
            "The answer is I think not known.",
            "The answer is Beijing.",
            "\\boxed{7}",
            "\\boxed{K}",
            "A. Rome\nB. Paris",
            "Paris",
        ] {
            assert_eq!(letter(response), None, "{response}");
        }
    }

    #[test]
    fn references_and_verdicts() {
        let choice = ChoiceReward::new();
        for gold in ["B", "b", "(B)", "B.", "B. Paris"] {
            assert!(choice.verify(gold, "The answer is (B)").correct, "{gold}");
        }
        let verdict = choice.verify("C", "B");
        assert_eq!((verdict.correct, verdict.canonical.as_deref()), (false, Some("B")));
        assert!(choice.verify("Paris", "B").reason.contains("reference"));
    }

    #[test]
    fn long_responses_end_at_once() {
        let start = std::time::Instant::now();
        assert_eq!(letter(&"The answer is ".repeat(1_000_000)), None);
        assert_eq!(letter(&("ä".repeat(2_000_000) + "\nB")), Some('B'));
        assert!(start.elapsed().as_secs() < 3);
    }
}
