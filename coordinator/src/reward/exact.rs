//! Exact match: the answer's text, trimmed, is the reference.

use g2rl_common::config::ExactOptions;

use super::{Reward, Verdict, after_thinking};

/// See the module's documentation.
#[derive(Debug, Clone, Copy, Default)]
pub struct ExactReward {
    options: ExactOptions,
}

impl ExactReward {
    /// A reward with these options.
    #[must_use]
    pub fn new(options: ExactOptions) -> Self {
        Self { options }
    }
}

/// Trimmed, and in small letters where capitals do not matter.
pub(super) fn normal(text: &str, case_insensitive: bool) -> String {
    let text = text.trim();
    if case_insensitive { text.to_lowercase() } else { text.to_owned() }
}

/// The verdict on an answer that was found.
pub(super) fn compare(gold: &str, answer: &str, case_insensitive: bool) -> Verdict {
    let (gold, canonical) = (normal(gold, case_insensitive), normal(answer, case_insensitive));
    let correct = gold == canonical;
    Verdict {
        correct,
        extracted: Some(answer.trim().to_owned()),
        canonical: Some(canonical),
        reason: if correct { "equal".to_owned() } else { format!("not equal to {gold}") },
    }
}

impl Reward for ExactReward {
    fn name(&self) -> &'static str {
        "exact"
    }

    fn verify(&self, gold: &str, response: &str) -> Verdict {
        let answer = if self.options.after_thinking { after_thinking(response) } else { response };
        if answer.trim().is_empty() {
            return Verdict::without_answer("no answer");
        }
        compare(gold, answer, self.options.case_insensitive)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trimmed_texts_are_compared() {
        let exact = ExactReward::default();
        assert!(exact.verify("Paris", " Paris\n").correct);
        assert!(exact.verify(" Paris ", "<think>Rome?</think>\nParis").correct);
        for wrong in ["paris", "Paris.", "", "<think>Paris", "Paris</think>"] {
            assert!(!exact.verify("Paris", wrong).correct, "{wrong}");
        }
        assert_eq!(exact.verify("", " ").reason, "no answer");
    }

    #[test]
    fn options() {
        let case_insensitive =
            ExactReward::new(ExactOptions { case_insensitive: true, after_thinking: true });
        let verdict = case_insensitive.verify("Ärger", "ÄRGER");
        assert!(verdict.correct);
        assert_eq!(verdict.canonical.as_deref(), Some("ärger"));
        assert_eq!(verdict.extracted.as_deref(), Some("ÄRGER"));
        let whole = ExactReward::new(ExactOptions { case_insensitive: false, after_thinking: false });
        assert!(!whole.verify("b", "<think>a</think>b").correct);
        assert!(whole.verify("<think>a</think>b", "<think>a</think>b").correct);
    }
}
