//! The subcommands of `g2rl-coordinator`.

pub mod bench;
mod child;
pub mod config;
pub mod data;
pub mod eval;
pub mod experiment;
pub mod geometry;
mod lines;
pub mod report;
pub mod shape;
pub mod train;
pub mod verify;
