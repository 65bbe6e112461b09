//! Work for the CPU pool: judging answers and shaping groups, a bounded number at a time.

use std::sync::Arc;
use std::time::Duration;

use g2rl_common::algorithm::{self, Algorithm};
use g2rl_common::ids::{GroupId, StepIndex};
use g2rl_common::rollout::Rollout;
use tokio::sync::{Semaphore, mpsc};

use super::store::Kept;
use super::{Input, RunInputs};
use crate::reward::{self, Reward, Verdict};
use crate::shaping::{self, RewardScale};
use crate::state::ProblemRef;

/// Judges and shapes.
pub(super) struct Pool {
    reward: Arc<dyn Reward>,
    algorithm: Arc<dyn Algorithm>,
    scale: RewardScale,
    timeout: Duration,
    permits: Arc<Semaphore>,
    inputs: mpsc::Sender<Input>,
}

impl Pool {
    pub(super) fn new(run: &RunInputs, inputs: mpsc::Sender<Input>) -> Self {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        Self {
            reward: reward::build(&run.config.reward).into(),
            algorithm: algorithm::build(&run.config.algorithm).into(),
            scale: RewardScale { correct: run.config.reward.correct, wrong: run.config.reward.wrong },
            timeout: Duration::from_millis(run.config.reward.timeout_ms),
            permits: Arc::new(Semaphore::new(cores)),
            inputs,
        }
    }

    /// Judges a rollout's answer. One that takes too long counts as wrong, and its thread is left
    /// to end by itself.
    pub(super) fn verify(&self, rollout: Arc<Rollout>, gold: String) {
        let (reward, permits, inputs, timeout) =
            (self.reward.clone(), self.permits.clone(), self.inputs.clone(), self.timeout);
        tokio::spawn(async move {
            let id = rollout.id;
            // The semaphore is never closed.
            let Ok(_permit) = permits.acquire_owned().await else { return };
            let judged = tokio::task::spawn_blocking(move || reward.verify(&gold, &rollout.text));
            let input = match tokio::time::timeout(timeout, judged).await {
                Ok(Ok(verdict)) => Input::Verified { rollout: id, verdict },
                Ok(Err(panic)) => Input::Failed(format!("the verifier failed on rollout {id}: {panic}")),
                Err(_) => {
                    let reason = format!("not verified within {timeout:?}");
                    let verdict = Verdict { correct: false, extracted: None, canonical: None, reason };
                    Input::Verified { rollout: id, verdict }
                }
            };
            // Nobody listens only when the run is already over.
            let _ = inputs.send(input).await;
        });
    }

    /// Computes a group's geometry and advantages.
    pub(super) fn shape(&self, group: GroupId, step: StepIndex, problem: ProblemRef, rollouts: Vec<Kept>) {
        let (algorithm, permits, inputs, scale) =
            (self.algorithm.clone(), self.permits.clone(), self.inputs.clone(), self.scale);
        tokio::spawn(async move {
            let Ok(_permit) = permits.acquire_owned().await else { return };
            let shape = move || shaping::shape(&*algorithm, scale, (group, step, problem), &rollouts);
            let input = match tokio::task::spawn_blocking(shape).await {
                Ok(Ok(outcome)) => Input::Shaped(Box::new(outcome)),
                Ok(Err(error)) => Input::Failed(format!("group {group} of problem {problem}: {error}")),
                Err(panic) => Input::Failed(format!("shaping of group {group} failed: {panic}")),
            };
            let _ = inputs.send(input).await;
        });
    }
}
