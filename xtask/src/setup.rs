//! libtorch from the PyPI wheel of torch, in a virtual environment under the user's cache directory.
//!
//! `LIBTORCH`, if set, wins: it names a folder with `include` and `lib`. Otherwise the environment is
//! made once; a stamp file says that it is complete, so that one that was interrupted is made again.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use crate::run::{output, run};

/// The version that tch is made for.
const TORCH: &str = "2.11.0";

/// What is installed: torch, and headers that its CUDA parts are compiled against.
const PACKAGES: [&str; 4] =
    ["torch==2.11.0", "nvidia-cuda-crt==13.0.88", "nvidia-cuda-cccl==13.0.85", "numpy"];

/// What some tests compare with.
const REFERENCE: &str = "transformers==5.23.0";

/// Ships the chat templates of published models; nothing of it is run, so it comes without what it needs.
const TEMPLATES: &str = "trl==1.16.0";

/// Where libtorch is, as environment variables.
pub(crate) type Environment = Vec<(&'static str, String)>;

/// The user's cache directory of this project.
pub(crate) fn cache() -> anyhow::Result<PathBuf> {
    let base = match (std::env::var_os("XDG_CACHE_HOME"), std::env::var_os("HOME")) {
        (Some(cache), _) => PathBuf::from(cache),
        (None, Some(home)) => PathBuf::from(home).join(".cache"),
        (None, None) => bail!("neither XDG_CACHE_HOME nor HOME is set"),
    };
    Ok(base.join("g2rl"))
}

/// Makes sure that libtorch is there and returns its environment.
pub(crate) fn setup(reference: bool) -> anyhow::Result<Environment> {
    if let Some(libtorch) = std::env::var_os("LIBTORCH") {
        return given(Path::new(&libtorch));
    }
    let venv = cache()?.join(format!("libtorch-{TORCH}"));
    let python = venv.join("bin/python");
    let lock = lock(&venv)?;
    let stamp = venv.join(".complete");
    if !stamp.exists() && !adopt(&python) {
        make(&venv, &python)?;
    }
    fs::write(&stamp, TORCH).with_context(|| format!("cannot write {}", stamp.display()))?;
    if reference && !imports(&python, "transformers") {
        eprintln!("installing {REFERENCE}");
        pip(&python, &[REFERENCE])?;
    }
    if reference && !finds(&python, "trl") {
        eprintln!("installing {TEMPLATES}");
        pip(&python, &["--no-deps", TEMPLATES])?;
    }
    drop(lock);
    let folder = output(Command::new(&python).args(["-c", "import torch; print(torch.__path__[0])"]))
        .with_context(|| {
            format!("{} cannot import torch; remove {} and try again", python.display(), venv.display())
        })?;
    Ok(vec![
        ("LIBTORCH", folder),
        ("LIBTORCH_CXX11_ABI", "1".to_owned()),
        ("G2RL_PYTHON", python.display().to_string()),
    ])
}

/// A libtorch that the user names.
fn given(libtorch: &Path) -> anyhow::Result<Environment> {
    let library = libtorch.join("lib/libtorch_cpu.so");
    if !library.exists() {
        bail!("LIBTORCH is {}, but {} is not there", libtorch.display(), library.display());
    }
    let version = fs::read_to_string(libtorch.join("build-version"))
        .or_else(|_| fs::read_to_string(libtorch.join("version.py")))
        .unwrap_or_default();
    if !version.is_empty() && !version.contains("2.11.") {
        bail!("LIBTORCH is {}, which is not version {TORCH}", libtorch.display());
    }
    let mut environment = vec![("LIBTORCH", libtorch.display().to_string())];
    environment.push(("LIBTORCH_CXX11_ABI", std::env::var("LIBTORCH_CXX11_ABI").unwrap_or("1".into())));
    if let Ok(python) = std::env::var("G2RL_PYTHON") {
        environment.push(("G2RL_PYTHON", python));
    }
    Ok(environment)
}

/// Keeps two set-ups apart until it is dropped.
fn lock(venv: &Path) -> anyhow::Result<fs::File> {
    let folder = venv.parent().context("the cache has a parent")?;
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let path = folder.join("setup.lock");
    let file = fs::File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
    Ok(file)
}

/// Whether an environment without stamp is nevertheless complete.
fn adopt(python: &Path) -> bool {
    let check = format!("import torch; assert torch.__version__.startswith('{TORCH}'); import nvidia.cu13");
    python.exists() && output(Command::new(python).args(["-c", &check])).is_some()
}

fn imports(python: &Path, module: &str) -> bool {
    output(Command::new(python).args(["-c", &format!("import {module}")])).is_some()
}

/// Whether a module is there, without running it.
fn finds(python: &Path, module: &str) -> bool {
    let check = format!("import importlib.util as u, sys; sys.exit(u.find_spec('{module}') is None)");
    output(Command::new(python).args(["-c", &check])).is_some()
}

fn make(venv: &Path, python: &Path) -> anyhow::Result<()> {
    eprintln!("installing libtorch {TORCH} into {} (once; about 5 GB, a few minutes)", venv.display());
    if venv.exists() {
        fs::remove_dir_all(venv).with_context(|| format!("cannot remove {}", venv.display()))?;
    }
    run(Command::new("python3").args(["-m", "venv"]).arg(venv))
        .context("Python 3 with venv is needed (Debian and Ubuntu: apt-get install python3-venv)")?;
    pip(python, &PACKAGES)
}

fn pip(python: &Path, packages: &[&str]) -> anyhow::Result<()> {
    run(Command::new(python)
        .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"])
        .args(packages))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_is_not_libtorch_is_refused() {
        let error = given(Path::new("/nonexistent")).unwrap_err().to_string();
        assert!(error.contains("libtorch_cpu.so is not there"), "{error}");
    }
}
