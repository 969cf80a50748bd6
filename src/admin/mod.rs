//! The process's one HTTP listener: health, metrics, status, and the routes of the managers.
//!
//! | method and path | answer |
//! |---|---|
//! | `GET /livez` | 200: the process runs |
//! | `GET /readyz` | 200 when every role is ready, else 503 with what is missing |
//! | `GET /metrics` | Prometheus text of every role |
//! | `GET /status` | JSON: the cluster (on a manager) and this process |
//! | `GET /lag` | JSON: lag per standby; with the role lagmon also its stream, slots, senders and conflicts |
//! | `GET /lag/history` | JSON, with the role lagmon: the last ten minutes per standby |
//! | `GET /route?database=…&user=…&sql=…` | JSON: where a new session's statement would go, on a proxy |
//! | `POST /reload` | JSON: the keys that changed; 409 with the reasons when the file is refused |
//! | `GET /report`, `/history`, `POST /ops/…` | on a manager: see `failover::http` |
//!
//! Reading needs no secret, so the listener belongs on loopback or on a trusted network; every POST needs the shared
//! secret. Connections, headers, bodies and times are bounded: a slow reader cannot take the process's descriptors.

mod metrics;
mod pages;

pub use pages::{LagHistory, Pages, Part, Reply, RouteFuture, Routes};

use anyhow::{Context, Result};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tracing::{debug, warn};

/// Connections served at once; more wait in the kernel's queue.
const CONNECTIONS: usize = 64;
/// For a request's head, and again for its body, to arrive.
const ARRIVAL_BOUND: Duration = Duration::from_secs(5);
/// For one request on the whole: an operator's order waits until it is done, within the manager's own bound.
const REQUEST_BOUND: Duration = Duration::from_secs(600);
/// Bytes of a request's body.
const BODY_LIMIT: usize = 64 << 10;

/// Take the address.
///
/// # Errors
/// It is taken, or not ours.
pub async fn bind(listen: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(listen).await.with_context(|| format!("cannot listen on admin.listen = {listen}"))
}

/// Serve until the task is dropped.
pub async fn serve(listener: TcpListener, pages: Arc<Pages>) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let slot = Arc::clone(&slots).acquire_owned().await.expect("the semaphore is never closed");
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                warn!(%error, "cannot accept an admin connection");
                // Usually descriptors ran out: the loop would spin until one is free.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let pages = Arc::clone(&pages);
        tokio::spawn(async move {
            connection(stream, pages).await;
            drop(slot);
        });
    }
}

async fn connection(stream: TcpStream, pages: Arc<Pages>) {
    let service = service_fn(move |request| {
        let pages = Arc::clone(&pages);
        async move { Ok::<_, Infallible>(answer(request, &pages).await) }
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(ARRIVAL_BOUND)
        .keep_alive(false)
        .max_headers(64)
        .max_buf_size(64 << 10)
        .serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(REQUEST_BOUND + ARRIVAL_BOUND * 2, serving).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(%error, "admin connection ended early"),
        Err(_) => debug!("admin connection took too long"),
    }
}

async fn answer(request: Request<Incoming>, pages: &Pages) -> Response<Full<Bytes>> {
    let (parts, body) = request.into_parts();
    if parts.method != Method::GET && !pages.may_order(parts.headers.get(AUTHORIZATION).map(|v| v.as_bytes())) {
        return response(&Reply::error(401, "this needs the shared secret of cluster.secret_file"));
    }
    let read = tokio::time::timeout(ARRIVAL_BOUND, Limited::new(body, BODY_LIMIT).collect()).await;
    let body = match read {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(_)) => return response(&Reply::error(413, "the body is incomplete or longer than 64 KiB")),
        Err(_) => return response(&Reply::error(408, "the body did not arrive in time")),
    };
    let query = parts.uri.query().unwrap_or_default();
    let replied = pages.reply(parts.method.as_str(), parts.uri.path(), query, &body);
    match tokio::time::timeout(REQUEST_BOUND, replied).await {
        Ok(reply) => response(&reply),
        Err(_) => response(&Reply::error(504, "not done in time; look at /status for where it stands")),
    }
}

fn response(reply: &Reply) -> Response<Full<Bytes>> {
    let body = Full::new(Bytes::copy_from_slice(reply.body.as_bytes()));
    Response::builder().status(reply.status).header(CONTENT_TYPE, reply.kind).body(body).unwrap_or_else(|_| {
        let mut broken = Response::new(Full::new(Bytes::from_static(b"a role gave an impossible HTTP status")));
        *broken.status_mut() = hyper::StatusCode::INTERNAL_SERVER_ERROR;
        broken
    })
}
