//! Every method in a short run with a real worker, and what its journal then proves.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that is not as expected")]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use g2rl_tests::cluster::{DEADLINE, settings};
use g2rl_tests::process::Process;
use g2rl_tests::{coordinator, f32_tensors, finish, root};
use rusqlite::Connection;

/// Two steps of 6 prompts with 4 rollouts each, with these settings.
fn run(more: &[&str]) -> (tempfile::TempDir, Connection) {
    let dir = tempfile::tempdir().unwrap();
    let fixed = ["run.steps=2", "evaluation.at_end=false", "cluster.min_workers=1", "cluster.max_workers=1"];
    let settings = settings(dir.path(), &[fixed.as_slice(), more].concat()).unwrap();
    let train = ["train", "--config", "configs/demo.toml", "--local-workers", "1"].map(str::to_owned);
    let arguments: Vec<String> = train.into_iter().chain(settings).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let finished = finish(coordinator(&arguments), DEADLINE).unwrap();
    assert!(finished.success, "{more:?}: {}", finished.text);
    let journal = Connection::open(dir.path().join("run/journal.sqlite")).unwrap();
    (dir, journal)
}

fn number<T: rusqlite::types::FromSql>(journal: &Connection, query: &str) -> T {
    journal.query_row(query, [], |row| row.get(0)).unwrap()
}

fn moved(dir: &Path) -> bool {
    let start = f32_tensors(&root().join("configs/demo/model/model.safetensors")).unwrap();
    f32_tensors(&dir.join("run/checkpoints/step-000002/model.safetensors")).unwrap() != start
}

#[test]
fn every_method_trains() {
    for more in [
        ["algorithm.kind=grpo"].as_slice(),
        &["algorithm.kind=entropy"],
        &["algorithm.kind=dr_grpo"],
        &["algorithm.kind=gspo"],
        &["algorithm.kind=random"],
        &["algorithm.kind=gspo", "algorithm.explore=g2rl"],
    ] {
        let (dir, journal) = run(more);
        assert_eq!(number::<i64>(&journal, "SELECT COUNT(*) FROM rollout"), 2 * 6 * 4, "{more:?}");
        assert!(moved(dir.path()), "{more:?}");
    }
}

#[test]
fn dapo_with_g2rl_refills_and_penalises() {
    let (dir, journal) = run(&[
        "algorithm.kind=dapo",
        "algorithm.explore=g2rl",
        // What dapo sets by itself; the small runs say otherwise.
        "algorithm.degenerate_groups=refill",
        // Answers have 12 tokens or so.
        "algorithm.overlong={ max_tokens = 14, cache_tokens = 8 }",
    ]);
    assert!(moved(dir.path()));
    for step in 0..2 {
        let of = |what: &str| -> i64 {
            number(&journal, &format!("SELECT COUNT(*) FROM grp WHERE step = {step} AND {what}"))
        };
        assert_eq!(of("skipped = 0"), 6, "six groups that teach something");
        assert_eq!(of("skipped != equal_rewards"), 0, "base rewards decide");
    }
    // Wrong answers may be amplified to -2 by novelty and then lose up to 1.
    let lowest: f64 = number(&journal, "SELECT MIN(shaped_reward) FROM rollout");
    assert!((-3.0..-1.0).contains(&lowest), "{lowest}");
    let long: i64 = number(
        &journal,
        "SELECT COUNT(*) FROM rollout WHERE tokens > 8 AND reward = 1 AND shaped_reward < 1",
    );
    assert!(long > 0, "no long right answer has lost anything");
}

#[test]
fn solutions_are_imitated_beside_the_policys_answers() {
    let (dir, journal) = run(&["imitation.solutions_per_step=3", "objective.imitation_coef=0.5"]);
    assert!(moved(dir.path()));
    // They are no rollouts of the policy's.
    assert_eq!(number::<i64>(&journal, "SELECT COUNT(*) FROM rollout"), 2 * 6 * 4);
    assert_eq!(number::<i64>(&journal, "SELECT COUNT(*) FROM grp"), 2 * 6);
}

/// The service of scripts/embeddings_server.py, without a model.
fn embeddings() -> (Process, String) {
    let mut command = Command::new("python3");
    command.arg(root().join("scripts/embeddings_server.py")).args(["--hash", "--port", "0"]);
    command.stdout(Stdio::piped());
    let mut child = Process::spawn(command).unwrap();
    let mut url = String::new();
    BufReader::new(child.take_stdout().unwrap()).read_line(&mut url).unwrap();
    (child, url.trim().to_owned())
}

#[test]
fn evol_compares_the_texts_that_a_service_embeds() {
    let (_service, url) = embeddings();
    let (dir, journal) = run(&["algorithm.kind=evol", &format!("embeddings.url={url}")]);
    assert!(moved(dir.path()));
    let outside: i64 = number(
        &journal,
        "SELECT COUNT(*) FROM rollout WHERE NOT (CASE WHEN correct THEN shaped_reward BETWEEN 0.5 AND 1
         ELSE shaped_reward BETWEEN -1 AND -0.5 END)",
    );
    assert_eq!(outside, 0);
    // Texts of a group differ, so their rewards do.
    assert!(number::<i64>(&journal, "SELECT COUNT(DISTINCT shaped_reward) FROM rollout") > 4);
}
