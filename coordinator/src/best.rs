//! The best checkpoint: which of those that were evaluated has the highest score.
//!
//! In: the score of each evaluation. Out: a checkpoint that stays when older ones go, under its own name and as
//! the link `best`. A checkpoint that was not written or is refused counts as none.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use g2rl_common::ids::StepIndex;

/// Scores by step, beside the checkpoints.
const SCORES: &str = "scores.json";

/// The link to the best checkpoint.
const LINK: &str = "best";

fn scores(folder: &Path) -> BTreeMap<u64, f64> {
    // Damaged or absent: the next evaluation writes it again.
    std::fs::read(folder.join(SCORES))
        .ok()
        .and_then(|text| serde_json::from_slice(&text).ok())
        .unwrap_or_default()
}

/// Notes the score of an evaluation.
///
/// # Errors
/// If it cannot be written.
pub(crate) fn note(folder: &Path, step: StepIndex, score: f64) -> io::Result<()> {
    let mut scores = scores(folder);
    scores.insert(step.0, score);
    std::fs::create_dir_all(folder)?;
    let aside = folder.join(format!("{SCORES}.writing"));
    std::fs::write(&aside, serde_json::to_string_pretty(&scores)?)?;
    std::fs::rename(aside, folder.join(SCORES))
}

/// The best of these checkpoints, the earlier one of equals; `None` if none was evaluated.
pub(crate) fn of<'a>(folder: &Path, checkpoints: &'a [(u64, PathBuf)]) -> Option<&'a (u64, PathBuf)> {
    let scores = scores(folder);
    let scored = checkpoints.iter().filter_map(|checkpoint| Some((scores.get(&checkpoint.0)?, checkpoint)));
    scored.reduce(|best, next| if next.0 > best.0 { next } else { best }).map(|(_, checkpoint)| checkpoint)
}

/// Points the link at a checkpoint.
///
/// # Errors
/// If the link cannot be made.
pub(crate) fn link(folder: &Path, checkpoint: &Path) -> io::Result<()> {
    let Some(name) = checkpoint.file_name() else { return Ok(()) };
    let link = folder.join(LINK);
    if std::fs::read_link(&link).is_ok_and(|target| target == Path::new(name)) {
        return Ok(());
    }
    let aside = folder.join(format!("{LINK}.writing"));
    match std::fs::remove_file(&aside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    std::os::unix::fs::symlink(name, &aside)?;
    std::fs::rename(aside, link)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_score_with_a_checkpoint_is_the_best() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("checkpoints");
        let checkpoints: Vec<(u64, PathBuf)> =
            [5, 10, 15].map(|step| (step, folder.join(format!("step-{step:06}")))).into();
        assert_eq!(of(&folder, &checkpoints), None);
        for (step, score) in [(5, 0.25), (10, 0.5), (15, 0.5), (20, 0.75)] {
            note(&folder, StepIndex(step), score).unwrap();
        }
        // That of step 20 is not there; 10 comes before its equal.
        assert_eq!(of(&folder, &checkpoints), Some(&checkpoints[1]));
        for checkpoint in &checkpoints[..2] {
            link(&folder, &checkpoint.1).unwrap();
            let target = std::fs::read_link(folder.join("best")).unwrap();
            assert_eq!(Some(target.as_os_str()), checkpoint.1.file_name());
        }
        std::fs::write(folder.join(SCORES), "{").unwrap();
        assert_eq!(of(&folder, &checkpoints), None);
    }
}
