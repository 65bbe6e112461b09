//! Models that runs begin with, and how they are made.
//!
//! In: a `[[warm_starts]]`. Out: the run that makes its model ([`WarmStartRun`]), and the model's files once that run is
//! complete. Must not know: how programs are started.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use g2rl_common::config::{LoadOptions, RunConfig};
use serde::Deserialize;

use crate::checkpoints;

/// Files of a checkpoint that are no part of its model.
const NO_MODEL_FILES: [&str; 3] = ["optimizer.safetensors", "trainer_state.json", "g2rl_manifest.json"];

/// One `[[warm_starts]]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WarmStart {
    /// Its name, in files and tables.
    pub name: String,
    /// Model directory, or a name of the Hugging Face hub.
    pub model: String,
    /// The `config.json` of a model that is made if the directory is not there.
    #[serde(default)]
    pub architecture: Option<PathBuf>,
    /// Directory of its tokenizer.
    #[serde(default)]
    pub tokenizer: Option<PathBuf>,
    /// Seed of its first weights and of the run that trains it.
    #[serde(default)]
    pub seed: Option<u64>,
    /// Configuration of that run.
    #[serde(default)]
    pub config: Option<PathBuf>,
    /// Settings on top of it, as `key=value`.
    #[serde(default)]
    pub set: Vec<String>,
}

/// How a model is made: random weights, then a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WarmStartRun {
    /// The warm start's name.
    pub name: String,
    /// Where the model is wanted.
    pub model: PathBuf,
    /// The model's `config.json`.
    pub architecture: PathBuf,
    /// Directory of its tokenizer.
    pub tokenizer: PathBuf,
    /// Seed of the weights.
    pub seed: u64,
    /// Configuration of the run.
    pub config: PathBuf,
    /// Directory of the weights it begins with.
    pub init: PathBuf,
    /// Directory of the run.
    pub dir: PathBuf,
    /// All settings on top of [`Self::config`].
    pub settings: Vec<String>,
}

impl WarmStart {
    /// How its model is made, under the experiment's directory; `None` if it is given.
    ///
    /// # Errors
    /// If only some of the keys are there that say so; names the first that is not.
    pub fn run(&self, experiment: &str, dir: &Path) -> anyhow::Result<Option<WarmStartRun>> {
        let Self { name, model, architecture, tokenizer, seed, config, set } = self;
        let nothing = architecture.is_none() && tokenizer.is_none() && seed.is_none() && config.is_none();
        if nothing && set.is_empty() {
            return Ok(None);
        }
        let missing = |key: &str| format!("warm start {name} is to be made, and has no {key}");
        let dir = dir.join("warm_starts").join(name);
        let (init, run) = (dir.join("init"), dir.join("run"));
        let seed = seed.with_context(|| missing("seed"))?;
        let own = [
            format!("run.name={experiment}-{name}"),
            format!("run.dir={}", run.display()),
            format!("run.seed={seed}"),
            format!("model.path={}", init.display()),
        ];
        Ok(Some(WarmStartRun {
            name: name.clone(),
            model: model.into(),
            architecture: architecture.clone().with_context(|| missing("architecture"))?,
            tokenizer: tokenizer.clone().with_context(|| missing("tokenizer"))?,
            seed,
            config: config.clone().with_context(|| missing("config"))?,
            init,
            dir: run,
            settings: set.iter().cloned().chain(own).collect(),
        }))
    }
}

impl WarmStartRun {
    /// The configuration of the run.
    ///
    /// # Errors
    /// If it cannot be used; names file and key.
    pub fn run_config(&self) -> anyhow::Result<RunConfig> {
        let options = LoadOptions { path: self.config.clone(), overrides: self.settings.clone() };
        RunConfig::load(&options).with_context(|| format!("warm start {}", self.name))
    }

    /// Whether the model has to be made.
    #[must_use]
    pub fn is_wanted(&self) -> bool {
        !self.model.join("config.json").exists()
    }

    /// Checks the files that it is made from, and that nothing else is in its place.
    ///
    /// # Errors
    /// If one is not there; names it.
    pub fn check_files(&self) -> anyhow::Result<()> {
        let (name, model) = (&self.name, self.model.display());
        for path in [&self.architecture, &self.tokenizer.join("tokenizer.json")] {
            ensure!(path.is_file(), "warm start {name}: there is no {}", path.display());
        }
        ensure!(!self.model.exists(), "warm start {name}: {model} is there and holds no config.json");
        Ok(())
    }

    /// Puts the complete run's model in its place, which is there with all files or not at all, and removes weights
    /// that nothing needs any more.
    ///
    /// # Errors
    /// If the last checkpoint is damaged or a file cannot be written.
    pub(crate) fn keep(&self) -> anyhow::Result<()> {
        let (checkpoint, state) = checkpoints::latest(&self.dir)?;
        let (wanted, found) = (self.run_config()?.run.steps, state.steps_done.0);
        let place = checkpoint.display();
        ensure!(found == wanted, "{place} is after {found} steps, not after {wanted}");
        put(&checkpoint, &self.model)
            .with_context(|| format!("cannot copy the model of {place} to {}", self.model.display()))?;
        for spent in [&self.init, &self.dir.join("checkpoints")] {
            if spent.exists() {
                std::fs::remove_dir_all(spent)
                    .with_context(|| format!("cannot remove {}", spent.display()))?;
            }
        }
        Ok(())
    }
}

/// Copies the model's files aside, then gives the directory its name.
fn put(checkpoint: &Path, model: &Path) -> std::io::Result<()> {
    let mut aside = model.as_os_str().to_owned();
    aside.push(".making");
    let aside = PathBuf::from(aside);
    if aside.exists() {
        std::fs::remove_dir_all(&aside)?;
    }
    std::fs::create_dir_all(&aside)?;
    for entry in checkpoint.read_dir()? {
        let name = entry?.file_name();
        if !NO_MODEL_FILES.iter().any(|other| name == *other) {
            std::fs::copy(checkpoint.join(&name), aside.join(&name))?;
        }
    }
    std::fs::rename(&aside, model)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn warm(text: &str) -> WarmStart {
        toml::from_str(&format!("name = 'w'\nmodel = 'm'\n{text}")).unwrap()
    }

    const MADE: &str = "architecture = 'a.json'\ntokenizer = 't'\nseed = 8\nconfig = 'c.toml'\n";

    #[test]
    fn a_model_is_given_or_made() {
        assert_eq!(warm("").run("e", Path::new("d")).unwrap(), None);
        let run = warm(&format!("{MADE}set = ['data.train=x']")).run("e", Path::new("d")).unwrap().unwrap();
        assert_eq!((run.seed, run.dir.as_path()), (8, Path::new("d/warm_starts/w/run")));
        let settings = [
            "data.train=x",
            "run.name=e-w",
            "run.dir=d/warm_starts/w/run",
            "run.seed=8",
            "model.path=d/warm_starts/w/init",
        ];
        assert_eq!(run.settings, settings);
    }

    #[test]
    fn half_a_recipe_is_refused() {
        for key in ["architecture", "tokenizer", "seed", "config"] {
            let text: Vec<&str> = MADE.lines().filter(|line| !line.starts_with(key)).collect();
            let error = warm(&text.join("\n")).run("e", Path::new("d")).unwrap_err().to_string();
            assert_eq!(error, format!("warm start w is to be made, and has no {key}"));
        }
        assert!(warm("set = ['run.steps=3']").run("e", Path::new("d")).is_err());
    }

    #[test]
    fn only_the_models_files_are_put_in_place() {
        let dir = tempfile::tempdir().unwrap();
        let (checkpoint, model) = (dir.path().join("step-000003"), dir.path().join("models/w"));
        std::fs::create_dir(&checkpoint).unwrap();
        for name in ["config.json", "model.safetensors", "tokenizer.json"].iter().chain(&NO_MODEL_FILES) {
            std::fs::write(checkpoint.join(name), name).unwrap();
        }
        // An earlier attempt was killed.
        std::fs::create_dir_all(dir.path().join("models/w.making")).unwrap();
        std::fs::write(dir.path().join("models/w.making/model-00002.safetensors"), "half").unwrap();
        put(&checkpoint, &model).unwrap();
        let mut names: Vec<_> =
            model.read_dir().unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        assert_eq!(names, ["config.json", "model.safetensors", "tokenizer.json"]);
        assert_eq!(dir.path().join("models").read_dir().unwrap().count(), 1);
    }

    #[test]
    fn files_that_are_not_there_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let text = format!(
            "architecture = '{}'\ntokenizer = '{}'\nseed = 8\nconfig = 'c.toml'",
            path("a.json").display(),
            dir.path().display()
        );
        let mut run = warm(&text).run("e", Path::new("d")).unwrap().unwrap();
        run.model = path("model");
        let error = || run.check_files().unwrap_err().to_string();
        assert!(error().contains("a.json"), "{}", error());
        std::fs::write(path("a.json"), "{}").unwrap();
        assert!(error().contains("tokenizer.json"), "{}", error());
        std::fs::write(path("tokenizer.json"), "{}").unwrap();
        run.check_files().unwrap();
        assert!(run.is_wanted());
        std::fs::create_dir(&run.model).unwrap();
        assert!(error().contains("holds no config.json"), "{}", error());
        std::fs::write(run.model.join("config.json"), "{}").unwrap();
        assert!(!run.is_wanted());
    }
}
