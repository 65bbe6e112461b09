//! g2rl.
