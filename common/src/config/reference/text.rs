//! The reference for a terminal.

use std::fmt::Write as _;

use super::{Key, Section, sections};

/// Longest line.
const WIDTH: usize = 100;

/// Every key, or those that `wanted` names: a section, or a key with its section. Empty if it names none.
#[must_use]
pub fn text(wanted: Option<&str>) -> String {
    let mut out = String::new();
    for section in sections() {
        let keys: Vec<&Key> = section.keys.iter().filter(|key| matches(key, wanted)).collect();
        if !keys.is_empty() {
            write_section(&mut out, &section, &keys);
        }
    }
    out
}

fn matches(key: &Key, wanted: Option<&str>) -> bool {
    let Some(wanted) = wanted else { return true };
    let path = key.path().replace("[]", "");
    path.strip_prefix(wanted).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

fn write_section(out: &mut String, section: &Section, keys: &[&Key]) {
    if !out.is_empty() {
        out.push('\n');
    }
    let title = match section.path.strip_suffix("[]") {
        Some(path) => format!("[[{path}]]"),
        None => format!("[{}]", section.path),
    };
    let absent = if section.optional { " Absent by default." } else { "" };
    // Writing to a String cannot fail.
    let _ = writeln!(out, "{title}  {}{absent}", section.meaning);
    for key in keys {
        let default = match key.default.as_str() {
            "required" => format!("{}  (required)", key.name),
            "unset" => format!("{}  (unset)", key.name),
            default => format!("{} = {default}", key.name),
        };
        let mut facts = vec![key.allowed()];
        if !key.unit.is_empty() {
            facts.push(key.unit.clone());
        }
        let _ = writeln!(out, "\n  {default:<40}  {}", facts.join("; "));
        wrap(out, "      ", "      ", &key.meaning);
        for choice in &key.choices {
            wrap(out, &format!("      {:<10}  ", choice.value), "                  ", &choice.meaning);
        }
    }
}

/// Words in lines of at most [`WIDTH`] characters.
fn wrap(out: &mut String, first: &str, others: &str, text: &str) {
    let mut line = first.to_owned();
    let mut empty = true;
    for word in text.split_whitespace() {
        if !empty && line.chars().count() + 1 + word.chars().count() > WIDTH {
            let _ = writeln!(out, "{}", line.trim_end());
            line = others.to_owned();
            empty = true;
        }
        if !empty {
            line.push(' ');
        }
        line.push_str(word);
        empty = false;
    }
    let _ = writeln!(out, "{}", line.trim_end());
}
