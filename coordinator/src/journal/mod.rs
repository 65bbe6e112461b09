//! Everything a run did, in one SQLite file that outlives it.
//!
//! | table | a row |
//! |---|---|
//! | step | a completed training step: sums, times, rewards, geometry |
//! | clock | when it was completed, milliseconds since 1970 |
//! | grp | a shaped group |
//! | geometry | its cosines, of the pairs i < j row by row: 16-bit integers, little-endian, 32767 for 1 |
//! | rollout | a rollout of a training step: text, verdict, score, reward, advantage, novelty |
//! | evaluation | one score of an evaluation; of further data sets as `NAME/score` |
//! | skipped_minibatch | a mini-batch that was not finite, with the rollouts that made it so |
//!
//! What a restart goes on from, with the tokens, lies beside it until its step is completed: see [`crate::wal`].
//!
//! Two threads write them, in batches of whatever is queued. The queues are bounded: when the disk is slower than the
//! run, the run waits. A write that fails fails the run.
//!
//! Invariant: the rows of a step are on the disk before the log forgets the step. A restart in between writes
//! them again; the later row replaces the earlier. Going back to a checkpoint removes what came after it.

mod sinks;
mod writer;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use g2rl_common::geometry::GroupGeometry;
use g2rl_common::ids::{MinibatchIndex, RolloutId, StepIndex};
use rusqlite::{Connection, OpenFlags, params};
use tokio::sync::{mpsc, oneshot};

use self::sinks::{LogSink, LogWrite, RowsSink, RowsWrite};
use self::writer::Writer;
use crate::evaluate::Evaluation;
use crate::shaping::GroupOutcome;
use crate::shell::{Input, Kept};
use crate::state::{Record, StepRecord};
use crate::summary::StepSummary;
use crate::wal::{Entry, Wal};

/// Changes whenever the tables change.
const SCHEMA_VERSION: i64 = 5;

/// What version 1 lacks.
const FROM_VERSION_1: &str = "
ALTER TABLE step ADD COLUMN score REAL;
ALTER TABLE rollout ADD COLUMN score REAL;
";

/// What versions before 5 lack.
const BEFORE_VERSION_5: &str = "ALTER TABLE step ADD COLUMN reward_ms INTEGER;";

/// The tables. A step's `shaping_ms` is from its last rollout to its last advantage; `reward_ms` is the part of it until
/// the last judgement.
pub const SCHEMA: &str = "
PRAGMA journal_mode = WAL;
PRAGMA synchronous = FULL;
CREATE TABLE IF NOT EXISTS step (
    step INTEGER PRIMARY KEY, policy_version INTEGER, loss REAL, kl REAL, clip_fraction REAL,
    entropy REAL, drift_mean REAL, drift_max REAL, gradient_norm REAL, learning_rate REAL,
    response_tokens INTEGER, rollout_ms INTEGER, shaping_ms INTEGER, update_ms INTEGER, reward REAL,
    correct REAL, length REAL, novelty REAL, mean_cosine REAL, mean_cosine_distinct REAL,
    negative_ratio REAL, orthogonal_ratio REAL, duplicate_ratio REAL, equal_reward_groups INTEGER,
    cosine_histogram TEXT, score REAL, reward_ms INTEGER);
CREATE TABLE IF NOT EXISTS grp (
    grp INTEGER PRIMARY KEY, step INTEGER, problem INTEGER, equal_rewards INTEGER, skipped INTEGER,
    mean_cosine REAL);
CREATE TABLE IF NOT EXISTS rollout (
    grp INTEGER, idx INTEGER, step INTEGER, policy_version INTEGER, text TEXT, tokens INTEGER,
    prompt_tokens INTEGER, finish_reason TEXT, mean_entropy REAL, correct INTEGER, extracted TEXT,
    canonical TEXT, reason TEXT, reward REAL, shaped_reward REAL, advantage REAL, novelty REAL,
    score REAL, PRIMARY KEY (grp, idx));
CREATE TABLE IF NOT EXISTS evaluation (
    step INTEGER, score TEXT, mean REAL, low REAL, high REAL, problems INTEGER, samples INTEGER,
    PRIMARY KEY (step, score));
CREATE TABLE IF NOT EXISTS skipped_minibatch (
    step INTEGER, minibatch INTEGER, rollouts TEXT, PRIMARY KEY (step, minibatch));
CREATE TABLE IF NOT EXISTS geometry (grp INTEGER PRIMARY KEY, step INTEGER, cosine BLOB);
CREATE TABLE IF NOT EXISTS clock (step INTEGER PRIMARY KEY, finished_ms INTEGER);
DROP INDEX IF EXISTS rollout_step;
CREATE INDEX IF NOT EXISTS rollout_facts ON rollout (step, grp, correct, novelty, finish_reason);
";

/// Cosines of larger groups are not kept: 128 rollouts have 16 KiB of them.
const LARGEST_GEOMETRY: usize = 128;

/// The way into the journal.
#[derive(Debug)]
pub(crate) struct Journal {
    /// Ends first: a position waits for rows.
    log: Writer<LogWrite>,
    rows: Writer<RowsWrite>,
}

/// The journal's file in a run directory.
#[must_use]
pub fn path(dir: &Path) -> std::path::PathBuf {
    dir.join("journal.sqlite")
}

/// Makes an empty journal, for whoever wants one without a run.
///
/// # Errors
/// If the file cannot be made.
pub fn create(dir: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open(path(dir))?;
    connection.execute_batch(SCHEMA)?;
    connection.pragma_update(None, "user_version", SCHEMA_VERSION)?;
    Ok(connection)
}

/// The version of a journal's tables; 0 until all of them are there.
pub(crate) fn version(db: &Connection) -> rusqlite::Result<i64> {
    db.query_row("PRAGMA user_version", [], |row| row.get(0))
}

/// A group's cosines as the table `geometry` has them; `None` if there are too many.
fn packed_cosines(geometry: &GroupGeometry) -> Option<Vec<u8>> {
    let size = geometry.size();
    let pairs = (0..size).flat_map(|i| (i + 1..size).map(move |j| (i, j)));
    let pack = |(i, j)| ((geometry.cosine(i, j) * f64::from(i16::MAX)).round() as i16).to_le_bytes();
    (size <= LARGEST_GEOMETRY).then(|| pairs.flat_map(pack).collect())
}

/// The mean length of the answers to each training problem when it was last asked, tokens, by the problem's row.
///
/// # Errors
/// If the file cannot be read.
pub fn response_lengths(dir: &Path) -> anyhow::Result<BTreeMap<u32, f64>> {
    let path = path(dir);
    let read = || -> rusqlite::Result<BTreeMap<u32, f64>> {
        let db = Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        // Later groups replace earlier ones of the same problem.
        let mut query = db.prepare(
            "SELECT grp.problem, AVG(rollout.tokens) FROM grp JOIN rollout USING (grp)
             GROUP BY grp.grp HAVING COUNT(rollout.tokens) > 0 ORDER BY grp.grp",
        )?;
        query.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
    };
    read().map_err(|error| anyhow::anyhow!("journal {}: {error}", path.display()))
}

/// The number of training rollouts.
///
/// # Errors
/// If the file cannot be read.
pub fn rollouts(dir: &Path) -> anyhow::Result<u64> {
    let path = path(dir);
    let count = || -> rusqlite::Result<i64> {
        let db = Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        db.query_row("SELECT COUNT(*) FROM rollout", [], |row| row.get(0))
    };
    let count = count().map_err(|error| anyhow::anyhow!("journal {}: {error}", path.display()))?;
    Ok(count.unsigned_abs())
}

impl Journal {
    /// Opens or creates the journal of a run directory. Failures go to `inputs`; a transaction that takes
    /// longer than `limit` is one.
    ///
    /// # Errors
    /// If the file cannot be opened, is locked, or has another version.
    pub(crate) fn open(dir: &Path, inputs: mpsc::Sender<Input>, limit: Duration) -> anyhow::Result<Self> {
        let path = path(dir);
        let failed = |error: rusqlite::Error| anyhow::anyhow!("journal {}: {error}", path.display());
        let connection = Connection::open(&path).map_err(failed)?;
        let version = version(&connection).map_err(failed)?;
        anyhow::ensure!(
            (0..=SCHEMA_VERSION).contains(&version),
            "journal {} has version {version}, this program writes {SCHEMA_VERSION}",
            path.display()
        );
        if version == 1 {
            connection.execute_batch(FROM_VERSION_1).map_err(failed)?;
        }
        if (1..5).contains(&version) {
            connection.execute_batch(BEFORE_VERSION_5).map_err(failed)?;
        }
        connection.execute_batch(SCHEMA).map_err(failed)?;
        connection.pragma_update(None, "user_version", SCHEMA_VERSION).map_err(failed)?;
        let failed = |what: String| {
            let inputs = inputs.clone();
            move |error: anyhow::Error| {
                // The run ends with this; if it has already ended, nobody listens.
                let _ = inputs.blocking_send(Input::Failed(format!("{what}: {error:#}")));
            }
        };
        let of_rows = failed(format!("journal {}", path.display()));
        let of_log = failed(format!("write-ahead log {}", crate::wal::path(dir).display()));
        Ok(Self {
            log: Writer::start("log", LogSink::default(), limit, of_log)?,
            rows: Writer::start("journal", RowsSink(connection), limit, of_rows)?,
        })
    }

    /// Writes that wait, and for how long the longer of the batches under way has been.
    pub(crate) fn backlog(&self) -> (usize, Duration) {
        let (log, rows) = (self.log.backlog(), self.rows.backlog());
        (log.0 + rows.0, log.1.max(rows.1))
    }

    /// How long what goes to the disk may take.
    pub(crate) fn limit(&self) -> Duration {
        self.rows.limit()
    }

    /// A batch under way takes longer than it may.
    pub(crate) fn hangs(&self) -> bool {
        self.backlog().1 >= self.limit()
    }

    fn write(&self, write: impl FnOnce(&Connection) -> rusqlite::Result<()> + Send + 'static) {
        self.rows.queue(RowsWrite::Rows(Box::new(write)));
    }

    /// The log that entries go to from now on.
    pub(crate) fn begin_log(&self, wal: Wal) {
        self.log.queue(LogWrite::Log(wal));
    }

    pub(crate) fn record(&self, entry: Entry) {
        let position = matches!(entry.record, Record::Position { .. });
        let entry = Box::new(entry);
        self.log.queue(match position {
            true => {
                let (done, written) = std::sync::mpsc::sync_channel(1);
                self.rows.queue(RowsWrite::Commit(done));
                LogWrite::Position(entry, written)
            }
            false => LogWrite::Entry(entry),
        });
    }

    /// Heard when every entry before is on the disk; ends without a word if the writer fails, which has said so.
    pub(crate) fn sync(&self) -> oneshot::Receiver<()> {
        let (done, heard) = oneshot::channel();
        self.log.queue(LogWrite::Sync(done));
        heard
    }

    /// The run goes back to where this step is the next.
    pub(crate) fn go_back(&self, step: StepIndex) {
        self.write(move |db| {
            for table in ["step", "grp", "rollout", "skipped_minibatch", "geometry", "clock"] {
                db.execute(&format!("DELETE FROM {table} WHERE step >= ?"), [step.0])?;
            }
            db.execute("DELETE FROM evaluation WHERE step > ?", [step.0])?;
            Ok(())
        });
    }

    pub(crate) fn group(&self, outcome: &GroupOutcome) {
        let outcome = outcome.clone();
        self.write(move |db| {
            let cosine = outcome.pairs.as_ref().and_then(|pairs| pairs.mean_cosine());
            let row = params![
                outcome.group.0,
                outcome.step.0,
                outcome.problem.index,
                outcome.equal_rewards,
                outcome.skipped,
                cosine
            ];
            db.prepare_cached("INSERT OR REPLACE INTO grp VALUES (?,?,?,?,?,?)")?.execute(row)?;
            if let Some(cosines) = outcome.geometry.as_ref().and_then(packed_cosines) {
                db.prepare_cached("INSERT OR REPLACE INTO geometry VALUES (?,?,?)")?.execute(params![
                    outcome.group.0,
                    outcome.step.0,
                    cosines
                ])?;
            }
            let mut update = db.prepare_cached(
                "INSERT INTO rollout (grp, idx, step, reward, shaped_reward, advantage, novelty)
                 VALUES (?,?,?,?,?,?,?)
                 ON CONFLICT (grp, idx) DO UPDATE SET step = excluded.step, reward = excluded.reward,
                 shaped_reward = excluded.shaped_reward, advantage = excluded.advantage,
                 novelty = excluded.novelty",
            )?;
            for (index, r) in outcome.rollouts.iter().enumerate() {
                let (group, step) = (outcome.group.0, outcome.step.0);
                update.execute(params![
                    group,
                    index,
                    step,
                    r.reward,
                    r.shaped_reward,
                    r.advantage,
                    r.novelty
                ])?;
            }
            Ok(())
        });
    }

    pub(crate) fn rollout(&self, step: StepIndex, kept: &Kept) {
        let kept = kept.clone();
        self.write(move |db| {
            let (rollout, verdict) = (&kept.rollout, kept.verdict());
            db.prepare_cached(
                "INSERT INTO rollout (grp, idx, step, policy_version, text, tokens, prompt_tokens,
                 finish_reason, mean_entropy, correct, extracted, canonical, reason, score)
                 VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?)
                 ON CONFLICT (grp, idx) DO UPDATE SET step = excluded.step,
                 policy_version = excluded.policy_version, text = excluded.text, tokens = excluded.tokens,
                 prompt_tokens = excluded.prompt_tokens, finish_reason = excluded.finish_reason,
                 mean_entropy = excluded.mean_entropy, correct = excluded.correct,
                 extracted = excluded.extracted, canonical = excluded.canonical, reason = excluded.reason,
                 score = excluded.score",
            )?
            .execute(params![
                rollout.id.group.0,
                rollout.id.index,
                step.0,
                rollout.policy_version.0,
                rollout.text,
                rollout.response_tokens.len(),
                rollout.prompt_tokens.len(),
                rollout.finish_reason.as_str(),
                rollout.mean_entropy,
                verdict.map(|v| v.correct),
                verdict.and_then(|v| v.extracted.as_deref()),
                verdict.and_then(|v| v.canonical.as_deref()),
                verdict.map(|v| v.reason.as_str()),
                kept.judgement.as_ref().map(|j| j.score),
            ])
            .map(|_| ())
        });
    }

    pub(crate) fn step(&self, record: &StepRecord, step: &StepSummary) {
        let (record, step) = (record.clone(), step.clone());
        // Before 1970 the clock is not set.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as i64;
        self.write(move |db| {
            db.prepare_cached("INSERT OR REPLACE INTO clock VALUES (?,?)")?
                .execute(params![record.step.0, now])?;
            let (stats, first) = (record.stats, record.first_minibatch_stats);
            let pairs = step.pairs.as_ref();
            let histogram = pairs.map(|p| serde_json::to_string(&p.histogram).unwrap_or_default());
            db.prepare_cached(
                "INSERT OR REPLACE INTO step VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
            )?
            .execute(params![
                record.step.0,
                record.policy_version.0,
                stats.loss,
                stats.per_token(stats.kl),
                stats.per_token(stats.clipped as f64),
                stats.per_token(stats.entropy),
                first.per_token(first.drift),
                first.drift_max,
                record.gradient_norm,
                record.learning_rate,
                record.response_tokens,
                record.times.rollout_ms,
                record.times.reward_ms + record.times.shaping_ms,
                record.times.update_ms,
                step.reward,
                step.correct,
                step.length,
                step.novelty,
                pairs.and_then(|p| p.mean_cosine()),
                pairs.and_then(|p| p.mean_distinct_cosine()),
                pairs.and_then(|p| p.negative_ratio()),
                pairs.and_then(|p| p.orthogonal_ratio()),
                pairs.and_then(|p| p.duplicate_ratio()),
                step.equal_reward_groups,
                histogram,
                step.score,
                record.times.reward_ms,
            ])
            .map(|_| ())
        });
    }

    pub(crate) fn minibatch_skipped(
        &self,
        step: StepIndex,
        minibatch: MinibatchIndex,
        rollouts: &[RolloutId],
    ) {
        let rollouts = rollouts.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        self.write(move |db| {
            db.prepare_cached("INSERT OR REPLACE INTO skipped_minibatch VALUES (?,?,?)")?
                .execute(params![step.0, minibatch.0, rollouts])
                .map(|_| ())
        });
    }

    pub(crate) fn evaluations(&self, step: StepIndex, evaluations: &[Evaluation]) {
        let evaluations = evaluations.to_vec();
        self.write(move |db| {
            let mut insert = db.prepare_cached("INSERT OR REPLACE INTO evaluation VALUES (?,?,?,?,?,?,?)")?;
            for (at, evaluation) in evaluations.iter().enumerate() {
                let set = if at == 0 { String::new() } else { format!("{}/", evaluation.set) };
                let more = [("length", evaluation.length), ("distinct_correct", evaluation.distinct_correct)];
                let scores = evaluation.scores.iter().map(|(name, score)| (name.as_str(), *score));
                for (name, score) in scores.chain(more) {
                    let [low, high] = score.interval;
                    let (problems, samples) = (evaluation.problems, evaluation.samples);
                    let name = format!("{set}{name}");
                    insert.execute(params![step.0, name, score.mean, low, high, problems, samples])?;
                }
            }
            Ok(())
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(60);

    /// A column's place in a table.
    fn place(db: &Connection, table: &str, column: &str) -> i64 {
        let query = format!("SELECT cid FROM pragma_table_info('{table}') WHERE name = '{column}'");
        db.query_row(&query, [], |row| row.get(0)).unwrap()
    }

    #[test]
    fn a_journal_of_version_1_is_brought_up_to_date() {
        let dir = tempfile::tempdir().unwrap();
        let (inputs, _heard) = mpsc::channel(1);
        let old = Connection::open(path(dir.path())).unwrap();
        let schema = SCHEMA
            .replace(", score REAL, reward_ms INTEGER);", ");")
            .replace("score REAL, PRIMARY", "PRIMARY");
        old.execute_batch(&format!("{schema} INSERT INTO step (step) VALUES (7); PRAGMA user_version = 1;"))
            .unwrap();
        drop(old);
        drop(Journal::open(dir.path(), inputs.clone(), LIMIT).unwrap());
        // Again: now there is nothing to add.
        drop(Journal::open(dir.path(), inputs, LIMIT).unwrap());
        let db = Connection::open(path(dir.path())).unwrap();
        let row = "SELECT step FROM step WHERE score IS NULL";
        assert_eq!(db.query_row(row, [], |row| row.get::<_, i64>(0)).unwrap(), 7);
        // Rows of a step are written by place.
        assert_eq!((place(&db, "step", "score"), place(&db, "step", "reward_ms")), (25, 26));
        assert!(place(&db, "rollout", "score") > 0);
    }

    #[test]
    fn lengths_are_those_of_a_problems_last_answers() {
        let dir = tempfile::tempdir().unwrap();
        let (inputs, _heard) = mpsc::channel(1);
        drop(Journal::open(dir.path(), inputs, LIMIT).unwrap());
        let db = Connection::open(path(dir.path())).unwrap();
        db.execute_batch(
            "INSERT INTO grp (grp, problem) VALUES (1, 7), (2, 8), (3, 7), (4, 9);
             INSERT INTO rollout (grp, idx, tokens) VALUES (1, 0, 10), (2, 0, 20), (2, 1, 31), (3, 0, 40), (4, 0, NULL);",
        )
        .unwrap();
        assert_eq!(response_lengths(dir.path()).unwrap(), BTreeMap::from([(7, 40.0), (8, 25.5)]));
    }

    #[test]
    fn going_back_removes_what_came_after_the_checkpoint() {
        let dir = tempfile::tempdir().unwrap();
        let (inputs, _heard) = mpsc::channel(1);
        let journal = Journal::open(dir.path(), inputs, LIMIT).unwrap();
        journal.write(|db| {
            db.execute_batch(
                "INSERT INTO step (step) VALUES (0), (1), (2);
                 INSERT INTO grp (grp, step) VALUES (4, 1), (5, 2), (6, 3);
                 INSERT INTO rollout (grp, idx, step) VALUES (4, 0, 1), (5, 0, 2);
                 INSERT INTO skipped_minibatch (step, minibatch) VALUES (1, 0), (2, 1);
                 INSERT INTO evaluation (step, score) VALUES (0, 'pass@1'), (2, 'pass@1'), (3, 'pass@1');",
            )
        });
        // Two steps are done: the next is number 2, and the evaluation after two is one of the checkpoint's policy.
        journal.go_back(StepIndex(2));
        drop(journal);
        let db = Connection::open(path(dir.path())).unwrap();
        let left = |table: &str| -> Vec<i64> {
            let mut query = db.prepare(&format!("SELECT step FROM {table} ORDER BY step")).unwrap();
            query.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
        };
        let all = [left("step"), left("grp"), left("rollout"), left("evaluation")];
        assert_eq!(all, [vec![0, 1], vec![1], vec![1], vec![0, 2]]);
        assert_eq!(left("skipped_minibatch"), [1]);
    }

    #[test]
    fn a_journal_of_a_later_version_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (inputs, _heard) = mpsc::channel(1);
        let db = Connection::open(path(dir.path())).unwrap();
        db.pragma_update(None, "user_version", SCHEMA_VERSION + 1).unwrap();
        let error = Journal::open(dir.path(), inputs, LIMIT).unwrap_err().to_string();
        assert!(error.contains("has version 6, this program writes 5"), "{error}");
    }
}
