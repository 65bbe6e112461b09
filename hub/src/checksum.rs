//! Files against the hub's checksums.
//!
//! The cache names a blob by its checksum: large files by their SHA-256, small ones by git's object id.
//! Blobs that were checked once are remembered beside the cache, with size and time of change, so that a
//! model of many gigabytes is not read twice at each start.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use sha1::Sha1;
use sha2::{Digest, Sha256};

use crate::HubError;

/// Checks the blob behind a cached file; removes it if it is not what its name says.
pub(crate) fn check(pointer: &Path, remembered: &Path) -> Result<(), HubError> {
    let io = |cause| HubError::Io { path: pointer.to_owned(), cause };
    let blob = std::fs::canonicalize(pointer).map_err(io)?;
    let expected = blob.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
    let is_hex = expected.bytes().all(|byte| byte.is_ascii_hexdigit());
    if !is_hex || !matches!(expected.len(), 40 | 64) {
        // A server that names files otherwise gives nothing to compare with.
        return Ok(());
    }
    let metadata = std::fs::metadata(&blob).map_err(io)?;
    let changed = metadata.modified().ok().and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok());
    let stamp = format!("{} {}", metadata.len(), changed.map_or(0, |time| time.as_nanos()));
    let memo = remembered.join(&expected);
    if std::fs::read_to_string(&memo).is_ok_and(|text| text == stamp) {
        return Ok(());
    }
    let file = BufReader::with_capacity(1 << 20, File::open(&blob).map_err(io)?);
    let found = match expected.len() {
        64 => digest(Sha256::new(), file).map_err(io)?,
        _ => {
            let header = format!("blob {}\0", metadata.len());
            digest(Sha1::new_with_prefix(header), file).map_err(io)?
        }
    };
    if found != expected {
        std::fs::remove_file(&blob).map_err(io)?;
        std::fs::remove_file(pointer).map_err(io)?;
        return Err(HubError::Corrupt { path: pointer.to_owned(), expected });
    }
    // Only a memo: where it cannot be written, the file is read again next time.
    let _ = std::fs::create_dir_all(remembered).and_then(|()| std::fs::write(&memo, stamp));
    Ok(())
}

fn digest<D: Digest>(mut digest: D, mut file: impl Read) -> std::io::Result<String> {
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            break;
        }
        digest.update(&buffer[..read]);
    }
    Ok(digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}
