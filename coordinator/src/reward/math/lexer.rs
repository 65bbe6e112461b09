//! LaTeX and plain notation to tokens.
//!
//! In: an answer's text. Out: tokens without layout: sizes of brackets, thin spaces, fonts and dollar
//! signs are gone, notations of one thing have one token. What the tokens mean is the parser's business.

use super::names;
use super::rational::Rational;
use super::token::Token;

/// Cuts an answer into tokens.
#[must_use]
pub(super) fn tokenize(text: &str) -> Vec<Token> {
    let mut lexer = Lexer { text, at: 0, tokens: Vec::new(), depth: 0, matrices: 0, spaced: false };
    lexer.run();
    lexer.tokens
}

struct Lexer<'a> {
    text: &'a str,
    at: usize,
    tokens: Vec<Token>,
    /// Open brackets in which a comma separates, never groups thousands.
    depth: usize,
    /// Open environments in which `\\` ends a row.
    matrices: usize,
    spaced: bool,
}

impl<'a> Lexer<'a> {
    fn run(&mut self) {
        while let Some(c) = self.rest().chars().next() {
            if c.is_whitespace() || matches!(c, '~' | '$') {
                self.at += c.len_utf8();
                self.spaced = true;
                continue;
            }
            self.token(c);
            self.spaced = false;
        }
    }

    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn token(&mut self, c: char) {
        if c.is_ascii_digit() || c == '.' && self.rest()[1..].starts_with(|d: char| d.is_ascii_digit()) {
            return self.number();
        }
        if c.is_ascii_alphabetic() {
            let length = self.rest().bytes().take_while(u8::is_ascii_alphabetic).count();
            let text = self.rest()[..length].to_owned();
            self.at += length;
            return self.tokens.push(Token::Word { text, spaced: self.spaced });
        }
        if c == '\\' {
            return self.backslash();
        }
        self.at += c.len_utf8();
        let token = match c {
            '(' | '[' => {
                self.depth += 1;
                Token::Open(c)
            }
            ')' | ']' => {
                self.depth = self.depth.saturating_sub(1);
                Token::Close(if c == ')' { '(' } else { '[' })
            }
            '{' => Token::Open('{'),
            '}' => Token::Close('{'),
            '|' => Token::Bar,
            '\u{2212}' | '\u{2013}' => Token::Symbol('-'),
            '\u{d7}' | '\u{b7}' | '\u{22c5}' | '\u{2217}' => Token::Symbol('*'),
            '\u{f7}' => Token::Symbol('/'),
            '\u{2264}' => Token::Command("le".into()),
            '\u{2265}' => Token::Command("ge".into()),
            '\u{2260}' => Token::Command("ne".into()),
            '\u{2248}' => Token::Command("approx".into()),
            '\u{b1}' => Token::Command("pm".into()),
            '\u{221e}' => Token::Command("infty".into()),
            '\u{3c0}' => Token::Command("pi".into()),
            '\u{221a}' => Token::Command("sqrt".into()),
            '\u{222a}' => Token::Command("cup".into()),
            '\u{2229}' => Token::Command("cap".into()),
            '\u{2208}' => Token::Command("in".into()),
            '\u{2205}' => Token::Command("emptyset".into()),
            '\u{211d}' => Token::Command("R".into()),
            '\u{b0}' => Token::Command("degree".into()),
            '\u{b2}' | '\u{b3}' => {
                self.tokens.push(Token::Symbol('^'));
                let n = if c == '\u{b2}' { 2 } else { 3 };
                whole(n)
            }
            _ => Token::Symbol(c),
        };
        let token = match (token, self.rest().starts_with('=')) {
            (Token::Symbol('<'), true) => self.second("le"),
            (Token::Symbol('>'), true) => self.second("ge"),
            (Token::Symbol('!'), true) => self.second("ne"),
            (Token::Symbol('<'), _) => Token::Command("lt".into()),
            (Token::Symbol('>'), _) => Token::Command("gt".into()),
            (Token::Symbol('*'), _) if self.rest().starts_with('*') => {
                self.at += 1;
                Token::Symbol('^')
            }
            (token, _) => token,
        };
        self.tokens.push(token);
    }

    /// An operator whose second character is next.
    fn second(&mut self, name: &str) -> Token {
        self.at += 1;
        Token::Command(name.into())
    }

    /// A number: digits, separators of thousands, a point, repeating decimals, `e` and an exponent.
    fn number(&mut self) {
        // \frac12 is one half: an argument without braces is a single digit.
        if takes_one_digit(&self.tokens) && !self.rest().starts_with('.') {
            let digits = self.rest()[..1].to_owned();
            self.at += 1;
            let value = Rational::from_decimal(&digits).unwrap_or_else(Rational::zero);
            return self.tokens.push(Token::Number { value, decimals: None, digits, spaced: self.spaced });
        }
        let spaced = self.spaced;
        let mut digits = self.digits();
        while let Some(length) = self.separator(digits.len()) {
            self.at += length;
            digits.push_str(&self.digits());
        }
        let mut decimals = None;
        if self.rest().starts_with('.') && !self.rest()[1..].starts_with('.') {
            self.at += 1;
            let fraction = self.digits();
            digits.push('.');
            digits.push_str(&fraction);
            decimals = u32::try_from(fraction.len()).ok().filter(|n| *n > 0);
        }
        let mut value = Rational::from_decimal(&digits);
        if let Some((sum, length)) = value.as_ref().and_then(|value| self.repeating(&digits, value)) {
            self.at += length;
            value = Some(sum);
            decimals = None;
        }
        if let Some((scale, length)) = self.exponent() {
            self.at += length;
            value = value.and_then(|value| value.checked_mul(&scale));
        }
        self.tokens.push(match value {
            Some(value) => Token::Number { value, decimals, digits, spaced },
            None => Token::Text(digits),
        });
    }

    fn digits(&mut self) -> String {
        let length = self.rest().bytes().take_while(u8::is_ascii_digit).count();
        let digits = self.rest()[..length].to_owned();
        self.at += length;
        digits
    }

    /// The length of a separator of thousands after `before` digits, if one is next.
    fn separator(&self, before: usize) -> Option<usize> {
        let rest = self.rest();
        let three = |text: &str| {
            let digits = text.bytes().take_while(u8::is_ascii_digit).count();
            digits == 3
        };
        for explicit in ["{,}", ",\\!", "\\!,", "\\,", "\\ ", "{\\,}"] {
            if let Some(after) = rest.strip_prefix(explicit) {
                let spaces = after.len() - after.trim_start_matches([' ', '!', '\\']).len();
                if three(&after[spaces..]) {
                    return Some(explicit.len() + spaces);
                }
            }
        }
        let grouped = (1..=3).contains(&(before % 3 + if before.is_multiple_of(3) { 3 } else { 0 }));
        let plain = match rest.as_bytes().first() {
            Some(b',') => self.depth == 0 && self.matrices == 0,
            Some(b' ') => true,
            _ => false,
        };
        (plain && grouped && before > 0 && (before <= 3 || self.grouped_before()) && three(&rest[1..]))
            .then_some(1)
    }

    /// Whether the digits so far already hold a separator: `1,234,567`.
    fn grouped_before(&self) -> bool {
        let start = self.text[..self.at].rfind(|c: char| !c.is_ascii_digit());
        start.is_some_and(|at| matches!(self.text.as_bytes()[at], b',' | b' '))
    }

    /// `0.1\overline{6}`: the value with the digits that repeat, and the length of their notation.
    fn repeating(&self, digits: &str, value: &Rational) -> Option<(Rational, usize)> {
        let places = digits.len() - digits.find('.')? - 1;
        let rest = self.rest().strip_prefix("\\overline{").or_else(|| self.rest().strip_prefix("\\bar{"))?;
        let end = rest.find('}')?;
        let period = Rational::from_decimal(&rest[..end]).filter(Rational::is_integer)?;
        // 0.1(6) = 0.1 + 6 / (9 * 10)
        let nines = Rational::from(10).pow(end as i128)?.checked_sub(&Rational::one())?;
        let scale = Rational::from(10).pow(places as i128)?;
        let sum = value.checked_add(&period.checked_div(&nines.checked_mul(&scale)?)?)?;
        Some((sum, self.rest().len() - rest.len() + end + 1))
    }

    /// `e5`, `E-3`: a power of ten and its length.
    fn exponent(&self) -> Option<(Rational, usize)> {
        let rest = self.rest().strip_prefix(['e', 'E'])?;
        let (negative, digits) = match rest.as_bytes().first()? {
            b'-' => (true, &rest[1..]),
            b'+' => (false, &rest[1..]),
            _ => (false, rest),
        };
        let length = digits.bytes().take_while(u8::is_ascii_digit).count();
        let power: i128 = digits[..length].parse().ok().filter(|p| *p < 400)?;
        let scale = Rational::from(10).pow(if negative { -power } else { power })?;
        Some((scale, self.rest().len() - digits.len() + length))
    }

    fn backslash(&mut self) {
        self.at += 1;
        let Some(c) = self.rest().chars().next() else { return };
        if c == '\\' {
            self.at += 1;
            // Escaped twice: \\frac is \frac, except where \\ ends a row.
            if self.matrices == 0 && self.rest().starts_with(|c: char| c.is_ascii_alphabetic() || c == '{') {
                self.at -= 1;
                return;
            }
            return self.tokens.push(Token::Row);
        }
        if !c.is_ascii_alphabetic() {
            self.at += c.len_utf8();
            match c {
                '{' => {
                    self.depth += 1;
                    self.tokens.push(Token::Open('S'));
                }
                '}' => {
                    self.depth = self.depth.saturating_sub(1);
                    self.tokens.push(Token::Close('S'));
                }
                '%' => self.tokens.push(Token::Symbol('%')),
                '|' => self.tokens.push(Token::Bar),
                _ => {}
            }
            return;
        }
        let length = self.rest().bytes().take_while(u8::is_ascii_alphabetic).count();
        let name = self.rest()[..length].to_owned();
        self.at += length;
        self.command(&name);
    }

    fn command(&mut self, name: &str) {
        if names::is_text(name) {
            return self.text_argument();
        }
        if names::is_font(name) {
            return self.font_argument();
        }
        if names::is_layout(name) {
            // \left. opens nothing.
            if matches!(name, "left" | "right") && self.rest().starts_with('.') {
                self.at += 1;
            }
            return;
        }
        let token = match name {
            "dfrac" | "tfrac" | "cfrac" => Token::Command("frac".into()),
            "leq" | "leqslant" | "leqq" => Token::Command("le".into()),
            "geq" | "geqslant" | "geqq" => Token::Command("ge".into()),
            "neq" => Token::Command("ne".into()),
            "cdot" | "times" | "ast" => Token::Symbol('*'),
            "div" => Token::Symbol('/'),
            "circ" | "degree" | "degrees" => Token::Command("degree".into()),
            "dbinom" | "tbinom" => Token::Command("binom".into()),
            "varnothing" => Token::Command("emptyset".into()),
            "smallsetminus" | "backslash" => Token::Command("setminus".into()),
            "lbrace" => Token::Open('S'),
            "rbrace" => Token::Close('S'),
            "lbrack" => Token::Open('['),
            "rbrack" => Token::Close('['),
            "langle" => Token::Open('<'),
            "rangle" => Token::Close('<'),
            "vert" | "lvert" | "rvert" | "mid" | "Vert" => Token::Bar,
            "colon" => Token::Symbol(':'),
            "lnot" => Token::Symbol('~'),
            "simeq" | "thickapprox" => Token::Command("approx".into()),
            "prime" => Token::Symbol('\''),
            "dots" | "ldots" | "cdots" => Token::Command("dots".into()),
            "varphi" => Token::Command("phi".into()),
            "varepsilon" => Token::Command("epsilon".into()),
            "mathbb" | "Bbb" => match self.braced() {
                Some(letter) => Token::Command(letter),
                None => return,
            },
            "cr" => Token::Row,
            "quad" | "qquad" | "space" | "thinspace" | "medspace" => return self.spaced = true,
            "begin" => {
                self.matrices += 1;
                let name = self.braced().unwrap_or_default();
                if name.starts_with("array") {
                    // The columns' alignment.
                    let _ = self.braced();
                }
                Token::Begin(name)
            }
            "end" => {
                self.matrices = self.matrices.saturating_sub(1);
                let _ = self.braced();
                Token::End
            }
            _ => {
                // \quadx, where a space was lost.
                if let Some(word) = name.strip_prefix("qquad").or_else(|| name.strip_prefix("quad")) {
                    return self.tokens.push(Token::Word { text: word.to_owned(), spaced: true });
                }
                Token::Command(name.to_owned())
            }
        };
        self.tokens.push(token);
    }

    /// The text in the braces that are next.
    fn braced(&mut self) -> Option<String> {
        let rest = self.rest();
        let start = rest.len() - rest.trim_start().len();
        let inside = rest[start..].strip_prefix('{')?;
        let end = inside.find('}').unwrap_or(inside.len());
        let text = inside[..end].to_owned();
        self.at = (self.at + start + end + 2).min(self.text.len());
        Some(text)
    }

    /// `\mathrm{cm}`, `{\rm cm}`: letters as a text or a function's name; anything else stays as it is.
    fn font_argument(&mut self) {
        let rest = self.rest().trim_start_matches([' ', '*']);
        let braced = rest.starts_with('{');
        let inside = &rest[usize::from(braced)..];
        let end = inside.find(['{', '}', '\\', '$']).unwrap_or(inside.len());
        let letters = inside[..end].trim_matches(['~', ' ']);
        let is_text = letters.len() > 1 || letters.len() == 1 && inside.starts_with('~');
        let is_word = |c: char| c.is_alphabetic() || matches!(c, '/' | ' ' | '.' | '~');
        let closed = inside[end..].starts_with('}');
        if !is_text || !closed || !letters.chars().all(is_word) {
            return;
        }
        self.at = self.text.len() - inside.len() + end + usize::from(braced);
        self.tokens.push(match names::function_name(letters) {
            Some(function) => Token::Command(function.to_owned()),
            None => Token::Text(letters.to_owned()),
        });
    }

    fn text_argument(&mut self) {
        let rest = self.rest().trim_start();
        let Some(inside) = rest.strip_prefix('{') else { return };
        let start = self.text.len() - inside.len();
        let mut depth = 1;
        let end = inside.bytes().position(|b| {
            depth += i32::from(b == b'{') - i32::from(b == b'}');
            depth == 0
        });
        let inside = &inside[..end.unwrap_or(inside.len())];
        self.at = (start + inside.len() + 1).min(self.text.len());
        self.tokens.push(Token::Text(inside.to_owned()));
    }
}

fn whole(n: i128) -> Token {
    Token::Number { value: Rational::from(n), decimals: None, digits: n.to_string(), spaced: false }
}

/// Whether what follows is an argument without braces of `\frac`, `\binom`, `\sqrt` or `^`.
fn takes_one_digit(tokens: &[Token]) -> bool {
    let is = |token: &Token, names: &[&str]| matches!(token, Token::Command(name) if names.contains(&name.as_str()));
    match tokens {
        [.., last] if is(last, &["frac", "sqrt", "binom"]) => true,
        [.., before, Token::Number { .. } | Token::Word { .. }] if is(before, &["frac", "binom"]) => true,
        // The first argument in braces: \frac{1}3.
        [.., Token::Close('{')] => after_first_argument(tokens),
        _ => false,
    }
}

/// Whether a closing brace ends the first argument of `\frac`.
fn after_first_argument(tokens: &[Token]) -> bool {
    let mut depth = 0i32;
    for (at, token) in tokens.iter().enumerate().rev() {
        depth += i32::from(*token == Token::Close('{')) - i32::from(*token == Token::Open('{'));
        if depth == 0 {
            return at > 0
                && matches!(&tokens[at - 1], Token::Command(name) if name == "frac" || name == "binom");
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(text: &str) -> Vec<String> {
        let number = |token| match token {
            Token::Number { value, .. } => Some(value.to_string()),
            _ => None,
        };
        tokenize(text).into_iter().filter_map(number).collect()
    }

    #[test]
    fn numbers_with_separators() {
        assert_eq!(numbers("1,234,567"), ["1234567"]);
        assert_eq!(numbers("11,\\! 111,\\! 111,\\! 100"), ["11111111100"]);
        assert_eq!(numbers("23{,}000"), ["23000"]);
        assert_eq!(numbers("1 000"), ["1000"]);
        assert_eq!(numbers("(1,234)"), ["1", "234"]);
        assert_eq!(numbers("1,22"), ["1", "22"]);
        assert_eq!(numbers("4, 100, 200"), ["4", "100", "200"]);
        assert_eq!(numbers("1.5e-3"), ["3/2000"]);
        assert_eq!(numbers("0.1\\overline{6}"), ["1/6"]);
        assert_eq!(numbers("\\frac12"), ["1", "2"]);
        assert_eq!(numbers("\\frac{10}3"), ["10", "3"]);
        assert_eq!(numbers("12345 678"), ["12345", "678"]);
    }

    #[test]
    fn layout_leaves_no_trace() {
        assert_eq!(tokenize("\\left(1,\\,2\\right)"), tokenize("(1,2)"));
        assert_eq!(tokenize("\\dfrac{1}{2}"), tokenize("\\tfrac{1}{2}"));
        assert_eq!(tokenize("\\\\frac{4}{3}"), tokenize("\\frac{4}{3}"));
        assert_eq!(tokenize("x\\leq 5"), tokenize("x<= 5"));
        assert_eq!(tokenize("\\mathbb{R}"), [Token::Command("R".into())]);
    }
}
