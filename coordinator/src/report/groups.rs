//! Groups as they were sampled: prompt, responses, what each was worth, and how they lie to each other.
//!
//! Texts are cut to a number of bytes on the page, so that no model decides how large it is.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context;
use g2rl_common::config::RunConfig;
use g2rl_common::ids::StepIndex;
use rusqlite::{Connection, OptionalExtension};

use super::choose;
use super::data::{self, RunData};
use super::heat::Heat;
use crate::evaluate::{self, ProblemRow};
use crate::geometry::ModelGeometry;
use crate::journal;
use crate::problem_sets::ProblemSets;

/// Responses of a group that are shown.
pub(super) const MOST_RESPONSES: usize = 16;

/// Bytes of a response, and of a prompt, on the page.
const MOST_BYTES: usize = 1_500;

/// Models of a geometry whose answers are shown.
const MOST_MODELS: usize = 8;

/// A group.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct SampleGroup {
    /// The method or the model.
    pub(super) from: String,
    /// The run, or that it is of a geometry.
    pub(super) label: String,
    /// Completed steps after it; `None` in a geometry.
    pub(super) step: Option<u64>,
    /// The problem's row, or its id.
    pub(super) problem: String,
    /// What was asked, and the answer, if the data can be read.
    pub(super) prompt: Option<(String, String)>,
    /// The first [`MOST_RESPONSES`].
    pub(super) responses: Vec<SampleResponse>,
    /// Of so many.
    pub(super) total: usize,
    /// Cosines of the responses that are shown, where they are kept.
    pub(super) heat: Option<Heat>,
}

/// A response.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct SampleResponse {
    pub(super) text: String,
    pub(super) correct: Option<bool>,
    pub(super) reward: Option<f64>,
    pub(super) novelty: Option<f64>,
    pub(super) advantage: Option<f64>,
    pub(super) finish_reason: String,
    pub(super) tokens: u64,
    /// What the verifier said.
    pub(super) reason: String,
}

impl SampleGroup {
    /// It has right and wrong responses.
    pub(super) fn mixed(&self) -> bool {
        let has = |correct| self.responses.iter().any(|response| response.correct == Some(correct));
        has(true) && has(false)
    }
}

/// Groups of the runs that are shown.
///
/// # Errors
/// If a journal cannot be read; names it.
pub(super) fn of_runs(runs: &[RunData]) -> anyhow::Result<Vec<SampleGroup>> {
    let mut prompts = Prompts::default();
    let mut groups = Vec::new();
    for run in choose::runs(runs) {
        let db = data::open(&run.dir)?;
        let of_run = of_run(&db, run, &mut prompts);
        groups.extend(of_run.with_context(|| format!("journal {}", journal::path(&run.dir).display()))?);
    }
    Ok(groups)
}

fn of_run(db: &Connection, run: &RunData, prompts: &mut Prompts) -> rusqlite::Result<Vec<SampleGroup>> {
    let mut groups = Vec::new();
    for step in choose::steps(run) {
        let Some(group) = choose::group(db, step)? else { continue };
        let problem: Option<u32> = db
            .query_row("SELECT problem FROM grp WHERE grp = ?", [group], |row| row.get::<_, Option<u32>>(0))
            .optional()?
            .flatten();
        let mut responses = responses(db, group)?;
        let total = responses.len();
        responses.truncate(MOST_RESPONSES);
        groups.push(SampleGroup {
            from: run.method.clone(),
            label: run.label.clone(),
            step: Some(step),
            problem: problem.map_or("unknown".to_owned(), |row| format!("row {row} of the training data")),
            prompt: problem.and_then(|problem| prompts.of(run.config.as_ref()?, problem)),
            responses,
            total,
            heat: cosines(db, group, total)?,
        });
    }
    Ok(groups)
}

fn responses(db: &Connection, group: u64) -> rusqlite::Result<Vec<SampleResponse>> {
    let mut query = db.prepare(
        "SELECT text, correct, reward, novelty, advantage, finish_reason, tokens, reason FROM rollout
         WHERE grp = ? ORDER BY idx",
    )?;
    let text = |text: Option<String>| cut(&text.unwrap_or_default(), MOST_BYTES);
    let rows = query.query_map([group], |row| {
        Ok(SampleResponse {
            text: text(row.get(0)?),
            correct: row.get(1)?,
            reward: row.get(2)?,
            novelty: row.get(3)?,
            advantage: row.get(4)?,
            finish_reason: text(row.get(5)?),
            tokens: row.get::<_, Option<u64>>(6)?.unwrap_or(0),
            reason: text(row.get(7)?),
        })
    })?;
    rows.collect()
}

/// The cosines of a group as a journal keeps them: the table `geometry` has those of the pairs i < j, row by row, as
/// 16-bit integers, little-endian, 32767 for 1. `None` of a journal without the table, and of a group that is not in it.
/// Of large groups those of the first [`MOST_RESPONSES`].
fn cosines(db: &Connection, group: u64, size: usize) -> rusqlite::Result<Option<Heat>> {
    let table = "SELECT COUNT(*) FROM sqlite_master WHERE type = 'table' AND name = 'geometry'";
    if db.query_row(table, [], |row| row.get::<_, u64>(0))? == 0 {
        return Ok(None);
    }
    let packed: Option<Vec<u8>> = db
        .query_row("SELECT cosine FROM geometry WHERE grp = ?", [group], |row| {
            row.get::<_, Option<Vec<u8>>>(0)
        })
        .optional()?
        .flatten();
    let Some(packed) = packed.filter(|packed| packed.len() == size * size.saturating_sub(1)) else {
        return Ok(None);
    };
    let mut pairs =
        packed.chunks_exact(2).map(|two| f32::from(i16::from_le_bytes([two[0], two[1]])) / 32767.0);
    let mut all = vec![1.0; size * size];
    for i in 0..size {
        for (j, cosine) in (i + 1..size).zip(&mut pairs) {
            (all[i * size + j], all[j * size + i]) = (cosine, cosine);
        }
    }
    Ok(Some(corner(&all, size)))
}

/// What of a matrix is shown.
fn corner(all: &[f32], size: usize) -> Heat {
    let shown = size.min(MOST_RESPONSES);
    let rows = all.chunks_exact(size.max(1)).take(shown);
    Heat { size: shown, cosines: rows.flat_map(|row| row[..shown].to_vec()).collect() }
}

/// Answers of models to the same problems, from the directory of a geometry.
///
/// # Errors
/// If a file of answers cannot be read; names it.
pub(super) fn of_geometry(dir: &Path, models: &[ModelGeometry]) -> anyhow::Result<Vec<SampleGroup>> {
    let mut answers: Vec<(String, Vec<ProblemRow>)> = Vec::new();
    // Names are folders.
    let plain = |name: &str| !name.contains(['/', '\\']) && !name.starts_with('.');
    for model in models.iter().map(|model| &model.model).filter(|name| plain(name)).take(MOST_MODELS) {
        let path = evaluate::path(&dir.join(model), StepIndex(0), None);
        if path.exists() {
            answers.push((model.clone(), evaluate::read(&path)?));
        }
    }
    let (names, rows): (Vec<String>, Vec<Vec<ProblemRow>>) = answers.into_iter().unzip();
    let mut groups = Vec::new();
    for id in choose::problems(&rows) {
        let of_models = names
            .iter()
            .zip(&rows)
            .filter_map(|(name, rows)| Some((name, rows.iter().find(|r| r.id == id)?)));
        groups.extend(of_models.map(|(name, row)| of_problem(name, row)));
    }
    Ok(groups)
}

fn of_problem(model: &str, row: &ProblemRow) -> SampleGroup {
    let response = |answer: &evaluate::AnswerRow| SampleResponse {
        text: cut(&answer.text, MOST_BYTES),
        correct: Some(answer.correct),
        reward: Some(answer.score),
        novelty: None,
        advantage: None,
        finish_reason: cut(&answer.finish_reason, MOST_BYTES),
        tokens: answer.tokens as u64,
        reason: String::new(),
    };
    let complete = row.cosine.as_ref().filter(|cosines| cosines.len() == row.samples * row.samples);
    SampleGroup {
        from: model.to_owned(),
        label: "geometry".to_owned(),
        step: None,
        problem: cut(&row.id, MOST_BYTES),
        prompt: None,
        responses: row.answers.iter().take(MOST_RESPONSES).map(response).collect(),
        total: row.answers.len(),
        heat: complete.map(|cosines| corner(cosines, row.samples)),
    }
}

/// Training problems by what decides which they are; `None` where they cannot be read.
#[derive(Default)]
struct Prompts(BTreeMap<String, Option<ProblemSets>>);

impl Prompts {
    /// Problem and answer of a row; only from files that are there: a report downloads nothing.
    fn of(&mut self, config: &RunConfig, row: u32) -> Option<(String, String)> {
        let held_out = config.evaluation.as_ref().and_then(|evaluation| evaluation.fraction);
        let key = format!("{:?} {held_out:?} {:?}", config.data, held_out.map(|_| config.run.seed));
        let sets = self.0.entry(key).or_insert_with(|| {
            let mut config = config.clone();
            // Held-out files are not needed, unless they are cut from the training data.
            if held_out.is_none() {
                config.evaluation = None;
            }
            let there = Path::new(&config.data.train).exists();
            there.then(|| ProblemSets::read(&config).ok()).flatten()
        });
        let problem = sets.as_ref()?.train.get(row as usize)?;
        Some((cut(&problem.problem, MOST_BYTES), cut(&problem.answer, MOST_BYTES)))
    }
}

/// Bytes of a character on the page.
fn bytes(c: char) -> usize {
    match c {
        '<' | '>' => 4,
        '&' => 5,
        '"' => 6,
        _ => c.len_utf8(),
    }
}

/// The beginning and the end of a text that is too long, with what is left out counted; about as many bytes as allowed on
/// the page. Characters that only steer a terminal become the replacement character.
pub(super) fn cut(text: &str, most: usize) -> String {
    let seen = |c: char| if c.is_control() && !matches!(c, '\n' | '\t') { '\u{fffd}' } else { c };
    let text: String = text.chars().map(seen).collect();
    if text.chars().map(bytes).sum::<usize>() <= most {
        return text;
    }
    let within = |most: usize| {
        let mut used = 0;
        move |c: &char| {
            used += bytes(*c);
            used <= most
        }
    };
    // The end of an answer decides, its beginning shows what it does.
    let head: String = text.chars().take_while(within(most * 2 / 3)).collect();
    let tail: String = text.chars().rev().take_while(within(most / 3)).collect();
    let tail: String = tail.chars().rev().collect();
    let left_out = text.chars().count() - head.chars().count() - tail.chars().count();
    format!("{head}\n[… {left_out} characters left out …]\n{tail}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_are_cut_by_what_they_take_on_the_page() {
        assert_eq!(cut("a\u{7}b\n", 9), "a\u{fffd}b\n");
        // Six bytes each: six fit into 60 x 2/3, three into 60 / 3.
        let found = cut(&"\"".repeat(100), 60);
        assert_eq!(found, format!("{}\n[… 91 characters left out …]\n{}", "\"".repeat(6), "\"".repeat(3)));
    }

    #[test]
    fn cosines_are_read_where_a_journal_keeps_them() {
        let db = Connection::open_in_memory().unwrap();
        assert_eq!(cosines(&db, 1, 3).unwrap(), None);
        db.execute_batch("CREATE TABLE geometry (grp INTEGER PRIMARY KEY, step INTEGER, cosine BLOB)")
            .unwrap();
        assert_eq!(cosines(&db, 1, 3).unwrap(), None);
        let packed: Vec<u8> = [32767i16, 0, -32767].iter().flat_map(|x| x.to_le_bytes()).collect();
        db.execute("INSERT INTO geometry VALUES (1, 0, ?)", [packed]).unwrap();
        let heat = cosines(&db, 1, 3).unwrap().unwrap();
        // 01: 1, 02: 0, 12: -1.
        assert_eq!(heat.cosines, [1.0, 1.0, 0.0, 1.0, 1.0, -1.0, 0.0, -1.0, 1.0]);
        assert_eq!(cosines(&db, 1, 4).unwrap(), None);
    }

    #[test]
    fn large_groups_show_a_corner() {
        let all: Vec<f32> = (0..20 * 20).map(|at| at as f32).collect();
        let heat = corner(&all, 20);
        assert_eq!(
            (heat.size, heat.cosines.len(), heat.cosines[16], heat.cosines[255]),
            (16, 256, 20.0, 315.0)
        );
    }
}
