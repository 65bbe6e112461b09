//! How long the run has been paused by reward services that were down.

use std::time::{Duration, Instant};

use crate::reward::Outages;

/// Adds up the time of outages.
#[derive(Debug, Default)]
pub(crate) struct OutageClock {
    since: Option<Instant>,
    before: Duration,
}

impl OutageClock {
    /// Notes which services are down now.
    pub(crate) fn report(&mut self, outages: &Outages) {
        match (self.since, outages.0.is_empty()) {
            (None, false) => self.since = Some(Instant::now()),
            (Some(since), true) => {
                self.before += since.elapsed();
                self.since = None;
            }
            _ => {}
        }
    }

    /// A service is down.
    pub(crate) fn is_paused(&self) -> bool {
        self.since.is_some()
    }

    /// Time of all outages so far, the present one included.
    pub(crate) fn paused(&self) -> Duration {
        self.before + self.since.map_or(Duration::ZERO, |since| since.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_outages_count() {
        let down = Outages([("http://judge".to_owned(), "500".to_owned())].into());
        let mut clock = OutageClock::default();
        assert!(!clock.is_paused() && clock.paused() == Duration::ZERO);
        clock.report(&down);
        clock.report(&down);
        assert!(clock.is_paused());
        while clock.paused() < Duration::from_millis(2) {
            std::thread::yield_now();
        }
        clock.report(&Outages::default());
        let total = clock.paused();
        assert!(!clock.is_paused() && total >= Duration::from_millis(2));
        assert_eq!(clock.paused(), total);
    }
}
