//! Methods x warm starts x seeds: what is run, and what came out.
//!
//! In: a file ([`ExperimentConfig`]). Out: the runs it asks for, each with its settings ([`PlannedRun`]), and once
//! they are done a comparison ([`Comparison`]) with intervals that contain the variance between runs. Must not know:
//! how runs are started.
//!
//! | file | what |
//! |---|---|
//! | `config` | the experiment as written, checked |
//! | `result` | what a run left |
//! | `statistics` | intervals over runs and problems |
//! | `compare` | methods beside each other |
//! | `report` | the same for people |

mod compare;
mod config;
mod report;
mod result;
mod statistics;

pub use self::compare::{Comparison, MethodSummary};
pub use self::config::{DataFile, ExperimentConfig, MethodConfig, PlannedRun, WarmStart};
pub(crate) use self::report::interval;
pub use self::report::{Section, TextTable, markdown, preface, sections};
pub use self::result::RunResult;
pub(crate) use self::result::{MEASURES, Measured, evaluations, is_complete};
pub(crate) use self::statistics::{OverRuns, crossed};
