//! `g2rl-coordinator config`: check, show and describe configurations.

use std::path::PathBuf;

use anyhow::bail;
use clap::{Args, Subcommand};
use g2rl_common::config::{LoadOptions, RunConfig, reference};

/// Check, show or describe configurations.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  g2rl-coordinator config show
  g2rl-coordinator config show --key rollout
  g2rl-coordinator config show --config configs/demo.toml --set rollout.group_size=16
  g2rl-coordinator config check --config configs/demo.toml")]
pub struct ConfigArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Say whether a configuration can be used; the error names the key.
    Check(FileArgs),
    /// Print every key with its default, unit, allowed values and meaning; with --config the values of a run.
    ///
    /// With --config it prints the whole configuration as TOML, defaults filled in, and beside each value the line
    /// of the file, the --set or the default that it comes from.
    Show(ShowArgs),
    /// Print the JSON Schema of configurations, for editors that complete and check TOML.
    Schema,
    /// Print docs/configuration.md.
    Reference,
}

#[derive(Debug, Args)]
struct ShowArgs {
    /// The configuration; without it, all keys are described.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Override a key, such as rollout.group_size=8; may be given several times.
    #[arg(long, value_name = "KEY=VALUE", requires = "config")]
    set: Vec<String>,
    /// Describe only this section or key, such as rollout or rollout.group_size.
    #[arg(long, value_name = "KEY", conflicts_with = "config")]
    key: Option<String>,
}

/// A configuration file with overrides.
#[derive(Debug, Clone, Args)]
pub struct FileArgs {
    /// The configuration, a TOML file; `config show` describes its keys.
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Override a key, such as rollout.group_size=8; may be given several times.
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

impl FileArgs {
    /// Reads and validates the configuration.
    ///
    /// # Errors
    /// If it cannot be used; names file and key.
    pub fn load(&self) -> anyhow::Result<RunConfig> {
        Ok(RunConfig::load(&LoadOptions { path: self.config.clone(), overrides: self.set.clone() })?)
    }
}

/// Runs the command.
///
/// # Errors
/// If the configuration cannot be used, or there is no such key.
pub fn run(args: &ConfigArgs) -> anyhow::Result<()> {
    match &args.what {
        What::Check(file) => {
            file.load()?;
            super::print(&format!("{}: ok\n", file.config.display()))
        }
        What::Show(ShowArgs { config: Some(path), set, .. }) => {
            let options = LoadOptions { path: path.clone(), overrides: set.clone() };
            super::print(&RunConfig::explain(&options)?)
        }
        What::Show(ShowArgs { key, .. }) => {
            let text = reference::text(key.as_deref());
            if text.is_empty() {
                let key = key.as_deref().unwrap_or_default();
                bail!("no section or key is called {key}; `g2rl-coordinator config show` lists them all");
            }
            super::print(&text)
        }
        What::Schema => super::print(&format!("{:#}\n", reference::schema().as_value())),
        What::Reference => super::print(&reference::markdown()),
    }
}
