//! The life of one rank: started, waited for, started again after a pause, or given up.

use std::process::ExitStatus;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::sync::watch;

use super::{
    Board, EXIT_REFUSED, GivenUp, Order, RankCommand, RankState, RestartPolicy, SUPERVISOR_VARIABLE,
};

/// Time a rank gets after a signal, and after the end of the run, before it is killed. An engine finishes its
/// current command within 30 s.
const STOP_TIMEOUT: Duration = Duration::from_secs(60);

pub(super) struct Keeper<'a> {
    pub(super) index: usize,
    pub(super) rank: &'a RankCommand,
    pub(super) policy: RestartPolicy,
    pub(super) board: &'a Arc<Board>,
    /// Where the end of the run is announced.
    pub(super) over: &'a watch::Sender<Order>,
    pub(super) orders: watch::Receiver<Order>,
}

impl Keeper<'_> {
    /// Keeps the rank alive; returns why it was given up, if it was.
    pub(super) async fn keep(mut self) -> Option<GivenUp> {
        let label = &self.rank.label;
        let mut restarts = 0;
        loop {
            let started = Instant::now();
            let (ended, refused) = match self.spawn() {
                Ok(child) => {
                    let pid = child.id().unwrap_or_default();
                    self.board.set(self.index, RankState::Running { pid });
                    tracing::info!(rank = label, pid, "rank started");
                    match self.attend(child).await {
                        Ok(status) if status.success() => {
                            tracing::info!(rank = label, "rank ended: the run is over");
                            self.board.set(self.index, RankState::Done);
                            self.announce_end();
                            return None;
                        }
                        Ok(status) => (status.to_string(), status.code() == Some(EXIT_REFUSED.into())),
                        Err(error) => (error.to_string(), false),
                    }
                }
                Err(error) => (format!("cannot start {}: {error}", self.rank.program.display()), false),
            };
            let lived = started.elapsed();
            if *self.orders.borrow() != Order::Run {
                tracing::info!(rank = label, status = ended, "rank ended");
                self.board.set(self.index, RankState::Done);
                return None;
            }
            restarts = if lived < self.policy.settled_after { restarts } else { 0 };
            let why = if refused {
                Some(format!("{ended}: it is not accepted"))
            } else if restarts >= self.policy.max_restarts {
                Some(format!("{ended}, after {restarts} restarts in a row"))
            } else {
                None
            };
            if let Some(why) = why {
                tracing::error!(rank = label, "rank given up: {why}");
                self.board.set(self.index, RankState::GivenUp { why: why.clone() });
                return Some(GivenUp { why, refused });
            }
            let pause = self.policy.pause(restarts);
            restarts += 1;
            tracing::warn!(
                rank = label,
                status = ended,
                lived_s = lived.as_secs(),
                pause_s = pause.as_secs_f64(),
                "rank ended; it is started again"
            );
            self.board.set(self.index, RankState::Pausing { status: ended });
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                // The channel is there as long as the supervisor.
                _ = self.orders.wait_for(|order| *order != Order::Run) => {
                    self.board.set(self.index, RankState::Done);
                    return None;
                }
            }
            self.board.restarted(self.index);
        }
    }

    fn spawn(&self) -> std::io::Result<Child> {
        Command::new(&self.rank.program)
            .args(&self.rank.arguments)
            .envs(self.rank.variables.iter().map(|(name, value)| (*name, value)))
            .env(SUPERVISOR_VARIABLE, std::process::id().to_string())
            .kill_on_drop(true)
            .spawn()
    }

    /// Waits for the process, and passes orders on to it.
    async fn attend(&mut self, mut child: Child) -> std::io::Result<ExitStatus> {
        let mut deadline = None;
        loop {
            let expired = async {
                match deadline {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                status = child.wait() => return status,
                () = expired => {
                    tracing::warn!(rank = self.rank.label, "rank did not end within {STOP_TIMEOUT:?} and is killed");
                    child.start_kill()?;
                    deadline = None;
                }
                _ = self.orders.changed() => {
                    deadline = Some(tokio::time::Instant::now() + STOP_TIMEOUT);
                    match *self.orders.borrow_and_update() {
                        Order::Run | Order::RunOver => {}
                        Order::Stop(signal) => send(&child, signal),
                        Order::Kill => child.start_kill()?,
                    }
                }
            }
        }
    }

    fn announce_end(&self) {
        self.over.send_if_modified(|order| {
            let first = *order == Order::Run;
            if first {
                *order = Order::RunOver;
            }
            first
        });
    }
}

fn send(child: &Child, signal: Signal) {
    let pid = child.id().and_then(|pid| Pid::from_raw(pid.cast_signed()));
    if let Some(pid) = pid {
        // It may have ended in this moment.
        let _ = kill_process(pid, signal);
    }
}
