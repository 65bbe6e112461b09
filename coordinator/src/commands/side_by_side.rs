//! Runs of an experiment side by side, each in a place of its own.
//!
//! In: jobs in the order they are begun, and how many at a time. Out: how they ended. Must not know: what a job is.

use std::cell::{Cell, RefCell};

use anyhow::ensure;
use futures::StreamExt;

use super::child::Ended;

/// What one run of several at a time has for itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// Devices of its workers; the CPU if empty.
    pub(super) devices: Vec<String>,
    /// Threads of each of its workers; `None` if nothing else runs, and it may take what it likes.
    pub(super) threads: Option<usize>,
}

impl Place {
    /// Shares devices and cores out to `parallel` runs of so many workers. If there are fewer devices than workers of all
    /// runs, runs share devices, as evenly as can be; workers of one run do not.
    ///
    /// # Errors
    /// If there are devices, but not one for each worker of a run.
    pub(super) fn share(
        parallel: usize,
        workers: usize,
        devices: &[String],
        cores: usize,
    ) -> anyhow::Result<Vec<Self>> {
        if parallel <= 1 {
            return Ok(vec![Self { devices: devices.to_vec(), threads: None }]);
        }
        ensure!(
            devices.is_empty() || devices.len() >= workers,
            "--parallel wants a device for each of a run's {workers} workers, and there are {} local_devices",
            devices.len()
        );
        let threads = Some((cores / (parallel * workers).max(1)).max(1));
        let mut shares = devices.chunks_exact(workers.max(1)).cycle();
        let place = |_| Self { devices: shares.next().unwrap_or_default().to_vec(), threads };
        Ok((0..parallel).map(place).collect())
    }
}

/// Runs all jobs, as many at a time as there are places. After one that failed or was interrupted no other is begun;
/// those that were begun before go on to their end.
///
/// # Errors
/// The first one of a job; later ones are logged.
pub(super) async fn run_all<'p, J>(
    places: &'p [Place],
    jobs: impl IntoIterator<Item = J>,
    run: impl AsyncFn(J, &'p Place) -> anyhow::Result<Ended>,
) -> anyhow::Result<Ended> {
    let free: RefCell<Vec<&Place>> = RefCell::new(places.iter().rev().collect());
    let interrupted = Cell::new(false);
    let failed = RefCell::new(None);
    let one = async |job| {
        if interrupted.get() || failed.borrow().is_some() {
            return;
        }
        let Some(place) = free.borrow_mut().pop() else {
            unreachable!("no more jobs at a time than places");
        };
        let ended = run(job, place).await;
        free.borrow_mut().push(place);
        match ended {
            Ok(Ended::Alone(_)) => {}
            Ok(Ended::Interrupted) => interrupted.set(true),
            Err(error) if failed.borrow().is_none() => *failed.borrow_mut() = Some(error),
            Err(error) => tracing::error!("{error:#}"),
        }
    };
    futures::stream::iter(jobs).map(one).buffer_unordered(places.len().max(1)).collect::<()>().await;
    match failed.into_inner() {
        Some(error) => Err(error),
        None if interrupted.get() => Ok(Ended::Interrupted),
        None => Ok(Ended::default()),
    }
}

#[cfg(test)]
mod tests {
    use std::process::ExitStatus;

    use super::*;

    fn names(devices: &[&str]) -> Vec<String> {
        devices.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn devices_and_cores_are_shared_out() {
        let all = names(&["cuda:0", "cuda:1", "cuda:2", "cuda:3"]);
        let alone = Place::share(1, 2, &all, 16).unwrap();
        assert_eq!(alone, [Place { devices: all.clone(), threads: None }]);
        let two = Place::share(2, 2, &all, 16).unwrap();
        let of = |devices: &[&str]| Place { devices: names(devices), threads: Some(4) };
        assert_eq!(two, [of(&["cuda:0", "cuda:1"]), of(&["cuda:2", "cuda:3"])]);
        let cpu = Place::share(3, 1, &[], 2).unwrap();
        assert_eq!(cpu, vec![Place { devices: Vec::new(), threads: Some(1) }; 3]);
        // Five runs of two workers on two pairs of devices.
        let five = Place::share(5, 2, &all, 16).unwrap();
        let first = |place: &Place| place.devices[0].clone();
        assert_eq!(
            five.iter().map(first).collect::<Vec<_>>(),
            ["cuda:0", "cuda:2", "cuda:0", "cuda:2", "cuda:0"]
        );
        let error = Place::share(3, 5, &all, 16).unwrap_err().to_string();
        assert!(error.contains("each of a run's 5 workers, and there are 4 local_devices"), "{error}");
    }

    #[tokio::test]
    async fn no_two_jobs_share_a_place_and_all_are_run() {
        let places = Place::share(3, 1, &names(&["a", "b", "c"]), 3).unwrap();
        let (busy, done) = (RefCell::new(Vec::new()), Cell::new(0));
        let most = Cell::new(0);
        let ended = run_all(&places, 0..20_u64, async |job, place| {
            let name = &place.devices[0];
            assert!(!busy.borrow().contains(name));
            busy.borrow_mut().push(name.clone());
            most.set(most.get().max(busy.borrow().len()));
            for _ in 0..job * 7 % 5 {
                tokio::task::yield_now().await;
            }
            busy.borrow_mut().retain(|other| other != name);
            done.set(done.get() + 1);
            Ok(Ended::default())
        });
        assert_eq!(ended.await.unwrap(), Ended::Alone(ExitStatus::default()));
        assert_eq!((done.get(), most.get()), (20, 3));
    }

    #[tokio::test]
    async fn after_a_failure_none_is_begun_and_others_end() {
        let places = Place::share(2, 1, &[], 2).unwrap();
        let begun = RefCell::new(Vec::new());
        let ended = Cell::new(0);
        let result = run_all(&places, 0..9, async |job, _| {
            begun.borrow_mut().push(job);
            if job == 3 {
                anyhow::bail!("job 3 failed");
            }
            for _ in 0..10 {
                tokio::task::yield_now().await;
            }
            ended.set(ended.get() + 1);
            Ok(Ended::default())
        });
        assert_eq!(result.await.unwrap_err().to_string(), "job 3 failed");
        assert_eq!(*begun.borrow(), [0, 1, 2, 3]);
        assert_eq!(ended.get(), 3);
    }

    #[tokio::test]
    async fn an_interrupt_is_told() {
        let places = Place::share(1, 1, &[], 2).unwrap();
        let begun = Cell::new(0);
        let result = run_all(&places, 0..9, async |job, _| {
            begun.set(job + 1);
            Ok(if job == 4 { Ended::Interrupted } else { Ended::default() })
        });
        assert_eq!(result.await.unwrap(), Ended::Interrupted);
        assert_eq!(begun.get(), 5);
    }
}
