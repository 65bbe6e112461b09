//! The journal's two threads: one writes rows, the other the write-ahead log.
//!
//! Two, because a promise waits for the log only: rows of a thousand groups and their transaction would keep every
//! "apply" waiting. A position is where they meet: the log takes it, and forgets what was before, when the rows
//! that were given before it are on the disk.

use std::sync::mpsc::{Receiver, SyncSender};

use anyhow::Context;
use rusqlite::Connection;
use tokio::sync::oneshot;

use super::writer::Sink;
use crate::wal::{Entry, Wal};

/// Writes rows inside a transaction.
pub(super) type Rows = Box<dyn FnOnce(&Connection) -> rusqlite::Result<()> + Send>;

/// What the rows' thread is given.
pub(super) enum RowsWrite {
    Rows(Rows),
    /// Everything before is to be on the disk; then this is told.
    Commit(SyncSender<()>),
}

/// The database, in a transaction for each batch.
pub(super) struct RowsSink(pub(super) Connection);

impl Sink for RowsSink {
    type Write = RowsWrite;

    fn begin(&mut self) -> anyhow::Result<()> {
        Ok(self.0.execute_batch("BEGIN")?)
    }

    fn write(&mut self, write: RowsWrite) -> anyhow::Result<()> {
        match write {
            RowsWrite::Rows(write) => write(&self.0)?,
            RowsWrite::Commit(done) => {
                self.0.execute_batch("COMMIT; BEGIN")?;
                // The log's thread may have failed; it has said so.
                let _ = done.send(());
            }
        }
        Ok(())
    }

    fn end(&mut self) -> anyhow::Result<()> {
        Ok(self.0.execute_batch("COMMIT")?)
    }
}

/// What the log's thread is given.
pub(super) enum LogWrite {
    /// The log that entries go to from now on.
    Log(Wal),
    Entry(Box<Entry>),
    /// A position, and where the rows' thread says that what came before is on the disk.
    Position(Box<Entry>, Receiver<()>),
    /// Everything before is to be on the disk; then this is told.
    Sync(oneshot::Sender<()>),
}

/// The write-ahead log, once there is one.
#[derive(Default)]
pub(super) struct LogSink(Option<Wal>);

impl LogSink {
    fn log(&mut self) -> anyhow::Result<&mut Wal> {
        self.0.as_mut().context("no log is there to be written")
    }
}

impl Sink for LogSink {
    type Write = LogWrite;

    fn begin(&mut self) -> anyhow::Result<()> {
        Ok(())
    }

    fn write(&mut self, write: LogWrite) -> anyhow::Result<()> {
        match write {
            LogWrite::Log(wal) => self.0 = Some(wal),
            LogWrite::Entry(entry) => self.log()?.append(&entry)?,
            LogWrite::Position(entry, rows) => {
                rows.recv().context("the rows before a position are not on the disk")?;
                self.log()?.append(&entry)?;
            }
            LogWrite::Sync(done) => {
                self.log()?.sync()?;
                // Who has given up waiting has said so.
                let _ = done.send(());
            }
        }
        Ok(())
    }

    fn end(&mut self) -> anyhow::Result<()> {
        Ok(self.0.as_mut().map_or(Ok(()), Wal::flush)?)
    }
}
