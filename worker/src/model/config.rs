//! The decoder's shape, from a Hugging Face `config.json`.
//!
//! In: the JSON file. Out: [`ModelConfig`], the numbers and switches the decoder knows. Anything
//! the decoder would compute differently from the file's author is refused by name.

use std::path::{Path, PathBuf};

use serde_json::Value;

/// Largest `config.json` that is read, bytes.
const MAX_BYTES: u64 = 1 << 20;

/// Largest sizes, several times those of any model: their products, such as the number of parameters, fit into
/// 64 bits.
mod most {
    pub(super) const WIDTH: i64 = 1 << 18;
    pub(super) const INTERMEDIATE: i64 = 1 << 20;
    pub(super) const VOCABULARY: i64 = 1 << 22;
    pub(super) const LAYERS: i64 = 1 << 12;
    pub(super) const HEADS: i64 = 1 << 12;
    pub(super) const POSITIONS: i64 = 1 << 32;
}

/// Why a `config.json` is refused.
#[derive(Debug, thiserror::Error)]
pub enum ModelConfigError {
    /// The file cannot be read.
    #[error("cannot read {path}: {cause}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The cause.
        cause: std::io::Error,
    },
    /// The file is not JSON.
    #[error("{path} is not valid JSON: {cause}")]
    NotJson {
        /// The file.
        path: PathBuf,
        /// The cause.
        cause: serde_json::Error,
    },
    /// A key is missing or has the wrong type.
    #[error("{path}: key {key} is missing or not {expected}")]
    BadKey {
        /// The file.
        path: PathBuf,
        /// The key.
        key: &'static str,
        /// The type it must have.
        expected: &'static str,
    },
    /// The model uses something the decoder does not have.
    #[error("{path}: {key} = {value} is not supported (supported: {supported})")]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The key.
        key: &'static str,
        /// Its value.
        value: String,
        /// What would be.
        supported: &'static str,
    },
}

/// How the rotary frequencies are stretched for longer sequences.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// All divided by a factor.
    Linear {
        /// The factor, above 0.
        factor: f64,
    },
    /// Llama 3.1: frequencies of long waves are divided by the factor, those of short waves stay, and
    /// between the two bounds they pass over.
    Llama3 {
        /// The factor of the longest waves.
        factor: f64,
        /// Waves longer than the original length over this are long.
        low_freq_factor: f64,
        /// Waves shorter than the original length over this are short.
        high_freq_factor: f64,
        /// Sequence length before stretching, tokens.
        original_positions: f64,
    },
}

impl RopeScaling {
    /// The stretched frequencies, radians per position, of the unstretched ones. In f32, as
    /// transformers computes them.
    #[must_use]
    pub fn stretch(self, frequencies: &[f32]) -> Vec<f32> {
        let one = |frequency: f32| match self {
            Self::None => frequency,
            Self::Linear { factor } => frequency / factor as f32,
            Self::Llama3 { factor, low_freq_factor, high_freq_factor, original_positions } => {
                let (low, high) = (low_freq_factor as f32, high_freq_factor as f32);
                let (factor, original) = (factor as f32, original_positions as f32);
                let wavelength = 2.0 * std::f32::consts::PI / frequency;
                if wavelength > original / low {
                    frequency / factor
                } else if wavelength < original / high {
                    frequency
                } else {
                    let smooth = (original / wavelength - low) / (high - low);
                    (1.0 - smooth) * frequency / factor + smooth * frequency
                }
            }
        };
        frequencies.iter().copied().map(one).collect()
    }
}

/// The decoder's shape.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// Width of the residual stream.
    pub hidden_size: i64,
    /// Number of layers.
    pub layers: i64,
    /// Number of query heads.
    pub heads: i64,
    /// Number of key and value heads; divides `heads`.
    pub kv_heads: i64,
    /// Width of a head; need not be `hidden_size / heads`.
    pub head_dim: i64,
    /// Width of the feed-forward layer.
    pub intermediate_size: i64,
    /// Number of rows of embedding and head.
    pub vocab_size: i64,
    /// Added to the mean square in the norms.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// How the rotary frequencies are stretched for longer sequences.
    pub rope_scaling: RopeScaling,
    /// Longest sequence the model was made for, tokens.
    pub max_positions: i64,
    /// The head is the embedding.
    pub tied_embeddings: bool,
    /// Queries and keys are normalised per head (Qwen3).
    pub qk_norm: bool,
    /// Queries, keys and values have biases (Qwen2).
    pub qkv_bias: bool,
    /// The file's JSON, written back with a checkpoint.
    pub raw: Value,
}

impl ModelConfig {
    /// Reads `config.json` in `dir`.
    ///
    /// # Errors
    /// [`ModelConfigError`], naming file and key.
    pub fn load(dir: &Path) -> Result<Self, ModelConfigError> {
        Self::load_file(&dir.join("config.json"))
    }

    /// Reads a file of `config.json`'s form.
    ///
    /// # Errors
    /// [`ModelConfigError`], naming file and key.
    pub fn load_file(path: &Path) -> Result<Self, ModelConfigError> {
        let text = g2rl_hub::read_text_limited(path, MAX_BYTES)
            .map_err(|cause| ModelConfigError::Unreadable { path: path.to_owned(), cause })?;
        let raw: Value = serde_json::from_str(&text)
            .map_err(|cause| ModelConfigError::NotJson { path: path.to_owned(), cause })?;
        Reader { path, raw: &raw }.read()
    }

    /// Number of values of a token's query, key and value together.
    #[must_use]
    pub fn qkv_size(&self) -> i64 {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    /// Number of parameters.
    #[must_use]
    pub fn parameters(&self) -> i64 {
        let (h, d) = (self.hidden_size, self.head_dim);
        let norms = 2 * h + if self.qk_norm { 2 * d } else { 0 };
        let biases = if self.qkv_bias { self.qkv_size() } else { 0 };
        let layer =
            self.qkv_size() * h + self.heads * d * h + 3 * self.intermediate_size * h + norms + biases;
        let embeddings = self.vocab_size * h * if self.tied_embeddings { 1 } else { 2 };
        self.layers * layer + embeddings + h
    }
}

struct Reader<'a> {
    path: &'a Path,
    raw: &'a Value,
}

impl Reader<'_> {
    fn read(&self) -> Result<ModelConfig, ModelConfigError> {
        let family = self.raw.get("model_type").and_then(Value::as_str);
        self.only("model_type", family, &["qwen3", "qwen2", "llama"], "qwen3, qwen2, llama")?;
        self.only("hidden_act", self.raw.get("hidden_act").and_then(Value::as_str), &["silu"], "silu")?;
        for key in ["attention_bias", "mlp_bias", "use_sliding_window"] {
            if self.raw.get(key).and_then(Value::as_bool) == Some(true) {
                return Err(self.unsupported(key, "true".to_owned(), "false"));
            }
        }
        let (rope_theta, rope_scaling) = self.rope()?;
        let (hidden_size, heads) =
            (self.size("hidden_size", most::WIDTH)?, self.size("num_attention_heads", most::HEADS)?);
        let kv_heads = self.size("num_key_value_heads", most::HEADS)?;
        if heads % kv_heads != 0 {
            return Err(self.unsupported(
                "num_key_value_heads",
                kv_heads.to_string(),
                "a divisor of num_attention_heads",
            ));
        }
        let head_dim = if self.raw.get("head_dim").is_some_and(Value::is_number) {
            self.size("head_dim", most::WIDTH / heads)?
        } else {
            hidden_size / heads
        };
        if head_dim % 2 != 0 || head_dim == 0 {
            return Err(self.unsupported("head_dim", head_dim.to_string(), "even numbers"));
        }
        Ok(ModelConfig {
            hidden_size,
            layers: self.size("num_hidden_layers", most::LAYERS)?,
            heads,
            kv_heads,
            head_dim,
            intermediate_size: self.size("intermediate_size", most::INTERMEDIATE)?,
            vocab_size: self.size("vocab_size", most::VOCABULARY)?,
            rms_norm_eps: self.positive("rms_norm_eps", self.raw.get("rms_norm_eps"))?,
            rope_theta,
            rope_scaling,
            max_positions: self.size("max_position_embeddings", most::POSITIONS)?,
            tied_embeddings: self.raw.get("tie_word_embeddings").and_then(Value::as_bool).unwrap_or(false),
            qk_norm: family == Some("qwen3"),
            qkv_bias: family == Some("qwen2"),
            raw: self.raw.clone(),
        })
    }

    /// Transformers 5 keeps the rotary settings in `rope_parameters`, earlier ones beside the
    /// other keys with `rope_scaling`.
    fn rope(&self) -> Result<(f64, RopeScaling), ModelConfigError> {
        let object = |key: &str| self.raw.get(key).filter(|value| value.is_object());
        let nested = object("rope_parameters");
        let settings = nested.or_else(|| object("rope_scaling"));
        let theta = nested.and_then(|n| n.get("rope_theta")).or_else(|| self.raw.get("rope_theta"));
        // Llama's first models do not name it.
        let llama = self.raw.get("model_type").and_then(Value::as_str) == Some("llama");
        let theta = match theta {
            None if llama => 1e4,
            theta => self.positive("rope_theta", theta)?,
        };
        let kind = settings.and_then(|s| s.get("rope_type").or_else(|| s.get("type")));
        let number = |key: &'static str| self.positive(key, settings.and_then(|s| s.get(key)));
        let scaling = match kind.map(Value::as_str) {
            None | Some(Some("default")) => RopeScaling::None,
            Some(Some("linear")) => RopeScaling::Linear { factor: number("factor")? },
            Some(Some("llama3")) => {
                let (low, high) = (number("low_freq_factor")?, number("high_freq_factor")?);
                if low >= high {
                    return Err(self.unsupported(
                        "low_freq_factor",
                        low.to_string(),
                        "numbers below high_freq_factor",
                    ));
                }
                RopeScaling::Llama3 {
                    factor: number("factor")?,
                    low_freq_factor: low,
                    high_freq_factor: high,
                    original_positions: number("original_max_position_embeddings")?,
                }
            }
            Some(other) => {
                let value = other.unwrap_or("(not a text)").to_owned();
                return Err(self.unsupported("rope_type", value, "default, linear, llama3"));
            }
        };
        Ok((theta, scaling))
    }

    fn positive(&self, key: &'static str, value: Option<&Value>) -> Result<f64, ModelConfigError> {
        value.and_then(Value::as_f64).filter(|number| *number > 0.0).ok_or(ModelConfigError::BadKey {
            path: self.path.to_owned(),
            key,
            expected: "a positive number",
        })
    }

    fn size(&self, key: &'static str, most: i64) -> Result<i64, ModelConfigError> {
        let value = self.raw.get(key).and_then(Value::as_i64).filter(|n| *n > 0);
        let size = value.ok_or_else(|| ModelConfigError::BadKey {
            path: self.path.to_owned(),
            key,
            expected: "a positive integer",
        })?;
        if size > most {
            return Err(self.unsupported(key, size.to_string(), "sizes of real models"));
        }
        Ok(size)
    }

    fn only(
        &self,
        key: &'static str,
        value: Option<&str>,
        allowed: &[&str],
        supported: &'static str,
    ) -> Result<(), ModelConfigError> {
        match value {
            Some(value) if allowed.contains(&value) => Ok(()),
            other => Err(self.unsupported(key, other.unwrap_or("(missing)").to_owned(), supported)),
        }
    }

    fn unsupported(&self, key: &'static str, value: String, supported: &'static str) -> ModelConfigError {
        ModelConfigError::Unsupported { path: self.path.to_owned(), key, value, supported }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn config(key: &str, value: Value) -> Result<ModelConfig, String> {
        let mut raw = json!({
            "model_type": "llama", "hidden_act": "silu", "hidden_size": 64, "num_attention_heads": 4,
            "num_key_value_heads": 2, "num_hidden_layers": 2, "intermediate_size": 128, "vocab_size": 100,
            "rms_norm_eps": 1e-6, "max_position_embeddings": 128,
        });
        raw[key] = value;
        Reader { path: Path::new("config.json"), raw: &raw }.read().map_err(|error| error.to_string())
    }

    #[test]
    fn sizes_have_limits_and_their_products_fit() {
        assert!(config("vocab_size", json!(100)).is_ok());
        for key in [
            "hidden_size",
            "num_attention_heads",
            "num_key_value_heads",
            "head_dim",
            "num_hidden_layers",
            "intermediate_size",
            "vocab_size",
            "max_position_embeddings",
        ] {
            for value in [json!(0), json!(-4), json!(i64::MAX), json!(1e300), json!("64")] {
                // A head_dim that is no number is taken as not given.
                if key != "head_dim" || value.is_number() {
                    let error = config(key, value.clone()).unwrap_err();
                    assert!(error.contains(key), "{key} = {value}: {error}");
                }
            }
        }
        // A head would have no width.
        assert!(config("num_attention_heads", json!(128)).unwrap_err().contains("head_dim"));
        assert!(config("rms_norm_eps", json!(-1.0)).unwrap_err().contains("rms_norm_eps"));

        let (heads, head_dim) = (most::HEADS, most::WIDTH / most::HEADS);
        let largest = ModelConfig {
            hidden_size: most::WIDTH,
            layers: most::LAYERS,
            heads,
            kv_heads: heads,
            head_dim,
            intermediate_size: most::INTERMEDIATE,
            vocab_size: most::VOCABULARY,
            ..config("vocab_size", json!(100)).unwrap()
        };
        // Bytes of the moments.
        assert!(largest.parameters().checked_mul(16).is_some());
    }
}
