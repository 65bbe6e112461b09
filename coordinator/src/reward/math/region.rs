//! Sets of real numbers: intervals, points, what unions, differences and inequalities make of them.
//!
//! `(-\infty,2)\cup(2,\infty)`, `x \ne 2` and `\mathbb{R}\setminus\{2\}` are one set. Ends are doubles;
//! sets whose ends hold variables are none of these and are compared by their notation.

use super::answer::{Answer, Joined, Relation, SetOperation};
use super::expression::{Budget, Constant, Expression};
use super::numeric::{self, Point};
use super::polynomial::Polynomial;

/// Ends closer than this, in relation to their size, are the same.
const TOLERANCE: f64 = 1e-9;

/// Most intervals of a set.
const MAX_INTERVALS: usize = 200;

/// All numbers between two ends.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Interval {
    low: f64,
    high: f64,
    low_closed: bool,
    high_closed: bool,
}

/// A set of real numbers: intervals in order, with gaps between them.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Region {
    intervals: Vec<Interval>,
}

fn same(a: f64, b: f64) -> bool {
    a == b || a.is_finite() && b.is_finite() && (a - b).abs() <= TOLERANCE * a.abs().max(b.abs()).max(1e-3)
}

impl Region {
    /// The set that an answer describes, and the variable it speaks of, if any.
    #[must_use]
    pub(super) fn of(answer: &Answer, budget: &Budget) -> Option<(Self, Option<String>)> {
        budget.spend(20)?;
        match answer {
            Answer::Bracketed(open, items, close) => {
                let [low, high] = items.as_slice() else { return None };
                let (low, high) = (end(low, budget)?, end(high, budget)?);
                let interval = Interval { low, high, low_closed: *open == '[', high_closed: *close == '[' };
                (low < high || low == high && *open == '[' && *close == '[').then_some(())?;
                Some((Self { intervals: vec![interval] }, None))
            }
            Answer::Set(items) => {
                let points = items.iter().map(|item| Some(Self::point(end(item, budget)?)));
                let points: Option<Vec<Self>> = points.collect();
                Some((points?.into_iter().fold(Self::default(), |all, point| all.union(&point)), None))
            }
            Answer::Scalar(scalar) => match &scalar.expression {
                Expression::Variable(name) if name == "R" => Some((Self::all(), None)),
                _ => None,
            },
            Answer::Combined(left, operation, right) => {
                let (left, right) = (Self::of(left, budget)?.0, Self::of(right, budget)?.0);
                let set = match operation {
                    SetOperation::Union => left.union(&right),
                    SetOperation::Intersection => left.intersection(&right),
                    SetOperation::Difference => left.intersection(&right.complement()),
                };
                (set.intervals.len() <= MAX_INTERVALS).then_some((set, None))
            }
            Answer::Chain(sides, relations) => Self::of_chain(sides, relations, budget),
            Answer::List(joined, items) => {
                let mut regions = items.iter().map(|item| match item {
                    Answer::Chain(..) => Self::of(item, budget),
                    _ => None,
                });
                let (mut all, name) = regions.next()??;
                for region in regions {
                    let (region, other) = region?;
                    if other != name {
                        return None;
                    }
                    // Several ranges without a word are all meant: x < -1, x > 2.
                    let meet = all.intersection(&region);
                    let both = *joined == Joined::All && !meet.intervals.is_empty();
                    all = if both { meet } else { all.union(&region) };
                }
                Some((all, name))
            }
            _ => None,
        }
    }

    /// Whether two sets are the same.
    #[must_use]
    pub(super) fn equals(&self, other: &Self) -> bool {
        let end =
            |a: f64, b: f64, closed: (bool, bool)| same(a, b) && (a.is_infinite() || closed.0 == closed.1);
        self.intervals.len() == other.intervals.len()
            && self.intervals.iter().zip(&other.intervals).all(|(a, b)| {
                end(a.low, b.low, (a.low_closed, b.low_closed))
                    && end(a.high, b.high, (a.high_closed, b.high_closed))
            })
    }

    fn all() -> Self {
        Self::interval(f64::NEG_INFINITY, f64::INFINITY, false, false)
    }

    fn interval(low: f64, high: f64, low_closed: bool, high_closed: bool) -> Self {
        Self { intervals: vec![Interval { low, high, low_closed, high_closed }] }
    }

    fn point(at: f64) -> Self {
        Self::interval(at, at, true, true)
    }

    fn union(&self, other: &Self) -> Self {
        let mut intervals: Vec<Interval> = self.intervals.iter().chain(&other.intervals).copied().collect();
        intervals.sort_by(|a, b| a.low.total_cmp(&b.low).then(b.low_closed.cmp(&a.low_closed)));
        let mut merged: Vec<Interval> = Vec::with_capacity(intervals.len());
        for next in intervals {
            match merged.last_mut() {
                Some(last)
                    if next.low < last.high
                        || same(next.low, last.high) && (next.low_closed || last.high_closed) =>
                {
                    last.low_closed |= next.low_closed && same(next.low, last.low);
                    if same(next.high, last.high) {
                        last.high_closed |= next.high_closed;
                    } else if next.high > last.high {
                        (last.high, last.high_closed) = (next.high, next.high_closed);
                    }
                }
                _ => merged.push(next),
            }
        }
        Self { intervals: merged }
    }

    fn complement(&self) -> Self {
        let mut gaps = Vec::with_capacity(self.intervals.len() + 1);
        let (mut low, mut low_closed) = (f64::NEG_INFINITY, false);
        for interval in &self.intervals {
            let gap = Interval { low, high: interval.low, low_closed, high_closed: !interval.low_closed };
            let point = same(gap.low, gap.high) && gap.low_closed && gap.high_closed;
            if gap.low < gap.high && !same(gap.low, gap.high) || point {
                gaps.push(gap);
            }
            (low, low_closed) = (interval.high, !interval.high_closed);
        }
        if low < f64::INFINITY {
            gaps.push(Interval { low, high: f64::INFINITY, low_closed, high_closed: false });
        }
        Self { intervals: gaps }
    }

    fn intersection(&self, other: &Self) -> Self {
        self.complement().union(&other.complement()).complement()
    }

    fn negated(&self) -> Self {
        let flip = |i: &Interval| Interval {
            low: -i.high,
            high: -i.low,
            low_closed: i.high_closed,
            high_closed: i.low_closed,
        };
        Self { intervals: self.intervals.iter().rev().map(flip).collect() }
    }

    /// `a < x \le b`, `x \in S`, `|x| < 3`: one quantity, related to constants.
    fn of_chain(sides: &[Answer], relations: &[Relation], budget: &Budget) -> Option<(Self, Option<String>)> {
        if let ([variable, set], [Relation::In]) = (sides, relations) {
            let name = variable.as_expression()?.to_string();
            return Some((Self::of(set, budget)?.0, Some(name)));
        }
        let mut region = Self::all();
        let mut quantity: Option<String> = None;
        for (pair, relation) in sides.windows(2).zip(relations) {
            let left = pair[0].as_expression()?;
            let right = pair[1].as_expression()?;
            let difference = Polynomial::of(&left.clone().minus(right.clone()), budget);
            let (name, at, relation) = match difference.as_ref().and_then(Polynomial::as_linear) {
                // slope name + constant R 0
                Some((name, slope, constant)) => {
                    let at = -(constant.to_f64() / slope.to_f64());
                    let relation = if slope.is_negative() { relation.flipped() } else { *relation };
                    (name.to_owned(), at, relation)
                }
                // name R constant, where the constant is no fraction.
                None if left.is_name() => (left.to_string(), value(right, budget)?, *relation),
                None if right.is_name() => (right.to_string(), value(left, budget)?, relation.flipped()),
                None => return None,
            };
            if quantity.get_or_insert_with(|| name.clone()) != &name {
                return None;
            }
            let (low, high) = (f64::NEG_INFINITY, f64::INFINITY);
            let part = match relation {
                Relation::Less => Self::interval(low, at, false, false),
                Relation::LessOrEqual => Self::interval(low, at, false, true),
                Relation::Greater => Self::interval(at, high, false, false),
                Relation::GreaterOrEqual => Self::interval(at, high, true, false),
                Relation::NotEqual => Self::point(at).complement(),
                Relation::Equal => Self::point(at),
                Relation::In | Relation::Approximately => return None,
            };
            region = region.intersection(&part);
        }
        let quantity = quantity?;
        // |x| in S: x in S or -x in S, where S is not below 0.
        if let Some(inside) = quantity.strip_prefix("abs(").and_then(|rest| rest.strip_suffix(')')) {
            let above = region.intersection(&Self::interval(0.0, f64::INFINITY, true, false));
            return Some((above.union(&above.negated()), Some(inside.to_owned())));
        }
        Some((region, Some(quantity)))
    }
}

/// The value of a constant expression, infinity included.
fn value(expression: &Expression, budget: &Budget) -> Option<f64> {
    match expression {
        Expression::Constant(Constant::Infinity) => Some(f64::INFINITY),
        Expression::Sum(parts) if parts.len() == 1 => value(&parts[0], budget),
        Expression::Product(parts) => match parts.as_slice() {
            [Expression::Number(n), Expression::Constant(Constant::Infinity)] => {
                Some(if n.is_negative() { f64::NEG_INFINITY } else { f64::INFINITY })
            }
            _ => finite(expression, budget),
        },
        _ => finite(expression, budget),
    }
}

fn finite(expression: &Expression, budget: &Budget) -> Option<f64> {
    if !expression.is_constant() {
        return None;
    }
    let value = numeric::evaluate(expression, &Point { index: 0, signed: false }, budget)?;
    value.is_real().then_some(value.re)
}

fn end(answer: &Answer, budget: &Budget) -> Option<f64> {
    value(answer.as_expression()?, budget)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(text: &str) -> Region {
        Region::of(&Answer::parse(text), &Budget::new()).unwrap_or_else(|| panic!("{text}")).0
    }

    #[test]
    fn notations_of_one_set() {
        for (a, b) in [
            ("(-\\infty,2)\\cup(2,\\infty)", "\\mathbb{R}\\setminus\\{2\\}"),
            ("x \\ne 2", "\\mathbb{R}\\setminus\\{2\\}"),
            ("1\\le x<3", "[1,3)"),
            ("3 > x \\ge 1", "[1,3)"),
            ("|x| \\le 2", "[-2,2]"),
            ("|x| > 1", "(-\\infty,-1)\\cup(1,\\infty)"),
            ("x<-1 \\text{ or } x>2", "(-\\infty,-1)\\cup(2,\\infty)"),
            ("x>-1 \\text{ and } x<2", "(-1,2)"),
            ("-2x \\le 4", "[-2,\\infty)"),
            ("[0,1]\\cup[1,2]", "[0,2]"),
            ("[0,2)\\cap(1,3]", "(1,2)"),
            ("x \\in (0, \\sqrt{2}]", "0 < x \\le \\sqrt2"),
            ("\\{1\\}\\cup[2,3]", "[2,3]\\cup\\{1\\}"),
        ] {
            assert!(region(a).equals(&region(b)), "{a} and {b}");
        }
    }

    #[test]
    fn different_sets() {
        for (a, b) in [
            ("[0,1)", "[0,1]"),
            ("(0,1)\\cup(1,2)", "(0,2)"),
            ("x>1", "x\\ge1"),
            ("x>1", "x>-1"),
            ("x>1", "x<1"),
            ("\\{1\\}\\cup[2,3]", "[2,3]"),
        ] {
            assert!(!region(a).equals(&region(b)), "{a} and {b}");
        }
        for text in ["(2,1)", "(a,b)", "x + y > 2", "(1,2,3)"] {
            assert!(Region::of(&Answer::parse(text), &Budget::new()).is_none(), "{text}");
        }
    }
}
