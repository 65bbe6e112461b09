//! The order in which training problems are drawn.
//!
//! Invariants: every pass over the data set is a permutation decided by run seed and pass alone (or the
//! data set's own order);
//! the position decides the problem, so a resumed run draws what an uninterrupted one would have
//! drawn. A problem that is drawn again under the same policy gets the next occurrence number, so
//! that its random streams differ.

use std::collections::BTreeMap;

use g2rl_common::seed::CounterRng;

/// A drawn problem.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Draw {
    /// Its row.
    pub(super) problem: u32,
    /// How often it was drawn before under the same policy.
    pub(super) occurrence: u32,
}

/// Position in the endless sequence of training problems.
#[derive(Debug, Clone)]
pub(super) struct PromptCursor {
    /// Of the permutations; `None` keeps the data set's order.
    seed: Option<u64>,
    problems: u32,
    drawn: u64,
    policy_since: u64,
    /// The pass that `order` belongs to.
    pass: Option<u64>,
    order: Vec<u32>,
    /// Draws since `policy_since`.
    draws: BTreeMap<u32, u32>,
}

impl PromptCursor {
    /// A cursor after `drawn` draws, with the policy that came to be after `policy_since` of them.
    pub(super) fn new(seed: Option<u64>, problems: u32, drawn: u64, policy_since: u64) -> Self {
        assert!(policy_since <= drawn, "the policy began after {policy_since} of {drawn} prompts");
        let mut cursor = Self {
            seed,
            problems,
            drawn: policy_since,
            policy_since,
            pass: None,
            order: Vec::new(),
            draws: BTreeMap::new(),
        };
        while cursor.drawn < drawn {
            cursor.draw();
        }
        cursor
    }

    pub(super) fn drawn(&self) -> u64 {
        self.drawn
    }

    pub(super) fn policy_since(&self) -> u64 {
        self.policy_since
    }

    pub(super) fn draw(&mut self) -> Draw {
        assert!(self.problems > 0, "drawn from an empty data set");
        let problems = u64::from(self.problems);
        let pass = self.drawn / problems;
        if self.pass != Some(pass) {
            self.order = (0..self.problems).collect();
            if let Some(seed) = self.seed {
                CounterRng::new(seed, &format!("data pass {pass}")).shuffle(&mut self.order);
            }
            self.pass = Some(pass);
        }
        let problem = self.order[(self.drawn % problems) as usize];
        self.drawn += 1;
        let count = self.draws.entry(problem).or_insert(0);
        let occurrence = *count;
        *count += 1;
        Draw { problem, occurrence }
    }

    /// A new policy: the random streams are new too, so occurrences start again.
    pub(super) fn policy_changed(&mut self) {
        self.policy_since = self.drawn;
        self.draws.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draws(cursor: &mut PromptCursor, count: usize) -> Vec<Draw> {
        (0..count).map(|_| cursor.draw()).collect()
    }

    #[test]
    fn every_pass_is_a_permutation_and_passes_differ() {
        let mut cursor = PromptCursor::new(Some(7), 50, 0, 0);
        let first: Vec<u32> = draws(&mut cursor, 50).iter().map(|draw| draw.problem).collect();
        let second: Vec<u32> = draws(&mut cursor, 50).iter().map(|draw| draw.problem).collect();
        for pass in [&first, &second] {
            let mut sorted = pass.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..50).collect::<Vec<_>>());
        }
        assert_ne!(first, second);
        let mut other = PromptCursor::new(Some(8), 50, 0, 0);
        assert_ne!(first, draws(&mut other, 50).iter().map(|draw| draw.problem).collect::<Vec<_>>());
    }

    #[test]
    fn a_problem_drawn_again_under_one_policy_is_told_apart() {
        let mut cursor = PromptCursor::new(Some(1), 3, 0, 0);
        let first = draws(&mut cursor, 9);
        for problem in 0..3 {
            let occurrences: Vec<u32> =
                first.iter().filter(|draw| draw.problem == problem).map(|draw| draw.occurrence).collect();
            assert_eq!(occurrences, [0, 1, 2]);
        }
        cursor.policy_changed();
        assert!(draws(&mut cursor, 3).iter().all(|draw| draw.occurrence == 0));
    }

    #[test]
    fn a_cursor_made_at_a_position_draws_what_the_first_would() {
        let mut cursor = PromptCursor::new(Some(3), 5, 0, 0);
        draws(&mut cursor, 7);
        cursor.policy_changed();
        draws(&mut cursor, 6);
        let mut resumed = PromptCursor::new(Some(3), 5, cursor.drawn(), cursor.policy_since());
        assert_eq!(draws(&mut resumed, 20), draws(&mut cursor, 20));
    }

    #[test]
    fn without_a_seed_the_order_is_the_data_sets() {
        let mut cursor = PromptCursor::new(None, 3, 0, 0);
        let drawn: Vec<u32> = draws(&mut cursor, 7).iter().map(|draw| draw.problem).collect();
        assert_eq!(drawn, [0, 1, 2, 0, 1, 2, 0]);
    }
}
