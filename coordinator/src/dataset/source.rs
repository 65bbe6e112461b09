//! Where problems come from: a file, a directory, or a data set of the Hugging Face hub.

use std::fmt;
use std::path::{Path, PathBuf};

use g2rl_hub::{HubOptions, Reference};

use super::{DatasetError, listed, rows};

/// A data set as it is named in a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// A file, a directory, or `owner/name` with `@revision` if not `main`.
    pub name: String,
    /// The folder of a data set with several.
    pub subset: Option<String>,
    /// The split, where files are named by splits.
    pub split: String,
}

impl Source {
    /// A single file, whatever splits there may be.
    #[must_use]
    pub fn file(path: &Path) -> Self {
        Self { name: path.display().to_string(), subset: None, split: "train".into() }
    }

    /// Its files on this machine, in order of their names.
    ///
    /// # Errors
    /// [`DatasetError`] if there are none, naming what there is.
    pub(super) fn files(&self) -> Result<Vec<PathBuf>, DatasetError> {
        let path = Path::new(&self.name);
        if path.is_dir() {
            let mut names = Vec::new();
            let unreadable = |cause| DatasetError::Unreadable { path: path.to_owned(), cause };
            for entry in path.read_dir().map_err(unreadable)? {
                names.push(entry.map_err(unreadable)?.file_name().to_string_lossy().into_owned());
            }
            names.sort();
            return Ok(self.choose(&names)?.into_iter().map(|name| path.join(name)).collect());
        }
        let looks_like_a_file = path.exists() || rows::is_readable(&self.name);
        match Reference::parse(&self.name) {
            Ok(reference) if !looks_like_a_file => {
                g2rl_hub::dataset(&reference, &HubOptions::from_env(), |names| self.choose(names))
            }
            _ => Ok(vec![path.to_owned()]),
        }
    }

    /// The names that belong to the subset and the split.
    fn choose(&self, names: &[String]) -> Result<Vec<String>, DatasetError> {
        let readable: Vec<&String> = names.iter().filter(|name| rows::is_readable(name)).collect();
        let no_file = |wanted: String, available: String| DatasetError::NoFile {
            place: self.name.clone(),
            wanted,
            available,
        };
        if readable.is_empty() {
            let wanted = "file that ends in .jsonl, .json, .parquet or .csv".to_owned();
            return Err(no_file(wanted, listed(names.iter().cloned())));
        }
        // 1. The subset's folder; without one there must be a single choice.
        let mut folders: Vec<&str> = readable.iter().map(|name| folder(name)).collect();
        folders.sort_unstable();
        folders.dedup();
        let chosen = match &self.subset {
            Some(subset) => folders.iter().copied().find(|folder| folder == subset),
            None if folders.len() == 1 => Some(folders[0]),
            None => folders.iter().copied().find(|folder| matches!(*folder, "" | "data" | "default")),
        };
        let Some(chosen) = chosen else {
            let wanted = match &self.subset {
                Some(subset) => format!("subset {subset}"),
                None => "subset chosen (set data.subset)".to_owned(),
            };
            return Err(no_file(wanted, folders.join(", ")));
        };
        let files: Vec<&String> = readable.into_iter().filter(|name| folder(name) == chosen).collect();
        // 2. The split's files. The same rows may be there in several formats: Parquet goes first, CSV, which
        // knows no types, last.
        let split: Vec<String> =
            files.iter().filter(|name| split_of(name) == self.split).map(|name| (*name).clone()).collect();
        if split.is_empty() {
            let splits = listed(files.iter().map(|name| split_of(name).to_owned()));
            return Err(no_file(format!("split {}", self.split), splits));
        }
        let of = |ending: &str| -> Vec<String> {
            split.iter().filter(|name| name.ends_with(ending)).cloned().collect()
        };
        let (parquet, csv) = (of(".parquet"), of(".csv"));
        Ok(match (parquet.is_empty(), csv.len() < split.len()) {
            (false, _) => parquet,
            (true, true) => split.into_iter().filter(|name| !csv.contains(name)).collect(),
            (true, false) => csv,
        })
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// The folder in which a file of a repository stands, without those of splits: `main/train/0.parquet` is
/// in `main`.
fn folder(name: &str) -> &str {
    let folder = name.rsplit_once('/').map_or("", |(folder, _)| folder);
    match folder.rsplit_once('/') {
        Some((subset, last)) if is_split(last) => subset,
        None if is_split(folder) => "",
        _ => folder,
    }
}

fn is_split(word: &str) -> bool {
    matches!(word, "train" | "test" | "validation" | "dev" | "eval")
}

/// The split that a file's name or folder says: `main/train-00000-of-00001.parquet` is of `train`.
fn split_of(name: &str) -> &str {
    let (folder, file) = name.rsplit_once('/').unwrap_or(("", name));
    let last = folder.rsplit('/').next().unwrap_or_default();
    if is_split(last) {
        return last;
    }
    let stem = file.split('.').next().unwrap_or(file);
    // train-00000-of-00001
    match stem.split_once("-of-").and_then(|(before, _)| before.rsplit_once('-')) {
        Some((split, _)) => split,
        None => stem,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choose(names: &[&str], subset: Option<&str>, split: &str) -> Result<Vec<String>, String> {
        let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
        let source = Source { name: "o/d".into(), subset: subset.map(Into::into), split: split.into() };
        source.choose(&names).map_err(|error| error.to_string())
    }

    #[test]
    fn files_of_a_split_and_a_subset() {
        let gsm8k = [
            "README.md",
            "main/train-00000-of-00001.parquet",
            "main/test-00000-of-00001.parquet",
            "socratic/train-00000-of-00001.parquet",
        ];
        assert_eq!(choose(&gsm8k, Some("main"), "train").unwrap(), ["main/train-00000-of-00001.parquet"]);
        let error = choose(&gsm8k, None, "train").unwrap_err();
        assert!(error.contains("set data.subset") && error.contains("main, socratic"), "{error}");
        let error = choose(&gsm8k, Some("main"), "validation").unwrap_err();
        assert!(error.contains("no split validation; it has: test, train"), "{error}");
        assert!(choose(&gsm8k, Some("other"), "train").unwrap_err().contains("no subset other"));
        assert!(choose(&["README.md"], None, "train").unwrap_err().contains("README.md"));

        let sharded =
            ["data/train-00001-of-00002.parquet", "data/train-00000-of-00002.parquet", "train.jsonl"];
        assert_eq!(choose(&sharded, Some("data"), "train").unwrap().len(), 2);
        assert_eq!(choose(&["train.jsonl", "train.parquet"], None, "train").unwrap(), ["train.parquet"]);
        assert_eq!(choose(&["train.jsonl", "train.csv"], None, "train").unwrap(), ["train.jsonl"]);
        let gpqa = ["README.md", "gpqa_diamond.csv", "gpqa_main.csv", "dataset.zip"];
        assert_eq!(choose(&gpqa, None, "gpqa_diamond").unwrap(), ["gpqa_diamond.csv"]);
        assert_eq!(choose(&["a/train/0.json", "a/test/0.json"], None, "test").unwrap(), ["a/test/0.json"]);
    }
}
