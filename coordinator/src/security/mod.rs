//! Who gets to say hello: certificates, token, and limits for strangers.
//!
//! In: the section `[security]`. Out: [`Security`], read and checked before a run touches anything. A
//! connection passes, in this order: `gate` (how many, how fast, how long without a hello), TLS (the
//! library's), `bearer` (the token, before any message is read), and the session's hello.

mod bearer;
mod gate;
mod limits;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use g2rl_common::config::{RunConfig, SecurityConfig};
use g2rl_common::secret::{Secret, TOKEN_VARIABLE, readable_by_others};
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};

pub(crate) use self::bearer::Bearer;
pub(crate) use self::gate::{GateOptions, GatedListener, Peer};
pub(crate) use self::limits::Throttle;

/// What the gRPC port asks of those who connect.
#[derive(Debug, Clone)]
pub(crate) struct Security {
    /// Everybody must send it, if there is one.
    pub(crate) token: Option<Arc<Secret>>,
    /// The port speaks TLS.
    pub(crate) tls: Option<ServerTlsConfig>,
    /// Of a stream.
    pub(crate) hello_timeout: Duration,
    /// Of the gRPC port.
    pub(crate) gate: GateOptions,
}

impl Security {
    /// Reads certificates and token, and decides whether they are enough for the address.
    ///
    /// # Errors
    /// If a file cannot be used, or the address can be reached from the network without them; names the
    /// settings.
    pub(crate) fn load(config: &RunConfig) -> anyhow::Result<Self> {
        let security = &config.security;
        let token = Secret::find(security.token_file.as_deref())?.map(Arc::new);
        for path in [&security.token_file, &security.tls_key].into_iter().flatten() {
            if readable_by_others(path) {
                tracing::warn!(path = %path.display(), "other users of this machine can read this file: chmod 600");
            }
        }
        let tls = tls(security)?;
        let listen = config.cluster.listen.parse().context("cluster.listen")?;
        check_address(listen, security, token.is_some())?;
        let hello_timeout = Duration::from_millis(security.hello_timeout_ms);
        let gate = GateOptions {
            connections: security.max_connections.min(limits::open_files() / 4 * 3),
            per_minute: security.connections_per_minute,
            // The stream's own end says why.
            deadline: hello_timeout + Duration::from_secs(2),
            expects_hello: true,
        };
        Ok(Self { token, tls, hello_timeout, gate })
    }

    /// Arguments by which local workers find and trust this coordinator; the token is not among them.
    ///
    /// # Errors
    /// If they would be refused.
    pub(crate) fn worker_arguments(config: &SecurityConfig) -> anyhow::Result<Vec<OsString>> {
        if config.client_ca.is_some() && config.worker_certificate.is_none() {
            bail!(
                "security.client_ca asks every worker for a certificate: for --local-workers set \
                 security.worker_certificate and security.worker_key"
            );
        }
        let files = [
            ("--ca", &config.worker_ca),
            ("--certificate", &config.worker_certificate),
            ("--key", &config.worker_key),
        ];
        let mut arguments = Vec::new();
        // Without TLS there is nothing to check.
        for (flag, path) in files.into_iter().filter(|_| config.tls_certificate.is_some()) {
            if let Some(path) = path {
                arguments.push(OsString::from(flag));
                arguments.push(std::path::absolute(path)?.into_os_string());
            }
        }
        if let Some(name) = &config.server_name {
            arguments.extend(["--server-name", name].map(OsString::from));
        }
        Ok(arguments)
    }
}

fn tls(config: &SecurityConfig) -> anyhow::Result<Option<ServerTlsConfig>> {
    let (Some(certificate), Some(key)) = (&config.tls_certificate, &config.tls_key) else { return Ok(None) };
    let identity =
        Identity::from_pem(pem("security.tls_certificate", certificate)?, pem("security.tls_key", key)?);
    let mut tls = ServerTlsConfig::new().identity(identity);
    if let Some(authority) = &config.client_ca {
        tls = tls.client_ca_root(Certificate::from_pem(pem("security.client_ca", authority)?));
    }
    // What is wrong with them shows now, not when the first worker connects.
    Server::builder().tls_config(tls.clone()).map_err(|error| {
        let files = [Some(certificate), Some(key), config.client_ca.as_ref()];
        let files: Vec<String> = files.into_iter().flatten().map(|path| path.display().to_string()).collect();
        anyhow::Error::from(error).context(format!("[security]: {} cannot be used for TLS", files.join(", ")))
    })?;
    Ok(Some(tls))
}

/// Certificates and keys, all of one file.
fn pem(key: &str, path: &Path) -> anyhow::Result<Vec<u8>> {
    /// A chain of certificates has some kilobytes.
    const LIMIT: u64 = 1 << 20;
    let text = g2rl_hub::read_limited(path, LIMIT).with_context(|| format!("{key}: {}", path.display()))?;
    if !text.windows(BEGIN.len()).any(|window| window == BEGIN) {
        bail!(
            "{key}: {} is no PEM file: it has no line {}...",
            path.display(),
            String::from_utf8_lossy(BEGIN)
        );
    }
    Ok(text)
}

const BEGIN: &[u8] = b"-----BEGIN ";

/// Strangers on the network must neither join nor listen in, unless the configuration says that there are
/// none.
fn check_address(listen: SocketAddr, config: &SecurityConfig, token: bool) -> anyhow::Result<()> {
    if listen.ip().to_canonical().is_loopback() {
        return Ok(());
    }
    let missing = match (config.tls_certificate.is_some(), token || config.client_ca.is_some()) {
        (true, true) => return Ok(()),
        (false, true) => "not encrypted",
        (true, false) => "open to everybody",
        (false, false) => "neither encrypted nor closed to strangers",
    };
    if config.allow_plaintext_network {
        tracing::warn!(%listen, "the workers' port can be reached from the network and is {missing}");
        return Ok(());
    }
    bail!(
        "cluster.listen = {listen} can be reached from the network, and would be {missing}. Set \
         security.tls_certificate and security.tls_key, and security.token_file (or {TOKEN_VARIABLE}) or \
         security.client_ca; or set security.allow_plaintext_network = true if only machines that you trust \
         reach it. docs/security.md shows how."
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(settings: &str) -> RunConfig {
        let rest = "[run]\nname = 't'\ndir = 'd'\nsteps = 1\n[model]\npath = 'm'\n[data]\ntrain = 't'\n";
        RunConfig::from_toml(&format!("{rest}{settings}")).unwrap()
    }

    #[test]
    fn strangers_are_kept_out_of_what_the_network_can_reach() {
        let verdict = |listen: &str, settings: &str, token: bool| {
            let security = config(&format!("[security]\n{settings}")).security;
            check_address(listen.parse().unwrap(), &security, token).map_err(|error| error.to_string())
        };
        let tls = "tls_certificate = 'c'\ntls_key = 'k'";
        let mutual = format!("{tls}\nclient_ca = 'a'");
        for (listen, settings, token) in [
            ("127.0.0.1:7700", "", false),
            ("[::1]:7700", "", false),
            ("[::ffff:127.0.0.1]:7700", "", false),
            ("0.0.0.0:7700", tls, true),
            ("0.0.0.0:7700", &mutual, false),
            ("10.0.0.1:7700", "allow_plaintext_network = true", false),
        ] {
            assert_eq!(verdict(listen, settings, token), Ok(()), "{listen} {settings}");
        }
        for (listen, settings, token) in [
            ("0.0.0.0:7700", "", false),
            ("[::]:7700", "", false),
            ("10.0.0.1:7700", "", true),
            ("10.0.0.1:7700", tls, false),
        ] {
            let error = verdict(listen, settings, token).unwrap_err();
            for setting in ["cluster.listen", "tls_certificate", "token_file", "allow_plaintext_network"] {
                assert!(error.contains(setting), "{error}");
            }
        }
    }

    #[test]
    fn unusable_files_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).display().to_string();
        let load = || {
            let settings = format!(
                "[security]\ntls_certificate = '{}'\ntls_key = '{}'",
                path("certificate"),
                path("key")
            );
            format!("{:#}", Security::load(&config(&settings)).unwrap_err())
        };
        assert!(load().contains("security.tls_certificate"), "{}", load());
        std::fs::write(path("certificate"), "no certificate").unwrap();
        assert!(load().contains("is no PEM file"), "{}", load());
        for file in ["certificate", "key"] {
            std::fs::write(path(file), "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
                .unwrap();
        }
        assert!(load().contains(&path("key")), "{}", load());
    }

    #[test]
    fn local_workers_get_paths_and_never_the_token() {
        let settings = "[security]\ntls_certificate = 'c'\ntls_key = 'k'\nclient_ca = '/a'\nworker_ca = '/b'";
        let error = Security::worker_arguments(&config(settings).security).unwrap_err().to_string();
        assert!(error.contains("security.worker_certificate"), "{error}");
        let settings = format!(
            "{settings}\nworker_certificate = '/c'\nworker_key = '/d'\nserver_name = 'n'\ntoken_file = '/t'"
        );
        let arguments = Security::worker_arguments(&config(&settings).security).unwrap();
        let expected = ["--ca", "/b", "--certificate", "/c", "--key", "/d", "--server-name", "n"];
        assert_eq!(arguments, expected.map(OsString::from));
        assert!(Security::worker_arguments(&SecurityConfig::default()).unwrap().is_empty());
    }
}
