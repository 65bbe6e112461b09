//! What coordinator and worker agree on: ids, domain types, the RL arithmetic and the
//! configuration schema.
//!
//! Invariants: no I/O beyond reading a configuration file or a token, no clock, no tensor library, no async
//! runtime. Everything here is a plain value or a pure function, so that the coordinator, the
//! workers and the tests compute the same thing from the same code.

pub mod advantage;
pub mod algorithm;
pub mod bootstrap;
pub mod config;
pub mod geometry;
pub mod ids;
pub mod novelty;
mod numeric;
pub mod objective;
pub mod option;
pub mod passk;
pub mod rollout;
pub mod secret;
pub mod seed;
pub mod shaping;
pub mod update;
