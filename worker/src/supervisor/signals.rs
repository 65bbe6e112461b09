//! Signals to the supervisor are signals to its ranks.

use std::convert::Infallible;

use rustix::process::Signal;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::Order;

/// The name in messages.
pub(super) fn name(signal: Signal) -> &'static str {
    match signal {
        Signal::INT => "SIGINT",
        Signal::TERM => "SIGTERM",
        _ => "a signal",
    }
}

/// Passes the first SIGINT or SIGTERM on; the second kills.
pub(super) async fn pass_on(orders: &watch::Sender<Order>) -> Infallible {
    let (Ok(mut interrupt), Ok(mut terminate)) =
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        // Without handlers the signals' default action ends the process, and that its ranks.
        return std::future::pending().await;
    };
    loop {
        let received = tokio::select! {
            _ = interrupt.recv() => Signal::INT,
            _ = terminate.recv() => Signal::TERM,
        };
        orders.send_modify(|order| {
            *order = match *order {
                Order::Run | Order::RunOver => Order::Stop(received),
                Order::Stop(_) | Order::Kill => Order::Kill,
            };
        });
        tracing::warn!(signal = name(received), "passed on to all ranks; once more to kill them");
    }
}
