//! Whether two answers mean the same, and the normal form of an answer.

use super::answer::{Answer, Relation, Scalar};
use super::expression::{Budget, Expression};
use super::numeric::{self, Point};
use super::polynomial::Polynomial;
use super::rational::Rational;
use super::region::Region;

/// A decimal number with at least this many digits after the point may be a rounded one: 0.333333 is
/// one third. With fewer, a rounded answer is a wrong one.
const ROUNDING_DIGITS: u32 = 6;

/// Whether two answers mean the same.
#[must_use]
pub(super) fn equal(a: &Answer, b: &Answer, budget: &Budget) -> bool {
    if budget.spend(1).is_none() {
        return false;
    }
    match (a, b) {
        (Answer::Scalar(a), Answer::Scalar(b)) => scalars(a, b, budget),
        (Answer::Text(a), Answer::Text(b)) => a == b,
        (Answer::Based(..), Answer::Based(..)) => a == b,
        (Answer::Matrix(a), Answer::Matrix(b)) => {
            a.len() == b.len()
                && a.iter().zip(b).all(|(a, b)| {
                    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| expressions(a, b, budget))
                })
        }
        // A vector as a column or as a tuple.
        (Answer::Matrix(rows), Answer::Bracketed(_, items, _))
        | (Answer::Bracketed(_, items, _), Answer::Matrix(rows)) => {
            let cells: Vec<&Expression> = rows.iter().flatten().collect();
            (rows.len() == 1 || rows[0].len() == 1)
                && cells.len() == items.len()
                && cells.iter().zip(items).all(|(cell, item)| {
                    item.as_expression().is_some_and(|item| expressions(cell, item, budget))
                })
        }
        (Answer::Chain(..), _) | (_, Answer::Chain(..)) => chains(a, b, budget),
        _ => collections(a, b, budget) || regions(a, b, budget),
    }
}

/// Tuples, intervals, sets and lists.
fn collections(a: &Answer, b: &Answer, budget: &Budget) -> bool {
    let in_order =
        |a: &[Answer], b: &[Answer]| a.len() == b.len() && a.iter().zip(b).all(|(a, b)| equal(a, b, budget));
    match (a, b) {
        (Answer::Bracketed(open, a, close), Answer::Bracketed(other_open, b, other_close)) => {
            open == other_open && close == other_close && in_order(a, b)
        }
        // 1, 3 for (1, 3): the order is the answer's.
        (Answer::List(_, list), Answer::Bracketed('(', tuple, '('))
        | (Answer::Bracketed('(', tuple, '('), Answer::List(_, list)) => in_order(list, tuple),
        (Answer::List(_, a) | Answer::Set(a), Answer::List(_, b) | Answer::Set(b)) => {
            in_any_order(a, b, budget)
        }
        // A set of one element is that element.
        (Answer::Set(a), b) | (b, Answer::Set(a)) => matches!(a.as_slice(), [only] if equal(only, b, budget)),
        (Answer::Combined(a, operation, x), Answer::Combined(b, other, y)) if operation == other => {
            equal(a, b, budget) && equal(x, y, budget)
        }
        _ => false,
    }
}

fn in_any_order(a: &[Answer], b: &[Answer], budget: &Budget) -> bool {
    let mut left: Vec<&Answer> = b.iter().collect();
    a.len() == b.len()
        && a.iter().all(|a| {
            let found = left.iter().position(|b| equal(a, b, budget));
            found.map(|at| left.swap_remove(at)).is_some()
        })
}

/// Sets of real numbers in different notations.
fn regions(a: &Answer, b: &Answer, budget: &Budget) -> bool {
    let is_set = |answer: &Answer| !matches!(answer, Answer::Text(_) | Answer::Matrix(_) | Answer::Based(..));
    // Plain brackets against plain brackets were compared above: (1, 2) may be a point.
    let plain =
        |answer: &Answer| matches!(answer, Answer::Bracketed(..) | Answer::Set(_) | Answer::Scalar(_));
    if !is_set(a) || !is_set(b) || plain(a) && plain(b) {
        return false;
    }
    match (Region::of(a, budget), Region::of(b, budget)) {
        (Some((a, x)), Some((b, y))) => (x.is_none() || y.is_none() || x == y) && a.equals(&b),
        _ => false,
    }
}

fn scalars(a: &Scalar, b: &Scalar, budget: &Budget) -> bool {
    if expressions(&a.expression, &b.expression, budget) || rounded(a, b, budget) || rounded(b, a, budget) {
        return true;
    }
    // 50% is 50 where the question asks for percent, and 0.5 where it does not.
    let hundredth = |e: &Expression| {
        Expression::Product(vec![
            Expression::Number(Rational::new(1, 100).unwrap_or_else(Rational::one)),
            e.clone(),
        ])
    };
    match (a.percent, b.percent) {
        (true, false) => expressions(&hundredth(&a.expression), &b.expression, budget),
        (false, true) => expressions(&a.expression, &hundredth(&b.expression), budget),
        _ => false,
    }
}

/// Whether `decimal` is `exact` rounded to its many digits.
fn rounded(decimal: &Scalar, exact: &Scalar, budget: &Budget) -> bool {
    let digits = match (decimal.decimals, exact.decimals) {
        (Some(digits), None) if digits >= ROUNDING_DIGITS => digits,
        _ => return false,
    };
    if !exact.expression.is_constant() {
        return false;
    }
    let point = Point { index: 0, signed: false };
    let value = |e: &Expression| numeric::evaluate(e, &point, budget).filter(|value| value.is_real());
    match (value(&decimal.expression), value(&exact.expression)) {
        // Either rounded or cut off.
        (Some(a), Some(b)) => (a.re - b.re).abs() <= 10f64.powi(-digits.min(15).cast_signed()),
        _ => false,
    }
}

/// Whether two expressions have the same value.
fn expressions(a: &Expression, b: &Expression, budget: &Budget) -> bool {
    if a == b {
        return true;
    }
    let (left, right) = (Polynomial::of(a, budget), Polynomial::of(b, budget));
    if let (Some(left), Some(right)) = (&left, &right) {
        if left == right {
            return true;
        }
        let numbers = left.as_rational().is_some() && right.as_rational().is_some();
        if numbers || left.is_free() && right.is_free() {
            return false;
        }
    }
    !budget.exhausted() && numeric::equal(a, b, budget)
}

/// Equations and inequalities, with each other and with values and sets.
fn chains(a: &Answer, b: &Answer, budget: &Budget) -> bool {
    let (left, right) = (assigned(a), assigned(b));
    match (&left, &right) {
        (Some((name, value)), Some((other, other_value))) => {
            // x = 3 and y = 3 are different lines.
            let variable =
                |e: &Answer| matches!(e.as_expression(), Some(Expression::Variable(n)) if n.len() == 1);
            if variable(name) && variable(other) && name != other {
                return false;
            }
            equal(value, other_value, budget) || equations(a, b, budget)
        }
        (Some((_, value)), None) if !matches!(b, Answer::Chain(..)) => equal(value, b, budget),
        (None, Some((_, value))) if !matches!(a, Answer::Chain(..)) => equal(a, value, budget),
        _ => approximations(a, b, budget) || regions(a, b, budget) || equations(a, b, budget),
    }
}

/// The name and the value of `x = 3`, `f(x) = 2x`, `1/2 + 1/3 = 5/6`; `None` for equations to solve.
fn assigned(answer: &Answer) -> Option<(&Answer, &Answer)> {
    let Answer::Chain(sides, relations) = answer else { return None };
    if relations.iter().any(|relation| *relation != Relation::Equal) {
        return None;
    }
    let (value, names) = sides.split_last()?;
    if let Some(name) = names.iter().find(|side| is_name(side)) {
        return Some((name, value));
    }
    // 3 = x
    if let [number, name] = sides.as_slice() {
        let constant = number.as_expression().is_some_and(Expression::is_constant);
        if constant && matches!(name.as_expression(), Some(Expression::Variable(_))) {
            return Some((name, number));
        }
    }
    // A calculation: its result.
    let constant = |side: &Answer| side.as_expression().is_some_and(Expression::is_constant);
    sides.iter().all(constant).then(|| (&sides[0], value))
}

/// What an equation may assign to: a name, a tuple of names, a text.
fn is_name(answer: &Answer) -> bool {
    match answer {
        Answer::Scalar(scalar) => scalar.expression.is_name(),
        Answer::Bracketed(_, items, _) | Answer::List(_, items) => items.iter().all(is_name),
        Answer::Text(_) => true,
        _ => false,
    }
}

/// `2/3 \approx 0.67` is either of its sides.
fn approximations(a: &Answer, b: &Answer, budget: &Budget) -> bool {
    let sides = |answer: &Answer| match answer {
        Answer::Chain(sides, relations) if relations.contains(&Relation::Approximately) => {
            Some(sides.clone())
        }
        _ => None,
    };
    match (sides(a), sides(b)) {
        (Some(left), None) => left.iter().any(|side| equal(side, b, budget)),
        (None, Some(right)) => right.iter().any(|side| equal(a, side, budget)),
        (Some(left), Some(right)) => left.iter().any(|l| right.iter().any(|r| equal(l, r, budget))),
        (None, None) => false,
    }
}

/// Whether two relations hold for the same values: their differences are multiples of each other.
fn equations(a: &Answer, b: &Answer, budget: &Budget) -> bool {
    let (Answer::Chain(left, relations), Answer::Chain(right, others)) = (a, b) else { return false };
    if relations.len() != others.len() {
        return false;
    }
    if let ([relation], [other]) = (relations.as_slice(), others.as_slice()) {
        let (mut below, mut above) = (difference(left), difference(right));
        // Both as "less than zero".
        let flip = |relation: Relation| matches!(relation, Relation::Greater | Relation::GreaterOrEqual);
        let (mut relation, mut other) = (*relation, *other);
        if flip(relation) {
            (below, relation) = (below.map(Expression::negated), relation.flipped());
        }
        if flip(other) {
            (above, other) = (above.map(Expression::negated), other.flipped());
        }
        let (Some(below), Some(above)) = (below, above) else {
            return relation == other && left.iter().zip(right).all(|(l, r)| equal(l, r, budget));
        };
        let ordered = matches!(relation, Relation::Less | Relation::LessOrEqual);
        return relation == other && multiples(&below, &above, ordered, budget);
    }
    relations == others && left.iter().zip(right).all(|(l, r)| equal(l, r, budget))
}

fn difference(sides: &[Answer]) -> Option<Expression> {
    let [left, right] = sides else { return None };
    Some(left.as_expression()?.clone().minus(right.as_expression()?.clone()))
}

/// Whether one expression is a constant multiple of the other, a positive one where order matters.
fn multiples(a: &Expression, b: &Expression, positive: bool, budget: &Budget) -> bool {
    let scaled = |e: &Expression| Polynomial::of(e, budget)?.scaled(positive);
    if let (Some(left), Some(right)) = (scaled(a), scaled(b)) {
        if left == right {
            return true;
        }
        if left.is_free() && right.is_free() {
            return false;
        }
    }
    let mut ratio: Option<f64> = None;
    for index in 0..5 {
        let point = Point { index, signed: false };
        let values = numeric::evaluate(a, &point, budget).zip(numeric::evaluate(b, &point, budget));
        let Some((a, b)) = values.filter(|(a, b)| a.is_real() && b.is_real()) else { return false };
        if b.re.abs() <= 1e3 * b.error || a.error > 1e-9 * a.re.abs().max(1.0) {
            return false;
        }
        let quotient = a.re / b.re;
        let expected = *ratio.get_or_insert(quotient);
        if (quotient - expected).abs() > 1e-9 * expected.abs() {
            return false;
        }
    }
    ratio.is_some_and(|ratio| ratio != 0.0 && (!positive || ratio > 0.0))
}

/// A normal form: answers that are equal have, but for roundings, equal forms.
#[must_use]
pub(super) fn canonical(answer: &Answer, budget: &Budget) -> String {
    let joined = |items: &[Answer], by: &str| {
        items.iter().map(|item| canonical(item, budget)).collect::<Vec<_>>().join(by)
    };
    match answer {
        Answer::Scalar(scalar) => value(&scalar.expression, budget),
        Answer::Based(digits, base) => format!("{digits}_{base}"),
        Answer::Matrix(rows) => {
            let row =
                |row: &Vec<Expression>| row.iter().map(|e| value(e, budget)).collect::<Vec<_>>().join(", ");
            format!("[{}]", rows.iter().map(row).collect::<Vec<_>>().join("; "))
        }
        Answer::Bracketed(open, items, close) => {
            format!("{open}{}{}", joined(items, ", "), if *close == '(' { ')' } else { ']' })
        }
        Answer::Set(items) | Answer::List(_, items) => {
            let mut items: Vec<String> = items.iter().map(|item| canonical(item, budget)).collect();
            items.sort();
            let (open, close) = if matches!(answer, Answer::Set(_)) { ("{", "}") } else { ("", "") };
            format!("{open}{}{close}", items.join(", "))
        }
        Answer::Combined(left, operation, right) => {
            format!("{} {operation:?} {}", canonical(left, budget), canonical(right, budget))
        }
        Answer::Chain(sides, relations) => match assigned(answer) {
            Some((_, value)) => canonical(value, budget),
            None => {
                let mut text = canonical(&sides[0], budget);
                for (relation, side) in relations.iter().zip(&sides[1..]) {
                    text = format!("{text}{relation}{}", canonical(side, budget));
                }
                text
            }
        },
        Answer::Text(text) => text.clone(),
    }
}

/// The normal form of an expression: exact if it has one, else its value, else as it is written.
fn value(expression: &Expression, budget: &Budget) -> String {
    if let Some(polynomial) = Polynomial::of(expression, budget) {
        return polynomial.to_string();
    }
    let point = Point { index: 0, signed: false };
    match numeric::evaluate(expression, &point, budget) {
        Some(value) if expression.is_constant() && value.is_real() => format!("{:.10e}", value.re),
        Some(value) if expression.is_constant() => format!("{:.10e} + {:.10e}i", value.re, value.im),
        _ => expression.to_string(),
    }
}
