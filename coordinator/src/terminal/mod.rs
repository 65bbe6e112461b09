//! The view of a running run on a terminal: its last lines, with the log above them.
//!
//! In: what the shell sees, and the log. Out: a picture four times a second. A thread of its own draws it, so that a
//! slow terminal holds up nobody but the log, which waits for it without a view, too.
//!
//! Invariants: without a terminal, or with `--plain`, nothing here writes anything but the log's own bytes. The
//! terminal's modes are never changed (`painter`).

mod curve;
mod layout;
mod log;
mod model;
mod painter;
mod ranks;
mod screen;
#[cfg(test)]
mod tests;

use std::io::{self, IsTerminal};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use g2rl_common::config::RunConfig;
use g2rl_common::ids::StepIndex;

pub use self::log::LogWriter;
use self::model::Model;
use self::screen::SCREEN;
use crate::evaluate::Evaluation;
use crate::state::{Millis, RunStatus, Stall, StepRecord};
use crate::summary::StepSummary;

/// Between two pictures.
const INTERVAL: Duration = Duration::from_millis(250);

/// Somebody wants a view.
static WANTED: AtomicBool = AtomicBool::new(false);

/// Wants a view of the run that follows, where the terminal can show one.
pub fn want() {
    WANTED.store(true, Ordering::Relaxed);
}

/// Nobody could read a view.
static FORBIDDEN: AtomicBool = AtomicBool::new(false);

/// No view is shown, whoever wants one.
pub fn forbid() {
    FORBIDDEN.store(true, Ordering::Relaxed);
}

/// Whether standard error takes colours.
#[must_use]
pub fn has_colors() -> bool {
    // https://no-color.org: set and not empty.
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    io::stderr().is_terminal() && !no_color && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Whether a view is wanted and can be shown.
fn is_possible() -> bool {
    let wanted = WANTED.load(Ordering::Relaxed) && !FORBIDDEN.load(Ordering::Relaxed);
    wanted && has_colors() && std::env::var_os("CI").is_none()
}

/// A view that is shown.
#[derive(Debug)]
pub(crate) struct View {
    model: Arc<Mutex<Model>>,
    opened: Instant,
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl View {
    /// Opens the view of a run; `None` if none is wanted or the terminal cannot show one.
    pub(crate) fn open(config: &RunConfig) -> Option<Self> {
        if !is_possible() {
            return None;
        }
        let (model, opened) = (Arc::new(Mutex::new(Model::new(config))), Instant::now());
        let (stop, stopped) = mpsc::channel();
        SCREEN.open(model.clone());
        let body = move || {
            while stopped.recv_timeout(INTERVAL) == Err(RecvTimeoutError::Timeout) {
                SCREEN.draw(opened.elapsed());
            }
        };
        // Without a thread there is only the log.
        let thread = std::thread::Builder::new().name("view".to_owned()).spawn(body).ok();
        if thread.is_none() {
            SCREEN.close();
        }
        stay_in_place();
        Some(Self { model, opened, stop: Some(stop), thread })
    }

    fn model(&self) -> MutexGuard<'_, Model> {
        // Whoever holds it only moves values in or out.
        self.model.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn step(&self, record: &StepRecord, step: &StepSummary) {
        self.model().step(record, step, self.opened.elapsed());
    }

    pub(crate) fn evaluation(&self, step: StepIndex, evaluation: &Evaluation) {
        self.model().evaluation(step, evaluation);
    }

    pub(crate) fn status(&self, status: &RunStatus, now: Millis) {
        self.model().status(status, now);
    }

    pub(crate) fn stalls(&self, stalls: &[Stall]) {
        self.model().stalls(stalls);
    }

    /// Leaves the last picture where it is.
    pub(crate) fn close(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // It draws and cannot fail; if it panicked, that was said.
            let _ = thread.join();
            SCREEN.draw(self.opened.elapsed());
            SCREEN.close();
        }
    }
}

impl Drop for View {
    fn drop(&mut self) {
        self.close();
    }
}

/// After Ctrl-Z and `fg` the shell's lines are where the picture was: the next one is drawn below them.
fn stay_in_place() {
    use tokio::signal::unix::{SignalKind, signal};
    let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
    runtime.spawn(async {
        let Ok(mut continued) = signal(SignalKind::from_raw(libc::SIGCONT)) else { return };
        while continued.recv().await.is_some() {
            SCREEN.forget();
        }
    });
}
