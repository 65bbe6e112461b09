//! Writes checkpoints on a thread of its own while the engine trains.
//!
//! In: a copy of the state of one moment. Out: an event once it is durable, or failed. At most one is under way; the
//! memory of the copy is used again for the next one.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use g2rl_common::ids::{GroupEpoch, StepIndex};
use g2rl_proto::WorkerEvent;
use tokio::sync::mpsc;

use super::Checkpoint;
use crate::failpoint;
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
        let began = Instant::now();
        let error = self.checkpoint.write(state, &self.path).err().map(|error| error.to_string());
        tracing::info!(step = %self.step, seconds = began.elapsed().as_secs_f64(), error, "checkpoint done");
        failpoint::reach("checkpoint_report");
        WorkerEvent::CheckpointDone { epoch: self.epoch, step: self.step, error }
    }
}

/// The thread, while there is one, and the memory.
#[derive(Debug, Default)]
pub struct Writer {
    running: Option<JoinHandle<OptimizerState>>,
    /// The thread has done its work; what is left is to tell, and to end.
    done: Arc<AtomicBool>,
    memory: Option<OptimizerState>,
}

impl Writer {
    /// Whether a checkpoint is being written.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        let runs = self.running.as_ref().is_some_and(|thread| !thread.is_finished());
        runs && !self.done.load(Ordering::Acquire)
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
        self.done = Arc::default();
        let done = self.done.clone();
        let body = move || {
            let event = job.run(&state);
            done.store(true, Ordering::Release);
            // Nobody listens any more only if the session is over.
            let _ = events.blocking_send(event);
            state
        };
        self.running = Some(std::thread::Builder::new().name("checkpoint".into()).spawn(body)?);
        Ok(())
    }
}
