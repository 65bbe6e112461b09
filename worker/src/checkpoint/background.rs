//! Writes checkpoints on a thread of its own while the engine trains.
//!
//! In: a copy of the state of one moment. Out: an event once it is durable, or failed. At most one is under way; the
//! memory of the copy is used again for the next one. Whoever asks for the one that is under way, such as a coordinator
//! that was started again, hears of that.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use g2rl_common::ids::{GroupEpoch, RunId, StepIndex};
use g2rl_proto::WorkerEvent;
use serde_json::Value;
use tokio::sync::mpsc;

use super::Checkpoint;
use crate::failpoint;
use crate::pulse::{self, Pulse, Work};
use crate::update::optimizer::OptimizerState;

/// One checkpoint, from the copy on.
#[derive(Debug)]
pub struct Job {
    /// What is not copied from the engine's tensors.
    pub checkpoint: Checkpoint,
    /// Where it goes.
    pub path: PathBuf,
    /// The epoch in which it was asked for.
    pub epoch: GroupEpoch,
    /// Completed training steps in it.
    pub step: StepIndex,
}

impl Job {
    /// Writes the checkpoint and says what came of it.
    pub fn run(&self, state: &OptimizerState) -> WorkerEvent {
        WorkerEvent::CheckpointDone { epoch: self.epoch, step: self.step, error: self.write(state) }
    }

    fn write(&self, state: &OptimizerState) -> Option<String> {
        let began = Instant::now();
        let error = self.checkpoint.write(state, &self.path).err().map(|error| error.to_string());
        tracing::info!(step = %self.step, seconds = began.elapsed().as_secs_f64(), error, "checkpoint done");
        failpoint::reach("checkpoint_report");
        error
    }
}

/// What the thread works on.
#[derive(Debug)]
struct UnderWay {
    run: Value,
    path: PathBuf,
    /// The epoch in which it was asked for last.
    epoch: GroupEpoch,
}

/// The thread, while there is one, and the memory.
#[derive(Debug, Default)]
pub struct Writer {
    running: Option<JoinHandle<OptimizerState>>,
    /// None once the thread has done its work; what is left is to tell, and to end.
    under_way: Arc<Mutex<Option<UnderWay>>>,
    memory: Option<OptimizerState>,
    /// Whether the thread gets on.
    pulse: Arc<Pulse>,
}

impl Writer {
    /// One whose thread has this pulse.
    #[must_use]
    pub fn new(pulse: Arc<Pulse>) -> Self {
        Self { pulse, ..Self::default() }
    }

    /// Whether a checkpoint is being written.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        let runs = self.running.as_ref().is_some_and(|thread| !thread.is_finished());
        runs && lock(&self.under_way).is_some()
    }

    /// Whether this checkpoint of this run is being written; then its end is told to this epoch.
    #[must_use]
    pub fn goes_on(&self, run: &RunId, path: &Path, epoch: GroupEpoch) -> bool {
        let mut under_way = lock(&self.under_way);
        let same = |it: &&mut UnderWay| it.run == run.0 && it.path == path;
        let Some(it) = under_way.as_mut().filter(same).filter(|_| self.running.is_some()) else {
            return false;
        };
        it.epoch = epoch;
        true
    }

    /// The memory of the copy before, if there is one. Waits for the thread.
    pub fn take_memory(&mut self) -> Option<OptimizerState> {
        if let Some(thread) = self.running.take() {
            match thread.join() {
                Ok(state) => self.memory = Some(state),
                Err(_) => tracing::error!("the checkpoint's thread panicked"),
            }
        }
        self.memory.take()
    }

    /// Starts to write a copy.
    ///
    /// # Errors
    /// If the system starts no thread.
    pub fn start(
        &mut self,
        job: Job,
        state: OptimizerState,
        events: mpsc::Sender<WorkerEvent>,
    ) -> std::io::Result<()> {
        let (run, path) = (job.checkpoint.about["run"].clone(), job.path.clone());
        self.under_way = Arc::new(Mutex::new(Some(UnderWay { run, path, epoch: job.epoch })));
        let (under_way, pulse) = (self.under_way.clone(), self.pulse.clone());
        let body = move || {
            pulse::install(pulse);
            let error = pulse::piece(Work::Write, || job.write(&state));
            let epoch = lock(&under_way).take().map_or(job.epoch, |it| it.epoch);
            let event = WorkerEvent::CheckpointDone { epoch, step: job.step, error };
            // Nobody listens any more only if the session is over.
            let _ = events.blocking_send(event);
            state
        };
        self.running = Some(std::thread::Builder::new().name("checkpoint".into()).spawn(body)?);
        Ok(())
    }
}

/// A thread that panicked has left a whole value behind.
fn lock(under_way: &Mutex<Option<UnderWay>>) -> MutexGuard<'_, Option<UnderWay>> {
    under_way.lock().unwrap_or_else(PoisonError::into_inner)
}
