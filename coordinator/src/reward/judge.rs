//! The judge of a run: one or more rewards, weighted.
//!
//! Score: the weighted mean of the parts' scores. Verdict: that of the first part that judges
//! correctness, which is any but `format`; with nothing but `format`, the first part's.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures::future::try_join_all;
use g2rl_common::config::{EvaluationConfig, RewardConfig, RewardKindName, RewardPart, RunConfig};
use tokio::sync::watch;

use super::http::HttpReward;
use super::local::LocalPool;
use super::{Case, Judgement, Reward, RewardError};

/// Services that are down, with the cause; empty while all is well.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outages(pub BTreeMap<String, String>);

impl fmt::Display for Outages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (url, cause)) in self.0.iter().enumerate() {
            let separator = if at == 0 { "" } else { "; " };
            write!(f, "{separator}reward service {url} failed: {cause}")?;
        }
        Ok(())
    }
}

/// Who judges a part.
enum PartJudge {
    Local(Arc<dyn Reward>),
    Remote(HttpReward),
}

struct Part {
    name: &'static str,
    weight: f64,
    judge: PartJudge,
}

/// See the module's documentation.
pub struct Judge {
    parts: Vec<Part>,
    /// The part whose verdict counts.
    decisive: usize,
    /// Shared with the other judges of the run: a machine has its cores once.
    pool: Arc<LocalPool>,
    outages: watch::Receiver<Outages>,
}

/// The judges of a run: that of `[reward]`, and those of held-out sets with a reward of their own.
#[derive(Debug)]
pub struct Judges {
    run: Judge,
    /// By the sets' order; `None` where `[reward]` judges.
    sets: Vec<Option<Judge>>,
}

impl Judges {
    /// All judges that a configuration names.
    ///
    /// # Errors
    /// [`RewardError::Configuration`], naming the key.
    pub fn build(config: &RunConfig) -> Result<Self, RewardError> {
        let (reports, outages) = watch::channel(Outages::default());
        let reports = Arc::new(reports);
        let run = Judge::with_reports(&config.reward, &reports, outages)?;
        let sets = config.evaluation.as_ref().map(EvaluationConfig::rewards).unwrap_or_default();
        let sets = sets.into_iter().map(|(key, reward)| match reward {
            Some(part) => {
                let (pool, outages) = (run.pool.clone(), run.outages.clone());
                Judge::of(&[(key, part.clone())], pool, &reports, outages).map(Some)
            }
            None => Ok(None),
        });
        let sets = sets.collect::<Result<Vec<_>, _>>()?;
        Ok(Self { run, sets })
    }

    /// The judge of a held-out set, or of the training problems.
    #[must_use]
    pub fn of_set(&self, set: Option<usize>) -> &Judge {
        set.and_then(|set| self.sets.get(set)?.as_ref()).unwrap_or(&self.run)
    }

    /// Services that are down, as that changes; those of all judges.
    #[must_use]
    pub fn outages(&self) -> watch::Receiver<Outages> {
        self.run.outages.clone()
    }
}

impl Judge {
    /// The judge that a configuration names. A service's requests run on the current tokio runtime.
    ///
    /// # Errors
    /// [`RewardError::Configuration`], naming the key.
    pub fn build(config: &RewardConfig) -> Result<Self, RewardError> {
        let (reports, outages) = watch::channel(Outages::default());
        Self::with_reports(config, &Arc::new(reports), outages)
    }

    fn with_reports(
        config: &RewardConfig,
        reports: &Arc<watch::Sender<Outages>>,
        outages: watch::Receiver<Outages>,
    ) -> Result<Self, RewardError> {
        let key = |at: usize| match config.kind {
            RewardKindName::Sum => format!("reward.parts.{at}"),
            _ => "reward".to_owned(),
        };
        let parts = config.parts().into_iter().enumerate();
        let parts: Vec<(String, RewardPart)> = parts.map(|(at, part)| (key(at), part)).collect();
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        let pool = Arc::new(LocalPool::new(cores, Duration::from_millis(config.timeout_ms)));
        Self::of(&parts, pool, reports, outages)
    }

    /// A judge of parts, each with its key.
    fn of(
        configured: &[(String, RewardPart)],
        pool: Arc<LocalPool>,
        reports: &Arc<watch::Sender<Outages>>,
        outages: watch::Receiver<Outages>,
    ) -> Result<Self, RewardError> {
        let mut parts = Vec::with_capacity(configured.len());
        for (key, part) in configured {
            let (name, judge) = match (super::local(part, key)?, &part.http) {
                (Some(reward), _) => (reward.name(), PartJudge::Local(reward.into())),
                (None, Some(http)) => {
                    ("http", PartJudge::Remote(HttpReward::start(http, key, reports.clone())?))
                }
                (None, None) => return Err(super::missing(key, "http")),
            };
            parts.push(Part { name, weight: part.weight, judge });
        }
        if parts.is_empty() {
            return Err(super::missing("reward", "parts"));
        }
        let decisive =
            configured.iter().position(|(_, part)| part.kind != RewardKindName::Format).unwrap_or(0);
        Ok(Self { parts, decisive, pool, outages })
    }

    /// Judges a case. While a service is down this waits.
    ///
    /// # Errors
    /// Whatever must not become a reward; the run cannot go on.
    pub async fn judge(&self, case: &Arc<Case>) -> Result<Judgement, RewardError> {
        let judgements = try_join_all(self.parts.iter().map(|part| async move {
            match &part.judge {
                PartJudge::Local(reward) => self.pool.judge(reward, case).await,
                PartJudge::Remote(service) => service.judge(case).await,
            }
        }))
        .await?;
        Ok(self.combine(judgements))
    }

    fn combine(&self, mut judgements: Vec<Judgement>) -> Judgement {
        if judgements.len() == 1 {
            return judgements.remove(0);
        }
        // The same sums in the same order: where all scores are 1, the quotient is exactly 1.
        let weights: f64 = self.parts.iter().map(|part| part.weight).sum();
        let worth: f64 = self.parts.iter().zip(&judgements).map(|(part, j)| part.weight * j.score).sum();
        let reasons: Vec<String> = self
            .parts
            .iter()
            .zip(&judgements)
            .map(|(part, judgement)| format!("{}: {}", part.name, judgement.verdict.reason))
            .collect();
        let timed_out = judgements.iter().any(|judgement| judgement.timed_out);
        let mut verdict = judgements.swap_remove(self.decisive).verdict;
        verdict.reason = reasons.join("; ");
        Judgement { verdict, score: worth / weights, timed_out }
    }
}

impl fmt::Debug for Judge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.parts.iter().map(|part| (part.name, part.weight))).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn build(text: &str) -> Judge {
        let whole = format!(
            "[run]\nname = 't'\ndir = 'd'\nsteps = 1\n[model]\npath = 'm'\n[data]\ntrain = 't'\n{text}"
        );
        Judge::build(&RunConfig::from_toml(&whole).unwrap().reward).unwrap()
    }

    async fn judge(judge: &Judge, answer: &str, response: &str) -> Judgement {
        let case = Case {
            id: "0".into(),
            prompt: String::new(),
            response: response.to_owned(),
            answer: answer.to_owned(),
        };
        judge.judge(&Arc::new(case)).await.unwrap()
    }

    #[tokio::test]
    async fn every_local_kind_is_built() {
        for (text, answer, right) in [
            ("", "7", "\\boxed{7}"),
            ("kind = 'math'\nlast_number = true", "7", "it is 7"),
            ("kind = 'countdown'", "4,7>28", "4*7"),
            ("kind = 'ladder'", "7>52", "7*7=49,49+3=52"),
            ("kind = 'exact'\nexact = { case_insensitive = true }", "Yes", "yes"),
            ("kind = 'choice'", "B", "The answer is (B)."),
            ("kind = 'regex'\nregex = { pattern = '=(.*)' }", "7", "=7"),
            ("kind = 'format'\nformat = { boxed = true }", "", "\\boxed{7}"),
        ] {
            let built = build(&format!("[reward]\n{text}"));
            let judgement = judge(&built, answer, right).await;
            assert!(judgement.verdict.correct && judgement.score == 1.0, "{text}: {judgement:?}");
            let judgement = judge(&built, answer, "nothing of it").await;
            assert!(!judgement.verdict.correct && judgement.score == 0.0, "{text}: {judgement:?}");
        }
    }

    #[tokio::test]
    async fn a_sum_weighs_scores_and_leaves_correctness_to_who_judges_it() {
        let sum = build(
            "[reward]\nkind = 'sum'\n[[reward.parts]]\nkind = 'format'\nweight = 1\n\
             format = { tags = ['think'], boxed = true }\n[[reward.parts]]\nkind = 'math'\nweight = 3",
        );
        // (1 * format + 3 * math) / 4
        for (response, score, correct) in [
            ("<think>hm</think>\\boxed{7}", 1.0, true),
            ("\\boxed{7}", 0.875, true),
            ("<think>hm</think>\\boxed{8}", 0.25, false),
            ("8", 0.0, false),
        ] {
            let judgement = judge(&sum, "7", response).await;
            assert_eq!((judgement.score, judgement.verdict.correct), (score, correct), "{response}");
        }
        let judgement = judge(&sum, "7", "\\boxed{7}").await;
        assert_eq!(judgement.verdict.extracted.as_deref(), Some("7"));
        let reason = judgement.verdict.reason;
        assert!(reason.starts_with("format: no <think>") && reason.contains("; math: equal"), "{reason}");
    }

    #[tokio::test]
    async fn a_held_out_set_has_its_own_judge_or_that_of_the_run() {
        let config = RunConfig::from_toml(
            "[run]\nname = 't'\ndir = 'd'\nsteps = 1\n[model]\npath = 'm'\n[data]\ntrain = 't'\n\
             [evaluation]\ndata = 'a'\n[[evaluation.more]]\nname = 'b'\ndata = 'b'\nreward = { kind = 'choice' }",
        );
        let judges = Judges::build(&config.unwrap()).unwrap();
        for (set, answer, correct) in
            [(None, "7", true), (Some(0), "7", true), (Some(1), "7", false), (Some(1), "B", true)]
        {
            let response = format!("\\boxed{{{answer}}}");
            assert_eq!(
                judge(judges.of_set(set), answer, &response).await.verdict.correct,
                correct,
                "{set:?}"
            );
        }
    }
}
