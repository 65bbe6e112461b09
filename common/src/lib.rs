//! What coordinator and worker agree on: ids, domain types, the RL arithmetic and the
//! configuration schema.
//!
//! Invariants: no I/O beyond reading a configuration file, no clock, no tensor library, no async
//! runtime. Everything here is a plain value or a pure function, so that the coordinator, the
//! workers and the tests compute the same thing from the same code.

pub mod config;
pub mod ids;
pub mod rollout;
pub mod update;
