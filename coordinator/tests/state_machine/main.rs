//! The coordinator's state machine against simulated workers.

mod balance;
mod elastic;
mod failures;
mod happy_path;
mod judging;
mod packing;
mod simulator;
mod stalls;
mod support;
