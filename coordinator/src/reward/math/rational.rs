//! Exact fractions of 128-bit integers; operations that would overflow have no result.

/// A fraction in lowest terms with a positive denominator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Rational {
    numerator: i128,
    denominator: i128,
}

impl From<i128> for Rational {
    fn from(value: i128) -> Self {
        Self { numerator: value, denominator: 1 }
    }
}

impl Rational {
    /// `numerator / denominator`; `None` for a denominator of 0 or on overflow.
    #[must_use]
    pub fn new(numerator: i128, denominator: i128) -> Option<Self> {
        if denominator == 0 || numerator == i128::MIN || denominator == i128::MIN {
            return None;
        }
        let divisor = gcd(numerator.unsigned_abs(), denominator.unsigned_abs()) as i128;
        let sign = denominator.signum();
        Some(Self { numerator: sign * numerator / divisor, denominator: sign * denominator / divisor })
    }

    /// Above the fraction's line.
    #[must_use]
    pub fn numerator(self) -> i128 {
        self.numerator
    }

    /// Below the fraction's line, positive.
    #[must_use]
    pub fn denominator(self) -> i128 {
        self.denominator
    }

    /// Sum.
    #[must_use]
    pub fn checked_add(self, other: Self) -> Option<Self> {
        let left = self.numerator.checked_mul(other.denominator)?;
        let right = other.numerator.checked_mul(self.denominator)?;
        Self::new(left.checked_add(right)?, self.denominator.checked_mul(other.denominator)?)
    }

    /// Difference.
    #[must_use]
    pub fn checked_sub(self, other: Self) -> Option<Self> {
        self.checked_add(-other)
    }

    /// Product.
    #[must_use]
    pub fn checked_mul(self, other: Self) -> Option<Self> {
        Self::new(
            self.numerator.checked_mul(other.numerator)?,
            self.denominator.checked_mul(other.denominator)?,
        )
    }

    /// Quotient; `None` when dividing by 0.
    #[must_use]
    pub fn checked_div(self, other: Self) -> Option<Self> {
        self.checked_mul(Self::new(other.denominator, other.numerator)?)
    }

    /// An integer power, exponent at most 128 in size.
    #[must_use]
    pub fn pow(self, exponent: i128) -> Option<Self> {
        if exponent < 0 {
            return Self::new(self.denominator, self.numerator)?.pow(exponent.checked_neg()?);
        }
        let exponent = u32::try_from(exponent).ok().filter(|e| *e <= 128)?;
        Self::new(self.numerator.checked_pow(exponent)?, self.denominator.checked_pow(exponent)?)
    }

    /// The square root, if it is a fraction.
    #[must_use]
    pub fn sqrt(self) -> Option<Self> {
        let root = |n: i128| {
            let root = u128::try_from(n).ok()?.isqrt() as i128;
            (root.checked_mul(root)? == n).then_some(root)
        };
        Self::new(root(self.numerator)?, root(self.denominator)?)
    }
}

impl std::ops::Neg for Rational {
    type Output = Self;

    fn neg(self) -> Self {
        Self { numerator: -self.numerator, denominator: self.denominator }
    }
}

impl std::fmt::Display for Rational {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.denominator {
            1 => write!(f, "{}", self.numerator),
            denominator => write!(f, "{}/{denominator}", self.numerator),
        }
    }
}

fn gcd(mut a: u128, mut b: u128) -> u128 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fraction(a: i128, b: i128) -> Rational {
        Rational::new(a, b).unwrap()
    }

    #[test]
    fn arithmetic_is_exact_and_in_lowest_terms() {
        assert_eq!(fraction(2, -4), fraction(-1, 2));
        assert_eq!(fraction(1, 3).checked_add(fraction(1, 6)).unwrap(), fraction(1, 2));
        assert_eq!(fraction(2, 3).checked_div(fraction(-4, 9)).unwrap(), fraction(-3, 2));
        assert_eq!(fraction(2, 3).pow(-2).unwrap(), fraction(9, 4));
        assert_eq!(fraction(9, 4).sqrt().unwrap(), fraction(3, 2));
        assert_eq!(fraction(2, 1).sqrt(), None);
        assert_eq!(fraction(0, 5).to_string(), "0");
    }

    #[test]
    fn overflow_and_division_by_zero_have_no_result() {
        let large = Rational::from(i128::MAX);
        assert_eq!(large.checked_mul(large), None);
        assert_eq!(large.checked_add(large), None);
        assert_eq!(large.checked_div(Rational::from(0)), None);
        assert_eq!(Rational::from(9).pow(i128::MAX), None);
    }
}
