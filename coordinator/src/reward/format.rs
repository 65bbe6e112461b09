//! Format: tags in their order, a box, patterns. The score is the share of requirements that are met.
//!
//! Says nothing about the answer: in a sum, another part decides what is correct.

use ::regex::Regex;
use g2rl_common::config::FormatOptions;

use super::math::extract::last_boxed;
use super::{Case, Deadline, Judgement, Reward, Verdict};

/// See the module's documentation.
#[derive(Debug, Clone)]
pub struct FormatReward {
    tags: Vec<String>,
    boxed: bool,
    patterns: Vec<Regex>,
}

/// Requirements met, their number, and the first that is not met.
struct Checked {
    met: usize,
    all: usize,
    missing: Option<String>,
}

impl Checked {
    fn note(&mut self, holds: bool, missing: impl FnOnce() -> String) {
        self.all += 1;
        if holds {
            self.met += 1;
        } else if self.missing.is_none() {
            self.missing = Some(missing());
        }
    }
}

/// The place behind `<tag>...</tag>`, if it stands there once; `from` is where it may begin.
fn behind(text: &str, tag: &str, from: usize) -> Option<usize> {
    let (open, close) = (format!("<{tag}>"), format!("</{tag}>"));
    if text.matches(&open).count() != 1 || text.matches(&close).count() != 1 {
        return None;
    }
    let (begin, end) = (text.find(&open)?, text.find(&close)?);
    (begin >= from && end >= begin + open.len()).then_some(end + close.len())
}

impl FormatReward {
    /// A reward with these options.
    ///
    /// # Errors
    /// If a pattern does not compile.
    pub fn new(options: &FormatOptions) -> Result<Self, ::regex::Error> {
        let patterns =
            options.patterns.iter().map(|pattern| Regex::new(pattern)).collect::<Result<_, _>>()?;
        Ok(Self { tags: options.tags.clone(), boxed: options.boxed, patterns })
    }

    fn check(&self, response: &str, deadline: Option<&Deadline>) -> Checked {
        let mut checked = Checked { met: 0, all: 0, missing: None };
        // A tag that is missing or out of place does not move the place where the next may begin.
        let mut from = 0;
        for tag in &self.tags {
            let behind = behind(response, tag, from);
            checked.note(behind.is_some(), || format!("no <{tag}>...</{tag}>, once and in its order"));
            from = behind.unwrap_or(from);
        }
        if self.boxed {
            checked.note(last_boxed(&response[from..]).is_some(), || {
                "no \\boxed{} after the last tag".to_owned()
            });
        }
        for pattern in &self.patterns {
            if deadline.is_some_and(Deadline::has_passed) {
                break;
            }
            checked.note(pattern.is_match(response), || format!("no match of {pattern}"));
        }
        checked
    }

    fn verdict(checked: &Checked) -> Verdict {
        match &checked.missing {
            None => Verdict::plain(true, "has the required form"),
            Some(missing) => Verdict::plain(false, missing.clone()),
        }
    }
}

impl Reward for FormatReward {
    fn name(&self) -> &'static str {
        "format"
    }

    fn verify(&self, _gold: &str, response: &str) -> Verdict {
        Self::verdict(&self.check(response, None))
    }

    fn judge(&self, case: &Case, deadline: &Deadline) -> Judgement {
        let checked = self.check(&case.response, Some(deadline));
        let score = checked.met as f64 / checked.all.max(1) as f64;
        Judgement { verdict: Self::verdict(&checked), score, timed_out: false }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn judge(options: FormatOptions, response: &str) -> (bool, f64, String) {
        let case = Case {
            id: "0".into(),
            prompt: String::new(),
            response: response.to_owned(),
            answer: String::new(),
        };
        let reward = FormatReward::new(&options).unwrap();
        let Judgement { verdict, score, .. } = reward.judge(&case, &Deadline::after(Duration::from_secs(9)));
        assert_eq!(verdict, reward.verify("", response));
        (verdict.correct, score, verdict.reason)
    }

    fn tags(tags: &[&str], boxed: bool) -> FormatOptions {
        FormatOptions { tags: tags.iter().map(|t| (*t).to_owned()).collect(), boxed, patterns: Vec::new() }
    }

    #[test]
    fn tags_then_a_box() {
        let options = || tags(&["think"], true);
        assert!(judge(options(), "<think>hm</think> \\boxed{1}").0);
        for (response, score) in [
            ("<think>hm</think> 1", 0.5),
            ("\\boxed{1}", 0.5),
            // The box stands inside the tag.
            ("<think>\\boxed{1}</think>", 0.5),
            ("<think>a</think><think>b</think> \\boxed{1}", 0.5),
            ("</think><think>", 0.0),
            ("<think>", 0.0),
            ("", 0.0),
        ] {
            let (correct, found, reason) = judge(options(), response);
            assert_eq!((correct, found), (false, score), "{response}: {reason}");
        }
    }

    #[test]
    fn tags_have_an_order() {
        let options = || tags(&["think", "answer"], false);
        assert_eq!(judge(options(), "<think>a</think>\n<answer>b</answer>").1, 1.0);
        let (_, score, reason) = judge(options(), "<answer>b</answer><think>a</think>");
        assert_eq!((score, reason.as_str()), (0.5, "no <answer>...</answer>, once and in its order"));
        // One inside the other is not one after the other.
        assert_eq!(judge(options(), "<think><answer>b</answer></think>").1, 0.5);
    }

    #[test]
    fn patterns_count_one_by_one() {
        let options = FormatOptions { patterns: vec!["^So".into(), r"\.$".into()], ..Default::default() };
        assert_eq!(judge(options.clone(), "So it is.").1, 1.0);
        let (correct, score, reason) = judge(options, "So it is");
        assert_eq!((correct, score, reason.as_str()), (false, 0.5, r"no match of \.$"));
    }
}
