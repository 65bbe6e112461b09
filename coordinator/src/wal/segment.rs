//! One file of the log: a header, a position, and the entries since.

use std::fs::{File, OpenOptions};
use std::io::{BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::frame::{self, Frames};
use super::{Contents, Entry, FORMAT, Header, WalError, io_error};
use crate::state::Record;

/// A segment that is written.
#[derive(Debug)]
pub(super) struct Segment {
    path: PathBuf,
    file: BufWriter<File>,
    unsynced: u64,
}

fn name(dir: &Path, serial: u64) -> PathBuf {
    dir.join(format!("{serial:06}.log"))
}

/// Numbers of the segments that are there, in order.
pub(super) fn serials(dir: &Path) -> Result<Vec<u64>, WalError> {
    if !dir.exists() {
        return Ok(Vec::new());
    }
    let mut serials = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(io_error(dir))? {
        let name = entry.map_err(io_error(dir))?.file_name();
        serials.extend(name.to_str().and_then(|name| name.strip_suffix(".log")?.parse::<u64>().ok()));
    }
    serials.sort_unstable();
    Ok(serials)
}

/// Removes the segments before one.
pub(super) fn remove_before(dir: &Path, serial: u64) -> Result<(), WalError> {
    for old in serials(dir)?.into_iter().filter(|old| *old < serial) {
        let path = name(dir, old);
        std::fs::remove_file(&path).map_err(io_error(&path))?;
    }
    Ok(())
}

/// A new file's name is on the disk only after this.
pub(super) fn sync_dir(dir: &Path) -> Result<(), WalError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(io_error(dir))
}

impl Segment {
    /// Creates the file in place of one with the same name, and writes the header.
    pub(super) fn create(dir: &Path, serial: u64, header: &Header) -> Result<Self, WalError> {
        let path = name(dir, serial);
        let file = BufWriter::new(File::create(&path).map_err(io_error(&path))?);
        let mut segment = Self { path, file, unsynced: 0 };
        segment.write(&FORMAT)?;
        segment.write(header)?;
        Ok(segment)
    }

    /// Opens the file and cuts it to a length.
    pub(super) fn append_to(dir: &Path, serial: u64, length: u64) -> Result<Self, WalError> {
        let path = name(dir, serial);
        let file = OpenOptions::new().append(true).open(&path).map_err(io_error(&path))?;
        file.set_len(length).and_then(|()| file.sync_all()).map_err(io_error(&path))?;
        Ok(Self { path, file: BufWriter::new(file), unsynced: 0 })
    }

    pub(super) fn append(&mut self, entry: &Entry) -> Result<(), WalError> {
        self.write(entry)
    }

    fn write(&mut self, value: &impl Serialize) -> Result<(), WalError> {
        let payload = postcard::to_stdvec(value)?;
        self.unsynced += frame::write(&mut self.file, &payload).map_err(io_error(&self.path))?;
        Ok(())
    }

    /// Bytes that are not known to be on the disk.
    pub(super) fn unsynced(&self) -> u64 {
        self.unsynced
    }

    pub(super) fn flush(&mut self) -> Result<(), WalError> {
        self.file.flush().map_err(io_error(&self.path))
    }

    pub(super) fn sync(&mut self) -> Result<(), WalError> {
        self.flush()?;
        if self.unsynced > 0 {
            self.file.get_ref().sync_data().map_err(io_error(&self.path))?;
        }
        self.unsynced = 0;
        Ok(())
    }
}

/// Reads a segment; `None` if it was cut off before its position was whole.
pub(super) fn read(dir: &Path, serial: u64) -> Result<Option<Contents>, WalError> {
    let path = name(dir, serial);
    let file = File::open(&path).map_err(io_error(&path))?;
    let bytes = file.metadata().map_err(io_error(&path))?.len();
    let mut frames = Frames::new(BufReader::new(file), bytes);
    let mut next = || frames.next().map_err(io_error(&path));
    // 1. The header.
    let Some((format, first)) = next()? else { return Ok(None) };
    match postcard::from_bytes::<u32>(&format) {
        Ok(FORMAT) => {}
        Ok(found) => return Err(WalError::Format { path: path.clone(), found }),
        Err(_) => return Ok(None),
    }
    let Some((header, second)) = next()? else { return Ok(None) };
    let Ok(header) = postcard::from_bytes::<Header>(&header) else { return Ok(None) };
    // 2. The entries, up to what is torn.
    let (mut entries, mut length) = (Vec::<Entry>::new(), first + second);
    while let Some((payload, more)) = next()? {
        let Ok(entry) = postcard::from_bytes(&payload) else { break };
        entries.push(entry);
        length += more;
    }
    let begins = matches!(entries.first(), Some(Entry { record: Record::Position { .. }, .. }));
    Ok(begins.then(|| Contents { header, entries, at: (serial, length), torn: bytes - length }))
}
