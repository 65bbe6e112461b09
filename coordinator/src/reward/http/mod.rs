//! A service of the user's that scores responses.
//!
//! In: cases, one at a time. Out: their judgements. Between: cases are gathered into requests, a bounded
//! number of which are under way. A failed request is tried again with growing pauses; after too many
//! failures the service counts as down (`breaker`), which is reported as an outage, and every case waits
//! until it is back. A failure never becomes a score.

mod breaker;
mod client;
#[cfg(test)]
mod tests;

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use g2rl_common::config::HttpRewardConfig;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};

use self::breaker::{Admission, Breaker};
use self::client::ServiceClient;
use super::{Case, Judgement, Outages, RewardError, Verdict};
use crate::endpoint::Failure;

/// Batches that wait for a place among the requests under way; further cases wait with whoever sends
/// them.
const WAITING_BATCHES: usize = 4;

/// A case and who waits for it.
struct Item {
    case: Arc<Case>,
    judged: oneshot::Sender<Result<Judgement, RewardError>>,
}

/// See the module's documentation.
#[derive(Debug, Clone)]
pub struct HttpReward {
    items: mpsc::Sender<Item>,
    url: String,
}

struct Service {
    config: HttpRewardConfig,
    client: ServiceClient,
    breaker: Mutex<Breaker>,
    /// The breaker has changed.
    changed: Notify,
    outages: Arc<watch::Sender<Outages>>,
}

impl HttpReward {
    /// Starts the task that gathers requests; it ends with the last clone of the reward. `key` is the
    /// configuration key of the part, for errors; `outages` hears when the service goes and comes.
    ///
    /// # Errors
    /// [`RewardError::Configuration`] if address or authorization cannot be used.
    pub fn start(
        config: &HttpRewardConfig,
        key: &str,
        outages: Arc<watch::Sender<Outages>>,
    ) -> Result<Self, RewardError> {
        let client = ServiceClient::new(config, key)?;
        let probe_every = Duration::from_millis(config.probe_ms);
        let service = Arc::new(Service {
            client,
            breaker: Mutex::new(Breaker::new(config.breaker_failures, probe_every)),
            changed: Notify::new(),
            outages,
            config: config.clone(),
        });
        let (items, waiting) = mpsc::channel(WAITING_BATCHES * config.batch_size as usize);
        tokio::spawn(gather(service, waiting));
        Ok(Self { items, url: config.url.clone() })
    }

    /// Judges a case; waits while the service is down.
    ///
    /// # Errors
    /// If the service refuses the request, or is down for longer than `give_up_after_s`.
    pub async fn judge(&self, case: &Arc<Case>) -> Result<Judgement, RewardError> {
        let (judged, judgement) = oneshot::channel();
        let item = Item { case: case.clone(), judged };
        // Both ends live until their work is done, unless the runtime is being shut down.
        let gone = || RewardError::Refused { url: self.url.clone(), cause: "shutting down".to_owned() };
        self.items.send(item).await.map_err(|_| gone())?;
        judgement.await.map_err(|_| gone())?
    }
}

/// Makes requests of the cases that wait.
async fn gather(service: Arc<Service>, mut items: mpsc::Receiver<Item>) {
    let (size, linger) =
        (service.config.batch_size as usize, Duration::from_millis(service.config.linger_ms));
    let requests = Arc::new(Semaphore::new(service.config.concurrency as usize));
    while let Some(first) = items.recv().await {
        // A place first: what arrives while it is waited for joins the batch. The semaphore is never
        // closed.
        let Ok(place) = requests.clone().acquire_owned().await else { return };
        let mut batch = vec![first];
        let full = async {
            while batch.len() < size {
                match items.recv().await {
                    Some(item) => batch.push(item),
                    None => return,
                }
            }
        };
        // A batch that is not full after the time goes as it is.
        let _ = tokio::time::timeout(linger, full).await;
        tokio::spawn(deliver(service.clone(), batch, place));
    }
}

/// Asks until there is an answer, then hands it out.
async fn deliver(service: Arc<Service>, batch: Vec<Item>, _place: OwnedSemaphorePermit) {
    let cases: Vec<&Case> = batch.iter().map(|item| &*item.case).collect();
    let scores = service.ask(&cases).await;
    for (at, item) in batch.into_iter().enumerate() {
        let result = match &scores {
            Ok(scores) => Ok(judgement(scores[at], service.config.correct_from)),
            Err(ended) => Err(ended.error(&service.config.url)),
        };
        // Nobody listens when the run is over.
        let _ = item.judged.send(result);
    }
}

fn judgement(score: f64, correct_from: f64) -> Judgement {
    let verdict = Verdict::plain(score >= correct_from, format!("the service's score is {score:.3} of 1"));
    Judgement { verdict, score, timed_out: false }
}

/// Why a request is not tried again.
#[derive(Debug)]
enum Ended {
    Refused(String),
    GaveUp { seconds: u64, cause: String },
}

impl Ended {
    fn error(&self, url: &str) -> RewardError {
        let url = url.to_owned();
        match self {
            Self::Refused(cause) => RewardError::Refused { url, cause: cause.clone() },
            Self::GaveUp { seconds, cause } => {
                RewardError::GaveUp { url, seconds: *seconds, cause: cause.clone() }
            }
        }
    }
}

impl Service {
    async fn ask(&self, cases: &[&Case]) -> Result<Vec<f64>, Ended> {
        let mut failing_since = None;
        let mut attempts = 0;
        loop {
            self.admission().await;
            let asked = Instant::now();
            let cause = match self.client.score(cases).await {
                Ok(scores) => {
                    self.succeeded();
                    return Ok(scores);
                }
                Err(Failure::Refused(cause)) => {
                    // It answers, so that others need not wait for it.
                    self.succeeded();
                    return Err(Ended::Refused(cause));
                }
                Err(Failure::Unavailable(cause)) => cause,
            };
            attempts += 1;
            let down = self.failed(&cause, attempts > self.config.retries);
            let since = *failing_since.get_or_insert(asked);
            let seconds = since.min(down.unwrap_or(since)).elapsed().as_secs_f64();
            let limit = self.config.give_up_after_s;
            if limit > 0 && seconds >= limit as f64 {
                return Err(Ended::GaveUp { seconds: seconds as u64, cause });
            }
            match down {
                // After the outage it has all its attempts again.
                Some(_) => attempts = 0,
                None => tokio::time::sleep(self.pause(attempts)).await,
            }
        }
    }

    /// Waits until a request may go out.
    async fn admission(&self) {
        loop {
            // Before the look: a change after it is not missed.
            let changed = self.changed.notified();
            let admission = self.breaker().admit(Instant::now());
            match admission {
                Admission::Go => return,
                Admission::AfterProbe => changed.await,
                Admission::NotBefore(at) => {
                    tokio::select! {
                        () = changed => {}
                        () = tokio::time::sleep_until(at.into()) => {}
                    }
                }
            }
        }
    }

    fn breaker(&self) -> std::sync::MutexGuard<'_, Breaker> {
        // Its methods do not panic half way.
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn succeeded(&self) {
        let down_since = self.breaker().succeeded();
        if let Some(since) = down_since {
            let seconds = since.elapsed().as_secs();
            tracing::info!("reward service {} answers again after {seconds} s; going on", self.config.url);
            self.outages.send_modify(|outages| {
                outages.0.remove(&self.config.url);
            });
            self.changed.notify_waiters();
        }
    }

    /// Notes a failure; returns since when the service is down if it is.
    fn failed(&self, cause: &str, last_attempt: bool) -> Option<Instant> {
        let down_since = {
            let mut breaker = self.breaker();
            breaker.failed(Instant::now(), last_attempt).then(|| breaker.down_since()).flatten()
        };
        let url = &self.config.url;
        if down_since.is_some() {
            let seconds = self.config.probe_ms as f64 / 1e3;
            tracing::warn!("paused: reward service {url} failed: {cause}; next attempt in {seconds} s");
            self.outages.send_modify(|outages| {
                outages.0.insert(url.clone(), cause.to_owned());
            });
            self.changed.notify_waiters();
        } else {
            tracing::debug!("reward service {url} failed: {cause}; trying again");
        }
        down_since
    }

    /// The pause after so many failed attempts: doubled each time, then between half and all of it by
    /// chance, so that requests that failed together do not come back together.
    fn pause(&self, attempts: u32) -> Duration {
        let doubled = self.config.backoff_ms.saturating_mul(1 << (attempts - 1).min(20));
        let longest = doubled.min(self.config.max_backoff_ms);
        let random = RandomState::new().build_hasher().finish();
        Duration::from_millis(longest / 2 + random % (longest / 2 + 1))
    }
}
