//! `update -> checkpoint`: a directory that transformers loads as it is, with what is needed to go
//! on training beside it.
//!
//! | file | what |
//! |---|---|
//! | config.json, model*.safetensors | the policy, Hugging Face form |
//! | tokenizer.json and the other small files of the first model | copied unchanged |
//! | optimizer.safetensors | f32 master weights and AdamW moments, flat, in the layout's order |
//! | trainer_state.json | the coordinator's state, opaque here |
//!
//! A checkpoint is written aside and renamed: a directory with the final name is complete.

use std::fs::File;
use std::io;
use std::path::{Component, Path, PathBuf};

use crate::model::Weights;
use crate::update::UpdateError;
use crate::update::optimizer::OptimizerState;

/// Optimizer state inside a checkpoint.
pub const OPTIMIZER_FILE: &str = "optimizer.safetensors";

/// The coordinator's state inside a checkpoint.
pub const TRAINER_STATE_FILE: &str = "trainer_state.json";

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
    #[error("checkpoint {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The coordinator names a place where no checkpoint can be.
    #[error(
        "{path} is no checkpoint's place: it must be absolute, without .., and end in checkpoints/step-N"
    )]
    BadPath {
        /// As given.
        path: PathBuf,
    },
    /// Weights or optimizer state cannot be written.
    #[error("checkpoint: {0}")]
    State(#[from] UpdateError),
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

/// What goes into a checkpoint.
#[derive(Debug)]
pub struct Checkpoint<'a> {
    /// The policy.
    pub weights: &'a Weights,
    /// Its optimizer's state.
    pub optimizer: &'a OptimizerState,
    /// The model directory whose tokenizer is carried along.
    pub model_dir: &'a Path,
    /// The coordinator's state.
    pub trainer_state_json: &'a str,
}

impl Checkpoint<'_> {
    /// Writes the checkpoint to `path`, which must not exist. On failure nothing with that name
    /// appears, and what was written aside is removed.
    ///
    /// # Errors
    /// [`CheckpointError`], naming the file.
    pub fn write(&self, path: &Path) -> Result<(), CheckpointError> {
        // A name of its own: a rank that was taken for dead may still write the same checkpoint.
        let mut aside = path.as_os_str().to_owned();
        aside.push(format!(".writing-{}", uuid::Uuid::new_v4().simple()));
        let aside = PathBuf::from(aside);
        let result = self.write_aside(&aside).and_then(|()| {
            if path.join(TRAINER_STATE_FILE).exists() {
                // That rank was not dead, and its checkpoint is complete.
                return std::fs::remove_dir_all(&aside).map_err(io_error(&aside));
            }
            std::fs::rename(&aside, path).map_err(io_error(path))?;
            sync_dir(path.parent().unwrap_or(Path::new(".")))
        });
        if result.is_err() {
            // The error that matters is the one above; leftovers are overwritten by the next try.
            let _ = std::fs::remove_dir_all(&aside);
        }
        result
    }

    fn write_aside(&self, dir: &Path) -> Result<(), CheckpointError> {
        if dir.exists() {
            std::fs::remove_dir_all(dir).map_err(io_error(dir))?;
        }
        std::fs::create_dir_all(dir).map_err(io_error(dir))?;
        self.weights.save(dir).map_err(UpdateError::from)?;
        copy_companions(self.model_dir, dir)?;
        self.optimizer.save(&dir.join(OPTIMIZER_FILE))?;
        let state = dir.join(TRAINER_STATE_FILE);
        std::fs::write(&state, self.trainer_state_json)
            .and_then(|()| File::open(&state)?.sync_all())
            .map_err(io_error(&state))?;
        sync_dir(dir)
    }
}

/// Copies tokenizer and generation settings from one model directory to another.
///
/// # Errors
/// [`CheckpointError::Io`], naming the file.
pub fn copy_companions(from: &Path, to: &Path) -> Result<(), CheckpointError> {
    for name in COMPANION_FILES {
        if from.join(name).exists() {
            // A link would carry what it points to into the checkpoint.
            let source = g2rl_hub::inside(from, name).map_err(io_error(&from.join(name)))?;
            let target = to.join(name);
            std::fs::copy(&source, &target)
                .and_then(|_| File::open(&target)?.sync_all())
                .map_err(io_error(&target))?;
        }
    }
    Ok(())
}

fn sync_dir(dir: &Path) -> Result<(), CheckpointError> {
    File::open(dir).and_then(|d| d.sync_all()).map_err(io_error(dir))
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> CheckpointError + '_ {
    move |source| CheckpointError::Io { path: path.to_owned(), source }
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
