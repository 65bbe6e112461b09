//! The coordinator's HTTP port: `/metrics`, `/healthz` (the process lives), `/readyz` (the ranks are in place),
//! `/debug/stalls` (who is waited for) and the dashboard.

use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::get;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::dashboard::Dashboard;
use crate::security::{GateOptions, GatedListener};
use crate::shell::StallBoard;
use crate::telemetry::Telemetry;

/// A scrape takes a second; connections that are kept longer, by whomever, make room.
const GATE: GateOptions = GateOptions {
    connections: 256,
    per_minute: 6000,
    deadline: Duration::from_secs(60),
    expects_hello: false,
};

/// What is served.
#[derive(Debug, Clone)]
pub(crate) struct Shown {
    pub(crate) telemetry: Telemetry,
    pub(crate) stalls: StallBoard,
    pub(crate) metrics: PrometheusHandle,
    pub(crate) dashboard: Dashboard,
}

/// Serves until cancelled.
pub(crate) async fn serve(shown: Shown, listener: TcpListener, shutdown: CancellationToken) {
    let dashboard = shown.dashboard.router();
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/debug/stalls", get(stalls))
        .with_state(shown)
        .merge(dashboard);
    serve_router(router, listener, shutdown).await;
}

/// Serves routes until cancelled.
pub(crate) async fn serve_router(router: Router, listener: TcpListener, shutdown: CancellationToken) {
    let listener = GatedListener::new(listener, GATE);
    if let Err(error) = axum::serve(listener, router).with_graceful_shutdown(shutdown.cancelled_owned()).await
    {
        tracing::error!(%error, "the HTTP server ended");
    }
}

async fn metrics(State(shown): State<Shown>) -> String {
    shown.telemetry.disk();
    shown.metrics.render()
}

async fn stalls(State(shown): State<Shown>) -> impl IntoResponse {
    axum::Json(shown.stalls.served())
}

async fn ready(State(shown): State<Shown>) -> (StatusCode, &'static str) {
    match shown.telemetry.is_ready() {
        true => (StatusCode::OK, "ready\n"),
        false => (StatusCode::SERVICE_UNAVAILABLE, "the ranks are not in place\n"),
    }
}
