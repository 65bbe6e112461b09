//! Commands in the documents are ones that the programs understand, with files that are there.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that is not as expected")]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use g2rl_tests::{program, root};

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
