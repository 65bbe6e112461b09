//! The experiment as written, and the runs it asks for.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use g2rl_common::config::{LoadOptions, RunConfig};
use serde::Deserialize;

use super::warm::{WarmStart, WarmStartRun};

/// An experiment.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExperimentConfig {
    /// Its name, for people.
    pub name: String,
    /// Directory of its runs and its summary.
    pub dir: PathBuf,
    /// Configuration that all runs begin with.
    pub config: PathBuf,
    /// Settings of all runs, as `key=value`.
    #[serde(default)]
    pub set: Vec<String>,
    /// Seeds of every method that names none.
    pub seeds: Vec<u64>,
    /// The method that others are compared with.
    pub baseline: String,
    /// A method that means nothing: its difference to the baseline is the noise.
    #[serde(default)]
    pub control: Option<String>,
    /// Scores that are compared, such as `pass@1` and `maj@16`; the first one is the one that methods are brought to
    /// the same value of.
    pub scores: Vec<String>,
    /// Workers of a run on this machine.
    #[serde(default = "one")]
    pub local_workers: u32,
    /// Their devices, in turn; the CPU if empty. Runs side by side share them out.
    #[serde(default)]
    pub local_devices: Vec<String>,
    /// Files of problems that are made if they are not there.
    #[serde(default)]
    pub data: Vec<DataFile>,
    /// Models that runs begin with.
    pub warm_starts: Vec<WarmStart>,
    /// What is compared.
    pub methods: Vec<MethodConfig>,
}

fn one() -> u32 {
    1
}

/// One `[[data]]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataFile {
    /// The file.
    pub file: PathBuf,
    /// Arguments of `g2rl-coordinator data`, without `--out`.
    pub arguments: Vec<String>,
}

/// One `[[methods]]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MethodConfig {
    /// Its name, in files and tables.
    pub name: String,
    /// What makes it, as `key=value`.
    #[serde(default)]
    pub set: Vec<String>,
    /// Its seeds, if they are not the experiment's: fewer for an ablation.
    #[serde(default)]
    pub seeds: Option<Vec<u64>>,
    /// Names of its warm starts, if they are not all.
    #[serde(default)]
    pub warm_starts: Option<Vec<String>>,
}

/// A run of the experiment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedRun {
    /// Its method's name.
    pub method: String,
    /// Its warm start's name.
    pub warm_start: String,
    /// Its seed.
    pub seed: u64,
    /// Its directory.
    pub dir: PathBuf,
    /// All settings on top of [`ExperimentConfig::config`].
    pub settings: Vec<String>,
}

fn check_names<'a>(what: &str, names: impl Iterator<Item = &'a String>) -> anyhow::Result<()> {
    let mut seen = BTreeSet::new();
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    for name in names {
        let good = name.starts_with(|c: char| c.is_ascii_alphanumeric()) && name.chars().all(plain);
        ensure!(good, "{what} {name:?}: a name has letters, digits, -, _ and .");
        ensure!(seen.insert(name), "two {what} are called {name}");
    }
    ensure!(!seen.is_empty(), "no {what}");
    Ok(())
}

impl ExperimentConfig {
    /// Reads and checks an experiment, and the configuration of each method.
    ///
    /// # Errors
    /// If something cannot be used; names file and key.
    pub fn load(path: &Path) -> anyhow::Result<Self> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let config: Self = toml::from_str(&text).with_context(|| path.display().to_string())?;
        config.check().with_context(|| path.display().to_string())?;
        Ok(config)
    }

    fn check(&self) -> anyhow::Result<()> {
        check_names("methods", self.methods.iter().map(|method| &method.name))?;
        check_names("warm_starts", self.warm_starts.iter().map(|warm| &warm.name))?;
        for name in std::iter::once(&self.baseline).chain(&self.control) {
            ensure!(self.methods.iter().any(|method| method.name == *name), "{name} is none of the methods");
        }
        for name in self.methods.iter().filter_map(|method| method.warm_starts.as_ref()).flatten() {
            ensure!(
                self.warm_starts.iter().any(|warm| warm.name == *name),
                "{name} is none of the warm_starts"
            );
        }
        self.check_warm_starts()?;
        ensure!(!self.scores.is_empty(), "no scores");
        let mut budgets = BTreeSet::new();
        for run in self.runs() {
            let config = self.run_config(&run).with_context(|| format!("method {}", run.method))?;
            let Some(evaluation) = config.evaluation.as_ref().filter(|evaluation| evaluation.at_end) else {
                bail!("method {}: nothing is evaluated at the end", run.method);
            };
            let known = evaluation.score_names();
            if let Some(score) = self.scores.iter().find(|score| !known.contains(score)) {
                bail!("score {score} is not evaluated; there are {}", known.join(", "));
            }
            budgets.insert((config.run.steps, config.rollout.prompts_per_step, config.rollout.group_size));
        }
        ensure!(!budgets.is_empty(), "no seeds");
        let same = budgets.len() == 1;
        ensure!(same, "methods differ in their budget (steps, prompts of a step, group size): {budgets:?}");
        Ok(())
    }

    /// Those that are made have all they need, and a directory of their own.
    fn check_warm_starts(&self) -> anyhow::Result<()> {
        let mut models = BTreeSet::new();
        for warm in self.warm_start_runs()? {
            let steps = warm.run_config()?.run.steps;
            ensure!(steps > 0, "warm start {}: run.steps is 0", warm.name);
            let WarmStartRun { name, model, .. } = warm;
            let shared = self.warm_starts.iter().filter(|other| Path::new(&other.model) == model).count() > 1;
            let new = models.insert(model.clone());
            ensure!(new && !shared, "warm start {name}: another one has the model {}", model.display());
        }
        Ok(())
    }

    /// How the warm starts are made that say so.
    ///
    /// # Errors
    /// If one says only half of it.
    pub fn warm_start_runs(&self) -> anyhow::Result<Vec<WarmStartRun>> {
        let runs = self.warm_starts.iter().map(|warm| warm.run(&self.name, &self.dir).transpose());
        runs.flatten().collect()
    }

    /// The configuration of a run.
    ///
    /// # Errors
    /// If it cannot be used; names file and key.
    pub fn run_config(&self, run: &PlannedRun) -> anyhow::Result<RunConfig> {
        let options = LoadOptions { path: self.config.clone(), overrides: run.settings.clone() };
        Ok(RunConfig::load(&options)?)
    }

    /// All runs, those of one seed together, so that an experiment that is not complete compares something.
    #[must_use]
    pub fn runs(&self) -> Vec<PlannedRun> {
        let seeds = |method: &MethodConfig| method.seeds.clone().unwrap_or_else(|| self.seeds.clone());
        let all: BTreeSet<u64> = self.methods.iter().flat_map(seeds).collect();
        let mut runs = Vec::new();
        for seed in all {
            for warm in &self.warm_starts {
                for method in &self.methods {
                    let wanted = method.warm_starts.as_ref().is_none_or(|names| names.contains(&warm.name));
                    if wanted && seeds(method).contains(&seed) {
                        runs.push(self.run(method, warm, seed));
                    }
                }
            }
        }
        runs
    }

    fn run(&self, method: &MethodConfig, warm: &WarmStart, seed: u64) -> PlannedRun {
        let dir = self.dir.join("runs").join(&method.name).join(format!("{}-seed{seed}", warm.name));
        let own = [
            format!("run.name={}-{}-{}-seed{seed}", self.name, method.name, warm.name),
            format!("run.dir={}", dir.display()),
            format!("run.seed={seed}"),
            format!("model.path={}", warm.model),
        ];
        PlannedRun {
            method: method.name.clone(),
            warm_start: warm.name.clone(),
            seed,
            dir,
            settings: self.set.iter().chain(&method.set).cloned().chain(own).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shipped() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/experiments")
    }

    /// An experiment of two methods on the demo's configuration, with more text.
    fn experiment(more: &str) -> anyhow::Result<ExperimentConfig> {
        let config = shipped().join("../demo.toml");
        let text = format!(
            "name = 'e'\ndir = 'd'\nconfig = '{}'\nseeds = [1, 2]\nbaseline = 'grpo'\nscores = ['pass@1']\n{more}\n\
             [[warm_starts]]\nname = 'w'\nmodel = 'm'\n[[warm_starts]]\nname = 'v'\nmodel = 'n'\n\
             [[methods]]\nname = 'grpo'\nset = ['algorithm.kind=grpo']\n\
             [[methods]]\nname = 'g2rl'\nset = ['algorithm.lambda=2']\nseeds = [1]\nwarm_starts = ['w']\n",
            config.display()
        );
        let config: ExperimentConfig = toml::from_str(&text)?;
        config.check().map(|()| config)
    }

    #[test]
    fn shipped_experiments_load() {
        let mut found = 0;
        for entry in std::fs::read_dir(shipped()).unwrap() {
            let path = entry.unwrap().path();
            let text = std::fs::read_to_string(&path).unwrap();
            let mut config: ExperimentConfig = toml::from_str(&text).unwrap();
            // Tests run elsewhere.
            let root = shipped().join("../..");
            config.config = root.join(&config.config);
            for warm in &mut config.warm_starts {
                for path in [&mut warm.config, &mut warm.architecture, &mut warm.tokenizer] {
                    *path = path.take().map(|path| root.join(path));
                }
            }
            config.check().unwrap_or_else(|error| panic!("{}: {error:#}", path.display()));
            for warm in config.warm_start_runs().unwrap() {
                warm.check_files().unwrap_or_else(|error| panic!("{}: {error:#}", path.display()));
                // What it is trained on is made first.
                let train = warm.run_config().unwrap().data.train;
                assert!(config.data.iter().any(|data| data.file == Path::new(&train)), "{train}");
            }
            found += 1;
        }
        assert!(found > 0);
    }

    #[test]
    fn runs_go_seed_by_seed_with_their_settings() {
        let runs = experiment("set = ['run.steps=3']").unwrap().runs();
        let names: Vec<String> =
            runs.iter().map(|run| format!("{} {} {}", run.method, run.warm_start, run.seed)).collect();
        assert_eq!(names, ["grpo w 1", "g2rl w 1", "grpo v 1", "grpo w 2", "grpo v 2"]);
        assert_eq!(runs[1].dir, Path::new("d/runs/g2rl/w-seed1"));
        let settings = ["run.steps=3", "algorithm.lambda=2", "run.name=e-g2rl-w-seed1"];
        assert_eq!(runs[1].settings[..3], settings);
        assert_eq!(runs[1].settings[5], "model.path=m");
    }

    #[test]
    fn warm_starts_that_are_made_are_checked() {
        let made = |model: &str, config: &Path, set: &str| {
            experiment(&format!(
                "[[warm_starts]]\nname = 'made'\nmodel = '{model}'\narchitecture = 'a.json'\ntokenizer = 't'\nseed = 8\n\
                 config = '{}'\nset = ['{set}']",
                config.display()
            ))
        };
        let recipe = shipped().join("../demo-warmstart.toml");
        let runs = made("x", &recipe, "run.steps=5").unwrap().warm_start_runs().unwrap();
        assert_eq!(runs.len(), 1);
        let config = runs[0].run_config().unwrap();
        assert_eq!((config.run.steps, config.run.seed), (5, 8));
        for (error, named) in [
            (made("x", &recipe, "run.step=5"), "step"),
            (made("x", &recipe, "run.steps=0"), "steps"),
            (made("x", Path::new("nowhere.toml"), "run.steps=5"), "nowhere.toml"),
            (made("m", &recipe, "run.steps=5"), "another one has the model m"),
            (experiment("[[warm_starts]]\nname = 'made'\nmodel = 'x'\nseed = 8"), "has no architecture"),
        ] {
            let error = format!("{:#}", error.unwrap_err());
            assert!(error.contains(named) && error.contains("made"), "{named}: {error}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, named) in [
            ("control = 'random'", "random is none of the methods"),
            ("set = ['rollout.groupsize=3']", "groupsize"),
            ("set = ['evaluation.at_end=false']", "nothing is evaluated at the end"),
            ("set = ['evaluation.k=[8]']", "score pass@1 is not evaluated"),
        ] {
            let error = format!("{:#}", experiment(text).unwrap_err());
            assert!(error.contains(named), "{text}: {error}");
        }
        let unequal = "[[methods]]\nname = 'more'\nset = ['run.steps=9']";
        let error = format!("{:#}", experiment(unequal).unwrap_err());
        assert!(error.contains("differ in their budget"), "{error}");
    }
}
