//! The checkpoints of a run directory: naming, finding the latest, keeping the newest.
//!
//! A worker writes a checkpoint aside and renames it, so a directory with a checkpoint's name is
//! complete. `trainer_state.json` inside it is this module's.

use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use g2rl_common::ids::{RunId, StepIndex};
use serde::{Deserialize, Serialize};

use crate::state::ResumeState;

/// Changes whenever the state file changes its meaning.
const FORMAT: u32 = 1;

/// Name of the file with the address where workers find the coordinator.
pub(crate) const ADDRESS: &str = "address";

/// `trainer_state.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct TrainerState {
    format: u32,
    run: RunId,
    resume: ResumeState,
}

fn folder(dir: &Path) -> PathBuf {
    dir.join("checkpoints")
}

/// The path of a new checkpoint and the state to put into it. A leftover with the same name, from a
/// run that continued from an earlier checkpoint, makes room.
pub(crate) fn prepare(
    dir: &Path,
    step: StepIndex,
    state: &ResumeState,
    run: &RunId,
) -> anyhow::Result<(String, String)> {
    let path = std::path::absolute(folder(dir).join(format!("step-{:06}", step.0)))?;
    std::fs::create_dir_all(folder(dir))
        .with_context(|| format!("cannot create {}", folder(dir).display()))?;
    if path.exists() {
        std::fs::remove_dir_all(&path).with_context(|| format!("cannot replace {}", path.display()))?;
    }
    let state = TrainerState { format: FORMAT, run: run.clone(), resume: *state };
    Ok((path.display().to_string(), serde_json::to_string_pretty(&state)?))
}

/// Complete checkpoints, oldest first.
fn all(dir: &Path) -> Vec<(u64, PathBuf)> {
    let Ok(entries) = std::fs::read_dir(folder(dir)) else { return Vec::new() };
    let number =
        |path: PathBuf| Some((path.file_name()?.to_str()?.strip_prefix("step-")?.parse().ok()?, path));
    let mut found: Vec<(u64, PathBuf)> = entries.flatten().filter_map(|entry| number(entry.path())).collect();
    found.sort();
    found
}

/// Directories of checkpoints up to this step that were begun and not completed.
fn half_written(dir: &Path, newest: u64) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder(dir)) else { return Vec::new() };
    let step = |path: &Path| {
        let (name, _) = path.file_name()?.to_str()?.split_once(".writing")?;
        name.strip_prefix("step-")?.parse::<u64>().ok()
    };
    let paths = entries.flatten().map(|entry| entry.path());
    paths.filter(|path| step(path).is_some_and(|step| step <= newest)).collect()
}

/// Removes all but the newest checkpoints, and what ranks that were lost have left half written. One that cannot be removed is only logged: the run matters
/// more.
pub(crate) fn retain(dir: &Path, keep: usize) {
    let all = all(dir);
    let newest = all.last().map_or(0, |(step, _)| *step);
    let old = all[..all.len().saturating_sub(keep)].iter().map(|(_, path)| path.clone());
    for path in old.chain(half_written(dir, newest)) {
        if let Err(error) = std::fs::remove_dir_all(&path) {
            tracing::warn!(path = %path.display(), %error, "an old checkpoint stays");
        }
    }
}

/// Whether the run has written a checkpoint.
pub(crate) fn exist(dir: &Path) -> bool {
    !all(dir).is_empty()
}

/// The newest checkpoint and its state.
///
/// # Errors
/// If there is none, or its state cannot be understood.
pub fn latest(dir: &Path) -> anyhow::Result<(PathBuf, ResumeState)> {
    let Some((_, path)) = all(dir).pop() else {
        bail!("{} holds no checkpoint to resume from; start without --resume", folder(dir).display());
    };
    let file = path.join("trainer_state.json");
    let text = std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let state: TrainerState = serde_json::from_str(&text)
        .with_context(|| format!("{} is not a trainer's state", file.display()))?;
    if state.format != FORMAT {
        bail!("{} has format {}, this version reads {FORMAT}", file.display(), state.format);
    }
    Ok((path, state.resume))
}

/// Removes what an earlier run left in its directory.
///
/// # Errors
/// If something cannot be removed.
pub fn clear_run(dir: &Path) -> io::Result<()> {
    for name in ["checkpoints", "evaluations", "logs", "wal"] {
        let path = dir.join(name);
        if path.exists() {
            std::fs::remove_dir_all(path)?;
        }
    }
    let journal = ["journal.sqlite", "journal.sqlite-wal", "journal.sqlite-shm"];
    for name in journal.into_iter().chain(["summary.json", "config.toml", ADDRESS]) {
        let path = dir.join(name);
        if path.exists() {
            std::fs::remove_file(path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use g2rl_common::ids::{GroupId, PolicyVersion};

    use super::*;

    fn state(steps: u64) -> ResumeState {
        ResumeState {
            steps_done: StepIndex(steps),
            policy_version: PolicyVersion(steps),
            prompts_drawn: 16 * steps,
            policy_since_prompt: 16 * steps,
            next_group: GroupId(16 * steps),
        }
    }

    #[test]
    fn the_newest_complete_checkpoint_is_found_and_old_ones_go() {
        let dir = tempfile::tempdir().unwrap();
        assert!(latest(dir.path()).unwrap_err().to_string().contains("no checkpoint"));
        for step in [5, 10, 15] {
            let (path, json) = prepare(dir.path(), StepIndex(step), &state(step), &"r".into()).unwrap();
            std::fs::create_dir(&path).unwrap();
            std::fs::write(Path::new(&path).join("trainer_state.json"), json).unwrap();
        }
        // Not complete: still written aside.
        let half = |step: u64| dir.path().join(format!("checkpoints/step-{step:06}.writing-1"));
        std::fs::create_dir(half(20)).unwrap();
        std::fs::create_dir(half(10)).unwrap();
        retain(dir.path(), 2);
        assert_eq!(all(dir.path()).iter().map(|(step, _)| *step).collect::<Vec<_>>(), [10, 15]);
        assert_eq!(latest(dir.path()).unwrap().1, state(15));
        // What may still be written stays.
        assert_eq!((half(20).exists(), half(10).exists()), (true, false));
    }
}
