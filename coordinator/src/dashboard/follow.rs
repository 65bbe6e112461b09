//! The thread that follows the journal and keeps the [`Index`] up to date.
//!
//! It looks whether anything was committed, verifies that the last step is still what it was (a run that goes back to a
//! checkpoint writes later steps again: the last one wins), and reads the steps after it. SQLite shows whole transactions
//! only, and a step is written after its groups and rollouts, so nothing is seen half.
//!
//! Invariants: it only reads, in transactions of one step, so that the writer's log can be cut; it holds the index for
//! as long as it takes to append what was read; it ends with the dashboard.

use std::collections::BTreeMap;
use std::sync::{PoisonError, RwLock, Weak};
use std::time::Duration;

use g2rl_common::geometry::HISTOGRAM_BINS;
use rusqlite::{Connection, OptionalExtension, Row};

use super::Inner;
use super::index::{
    COLUMN_COUNT, COLUMNS, EvaluationRow, GroupFacts, Index, NoveltyBins, StepFacts, StepRow,
};
use crate::journal;

/// How often it looks.
const INTERVAL: Duration = Duration::from_millis(300);

/// Steps that are appended at once.
const CHUNK: usize = 32;

/// Rows of evaluations that are kept: the newest.
const EVALUATIONS: u32 = 5_000;

/// Follows the journal until nobody has the dashboard any more.
pub(super) fn run(dashboard: &Weak<Inner>) {
    let mut followed: Option<Followed> = None;
    loop {
        let Some(inner) = dashboard.upgrade() else { return };
        let looked = look(&mut followed, &inner);
        let error = looked.err().map(|error| error.to_string());
        if error.is_some() {
            followed = None;
        }
        let mut index = inner.index.write().unwrap_or_else(PoisonError::into_inner);
        if index.error != error {
            if let Some(error) = &error {
                tracing::warn!(error, "the dashboard cannot read the journal");
            }
            index.error = error;
        }
        drop(index);
        drop(inner);
        std::thread::park_timeout(INTERVAL);
    }
}

/// A connection, and what it saw last: the number means nothing to another one.
struct Followed {
    db: Connection,
    seen: Option<i64>,
}

fn look(followed: &mut Option<Followed>, inner: &Inner) -> rusqlite::Result<()> {
    let followed = match followed {
        Some(followed) => followed,
        // A run that has just begun has no journal yet, or one without its last table.
        None if !inner.readers.path().exists() => return Ok(()),
        None => {
            let db = inner.readers.open()?;
            if journal::version(&db)? == 0 {
                return Ok(());
            }
            followed.insert(Followed { db, seen: None })
        }
    };
    let version: i64 = followed.db.query_row("PRAGMA data_version", [], |row| row.get(0))?;
    if followed.seen != Some(version) {
        refresh(&followed.db, &inner.index)?;
        followed.seen = Some(version);
    }
    Ok(())
}

/// Brings the index up to what the journal has.
pub(super) fn refresh(db: &Connection, index: &RwLock<Index>) -> rusqlite::Result<()> {
    let write = || index.write().unwrap_or_else(PoisonError::into_inner);
    let reader = Reader::new(db)?;
    loop {
        let last = index.read().unwrap_or_else(PoisonError::into_inner).steps().last().cloned();
        let Some(last) = last else { break };
        if reader.step(last.step)?.is_some_and(|read| last.is_still(&read)) {
            break;
        }
        write().pop();
    }
    loop {
        let after = index.read().unwrap_or_else(PoisonError::into_inner).steps().last().map(|row| row.step);
        let rows = reader.steps_after(after)?;
        let whole = rows.len() < CHUNK;
        let read: Vec<_> = rows
            .into_iter()
            .map(|mut row| reader.facts(&mut row).map(|groups| (row, groups)))
            .collect::<rusqlite::Result<_>>()?;
        let mut index = write();
        for (row, groups) in read {
            index.push(row, groups);
        }
        if whole {
            break;
        }
    }
    let evaluations = reader.evaluations()?;
    let mut index = write();
    if index.evaluations != evaluations {
        index.evaluations = evaluations;
        index.revision += 1;
    }
    index.complete = true;
    Ok(())
}

struct Reader<'a> {
    db: &'a Connection,
    /// Journals of earlier versions lack the table.
    has_clock: bool,
    /// And the column `reward_ms`.
    has_reward_time: bool,
}

impl<'a> Reader<'a> {
    fn new(db: &'a Connection) -> rusqlite::Result<Self> {
        let column = "SELECT 1 FROM pragma_table_info('step') WHERE name = 'reward_ms'";
        let has_reward_time = db.prepare_cached(column)?.exists([])?;
        Ok(Self { db, has_clock: has_table(db, "clock")?, has_reward_time })
    }

    fn columns(&self) -> String {
        let mut columns = COLUMNS.map(|column| column.sql.unwrap_or("NULL")).join(", ");
        if !self.has_reward_time {
            columns = columns.replace("reward_ms", "NULL");
        }
        let clock = match self.has_clock {
            true => "(SELECT finished_ms FROM clock WHERE clock.step = step.step)",
            false => "NULL",
        };
        format!("SELECT step, {clock}, cosine_histogram, {columns} FROM step")
    }

    fn step(&self, step: u64) -> rusqlite::Result<Option<StepRow>> {
        let query = format!("{} WHERE step = ?", self.columns());
        self.db.prepare_cached(&query)?.query_row([step], step_row).optional()
    }

    fn steps_after(&self, after: Option<u64>) -> rusqlite::Result<Vec<StepRow>> {
        let after = after.map_or(-1, |step| step as i64);
        let query = format!("{} WHERE step > ? ORDER BY step LIMIT {CHUNK}", self.columns());
        self.db.prepare_cached(&query)?.query_map([after], step_row)?.collect()
    }

    /// The groups of a step; what they say of the whole step goes into its row.
    fn facts(&self, row: &mut StepRow) -> rusqlite::Result<Vec<GroupFacts>> {
        let mut facts = StepFacts::default();
        // Answered by the index `rollout_facts` alone: texts are not read.
        let query =
            "SELECT grp, correct, novelty, finish_reason = 'length' FROM rollout WHERE step = ? ORDER BY grp";
        let mut query = self.db.prepare_cached(query)?;
        let mut rollouts = query.query([row.step])?;
        while let Some(rollout) = rollouts.next()? {
            let right = rollout.get::<_, Option<bool>>(1)?.unwrap_or(false);
            let cut = rollout.get::<_, Option<bool>>(3)?.unwrap_or(false);
            facts.add((rollout.get(0)?, row.step), right, rollout.get(2)?, cut);
        }
        let mut groups = facts.finish(row);
        let (Some(first), Some(last)) = (groups.first(), groups.last()) else { return Ok(groups) };
        let query =
            "SELECT grp, problem, skipped, mean_cosine FROM grp WHERE grp BETWEEN ? AND ? AND step = ?";
        let mut query = self.db.prepare_cached(query)?;
        let shaped: BTreeMap<u64, (u32, Option<bool>, Option<f64>)> = query
            .query_map([first.group, last.group, row.step], |row| {
                Ok((row.get(0)?, (row.get(1)?, row.get(2)?, row.get(3)?)))
            })?
            .collect::<rusqlite::Result<_>>()?;
        for group in &mut groups {
            if let Some((problem, skipped, cosine)) = shaped.get(&group.group) {
                group.problem = *problem;
                group.skipped = skipped.unwrap_or(false);
                group.mean_cosine = cosine.map_or(f32::NAN, |cosine| cosine as f32);
            }
        }
        Ok(groups)
    }

    fn evaluations(&self) -> rusqlite::Result<Vec<EvaluationRow>> {
        let query =
            "SELECT step, score, mean, low, high FROM evaluation ORDER BY step DESC, rowid DESC LIMIT ?";
        let mut query = self.db.prepare_cached(query)?;
        let rows = query.query_map([EVALUATIONS], |row| {
            Ok(EvaluationRow {
                step: row.get(0)?,
                score: row.get(1)?,
                mean: row.get(2)?,
                low: row.get(3)?,
                high: row.get(4)?,
            })
        })?;
        let mut rows: Vec<_> = rows.collect::<rusqlite::Result<_>>()?;
        rows.reverse();
        Ok(rows)
    }
}

/// Whether the journal has a table.
pub(super) fn has_table(db: &Connection, name: &str) -> rusqlite::Result<bool> {
    db.prepare_cached("SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = ?")?.exists([name])
}

fn step_row(row: &Row<'_>) -> rusqlite::Result<StepRow> {
    const FIRST: usize = 3;
    let mut values = [f64::NAN; COLUMN_COUNT];
    for (at, value) in values.iter_mut().enumerate() {
        *value = row.get::<_, Option<f64>>(FIRST + at)?.unwrap_or(f64::NAN);
    }
    let histogram: Option<Vec<u32>> =
        row.get::<_, Option<String>>(2)?.and_then(|text| serde_json::from_str(&text).ok());
    let cosines = histogram.and_then(|bins| <[u32; HISTOGRAM_BINS]>::try_from(bins).ok()).map(Box::new);
    let novelty = NoveltyBins::default();
    Ok(StepRow { step: row.get(0)?, finished_ms: row.get(1)?, values, cosines, novelty })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A step with two groups of two rollouts, one right and one wrong.
    fn write(db: &Connection, step: u64, reward: f64) {
        let first = 10 * step;
        db.execute_batch(&format!(
            "INSERT OR REPLACE INTO step (step, reward, rollout_ms) VALUES ({step}, {reward}, 500);
             INSERT OR REPLACE INTO clock VALUES ({step}, {step} * 1000);
             INSERT OR REPLACE INTO grp VALUES ({first}, {step}, 7, 0, 0, 0.5), ({first} + 1, {step}, 8, 0, 1, NULL);
             INSERT OR REPLACE INTO rollout (grp, idx, step, correct, novelty, finish_reason, text)
             VALUES ({first}, 0, {step}, 1, 0.1, 'end_token', 'a'), ({first}, 1, {step}, 0, 0.9, 'length', 'b'),
                    ({first} + 1, 0, {step}, 1, 0.2, 'end_token', 'c'), ({first} + 1, 1, {step}, 0, 0.2, 'length', 'd');"
        ))
        .unwrap();
    }

    fn rewards(index: &RwLock<Index>) -> Vec<(u64, f64)> {
        index.read().unwrap().steps().iter().map(|row| (row.step, row.values[0])).collect()
    }

    #[test]
    fn what_is_appended_is_read_and_what_is_not_committed_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let writer = journal::create(dir.path()).unwrap();
        let (reader, index) = (Connection::open(journal::path(dir.path())).unwrap(), RwLock::default());
        refresh(&reader, &index).unwrap();
        assert!(index.read().unwrap().complete && rewards(&index).is_empty());
        write(&writer, 0, 0.5);
        writer.execute_batch("BEGIN").unwrap();
        write(&writer, 1, 0.6);
        refresh(&reader, &index).unwrap();
        assert_eq!(rewards(&index), [(0, 0.5)]);
        writer.execute_batch("COMMIT").unwrap();
        refresh(&reader, &index).unwrap();
        assert_eq!(rewards(&index), [(0, 0.5), (1, 0.6)]);
        let groups = index.read().unwrap().groups().to_vec();
        assert_eq!(
            groups.iter().map(|g| (g.group, g.problem)).collect::<Vec<_>>(),
            [(0, 7), (1, 8), (10, 7), (11, 8)]
        );
        assert!(!groups[0].skipped && groups[1].skipped && groups[0].mean_cosine == 0.5);
        assert_eq!((groups[0].wrong_novelty, groups[0].right_novelty, groups[0].truncated), (1.0, 0.0, 1));
    }

    #[test]
    fn of_a_step_that_is_written_again_the_last_one_counts() {
        let dir = tempfile::tempdir().unwrap();
        let writer = journal::create(dir.path()).unwrap();
        let (reader, index) = (Connection::open(journal::path(dir.path())).unwrap(), RwLock::default());
        (0..5).for_each(|step| write(&writer, step, 0.1));
        refresh(&reader, &index).unwrap();
        // Back to where step 2 is the next, and further than before, between two looks.
        for table in ["step", "grp", "rollout", "clock"] {
            writer.execute(&format!("DELETE FROM {table} WHERE step >= 2"), []).unwrap();
        }
        (2..7).for_each(|step| write(&writer, step, 0.2));
        refresh(&reader, &index).unwrap();
        let expected: Vec<(u64, f64)> = (0..7).map(|step| (step, if step < 2 { 0.1 } else { 0.2 })).collect();
        assert_eq!(rewards(&index), expected);
        assert_eq!(index.read().unwrap().groups().len(), 14);
        // And only back.
        writer.execute("DELETE FROM step WHERE step >= 1", []).unwrap();
        refresh(&reader, &index).unwrap();
        assert_eq!(rewards(&index), [(0, 0.1)]);
        assert_eq!(index.read().unwrap().groups().len(), 2);
    }

    #[test]
    fn steps_of_an_earlier_version_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let db = journal::create(dir.path()).unwrap();
        let seconds = |index: &RwLock<Index>| {
            let index = index.read().unwrap();
            let values = index.steps()[0].values;
            let named = |name| COLUMNS.iter().position(|column| column.name == name).unwrap();
            (values[named("reward_seconds")], values[named("shaping_seconds")])
        };
        let step = "INSERT INTO step (step, shaping_ms, reward_ms) VALUES (0, 800, 500)";
        db.execute(step, []).unwrap();
        let index = RwLock::default();
        refresh(&db, &index).unwrap();
        assert_eq!(seconds(&index), (0.5, 0.3));
        db.execute_batch("DROP TABLE clock; ALTER TABLE step DROP COLUMN reward_ms").unwrap();
        let index = RwLock::default();
        refresh(&db, &index).unwrap();
        let (reward, shaping) = seconds(&index);
        assert!(reward.is_nan() && shaping == 0.8, "{reward} {shaping}");
    }

    #[test]
    fn tokens_of_given_solutions_count_over_the_whole_step() {
        let dir = tempfile::tempdir().unwrap();
        let db = journal::create(dir.path()).unwrap();
        for (step, length) in [(0, 18.0), (1, 0.0)] {
            let query = "INSERT INTO step (step, response_tokens, rollout_ms, shaping_ms, update_ms, length)
                         VALUES (?, 600, 100, 20, 180, ?)";
            db.execute(query, (step, length)).unwrap();
        }
        let index = RwLock::default();
        refresh(&db, &index).unwrap();
        let at = COLUMNS.iter().position(|column| column.name == "tokens_per_second").unwrap();
        let rates: Vec<f64> = index.read().unwrap().steps().iter().map(|step| step.values[at]).collect();
        assert_eq!(rates, [6_000.0, 2_000.0]);
    }

    #[test]
    fn facts_of_a_step_are_read_without_its_texts() {
        let dir = tempfile::tempdir().unwrap();
        let db = journal::create(dir.path()).unwrap();
        let query = "EXPLAIN QUERY PLAN SELECT grp, correct, novelty, finish_reason = 'length' FROM rollout
                     WHERE step = 1 ORDER BY grp";
        let plan: String = db.query_row(query, [], |row| row.get(3)).unwrap();
        assert!(plan.contains("COVERING INDEX rollout_facts"), "{plan}");
    }
}
