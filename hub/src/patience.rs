//! A wait for the network that ends once nothing comes any more: the client has no deadline of its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

/// Runs `work` on a thread of its own and waits for it as long as `moved` changes within each `limit`. `None` if it
/// does not, or if the work panics; a thread that hangs is left behind.
pub(crate) fn wait<T: Send + 'static>(
    limit: Duration,
    moved: &Arc<AtomicU64>,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let (done, result) = channel();
    std::thread::spawn(move || {
        // Nobody listens once the wait was given up.
        let _ = done.send(work());
    });
    let mut before = moved.load(Ordering::Relaxed);
    loop {
        match result.recv_timeout(limit) {
            Ok(result) => return Some(result),
            Err(RecvTimeoutError::Disconnected) => return None,
            Err(RecvTimeoutError::Timeout) => {
                let now = moved.load(Ordering::Relaxed);
                if now == before {
                    return None;
                }
                before = now;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_that_moves_is_waited_for_and_work_that_does_not_is_given_up() {
        let limit = Duration::from_millis(50);
        let moved = Arc::new(AtomicU64::new(0));
        assert_eq!(wait(limit, &moved, || 7), Some(7));

        let (until, over) = channel::<()>();
        assert_eq!(wait(limit, &moved, move || over.recv().is_ok()), None);
        drop(until);

        // Three times as long as the limit.
        let moves = moved.clone();
        let slow = move || {
            let start = std::time::Instant::now();
            while start.elapsed() < 3 * limit {
                moves.fetch_add(1, Ordering::Relaxed);
                std::thread::yield_now();
            }
            8
        };
        assert_eq!(wait(limit, &moved, slow), Some(8));
    }
}
