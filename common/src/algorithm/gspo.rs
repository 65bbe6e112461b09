//! GSPO (arXiv 2507.18071): importance ratios and clipping of whole sequences.
//!
//! s_i = exp(1/|y_i| sum over t of (log pi(y_it) - log pi_old(y_it))) (equation 7) replaces the ratio of
//! each token, and the mean over sequences of min(s_i A_i, clip(s_i, 1 - low, 1 + high) A_i) is maximised
//! (equation 5). A_i is GRPO's. The arithmetic is [`crate::objective::sequence_objective`].
//!
//! Ratios of sequences lie much closer to 1 than those of tokens; the preset's clip of 3e-4 and 4e-4 is
//! the paper's (section 5.1).

use super::Algorithm;

/// Group sequence policy optimisation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Gspo;

impl Algorithm for Gspo {
    fn name(&self) -> &'static str {
        "gspo"
    }

    fn preset(&self, _max_new_tokens: u32) -> String {
        "[objective]\nratio = \"sequence\"\nclip_low = 3e-4\nclip_high = 4e-4\n\
         aggregation = \"sequence_mean_token_mean\"\n"
            .to_owned()
    }
}
