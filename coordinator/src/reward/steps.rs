//! Answers that are arithmetic: `4*7=28,28+2=30`.
//!
//! In: a response. Out: the tokens of its answer, or a verdict that there is none. Must not know: which arithmetic is
//! right.

use super::math::extract::last_boxed;
use super::{Verdict, after_thinking};

/// Longest answer that is looked at, bytes.
const MAX_ANSWER: usize = 1_000;

/// What is wrong with a part of a chain that is no [`Step`].
pub(super) const NO_STEP: &str = "a step is not of the form a*b=c";

/// Finds the answer of a response and asks `judge` for the canonical form of a right one, or why it is wrong.
pub(super) fn verify(
    response: &str,
    judge: impl FnOnce(&[Token]) -> Result<String, &'static str>,
) -> Verdict {
    let answer = answer(response);
    if answer.is_empty() {
        return Verdict::without_answer("no answer");
    }
    let verdict = |correct, canonical, reason: &str| Verdict {
        correct,
        extracted: Some(answer.to_owned()),
        canonical,
        reason: reason.to_owned(),
    };
    if answer.len() > MAX_ANSWER {
        return verdict(false, None, "the answer is too long");
    }
    let Some(tokens) = tokenize(answer) else {
        return verdict(false, None, "the answer holds something other than arithmetic");
    };
    match judge(&tokens) {
        Ok(canonical) => verdict(true, Some(canonical), "reaches the target"),
        Err(reason) => verdict(false, Some(plain(&tokens)), reason),
    }
}

/// The part of a response that is the answer.
fn answer(response: &str) -> &str {
    let text = after_thinking(response);
    if let Some(boxed) = last_boxed(text) {
        return boxed.trim();
    }
    let tagged = text.rsplit_once("<answer>").and_then(|(_, rest)| rest.split_once("</answer>"));
    tagged.map_or(text, |(inside, _)| inside).trim()
}

/// A piece of arithmetic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Token {
    Number(i128),
    Operator(char),
    Open,
    Close,
    Equals,
    Comma,
}

fn tokenize(text: &str) -> Option<Vec<Token>> {
    let mut tokens = Vec::new();
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        tokens.push(match c {
            _ if c.is_whitespace() => continue,
            '0'..='9' => {
                let mut value = i128::from(c.to_digit(10)?);
                while let Some(digit) = rest.peek().and_then(|c| c.to_digit(10)) {
                    value = value.checked_mul(10)?.checked_add(digit.into())?;
                    rest.next();
                }
                Token::Number(value)
            }
            '+' => Token::Operator('+'),
            '-' | '\u{2212}' | '\u{2013}' => Token::Operator('-'),
            '*' | '\u{d7}' | '\u{22c5}' | '\u{b7}' => Token::Operator('*'),
            '/' | '\u{f7}' => Token::Operator('/'),
            '(' => Token::Open,
            ')' => Token::Close,
            '=' => Token::Equals,
            ',' | ';' => Token::Comma,
            _ => return None,
        });
    }
    Some(tokens)
}

/// `left operator right = result`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) left: i128,
    pub(super) operator: char,
    pub(super) right: i128,
    pub(super) result: i128,
}

/// Tokens that are one step and nothing else.
pub(super) fn step(tokens: &[Token]) -> Option<Step> {
    match *tokens {
        [
            Token::Number(left),
            Token::Operator(operator),
            Token::Number(right),
            Token::Equals,
            Token::Number(result),
        ] => Some(Step { left, operator, right, result }),
        _ => None,
    }
}

/// The tokens without spaces, operators as in programs.
pub(super) fn plain(tokens: &[Token]) -> String {
    let text = |token: &Token| match token {
        Token::Number(number) => number.to_string(),
        Token::Operator(operator) => operator.to_string(),
        Token::Open => "(".into(),
        Token::Close => ")".into(),
        Token::Equals => "=".into(),
        Token::Comma => ",".into(),
    };
    tokens.iter().map(text).collect()
}
