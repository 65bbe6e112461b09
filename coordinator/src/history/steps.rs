//! The journal's rows of steps, read while a run may be writing them.

use std::path::Path;

use anyhow::anyhow;
use rusqlite::{Connection, OpenFlags, Row};

use crate::journal;

/// How long a coordinator that writes is waited for.
const BUSY: std::time::Duration = std::time::Duration::from_secs(5);

/// A completed step, as far as it is drawn or summed.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct StepRow {
    pub(crate) step: u64,
    pub(crate) policy_version: u64,
    pub(crate) reward: Option<f64>,
    pub(crate) correct: Option<f64>,
    pub(crate) length: Option<f64>,
    pub(crate) entropy: Option<f64>,
    pub(crate) kl: Option<f64>,
    pub(crate) novelty: Option<f64>,
    pub(crate) orthogonal: Option<f64>,
    pub(crate) negative: Option<f64>,
    pub(crate) cosine: Option<f64>,
    pub(crate) gradient_norm: Option<f64>,
    pub(crate) response_tokens: u64,
    pub(crate) rollout_ms: u64,
    pub(crate) shaping_ms: u64,
    pub(crate) update_ms: u64,
}

const COLUMNS: &str = "step, policy_version, reward, correct, length, entropy, kl, novelty, orthogonal_ratio, \
                       negative_ratio, mean_cosine, gradient_norm, response_tokens, rollout_ms, shaping_ms, update_ms";

/// Opens a run's journal for reading.
///
/// # Errors
/// If it is not there or cannot be read; names the file.
pub(crate) fn open(dir: &Path) -> anyhow::Result<Connection> {
    let path = journal::path(dir);
    if !path.is_file() {
        return Err(anyhow!("{} holds no run: {} is not there", dir.display(), path.display()));
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY;
    let usable = |db: Connection| -> rusqlite::Result<Connection> {
        db.busy_timeout(BUSY)?;
        db.query_row("SELECT COUNT(*) FROM sqlite_master", [], |_| Ok(()))?;
        Ok(db)
    };
    let opened = Connection::open_with_flags(&path, flags).and_then(usable);
    // Where nothing can be written, SQLite cannot share the file, and need not.
    let opened = opened.or_else(|error| {
        let absolute = std::path::absolute(&path).unwrap_or_else(|_| path.clone());
        let name = absolute.display().to_string().replace('%', "%25").replace('?', "%3f").replace('#', "%23");
        let immutable = format!("file:{name}?immutable=1");
        let flags = flags | OpenFlags::SQLITE_OPEN_URI;
        Connection::open_with_flags(immutable, flags).and_then(usable).map_err(|_| error)
    });
    opened.map_err(|error| unreadable(dir, &error))
}

/// An error that names the journal.
pub(crate) fn unreadable(dir: &Path, error: &rusqlite::Error) -> anyhow::Error {
    anyhow!("cannot read journal {}: {error}", journal::path(dir).display())
}

/// All steps, or the last one only, in their order.
///
/// # Errors
/// If the journal cannot be read; names the file.
pub(crate) fn read_steps(db: &Connection, dir: &Path, last_only: bool) -> anyhow::Result<Vec<StepRow>> {
    let order = if last_only { "DESC LIMIT 1" } else { "ASC" };
    let read = || -> rusqlite::Result<Vec<StepRow>> {
        let mut query = db.prepare(&format!("SELECT {COLUMNS} FROM step ORDER BY step {order}"))?;
        query.query_map([], row)?.collect()
    };
    read().map_err(|error| unreadable(dir, &error))
}

fn row(row: &Row<'_>) -> rusqlite::Result<StepRow> {
    // What is not finite is NULL.
    let count = |at: usize| row.get::<_, Option<u64>>(at).map(Option::unwrap_or_default);
    Ok(StepRow {
        step: row.get(0)?,
        policy_version: count(1)?,
        reward: row.get(2)?,
        correct: row.get(3)?,
        length: row.get(4)?,
        entropy: row.get(5)?,
        kl: row.get(6)?,
        novelty: row.get(7)?,
        orthogonal: row.get(8)?,
        negative: row.get(9)?,
        cosine: row.get(10)?,
        gradient_norm: row.get(11)?,
        response_tokens: count(12)?,
        rollout_ms: count(13)?,
        shaping_ms: count(14)?,
        update_ms: count(15)?,
    })
}
