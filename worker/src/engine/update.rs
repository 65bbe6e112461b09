//! The engine's part of a mini-batch: gradients, and the optimizer step once every rank has them.

use g2rl_common::ids::{MinibatchIndex, StepIndex};
use g2rl_common::update::TrainSequence;
use g2rl_proto::{Phase, WorkerEvent};

use super::{Engine, EngineError};
use crate::failpoint;
use crate::update::{GradientReport, UpdateError};

impl Engine {
    /// Computes the gradients of this rank's part of a mini-batch, and says that they are summed over all ranks.
    pub(super) fn compute(
        &mut self,
        (step, minibatch): (StepIndex, MinibatchIndex),
        learning_rate: f64,
        sequences: &[TrainSequence],
    ) -> Result<(), EngineError> {
        self.status.set_phase(Phase::Update);
        self.status.set_step(step);
        let epoch =
            self.epoch.take().ok_or_else(|| EngineError::Protocol("a mini-batch outside an epoch".into()))?;
        let policy = self.policy()?;
        if !policy.rollouts.is_idle() {
            return Err(EngineError::Protocol("a mini-batch while rollouts run".into()));
        }
        failpoint::reach("gradients");
        let result = policy.updater.compute(&policy.model, sequences, epoch.group());
        policy.learning_rate = learning_rate;
        let number = epoch.plan.epoch;
        self.epoch = Some(epoch);
        match result {
            Ok(report) => {
                // Gradients that are not finite are reported like others; no rank is told to apply them.
                self.pending = report.is_finite().then_some((number, step, minibatch));
                let GradientReport { stats, gradient_norm, not_finite } = report;
                self.status.set_phase(Phase::WaitingForApply);
                failpoint::reach("ready");
                self.send(WorkerEvent::GradientsReady {
                    epoch: number,
                    step,
                    minibatch,
                    stats,
                    gradient_norm,
                    not_finite,
                });
                failpoint::reach("after_ready");
                Ok(())
            }
            // A peer is gone or silent: the epoch is over, this process is not.
            Err(UpdateError::Ffi(error)) => {
                self.leave_epoch();
                self.send(WorkerEvent::EpochFailed { epoch: number, error: error.to_string() });
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Does the optimizer step.
    pub(super) fn apply(&mut self, step: StepIndex, minibatch: MinibatchIndex) -> Result<(), EngineError> {
        self.status.set_phase(Phase::Apply);
        let Some(epoch) = self.epoch.take() else { return Ok(()) };
        if self.pending.take() != Some((epoch.plan.epoch, step, minibatch)) {
            let what = format!("step {step}, mini-batch {minibatch}");
            return Err(EngineError::Protocol(format!("told to apply {what}, whose gradients are not here")));
        }
        failpoint::reach("apply");
        let policy = self.policy()?;
        let learning_rate = policy.learning_rate;
        policy.updater.apply(policy.model.weights_mut(), learning_rate, epoch.group())?;
        policy.version = policy.version.next();
        let event = WorkerEvent::MinibatchApplied {
            epoch: epoch.plan.epoch,
            step,
            minibatch,
            policy_version: policy.version,
            weights_digest: policy.model.weights().digest(),
        };
        let held = (policy.run.clone(), policy.version);
        self.epoch = Some(epoch);
        self.status.set_held(&held.0, held.1);
        failpoint::reach("after_apply");
        self.send(event);
        Ok(())
    }
}
