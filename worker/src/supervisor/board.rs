//! What each rank of this machine is doing, for logs, `/readyz` and `/metrics`.

use std::fmt::Write;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use metrics::{counter, describe_counter, describe_gauge, gauge};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};

use crate::telemetry::Metric;

/// Everything a supervisor exports.
pub const METRICS: [Metric; 2] = [
    Metric {
        name: "g2rl_supervisor_rank_up",
        kind: "gauge",
        unit: "0 or 1",
        help: "1 while the process of the rank (label rank: its device) runs.",
    },
    Metric {
        name: "g2rl_supervisor_restarts_total",
        kind: "counter",
        unit: "restarts",
        help: "How often the process of the rank (label rank: its device) was started again.",
    },
];

/// What a rank's process is doing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum RankState {
    /// It is about to be started.
    #[default]
    Starting,
    /// It runs.
    Running {
        /// The process.
        pid: u32,
    },
    /// It ended badly and is started again after a pause.
    Pausing {
        /// How it ended.
        status: String,
    },
    /// It is not started again: the run is over, or the supervisor stops.
    Done,
    /// It is not started again: that would not help.
    GivenUp {
        /// Why.
        why: String,
    },
}

/// One rank.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RankReport {
    /// Its name, such as `cuda:3`.
    pub label: String,
    /// What its process is doing.
    pub state: RankState,
    /// How often it was started again.
    pub restarts: u32,
}

/// The ranks of this machine.
#[derive(Debug)]
pub struct Board(Mutex<Vec<RankReport>>);

impl Board {
    /// Ranks that are about to be started.
    pub fn new(labels: impl Iterator<Item = String>) -> Self {
        Self(Mutex::new(labels.map(|label| RankReport { label, ..RankReport::default() }).collect()))
    }

    /// A copy of what is known.
    pub fn reports(&self) -> Vec<RankReport> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set(&self, rank: usize, state: RankState) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)[rank].state = state;
    }

    pub(super) fn restarted(&self, rank: usize) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)[rank].restarts += 1;
    }

    /// Whether all ranks run, and a line for each.
    fn readiness(&self) -> (bool, String) {
        let (mut all, mut text) = (true, String::new());
        for RankReport { label, state, restarts } in self.reports() {
            all &= matches!(state, RankState::Running { .. });
            let state = match state {
                RankState::Starting => "starting".to_owned(),
                RankState::Running { pid } => format!("running as process {pid}"),
                RankState::Pausing { status } => format!("to be started again: {status}"),
                RankState::Done => "done".to_owned(),
                RankState::GivenUp { why } => format!("given up: {why}"),
            };
            writeln!(text, "{label}: {state}; {restarts} restarts").expect("a string can be written to");
        }
        (all, text)
    }
}

/// Serves `/metrics`, `/healthz` and `/readyz` of the supervisor until the process ends.
///
/// # Errors
/// If the address cannot be used or another recorder is installed.
pub async fn serve(address: SocketAddr, board: Arc<Board>) -> anyhow::Result<()> {
    let handle = PrometheusBuilder::new().install_recorder()?;
    for metric in METRICS {
        match metric.kind {
            "counter" => describe_counter!(metric.name, metric.help),
            _ => describe_gauge!(metric.name, metric.help),
        }
    }
    let listener = tokio::net::TcpListener::bind(address).await?;
    tracing::info!(address = %listener.local_addr()?, "serving /metrics, /healthz and /readyz of all ranks");
    let router = Router::new()
        .route("/metrics", get(render))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .with_state((handle, board));
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).await {
            tracing::error!(%error, "the metrics server ended");
        }
    });
    Ok(())
}

type Served = (PrometheusHandle, Arc<Board>);

async fn render(State((handle, board)): State<Served>) -> String {
    record(&board);
    handle.render()
}

async fn ready(State((_, board)): State<Served>) -> (StatusCode, String) {
    let (all, text) = board.readiness();
    (if all { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, text)
}

fn record(board: &Board) {
    for RankReport { label, state, restarts } in board.reports() {
        let up = f64::from(u8::from(matches!(state, RankState::Running { .. })));
        gauge!("g2rl_supervisor_rank_up", "rank" => label.clone()).set(up);
        counter!("g2rl_supervisor_restarts_total", "rank" => label).absolute(restarts.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn board() -> Board {
        let board = Board::new(["cuda:0", "cuda:1"].map(str::to_owned).into_iter());
        board.set(0, RankState::Running { pid: 17 });
        board
    }

    #[test]
    fn readiness_names_each_rank() {
        let board = board();
        board.set(1, RankState::Pausing { status: "signal: 9 (SIGKILL)".into() });
        board.restarted(1);
        let text = "cuda:0: running as process 17; 0 restarts\n\
                    cuda:1: to be started again: signal: 9 (SIGKILL); 1 restarts\n";
        assert_eq!(board.readiness(), (false, text.to_owned()));
        board.set(1, RankState::Running { pid: 18 });
        assert!(board.readiness().0);
    }

    #[test]
    fn what_is_exported_is_what_is_described_and_documented() {
        let recorder = PrometheusBuilder::new().build_recorder();
        let handle = recorder.handle();
        metrics::with_local_recorder(&recorder, || record(&board()));
        let text = handle.render();
        let docs =
            std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/metrics.md")).unwrap();
        for metric in METRICS {
            assert!(text.contains(&format!("# TYPE {} {}", metric.name, metric.kind)), "{text}");
            let row = format!("| `{}` | {} | {} | {} |", metric.name, metric.kind, metric.unit, metric.help);
            assert!(docs.contains(&row), "docs/metrics.md lacks the row {row}");
        }
        assert!(text.contains("g2rl_supervisor_rank_up{rank=\"cuda:1\"} 0"), "{text}");
        assert_eq!(text.lines().filter(|line| line.starts_with("# TYPE")).count(), METRICS.len());
    }
}
