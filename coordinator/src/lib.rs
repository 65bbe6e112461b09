//! g2rl.

pub mod state;
