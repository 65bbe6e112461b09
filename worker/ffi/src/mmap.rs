//! Read-only memory-mapped files, for weights that are copied once into a buffer of their own.

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::path::Path;

use memmap2::Mmap;

/// The bytes of a file, read from the disk as they are touched.
///
/// The file must not be truncated while it is mapped: touching a page past its new end ends the
/// process (SIGBUS). Weight files are replaced by renaming, never written in place.
#[derive(Debug)]
pub struct MappedFile {
    map: Mmap,
}

impl MappedFile {
    /// Maps the whole file.
    ///
    /// # Errors
    /// If the file cannot be opened or mapped.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        // SAFETY: the map is private to this process and read-only. Another process could change the
        // bytes under the slice; the type's contract excludes that, and the bytes are parsed with
        // every length checked and copied out, so a change could give wrong weights, not a wild read.
        let map = unsafe { Mmap::map(&file) }?;
        Ok(Self { map })
    }
}

impl Deref for MappedFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_its_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, b"weights").unwrap();
        assert_eq!(&*MappedFile::open(&path).unwrap(), b"weights");
        assert!(MappedFile::open(&dir.path().join("none")).is_err());
    }
}
