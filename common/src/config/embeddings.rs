//! `[embeddings]`: a service that embeds texts.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ConfigError;
use super::validate::{at_least_one, refuse};

/// `[embeddings]`: a service with OpenAI's `POST /v1/embeddings`, such as text-embeddings-inference or vLLM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct EmbeddingsConfig {
    /// Where texts are posted to, such as `http://127.0.0.1:8080/v1/embeddings`; needed by `evol`.
    pub url: String,
    /// Name of the model, as the service knows it.
    pub model: String,
    /// Environment variable of the coordinator whose value is sent as the header `authorization`.
    pub authorization_env: Option<String>,
    /// Texts of a request at most.
    #[schemars(range(min = 1))]
    pub batch_size: u32,
    /// Deadline of a request, milliseconds.
    #[schemars(range(min = 1))]
    pub timeout_ms: u64,
    /// Further attempts of a request that failed, after pauses that double from a quarter of a second to ten
    /// seconds. When all have failed the run ends, and goes on with `--resume`.
    pub retries: u32,
}

impl Default for EmbeddingsConfig {
    fn default() -> Self {
        Self {
            url: String::new(),
            model: "embedding".to_owned(),
            authorization_env: None,
            batch_size: 64,
            timeout_ms: 30_000,
            retries: 20,
        }
    }
}

impl EmbeddingsConfig {
    /// Checks the ranges; `needed` says whether the run embeds anything.
    pub(super) fn validate(&self, needed: bool) -> Result<(), ConfigError> {
        at_least_one("embeddings.batch_size", self.batch_size.into())?;
        at_least_one("embeddings.timeout_ms", self.timeout_ms)?;
        let http = self.url.starts_with("http://") || self.url.starts_with("https://");
        match (self.url.is_empty(), http) {
            (true, _) if needed => Err(refuse("embeddings.url", "evol needs the address of a service")),
            (false, false) => Err(refuse("embeddings.url", "must begin with http:// or https://")),
            _ => Ok(()),
        }
    }
}
