//! What the run thinks of its local workers: the shell says it, and who watches a worker's process hears it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use g2rl_common::ids::WorkerId;
use tokio::sync::watch;

/// What the run thinks of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Its process was started and has not been heard of.
    Awaited,
    /// It is connected.
    Connected,
    /// Its stream broke, or it was silent for too long; it may come back.
    Lost,
    /// The run goes on without it for good.
    Expelled,
}

/// How long a process may stand where it stands.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// Until it is heard of.
    pub(crate) awaited: Duration,
    /// Until it connects again.
    pub(crate) lost: Duration,
}

/// The standing of each local worker; other workers are of no interest.
#[derive(Debug, Clone, Default)]
pub(crate) struct Standings {
    local: Arc<BTreeMap<WorkerId, watch::Sender<Standing>>>,
}

impl Standings {
    pub(crate) fn of(workers: impl IntoIterator<Item = WorkerId>) -> Self {
        let awaited = |worker| (worker, watch::channel(Standing::Awaited).0);
        Self { local: Arc::new(workers.into_iter().map(awaited).collect()) }
    }

    /// Says what has become of a worker.
    pub(crate) fn set(&self, worker: &WorkerId, standing: Standing) {
        let Some(known) = self.local.get(worker) else { return };
        known.send_if_modified(|now| {
            // The end of a stream that nobody has heard of was that of the process before.
            let of_another = *now == Standing::Awaited && standing == Standing::Lost;
            let changes = *now != standing && !of_another;
            if changes {
                *now = standing;
            }
            changes
        });
    }

    /// Returns once the run goes on without the worker, or nothing was heard of it for too long.
    pub(crate) async fn given_up(&self, worker: &WorkerId, patience: Patience) {
        let Some(known) = self.local.get(worker) else { return std::future::pending().await };
        let mut standing = known.subscribe();
        loop {
            let now = *standing.borrow_and_update();
            let limit = match now {
                Standing::Expelled => return,
                Standing::Connected => None,
                Standing::Awaited => Some(patience.awaited),
                Standing::Lost => Some(patience.lost),
            };
            // The sender lives as long as `self`.
            let changed = standing.changed();
            let in_time = match limit {
                None => changed.await.is_ok(),
                Some(limit) => tokio::time::timeout(limit, changed).await.is_ok(),
            };
            if !in_time {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(20);
    const LONG: Duration = Duration::from_secs(60);
    const PATIENT: Patience = Patience { awaited: LONG, lost: LONG };

    /// Whether a worker is given up soon.
    async fn gives_up(standings: &Standings, worker: &WorkerId, patience: Patience) -> bool {
        tokio::time::timeout(5 * SHORT, standings.given_up(worker, patience)).await.is_ok()
    }

    #[tokio::test]
    async fn a_worker_is_given_up_when_expelled_or_not_heard_of_for_long() {
        let worker = WorkerId("local-0-cpu".into());
        let standings = Standings::of([worker.clone()]);
        assert!(gives_up(&standings, &worker, Patience { awaited: SHORT, ..PATIENT }).await);

        // The end of an earlier process's stream says nothing of this one.
        standings.set(&worker, Standing::Lost);
        assert!(!gives_up(&standings, &worker, Patience { lost: SHORT, ..PATIENT }).await);

        standings.set(&worker, Standing::Connected);
        assert!(!gives_up(&standings, &worker, Patience { awaited: SHORT, lost: SHORT }).await);
        standings.set(&worker, Standing::Lost);
        assert!(gives_up(&standings, &worker, Patience { lost: SHORT, ..PATIENT }).await);
        // It comes back in time.
        standings.set(&worker, Standing::Connected);
        assert!(!gives_up(&standings, &worker, Patience { awaited: SHORT, lost: SHORT }).await);
        standings.set(&worker, Standing::Expelled);
        assert!(gives_up(&standings, &worker, PATIENT).await);
    }

    #[tokio::test]
    async fn a_worker_of_another_machine_is_never_given_up() {
        let (local, other) = (WorkerId("local-0-cpu".into()), WorkerId("elsewhere-cpu".into()));
        let standings = Standings::of([local]);
        standings.set(&other, Standing::Expelled);
        assert!(!gives_up(&standings, &other, Patience { awaited: SHORT, lost: SHORT }).await);
    }
}
