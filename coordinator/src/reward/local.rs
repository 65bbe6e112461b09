//! Rewards on this machine: threads of their own, a bounded number at work, each case under a deadline.
//!
//! A thread cannot be ended from outside. One that takes too long is left behind: its case counts as
//! wrong, its place goes to the next case and another thread, and only itself is lost until it ends.
//! When too many are left behind, the machine's cores are theirs, and the run ends and says so.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{Semaphore, oneshot};

use super::{Case, Deadline, Judgement, Reward, RewardError, Verdict};

/// Threads left behind, at most.
const MOST_LEFT_BEHIND: usize = 64;

/// A case to judge.
struct Job {
    reward: Arc<dyn Reward>,
    case: Arc<Case>,
    deadline: Deadline,
    /// Gets nothing if the reward panics.
    done: oneshot::Sender<Option<Judgement>>,
    /// The thread's own letter box, to be found again.
    thread: mpsc::Sender<Job>,
}

/// What the threads share with the pool. They hold it weakly: it ends with the pool, and then they do.
#[derive(Debug)]
struct Threads {
    slots: usize,
    /// Threads at work: at most `slots` of them are waited for.
    working: AtomicUsize,
    /// Threads that wait for work, at most `slots`.
    idle: Mutex<Vec<mpsc::Sender<Job>>>,
}

impl Threads {
    fn idle(&self) -> MutexGuard<'_, Vec<mpsc::Sender<Job>>> {
        // Whoever holds it only pushes or pops.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn left_behind(&self) -> usize {
        self.working.load(Ordering::Relaxed).saturating_sub(self.slots)
    }

    /// A thread for the next job: one that waits, or a new one.
    fn take(self: &Arc<Self>) -> std::io::Result<mpsc::Sender<Job>> {
        let waiting = self.idle().pop();
        if let Some(thread) = waiting {
            return Ok(thread);
        }
        let (jobs, inbox) = mpsc::channel();
        let threads = Arc::downgrade(self);
        std::thread::Builder::new().name("verify".to_owned()).spawn(move || work(&threads, &inbox))?;
        Ok(jobs)
    }

    /// A thread is done with its job; false if it is not needed any more.
    fn done(&self, thread: mpsc::Sender<Job>) -> bool {
        self.working.fetch_sub(1, Ordering::Relaxed);
        let mut idle = self.idle();
        let wanted = idle.len() < self.slots;
        if wanted {
            idle.push(thread);
        }
        wanted
    }
}

/// A thread's life.
fn work(threads: &Weak<Threads>, inbox: &mpsc::Receiver<Job>) {
    while let Ok(Job { reward, case, deadline, done, thread }) = inbox.recv() {
        let result = catch_unwind(AssertUnwindSafe(|| reward.judge(&case, &deadline)));
        let goes_on = threads.upgrade().is_some_and(|threads| threads.done(thread));
        // Nobody listens after the deadline.
        let _ = done.send(result.ok());
        if !goes_on {
            return;
        }
    }
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct LocalPool {
    permits: Semaphore,
    timeout: Duration,
    threads: Arc<Threads>,
}

impl LocalPool {
    pub(super) fn new(slots: usize, timeout: Duration) -> Self {
        let threads = Threads { slots, working: AtomicUsize::new(0), idle: Mutex::default() };
        Self { permits: Semaphore::new(slots), timeout, threads: Arc::new(threads) }
    }

    /// Judges a case; `timed_out` where that took too long.
    pub(super) async fn judge(
        &self,
        reward: &Arc<dyn Reward>,
        case: &Arc<Case>,
    ) -> Result<Judgement, RewardError> {
        // The semaphore is never closed.
        let _permit = self.permits.acquire().await;
        let count = self.threads.left_behind();
        if count > MOST_LEFT_BEHIND {
            return Err(RewardError::Stuck { count, case: case.id.clone() });
        }
        let no_thread = |source| RewardError::NoThread { case: case.id.clone(), source };
        let thread = self.threads.take().map_err(no_thread)?;
        let (done, judged) = oneshot::channel();
        let job = Job {
            reward: reward.clone(),
            case: case.clone(),
            deadline: Deadline::after(self.timeout),
            done,
            thread: thread.clone(),
        };
        self.threads.working.fetch_add(1, Ordering::Relaxed);
        // A thread that is there listens; if it did not, `judged` would hear nothing but its end.
        let _ = thread.send(job);
        match tokio::time::timeout(self.timeout, judged).await {
            Ok(Ok(Some(judgement))) => Ok(judgement),
            Ok(_) => Err(RewardError::Panicked { reward: reward.name(), case: case.id.clone() }),
            Err(_) => {
                let reason = format!("took too long: {} was not done in {:?}", reward.name(), self.timeout);
                Ok(Judgement { timed_out: true, ..Verdict::plain(false, reason).into() })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Condvar, Mutex};

    use super::*;

    /// Waits for the test on the answer "stuck", works to its deadline on "slow", panics on "panic".
    #[derive(Default)]
    struct Moody {
        free: Mutex<bool>,
        freed: Condvar,
    }

    impl Moody {
        fn set_free(&self) {
            *self.free.lock().unwrap() = true;
            self.freed.notify_all();
        }
    }

    impl Reward for Moody {
        fn name(&self) -> &'static str {
            "moody"
        }

        fn verify(&self, _gold: &str, _response: &str) -> Verdict {
            Verdict::plain(true, "well")
        }

        fn judge(&self, case: &Case, deadline: &Deadline) -> Judgement {
            match case.answer.as_str() {
                "stuck" => drop(self.freed.wait_while(self.free.lock().unwrap(), |free| !*free)),
                "slow" => {
                    while !deadline.has_passed() {
                        std::thread::yield_now();
                    }
                }
                "panic" => panic!("as asked"),
                _ => {}
            }
            self.verify(&case.answer, &case.response).into()
        }
    }

    fn case(answer: &str) -> Arc<Case> {
        let (id, prompt, response) = ("7.1".to_owned(), String::new(), String::new());
        Arc::new(Case { id, prompt, response, answer: answer.to_owned() })
    }

    /// Waits until all threads have ended.
    async fn ended(pool: &LocalPool) {
        let ended = async {
            while pool.threads.working.load(Ordering::Relaxed) > 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), ended).await.expect("the threads end");
    }

    #[tokio::test]
    async fn a_stuck_verification_is_given_up_alone() {
        let moody = Arc::new(Moody::default());
        let reward: Arc<dyn Reward> = moody.clone();
        // One place only: whoever waits for a stuck thread would wait for ever.
        let pool = LocalPool::new(1, Duration::from_millis(50));
        for _ in 0..5 {
            let judgement = pool.judge(&reward, &case("stuck")).await.unwrap();
            assert!(judgement.timed_out && !judgement.verdict.correct && judgement.score == 0.0);
            assert!(judgement.verdict.reason.starts_with("took too long"), "{}", judgement.verdict.reason);
        }
        assert_eq!(pool.threads.working.load(Ordering::Relaxed), 5);
        let other = LocalPool { timeout: Duration::from_secs(20), ..pool };
        let others = (0..100).map(|_| async { other.judge(&reward, &case("fine")).await.unwrap() });
        for judgement in futures::future::join_all(others).await {
            assert!(judgement.verdict.correct && !judgement.timed_out);
        }
        moody.set_free();
        ended(&other).await;
    }

    #[tokio::test]
    async fn a_reward_that_looks_at_its_deadline_ends() {
        let reward: Arc<dyn Reward> = Arc::new(Moody::default());
        let pool = LocalPool::new(2, Duration::from_millis(30));
        for _ in 0..3 {
            pool.judge(&reward, &case("slow")).await.unwrap();
        }
        ended(&pool).await;
    }

    #[tokio::test]
    async fn too_many_stuck_ones_end_the_run() {
        let moody = Arc::new(Moody::default());
        let reward: Arc<dyn Reward> = moody.clone();
        let pool = LocalPool::new(4, Duration::from_millis(5));
        let error = loop {
            if let Err(error) = pool.judge(&reward, &case("stuck")).await {
                break error;
            }
        };
        assert!(error.to_string().contains("65 verifications did not end"), "{error}");
        moody.set_free();
        ended(&pool).await;
    }

    #[tokio::test]
    async fn threads_are_used_again_and_end_with_the_pool() {
        let reward: Arc<dyn Reward> = Arc::new(Moody::default());
        let pool = LocalPool::new(2, Duration::from_secs(20));
        for _ in 0..50 {
            pool.judge(&reward, &case("fine")).await.unwrap();
        }
        assert_eq!(pool.threads.idle().len(), 1, "one after the other needs one thread");
        let threads = Arc::downgrade(&pool.threads);
        drop(pool);
        assert!(threads.upgrade().is_none());
    }

    #[tokio::test]
    async fn a_panic_is_an_error_that_names_the_rollout() {
        let reward: Arc<dyn Reward> = Arc::new(Moody::default());
        let pool = LocalPool::new(1, Duration::from_secs(20));
        let error = pool.judge(&reward, &case("panic")).await.unwrap_err();
        assert_eq!(error.to_string(), "the reward moody failed on rollout 7.1");
        assert!(pool.judge(&reward, &case("fine")).await.unwrap().verdict.correct);
    }
}
