//! Safetensors files of a model directory, single or sharded, memory-mapped.
//!
//! In: a directory and a layout. Out: the flat buffer filled. Every tensor of the layout must be there with the
//! right shape and finite values; a head beside tied embeddings is the one extra that is accepted (some exporters
//! write it). A directory that this program wrote is compared with its manifest first.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use g2rl_ffi::mmap::MappedFile;
use g2rl_hub::manifest::{ManifestError, check_if_noted};
use safetensors::{Dtype as FileDtype, SafeTensorError, SafeTensors};
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

/// Largest header of a safetensors file that is read, bytes: some 100,000 tensors.
const MAX_HEADER_BYTES: u64 = 16 << 20;

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
    #[error("{path}: {cause}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        cause: std::io::Error,
    },
    /// The directory holds neither a single file nor an index.
    #[error("{dir} holds neither model.safetensors nor model.safetensors.index.json")]
    NoWeights {
        /// The directory.
        dir: PathBuf,
    },
    /// A file is not a safetensors file, or is truncated.
    #[error("{path} is not a complete safetensors file: {cause}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The cause.
        cause: SafeTensorError,
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
    move |cause| WeightsError::Io { path: path.to_owned(), cause }
}

/// The files of a model directory.
fn weight_files(dir: &Path) -> Result<Vec<PathBuf>, WeightsError> {
    let single = dir.join(SINGLE_FILE);
    if single.exists() {
        return g2rl_hub::inside(dir, SINGLE_FILE).map(|path| vec![path]).map_err(io(&single));
    }
    let index = dir.join(INDEX_FILE);
    if !index.exists() {
        return Err(WeightsError::NoWeights { dir: dir.to_owned() });
    }
    let bad = |message: &str| WeightsError::BadIndex { path: index.clone(), message: message.to_owned() };
    let text = g2rl_hub::read_text_limited(&index, g2rl_hub::MAX_INDEX).map_err(io(&index))?;
    let value: Value = serde_json::from_str(&text).map_err(|e| bad(&e.to_string()))?;
    let map = value.get("weight_map").and_then(Value::as_object).ok_or_else(|| bad("no weight_map"))?;
    let mut names = Vec::new();
    for file in map.values() {
        let file = file.as_str().ok_or_else(|| bad("a file name is not a string"))?;
        names.push(file);
    }
    names.sort_unstable();
    names.dedup();
    names
        .into_iter()
        .map(|name| g2rl_hub::inside(dir, name).map_err(|error| bad(&error.to_string())))
        .collect()
}

/// Reads a mapped file's header; every tensor it names lies within the file.
fn parse<'a>(path: &Path, mapped: &'a MappedFile) -> Result<SafeTensors<'a>, WeightsError> {
    let malformed = |cause| WeightsError::Malformed { path: path.to_owned(), cause };
    let length = mapped.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
    if length > MAX_HEADER_BYTES {
        return Err(malformed(SafeTensorError::HeaderTooLarge));
    }
    SafeTensors::deserialize(mapped).map_err(malformed)
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
        let file = parse(&path, &mapped)?;
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
    let file = parse(path, &mapped)?;
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A file with a header of this length and text, and `data` bytes after it.
    fn file(dir: &Path, length: u64, header: &str, data: usize) -> PathBuf {
        let path = dir.join(SINGLE_FILE);
        let bytes = [&length.to_le_bytes(), header.as_bytes(), &vec![0; data]].concat();
        std::fs::write(&path, bytes).unwrap();
        path
    }

    fn error(path: &Path) -> String {
        let mapped = MappedFile::open(path).unwrap();
        parse(path, &mapped).map_or_else(|error| error.to_string(), |_| "no error".to_owned())
    }

    #[test]
    fn headers_and_offsets_have_limits() {
        let dir = tempfile::tempdir().unwrap();
        let one = |shape: &str, offsets: &str, data: usize| {
            let header = format!(r#"{{"a":{{"dtype":"F32","shape":{shape},"data_offsets":{offsets}}}}}"#);
            error(&file(dir.path(), header.len() as u64, &header, data))
        };
        assert_eq!(one("[2]", "[0,8]", 8), "no error");
        for (shape, offsets, data) in [
            // Beyond the file, before its beginning, the wrong way round, too much and too little.
            ("[2]", "[0,8]", 4),
            ("[2]", "[8,16]", 16),
            ("[2]", "[8,0]", 8),
            ("[2]", "[0,8]", 12),
            ("[2]", "[0,4]", 4),
            ("[2]", "[-8,0]", 8),
            ("[2]", "[0,18446744073709551615]", 8),
            // More elements than there are numbers.
            ("[4294967296,4294967296,4]", "[0,8]", 8),
            ("[18446744073709551615,2]", "[0,8]", 8),
        ] {
            let error = one(shape, offsets, data);
            assert!(error.contains("is not a complete safetensors file"), "{shape} {offsets}: {error}");
        }
        for (length, header) in
            [(u64::MAX, "{}"), (MAX_HEADER_BYTES + 1, "{}"), (3, "{}"), (2, "[]"), (0, "")]
        {
            let error = error(&file(dir.path(), length, header, 0));
            assert!(error.contains("is not a complete safetensors file"), "{length}: {error}");
        }
        std::fs::write(dir.path().join(SINGLE_FILE), [1, 2, 3]).unwrap();
        assert!(error(&dir.path().join(SINGLE_FILE)).contains("is not a complete safetensors file"));
    }

    #[test]
    fn an_index_names_files_of_its_directory_only() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("model");
        std::fs::create_dir(&dir).unwrap();
        let other = root.path().join("other.safetensors");
        std::fs::write(&other, "").unwrap();
        std::fs::write(dir.join("part.safetensors"), "").unwrap();
        std::os::unix::fs::symlink(&other, dir.join("link.safetensors")).unwrap();
        let files = |name: &str| {
            std::fs::write(dir.join(INDEX_FILE), json!({"weight_map": {"a": name}}).to_string()).unwrap();
            weight_files(&dir).map_err(|error| error.to_string())
        };
        assert_eq!(files("part.safetensors").unwrap(), [dir.join("part.safetensors")]);
        let absolute = other.display().to_string();
        for name in ["../other.safetensors", &absolute, "link.safetensors", "", ".", "part.safetensors/../.."]
        {
            let error = files(name).unwrap_err();
            assert!(error.contains("is not an index of safetensors files"), "{name}: {error}");
        }
        std::os::unix::fs::symlink(&other, dir.join(SINGLE_FILE)).unwrap();
        assert!(weight_files(&dir).unwrap_err().to_string().contains("is a link to"));
    }
}
