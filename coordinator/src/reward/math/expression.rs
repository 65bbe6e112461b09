//! Expressions: what an answer's value is made of.
//!
//! `parser` builds them, `polynomial` gives the exact ones a normal form, `numeric` evaluates all.

use std::cell::Cell;
use std::fmt;

use super::rational::Rational;

/// What a comparison may still cost. Every loop over input of the response's choosing spends from it;
/// when nothing is left, operations have no result and answers are not equal.
#[derive(Debug)]
pub(super) struct Budget(Cell<u32>);

impl Default for Budget {
    fn default() -> Self {
        Self(Cell::new(Self::STEPS))
    }
}

impl Budget {
    /// About 20 ms of work; an ordinary comparison needs a thousandth of it.
    const STEPS: u32 = 30_000;

    /// Enough for one comparison.
    #[must_use]
    pub(super) fn new() -> Self {
        Self::default()
    }

    /// Takes `steps`, or nothing is left.
    pub(super) fn spend(&self, steps: usize) -> Option<()> {
        let left = u32::try_from(steps).ok().and_then(|steps| self.0.get().checked_sub(steps));
        self.0.set(left.unwrap_or(0));
        left.map(|_| ())
    }

    /// Whether everything is spent.
    #[must_use]
    pub(super) fn exhausted(&self) -> bool {
        self.0.get() == 0
    }
}

/// A number without name among the letters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Constant {
    /// The circle's.
    Pi,
    /// Euler's.
    E,
    /// The square root of -1.
    I,
    /// Larger than any number.
    Infinity,
}

/// An expression.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Expression {
    /// An exact number.
    Number(Rational),
    /// A named number.
    Constant(Constant),
    /// A variable.
    Variable(String),
    /// `a + b + ...`
    Sum(Vec<Expression>),
    /// `a b ...`
    Product(Vec<Expression>),
    /// `a / b`
    Quotient(Box<Expression>, Box<Expression>),
    /// `a ^ b`
    Power(Box<Expression>, Box<Expression>),
    /// The degree and what stands under the root.
    Root(u32, Box<Expression>),
    /// An angle in degrees.
    Degrees(Box<Expression>),
    /// A function of arguments; functions without known values are only equal to themselves.
    Function(String, Vec<Expression>),
}

impl Expression {
    /// A whole number.
    #[must_use]
    pub(super) fn integer(n: i128) -> Self {
        Self::Number(Rational::from(n))
    }

    /// The negative.
    #[must_use]
    pub(super) fn negated(self) -> Self {
        match self {
            Self::Number(value) => Self::Number(-&value),
            other => Self::Product(vec![Self::integer(-1), other]),
        }
    }

    /// Difference.
    #[must_use]
    pub(super) fn minus(self, other: Self) -> Self {
        Self::Sum(vec![self, other.negated()])
    }

    /// The value of a plain number.
    #[must_use]
    pub(super) fn as_number(&self) -> Option<&Rational> {
        match self {
            Self::Number(value) => Some(value),
            Self::Degrees(inside) => inside.as_number(),
            _ => None,
        }
    }

    /// Whether no variable and no unknown function stands in it.
    #[must_use]
    pub(super) fn is_constant(&self) -> bool {
        match self {
            Self::Number(_) | Self::Constant(_) => true,
            Self::Variable(_) => false,
            Self::Sum(parts) | Self::Product(parts) => parts.iter().all(Self::is_constant),
            Self::Quotient(a, b) | Self::Power(a, b) => a.is_constant() && b.is_constant(),
            Self::Root(_, inside) | Self::Degrees(inside) => inside.is_constant(),
            Self::Function(name, arguments) => {
                super::numeric::is_known(name) && arguments.iter().all(Self::is_constant)
            }
        }
    }

    /// Whether it names a quantity: a variable, a function's value, a product or ratio of such. The
    /// left side of `x = 3`, `f(x) = 2x` or `AB = 5`, unlike that of `x + y = 3`.
    #[must_use]
    pub(super) fn is_name(&self) -> bool {
        match self {
            Self::Variable(_) => true,
            Self::Function(_, arguments) => !arguments.iter().all(Self::is_constant),
            Self::Product(parts) => parts.iter().all(Self::is_name_or_constant),
            Self::Quotient(a, b) => a.is_name() && b.is_name(),
            _ => false,
        }
    }

    /// Letters such as e and i are names in AB = 5 or e = 3.
    fn is_name_or_constant(&self) -> bool {
        self.is_name() || matches!(self, Self::Constant(Constant::E | Constant::I))
    }

    /// The number of its parts.
    #[must_use]
    pub(super) fn size(&self) -> usize {
        1 + match self {
            Self::Number(_) | Self::Constant(_) | Self::Variable(_) => 0,
            Self::Sum(parts) | Self::Product(parts) | Self::Function(_, parts) => {
                parts.iter().map(Self::size).sum()
            }
            Self::Quotient(a, b) | Self::Power(a, b) => a.size() + b.size(),
            Self::Root(_, inside) | Self::Degrees(inside) => inside.size(),
        }
    }
}

impl fmt::Display for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let joined = |f: &mut fmt::Formatter<'_>, parts: &[Self], by: &str| {
            for (at, part) in parts.iter().enumerate() {
                write!(f, "{}{part}", if at == 0 { "" } else { by })?;
            }
            Ok(())
        };
        match self {
            Self::Number(value) => write!(f, "{value}"),
            Self::Constant(Constant::Pi) => f.write_str("pi"),
            Self::Constant(Constant::E) => f.write_str("e"),
            Self::Constant(Constant::I) => f.write_str("i"),
            Self::Constant(Constant::Infinity) => f.write_str("infinity"),
            Self::Variable(name) => f.write_str(name),
            Self::Sum(parts) => {
                f.write_str("(")?;
                joined(f, parts, "+")?;
                f.write_str(")")
            }
            Self::Product(parts) => joined(f, parts, "*"),
            Self::Quotient(a, b) => write!(f, "({a})/({b})"),
            Self::Power(a, b) => write!(f, "({a})^({b})"),
            Self::Root(degree, inside) => write!(f, "root{degree}({inside})"),
            Self::Degrees(inside) => write!(f, "{inside}"),
            Self::Function(name, arguments) => {
                write!(f, "{name}(")?;
                joined(f, arguments, ",")?;
                f.write_str(")")
            }
        }
    }
}
