//! `g2rl-coordinator config`: check and show configurations.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use g2rl_common::config::{LoadOptions, RunConfig};

/// Check or show a configuration.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  g2rl-coordinator config check --config configs/demo.toml
  g2rl-coordinator config show --config configs/demo.toml --set rollout.group_size=16")]
pub struct ConfigArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Say whether the configuration can be used.
    Check(FileArgs),
    /// Print the whole configuration, defaults filled in.
    Show(FileArgs),
}

/// A configuration file with overrides.
#[derive(Debug, Clone, Args)]
pub struct FileArgs {
    /// The configuration.
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
/// If the configuration cannot be used.
pub fn run(args: &ConfigArgs) -> anyhow::Result<()> {
    match &args.what {
        What::Check(file) => {
            file.load()?;
            println!("{}: ok", file.config.display());
        }
        What::Show(file) => print!("{}", file.load()?.to_toml()),
    }
    Ok(())
}
