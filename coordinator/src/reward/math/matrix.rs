//! Matrices and column vectors, with sums, products and multiples of them.

use super::expression::Expression;
use super::parser;
use super::rational::Rational;
use super::token::Token;

/// Rows of a matrix.
pub(super) type Matrix = Vec<Vec<Expression>>;

/// Most rows or columns.
const MAX_SIDE: usize = 32;

/// Largest formula in a product, parts.
const MAX_CELL: usize = 500;

/// Factors between signs, each a matrix or an expression.
enum Factor<'a> {
    Matrix(Matrix),
    Scalar(&'a [Token]),
}

/// The matrix that `tokens` are: `A`, `2A`, `AB`, `A + B`.
#[must_use]
pub(super) fn parse(tokens: &[Token]) -> Option<Matrix> {
    let mut sum: Option<Matrix> = None;
    for (negative, term) in terms(tokens) {
        let mut product = product(term)?;
        if negative {
            product = map(&product, |e| e.clone().negated());
        }
        sum = Some(match sum {
            None => product,
            Some(sum) => add(&sum, &product)?,
        });
    }
    sum
}

/// Cut at the signs outside of brackets and environments.
fn terms(tokens: &[Token]) -> Vec<(bool, &[Token])> {
    let (mut terms, mut start, mut depth, mut negative) = (Vec::new(), 0, 0i32, false);
    for (at, token) in tokens.iter().enumerate() {
        match token {
            Token::Open(_) | Token::Begin(_) => depth += 1,
            Token::Close(_) | Token::End => depth -= 1,
            Token::Symbol(sign @ ('+' | '-')) if depth == 0 => {
                if at > start {
                    terms.push((negative, &tokens[start..at]));
                }
                negative = (*sign == '-') != (negative && at == start);
                start = at + 1;
            }
            _ => {}
        }
    }
    terms.push((negative, &tokens[start..]));
    terms
}

fn product(tokens: &[Token]) -> Option<Matrix> {
    let mut matrix: Option<Matrix> = None;
    let mut scalar = Expression::integer(1);
    for factor in factors(tokens)? {
        match factor {
            Factor::Scalar(tokens) => {
                scalar = Expression::Product(vec![scalar, parser::parse(tokens, 1)?]);
            }
            Factor::Matrix(next) => {
                matrix = Some(match matrix {
                    None => next,
                    Some(before) => multiply(&before, &next)?,
                });
            }
        }
    }
    let matrix = matrix?;
    if scalar == Expression::integer(1) {
        return Some(matrix);
    }
    Some(map(&matrix, |e| Expression::Product(vec![scalar.clone(), e.clone()])))
}

fn factors(tokens: &[Token]) -> Option<Vec<Factor<'_>>> {
    let mut factors = Vec::new();
    let mut rest = tokens;
    while !rest.is_empty() {
        if let [Token::Symbol('*'), after @ ..] = rest {
            rest = after;
            continue;
        }
        // [ \begin{array} ... \end{array} ]
        let bracketed = matches!(rest, [Token::Open('(' | '['), Token::Begin(_), ..]);
        let inside = if bracketed { &rest[1..] } else { rest };
        if let [Token::Begin(name), after @ ..] = inside {
            let end = after.iter().position(|token| *token == Token::End)?;
            if name != "matrix" && name != "smallmatrix" && !name.ends_with("matrix") && name != "array"
                || name == "vmatrix"
            {
                return None;
            }
            factors.push(Factor::Matrix(rows(&after[..end])?));
            rest = &after[end + 1..];
            if bracketed {
                let [Token::Close(_), after @ ..] = rest else { return None };
                rest = after;
            }
            continue;
        }
        let next = rest.iter().position(|token| matches!(token, Token::Begin(_))).unwrap_or(rest.len());
        let opened = next < rest.len() && matches!(rest[..next], [.., Token::Open('(' | '[')]);
        let end = next - usize::from(opened);
        let scalar = match &rest[..end] {
            [scalar @ .., Token::Symbol('*')] => scalar,
            scalar => scalar,
        };
        if scalar.is_empty() {
            return None;
        }
        factors.push(Factor::Scalar(scalar));
        rest = &rest[end..];
    }
    Some(factors)
}

fn rows(tokens: &[Token]) -> Option<Matrix> {
    let mut rows = Vec::new();
    for row in tokens.split(|token| *token == Token::Row) {
        if row.is_empty() {
            continue;
        }
        let cells = row.split(|token| *token == Token::Symbol('&'));
        let cells: Option<Vec<Expression>> = cells.map(|cell| parser::parse(cell, 1)).collect();
        rows.push(cells?);
    }
    let width = rows.first()?.len();
    let fits = rows.len() <= MAX_SIDE && width <= MAX_SIDE && rows.iter().all(|row| row.len() == width);
    fits.then_some(rows)
}

fn map(matrix: &Matrix, f: impl Fn(&Expression) -> Expression) -> Matrix {
    matrix.iter().map(|row| row.iter().map(&f).collect()).collect()
}

fn add(a: &Matrix, b: &Matrix) -> Option<Matrix> {
    if a.len() != b.len() || a[0].len() != b[0].len() {
        return None;
    }
    let sum = |(a, b): (&Vec<Expression>, &Vec<Expression>)| {
        a.iter().zip(b).map(|(a, b)| Expression::Sum(vec![a.clone(), b.clone()])).collect()
    };
    Some(a.iter().zip(b).map(sum).collect())
}

fn multiply(a: &Matrix, b: &Matrix) -> Option<Matrix> {
    // Larger products of expressions are not answers.
    if a[0].len() != b.len() || a.len() * b.len() * b[0].len() > 512 {
        return None;
    }
    let cell = |row: &Vec<Expression>, column: usize| {
        // Numbers are multiplied at once; formulas only up to a size, as products of products double.
        let numbers = row.iter().zip(b).try_fold(Rational::zero(), |sum, (x, y)| {
            sum.checked_add(&x.as_number()?.checked_mul(y[column].as_number()?)?)
        });
        if let Some(value) = numbers {
            return Some(Expression::Number(value));
        }
        let terms = row.iter().zip(b).map(|(x, y)| Expression::Product(vec![x.clone(), y[column].clone()]));
        Some(Expression::Sum(terms.collect())).filter(|cell| cell.size() <= MAX_CELL)
    };
    a.iter().map(|row| (0..b[0].len()).map(|column| cell(row, column)).collect()).collect()
}

#[cfg(test)]
mod tests {
    use super::super::expression::Budget;
    use super::super::lexer::tokenize;
    use super::super::polynomial::Polynomial;
    use super::*;

    fn values(text: &str) -> Option<Vec<Vec<String>>> {
        let budget = Budget::new();
        let value = |e: &Expression| Polynomial::of(e, &budget).unwrap().to_string();
        Some(parse(&tokenize(text))?.iter().map(|row| row.iter().map(value).collect()).collect())
    }

    const A: &str = "\\begin{pmatrix} 1 & 2 \\\\ 3 & 4 \\end{pmatrix}";

    #[test]
    fn matrices_are_read_and_combined() {
        assert_eq!(values(A).unwrap(), [["1", "2"], ["3", "4"]]);
        assert_eq!(values(&format!("2{A}")).unwrap(), [["2", "4"], ["6", "8"]]);
        assert_eq!(values(&format!("-\\frac12 {A}")).unwrap(), [["-1/2", "-1"], ["-3/2", "-2"]]);
        // [[1+6, 2+8], [3+12, 6+16]]
        assert_eq!(values(&format!("{A}{A}")).unwrap(), [["7", "10"], ["15", "22"]]);
        assert_eq!(values(&format!("{A} + {A}")).unwrap(), [["2", "4"], ["6", "8"]]);
        let array = "\\left[\\begin{array}{cc}1 & 2 \\\\3 & 4\\end{array}\\right]";
        assert_eq!(values(array).unwrap(), [["1", "2"], ["3", "4"]]);
        assert_eq!(values("\\begin{pmatrix} x \\\\ -y \\end{pmatrix}").unwrap(), [["x"], ["-y"]]);
    }

    #[test]
    fn other_environments_and_ragged_rows_are_none() {
        assert!(values("\\begin{pmatrix} 1 & 2 \\\\ 3 \\end{pmatrix}").is_none());
        assert!(values("\\begin{cases} 1 \\\\ 3 \\end{cases}").is_none());
        assert!(values("\\begin{vmatrix} 1 & 2 \\\\ 3 & 4 \\end{vmatrix}").is_none());
    }
}
