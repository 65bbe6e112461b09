//! `/api/events`: the run's state once a second, as server-sent events.
//!
//! One task writes the state for all who listen, and only while somebody does. A stream ends by itself before the port's
//! gate would cut it; browsers come back.

use std::convert::Infallible;
use std::sync::{Arc, Weak};
use std::time::Duration;

use axum::response::sse::{Event, Sse};
use futures::stream::{self, Stream};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};

use super::{Inner, live};

/// Between two states.
const INTERVAL: Duration = Duration::from_secs(1);

/// Of a stream; the port keeps connections for a minute, and browsers open some before they need them.
const LIFETIME: Duration = Duration::from_secs(30);

/// Where states are left.
#[derive(Debug, Clone)]
pub(super) struct States(watch::Sender<Arc<str>>);

impl Default for States {
    fn default() -> Self {
        Self(watch::Sender::new("".into()))
    }
}

/// Writes states until nobody has the dashboard any more.
pub(super) async fn publish(dashboard: Weak<Inner>) {
    let mut ticks = tokio::time::interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(inner) = dashboard.upgrade() else { return };
        if inner.states.0.receiver_count() > 0 {
            inner.states.0.send_replace(current(&inner));
        }
    }
}

fn current(dashboard: &Inner) -> Arc<str> {
    serde_json::to_string(&live::state(dashboard)).unwrap_or_default().into()
}

/// A stream of states, the first of them at once.
pub(super) fn stream(dashboard: &Inner) -> Sse<impl Stream<Item = Result<Event, Infallible>> + use<>> {
    let mut heard = dashboard.states.0.subscribe();
    heard.mark_unchanged();
    let first = current(dashboard);
    let end = Instant::now() + LIFETIME;
    Sse::new(stream::unfold((heard, Some(first)), move |(mut heard, first)| async move {
        let state = match first {
            Some(first) => first,
            None => {
                tokio::time::timeout_at(end, heard.changed()).await.ok()?.ok()?;
                heard.borrow_and_update().clone()
            }
        };
        let event = Event::default().event("state").retry(INTERVAL).data(&*state);
        Some((Ok(event), (heard, None)))
    }))
}
