//! LaTeX and plain notation to an [`Answer`].
//!
//! Text -> tokens -> values. What the grammar does not know stays text, compared after spaces and
//! decoration are gone. Length and depth are bounded, so that hostile input costs nothing.

use super::polynomial::Polynomial;
use super::rational::Rational;

/// Longest answer that is understood, bytes.
const MAX_LENGTH: usize = 2_000;

/// Deepest nesting.
const MAX_DEPTH: usize = 24;

/// An answer's meaning.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Answer {
    /// A number or an expression.
    Value(Polynomial),
    /// A tuple, an interval, a set, or a list without brackets: opening, items, closing.
    Sequence(char, Vec<Answer>, char),
    /// Anything else, without spaces and decoration, in lower case.
    Text(String),
}

impl Answer {
    /// Understands an answer.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        if text.len() > MAX_LENGTH {
            return Self::Text(format!("(too long: {} bytes)", text.len()));
        }
        // A word is a word, not a product of its letters.
        let word = text.trim().trim_end_matches('.');
        if word.chars().count() > 1 && word.chars().all(|c| c.is_alphabetic() || c == ' ') {
            return Self::Text(plain(word));
        }
        let tokens = tokenize(text);
        let mut parser = Parser { tokens: &tokens, at: 0, depth: 0 };
        match parser.answer() {
            Some(answer) if parser.at == tokens.len() => answer,
            _ => Self::Text(plain(text)),
        }
    }

    /// A normal form: equal answers have equal forms.
    #[must_use]
    pub fn canonical(&self) -> String {
        match self {
            Self::Value(value) => value.to_string(),
            Self::Sequence(open, items, close) => {
                let items: Vec<String> = items.iter().map(Self::canonical).collect();
                format!("{open}{}{close}", items.join(","))
            }
            Self::Text(text) => text.clone(),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Number(Rational),
    /// A letter or a command that stands for a value.
    Name(String),
    Operator(char),
    Fraction,
    Root,
    Open(char),
    Close(char),
    Comma,
    Equals,
    /// Text in a `\text{}`.
    Text(String),
}

/// Commands without meaning for the value.
const DECORATION: [&str; 20] = [
    "left",
    "right",
    "displaystyle",
    "textstyle",
    "big",
    "Big",
    "bigl",
    "bigr",
    "mathrm",
    "mathbf",
    "rm",
    "bf",
    "quad",
    "qquad",
    "limits",
    "degree",
    "circ",
    "operatorname",
    "ensuremath",
    "mathbb",
];

fn tokenize(text: &str) -> Vec<Token> {
    let text = text.replace("{,}", "").replace("\\!", "").replace("^\\circ", "").replace("^{\\circ}", "");
    let text = text.trim().trim_end_matches('.');
    let characters: Vec<char> = text.chars().collect();
    let (mut tokens, mut at, mut depth) = (Vec::new(), 0, 0i32);
    while at < characters.len() {
        let c = characters[at];
        at += 1;
        match c {
            _ if c.is_whitespace() => {}
            // \frac12 is one half: without braces an argument is a single digit.
            '0'..='9' if takes_one_digit(&tokens) => {
                tokens.push(Token::Number(Rational::from(i128::from(c.to_digit(10).unwrap_or(0)))));
            }
            '0'..='9' | '.' => {
                let (token, next) = number(&characters, at - 1, depth == 0);
                at = next;
                tokens.push(token);
            }
            '\\' => at = command(&characters, at, &mut tokens, &mut depth),
            '{' => tokens.push(Token::Open('{')),
            '}' => tokens.push(Token::Close('}')),
            '(' | '[' => {
                depth += 1;
                tokens.push(Token::Open(c));
            }
            ')' | ']' => {
                depth -= 1;
                tokens.push(Token::Close(c));
            }
            '+' | '*' | '/' | '^' | '-' => tokens.push(Token::Operator(c)),
            '\u{2212}' => tokens.push(Token::Operator('-')),
            '\u{d7}' | '\u{b7}' => tokens.push(Token::Operator('*')),
            '\u{3c0}' => tokens.push(Token::Name("pi".into())),
            '\u{221e}' => tokens.push(Token::Name("infty".into())),
            ',' => tokens.push(Token::Comma),
            '=' => tokens.push(Token::Equals),
            '$' | '%' | '~' | '\u{b0}' => {}
            _ => tokens.push(Token::Name(c.to_string())),
        }
    }
    tokens
}

/// Whether what follows is an argument of `\frac` or `\sqrt` without braces.
fn takes_one_digit(tokens: &[Token]) -> bool {
    matches!(tokens, [.., Token::Fraction | Token::Root] | [.., Token::Fraction, Token::Number(_)])
}

/// A decimal number from `start`; commas between groups of three digits belong to it outside of
/// brackets.
fn number(characters: &[char], start: usize, commas: bool) -> (Token, usize) {
    let digit = |at: usize| characters.get(at).and_then(|c| c.to_digit(10));
    let (mut value, mut scale, mut at, mut digits) = (Some(0i128), 1i128, start, 0);
    let mut fraction = false;
    loop {
        if let Some(next) = digit(at) {
            digits += 1;
            value = value.and_then(|v| v.checked_mul(10)?.checked_add(next.into()));
            if fraction {
                scale = scale.saturating_mul(10);
            }
            at += 1;
        } else if characters.get(at) == Some(&'.') && !fraction && digit(at + 1).is_some() {
            fraction = true;
            at += 1;
        } else if commas && !fraction && digits > 0 && group_follows(characters, at) && at - start <= 3
            || commas && !fraction && digits > 3 && group_follows(characters, at)
        {
            at += 1;
        } else {
            break;
        }
    }
    let token = match value.and_then(|v| Rational::new(v, scale)) {
        Some(value) if digits > 0 => Token::Number(value),
        _ => Token::Text(characters[start..at.max(start + 1)].iter().collect()),
    };
    (token, at.max(start + 1))
}

/// `,ddd` and no further digit.
fn group_follows(characters: &[char], at: usize) -> bool {
    let digit = |at: usize| characters.get(at).is_some_and(char::is_ascii_digit);
    characters.get(at) == Some(&',') && (1..=3).all(|i| digit(at + i)) && !digit(at + 4)
}

/// A command from behind its backslash; returns where to go on.
fn command(characters: &[char], start: usize, tokens: &mut Vec<Token>, depth: &mut i32) -> usize {
    let end = start + characters[start..].iter().take_while(|c| c.is_ascii_alphabetic()).count();
    if end == start {
        match characters.get(start) {
            Some('{') => {
                *depth += 1;
                tokens.push(Token::Open('S'));
            }
            Some('}') => {
                *depth -= 1;
                tokens.push(Token::Close('S'));
            }
            _ => {}
        }
        return start + 1;
    }
    let name: String = characters[start..end].iter().collect();
    match name.as_str() {
        "frac" | "dfrac" | "tfrac" | "cfrac" => tokens.push(Token::Fraction),
        "sqrt" => tokens.push(Token::Root),
        "cdot" | "times" => tokens.push(Token::Operator('*')),
        "div" => tokens.push(Token::Operator('/')),
        "text" | "mbox" | "textbf" | "textrm" | "mathrm" | "textit" if characters.get(end) == Some(&'{') => {
            let length = characters[end + 1..].iter().take_while(|c| **c != '}').count();
            tokens.push(Token::Text(characters[end + 1..end + 1 + length].iter().collect()));
            return (end + length + 2).min(characters.len());
        }
        _ if DECORATION.contains(&name.as_str()) => {}
        _ => tokens.push(Token::Name(name)),
    }
    end
}

/// Text without spaces and decoration, in lower case.
fn plain(text: &str) -> String {
    let mut text = text.to_owned();
    for name in DECORATION.iter().chain(&["text", "mbox", "textbf", "dfrac", "tfrac"]) {
        let with = if name.ends_with("frac") { "\\frac" } else { "" };
        text = text.replace(&format!("\\{name}"), with);
    }
    let keep = |c: &char| !c.is_whitespace() && !matches!(c, '$' | '{' | '}' | '~');
    text.trim_end_matches('.').chars().filter(keep).collect::<String>().replace("\\!", "").to_lowercase()
}

struct Parser<'a> {
    tokens: &'a [Token],
    at: usize,
    depth: usize,
}

impl Parser<'_> {
    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at)
    }

    fn eat(&mut self, token: &Token) -> bool {
        let found = self.peek() == Some(token);
        self.at += usize::from(found);
        found
    }

    /// A list of items without brackets, or a single one. `x = 5` is 5.
    fn answer(&mut self) -> Option<Answer> {
        if matches!(self.tokens, [Token::Name(_), Token::Equals, ..]) {
            self.at = 2;
        }
        if let [Token::Text(text)] = self.tokens {
            self.at = 1;
            let text = text.trim().trim_matches(|c| matches!(c, '(' | ')')).trim();
            // A choice such as \text{(C)} is the letter.
            return Some(match text.chars().count() {
                1 => Answer::Value(Polynomial::name(text)),
                _ => Answer::Text(plain(text)),
            });
        }
        let mut items = vec![self.item()?];
        while self.eat(&Token::Comma) {
            items.push(self.item()?);
        }
        Some(if items.len() == 1 { items.remove(0) } else { Answer::Sequence(' ', items, ' ') })
    }

    /// A bracketed sequence if it stands alone, else an expression.
    fn item(&mut self) -> Option<Answer> {
        let start = self.at;
        if let Some(Token::Open(open @ ('(' | '[' | 'S'))) = self.peek().cloned() {
            self.at += 1;
            if let Some(sequence) = self.sequence(open) {
                let ends = matches!(self.peek(), None | Some(Token::Comma | Token::Close(_)));
                let single = matches!(&sequence, Answer::Sequence('(', items, ')') if items.len() == 1);
                if ends && !single {
                    return Some(sequence);
                }
            }
            self.at = start;
        }
        let value = self.sum()?;
        // Units behind a value do not change it.
        while let Some(Token::Text(_)) = self.peek() {
            self.at += 1;
            if self.eat(&Token::Operator('^')) {
                self.factor()?;
            }
        }
        Some(Answer::Value(value))
    }

    fn sequence(&mut self, open: char) -> Option<Answer> {
        self.enter()?;
        let mut items = vec![self.item()?];
        while self.eat(&Token::Comma) {
            items.push(self.item()?);
        }
        let Some(Token::Close(close)) = self.peek().cloned() else { return None };
        self.at += 1;
        self.depth -= 1;
        if open == 'S' {
            // A set has no order.
            items.sort();
            items.dedup();
        }
        Some(Answer::Sequence(open, items, close))
    }

    fn enter(&mut self) -> Option<()> {
        self.depth += 1;
        (self.depth <= MAX_DEPTH).then_some(())
    }

    fn sum(&mut self) -> Option<Polynomial> {
        self.enter()?;
        let negative = self.eat(&Token::Operator('-'));
        let _ = !negative && self.eat(&Token::Operator('+'));
        let first = self.product()?;
        let mut value = if negative { first.neg() } else { first };
        loop {
            if self.eat(&Token::Operator('+')) {
                value = value.add(&self.product()?)?;
            } else if self.eat(&Token::Operator('-')) {
                value = value.add(&self.product()?.neg())?;
            } else {
                self.depth -= 1;
                return Some(value);
            }
        }
    }

    fn product(&mut self) -> Option<Polynomial> {
        let mixed = matches!(self.peek(), Some(Token::Number(n)) if n.denominator() == 1);
        let mut value = self.power()?;
        let mut first = true;
        loop {
            if self.eat(&Token::Operator('*')) {
                value = value.mul(&self.power()?)?;
            } else if self.eat(&Token::Operator('/')) {
                value = value.div(&self.power()?)?;
            } else if first && mixed && self.peek() == Some(&Token::Fraction) && value.as_rational().is_some()
            {
                // 3\frac{1}{2} is a mixed number if the fraction is one of numbers.
                let fraction = self.power()?;
                let both = value.add(&fraction).filter(|_| fraction.as_rational().is_some());
                value = both.or_else(|| value.mul(&fraction))?;
            } else if matches!(
                self.peek(),
                Some(Token::Name(_) | Token::Root | Token::Fraction | Token::Open('(' | '{'))
            ) || !first && matches!(self.peek(), Some(Token::Number(_)))
            {
                value = value.mul(&self.power()?)?;
            } else {
                return Some(value);
            }
            first = false;
        }
    }

    fn power(&mut self) -> Option<Polynomial> {
        let base = self.factor()?;
        if !self.eat(&Token::Operator('^')) {
            return Some(base);
        }
        self.enter()?;
        let negative = self.eat(&Token::Operator('-'));
        let exponent = self.factor()?;
        self.depth -= 1;
        base.pow(&if negative { exponent.neg() } else { exponent })
    }

    fn factor(&mut self) -> Option<Polynomial> {
        let token = self.peek()?.clone();
        self.at += 1;
        match token {
            Token::Number(value) => Some(value.into()),
            Token::Name(name) => Some(Polynomial::name(&name)),
            Token::Fraction => {
                let above = self.argument()?;
                above.div(&self.argument()?)
            }
            Token::Root => self.argument()?.sqrt(),
            Token::Open(open @ ('(' | '{' | '[')) => {
                let value = self.sum()?;
                let close = match open {
                    '(' => ')',
                    '{' => '}',
                    _ => ']',
                };
                self.eat(&Token::Close(close)).then_some(value)
            }
            _ => None,
        }
    }

    /// The argument of a command: a group, or a single digit or letter (`\frac12`).
    fn argument(&mut self) -> Option<Polynomial> {
        match self.peek()? {
            Token::Number(_) | Token::Name(_) | Token::Open('{') | Token::Root | Token::Fraction => {
                self.factor()
            }
            _ => None,
        }
    }
}
