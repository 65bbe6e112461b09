//! Which processes of the coordinator have worked on a run, from when to when, and how each ended.
//!
//! In: the beginning and the end of a process. Out: `chronicle.jsonl` in the run directory, an object a line, which
//! `runs` and `show` read. A process that was killed leaves a beginning without an end.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use serde::{Deserialize, Serialize};

use crate::state::Outcome;

/// The file's name.
pub(crate) const FILE: &str = "chronicle.jsonl";

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Ending {
    /// All steps are done.
    Completed,
    /// The user stopped it.
    Stopped,
    /// It could not go on.
    Failed,
}

/// A line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(crate) enum Event {
    /// A process begins to work on the run.
    Begin {
        /// Seconds since 1970.
        at_s: f64,
        /// Of the program.
        version: String,
    },
    /// It ends.
    End {
        /// Seconds since 1970.
        at_s: f64,
        /// How.
        ending: Ending,
        /// Why, if it failed.
        error: Option<String>,
    },
}

/// Seconds since 1970.
pub(crate) fn now_s() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// A process that works on a run. Dropped before [`Self::end`], it notes that it failed.
#[derive(Debug)]
pub(crate) struct Chronicle {
    path: PathBuf,
    file: File,
    ended: bool,
}

impl Chronicle {
    /// Notes that this process begins.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub(crate) fn begin(dir: &Path) -> anyhow::Result<Self> {
        let path = dir.join(FILE);
        let file = OpenOptions::new().create(true).append(true).open(&path);
        let file = file.with_context(|| format!("cannot write {}", path.display()))?;
        let mut chronicle = Self { path, file, ended: false };
        let version = env!("CARGO_PKG_VERSION").to_owned();
        chronicle.note(&Event::Begin { at_s: now_s(), version })?;
        Ok(chronicle)
    }

    /// Notes how this process ends.
    pub(crate) fn end(mut self, outcome: &Outcome) {
        let (ending, error) = match outcome {
            Outcome::Completed => (Ending::Completed, None),
            Outcome::Stopped => (Ending::Stopped, None),
            Outcome::Failed(error) => (Ending::Failed, Some(error.clone())),
        };
        self.finish(ending, error);
    }

    fn finish(&mut self, ending: Ending, error: Option<String>) {
        self.ended = true;
        if let Err(error) = self.note(&Event::End { at_s: now_s(), ending, error }) {
            tracing::warn!("{error:#}");
        }
    }

    fn note(&mut self, event: &Event) -> anyhow::Result<()> {
        // One write, so that a line is there or not.
        let line = format!("{}\n", serde_json::to_string(event)?);
        self.file.write_all(line.as_bytes()).with_context(|| format!("cannot write {}", self.path.display()))
    }
}

impl Drop for Chronicle {
    fn drop(&mut self) {
        if !self.ended {
            self.finish(Ending::Failed, None);
        }
    }
}

/// What is noted of a run; empty if nothing is. Lines that are not whole are passed over.
pub(crate) fn read(dir: &Path) -> Vec<Event> {
    let text = std::fs::read_to_string(dir.join(FILE)).unwrap_or_default();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_process_notes_its_beginning_and_its_end() {
        let dir = tempfile::tempdir().unwrap();
        assert!(read(dir.path()).is_empty());
        Chronicle::begin(dir.path()).unwrap().end(&Outcome::Stopped);
        Chronicle::begin(dir.path()).unwrap().end(&Outcome::Failed("no ranks".into()));
        drop(Chronicle::begin(dir.path()).unwrap());
        // Killed in the middle of its line.
        let mut file = OpenOptions::new().append(true).open(dir.path().join(FILE)).unwrap();
        file.write_all(b"{\"event\":\"beg").unwrap();
        let endings: Vec<_> = read(dir.path())
            .into_iter()
            .map(|event| match event {
                Event::Begin { .. } => None,
                Event::End { ending, error, .. } => Some((ending, error)),
            })
            .collect();
        let (stopped, failed) =
            (Some((Ending::Stopped, None)), Some((Ending::Failed, Some("no ranks".into()))));
        assert_eq!(endings, [None, stopped, None, failed, None, Some((Ending::Failed, None))]);
    }
}
