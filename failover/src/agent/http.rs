//! The agent's HTTP server: managers' commands, and `/livez` for other agents.
//!
//! Everything is bounded: connections, header time, body, and the commands by their own deadlines. A command goes on
//! when its client gives up: half a promotion would be worse, and repeating it gives the same answer. Whoever has not shown
//! the secret gets one answer, soon ([`super::visit`]).

use super::Agent;
use super::commands::CommandError;
use super::visit::{Visit, Visits};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, CONNECTION, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::convert::Infallible;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;

/// Largest body of a command.
const MAX_BODY: usize = 64 * 1024;
/// A request's head must come within.
const HEAD_BOUND: Duration = Duration::from_secs(30);
/// A request's body must come within.
const BODY_BOUND: Duration = Duration::from_secs(5);
/// Longest long poll.
const MAX_WAIT: Duration = Duration::from_secs(10);
/// An observation older than this is renewed before it is told.
const FRESH: Duration = Duration::from_millis(20);

type Answer = Response<Full<Bytes>>;

/// Serve until the task is dropped.
pub(super) async fn serve(agent: Arc<Agent>, listener: TcpListener) {
    let visits = Visits::default();
    // Connections end with this task.
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "connection not accepted");
                // Out of descriptors, most likely: accepting again at once would spin.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        while connections.try_join_next().is_some() {}
        let _ = stream.set_nodelay(true);
        let (agent, visit) = (Arc::clone(&agent), Arc::new(visits.enter(from.ip())));
        connections.spawn(async move {
            let seen = Arc::clone(&visit);
            let service = service_fn(move |request| {
                let (agent, visit) = (Arc::clone(&agent), Arc::clone(&seen));
                async move { Ok::<_, Infallible>(agent.answer_once_or_more(request, &visit, from.ip()).await) }
            });
            let mut server = http1::Builder::new();
            server.timer(TokioTimer::new()).header_read_timeout(HEAD_BOUND).max_buf_size(64 * 1024);
            tokio::select! {
                // A broken connection is its client's business.
                _ = server.serve_connection(TokioIo::new(stream), service) => {}
                () = visit.overstayed() => {}
            }
        });
    }
}

impl Agent {
    /// More than once only for those who have shown the secret.
    async fn answer_once_or_more(self: Arc<Self>, request: Request<Incoming>, visit: &Visit, from: IpAddr) -> Answer {
        let shown = request.headers().get(AUTHORIZATION).and_then(|v| v.as_bytes().strip_prefix(b"Bearer "));
        let known = shown.is_some_and(|s| same(s, self.env.secret.expose().as_bytes()));
        let stays = known && visit.stay();
        let mut answer = self.answer(request, known, from).await;
        if !stays {
            answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        answer
    }

    async fn answer(self: Arc<Self>, request: Request<Incoming>, known: bool, from: IpAddr) -> Answer {
        let (head, body) = request.into_parts();
        let path = head.uri.path();
        if head.method == Method::GET && path == "/livez" {
            return json(StatusCode::OK, &"alive");
        }
        // Proxies ask, who do not have the secret; it tells and changes nothing but when commits may be let through.
        if head.method == Method::GET && path == "/vouch" {
            return self.tell_vouched(head.uri.query().unwrap_or(""));
        }
        if !known {
            return json(StatusCode::UNAUTHORIZED, &"wrong secret");
        }
        if head.method == Method::GET && path == "/agent/state" {
            return self.tell_state(head.uri.query().unwrap_or(""), from).await;
        }
        if head.method != Method::POST {
            return json(StatusCode::METHOD_NOT_ALLOWED, &"POST expected");
        }
        let body = tokio::time::timeout(BODY_BOUND, Limited::new(body, MAX_BODY).collect()).await;
        let Ok(Ok(body)) = body else { return json(StatusCode::BAD_REQUEST, &"body too long, too slow or broken") };
        let body = body.to_bytes();
        match path {
            "/agent/freeze" => {
                self.obey(&body, |a, o: crate::api::Freeze| async move { a.freeze(o.term, o.is_stopped).await }).await
            }
            "/agent/recover" => self.obey(&body, |a, o| async move { a.recover(&o).await }).await,
            "/agent/catch_up" => self.obey(&body, |a, o| async move { a.catch_up(&o).await }).await,
            "/agent/promote" => self.obey(&body, |a, o| async move { a.promote(&o).await }).await,
            "/agent/follow" => self.obey(&body, |a, o| async move { a.follow(o).await.map(|()| Empty {}) }).await,
            "/agent/open" => self.obey(&body, |a, o| async move { a.open(&o).await }).await,
            "/agent/checkpoint" => {
                self.obey(&body, |a, o| async move { a.checkpoint(&o).await.map(|()| Empty {}) }).await
            }
            "/agent/stop" => self.obey(&body, |a, o| async move { a.stop(&o).await }).await,
            "/agent/relax" => self.obey(&body, |a, o| async move { a.relax(&o).await }).await,
            "/agent/countersign" => {
                self.obey(&body, |a, o: crate::api::Countersign| async move { a.countersign(&o) }).await
            }
            "/agent/arm" => self.obey(&body, |a, o| async move { a.arm(&o).await }).await,
            _ => json(StatusCode::NOT_FOUND, &"no such command"),
        }
    }

    /// Carry out a command in a task of its own and tell what became of it.
    async fn obey<O, R, F>(self: Arc<Self>, body: &[u8], act: impl FnOnce(Arc<Self>, O) -> F) -> Answer
    where
        O: DeserializeOwned,
        R: Serialize + Send + 'static,
        F: Future<Output = Result<R, CommandError>> + Send + 'static,
    {
        let order = match serde_json::from_slice(body) {
            Ok(order) => order,
            Err(error) => return json(StatusCode::BAD_REQUEST, &error.to_string()),
        };
        match tokio::spawn(act(Arc::clone(&self), order)).await {
            Ok(Ok(done)) => json(StatusCode::OK, &done),
            Ok(Err(CommandError::Refused(refused))) => {
                tracing::info!(node = %self.env.config.node, reason = %refused, "command refused");
                json(StatusCode::CONFLICT, &refused)
            }
            Ok(Err(CommandError::Failed(failed))) => {
                tracing::warn!(node = %self.env.config.node, error = %failed, "command failed");
                json(StatusCode::SERVICE_UNAVAILABLE, &failed)
            }
            Err(error) => json(StatusCode::SERVICE_UNAVAILABLE, &self.failed("carrying out a command", &error)),
        }
    }

    /// `GET /vouch?term=T&epoch=E`.
    fn tell_vouched(&self, query: &str) -> Answer {
        let (Some(term), Some(epoch)) = (number(query, "term"), number(query, "epoch")) else {
            return json(StatusCode::BAD_REQUEST, &"term and epoch expected");
        };
        match self.vouch(cluster::Term(term), epoch) {
            Ok(vouched) => json(StatusCode::OK, &vouched),
            Err(why) => json(StatusCode::CONFLICT, &why),
        }
    }

    /// `GET /agent/state?after=SEQ&wait_ms=N`.
    async fn tell_state(&self, query: &str, from: IpAddr) -> Answer {
        if let (Some(node), Some(holder)) = (parameter(query, "node"), parameter(query, "namesake")) {
            let port = number(query, "port").and_then(|port| port.try_into().ok());
            self.is_asked_by_namesake(node, holder, SocketAddr::new(from, port.unwrap_or(0)));
        }
        let after = number(query, "after");
        let wait = Duration::from_millis(number(query, "wait_ms").unwrap_or(0)).min(MAX_WAIT);
        let mut state = self.state.subscribe();
        if let Some(after) = after.filter(|_| !wait.is_zero()) {
            // A timeout is an answer too: nothing has changed.
            let _ = tokio::time::timeout(wait, state.wait_for(|o| o.seq > after)).await;
        }
        let now = self.env.clock.now();
        // Nobody answers who is being ended, and that is news.
        if self.state.look(|o| !o.ending && now.since(o.answered.since) > FRESH) {
            self.look_again(Duration::from_millis(100)).await;
        }
        json(StatusCode::OK, &self.state.get().told(&self.env, self.env.clock.now()))
    }
}

/// A parameter of a query.
fn parameter<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    query.split('&').filter_map(|p| p.split_once('=')).find(|(k, _)| *k == name).map(|(_, v)| v)
}

fn number(query: &str, name: &str) -> Option<u64> {
    parameter(query, name)?.parse().ok()
}

#[derive(Serialize)]
struct Empty {}

fn json<T: Serialize>(status: StatusCode, value: &T) -> Answer {
    let body = serde_json::to_vec(value).unwrap_or_else(|_| b"null".to_vec());
    let mut answer = Response::new(Full::new(Bytes::from(body)));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer
}

/// Equal, in a time that depends on the length shown only.
fn same(shown: &[u8], secret: &[u8]) -> bool {
    let length = u8::from(shown.len() != secret.len());
    let differs = shown.iter().enumerate().fold(length, |d, (i, b)| d | (b ^ secret.get(i).copied().unwrap_or(0)));
    std::hint::black_box(differs) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_equal_only_to_itself() {
        assert!(same(b"0123456789abcdef", b"0123456789abcdef"));
        for other in [&b""[..], b"0123456789abcde", b"0123456789abcdeF", b"0123456789abcdef0"] {
            assert!(!same(other, b"0123456789abcdef"));
        }
    }
}
