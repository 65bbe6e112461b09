//! TensorBoard's event files: `Event` messages in the framing of TensorFlow's records.
//!
//! ```text
//! length u64 | masked CRC-32C of these 8 bytes u32 | message | masked CRC-32C of the message u32     little-endian
//! ```
//!
//! Source: tensorflow/core/util/event.proto, tensorflow/core/framework/summary.proto and lib/io/record_writer.h. The
//! messages below have those of their fields that are used, with their numbers.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use prost::{Message, Oneof};

/// What a file begins with.
const FILE_VERSION: &str = "brain.Event:2";

#[derive(Clone, PartialEq, Message)]
struct Event {
    /// Seconds since 1970.
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(oneof = "What", tags = "3, 5, 7")]
    what: Option<What>,
}

#[derive(Clone, PartialEq, Oneof)]
enum What {
    #[prost(string, tag = "3")]
    FileVersion(String),
    #[prost(message, tag = "5")]
    Summary(Summary),
    #[prost(message, tag = "7")]
    SessionLog(SessionLog),
}

#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<Scalar>,
}

#[derive(Clone, PartialEq, Message)]
struct Scalar {
    #[prost(string, tag = "1")]
    tag: String,
    #[prost(float, optional, tag = "2")]
    simple_value: Option<f32>,
}

#[derive(Clone, PartialEq, Message)]
struct SessionLog {
    /// [`SESSION_START`].
    #[prost(int32, tag = "1")]
    status: i32,
}

/// Readers drop events of this step and later ones that came before.
const SESSION_START: i32 = 1;

/// A file that is written.
#[derive(Debug)]
pub(super) struct EventFile(File);

impl EventFile {
    /// A new file beside those of earlier processes; readers take them in the order of their names.
    pub(super) fn create(folder: &Path, now: f64) -> io::Result<Self> {
        std::fs::create_dir_all(folder)?;
        let (seconds, process) = (now as u64, std::process::id());
        let path = folder.join(format!("events.out.tfevents.{seconds:010}.g2rl.{process}"));
        let mut file = Self(File::create(path)?);
        file.append(now, 0, What::FileVersion(FILE_VERSION.to_owned()))?;
        Ok(file)
    }

    /// What follows begins after this step.
    pub(super) fn begin(&mut self, now: f64, steps_done: u64) -> io::Result<()> {
        self.append(now, steps_done as i64 + 1, What::SessionLog(SessionLog { status: SESSION_START }))
    }

    pub(super) fn scalars(
        &mut self,
        now: f64,
        step: u64,
        values: impl Iterator<Item = (String, f64)>,
    ) -> io::Result<()> {
        let scalar = |(tag, value): (String, f64)| Scalar { tag, simple_value: Some(value as f32) };
        self.append(now, step as i64, What::Summary(Summary { value: values.map(scalar).collect() }))
    }

    fn append(&mut self, wall_time: f64, step: i64, what: What) -> io::Result<()> {
        self.0.write_all(&record(&Event { wall_time, step, what: Some(what) }.encode_to_vec()))
    }
}

fn record(message: &[u8]) -> Vec<u8> {
    let length = (message.len() as u64).to_le_bytes();
    [&length[..], &masked_crc(&length).to_le_bytes(), message, &masked_crc(message).to_le_bytes()].concat()
}

/// A checksum that may itself be part of what has one.
fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The messages of a file, each with its checksums compared.
    fn messages(mut bytes: &[u8]) -> Vec<Event> {
        let mut found = Vec::new();
        while !bytes.is_empty() {
            let (length, rest) = bytes.split_at(8);
            let (crc, rest) = rest.split_at(4);
            assert_eq!(crc, masked_crc(length).to_le_bytes());
            let (message, rest) = rest.split_at(u64::from_le_bytes(length.try_into().unwrap()) as usize);
            let (crc, rest) = rest.split_at(4);
            assert_eq!(crc, masked_crc(message).to_le_bytes());
            found.push(Event::decode(message).unwrap());
            bytes = rest;
        }
        found
    }

    #[test]
    fn a_file_has_its_version_its_beginning_and_scalars() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = EventFile::create(dir.path(), 1.5e9).unwrap();
        file.begin(1.5e9, 3).unwrap();
        file.scalars(1.5e9 + 1.0, 4, [("train/loss".to_owned(), 0.25)].into_iter()).unwrap();
        let path = std::fs::read_dir(dir.path()).unwrap().next().unwrap().unwrap().path();
        assert!(path.to_str().unwrap().contains("events.out.tfevents.1500000000."), "{path:?}");
        let events = messages(&std::fs::read(path).unwrap());
        assert_eq!(events[0].what, Some(What::FileVersion("brain.Event:2".into())));
        assert_eq!((events[1].step, &events[1].what), (4, &Some(What::SessionLog(SessionLog { status: 1 }))));
        let value = vec![Scalar { tag: "train/loss".into(), simple_value: Some(0.25) }];
        assert_eq!((events[2].step, events[2].wall_time), (4, 1.5e9 + 1.0));
        assert_eq!(events[2].what, Some(What::Summary(Summary { value })));
    }

    #[test]
    fn a_record_has_the_bytes_that_tensorflow_writes() {
        // By hand: the first record of every file without its time. Field 3, 13 bytes: 1a 0d and the text.
        let event = Event { wall_time: 0.0, step: 0, what: Some(What::FileVersion(FILE_VERSION.into())) };
        let message = event.encode_to_vec();
        assert_eq!(message, [&[0x1a, 13][..], FILE_VERSION.as_bytes()].concat());
        // CRC-32C of "123456789" is e3069283 (RFC 3720); rotated right by 15 and with a282ead8 added.
        assert_eq!(masked_crc(b"123456789"), 0xe306_9283_u32.rotate_right(15).wrapping_add(0xa282_ead8));
        assert_eq!(record(&message).len(), 8 + 4 + 15 + 4);
    }
}
