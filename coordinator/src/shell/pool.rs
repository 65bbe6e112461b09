//! Work besides the machine's: judging answers and shaping groups, a bounded number at a time.
//!
//! In: accepted rollouts and complete groups. Out: [`Input`]s with judgements and outcomes. While a reward
//! service is down its rollouts wait here, and the shell hears [`Input::Outages`].

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use g2rl_common::algorithm::{self, Algorithm};
use g2rl_common::ids::{GroupId, StepIndex};
use g2rl_common::rollout::Rollout;
use tokio::sync::{Semaphore, mpsc, watch};

use super::store::Kept;
use super::{Input, RunInputs};
use crate::dataset::Problem;
use crate::reward::{Case, Judge, Outages};
use crate::shaping::{self, RewardScale};
use crate::state::ProblemRef;

/// Judges and shapes.
pub(super) struct Pool {
    judge: Arc<Judge>,
    algorithm: Arc<dyn Algorithm>,
    scale: RewardScale,
    /// Rollouts that are not judged yet.
    waiting: Arc<AtomicUsize>,
    permits: Arc<Semaphore>,
    inputs: mpsc::Sender<Input>,
}

impl Pool {
    pub(super) fn new(run: &RunInputs, judge: Judge, inputs: mpsc::Sender<Input>) -> Self {
        tokio::spawn(report_outages(judge.outages(), inputs.clone()));
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        Self {
            judge: Arc::new(judge),
            algorithm: algorithm::build(&run.config.algorithm).into(),
            scale: RewardScale { correct: run.config.reward.correct, wrong: run.config.reward.wrong },
            waiting: Arc::default(),
            permits: Arc::new(Semaphore::new(cores)),
            inputs,
        }
    }

    /// Judges a rollout's answer.
    pub(super) fn verify(&self, rollout: &Rollout, problem: &Problem) {
        let (judge, waiting, inputs) = (self.judge.clone(), self.waiting.clone(), self.inputs.clone());
        let id = rollout.id;
        let case = Arc::new(Case {
            id: id.to_string(),
            prompt: problem.problem.clone(),
            response: rollout.text.clone(),
            answer: problem.answer.clone(),
        });
        waiting.fetch_add(1, Ordering::Relaxed);
        tokio::spawn(async move {
            let input = match judge.judge(&case).await {
                Ok(judgement) => Input::Verified { rollout: id, judgement },
                Err(error) => Input::NotJudged(error.to_string()),
            };
            waiting.fetch_sub(1, Ordering::Relaxed);
            // Nobody listens only when the run is already over.
            let _ = inputs.send(input).await;
        });
    }

    /// Rollouts that are not judged yet.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
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

/// Tells the shell when reward services go and come, until the run is over.
async fn report_outages(mut outages: watch::Receiver<Outages>, inputs: mpsc::Sender<Input>) {
    while outages.changed().await.is_ok() {
        let now = outages.borrow_and_update().clone();
        if inputs.send(Input::Outages(now)).await.is_err() {
            return;
        }
    }
}
