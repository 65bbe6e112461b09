//! Regular expression: the capture group of its last match is the answer; without a group, a match is
//! all that is asked for.
//!
//! The engine takes time linear in the response, whatever the pattern.

use ::regex::Regex;
use g2rl_common::config::RegexOptions;

use super::exact::compare;
use super::{Reward, Verdict, after_thinking};

/// See the module's documentation.
#[derive(Debug, Clone)]
pub struct RegexReward {
    pattern: Regex,
    case_insensitive: bool,
    after_thinking: bool,
}

impl RegexReward {
    /// A reward with these options.
    ///
    /// # Errors
    /// If the pattern does not compile.
    pub fn new(options: &RegexOptions) -> Result<Self, ::regex::Error> {
        Ok(Self {
            pattern: Regex::new(&options.pattern)?,
            case_insensitive: options.case_insensitive,
            after_thinking: options.after_thinking,
        })
    }
}

impl Reward for RegexReward {
    fn name(&self) -> &'static str {
        "regex"
    }

    fn verify(&self, gold: &str, response: &str) -> Verdict {
        let text = if self.after_thinking { after_thinking(response) } else { response };
        if self.pattern.captures_len() == 1 {
            let found = self.pattern.find(text).map(|found| found.as_str().to_owned());
            return Verdict {
                correct: found.is_some(),
                canonical: found.clone(),
                reason: if found.is_some() { "matches" } else { "does not match" }.to_owned(),
                extracted: found,
            };
        }
        // A group in an alternative that was not taken holds no answer.
        match self.pattern.captures_iter(text).filter_map(|captures| captures.get(1)).last() {
            Some(answer) => compare(gold, answer.as_str(), self.case_insensitive),
            None => Verdict::without_answer("the pattern finds no answer"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reward(pattern: &str, case_insensitive: bool) -> RegexReward {
        let options = RegexOptions { pattern: pattern.to_owned(), case_insensitive, after_thinking: true };
        RegexReward::new(&options).unwrap()
    }

    #[test]
    fn the_last_capture_is_the_answer() {
        let reward = reward(r"#### (-?\d+)", false);
        assert!(reward.verify("42", "#### 41, no: #### 42").correct);
        assert!(!reward.verify("41", "#### 41, no: #### 42").correct);
        assert!(!reward.verify("42", "<think>#### 42</think> done").correct);
        let verdict = reward.verify("42", "42");
        assert_eq!((verdict.extracted, verdict.reason.as_str()), (None, "the pattern finds no answer"));
    }

    #[test]
    fn without_a_group_a_match_is_right() {
        let reward = reward(r"^\s*(?:yes|no)\s*$", false);
        assert!(reward.verify("unused", " yes ").correct);
        assert!(!reward.verify("yes", "perhaps").correct);
    }

    #[test]
    fn capitals_and_alternatives() {
        assert!(reward("answer: (.*)", true).verify("PARIS", "answer: Paris").correct);
        // The second match takes the alternative without the group.
        assert!(reward(r"<(\d+)>|none", false).verify("7", "<7> none").correct);
    }

    #[test]
    fn a_pattern_made_to_explode_does_not() {
        let start = std::time::Instant::now();
        assert!(!reward(r"^(?:a+)+$", false).verify("", &("a".repeat(100_000) + "b")).correct);
        assert!(start.elapsed().as_secs() < 2);
    }
}
