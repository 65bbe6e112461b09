//! Models and data sets by name.
//!
//! In: a reference, which is a directory or the name of a repository on the Hugging Face hub. Out: local
//! files. A repository is looked for in the Hugging Face cache first, so that a run that was started once
//! starts again without network; what is missing is downloaded, resumed where an earlier download broke
//! off, and checked against the hub's checksums before anything reads it. `manifest` is for directories that this
//! program writes: what each must hold.

mod checksum;
mod files;
pub mod manifest;
mod patience;
mod reference;
mod transfer;

use std::path::{Path, PathBuf};

use hf_hub::{Cache, Repo, RepoType};

pub use self::files::{inside, is_inside, read_limited, read_text_limited};
pub use self::reference::Reference;
use self::transfer::Transfer;

/// Why a repository's files cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// Neither a directory nor a name.
    #[error("{0} is neither a directory nor a name of the form owner/name")]
    NotFound(String),
    /// The hub cannot be reached, and the cache does not have all files.
    #[error(
        "{reference} is not complete in {cache}, and {endpoint} cannot be reached: {cause}. Without network, \
         copy the repository's files into a directory and give its path, or bring that cache along \
         (HF_HOME names its parent)"
    )]
    Unreachable {
        /// The repository.
        reference: String,
        /// Where was looked.
        cache: PathBuf,
        /// The hub's address.
        endpoint: String,
        /// What went wrong.
        cause: String,
    },
    /// The hub must not be asked, and the cache does not have all files.
    #[error("{reference} is not complete in {cache}, and HF_HUB_OFFLINE is set")]
    Offline {
        /// The repository.
        reference: String,
        /// Where was looked.
        cache: PathBuf,
    },
    /// The hub does not have it, or not for this user.
    #[error(
        "{endpoint} does not give {reference} (answer {status}); check the name, and set HF_TOKEN if it is \
         private or gated"
    )]
    Refused {
        /// The repository.
        reference: String,
        /// The hub's address.
        endpoint: String,
        /// HTTP status.
        status: u16,
    },
    /// The repository lacks a kind of file.
    #[error("{reference} has no {what}; it has: {files}")]
    Lacks {
        /// The repository.
        reference: String,
        /// What is missing.
        what: &'static str,
        /// The first of its files.
        files: String,
    },
    /// A file is not what the hub said it is.
    #[error("{path} does not have the checksum that the hub gives ({expected}); it was removed, try again")]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// The checksum it should have.
        expected: String,
    },
    /// The hub's answer would put files elsewhere.
    #[error("{endpoint} names a file or commit of {reference} that cannot be one: {name:?}")]
    BadName {
        /// The repository.
        reference: String,
        /// The hub's address.
        endpoint: String,
        /// As given.
        name: String,
    },
    /// A local file cannot be read or written.
    #[error("{path}: {cause}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        cause: std::io::Error,
    },
}

/// How the hub is used.
#[derive(Debug, Clone)]
pub struct HubOptions {
    /// The cache's directory, which holds `models--owner--name`.
    pub cache: PathBuf,
    /// The hub's address.
    pub endpoint: String,
    /// For private and gated repositories.
    pub token: Option<String>,
    /// Use only what the cache has.
    pub offline: bool,
}

impl HubOptions {
    /// As Hugging Face's own tools are set up: `HF_HUB_CACHE`, `HF_HOME`, `HF_ENDPOINT`, `HF_TOKEN` and
    /// `HF_HUB_OFFLINE`.
    #[must_use]
    pub fn from_env() -> Self {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let cache = match variable("HF_HUB_CACHE") {
            Some(path) => Cache::new(path.into()),
            None => Cache::from_env(),
        };
        Self {
            endpoint: variable("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned()),
            token: variable("HF_TOKEN").or_else(|| cache.token()),
            offline: variable("HF_HUB_OFFLINE").is_some_and(|value| !matches!(value.as_str(), "0" | "false")),
            cache: cache.path().clone(),
        }
    }
}

/// The directory of a model: `reference` itself if it is one, else a repository's files in the cache,
/// downloaded if they are not there.
///
/// # Errors
/// [`HubError`], naming the repository and where was looked.
pub fn model(reference: &str, options: &HubOptions) -> Result<PathBuf, HubError> {
    let path = Path::new(reference);
    if path.is_dir() {
        return Ok(path.to_owned());
    }
    // A misspelt directory beside others is no name.
    if path.parent().is_some_and(|parent| !parent.as_os_str().is_empty() && parent.is_dir()) {
        return Err(HubError::NotFound(reference.to_owned()));
    }
    let reference = Reference::parse(reference)?;
    let transfer = Transfer::new(&reference, RepoType::Model, options);
    let complete = || transfer.cached().filter(|dir| model_is_complete(dir));
    if let Some(dir) = complete() {
        return Ok(dir);
    }
    // Several ranks of a machine start at once; one downloads, the others find it done.
    let _lock = transfer.lock();
    if let Some(dir) = complete() {
        return Ok(dir);
    }
    let repository = transfer.list()?;
    let wanted: Vec<&str> =
        repository.files.iter().map(String::as_str).filter(|f| is_model_file(f)).collect();
    if !wanted.contains(&"config.json") {
        return Err(repository.lacks("config.json"));
    }
    if !wanted.iter().any(|file| file.ends_with(".safetensors")) {
        return Err(repository.lacks("safetensors file"));
    }
    transfer.fetch(&repository, &wanted)
}

/// Files of a data set's repository whose names `wanted` chooses, given all names; in the chosen order.
///
/// # Errors
/// [`HubError`], or what `wanted` says.
pub fn dataset<E: From<HubError>>(
    reference: &Reference,
    options: &HubOptions,
    wanted: impl Fn(&[String]) -> Result<Vec<String>, E>,
) -> Result<Vec<PathBuf>, E> {
    let transfer = Transfer::new(reference, RepoType::Dataset, options);
    let _lock = transfer.lock();
    // What is in the cache may be a part; then the hub is asked what the whole is.
    if let Some(dir) = transfer.cached() {
        let names = transfer::files_below(&dir)?;
        if let Ok(chosen) = wanted(&names) {
            let complete = shards_are_complete(&chosen);
            if complete && !chosen.is_empty() {
                return Ok(chosen.iter().map(|name| dir.join(name)).collect());
            }
        }
    }
    let repository = transfer.list()?;
    let chosen = wanted(&repository.files)?;
    let names: Vec<&str> = chosen.iter().map(String::as_str).collect();
    let dir = transfer.fetch(&repository, &names)?;
    Ok(chosen.iter().map(|name| dir.join(name)).collect())
}

/// Whether all parts of files named `...-00000-of-00003.parquet` are there.
fn shards_are_complete(names: &[String]) -> bool {
    names.iter().all(|name| {
        let Some((before, after)) = name.rsplit_once("-of-") else { return true };
        let digits: String = after.chars().take_while(char::is_ascii_digit).collect();
        let (Ok(count), Some((stem, _))) = (digits.parse::<usize>(), before.rsplit_once('-')) else {
            return true;
        };
        names.iter().filter(|other| other.starts_with(stem) && other.contains("-of-")).count() >= count
    })
}

/// What a trainer needs of a model's repository: not other formats' weights, not pictures.
fn is_model_file(name: &str) -> bool {
    let known = [
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "chat_template.jinja",
        "model.safetensors.index.json",
    ];
    let weights = name.starts_with("model") && name.ends_with(".safetensors") && !name.contains('/');
    known.contains(&name) || weights
}

/// Largest index of weights that is read, bytes: some 100,000 tensors.
pub const MAX_INDEX: u64 = 32 << 20;

/// Whether a cached directory has a configuration and all weights, and a tokenizer.
fn model_is_complete(dir: &Path) -> bool {
    let has = |name: &str| is_inside(name) && dir.join(name).exists();
    let weights = match read_text_limited(&dir.join("model.safetensors.index.json"), MAX_INDEX) {
        // File names are the only values of this form in an index.
        Ok(index) => index.split('"').filter(|word| word.ends_with(".safetensors")).all(has),
        Err(_) => has("model.safetensors"),
    };
    weights && has("config.json") && has("tokenizer.json")
}

fn repo(reference: &Reference, kind: RepoType, revision: &str) -> Repo {
    Repo::with_revision(reference.name.clone(), kind, revision.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_counted() {
        let names = |list: &[&str]| list.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        assert!(shards_are_complete(&names(&["a/train.parquet", "train-00000-of-00001.parquet"])));
        assert!(shards_are_complete(&names(&["t-00000-of-00002.parquet", "t-00001-of-00002.parquet"])));
        assert!(!shards_are_complete(&names(&["t-00000-of-00002.parquet"])));
    }

    #[test]
    fn other_formats_are_left_out() {
        for name in ["config.json", "model.safetensors", "model-00001-of-00002.safetensors", "tokenizer.json"]
        {
            assert!(is_model_file(name), "{name}");
        }
        for name in ["pytorch_model.bin", "README.md", "onnx/model.safetensors", "vocab.json"] {
            assert!(!is_model_file(name), "{name}");
        }
    }
}
