//! Expressions evaluated at chosen points, with a bound on the error of each value.
//!
//! Two expressions are the same if their values agree within their own error bounds wherever they are
//! evaluated. The bounds come from a running error analysis: each operation adds its rounding to what
//! its operands bring, so that cancellation makes a comparison careful, not wrong.

use super::expression::{Budget, Constant, Expression};

/// Rounding of one operation, twice the unit of the doubles' last place.
const EPSILON: f64 = 4.5e-16;

/// A complex value and how far off it may be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Value {
    /// Real part.
    pub re: f64,
    /// Imaginary part.
    pub im: f64,
    /// Bound on the distance to the exact value.
    pub error: f64,
    /// A root, power or logarithm of a negative number took one of several possible values.
    pub branched: bool,
}

/// Functions whose values are known.
const KNOWN: [&str; 22] = [
    "sin",
    "cos",
    "tan",
    "cot",
    "sec",
    "csc",
    "arcsin",
    "arccos",
    "arctan",
    "sinh",
    "cosh",
    "tanh",
    "ln",
    "log",
    "exp",
    "abs",
    "floor",
    "ceil",
    "factorial",
    "binom",
    "gcd",
    "lcm",
];

/// Whether a function's values are known.
#[must_use]
pub(super) fn is_known(name: &str) -> bool {
    KNOWN.contains(&name) || matches!(name, "max" | "min")
}

/// Where variables stand.
#[derive(Debug)]
pub(super) struct Point {
    /// Which of the points.
    pub index: u64,
    /// Variables may be negative.
    pub signed: bool,
}

impl Point {
    /// A variable's value: between 0.4 and 2.9 in size, the same for the same name.
    fn of(&self, name: &str) -> f64 {
        let mut bits = 0xcbf2_9ce4_8422_2325 ^ self.index.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        for byte in name.bytes() {
            bits = (bits ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        // The mixing of splitmix64.
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^= bits >> 31;
        let unit = (bits >> 12) as f64 / (1u64 << 52) as f64;
        let sign = if self.signed && bits & 1 == 1 { -1.0 } else { 1.0 };
        sign * (0.4 + 2.5 * unit)
    }
}

impl Value {
    /// A real value that is exact up to its last place.
    #[must_use]
    pub(super) fn real(re: f64) -> Self {
        Self { re, im: 0.0, error: re.abs() * EPSILON, branched: false }
    }

    /// Its size.
    #[must_use]
    pub(super) fn size(self) -> f64 {
        self.re.hypot(self.im)
    }

    /// Whether it is real within its error.
    #[must_use]
    pub(super) fn is_real(self) -> bool {
        self.im.abs() <= 4.0 * self.error
    }

    /// Whether two values agree. `None` if the bounds are too wide to say.
    #[must_use]
    pub(super) fn agrees(self, other: Self) -> Option<bool> {
        let error = self.error + other.error;
        if error > 1e-7 * self.size().max(other.size()).max(1.0) {
            return None;
        }
        Some((self.re - other.re).hypot(self.im - other.im) <= 8.0 * error + f64::MIN_POSITIVE)
    }

    fn complex(re: f64, im: f64, error: f64, branched: bool) -> Option<Self> {
        let value = Self { re, im, error: error + EPSILON * re.hypot(im), branched };
        (re.is_finite() && im.is_finite() && value.error.is_finite()).then_some(value)
    }

    fn plus(self, other: Self) -> Option<Self> {
        let branched = self.branched || other.branched;
        Self::complex(self.re + other.re, self.im + other.im, self.error + other.error, branched)
    }

    fn times(self, other: Self) -> Option<Self> {
        let error = self.error * other.size() + other.error * self.size() + self.error * other.error;
        let re = self.re * other.re - self.im * other.im;
        let im = self.re * other.im + self.im * other.re;
        let rounding = 2.0 * EPSILON * self.size() * other.size();
        Self::complex(re, im, error + rounding, self.branched || other.branched)
    }

    fn over(self, other: Self) -> Option<Self> {
        let size = other.size();
        if size <= 2.0 * other.error {
            return None;
        }
        let square = size * size;
        let re = (self.re * other.re + self.im * other.im) / square;
        let im = (self.im * other.re - self.re * other.im) / square;
        let quotient = self.size() / size;
        let error = (self.error + quotient * other.error) / (size - other.error);
        Self::complex(re, im, error + 4.0 * EPSILON * quotient, self.branched || other.branched)
    }

    fn exp(self) -> Option<Self> {
        let scale = self.re.exp();
        let error = scale * (self.error.min(1.0) * 2.0 + EPSILON * (self.size() + 2.0));
        Self::complex(scale * self.im.cos(), scale * self.im.sin(), error, self.branched)
    }

    fn ln(self) -> Option<Self> {
        let size = self.size();
        if size <= 2.0 * self.error {
            return None;
        }
        let error = self.error / (size - self.error) + 2.0 * EPSILON;
        let (im, branched) = if self.is_real() {
            (if self.re < 0.0 { std::f64::consts::PI } else { 0.0 }, self.re < 0.0)
        } else {
            (self.im.atan2(self.re), true)
        };
        Self::complex(size.ln(), im, error, self.branched || branched)
    }

    fn power(self, exponent: Self) -> Option<Self> {
        let whole = exponent.re.round();
        if exponent.is_real() && (exponent.re - whole).abs() <= 2.0 * exponent.error && whole.abs() <= 4096.0
        {
            return self.integer_power(whole as i32);
        }
        if self.size() <= self.error {
            return (exponent.re > 0.0).then(|| Self::complex(0.0, 0.0, self.error, self.branched))?;
        }
        self.ln()?.times(exponent)?.exp()
    }

    fn integer_power(self, exponent: i32) -> Option<Self> {
        let mut result = Self::real(1.0);
        let (mut square, mut left) = (self, exponent.unsigned_abs());
        while left > 0 {
            if left & 1 == 1 {
                result = result.times(square)?;
            }
            left >>= 1;
            if left > 0 {
                square = square.times(square)?;
            }
        }
        if exponent < 0 { Self::real(1.0).over(result) } else { Some(result) }
    }

    /// The principal root; zero stays zero.
    fn root(self, degree: u32) -> Option<Self> {
        if self.size() <= 2.0 * self.error {
            let bound = (3.0 * self.error).powf(1.0 / f64::from(degree));
            return Self::complex(0.0, 0.0, bound, self.branched);
        }
        // Odd roots of negative numbers are real.
        if degree % 2 == 1 && self.is_real() && self.re < 0.0 {
            let root = Self { re: -self.re, im: 0.0, ..self }.root(degree)?;
            return Some(Self { re: -root.re, ..root });
        }
        if self.is_real() && self.re > 0.0 {
            let root = if degree == 2 { self.re.sqrt() } else { self.re.powf(1.0 / f64::from(degree)) };
            let error = root * self.error / (self.re * f64::from(degree)) + 2.0 * EPSILON * root;
            return Self::complex(root, 0.0, 2.0 * error, self.branched);
        }
        self.ln()?.times(Self::real(1.0 / f64::from(degree)))?.exp()
    }
}

/// The value of an expression at a point; `None` where there is none.
#[must_use]
pub(super) fn evaluate(expression: &Expression, point: &Point, budget: &Budget) -> Option<Value> {
    budget.spend(1)?;
    let inner = |e: &Expression| evaluate(e, point, budget);
    match expression {
        Expression::Number(value) => Some(Value::real(value.to_f64())).filter(|v| v.re.is_finite()),
        Expression::Constant(Constant::Pi) => Some(Value::real(std::f64::consts::PI)),
        Expression::Constant(Constant::E) => Some(Value::real(std::f64::consts::E)),
        Expression::Constant(Constant::I) => Some(Value { re: 0.0, im: 1.0, error: 0.0, branched: false }),
        Expression::Constant(Constant::Infinity) => None,
        Expression::Variable(name) => Some(Value { error: 0.0, ..Value::real(point.of(name)) }),
        Expression::Sum(parts) => parts
            .iter()
            .try_fold(Value { error: 0.0, ..Value::real(0.0) }, |sum, part| sum.plus(inner(part)?)),
        Expression::Product(parts) => parts
            .iter()
            .try_fold(Value { error: 0.0, ..Value::real(1.0) }, |all, part| all.times(inner(part)?)),
        Expression::Quotient(a, b) => inner(a)?.over(inner(b)?),
        Expression::Power(a, b) => inner(a)?.power(inner(b)?),
        Expression::Root(degree, inside) => inner(inside)?.root(*degree),
        Expression::Degrees(inside) => inner(inside),
        Expression::Function(name, arguments) => {
            let degrees = matches!(arguments.first(), Some(Expression::Degrees(_)));
            let mut values = Vec::with_capacity(arguments.len());
            for argument in arguments {
                values.push(inner(argument)?);
            }
            if degrees && matches!(name.as_str(), "sin" | "cos" | "tan" | "cot" | "sec" | "csc") {
                values[0] = values[0].times(Value::real(std::f64::consts::PI / 180.0))?;
            }
            function(name, &values, point)
        }
    }
}

fn function(name: &str, values: &[Value], point: &Point) -> Option<Value> {
    let Some(x) = values.first().copied() else { return Some(Value::real(point.of(name))) };
    match name {
        "exp" => x.exp(),
        "ln" => x.ln(),
        "log" => match values.get(1) {
            Some(base) => x.ln()?.over(base.ln()?),
            None => x.ln()?.over(Value::real(std::f64::consts::LN_10)),
        },
        "abs" => Some(Value { re: x.size(), im: 0.0, error: x.error + EPSILON * x.size(), ..x }),
        _ if is_known(name) => {
            if !values.iter().all(|value| value.is_real()) {
                return None;
            }
            real_function(name, values)
        }
        // An unknown function: a smooth one of its own, which nothing else equals by chance.
        _ => {
            let phase = point.of(name);
            let sum =
                values.iter().zip(1..).fold(0.0, |sum, (v, n)| sum + (v.re + 0.7 * v.im) / f64::from(n));
            let error: f64 = values.iter().map(|v| 2.0 * v.error).sum();
            Value::complex(2.5 + (sum * 0.9 + 3.0 * phase).sin(), 0.0, error, false)
        }
    }
}

fn real_function(name: &str, values: &[Value]) -> Option<Value> {
    let x = values[0];
    // A value, and how strongly it depends on its argument.
    let of = |value: f64, slope: f64| {
        let error = x.error * slope.abs() * 1.5 + x.error * x.error + 2.0 * EPSILON * (1.0 + value.abs());
        Value::complex(value, 0.0, error, x.branched)
    };
    let whole = |v: Value| ((v.re - v.re.round()).abs() <= 2.0 * v.error + 1e-12).then(|| v.re.round());
    let (sin, cos) = (x.re.sin(), x.re.cos());
    let safe = |d: f64| (d.abs() > 1e-9).then_some(d);
    match name {
        "sin" => of(sin, 1.0),
        "cos" => of(cos, 1.0),
        "tan" => of(sin / safe(cos)?, 1.0 / (cos * cos)),
        "cot" => of(cos / safe(sin)?, 1.0 / (sin * sin)),
        "sec" => of(1.0 / safe(cos)?, sin / (cos * cos)),
        "csc" => of(1.0 / safe(sin)?, cos / (sin * sin)),
        "arcsin" => of(in_unit(x.re)?.asin(), 1.0 / (1.0 - x.re * x.re).max(1e-12).sqrt()),
        "arccos" => of(in_unit(x.re)?.acos(), 1.0 / (1.0 - x.re * x.re).max(1e-12).sqrt()),
        "arctan" => of(x.re.atan(), 1.0),
        "sinh" => of(x.re.sinh(), x.re.cosh()),
        "cosh" => of(x.re.cosh(), x.re.sinh()),
        "tanh" => of(x.re.tanh(), 1.0),
        // A whole number within its error is that number.
        "floor" => Some(Value::real(whole(x).unwrap_or_else(|| x.re.floor()))),
        "ceil" => Some(Value::real(whole(x).unwrap_or_else(|| x.re.ceil()))),
        "factorial" => {
            let n = whole(x).filter(|n| (0.0..=170.0).contains(n))?;
            Some(Value::real((1..=n as u32).map(f64::from).product()))
        }
        "binom" => {
            let (n, k) = (whole(x)?, whole(*values.get(1)?)?);
            if n < 0.0 || k < 0.0 || k > n || n > 1_000.0 {
                return None;
            }
            let steps = k.min(n - k) as u32;
            let value = (0..steps).fold(1.0, |b, i| b * (n - f64::from(i)) / (f64::from(i) + 1.0));
            Value::complex(value, 0.0, value * EPSILON * f64::from(2 * steps), x.branched)
        }
        "max" => values.iter().copied().max_by(|a, b| a.re.total_cmp(&b.re)),
        "min" => values.iter().copied().min_by(|a, b| a.re.total_cmp(&b.re)),
        "gcd" | "lcm" => {
            let mut wholes = values.iter().map(|v| whole(*v).map(|w| w.abs() as u64));
            let first = wholes.next()??;
            let fold = wholes.try_fold(first, |a, b| {
                let (a, b) = (a, b?);
                let divisor = greatest_divisor(a, b).max(1);
                Some(if name == "gcd" { greatest_divisor(a, b) } else { a / divisor * b })
            });
            Some(Value::real(fold? as f64))
        }
        _ => None,
    }
}

fn in_unit(x: f64) -> Option<f64> {
    (x.abs() <= 1.0 + 1e-12).then(|| x.clamp(-1.0, 1.0))
}

fn greatest_divisor(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { greatest_divisor(b, a % b) }
}

/// Whether two expressions have the same values: at one point for constants, else at several where
/// variables are positive, and at those with negative variables where both stay on one branch.
/// Expressions that cannot be told apart or cannot be evaluated are not equal.
#[must_use]
pub(super) fn equal(a: &Expression, b: &Expression, budget: &Budget) -> bool {
    let constant = a.is_constant() && b.is_constant();
    let mut agreed = 0;
    for index in 0..if constant { 1 } else { 8 } {
        let point = Point { index, signed: index >= 5 };
        let (Some(left), Some(right)) = (evaluate(a, &point, budget), evaluate(b, &point, budget)) else {
            continue;
        };
        if point.signed && (left.branched || right.branched) {
            continue;
        }
        match left.agrees(right) {
            Some(true) => agreed += 1,
            Some(false) => return false,
            None => {}
        }
    }
    agreed >= if constant { 1 } else { 3 }
}

#[cfg(test)]
mod tests {
    use super::super::parser::expression;
    use super::*;

    fn same(a: &str, b: &str) -> bool {
        let budget = Budget::new();
        equal(&expression(a).unwrap(), &expression(b).unwrap(), &budget)
    }

    #[test]
    fn identities_hold() {
        for (a, b) in [
            ("\\sin^2 x + \\cos^2 x", "1"),
            ("\\frac{1}{3\\sqrt[3]{x}^2}", "\\frac{1}{3x^{2/3}}"),
            ("\\sqrt{3 + 2\\sqrt{2}}", "1 + \\sqrt{2}"),
            ("e^{i\\pi}", "-1"),
            ("\\log_2 8", "3"),
            ("\\sin 30^\\circ", "\\frac12"),
            ("\\frac{x^2-1}{x-1}", "x+1"),
            ("\\binom{10}{3}", "120"),
            ("\\sqrt{x^2}", "|x|"),
            ("\\ln(ab)", "\\ln a + \\ln b"),
            ("10^{-20}\\sqrt{2}", "\\sqrt{2}\\cdot 10^{-20}"),
        ] {
            assert!(same(a, b), "{a} and {b}");
        }
    }

    #[test]
    fn near_misses_are_told_apart() {
        for (a, b) in [
            ("\\sqrt{x^2}", "x"),
            ("\\sqrt{2}", "1.41421356237"),
            ("10^{-20}\\sqrt{2}", "2\\cdot 10^{-20}"),
            ("\\sin x", "x"),
            ("f(x)", "g(x)"),
            ("\\pi", "\\frac{355}{113}"),
        ] {
            assert!(!same(a, b), "{a} and {b}");
        }
    }

    #[test]
    fn the_bound_covers_cancellation() {
        let budget = Budget::new();
        let point = Point { index: 0, signed: false };
        // (sqrt(2) + 10^8 - 10^8)^2 = 2 exactly; doubles lose half of the digits.
        let value =
            evaluate(&expression("(\\sqrt{2} + 100000000 - 100000000)^2").unwrap(), &point, &budget).unwrap();
        assert!((value.re - 2.0).abs() > 1e-10 && (value.re - 2.0).abs() < value.error);
    }
}
