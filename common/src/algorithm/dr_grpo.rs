//! Dr. GRPO (arXiv 2503.20783, "Understanding R1-Zero-Like Training"): GRPO without two biases.
//!
//! - A_i = r_i - mean r, not divided by the standard deviation, which would favour prompts that are
//!   almost always or almost never solved ([`crate::advantage::AdvantageKind::MeanOnly`]).
//! - Every response token weighs 1 / (sequences x L_max), not 1 / (sequences x its response's
//!   length), which would favour short right answers and long wrong ones
//!   ([`crate::objective::Aggregation::Constant`]).
//! - No KL term.
//!
//! The preset takes the longest response allowed as L_max.

use super::Algorithm;

/// GRPO done right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct DrGrpo;

impl Algorithm for DrGrpo {
    fn name(&self) -> &'static str {
        "dr_grpo"
    }

    fn preset(&self, max_new_tokens: u32) -> String {
        format!(
            "[algorithm]\nadvantage = \"mean_only\"\n\
             [objective]\nkl_coef = 0.0\naggregation = {{ constant = {{ tokens = {max_new_tokens} }} }}\n"
        )
    }
}
