//! What the directories of runs say of them, for `runs` and `show`.
//!
//! In: run directories, of runs that go on or are over. Out: a [`RunRecord`] each. Reads the rows of steps and
//! evaluations, never those of rollouts, so that it takes no time however long a run was. Changes nothing.

mod evaluations;
mod list;
mod show;
mod steps;

use std::path::{Path, PathBuf};

use serde::Serialize;

pub(crate) use self::evaluations::{EvaluationRow, Evaluations, ScoreRow};
pub(crate) use self::list::{find, json as list_json, table as list_table};
pub(crate) use self::show::{json as show_json, text as show_text};
pub(crate) use self::steps::{StepRow, open, read_steps};
use crate::chronicle::{self, Ending, Event};
use crate::{journal, run_lock};

/// What has become of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum RunState {
    /// A coordinator works on it.
    Running,
    /// All its steps are done.
    Finished,
    /// It could not go on.
    Failed,
    /// It was stopped or killed before its end.
    Interrupted,
}

impl RunState {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Finished => "finished",
            Self::Failed => "failed",
            Self::Interrupted => "interrupted",
        }
    }
}

/// What a configuration says of a run, as far as it can be read; written by whichever version.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct Essentials {
    pub(crate) name: Option<String>,
    pub(crate) steps: Option<u64>,
    pub(crate) model: Option<String>,
    pub(crate) method: Option<String>,
    pub(crate) config: toml::Table,
}

impl Essentials {
    fn read(dir: &Path) -> Self {
        let text = std::fs::read_to_string(dir.join("config.toml")).unwrap_or_default();
        let config: toml::Table = toml::from_str(&text).unwrap_or_default();
        let value = |section: &str, key: &str| config.get(section).and_then(|section| section.get(key));
        let string = |section, key| value(section, key).and_then(toml::Value::as_str).map(str::to_owned);
        Self {
            name: string("run", "name"),
            steps: value("run", "steps").and_then(toml::Value::as_integer).and_then(|n| n.try_into().ok()),
            model: string("model", "path"),
            method: string("algorithm", "kind"),
            config,
        }
    }

    /// The last part of a model's path, or its name.
    pub(crate) fn short_model(&self) -> &str {
        let path = self.model.as_deref().unwrap_or("-");
        match Path::new(path).is_absolute() {
            true => path.trim_end_matches('/').rsplit('/').next().unwrap_or(path),
            false => path,
        }
    }
}

/// When a run was worked on, seconds since 1970.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub(crate) struct Span {
    pub(crate) started_s: Option<f64>,
    pub(crate) ended_s: Option<f64>,
    /// Of all its processes together.
    pub(crate) seconds: f64,
    /// Processes of the coordinator that worked on it.
    pub(crate) processes: usize,
}

/// A run, without its steps.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct RunRecord {
    pub(crate) dir: PathBuf,
    pub(crate) state: RunState,
    /// Why it failed or was interrupted, if that is known.
    pub(crate) reason: Option<String>,
    pub(crate) essentials: Essentials,
    pub(crate) span: Span,
}

/// Whether a directory is that of a run.
pub(crate) fn is_run(dir: &Path) -> bool {
    journal::path(dir).is_file()
}

impl RunRecord {
    /// Reads all but the journal.
    pub(crate) fn read(dir: &Path) -> Self {
        let events = chronicle::read(dir);
        let locked = run_lock::is_held(dir);
        let essentials = Essentials::read(dir);
        let (state, reason) = judge(dir, &events, locked);
        let span = span(dir, &events, state == RunState::Running);
        Self { dir: dir.to_owned(), state, reason, essentials, span }
    }

    /// The name, or that of the directory.
    pub(crate) fn name(&self) -> String {
        let folder = || self.dir.file_name().map(|name| name.to_string_lossy().into_owned());
        self.essentials.name.clone().or_else(folder).unwrap_or_else(|| self.dir.display().to_string())
    }
}

fn judge(dir: &Path, events: &[Event], locked: bool) -> (RunState, Option<String>) {
    match events.last() {
        Some(Event::End { ending: Ending::Completed, .. }) => (RunState::Finished, None),
        Some(Event::End { ending: Ending::Stopped, .. }) => {
            (RunState::Interrupted, Some("stopped by the user".to_owned()))
        }
        Some(Event::End { ending: Ending::Failed, error, .. }) => (RunState::Failed, error.clone()),
        _ if locked => (RunState::Running, None),
        Some(Event::Begin { .. }) => {
            (RunState::Interrupted, Some("its coordinator ended without a word".to_owned()))
        }
        // Before there was a chronicle a summary was written at any end.
        None if dir.join("summary.json").exists() => (RunState::Finished, None),
        None => (RunState::Interrupted, None),
    }
}

/// When a file was last written, seconds since 1970.
fn written_s(path: &Path) -> Option<f64> {
    let at = std::fs::metadata(path).and_then(|data| data.modified()).ok()?;
    at.duration_since(std::time::UNIX_EPOCH).ok().map(|since| since.as_secs_f64())
}

fn span(dir: &Path, events: &[Event], runs: bool) -> Span {
    let last_write = ["journal.sqlite-wal", "journal.sqlite", "summary.json"]
        .iter()
        .filter_map(|name| written_s(&dir.join(name)))
        .fold(None, |last: Option<f64>, at| Some(last.map_or(at, |last| last.max(at))));
    let mut span = Span::default();
    let mut begun: Option<f64> = None;
    let mut add = |from: f64, to: f64| span.seconds += (to - from).max(0.0);
    for (at, event) in events.iter().enumerate() {
        match event {
            Event::Begin { at_s, .. } => {
                span.started_s.get_or_insert(*at_s);
                span.processes += 1;
                begun = Some(*at_s);
                // A process that was killed worked until its last write; of an earlier one that is not known.
                let is_last = at + 1 == events.len();
                if is_last && runs {
                    add(*at_s, chronicle::now_s());
                } else if is_last {
                    span.ended_s = last_write.map(|last| last.max(*at_s));
                    add(*at_s, span.ended_s.unwrap_or(*at_s));
                }
            }
            Event::End { at_s, .. } => {
                if let Some(from) = begun.take() {
                    add(from, *at_s);
                }
                span.ended_s = Some(*at_s);
            }
        }
    }
    if runs {
        span.ended_s = None;
    }
    if events.is_empty() {
        span.started_s = written_s(&dir.join("address")).or_else(|| written_s(&dir.join("config.toml")));
        span.ended_s = last_write.filter(|_| !runs);
        let until = span.ended_s.unwrap_or_else(chronicle::now_s);
        span.seconds = span.started_s.map_or(0.0, |from| (until - from).max(0.0));
        span.processes = 1;
    }
    span
}

/// Seconds since 1970 as local time.
pub(crate) fn local_time(at_s: f64) -> String {
    let at = chrono::DateTime::from_timestamp(at_s as i64, 0);
    at.map_or_else(
        || "-".to_owned(),
        |at| at.with_timezone(&chrono::Local).format("%Y-%m-%d %H:%M").to_string(),
    )
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;

    use super::*;
    use crate::chronicle::Chronicle;
    use crate::run_lock::RunLock;
    use crate::state::Outcome;

    fn state(dir: &Path) -> (RunState, Option<String>) {
        let record = RunRecord::read(dir);
        (record.state, record.reason)
    }

    #[test]
    fn the_state_is_what_is_on_the_disk() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        assert_eq!(state(dir), (RunState::Interrupted, None));
        let lock = RunLock::take(dir).unwrap();
        let first = Chronicle::begin(dir).unwrap();
        assert_eq!(state(dir).0, RunState::Running);
        first.end(&Outcome::Failed("rank 1 is lost".into()));
        // Its metrics may stay readable for a while.
        assert_eq!(state(dir), (RunState::Failed, Some("rank 1 is lost".into())));
        let second = Chronicle::begin(dir).unwrap();
        assert_eq!(state(dir).0, RunState::Running);
        drop(lock);
        let (now, reason) = state(dir);
        assert_eq!((now, reason.unwrap().contains("without a word")), (RunState::Interrupted, true));
        second.end(&Outcome::Completed);
        assert_eq!(state(dir), (RunState::Finished, None));
    }

    #[test]
    fn time_is_summed_over_processes() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = File::create(dir.path().join(chronicle::FILE)).unwrap();
        for line in [
            r#"{"event":"begin","at_s":100.0,"version":"1"}"#,
            r#"{"event":"end","at_s":130.0,"ending":"stopped","error":null}"#,
            r#"{"event":"begin","at_s":200.0,"version":"1"}"#,
            r#"{"event":"end","at_s":250.5,"ending":"completed","error":null}"#,
        ] {
            writeln!(file, "{line}").unwrap();
        }
        let span = RunRecord::read(dir.path()).span;
        let expected = Span { started_s: Some(100.0), ended_s: Some(250.5), seconds: 80.5, processes: 2 };
        assert_eq!(span, expected);
    }

    #[test]
    fn a_configuration_of_another_version_says_what_it_can() {
        let dir = tempfile::tempdir().unwrap();
        let text = "[run]\nname = 'old'\nsteps = 7\nunheard_of = 1\n[model]\npath = '/models/Tiny-1B/'\n";
        std::fs::write(dir.path().join("config.toml"), text).unwrap();
        let record = RunRecord::read(dir.path());
        assert_eq!((record.name().as_str(), record.essentials.steps), ("old", Some(7)));
        assert_eq!((record.essentials.short_model(), record.essentials.method.as_deref()), ("Tiny-1B", None));
    }
}
