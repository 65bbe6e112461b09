//! Writes safetensors files and model directories, a piece of a tensor at a time.
//!
//! In: flat tensors on any device. Out: files that are on the disk, and what a manifest notes of each. No tensor is
//! ever in memory a second time.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use g2rl_hub::manifest::{FileEntry, Noting};
use serde_json::{Map, Value, json};
use tch::{Device, Kind, Tensor};

use super::config::ModelConfig;
use super::files::{INDEX_FILE, SINGLE_FILE, WeightsError, io};
use super::layout::{FileTensor, Layout};
use crate::pulse;

/// Largest shard written, bytes; what transformers writes by default.
const SHARD_BYTES: i64 = 5_000_000_000;

/// Elements of a tensor that are converted and written at a time. libtorch converts so many on the thread that asks
/// (its grain size): a thread that writes beside the engine starts no pool of its own.
const PIECE: i64 = 1 << 15;

/// Files that were written, for a manifest.
pub type Written = Vec<(String, FileEntry)>;

/// A tensor on its way into a file.
struct Outgoing<'a> {
    name: &'a str,
    shape: Vec<i64>,
    /// Flat, of any float kind.
    values: Tensor,
}

/// Writes named flat f32 tensors as one safetensors file and waits until it is on the disk.
///
/// # Errors
/// [`WeightsError::Io`], naming the file.
pub fn write_tensors(path: &Path, tensors: &[(&str, &Tensor)]) -> Result<FileEntry, WeightsError> {
    let outgoing = tensors.iter().map(|(name, tensor)| Outgoing {
        name,
        shape: tensor.size(),
        values: tensor.shallow_clone(),
    });
    write_file(path, Kind::Float, &outgoing.collect::<Vec<_>>())
}

/// Writes `config.json` and the weights `flat` in `kind`; more than 5 GB go into numbered files with an
/// index.
///
/// # Errors
/// [`WeightsError::Io`], naming the file.
pub fn write_model(
    dir: &Path,
    (config, layout): (&ModelConfig, &Layout),
    flat: &Tensor,
    kind: Kind,
) -> Result<Written, WeightsError> {
    std::fs::create_dir_all(dir).map_err(io(dir))?;
    let mut written = Written::new();
    let bytes_each = kind.elt_size_in_bytes() as i64;
    let shards = shards(layout, bytes_each);
    let mut map = Map::new();
    for (number, shard) in shards.iter().enumerate() {
        let name = match shards.len() {
            1 => SINGLE_FILE.to_owned(),
            count => format!("model-{:05}-of-{count:05}.safetensors", number + 1),
        };
        let tensors = shard.iter().map(|t| Outgoing {
            name: &t.name,
            shape: t.shape.clone(),
            values: flat.narrow(0, t.offset, t.numel()),
        });
        let entry = write_file(&dir.join(&name), kind, &tensors.collect::<Vec<_>>())?;
        map.extend(shard.iter().map(|t| (t.name.clone(), Value::String(name.clone()))));
        written.push((name, entry));
    }
    if shards.len() > 1 {
        let index = json!({"metadata": {"total_size": layout.numel() * bytes_each}, "weight_map": map});
        written.push((INDEX_FILE.to_owned(), write_json(&dir.join(INDEX_FILE), &index)?));
    }
    let mut raw = config.raw.clone();
    if let Some(raw) = raw.as_object_mut() {
        let dtype = if kind == Kind::BFloat16 { "bfloat16" } else { "float32" };
        let key = if raw.contains_key("torch_dtype") { "torch_dtype" } else { "dtype" };
        raw.insert(key.to_owned(), json!(dtype));
    }
    written.push(("config.json".to_owned(), write_json(&dir.join("config.json"), &raw)?));
    Ok(written)
}

/// The tensors of each file.
fn shards(layout: &Layout, bytes_each: i64) -> Vec<Vec<&FileTensor>> {
    let mut shards: Vec<Vec<&FileTensor>> = vec![Vec::new()];
    let mut filled = 0;
    for tensor in layout.blocks().iter().flat_map(|b| &b.files) {
        let bytes = tensor.numel() * bytes_each;
        if filled > 0 && filled + bytes > SHARD_BYTES {
            shards.push(Vec::new());
            filled = 0;
        }
        shards.last_mut().expect("there is a first shard").push(tensor);
        filled += bytes;
    }
    shards
}

/// The length of the header, the header, and the tensors' bytes in its order.
fn write_file(path: &Path, kind: Kind, tensors: &[Outgoing<'_>]) -> Result<FileEntry, WeightsError> {
    let mut file = Noting::new(File::create(path).map_err(io(path))?);
    let header = header(kind, tensors);
    file.write_all(&(header.len() as u64).to_le_bytes()).map_err(io(path))?;
    file.write_all(&header).map_err(io(path))?;
    let mut bytes = Vec::new();
    for tensor in tensors {
        let numel = tensor.values.numel() as i64;
        for start in (0..numel).step_by(PIECE as usize) {
            let piece = tensor.values.f_narrow(0, start, PIECE.min(numel - start))?;
            let piece = piece.f_detach()?.f_to_device(Device::Cpu)?.f_to_kind(kind)?.f_contiguous()?;
            bytes.resize(piece.numel() * kind.elt_size_in_bytes(), 0);
            piece.f_copy_data_u8(&mut bytes, piece.numel())?;
            file.write_all(&bytes).map_err(io(path))?;
            pulse::beat();
        }
    }
    file.inner().sync_all().map_err(io(path))?;
    Ok(file.entry())
}

/// JSON, filled up with spaces so that the tensors begin at a multiple of 8 bytes.
fn header(kind: Kind, tensors: &[Outgoing<'_>]) -> Vec<u8> {
    let dtype = if kind == Kind::BFloat16 { "BF16" } else { "F32" };
    let mut header = Map::from_iter([("__metadata__".to_owned(), json!({"format": "pt"}))]);
    let mut start = 0;
    for tensor in tensors {
        let end = start + tensor.values.numel() * kind.elt_size_in_bytes();
        let info = json!({"dtype": dtype, "shape": tensor.shape, "data_offsets": [start, end]});
        header.insert(tensor.name.to_owned(), info);
        start = end;
    }
    let mut text = Value::Object(header).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    text
}

fn write_json(path: &Path, value: &Value) -> Result<FileEntry, WeightsError> {
    let write = || -> std::io::Result<FileEntry> {
        let mut file = Noting::new(File::create(path)?);
        file.write_all(format!("{value:#}\n").as_bytes())?;
        file.inner().sync_all()?;
        Ok(file.entry())
    };
    write().map_err(io(path))
}

#[cfg(test)]
mod tests {
    use safetensors::SafeTensors;

    use super::*;

    #[test]
    fn a_file_reads_back_and_is_what_was_noted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tensors");
        // More than two pieces, and one of a few elements.
        let long = Tensor::arange(2 * PIECE + 3, (Kind::Float, Device::Cpu)) / 7.0;
        let short = Tensor::from_slice(&[1.5f32, -2.0]);
        let entry = write_tensors(&path, &[("long", &long), ("short", &short)]).unwrap();
        assert_eq!(entry, FileEntry::of_file(&path).unwrap());
        let bytes = std::fs::read(&path).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        for (name, values) in [("long", &long), ("short", &short)] {
            let view = file.tensor(name).unwrap();
            assert_eq!(view.shape(), [values.numel()]);
            let back = Tensor::from_data_size(view.data(), &[values.numel() as i64], Kind::Float);
            assert!(back.equal(values));
        }
        // Rounded while it is written, as libtorch rounds.
        let tensor = Outgoing { name: "x", shape: vec![2 * PIECE + 3], values: long.shallow_clone() };
        write_file(&path, Kind::BFloat16, &[tensor]).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let data = file.tensor("x").unwrap();
        let back = Tensor::from_data_size(data.data(), &[2 * PIECE + 3], Kind::BFloat16);
        assert!(back.equal(&long.to_kind(Kind::BFloat16)));
    }
}
