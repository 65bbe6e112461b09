//! One group with its texts, read from the journal when it is asked for.
//!
//! Bounds: a response is shown up to [`SHOWN`] characters, and whole on its own; a group up to [`ROLLOUTS`] rollouts.

use rusqlite::{Connection, OptionalExtension};
use serde::Serialize;

use super::curves::short;
use super::follow::has_table;
use super::index::normalized;
use crate::dataset::Problem;

/// Characters of a response beside the others.
const SHOWN: usize = 20_000;

/// Rollouts of a group that are shown.
const ROLLOUTS: usize = 256;

/// What `/api/groups/{group}` answers.
#[derive(Debug, Serialize)]
pub(super) struct Detail {
    pub(super) group: u64,
    /// Counted from 1.
    pub(super) step: u64,
    pub(super) problem: Option<String>,
    pub(super) prompt: Option<String>,
    /// What the verifier compares with.
    pub(super) answer: Option<String>,
    pub(super) equal_rewards: bool,
    pub(super) skipped: bool,
    pub(super) mean_cosine: Option<f64>,
    pub(super) rollouts: Vec<Shown>,
    /// `[rollouts, rollouts]`, symmetric; `None` where features are off, or the journal does not have it.
    pub(super) cosine: Option<Vec<Vec<f64>>>,
}

/// One rollout.
#[derive(Debug, Serialize)]
pub(super) struct Shown {
    pub(super) index: u32,
    pub(super) text: String,
    /// Characters of the whole text, if more than are here.
    pub(super) whole_text: Option<usize>,
    pub(super) tokens: Option<u64>,
    pub(super) finish_reason: Option<String>,
    /// Nats.
    pub(super) entropy: Option<f64>,
    pub(super) correct: Option<bool>,
    pub(super) extracted: Option<String>,
    pub(super) reason: Option<String>,
    pub(super) score: Option<f64>,
    pub(super) reward: Option<f64>,
    pub(super) shaped_reward: Option<f64>,
    pub(super) advantage: Option<f64>,
    pub(super) novelty: Option<f64>,
    /// On the scale from the group's least to its most novel rollout, 0 to 1.
    pub(super) novelty_in_group: Option<f64>,
}

/// Reads a group; `None` if there is none.
pub(super) fn read(db: &Connection, problems: &[Problem], group: u64) -> rusqlite::Result<Option<Detail>> {
    let head = db
        .prepare_cached("SELECT step, problem, equal_rewards, skipped, mean_cosine FROM grp WHERE grp = ?")?
        .query_row([group], |row| {
            Ok((row.get::<_, u64>(0)?, row.get::<_, usize>(1)?, row.get(2)?, row.get(3)?, row.get(4)?))
        })
        .optional()?;
    let Some((step, problem, equal_rewards, skipped, mean_cosine)) = head else { return Ok(None) };
    let problem = problems.get(problem);
    let mut rollouts = rollouts(db, group)?;
    let novelty: Option<Vec<f64>> = rollouts.iter().map(|rollout| rollout.novelty).collect();
    for (rollout, novelty) in rollouts.iter_mut().zip(novelty.as_deref().map(normalized).unwrap_or_default())
    {
        rollout.novelty_in_group = short(novelty);
    }
    Ok(Some(Detail {
        group,
        step: step + 1,
        problem: problem.map(|problem| problem.id.clone()),
        prompt: problem.map(|problem| problem.problem.clone()),
        answer: problem.map(|problem| problem.answer.clone()),
        equal_rewards,
        skipped,
        mean_cosine,
        cosine: cosine(db, group, rollouts.len())?,
        rollouts,
    }))
}

fn rollouts(db: &Connection, group: u64) -> rusqlite::Result<Vec<Shown>> {
    let query = "SELECT idx, substr(text, 1, ?2), length(text), tokens, finish_reason, mean_entropy, correct, extracted,
                 reason, score, reward, shaped_reward, advantage, novelty FROM rollout WHERE grp = ?1 ORDER BY idx LIMIT ?3";
    let mut query = db.prepare_cached(query)?;
    let rows = query.query_map((group, SHOWN, ROLLOUTS), |row| {
        let whole = row.get::<_, Option<usize>>(2)?.filter(|characters| *characters > SHOWN);
        Ok(Shown {
            index: row.get(0)?,
            text: row.get::<_, Option<String>>(1)?.unwrap_or_default(),
            whole_text: whole,
            tokens: row.get(3)?,
            finish_reason: row.get(4)?,
            entropy: row.get(5)?,
            correct: row.get(6)?,
            extracted: row.get(7)?,
            reason: row.get(8)?,
            score: row.get(9)?,
            reward: row.get(10)?,
            shaped_reward: row.get(11)?,
            advantage: row.get(12)?,
            novelty: row.get(13)?,
            novelty_in_group: None,
        })
    })?;
    rows.collect()
}

/// The cosine matrix out of its upper triangle.
fn cosine(db: &Connection, group: u64, size: usize) -> rusqlite::Result<Option<Vec<Vec<f64>>>> {
    if !has_table(db, "geometry")? {
        return Ok(None);
    }
    let packed: Option<Vec<u8>> = db
        .prepare_cached("SELECT cosine FROM geometry WHERE grp = ?")?
        .query_row([group], |row| row.get(0))
        .optional()?;
    Ok(packed.and_then(|packed| unpack(&packed, size)))
}

fn unpack(packed: &[u8], size: usize) -> Option<Vec<Vec<f64>>> {
    if packed.len() != size * size.saturating_sub(1) {
        return None;
    }
    let mut matrix = vec![vec![1.0; size]; size];
    let mut values = packed.chunks_exact(2).map(|two| f64::from(i16::from_le_bytes([two[0], two[1]])));
    for (i, j) in (0..size).flat_map(|i| (i + 1..size).map(move |j| (i, j))) {
        // Four digits are what is there.
        let value = (values.next()? / f64::from(i16::MAX) * 1e4).round() / 1e4;
        (matrix[i][j], matrix[j][i]) = (value, value);
    }
    Some(matrix)
}

/// The whole text of a rollout.
pub(super) fn text(db: &Connection, group: u64, index: u32) -> rusqlite::Result<Option<String>> {
    db.prepare_cached("SELECT text FROM rollout WHERE grp = ? AND idx = ?")?
        .query_row((group, index), |row| row.get::<_, Option<String>>(0))
        .optional()
        .map(Option::flatten)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal;

    #[test]
    fn a_group_is_read_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let db = journal::create(dir.path()).unwrap();
        let long = "é".repeat(SHOWN + 1);
        db.execute("INSERT INTO grp VALUES (5, 2, 0, 0, 0, 0.25)", []).unwrap();
        let insert = "INSERT INTO rollout (grp, idx, step, text, novelty, correct) VALUES (5, ?, 2, ?, ?, 1)";
        db.execute(insert, (0, "<script>alert(1)</script>", 0.2)).unwrap();
        db.execute(insert, (1, &long, 0.6)).unwrap();
        // 0.5, rounded to 16 bits.
        db.execute("INSERT INTO geometry VALUES (5, 2, ?)", [16_384i16.to_le_bytes().to_vec()]).unwrap();
        let found = read(&db, &[], 5).unwrap().unwrap();
        assert_eq!((found.step, found.rollouts.len(), found.prompt), (3, 2, None));
        assert_eq!(found.rollouts[0].text, "<script>alert(1)</script>");
        assert_eq!(found.rollouts[0].novelty_in_group, Some(0.0));
        assert_eq!(found.rollouts[1].text.chars().count(), SHOWN);
        assert_eq!((found.rollouts[1].whole_text, found.rollouts[0].whole_text), (Some(SHOWN + 1), None));
        assert_eq!(found.cosine, Some(vec![vec![1.0, 0.5], vec![0.5, 1.0]]));
        assert_eq!(text(&db, 5, 1).unwrap(), Some(long));
        assert_eq!((text(&db, 5, 2).unwrap(), read(&db, &[], 6).unwrap().is_none()), (None, true));
    }

    #[test]
    fn cosines_of_another_number_of_rollouts_are_not_shown() {
        assert_eq!(unpack(&[0; 4], 2), None);
        assert_eq!(unpack(&[], 1), Some(vec![vec![1.0]]));
        assert_eq!(unpack(&[], 0), Some(vec![]));
    }
}
