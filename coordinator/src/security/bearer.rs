//! The token, looked at before any message is read.

use std::sync::Arc;
use std::time::Instant;

use g2rl_common::secret::Secret;
use metrics::counter;
use tonic::service::Interceptor;
use tonic::{Request, Status};

use super::Peer;
use super::limits::Throttle;

/// Refuses requests without the token, whatever they ask for.
#[derive(Debug, Clone)]
pub(crate) struct Bearer {
    token: Option<Arc<Secret>>,
    log: Arc<Throttle>,
}

impl Bearer {
    pub(crate) fn new(token: Option<Arc<Secret>>) -> Self {
        Self { token, log: Arc::default() }
    }
}

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let Some(token) = &self.token else { return Ok(request) };
        // Nothing behind this needs it.
        let header = request.metadata_mut().remove("authorization");
        let given = header.as_ref().map(|value| value.as_bytes());
        if given.and_then(|value| value.strip_prefix(b"Bearer ")).is_some_and(|given| token.matches(given)) {
            return Ok(request);
        }
        counter!("g2rl_auth_failures_total").increment(1);
        let peer = request.extensions().get::<Arc<Peer>>();
        if let Some(peer) = peer {
            peer.fail();
        }
        if let Some(times) = self.log.pass(Instant::now()) {
            let address = peer.map(|peer| peer.address().to_string());
            let what = if given.is_some() { "a wrong token" } else { "no token" };
            tracing::warn!(address, times, "refused a request with {what}");
        }
        // Without detail: what was wrong with it is nobody's business.
        Err(Status::unauthenticated(""))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "0123456789abcdef-known";

    fn call(bearer: &mut Bearer, header: Option<&str>) -> Result<Request<()>, Status> {
        let mut request = Request::new(());
        if let Some(header) = header {
            request.metadata_mut().insert("authorization", header.parse().unwrap());
        }
        bearer.call(request)
    }

    fn secret() -> Arc<Secret> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), TOKEN).unwrap();
        Arc::new(Secret::find(Some(file.path())).unwrap().unwrap())
    }

    #[test]
    fn only_the_token_passes_and_goes_no_further() {
        let mut bearer = Bearer::new(Some(secret()));
        let passed = call(&mut bearer, Some(&format!("Bearer {TOKEN}"))).unwrap();
        assert!(passed.metadata().get("authorization").is_none());
        for header in [
            None,
            Some(TOKEN),
            Some("Bearer "),
            Some("Bearer wrong"),
            Some(&format!("Basic {TOKEN}")),
            Some(&format!("Bearer {TOKEN} ")),
        ] {
            let status = call(&mut bearer, header).unwrap_err();
            assert_eq!((status.code(), status.message()), (tonic::Code::Unauthenticated, ""), "{header:?}");
        }
    }

    #[test]
    fn without_a_token_everybody_passes() {
        assert!(call(&mut Bearer::new(None), None).is_ok());
    }
}
