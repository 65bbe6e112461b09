//! The options of a multiple-choice question: their order, and the letter of the right one.

use g2rl_common::seed::CounterRng;
use serde_json::Value;

/// Options in the order in which they are shown.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Options {
    texts: Vec<String>,
    /// The letter of the right one.
    pub(super) right: char,
}

impl Options {
    /// One a line: `A. text`.
    pub(super) fn text(&self) -> String {
        let line = |(at, text): (usize, &String)| format!("{}. {text}", letter(at));
        self.texts.iter().enumerate().map(line).collect::<Vec<_>>().join("\n")
    }
}

fn letter(at: usize) -> char {
    char::from(b'A' + at as u8)
}

/// The options of a list, as they are; the answer is a letter, or a place from 0 where the row has a number.
pub(super) fn in_order(list: &Value, column: &str, answer: &str, is_index: bool) -> Result<Options, String> {
    let Value::Array(list) = list else { return Err(format!("column {column} holds no list of options")) };
    if !(2..=10).contains(&list.len()) {
        return Err(format!("column {column} holds {} options, not 2 to 10", list.len()));
    }
    let text = |option: &Value| match option {
        Value::String(text) if !text.trim().is_empty() => Ok(text.trim().to_owned()),
        Value::Number(number) => Ok(number.to_string()),
        other => Err(format!("column {column} holds the option {other}, not text")),
    };
    let texts = list.iter().map(text).collect::<Result<Vec<_>, _>>()?;
    let right = (0..texts.len()).find(|at| match is_index {
        true => answer == at.to_string(),
        false => answer.trim().eq_ignore_ascii_case(&letter(*at).to_string()),
    });
    let right = right.ok_or_else(|| format!("the answer {answer} is none of {} options", texts.len()))?;
    Ok(Options { right: letter(right), texts })
}

/// The right option among the wrong ones. The row's id alone decides the order, so that every run asks the same
/// question.
pub(super) fn shuffled(id: &str, right: &str, wrong: &[String]) -> Options {
    // The right one is the first until they are shuffled.
    let mut order: Vec<usize> = (0..=wrong.len()).collect();
    CounterRng::new(0, &format!("options of {id}")).shuffle(&mut order);
    let text = |at: &usize| if *at == 0 { right } else { &wrong[*at - 1] }.trim().to_owned();
    let place = order.iter().position(|at| *at == 0).expect("it is in the order");
    Options { texts: order.iter().map(text).collect(), right: letter(place) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_list_keeps_its_order() {
        let list = json!(["red ", "green", 3]);
        let options = in_order(&list, "options", "b", false).unwrap();
        assert_eq!((options.text().as_str(), options.right), ("A. red\nB. green\nC. 3", 'B'));
        assert_eq!(in_order(&list, "options", "2", true).unwrap().right, 'C');
        for (list, answer, is_index, word) in [
            (&list, "D", false, "none of 3 options"),
            (&list, "2", false, "none of 3 options"),
            (&list, "3", true, "none of 3 options"),
            (&json!("red"), "A", false, "no list"),
            (&json!(["red"]), "A", false, "1 options"),
            (&json!(["red", ""]), "A", false, "not text"),
        ] {
            let error = in_order(list, "options", answer, is_index).unwrap_err();
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn the_id_decides_the_order_and_the_letter_goes_with_the_option() {
        let wrong = ["w1", "w2", "w3"].map(str::to_owned);
        let mut seen = [0; 4];
        for n in 0..400 {
            let options = shuffled(&format!("row-{n}"), "right", &wrong);
            assert_eq!(options, shuffled(&format!("row-{n}"), "right", &wrong));
            let mut texts = options.texts.clone();
            assert_eq!(texts[(options.right as u8 - b'A') as usize], "right");
            texts.sort();
            assert_eq!(texts, ["right", "w1", "w2", "w3"]);
            seen[(options.right as u8 - b'A') as usize] += 1;
        }
        // 400 draws with probability 1/4: 100 +- 4 standard deviations of 8.7.
        assert!(seen.iter().all(|count| (65..=135).contains(count)), "{seen:?}");
    }
}
