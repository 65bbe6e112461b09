//! Safetensors files of a model directory, single or sharded, memory-mapped.
//!
//! In: a directory and a layout. Out: the flat buffer filled. Every tensor of the layout must be there with the
//! right shape and finite values; a head beside tied embeddings is the one extra that is accepted (some exporters
//! write it). A directory that this program wrote is compared with its manifest first.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use g2rl_ffi::mmap::MappedFile;
use g2rl_hub::manifest::{ManifestError, check_if_noted};
use safetensors::{Dtype as FileDtype, SafeTensors};
use serde_json::Value;
use tch::{Kind, TchError, Tensor};

use super::config::ModelConfigError;
use super::layout::{FileTensor, Layout};
use super::shard::Piece;

pub(super) const SINGLE_FILE: &str = "model.safetensors";
pub(super) const INDEX_FILE: &str = "model.safetensors.index.json";

/// f32 master weights and moments, in a directory that training can go on from.
pub const OPTIMIZER_FILE: &str = "optimizer.safetensors";

/// The coordinator's state, in the same.
pub const TRAINER_STATE_FILE: &str = "trainer_state.json";

/// Why weights cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// See [`ModelConfigError`].
    #[error(transparent)]
    Config(#[from] ModelConfigError),
    /// A file is not what was written.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// A file cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The directory holds neither a single file nor an index.
    #[error("{dir} holds neither model.safetensors nor model.safetensors.index.json")]
    NoWeights {
        /// The directory.
        dir: PathBuf,
    },
    /// A file is not a safetensors file, or is truncated.
    #[error("{path} is not a complete safetensors file: {source}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: safetensors::SafeTensorError,
    },
    /// The index cannot be understood.
    #[error("{path} is not an index of safetensors files: {message}")]
    BadIndex {
        /// The file.
        path: PathBuf,
        /// The cause.
        message: String,
    },
    /// A tensor that the model needs is in no file.
    #[error("{dir}: tensor {name} is missing")]
    MissingTensor {
        /// The directory.
        dir: PathBuf,
        /// The tensor.
        name: String,
    },
    /// A tensor has another shape than the configuration says.
    #[error("{path}: tensor {name} has shape {found:?}, the configuration says {expected:?}")]
    ShapeMismatch {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// As in the file.
        found: Vec<usize>,
        /// As in the configuration.
        expected: Vec<i64>,
    },
    /// A tensor's number format is not f32, bf16 or f16.
    #[error("{path}: tensor {name} has dtype {dtype}; f32, bf16 and f16 can be read")]
    UnsupportedDtype {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// As in the file.
        dtype: String,
    },
    /// A tensor holds NaN or infinity.
    #[error("{path}: tensor {name} holds values that are not finite")]
    NotFinite {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
    },
    /// libtorch refused, most likely for lack of memory.
    #[error("libtorch: {0}")]
    Torch(#[from] TchError),
}

pub(super) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> WeightsError + '_ {
    move |source| WeightsError::Io { path: path.to_owned(), source }
}

/// The files of a model directory.
fn weight_files(dir: &Path) -> Result<Vec<PathBuf>, WeightsError> {
    let single = dir.join(SINGLE_FILE);
    if single.exists() {
        return Ok(vec![single]);
    }
    let index = dir.join(INDEX_FILE);
    if !index.exists() {
        return Err(WeightsError::NoWeights { dir: dir.to_owned() });
    }
    let bad = |message: &str| WeightsError::BadIndex { path: index.clone(), message: message.to_owned() };
    let text = std::fs::read_to_string(&index).map_err(io(&index))?;
    let value: Value = serde_json::from_str(&text).map_err(|e| bad(&e.to_string()))?;
    let map = value.get("weight_map").and_then(Value::as_object).ok_or_else(|| bad("no weight_map"))?;
    let mut names = Vec::new();
    for file in map.values() {
        let file = file.as_str().ok_or_else(|| bad("a file name is not a string"))?;
        if file.contains('/') || file.contains("..") {
            return Err(bad("a file name leaves the directory"));
        }
        names.push(dir.join(file));
    }
    names.sort();
    names.dedup();
    Ok(names)
}

/// Fills `flat` (`[parameters]`, any float kind, any device) from the directory's files.
///
/// # Errors
/// [`WeightsError`], naming the file and the tensor.
pub(super) fn read(dir: &Path, layout: &Layout, flat: &Tensor) -> Result<(), WeightsError> {
    check_if_noted(dir, |name| !matches!(name, OPTIMIZER_FILE | TRAINER_STATE_FILE))?;
    let wanted = layout.blocks().iter().flat_map(|b| &b.files);
    let mut missing: BTreeMap<&str, &FileTensor> = wanted.map(|t| (t.name.as_str(), t)).collect();
    for path in weight_files(dir)? {
        let mapped = MappedFile::open(&path).map_err(io(&path))?;
        let file = SafeTensors::deserialize(&mapped)
            .map_err(|source| WeightsError::Malformed { path: path.clone(), source })?;
        // By name, so that of several wrong tensors always the same one is reported.
        let mut tensors: Vec<_> = file.iter().collect();
        tensors.sort_by_key(|(name, _)| *name);
        for (name, view) in tensors {
            if let Some(target) = missing.remove(name) {
                read_tensor(&path, target, &view, flat)?;
            }
        }
    }
    match missing.keys().next() {
        Some(name) => Err(WeightsError::MissingTensor { dir: dir.to_owned(), name: (*name).to_owned() }),
        None => Ok(()),
    }
}

fn read_tensor(
    path: &Path,
    target: &FileTensor,
    view: &safetensors::tensor::TensorView<'_>,
    flat: &Tensor,
) -> Result<(), WeightsError> {
    let (path_, name) = (|| path.to_owned(), || target.name.clone());
    let kind = match view.dtype() {
        FileDtype::F32 => Kind::Float,
        FileDtype::BF16 => Kind::BFloat16,
        FileDtype::F16 => Kind::Half,
        other => {
            return Err(WeightsError::UnsupportedDtype {
                path: path_(),
                name: name(),
                dtype: format!("{other:?}"),
            });
        }
    };
    if view.shape().iter().map(|n| *n as i64).ne(target.shape.iter().copied()) {
        return Err(WeightsError::ShapeMismatch {
            path: path_(),
            name: name(),
            found: view.shape().to_vec(),
            expected: target.shape.clone(),
        });
    }
    let values = Tensor::f_from_data_size(view.data(), &[target.numel()], kind)?;
    if values.f_isfinite()?.f_all()?.f_int64_value(&[])? == 0 {
        return Err(WeightsError::NotFinite { path: path_(), name: name() });
    }
    flat.f_narrow(0, target.offset, target.numel())?.f_copy_(&values)?;
    Ok(())
}

/// Reads pieces of the named tensors `[numel]` of a safetensors file into existing flat f32 tensors. The file is
/// compared with its directory's manifest first, if there is one.
///
/// # Errors
/// [`WeightsError`], naming the file and the tensor.
pub fn read_pieces(
    path: &Path,
    tensors: &[(&str, &Tensor)],
    numel: i64,
    pieces: &[Piece],
) -> Result<(), WeightsError> {
    if let (Some(dir), Some(file)) = (path.parent(), path.file_name()) {
        check_if_noted(dir, |name| file == name)?;
    }
    let mapped = MappedFile::open(path).map_err(io(path))?;
    let file = SafeTensors::deserialize(&mapped)
        .map_err(|source| WeightsError::Malformed { path: path.to_owned(), source })?;
    for (name, tensor) in tensors {
        let view = file
            .tensor(name)
            .map_err(|_| WeightsError::MissingTensor { dir: path.to_owned(), name: (*name).to_owned() })?;
        let fits = view.dtype() == FileDtype::F32 && view.shape() == [numel as usize];
        if !fits {
            return Err(WeightsError::ShapeMismatch {
                path: path.to_owned(),
                name: (*name).to_owned(),
                found: view.shape().to_vec(),
                expected: vec![numel],
            });
        }
        for piece in pieces {
            const BYTES: i64 = size_of::<f32>() as i64;
            let bytes = (piece.flat * BYTES) as usize..((piece.flat + piece.length) * BYTES) as usize;
            let values = Tensor::f_from_data_size(&view.data()[bytes], &[piece.length], Kind::Float)?;
            if values.f_isfinite()?.f_all()?.f_int64_value(&[])? == 0 {
                return Err(WeightsError::NotFinite { path: path.to_owned(), name: (*name).to_owned() });
            }
            tensor.f_narrow(0, piece.own, piece.length)?.f_copy_(&values)?;
        }
    }
    Ok(())
}
