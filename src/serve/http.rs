//! What the daemon answers: `/healthz`, `/readyz`, `/metrics`, and a page of text for people.

use std::{future::ready, sync::Arc};

use axum::{
    Router,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::{
    metrics::{self, Exposition},
    state::Shared,
    status,
};

/// Answers until `stop`.
pub(super) async fn serve(listener: TcpListener, shared: Arc<Shared>, stop: CancellationToken) {
    let router = Router::new()
        .route("/", get(|State(shared): State<Arc<Shared>>| ready(status::page(&shared.get()))))
        .route("/healthz", get(|State(shared): State<Arc<Shared>>| ready(health(&shared))))
        .route("/readyz", get(|State(shared): State<Arc<Shared>>| ready(readiness(&shared))))
        .route(
            "/metrics",
            get(|State(shared): State<Arc<Shared>>, headers: HeaderMap| ready(exposed(&shared, &headers))),
        )
        .with_state(shared);
    if let Err(error) = axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await {
        tracing::error!("the HTTP server ended: {error}");
    }
}

/// Is the daemon alive and ticking? Whatever the store does.
fn health(shared: &Shared) -> (StatusCode, String) {
    answer(shared.get().hangs(), "ticking")
}

/// Does it know the repository?
fn readiness(shared: &Shared) -> (StatusCode, String) {
    answer(shared.get().unready(), "the repository was read")
}

fn answer(problem: Option<String>, fine: &str) -> (StatusCode, String) {
    match problem {
        Some(problem) => (StatusCode::SERVICE_UNAVAILABLE, format!("{problem}\n")),
        None => (StatusCode::OK, format!("{fine}\n")),
    }
}

/// In the format that is asked for: OpenMetrics for those who name it, else Prometheus' own.
fn exposed(shared: &Shared, headers: &HeaderMap) -> impl IntoResponse + use<> {
    let accepts = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let exposition = match accepts.contains("application/openmetrics-text") {
        true => Exposition::OpenMetrics,
        false => Exposition::Prometheus,
    };
    ([(header::CONTENT_TYPE, exposition.content_type())], metrics::text(&shared.get(), exposition))
}
