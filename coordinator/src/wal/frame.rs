//! Frames: how entries lie in a file so that its torn end is seen.
//!
//! | bytes | what |
//! |---|---|
//! | 4 | length of the payload, little endian |
//! | 4 | CRC-32 of the payload, little endian |
//! | length | a value in postcard's encoding |

use std::io::{self, Read, Write};

/// Bytes before a payload.
const HEAD: usize = 8;

/// Writes a payload's frame and returns its length.
pub(super) fn write(to: &mut impl Write, payload: &[u8]) -> io::Result<u64> {
    let length = u32::try_from(payload.len())
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "an entry of more than 4 GiB"))?;
    to.write_all(&length.to_le_bytes())?;
    to.write_all(&crc32fast::hash(payload).to_le_bytes())?;
    to.write_all(payload)?;
    Ok((HEAD + payload.len()) as u64)
}

/// Reads frames of a file with a known number of bytes left, which bounds what is allocated.
pub(super) struct Frames<R> {
    from: R,
    left: u64,
}

impl<R: Read> Frames<R> {
    pub(super) fn new(from: R, bytes: u64) -> Self {
        Self { from, left: bytes }
    }

    /// The next payload and the length of its frame; `None` at the end, and where the rest is no whole frame.
    pub(super) fn next(&mut self) -> io::Result<Option<(Vec<u8>, u64)>> {
        if self.left < HEAD as u64 {
            return Ok(None);
        }
        let mut head = [0; HEAD];
        self.from.read_exact(&mut head)?;
        let word = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let (length, checksum) = (u64::from(word(0)), word(4));
        if length > self.left - HEAD as u64 {
            return Ok(None);
        }
        let mut payload = vec![0; length as usize];
        self.from.read_exact(&mut payload)?;
        self.left -= HEAD as u64 + length;
        Ok((crc32fast::hash(&payload) == checksum).then_some((payload, HEAD as u64 + length)))
    }
}
