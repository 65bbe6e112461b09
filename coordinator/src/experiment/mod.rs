//! Methods x warm starts x seeds: what is run, and what came out.
//!
//! In: a file ([`ExperimentConfig`]). Out: the runs it asks for, each with its settings ([`PlannedRun`]), and once
//! they are done a comparison ([`Comparison`]) with intervals that contain the variance between runs. Must not know:
//! how runs are started.
//!
//! | file | what |
//! |---|---|
//! | `config` | the experiment as written, checked |
//! | `warm` | models that runs begin with, and how they are made |
//! | `result` | what a run left |
//! | `statistics` | intervals over runs and problems |
//! | `curves` | learning curves, and methods at an equal first score |
//! | `compare` | methods beside each other |
//! | `report` | the same for people |

mod compare;
mod config;
mod curves;
mod report;
mod result;
mod statistics;
mod warm;

pub use self::compare::{Comparison, MethodSummary};
pub use self::config::{DataFile, ExperimentConfig, MethodConfig, PlannedRun};
pub(crate) use self::report::interval;
pub use self::report::{Section, TextTable, markdown, preface, sections};
pub use self::result::RunResult;
pub(crate) use self::result::{MEASURES, Measured, evaluations, is_complete};
pub(crate) use self::statistics::{OverRuns, crossed};
pub use self::warm::{WarmStart, WarmStartRun};
