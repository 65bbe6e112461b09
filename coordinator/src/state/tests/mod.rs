//! The state machine against simulated workers.

mod balance;
mod checkpoints;
mod elastic;
mod failures;
mod happy_path;
mod judging;
mod nonfinite;
mod packing;
mod restart;
mod simulator;
mod stalls;
mod support;
