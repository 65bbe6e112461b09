//! Pages that are made from the code.

use std::fs;

use anyhow::Context;

use crate::run::{cargo, root, stdout};

/// The page of all configuration keys.
const CONFIGURATION: &str = "docs/configuration.md";

/// `cargo xtask docs`: writes the pages. A test of `g2rl-common` fails where one is not what is made.
pub(crate) fn docs() -> anyhow::Result<()> {
    let reference = ["run", "--quiet", "--package", "g2rl-coordinator", "--", "config", "reference"];
    let page = stdout(cargo(&[]).current_dir(root()).args(reference))?;
    fs::write(root().join(CONFIGURATION), page).with_context(|| format!("cannot write {CONFIGURATION}"))
}
