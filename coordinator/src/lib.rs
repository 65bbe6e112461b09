//! g2rl.

pub mod dataset;
pub mod problems;
pub mod reward;
pub mod state;
