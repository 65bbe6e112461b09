//! Local workers that outlived the coordinator that started them.
//!
//! In: the file that names a worker's process. Out: the process, if it is still the same one and can be taken over.
//! A worker without a coordinator looks for one for its connect timeout and ends, so what is not taken over is gone
//! after that, or is killed here: a process that is stopped, or that looks elsewhere.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

/// Between two looks at a process that is not a child.
const POLL: Duration = Duration::from_millis(100);

/// A worker's process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Leftover {
    pid: i32,
    /// When it started, in the kernel's ticks: another process may have its number.
    started: u64,
    /// Where it looks for its coordinator.
    url: String,
}

/// What the kernel says of a process: its state, and when it started.
fn stat(pid: i32) -> Option<(char, u64)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything; the state is the first field after it, the start the 20th.
    let mut fields = text.rsplit_once(") ")?.1.split(' ');
    Some((fields.next()?.chars().next()?, fields.nth(18)?.parse().ok()?))
}

/// The file that names a worker's process.
pub(crate) fn file(logs: &Path, index: u32) -> PathBuf {
    logs.join(format!("worker-{index}.pid"))
}

/// The processes that files in a directory name.
fn all(logs: &Path) -> Vec<(PathBuf, Leftover)> {
    let Ok(entries) = std::fs::read_dir(logs) else { return Vec::new() };
    let paths = entries.flatten().map(|entry| entry.path());
    let named = paths.filter(|path| path.extension().is_some_and(|extension| extension == "pid"));
    named.filter_map(|path| Some((path.clone(), Leftover::read(&path)?))).collect()
}

/// Ends every worker that an earlier coordinator left behind, but for those that `keep` wants.
pub(crate) fn end_all(logs: &Path, keep: impl Fn(&Path, &Leftover) -> bool) {
    for (path, leftover) in all(logs) {
        if !keep(&path, &leftover) {
            if leftover.lives() {
                tracing::warn!(pid = leftover.pid, "a worker of an earlier coordinator is killed");
                leftover.kill();
            }
            // What stays is overwritten by the next worker.
            let _ = std::fs::remove_file(path);
        }
    }
}

impl Leftover {
    /// A process that was just started.
    pub(crate) fn of(pid: u32, url: &str) -> Option<Self> {
        let pid = i32::try_from(pid).ok()?;
        Some(Self { pid, started: stat(pid)?.1, url: url.to_owned() })
    }

    pub(crate) fn read(path: &Path) -> Option<Self> {
        serde_json::from_str(&std::fs::read_to_string(path).ok()?).ok()
    }

    pub(crate) fn write(&self, path: &Path) -> std::io::Result<()> {
        std::fs::write(path, serde_json::to_string(self)?)
    }

    fn state(&self) -> Option<char> {
        stat(self.pid).filter(|(_, started)| *started == self.started).map(|(state, _)| state)
    }

    /// It is still that process, and has not ended.
    pub(crate) fn lives(&self) -> bool {
        self.state().is_some_and(|state| !matches!(state, 'Z' | 'X'))
    }

    /// It will find a coordinator at this address by itself.
    pub(crate) fn looks_for(&self, url: &str) -> bool {
        self.url == url && self.lives() && self.state() != Some('T')
    }

    pub(crate) fn kill(&self) {
        if let Some(pid) = Pid::from_raw(self.pid).filter(|_| self.lives()) {
            // It may have ended in this moment.
            let _ = kill_process(pid, Signal::KILL);
        }
    }

    /// Returns when it has ended.
    pub(crate) async fn wait(&self) {
        while self.lives() {
            tokio::time::sleep(POLL).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use super::*;

    fn sleeper() -> Child {
        Command::new("sleep").arg("600").spawn().unwrap()
    }

    #[tokio::test]
    async fn a_process_is_told_from_another_with_its_number() {
        let dir = tempfile::tempdir().unwrap();
        let mut child = sleeper();
        let leftover = Leftover::of(child.id(), "http://here:1").unwrap();
        leftover.write(&file(dir.path(), 0)).unwrap();
        assert_eq!(Leftover::read(&file(dir.path(), 0)), Some(leftover.clone()));
        assert!(leftover.looks_for("http://here:1") && !leftover.looks_for("http://there:1"));
        let reborn = Leftover { started: leftover.started + 1, ..leftover.clone() };
        assert!(!reborn.lives());
        reborn.kill();
        assert!(leftover.lives());
        leftover.kill();
        leftover.wait().await;
        child.wait().unwrap();
        assert!(!leftover.lives());
    }

    #[tokio::test]
    async fn what_is_not_kept_is_ended() {
        let dir = tempfile::tempdir().unwrap();
        let mut children = [sleeper(), sleeper(), sleeper()];
        for (index, child) in (0..).zip(&children) {
            let url = if index == 1 { "http://elsewhere:1" } else { "http://here:1" };
            Leftover::of(child.id(), url).unwrap().write(&file(dir.path(), index)).unwrap();
        }
        let stopped = Pid::from_raw(children[2].id() as i32).unwrap();
        kill_process(stopped, Signal::STOP).unwrap();
        while stat(children[2].id() as i32).unwrap().0 != 'T' {
            std::thread::yield_now();
        }
        end_all(dir.path(), |_, leftover| leftover.looks_for("http://here:1"));
        assert!(!children[1].wait().unwrap().success() && !children[2].wait().unwrap().success());
        assert!(children[0].try_wait().unwrap().is_none() && file(dir.path(), 0).exists());
        assert!(!file(dir.path(), 1).exists());
        end_all(dir.path(), |_, _| false);
        assert!(!children[0].wait().unwrap().success());
    }
}
