//! Schedules prompts to workers, verifies answers, shapes rewards and drives the policy update.
//!
//! `state` decides everything and does nothing; `shell` does everything and decides nothing. Around
//! them: `dataset` and `problems` (prompts), `session` (workers), `reward` and `shaping` (answers to
//! advantages), `evaluate` and `summary` (what it was good for), `journal` and `checkpoints` (what
//! stays), `wal` and `lineage` (what a restart goes on from), `telemetry`, `http`, `dashboard` and `export` (what can be seen). Never links libtorch.
#![forbid(unsafe_code)]

pub mod checkpoints;
pub mod commands;
mod dashboard;
pub mod dataset;
pub mod evaluate;
mod export;
mod failpoint;
mod http;
pub mod journal;
mod leftover;
pub mod lineage;
mod local_workers;
pub mod problems;
pub mod progress;
pub mod reward;
pub mod run;
mod security;
mod session;
pub mod shaping;
mod shell;
mod standing;
pub mod state;
pub mod summary;
pub mod telemetry;
pub mod wal;
