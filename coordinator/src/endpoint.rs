//! One request to a service of the user's, and its answer.
//!
//! In: a JSON body. Out: the body of a successful answer, or a [`Failure`] that says whether asking again can
//! help. Must not know what is asked.

use std::error::Error;
use std::time::Duration;

use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use reqwest::{Client, Response, StatusCode, Url};

/// Longest answer that is read, bytes: some 20 for each number of the largest batches.
const MAX_ANSWER: usize = 64 << 20;

/// Beginning of an answer that an error shows, characters.
const SHOWN: usize = 200;

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Failure {
    /// The service cannot answer, or not as it should: it may later.
    #[error("{0}")]
    Unavailable(String),
    /// The service will not have this request.
    #[error("{0}")]
    Refused(String),
}

/// A setting that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unusable {
    /// Its key, without the section.
    pub(crate) key: &'static str,
    /// Why.
    pub(crate) cause: String,
}

/// Where requests go.
#[derive(Debug)]
pub(crate) struct Endpoint {
    client: Client,
    url: Url,
    authorization: Option<HeaderValue>,
}

impl Endpoint {
    /// An address, the environment variable with the value of the header `authorization`, and the deadline of a
    /// request.
    pub(crate) fn new(url: &str, authorization_env: Option<&str>, timeout_ms: u64) -> Result<Self, Unusable> {
        let url = Url::parse(url).map_err(|error| Unusable { key: "url", cause: error.to_string() })?;
        let authorization = authorization_env.map(authorization).transpose()?;
        let client = Client::builder()
            .timeout(Duration::from_millis(timeout_ms))
            .build()
            .map_err(|error| Unusable { key: "url", cause: chain(&error) })?;
        Ok(Self { client, url, authorization })
    }

    /// Posts a JSON body.
    pub(crate) async fn post(&self, body: Vec<u8>) -> Result<Vec<u8>, Failure> {
        let mut request = self.client.post(self.url.clone()).header(CONTENT_TYPE, "application/json");
        if let Some(value) = &self.authorization {
            request = request.header(AUTHORIZATION, value.clone());
        }
        let unavailable = |error: reqwest::Error| Failure::Unavailable(chain(&error.without_url()));
        let mut response = request.body(body).send().await.map_err(unavailable)?;
        let status = response.status();
        let answer = read(&mut response).await?;
        if status.is_success() {
            return Ok(answer);
        }
        let cause = format!("{status}: {}", beginning(&answer));
        Err(match status {
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => Failure::Unavailable(cause),
            _ if status.is_client_error() => Failure::Refused(cause),
            _ => Failure::Unavailable(cause),
        })
    }
}

fn authorization(name: &str) -> Result<HeaderValue, Unusable> {
    let bad = |cause: String| Unusable { key: "authorization_env", cause };
    let value = std::env::var(name).map_err(|_| bad(format!("the variable {name} is not set")))?;
    let value = HeaderValue::from_str(value.trim());
    let mut value = value.map_err(|_| bad(format!("the value of {name} cannot be a header")))?;
    value.set_sensitive(true);
    Ok(value)
}

/// An answer's body.
async fn read(response: &mut Response) -> Result<Vec<u8>, Failure> {
    let mut answer = Vec::new();
    loop {
        match response.chunk().await {
            Ok(None) => return Ok(answer),
            Ok(Some(chunk)) => answer.extend_from_slice(&chunk),
            Err(error) => return Err(Failure::Unavailable(chain(&error.without_url()))),
        }
        if answer.len() > MAX_ANSWER {
            return Err(Failure::Unavailable(format!("the answer is longer than {MAX_ANSWER} bytes")));
        }
    }
}

/// An error and its causes.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// The beginning of an answer, for an error.
pub(crate) fn beginning(answer: &[u8]) -> String {
    let text = String::from_utf8_lossy(&answer[..answer.len().min(4 * SHOWN)]);
    text.trim().chars().take(SHOWN).map(|c| if c.is_control() { ' ' } else { c }).collect()
}
