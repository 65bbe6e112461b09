//! The engine's part of a checkpoint: a copy of the state of this moment, made at once.

use std::path::Path;
use std::time::Instant;

use g2rl_common::ids::{Rank, StepIndex};
use g2rl_proto::{Phase, WorkerEvent};
use serde_json::json;

use super::epoch::Epoch;
use super::policy::Policy;
use super::{Engine, EngineError};
use crate::checkpoint::background::Job;
use crate::checkpoint::{Checkpoint, check_path};
use crate::failpoint;
use crate::pulse::{self, Work};
use crate::update::UpdateError;
use crate::update::optimizer::OptimizerState;

impl Engine {
    /// Copies the state and lets a thread write it, or writes it here if the configuration says so. Where the state
    /// is divided every rank hands its part to rank 0.
    pub(super) fn checkpoint(
        &mut self,
        step: StepIndex,
        path: &Path,
        state: &str,
    ) -> Result<(), EngineError> {
        self.status.set_phase(Phase::Checkpoint);
        failpoint::reach("checkpoint");
        let Some(epoch) = self.epoch.take() else { return Ok(()) };
        let began = Instant::now();
        // One that the coordinator gave up, or an earlier coordinator asked for, may still be on its way to a slow disk.
        let run = self.policy.as_ref().map(|policy| &policy.run);
        let goes_on = run.is_some_and(|run| self.writer.goes_on(run, path, epoch.plan.epoch));
        let busy = goes_on || self.writer.is_busy();
        let done = self.copy(&epoch, busy).map(|copy| {
            if epoch.plan.rank != Rank(0) {
                return None;
            }
            let policy = self.policy.as_ref()?;
            let failed = |error: String| {
                Some(WorkerEvent::CheckpointDone { epoch: epoch.plan.epoch, step, error: Some(error) })
            };
            if let Err(error) = check_path(path) {
                return failed(error.to_string());
            }
            let Some(copy) = copy else {
                if goes_on {
                    return None;
                }
                return failed("the checkpoint before this one is still being written".to_owned());
            };
            let job = Job {
                checkpoint: of_policy(policy, (&epoch, step), state),
                path: path.to_owned(),
                epoch: epoch.plan.epoch,
                step,
            };
            let background = policy.config.checkpoint.background;
            tracing::info!(%step, background, seconds = began.elapsed().as_secs_f64(), "policy copied");
            if !background {
                return Some(pulse::piece(Work::Write, || job.run(&copy)));
            }
            let started = self.writer.start(job, copy, self.events.clone());
            started.err().and_then(|error| failed(error.to_string()))
        });
        let epoch_number = epoch.plan.epoch;
        self.epoch = Some(epoch);
        match done {
            Ok(Some(event)) => self.send(event),
            Ok(None) => {}
            // A peer is gone or silent.
            Err(UpdateError::Ffi(error)) => {
                self.send(WorkerEvent::EpochFailed { epoch: epoch_number, error: error.to_string() });
            }
            // Of this rank only the checkpoint has failed.
            Err(error) => {
                let error = Some(error.to_string());
                self.send(WorkerEvent::CheckpointDone { epoch: epoch_number, step, error });
            }
        }
        Ok(())
    }

    /// The whole state on rank 0, unless it is busy; it then still takes part.
    fn copy(&mut self, epoch: &Epoch, busy: bool) -> Result<Option<OptimizerState>, UpdateError> {
        let Some(policy) = self.policy.as_ref() else { return Ok(None) };
        let (optimizer, weights) = (policy.updater.optimizer(), policy.model.weights());
        if !policy.config.checkpoint.background {
            return optimizer.whole_state(weights, epoch.group());
        }
        if epoch.plan.rank != Rank(0) || busy {
            return optimizer.copy_state(weights, epoch.group(), None);
        }
        let memory = self.writer.take_memory().filter(|memory| memory.fits(weights));
        let memory = memory.map_or_else(|| OptimizerState::empty(weights), Ok)?;
        optimizer.copy_state(weights, epoch.group(), Some(memory))
    }
}

fn of_policy(policy: &Policy, (epoch, step): (&Epoch, StepIndex), trainer_state_json: &str) -> Checkpoint {
    let weights = policy.model.weights();
    Checkpoint {
        config: weights.config().clone(),
        layout: weights.layout().clone(),
        dtype: weights.dtype(),
        model_dir: policy.model_dir.clone(),
        trainer_state_json: trainer_state_json.to_owned(),
        about: json!({
            "run": policy.run.0,
            "step": step.0,
            "policy_version": policy.version.0,
            "ranks": epoch.plan.world_size,
        }),
    }
}
