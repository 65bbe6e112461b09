//! The dashboard of a run, on the coordinator's HTTP port: a page, its files, and the JSON that it reads
//! (`docs/dashboard.md`).
//!
//! ```text
//! journal -> follow -> index -> curves, geometry, groups -> /api/...
//!         -> readers -> detail, search ---------------------^
//! shell   -> telemetry -> StatusBoard -> live -> /api/run, /api/events
//! ```
//!
//! Invariants: it decides nothing and writes nothing; a run goes on the same whether anybody looks or not. Files are read
//! on threads of their own, by at most [`readers::CONNECTIONS`] requests at once, never on the runtime's. Memory is bounded
//! by `index` (110 MB, of which a run of ten thousand steps and a million rollouts uses 12), pages of `readers`
//! (5 x 4 MiB) and one answer for each request. Who may read texts is decided by `access`.

mod access;
mod assets;
mod curves;
mod detail;
mod events;
mod follow;
mod groups;
mod index;
mod live;
mod readers;

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use axum::extract::{Path as At, Query, State};
use axum::http::header::{self, HeaderMap};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router, middleware};
use g2rl_common::config::RunConfig;
use rusqlite::Connection;
use serde::Serialize;
use serde_json::json;
use tokio::sync::Semaphore;

pub(crate) use self::access::Access;
use self::access::Refused;
use self::curves::{Curves, Geometry, Window};
use self::events::States;
use self::groups::{Finder, GroupQuery, QueryError};
use self::index::Index;
pub(crate) use self::live::StatusBoard;
use self::readers::Readers;
use crate::alerts;
use crate::dataset::Problem;
use crate::shell::StallBoard;

/// What is shown.
#[derive(Debug)]
pub(crate) struct DashboardOptions {
    /// Of the run.
    pub(crate) dir: PathBuf,
    pub(crate) config: RunConfig,
    /// Training problems; empty if they are not known.
    pub(crate) problems: Arc<Vec<Problem>>,
    pub(crate) access: Access,
    /// Where the run's status is; `None` if no run goes on.
    pub(crate) board: Option<StatusBoard>,
    pub(crate) stalls: StallBoard,
}

/// See the module's documentation.
#[derive(Debug, Clone)]
pub(crate) struct Dashboard(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    config: RunConfig,
    problems: Arc<Vec<Problem>>,
    access: Access,
    board: Option<StatusBoard>,
    stalls: StallBoard,
    index: RwLock<Index>,
    readers: Readers,
    /// Requests that read the journal.
    reading: Semaphore,
    states: States,
}

impl Dashboard {
    /// Starts to follow the journal of a run; within a runtime.
    ///
    /// # Errors
    /// If there can be no thread for it.
    pub(crate) fn start(options: DashboardOptions) -> std::io::Result<Self> {
        let inner = Arc::new(Inner {
            readers: Readers::new(Path::new(&options.dir)),
            config: options.config,
            problems: options.problems,
            access: options.access,
            board: options.board,
            stalls: options.stalls,
            index: RwLock::default(),
            reading: Semaphore::new(readers::CONNECTIONS),
            states: States::default(),
        });
        let followed = Arc::downgrade(&inner);
        std::thread::Builder::new().name("dashboard".to_owned()).spawn(move || follow::run(&followed))?;
        tokio::spawn(events::publish(Arc::downgrade(&inner)));
        Ok(Self(inner))
    }

    /// Its routes.
    pub(crate) fn router(&self) -> Router {
        Router::new()
            .route("/", get(page))
            .route("/assets/{*path}", get(assets::serve))
            .route("/api/run", get(run))
            .route("/api/events", get(events))
            .route("/api/curves", get(curves))
            .route("/api/geometry", get(geometry))
            .route("/api/stalls", get(stalls))
            .route("/api/warnings", get(warnings))
            .route("/api/config", get(config))
            .route("/api/groups", get(groups))
            .route("/api/groups/{group}", get(group))
            .route("/api/groups/{group}/{index}/text", get(text))
            .layer(middleware::from_fn(access::headers))
            .with_state(self.0.clone())
    }
}

type Shared = State<Arc<Inner>>;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error("{0}")]
    Question(String),
    #[error("the journal has no such group or rollout")]
    Missing,
    #[error("the journal cannot be read: {0}")]
    Journal(#[from] rusqlite::Error),
    #[error("the answer was not finished")]
    Ended,
}

impl From<QueryError> for Failure {
    fn from(error: QueryError) -> Self {
        Self::Question(error.to_string())
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = match &self {
            Self::Refused(Refused::Token) => StatusCode::UNAUTHORIZED,
            Self::Refused(_) => StatusCode::FORBIDDEN,
            Self::Question(_) => StatusCode::BAD_REQUEST,
            Self::Missing => StatusCode::NOT_FOUND,
            Self::Journal(_) | Self::Ended => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let mut response = (status, Json(json!({ "error": self.to_string() }))).into_response();
        if status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// Computes an answer on a thread that may wait.
async fn aside<T: Send + 'static>(
    dashboard: Arc<Inner>,
    compute: impl FnOnce(&Inner) -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    let _reading = dashboard.reading.acquire().await.map_err(|_| Failure::Ended)?;
    let shared = dashboard.clone();
    tokio::task::spawn_blocking(move || compute(&shared)).await.map_err(|_| Failure::Ended)?
}

/// The same, from the journal.
async fn read<T: Send + 'static>(
    dashboard: Arc<Inner>,
    read: impl FnOnce(&Inner, &Connection) -> rusqlite::Result<T> + Send + 'static,
) -> Result<T, Failure> {
    aside(dashboard, |inner| Ok(inner.readers.with(|db| read(inner, db))?)).await
}

impl Inner {
    fn with_index<T>(&self, look: impl FnOnce(&Index) -> T) -> T {
        look(&self.index.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A query string, whose errors are JSON like all others.
fn question<T>(query: Result<Query<T>, axum::extract::rejection::QueryRejection>) -> Result<T, Failure> {
    query.map(|Query(query)| query).map_err(|error| Failure::Question(error.body_text()))
}

type Asked<T> = Result<Query<T>, axum::extract::rejection::QueryRejection>;

async fn page() -> impl IntoResponse {
    ([(header::CACHE_CONTROL, "no-cache")], Html(assets::PAGE))
}

async fn run(State(dashboard): Shared) -> impl IntoResponse {
    Json(live::state(&dashboard))
}

async fn events(State(dashboard): Shared) -> impl IntoResponse {
    events::stream(&dashboard)
}

async fn curves(State(dashboard): Shared, window: Asked<Window>) -> Result<Json<Curves>, Failure> {
    let window = question(window)?;
    aside(dashboard, move |inner| Ok(Json(inner.with_index(|index| curves::curves(index, window))))).await
}

async fn geometry(State(dashboard): Shared, window: Asked<Window>) -> Result<Json<Geometry>, Failure> {
    let window = question(window)?;
    aside(dashboard, move |inner| Ok(Json(inner.with_index(|index| curves::geometry(index, window))))).await
}

async fn stalls(State(dashboard): Shared) -> impl IntoResponse {
    Json(dashboard.stalls.served())
}

/// A warning may quote an answer.
async fn warnings(State(dashboard): Shared, headers: HeaderMap) -> Result<impl IntoResponse, Failure> {
    dashboard.access.to_texts(&headers)?;
    Ok(Json(alerts::all()))
}

async fn config(State(dashboard): Shared, headers: HeaderMap) -> Result<impl IntoResponse, Failure> {
    #[derive(Serialize)]
    struct Config {
        toml: String,
    }
    dashboard.access.to_texts(&headers)?;
    Ok(Json(Config { toml: dashboard.config.to_toml() }))
}

async fn groups(
    State(dashboard): Shared,
    headers: HeaderMap,
    query: Asked<GroupQuery>,
) -> Result<impl IntoResponse, Failure> {
    dashboard.access.to_texts(&headers)?;
    let query = question(query)?;
    let page = aside(dashboard, move |inner| {
        let finder = Finder::new(&query, &inner.problems)?;
        Ok(inner.readers.with(|db| finder.page(&inner.index, db))?)
    });
    Ok(Json(page.await?))
}

async fn group(
    State(dashboard): Shared,
    headers: HeaderMap,
    At(group): At<u64>,
) -> Result<impl IntoResponse, Failure> {
    dashboard.access.to_texts(&headers)?;
    let found = read(dashboard, move |inner, db| detail::read(db, &inner.problems, group)).await?;
    Ok(Json(found.ok_or(Failure::Missing)?))
}

async fn text(
    State(dashboard): Shared,
    headers: HeaderMap,
    At((group, index)): At<(u64, u32)>,
) -> Result<impl IntoResponse, Failure> {
    dashboard.access.to_texts(&headers)?;
    read(dashboard, move |_, db| detail::text(db, group, index)).await?.ok_or(Failure::Missing)
}
