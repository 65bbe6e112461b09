//! Circuit breaker: after too many failures in a row the service counts as down, and one request at a
//! time asks whether it is back.
//!
//! Without clock or I/O: every method is told the time.

use std::time::{Duration, Instant};

/// Whether a request may go out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Admission {
    /// It may. While the service is down, this request is the one that asks.
    Go,
    /// Look again then.
    NotBefore(Instant),
    /// Another request is asking; look again when it is done.
    AfterProbe,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The service is up; so many failures in a row.
    Closed { failures: u32 },
    /// Down; the next request may go then.
    Open { next: Instant },
    /// Down; a request is under way.
    Probing,
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Breaker {
    limit: u32,
    probe_every: Duration,
    state: State,
    down_since: Option<Instant>,
}

impl Breaker {
    /// Opens after `limit` failures in a row, and then lets a request out every `probe_every`.
    pub(super) fn new(limit: u32, probe_every: Duration) -> Self {
        Self { limit, probe_every, state: State::Closed { failures: 0 }, down_since: None }
    }

    /// Since when the service is down.
    pub(super) fn down_since(&self) -> Option<Instant> {
        self.down_since
    }

    pub(super) fn admit(&mut self, now: Instant) -> Admission {
        match self.state {
            State::Closed { .. } => Admission::Go,
            State::Open { next } if now < next => Admission::NotBefore(next),
            State::Open { .. } => {
                self.state = State::Probing;
                Admission::Go
            }
            State::Probing => Admission::AfterProbe,
        }
    }

    /// A request was answered. Returns since when the service had been down.
    pub(super) fn succeeded(&mut self) -> Option<Instant> {
        self.state = State::Closed { failures: 0 };
        self.down_since.take()
    }

    /// A request failed; `last_attempt` if it may not be tried again while the service counts as up.
    /// Returns whether the service is down now.
    pub(super) fn failed(&mut self, now: Instant, last_attempt: bool) -> bool {
        if let State::Closed { failures } = self.state
            && failures + 1 < self.limit
            && !last_attempt
        {
            self.state = State::Closed { failures: failures + 1 };
            return false;
        }
        self.state = State::Open { next: now + self.probe_every };
        self.down_since.get_or_insert(now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn opens_after_failures_in_a_row_and_closes_with_a_success() {
        let start = Instant::now();
        let mut breaker = Breaker::new(3, 10 * SECOND);
        assert!(!breaker.failed(start, false));
        assert!(!breaker.failed(start, false));
        // A success begins the count anew.
        assert_eq!(breaker.succeeded(), None);
        assert!(!breaker.failed(start, false));
        assert!(!breaker.failed(start, false));
        assert_eq!(breaker.admit(start), Admission::Go);
        assert!(breaker.failed(start, false));
        assert_eq!(breaker.admit(start + SECOND), Admission::NotBefore(start + 10 * SECOND));
        // One request asks; the others wait for it.
        assert_eq!(breaker.admit(start + 10 * SECOND), Admission::Go);
        assert_eq!(breaker.admit(start + 10 * SECOND), Admission::AfterProbe);
        assert!(breaker.failed(start + 11 * SECOND, false));
        assert_eq!(breaker.admit(start + 12 * SECOND), Admission::NotBefore(start + 21 * SECOND));
        assert_eq!(breaker.admit(start + 21 * SECOND), Admission::Go);
        assert_eq!(breaker.succeeded(), Some(start));
        assert_eq!(breaker.admit(start + 21 * SECOND), Admission::Go);
        assert_eq!(breaker.down_since(), None);
    }

    #[test]
    fn a_request_without_attempts_left_opens_it() {
        let start = Instant::now();
        let mut breaker = Breaker::new(100, SECOND);
        assert!(!breaker.failed(start, false));
        assert!(breaker.failed(start, true));
        assert_eq!(breaker.down_since(), Some(start));
    }
}
