//! Deaths at named points, for tests of recovery.
//!
//! `G2RL_FAILPOINT=point:n` kills this process without any farewell when it comes to the point for the
//! n-th time; `point:n:stop` stops it as SIGSTOP does, `point:n:hang` blocks the thread that comes there for ever.
//! Without the variable a point costs one comparison.
//!
//! | point | where |
//! |---|---|
//! | `rollout` | a rollout is finished, not yet sent |
//! | `gradients` | before the first all-reduce of a mini-batch |
//! | `ready` | gradients are summed, not yet reported |
//! | `after_ready` | they are reported |
//! | `apply` | told to do the optimizer step, before it |
//! | `after_apply` | after the optimizer step, not yet reported |
//! | `checkpoint` | before the first byte of a checkpoint |

use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

/// The variable's name.
pub const VARIABLE: &str = "G2RL_FAILPOINT";

struct Failpoint {
    point: String,
    left: AtomicU32,
    end: End,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Signal(&'static str),
    Hang,
}

fn parse(text: &str) -> Option<Failpoint> {
    let mut parts = text.split(':');
    let (point, count) = (parts.next()?.to_owned(), parts.next()?.parse().ok()?);
    let end = match parts.next() {
        None => End::Signal("-KILL"),
        Some("stop") => End::Signal("-STOP"),
        Some("hang") => End::Hang,
        Some(_) => return None,
    };
    Some(Failpoint { point, left: AtomicU32::new(count), end })
}

/// Dies here if a test wants it.
pub fn reach(point: &str) {
    static CHOSEN: OnceLock<Option<Failpoint>> = OnceLock::new();
    let chosen = CHOSEN.get_or_init(|| parse(&std::env::var(VARIABLE).ok()?));
    let Some(chosen) = chosen.as_ref().filter(|chosen| chosen.point == point) else { return };
    if chosen.left.fetch_sub(1, Ordering::Relaxed) != 1 {
        return;
    }
    tracing::warn!(point, end = ?chosen.end, "failpoint");
    match chosen.end {
        End::Signal(signal) => {
            let pid = std::process::id().to_string();
            // A machine without `kill` has no such tests.
            let _ = Command::new("kill").args([signal, &pid]).status();
        }
        End::Hang => loop {
            std::thread::park();
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failpoint_is_a_point_a_count_and_what_to_do() {
        let parsed = |text| parse(text).map(|f| (f.point, f.left.into_inner(), f.end));
        assert_eq!(parsed("apply:2"), Some(("apply".to_owned(), 2, End::Signal("-KILL"))));
        assert_eq!(parsed("rollout:1:stop"), Some(("rollout".to_owned(), 1, End::Signal("-STOP"))));
        assert_eq!(parsed("ready:1:hang"), Some(("ready".to_owned(), 1, End::Hang)));
        assert_eq!([parsed("apply"), parsed("apply:x"), parsed("apply:1:jump")], [None, None, None]);
    }
}
