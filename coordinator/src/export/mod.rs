//! Curves of a run in files and traces of its steps, by option.
//!
//! In: names and values of a completed step or evaluation. Out: `metrics.jsonl`, and TensorBoard's event files in
//! `tensorboard/`, both in the run directory. Must not stop a run: a file that cannot be written is given up, and the log
//! says so.
//!
//! A run that goes back to a checkpoint writes steps again. TensorBoard is told where it begins anew; of lines with the
//! same kind and step the last one counts.

mod tensorboard;
mod traces;

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use g2rl_common::config::ExportConfig;
use g2rl_common::ids::StepIndex;
use serde_json::{Map, Value, json};

use self::tensorboard::EventFile;
pub(crate) use self::traces::Traces;

/// What values are about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A training step.
    Train,
    /// An evaluation.
    Evaluation,
}

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Evaluation => "evaluation",
        }
    }
}

/// The files of a run; none if nothing is wanted.
#[derive(Debug, Default)]
pub(crate) struct Exports {
    jsonl: Option<File>,
    tensorboard: Option<EventFile>,
}

impl Exports {
    /// Opens what is wanted, to append to it.
    ///
    /// # Errors
    /// If a file cannot be opened.
    pub(crate) fn open(dir: &Path, options: &ExportConfig) -> io::Result<Self> {
        let jsonl = || File::options().create(true).append(true).open(dir.join("metrics.jsonl"));
        let tensorboard = || EventFile::create(&dir.join("tensorboard"), seconds());
        Ok(Self {
            jsonl: options.jsonl.then(jsonl).transpose()?,
            tensorboard: options.tensorboard.then(tensorboard).transpose()?,
        })
    }

    /// What follows begins after this step, whatever was written before.
    pub(crate) fn begin(&mut self, steps_done: StepIndex) {
        let begun = self.tensorboard.as_mut().map(|file| file.begin(seconds(), steps_done.0));
        if let Some(Err(error)) = begun {
            give_up("tensorboard", &error, &mut self.tensorboard);
        }
    }

    /// Writes values, named without the prefix of the metrics.
    pub(crate) fn write(&mut self, kind: Kind, steps_done: StepIndex, values: &[(String, f64)]) {
        let now = seconds();
        let written = self.jsonl.as_mut().map(|file| file.write_all(&line(kind, now, steps_done, values)));
        if let Some(Err(error)) = written {
            give_up("metrics.jsonl", &error, &mut self.jsonl);
        }
        let tags = values.iter().map(|(name, value)| (format!("{}/{name}", kind.as_str()), *value));
        let written = self.tensorboard.as_mut().map(|file| file.scalars(now, steps_done.0, tags));
        if let Some(Err(error)) = written {
            give_up("tensorboard", &error, &mut self.tensorboard);
        }
    }
}

fn give_up<T>(name: &str, error: &io::Error, file: &mut Option<T>) {
    tracing::warn!(%error, "{name} cannot be written, and is left alone from now on");
    *file = None;
}

/// Since 1970.
fn seconds() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// A value that is not finite is `null`.
fn line(kind: Kind, now: f64, steps_done: StepIndex, values: &[(String, f64)]) -> Vec<u8> {
    let mut object = Map::new();
    object.insert("kind".into(), kind.as_str().into());
    object.insert("step".into(), steps_done.0.into());
    object.insert("time".into(), json!(now));
    object.extend(values.iter().map(|(name, value)| (name.clone(), json!(value))));
    let mut bytes = Value::Object(object).to_string().into_bytes();
    bytes.push(b'\n');
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values() -> Vec<(String, f64)> {
        vec![("loss".into(), 0.5), ("kl".into(), f64::NAN)]
    }

    #[test]
    fn lines_are_appended_to_those_of_earlier_processes() {
        let dir = tempfile::tempdir().unwrap();
        let options = ExportConfig { jsonl: true, ..ExportConfig::default() };
        for step in [1, 2] {
            let mut exports = Exports::open(dir.path(), &options).unwrap();
            exports.begin(StepIndex(step - 1));
            exports.write(Kind::Train, StepIndex(step), &values());
        }
        assert!(!dir.path().join("tensorboard").exists());
        let text = std::fs::read_to_string(dir.path().join("metrics.jsonl")).unwrap();
        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(
            (&lines[1]["kind"], &lines[1]["step"], &lines[1]["loss"]),
            (&json!("train"), &json!(2), &json!(0.5))
        );
        assert!(lines[0]["kl"].is_null() && lines[0]["time"].as_f64() > Some(1e9));
    }

    #[test]
    fn a_file_that_cannot_be_written_is_left_alone() {
        // Every write to it fails as on a full disk.
        let mut exports = Exports {
            jsonl: Some(File::options().write(true).open("/dev/full").unwrap()),
            tensorboard: None,
        };
        exports.write(Kind::Evaluation, StepIndex(1), &values());
        assert!(exports.jsonl.is_none());
        exports.write(Kind::Evaluation, StepIndex(2), &values());
    }
}
