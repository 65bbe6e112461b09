//! How a worker knows the coordinator, and proves that it may join.
//!
//! In: the options of the command line. Out: an endpoint, the header of each request, and words for what
//! TLS refuses.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::Duration;

use g2rl_common::secret::{Secret, TOKEN_VARIABLE};
use rustls::CertificateError;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};

/// Largest certificate or key that is read, bytes.
const MAX_PEM_BYTES: u64 = 1 << 20;

/// How rustls writes an alert.
const ALERT: &str = "received fatal alert: ";

const WITH_TOKEN: &str = "this worker's token";
const WITHOUT_TOKEN: &str = "a worker without a token";

/// Why the coordinator cannot be asked.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// The URL cannot be used.
    #[error(
        "{url} is not a coordinator's address such as http://127.0.0.1:7700 or https://train.example:7700"
    )]
    BadUrl {
        /// As given.
        url: String,
    },
    /// A certificate or key cannot be read.
    #[error("{path}: {cause}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The cause.
        cause: std::io::Error,
    },
    /// A certificate comes without its key, or the other way round.
    #[error("--certificate and --key belong together: give both or neither")]
    HalfIdentity,
    /// TLS cannot use the files.
    #[error("--ca, --certificate or --key cannot be used for TLS: {0}")]
    Tls(String),
}

/// What TLS or the coordinator does not accept. Trying again does not help.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TrustError {
    /// The coordinator's certificate has another authority.
    #[error(
        "the coordinator's certificate is not signed by {0}: give the authority that signed it with --ca"
    )]
    UnknownAuthority(String),
    /// The coordinator's certificate has another name.
    #[error(
        "the coordinator's certificate is not for this address ({0}): use an address that it names, or give \
         the name to look for with --server-name"
    )]
    WrongName(String),
    /// The certificate's time is over, or has not come.
    #[error(
        "the coordinator's certificate is not valid now ({0}): renew it, and check both machines' clocks"
    )]
    NotNow(String),
    /// The coordinator wants a certificate.
    #[error(
        "the coordinator accepts workers with a certificate only: give one that security.client_ca has \
         signed with --certificate and --key"
    )]
    CertificateMissing,
    /// The coordinator does not accept ours.
    #[error(
        "the coordinator does not accept this worker's certificate ({0}): give one that is valid and that \
         security.client_ca has signed with --certificate and --key"
    )]
    CertificateRefused(String),
    /// The coordinator does not accept the token, or there is none.
    #[error(
        "the coordinator does not accept {0}: give the token that it was started with by --token-file or \
         the variable {TOKEN_VARIABLE}"
    )]
    Token(&'static str),
    /// Anything else that TLS says.
    #[error("TLS: {0}; does the coordinator use TLS on this port?")]
    Other(String),
}

/// The options of the command line.
#[derive(Debug, Clone, Default)]
pub struct Access {
    /// Sent with each request.
    pub token: Option<Secret>,
    /// Authority of the coordinator's certificate; the system's if `None`.
    pub ca: Option<PathBuf>,
    /// Certificate of this worker.
    pub certificate: Option<PathBuf>,
    /// Its private key.
    pub key: Option<PathBuf>,
    /// Name in the coordinator's certificate; that of the URL if `None`.
    pub server_name: Option<String>,
}

impl Access {
    /// How to reach the coordinator. TLS is used for `https://`, and whenever one of its options is given.
    ///
    /// # Errors
    /// If the URL or a file cannot be used.
    pub fn endpoint(&self, url: &str) -> Result<Endpoint, AccessError> {
        let bad = || AccessError::BadUrl { url: url.to_owned() };
        let wants_tls = self.ca.is_some() || self.certificate.is_some() || self.server_name.is_some();
        let url = match url.strip_prefix("http://") {
            Some(rest) if wants_tls => format!("https://{rest}"),
            _ => url.to_owned(),
        };
        let endpoint = Endpoint::from_shared(url).map_err(|_| bad())?;
        let uri = endpoint.uri().clone();
        let endpoint = match (uri.scheme_str(), uri.host()) {
            (Some("https"), Some(_)) => {
                endpoint.tls_config(self.tls()?).map_err(|error| AccessError::Tls(chain(&error)))?
            }
            (Some("http"), Some(host)) => {
                let local = ["localhost", "127.0.0.1", "[::1]"].contains(&host);
                if self.token.is_some() && !local {
                    tracing::warn!(host, "the token is sent without TLS: who listens on the way can read it");
                }
                endpoint
            }
            _ => return Err(bad()),
        };
        Ok(endpoint
            .connect_timeout(Duration::from_secs(5))
            .tcp_nodelay(true)
            .http2_keep_alive_interval(Duration::from_secs(10))
            .keep_alive_timeout(Duration::from_secs(20))
            .keep_alive_while_idle(true))
    }

    fn tls(&self) -> Result<ClientTlsConfig, AccessError> {
        let read = |path: &Path| {
            let bytes = g2rl_hub::read_limited(path, MAX_PEM_BYTES);
            bytes.map_err(|cause| AccessError::Unreadable { path: path.to_owned(), cause })
        };
        let mut tls = match &self.ca {
            Some(path) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(path)?)),
            None => ClientTlsConfig::new().with_native_roots(),
        };
        match (&self.certificate, &self.key) {
            (Some(certificate), Some(key)) => {
                tls = tls.identity(Identity::from_pem(read(certificate)?, read(key)?));
            }
            (None, None) => {}
            _ => return Err(AccessError::HalfIdentity),
        }
        if let Some(name) = &self.server_name {
            tls = tls.domain_name(name);
        }
        Ok(tls)
    }

    /// The value of the header `authorization`.
    #[must_use]
    pub fn authorization(&self) -> Option<MetadataValue<Ascii>> {
        let token = self.token.as_ref()?;
        let value = format!("Bearer {}", token.expose());
        let mut value: MetadataValue<Ascii> = value.parse().expect("a token is printable ASCII");
        // Neither printed nor kept in the tables of header compression.
        value.set_sensitive(true);
        Some(value)
    }

    /// What is wrong with certificates or token, if that is what an error comes from.
    #[must_use]
    pub fn explain(&self, error: &(dyn Error + 'static)) -> Option<TrustError> {
        if let Some(status) = error.downcast_ref::<tonic::Status>()
            && status.code() == tonic::Code::Unauthenticated
        {
            let given = self.token.is_some();
            return Some(TrustError::Token(if given { WITH_TOKEN } else { WITHOUT_TOKEN }));
        }
        let mut next = Some(error);
        while let Some(error) = next {
            let inner = error.downcast_ref::<std::io::Error>().and_then(|error| error.get_ref());
            let tls: Option<&rustls::Error> =
                inner.and_then(|inner| inner.downcast_ref()).or_else(|| error.downcast_ref());
            if let Some(tls) = tls {
                return Some(self.explain_tls(tls));
            }
            // HTTP/2 hands the error of a connection to its streams as text.
            if let Some(alert) =
                inner.and_then(|inner| Some(inner.to_string().strip_prefix(ALERT)?.to_owned()))
            {
                return Some(self.explain_alert(&alert));
            }
            next = error.source();
        }
        None
    }

    fn explain_tls(&self, error: &rustls::Error) -> TrustError {
        use CertificateError as C;
        let text = error.to_string();
        match error {
            rustls::Error::InvalidCertificate(
                C::UnknownIssuer | C::BadSignature | C::UnsupportedSignatureAlgorithmContext { .. },
            ) => {
                let system = "an authority of this system".to_owned();
                TrustError::UnknownAuthority(
                    self.ca.as_ref().map_or(system, |path| path.display().to_string()),
                )
            }
            rustls::Error::InvalidCertificate(C::NotValidForName | C::NotValidForNameContext { .. }) => {
                TrustError::WrongName(text)
            }
            rustls::Error::InvalidCertificate(
                C::Expired | C::ExpiredContext { .. } | C::NotValidYet | C::NotValidYetContext { .. },
            ) => TrustError::NotNow(text),
            rustls::Error::AlertReceived(alert) => self.explain_alert(&format!("{alert:?}")),
            _ => TrustError::Other(text),
        }
    }

    /// The coordinator's last word, by the name that the protocol has for it.
    fn explain_alert(&self, name: &str) -> TrustError {
        match name {
            "CertificateRequired" => TrustError::CertificateMissing,
            // Version 1.2 of TLS has one word for several things.
            "HandshakeFailure" if self.certificate.is_none() => TrustError::CertificateMissing,
            "UnknownCA"
            | "BadCertificate"
            | "CertificateExpired"
            | "CertificateUnknown"
            | "CertificateRevoked"
            | "UnsupportedCertificate"
            | "DecryptError"
            | "AccessDenied" => TrustError::CertificateRefused(name.to_owned()),
            _ => TrustError::Other(name.to_owned()),
        }
    }
}

/// An error with its causes: TLS says what is wrong in the innermost.
pub(crate) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(&format!(": {cause}"));
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use rustls::AlertDescription;

    use super::*;

    #[test]
    fn tls_is_used_whenever_it_is_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = rcgen::CertificateParams::new(vec!["train.example".to_owned()]).unwrap();
        let ca = dir.path().join("ca.pem");
        std::fs::write(&ca, certificate.self_signed(&key).unwrap().pem()).unwrap();
        let with_ca = Access { ca: Some(ca), ..Access::default() };
        let scheme = |access: &Access, url: &str| {
            access.endpoint(url).map(|endpoint| endpoint.uri().scheme_str().unwrap().to_owned())
        };
        assert_eq!(scheme(&Access::default(), "http://127.0.0.1:7700").unwrap(), "http");
        assert_eq!(scheme(&with_ca, "http://127.0.0.1:7700").unwrap(), "https");
        assert_eq!(scheme(&with_ca, "https://127.0.0.1:7700").unwrap(), "https");
        for url in ["127.0.0.1:7700", "ftp://127.0.0.1:7700", "http://", ""] {
            assert!(matches!(scheme(&with_ca, url), Err(AccessError::BadUrl { .. })), "{url}");
        }
    }

    #[test]
    fn missing_and_unusable_files_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file.pem");
        let error = |access: Access| access.endpoint("https://127.0.0.1:7700").unwrap_err().to_string();
        let ca = Access { ca: Some(path.clone()), ..Access::default() };
        assert!(error(ca.clone()).contains("file.pem"), "{}", error(ca));
        std::fs::write(&path, "nothing").unwrap();
        let half = Access { ca: Some(path.clone()), certificate: Some(path.clone()), ..Access::default() };
        assert!(error(half.clone()).contains("--certificate and --key"), "{}", error(half));
        let whole = Access {
            ca: Some(path.clone()),
            certificate: Some(path.clone()),
            key: Some(path),
            ..Access::default()
        };
        assert!(error(whole.clone()).contains("cannot be used for TLS"), "{}", error(whole));
    }

    #[test]
    fn each_refusal_says_what_to_do() {
        let access = Access::default();
        let explain = |error: rustls::Error| {
            // As it arrives: within an I/O error.
            access.explain(&std::io::Error::other(error)).unwrap().to_string()
        };
        let certificate = rustls::Error::InvalidCertificate;
        let alert = rustls::Error::AlertReceived;
        for (error, words) in [
            (certificate(CertificateError::UnknownIssuer), "--ca"),
            (certificate(CertificateError::NotValidForName), "--server-name"),
            (certificate(CertificateError::Expired), "renew"),
            (alert(AlertDescription::CertificateRequired), "--certificate and --key"),
            (alert(AlertDescription::UnknownCA), "client_ca"),
            (rustls::Error::General("x".into()), "use TLS on this port"),
        ] {
            assert!(explain(error.clone()).contains(words), "{}", explain(error));
        }
        let text = rustls::Error::AlertReceived(AlertDescription::CertificateRequired).to_string();
        assert_eq!(access.explain(&std::io::Error::other(text)), Some(TrustError::CertificateMissing));
        let refused = access.explain(&tonic::Status::unauthenticated("")).unwrap();
        assert_eq!(refused, TrustError::Token(WITHOUT_TOKEN));
        assert!(refused.to_string().contains("--token-file"), "{refused}");
        assert_eq!(access.explain(&std::io::Error::other("the network is down")), None);
    }

    #[test]
    fn the_header_is_not_printed() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "0123456789abcdef-known\n").unwrap();
        let access = Access { token: Secret::find(Some(file.path())).unwrap(), ..Access::default() };
        let header = access.authorization().unwrap();
        assert_eq!(header.as_bytes(), b"Bearer 0123456789abcdef-known");
        assert!(!format!("{header:?} {access:?}").contains("known"));
        assert_eq!(Access::default().authorization(), None);
    }
}
