//! Schedules prompts to workers, verifies answers, shapes rewards and drives the policy update.
//!
//! `state` decides everything and does nothing; `shell` does everything and decides nothing. Around
//! them: `dataset` and `problems` (prompts), `session` (workers), `reward` and `shaping` (answers to
//! advantages), `evaluate` and `summary` (what it was good for), `journal` and `checkpoints` (what
//! stays), `wal` and `lineage` (what a restart goes on from), `telemetry`, `http`, `alerts`, `dashboard`, `export`,
//! `progress` and `terminal` (what can be seen), `chronicle` and `history` (what runs say afterwards). Never links libtorch.
#![forbid(unsafe_code)]

pub mod alerts;
mod best;
pub mod checkpoints;
mod chronicle;
pub mod commands;
mod dashboard;
pub mod dataset;
mod embeddings;
mod endpoint;
pub mod evaluate;
pub mod experiment;
mod export;
mod failpoint;
pub mod geometry;
mod history;
mod http;
pub mod journal;
mod leftover;
pub mod lineage;
mod local_workers;
mod problem_sets;
pub mod problems;
mod progress;
pub mod report;
pub mod reward;
pub mod run;
mod run_lock;
mod security;
mod session;
pub mod shaping;
mod shell;
mod sparkline;
mod standing;
pub mod state;
pub mod summary;
pub mod telemetry;
pub mod terminal;
pub mod wal;
