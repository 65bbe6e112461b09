//! A repository's files, between hub and cache.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hf_hub::api::Progress;
use hf_hub::api::sync::{ApiBuilder, ApiError};
use hf_hub::{Cache, RepoType};
use indicatif::ProgressBar;

use crate::{HubError, HubOptions, Reference, checksum, is_inside, patience, repo};

/// Times a broken download is resumed before it is given up.
const RETRIES: usize = 5;

/// A hub from which nothing comes for so long cannot be reached.
const PATIENCE: Duration = Duration::from_secs(120);

/// Deepest folders of a repository.
const MAX_DEPTH: usize = 12;

/// What the hub says of a repository.
#[derive(Debug)]
pub(crate) struct Repository {
    reference: String,
    /// The commit that the revision names now. All files are taken from it.
    pub commit: String,
    /// Names of its files.
    pub files: Vec<String>,
}

impl Repository {
    pub(crate) fn lacks(&self, what: &'static str) -> HubError {
        let first: Vec<&str> = self.files.iter().take(12).map(String::as_str).collect();
        HubError::Lacks { reference: self.reference.clone(), what, files: first.join(", ") }
    }
}

/// One repository's way into the cache.
#[derive(Debug)]
pub(crate) struct Transfer<'a> {
    reference: &'a Reference,
    kind: RepoType,
    options: &'a HubOptions,
}

impl<'a> Transfer<'a> {
    pub(crate) fn new(reference: &'a Reference, kind: RepoType, options: &'a HubOptions) -> Self {
        Self { reference, kind, options }
    }

    /// The cached directory of the revision, whatever it holds.
    pub(crate) fn cached(&self) -> Option<PathBuf> {
        let cache = Cache::new(self.options.cache.clone());
        let folder = self.options.cache.join(repo(self.reference, self.kind, "main").folder_name());
        let named = std::fs::read_to_string(folder.join("refs").join(&self.reference.revision));
        // A revision that is no name is a commit.
        let commit = named.map_or_else(|_| self.reference.revision.clone(), |text| text.trim().to_owned());
        let dir = cache.repo(repo(self.reference, self.kind, &commit)).pointer_path(&commit);
        if !is_inside(&commit) {
            return None;
        }
        dir.is_dir().then_some(dir)
    }

    /// Waits until no other process downloads the repository. Where the cache's file system has no locks,
    /// downloads may meet; each file is still replaced as a whole.
    pub(crate) fn lock(&self) -> Option<std::fs::File> {
        let folder = self.options.cache.join(".g2rl-locks");
        std::fs::create_dir_all(&folder).ok()?;
        let file = folder.join(repo(self.reference, self.kind, "main").folder_name());
        let file = std::fs::File::create(file).ok()?;
        if file.try_lock().is_err() {
            tracing::info!("waiting for another process that downloads {}", self.reference);
            file.lock().ok()?;
        }
        Some(file)
    }

    /// Asks the hub for the revision's commit and files.
    pub(crate) fn list(&self) -> Result<Repository, HubError> {
        if self.options.offline {
            let (reference, cache) = (self.reference.to_string(), self.options.cache.clone());
            return Err(HubError::Offline { reference, cache });
        }
        let api = self.api()?;
        let api = api.repo(repo(self.reference, self.kind, &self.reference.revision));
        let info = patience::wait(PATIENCE, &Arc::default(), move || api.info());
        let info = info.ok_or_else(|| self.silent())?.map_err(|error| self.unreachable(&error))?;
        let files: Vec<String> = info.siblings.into_iter().map(|file| file.rfilename).collect();
        // All of them become paths in the cache.
        let is_commit = !info.sha.is_empty() && info.sha.bytes().all(|byte| byte.is_ascii_hexdigit());
        let bad = Some(&info.sha).filter(|_| !is_commit).or(files.iter().find(|name| !is_inside(name)));
        if let Some(name) = bad {
            let (reference, endpoint) = (self.reference.to_string(), self.options.endpoint.clone());
            return Err(HubError::BadName { reference, endpoint, name: name.clone() });
        }
        Ok(Repository { reference: self.reference.to_string(), commit: info.sha, files })
    }

    /// Brings files into the cache, checks them, and returns their directory.
    pub(crate) fn fetch(&self, repository: &Repository, files: &[&str]) -> Result<PathBuf, HubError> {
        let pinned = repo(self.reference, self.kind, &repository.commit);
        let cache = Cache::new(self.options.cache.clone()).repo(pinned.clone());
        let dir = cache.pointer_path(&repository.commit);
        let remembered = self.options.cache.join(".g2rl-checked");
        let api = Arc::new(self.api()?.repo(pinned));
        for (index, file) in files.iter().enumerate() {
            let pointer = dir.join(file);
            if !pointer.exists() {
                tracing::info!("downloading {} ({} of {}): {file}", self.reference, index + 1, files.len());
                let (moved, api, name) = (Arc::default(), Arc::clone(&api), (*file).to_owned());
                let bar = bar(Arc::clone(&moved));
                let path = patience::wait(PATIENCE, &moved, move || api.download_with_progress(&name, bar));
                path.ok_or_else(|| self.silent())?.map_err(|error| self.unreachable(&error))?;
            }
            checksum::check(&pointer, &remembered)?;
        }
        // From now on the name stands for this commit.
        let named = Cache::new(self.options.cache.clone()).repo(repo(
            self.reference,
            self.kind,
            &self.reference.revision,
        ));
        named.create_ref(&repository.commit).map_err(|cause| HubError::Io { path: dir.clone(), cause })?;
        Ok(dir)
    }

    fn api(&self) -> Result<hf_hub::api::sync::Api, HubError> {
        ApiBuilder::from_cache(Cache::new(self.options.cache.clone()))
            .with_endpoint(self.options.endpoint.clone())
            .with_token(self.options.token.clone())
            .with_retries(RETRIES)
            .build()
            .map_err(|error| self.unreachable(&error))
    }

    fn silent(&self) -> HubError {
        let (reference, endpoint) = (self.reference.to_string(), self.options.endpoint.clone());
        let cause = format!("nothing came for {PATIENCE:?}");
        HubError::Unreachable { reference, cache: self.options.cache.clone(), endpoint, cause }
    }

    fn unreachable(&self, error: &ApiError) -> HubError {
        let (reference, endpoint) = (self.reference.to_string(), self.options.endpoint.clone());
        let text = error.to_string();
        // The status is only in the text: "request error: http status: 404".
        let status = text.rsplit_once("http status: ").and_then(|(_, status)| status.trim().parse().ok());
        match status {
            Some(status @ 400..500) => HubError::Refused { reference, endpoint, status },
            _ => {
                HubError::Unreachable { reference, cache: self.options.cache.clone(), endpoint, cause: text }
            }
        }
    }
}

/// A bar on a terminal, nothing in a pipe.
fn bar(moved: Arc<AtomicU64>) -> Bar {
    let bar = if std::io::stderr().is_terminal() { ProgressBar::new(0) } else { ProgressBar::hidden() };
    Bar { bar, moved }
}

struct Bar {
    bar: ProgressBar,
    /// Bytes that came.
    moved: Arc<AtomicU64>,
}

impl Progress for Bar {
    fn init(&mut self, size: usize, filename: &str) {
        // Starts anew when a broken download is resumed.
        self.bar.reset();
        Progress::init(&mut self.bar, size, filename);
    }

    fn update(&mut self, size: usize) {
        self.moved.fetch_add(size as u64, Ordering::Relaxed);
        Progress::update(&mut self.bar, size);
    }

    fn finish(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// Names of all files below a directory, with `/` between folders, in order.
pub(crate) fn files_below(dir: &Path) -> Result<Vec<String>, HubError> {
    let mut names = Vec::new();
    let mut folders = vec![(dir.to_owned(), String::new(), 0)];
    while let Some((folder, prefix, depth)) = folders.pop() {
        let io = |cause| HubError::Io { path: folder.clone(), cause };
        for entry in std::fs::read_dir(&folder).map_err(io)? {
            let entry = entry.map_err(io)?;
            let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
            if entry.path().is_dir() && depth < MAX_DEPTH {
                folders.push((entry.path(), format!("{name}/"), depth + 1));
            } else {
                names.push(name);
            }
        }
    }
    names.sort();
    Ok(names)
}
