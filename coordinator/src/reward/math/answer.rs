//! An answer's meaning: a value, a list, an interval, a matrix, an equation, or a text.
//!
//! In: the answer as written. Out: an [`Answer`]. Text is cut at separators of lists first, then at
//! relations, then read as brackets, matrices and values; what none of these understand stays text.

use std::fmt;

use super::expression::{Constant, Expression};
use super::lexer::tokenize;
use super::names::function_name;
use super::parser;
use super::token::{Token, written};
use super::units::{Unit, unit_before_end};

/// Longest answer that is understood, bytes.
pub(super) const MAX_LENGTH: usize = 2_000;

/// Most items of a list, rows of a matrix, sides of a chain of relations.
const MAX_ITEMS: usize = 200;

/// Deepest nesting of lists in lists.
const MAX_DEPTH: usize = 8;

/// A number or an expression.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Scalar {
    /// Its value.
    pub expression: Expression,
    /// Written in percent.
    pub percent: bool,
    /// Digits after the point, if it is written as a decimal number.
    pub decimals: Option<u32>,
}

/// How two sides relate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Relation {
    /// `=`
    Equal,
    /// `\ne`
    NotEqual,
    /// `<`
    Less,
    /// `\le`
    LessOrEqual,
    /// `>`
    Greater,
    /// `\ge`
    GreaterOrEqual,
    /// `\in`
    In,
    /// `\approx`
    Approximately,
}

impl Relation {
    fn of(token: &Token) -> Option<Self> {
        Some(match token {
            Token::Symbol('=') => Self::Equal,
            Token::Command(name) => match name.as_str() {
                "ne" => Self::NotEqual,
                "lt" => Self::Less,
                "le" => Self::LessOrEqual,
                "gt" => Self::Greater,
                "ge" => Self::GreaterOrEqual,
                "in" => Self::In,
                "approx" => Self::Approximately,
                _ => return None,
            },
            _ => return None,
        })
    }

    /// The relation seen from the other side.
    #[must_use]
    pub(super) fn flipped(self) -> Self {
        match self {
            Self::Less => Self::Greater,
            Self::LessOrEqual => Self::GreaterOrEqual,
            Self::Greater => Self::Less,
            Self::GreaterOrEqual => Self::LessOrEqual,
            same => same,
        }
    }
}

impl fmt::Display for Relation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Equal => "=",
            Self::NotEqual => "!=",
            Self::Less => "<",
            Self::LessOrEqual => "<=",
            Self::Greater => ">",
            Self::GreaterOrEqual => ">=",
            Self::In => " in ",
            Self::Approximately => "~",
        })
    }
}

/// What joins the items of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Joined {
    /// Commas, semicolons or "and": all of them hold.
    All,
    /// "or", or the two values of a plus-minus: one of them holds.
    Any,
}

/// How sets are combined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SetOperation {
    /// `\cup`
    Union,
    /// `\cap`
    Intersection,
    /// `\setminus`
    Difference,
}

/// An answer's meaning.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Answer {
    /// A number or an expression.
    Scalar(Scalar),
    /// Digits in a base of their own: `204_5`.
    Based(String, String),
    /// Rows of a matrix, a column vector included.
    Matrix(Vec<Vec<Expression>>),
    /// A tuple, a point or an interval: `(`, items, `[` or `(` for the closing bracket.
    Bracketed(char, Vec<Answer>, char),
    /// A set of listed elements.
    Set(Vec<Answer>),
    /// Several answers without brackets, in any order.
    List(Joined, Vec<Answer>),
    /// Sets put together, from the left.
    Combined(Box<Answer>, SetOperation, Box<Answer>),
    /// Sides with relations between them: one more side than relations.
    Chain(Vec<Answer>, Vec<Relation>),
    /// Anything else, without spaces and layout.
    Text(String),
}

impl Answer {
    /// Understands an answer.
    #[must_use]
    pub(super) fn parse(text: &str) -> Self {
        if text.len() > MAX_LENGTH {
            return Self::Text(format!("({} bytes, too long)", text.len()));
        }
        answer(&tokenize(text), 0).unwrap_or_else(|| Self::Text(plain(text)))
    }

    /// An expression as an answer.
    #[must_use]
    pub(super) fn value(expression: Expression) -> Self {
        Self::Scalar(Scalar { expression, percent: false, decimals: None })
    }

    /// The expression, if it is one.
    #[must_use]
    pub(super) fn as_expression(&self) -> Option<&Expression> {
        match self {
            Self::Scalar(scalar) => Some(&scalar.expression),
            _ => None,
        }
    }
}

/// A text without what does not matter when texts are compared: layout, spaces, case, what is left
/// open at its end.
#[must_use]
pub(super) fn plain(text: &str) -> String {
    let written = written(&tokenize(text));
    written.trim_end_matches(['.', ',', ';', '!', '}', '$']).to_lowercase()
}

/// The answer that all of `tokens` are; `None` if they have no meaning but their text.
fn answer(tokens: &[Token], depth: usize) -> Option<Answer> {
    let tokens = trimmed(tokens);
    if depth > MAX_DEPTH || tokens.is_empty() {
        return None;
    }
    if let [Token::Text(inside)] = tokens {
        let inner = tokenize(inside);
        return if words_only(&inner) { words(&inner) } else { answer(&inner, depth + 1) };
    }
    if words_only(tokens) {
        return words(tokens);
    }
    if let Some(list) = separated(tokens, depth, |token| *token == Token::Symbol(';')) {
        return list;
    }
    if let Some(list) = separated(tokens, depth, is_separator) {
        return list;
    }
    if let Some(based) = based(tokens) {
        return Some(based);
    }
    one(tokens, depth)
}

/// Without points at the end and a conjunction at the start.
fn trimmed(tokens: &[Token]) -> &[Token] {
    let mut tokens = tokens;
    while let [rest @ .., Token::Symbol('.' | ',' | ';') | Token::Row] = tokens {
        tokens = rest;
    }
    while let [first, rest @ ..] = tokens {
        if conjunction(first).is_none() {
            break;
        }
        tokens = rest;
    }
    tokens
}

/// "and" or "or", as a word or a text.
fn conjunction(token: &Token) -> Option<Joined> {
    let word = match token {
        Token::Word { text, .. } => text.as_str(),
        Token::Text(text) => text.trim().trim_matches(',').trim(),
        Token::Command(name) => name.as_str(),
        Token::Symbol('&') => "and",
        _ => return None,
    };
    match word {
        "and" | "And" | "AND" | "wedge" | "land" => Some(Joined::All),
        "or" | "Or" | "OR" | "vee" | "lor" => Some(Joined::Any),
        _ => None,
    }
}

fn is_separator(token: &Token) -> bool {
    *token == Token::Symbol(',') || conjunction(token).is_some()
}

/// Only words, at least one with several letters that is not a function or a named number.
fn words_only(tokens: &[Token]) -> bool {
    let word = |token: &Token| match token {
        Token::Word { text, .. } => {
            function_name(text).is_none() && !matches!(text.as_str(), "pi" | "sqrt" | "inf" | "infinity")
        }
        Token::Text(text) => {
            text.chars().all(|c| c.is_alphabetic() || c.is_whitespace() || "-.'".contains(c))
        }
        _ => false,
    };
    let long = tokens.iter().any(|token| match token {
        Token::Word { text, .. } | Token::Text(text) => text.trim().len() > 1,
        _ => false,
    });
    long && tokens.iter().all(word)
}

fn words(tokens: &[Token]) -> Option<Answer> {
    let text = written(tokens).replace(['.', '-', '\''], "").to_lowercase();
    (!text.is_empty()).then_some(Answer::Text(text))
}

/// Cut where `is_separator` holds outside of brackets. `None` if it never does; then the outer
/// `Some(None)` tells of a part without meaning.
fn separated(
    tokens: &[Token],
    depth: usize,
    is_separator: impl Fn(&Token) -> bool,
) -> Option<Option<Answer>> {
    let cuts: Vec<usize> = outside(tokens).filter(|at| is_separator(&tokens[*at])).collect();
    if cuts.is_empty() || cuts.len() > MAX_ITEMS {
        return None;
    }
    let any = cuts.iter().any(|at| conjunction(&tokens[*at]) == Some(Joined::Any));
    let mut items = Vec::with_capacity(cuts.len() + 1);
    let mut start = 0;
    for end in cuts.into_iter().chain([tokens.len()]) {
        let part = trimmed(&tokens[start..end]);
        start = end + 1;
        if part.is_empty() {
            continue;
        }
        match answer(part, depth + 1) {
            Some(item) => items.push(item),
            None => return Some(None),
        }
    }
    let joined = if any { Joined::Any } else { Joined::All };
    Some(match items.len() {
        0 => None,
        1 => items.pop(),
        _ => Some(Answer::List(joined, items)),
    })
}

/// The places outside of all brackets and environments.
fn outside(tokens: &[Token]) -> impl Iterator<Item = usize> + '_ {
    let mut depth = 0i32;
    tokens.iter().enumerate().filter_map(move |(at, token)| {
        match token {
            Token::Open(_) | Token::Begin(_) => depth += 1,
            Token::Close(_) | Token::End => depth -= 1,
            _ => {}
        }
        (depth == 0 && !matches!(token, Token::Close(_) | Token::End)).then_some(at)
    })
}

/// `204_5`, `1101_{2}`, `2A_{16}`
fn based(tokens: &[Token]) -> Option<Answer> {
    let (digits, base) = match tokens {
        [digits @ .., Token::Symbol('_'), Token::Number { digits: base, .. }]
        | [
            digits @ ..,
            Token::Symbol('_'),
            Token::Open('{'),
            Token::Number { digits: base, .. },
            Token::Close('{'),
        ] => (digits, base),
        _ => return None,
    };
    let plain = |token: &Token| matches!(token, Token::Number { decimals: None, .. } | Token::Word { .. });
    let starts_with_digit = matches!(digits.first(), Some(Token::Number { .. }));
    (starts_with_digit && digits.iter().all(plain))
        .then(|| Answer::Based(written(digits).to_uppercase(), base.clone()))
}

/// An answer that is not a list.
fn one(tokens: &[Token], depth: usize) -> Option<Answer> {
    let relations: Vec<usize> = outside(tokens).filter(|at| Relation::of(&tokens[*at]).is_some()).collect();
    if !relations.is_empty() && relations.len() < MAX_ITEMS {
        return chain(tokens, &relations, depth);
    }
    // Sets put together, the last operation first.
    let operation = |token: &Token| match token {
        Token::Command(name) if name == "cup" => Some(SetOperation::Union),
        Token::Command(name) if name == "cap" => Some(SetOperation::Intersection),
        Token::Command(name) if name == "setminus" => Some(SetOperation::Difference),
        _ => None,
    };
    let last = outside(tokens).filter_map(|at| Some((at, operation(&tokens[at])?))).last();
    if let Some((at, operation)) = last {
        let left = answer(&tokens[..at], depth + 1)?;
        let right = answer(&tokens[at + 1..], depth + 1)?;
        return Some(Answer::Combined(Box::new(left), operation, Box::new(right)));
    }
    if let Some(bracketed) = bracketed(tokens, depth) {
        return Some(bracketed);
    }
    if tokens.iter().any(|token| matches!(token, Token::Begin(_))) {
        return super::matrix::parse(tokens).map(Answer::Matrix);
    }
    scalar(tokens)
}

fn chain(tokens: &[Token], relations: &[usize], depth: usize) -> Option<Answer> {
    let mut sides = Vec::with_capacity(relations.len() + 1);
    let mut start = 0;
    for end in relations.iter().copied().chain([tokens.len()]) {
        let side = trimmed(&tokens[start..end]);
        sides.push(match answer(side, depth + 1) {
            Some(side) => side,
            None if side.is_empty() => return None,
            None => Answer::Text(written(side)),
        });
        start = end + 1;
    }
    let relations = relations.iter().filter_map(|at| Relation::of(&tokens[*at])).collect();
    Some(Answer::Chain(sides, relations))
}

/// Tokens in one pair of brackets.
fn bracketed(tokens: &[Token], depth: usize) -> Option<Answer> {
    let [Token::Open(open), inside @ .., Token::Close(close)] = tokens else { return None };
    // The first bracket closes at the end: `(a)(b)` is a product.
    if outside(tokens).next().is_some() || balance_reaches_zero(tokens) {
        return None;
    }
    let items = || match separated(inside, depth + 1, is_separator) {
        Some(Some(Answer::List(_, items))) => Some(items),
        Some(_) => None,
        None if inside.is_empty() => Some(Vec::new()),
        None => Some(vec![answer(inside, depth + 1)?]),
    };
    match (*open, *close) {
        // \{x | x > 2\}
        ('S', 'S') => match outside(inside).find(|at| matches!(inside[*at], Token::Bar | Token::Symbol(':')))
        {
            Some(bar) if Relation::of_any(&inside[bar + 1..]) => answer(&inside[bar + 1..], depth + 1),
            _ => items().map(Answer::Set),
        },
        ('{', '{') => answer(inside, depth + 1),
        ('<', '<') => items().map(|items| Answer::Bracketed('(', items, '(')),
        (open @ ('(' | '['), close @ ('(' | '[')) => {
            let items = items()?;
            match items.as_slice() {
                // Brackets around a single value only group.
                [single] if open == close => match single {
                    Answer::Scalar(_) => scalar(inside),
                    Answer::Matrix(_) => Some(single.clone()),
                    _ => Some(single.clone()),
                },
                _ => Some(Answer::Bracketed(open, items, close)),
            }
        }
        _ => None,
    }
}

/// Whether the depth is 0 before the last token.
fn balance_reaches_zero(tokens: &[Token]) -> bool {
    let mut depth = 0i32;
    tokens[..tokens.len() - 1].iter().any(|token| {
        depth += i32::from(matches!(token, Token::Open(_))) - i32::from(matches!(token, Token::Close(_)));
        depth == 0
    })
}

impl Relation {
    fn of_any(tokens: &[Token]) -> bool {
        outside(tokens).any(|at| Self::of(&tokens[at]).is_some())
    }
}

/// A value with its unit, percent sign or plus-minus.
fn scalar(tokens: &[Token]) -> Option<Answer> {
    let (tokens, unit) = unit_before_end(tokens);
    // A price or a text before the value: \text{Area } 5
    let tokens = match tokens {
        [Token::Text(_), rest @ ..] if !rest.is_empty() => rest,
        tokens => tokens,
    };
    let plus_minus = |token: &Token| matches!(token, Token::Command(name) if name == "pm" || name == "mp");
    if tokens.iter().any(plus_minus) {
        let both = [parser::parse(tokens, 1)?, parser::parse(tokens, -1)?].map(Answer::value);
        return Some(Answer::List(Joined::Any, both.into()));
    }
    match tokens {
        [Token::Command(name)] if name == "emptyset" => return Some(Answer::Set(Vec::new())),
        [Token::Command(name)] if name == "infty" => {
            return Some(Answer::value(Expression::Constant(Constant::Infinity)));
        }
        _ => {}
    }
    let decimals = match tokens {
        [Token::Number { decimals, .. }] | [Token::Symbol('-'), Token::Number { decimals, .. }] => *decimals,
        _ => None,
    };
    let expression = parser::parse(tokens, 1)?;
    Some(Answer::Scalar(Scalar { expression, percent: unit == Some(Unit::Percent), decimals }))
}
