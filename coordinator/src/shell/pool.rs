//! Work besides the machine's: judging answers and shaping groups, a bounded number at a time.
//!
//! In: accepted rollouts and complete groups. Out: [`Input`]s with judgements and outcomes. While a reward
//! service is down its rollouts wait here, and the shell hears [`Input::Outages`].

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use g2rl_common::rollout::Rollout;
use tokio::sync::{Semaphore, mpsc, watch};

use super::Input;
use super::store::Kept;
use crate::dataset::Problem;
use crate::reward::{Case, Judges, Outages};
use crate::shaping::{GroupOf, GroupOutcome, Shaper};

/// Judges and shapes.
pub(super) struct Pool {
    judges: Arc<Judges>,
    shaper: Arc<Shaper>,
    /// Rollouts that are not judged yet.
    waiting: Arc<AtomicUsize>,
    permits: Arc<Semaphore>,
    inputs: mpsc::Sender<Input>,
}

impl Pool {
    pub(super) fn new(judges: Judges, shaper: Shaper, inputs: mpsc::Sender<Input>) -> Self {
        tokio::spawn(report_outages(judges.outages(), inputs.clone()));
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        Self {
            judges: Arc::new(judges),
            shaper: Arc::new(shaper),
            waiting: Arc::default(),
            permits: Arc::new(Semaphore::new(cores)),
            inputs,
        }
    }

    /// Judges a rollout's answer to a training problem, or to one of a held-out set.
    pub(super) fn verify(&self, rollout: &Rollout, problem: &Problem, set: Option<usize>) {
        let (judges, waiting, inputs) = (self.judges.clone(), self.waiting.clone(), self.inputs.clone());
        let id = rollout.id;
        let case = Arc::new(Case {
            id: id.to_string(),
            prompt: problem.problem.clone(),
            response: rollout.text.clone(),
            answer: problem.answer.clone(),
        });
        waiting.fetch_add(1, Ordering::Relaxed);
        tokio::spawn(async move {
            let input = match judges.of_set(set).judge(&case).await {
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

    /// What [`Self::shape`] has found before a restart.
    pub(super) async fn shape_again(&self, of: GroupOf, rollouts: Vec<Kept>) -> anyhow::Result<GroupOutcome> {
        self.shaper.shape(of, rollouts).await
    }

    /// Computes a group's geometry and advantages.
    pub(super) fn shape(&self, of: GroupOf, rollouts: Vec<Kept>) {
        let (shaper, permits, inputs) = (self.shaper.clone(), self.permits.clone(), self.inputs.clone());
        tokio::spawn(async move {
            let Ok(_permit) = permits.acquire_owned().await else { return };
            let input = match shaper.shape(of, rollouts).await {
                Ok(outcome) => Input::Shaped(Box::new(outcome)),
                Err(error) => Input::Failed(format!("{error:#}")),
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use axum::Router;
    use axum::http::StatusCode;
    use axum::routing::post;
    use g2rl_common::config::RunConfig;
    use g2rl_common::ids::{GroupId, PolicyVersion, RolloutId};
    use g2rl_common::rollout::FinishReason;

    use super::*;

    fn rollout() -> Rollout {
        Rollout {
            id: RolloutId { group: GroupId(3), index: 1 },
            policy_version: PolicyVersion(0),
            prompt_tokens: vec![1],
            response_tokens: vec![2],
            behavior_logprobs: vec![-0.1],
            mean_entropy: 0.1,
            text: "42".to_owned(),
            finish_reason: FinishReason::EndToken,
            feature: None,
        }
    }

    /// Down until the coordinator is known to have noticed, then it wants the exact item.
    async fn score(repaired: Arc<AtomicUsize>, body: String) -> (StatusCode, &'static str) {
        if repaired.load(Ordering::SeqCst) == 0 {
            return (StatusCode::SERVICE_UNAVAILABLE, "loading");
        }
        let item = r#"{"items":[{"id":"3.1","prompt":"6*7?","response":"42","answer":"42"}]}"#;
        assert_eq!(body, item);
        (StatusCode::OK, "[0.75]")
    }

    #[tokio::test]
    async fn a_rollout_waits_for_a_service_that_is_down() {
        let repaired = Arc::new(AtomicUsize::new(0));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let text = format!(
            "[run]\nname = 't'\ndir = 'd'\nsteps = 1\n[model]\npath = 'm'\n[data]\ntrain = 't'\n\
             [reward]\nkind = 'http'\n[reward.http]\nurl = 'http://{}/'\nprobe_ms = 5\n\
             breaker_failures = 1\n",
            listener.local_addr().unwrap()
        );
        let state = repaired.clone();
        let router = Router::new().route("/", post(move |body: String| score(state, body)));
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        let config = RunConfig::from_toml(&text).unwrap();
        let (inputs, mut heard) = mpsc::channel(64);
        let pool = Pool::new(Judges::build(&config).unwrap(), Shaper::new(&config).unwrap(), inputs);
        let problem = Problem {
            id: "p".to_owned(),
            problem: "6*7?".to_owned(),
            answer: "42".to_owned(),
            solution: None,
        };
        pool.verify(&rollout(), &problem, None);
        let mut next = async || {
            tokio::time::timeout(Duration::from_secs(30), heard.recv()).await.expect("in time").unwrap()
        };
        match next().await {
            Input::Outages(outages) => assert!(outages.to_string().contains("503"), "{outages}"),
            other => panic!("{other:?}"),
        }
        assert_eq!(pool.waiting(), 1);
        repaired.store(1, Ordering::SeqCst);
        let (mut score, mut is_back) = (None, false);
        while score.is_none() || !is_back {
            match next().await {
                Input::Outages(outages) => is_back = outages.0.is_empty(),
                Input::Verified { rollout, judgement } => {
                    assert_eq!(rollout.to_string(), "3.1");
                    score = Some(judgement.score);
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!((score, pool.waiting()), (Some(0.75), 0));
    }
}
