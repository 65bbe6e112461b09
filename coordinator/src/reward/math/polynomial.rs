//! Sums of products of symbols with exact fractional coefficients: the normal form of an expression.
//!
//! Symbols are variables, named numbers, square roots of square-free integers and whole function
//! values, so that `2\sqrt{3}` and `\sqrt{12}`, or `x(x+1)` and `x^2+x`, have one form. Expressions
//! outside of this (nested roots, quotients by sums) have none.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;

use super::expression::{Budget, Constant, Expression};
use super::rational::Rational;

/// Most terms; larger expressions are compared numerically.
const MAX_TERMS: usize = 64;

/// Largest power of a sum.
const MAX_POWER: i128 = 64;

/// What is not a number.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Symbol {
    /// The square root of a square-free integer above 1, or of -1.
    Root(i128),
    /// A variable, a named number or a function's value.
    Name(String),
}

/// Powers of symbols, never 0.
type Monomial = BTreeMap<Symbol, i32>;

/// A sum of monomials with coefficients, never 0.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) struct Polynomial {
    terms: BTreeMap<Monomial, Rational>,
}

impl From<Rational> for Polynomial {
    fn from(value: Rational) -> Self {
        Self::term(Monomial::new(), value)
    }
}

impl Polynomial {
    /// The normal form of an expression, if it has one.
    #[must_use]
    pub(super) fn of(expression: &Expression, budget: &Budget) -> Option<Self> {
        budget.spend(1)?;
        let inner = |e: &Expression| Self::of(e, budget);
        match expression {
            Expression::Number(value) => Some(value.clone().into()),
            Expression::Constant(Constant::I) => Some(Self::symbol(Symbol::Root(-1))),
            Expression::Constant(_) => Some(Self::name(&expression.to_string())),
            Expression::Variable(name) => Some(Self::name(name)),
            Expression::Sum(parts) => {
                let mut sum = Self::default();
                for part in parts {
                    sum.add(&inner(part)?, budget)?;
                }
                Some(sum)
            }
            Expression::Product(parts) => {
                let mut product = Self::from(Rational::one());
                for part in parts {
                    product = product.mul(&inner(part)?, budget)?;
                }
                Some(product)
            }
            Expression::Quotient(a, b) => inner(a)?.div(&inner(b)?, budget),
            Expression::Power(base, exponent) => {
                let exponent = inner(exponent)?.as_rational()?;
                inner(base)?.pow(&exponent, budget)
            }
            Expression::Root(2, inside) => inner(inside)?.sqrt(budget),
            Expression::Root(..) => None,
            Expression::Degrees(inside) => inner(inside),
            Expression::Function(name, arguments) => {
                let arguments: Option<Vec<Self>> = arguments.iter().map(inner).collect();
                let arguments = arguments?;
                if let Some(value) = exact_function(name, &arguments) {
                    return Some(value.into());
                }
                let arguments: Vec<String> = arguments.iter().map(ToString::to_string).collect();
                Some(Self::name(&format!("{name}({})", arguments.join(","))))
            }
        }
    }

    /// A variable or a named number.
    #[must_use]
    pub(super) fn name(name: &str) -> Self {
        Self::symbol(Symbol::Name(name.to_owned()))
    }

    fn symbol(symbol: Symbol) -> Self {
        Self::term(Monomial::from([(symbol, 1)]), Rational::one())
    }

    fn term(monomial: Monomial, coefficient: Rational) -> Self {
        let mut terms = BTreeMap::new();
        if !coefficient.is_zero() {
            terms.insert(monomial, coefficient);
        }
        Self { terms }
    }

    /// The value if it is a plain number.
    #[must_use]
    pub(super) fn as_rational(&self) -> Option<Rational> {
        match self.terms.len() {
            0 => Some(Rational::zero()),
            1 => self.terms.get(&Monomial::new()).cloned(),
            _ => None,
        }
    }

    /// Whether its symbols are free variables, so that two different ones have different values.
    #[must_use]
    pub(super) fn is_free(&self) -> bool {
        let free = |symbol: &Symbol| matches!(symbol, Symbol::Name(name) if !name.contains('(') && name != "pi" && name != "e");
        self.terms.keys().all(|monomial| monomial.keys().all(free))
    }

    /// `a name + b` as `(name, a, b)`.
    #[must_use]
    pub(super) fn as_linear(&self) -> Option<(&str, Rational, Rational)> {
        let mut constant = Rational::zero();
        let mut found = None;
        for (monomial, coefficient) in &self.terms {
            let mut symbols = monomial.iter();
            match (symbols.next(), symbols.next()) {
                (None, _) => constant = coefficient.clone(),
                (Some((Symbol::Name(name), 1)), None) if found.is_none() => {
                    found = Some((name.as_str(), coefficient.clone()));
                }
                _ => return None,
            }
        }
        found.map(|(name, slope)| (name, slope, constant))
    }

    /// The factor that makes the first coefficient 1 or, keeping the sign, 1 or -1.
    #[must_use]
    pub(super) fn scaled(&self, keep_sign: bool) -> Option<Self> {
        let first = self.terms.values().next_back()?;
        let scale = Rational::one().checked_div(&if keep_sign { first.abs() } else { first.clone() })?;
        let mut terms = BTreeMap::new();
        for (monomial, coefficient) in &self.terms {
            terms.insert(monomial.clone(), coefficient.checked_mul(&scale)?);
        }
        Some(Self { terms })
    }

    fn add(&mut self, other: &Self, budget: &Budget) -> Option<()> {
        budget.spend(other.terms.len())?;
        for (monomial, coefficient) in &other.terms {
            self.add_term(monomial.clone(), coefficient.clone())?;
        }
        (self.terms.len() <= MAX_TERMS).then_some(())
    }

    fn add_term(&mut self, monomial: Monomial, coefficient: Rational) -> Option<()> {
        match self.terms.entry(monomial) {
            Entry::Vacant(entry) if !coefficient.is_zero() => {
                entry.insert(coefficient);
            }
            Entry::Vacant(_) => {}
            Entry::Occupied(mut entry) => {
                let sum = entry.get().checked_add(&coefficient)?;
                if sum.is_zero() {
                    entry.remove();
                } else {
                    entry.insert(sum);
                }
            }
        }
        Some(())
    }

    fn mul(&self, other: &Self, budget: &Budget) -> Option<Self> {
        budget.spend(self.terms.len() * other.terms.len())?;
        let mut product = Self::default();
        for (left, a) in &self.terms {
            for (right, b) in &other.terms {
                let (monomial, factor) = multiply(left, right, budget)?;
                let coefficient = a.checked_mul(b)?.checked_mul(&factor)?;
                product.add_term(monomial, coefficient)?;
            }
            if product.terms.len() > MAX_TERMS {
                return None;
            }
        }
        Some(product)
    }

    /// Quotient by a single term.
    fn div(&self, other: &Self, budget: &Budget) -> Option<Self> {
        let mut terms = other.terms.iter();
        let (monomial, coefficient) = terms.next()?;
        if terms.next().is_some() {
            return None;
        }
        let inverse = monomial.iter().map(|(symbol, power)| (symbol.clone(), -power)).collect();
        // Roots in a denominator come back above the line when the product is put in order.
        let inverse = Self::term(inverse, Rational::one().checked_div(coefficient)?);
        self.mul(&inverse, budget)
    }

    /// A power; the exponent must be a whole number, or a half of one for the power of a number.
    fn pow(&self, exponent: &Rational, budget: &Budget) -> Option<Self> {
        let (above, below) = exponent.parts()?;
        if below == 2 {
            return self.sqrt(budget)?.pow(&Rational::from(above), budget);
        }
        if below != 1 {
            return None;
        }
        if let Some(base) = self.as_rational() {
            return Some(base.pow(above)?.into());
        }
        if above.abs() > MAX_POWER {
            return None;
        }
        let one = Self::from(Rational::one());
        let base = if above < 0 { one.div(self, budget)? } else { self.clone() };
        (0..above.abs()).try_fold(one, |product, _| product.mul(&base, budget))
    }

    /// The square root of a number.
    fn sqrt(&self, budget: &Budget) -> Option<Self> {
        let (above, below) = self.as_rational()?.parts()?;
        // sqrt(a / b) = sqrt(a b) / b
        let inside = above.checked_mul(below)?;
        let (outside, free) = square_free(inside.unsigned_abs(), budget)?;
        let mut root = Self::from(Rational::new(outside, below)?);
        if free > 1 {
            root = root.mul(&Self::symbol(Symbol::Root(free)), budget)?;
        }
        if inside < 0 {
            root = root.mul(&Self::symbol(Symbol::Root(-1)), budget)?;
        }
        Some(root)
    }
}

/// The value of a function of plain numbers that has an exact one.
fn exact_function(name: &str, arguments: &[Polynomial]) -> Option<Rational> {
    let x = arguments.first()?.as_rational()?;
    match name {
        "factorial" => x.factorial(),
        "abs" => Some(x.abs()),
        "floor" => Some(x.floor()),
        "ceil" => Some(-&(-&x).floor()),
        "binom" => {
            let (n, k) = (x.to_integer()?, arguments.get(1)?.as_rational()?.to_integer()?);
            if !(0..=300).contains(&n) || !(0..=n).contains(&k) {
                return None;
            }
            let below = Rational::from(k).factorial()?.checked_mul(&Rational::from(n - k).factorial()?)?;
            x.factorial()?.checked_div(&below)
        }
        _ => None,
    }
}

/// A product of monomials; squares of roots become numbers.
fn multiply(left: &Monomial, right: &Monomial, budget: &Budget) -> Option<(Monomial, Rational)> {
    let mut product = left.clone();
    for (symbol, power) in right {
        *product.entry(symbol.clone()).or_default() += power;
    }
    let mut factor = Rational::one();
    let mut roots = 1i128;
    let mut ordered = Monomial::new();
    for (symbol, power) in product {
        match symbol {
            // root^power = inside^(power div 2) * root^(power mod 2)
            Symbol::Root(inside) => {
                factor = factor.checked_mul(&Rational::from(inside).pow(power.div_euclid(2).into())?)?;
                if power.rem_euclid(2) == 1 && inside > 0 {
                    roots = roots.checked_mul(inside)?;
                } else if power.rem_euclid(2) == 1 {
                    ordered.insert(Symbol::Root(inside), 1);
                }
            }
            Symbol::Name(_) if power == 0 => {}
            Symbol::Name(_) if i128::from(power.abs()) > 10_000 => return None,
            Symbol::Name(_) => {
                ordered.insert(symbol, power);
            }
        }
    }
    if roots == 1 {
        return Some((ordered, factor));
    }
    let (outside, free) = square_free(roots.unsigned_abs(), budget)?;
    if free > 1 {
        ordered.insert(Symbol::Root(free), 1);
    }
    Some((ordered, factor.checked_mul(&Rational::from(outside))?))
}

/// `n = outside^2 * free` with a square-free second part; `None` for numbers too large to factor.
fn square_free(n: u128, budget: &Budget) -> Option<(i128, i128)> {
    let n = u64::try_from(n).ok().filter(|n| *n <= 1_000_000_000_000)?;
    if n == 0 {
        return Some((0, 1));
    }
    let (mut outside, mut free, mut rest, mut divisor) = (1u64, 1u64, n, 2u64);
    // Beyond the cube root at most two primes are left: a square, or nothing more to take out.
    while divisor * divisor * divisor <= rest {
        let mut power = 0;
        while rest.is_multiple_of(divisor) {
            rest /= divisor;
            power += 1;
        }
        outside *= divisor.pow(power / 2);
        free *= divisor.pow(power % 2);
        divisor += 1;
    }
    budget.spend(usize::try_from(divisor / 16).unwrap_or(usize::MAX))?;
    let root = rest.isqrt();
    if root * root == rest {
        outside *= root;
    } else {
        free *= rest;
    }
    Some((outside.into(), free.into()))
}

impl fmt::Display for Polynomial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.terms.is_empty() {
            return f.write_str("0");
        }
        for (at, (monomial, coefficient)) in self.terms.iter().rev().enumerate() {
            let size = coefficient.abs();
            f.write_str(match (at, coefficient.is_negative()) {
                (0, true) => "-",
                (0, false) => "",
                (_, true) => " - ",
                (_, false) => " + ",
            })?;
            if monomial.is_empty() || size != Rational::one() {
                write!(f, "{size}{}", if monomial.is_empty() { "" } else { "*" })?;
            }
            for (index, (symbol, power)) in monomial.iter().enumerate() {
                f.write_str(if index == 0 { "" } else { "*" })?;
                match symbol {
                    Symbol::Root(-1) => f.write_str("i")?,
                    Symbol::Root(inside) => write!(f, "sqrt({inside})")?,
                    Symbol::Name(name) => f.write_str(name)?,
                }
                if *power != 1 {
                    write!(f, "^{power}")?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::parser::expression;
    use super::*;

    fn form(text: &str) -> Option<String> {
        Polynomial::of(&expression(text).unwrap(), &Budget::new()).map(|p| p.to_string())
    }

    #[test]
    fn one_form_for_equal_expressions() {
        for (text, expected) in [
            ("\\sqrt{12}", "2*sqrt(3)"),
            ("\\frac{1}{\\sqrt{2}}", "1/2*sqrt(2)"),
            ("(x+1)^2", "x^2 + 2*x + 1"),
            ("x(x-1)", "x^2 - x"),
            ("\\sqrt{-4}", "2*i"),
            ("i^2", "-1"),
            ("\\sqrt{8}\\sqrt{27}", "6*sqrt(6)"),
            ("F_k F_{n-k-1}", "F_k*F_n-k-1"),
            ("4^{3/2}", "8"),
            ("5!", "120"),
            ("\\lceil 7/2 \\rceil", "4"),
            ("0", "0"),
        ] {
            assert_eq!(form(text).as_deref(), Some(expected), "{text}");
        }
        assert_eq!(form("\\frac{1}{x+1}"), None);
    }

    #[test]
    fn squares_come_out_of_every_number() {
        for n in 1..5_000u128 {
            let (outside, free) = square_free(n, &Budget::new()).unwrap();
            assert_eq!((outside * outside * free) as u128, n);
            assert!((2..80).all(|d| free % (d * d) != 0), "{n} = {outside}^2 * {free}");
        }
        // 999983 is prime.
        let budget = Budget::new();
        assert_eq!(square_free(999_983 * 999_983, &budget), Some((999_983, 1)));
        assert_eq!(square_free(2 * 353_797 * 353_797, &budget), Some((353_797, 2)));
        assert_eq!(square_free(10u128.pow(15), &budget), None);
    }
}
