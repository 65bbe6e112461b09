//! Deaths at named points, for tests of recovery.
//!
//! `G2RL_COORDINATOR_FAILPOINT=point:n` kills this process without any farewell when it comes to the point for the
//! n-th time. Without the variable a point costs one comparison.
//!
//! | point | where |
//! |---|---|
//! | `accepted` | a rollout is recorded |
//! | `told` | the word to apply is on the disk, not yet sent |
//! | `after_apply` | it is sent |
//! | `done` | an optimizer step is recorded as done |
//! | `position` | a step or an evaluation is recorded as done |
//! | `checkpoint` | a checkpoint is asked for |

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

/// The variable's name.
const VARIABLE: &str = "G2RL_COORDINATOR_FAILPOINT";

fn parse(text: &str) -> Option<(String, AtomicU32)> {
    let (point, count) = text.split_once(':')?;
    Some((point.to_owned(), AtomicU32::new(count.parse().ok()?)))
}

/// Dies here if a test wants it.
pub(crate) fn reach(point: &str) {
    static CHOSEN: OnceLock<Option<(String, AtomicU32)>> = OnceLock::new();
    let chosen = CHOSEN.get_or_init(|| parse(&std::env::var(VARIABLE).ok()?));
    let Some((_, left)) = chosen.as_ref().filter(|(chosen, _)| chosen == point) else { return };
    if left.fetch_sub(1, Ordering::Relaxed) != 1 {
        return;
    }
    tracing::warn!(point, "failpoint");
    // A process that cannot be killed has no such tests.
    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failpoint_is_a_point_and_a_count() {
        let parsed = |text| parse(text).map(|(point, left)| (point, left.into_inner()));
        assert_eq!(parsed("told:2"), Some(("told".to_owned(), 2)));
        assert_eq!([parsed("told"), parsed("told:x")], [None, None]);
    }
}
