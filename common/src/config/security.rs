//! `[security]`: who may join, and what strangers cannot do.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ConfigError;
use super::validate::{at_least_one, refuse};

/// `[security]`
///
/// Holds names of files, never a secret: it is written to the run's directory and sent to workers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SecurityConfig {
    /// Certificates of the gRPC port, PEM, the coordinator's own first; the port then speaks TLS only.
    pub tls_certificate: Option<PathBuf>,
    /// The private key of the first of them, PEM.
    pub tls_key: Option<PathBuf>,
    /// Authority, PEM, that must have signed the certificate which every worker shows (mutual TLS).
    pub client_ca: Option<PathBuf>,
    /// File with the token that every worker must send; unset is the variable `G2RL_TOKEN`, and without
    /// that no token is asked for.
    pub token_file: Option<PathBuf>,
    /// Listen on the network also without TLS, or without a token and `client_ca`.
    pub allow_plaintext_network: bool,
    /// Authority, PEM, by which workers started with `--local-workers` know the coordinator; unset is the
    /// system's authorities.
    pub worker_ca: Option<PathBuf>,
    /// Certificate that they show if `client_ca` is set, PEM.
    pub worker_certificate: Option<PathBuf>,
    /// Its private key, PEM.
    pub worker_key: Option<PathBuf>,
    /// Name that they look for in the coordinator's certificate; unset is the address they connect to.
    pub server_name: Option<String>,
    /// Connections to the gRPC port at once, at most a quarter of them from one address before their hello.
    #[schemars(range(min = 1))]
    pub max_connections: u32,
    /// New connections to the gRPC port that one address may make in a minute.
    #[schemars(range(min = 1))]
    pub connections_per_minute: u32,
    /// A connection that has not said hello by then is closed, milliseconds.
    #[schemars(range(min = 1))]
    pub hello_timeout_ms: u64,
}

impl Default for SecurityConfig {
    fn default() -> Self {
        Self {
            tls_certificate: None,
            tls_key: None,
            client_ca: None,
            token_file: None,
            allow_plaintext_network: false,
            worker_ca: None,
            worker_certificate: None,
            worker_key: None,
            server_name: None,
            max_connections: 4096,
            connections_per_minute: 1200,
            hello_timeout_ms: 10_000,
        }
    }
}

impl SecurityConfig {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        let pair = |key: &str, one: &Option<PathBuf>, other: &str, another: &Option<PathBuf>| {
            if one.is_some() == another.is_some() {
                return Ok(());
            }
            let missing = if one.is_some() { other } else { key };
            Err(refuse(missing, format!("{key} and {other} belong together: set both or neither")))
        };
        let certificate = &self.tls_certificate;
        pair("security.tls_certificate", certificate, "security.tls_key", &self.tls_key)?;
        let worker = &self.worker_certificate;
        pair("security.worker_certificate", worker, "security.worker_key", &self.worker_key)?;
        for (key, set) in [
            ("security.client_ca", self.client_ca.is_some()),
            ("security.worker_ca", self.worker_ca.is_some()),
            ("security.server_name", self.server_name.is_some()),
        ] {
            if set && certificate.is_none() {
                let message = "needs TLS: set security.tls_certificate and security.tls_key";
                return Err(refuse(key, message));
            }
        }
        at_least_one("security.max_connections", self.max_connections.into())?;
        at_least_one("security.connections_per_minute", self.connections_per_minute.into())?;
        at_least_one("security.hello_timeout_ms", self.hello_timeout_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        let config: SecurityConfig = toml::from_str(text).unwrap();
        config.validate().map_or_else(|error| error.to_string(), |()| "valid".to_owned())
    }

    #[test]
    fn files_that_belong_together_are_asked_for_by_name() {
        assert_eq!(error(""), "valid");
        assert_eq!(error("tls_certificate = 'c'\ntls_key = 'k'\nclient_ca = 'a'"), "valid");
        assert!(error("tls_certificate = 'c'").starts_with("configuration key security.tls_key"));
        assert!(error("tls_key = 'k'").starts_with("configuration key security.tls_certificate"));
        assert!(error("worker_key = 'k'").starts_with("configuration key security.worker_certificate"));
        assert!(error("client_ca = 'a'").contains("security.client_ca: needs TLS"));
        assert!(error("max_connections = 0").contains("security.max_connections"));
    }

    #[test]
    fn a_token_cannot_be_written_into_the_file() {
        let error = toml::from_str::<SecurityConfig>("token = 'abc'").unwrap_err().to_string();
        assert!(error.contains("unknown field `token`"), "{error}");
    }
}
