//! Units after a value: `5\text{ cm}^2`, `28 percent`, `3 hours`. Only percent changes the meaning.

use super::token::Token;

/// What stands after a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unit {
    /// Hundredths.
    Percent,
    /// Anything that is left out of comparisons.
    Other,
}

/// Plain words that are units where they follow a value. Single letters are variables.
const WORDS: [&str; 88] = [
    "cm",
    "mm",
    "km",
    "dm",
    "nm",
    "m",
    "meter",
    "meters",
    "metre",
    "metres",
    "centimeters",
    "kilometers",
    "kilometer",
    "millimeters",
    "inch",
    "inches",
    "foot",
    "feet",
    "ft",
    "yard",
    "yards",
    "mile",
    "miles",
    "mph",
    "kph",
    "kmh",
    "kg",
    "mg",
    "gram",
    "grams",
    "kilogram",
    "kilograms",
    "pound",
    "pounds",
    "lb",
    "lbs",
    "ounce",
    "ounces",
    "oz",
    "ton",
    "tons",
    "liter",
    "liters",
    "litre",
    "litres",
    "ml",
    "gallon",
    "gallons",
    "cup",
    "cups",
    "second",
    "seconds",
    "sec",
    "minute",
    "minutes",
    "min",
    "mins",
    "hour",
    "hours",
    "hr",
    "hrs",
    "day",
    "days",
    "week",
    "weeks",
    "month",
    "months",
    "year",
    "years",
    "dollar",
    "dollars",
    "cent",
    "cents",
    "usd",
    "euro",
    "euros",
    "unit",
    "units",
    "square",
    "cubic",
    "sq",
    "degree",
    "degrees",
    "radians",
    "per",
    "people",
    "students",
    "ways",
];

const PERCENT: [&str; 4] = ["percent", "pct", "percents", "percentage"];

/// The value's tokens and its unit, if one stands at their end.
#[must_use]
pub(super) fn unit_before_end(tokens: &[Token]) -> (&[Token], Option<Unit>) {
    let (mut rest, mut unit) = (tokens, None);
    while let Some((shorter, found)) = last_unit(rest) {
        rest = shorter;
        if unit != Some(Unit::Percent) {
            unit = Some(found);
        }
    }
    (rest, unit)
}

/// Cuts the last unit; something must be left before it.
fn last_unit(tokens: &[Token]) -> Option<(&[Token], Unit)> {
    let (rest, unit) = match tokens {
        [rest @ .., Token::Symbol('%')] => (rest, Unit::Percent),
        [rest @ .., Token::Text(text)] => (rest, of_text(text)),
        [rest @ .., Token::Text(text), Token::Symbol('^'), Token::Number { .. }]
        | [
            rest @ ..,
            Token::Text(text),
            Token::Symbol('^'),
            Token::Open('{'),
            Token::Number { .. },
            Token::Close('{'),
        ] => (rest, of_text(text)),
        [rest @ .., Token::Word { text, spaced }] => (rest, of_word(text, *spaced)?),
        [rest @ .., Token::Word { text, spaced }, Token::Symbol('^'), Token::Number { .. }] => {
            (rest, of_word(text, *spaced)?)
        }
        // 60 miles/hour
        [rest @ .., Token::Symbol('/')] => (rest, Unit::Other),
        _ => return None,
    };
    let after_unit = matches!(rest.last(), Some(Token::Text(_) | Token::Word { .. } | Token::Symbol('/')));
    let value_left = rest.iter().any(|token| !matches!(token, Token::Text(_)));
    // Words after a sign, an opening bracket or a relation are no units.
    let ends_a_value = match rest.last()? {
        Token::Number { .. } | Token::Close(_) | Token::Symbol('%' | '!') => true,
        Token::Command(name) => !matches!(name.as_str(), "frac" | "sqrt" | "pm" | "cup" | "cap" | "in"),
        _ => after_unit,
    };
    (value_left && ends_a_value).then_some((rest, unit))
}

fn of_text(text: &str) -> Unit {
    let text = text.trim();
    if text == "%" || PERCENT.contains(&text) { Unit::Percent } else { Unit::Other }
}

fn of_word(text: &str, spaced: bool) -> Option<Unit> {
    let lower = text.to_lowercase();
    if PERCENT.contains(&lower.as_str()) {
        return Some(Unit::Percent);
    }
    let known = WORDS.contains(&lower.as_str()) && (text.len() > 1 || spaced);
    // Any longer word after a space: 3 apples. Not a product of that many letters.
    let noun = spaced && text.len() >= 4 && super::names::function_name(text).is_none();
    (known || noun).then_some(Unit::Other)
}
