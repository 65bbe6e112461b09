//! The journal's thread: rows, and entries of the write-ahead log, in the order in which they were given.
//!
//! In: [`Write`]s. Out: transactions of whatever is queued. How far it is behind can be asked at any time; a
//! transaction that takes longer than the limit is taken for hung.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use rusqlite::Connection;
use tokio::sync::oneshot;

use crate::state::Record;
use crate::wal::{Entry, Wal};

/// Rows waiting for the disk: a few steps of the largest runs.
const QUEUE: usize = 1 << 16;

/// Rows of a transaction.
const BATCH: usize = 4096;

/// Writes rows inside a transaction.
pub(super) type Rows = Box<dyn FnOnce(&Connection) -> rusqlite::Result<()> + Send>;

/// What the writer is given.
pub(super) enum Write {
    /// Rows.
    Rows(Rows),
    /// The log that entries go to from now on.
    Log(Wal),
    Entry(Entry),
    /// Everything in the log is to be on the disk; then this is told.
    Sync(oneshot::Sender<()>),
}

/// The way to the thread.
#[derive(Debug)]
pub(super) struct Writer {
    writes: Option<SyncSender<Write>>,
    /// Says nothing, and ends with the thread.
    lives: Receiver<()>,
    backlog: Arc<Backlog>,
    limit: Duration,
}

/// How far the thread is behind.
#[derive(Debug, Default)]
struct Backlog {
    writes: AtomicUsize,
    /// When its transaction began.
    since: Mutex<Option<Instant>>,
}

impl Backlog {
    fn set_since(&self, since: Option<Instant>) {
        *self.since.lock().unwrap_or_else(PoisonError::into_inner) = since;
    }
}

impl Writer {
    /// Starts the thread; `failed` hears what ends it too early.
    ///
    /// # Errors
    /// If the system starts no thread.
    pub(super) fn start(
        connection: Connection,
        limit: Duration,
        failed: impl FnOnce(anyhow::Error) + Send + 'static,
    ) -> std::io::Result<Self> {
        let (writes, queue) = sync_channel(QUEUE);
        let (ends, lives) = sync_channel(0);
        let backlog = Arc::new(Backlog::default());
        let behind = backlog.clone();
        std::thread::Builder::new().name("journal".into()).spawn(move || {
            let _ends: SyncSender<()> = ends;
            if let Err(error) = write_all(&connection, &queue, &behind) {
                failed(error);
            }
        })?;
        Ok(Self { writes: Some(writes), lives, backlog, limit })
    }

    pub(super) fn queue(&self, write: Write) {
        if let Some(writes) = &self.writes {
            self.backlog.writes.fetch_add(1, Ordering::Relaxed);
            // Where the queue is full this waits for the disk, under the watch over the shell's loop. A closed
            // channel means that the thread failed and has said so.
            let _ = writes.send(write);
        }
    }

    /// Writes that wait, and for how long the transaction under way has been.
    pub(super) fn backlog(&self) -> (usize, Duration) {
        let since = *self.backlog.since.lock().unwrap_or_else(PoisonError::into_inner);
        let writing = since.map_or(Duration::ZERO, |since| since.elapsed());
        (self.backlog.writes.load(Ordering::Relaxed), writing)
    }

    /// How long what goes to the disk may take.
    pub(super) fn limit(&self) -> Duration {
        self.limit
    }

    /// The transaction under way takes longer than it may.
    pub(super) fn hangs(&self) -> bool {
        self.backlog().1 >= self.limit
    }
}

impl Drop for Writer {
    /// Writes what is queued, as long as that goes on.
    fn drop(&mut self) {
        drop(self.writes.take());
        let mut before = self.backlog().0;
        // A panic of the thread has been printed; there is nothing left to write.
        while let Err(RecvTimeoutError::Timeout) = self.lives.recv_timeout(self.limit) {
            let (waiting, writing) = self.backlog();
            if waiting >= before && self.hangs() {
                tracing::error!(waiting, ?writing, "the journal does not take its last rows");
                return;
            }
            before = waiting;
        }
    }
}

/// Writes until the channel is closed and empty.
fn write_all(connection: &Connection, queue: &Receiver<Write>, backlog: &Backlog) -> anyhow::Result<()> {
    let mut log: Option<Wal> = None;
    while let Ok(first) = queue.recv() {
        backlog.set_since(Some(Instant::now()));
        let mut transaction = connection.unchecked_transaction()?;
        let mut written = 0;
        for write in std::iter::once(first).chain(queue.try_iter().take(BATCH)) {
            match write {
                Write::Rows(write) => write(&transaction)?,
                Write::Log(wal) => log = Some(wal),
                Write::Entry(entry) => {
                    if matches!(entry.record, Record::Position { .. }) {
                        transaction.commit()?;
                        transaction = connection.unchecked_transaction()?;
                    }
                    log.as_mut().context("an entry came before the log")?.append(&entry)?;
                }
                Write::Sync(done) => {
                    log.as_mut().context("no log is there to be synced")?.sync()?;
                    // Who has given up waiting has said so.
                    let _ = done.send(());
                }
            }
            written += 1;
        }
        transaction.commit()?;
        if let Some(log) = &mut log {
            log.flush()?;
        }
        backlog.writes.fetch_sub(written, Ordering::Relaxed);
        backlog.set_since(None);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_that_hangs_is_seen_and_not_waited_for_at_the_end() {
        let connection = Connection::open_in_memory().unwrap();
        let writer = Writer::start(connection, Duration::from_millis(20), |error| panic!("{error}")).unwrap();
        assert!(!writer.hangs());
        let (free, wait) = sync_channel::<()>(0);
        writer.queue(Write::Rows(Box::new(move |_| {
            // Until the test is over.
            let _ = wait.recv();
            Ok(())
        })));
        while !writer.hangs() {
            std::thread::yield_now();
        }
        assert_eq!(writer.backlog().0, 1);
        drop(writer);
        drop(free);
    }
}
