//! `index -> groups`: finds groups by what is known of them, newest first, a page at a time.
//!
//! What needs no text is decided in memory. A search reads the texts of the groups that are left, for at most
//! [`SEARCH_TIME`] a page: the answer then says how far back it got, and its cursor goes on from there.

use std::sync::{PoisonError, RwLock};
use std::time::{Duration, Instant};

use rusqlite::Connection;
use serde::{Deserialize, Serialize};

use super::index::{GroupFacts, Index};
use crate::dataset::Problem;

/// Groups of a page, unless asked for otherwise, and at most.
const PAGE: usize = 20;
const MAX_PAGE: usize = 100;

/// How long texts are searched for one page.
const SEARCH_TIME: Duration = Duration::from_millis(120);

/// Groups that are looked at before the index is let go.
const BATCH: usize = 64;

/// Characters of a prompt in a list.
const EXCERPT: usize = 240;

/// Longest text that can be searched for, characters.
const MAX_SEARCH: usize = 200;

/// A wrong rollout counts as novel from here on, a right one as redundant up to 1 minus this, on the scale from the
/// group's least to its most novel rollout.
const NOVEL: f32 = 0.8;

/// Which groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Kind {
    #[default]
    All,
    /// A wrong rollout is among the most novel.
    WrongNovel,
    /// A right rollout is among the least novel.
    RightRedundant,
    /// A rollout ended at the length limit.
    Truncated,
    /// Some are right and some are wrong.
    Mixed,
    AllRight,
    AllWrong,
    /// It took no part in the update.
    Skipped,
}

impl Kind {
    fn holds(self, group: &GroupFacts) -> bool {
        match self {
            Self::All => true,
            Self::WrongNovel => group.wrong_novelty >= NOVEL,
            Self::RightRedundant => group.right_novelty <= 1.0 - NOVEL,
            Self::Truncated => group.truncated > 0,
            Self::Mixed => group.right > 0 && group.right < group.size,
            Self::AllRight => group.right == group.size,
            Self::AllWrong => group.right == 0,
            Self::Skipped => group.skipped,
        }
    }
}

/// What `/api/groups` is asked.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct GroupQuery {
    #[serde(default)]
    pub(super) filter: Kind,
    /// First and last step, counted from 1.
    pub(super) from: Option<u64>,
    pub(super) to: Option<u64>,
    /// Part of a prompt, of a response, or a problem's id; upper and lower case of ASCII are the same.
    pub(super) search: Option<String>,
    /// [`Page::next`] of the page before.
    pub(super) cursor: Option<String>,
    pub(super) limit: Option<usize>,
}

/// Why a question is none.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum QueryError {
    #[error("cursor: {0:?} is none of an earlier page")]
    Cursor(String),
    #[error("search: at most {MAX_SEARCH} characters")]
    Search,
}

/// Some groups.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Page {
    pub(super) groups: Vec<Entry>,
    /// Where the next page begins; `None` at the end.
    pub(super) next: Option<String>,
    /// Groups that pass the filters; `None` with a search.
    pub(super) total: Option<u64>,
    /// The step that a search which ran out of time has come to, counted from 1.
    pub(super) searched_to: Option<u64>,
    /// Groups that are too old to be found.
    pub(super) left_out: u64,
}

/// A group in a list.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Entry {
    pub(super) group: u64,
    /// Counted from 1.
    pub(super) step: u64,
    pub(super) problem: Option<String>,
    /// The beginning of the prompt.
    pub(super) prompt: Option<String>,
    pub(super) size: u16,
    pub(super) right: u16,
    pub(super) truncated: u16,
    pub(super) skipped: bool,
    pub(super) mean_cosine: Option<f32>,
    pub(super) wrong_novelty: Option<f32>,
    pub(super) right_novelty: Option<f32>,
}

/// A question, understood.
#[derive(Debug)]
pub(super) struct Finder<'a> {
    query: &'a GroupQuery,
    limit: usize,
    /// The group that the page before ended with: step and number.
    before: Option<(u64, u64)>,
    /// In lower case.
    search: Option<String>,
    problems: &'a [Problem],
}

impl<'a> Finder<'a> {
    /// # Errors
    /// [`QueryError`], naming the parameter.
    pub(super) fn new(query: &'a GroupQuery, problems: &'a [Problem]) -> Result<Self, QueryError> {
        let before = match &query.cursor {
            Some(cursor) => Some(parse(cursor).ok_or_else(|| QueryError::Cursor(cursor.clone()))?),
            None => None,
        };
        let search = query.search.as_ref().map(|text| text.trim().to_ascii_lowercase());
        let search = search.filter(|text| !text.is_empty());
        if search.as_ref().is_some_and(|text| text.chars().count() > MAX_SEARCH) {
            return Err(QueryError::Search);
        }
        let limit = query.limit.unwrap_or(PAGE).clamp(1, MAX_PAGE);
        Ok(Self { query, limit, before, search, problems })
    }

    fn holds(&self, group: &GroupFacts) -> bool {
        self.query.from.is_none_or(|from| group.step + 1 >= from)
            && self.query.to.is_none_or(|to| group.step < to)
            && self.query.filter.holds(group)
    }

    /// The page.
    pub(super) fn page(&self, index: &RwLock<Index>, db: &Connection) -> rusqlite::Result<Page> {
        let read = || index.read().unwrap_or_else(PoisonError::into_inner);
        let (total, left_out) = {
            let index = read();
            let holds = |group: &&GroupFacts| self.holds(group);
            let total = self.search.is_none().then(|| index.groups().iter().filter(holds).count() as u64);
            (total, index.groups_left_out())
        };
        let mut page = Page { groups: Vec::new(), next: None, total, searched_to: None, left_out };
        let deadline = Instant::now() + SEARCH_TIME;
        let mut before = self.before;
        loop {
            let (batch, seen) = self.candidates(&read(), before);
            let end = batch.len() < BATCH;
            for group in batch {
                if page.groups.len() == self.limit {
                    page.next = page.groups.last().map(|last| cursor((last.step - 1, last.group)));
                    return Ok(page);
                }
                // However slow the disk is, each page looks at one group more.
                if self.search.is_some()
                    && before != self.before
                    && let Some(looked) = before
                    && Instant::now() > deadline
                {
                    page.next = Some(cursor(looked));
                    page.searched_to = Some(looked.0 + 1);
                    return Ok(page);
                }
                if self.is_found(&group, db)? {
                    page.groups.push(self.entry(&group));
                }
                before = Some((group.step, group.group));
            }
            if end {
                return Ok(page);
            }
            before = seen;
        }
    }

    /// The next groups that pass what needs no text, newest first, and where they end.
    fn candidates(&self, index: &Index, before: Option<(u64, u64)>) -> (Vec<GroupFacts>, Option<(u64, u64)>) {
        let groups = index.groups();
        let end = match before {
            Some(before) => groups.partition_point(|group| (group.step, group.group) < before),
            None => groups.len(),
        };
        let found = groups[..end].iter().rev().filter(|group| self.holds(group));
        let batch: Vec<GroupFacts> = found.take(BATCH).copied().collect();
        let seen = batch.last().map(|group| (group.step, group.group));
        (batch, seen)
    }

    /// Whether the text is in it.
    fn is_found(&self, group: &GroupFacts, db: &Connection) -> rusqlite::Result<bool> {
        let Some(search) = &self.search else { return Ok(true) };
        if let Some(problem) = self.problems.get(group.problem as usize)
            && (problem.id.eq_ignore_ascii_case(search)
                || problem.problem.to_ascii_lowercase().contains(search))
        {
            return Ok(true);
        }
        let escaped: String = search
            .chars()
            .flat_map(|c| matches!(c, '%' | '_' | '\\').then_some('\\').into_iter().chain([c]))
            .collect();
        db.prepare_cached("SELECT 1 FROM rollout WHERE grp = ? AND text LIKE ? ESCAPE '\\'")?
            .exists((group.group, format!("%{escaped}%")))
    }

    fn entry(&self, group: &GroupFacts) -> Entry {
        let problem = self.problems.get(group.problem as usize);
        let finite = |value: f32| value.is_finite().then_some(value);
        Entry {
            group: group.group,
            step: group.step + 1,
            problem: problem.map(|problem| problem.id.clone()),
            prompt: problem.map(|problem| problem.problem.chars().take(EXCERPT).collect()),
            size: group.size,
            right: group.right,
            truncated: group.truncated,
            skipped: group.skipped,
            mean_cosine: finite(group.mean_cosine),
            wrong_novelty: finite(group.wrong_novelty),
            right_novelty: finite(group.right_novelty),
        }
    }
}

fn cursor((step, group): (u64, u64)) -> String {
    format!("{step}-{group}")
}

fn parse(cursor: &str) -> Option<(u64, u64)> {
    let (step, group) = cursor.split_once('-')?;
    Some((step.parse().ok()?, group.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::super::index::{StepFacts, row};
    use super::*;
    use crate::journal;

    fn problem(id: &str, problem: &str) -> Problem {
        Problem { id: id.into(), problem: problem.into(), answer: String::new(), solution: None }
    }

    /// Ten steps of ten groups: the right ones redundant in even groups, the wrong ones novel, the last cut off.
    fn index() -> (Index, Connection) {
        let mut index = Index::default();
        let dir = tempfile::tempdir().unwrap();
        let db = journal::create(dir.path()).unwrap();
        for step in 0..10 {
            let mut facts = StepFacts::default();
            for at in 0..10 {
                let group = step * 10 + at;
                facts.add((group, step), at % 2 == 0, Some(0.1), false);
                facts.add((group, step), false, Some(0.9), at == 9);
                let text = format!("100% of group {group}");
                db.execute(
                    "INSERT INTO rollout (grp, idx, step, text) VALUES (?, 0, ?, ?)",
                    (group, step, text),
                )
                .unwrap();
            }
            let mut row = row(step);
            let groups = facts.finish(&mut row);
            index.push(
                row,
                groups.into_iter().map(|group| GroupFacts { problem: group.group as u32 % 2, ..group }),
            );
        }
        (index, db)
    }

    fn find(query: &GroupQuery) -> Page {
        let (index, db) = index();
        let problems = [problem("even", "What is EVEN?"), problem("odd", "What is <b>odd</b>?")];
        Finder::new(query, &problems).unwrap().page(&RwLock::new(index), &db).unwrap()
    }

    fn numbers(page: &Page) -> Vec<u64> {
        page.groups.iter().map(|group| group.group).collect()
    }

    #[test]
    fn pages_follow_each_other_without_gaps() {
        let mut query = GroupQuery { limit: Some(7), ..GroupQuery::default() };
        let mut all = Vec::new();
        loop {
            let page = find(&query);
            assert_eq!(page.total, Some(100));
            all.extend(numbers(&page));
            match page.next {
                Some(next) => query.cursor = Some(next),
                None => break,
            }
        }
        assert!(all.iter().copied().eq((0..100).rev()), "{all:?}");
    }

    #[test]
    fn filters_find_what_they_say() {
        let total = |filter| find(&GroupQuery { filter, ..GroupQuery::default() }).total;
        for (filter, groups) in [
            (Kind::All, 100),
            (Kind::WrongNovel, 100),
            (Kind::RightRedundant, 50),
            (Kind::Truncated, 10),
            (Kind::Mixed, 50),
            (Kind::AllWrong, 50),
            (Kind::AllRight, 0),
            (Kind::Skipped, 0),
        ] {
            assert_eq!(total(filter), Some(groups), "{filter:?}");
        }
        let window =
            GroupQuery { from: Some(3), to: Some(4), filter: Kind::Truncated, ..GroupQuery::default() };
        assert_eq!(numbers(&find(&window)), [39, 29]);
    }

    #[test]
    fn prompts_responses_and_names_are_searched() {
        let search = |text: &str| {
            numbers(&find(&GroupQuery { search: Some(text.into()), limit: Some(3), ..GroupQuery::default() }))
        };
        assert_eq!(search("GROUP 57"), [57]);
        assert_eq!(search("is even"), [98, 96, 94]);
        assert_eq!(search("ODD"), [99, 97, 95]);
        assert_eq!(search("<b>"), [99, 97, 95]);
        // Signs that SQL takes for placeholders are none.
        assert_eq!(search("100% of"), [99, 98, 97]);
        assert!(search("10_%").is_empty());
    }

    #[test]
    fn a_question_that_is_none_is_named() {
        let error = |query: GroupQuery| Finder::new(&query, &[]).unwrap_err();
        for cursor in ["", "1", "1-", "a-b", "-1-2"] {
            let query = GroupQuery { cursor: Some(cursor.into()), ..GroupQuery::default() };
            assert_eq!(error(query), QueryError::Cursor(cursor.into()));
        }
        assert_eq!(
            error(GroupQuery { search: Some("x".repeat(201)), ..GroupQuery::default() }),
            QueryError::Search
        );
    }
}
