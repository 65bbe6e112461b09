//! The pieces of an answer.

use super::rational::Rational;

/// A piece of an answer.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Token {
    /// Digits. `decimals` counts those after the point; `spaced` tells of a space before them.
    Number {
        /// The value.
        value: Rational,
        /// Digits after the point; `None` for a whole number.
        decimals: Option<u32>,
        /// The digits as written, for numbers in other bases.
        digits: String,
        /// Stands after a space.
        spaced: bool,
    },
    /// Letters next to each other.
    Word {
        /// The letters.
        text: String,
        /// Stands after a space.
        spaced: bool,
    },
    /// A command, without its backslash; notations of one meaning share a name (`leq` is `le`).
    Command(String),
    /// `\text{...}` and its relatives.
    Text(String),
    /// An operator or another single character.
    Symbol(char),
    /// An opening bracket: `(`, `[`, `{` (grouping), `S` (the brace of a set), `<` (angle).
    Open(char),
    /// A closing bracket, named by the character that opens it.
    Close(char),
    /// `|` or `\|`.
    Bar,
    /// `\begin{...}` with the environment's name.
    Begin(String),
    /// `\end{...}`.
    End,
    /// `\\` or `\cr`.
    Row,
}

/// Tokens as one line of text without spaces and layout.
#[must_use]
pub(super) fn written(tokens: &[Token]) -> String {
    let mut text = String::new();
    for token in tokens {
        match token {
            Token::Number { digits, .. } => text.push_str(digits),
            Token::Word { text: word, .. } => text.push_str(word),
            Token::Command(name) => {
                text.push('\\');
                text.push_str(name);
            }
            Token::Text(inside) => text.extend(inside.chars().filter(|c| !c.is_whitespace())),
            Token::Symbol(c) => text.push(*c),
            Token::Open('S') => text.push_str("\\{"),
            Token::Close('S') => text.push_str("\\}"),
            Token::Open(open) => text.push(*open),
            Token::Close(open) => text.push(match open {
                '(' => ')',
                '[' => ']',
                '{' => '}',
                _ => '>',
            }),
            Token::Bar => text.push('|'),
            Token::Begin(name) => {
                text.push_str("\\begin");
                text.push_str(name);
            }
            Token::End => {}
            Token::Row => text.push(';'),
        }
    }
    text
}
