//! Sums of products of symbols with exact fractional coefficients: the value of an answer.
//!
//! Symbols are variables, pi and square roots of square-free integers, so that `2\sqrt{3}` and
//! `\sqrt{12}`, or `x(x+1)` and `x^2+x`, have one form.

use std::collections::BTreeMap;
use std::fmt;

use super::rational::Rational;

/// Most terms a value may have; larger ones are compared as text.
const MAX_TERMS: usize = 64;

/// Largest power.
const MAX_POWER: i128 = 64;

/// What is not a number.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Symbol {
    /// The square root of a square-free integer above 1, or of -1.
    Root(i128),
    /// A variable or a named constant.
    Name(String),
}

/// Powers of symbols, never 0.
type Monomial = BTreeMap<Symbol, i32>;

/// A sum of monomials with coefficients, never 0.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Polynomial {
    terms: BTreeMap<Monomial, Rational>,
}

impl From<Rational> for Polynomial {
    fn from(value: Rational) -> Self {
        Self::term(Monomial::new(), value)
    }
}

impl Polynomial {
    /// A variable or a named constant.
    #[must_use]
    pub fn name(name: &str) -> Self {
        Self::term(Monomial::from([(Symbol::Name(name.to_owned()), 1)]), Rational::from(1))
    }

    fn term(monomial: Monomial, coefficient: Rational) -> Self {
        let mut terms = BTreeMap::new();
        if coefficient != Rational::from(0) {
            terms.insert(monomial, coefficient);
        }
        Self { terms }
    }

    /// The value if it is a plain number.
    #[must_use]
    pub fn as_rational(&self) -> Option<Rational> {
        match self.terms.len() {
            0 => Some(Rational::from(0)),
            1 => self.terms.get(&Monomial::new()).copied(),
            _ => None,
        }
    }

    /// Sum.
    #[must_use]
    pub fn add(&self, other: &Self) -> Option<Self> {
        let mut sum = self.clone();
        for (monomial, coefficient) in &other.terms {
            let zero = Rational::from(0);
            let value = sum.terms.get(monomial).copied().unwrap_or(zero).checked_add(*coefficient)?;
            if value == zero {
                sum.terms.remove(monomial);
            } else {
                sum.terms.insert(monomial.clone(), value);
            }
        }
        (sum.terms.len() <= MAX_TERMS).then_some(sum)
    }

    /// Negation.
    #[must_use]
    pub fn neg(&self) -> Self {
        Self { terms: self.terms.iter().map(|(m, c)| (m.clone(), -*c)).collect() }
    }

    /// Product.
    #[must_use]
    pub fn mul(&self, other: &Self) -> Option<Self> {
        let mut product = Self::default();
        for (left, a) in &self.terms {
            for (right, b) in &other.terms {
                let (monomial, factor) = multiply(left, right)?;
                product = product.add(&Self::term(monomial, a.checked_mul(*b)?.checked_mul(factor)?))?;
            }
        }
        Some(product)
    }

    /// Quotient by a single term.
    #[must_use]
    pub fn div(&self, other: &Self) -> Option<Self> {
        let mut terms = other.terms.iter();
        let (monomial, coefficient) = terms.next()?;
        if terms.next().is_some() {
            return None;
        }
        let inverse = monomial.iter().map(|(symbol, power)| (symbol.clone(), -power)).collect();
        // Roots in a denominator come back above the line when the product is put in order.
        let inverse = Self::term(inverse, Rational::from(1).checked_div(*coefficient)?);
        self.mul(&inverse)
    }

    /// A power; the exponent must be a small integer, or a half of a number.
    #[must_use]
    pub fn pow(&self, exponent: &Self) -> Option<Self> {
        let exponent = exponent.as_rational()?;
        if exponent == Rational::new(1, 2)? {
            return self.sqrt();
        }
        if exponent.denominator() != 1 || exponent.numerator().abs() > MAX_POWER {
            return None;
        }
        if let Some(base) = self.as_rational() {
            return Some(base.pow(exponent.numerator())?.into());
        }
        let one = Self::from(Rational::from(1));
        let base = if exponent.numerator() < 0 { one.div(self)? } else { self.clone() };
        (0..exponent.numerator().abs()).try_fold(one, |product, _| product.mul(&base))
    }

    /// The square root of a number.
    #[must_use]
    pub fn sqrt(&self) -> Option<Self> {
        let value = self.as_rational()?;
        // sqrt(a / b) = sqrt(a b) / b
        let inside = value.numerator().checked_mul(value.denominator())?;
        let (outside, free) = square_free(inside.abs())?;
        let mut root = Self::from(Rational::new(outside, value.denominator())?);
        if free > 1 {
            root = root.mul(&Self::term(Monomial::from([(Symbol::Root(free), 1)]), Rational::from(1)))?;
        }
        if inside < 0 {
            root = root.mul(&Self::term(Monomial::from([(Symbol::Root(-1), 1)]), Rational::from(1)))?;
        }
        Some(root)
    }
}

/// A product of monomials; squares of roots become numbers.
fn multiply(left: &Monomial, right: &Monomial) -> Option<(Monomial, Rational)> {
    let mut product = left.clone();
    for (symbol, power) in right {
        *product.entry(symbol.clone()).or_default() += power;
    }
    let mut factor = Rational::from(1);
    let mut roots = 1i128;
    let mut ordered = Monomial::new();
    for (symbol, power) in product {
        match symbol {
            // root^power = inside^(power div 2) * root^(power mod 2)
            Symbol::Root(inside) => {
                factor = factor.checked_mul(Rational::from(inside).pow(power.div_euclid(2).into())?)?;
                if power.rem_euclid(2) == 1 && inside > 0 {
                    roots = roots.checked_mul(inside)?;
                } else if power.rem_euclid(2) == 1 {
                    ordered.insert(Symbol::Root(inside), 1);
                }
            }
            Symbol::Name(_) if power == 0 => {}
            Symbol::Name(_) if i128::from(power.abs()) > MAX_POWER => return None,
            Symbol::Name(_) => {
                ordered.insert(symbol, power);
            }
        }
    }
    let (outside, free) = square_free(roots)?;
    if free > 1 {
        ordered.insert(Symbol::Root(free), 1);
    }
    Some((ordered, factor.checked_mul(Rational::from(outside))?))
}

/// `n = outside^2 * free` with a square-free second part; `None` for numbers too large to factor.
fn square_free(n: i128) -> Option<(i128, i128)> {
    if !(0..=1_000_000_000_000).contains(&n) {
        return None;
    }
    if n == 0 {
        return Some((0, 1));
    }
    let (mut outside, mut free, mut divisor) = (1, n, 2);
    while divisor * divisor <= free {
        while free % (divisor * divisor) == 0 {
            free /= divisor * divisor;
            outside *= divisor;
        }
        divisor += 1;
    }
    Some((outside, free))
}

impl fmt::Display for Polynomial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.terms.is_empty() {
            return f.write_str("0");
        }
        for (at, (monomial, coefficient)) in self.terms.iter().enumerate() {
            f.write_str(if at == 0 { "" } else { "+" })?;
            write!(f, "{coefficient}")?;
            for (symbol, power) in monomial {
                match symbol {
                    Symbol::Root(inside) => write!(f, "*sqrt({inside})")?,
                    Symbol::Name(name) => write!(f, "*{name}")?,
                }
                if *power != 1 {
                    write!(f, "^{power}")?;
                }
            }
        }
        Ok(())
    }
}
