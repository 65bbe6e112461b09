//! `update -> checkpoint`: a directory that transformers loads as it is, with what is needed to go
//! on training beside it.
//!
//! | file | what |
//! |---|---|
//! | config.json, model*.safetensors | the policy, Hugging Face form |
//! | tokenizer.json and the other small files of the first model | copied unchanged |
//! | optimizer.safetensors | f32 master weights and AdamW moments, flat, in the layout's order |
//! | trainer_state.json | the coordinator's state, opaque here |
//! | g2rl_manifest.json | size and checksum of each file, steps, policy version, ranks |
//!
//! A checkpoint is written aside, brought to the disk and renamed: a directory with the final name is complete.
//! `docs/checkpoints.md` says what that means for each fault; `background` writes while training goes on.

pub mod background;

use std::fs::File;
use std::io::{self, Write};
use std::path::{Component, Path, PathBuf};

use g2rl_common::config::Dtype;
use g2rl_hub::manifest::{FileEntry, Manifest, ManifestError, Noting};
use serde_json::Value;

use crate::failpoint;
use crate::model::ModelConfig;
use crate::model::files::{OPTIMIZER_FILE, TRAINER_STATE_FILE, WeightsError};
use crate::model::layout::Layout;
use crate::model::saving::{Written, write_model};
use crate::model::weights::kind_of;
use crate::update::UpdateError;
use crate::update::optimizer::OptimizerState;

/// Files of the first model that a checkpoint carries along.
const COMPANION_FILES: [&str; 9] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
    "tokenizer.model",
];

/// Why a checkpoint was not written.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// A file or directory cannot be made.
    #[error("checkpoint {path}: {cause}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        cause: io::Error,
    },
    /// The coordinator names a place where no checkpoint can be.
    #[error(
        "{path} is no checkpoint's place: it must be absolute, without .., and end in checkpoints/step-N"
    )]
    BadPath {
        /// As given.
        path: PathBuf,
    },
    /// Weights cannot be written.
    #[error("checkpoint: {0}")]
    Weights(#[from] WeightsError),
    /// Optimizer state cannot be written.
    #[error("checkpoint: {0}")]
    State(#[from] UpdateError),
    /// The manifest cannot be written.
    #[error("checkpoint: {0}")]
    Manifest(#[from] ManifestError),
}

/// What goes into a checkpoint.
#[derive(Debug)]
pub struct Checkpoint {
    /// The policy's shape.
    pub config: ModelConfig,
    /// Where each parameter lies.
    pub layout: Layout,
    /// Number format of the model's files.
    pub dtype: Dtype,
    /// The model directory whose tokenizer is carried along.
    pub model_dir: PathBuf,
    /// The coordinator's state.
    pub trainer_state_json: String,
    /// What the manifest says of it.
    pub about: Value,
}

impl Checkpoint {
    /// Writes the policy and its optimizer's state to `path`. On failure nothing with that name appears, and what
    /// was written aside is removed.
    ///
    /// # Errors
    /// [`CheckpointError`], naming the file.
    pub fn write(&self, state: &OptimizerState, path: &Path) -> Result<(), CheckpointError> {
        // A name of its own: a rank that was taken for dead may still write the same checkpoint.
        let aside = beside(path, "writing");
        let result = self.write_aside(state, &aside).and_then(|()| self.put_in_place(&aside, path));
        if result.is_err() {
            // The error that matters is the one above; a leftover goes with the checkpoint that follows.
            let _ = std::fs::remove_dir_all(&aside);
        }
        result
    }

    fn write_aside(&self, state: &OptimizerState, dir: &Path) -> Result<(), CheckpointError> {
        std::fs::create_dir_all(dir).map_err(io_error(dir))?;
        let model = (&self.config, &self.layout);
        let mut written = write_model(dir, model, state.master(), kind_of(self.dtype))?;
        failpoint::reach_writing("checkpoint_write").map_err(io_error(dir))?;
        written.extend(copy_companions(&self.model_dir, dir)?);
        written.push((OPTIMIZER_FILE.to_owned(), state.save(&dir.join(OPTIMIZER_FILE))?));
        let trainer_state = dir.join(TRAINER_STATE_FILE);
        let mut file = Noting::new(File::create(&trainer_state).map_err(io_error(&trainer_state))?);
        file.write_all(self.trainer_state_json.as_bytes())
            .and_then(|()| file.inner().sync_all())
            .map_err(io_error(&trainer_state))?;
        written.push((TRAINER_STATE_FILE.to_owned(), file.entry()));
        Manifest::new(self.about.clone(), written).write(dir)?;
        sync_dir(dir)
    }

    /// Gives a complete checkpoint its name. One that has it already stays if it is of the same moment of the same
    /// run (its rank was taken for dead and was not), else it makes room once this one is there.
    fn put_in_place(&self, aside: &Path, path: &Path) -> Result<(), CheckpointError> {
        let mut before = None;
        if path.exists() {
            let same = std::fs::read_to_string(path.join(TRAINER_STATE_FILE));
            if same.is_ok_and(|text| text == self.trainer_state_json) && Manifest::read(path).is_ok() {
                return std::fs::remove_dir_all(aside).map_err(io_error(aside));
            }
            let other = beside(path, "replaced");
            std::fs::rename(path, &other).map_err(io_error(path))?;
            before = Some(other);
        }
        std::fs::rename(aside, path).map_err(io_error(path))?;
        sync_dir(path.parent().unwrap_or(Path::new(".")))?;
        if let Some(before) = before {
            std::fs::remove_dir_all(&before).map_err(io_error(&before))?;
        }
        Ok(())
    }
}

/// A name of its own beside a checkpoint's.
fn beside(path: &Path, what: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{what}-{}", uuid::Uuid::new_v4().simple()));
    PathBuf::from(name)
}

/// Copies tokenizer and generation settings from one model directory to another.
///
/// # Errors
/// [`CheckpointError::Io`], naming the file.
pub fn copy_companions(from: &Path, to: &Path) -> Result<Written, CheckpointError> {
    let mut written = Written::new();
    for name in COMPANION_FILES {
        if from.join(name).exists() {
            // A link would carry what it points to into the checkpoint.
            let source = g2rl_hub::inside(from, name).map_err(io_error(&from.join(name)))?;
            let target = to.join(name);
            let copy = || -> io::Result<FileEntry> {
                let mut file = Noting::new(File::create(&target)?);
                io::copy(&mut File::open(&source)?, &mut file)?;
                file.inner().sync_all()?;
                Ok(file.entry())
            };
            written.push((name.to_owned(), copy().map_err(io_error(&target))?));
        }
    }
    Ok(written)
}

/// Whether a path from the coordinator is one of a checkpoint: a rank writes there and nowhere else.
///
/// # Errors
/// [`CheckpointError::BadPath`]
pub fn check_path(path: &Path) -> Result<(), CheckpointError> {
    let step = path.file_name().and_then(|name| name.to_str()?.strip_prefix("step-"));
    let is_step = step.is_some_and(|step| !step.is_empty() && step.bytes().all(|b| b.is_ascii_digit()));
    let in_folder = path.parent().is_some_and(|parent| parent.ends_with("checkpoints"));
    let straight = path.components().all(|part| part != Component::ParentDir);
    if path.is_absolute() && straight && in_folder && is_step {
        return Ok(());
    }
    Err(CheckpointError::BadPath { path: path.to_owned() })
}

fn sync_dir(dir: &Path) -> Result<(), CheckpointError> {
    File::open(dir).and_then(|d| d.sync_all()).map_err(io_error(dir))
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> CheckpointError + '_ {
    move |cause| CheckpointError::Io { path: path.to_owned(), cause }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checkpoints_go_where_checkpoints_are() {
        assert!(check_path(Path::new("/runs/demo/checkpoints/step-000003")).is_ok());
        for path in [
            "runs/demo/checkpoints/step-000003",
            "/runs/demo/../../etc/checkpoints/step-000003",
            "/runs/demo/checkpoints/..",
            "/runs/demo/checkpoints/step-",
            "/runs/demo/checkpoints/step-1/../../x",
            "/root/.ssh/authorized_keys",
            "/runs/step-000003",
        ] {
            assert!(check_path(Path::new(path)).is_err(), "{path}");
        }
    }

    #[test]
    fn a_checkpoint_carries_no_file_from_elsewhere() {
        let root = tempfile::tempdir().unwrap();
        let (model, to) = (root.path().join("model"), root.path().join("to"));
        std::fs::create_dir(&model).unwrap();
        std::fs::create_dir(&to).unwrap();
        std::fs::write(root.path().join("private"), "p").unwrap();
        std::os::unix::fs::symlink("../private", model.join("vocab.json")).unwrap();
        let error = copy_companions(&model, &to).unwrap_err().to_string();
        assert!(error.contains("vocab.json is a link to"), "{error}");
        assert!(!to.join("vocab.json").exists());
    }
}
