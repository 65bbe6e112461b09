//! The two-phase commit of one mini-batch: every optimizer step happens on all ranks or on none.
//!
//! Invariants: the word to apply is given once, and only after every rank's gradients are ready
//! with the same norm (all-reduced gradients are the same on all ranks, so different norms mean a
//! broken collective), and everything is finite. The mini-batch is done only after every rank reports the same policy
//! version and the same digest of the weights. A message that was heard before changes nothing.

use std::collections::{BTreeMap, BTreeSet};

use g2rl_common::ids::{MinibatchIndex, PolicyVersion, Rank, RolloutId, StepIndex};
use g2rl_common::update::UpdateStats;

/// Largest relative difference of the gradient norms of two ranks. All ranks add up the same f32
/// sums; only the order of the additions of the norm may differ.
const NORM_TOLERANCE: f64 = 1e-6;

/// Ranks that do not agree: on what, and each rank's value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Disagreement {
    pub(super) what: &'static str,
    pub(super) values: Vec<(Rank, String)>,
}

/// What a message of a rank led to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Progress {
    /// It was heard before.
    Duplicate,
    /// Other ranks are waited for.
    Waiting,
    /// It was the last.
    All,
    /// It was the last, and no rank may apply.
    NotFinite,
}

#[derive(Debug, Clone, PartialEq)]
enum State {
    /// Ranks compute and sum gradients.
    Computing { ready: BTreeMap<Rank, f64> },
    /// Ranks do the optimizer step.
    Applying { applied: BTreeMap<Rank, (PolicyVersion, u64)> },
}

/// The commit of one mini-batch.
#[derive(Debug, Clone)]
pub(super) struct Commit {
    step: StepIndex,
    minibatch: MinibatchIndex,
    ranks: u32,
    /// The policy after it.
    version: PolicyVersion,
    stats: UpdateStats,
    gradient_norm: f64,
    /// Rollouts whose own loss or log-probabilities are not finite.
    not_finite: BTreeSet<RolloutId>,
    state: State,
}

impl Commit {
    pub(super) fn new(
        step: StepIndex,
        minibatch: MinibatchIndex,
        ranks: u32,
        version: PolicyVersion,
    ) -> Self {
        Self {
            step,
            minibatch,
            ranks,
            version,
            stats: UpdateStats::default(),
            gradient_norm: 0.0,
            not_finite: BTreeSet::new(),
            state: State::Computing { ready: BTreeMap::new() },
        }
    }

    /// One that all ranks of an epoch before were told to do.
    pub(super) fn told(
        (step, minibatch): (StepIndex, MinibatchIndex),
        version: PolicyVersion,
        stats: UpdateStats,
        gradient_norm: f64,
    ) -> Self {
        let state = State::Applying { applied: BTreeMap::new() };
        Self { stats, gradient_norm, state, ..Self::new(step, minibatch, 0, version) }
    }

    pub(super) fn minibatch(&self) -> MinibatchIndex {
        self.minibatch
    }

    pub(super) fn is_of(&self, step: StepIndex, minibatch: MinibatchIndex) -> bool {
        (self.step, self.minibatch) == (step, minibatch)
    }

    pub(super) fn is_applying(&self) -> bool {
        matches!(self.state, State::Applying { .. })
    }

    pub(super) fn version(&self) -> PolicyVersion {
        self.version
    }

    /// Sums over all ranks; complete once the gradients are.
    pub(super) fn stats(&self) -> &UpdateStats {
        &self.stats
    }

    pub(super) fn gradient_norm(&self) -> f64 {
        self.gradient_norm
    }

    /// Rollouts that ranks named; none if only a sum is not finite.
    pub(super) fn not_finite(&self) -> impl Iterator<Item = RolloutId> {
        self.not_finite.iter().copied()
    }

    /// Ranks that have not answered in the current state.
    pub(super) fn missing(&self) -> Vec<Rank> {
        let answered = |rank: &Rank| match &self.state {
            State::Computing { ready } => ready.contains_key(rank),
            State::Applying { applied } => applied.contains_key(rank),
        };
        (0..self.ranks).map(Rank).filter(|rank| !answered(rank)).collect()
    }

    /// A rank's gradients are ready. On [`Progress::All`] the word to apply must be given.
    pub(super) fn gradients_ready(
        &mut self,
        rank: Rank,
        stats: &UpdateStats,
        norm: f64,
        not_finite: &[RolloutId],
    ) -> Result<Progress, Disagreement> {
        let State::Computing { ready } = &mut self.state else { return Ok(Progress::Duplicate) };
        if ready.contains_key(&rank) {
            return Ok(Progress::Duplicate);
        }
        ready.insert(rank, norm);
        self.stats.merge(stats);
        self.not_finite.extend(not_finite);
        if ready.len() < self.ranks as usize && !planted!(AppliedEarly) {
            return Ok(Progress::Waiting);
        }
        let all = |what| Disagreement {
            what,
            values: ready.iter().map(|(&rank, norm)| (rank, norm.to_string())).collect(),
        };
        let finite = ready.values().filter(|norm| norm.is_finite()).count();
        if finite == 0 {
            return Ok(Progress::NotFinite);
        }
        let largest = ready.values().copied().fold(0.0, f64::max);
        let smallest = ready.values().copied().fold(f64::INFINITY, f64::min);
        if finite < ready.len() || largest - smallest > NORM_TOLERANCE * largest {
            return Err(all("gradient norm"));
        }
        let all_finite = self.not_finite.is_empty() && self.stats.is_finite();
        if !all_finite && !planted!(NotFiniteApplied) {
            return Ok(Progress::NotFinite);
        }
        self.gradient_norm = largest;
        self.state = State::Applying { applied: BTreeMap::new() };
        Ok(Progress::All)
    }

    /// A rank did the optimizer step. `None` if it was not told to.
    pub(super) fn applied(
        &mut self,
        rank: Rank,
        version: PolicyVersion,
        digest: u64,
    ) -> Option<Result<Progress, Disagreement>> {
        let State::Applying { applied } = &mut self.state else { return None };
        if applied.contains_key(&rank) {
            return Some(Ok(Progress::Duplicate));
        }
        applied.insert(rank, (version, digest));
        // At once: the others may never answer.
        if let Err(disagreement) = agree(applied, self.version) {
            return Some(Err(disagreement));
        }
        let all = applied.len() == self.ranks as usize;
        Some(Ok(if all { Progress::All } else { Progress::Waiting }))
    }
}

/// All ranks hold the expected policy version and the same weights.
pub(super) fn agree(
    policies: &BTreeMap<Rank, (PolicyVersion, u64)>,
    expected: PolicyVersion,
) -> Result<(), Disagreement> {
    if policies.values().any(|&(version, _)| version != expected) {
        let values =
            policies.iter().map(|(&rank, (version, _))| (rank, format!("{version}, not {expected}")));
        return Err(Disagreement { what: "policy version", values: values.collect() });
    }
    let mut digests = policies.values().map(|&(_, digest)| digest);
    let first = digests.next();
    if digests.any(|digest| Some(digest) != first) {
        let values = policies.iter().map(|(&rank, (_, digest))| (rank, format!("{digest:016x}")));
        return Err(Disagreement { what: "digest of the weights", values: values.collect() });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use g2rl_common::ids::GroupId;

    use super::*;

    fn commit() -> Commit {
        Commit::new(StepIndex(4), MinibatchIndex(1), 2, PolicyVersion(9))
    }

    fn ready(commit: &mut Commit, rank: u32, norm: f64) -> Result<Progress, Disagreement> {
        let stats = UpdateStats { tokens: 10, ..UpdateStats::default() };
        commit.gradients_ready(Rank(rank), &stats, norm, &[])
    }

    #[test]
    fn the_word_is_given_once_after_all_are_ready() {
        let mut commit = commit();
        assert_eq!(commit.applied(Rank(0), PolicyVersion(9), 1), None);
        assert_eq!(ready(&mut commit, 1, 2.0), Ok(Progress::Waiting));
        assert_eq!(ready(&mut commit, 1, 2.0), Ok(Progress::Duplicate));
        assert_eq!(commit.missing(), [Rank(0)]);
        // A difference of 1 in 10^7 is rounding.
        assert_eq!(ready(&mut commit, 0, 2.000_000_2), Ok(Progress::All));
        assert_eq!(ready(&mut commit, 0, 2.0), Ok(Progress::Duplicate));
        assert_eq!(commit.stats().tokens, 20);
        assert_eq!(commit.missing(), [Rank(0), Rank(1)]);
        assert_eq!(commit.applied(Rank(0), PolicyVersion(9), 7), Some(Ok(Progress::Waiting)));
        assert_eq!(commit.applied(Rank(0), PolicyVersion(9), 7), Some(Ok(Progress::Duplicate)));
        assert_eq!(commit.applied(Rank(1), PolicyVersion(9), 7), Some(Ok(Progress::All)));
    }

    #[test]
    fn different_or_broken_norms_are_not_applied() {
        // 4 in 10^6 is too much; zero gradients agree; a sum that is not finite is so on all ranks.
        for (first, second, expected) in [
            (2.0, 2.000_008, None),
            (0.0, 0.0, Some(Progress::All)),
            (f64::NAN, f64::NAN, Some(Progress::NotFinite)),
            (f64::INFINITY, f64::INFINITY, Some(Progress::NotFinite)),
            (f64::INFINITY, 1.0, None),
            (1.0, f64::NAN, None),
        ] {
            let mut commit = commit();
            ready(&mut commit, 0, first).unwrap();
            let last = ready(&mut commit, 1, second);
            assert_eq!(last.ok(), expected, "{first} {second}");
            assert_eq!(commit.is_applying(), expected == Some(Progress::All));
        }
    }

    #[test]
    fn a_rollout_or_a_sum_that_is_not_finite_is_not_applied_by_anybody() {
        let rollout = RolloutId { group: GroupId(3), index: 1 };
        let finite = UpdateStats::default();
        for (stats, named) in [
            (UpdateStats { loss: f64::NAN, ..finite }, vec![]),
            (UpdateStats { kl: f64::INFINITY, ..finite }, vec![]),
            (finite, vec![rollout]),
        ] {
            let mut commit = commit();
            assert_eq!(commit.gradients_ready(Rank(1), &stats, 2.0, &named), Ok(Progress::Waiting));
            assert_eq!(ready(&mut commit, 0, 2.0), Ok(Progress::NotFinite));
            assert_eq!(commit.not_finite().collect::<Vec<_>>(), named);
            assert_eq!(ready(&mut commit, 0, 2.0), Ok(Progress::Duplicate));
            assert_eq!(commit.applied(Rank(0), PolicyVersion(9), 7), None);
        }
    }

    #[test]
    fn policies_must_be_the_expected_and_the_same() {
        let applied = |version, digest| {
            let mut commit = commit();
            ready(&mut commit, 0, 1.0).unwrap();
            ready(&mut commit, 1, 1.0).unwrap();
            commit.applied(Rank(0), PolicyVersion(9), 5);
            commit.applied(Rank(1), version, digest).unwrap()
        };
        assert_eq!(applied(PolicyVersion(9), 5), Ok(Progress::All));
        assert_eq!(applied(PolicyVersion(8), 5).unwrap_err().what, "policy version");
        let error = applied(PolicyVersion(9), 6).unwrap_err();
        assert_eq!(error.what, "digest of the weights");
        assert_eq!(error.values[1], (Rank(1), "0000000000000006".to_owned()));
        // The first answer is compared with what it must be; nobody else has to answer.
        let mut commit = commit();
        ready(&mut commit, 0, 1.0).unwrap();
        ready(&mut commit, 1, 1.0).unwrap();
        let error = commit.applied(Rank(1), PolicyVersion(10), 5).unwrap().unwrap_err();
        assert_eq!(error.values, [(Rank(1), "10, not 9".to_owned())]);
    }
}
