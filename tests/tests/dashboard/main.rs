//! The dashboard: its API on a long run, who may read it, and its pages in a real browser beside a real run.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that is not as expected")]

mod access;
mod load;
mod pages;
mod shown;
