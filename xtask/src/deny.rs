//! cargo-deny: licences, duplicate and banned crates, sources.

use std::path::PathBuf;
use std::process::Command;

use crate::run::{cargo, output, root, run};
use crate::setup::cache;

const VERSION: &str = "0.20.2";

/// cargo-deny on the path, or in the project's cache.
fn program() -> anyhow::Result<Option<PathBuf>> {
    if output(Command::new("cargo-deny").arg("--version")).is_some() {
        return Ok(Some("cargo-deny".into()));
    }
    let path = cache()?.join("tools/bin/cargo-deny");
    Ok(path.exists().then_some(path))
}

/// Checks the dependencies; installs cargo-deny once if it is not there.
pub(crate) fn check() -> anyhow::Result<()> {
    let program = match program()? {
        Some(program) => program,
        None => {
            eprintln!("installing cargo-deny {VERSION} (once; a few minutes)");
            let tools = cache()?.join("tools");
            run(cargo(&[])
                .args([
                    "install",
                    "--quiet",
                    "--locked",
                    "--no-default-features",
                    "cargo-deny",
                    "--version",
                    VERSION,
                ])
                .arg("--root")
                .arg(&tools))?;
            tools.join("bin/cargo-deny")
        }
    };
    run(Command::new(program).current_dir(root()).args(["check", "bans", "licenses", "sources"]))
}
