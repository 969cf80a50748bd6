//! The process's one HTTP listener: health, metrics, status, and the routes of the managers.
//!
//! | method and path | answer |
//! |---|---|
//! | `GET /` | the operators' page, for who reads HTML; else a line |
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
//! secret. Connections, headers, bodies and times are bounded; and whoever fills the connections up, by sending nothing or
//! by not reading, makes room for others ([`cluster::crowd`]), except who waits for an order's end and has shown the secret.

mod metrics;
mod page;
mod pages;

pub use pages::{LagHistory, Pages, Part, Reply, RouteFuture, Routes};

use anyhow::{Context, Result};
use cluster::crowd::Crowd;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tracing::{debug, warn};

/// Connections served at once. One more takes the place of another one.
const CONNECTIONS: usize = 64;
/// Orders that are waited for at once.
const ORDERS: usize = 64;
/// For a request's head, and again for its body, to arrive.
const ARRIVAL_BOUND: Duration = Duration::from_secs(5);
/// For an answer to be read.
const READ_BOUND: Duration = Duration::from_secs(10);
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
    let crowd = Arc::new(Mutex::new(Crowd::new(CONNECTIONS)));
    let orders = Arc::new(Semaphore::new(ORDERS));
    loop {
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                warn!(%error, "cannot accept an admin connection");
                // Usually descriptors ran out: the loop would spin until one is free.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let leave = Arc::new(Notify::new());
        let (number, out) = lock(&crowd).enter(from.ip(), Arc::clone(&leave));
        if let Some(out) = out {
            out.notify_one();
        }
        let visit = Visit { crowd: Arc::clone(&crowd), number, orders: Arc::clone(&orders), answered: Notify::new() };
        let pages = Arc::clone(&pages);
        tokio::spawn(async move {
            tokio::select! {
                () = connection(stream, pages, Arc::new(visit)) => {}
                () = leave.notified() => debug!(%from, "admin connection ended for another one"),
            }
        });
    }
}

/// A connection, with one request.
struct Visit {
    crowd: Arc<Mutex<Crowd<Arc<Notify>>>>,
    number: u64,
    orders: Arc<Semaphore>,
    answered: Notify,
}

impl Visit {
    /// It has shown the secret: it is not asked to leave while its order is carried out. `None`: too many are.
    fn ordering(&self) -> Option<OwnedSemaphorePermit> {
        let order = Arc::clone(&self.orders).try_acquire_owned().ok()?;
        lock(&self.crowd).leave(self.number);
        Some(order)
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        lock(&self.crowd).leave(self.number);
    }
}

fn lock<T>(crowd: &Mutex<Crowd<T>>) -> MutexGuard<'_, Crowd<T>> {
    crowd.lock().expect("nobody panics while holding it")
}

async fn connection(stream: TcpStream, pages: Arc<Pages>, visit: Arc<Visit>) {
    let seen = Arc::clone(&visit);
    let service = service_fn(move |request| {
        let (pages, visit) = (Arc::clone(&pages), Arc::clone(&seen));
        async move {
            let answer = answer(request, &pages, &visit).await;
            visit.answered.notify_one();
            Ok::<_, Infallible>(answer)
        }
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(ARRIVAL_BOUND)
        .keep_alive(false)
        .max_headers(64)
        .max_buf_size(64 << 10)
        .serve_connection(TokioIo::new(stream), service);
    let unread = async {
        visit.answered.notified().await;
        tokio::time::sleep(READ_BOUND).await;
    };
    tokio::select! {
        served = tokio::time::timeout(REQUEST_BOUND + ARRIVAL_BOUND * 2, serving) => match served {
            Ok(Ok(())) => {}
            Ok(Err(error)) => debug!(%error, "admin connection ended early"),
            Err(_) => debug!("admin connection took too long"),
        },
        () = unread => debug!("an admin answer was not read in time"),
    }
}

async fn answer(request: Request<Incoming>, pages: &Pages, visit: &Visit) -> Response<Full<Bytes>> {
    let (parts, body) = request.into_parts();
    let is_order = parts.method != Method::GET;
    if is_order && !pages.may_order(parts.headers.get(AUTHORIZATION).map(|v| v.as_bytes())) {
        return response(&Reply::error(401, "this needs the shared secret of cluster.secret_file"));
    }
    let order = is_order.then(|| visit.ordering());
    if matches!(order, Some(None)) {
        return response(&Reply::error(503, "too many orders are being carried out"));
    }
    let read = tokio::time::timeout(ARRIVAL_BOUND, Limited::new(body, BODY_LIMIT).collect()).await;
    let body = match read {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(_)) => return response(&Reply::error(413, "the body is incomplete or longer than 64 KiB")),
        Err(_) => return response(&Reply::error(408, "the body did not arrive in time")),
    };
    if let Some(file) = page::answer(&parts.method, parts.uri.path(), &parts.headers) {
        return file;
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn connections_that_say_nothing_keep_nobody_out() {
        let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (parts, registry) = (Vec::new(), prometheus::Registry::new());
        let pages = Pages { parts, routes: None, lag_history: None, registry, secret: None, proxy: None, reload: None };
        let serving = tokio::spawn(serve(listener, Arc::new(pages)));
        let mut silent = Vec::new();
        for _ in 0..CONNECTIONS {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        let mut asking = TcpStream::connect(address).await.unwrap();
        asking.write_all(b"GET /livez HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        let mut told = String::new();
        asking.read_to_string(&mut told).await.unwrap();
        assert!(told.starts_with("HTTP/1.1 200"), "{told}");
        // Not because all of them had had their time: the oldest has made room.
        assert_eq!(silent[0].read(&mut [0]).await.unwrap_or(0), 0);
        let last = silent.last().unwrap().try_read(&mut [0]);
        assert!(last.as_ref().is_err_and(|e| e.kind() == std::io::ErrorKind::WouldBlock), "{last:?}");
        serving.abort();
    }
}
