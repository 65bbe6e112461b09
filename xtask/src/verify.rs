//! Everything that continuous integration runs, in one command.

use std::time::{Duration, Instant};

use anyhow::Context;

use crate::run::{cargo, run};
use crate::setup::{Environment, setup};
use crate::{deny, readme, tasks};

/// Runs all steps and prints how long each took; the first that fails ends it.
pub(crate) fn verify() -> anyhow::Result<()> {
    let mut times: Vec<(&str, Duration)> = Vec::new();
    let mut step = |name: &'static str, work: &mut dyn FnMut() -> anyhow::Result<()>| -> anyhow::Result<()> {
        eprintln!("\n=== {name}");
        let start = Instant::now();
        let result = work().with_context(|| format!("step `{name}` failed"));
        times.push((name, start.elapsed()));
        result
    };
    let mut environment = Environment::new();
    step("README", &mut readme::check)?;
    step("set-up", &mut || {
        environment = setup(true)?;
        Ok(())
    })?;
    step("format", &mut || run(cargo(&environment).args(["fmt", "--all", "--check"])))?;
    step("clippy", &mut || {
        let arguments = ["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"];
        run(cargo(&environment).args(arguments))
    })?;
    step("documentation", &mut || {
        let arguments = ["doc", "--quiet", "--workspace", "--no-deps"];
        run(cargo(&environment).args(arguments).env("RUSTDOCFLAGS", "-D warnings"))
    })?;
    step("dependencies", &mut deny::check)?;
    step("tests", &mut || tasks::test(&[]))?;
    eprintln!("\n=== all steps passed");
    for (name, time) in times {
        eprintln!("{name:>16} {:>6.1} min", time.as_secs_f64() / 60.0);
    }
    Ok(())
}
