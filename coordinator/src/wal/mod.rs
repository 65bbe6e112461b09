//! What a restarted coordinator goes on from: the write-ahead log of the work that is under way.
//!
//! In: the machine's [`Record`]s, with the rollouts and judgements they are about. Out: the same, after whatever
//! happened to the process or its machine. Must not know what the records mean, but for positions.
//!
//! ```text
//! wal/000012.log    header, position, and everything since; see `frame`
//! ```
//!
//! Invariants: a position begins a new segment, and once that is on the disk the segments before it go, so the log
//! holds one step's work. [`Wal::flush`] gives everything to the operating system, which a killed process does not
//! take with it; [`Wal::sync`] gives it to the disk. A torn end (a frame that is cut off or does not have its
//! checksum) is cut off and reported; what is before it is whole.

mod frame;
mod segment;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use g2rl_common::ids::RunId;
use g2rl_common::rollout::Rollout;
use serde::{Deserialize, Serialize};

use self::segment::Segment;
use crate::reward::Judgement;
use crate::state::Record;

/// Changes whenever an older program could not read what this one writes.
const FORMAT: u32 = 1;

/// Bytes that wait for the disk at most: less than a tenth of a second of most disks.
const UNSYNCED: u64 = 8 << 20;

/// Why there is no log to write to or to read from.
#[derive(Debug, thiserror::Error)]
pub enum WalError {
    /// The file system.
    #[error("{}: {cause}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The cause.
        cause: io::Error,
    },
    /// An entry cannot be encoded.
    #[error("an entry cannot be written: {0}")]
    Encode(#[from] postcard::Error),
    /// Another version of this program wrote it.
    #[error("{} has format {found}, this version reads {FORMAT}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
}

/// Whose log it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// Names the policies of the run, see [`crate::lineage`].
    pub run: RunId,
    /// What must be the same for the records to mean the same.
    pub setup: String,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// What the machine wants remembered.
    pub record: Record,
    /// The rollout that it accepts.
    #[serde(with = "shared")]
    pub rollout: Option<Arc<Rollout>>,
    /// The judgement that it is about.
    pub judgement: Option<Judgement>,
}

/// What an earlier process has left.
#[derive(Debug, Clone, PartialEq)]
pub struct Contents {
    /// Whose log it is.
    pub header: Header,
    /// The last position and everything since.
    pub entries: Vec<Entry>,
    /// The segment they lie in, and its length up to the last whole entry.
    at: (u64, u64),
    /// Bytes behind it that make no entry.
    pub torn: u64,
}

/// A log that is written.
#[derive(Debug)]
pub struct Wal {
    dir: PathBuf,
    header: Header,
    serial: u64,
    /// None before the first position.
    segment: Option<Segment>,
}

/// The log's directory in a run directory.
#[must_use]
pub fn path(dir: &Path) -> PathBuf {
    dir.join("wal")
}

/// Reads what an earlier process left in a run directory; `None` if there is no log or not one whole position.
///
/// # Errors
/// [`WalError`].
pub fn read(dir: &Path) -> Result<Option<Contents>, WalError> {
    let dir = path(dir);
    for serial in segment::serials(&dir)?.into_iter().rev() {
        // The newest one may have been cut off before its position was whole.
        if let Some(contents) = segment::read(&dir, serial)? {
            return Ok(Some(contents));
        }
    }
    Ok(None)
}

impl Wal {
    /// A new log in place of what is there. Nothing is touched before the first position is written.
    ///
    /// # Errors
    /// [`WalError`].
    pub fn create(dir: &Path, header: Header) -> Result<Self, WalError> {
        let dir = path(dir);
        std::fs::create_dir_all(&dir).map_err(io_error(&dir))?;
        let serial = segment::serials(&dir)?.last().copied().unwrap_or(0);
        Ok(Self { dir, header, serial, segment: None })
    }

    /// Goes on where a log ends; a torn end is cut off.
    ///
    /// # Errors
    /// [`WalError`].
    pub fn append_to(dir: &Path, contents: &Contents) -> Result<Self, WalError> {
        let dir = path(dir);
        let (serial, length) = contents.at;
        let segment = Segment::append_to(&dir, serial, length)?;
        Ok(Self { dir, header: contents.header.clone(), serial, segment: Some(segment) })
    }

    /// Writes an entry; a position also removes what it makes useless.
    ///
    /// # Errors
    /// [`WalError`].
    ///
    /// # Panics
    /// If the first entry is no position.
    pub fn append(&mut self, entry: &Entry) -> Result<(), WalError> {
        if !matches!(entry.record, Record::Position { .. }) {
            let segment = self.segment.as_mut().expect("a log begins with a position");
            segment.append(entry)?;
            return if segment.unsynced() > UNSYNCED { segment.sync() } else { Ok(()) };
        }
        self.serial += 1;
        let mut segment = Segment::create(&self.dir, self.serial, &self.header)?;
        segment.append(entry)?;
        segment.sync()?;
        segment::sync_dir(&self.dir)?;
        self.segment = Some(segment);
        segment::remove_before(&self.dir, self.serial)
    }

    /// What was written outlives this process.
    ///
    /// # Errors
    /// [`WalError`].
    pub fn flush(&mut self) -> Result<(), WalError> {
        self.segment.as_mut().map_or(Ok(()), Segment::flush)
    }

    /// What was written outlives this machine's power.
    ///
    /// # Errors
    /// [`WalError`].
    pub fn sync(&mut self) -> Result<(), WalError> {
        self.segment.as_mut().map_or(Ok(()), Segment::sync)
    }
}

/// What is shared with the shell is written like what is not.
mod shared {
    use std::sync::Arc;

    use g2rl_common::rollout::Rollout;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(of: &Option<Arc<Rollout>>, to: S) -> Result<S::Ok, S::Error> {
        of.as_deref().serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Arc<Rollout>>, D::Error> {
        Ok(Option::<Rollout>::deserialize(from)?.map(Arc::new))
    }
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> WalError + '_ {
    move |cause| WalError::Io { path: path.to_owned(), cause }
}

#[cfg(test)]
mod tests;
