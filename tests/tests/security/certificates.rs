//! Authorities, certificates and tokens of a test.

use std::path::PathBuf;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};

/// Sixteen characters and more, found nowhere else.
pub(crate) const TOKEN: &str = "known-token-0123456789abcdef";

/// A directory with what both sides of a connection need, and with what they must not accept:
///
/// | files | what |
/// |---|---|
/// | ca.pem, other-ca.pem | two authorities |
/// | coordinator.pem, worker.pem | signed by the first, for localhost and 127.0.0.1 |
/// | stranger.pem | signed by the second |
/// | expired.pem | signed by the first, for a time that is over |
/// | NAME.key | the private key of NAME.pem |
/// | token, other-token | tokens; the first is [`TOKEN`] |
pub(crate) struct Certificates(tempfile::TempDir);

impl Certificates {
    pub(crate) fn new() -> Self {
        let made = Self(tempfile::tempdir().unwrap());
        let ca = made.authority("ca");
        let other = made.authority("other-ca");
        for name in ["coordinator", "worker"] {
            made.certificate(name, &ca, params());
        }
        made.certificate("stranger", &other, params());
        let mut expired = params();
        expired.not_before = date_time_ymd(2001, 1, 1);
        expired.not_after = date_time_ymd(2002, 1, 1);
        made.certificate("expired", &ca, expired);
        made.write("token", &format!("{TOKEN}\n"));
        made.write("other-token", "another-token-0123456789abcdef\n");
        made
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }

    pub(crate) fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.0.path().join(name)).unwrap()
    }

    fn write(&self, name: &str, text: &str) {
        let path: PathBuf = self.0.path().join(name);
        std::fs::write(path, text).unwrap();
    }

    fn authority(&self, name: &str) -> Issuer<'static, KeyPair> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        self.write(&format!("{name}.pem"), &params.self_signed(&key).unwrap().pem());
        Issuer::new(params, key)
    }

    fn certificate(&self, name: &str, issuer: &Issuer<'static, KeyPair>, mut params: CertificateParams) {
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        self.write(&format!("{name}.pem"), &params.signed_by(&key, issuer).unwrap().pem());
        self.write(&format!("{name}.key"), &key.serialize_pem());
    }
}

fn params() -> CertificateParams {
    CertificateParams::new(["localhost", "127.0.0.1"].map(str::to_owned)).unwrap()
}
