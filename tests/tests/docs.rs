//! Commands in the documents are ones that the programs understand, with files that are there; and those that need
//! nothing but the programs do what they say.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that is not as expected")]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use g2rl_tests::cluster::DEADLINE;
use g2rl_tests::{Finished, finish, program, root};

/// Documents in a folder and in those inside it.
fn documents(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            documents(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "md") {
            found.push(path);
        }
    }
}

/// The lines of a document's shell blocks, continued ones joined, without comments.
fn shell_lines(text: &str) -> Vec<String> {
    let (mut lines, mut inside, mut begun) = (Vec::new(), false, String::new());
    for line in text.lines() {
        match line.trim() {
            "```sh" => inside = true,
            "```" => inside = false,
            line if inside => {
                let line = line.split(" #").next().unwrap_or(line).trim();
                if let Some(start) = line.strip_suffix('\\') {
                    begun.push_str(start);
                } else {
                    lines.push(std::mem::take(&mut begun) + line);
                }
            }
            _ => {}
        }
    }
    lines
}

/// The shell blocks of a document.
fn shell_blocks(text: &str) -> Vec<String> {
    let (mut blocks, mut block) = (Vec::new(), None::<String>);
    for line in text.lines() {
        match (line.trim(), &mut block) {
            ("```sh", None) => block = Some(String::new()),
            ("```", Some(_)) => blocks.extend(block.take()),
            (line, Some(block)) => block.push_str(&format!("{line}\n")),
            (_, None) => {}
        }
    }
    blocks
}

/// Begins a block that is not run here, with the reason for the reader.
const NOT_HERE: [&str; 3] = ["# needs ", "# takes ", "# in the repository"];

/// What a block has around it: a page is served until Ctrl-C, and SQLite's shell is a library elsewhere.
const AROUND: &str = r#"
set -euo pipefail
g2rl-coordinator() {
    case $1 in
    dashboard) timeout --preserve-status --signal INT 3 "$COORDINATOR" "$@" ;;
    *) "$COORDINATOR" "$@" ;;
    esac
}
sqlite3() {
    python3 -c 'import sqlite3, sys
for row in sqlite3.connect(sys.argv[1]).execute(sys.argv[2]): print(*row, sep="|")' "$@"
}
"#;

/// Runs a block in a folder; returns what it printed.
fn run_block(block: &str, folder: &Path) -> Finished {
    let mut bash = Command::new("bash");
    bash.args(["-c", &format!("{AROUND}{block}")]).current_dir(folder);
    bash.env("COORDINATOR", program("g2rl-coordinator")).env("G2RL_WORKER", program("g2rl-worker"));
    bash.env("HOME", folder).env("G2RL_THREADS", "1").env("OMP_NUM_THREADS", "1");
    bash.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    finish(bash, DEADLINE).unwrap()
}

/// A folder like the repository after `cargo xtask demo`, whose run is a short one here.
fn after_the_demo() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in ["configs", "docs", "scripts", "deploy"] {
        std::os::unix::fs::symlink(root().join(name), folder.path().join(name)).unwrap();
    }
    let demo = "
        for split in train heldout; do
            g2rl-coordinator data countdown --distinct --count all --seed 1 --split $split --out runs/demo-data/$split.jsonl
        done
        g2rl-coordinator train --config configs/demo.toml --local-workers 2 --set run.steps=4 \
            --set evaluation.max_problems=8
        ln -s step-000004 runs/demo/checkpoints/step-001000";
    let made = run_block(demo, folder.path());
    assert!(made.success, "{}", made.text);
    folder
}

#[test]
fn the_books_commands_run() {
    let folder = after_the_demo();
    let mut files = Vec::new();
    documents(&root().join("docs"), &mut files);
    files.sort();
    let (mut ran, mut wrong) = (0, String::new());
    for file in &files {
        for block in shell_blocks(&std::fs::read_to_string(file).unwrap()) {
            if NOT_HERE.iter().any(|reason| block.starts_with(reason)) {
                continue;
            }
            ran += 1;
            let finished = run_block(&block, folder.path());
            if !finished.success {
                wrong.push_str(&format!("{}:\n{block}{}\n", file.display(), finished.text));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
    assert!(ran > 7, "only {ran} blocks ran");
    for left in ["g2rl.schema.json", "ca.pem", "train.jsonl", ".local/share/man/man1/g2rl-coordinator.1"] {
        assert!(folder.path().join(left).is_file(), "{left} was not written");
    }
}

/// Words of a command up to a pipe, a redirection or dots for what is left out; quotes hold a word together.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), String::new(), None);
    for c in line.chars().chain([' ']) {
        match quote {
            Some(end) if c == end => quote = None,
            None if c == '"' || c == '\'' => quote = Some(c),
            None if c == ' ' => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
            }
            _ => word.push(c),
        }
    }
    let ends = ["|", ">", "<", "&", "&&", ";", ">>", "2>&1", "..."];
    let end = words.iter().position(|word| ends.contains(&word.as_str())).unwrap_or(words.len());
    words.truncate(end);
    words
}

/// Whether the program knows the subcommand and all options: with `--help` at the end it does nothing else.
fn is_understood(name: &str, arguments: &[String]) -> Result<(), String> {
    let mut command = Command::new(program(name));
    command.args(arguments).arg("--help").stdin(Stdio::null());
    let output = command.output().unwrap();
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

#[test]
fn every_command_in_the_documents_is_understood() {
    let mut files = vec![root().join("README.md"), root().join("ARCHITECTURE.md")];
    documents(&root().join("docs"), &mut files);
    documents(&root().join("deploy"), &mut files);
    let xtask = std::fs::read_to_string(root().join("xtask/src/main.rs")).unwrap().to_lowercase();
    let (mut wrong, mut checked) = (String::new(), 0);
    for file in &files {
        for line in shell_lines(&std::fs::read_to_string(file).unwrap()) {
            let words = words(&line);
            let Some(first) = words.first() else { continue };
            let arguments = &words[1..];
            let name = first.rsplit('/').next().unwrap_or(first);
            let found = match name {
                "g2rl-coordinator" | "g2rl-worker" => is_understood(name, arguments),
                "cargo" if arguments.first().is_some_and(|word| word == "xtask") => {
                    let known =
                        arguments.get(1).is_none_or(|task| xtask.contains(&format!("command::{task}")));
                    if known { Ok(()) } else { Err("no such task".to_owned()) }
                }
                _ => continue,
            };
            checked += 1;
            if let Err(error) = found {
                wrong.push_str(&format!("{}: {line}\n{error}\n", file.display()));
            }
            for path in arguments.iter().filter(|word| word.starts_with("configs/")) {
                if !root().join(path).exists() {
                    wrong.push_str(&format!("{}: {line}\n{path} is not there\n", file.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
    assert!(checked > 30, "only {checked} commands were found");
}

/// Files that the documents link to are there.
#[test]
fn links_between_the_documents_lead_somewhere() {
    let mut files = vec![root().join("README.md"), root().join("ARCHITECTURE.md")];
    documents(&root().join("docs"), &mut files);
    let mut missing = String::new();
    for file in &files {
        let text = std::fs::read_to_string(file).unwrap();
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let path = target.split('#').next().unwrap_or(target);
            if !path.is_empty() && !path.contains("://") && !file.parent().unwrap().join(path).exists() {
                missing.push_str(&format!("{}: {target}\n", file.display()));
            }
        }
    }
    assert!(missing.is_empty(), "{missing}");
}
