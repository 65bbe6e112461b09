//! The simulator finds bugs: each of these is planted into the machine's decisions, and found.

use super::first_failure;
use crate::state::planted::{self, Bug};

/// Schedules within which each bug is found.
const SCHEDULES: u64 = 5_000;

#[test]
fn every_planted_bug_is_found() {
    let mut missed = Vec::new();
    for bug in Bug::ALL {
        match planted::with(bug, || first_failure(0..SCHEDULES)) {
            Some((seed, message)) => {
                let line = message.lines().next().unwrap_or_default();
                println!("{bug:?}: schedule {seed}: {line}");
            }
            None => missed.push(bug),
        }
    }
    assert!(missed.is_empty(), "{SCHEDULES} schedules do not find {missed:?}");
}
