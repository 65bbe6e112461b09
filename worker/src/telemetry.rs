//! `/metrics`, `/healthz` and `/readyz` of a worker.
//!
//! [`METRICS`] is the one table of what is exported; `docs/metrics.md` holds the same.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use g2rl_proto::Phase;
use metrics::{counter, describe_counter, describe_gauge, gauge};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tch::Device;

use crate::engine::SharedStatus;
use crate::memory;

/// One exported metric.
#[derive(Debug, Clone, Copy)]
pub struct Metric {
    /// Name in Prometheus.
    pub name: &'static str,
    /// `counter` or `gauge`.
    pub kind: &'static str,
    /// Unit.
    pub unit: &'static str,
    /// Meaning.
    pub help: &'static str,
}

/// Everything a worker exports.
pub const METRICS: [Metric; 7] = [
    Metric {
        name: "g2rl_worker_generated_tokens_total",
        kind: "counter",
        unit: "tokens",
        help: "Response tokens generated since the process started.",
    },
    Metric {
        name: "g2rl_worker_slots_in_use",
        kind: "gauge",
        unit: "slots",
        help: "Decode slots that hold a running rollout.",
    },
    Metric {
        name: "g2rl_worker_phase",
        kind: "gauge",
        unit: "0 or 1",
        help: "1 for the phase the worker is in (label phase), else 0.",
    },
    Metric {
        name: "g2rl_worker_epoch",
        kind: "gauge",
        unit: "epochs",
        help: "Membership generation the worker is in; 0 before the first.",
    },
    Metric {
        name: "g2rl_worker_stale_messages_total",
        kind: "counter",
        unit: "messages",
        help: "Commands dropped because they named another epoch.",
    },
    Metric {
        name: "g2rl_worker_resident_bytes",
        kind: "gauge",
        unit: "bytes",
        help: "Resident memory of the process.",
    },
    Metric {
        name: "g2rl_worker_device_bytes",
        kind: "gauge",
        unit: "bytes",
        help: "Memory in use on the device; 0 on a CPU.",
    },
];

const PHASES: [Phase; 8] = [
    Phase::Idle,
    Phase::Loading,
    Phase::Forming,
    Phase::Rollout,
    Phase::Update,
    Phase::WaitingForApply,
    Phase::Apply,
    Phase::Checkpoint,
];

#[derive(Clone)]
struct Served {
    handle: PrometheusHandle,
    device: Device,
    status: Arc<SharedStatus>,
}

/// Serves until the process ends.
///
/// # Errors
/// If the address cannot be used or another recorder is installed.
pub async fn serve(address: SocketAddr, device: Device, status: Arc<SharedStatus>) -> anyhow::Result<()> {
    let handle = PrometheusBuilder::new().install_recorder()?;
    for metric in METRICS {
        match metric.kind {
            "counter" => describe_counter!(metric.name, metric.help),
            _ => describe_gauge!(metric.name, metric.help),
        }
    }
    let listener = tokio::net::TcpListener::bind(address).await?;
    tracing::info!(address = %listener.local_addr()?, "serving /metrics, /healthz and /readyz");
    let router = Router::new()
        .route("/metrics", get(render))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .with_state(Served { handle, device, status });
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).await {
            tracing::error!(%error, "the metrics server ended");
        }
    });
    Ok(())
}

async fn render(State(served): State<Served>) -> String {
    record(&served.status, served.device);
    served.handle.render()
}

async fn ready(State(served): State<Served>) -> (StatusCode, &'static str) {
    if served.status.epoch().0 > 0 {
        (StatusCode::OK, "ready\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "no epoch yet\n")
    }
}

/// Copies the status into the recorder. Gauges follow the status when they are read, so nothing
/// in the engine has to know of them.
fn record(status: &SharedStatus, device: Device) {
    let snapshot = status.snapshot();
    counter!("g2rl_worker_generated_tokens_total").absolute(snapshot.generated_tokens);
    counter!("g2rl_worker_stale_messages_total").absolute(status.stale_commands());
    gauge!("g2rl_worker_slots_in_use").set(f64::from(snapshot.slots_in_use));
    gauge!("g2rl_worker_epoch").set(status.epoch().0 as f64);
    gauge!("g2rl_worker_resident_bytes").set(memory::resident_bytes() as f64);
    gauge!("g2rl_worker_device_bytes").set(memory::device_bytes(device) as f64);
    for phase in PHASES {
        let current = f64::from(u8::from(phase == snapshot.phase));
        gauge!("g2rl_worker_phase", "phase" => phase.as_str()).set(current);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_exported_is_what_is_described_and_documented() {
        let recorder = PrometheusBuilder::new().build_recorder();
        let handle = recorder.handle();
        metrics::with_local_recorder(&recorder, || record(&SharedStatus::default(), Device::Cpu));
        let text = handle.render();
        let docs =
            std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/metrics.md")).unwrap();
        for metric in METRICS {
            assert!(
                text.contains(&format!("# TYPE {} {}", metric.name, metric.kind)),
                "{} is not exported",
                metric.name
            );
            let row = format!("| `{}` | {} | {} | {} |", metric.name, metric.kind, metric.unit, metric.help);
            assert!(docs.contains(&row), "docs/metrics.md lacks the row {row}");
        }
        let exported = text.lines().filter(|l| l.starts_with("# TYPE")).count();
        assert_eq!(exported, METRICS.len());
    }
}
