//! Who works in a run's directory: at most one coordinator, and who only looks keeps nobody out.

use std::fs::{File, TryLockError};
use std::path::Path;

use anyhow::{Context, bail};

/// Locked by the coordinator that works here. Nobody else touches it.
const LOCK: &str = "lock";
/// Locked by the holder of [`LOCK`] too, and for a moment by whoever asks [`is_held`].
const ALIVE: &str = "alive";

/// Keeps other coordinators out of a run's directory while it lives; the end of the process ends it too.
#[derive(Debug)]
pub(crate) struct RunLock {
    _lock: File,
    _alive: File,
}

impl RunLock {
    /// Takes the lock of an existing directory.
    ///
    /// # Errors
    /// If another coordinator holds it, or a file cannot be written or locked.
    pub(crate) fn take(dir: &Path) -> anyhow::Result<Self> {
        let create = |name: &str| {
            let path = dir.join(name);
            File::create(&path).with_context(|| format!("cannot write {}", path.display()))
        };
        let (lock, alive) = (create(LOCK)?, create(ALIVE)?);
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => bail!("another coordinator works in {}", dir.display()),
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("cannot lock {}", dir.join(LOCK).display()));
            }
        }
        // Only looks can hold it, and none of them stays.
        alive.lock().with_context(|| format!("cannot lock {}", dir.join(ALIVE).display()))?;
        Ok(Self { _lock: lock, _alive: alive })
    }
}

/// Whether a coordinator works in the directory.
pub(crate) fn is_held(dir: &Path) -> bool {
    let Ok(file) = File::open(dir.join(ALIVE)) else { return false };
    matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends at the first thing that is not as expected")]

    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn one_holds_it_and_all_see_it() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!is_held(dir.path()));
        let held = RunLock::take(dir.path()).unwrap();
        assert!(is_held(dir.path()));
        let refused = RunLock::take(dir.path()).unwrap_err().to_string();
        assert!(refused.contains("another coordinator works in"), "{refused}");
        drop(held);
        assert!(!is_held(dir.path()));
        RunLock::take(dir.path()).unwrap();
    }

    /// A look that is just being taken delays a coordinator and does not refuse it.
    #[test]
    fn a_look_refuses_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let look = File::create(dir.path().join(ALIVE)).unwrap();
        look.try_lock_shared().unwrap();
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let taken = scope.spawn(|| {
                let held = RunLock::take(dir.path());
                assert!(over.load(Ordering::SeqCst), "it did not wait for the look");
                held
            });
            // It is under way once its file is there.
            while !dir.path().join(LOCK).exists() {
                std::thread::yield_now();
            }
            over.store(true, Ordering::SeqCst);
            drop(look);
            taken.join().unwrap().unwrap();
        });
    }
}
