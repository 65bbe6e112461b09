//! Countdown: reach the target with the given numbers, each used at most once.
//!
//! The reference is `4,7,2>30`. An answer is a chain of steps, `4*7=28,28+2=30`, where each step takes
//! two numbers of the pool and puts its result back, or one expression, `4*7+2`, with or without
//! `= 30`. Arithmetic is exact, over fractions.

use super::math::rational::Rational;
use super::steps::{self, Token};
use super::{Reward, Verdict};

/// Deepest nesting of parentheses.
const MAX_DEPTH: usize = 32;

/// See the module's documentation.
#[derive(Debug, Clone, Copy)]
pub struct CountdownReward;

impl Reward for CountdownReward {
    fn name(&self) -> &'static str {
        "countdown"
    }

    fn verify(&self, gold: &str, response: &str) -> Verdict {
        let Some(problem) = Problem::parse(gold) else {
            return Verdict::without_answer("the reference is not of the form 4,7,2>30");
        };
        steps::verify(response, |tokens| judge(&problem, tokens))
    }
}

/// Given numbers and a target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The numbers.
    pub numbers: Vec<i128>,
    /// What to reach.
    pub target: i128,
}

impl Problem {
    /// Parses `4,7,2>30`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (numbers, target) = text.trim().split_once('>')?;
        let numbers = numbers.split(',').map(|n| n.trim().parse().ok()).collect::<Option<Vec<i128>>>()?;
        Some(Self { numbers, target: target.trim().trim_end_matches(':').parse().ok()? })
    }
}

/// The canonical form of a right answer, or why it is wrong.
fn judge(problem: &Problem, tokens: &[Token]) -> Result<String, &'static str> {
    if tokens.contains(&Token::Comma) || steps::step(tokens).is_some() {
        return chain(problem, tokens);
    }
    let (expression, claimed) = match tokens.iter().position(|t| *t == Token::Equals) {
        Some(at) => (&tokens[..at], Some(&tokens[at + 1..])),
        None => (tokens, None),
    };
    let mut parser = Parser { tokens: expression, at: 0, used: Vec::new(), depth: 0 };
    let value = parser.sum().ok_or("the expression cannot be evaluated")?;
    if parser.at != expression.len() {
        return Err("the expression cannot be evaluated");
    }
    let target = Rational::from(problem.target);
    if claimed.is_some_and(|c| c != [Token::Number(problem.target)]) || value.form != target {
        return Err("the result is not the target");
    }
    let mut pool = problem.numbers.clone();
    for number in parser.used {
        take(&mut pool, &Rational::from(number), |n| Rational::from(*n))?;
    }
    Ok(value.canonical)
}

fn chain(problem: &Problem, tokens: &[Token]) -> Result<String, &'static str> {
    // Each pool entry with the way it came about.
    let mut pool: Vec<Value> = problem
        .numbers
        .iter()
        .map(|n| Value { form: Rational::from(*n), canonical: n.to_string() })
        .collect();
    let mut last = None;
    for step in tokens.split(|t| *t == Token::Comma) {
        let steps::Step { left: a, operator, right: b, result: c } =
            steps::step(step).ok_or(steps::NO_STEP)?;
        let left = take(&mut pool, &Rational::from(a), |v| v.form.clone())?;
        let right = take(&mut pool, &Rational::from(b), |v| v.form.clone())?;
        let value = combine(operator, left, right).ok_or("a step cannot be evaluated")?;
        if value.form != Rational::from(c) {
            return Err("a step's arithmetic is wrong");
        }
        last = Some(value.clone());
        pool.push(value);
    }
    match last {
        Some(value) if value.form == Rational::from(problem.target) => Ok(value.canonical),
        _ => Err("the result is not the target"),
    }
}

/// Takes a number out of the pool.
fn take<T>(pool: &mut Vec<T>, wanted: &Rational, form: impl Fn(&T) -> Rational) -> Result<T, &'static str> {
    let at = pool.iter().position(|entry| form(entry) == *wanted);
    at.map(|at| pool.swap_remove(at)).ok_or("a number is used that is not (or no longer) there")
}

/// A value and the expression it came from, operands of + and * in one order.
#[derive(Debug, Clone, PartialEq)]
struct Value {
    form: Rational,
    canonical: String,
}

fn combine(operator: char, left: Value, right: Value) -> Option<Value> {
    let form = match operator {
        '+' => left.form.checked_add(&right.form)?,
        '-' => left.form.checked_sub(&right.form)?,
        '*' => left.form.checked_mul(&right.form)?,
        _ => left.form.checked_div(&right.form)?,
    };
    let (mut a, mut b) = (left.canonical, right.canonical);
    if matches!(operator, '+' | '*') && b < a {
        std::mem::swap(&mut a, &mut b);
    }
    Some(Value { form, canonical: format!("({a}{operator}{b})") })
}

/// Recursive descent over sums, products and parentheses.
struct Parser<'a> {
    tokens: &'a [Token],
    at: usize,
    used: Vec<i128>,
    depth: usize,
}

impl Parser<'_> {
    fn sum(&mut self) -> Option<Value> {
        let mut value = self.product()?;
        while let Some(Token::Operator(operator @ ('+' | '-'))) = self.tokens.get(self.at).copied() {
            self.at += 1;
            value = combine(operator, value, self.product()?)?;
        }
        Some(value)
    }

    fn product(&mut self) -> Option<Value> {
        let mut value = self.atom()?;
        while let Some(Token::Operator(operator @ ('*' | '/'))) = self.tokens.get(self.at).copied() {
            self.at += 1;
            value = combine(operator, value, self.atom()?)?;
        }
        Some(value)
    }

    fn atom(&mut self) -> Option<Value> {
        let token = *self.tokens.get(self.at)?;
        self.at += 1;
        match token {
            Token::Number(number) => {
                self.used.push(number);
                Some(Value { form: Rational::from(number), canonical: number.to_string() })
            }
            Token::Open if self.depth < MAX_DEPTH => {
                self.depth += 1;
                let value = self.sum()?;
                self.depth -= 1;
                (self.tokens.get(self.at) == Some(&Token::Close)).then_some(())?;
                self.at += 1;
                Some(value)
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(response: &str) -> Verdict {
        CountdownReward.verify("4,7,2>30", response)
    }

    #[test]
    fn right_answers() {
        for answer in [
            "4*7=28,28+2=30",
            " 7 \u{d7} 4 = 28, 28 + 2 = 30 ",
            "4*7+2",
            "(4*7)+2=30",
            "<think>4+7=11</think>4*7=28,28+2=30",
            "So \\boxed{2+4*7}",
            "<answer>2 + (7*4)</answer>",
        ] {
            assert!(verdict(answer).correct, "{answer}: {}", verdict(answer).reason);
        }
        // Not every number is needed.
        assert!(CountdownReward.verify("5,6,9>30", "5*6=30").correct);
        // Fractions on the way.
        assert!(CountdownReward.verify("1,3,8>24", "8/(1/3)").correct);
    }

    #[test]
    fn wrong_answers() {
        for answer in [
            "",
            "4*7=28",
            "4*7=28,28+4=32",
            "4*7=28,28+7=35",
            "4*7=29,29+2=31",
            "4*8=32,32-2=30",
            "4*7=28,28+2=30 yes",
            "15*2",
            "4*7+2=31",
            "4*7=28,,28+2=30",
            "2/0",
            "(4*7+2",
            "30",
            "-30",
        ] {
            assert!(!verdict(answer).correct, "{answer}");
        }
    }

    #[test]
    fn equal_ways_have_equal_forms() {
        let form = |answer: &str| verdict(answer).canonical.unwrap();
        assert_eq!(form("4*7=28,28+2=30"), form("7*4=28,2+28=30"));
        assert_eq!(form("4*7=28,28+2=30"), form("2+4*7"));
    }

    #[test]
    fn hostile_input_ends_at_once() {
        let start = std::time::Instant::now();
        for answer in ["(".repeat(1_000_000), "9*".repeat(1_000_000), "\\boxed{".repeat(100_000)] {
            assert!(!verdict(&answer).correct);
        }
        assert!(!verdict(&"(".repeat(900)).correct);
        assert!(!verdict(&format!("{}1", "99999999*".repeat(100))).correct);
        assert!(start.elapsed().as_millis() < 1_000);
    }
}
