//! The arithmetic against reference values; `README.md` beside this file says what they are.

mod methods;
mod objective;
mod shaping;
mod support;
