//! What is in `deploy/` does what it is for: with the programs that read it where they are installed, and with real
//! runs.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that is not as expected")]

mod dashboard;
mod kubernetes;
mod prometheus;
mod slurm;
mod supervisor;

use std::path::{Path, PathBuf};

use g2rl_tests::root;

/// A file or directory of `deploy/`.
fn deploy(path: &str) -> PathBuf {
    root().join("deploy").join(path)
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
