//! What the command lines of g2rl's programs have in common: scripts that complete them in a shell, and manual pages.
//!
//! In: a program's [`clap::Command`]. Out: text made from it, so that neither can differ from `--help`.
#![forbid(unsafe_code)]

use std::io::Write;
use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, Command};
use clap_complete::Shell;

/// Print a script that completes the command line.
///
/// Give it to the shell once: it completes commands, options and the values that an option allows.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  bash   source <(PROGRAM completions bash)
  zsh    PROGRAM completions zsh > \"${fpath[1]}/_PROGRAM\"
  fish   PROGRAM completions fish > ~/.config/fish/completions/PROGRAM.fish
where PROGRAM is g2rl-coordinator or g2rl-worker.")]
pub struct CompletionsArgs {
    /// The shell that reads the script.
    #[arg(value_enum)]
    shell: Shell,
}

impl CompletionsArgs {
    /// Writes the script for a program.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn run(&self, mut program: Command, out: &mut impl Write) -> anyhow::Result<()> {
        let name = program.get_name().to_owned();
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut program, name, &mut script);
        out.write_all(&script).context("cannot write the script")
    }
}

/// Write manual pages.
///
/// One page for the program and one for each of its commands, such as g2rl-worker-run.1.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  PROGRAM man --out ~/.local/share/man/man1
where PROGRAM is g2rl-coordinator or g2rl-worker; `man PROGRAM` then shows the first page.")]
pub struct ManArgs {
    /// Directory of the pages; made if absent.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

impl ManArgs {
    /// Writes a program's pages.
    ///
    /// # Errors
    /// If a page cannot be written; names the directory.
    pub fn run(&self, program: Command) -> anyhow::Result<()> {
        let out = self.out.display();
        std::fs::create_dir_all(&self.out).with_context(|| format!("cannot create {out}"))?;
        clap_mangen::generate_to(program, &self.out).with_context(|| format!("cannot write pages to {out}"))
    }
}

#[cfg(test)]
mod tests {
    use clap::Arg;
    use clap::ValueEnum;

    use super::*;

    /// A program with a command that has a command.
    fn program() -> Command {
        let inner = Command::new("show").about("Print all.").arg(Arg::new("file").long("file"));
        Command::new("tool").about("A tool.").subcommand(Command::new("config").about("C.").subcommand(inner))
    }

    #[test]
    fn every_shell_has_a_script_that_names_the_commands() {
        for shell in Shell::value_variants() {
            let mut script = Vec::new();
            CompletionsArgs { shell: *shell }.run(program(), &mut script).unwrap();
            let script = String::from_utf8(script).unwrap();
            assert!(script.contains("config") && script.contains("file"), "{shell}: {script}");
        }
    }

    #[test]
    fn every_command_has_a_page() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("man/man1");
        ManArgs { out: out.clone() }.run(program()).unwrap();
        for (page, says) in
            [("tool.1", "A tool."), ("tool-config.1", "C."), ("tool-config-show.1", "Print all.")]
        {
            assert!(std::fs::read_to_string(out.join(page)).unwrap().contains(says), "{page}");
        }
    }

    #[test]
    fn a_directory_that_cannot_be_made_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        let error = ManArgs { out: file.join("man") }.run(program()).unwrap_err().to_string();
        assert!(error.contains(&file.join("man").display().to_string()), "{error}");
    }
}
