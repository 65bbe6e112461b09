//! The language model: shape, parameters, files, forward pass.
//!
//! `config` reads what the model is, `layout` says where each parameter lies in one flat buffer, `shard` which
//! optimizer state lies on which rank,
//! `files` fills that buffer from safetensors, `saving` writes it back, `weights` owns it, `host` is memory for optimizer
//! state beside the device. `ops` are the
//! operations between products, `attention` is that of packed segments, `layer` puts them together, `decoder` runs the
//! layers. Nothing here knows
//! about rollouts or losses.

pub mod attention;
pub mod config;
pub mod decoder;
pub mod files;
pub mod host;
pub mod layer;
pub mod layout;
pub mod ops;
pub mod saving;
pub mod shard;
pub mod weights;

pub use config::ModelConfig;
pub use decoder::Model;
pub use weights::{Placement, Weights};
