//! Connections that read the journal.
//!
//! Invariants: they cannot write; a writer never waits for them (the journal is in WAL mode), and they never hold a
//! transaction longer than one page or one step. At most [`CONNECTIONS`] are kept, each with [`CACHE_KIB`] of pages.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};

use crate::journal;

/// Kept for later: one for each page that is answered at the same time.
pub(super) const CONNECTIONS: usize = 4;

/// Of each.
const CACHE_KIB: i64 = 4096;

/// Only while the journal is opened or recovered is anybody kept waiting.
const BUSY: Duration = Duration::from_secs(2);

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Readers {
    path: PathBuf,
    idle: Mutex<Vec<Connection>>,
}

impl Readers {
    pub(super) fn new(dir: &Path) -> Self {
        Self { path: journal::path(dir), idle: Mutex::default() }
    }

    /// The journal's file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Lends a connection; one that failed is not kept.
    pub(super) fn with<T>(
        &self,
        read: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> rusqlite::Result<T> {
        let idle = || self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = idle().pop();
        let db = match kept {
            Some(db) => db,
            None => self.open()?,
        };
        let value = read(&db)?;
        let mut idle = idle();
        if idle.len() < CONNECTIONS {
            idle.push(db);
        }
        Ok(value)
    }

    /// A connection of one's own.
    pub(super) fn open(&self) -> rusqlite::Result<Connection> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let db = Connection::open_with_flags(&self.path, flags)?;
        db.busy_timeout(BUSY)?;
        db.pragma_update(None, "cache_size", -CACHE_KIB)?;
        db.set_prepared_statement_cache_capacity(32);
        Ok(db)
    }
}
