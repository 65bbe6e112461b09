//! Tokens to expressions: sums, products (also without sign), powers, functions.
//!
//! A recursive descent over a slice of tokens. What the grammar does not know has no expression; the
//! answer is then text. Depth is bounded, and no token is read more than a fixed number of times.

use super::expression::{Constant, Expression};
use super::names::{self, function_name};
use super::rational::Rational;
use super::token::{Token, written};

/// Deepest nesting.
const MAX_DEPTH: usize = 40;

/// The expression of a text.
#[cfg(test)]
pub(super) fn expression(text: &str) -> Option<Expression> {
    parse(&super::lexer::tokenize(text), 1)
}

/// The expression that all of `tokens` are; `sign` is what plus-minus stands for, 1 or -1.
#[must_use]
pub(super) fn parse(tokens: &[Token], sign: i128) -> Option<Expression> {
    let mut parser = Parser { tokens, at: 0, depth: 0, letters: "", sign };
    let value = parser.sum()?;
    (parser.at == tokens.len() && parser.letters.is_empty()).then_some(value)
}

struct Parser<'a> {
    tokens: &'a [Token],
    at: usize,
    depth: usize,
    /// What is left of a word whose letters are factors of their own.
    letters: &'a str,
    sign: i128,
}

impl<'a> Parser<'a> {
    fn peek(&self) -> Option<&'a Token> {
        self.tokens.get(self.at)
    }

    fn eat(&mut self, token: &Token) -> bool {
        let found = self.letters.is_empty() && self.peek() == Some(token);
        self.at += usize::from(found);
        found
    }

    fn eat_command(&mut self, name: &str) -> bool {
        let found = self.letters.is_empty() && matches!(self.peek(), Some(Token::Command(c)) if c == name);
        self.at += usize::from(found);
        found
    }

    fn sum(&mut self) -> Option<Expression> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return None;
        }
        let mut parts = Vec::new();
        loop {
            let sign = self.sign_of_term();
            if parts.is_empty() || sign.is_some() {
                let term = self.product()?;
                parts.push(if sign == Some(-1) { term.negated() } else { term });
            } else {
                break;
            }
        }
        self.depth -= 1;
        if parts.len() == 1 { parts.pop() } else { Some(Expression::Sum(parts)) }
    }

    /// The signs before a term, multiplied.
    fn sign_of_term(&mut self) -> Option<i128> {
        let mut sign = None;
        loop {
            let one = if self.eat(&Token::Symbol('+')) {
                1
            } else if self.eat(&Token::Symbol('-')) {
                -1
            } else if self.eat_command("pm") {
                self.sign
            } else if self.eat_command("mp") {
                -self.sign
            } else {
                return sign;
            };
            sign = Some(sign.unwrap_or(1) * one);
        }
    }

    fn product(&mut self) -> Option<Expression> {
        if let Some(mixed) = self.mixed_number() {
            return Some(mixed);
        }
        let mut value = self.signed_power()?;
        loop {
            if self.eat(&Token::Symbol('*')) {
                value = times(value, self.signed_power()?);
            } else if self.eat(&Token::Symbol('/')) {
                value = Expression::Quotient(Box::new(value), Box::new(self.signed_power()?));
            } else if self.starts_factor(&value) {
                value = times(value, self.power()?);
            } else {
                return Some(value);
            }
        }
    }

    /// Whether a factor without a multiplication sign is next. Two numbers next to each other are none.
    fn starts_factor(&self, before: &Expression) -> bool {
        if !self.letters.is_empty() {
            return true;
        }
        match self.peek() {
            Some(Token::Word { .. } | Token::Open('(' | '{' | '[')) => true,
            Some(Token::Number { .. }) => !ends_in_number(before),
            Some(Token::Command(name)) => !names::is_operator(name),
            _ => false,
        }
    }

    /// `3\frac{1}{2}` or `3 1/2`.
    fn mixed_number(&mut self) -> Option<Expression> {
        let number = |token: &Token| match token {
            Token::Number { value, decimals: None, .. } => Some(value.clone()),
            _ => None,
        };
        if !self.letters.is_empty() {
            return None;
        }
        let whole = number(self.peek()?)?;
        let (above, below, length) = match self.tokens.get(self.at + 1..)? {
            [Token::Command(frac), rest @ ..] if frac == "frac" => match rest {
                [
                    Token::Open('{'),
                    above,
                    Token::Close('{'),
                    Token::Open('{'),
                    below,
                    Token::Close('{'),
                    ..,
                ] => (number(above)?, number(below)?, 8),
                [above, below, ..] => (number(above)?, number(below)?, 4),
                _ => return None,
            },
            [above @ Token::Number { spaced: true, .. }, Token::Symbol('/'), below, ..] => {
                (number(above)?, number(below)?, 4)
            }
            _ => return None,
        };
        let fraction = above.checked_div(&below)?;
        if fraction >= Rational::one() {
            return None;
        }
        self.at += length;
        Some(Expression::Number(whole.checked_add(&fraction)?))
    }

    fn signed_power(&mut self) -> Option<Expression> {
        match self.sign_of_term() {
            Some(-1) => Some(self.power()?.negated()),
            _ => self.power(),
        }
    }

    fn power(&mut self) -> Option<Expression> {
        let mut base = self.factor()?;
        loop {
            if self.eat(&Token::Symbol('!')) {
                base = Expression::Function("factorial".into(), vec![base]);
            } else if self.eat_command("degree") {
                base = Expression::Degrees(Box::new(base));
            } else if self.letters.is_empty() && self.eat(&Token::Symbol('^')) {
                if self.degree_exponent() {
                    base = Expression::Degrees(Box::new(base));
                    continue;
                }
                base = Expression::Power(Box::new(base), Box::new(self.exponent()?));
            } else {
                return Some(base);
            }
        }
    }

    /// The rest of `^\circ` or `^{\circ}`.
    fn degree_exponent(&mut self) -> bool {
        if self.eat_command("degree") {
            return true;
        }
        let braced = matches!(
            self.tokens.get(self.at..self.at + 3),
            Some([Token::Open('{'), Token::Command(name), Token::Close('{')]) if name == "degree"
        );
        self.at += if braced { 3 } else { 0 };
        braced
    }

    fn exponent(&mut self) -> Option<Expression> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return None;
        }
        let negative = self.eat(&Token::Symbol('-'));
        let mut value = self.factor()?;
        // a^b^c is a^(b^c).
        if self.eat(&Token::Symbol('^')) {
            value = Expression::Power(Box::new(value), Box::new(self.exponent()?));
        }
        self.depth -= 1;
        Some(if negative { value.negated() } else { value })
    }

    fn factor(&mut self) -> Option<Expression> {
        if !self.letters.is_empty() {
            return self.letter();
        }
        let token = self.peek()?;
        self.at += 1;
        match token {
            Token::Number { value, .. } => Some(Expression::Number(value.clone())),
            Token::Word { text, .. } => self.word(text),
            Token::Open(open @ ('(' | '[' | '{')) => {
                let value = self.sum()?;
                self.eat(&Token::Close(*open)).then_some(value)
            }
            Token::Bar => {
                let value = self.sum()?;
                self.eat(&Token::Bar).then(|| Expression::Function("abs".into(), vec![value]))
            }
            Token::Command(name) => self.command(name),
            _ => None,
        }
    }

    fn word(&mut self, text: &'a str) -> Option<Expression> {
        if let Some(function) = function_name(text) {
            return self.function(function);
        }
        match text {
            "sqrt" => self.root(),
            "pi" => Some(Expression::Constant(Constant::Pi)),
            "inf" | "infty" | "infinity" | "oo" | "Infinity" => {
                Some(Expression::Constant(Constant::Infinity))
            }
            _ => {
                self.letters = text;
                self.letter()
            }
        }
    }

    /// The next letter of a word, with its marks.
    fn letter(&mut self) -> Option<Expression> {
        let (letter, rest) = self.letters.split_at_checked(1)?;
        self.letters = rest;
        if !rest.is_empty() {
            return Some(names::letter(letter));
        }
        self.name(letter)
    }

    /// A name with its subscript and primes, and its arguments if it is a function's.
    fn name(&mut self, letter: &str) -> Option<Expression> {
        let mut name = letter.to_owned();
        loop {
            if self.eat(&Token::Symbol('\'')) {
                name.push('\'');
            } else if self.eat(&Token::Symbol('_')) {
                name.push('_');
                name.push_str(&self.raw_argument()?);
            } else {
                break;
            }
        }
        let is_function = name.starts_with(['f', 'g', 'h', 'F', 'G', 'H']);
        if is_function && self.eat(&Token::Open('(')) {
            let mut arguments = vec![self.sum()?];
            while self.eat(&Token::Symbol(',')) {
                arguments.push(self.sum()?);
            }
            return self.eat(&Token::Close('(')).then_some(Expression::Function(name, arguments));
        }
        Some(if name.len() == 1 { names::letter(&name) } else { Expression::Variable(name) })
    }

    /// An argument as it is written: a group or a single token.
    fn raw_argument(&mut self) -> Option<String> {
        let start = self.at;
        let mut depth = 0i32;
        loop {
            match self.peek()? {
                Token::Open('{') => depth += 1,
                Token::Close('{') => depth -= 1,
                _ => {}
            }
            self.at += 1;
            if depth <= 0 {
                break;
            }
        }
        let inside = match &self.tokens[start..self.at] {
            [Token::Open('{'), inside @ .., Token::Close('{')] => inside,
            inside => inside,
        };
        Some(written(inside))
    }

    fn command(&mut self, name: &'a str) -> Option<Expression> {
        if let Some(function) = function_name(name) {
            return self.function(function);
        }
        if names::is_binder(name) {
            return self.binder(name);
        }
        if names::is_accent(name) {
            let marked = self.raw_argument()?;
            return Some(Expression::Variable(format!("{name} {marked}")));
        }
        match name {
            "frac" => {
                let above = self.argument()?;
                Some(Expression::Quotient(Box::new(above), Box::new(self.argument()?)))
            }
            "binom" => {
                let above = self.argument()?;
                Some(Expression::Function("binom".into(), vec![above, self.argument()?]))
            }
            "sqrt" => self.root(),
            "pi" => Some(Expression::Constant(Constant::Pi)),
            "infty" => Some(Expression::Constant(Constant::Infinity)),
            "lfloor" => {
                let value = self.sum()?;
                self.eat_command("rfloor").then(|| Expression::Function("floor".into(), vec![value]))
            }
            "lceil" => {
                let value = self.sum()?;
                self.eat_command("rceil").then(|| Expression::Function("ceil".into(), vec![value]))
            }
            _ => self.name(name),
        }
    }

    /// The argument of a command: a group, or a single number, letter or command.
    fn argument(&mut self) -> Option<Expression> {
        let is_letters = |text: &str| function_name(text).is_none() && !matches!(text, "pi" | "sqrt");
        match self.peek() {
            Some(Token::Word { text, .. }) if self.letters.is_empty() && is_letters(text) => {
                self.at += 1;
                self.letters = text;
            }
            _ => {}
        }
        if !self.letters.is_empty() {
            let (letter, rest) = self.letters.split_at_checked(1)?;
            self.letters = rest;
            return Some(names::letter(letter));
        }
        self.depth += 1;
        let value = if self.depth > MAX_DEPTH { None } else { self.factor() };
        self.depth -= 1;
        value
    }

    fn root(&mut self) -> Option<Expression> {
        let mut degree = 2;
        if self.eat(&Token::Open('[')) {
            match self.peek()? {
                Token::Number { value, .. } => {
                    degree = u32::try_from(value.to_integer()?).ok().filter(|n| (2..=64).contains(n))?;
                }
                _ => return None,
            }
            self.at += 1;
            if !self.eat(&Token::Close('[')) {
                return None;
            }
        }
        Some(Expression::Root(degree, Box::new(self.argument()?)))
    }

    fn function(&mut self, name: &str) -> Option<Expression> {
        let (mut power, mut base) = (None, None);
        loop {
            if self.eat(&Token::Symbol('^')) {
                power = Some(self.exponent()?);
            } else if self.eat(&Token::Symbol('_')) {
                base = Some(self.argument()?);
            } else {
                break;
            }
        }
        let mut arguments = self.arguments()?;
        if name == "log" {
            arguments.extend(base);
        }
        // The inverse, not the reciprocal: \sin^{-1}.
        let inverse = matches!(&power, Some(Expression::Number(n)) if *n == Rational::from(-1));
        if inverse && matches!(name, "sin" | "cos" | "tan") {
            return Some(Expression::Function(format!("arc{name}"), arguments));
        }
        let value = Expression::Function(name.to_owned(), arguments);
        Some(match power {
            Some(power) => Expression::Power(Box::new(value), Box::new(power)),
            None => value,
        })
    }

    /// A function's arguments in brackets, or the factors up to the next sign or function.
    fn arguments(&mut self) -> Option<Vec<Expression>> {
        if self.eat(&Token::Open('(')) {
            let mut arguments = vec![self.sum()?];
            while self.eat(&Token::Symbol(',')) {
                arguments.push(self.sum()?);
            }
            return self.eat(&Token::Close('(')).then_some(arguments);
        }
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return None;
        }
        let mut value = self.power()?;
        while self.starts_factor(&value) && !self.starts_function() {
            value = times(value, self.power()?);
        }
        self.depth -= 1;
        Some(vec![value])
    }

    fn starts_function(&self) -> bool {
        self.letters.is_empty()
            && match self.peek() {
                Some(Token::Command(name)) => function_name(name).is_some(),
                Some(Token::Word { text, .. }) => function_name(text).is_some(),
                _ => false,
            }
    }

    /// `\sum_{k=0}^{n} ...`: the bounds as written are part of the function's name.
    fn binder(&mut self, name: &str) -> Option<Expression> {
        let mut name = name.to_owned();
        loop {
            if self.eat(&Token::Symbol('^')) {
                name = format!("{name}^[{}]", self.raw_argument()?);
            } else if self.eat(&Token::Symbol('_')) {
                name = format!("{name}_[{}]", self.raw_argument()?);
            } else {
                break;
            }
        }
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return None;
        }
        let body = self.product()?;
        self.depth -= 1;
        Some(Expression::Function(name, vec![body]))
    }
}

fn times(a: Expression, b: Expression) -> Expression {
    match a {
        Expression::Product(mut parts) => {
            parts.push(b);
            Expression::Product(parts)
        }
        a => Expression::Product(vec![a, b]),
    }
}

fn ends_in_number(value: &Expression) -> bool {
    match value {
        Expression::Number(_) => true,
        Expression::Product(parts) => parts.last().is_some_and(ends_in_number),
        _ => false,
    }
}

#[cfg(test)]
mod tests;
