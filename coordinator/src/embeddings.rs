//! Texts -> vectors, by a service with OpenAI's `POST /v1/embeddings`.
//!
//! In: texts. Out: a vector for each, all of one width. Equal texts are asked once. A failed request is tried
//! again with growing pauses; a service that refuses it is not asked again.

use std::collections::BTreeMap;
use std::time::Duration;

use g2rl_common::config::EmbeddingsConfig;
use serde::{Deserialize, Serialize};

use crate::endpoint::{Endpoint, Failure, Unusable, beginning};

/// Pause before the first further attempt; each next one is twice as long, up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// Why there are no vectors.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum EmbeddingError {
    /// A key of the configuration cannot be used.
    #[error("configuration key embeddings.{key}: {cause}")]
    Configuration { key: &'static str, cause: String },
    /// All attempts failed.
    #[error("embedding service {url} failed {attempts} times in a row, the last time: {cause}")]
    Failed { url: String, attempts: u32, cause: String },
    /// Asking again would not help.
    #[error("embedding service {url} refused a request: {cause}")]
    Refused { url: String, cause: String },
}

#[derive(Serialize)]
struct Request<'a> {
    model: &'a str,
    input: &'a [&'a str],
    encoding_format: &'static str,
}

#[derive(Deserialize)]
struct Answer {
    data: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    index: usize,
    embedding: Vec<f32>,
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Embedder {
    config: EmbeddingsConfig,
    endpoint: Endpoint,
}

impl Embedder {
    /// Asks nothing yet.
    ///
    /// # Errors
    /// [`EmbeddingError::Configuration`].
    pub(crate) fn new(config: &EmbeddingsConfig) -> Result<Self, EmbeddingError> {
        let endpoint = Endpoint::new(&config.url, config.authorization_env.as_deref(), config.timeout_ms)
            .map_err(|Unusable { key, cause }| EmbeddingError::Configuration { key, cause })?;
        Ok(Self { config: config.clone(), endpoint })
    }

    /// A vector for each text, in their order.
    ///
    /// # Errors
    /// If the service refuses, or fails too often.
    pub(crate) async fn embed(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>, EmbeddingError> {
        let distinct: Vec<&str> =
            texts.iter().copied().collect::<std::collections::BTreeSet<_>>().into_iter().collect();
        let mut vectors: BTreeMap<&str, Vec<f32>> = BTreeMap::new();
        for batch in distinct.chunks(self.config.batch_size as usize) {
            vectors.extend(batch.iter().copied().zip(self.ask(batch).await?));
        }
        let widths: std::collections::BTreeSet<usize> = vectors.values().map(Vec::len).collect();
        if widths.len() > 1 {
            let cause = format!("vectors of different widths: {widths:?}");
            return Err(EmbeddingError::Refused { url: self.config.url.clone(), cause });
        }
        Ok(texts.iter().map(|text| vectors[text].clone()).collect())
    }

    /// The vectors of one request, after as many attempts as it takes.
    async fn ask(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>, EmbeddingError> {
        let (url, mut pause) = (|| self.config.url.clone(), FIRST_PAUSE);
        let mut attempts = 0;
        loop {
            let cause = match self.attempt(texts).await {
                Ok(vectors) => return Ok(vectors),
                Err(Failure::Refused(cause)) => return Err(EmbeddingError::Refused { url: url(), cause }),
                Err(Failure::Unavailable(cause)) => cause,
            };
            attempts += 1;
            if attempts > self.config.retries {
                return Err(EmbeddingError::Failed { url: url(), attempts, cause });
            }
            tracing::warn!(attempts, cause, "embedding service {} failed; trying again", self.config.url);
            tokio::time::sleep(pause).await;
            pause = (2 * pause).min(LONGEST_PAUSE);
        }
    }

    async fn attempt(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>, Failure> {
        let request = Request { model: &self.config.model, input: texts, encoding_format: "float" };
        let body = serde_json::to_vec(&request).map_err(|error| Failure::Refused(error.to_string()))?;
        vectors(&self.endpoint.post(body).await?, texts.len())
    }
}

/// Reads an answer; its entries may have any order.
fn vectors(answer: &[u8], expected: usize) -> Result<Vec<Vec<f32>>, Failure> {
    let wrong = |what: String| Failure::Unavailable(format!("{what}: {}", beginning(answer)));
    let Answer { mut data } = serde_json::from_slice(answer)
        .map_err(|error| wrong(format!("the answer is no list of embeddings ({error})")))?;
    data.sort_by_key(|entry| entry.index);
    if !data.iter().map(|entry| entry.index).eq(0..expected) {
        return Err(wrong(format!("{} embeddings for {expected} texts", data.len())));
    }
    if data.iter().any(|entry| entry.embedding.is_empty() || !entry.embedding.iter().all(|x| x.is_finite())) {
        return Err(wrong("an embedding is empty or not finite".to_owned()));
    }
    Ok(data.into_iter().map(|entry| entry.embedding).collect())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use axum::Router;
    use axum::http::StatusCode;
    use axum::routing::post;
    use serde_json::{Value, json};

    use super::*;

    /// A service that fails its first two requests and then gives each text its length, in reverse order.
    async fn service(asked: Arc<AtomicUsize>, body: String) -> (StatusCode, String) {
        if asked.fetch_add(1, Ordering::SeqCst) < 2 {
            return (StatusCode::SERVICE_UNAVAILABLE, "loading".to_owned());
        }
        let body: Value = serde_json::from_str(&body).unwrap();
        assert_eq!((&body["model"], &body["encoding_format"]), (&json!("m"), &json!("float")));
        let texts = body["input"].as_array().unwrap().iter().enumerate().rev();
        let entry = |(index, text): (usize, &Value)| json!({"object": "embedding", "index": index, "embedding": [text.as_str().unwrap().len(), 1]});
        (StatusCode::OK, json!({"object": "list", "data": texts.map(entry).collect::<Vec<_>>()}).to_string())
    }

    async fn embedder(retries: u32) -> (Embedder, Arc<AtomicUsize>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/v1/embeddings", listener.local_addr().unwrap());
        let asked = Arc::new(AtomicUsize::new(0));
        let state = asked.clone();
        let router = Router::new().route("/v1/embeddings", post(move |body: String| service(state, body)));
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        let config =
            EmbeddingsConfig { url, model: "m".to_owned(), batch_size: 2, retries, ..Default::default() };
        (Embedder::new(&config).unwrap(), asked)
    }

    #[tokio::test]
    async fn texts_are_asked_once_each_in_batches_and_failures_are_tried_again() {
        let (embedder, asked) = embedder(2).await;
        let found = embedder.embed(&["abc", "a", "abc", "", "ab"]).await.unwrap();
        assert_eq!(found, [[3.0, 1.0], [1.0, 1.0], [3.0, 1.0], [0.0, 1.0], [2.0, 1.0]]);
        // Two failures, then four texts in batches of two.
        assert_eq!(asked.load(Ordering::SeqCst), 4);
    }

    #[tokio::test]
    async fn a_service_that_stays_down_is_named() {
        let (embedder, _) = embedder(1).await;
        let error = embedder.embed(&["abc"]).await.unwrap_err().to_string();
        assert!(error.contains("/v1/embeddings failed 2 times") && error.contains("503"), "{error}");
    }

    #[test]
    fn wrong_answers_are_failures_of_the_service() {
        for (answer, cause) in [
            ("{\"data\":[]}", "0 embeddings for 1 texts"),
            ("{\"data\":[{\"index\":1,\"embedding\":[1]}]}", "1 embeddings for 1 texts"),
            ("{\"data\":[{\"index\":0,\"embedding\":[]}]}", "empty"),
            ("{\"error\":\"busy\"}", "no list of embeddings"),
        ] {
            match vectors(answer.as_bytes(), 1) {
                Err(Failure::Unavailable(text)) => assert!(text.contains(cause), "{answer}: {text}"),
                other => panic!("{answer}: {other:?}"),
            }
        }
    }
}
