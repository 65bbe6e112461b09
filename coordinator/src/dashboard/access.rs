//! Who may read what, and the headers of every answer.
//!
//! Numbers are as open as `/metrics`. Prompts, responses and the configuration are not:
//!
//! | a token is set | the port is on | texts are for |
//! |---|---|---|
//! | yes | anything | whoever sends it as `Authorization: Bearer` |
//! | no | loopback | whoever asks for a name of this machine: another site's name may point here, its pages must not read this |
//! | no | the network | nobody |

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use axum::extract::Request;
use axum::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;
use g2rl_common::secret::Secret;
use metrics::counter;

use crate::security::Throttle;

/// Scripts and styles are files of this port; nothing else is loaded, from nowhere.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
     connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Why a text is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refused {
    #[error("prompts, responses and the configuration are shown to whoever has the run's token")]
    Token,
    #[error(
        "prompts, responses and the configuration are not shown on a port that the network can reach: set \
         security.token_file, or put cluster.http on loopback"
    )]
    Network,
    #[error(
        "prompts, responses and the configuration are shown under a name of this machine only, such as localhost"
    )]
    Host,
}

/// See the module's documentation.
#[derive(Debug, Clone)]
pub(crate) struct Access {
    token: Option<Arc<Secret>>,
    loopback: bool,
    log: Arc<Throttle>,
}

impl Access {
    pub(crate) fn new(token: Option<Arc<Secret>>, address: SocketAddr) -> Self {
        let loopback = address.ip().to_canonical().is_loopback();
        Self { token, loopback, log: Arc::default() }
    }

    /// Whether texts need the token.
    pub(super) fn wants_token(&self) -> bool {
        self.token.is_some()
    }

    /// Whether a request may read texts.
    pub(super) fn to_texts(&self, headers: &HeaderMap) -> Result<(), Refused> {
        if let Some(token) = &self.token {
            let given = headers.get(header::AUTHORIZATION).map(HeaderValue::as_bytes);
            let given = given.and_then(|value| value.strip_prefix(b"Bearer "));
            if given.is_some_and(|given| token.matches(given)) {
                return Ok(());
            }
            // Pages ask without it first, to hear that it is needed.
            if given.is_some() {
                counter!("g2rl_auth_failures_total").increment(1);
                if let Some(times) = self.log.pass(Instant::now()) {
                    tracing::warn!(times, "refused a request to the dashboard with a wrong token");
                }
            }
            return Err(Refused::Token);
        }
        if !self.loopback {
            return Err(Refused::Network);
        }
        let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
        if host.is_some_and(names_this_machine) { Ok(()) } else { Err(Refused::Host) }
    }
}

/// Whether a `Host` header names loopback.
fn names_this_machine(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let address = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(name);
    name.eq_ignore_ascii_case("localhost")
        || address.parse().is_ok_and(|address: IpAddr| address.to_canonical().is_loopback())
}

/// Puts the headers on that every answer has.
pub(super) async fn headers(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        // The gate counts a connection's age, not a request's: on one that is kept, a stream of events would be cut.
        (header::CONNECTION, "close"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "0123456789abcdef-known";

    fn asked(headers: &[(HeaderName, &str)], token: bool, address: &str) -> Result<(), Refused> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), TOKEN).unwrap();
        let secret = Secret::find(Some(file.path())).unwrap().map(Arc::new).filter(|_| token);
        let headers =
            headers.iter().map(|(name, value)| (name.clone(), HeaderValue::from_str(value).unwrap()));
        Access::new(secret, address.parse().unwrap()).to_texts(&headers.collect())
    }

    #[test]
    fn with_a_token_texts_are_for_who_has_it() {
        let right = format!("Bearer {TOKEN}");
        for address in ["127.0.0.1:7701", "0.0.0.0:7701"] {
            let ask = |headers: &[(HeaderName, &str)]| asked(headers, true, address);
            assert_eq!(ask(&[(header::AUTHORIZATION, &right)]), Ok(()));
            for wrong in
                ["", TOKEN, "Bearer ", "Bearer 0123456789abcdef-knowm", "Basic 0123456789abcdef-known"]
            {
                assert_eq!(ask(&[(header::AUTHORIZATION, wrong)]), Err(Refused::Token), "{wrong}");
            }
            assert_eq!(ask(&[(header::HOST, "localhost")]), Err(Refused::Token));
        }
    }

    #[test]
    fn without_a_token_texts_stay_on_the_machine() {
        let ask = |host: &str, address: &str| asked(&[(header::HOST, host)], false, address);
        for host in ["localhost", "LOCALHOST:7701", "127.0.0.1:7701", "127.8.8.8", "[::1]:7701", "[::1]"] {
            assert_eq!(ask(host, "127.0.0.1:7701"), Ok(()), "{host}");
            assert_eq!(ask(host, "0.0.0.0:7701"), Err(Refused::Network), "{host}");
        }
        assert_eq!(ask("[::ffff:127.0.0.1]", "[::1]:7701"), Ok(()));
        for host in
            ["", "evil.example", "localhost.evil.example:7701", "10.0.0.1", "127.0.0.1.evil.example", "::"]
        {
            assert_eq!(ask(host, "127.0.0.1:7701"), Err(Refused::Host), "{host}");
        }
        assert_eq!(asked(&[], false, "127.0.0.1:7701"), Err(Refused::Host));
    }
}
