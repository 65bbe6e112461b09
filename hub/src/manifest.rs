//! What a directory must hold: size and checksum of each file, in a file beside them.
//!
//! In: what a writer noted of each file, and something of its own about them. Out: an error that names the file
//! which is not what was written. The checksum (XXH3, 128 bits, as `xxh128sum` prints it) finds damage, not malice.
//!
//! Invariant: a manifest names files of its own directory only.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use twox_hash::XxHash3_128;

use crate::is_inside;

/// The manifest's name.
pub const MANIFEST_FILE: &str = "g2rl_manifest.json";

/// Changes whenever the manifest changes its meaning.
pub const MANIFEST_FORMAT: u64 = 1;

/// Largest manifest that is read, bytes: some hundred thousand files.
const LARGEST: u64 = 64 << 20;

/// Bytes of a file that are in memory at a time.
const BUFFER: usize = 1 << 20;

/// Why a directory is not what its manifest says.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// There is no manifest.
    #[error("{path} is missing: not complete, or written by another version")]
    Missing {
        /// The manifest.
        path: PathBuf,
    },
    /// The manifest cannot be understood.
    #[error("{path} is not a manifest: {message}")]
    Malformed {
        /// The manifest.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// The manifest is another version's.
    #[error("{path} has format {found}, this version reads {MANIFEST_FORMAT}")]
    Format {
        /// The manifest.
        path: PathBuf,
        /// Its format.
        found: u64,
    },
    /// A file has another size.
    #[error("{path} has {found} bytes, {expected} were written")]
    Size {
        /// The file.
        path: PathBuf,
        /// As written.
        expected: u64,
        /// As it is.
        found: u64,
    },
    /// A file has other bytes.
    #[error("{path} is damaged: its checksum is {found}, {expected} was written")]
    Checksum {
        /// The file.
        path: PathBuf,
        /// As written.
        expected: String,
        /// As it is.
        found: String,
    },
    /// A file cannot be read or written.
    #[error("{path}: {cause}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        cause: io::Error,
    },
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> ManifestError + '_ {
    move |cause| ManifestError::Io { path: path.to_owned(), cause }
}

/// What was written of one file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// Its size.
    pub bytes: u64,
    /// Its checksum, hexadecimal.
    pub xxh3_128: String,
}

impl FileEntry {
    /// Of a file as it is now; a buffer of it is in memory at a time.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn of_file(path: &Path) -> io::Result<Self> {
        let mut file = File::open(path)?;
        let mut noting = Noting::new(io::sink());
        let mut buffer = vec![0; BUFFER];
        loop {
            match file.read(&mut buffer)? {
                0 => return Ok(noting.entry()),
                read => noting.write_all(&buffer[..read])?,
            }
        }
    }
}

/// Writes through, and notes size and checksum on the way.
pub struct Noting<W> {
    inner: W,
    bytes: u64,
    checksum: XxHash3_128,
}

impl<W> std::fmt::Debug for Noting<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Noting").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

impl<W: Write> Noting<W> {
    /// Nothing is written yet.
    pub fn new(inner: W) -> Self {
        Self { inner, bytes: 0, checksum: XxHash3_128::new() }
    }

    /// Where it writes to.
    pub fn inner(&self) -> &W {
        &self.inner
    }

    /// What was written.
    #[must_use]
    pub fn entry(&self) -> FileEntry {
        FileEntry { bytes: self.bytes, xxh3_128: format!("{:032x}", self.checksum.finish_128()) }
    }
}

impl<W: Write> Write for Noting<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.checksum.write(&bytes[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// What a directory must hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    format: u64,
    /// What the writer says of the files.
    pub about: Value,
    files: BTreeMap<String, FileEntry>,
}

impl Manifest {
    /// Of files that were written.
    #[must_use]
    pub fn new(about: Value, files: impl IntoIterator<Item = (String, FileEntry)>) -> Self {
        Self { format: MANIFEST_FORMAT, about, files: files.into_iter().collect() }
    }

    /// Understands the bytes of the manifest at `path`.
    ///
    /// # Errors
    /// [`ManifestError::Malformed`] or [`ManifestError::Format`].
    pub fn parse(bytes: &[u8], path: &Path) -> Result<Self, ManifestError> {
        let malformed = |message: String| ManifestError::Malformed { path: path.to_owned(), message };
        let value: Value = serde_json::from_slice(bytes).map_err(|error| malformed(error.to_string()))?;
        match value.get("format").and_then(Value::as_u64) {
            Some(MANIFEST_FORMAT) => {}
            Some(found) => return Err(ManifestError::Format { path: path.to_owned(), found }),
            None => return Err(malformed("it has no format".to_owned())),
        }
        let manifest: Self = serde_json::from_value(value).map_err(|error| malformed(error.to_string()))?;
        let leaves = |name: &&String| name.contains('/') || !is_inside(name);
        match manifest.files.keys().find(leaves) {
            Some(name) => Err(malformed(format!("{name:?} is not the name of a file"))),
            None => Ok(manifest),
        }
    }

    /// Reads the manifest of a directory.
    ///
    /// # Errors
    /// [`ManifestError`]; [`ManifestError::Missing`] if there is none.
    pub fn read(dir: &Path) -> Result<Self, ManifestError> {
        let path = dir.join(MANIFEST_FILE);
        let file = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(ManifestError::Missing { path });
            }
            opened => opened.map_err(failed(&path))?,
        };
        let mut bytes = Vec::new();
        file.take(LARGEST).read_to_end(&mut bytes).map_err(failed(&path))?;
        Self::parse(&bytes, &path)
    }

    /// Writes it into the directory and waits until it is on the disk.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(&self, dir: &Path) -> Result<(), ManifestError> {
        let path = dir.join(MANIFEST_FILE);
        let write = || {
            let mut file = File::create(&path)?;
            file.write_all(format!("{}\n", serde_json::to_string_pretty(self)?).as_bytes())?;
            file.sync_all()
        };
        write().map_err(failed(&path))
    }

    /// Compares the wanted files of the directory with what was written, reading each once.
    ///
    /// # Errors
    /// [`ManifestError`], naming the first file that is missing or different.
    pub fn check(&self, dir: &Path, wanted: impl Fn(&str) -> bool) -> Result<(), ManifestError> {
        let files = || {
            self.files.iter().filter(|(name, _)| wanted(name)).map(|(name, entry)| (dir.join(name), entry))
        };
        // Sizes first: they cost nothing.
        for (path, entry) in files() {
            let found = std::fs::metadata(&path).map_err(failed(&path))?.len();
            if found != entry.bytes {
                return Err(ManifestError::Size { path, expected: entry.bytes, found });
            }
        }
        for (path, entry) in files() {
            let found = FileEntry::of_file(&path).map_err(failed(&path))?.xxh3_128;
            if found != entry.xxh3_128 {
                return Err(ManifestError::Checksum { path, expected: entry.xxh3_128.clone(), found });
            }
        }
        Ok(())
    }
}

/// Compares the wanted files of a directory with its manifest; false for a directory that has none.
///
/// # Errors
/// As [`Manifest::check`].
pub fn check_if_noted(dir: &Path, wanted: impl Fn(&str) -> bool) -> Result<bool, ManifestError> {
    match Manifest::read(dir) {
        Ok(manifest) => manifest.check(dir, wanted).map(|()| true),
        Err(ManifestError::Missing { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checksum_is_that_of_xxh128sum() {
        // XXH3-128 of nothing with seed 0, as the reference implementation gives it.
        assert_eq!(Noting::new(io::sink()).entry().xxh3_128, "99aa06d3014798d86001c324468d497f");
        // Pieces add up to the whole.
        let bytes: Vec<u8> = (0..3_000_000u32).map(|i| (i.wrapping_mul(i) >> 7) as u8).collect();
        let mut pieces = Noting::new(Vec::new());
        bytes.chunks(77_777).for_each(|piece| pieces.write_all(piece).unwrap());
        assert_eq!(pieces.entry().xxh3_128, format!("{:032x}", XxHash3_128::oneshot(&bytes)));
        assert_eq!((pieces.entry().bytes, pieces.inner()), (3_000_000, &bytes));
    }

    #[test]
    fn a_manifest_that_leaves_its_directory_or_is_none_is_refused() {
        let parse = |text: &str| Manifest::parse(text.as_bytes(), Path::new("m")).map_err(|e| e.to_string());
        let entry = r#"{"bytes": 1, "xxh3_128": "00"}"#;
        let with = |name: &str| format!(r#"{{"format": 1, "about": {{}}, "files": {{"{name}": {entry}}}}}"#);
        assert!(parse(&with("weights")).is_ok());
        for name in ["../weights", "/etc/passwd", "..", ".", "", "a\\\\b", "a\\nb"] {
            assert!(parse(&with(name)).unwrap_err().contains("not the name of a file"), "{name}");
        }
        for text in ["", "[]", "{}", r#"{"format": 1}"#, r#"{"format": "1", "about": {}, "files": {}}"#] {
            assert!(parse(text).unwrap_err().contains("not a manifest"), "{text}");
        }
        assert!(parse(r#"{"format": 2}"#).unwrap_err().contains("format 2"));
    }

    #[test]
    fn only_what_is_wanted_is_compared() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!check_if_noted(dir.path(), |_| true).unwrap());
        let path = |name: &str| dir.path().join(name);
        let files = ["a", "b"].map(|name| {
            std::fs::write(path(name), name).unwrap();
            (name.to_owned(), FileEntry::of_file(&path(name)).unwrap())
        });
        Manifest::new(Value::Null, files).write(dir.path()).unwrap();
        assert!(check_if_noted(dir.path(), |_| true).unwrap());
        std::fs::write(path("b"), "c").unwrap();
        assert!(check_if_noted(dir.path(), |name| name == "a").unwrap());
        assert!(check_if_noted(dir.path(), |_| true).unwrap_err().to_string().contains("b is damaged"));
        std::fs::remove_file(path("b")).unwrap();
        assert!(check_if_noted(dir.path(), |_| true).unwrap_err().to_string().contains("b: No such file"));
    }
}
