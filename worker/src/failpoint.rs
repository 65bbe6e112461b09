//! Deaths at named points, for tests of recovery.
//!
//! `G2RL_FAILPOINT=point:n` kills this process without any farewell when it comes to the point for the
//! n-th time; `point:n:stop` stops it as SIGSTOP does; `point:n:hang` blocks the thread that comes there for ever;
//! `point:n:full` lets a write fail as on a full disk. Without the variable a point costs one comparison.
//!
//! | point | where |
//! |---|---|
//! | `idle` | nothing to do, the next command is waited for |
//! | `join` | in a new epoch's process group, before the policy is shared |
//! | `prefill` | before a prompt goes through the model |
//! | `rollout` | a rollout is finished, not yet sent |
//! | `gradients` | before the first all-reduce of a mini-batch |
//! | `all_reduce` | between two of its all-reduces |
//! | `ready` | gradients are summed, not yet reported |
//! | `after_ready` | they are reported |
//! | `apply` | told to do the optimizer step, before it |
//! | `gather` | between the optimizer step and the gather of the new weights, with `optimizer.shard` |
//! | `after_apply` | after the optimizer step, not yet reported |
//! | `checkpoint` | told to write a checkpoint, before the state is copied |
//! | `checkpoint_write` | the model's files of a checkpoint are written, the others not |
//! | `checkpoint_report` | the checkpoint has its name, not yet reported |

use std::io;
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

/// The variable's name.
pub const VARIABLE: &str = "G2RL_FAILPOINT";

struct Failpoint {
    point: String,
    left: AtomicU32,
    action: Action,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    /// This process gets a signal.
    Signal(&'static str),
    /// This thread never goes on.
    Hang,
    /// A write fails.
    Full,
}

fn parse(text: &str) -> Option<Failpoint> {
    let mut parts = text.split(':');
    let (point, count) = (parts.next()?.to_owned(), parts.next()?.parse().ok()?);
    let action = match parts.next() {
        None => Action::Signal("-KILL"),
        Some("stop") => Action::Signal("-STOP"),
        Some("hang") => Action::Hang,
        Some("full") => Action::Full,
        Some(_) => return None,
    };
    Some(Failpoint { point, left: AtomicU32::new(count), action })
}

/// What a test wants to happen here, now.
fn wanted(point: &str) -> Option<Action> {
    static CHOSEN: OnceLock<Option<Failpoint>> = OnceLock::new();
    let chosen = CHOSEN.get_or_init(|| parse(&std::env::var(VARIABLE).ok()?));
    let chosen = chosen.as_ref().filter(|chosen| chosen.point == point)?;
    if chosen.left.fetch_sub(1, Ordering::Relaxed) != 1 {
        return None;
    }
    tracing::warn!(point, action = ?chosen.action, "failpoint");
    Some(chosen.action)
}

/// Dies here if a test wants it.
pub fn reach(point: &str) {
    // Nothing is written here that could fail.
    let _ = reach_writing(point);
}

/// The same where something is written, which may also fail.
///
/// # Errors
/// That of a full disk, if a test wants it.
pub fn reach_writing(point: &str) -> io::Result<()> {
    match wanted(point) {
        None => Ok(()),
        Some(Action::Full) => Err(io::ErrorKind::StorageFull.into()),
        Some(Action::Hang) => loop {
            std::thread::park();
        },
        Some(Action::Signal(name)) => {
            let pid = std::process::id().to_string();
            // A machine without `kill` has no such tests.
            let _ = Command::new("kill").args([name, &pid]).status();
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failpoint_is_a_point_a_count_and_what_to_do() {
        let parsed = |text| parse(text).map(|f| (f.point, f.left.into_inner(), f.action));
        assert_eq!(parsed("apply:2"), Some(("apply".to_owned(), 2, Action::Signal("-KILL"))));
        assert_eq!(parsed("rollout:1:stop"), Some(("rollout".to_owned(), 1, Action::Signal("-STOP"))));
        assert_eq!(parsed("ready:1:hang"), Some(("ready".to_owned(), 1, Action::Hang)));
        assert_eq!(parsed("write:1:full"), Some(("write".to_owned(), 1, Action::Full)));
        assert_eq!([parsed("apply"), parsed("apply:x"), parsed("apply:1:jump")], [None, None, None]);
    }
}
