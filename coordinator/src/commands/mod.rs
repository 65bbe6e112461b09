//! The subcommands of `g2rl-coordinator`.

pub mod bench;
pub mod config;
pub mod dashboard;
pub mod data;
pub mod eval;
mod lines;
pub mod shape;
pub mod train;
pub mod verify;
