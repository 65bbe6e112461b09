//! A thread that writes what it is given, in order, in batches of whatever is queued.
//!
//! How far it is behind can be asked at any time; a batch that takes longer than the limit is taken for hung.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Writes that wait for the disk: a few steps of the largest runs.
const QUEUE: usize = 1 << 16;

/// Writes of a batch.
const BATCH: usize = 4096;

/// Where a thread's writes go.
pub(super) trait Sink: Send + 'static {
    /// What it is given.
    type Write: Send + 'static;

    /// A batch begins.
    fn begin(&mut self) -> anyhow::Result<()>;

    /// One write of a batch.
    fn write(&mut self, write: Self::Write) -> anyhow::Result<()>;

    /// A batch ends: a killed process does not take it with it.
    fn end(&mut self) -> anyhow::Result<()>;
}

/// The way to the thread.
pub(super) struct Writer<W> {
    writes: Option<SyncSender<W>>,
    /// Says nothing, and ends with the thread.
    lives: Receiver<()>,
    backlog: Arc<Backlog>,
    limit: Duration,
}

/// How far the thread is behind.
#[derive(Debug, Default)]
struct Backlog {
    writes: AtomicUsize,
    /// When its batch began.
    since: Mutex<Option<Instant>>,
}

impl Backlog {
    fn set_since(&self, since: Option<Instant>) {
        *self.since.lock().unwrap_or_else(PoisonError::into_inner) = since;
    }
}

impl<W> fmt::Debug for Writer<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writer")
            .field("backlog", &self.backlog)
            .field("limit", &self.limit)
            .finish_non_exhaustive()
    }
}

impl<W: Send + 'static> Writer<W> {
    /// Starts the thread; `failed` hears what ends it too early.
    ///
    /// # Errors
    /// If the system starts no thread.
    pub(super) fn start(
        name: &str,
        mut sink: impl Sink<Write = W>,
        limit: Duration,
        failed: impl FnOnce(anyhow::Error) + Send + 'static,
    ) -> std::io::Result<Self> {
        let (writes, queue) = sync_channel(QUEUE);
        let (ends, lives) = sync_channel(0);
        let backlog = Arc::new(Backlog::default());
        let behind = backlog.clone();
        std::thread::Builder::new().name(name.into()).spawn(move || {
            let _ends: SyncSender<()> = ends;
            if let Err(error) = write_all(&mut sink, &queue, &behind) {
                failed(error);
            }
        })?;
        Ok(Self { writes: Some(writes), lives, backlog, limit })
    }

    pub(super) fn queue(&self, write: W) {
        if let Some(writes) = &self.writes {
            self.backlog.writes.fetch_add(1, Ordering::Relaxed);
            // Where the queue is full this waits for the disk, under the watch over the shell's loop. A closed
            // channel means that the thread failed and has said so.
            let _ = writes.send(write);
        }
    }

    /// Writes that wait, and for how long the batch under way has been.
    pub(super) fn backlog(&self) -> (usize, Duration) {
        let since = *self.backlog.since.lock().unwrap_or_else(PoisonError::into_inner);
        let writing = since.map_or(Duration::ZERO, |since| since.elapsed());
        (self.backlog.writes.load(Ordering::Relaxed), writing)
    }

    /// How long a batch may take.
    pub(super) fn limit(&self) -> Duration {
        self.limit
    }
}

impl<W> Drop for Writer<W> {
    /// Writes what is queued, as long as that goes on.
    fn drop(&mut self) {
        drop(self.writes.take());
        let waiting = || self.backlog.writes.load(Ordering::Relaxed);
        let mut before = waiting();
        // A panic of the thread has been printed; there is nothing left to write.
        while let Err(RecvTimeoutError::Timeout) = self.lives.recv_timeout(self.limit) {
            if waiting() >= before {
                tracing::error!(waiting = waiting(), "what is queued does not get to the disk");
                return;
            }
            before = waiting();
        }
    }
}

/// Writes until the channel is closed and empty.
fn write_all<S: Sink>(sink: &mut S, queue: &Receiver<S::Write>, backlog: &Backlog) -> anyhow::Result<()> {
    while let Ok(first) = queue.recv() {
        backlog.set_since(Some(Instant::now()));
        sink.begin()?;
        let mut written = 0;
        for write in std::iter::once(first).chain(queue.try_iter().take(BATCH)) {
            sink.write(write)?;
            written += 1;
        }
        sink.end()?;
        backlog.writes.fetch_sub(written, Ordering::Relaxed);
        backlog.set_since(None);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ends no write before it is told to.
    struct Hanging(Receiver<()>);

    impl Sink for Hanging {
        type Write = ();

        fn begin(&mut self) -> anyhow::Result<()> {
            Ok(())
        }

        fn write(&mut self, (): ()) -> anyhow::Result<()> {
            // Until the test is over.
            let _ = self.0.recv();
            Ok(())
        }

        fn end(&mut self) -> anyhow::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_write_that_hangs_is_seen_and_not_waited_for_at_the_end() {
        const LIMIT: Duration = Duration::from_millis(20);
        let (free, wait) = sync_channel::<()>(0);
        let writer = Writer::start("test", Hanging(wait), LIMIT, |error| panic!("{error}")).unwrap();
        assert_eq!(writer.backlog(), (0, Duration::ZERO));
        writer.queue(());
        while writer.backlog().1 < LIMIT {
            std::thread::yield_now();
        }
        assert_eq!(writer.backlog().0, 1);
        drop(writer);
        drop(free);
    }
}
