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
use std::path::{Path, PathBuf};

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
    /// Weights or optimizer state cannot be written.
    #[error("checkpoint: {0}")]
    State(#[from] UpdateError),
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
        let source = from.join(name);
        if source.exists() {
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
