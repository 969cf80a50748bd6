//! Talks to the admin HTTP of managers and finds the leading one from any of them.

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::{Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use std::time::Duration;
use tokio::net::TcpStream;

/// To connect to one address.
const CONNECT_BOUND: Duration = Duration::from_secs(2);
/// To answer a question.
const ASK_BOUND: Duration = Duration::from_secs(10);
/// To carry out an order; a manager's own bound (`manager.operation_timeout`) ends it sooner.
const ORDER_BOUND: Duration = Duration::from_secs(600);
/// A longer answer is not one of ours.
const ANSWER_LIMIT: usize = 16 << 20;
/// What to do where the secret is refused.
const WANTED: &str = "use --config, or --secret-file with the file of cluster.secret_file";
/// How often a manager may send us on to another one: an election can happen meanwhile.
const REDIRECTS: usize = 5;

/// Why a call gave no answer to show.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// Nothing was done, for reasons that the answer lists.
    #[error("refused: {}", reason_of(.0))]
    Refused(Value),
    /// It was tried and did not succeed; the answer says where things stand.
    #[error("failed (HTTP {status}): {}", reason_of(.answer))]
    Failed {
        /// HTTP status.
        status: u16,
        /// The answer.
        answer: Value,
    },
    /// The manager wants the shared secret, or another one.
    #[error("{url} refuses the shared secret: {}", unread.as_deref().unwrap_or(WANTED))]
    Secret {
        /// Who.
        url: String,
        /// Why none was sent, if one is known of.
        unread: Option<String>,
    },
    /// No manager leads just now.
    #[error("no manager leads the cluster just now ({0})")]
    NoLeader(String),
    /// No address answered.
    #[error("no manager answers: {}", .0.join("; "))]
    Unreachable(Vec<String>),
}

/// The sentence of an answer that says why.
fn reason_of(answer: &Value) -> String {
    let text = ["error", "reason", "refused", "message"].iter().find_map(|k| answer.get(k)?.as_str());
    text.map_or_else(|| answer.to_string(), str::to_owned)
}

/// The admin HTTP of a cluster's managers.
#[derive(Clone, Debug)]
pub struct Admin {
    urls: Vec<String>,
    secret: Option<cluster::secret::Secret>,
    unread: Option<String>,
}

/// An HTTP answer.
struct Answer {
    status: StatusCode,
    body: Value,
}

impl Admin {
    /// Managers by their admin addresses (`http://HOST:PORT` or `HOST:PORT`), and the shared secret if orders are to
    /// be given.
    pub fn new(urls: Vec<String>, secret: Option<String>) -> Self {
        Self { urls, secret: secret.map(cluster::secret::Secret::new), unread: None }
    }

    /// The same without the secret that there is, and why: questions need none.
    pub fn without_secret(urls: Vec<String>, unread: String) -> Self {
        Self { urls, secret: None, unread: Some(unread) }
    }

    /// Ask the leading manager.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn get(&self, path: &str) -> Result<Value, CallError> {
        self.call(&Method::GET, path, None, ASK_BOUND).await
    }

    /// Give the leading manager an order and wait until it is done.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn post(&self, path: &str, body: &Value) -> Result<Value, CallError> {
        self.call(&Method::POST, path, Some(body), ORDER_BOUND).await
    }

    async fn call(
        &self,
        method: &Method,
        path: &str,
        body: Option<&Value>,
        bound: Duration,
    ) -> Result<Value, CallError> {
        let mut unreachable = Vec::new();
        let mut no_leader = None;
        for url in &self.urls {
            match self.call_from(url, method, path, body, bound).await {
                Ok(answer) => return Ok(answer),
                Err(CallError::Unreachable(why)) => unreachable.extend(why),
                Err(CallError::NoLeader(why)) => no_leader = Some(why),
                Err(CallError::Secret { url, .. }) => {
                    return Err(CallError::Secret { url, unread: self.unread.clone() });
                }
                Err(other) => return Err(other),
            }
        }
        Err(no_leader.map_or(CallError::Unreachable(unreachable), CallError::NoLeader))
    }

    /// Call one manager, or the leader that it names.
    async fn call_from(
        &self,
        url: &str,
        method: &Method,
        path: &str,
        body: Option<&Value>,
        bound: Duration,
    ) -> Result<Value, CallError> {
        let mut at = host_port(url).to_owned();
        for _ in 0..=REDIRECTS {
            let sent = tokio::time::timeout(bound, self.exchange(&at, method, path, body)).await;
            let answer = match sent.unwrap_or_else(|_| Err(Lost::Sent(format!("no answer within {bound:?}")))) {
                Ok(answer) => answer,
                // An order whose answer is lost may have been carried out: never give it twice.
                Err(Lost::Sent(e)) if *method == Method::POST => {
                    let error = format!("{at}: the answer was lost ({e}); look at `pgtenure status`");
                    return Err(CallError::Failed { status: 0, answer: serde_json::json!({ "error": error }) });
                }
                Err(e) => return Err(CallError::Unreachable(vec![format!("{at}: {e}")])),
            };
            match answer.status {
                StatusCode::TEMPORARY_REDIRECT => match leader_of(&answer.body) {
                    Some(next) => at = host_port(&next).to_owned(),
                    None => return Err(CallError::NoLeader(reason_of(&answer.body))),
                },
                status => return finished(status, answer.body, &at),
            }
        }
        Err(CallError::NoLeader(format!("{at} names yet another leader")))
    }

    async fn exchange(&self, at: &str, method: &Method, path: &str, body: Option<&Value>) -> Result<Answer, Lost> {
        let connecting = tokio::time::timeout(CONNECT_BOUND, TcpStream::connect(at)).await;
        let stream = connecting.map_err(|_| Lost::NotSent("no connection in time".into()))?.map_err(Lost::not_sent)?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(Lost::not_sent)?;
        let driver = tokio::spawn(connection);
        let bytes = body.map_or_else(Bytes::new, |b| Bytes::from(b.to_string()));
        let mut request = Request::builder().method(method).uri(path).header(header::HOST, at);
        if let Some(secret) = &self.secret {
            request = request.header(header::AUTHORIZATION, format!("Bearer {}", secret.expose()));
        }
        let request = request.body(Full::new(bytes)).map_err(Lost::not_sent)?;
        let response = sender.send_request(request).await.map_err(Lost::sent)?;
        let status = response.status();
        let read = Limited::new(response.into_body(), ANSWER_LIMIT).collect().await;
        let bytes = read.map_err(|e| Lost::Sent(e.to_string()))?.to_bytes();
        driver.abort();
        let text = || Value::String(String::from_utf8_lossy(&bytes).trim().to_owned());
        let body = serde_json::from_slice(&bytes).unwrap_or_else(|_| serde_json::json!({ "error": text() }));
        Ok(Answer { status, body })
    }
}

/// An exchange without an answer.
#[derive(Debug, thiserror::Error)]
enum Lost {
    /// The request did not reach anybody.
    #[error("{0}")]
    NotSent(String),
    /// The request may have arrived.
    #[error("{0}")]
    Sent(String),
}

impl Lost {
    fn not_sent(e: impl std::fmt::Display) -> Self {
        Self::NotSent(e.to_string())
    }

    fn sent(e: impl std::fmt::Display) -> Self {
        Self::Sent(e.to_string())
    }
}

/// What an answer that is no redirection means.
fn finished(status: StatusCode, body: Value, at: &str) -> Result<Value, CallError> {
    match status {
        s if s.is_success() => Ok(body),
        StatusCode::CONFLICT => Err(CallError::Refused(body)),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(CallError::Secret { url: at.to_owned(), unread: None }),
        s => Err(CallError::Failed { status: s.as_u16(), answer: body }),
    }
}

/// `HOST:PORT` of a URL or of itself.
fn host_port(url: &str) -> &str {
    url.trim().strip_prefix("http://").unwrap_or(url.trim()).trim_end_matches('/')
}

/// Where the leader's admin HTTP is, as a manager that does not lead answers.
fn leader_of(answer: &Value) -> Option<String> {
    let place = answer.pointer("/leader/admin").or_else(|| answer.get("admin"));
    place?.as_str().filter(|a| !a.is_empty()).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_answer_is_done_refused_or_failed() {
        let of = |code: u16| finished(StatusCode::from_u16(code).unwrap(), json!({"error": "why"}), "db1:7400");
        assert!(of(200).is_ok());
        assert!(matches!(of(409), Err(CallError::Refused(_))));
        assert!(matches!(of(401), Err(CallError::Secret { .. })));
        assert!(matches!(of(503), Err(CallError::Failed { status: 503, .. })));
        assert_eq!(of(500).unwrap_err().to_string(), "failed (HTTP 500): why");
    }

    #[test]
    fn a_leader_is_found_with_or_without_a_scheme() {
        assert_eq!(host_port("http://db1:7400/"), "db1:7400");
        assert_eq!(host_port("db1:7400"), "db1:7400");
        assert_eq!(leader_of(&json!({"leader": {"admin": "db2:7400"}})).as_deref(), Some("db2:7400"));
        assert_eq!(leader_of(&json!({"leader": null})), None);
    }
}
