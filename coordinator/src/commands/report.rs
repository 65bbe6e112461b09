//! `g2rl-coordinator report`.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use clap::Args;

use crate::report::{Report, ReportOptions, html, plot_files};

/// Show an experiment, or a few runs, in one HTML file.
///
/// The page has the main result, what was run, learning curves with intervals, the comparison of `experiment`, histograms
/// of cosines, and sample groups. It needs no other file and no network. Runs with the same NAME are runs of one method.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  g2rl-coordinator report --experiment configs/experiments/countdown.toml --out report.html --plots plots
  g2rl-coordinator report --experiment runs/countdown --geometry runs/geometry --out report.html
  g2rl-coordinator report --run grpo=runs/demo-grpo --run g2rl=runs/demo --out report.html")]
pub struct ReportArgs {
    /// A run's directory; may be given several times.
    #[arg(long, value_name = "[NAME=]DIR", required_unless_present = "experiment")]
    run: Vec<String>,
    /// An experiment's file, or its directory.
    #[arg(long, value_name = "FILE|DIR", conflicts_with = "run")]
    experiment: Option<PathBuf>,
    /// Directory of `g2rl-coordinator geometry`.
    #[arg(long, value_name = "DIR")]
    geometry: Option<PathBuf>,
    /// What the data is called, instead of its file.
    #[arg(long, value_name = "TEXT")]
    data_name: Option<String>,
    /// The page.
    #[arg(long, value_name = "FILE", default_value = "report.html")]
    out: PathBuf,
    /// Also write each plot into this directory, as SVG and PNG.
    #[arg(long, value_name = "DIR")]
    plots: Option<PathBuf>,
}

/// `NAME=DIR`, or a directory whose name is the run's.
fn named_run(text: &str) -> anyhow::Result<(String, PathBuf)> {
    if let Some((name, dir)) = text.split_once('=').filter(|(name, _)| !name.contains('/')) {
        ensure!(!name.is_empty(), "--run {text}: no name");
        return Ok((name.to_owned(), dir.into()));
    }
    let name = Path::new(text).file_name().with_context(|| format!("--run {text}: name it as NAME=DIR"))?;
    Ok((name.to_string_lossy().into_owned(), text.into()))
}

/// Runs the command.
///
/// # Errors
/// If something cannot be read or written; names it.
pub fn run(args: &ReportArgs) -> anyhow::Result<()> {
    let report = Report::read(&ReportOptions {
        runs: args.run.iter().map(|text| named_run(text)).collect::<anyhow::Result<_>>()?,
        experiment: args.experiment.clone(),
        geometry: args.geometry.clone(),
        data_name: args.data_name.clone(),
    })?;
    let page = html(&report)?;
    write(&args.out, page.as_bytes())?;
    println!("{}: {} kB", args.out.display(), page.len().div_ceil(1000));
    if let Some(dir) = &args.plots {
        let plots = plot_files(&report)?;
        for plot in &plots {
            write(&dir.join(format!("{}.svg", plot.name)), plot.svg.as_bytes())?;
            write(&dir.join(format!("{}.png", plot.name)), &plot.png)?;
        }
        println!("{}: {} plots", dir.display(), plots.len());
    }
    Ok(())
}

fn write(path: &Path, content: &[u8]) -> anyhow::Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    }
    std::fs::write(path, content).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::report::tests::write_run;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        args: ReportArgs,
    }

    #[test]
    fn a_page_and_plots_of_two_runs_are_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).display().to_string();
        for name in ["one", "two"] {
            write_run(&dir.path().join(name), 6, 2, "1+1=2");
        }
        let (one, two, out, plots) =
            (format!("m={}", path("one")), path("two"), path("out/page.html"), path("plots"));
        let arguments = ["report", "--run", &one, "--run", &two, "--out", &out, "--plots", &plots];
        run(&Cli::try_parse_from(arguments).unwrap().args).unwrap();
        let page = std::fs::read_to_string(&out).unwrap();
        assert!(page.starts_with("<!DOCTYPE html>") && page.contains("<h1>m, two</h1>"));
        for name in ["training-reward.svg", "training-reward.png", "evaluation-pass-1.png"] {
            assert!(dir.path().join("plots").join(name).exists(), "{name}");
        }
        assert!(Cli::try_parse_from(["report"]).is_err(), "nothing to report");
        assert!(Cli::try_parse_from(["report", "--run", "a", "--experiment", "b"]).is_err());
    }

    #[test]
    fn runs_are_named_by_the_user_or_by_their_directories() {
        let named = |text: &str| named_run(text).unwrap();
        assert_eq!(named("a=runs/x"), ("a".to_owned(), PathBuf::from("runs/x")));
        assert_eq!(named("runs/x/"), ("x".to_owned(), PathBuf::from("runs/x/")));
        assert_eq!(named("runs/l=2").0, "l=2");
        assert!(named_run("..").is_err() && named_run("=x").is_err());
    }
}
