//! HTTP to agents: one exchange with its own deadline, or a kept connection for long polls.

use crate::fsm::action::{Command, CommandError, CommandKind, Reply};
use cluster::Endpoint;
use cluster::secret::Secret;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::task::AbortHandle;
use tokio::time::timeout;

/// A longer answer is not one of an agent's.
const ANSWER_LIMIT: usize = 1 << 20;
/// To connect; an agent on a living host answers within a round trip.
const CONNECT_BOUND: Duration = Duration::from_millis(700);

/// An exchange without an answer.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    /// Nothing listens there.
    #[error("connection refused")]
    ConnectionRefused,
    /// No connection, so nothing was sent.
    #[error("cannot connect: {0}")]
    Connect(String),
    /// Sent, perhaps, and not answered.
    #[error("{0}")]
    Lost(String),
    /// No answer within the bound.
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
}

/// A connection to one agent that is kept between exchanges.
#[derive(Debug)]
pub struct AgentLink {
    endpoint: Endpoint,
    secret: Option<Secret>,
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    sender: SendRequest<Full<Bytes>>,
    driver: AbortHandle,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl AgentLink {
    /// No connection yet.
    pub fn new(endpoint: Endpoint, secret: Secret) -> Self {
        Self { endpoint, secret: Some(secret), open: None }
    }

    /// For what is answered without the secret, which proxies do not have.
    pub fn without_secret(endpoint: Endpoint) -> Self {
        Self { endpoint, secret: None, open: None }
    }

    /// One exchange. Cancelled or failed, the connection is given up.
    ///
    /// # Errors
    /// See [`ExchangeError`].
    pub async fn exchange(
        &mut self,
        method: Method,
        path: &str,
        body: Bytes,
        bound: Duration,
    ) -> Result<(StatusCode, Bytes), ExchangeError> {
        let mut open = match self.open.take() {
            Some(open) if !open.sender.is_closed() => open,
            _ => self.connect().await?,
        };
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, self.endpoint.to_string())
            .header(header::CONTENT_TYPE, "application/json");
        if let Some(secret) = &self.secret {
            request = request.header(header::AUTHORIZATION, format!("Bearer {}", secret.expose()));
        }
        let request = request.body(Full::new(body)).map_err(|e| ExchangeError::Connect(e.to_string()))?;
        let answer = async {
            open.sender.ready().await.map_err(lost)?;
            let response = open.sender.send_request(request).await.map_err(lost)?;
            let status = response.status();
            let body = Limited::new(response.into_body(), ANSWER_LIMIT).collect().await;
            Ok((status, body.map_err(|e| ExchangeError::Lost(e.to_string()))?.to_bytes()))
        };
        let answer = timeout(bound, answer).await.map_err(|_| ExchangeError::TimedOut(bound))??;
        self.open = Some(open);
        Ok(answer)
    }

    async fn connect(&self) -> Result<Open, ExchangeError> {
        let connecting = async {
            let stream = TcpStream::connect((self.endpoint.host.as_str(), self.endpoint.port)).await?;
            stream.set_nodelay(true)?;
            http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)
        };
        let connected = timeout(CONNECT_BOUND, connecting).await.map_err(|_| ExchangeError::TimedOut(CONNECT_BOUND))?;
        let (sender, connection) = connected.map_err(|e| match e.kind() {
            io::ErrorKind::ConnectionRefused => ExchangeError::ConnectionRefused,
            _ => ExchangeError::Connect(e.to_string()),
        })?;
        // Ends with the connection; its error is seen by the exchange that it cuts off.
        let driver = tokio::spawn(async move { drop(connection.await) }).abort_handle();
        Ok(Open { sender, driver })
    }
}

fn lost(e: hyper::Error) -> ExchangeError {
    ExchangeError::Lost(e.to_string())
}

/// Order `command` and read its answer.
///
/// # Errors
/// See [`CommandError`].
pub async fn order(
    endpoint: Endpoint,
    secret: Secret,
    command: &Command,
    bound: Duration,
) -> Result<Reply, CommandError> {
    let path = format!("/agent/{}", command.kind().as_str());
    let body = Bytes::from(body(command));
    let mut link = AgentLink::new(endpoint, secret);
    let (status, bytes) = link.exchange(Method::POST, &path, body, bound).await.map_err(|e| match e {
        ExchangeError::ConnectionRefused | ExchangeError::Connect(_) => CommandError::Unreachable(e.to_string()),
        ExchangeError::Lost(_) | ExchangeError::TimedOut(_) => CommandError::NoAnswer(e.to_string()),
    })?;
    match status {
        StatusCode::OK => reply(command.kind(), &bytes),
        StatusCode::CONFLICT => Err(CommandError::Refused(parse(&bytes)?)),
        StatusCode::SERVICE_UNAVAILABLE => Err(CommandError::Failed(parse(&bytes)?)),
        other => Err(CommandError::NoAnswer(format!("HTTP {other}: {}", excerpt(&bytes)))),
    }
}

fn body(command: &Command) -> Vec<u8> {
    fn json<T: Serialize>(value: &T) -> Vec<u8> {
        serde_json::to_vec(value).expect("plain structs serialise")
    }
    match command {
        Command::Freeze(c) => json(c),
        Command::Recover(c) => json(c),
        Command::CatchUp(c) => json(c),
        Command::Promote(c) => json(c),
        Command::Follow(c) => json(c),
        Command::Open(c) => json(c),
        Command::Checkpoint(c) => json(c),
        Command::Stop(c) => json(c),
        Command::Arm(c) => json(c),
        Command::Relax(c) => json(c),
    }
}

fn reply(kind: CommandKind, bytes: &[u8]) -> Result<Reply, CommandError> {
    Ok(match kind {
        CommandKind::Freeze | CommandKind::Recover | CommandKind::CatchUp => Reply::Frozen(parse(bytes)?),
        CommandKind::Promote => Reply::Promoted(parse(bytes)?),
        CommandKind::Open => Reply::Opened(parse(bytes)?),
        CommandKind::Stop => Reply::Stopped(parse(bytes)?),
        CommandKind::Arm => Reply::Armed(parse(bytes)?),
        CommandKind::Relax => Reply::Relaxed(parse(bytes)?),
        CommandKind::Follow | CommandKind::Checkpoint => Reply::Done,
    })
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CommandError> {
    serde_json::from_slice(bytes).map_err(|e| CommandError::NoAnswer(format!("{e} in {}", excerpt(bytes))))
}

fn excerpt(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).chars().take(200).collect()
}
