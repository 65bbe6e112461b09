//! One process for each device of this machine, started again when it ends badly: a CUDA error or a kill
//! then takes one rank, not all.
//!
//! In: a command line for each rank, and when to give one up. Out: how each ended. Must not know what a rank does;
//! its exit code says whether the run is over (0), another try is of no use ([`EXIT_REFUSED`]), or not (the rest).
//!
//! Tasks and what ends them:
//!
//! | task | ends | then |
//! |---|---|---|
//! | keeper of a rank | its rank ended well, was given up, or the supervisor stops | its result counts at the end |
//! | signals | never | the first is passed on to all ranks, the second kills them |
//! | HTTP server | never | logged |
//!
//! Invariants: ranks do not outlive the supervisor, not even a killed one ([`bind_to_supervisor`]). Once a rank ended
//! well the run is over, and none is started again.

mod board;
mod keeper;
mod signals;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};
use tokio::sync::watch;

pub use self::board::{Board, METRICS, RankReport, RankState, serve};
use self::keeper::Keeper;

/// Exit code of a rank that nobody can help by starting it again: certificates, token or version are not accepted.
/// It is `EX_CONFIG` of sysexits.h.
pub const EXIT_REFUSED: u8 = 78;

/// Set for ranks: the process that started them.
const SUPERVISOR_VARIABLE: &str = "G2RL_SUPERVISOR_PID";

/// How one rank is started.
#[derive(Debug, Clone)]
pub struct RankCommand {
    /// Its name in reports, such as `cuda:3`; unique on this machine.
    pub label: String,
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// Variables besides this process's own.
    pub variables: Vec<(&'static str, String)>,
}

/// When a rank is started again.
#[derive(Debug, Clone, Copy)]
pub struct RestartPolicy {
    /// Restarts in a row after which a rank is given up.
    pub max_restarts: u32,
    /// Before the first restart in a row; each further pause is twice as long.
    pub first_pause: Duration,
    /// The longest of them.
    pub longest_pause: Duration,
    /// A rank that has lived so long begins a new row.
    pub settled_after: Duration,
}

impl RestartPolicy {
    /// The pause before restart `restart` (from 0) of a row.
    fn pause(&self, restart: u32) -> Duration {
        self.first_pause.saturating_mul(1 << restart.min(16)).min(self.longest_pause)
    }
}

/// What the ranks are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    /// Work.
    Run,
    /// A rank ended well: the run is over, and the others end by themselves.
    RunOver,
    /// This process was signalled, and so are they.
    Stop(Signal),
    /// They are killed.
    Kill,
}

/// Why a rank is not started again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GivenUp {
    /// For people.
    pub why: String,
    /// It ended with [`EXIT_REFUSED`].
    pub refused: bool,
}

/// Why the work of this machine was not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SupervisorError {
    /// Somebody signalled the supervisor.
    #[error("stopped by {0}")]
    Stopped(&'static str),
    /// Ranks were given up; the others ended well.
    #[error("{} of {ranks} ranks failed: {}", .failed.len(), list(.failed))]
    Failed {
        /// The name of each, and why.
        failed: Vec<(String, GivenUp)>,
        /// All ranks of this machine.
        ranks: usize,
    },
}

impl SupervisorError {
    /// Whether the same command would end the same way again.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::Stopped(_) => false,
            Self::Failed { failed, .. } => failed.iter().all(|(_, end)| end.refused),
        }
    }
}

fn list(failed: &[(String, GivenUp)]) -> String {
    failed.iter().map(|(label, end)| format!("{label}: {}", end.why)).collect::<Vec<_>>().join("; ")
}

/// Starts all ranks and returns when none is left.
///
/// # Errors
/// [`SupervisorError`].
pub async fn run(
    ranks: &[RankCommand],
    policy: RestartPolicy,
    board: &Arc<Board>,
) -> Result<(), SupervisorError> {
    let (orders_in, orders) = watch::channel(Order::Run);
    let all = futures::future::join_all(ranks.iter().enumerate().map(|(index, rank)| {
        Keeper { index, rank, policy, board, over: &orders_in, orders: orders.clone() }.keep()
    }));
    tokio::select! {
        ends = all => {
            match *orders.borrow() {
                Order::Stop(signal) => return Err(SupervisorError::Stopped(signals::name(signal))),
                Order::Kill => return Err(SupervisorError::Stopped("two signals")),
                Order::Run | Order::RunOver => {}
            }
            let ends = ends.into_iter().zip(ranks);
            let failed: Vec<(String, GivenUp)> =
                ends.filter_map(|(end, rank)| Some((rank.label.clone(), end?))).collect();
            match failed.is_empty() {
                true => Ok(()),
                false => Err(SupervisorError::Failed { failed, ranks: ranks.len() }),
            }
        }
        never = signals::pass_on(&orders_in) => match never {},
    }
}

/// In a rank: it ends as if told to when its supervisor is gone, however that happened.
///
/// # Errors
/// If the supervisor is gone already, or the system refuses.
pub fn bind_to_supervisor() -> anyhow::Result<()> {
    let Some(supervisor) = std::env::var(SUPERVISOR_VARIABLE).ok().and_then(|pid| pid.parse().ok()) else {
        return Ok(());
    };
    set_parent_process_death_signal(Some(Signal::TERM))?;
    if getppid() != Pid::from_raw(supervisor) {
        bail!("the supervisor of this rank has ended");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUICK: RestartPolicy = RestartPolicy {
        max_restarts: 2,
        first_pause: Duration::from_millis(1),
        longest_pause: Duration::from_millis(2),
        settled_after: Duration::from_secs(60),
    };

    fn rank(label: &str, script: &str) -> RankCommand {
        RankCommand {
            label: label.to_owned(),
            program: "/bin/sh".into(),
            arguments: vec!["-c".to_owned(), script.to_owned()],
            variables: Vec::new(),
        }
    }

    /// Runs ranks to their end; what was said, and how often each was started again.
    fn outcome(ranks: &[RankCommand]) -> (Result<(), SupervisorError>, Vec<u32>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let board = Arc::new(Board::new(ranks.iter().map(|rank| rank.label.clone())));
        let result = runtime.block_on(run(ranks, QUICK, &board));
        (result, board.reports().iter().map(|report| report.restarts).collect())
    }

    #[test]
    fn pauses_double_up_to_the_longest() {
        let policy = RestartPolicy { longest_pause: Duration::from_millis(5), ..QUICK };
        assert_eq!([0, 1, 2, 3, 40].map(|restart| policy.pause(restart).as_millis()), [1, 2, 4, 5, 5]);
    }

    #[test]
    fn a_crashed_rank_is_started_again_and_the_run_ends_well() {
        let dir = tempfile::tempdir().unwrap();
        let mark = dir.path().join("mark").display().to_string();
        // Dies once, by a signal.
        let crashes = format!("if [ -e {mark} ]; then exit 0; fi; touch {mark}; kill -9 $$");
        assert_eq!(outcome(&[rank("cuda:0", &crashes)]), (Ok(()), vec![1]));
    }

    #[test]
    fn a_rank_that_cannot_work_is_given_up_and_the_others_go_on() {
        let dir = tempfile::tempdir().unwrap();
        let mark = dir.path().join("mark").display().to_string();
        let bad = format!("echo x >> {mark}; exit 3");
        // Ends once the other was started three times.
        let good =
            format!("until [ \"$(cat {mark} 2>/dev/null | wc -l)\" = 3 ]; do sleep 0.01; done; sleep 0.2");
        let (result, restarts) = outcome(&[rank("cuda:0", &bad), rank("cuda:1", &good)]);
        let error = result.unwrap_err();
        let text = error.to_string();
        assert!(!error.is_refusal());
        assert!(
            text.starts_with("1 of 2 ranks failed: cuda:0:") && text.contains("exit status: 3"),
            "{text}"
        );
        assert_eq!(restarts, [2, 0]);
    }

    #[test]
    fn a_refused_rank_is_not_started_again() {
        let (result, restarts) = outcome(&[rank("cpu", &format!("exit {EXIT_REFUSED}"))]);
        let error = result.unwrap_err();
        assert!(error.is_refusal() && error.to_string().contains("not accepted"), "{error}");
        assert_eq!(restarts, [0]);
    }

    #[test]
    fn after_a_good_end_nothing_is_started_again() {
        let dir = tempfile::tempdir().unwrap();
        let mark = dir.path().join("mark").display().to_string();
        let good = format!("touch {mark}");
        // Ends badly after the other has ended, as a rank does whose coordinator is gone.
        let late = format!("until [ -e {mark} ]; do sleep 0.01; done; sleep 0.3; exit 1");
        assert_eq!(outcome(&[rank("cuda:0", &good), rank("cuda:1", &late)]), (Ok(()), vec![0, 0]));
    }
}
