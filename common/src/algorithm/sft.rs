//! Supervised fine-tuning: given solutions y are imitated, so there is nothing to compare.
//!
//! loss = c x mean over response tokens of -log pi(y_t | y_<t), with c = `objective.imitation_coef` and the
//! mean of `objective.aggregation`. As the only algorithm it needs no rollouts and all advantages are 0. Next
//! to another algorithm the same loss is added by the section `[imitation]`
//! ([`crate::config::ImitationConfig`]).

use super::{Algorithm, Needs};

/// Imitation of given solutions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sft;

impl Algorithm for Sft {
    fn name(&self) -> &'static str {
        "sft"
    }

    fn needs(&self) -> Needs {
        Needs { rollouts: false, ..Needs::default() }
    }
}
