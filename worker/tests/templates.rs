//! Chat templates against Jinja as transformers runs it: `scripts/reference/render_templates.py` renders
//! plain templates and those of published models, as far as the Python package that ships them is there.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that is not as expected")]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use g2rl_worker::tokenizer::{ChatTemplate, Message};
use serde::Deserialize;
use serde_json::Value;

#[derive(Deserialize)]
struct Case {
    name: String,
    template: String,
    settings: Value,
    messages: Vec<BTreeMap<String, String>>,
    enable_thinking: Option<bool>,
    expected: Option<String>,
}

#[test]
fn templates_render_as_in_transformers() {
    let python = std::env::var("G2RL_PYTHON").unwrap_or_else(|_| "python3".into());
    let there = Command::new(&python).args(["-c", "import transformers"]).output();
    if !there.is_ok_and(|output| output.status.success()) {
        println!("skipped: {python} has no transformers (cargo xtask setup --reference installs it)");
        return;
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/reference/render_templates.py");
    let output = Command::new(&python).arg(script).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut counts: BTreeMap<String, (u32, u32)> = BTreeMap::new();
    let mut wrong = Vec::new();
    for line in String::from_utf8(output.stdout).unwrap().lines() {
        let case: Case = serde_json::from_str(line).unwrap();
        let messages: Vec<Message<'_>> =
            case.messages.iter().map(|m| Message { role: &m["role"], content: &m["content"] }).collect();
        let rendered = ChatTemplate::new(&case.template, &case.settings)
            .and_then(|template| template.render(&messages, case.enable_thinking));
        let count = counts.entry(case.name.clone()).or_default();
        count.1 += 1;
        // Where Jinja raises, so must we.
        if rendered.as_ref().ok() == case.expected.as_ref() {
            count.0 += 1;
        } else {
            wrong.push(format!(
                "{}: {:?}\n  got {rendered:?}\n  not {:?}",
                case.name, case.messages, case.expected
            ));
        }
    }
    let count = counts.values().map(|(_, all)| all).sum::<u32>();
    let published = counts.keys().filter(|name| name.starts_with("published/")).count();
    println!("{count} conversations; {published} published templates (0: the package trl is not there)");
    assert!(wrong.is_empty(), "{} of {count}:\n{}", wrong.len(), wrong.join("\n"));
    for family in ["qwen2_5", "qwen3", "llama3", "llama3_1", "llama3_2"] {
        assert!(published == 0 || counts.contains_key(&format!("published/{family}")), "{family} is missing");
    }
}
