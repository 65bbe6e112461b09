//! Which groups are shown: few, and those that say most.

use std::collections::BTreeSet;

use rusqlite::{Connection, OptionalExtension};

use super::data::RunData;
use crate::evaluate::ProblemRow;

/// Runs whose groups are shown.
const MOST_RUNS: usize = 12;

/// Problems of a geometry.
pub(super) const GEOMETRY_PROBLEMS: usize = 2;

/// The first runs of all methods, then the second ones, as long as a round fits; of the first round what fits.
pub(super) fn runs(runs: &[RunData]) -> Vec<&RunData> {
    let mut chosen: Vec<&RunData> = Vec::new();
    for round in 0.. {
        let mut seen: Vec<(&str, usize)> = Vec::new();
        let of_round = runs.iter().filter(|run| {
            match seen.iter_mut().find(|(method, _)| *method == run.method) {
                Some((_, count)) => *count += 1,
                None => seen.push((&run.method, 0)),
            }
            seen.iter().any(|(method, count)| *method == run.method && *count == round)
        });
        let of_round: Vec<&RunData> = of_round.collect();
        if of_round.is_empty() || (round > 0 && chosen.len() + of_round.len() > MOST_RUNS) {
            break;
        }
        chosen.extend(of_round);
    }
    chosen.truncate(MOST_RUNS);
    chosen.sort_by_key(|run| runs.iter().position(|other| std::ptr::eq(other, *run)));
    chosen
}

/// Completed steps of which a group is shown: after the first, the middle and the last.
pub(super) fn steps(run: &RunData) -> BTreeSet<u64> {
    let last = run.steps.len().saturating_sub(1);
    [0, last / 2, last].iter().filter_map(|at| run.steps.get(*at).copied()).collect()
}

/// The group of a step that says most: right and wrong answers before others, then the largest spread of novelty, of
/// rewards where there is none.
pub(super) fn group(db: &Connection, step: u64) -> rusqlite::Result<Option<u64>> {
    db.query_row(
        "SELECT grp FROM rollout WHERE step = ? GROUP BY grp HAVING COUNT(text) > 0
         ORDER BY COALESCE(MAX(correct) <> MIN(correct), 0) DESC,
         COALESCE(MAX(novelty) - MIN(novelty), MAX(reward) - MIN(reward), 0) DESC, grp LIMIT 1",
        // The row of step 0 is what one completed step left.
        [step - 1],
        |row| row.get(0),
    )
    .optional()
}

/// Ids of problems for which most models have right and wrong answers, then with the most different answers.
pub(super) fn problems(models: &[Vec<ProblemRow>]) -> Vec<String> {
    let Some(first) = models.first() else { return Vec::new() };
    let mut ranked: Vec<(usize, usize, &String)> = first
        .iter()
        .map(|row| {
            let same = |rows: &Vec<ProblemRow>| rows.iter().position(|other| other.id == row.id);
            let of_models: Vec<&ProblemRow> =
                models.iter().filter_map(|rows| rows.get(same(rows)?)).collect();
            let mixed = of_models.iter().filter(|row| 0 < row.correct && row.correct < row.samples).count();
            let different = |row: &&ProblemRow| row.duplicate_of.iter().collect::<BTreeSet<_>>().len();
            (mixed, of_models.iter().map(different).sum(), &row.id)
        })
        .collect();
    ranked.sort_by(|a, b| (b.0, b.1).cmp(&(a.0, a.1)).then(a.2.cmp(b.2)));
    ranked.into_iter().take(GEOMETRY_PROBLEMS).map(|(_, _, id)| id.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::super::tests::run;
    use super::*;

    #[test]
    fn rounds_of_runs_are_shown_as_long_as_they_fit() {
        let labels = |all: &[RunData]| -> Vec<String> {
            runs(all).iter().map(|run| format!("{}{}", run.method, run.label)).collect()
        };
        let of = |methods: &[&str], count: usize| -> Vec<RunData> {
            let run =
                |method: &&str| (0..count).map(|at| run(method, &at.to_string(), &[1.0])).collect::<Vec<_>>();
            methods.iter().flat_map(run).collect()
        };
        assert_eq!(labels(&of(&["a", "b"], 2)), ["a0", "a1", "b0", "b1"]);
        // Four rounds of three are twelve.
        assert_eq!(labels(&of(&["a", "b", "c"], 9)).len(), 12);
        assert_eq!(labels(&of(&["a", "b", "c", "d", "e"], 9)).len(), 10);
        let many: Vec<String> = (0..30).map(|at| format!("m{at:02}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert_eq!(labels(&of(&many, 2)).len(), 12);
    }

    #[test]
    fn mixed_groups_come_before_others_then_the_spread_of_novelty() {
        let db = Connection::open_in_memory().unwrap();
        db.execute_batch(
            "CREATE TABLE rollout (grp, step, text, correct, novelty, reward);
             INSERT INTO rollout VALUES (1, 4, 'a', 1, 0.0, 1), (1, 4, 'b', 1, 1.0, 1);
             INSERT INTO rollout VALUES (2, 4, 'a', 1, 0.1, 1), (2, 4, 'b', 0, 0.2, -1);
             INSERT INTO rollout VALUES (3, 4, 'a', 1, 0.1, 1), (3, 4, 'b', 0, 0.9, -1);
             INSERT INTO rollout VALUES (4, 5, 'a', 1, NULL, 1), (4, 5, 'b', 0, NULL, -1);",
        )
        .unwrap();
        assert_eq!(group(&db, 5).unwrap(), Some(3));
        assert_eq!(group(&db, 6).unwrap(), Some(4));
        assert_eq!(group(&db, 7).unwrap(), None);
    }
}
