//! One rank: generates rollouts and updates the policy, with libtorch.
//!
//! The tree reads as the data flow: `tokenizer` turns problems into prompts, `rollout` answers them
//! with `model`, `update` trains on what comes back, `checkpoint` keeps it. `engine` is the thread that
//! does all of it in order, `session` connects the engine with the coordinator. `supervisor`
//! keeps one such process alive for each device of a machine.
#![forbid(unsafe_code)]

pub mod access;
pub mod address;
pub mod checkpoint;
pub mod commands;
pub mod devices;
pub mod engine;
pub mod failpoint;
pub mod memory;
pub mod model;
pub mod planner;
pub mod profile;
pub mod pulse;
pub mod rollout;
pub mod session;
pub mod supervisor;
pub mod telemetry;
pub mod tokenizer;
pub mod update;
pub mod watchdog;
