//! The evaluation sets of `configs/reproduce`: every real row becomes the documented prompt, and its own
//! verifier takes the reference for right and another answer for wrong.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use g2rl_common::config::{EvaluationSet, LoadOptions, RunConfig};
use g2rl_coordinator::dataset::{Dataset, Problem, ReadOptions, Source};
use g2rl_coordinator::reward::{Case, Judges};
use serde_json::Value;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn load(name: &str) -> RunConfig {
    let path = root().join("configs/reproduce").join(name);
    RunConfig::load(&LoadOptions { path, overrides: Vec::new() }).unwrap()
}

/// A file of real rows, if it is there.
fn real(name: &str) -> Option<PathBuf> {
    let path = root().join("../shared/data").join(name);
    if !path.exists() {
        eprintln!("skipped: {} is not there", path.display());
        return None;
    }
    Some(path)
}

fn raw(path: &Path) -> Vec<Value> {
    std::fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A configured set with its place among all of them.
fn set(config: &RunConfig, name: &str) -> (usize, EvaluationSet) {
    let evaluation = config.evaluation.as_ref().unwrap();
    let all: Vec<EvaluationSet> = evaluation.first_set().into_iter().chain(evaluation.more.clone()).collect();
    let at = all.iter().position(|set| set.name == name).unwrap();
    (at, all[at].clone())
}

fn read(config: &RunConfig, set: &EvaluationSet, path: &Path) -> Vec<Problem> {
    let options = ReadOptions::of_rows(&config.data, set.row_form(&config.data, "evaluation")).unwrap();
    Dataset::read(&Source::file(path), &options).unwrap().problems
}

/// Rows of a set's own form, written for this test.
fn read_text(config: &RunConfig, set: &EvaluationSet, name: &str, text: &str) -> Vec<Problem> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    std::fs::write(&path, text).unwrap();
    read(config, set, &path)
}

async fn correct(judges: &Judges, set: Option<usize>, problem: &Problem, answer: &str) -> bool {
    let case = Case {
        id: problem.id.clone(),
        prompt: problem.problem.clone(),
        response: format!("Step by step.\n\nThe final answer is $\\boxed{{{answer}}}$."),
        answer: problem.answer.clone(),
    };
    judges.of_set(set).judge(&Arc::new(case)).await.unwrap().verdict.correct
}

/// Another letter.
fn next_letter(letter: &str) -> &'static str {
    if letter == "A" { "B" } else { "A" }
}

#[tokio::test]
async fn real_rows_of_the_mathematical_sets() {
    let config = load("evaluate-files.toml");
    let judges = Judges::build(&config).unwrap();
    for (name, file, count) in [
        ("math500", "math500.jsonl", 500),
        ("amc23", "amc23.jsonl", 40),
        ("aime24", "aime24.jsonl", 30),
        ("aime25", "aime25.jsonl", 30),
    ] {
        let Some(path) = real(file) else { continue };
        let (at, set) = set(&config, name);
        assert!(set.data.ends_with(file), "{name} reads {}", set.data);
        let problems = read(&config, &set, &path);
        assert_eq!(problems.len(), count, "{name}");
        for (problem, row) in problems.iter().zip(raw(&path)) {
            // The user's turn is the problem, as it is.
            assert_eq!(problem.problem, row["problem"].as_str().unwrap(), "{name} {}", problem.id);
            assert!(correct(&judges, Some(at), problem, &problem.answer).await, "{name} {}", problem.id);
            // No answer is this number.
            assert!(!correct(&judges, Some(at), problem, "987654321").await, "{name} {}", problem.id);
        }
    }
}

#[tokio::test]
async fn real_rows_of_mmlu_pro() {
    let Some(path) = real("mmlu_pro_sample.jsonl") else { return };
    let config = load("evaluate-files.toml");
    let judges = Judges::build(&config).unwrap();
    let (at, set) = set(&config, "mmlu_pro");
    let problems = read(&config, &set, &path);
    assert_eq!(problems.len(), 1430);
    let ending = "\n\nOnly one option is right. Give its letter as the final answer, as in \\boxed{A}.";
    for (problem, row) in problems.iter().zip(raw(&path)) {
        assert_eq!(
            problem.problem,
            format!("{}{ending}", row["problem"].as_str().unwrap()),
            "{}",
            problem.id
        );
        assert!(problem.problem.contains(&format!("\n{}. ", problem.answer)), "{}", problem.id);
        assert!(correct(&judges, Some(at), problem, &problem.answer).await, "{}", problem.id);
        assert!(!correct(&judges, Some(at), problem, next_letter(&problem.answer)).await, "{}", problem.id);
    }
}

#[tokio::test]
async fn real_rows_of_the_training_set_with_and_without_boxes() {
    let Some(path) = real("math_train.jsonl") else { return };
    // As docs/reproduce.md overrides it for a file.
    let overrides = [
        "data.train=data/math_train.jsonl",
        "data.columns.answer=answer",
        "data.answer_pattern=",
        "evaluation.data=data/math500.jsonl",
        "evaluation.columns.id=id",
        "evaluation.more=[]",
    ];
    for name in ["qwen3-1.7b.toml", "qwen3-4b.toml"] {
        let path_of = root().join("configs/reproduce").join(name);
        let overrides = overrides.map(str::to_owned).to_vec();
        let config = RunConfig::load(&LoadOptions { path: path_of, overrides }).unwrap();
        let judges = Judges::build(&config).unwrap();
        let read = |config: &RunConfig, path: &Path| {
            Dataset::read(&Source::file(path), &ReadOptions::new(&config.data).unwrap()).unwrap().problems
        };
        let problems = read(&config, &path);
        assert_eq!(problems.len(), 7499);
        for (problem, row) in problems.iter().zip(raw(&path)).step_by(5) {
            assert_eq!(problem.problem, row["problem"].as_str().unwrap());
            assert!(correct(&judges, None, problem, &problem.answer).await, "{}", problem.id);
            assert!(!correct(&judges, None, problem, "987654321").await, "{}", problem.id);
        }
        // The hub's rows have solutions with a box instead of answers.
        let solution = |problem: &Problem| {
            let text = format!("First \\boxed{{0}}, but then it is $\\boxed{{{}}}$.", problem.answer);
            serde_json::json!({"problem": problem.problem, "solution": text}).to_string()
        };
        let lines: Vec<String> = problems.iter().map(solution).collect();
        let dir = tempfile::tempdir().unwrap();
        let hub = dir.path().join("train.jsonl");
        std::fs::write(&hub, lines.join("\n")).unwrap();
        // 99 references of the file end in the middle: no box holds these.
        let is_whole = |text: &str| text.matches('{').count() == text.matches('}').count();
        let rows = read(&load(name), &hub);
        assert_eq!(rows.len(), problems.len());
        let whole = rows.iter().zip(&problems).filter(|(_, problem)| is_whole(&problem.answer));
        assert_eq!(whole.clone().count(), 7400);
        for (boxed, problem) in whole {
            assert_eq!(boxed.answer, problem.answer.trim(), "{}", problem.id);
        }
    }
}

/// Rows in the form of the hub's data sets, and the whole prompt of each set, system prompt and user's turn.
#[tokio::test]
async fn the_whole_prompt_of_each_set() {
    const SYSTEM: &str = "Work through the problem one step at a time and write down the reasoning of each \
                          step. When you are sure of the result, state it once as the final answer inside \\boxed{}.";
    let config = load("evaluate.toml");
    let judges = Judges::build(&config).unwrap();
    let rows = [
        (
            "math500",
            "t.jsonl",
            r#"{"unique_id":"test/a/1.json","problem":"What is $\\frac12+\\frac12$?","answer":"1","solution":"s"}"#,
            "What is $\\frac12+\\frac12$?",
            "1",
            "2",
        ),
        (
            "amc23",
            "t.jsonl",
            r#"{"id":0,"question":"How far is it?","answer":27.0,"url":"u"}"#,
            "How far is it?",
            "27",
            "28",
        ),
        (
            "aime24",
            "t.jsonl",
            r#"{"id":60,"problem":"Find $x$.","answer":"033","solution":"s"}"#,
            "Find $x$.",
            "33",
            "34",
        ),
        ("aime25", "t.jsonl", r#"{"id":"0","problem":"Find $b$.","answer":"70"}"#, "Find $b$.", "70", "71"),
        (
            "mmlu_pro",
            "t.jsonl",
            r#"{"question_id":70,"question":"Which {options} of these is a colour?","options":["A stone","Red","A {problem}"],"answer":"B","answer_index":1}"#,
            "Which {options} of these is a colour?\n\nA. A stone\nB. Red\nC. A {problem}\n\nOnly one option is right. Give its letter as the final answer, as in \\boxed{A}.",
            "B",
            "C",
        ),
    ];
    assert_eq!(config.prompt.system.as_deref(), Some(SYSTEM));
    for (name, file, text, prompt, right, wrong) in rows {
        let (at, set) = set(&config, name);
        let problem = read_text(&config, &set, file, text).remove(0);
        assert_eq!(problem.problem, prompt, "{name}");
        assert!(correct(&judges, Some(at), &problem, right).await, "{name}");
        assert!(!correct(&judges, Some(at), &problem, wrong).await, "{name}");
    }
}

#[tokio::test]
async fn gpqa_from_its_table_with_options_in_an_order_of_their_own() {
    let names = "Record ID,Question,Correct Answer,Incorrect Answer 1,Incorrect Answer 2,Incorrect Answer 3";
    let row = |id: usize| {
        format!("rec{id},\"What is, \"\"by\"\" name,\nthe right one?\",right {id} ,one,\"t,wo\",three")
    };
    let table = |ids: &[usize]| {
        let rows: Vec<String> = ids.iter().map(|id| row(*id)).collect();
        format!("{names}\n{}\n", rows.join("\n"))
    };
    let mut orders = std::collections::BTreeSet::new();
    for file in ["evaluate.toml", "evaluate-files.toml"] {
        let config = load(file);
        let judges = Judges::build(&config).unwrap();
        let (at, set) = set(&config, "gpqa_diamond");
        let ids: Vec<usize> = (0..40).collect();
        let problems = read_text(&config, &set, "gpqa_diamond.csv", &table(&ids));
        for (id, problem) in problems.iter().enumerate() {
            // An order belongs to a row, wherever it stands.
            assert_eq!(read_text(&config, &set, "g.csv", &table(&[99, id]))[1], *problem);
            let lines: Vec<&str> = problem.problem.lines().collect();
            assert_eq!(lines[..3], ["What is, \"by\" name,", "the right one?", ""]);
            assert_eq!(
                lines[7..],
                ["", "Only one option is right. Give its letter as the final answer, as in \\boxed{A}."]
            );
            // The letter is that of the right option's line.
            let place = lines[3..7].iter().position(|line| line[3..] == format!("right {id}")).unwrap();
            assert_eq!(problem.answer, lines[3 + place][..1]);
            assert_eq!(problem.answer, ["A", "B", "C", "D"][place]);
            let mut texts: Vec<&str> = lines[3..7].iter().map(|line| &line[3..]).collect();
            orders.insert(texts.iter().map(|text| text[..1].to_owned()).collect::<String>());
            texts.sort_unstable();
            assert_eq!(texts, ["one", &format!("right {id}"), "t,wo", "three"]);
            assert!(correct(&judges, Some(at), problem, &problem.answer).await);
            assert!(!correct(&judges, Some(at), problem, next_letter(&problem.answer)).await);
        }
    }
    // Of 24 orders 40 rows have more than a few.
    assert!(orders.len() > 10, "{orders:?}");
}
