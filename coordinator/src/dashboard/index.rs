//! `journal -> curves, groups`: what the dashboard keeps of the journal in memory, so that no page reads it whole.
//!
//! In: rows of completed steps, in order ([`super::follow`] reads them). Out: the numbers of each step and a few facts
//! of each group, by which groups are found without their texts.
//!
//! Invariants: steps ascend, and so do groups by (step, group); a step is there with all of its groups or not at all.
//! Memory is bounded: [`MAX_STEPS`] steps of about 600 bytes and [`MAX_GROUPS`] groups of 48, 110 MB together; of
//! longer runs the oldest are left out, and counted. Ten thousand steps with a million rollouts in groups of eight take
//! 12 MB.

use g2rl_common::geometry::HISTOGRAM_BINS;

/// Steps that are kept.
pub(super) const MAX_STEPS: usize = 100_000;

/// Groups that are kept.
pub(super) const MAX_GROUPS: usize = 1_000_000;

/// Bins of a novelty histogram, of equal width over [0, 1].
pub(super) const NOVELTY_BINS: usize = 20;

/// Longest time between two steps that counts as waiting, milliseconds: more was a run that stood still.
const LONGEST_WAIT_MS: f64 = 86_400_000.0;

/// A number of each step.
#[derive(Debug, Clone, Copy)]
pub(super) struct Column {
    /// In the API.
    pub(super) name: &'static str,
    /// Of its values.
    pub(super) unit: &'static str,
    /// Where the table `step` has it; `None` if it is derived.
    pub(super) sql: Option<&'static str>,
}

const fn journaled(name: &'static str, unit: &'static str, sql: &'static str) -> Column {
    Column { name, unit, sql: Some(sql) }
}

const fn derived(name: &'static str, unit: &'static str) -> Column {
    Column { name, unit, sql: None }
}

/// Generated tokens over the time of rollouts. Imitation generates none, so no response has a length: given ones count over the
/// whole step.
const TOKENS_PER_SECOND: &str =
    "1000.0 * response_tokens / MAX(rollout_ms + IIF(length = 0, shaping_ms + update_ms, 0), 1)";

/// How many numbers a step has. Written out: the type of [`StepRow`] must not need the value of [`COLUMNS`].
pub(super) const COLUMN_COUNT: usize = 27;

/// All numbers of a step, by place; `docs/dashboard.md` holds the same.
pub(super) const COLUMNS: [Column; COLUMN_COUNT] = [
    journaled("reward", "reward", "reward"),
    journaled("correct", "0 to 1", "correct"),
    journaled("score", "0 to 1", "score"),
    journaled("response_length", "tokens", "length"),
    journaled("entropy", "nats/token", "entropy"),
    journaled("kl", "nats/token", "kl"),
    journaled("gradient_norm", "norm", "gradient_norm"),
    journaled("loss", "loss", "loss"),
    journaled("learning_rate", "1", "learning_rate"),
    journaled("clip_fraction", "0 to 1", "clip_fraction"),
    journaled("drift_mean", "nats", "drift_mean"),
    journaled("drift_max", "nats", "drift_max"),
    journaled("mean_cosine", "-1 to 1", "mean_cosine"),
    journaled("mean_cosine_distinct", "-1 to 1", "mean_cosine_distinct"),
    journaled("orthogonal_pairs", "0 to 1", "orthogonal_ratio"),
    journaled("negative_pairs", "0 to 1", "negative_ratio"),
    journaled("duplicate_pairs", "0 to 1", "duplicate_ratio"),
    journaled("equal_reward_groups", "groups", "equal_reward_groups"),
    journaled("novelty", "0 to 1", "novelty"),
    journaled("tokens_per_second", "tokens/s", TOKENS_PER_SECOND),
    journaled("rollout_seconds", "s", "rollout_ms / 1000.0"),
    journaled("reward_seconds", "s", "reward_ms / 1000.0"),
    journaled("shaping_seconds", "s", "(shaping_ms - COALESCE(reward_ms, 0)) / 1000.0"),
    journaled("update_seconds", "s", "update_ms / 1000.0"),
    derived("wait_seconds", "s"),
    derived("novelty_right", "0 to 1"),
    derived("novelty_wrong", "0 to 1"),
];

/// The place of a column.
const fn place(name: &str) -> usize {
    let mut at = 0;
    while at < COLUMNS.len() {
        if same(COLUMNS[at].name.as_bytes(), name.as_bytes()) {
            return at;
        }
        at += 1;
    }
    panic!("no column has this name")
}

const fn same(a: &[u8], b: &[u8]) -> bool {
    if a.len() != b.len() {
        return false;
    }
    let mut at = 0;
    while at < a.len() {
        if a[at] != b[at] {
            return false;
        }
        at += 1;
    }
    true
}

const ROLLOUT_S: usize = place("rollout_seconds");
const REWARD_S: usize = place("reward_seconds");
const SHAPING_S: usize = place("shaping_seconds");
const UPDATE_S: usize = place("update_seconds");
const WAIT_S: usize = place("wait_seconds");
const NOVELTY_RIGHT: usize = place("novelty_right");
const NOVELTY_WRONG: usize = place("novelty_wrong");

/// Rollouts by novelty.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct NoveltyBins {
    pub(super) right: [u32; NOVELTY_BINS],
    pub(super) wrong: [u32; NOVELTY_BINS],
}

/// A completed step.
#[derive(Debug, Clone)]
pub(super) struct StepRow {
    /// Counts from 0, as in the journal.
    pub(super) step: u64,
    /// When it was completed, milliseconds since 1970.
    pub(super) finished_ms: Option<i64>,
    /// By place of [`COLUMNS`]; NaN where there is none.
    pub(super) values: [f64; COLUMN_COUNT],
    /// Pairs by cosine.
    pub(super) cosines: Option<Box<[u32; HISTOGRAM_BINS]>>,
    pub(super) novelty: NoveltyBins,
}

impl StepRow {
    /// Whether the journal still has this step as it was read: it may have gone back to a checkpoint and come again.
    pub(super) fn is_still(&self, read: &Self) -> bool {
        let values = COLUMNS.iter().zip(self.values.iter().zip(&read.values));
        let mut values = values.filter(|(column, _)| column.sql.is_some());
        self.step == read.step
            && self.finished_ms == read.finished_ms
            && values.all(|(_, (a, b))| a.to_bits() == b.to_bits())
    }

    fn phases_s(&self) -> f64 {
        let phases = [ROLLOUT_S, REWARD_S, SHAPING_S, UPDATE_S];
        phases.iter().map(|&at| self.values[at]).filter(|seconds| seconds.is_finite()).sum()
    }
}

/// What is known of a group without its texts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct GroupFacts {
    pub(super) group: u64,
    /// Counts from 0.
    pub(super) step: u64,
    /// Row of its problem.
    pub(super) problem: u32,
    /// Rollouts; those that are right; those that ended at the length limit.
    pub(super) size: u16,
    pub(super) right: u16,
    pub(super) truncated: u16,
    pub(super) skipped: bool,
    /// NaN where features are off.
    pub(super) mean_cosine: f32,
    /// Largest novelty of a wrong rollout, 0 to 1 inside the group; NaN without one, or where all are as novel.
    pub(super) wrong_novelty: f32,
    /// Smallest novelty of a right rollout, likewise.
    pub(super) right_novelty: f32,
}

const _: () = assert!(size_of::<GroupFacts>() <= 48, "the bound in the module's documentation");

/// Score of an evaluation.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub(super) struct EvaluationRow {
    /// Training steps completed before it.
    pub(super) step: u64,
    pub(super) score: String,
    pub(super) mean: f64,
    /// 95 % bootstrap interval over problems.
    pub(super) low: f64,
    pub(super) high: f64,
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Index {
    steps: Vec<StepRow>,
    groups: Vec<GroupFacts>,
    groups_left_out: u64,
    pub(super) evaluations: Vec<EvaluationRow>,
    /// Grows with every change.
    pub(super) revision: u64,
    /// Everything that the journal had at the last look is here.
    pub(super) complete: bool,
    /// Why the journal could not be read, if the last look failed.
    pub(super) error: Option<String>,
}

impl Index {
    pub(super) fn steps(&self) -> &[StepRow] {
        &self.steps
    }

    pub(super) fn groups(&self) -> &[GroupFacts] {
        &self.groups
    }

    /// Groups that are too old to be kept.
    pub(super) fn groups_left_out(&self) -> u64 {
        self.groups_left_out
    }

    /// Takes in the next step with its groups.
    ///
    /// # Panics
    /// If it does not come after those that are there.
    pub(super) fn push(&mut self, mut row: StepRow, groups: impl IntoIterator<Item = GroupFacts>) {
        let last = self.steps.last();
        assert!(last.is_none_or(|last| last.step < row.step), "step {} is not the next", row.step);
        row.values[WAIT_S] = match last.and_then(|last| Some((row.finished_ms?, last.finished_ms?))) {
            Some((now, before)) => {
                let between = (now - before) as f64;
                let waited = between / 1e3 - row.phases_s();
                if between <= LONGEST_WAIT_MS { waited.max(0.0) } else { f64::NAN }
            }
            None => f64::NAN,
        };
        self.steps.push(row);
        self.groups.extend(groups);
        // Many at a time: each removal moves all the others.
        if self.steps.len() > MAX_STEPS {
            self.steps.drain(..MAX_STEPS / 16);
        }
        if self.groups.len() > MAX_GROUPS {
            let surplus = self.groups.len() - MAX_GROUPS + MAX_GROUPS / 16;
            self.groups.drain(..surplus);
            self.groups_left_out += surplus as u64;
        }
        self.revision += 1;
    }

    /// Forgets the last step: the journal has it no more, or another one.
    pub(super) fn pop(&mut self) {
        if let Some(gone) = self.steps.pop() {
            let keep = self.groups.partition_point(|group| group.step < gone.step);
            self.groups.truncate(keep);
            self.revision += 1;
        }
    }

    /// Mean time from one step to the next over the last ones, seconds.
    pub(super) fn seconds_per_step(&self) -> Option<f64> {
        const STEPS: usize = 20;
        let last = &self.steps[self.steps.len().saturating_sub(STEPS)..];
        let seconds = last.iter().map(|row| {
            let wait = row.values[WAIT_S];
            row.phases_s() + if wait.is_finite() { wait } else { 0.0 }
        });
        (!last.is_empty()).then(|| seconds.sum::<f64>() / last.len() as f64)
    }
}

/// Adds the rollouts of a step, group by group.
#[derive(Debug, Default)]
pub(super) struct StepFacts {
    bins: NoveltyBins,
    sums: [(f64, u64); 2],
    groups: Vec<GroupFacts>,
    /// Right, and novelty, of the rollouts of the group at hand.
    open: Vec<(bool, f64)>,
}

impl StepFacts {
    /// The next rollout; those of a group come one after the other.
    pub(super) fn add(&mut self, (group, step): (u64, u64), right: bool, novelty: Option<f64>, cut: bool) {
        if self.groups.last().is_none_or(|last| last.group != group) {
            self.close();
            self.groups.push(GroupFacts {
                group,
                step,
                problem: 0,
                size: 0,
                right: 0,
                truncated: 0,
                skipped: false,
                mean_cosine: f32::NAN,
                wrong_novelty: f32::NAN,
                right_novelty: f32::NAN,
            });
        }
        if let Some(facts) = self.groups.last_mut() {
            facts.size = facts.size.saturating_add(1);
            facts.right = facts.right.saturating_add(u16::from(right));
            facts.truncated = facts.truncated.saturating_add(u16::from(cut));
        }
        if let Some(novelty) = novelty {
            let bin = ((novelty * NOVELTY_BINS as f64) as usize).min(NOVELTY_BINS - 1);
            let bins = if right { &mut self.bins.right } else { &mut self.bins.wrong };
            bins[bin] += 1;
            let sum = &mut self.sums[usize::from(right)];
            *sum = (sum.0 + novelty, sum.1 + 1);
            self.open.push((right, novelty));
        }
    }

    fn close(&mut self) {
        if let Some(facts) = self.groups.last_mut() {
            let inside = normalized(&self.open.iter().map(|(_, novelty)| *novelty).collect::<Vec<_>>());
            let differ = inside.iter().any(|novelty| *novelty > 0.0);
            for ((right, _), novelty) in self.open.iter().zip(inside).filter(|_| differ) {
                let novelty = novelty as f32;
                // `max` and `min` take the other one of a NaN.
                match right {
                    true => facts.right_novelty = facts.right_novelty.min(novelty),
                    false => facts.wrong_novelty = facts.wrong_novelty.max(novelty),
                }
            }
        }
        self.open.clear();
    }

    /// Puts what is known of the whole step into its row; returns its groups.
    pub(super) fn finish(mut self, row: &mut StepRow) -> Vec<GroupFacts> {
        self.close();
        let [wrong, right] = self.sums.map(|(sum, count)| sum / count as f64);
        (row.values[NOVELTY_WRONG], row.values[NOVELTY_RIGHT]) = (wrong, right);
        row.novelty = self.bins;
        self.groups
    }
}

/// Novelties of a group on a scale from its least to its most novel rollout, 0 to 1; all 0 if they are equal.
pub(super) fn normalized(novelty: &[f64]) -> Vec<f64> {
    /// Rounding noise is no novelty.
    const SMALLEST_RANGE: f64 = 1e-6;
    let low = novelty.iter().copied().fold(f64::INFINITY, f64::min);
    let range = novelty.iter().copied().fold(f64::NEG_INFINITY, f64::max) - low;
    novelty.iter().map(|nu| if range > SMALLEST_RANGE { (nu - low) / range } else { 0.0 }).collect()
}

/// A row with nothing but its number, for tests.
#[cfg(test)]
pub(super) fn row(step: u64) -> StepRow {
    let values = [f64::NAN; COLUMN_COUNT];
    StepRow { step, finished_ms: None, values, cosines: None, novelty: NoveltyBins::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(group: u64, step: u64) -> Vec<GroupFacts> {
        let mut facts = StepFacts::default();
        facts.add((group, step), true, None, false);
        facts.finish(&mut row(step))
    }

    #[test]
    fn a_steps_wait_is_the_time_that_no_phase_explains() {
        let mut index = Index::default();
        for (step, finished_ms) in [(0, 1_000), (1, 8_500), (2, 9_000)] {
            let mut row = StepRow { finished_ms: Some(finished_ms), ..row(step) };
            for (at, seconds) in [(ROLLOUT_S, 2.0), (REWARD_S, 0.25), (SHAPING_S, 0.25), (UPDATE_S, 1.0)] {
                row.values[at] = seconds;
            }
            index.push(row, []);
        }
        let waits: Vec<f64> = index.steps().iter().map(|row| row.values[WAIT_S]).collect();
        // 7.5 s between the first two, 3.5 of them in phases; the phases of the third are longer than it was.
        assert!(waits[0].is_nan() && waits[1..] == [4.0, 0.0], "{waits:?}");
        // (3.5 + 7.5 + 3.5) / 3
        assert!((index.seconds_per_step().unwrap() - 14.5 / 3.0).abs() < 1e-12);
    }

    #[test]
    fn a_step_that_is_gone_takes_its_groups_with_it() {
        let mut index = Index::default();
        for step in 0..3 {
            index.push(row(step), facts(10 + step, step));
        }
        let before = index.revision;
        index.pop();
        assert_eq!(index.groups().iter().map(|group| group.group).collect::<Vec<_>>(), [10, 11]);
        index.push(row(2), facts(7, 2));
        assert_eq!(index.groups().last().map(|group| group.group), Some(7));
        assert!(index.revision > before);
    }

    #[test]
    fn novelty_is_seen_from_inside_the_group() {
        let mut facts = StepFacts::default();
        for (right, novelty) in [(true, 0.2), (true, 0.3), (false, 0.4), (false, 0.3)] {
            facts.add((1, 0), right, Some(novelty), !right);
        }
        for right in [true, false] {
            facts.add((2, 0), right, Some(0.5), false);
        }
        facts.add((3, 0), true, None, false);
        let mut row = row(0);
        let groups = facts.finish(&mut row);
        let first = groups[0];
        assert_eq!((first.size, first.right, first.truncated), (4, 2, 2));
        assert_eq!((first.wrong_novelty, first.right_novelty), (1.0, 0.0));
        // Without a range nobody is novel, and nobody redundant for it.
        assert!(groups[1].wrong_novelty.is_nan() && groups[1].right_novelty.is_nan());
        assert!(groups[2].right_novelty.is_nan());
        // (0.2 + 0.3 + 0.5) / 3 and (0.4 + 0.3 + 0.5) / 3
        assert!((row.values[NOVELTY_RIGHT] - 1.0 / 3.0).abs() < 1e-12);
        assert!((row.values[NOVELTY_WRONG] - 0.4).abs() < 1e-12);
        assert_eq!(row.novelty.right.iter().sum::<u32>() + row.novelty.wrong.iter().sum::<u32>(), 6);
    }

    #[test]
    fn memory_is_bounded() {
        let mut index = Index::default();
        let many =
            |step| (0..1000).map(move |at| GroupFacts { group: step * 1000 + at, step, ..facts(0, 0)[0] });
        let steps = MAX_GROUPS as u64 / 1000 + 200;
        for step in 0..steps {
            index.push(row(step), many(step));
        }
        assert!(index.groups().len() <= MAX_GROUPS);
        assert_eq!(index.groups().len() as u64 + index.groups_left_out(), steps * 1000);
        assert_eq!(index.groups().last().map(|group| group.step), Some(steps - 1));
    }
}
