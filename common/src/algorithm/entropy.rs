//! GRPO with an entropy bonus: the usual way to keep a policy exploring.
//!
//! loss = loss of GRPO - c x mean over response tokens of H_t, with H_t the entropy (nats) of the
//! policy's full distribution at token t and c = `objective.entropy_coef`
//! ([`crate::objective`]; the worker computes H_t and its gradient). The preset c = 0.001 is the one
//! that verl shipped for years; too large a coefficient flattens the policy.

use super::Algorithm;

/// GRPO with an entropy bonus.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entropy;

impl Algorithm for Entropy {
    fn name(&self) -> &'static str {
        "entropy"
    }

    fn preset(&self, _max_new_tokens: u32) -> String {
        "[objective]\nentropy_coef = 0.001\n".to_owned()
    }
}
