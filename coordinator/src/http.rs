//! The coordinator's HTTP port: `/metrics`, `/healthz` (the process lives) and `/readyz` (the ranks are in place).

use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::security::{GateOptions, GatedListener};
use crate::telemetry::Telemetry;

/// A scrape takes a second; connections that are kept longer, by whomever, make room.
const GATE: GateOptions = GateOptions {
    connections: 256,
    per_minute: 6000,
    deadline: Duration::from_secs(60),
    expects_hello: false,
};

/// Serves until cancelled.
pub(crate) async fn serve(
    telemetry: Telemetry,
    listener: TcpListener,
    handle: PrometheusHandle,
    shutdown: CancellationToken,
) {
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .with_state((telemetry, handle));
    let listener = GatedListener::new(listener, GATE);
    if let Err(error) = axum::serve(listener, router).with_graceful_shutdown(shutdown.cancelled_owned()).await
    {
        tracing::error!(%error, "the metrics server ended");
    }
}

type Served = State<(Telemetry, PrometheusHandle)>;

async fn metrics(State((telemetry, handle)): Served) -> String {
    telemetry.disk();
    handle.render()
}

async fn ready(State((telemetry, _)): Served) -> (StatusCode, &'static str) {
    match telemetry.is_ready() {
        true => (StatusCode::OK, "ready\n"),
        false => (StatusCode::SERVICE_UNAVAILABLE, "the ranks are not in place\n"),
    }
}
