//! Commands as a user runs them: what they print, how they exit, what their errors name.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::{Command, Output};

use rusqlite::Connection;
use serde_json::Value;

fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_g2rl-coordinator")).args(arguments).output().unwrap()
}

/// What a command that succeeds prints.
fn printed(arguments: &[&str]) -> String {
    let output = run(arguments);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

/// What a command that fails says.
fn refused(arguments: &[&str]) -> String {
    let output = run(arguments);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}");
    String::from_utf8(output.stderr).unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

const CONFIG: &str = "[run]\nname = 'math'\ndir = 'd'\nsteps = 20000\n[model]\npath = '/models/Tiny-1B'\n[data]\n\
                      train = 't'\n[algorithm]\nkind = 'g2rl'\n";

/// A run's directory with so many steps, as a coordinator leaves it that was killed.
fn make_run(dir: &Path, steps: u64) {
    std::fs::create_dir_all(dir.join("checkpoints/step-000010")).unwrap();
    std::fs::write(dir.join("config.toml"), CONFIG).unwrap();
    std::fs::write(dir.join("lock"), "").unwrap();
    std::fs::write(dir.join("chronicle.jsonl"), "{\"event\":\"begin\",\"at_s\":1000.0,\"version\":\"0\"}\n")
        .unwrap();
    let mut db = Connection::open(dir.join("journal.sqlite")).unwrap();
    db.execute_batch(g2rl_coordinator::journal::SCHEMA).unwrap();
    let transaction = db.transaction().unwrap();
    for step in 0..steps {
        let share = step as f64 / steps as f64;
        transaction
            .execute(
                "INSERT INTO step (step, policy_version, reward, correct, length, novelty, kl, entropy,
                 orthogonal_ratio, negative_ratio, mean_cosine, gradient_norm, response_tokens, rollout_ms, shaping_ms,
                 update_ms) VALUES (?1, ?1 + 1, ?2, ?2, 100, 0.5, NULL, 0.4, 0.1, 0.02, 0.3, 1, 6000, 600, 100, 300)",
                (step, share),
            )
            .unwrap();
    }
    for (step, mean) in [(0, 0.2), (10, 0.6), (20, 0.5)] {
        for score in ["pass@1", "pass@8"] {
            transaction
                .execute(
                    "INSERT INTO evaluation VALUES (?1, ?2, ?3, ?3 - 0.05, ?3 + 0.05, 100, 8)",
                    (step, score, mean),
                )
                .unwrap();
        }
    }
    transaction.commit().unwrap();
}

#[test]
fn runs_are_listed_with_their_state_and_progress() {
    let dir = tempfile::tempdir().unwrap();
    make_run(&dir.path().join("one"), 21);
    make_run(&dir.path().join("sweep/two"), 0);
    std::fs::create_dir(dir.path().join("no-run")).unwrap();
    let rows: Value = serde_json::from_str(&printed(&["runs", text(dir.path()), "--json"])).unwrap();
    let dirs: Vec<&str> = rows.as_array().unwrap().iter().map(|row| row["dir"].as_str().unwrap()).collect();
    assert_eq!(dirs, [text(&dir.path().join("one")), text(&dir.path().join("sweep/two"))]);
    let one = &rows[0];
    assert_eq!(
        (&one["state"], &one["steps_done"], &one["steps"]),
        (&"interrupted".into(), &21.into(), &20000.into())
    );
    assert_eq!((one["score"]["mean"].as_f64(), &one["method"]), (Some(0.5), &"g2rl".into()));
    let table = printed(&["runs", text(dir.path())]);
    for cell in ["math", "interrupted", "21/20000", "+0.952", "pass@1 50.0 %", "Tiny-1B"] {
        assert!(table.contains(cell), "{cell}:\n{table}");
    }
    assert!(printed(&["runs", text(&dir.path().join("no-run"))]).starts_with("no runs in"));
}

#[test]
fn a_directory_that_is_not_there_is_named() {
    let missing = "/nowhere/at/all";
    assert!(refused(&["runs", missing]).contains(missing));
    assert!(refused(&["show", "--run", missing]).contains("/nowhere/at/all/journal.sqlite"));
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("journal.sqlite"), "this is no database, it is a text of some length")
        .unwrap();
    let error = refused(&["show", "--run", text(dir.path())]);
    assert!(error.contains(text(&dir.path().join("journal.sqlite"))), "{error}");
    // In a list it does not hide the others.
    assert!(printed(&["runs", text(dir.path())]).contains("cannot read journal"));
}

#[test]
fn a_run_is_shown() {
    let dir = tempfile::tempdir().unwrap();
    make_run(dir.path(), 21);
    let shown: Value =
        serde_json::from_str(&printed(&["show", "--run", text(dir.path()), "--json"])).unwrap();
    assert_eq!(shown["evaluations"]["best"]["step"], 10);
    assert_eq!(
        (&shown["evaluations"]["first"]["step"], &shown["evaluations"]["last"]["step"]),
        (&0.into(), &20.into())
    );
    assert_eq!(shown["curves"]["reward"]["first"], 0.0);
    assert!(shown["curves"]["kl"].is_null(), "what was not measured is no curve");
    assert_eq!(shown["times_s"]["rollout"].as_f64(), Some(21.0 * 0.6));
    let text = printed(&["show", "--run", text(dir.path())]);
    for part in
        ["math  interrupted  step 21 of 20000", "best (step 10)", "60.0 [55.0, 65.0]", "▁", "step-000010"]
    {
        assert!(text.contains(part), "{part}:\n{text}");
    }
}

/// Ten thousand steps; the rows of rollouts are never read, so it does not matter how many there are.
#[test]
fn a_long_run_is_shown_from_its_rows_of_steps_alone() {
    let dir = tempfile::tempdir().unwrap();
    make_run(dir.path(), 10_000);
    let db = Connection::open(dir.path().join("journal.sqlite")).unwrap();
    db.execute_batch("DROP TABLE rollout; DROP TABLE grp;").unwrap();
    assert!(printed(&["show", "--run", text(dir.path())]).contains("over 10000 steps"));
    assert!(printed(&["runs", text(dir.path())]).contains("10000/20000"));
}

#[test]
fn keys_are_described_and_values_explained() {
    assert!(printed(&["config", "show"]).contains("[[reward.parts]]"));
    let one = printed(&["config", "show", "--key", "rollout.group_size"]);
    assert!(one.contains("group_size = 16") && one.contains("integer, at least 1"), "{one}");
    assert!(refused(&["config", "show", "--key", "rollout.nothing"]).contains("rollout.nothing"));
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("run.toml");
    std::fs::write(&file, CONFIG).unwrap();
    let values = printed(&["config", "show", "--config", text(&file), "--set", "run.seed=3"]);
    let beside = |start: &str| {
        values.lines().find(|line| line.starts_with(start)).unwrap().rsplit_once("# ").unwrap().1
    };
    assert_eq!(beside("steps = 20000"), format!("{}:4", file.display()));
    assert_eq!((beside("seed = 3"), beside("group_size = 16")), ("--set", "default"));
    assert!(refused(&["config", "show", "--config", "/nowhere.toml"]).contains("/nowhere.toml"));
    let schema: Value = serde_json::from_str(&printed(&["config", "schema"])).unwrap();
    assert_eq!(schema["properties"]["run"]["description"], "Name, directory, seed, length.");
}

#[test]
fn shells_accept_their_completions() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        assert!(printed(&["completions", shell]).contains("local-workers"), "{shell}");
    }
    let dir = tempfile::tempdir().unwrap();
    let script = dir.path().join("script");
    std::fs::write(&script, printed(&["completions", "bash"])).unwrap();
    // No shell, no test; every machine that builds this has one.
    if let Ok(status) = Command::new("bash").arg("-n").arg(&script).status() {
        assert!(status.success());
    }
}

#[test]
fn every_command_has_a_manual_page() {
    let dir = tempfile::tempdir().unwrap();
    printed(&["man", "--out", text(dir.path())]);
    for page in ["g2rl-coordinator.1", "g2rl-coordinator-train.1", "g2rl-coordinator-config-show.1"] {
        let page = std::fs::read_to_string(dir.path().join(page)).unwrap();
        assert!(page.contains(".SH") && page.len() > 500);
    }
}

/// A command without a word of help, or an example with an option that is not there.
#[test]
fn help_is_complete() {
    for command in ["train", "eval", "runs", "show", "verify", "shape", "data", "config", "bench"] {
        let help = printed(&[command, "--help"]);
        assert!(help.contains("Examples:"), "{command} has no example:\n{help}");
    }
}
