//! The stall report of a run: left where HTTP finds it, logged when nothing moves, and the watch over the
//! shell's own loop.
//!
//! In: the machine's [`StallReport`], lengths of the shell's queues, what the shell is busy with. Out: JSON,
//! log lines, two metrics. A loop that does not come back from one input for `watchdog.coordinator_ms` can
//! serve nobody: a thread of its own then ends the process, and says what the loop was busy with.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use g2rl_common::ids::WorkerId;
use serde::Serialize;

use super::Shell;
use crate::state::{Event, Stall, StallReport};

/// How old a published report may be at most while the loop runs.
const LONGEST_INTERVAL_MS: u64 = 1_000;

/// How often the watch looks.
const WATCH_INTERVAL: Duration = Duration::from_millis(500);

/// Time for the last log line.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Lengths of the shell's queues.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Queues {
    /// Messages of workers and results of the pools that the shell has not heard yet.
    pub(crate) inputs: usize,
    /// Rollouts that are being judged or wait for it.
    pub(crate) judging: usize,
    /// Rows that wait for the journal's thread.
    pub(crate) journal: usize,
    /// For how long its transaction has been under way, milliseconds.
    pub(crate) journal_ms: u64,
    /// Messages that wait for the network.
    pub(crate) sends: usize,
    /// The worker with the most of them.
    pub(crate) most_sends: Option<(WorkerId, usize)>,
}

/// The machine's report with what the shell knows besides.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct ShellReport {
    #[serde(flatten)]
    pub(crate) run: StallReport,
    pub(crate) queues: Queues,
    /// Reward services are down now, all services together, milliseconds so far in the run.
    pub(crate) reward_paused_ms: u64,
}

/// What `/debug/stalls` answers.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct ServedReport {
    /// Age of everything below, milliseconds. It stays below a second or so while the loop runs.
    pub(crate) age_ms: u64,
    /// What the loop is busy with, and for how long, if it is.
    pub(crate) busy_with: Option<&'static str>,
    pub(crate) busy_ms: u64,
    /// `None` before the run begins.
    pub(crate) report: Option<ShellReport>,
}

#[derive(Debug, Default)]
struct Board {
    report: Option<(Instant, ShellReport)>,
    busy: Option<(Instant, &'static str)>,
}

/// Where the shell leaves what it does for whoever asks.
#[derive(Debug, Clone, Default)]
pub(crate) struct StallBoard {
    board: Arc<Mutex<Board>>,
}

impl StallBoard {
    fn board(&self) -> MutexGuard<'_, Board> {
        // Whoever holds it only moves values in or out.
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The loop begins with something.
    pub(super) fn busy(&self, with: &'static str) {
        self.board().busy = Some((Instant::now(), with));
    }

    /// It is done with it.
    pub(super) fn idle(&self) {
        self.board().busy = None;
    }

    pub(super) fn publish(&self, report: ShellReport) {
        self.board().report = Some((Instant::now(), report));
    }

    /// The newest report.
    pub(crate) fn served(&self) -> ServedReport {
        let board = self.board();
        let ms = |since: Instant| since.elapsed().as_millis() as u64;
        ServedReport {
            age_ms: board.report.as_ref().map_or(0, |(at, _)| ms(*at)),
            busy_with: board.busy.map(|(_, with)| with),
            busy_ms: board.busy.map_or(0, |(since, _)| ms(since)),
            report: board.report.as_ref().map(|(_, report)| report.clone()),
        }
    }

    /// Watches the loop until the run is over.
    pub(super) fn watch(&self, report_ms: u64, limit_ms: u64) -> std::io::Result<()> {
        let board = Arc::downgrade(&self.board);
        let body = move || watch(&board, report_ms, limit_ms);
        std::thread::Builder::new().name("stall-watch".to_owned()).spawn(body).map(|_| ())
    }
}

/// How often a report is published.
pub(super) fn interval(stall_after_ms: u64) -> Duration {
    Duration::from_millis((stall_after_ms / 4).clamp(20, LONGEST_INTERVAL_MS))
}

/// Looks at the loop until nobody holds the board any more.
fn watch(board: &Weak<Mutex<Board>>, report_ms: u64, limit_ms: u64) {
    let mut patience = Patience::default();
    let mut looked = Instant::now();
    loop {
        std::thread::park_timeout(WATCH_INTERVAL);
        // Time in which this process was stopped does not count.
        let passed = looked.elapsed().min(2 * WATCH_INTERVAL);
        looked = Instant::now();
        let Some(board) = board.upgrade() else { return };
        let busy = board.lock().unwrap_or_else(PoisonError::into_inner).busy;
        let Some((_, with)) = busy else { continue };
        match patience.look(busy, passed, (report_ms, limit_ms)) {
            Look::Fine => {}
            Look::Report(ms) => tracing::warn!(with, ms, "the coordinator's own loop does not go on"),
            Look::End(ms) => {
                // The log may be what it waits for.
                let words = std::thread::spawn(move || {
                    tracing::error!(with, ms, "the coordinator's own loop hangs (watchdog.coordinator_ms)");
                });
                let since = Instant::now();
                while !words.is_finished() && since.elapsed() < LAST_WORDS {
                    std::thread::park_timeout(Duration::from_millis(10));
                }
                std::process::exit(1);
            }
        }
    }
}

/// What the watch does about what it sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    Fine,
    Report(u64),
    End(u64),
}

/// How long the loop has been at the same thing.
#[derive(Debug, Default)]
struct Patience {
    at: Option<(Instant, &'static str)>,
    waited: Duration,
    /// Next report, milliseconds.
    due_ms: u64,
}

impl Patience {
    fn look(
        &mut self,
        busy: Option<(Instant, &'static str)>,
        passed: Duration,
        (report_ms, limit_ms): (u64, u64),
    ) -> Look {
        if busy.is_none() || busy != self.at {
            *self = Self { at: busy, waited: Duration::ZERO, due_ms: report_ms };
            return Look::Fine;
        }
        self.waited += passed;
        let ms = self.waited.as_millis() as u64;
        if ms >= limit_ms {
            return Look::End(ms);
        }
        if ms < self.due_ms {
            return Look::Fine;
        }
        self.due_ms = 2 * ms;
        Look::Report(ms)
    }
}

/// Which stalls were logged: each once, then ever more rarely while it lasts.
#[derive(Debug, Default)]
pub(super) struct StallLog {
    /// By who stalls: how long at the last look, and at how much it is logged again.
    known: BTreeMap<String, (u64, u64)>,
    total: u64,
}

impl StallLog {
    /// Takes note of the stalls there are; returns those to be logged now.
    pub(super) fn observe<'a>(&mut self, stalls: &'a [Stall]) -> Vec<&'a Stall> {
        self.known.retain(|who, _| stalls.iter().any(|stall| stall.who == *who));
        let mut due = Vec::new();
        for stall in stalls {
            let known = self.known.get(&stall.who).filter(|(before, _)| stall.for_ms >= *before);
            let again = match known {
                Some((_, again)) if stall.for_ms < *again => *again,
                _ => {
                    self.total += u64::from(known.is_none());
                    due.push(stall);
                    2 * stall.for_ms.max(1)
                }
            };
            self.known.insert(stall.who.clone(), (stall.for_ms, again));
        }
        due
    }

    /// Stalls so far.
    pub(super) fn total(&self) -> u64 {
        self.total
    }
}

impl Shell {
    /// Leaves the stall report for whoever asks, and logs what stalls.
    pub(super) fn report_stalls(&mut self, inputs: usize) {
        if self.journal.hangs() {
            let (writes, writing) = self.journal.backlog();
            let error = format!("the journal's transaction has taken {writing:?}, {writes} writes wait");
            self.step(Event::ShellFailed { error });
        }
        let run = self.machine.stall_report(self.now());
        let report = ShellReport {
            queues: self.queues(inputs),
            reward_paused_ms: self.outage.paused().as_millis() as u64,
            run,
        };
        let due = self.stall_log.observe(&report.run.stalls);
        if !due.is_empty() {
            let report = serde_json::to_string(&report).unwrap_or_default();
            for stall in due {
                let (who, owes, seconds) = (&stall.who, &stall.what, stall.for_ms as f64 / 1e3);
                tracing::warn!(who, owes, seconds, "nothing moves");
            }
            tracing::warn!(report, "stall report");
        }
        self.progress.stalls(&report.run.stalls);
        self.telemetry.stalls(report.run.stalls.len(), self.stall_log.total());
        self.stalls.publish(report);
    }

    fn queues(&self, inputs: usize) -> Queues {
        let sends = self.connections.iter().map(|(worker, connection)| {
            let outgoing = &connection.outgoing;
            (worker, outgoing.max_capacity() - outgoing.capacity())
        });
        let (journal, writing) = self.journal.backlog();
        Queues {
            inputs,
            judging: self.pool.waiting(),
            journal,
            journal_ms: writing.as_millis() as u64,
            sends: sends.clone().map(|(_, waiting)| waiting).sum(),
            most_sends: sends
                .max_by_key(|(_, waiting)| *waiting)
                .filter(|(_, waiting)| *waiting > 0)
                .map(|(worker, waiting)| (worker.clone(), waiting)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stall(who: &str, for_ms: u64) -> Stall {
        Stall { who: who.to_owned(), what: "its gradients".to_owned(), for_ms }
    }

    #[test]
    fn a_stall_is_logged_once_and_then_ever_more_rarely() {
        let mut log = StallLog::default();
        let mut logged = Vec::new();
        for at in (100..=2_000).step_by(50) {
            logged.extend(log.observe(&[stall("rank 1", at)]).iter().map(|stall| stall.for_ms));
        }
        assert_eq!(logged, [100, 200, 400, 800, 1_600]);
        assert_eq!(log.total(), 1);
        // Another one beside it, and the first again after it was over.
        assert_eq!(log.observe(&[stall("rank 1", 2_050), stall("rank 2", 100)]).len(), 1);
        assert!(log.observe(&[]).is_empty());
        assert_eq!(log.observe(&[stall("rank 1", 100)]).len(), 1);
        assert_eq!(log.total(), 3);
        // It moved between two looks.
        assert_eq!(log.observe(&[stall("rank 1", 50)]).len(), 1);
        assert_eq!(log.total(), 4);
    }

    #[test]
    fn a_loop_that_hangs_is_reported_and_then_given_up() {
        let mut patience = Patience::default();
        let busy = |with| Some((Instant::now(), with));
        let (first, step, limits) = (busy("a message of a worker"), Duration::from_millis(100), (200, 1_000));
        let mut looks: Vec<Look> = (0..=10).map(|_| patience.look(first, step, limits)).collect();
        looks.retain(|look| *look != Look::Fine);
        assert_eq!(looks, [Look::Report(200), Look::Report(400), Look::Report(800), Look::End(1_000)]);
        // It goes on with something else.
        assert_eq!(patience.look(None, step, limits), Look::Fine);
        let second = busy("a group's advantages");
        assert_eq!([(); 2].map(|()| patience.look(second, step, limits)), [Look::Fine; 2]);
    }

    #[test]
    fn what_is_served_says_how_old_it_is_and_what_the_loop_does() {
        let board = StallBoard::default();
        assert!(board.served().report.is_none() && board.served().busy_with.is_none());
        board.busy("a deadline");
        assert_eq!(board.served().busy_with, Some("a deadline"));
        board.idle();
        assert_eq!((board.served().busy_with, board.served().busy_ms), (None, 0));
    }
}
