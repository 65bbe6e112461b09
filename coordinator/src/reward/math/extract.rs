//! Finding the answer in a response.
//!
//! In order: the last `\boxed{}`, what follows "the answer is", and by option the last formula or
//! number. Boxes joined by "and" or commas are one answer with several values.

use std::borrow::Cow;

use super::super::after_thinking;
use super::lexer::tokenize;
use super::names::function_name;
use super::token::Token;

/// Longest content of a box that is looked at, bytes.
const MAX_BOX: usize = 16_384;

/// Most boxes that are looked at, from the end.
const MAX_BOXES: usize = 24;

/// How much of a response's end is searched without a box, bytes.
const MAX_PROSE: usize = 16_384;

/// Where an answer was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// In a box.
    Box,
    /// After "the answer is".
    Phrase,
    /// The last formula or number of the text, or a text that is nothing but an answer.
    Text,
}

/// An answer as it stands in a response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Extracted<'a> {
    /// The answer.
    pub text: Cow<'a, str>,
    /// Where it was found.
    pub source: Source,
}

/// The answer of a response, without what it thought before; `last_number` allows the last formula or
/// number where there is neither a box nor the phrase.
#[must_use]
pub(super) fn answer(response: &str, last_number: bool) -> Option<Extracted<'_>> {
    let text = after_thinking(response);
    let filled = |text: &Cow<'_, str>| !text.trim().is_empty();
    let phrase = || after_phrase(text).map(Cow::from).filter(filled).map(|text| (text, Source::Phrase));
    let last = || if last_number { last_value(text).map(|text| (text.into(), Source::Text)) } else { None };
    let boxed = boxed(text).filter(filled).map(|text| (text, Source::Box));
    let (text, source) = boxed.or_else(phrase).or_else(last)?;
    Some(Extracted { text: trimmed(text), source })
}

/// The answer of a reference: it may stand in a box or in a sentence with formulas.
#[must_use]
pub(super) fn reference(gold: &str) -> Cow<'_, str> {
    if let Some(boxed) = boxed(gold) {
        return trimmed(boxed);
    }
    let formula = if is_prose(gold) { last_formula(gold) } else { None };
    formula.map_or(gold, |(start, end)| &gold[start..end]).trim().into()
}

fn trimmed(text: Cow<'_, str>) -> Cow<'_, str> {
    match text {
        Cow::Borrowed(text) => text.trim().into(),
        Cow::Owned(text) => text.trim().to_owned().into(),
    }
}

/// The inside of the last complete `\boxed{...}` or `\fbox{...}`.
#[must_use]
pub fn last_boxed(text: &str) -> Option<&str> {
    boxes(text).next().map(|(_, inside, _)| inside)
}

/// The last complete box with the boxes joined to it, or else an incomplete one up to its line's end.
fn boxed(text: &str) -> Option<Cow<'_, str>> {
    let mut joined: Vec<&str> = Vec::new();
    let mut after = text.len();
    for (start, inside, end) in boxes(text) {
        if !joined.is_empty() && !text.get(end..after).is_some_and(joins) {
            break;
        }
        if !joined.contains(&inside) {
            joined.push(inside);
        }
        after = start;
    }
    match joined.len() {
        0 => {
            // Cut off before its brace: what there is of it.
            let inside = &text[text.rfind("\\boxed{")? + "\\boxed{".len()..];
            let end = inside.find(['\n', '$']).unwrap_or(inside.len()).min(MAX_BOX);
            let end = (0..=end).rev().find(|at| inside.is_char_boundary(*at)).unwrap_or(0);
            Some(inside[..end].into())
        }
        1 => joined.pop().map(Cow::from),
        _ => {
            joined.reverse();
            Some(joined.join(", ").into())
        }
    }
}

/// Complete boxes from the last one on: where the command starts, the inside, where it ends.
fn boxes(text: &str) -> impl Iterator<Item = (usize, &str, usize)> {
    let mut before = text.len();
    let mut looked_at = 0;
    std::iter::from_fn(move || {
        while looked_at < MAX_BOXES {
            looked_at += 1;
            let start = ["\\boxed", "\\fbox"].iter().filter_map(|name| text[..before].rfind(name)).max()?;
            before = start;
            let name = 1 + text[start + 1..].bytes().take_while(u8::is_ascii_alphabetic).count();
            let rest = text[start + name..].trim_start();
            let at = text.len() - rest.len();
            if let Some(inside) = rest.strip_prefix('{') {
                if let Some(inside) = until_closing(inside) {
                    return Some((start, inside, at + inside.len() + 2));
                }
            } else if let Some(word) = rest.split_whitespace().next() {
                let inside = word.trim_matches(|c| matches!(c, '$' | '.' | ','));
                return Some((start, inside, at + word.len()));
            }
        }
        None
    })
}

/// Up to the brace that closes the one before the text.
fn until_closing(text: &str) -> Option<&str> {
    let mut depth = 1u32;
    let mut escaped = false;
    for (at, byte) in text.bytes().take(MAX_BOX).enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'{' => depth += 1,
            b'}' => {
                depth -= 1;
                if depth == 0 {
                    return Some(&text[..at]);
                }
            }
            _ => {}
        }
    }
    None
}

/// Whether a text between two answers makes them one: "and", "or", commas.
fn joins(between: &str) -> bool {
    if between.len() > 60 {
        return false;
    }
    let tokens = tokenize(between);
    let joins = |token: &Token| match token {
        Token::Symbol(',' | ';' | '&') => true,
        Token::Word { text, .. } | Token::Text(text) => matches!(text.trim(), "and" | "or" | ", and"),
        _ => false,
    };
    !tokens.is_empty() && tokens.iter().all(joins)
}

/// What follows the last "answer is" or "answer:", up to the end of its sentence.
fn after_phrase(text: &str) -> Option<&str> {
    let text = tail(text, MAX_PROSE);
    let lower = text.to_ascii_lowercase();
    let phrases = ["answer is", "answer:", "answers are", "answer:**", "answer**:", "answer is:"];
    let start = phrases.iter().filter_map(|phrase| Some(lower.rfind(phrase)? + phrase.len())).max()?;
    let rest = text[start..].trim_start_matches([':', '*', ' ', '\n', '\t', '\r']);
    let sentence = sentence(rest);
    // Final Answer: The volume of $ABCD$ is 120.
    let sentence = [" is ", " are "]
        .iter()
        .filter_map(|verb| Some(sentence.rfind(verb)? + verb.len()))
        .max()
        .map_or(sentence, |at| &sentence[at..]);
    let sentence = sentence.trim_matches(['*', ' ', '\n', ':', '.']);
    if !is_prose(sentence) {
        return Some(sentence);
    }
    last_value(sentence).or_else(|| (sentence.split_whitespace().count() <= 6).then_some(sentence))
}

/// Up to the end of the first sentence; formulas hold no ends.
fn sentence(text: &str) -> &str {
    let bytes = text.as_bytes();
    let mut formula = false;
    for at in 0..bytes.len() {
        match bytes[at] {
            b'$' => formula = !formula,
            b'\n' if !formula && at > 0 && text[at..].trim_start_matches([' ', '\r']).starts_with("\n\n") => {
                return &text[..at];
            }
            b'\n' if !formula && !text[..at].ends_with(['[', '(', '\\']) && !text[..at].contains("\\[") => {
                return &text[..at];
            }
            b'<' if text[at..].starts_with("<|") => return &text[..at],
            b'.' if !formula && bytes.get(at + 1).is_none_or(u8::is_ascii_whitespace) => return &text[..at],
            _ => {}
        }
    }
    text
}

/// The last formula or number of a text, or the whole text if it is nothing but an answer.
fn last_value(text: &str) -> Option<&str> {
    let text = tail(text, MAX_PROSE).trim();
    if !text.is_empty() && text.len() <= 200 && !is_prose(text) {
        return Some(text);
    }
    let number = last_number(text);
    let formula = last_formula(text);
    match (formula, number) {
        (Some((start, end)), Some((_, number_end))) if end >= number_end => Some(text[start..end].trim()),
        (_, Some((start, end))) => Some(&text[start..end]),
        (Some((start, end)), None) => Some(text[start..end].trim()),
        (None, None) => None,
    }
}

/// Whether a text has words that are no part of a formula.
fn is_prose(text: &str) -> bool {
    let tokens = tokenize(&text[..text.len().min(400) - char_rest(text, 400)]);
    let word = |token: &&Token| match token {
        Token::Word { text, .. } => {
            text.len() >= 2
                && function_name(text).is_none()
                && !matches!(
                    text.as_str(),
                    "and"
                        | "or"
                        | "pi"
                        | "sqrt"
                        | "percent"
                        | "pct"
                        | "inf"
                        | "infinity"
                        | "cm"
                        | "mm"
                        | "km"
                        | "kg"
                        | "ft"
                )
        }
        _ => false,
    };
    let long = tokens.iter().filter(word).any(|t| matches!(t, Token::Word { text, .. } if text.len() >= 4));
    long || tokens.iter().filter(word).count() >= 2 || text.len() > 400
}

/// Bytes to leave out before `at` so that a character is not cut.
fn char_rest(text: &str, at: usize) -> usize {
    if at >= text.len() {
        return 0;
    }
    (0..4).find(|back| text.is_char_boundary(at - back)).unwrap_or(0)
}

/// Where the last `$...$`, `$$...$$`, `\(...\)` or `\[...\]` stands, with those joined to it.
fn last_formula(text: &str) -> Option<(usize, usize)> {
    let mut formulas: Vec<(usize, usize)> = Vec::new();
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        let (open, close) = match &bytes[at..] {
            [b'\\', b'(', ..] => ("\\(", "\\)"),
            [b'\\', b'[', ..] => ("\\[", "\\]"),
            [b'$', b'$', ..] => ("$$", "$$"),
            [b'$', ..] => ("$", "$"),
            [b'\\', _, ..] => {
                at += 2;
                continue;
            }
            _ => {
                at += 1;
                continue;
            }
        };
        let start = at + open.len();
        match closing(text, start, close) {
            Some(end) => {
                formulas.push((at, end + close.len()));
                at = end + close.len();
            }
            None => at = start,
        }
    }
    let (mut start, end) = formulas.pop()?;
    while let Some((before, before_end)) = formulas.pop() {
        if !joins(&text[before_end..start]) {
            break;
        }
        start = before;
    }
    Some((start, end))
}

/// Where a formula ends: at its delimiter, not after an empty line or too far away.
fn closing(text: &str, start: usize, close: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let mut at = start;
    while at < bytes.len() && at < start + 2_000 {
        if bytes[at..].starts_with(close.as_bytes()) {
            return Some(at);
        }
        match bytes[at] {
            b'\\' => at += 2,
            b'\n' if text[at + 1..].starts_with('\n') && close == "$" => return None,
            _ => at += 1,
        }
    }
    None
}

/// The last number of a text that is not a part of a word: sign, separators, point, fraction, percent.
fn last_number(text: &str) -> Option<(usize, usize)> {
    let bytes = text.as_bytes();
    let mut end = bytes.len();
    // A bounded number of words of digits from the end.
    for _ in 0..50 {
        let last = bytes[..end].iter().rposition(u8::is_ascii_digit)? + 1;
        let inside = |at: usize| {
            let byte = bytes[at];
            let between_digits =
                at > 0 && bytes[at - 1].is_ascii_digit() && bytes.get(at + 1).is_some_and(u8::is_ascii_digit);
            byte.is_ascii_digit() || byte == b'.' || matches!(byte, b',' | b'/') && between_digits
        };
        let mut start = last;
        while start > 0 && inside(start - 1) {
            start -= 1;
        }
        let word = start > 0 && (bytes[start - 1].is_ascii_alphanumeric() || bytes[start - 1] >= 0x80);
        if word {
            end = start;
            continue;
        }
        // A point that ended the sentence before is none of the number's.
        if bytes[start] == b'.' && !bytes.get(start + 1).is_some_and(u8::is_ascii_digit) {
            start += 1;
        }
        let mut stop = last;
        if bytes.get(stop) == Some(&b'%') {
            stop += 1;
        }
        let signed = start > 0 && bytes[start - 1] == b'-';
        let minus = signed && !(start > 1 && bytes[start - 2].is_ascii_alphanumeric());
        return Some((start - usize::from(minus), stop));
    }
    None
}

/// The end of a text, at a character's border.
#[must_use]
pub(super) fn tail(text: &str, length: usize) -> &str {
    let start = text.len().saturating_sub(length);
    let start = (start..text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(text.len());
    &text[start..]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str, last_number: bool) -> Option<String> {
        answer(text, last_number).map(|answer| answer.text.into_owned())
    }

    #[test]
    fn the_last_complete_box_counts() {
        for (text, expected) in [
            (r"\boxed{1} then \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
            (r"\boxed{\{1,2\}}", r"\{1,2\}"),
            (r"\boxed{3} and \boxed{4", "3"),
            (r"$\boxed 7$.", "7"),
            (r"\boxed{\frac{1}{2", r"\frac{1}{2"),
            (r"$\boxed{(2,2)} \quad \text{and} \quad \boxed{(6,2)}$", "(2,2), (6,2)"),
            (r"\boxed{1}, \boxed{2} or \boxed{3}", "1, 2, 3"),
            (r"\boxed{5} and \boxed{5}", "5"),
            (r"<think>\boxed{1}</think> \boxed{2}", "2"),
        ] {
            assert_eq!(found(text, false).as_deref(), Some(expected), "{text}");
        }
        assert_eq!(found("no box", false), None);
        assert_eq!(found(r"<think>\boxed{1}</think> so 2", false), None);
    }

    #[test]
    fn the_answer_is() {
        for (text, expected) in [
            ("So the answer is 5.", "5"),
            ("The final answer is $\\frac12$. I hope it is correct.", "$\\frac12$"),
            ("Final Answer: The volume of $ABCD$ is 120. I hope it is correct.", "120"),
            ("**Final Answer:** 3.5", "3.5"),
            ("Final Answer: Jane started 3 hours ago.", "3"),
            ("The answer is (1, 2)", "(1, 2)"),
            ("the answer is Paris", "Paris"),
            ("Answer: x = 5\nBecause 2 + 3 = 5.", "x = 5"),
            ("The answer is:\n\\[ 12 \\]", "\\[ 12 \\]"),
        ] {
            assert_eq!(found(text, false).as_deref(), Some(expected), "{text}");
        }
    }

    #[test]
    fn the_last_formula_or_number_by_option() {
        for (text, expected) in [
            ("it is 1,234.50.", "1,234.50"),
            ("the value x = -3", "-3"),
            ("the probability that Alice wins is 2/3.", "2/3"),
            ("it increases by 100%.", "100%"),
            ("not 10 but 1,000.99m\u{b2}", "1,000.99"),
            ("We find that $x < 3$.", "$x < 3$"),
            ("from 10-20 pages", "20"),
            ("either $1$, $2$ or $3$.", "$1$, $2$ or $3$"),
            ("1 000", "1 000"),
        ] {
            assert_eq!(found(text, true).as_deref(), Some(expected), "{text}");
            assert_eq!(found(text, false), None, "{text}");
        }
        assert_eq!(found("AZYUK2A", true), None);
    }
}
