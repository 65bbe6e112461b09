//! The checkpoints of a run directory: naming, finding the newest good one, keeping the newest.
//!
//! A worker writes a checkpoint aside, with a manifest of its files, and renames it, so a directory with a
//! checkpoint's name is complete. Whether it is still what was written shows when it is read.
//! `trainer_state.json` inside it is this module's.
//!
//! Invariant: nothing is removed before a newer checkpoint is durable. What was refused is set aside under another
//! name, so that it does not count as one of those that are kept.

use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use g2rl_common::ids::{RunId, StepIndex};
use g2rl_hub::manifest::Manifest;
use serde::{Deserialize, Serialize};

use crate::best;
use crate::chronicle;
use crate::state::ResumeState;

/// Changes whenever the state file changes its meaning.
const FORMAT: u32 = 1;

/// What is added to the name of a checkpoint that was refused.
const REFUSED: &str = ".refused";

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

/// The path of a new checkpoint and the state to put into it.
pub(crate) fn name(
    dir: &Path,
    step: StepIndex,
    state: &ResumeState,
    run: &RunId,
) -> anyhow::Result<(String, String)> {
    let path = std::path::absolute(folder(dir).join(format!("step-{:06}", step.0)))?;
    let state = TrainerState { format: FORMAT, run: run.clone(), resume: *state };
    Ok((path.display().to_string(), serde_json::to_string_pretty(&state)?))
}

/// Complete checkpoints, oldest first.
pub(crate) fn all(dir: &Path) -> Vec<(u64, PathBuf)> {
    let Ok(entries) = std::fs::read_dir(folder(dir)) else { return Vec::new() };
    let number =
        |path: PathBuf| Some((path.file_name()?.to_str()?.strip_prefix("step-")?.parse().ok()?, path));
    let mut found: Vec<(u64, PathBuf)> = entries.flatten().filter_map(|entry| number(entry.path())).collect();
    found.sort();
    found
}

/// The newest complete checkpoint, not read.
pub(crate) fn newest(dir: &Path) -> Option<PathBuf> {
    all(dir).pop().map(|(_, path)| path)
}

/// Directories of checkpoints up to this step that were begun and not completed, or replaced and not removed.
fn leftovers(dir: &Path, newest: u64) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder(dir)) else { return Vec::new() };
    let step = |path: &Path| {
        let (name, rest) = path.file_name()?.to_str()?.split_once('.')?;
        let left = rest.starts_with("writing-") || rest.starts_with("replaced-");
        name.strip_prefix("step-")?.parse::<u64>().ok().filter(|_| left)
    };
    let paths = entries.flatten().map(|entry| entry.path());
    paths.filter(|path| step(path).is_some_and(|step| step <= newest)).collect()
}

/// Once a checkpoint is durable: removes all but the newest and the one that the run began with, which every worker that
/// joins reads, and what ranks that were lost have left half written. The best one of those that were evaluated stays,
/// too, and is linked to. One that cannot be removed is only logged: the run matters more.
pub(crate) fn retain(dir: &Path, keep: usize, begun_with: &Path) {
    let (all, folder) = (all(dir), folder(dir));
    let newest = all.last().map_or(0, |(step, _)| *step);
    let best = best::of(&folder, &all);
    if let Some((_, path)) = best
        && let Err(error) = best::link(&folder, path)
    {
        tracing::warn!(path = %path.display(), %error, "the best checkpoint has no link");
    }
    let is_read = |path: &Path| std::path::absolute(path).is_ok_and(|path| path == begun_with);
    let old = all[..all.len().saturating_sub(keep.max(1))].iter();
    let old = old.filter(|old| Some(*old) != best && !is_read(&old.1)).map(|(_, path)| path.clone());
    for path in old.chain(leftovers(dir, newest)) {
        if let Err(error) = std::fs::remove_dir_all(&path) {
            tracing::warn!(path = %path.display(), %error, "an old checkpoint stays");
        }
    }
}

/// Notes what a policy scored, which decides the best checkpoint.
///
/// # Errors
/// If it cannot be written.
pub(crate) fn note_score(dir: &Path, step: StepIndex, score: f64) -> io::Result<()> {
    best::note(&folder(dir), step, score)
}

/// Whether the run has written a checkpoint.
pub(crate) fn exist(dir: &Path) -> bool {
    !all(dir).is_empty()
}

/// The newest checkpoint that is what was written, and its state. Newer ones that are not are set aside.
///
/// # Errors
/// If there is none; the error names each that was refused, with the file and what is wrong with it.
pub fn latest(dir: &Path) -> anyhow::Result<(PathBuf, ResumeState)> {
    let mut refused: Vec<(PathBuf, String)> = Vec::new();
    for (_, path) in all(dir).into_iter().rev() {
        match read(&path) {
            Ok(resume) => {
                for (bad, why) in &refused {
                    let (bad, good) = (bad.display(), path.display());
                    tracing::warn!("checkpoint {bad} is refused: {why}; the run goes on from {good}");
                }
                refused.iter().for_each(|(path, _)| set_aside(path));
                return Ok((path, resume));
            }
            Err(error) => refused.push((path, format!("{error:#}"))),
        }
    }
    let folder = folder(dir);
    if refused.is_empty() {
        bail!("{} holds no checkpoint to resume from; start without --resume", folder.display());
    }
    let each = refused.iter().map(|(path, why)| format!("{}: {why}", path.display()));
    bail!("no checkpoint in {} can be used: {}", folder.display(), each.collect::<Vec<_>>().join("; "));
}

/// Reads a checkpoint's state after all its files were compared with its manifest.
fn read(path: &Path) -> anyhow::Result<ResumeState> {
    Manifest::read(path)?.check(path, |_| true)?;
    let file = path.join("trainer_state.json");
    let text = std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let state: TrainerState = serde_json::from_str(&text)
        .with_context(|| format!("{} is not a trainer's state", file.display()))?;
    if state.format != FORMAT {
        bail!("{} has format {}, this version reads {FORMAT}", file.display(), state.format);
    }
    state.resume.check().map_err(|error| anyhow!("{}: {error}", file.display()))?;
    Ok(state.resume)
}

fn set_aside(path: &Path) {
    let mut aside = path.as_os_str().to_owned();
    aside.push(REFUSED);
    if let Err(error) = std::fs::rename(path, &aside) {
        tracing::warn!(path = %path.display(), %error, "a refused checkpoint keeps its name");
    }
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
    for name in journal.into_iter().chain(["summary.json", "config.toml", ADDRESS, chronicle::FILE]) {
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
    use g2rl_hub::manifest::{FileEntry, MANIFEST_FILE};

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

    /// A checkpoint as a worker leaves it, with one file of weights.
    fn checkpoint(dir: &Path, step: u64) -> PathBuf {
        let (path, json) = name(dir, StepIndex(step), &state(step), &"r".into()).unwrap();
        let path = PathBuf::from(path);
        std::fs::create_dir_all(&path).unwrap();
        let files = [("trainer_state.json", json.into_bytes()), ("weights", vec![7; 1 << 21])];
        let written = files.map(|(name, bytes)| {
            std::fs::write(path.join(name), &bytes).unwrap();
            (name.to_owned(), FileEntry::of_file(&path.join(name)).unwrap())
        });
        Manifest::new(serde_json::json!({"step": step}), written).write(&path).unwrap();
        path
    }

    fn steps(dir: &Path) -> Vec<u64> {
        all(dir).iter().map(|(step, _)| *step).collect()
    }

    #[test]
    fn the_newest_complete_checkpoint_is_found_and_old_ones_go() {
        let dir = tempfile::tempdir().unwrap();
        assert!(latest(dir.path()).unwrap_err().to_string().contains("no checkpoint"));
        for step in [5, 10, 15] {
            checkpoint(dir.path(), step);
        }
        // Not complete: still written aside.
        let half = |step: u64| dir.path().join(format!("checkpoints/step-{step:06}.writing-1"));
        std::fs::create_dir(half(20)).unwrap();
        std::fs::create_dir(half(10)).unwrap();
        let replaced = dir.path().join("checkpoints/step-000010.replaced-1");
        std::fs::create_dir(&replaced).unwrap();
        retain(dir.path(), 2, Path::new("/models/m"));
        assert_eq!(steps(dir.path()), [10, 15]);
        assert_eq!(latest(dir.path()).unwrap().1, state(15));
        // What may still be written stays.
        assert_eq!((half(20).exists(), half(10).exists(), replaced.exists()), (true, false, false));
    }

    #[test]
    fn the_checkpoint_that_the_run_began_with_stays() {
        let dir = tempfile::tempdir().unwrap();
        let paths = [5, 10, 15, 20].map(|step| checkpoint(dir.path(), step));
        retain(dir.path(), 1, &paths[1]);
        assert_eq!(steps(dir.path()), [10, 20]);
    }

    #[test]
    fn a_state_that_no_run_gets_to_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        checkpoint(dir.path(), 1 << 50);
        let error = latest(dir.path()).unwrap_err().to_string();
        assert!(error.contains("trainer_state.json: no run gets to"), "{error}");
    }

    #[test]
    fn the_best_checkpoint_stays_beside_the_newest() {
        let dir = tempfile::tempdir().unwrap();
        for (step, score) in [(5, 0.1), (10, 0.4), (15, 0.3), (20, 0.2)] {
            checkpoint(dir.path(), step);
            note_score(dir.path(), StepIndex(step), score).unwrap();
            retain(dir.path(), 1, Path::new(""));
        }
        assert_eq!(steps(dir.path()), [10, 20]);
        assert_eq!(latest(dir.path()).unwrap().1, state(20));
        let link = dir.path().join("checkpoints/best");
        assert_eq!(std::fs::read_link(&link).unwrap(), Path::new("step-000010"));
        assert!(link.join("weights").exists());
        // A better one replaces it as soon as it is durable.
        checkpoint(dir.path(), 25);
        note_score(dir.path(), StepIndex(25), 0.5).unwrap();
        retain(dir.path(), 1, Path::new(""));
        assert_eq!(steps(dir.path()), [25]);
    }

    #[test]
    fn what_is_not_as_it_was_written_is_refused_and_the_one_before_is_used() {
        type Fault = (&'static str, fn(&Path), &'static str);
        let faults: [Fault; 6] = [
            ("truncated file", |path| std::fs::write(path.join("weights"), vec![7; 100]).unwrap(), "weights"),
            (
                "flipped byte",
                |path| {
                    let mut bytes = std::fs::read(path.join("weights")).unwrap();
                    bytes[1_500_000] ^= 1;
                    std::fs::write(path.join("weights"), bytes).unwrap();
                },
                "weights",
            ),
            (
                "missing file",
                |path| std::fs::remove_file(path.join("trainer_state.json")).unwrap(),
                "trainer_state",
            ),
            (
                "missing manifest",
                |path| std::fs::remove_file(path.join(MANIFEST_FILE)).unwrap(),
                MANIFEST_FILE,
            ),
            (
                "another format",
                |path| {
                    let text = std::fs::read_to_string(path.join(MANIFEST_FILE)).unwrap();
                    let newer = text.replacen("\"format\": 1", "\"format\": 99, \"more\": true", 1);
                    std::fs::write(path.join(MANIFEST_FILE), newer).unwrap();
                },
                "format 99",
            ),
            (
                "an empty manifest",
                |path| std::fs::write(path.join(MANIFEST_FILE), "").unwrap(),
                MANIFEST_FILE,
            ),
        ];
        for (fault, damage, named) in faults {
            let dir = tempfile::tempdir().unwrap();
            let [first, second] = [5, 10].map(|step| checkpoint(dir.path(), step));
            damage(&second);
            let why = format!("{:#}", read(&second).unwrap_err());
            assert!(why.contains(named) && why.contains("step-000010"), "{fault}: {why}");
            assert_eq!(latest(dir.path()).unwrap(), (first.clone(), state(5)), "{fault}");
            // The bad one does not count: the good one stays until there are enough newer ones.
            assert_eq!(steps(dir.path()), [5], "{fault}");
            checkpoint(dir.path(), 6);
            retain(dir.path(), 2, Path::new("/models/m"));
            assert_eq!(steps(dir.path()), [5, 6], "{fault}");

            damage(&first);
            damage(&dir.path().join("checkpoints/step-000006"));
            let none = latest(dir.path()).unwrap_err().to_string();
            assert!(none.contains("step-000005") && none.contains("step-000006"), "{fault}: {none}");
            assert_eq!(steps(dir.path()), [5, 6], "{fault}: without a good one all stay");
        }
    }
}
