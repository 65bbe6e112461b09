//! `log -> alerts -> terminal, dashboard`: the newest warnings and errors of this process, for people who do not read
//! the log.
//!
//! In: what is logged, through [`AlertLayer`]. Out: the newest one, or all that are kept: at most fifty, of at most 400
//! bytes each.

use std::collections::VecDeque;
use std::fmt::Write;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

/// Alerts that are kept.
const KEPT: usize = 50;

/// Longest text that is kept, bytes; more than a line.
const MAX_TEXT: usize = 400;

static ALERTS: Mutex<Alerts> = Mutex::new(Alerts { newest: VecDeque::new(), seen: 0 });

/// Something that a person should look at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Alert {
    /// Milliseconds since 1970.
    pub(crate) at_ms: i64,
    pub(crate) is_error: bool,
    pub(crate) text: String,
}

#[derive(Debug)]
struct Alerts {
    newest: VecDeque<Alert>,
    /// Since the process began.
    seen: u64,
}

impl Alerts {
    fn push(&mut self, alert: Alert) {
        if self.newest.len() == KEPT {
            self.newest.pop_front();
        }
        self.newest.push_back(alert);
        self.seen += 1;
    }
}

fn alerts() -> MutexGuard<'static, Alerts> {
    // Whoever holds it only moves values in or out.
    ALERTS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The newest one.
pub(crate) fn newest() -> Option<Alert> {
    alerts().newest.back().cloned()
}

/// Those that are kept, the newest last.
pub(crate) fn all() -> Vec<Alert> {
    alerts().newest.iter().cloned().collect()
}

/// How many there were since the process began.
pub(crate) fn seen() -> u64 {
    alerts().seen
}

/// Keeps warnings and errors.
#[derive(Debug, Clone, Copy)]
pub struct AlertLayer;

impl<S: Subscriber> Layer<S> for AlertLayer {
    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        let level = *event.metadata().level();
        if level <= Level::WARN
            && let Some(text) = text(event)
        {
            let at_ms = chrono::Utc::now().timestamp_millis();
            alerts().push(Alert { at_ms, is_error: level == Level::ERROR, text });
        }
    }
}

/// Message and fields in one line; `None` for a stall report, which is shown as such.
fn text(event: &Event<'_>) -> Option<String> {
    let mut words = Words::default();
    event.record(&mut words);
    if words.message.starts_with("stall report") {
        return None;
    }
    let text = words.message + &words.fields;
    let plain = |character: char| if character.is_control() { ' ' } else { character };
    let mut text =
        text.chars().map(plain).collect::<String>().split_whitespace().collect::<Vec<_>>().join(" ");
    text.truncate(text.floor_char_boundary(MAX_TEXT));
    Some(text)
}

#[derive(Default)]
struct Words {
    message: String,
    fields: String,
}

impl Visit for Words {
    /// Without quotes: this is for people.
    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        // Writing to a string cannot fail.
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    /// The only test of this process's alerts: others that log have no layer.
    #[test]
    fn warnings_and_errors_are_kept_in_one_line() {
        let subscriber = tracing_subscriber::registry().with(AlertLayer);
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!("all is well");
            tracing::warn!(epoch = 3, cause = %"no\nroute", who = "rank 1", "epoch {}", "ended");
            tracing::warn!(report = "{}", "stall report");
            tracing::error!("{}", "ä".repeat(1000));
        });
        let kept: Vec<_> = all().into_iter().map(|alert| (alert.is_error, alert.text)).collect();
        assert_eq!(kept[0], (false, "epoch ended epoch=3 cause=no route who=rank 1".to_owned()));
        assert_eq!((kept.len(), kept[1].0, kept[1].1.len()), (2, true, MAX_TEXT));
        assert_eq!((newest().map(|alert| alert.is_error), seen()), (Some(true), 2));
    }

    #[test]
    fn the_oldest_go() {
        let mut alerts = Alerts { newest: VecDeque::new(), seen: 0 };
        for at_ms in 0..KEPT as i64 + 3 {
            alerts.push(Alert { at_ms, is_error: false, text: String::new() });
        }
        assert_eq!((alerts.newest.len(), alerts.newest[0].at_ms, alerts.seen), (KEPT, 3, KEPT as u64 + 3));
    }
}
