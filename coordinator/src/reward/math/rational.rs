//! Exact fractions of integers of bounded size; operations that would grow past it have no result.

use num_bigint::BigInt;
use num_rational::BigRational;
use num_traits::{One, Signed, ToPrimitive, Zero};

/// Longest numerator or denominator, bits: 2^1000 and 300! fit, towers of powers do not.
const MAX_BITS: u64 = 2_200;

/// A fraction in lowest terms with a positive denominator.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Rational(BigRational);

impl From<i128> for Rational {
    fn from(value: i128) -> Self {
        Self(BigRational::from_integer(value.into()))
    }
}

impl Rational {
    /// `numerator / denominator`; `None` for a denominator of 0.
    #[must_use]
    pub fn new(numerator: i128, denominator: i128) -> Option<Self> {
        (denominator != 0).then(|| Self(BigRational::new(numerator.into(), denominator.into())))
    }

    /// Digits with at most one point, as in `12.50` or `.5`; `None` for anything else or too many digits.
    #[must_use]
    pub fn from_decimal(text: &str) -> Option<Self> {
        let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
        let digits = whole.len() + fraction.len();
        if digits == 0 || digits > 600 {
            return None;
        }
        let is_digits = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
        if !is_digits(whole) || !is_digits(fraction) {
            return None;
        }
        if digits <= 18 {
            let value = |part: &str| if part.is_empty() { 0 } else { part.parse::<i128>().unwrap_or(0) };
            let scale = 10i128.pow(u32::try_from(fraction.len()).ok()?);
            return Self::new(value(whole) * scale + value(fraction), scale);
        }
        let numerator = BigInt::parse_bytes(format!("{whole}{fraction}").as_bytes(), 10)?;
        let scale = BigInt::from(10).pow(u32::try_from(fraction.len()).ok()?);
        Self::bounded(BigRational::new(numerator, scale))
    }

    /// Zero.
    #[must_use]
    pub fn zero() -> Self {
        Self(BigRational::zero())
    }

    /// One.
    #[must_use]
    pub fn one() -> Self {
        Self(BigRational::one())
    }

    /// Whether it is 0.
    #[must_use]
    pub fn is_zero(&self) -> bool {
        self.0.is_zero()
    }

    /// Whether it is below 0.
    #[must_use]
    pub fn is_negative(&self) -> bool {
        self.0.is_negative()
    }

    /// Whether it is a whole number.
    #[must_use]
    pub fn is_integer(&self) -> bool {
        self.0.is_integer()
    }

    /// The value, if it is a whole number that fits.
    #[must_use]
    pub fn to_integer(&self) -> Option<i128> {
        self.is_integer().then(|| self.0.numer().to_i128()).flatten()
    }

    /// Numerator and denominator, if both fit.
    #[must_use]
    pub fn parts(&self) -> Option<(i128, i128)> {
        Some((self.0.numer().to_i128()?, self.0.denom().to_i128()?))
    }

    /// The nearest double.
    #[must_use]
    pub fn to_f64(&self) -> f64 {
        self.0.to_f64().unwrap_or(f64::NAN)
    }

    /// Sum.
    #[must_use]
    pub fn checked_add(&self, other: &Self) -> Option<Self> {
        Self::bounded(&self.0 + &other.0)
    }

    /// Difference.
    #[must_use]
    pub fn checked_sub(&self, other: &Self) -> Option<Self> {
        Self::bounded(&self.0 - &other.0)
    }

    /// Product.
    #[must_use]
    pub fn checked_mul(&self, other: &Self) -> Option<Self> {
        Self::bounded(&self.0 * &other.0)
    }

    /// Quotient; `None` when dividing by 0.
    #[must_use]
    pub fn checked_div(&self, other: &Self) -> Option<Self> {
        if other.is_zero() { None } else { Self::bounded(&self.0 / &other.0) }
    }

    /// An integer power.
    #[must_use]
    pub fn pow(&self, exponent: i128) -> Option<Self> {
        if self.0.is_one() || exponent == 0 {
            return (exponent != 0 || !self.is_zero()).then(Self::one);
        }
        if self.is_zero() {
            return (exponent > 0).then(Self::zero);
        }
        let exponent = i32::try_from(exponent).ok()?;
        let bits = self.0.numer().bits().max(self.0.denom().bits());
        let grown = bits.saturating_sub(1).saturating_mul(exponent.unsigned_abs().into());
        if grown > MAX_BITS || exponent.unsigned_abs() > 10_000 {
            return None;
        }
        Self::bounded(self.0.pow(exponent))
    }

    /// The absolute value.
    #[must_use]
    pub fn abs(&self) -> Self {
        Self(self.0.abs())
    }

    /// The largest whole number that is not above.
    #[must_use]
    pub fn floor(&self) -> Self {
        Self(self.0.floor())
    }

    /// `n!` for whole numbers up to 300.
    #[must_use]
    pub fn factorial(&self) -> Option<Self> {
        let n = self.to_integer().filter(|n| (0..=300).contains(n))?;
        Some(Self(BigRational::from_integer((1..=n).map(BigInt::from).product())))
    }

    fn bounded(value: BigRational) -> Option<Self> {
        (value.numer().bits() <= MAX_BITS && value.denom().bits() <= MAX_BITS).then_some(Self(value))
    }
}

impl std::ops::Neg for &Rational {
    type Output = Rational;

    fn neg(self) -> Rational {
        Rational(-&self.0)
    }
}

impl std::fmt::Display for Rational {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)
    }
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
        assert_eq!(fraction(1, 3).checked_add(&fraction(1, 6)).unwrap(), fraction(1, 2));
        assert_eq!(fraction(2, 3).checked_div(&fraction(-4, 9)).unwrap(), fraction(-3, 2));
        assert_eq!(fraction(2, 3).pow(-2).unwrap(), fraction(9, 4));
        assert_eq!(fraction(0, 5).to_string(), "0");
        assert_eq!(Rational::from_decimal("12.50").unwrap(), fraction(25, 2));
        assert_eq!(Rational::from_decimal(".5").unwrap(), fraction(1, 2));
        // 20! from its product.
        assert_eq!(Rational::from(20).factorial().unwrap(), Rational::from(2_432_902_008_176_640_000));
    }

    #[test]
    fn what_grows_too_large_or_divides_by_zero_has_no_result() {
        assert!(Rational::from(2).pow(1_000).is_some());
        assert_eq!(Rational::from(9).pow(387_420_489), None);
        assert_eq!(Rational::from(9).pow(i128::MAX), None);
        assert_eq!(Rational::from(5).checked_div(&Rational::zero()), None);
        assert_eq!(Rational::zero().pow(-1), None);
        assert_eq!(Rational::zero().pow(0), None);
        assert_eq!(Rational::from(301).factorial(), None);
        for text in ["", ".", "1.2.3", "1e5", "-1"] {
            assert_eq!(Rational::from_decimal(text), None, "{text}");
        }
    }
}
