//! `docs/configuration.md`.

use std::fmt::Write as _;

use super::{Key, Section, sections};

const HEAD: &str = "\
# Configuration

A run is decided by one TOML file. `--set key=value` overrides a key, may be given several times, and the last one
wins; there are no environment variables for keys. Unknown keys, wrong types and values out of range are errors that
name file and key.

```sh
g2rl-coordinator config show                              # this page, in the terminal
g2rl-coordinator config show --key rollout                # the keys of a section
g2rl-coordinator config show --config configs/demo.toml   # every value of a run, and where it comes from
g2rl-coordinator config schema > g2rl.schema.json         # for editors: #:schema ./g2rl.schema.json
```

Made from the types by `cargo xtask docs`; do not edit.
";

/// The page.
#[must_use]
pub fn markdown() -> String {
    let mut page = HEAD.to_owned();
    for section in &sections() {
        write_section(&mut page, section);
    }
    page
}

/// Text inside a cell of a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

fn code(text: &str) -> String {
    match text {
        "" | "required" | "unset" => text.to_owned(),
        text => format!("`{}`", cell(text)),
    }
}

fn allowed(key: &Key) -> String {
    if key.choices.is_empty() {
        return cell(&key.allowed());
    }
    key.choices.iter().map(|choice| code(&choice.value)).collect::<Vec<_>>().join(", ")
}

fn write_section(page: &mut String, section: &Section) {
    // Writing to a String cannot fail.
    let _ = match section.path.strip_suffix("[]") {
        Some(path) => writeln!(page, "\n## `[[{path}]]`\n\n{} Each entry has:\n", section.meaning),
        None => writeln!(page, "\n## `[{}]`\n\n{}{}\n", section.path, section.meaning, absent(section)),
    };
    page.push_str("| key | default | unit | allowed | meaning |\n|---|---|---|---|---|\n");
    for key in &section.keys {
        let (default, meaning) = (code(&key.default), cell(&key.meaning));
        let _ =
            writeln!(page, "| `{}` | {default} | {} | {} | {meaning} |", key.name, key.unit, allowed(key));
    }
    for key in section.keys.iter().filter(|key| !key.choices.is_empty()) {
        let _ = writeln!(page, "\n`{}`:\n", key.name);
        for choice in &key.choices {
            let _ = writeln!(page, "- `{}`: {}", choice.value, choice.meaning);
        }
    }
}

fn absent(section: &Section) -> &'static str {
    if section.optional { " Absent by default." } else { "" }
}
