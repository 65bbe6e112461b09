//! The subcommands of `g2rl-coordinator`.

use std::io::{self, ErrorKind, Write};

pub mod bench;
mod child;
pub mod config;
pub mod dashboard;
pub mod data;
pub mod eval;
pub mod experiment;
pub mod geometry;
mod lines;
pub mod report;
pub mod runs;
pub mod shape;
pub mod show;
mod side_by_side;
pub mod train;
pub mod verify;

/// Prints to standard output. A reader that has seen enough, such as `head`, is no error.
///
/// # Errors
/// If it cannot be written.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    match io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}
