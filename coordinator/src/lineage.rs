//! Names of policies: which course of which run an optimizer step belongs to.
//!
//! A [`RunId`] is `NAME-START.COURSE`. Every process of a run that goes on from the log's records keeps it, so that
//! workers keep their policies. A process that goes back to a checkpoint begins another course: what workers hold
//! of the one before has other roundings, or other steps altogether.
//!
//! Invariant: a later course of the same run has a greater number, so a coordinator with an old log can tell
//! workers of a later course from workers of an earlier one.

use std::time::SystemTime;

use g2rl_common::ids::RunId;

fn now() -> u128 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_micros()
}

/// The first course of a new run.
#[must_use]
pub fn begin(name: &str) -> RunId {
    let (start, process) = (now(), std::process::id());
    RunId(format!("{name}-{start:x}{process:x}.{start:x}"))
}

/// Another course of the run.
#[must_use]
pub fn next(before: &RunId) -> RunId {
    let (run, course) = parts(before);
    RunId(format!("{run}.{:x}", now().max(course + 1)))
}

/// Whether one is a later course of the same run than the other.
#[must_use]
pub fn is_later(one: &RunId, other: &RunId) -> bool {
    let ((run, course), (other_run, other_course)) = (parts(one), parts(other));
    run == other_run && course > other_course
}

/// The run and the number of the course; 0 where there is none.
fn parts(id: &RunId) -> (&str, u128) {
    let split = id.0.rsplit_once('.');
    let parsed = split.and_then(|(run, course)| Some((run, u128::from_str_radix(course, 16).ok()?)));
    parsed.unwrap_or((&id.0, 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn courses_of_a_run_are_in_order_and_runs_are_not() {
        let first = begin("my.run");
        let second = next(&first);
        let third = next(&second);
        assert!(is_later(&second, &first) && is_later(&third, &second) && is_later(&third, &first));
        assert!(!is_later(&first, &second) && !is_later(&first, &first));
        let other = begin("other");
        assert!(!is_later(&next(&other), &first) && !is_later(&first, &other));
        // Names from elsewhere.
        assert!(!is_later(&"my.run".into(), &"my.run".into()) && next(&"demo".into()).0.starts_with("demo."));
    }
}
