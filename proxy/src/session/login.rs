//! From the first byte of a connection to its first ReadyForQuery.

use crate::auth::credentials::Credentials;
use crate::console;
use crate::net::{Origin, Stream};
use crate::session::client::Session;
use crate::session::peers;
use crate::session::{encrypt, proxied};
use crate::tls::AcceptError;
use crate::wire::backend;
use crate::wire::codec::head;
use crate::wire::error_response::ClientError;
use crate::wire::sqlstate::SqlState;
use crate::wire::startup::{self, Packet, Startup};
use crate::worker::{Stranger, Worker};
use std::rc::Rc;
use std::sync::atomic::Ordering;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::SemaphorePermit;

/// Longest message of a login, bytes: SCRAM messages are far shorter.
pub(super) const MAX_MESSAGE: usize = 4096;

/// Longest message with a password in clear, which may be a token, bytes (PG_MAX_AUTH_TOKEN_LENGTH, and the type).
const MAX_PASSWORD: usize = 65_535 + 1;

/// Room for what a client sends in its login, bytes: a message comes in one piece nearly always.
const ROOM: usize = 512;

/// Why a connection ends before its session begins.
pub(super) enum Farewell {
    /// Nothing is said: the peer is gone, or it only wanted to cancel.
    Silent,
    /// Nothing can be said.
    Handshake(AcceptError),
    /// FATAL.
    Error(ClientError),
    /// The server's own words.
    Refused(Vec<u8>),
}

impl From<ClientError> for Farewell {
    fn from(error: ClientError) -> Self {
        Self::Error(error)
    }
}

impl From<AcceptError> for Farewell {
    fn from(error: AcceptError) -> Self {
        Self::Handshake(error)
    }
}

impl From<std::io::Error> for Farewell {
    fn from(_: std::io::Error) -> Self {
        Self::Silent
    }
}

/// Greet a client. What it rarely comes to is boxed, so that the rest takes little room. `None` when there will be no session; it has been told why.
pub async fn welcome(
    w: &Rc<Worker>,
    (stream, buf): (Stream, Vec<u8>),
    origin: Origin,
    (read_only, stranger): (bool, Stranger),
) -> Option<Box<Session>> {
    let stranger = Some(stranger);
    let mut greeter = Greeter { w, stream, origin, read_only, stranger, buf, turn: None, out: Vec::new() };
    let limit = w.config().login_timeout;
    let outcome = match tokio::time::timeout(limit, greeter.authenticate()).await {
        Ok(Ok(admitted)) => {
            greeter.stranger = None;
            if console::is_console(&admitted.startup.database) {
                Err(Box::pin(greeter.console(&admitted)).await)
            } else {
                greeter.admit(admitted).await
            }
        }
        Ok(Err(farewell)) => Err(farewell),
        Err(_) => {
            // Its farewell may take as long again.
            greeter.turn = None;
            Err(ClientError::LoginTimeout.into())
        }
    };
    let farewell = match outcome {
        Ok(session) => {
            w.counts.logged_in();
            return session.enter(greeter.stream, greeter.buf);
        }
        Err(farewell) => farewell,
    };
    let mut out = std::mem::take(&mut greeter.out);
    match farewell {
        Farewell::Silent => return None,
        Farewell::Handshake(error) => {
            w.counts.login("tls_failed");
            w.counts.handshake("client", false);
            let (origin, source) = (greeter.origin, std::error::Error::source(&error).map(ToString::to_string));
            if let Some(left_out) = w.logs_refusal(false) {
                tracing::info!(%origin, %error, source, left_out, "encrypted connection not accepted");
            }
            return None;
        }
        Farewell::Error(error) => {
            let report = error.report();
            let result = match &error {
                ClientError::LoginTimeout => "timeout",
                ClientError::TooManyClients { .. } => "too_many",
                _ if report.sqlstate == SqlState::INVALID_PASSWORD => "bad_password",
                _ if report.sqlstate == SqlState::TOO_MANY_CONNECTIONS => "too_many",
                _ => "refused",
            };
            w.counts.login(result);
            if let Some(left_out) = w.logs_refusal(false) {
                let (origin, sqlstate, reason) = (greeter.origin, report.sqlstate.as_str(), report.message.as_str());
                tracing::info!(%origin, sqlstate, reason, left_out, "login refused");
            }
            fatal(&error, &mut out);
        }
        Farewell::Refused(frame) => {
            w.counts.login("refused");
            out.extend_from_slice(&frame);
        }
    }
    // Best effort: the client may have gone.
    let _ = tokio::time::timeout(limit, greeter.stream.write_all(&out)).await;
    None
}

/// An error that ends the connection is FATAL whatever it is for a statement.
fn fatal(error: &ClientError, out: &mut Vec<u8>) {
    let mut report = error.report();
    report.severity = crate::wire::error_response::Severity::Fatal;
    report.encode(out);
}

pub(super) struct Admitted {
    pub(super) startup: Startup,
    pub(super) credentials: Credentials,
}

/// A client that has not proven yet who it is.
pub(super) struct Greeter<'a> {
    pub(super) w: &'a Rc<Worker>,
    pub(super) stream: Stream,
    pub(super) origin: Origin,
    /// Its session may only read.
    pub(super) read_only: bool,
    /// It has not proven yet who it is.
    stranger: Option<Stranger>,
    /// What it has sent and nobody has looked at.
    pub(super) buf: Vec<u8>,
    /// Its turn among those that are worked on.
    turn: Option<SemaphorePermit<'a>>,
    /// What it is told before anything else is waited for: a login without questions is answered in one piece.
    pub(super) out: Vec<u8>,
}

impl Greeter<'_> {
    async fn authenticate(&mut self) -> Result<Admitted, Farewell> {
        let startup = self.startup().await?;
        self.stranger.iter().for_each(Stranger::name_itself);
        if self.w.shared.stopping.load(Ordering::Relaxed) {
            return Err(ClientError::ShuttingDown.into());
        }
        if startup.user.is_empty() {
            return Err(ClientError::NoUser.into());
        }
        let clients = self.w.shared.admissions.all();
        let limit = self.w.config().max_client_connections;
        // Who must find out why they are so many comes in all the same.
        if clients >= limit && !console::is_console(&startup.database) {
            return Err(ClientError::TooManyClients { limit }.into());
        }
        if startup.minor > startup::NEWEST_MINOR || !startup.extensions.is_empty() {
            let minor = startup.minor.min(startup::NEWEST_MINOR);
            backend::write_negotiate_version(&mut self.out, minor, &startup.extensions);
        }
        // Taken only now: who connects and says nothing holds up nobody. The wait is part of the login's time.
        self.take_turn().await;
        let credentials = self.prove(&startup).await;
        self.turn = None;
        Ok(Admitted { startup, credentials: credentials? })
    }

    async fn take_turn(&mut self) {
        self.turn = Some(self.w.logins.acquire().await.expect("the semaphore is never closed"));
    }

    /// Read packets up to the StartupMessage. Encryption may be asked for once of each kind.
    async fn startup(&mut self) -> Result<Startup, Farewell> {
        let contexts = self.w.shared.tls.borrow().clone();
        let turns = &self.w.handshakes;
        let (mut ssl, mut gss) = (false, false);
        self.proxied().await?;
        if self.buf.is_empty() {
            self.more().await?;
        }
        if encrypt::is_direct(&self.buf) {
            let first = std::mem::take(&mut self.buf);
            Box::pin(encrypt::accept_direct(&mut self.stream, &contexts, first, turns)).await?;
            (ssl, gss) = (true, true);
        }
        loop {
            let len = self.packet().await?;
            let violation = |what: &str| ClientError::ProtocolViolation { what: what.to_owned() };
            let parsed = startup::parse(&self.buf[..len]).map_err(|bad| violation(&bad.to_string()))?;
            self.buf.drain(..len);
            match parsed {
                Packet::Ssl | Packet::GssEnc => {
                    let asked = if parsed == Packet::Ssl { &mut ssl } else { &mut gss };
                    if std::mem::replace(asked, true) {
                        return Err(violation("repeated request for encryption").into());
                    }
                    if !self.buf.is_empty() {
                        return Err(violation("received unencrypted data after a request for encryption").into());
                    }
                    // Bytes behind the request would be read as if TLS had protected them: see above.
                    if parsed == Packet::GssEnc {
                        self.stream.write_all(b"N").await?;
                    } else if Box::pin(encrypt::answer(&mut self.stream, &contexts, turns)).await? {
                        // Within TLS there is no other encryption.
                        gss = true;
                    }
                }
                Packet::Cancel { pid, secret } => {
                    Box::pin(peers::dispatch(self.w, self.origin, pid, &secret)).await;
                    return Err(Farewell::Silent);
                }
                Packet::UnknownVersion { major, minor } => {
                    return Err(ClientError::UnsupportedProtocol { major, minor }.into());
                }
                Packet::BadReplication { value } => return Err(ClientError::BadReplication { value }.into()),
                Packet::Startup(startup) => {
                    if self.stream.tls().is_some() {
                        self.w.counts.handshake("client", true);
                    }
                    encrypt::check(&self.stream, &contexts)?;
                    return Ok(startup);
                }
            }
        }
    }

    /// Take the header of a trusted proxy before us off the connection.
    async fn proxied(&mut self) -> Result<(), Farewell> {
        let Origin::Tcp(proxy) = self.origin else { return Ok(()) };
        if !self.w.config().proxy_protocol_from.iter().any(|n| n.contains(proxy.ip())) {
            return Ok(());
        }
        while proxied::may_be_cancel(&self.buf) {
            if self.buf.len() >= proxied::CANCEL_BEGINS {
                // Of another process of ours, which passes it on: it is proven by its key.
                return Ok(());
            }
            self.more().await?;
        }
        loop {
            match proxied::origin(&self.buf, proxy) {
                Ok(None) => self.more().await?,
                Ok(Some((origin, used))) => {
                    self.origin = Origin::Tcp(origin);
                    self.buf.drain(..used);
                    return Ok(());
                }
                Err(error) => {
                    if let Some(left_out) = self.w.logs_refusal(true) {
                        tracing::warn!(%proxy, %error, left_out, "connection of a trusted proxy not accepted");
                    }
                    return Err(Farewell::Silent);
                }
            }
        }
    }

    /// Bytes of the packet that the client has sent first, once all of it has come.
    async fn packet(&mut self) -> Result<usize, Farewell> {
        loop {
            let len = startup::packet_len(&self.buf)
                .map_err(|bad| ClientError::ProtocolViolation { what: bad.to_string() })?;
            if let Some(len) = len.filter(|&len| self.buf.len() >= len) {
                return Ok(len);
            }
            self.more().await?;
        }
    }

    /// The next message of the type that all answers to Authentication have; `what` it must be, in PostgreSQL's words.
    pub(super) async fn message(&mut self, what: &str) -> Result<Vec<u8>, Farewell> {
        self.message_within(what, MAX_MESSAGE).await
    }

    /// The same with a password in clear.
    pub(super) async fn password_message(&mut self) -> Result<Vec<u8>, Farewell> {
        self.message_within("password response", MAX_PASSWORD).await
    }

    async fn message_within(&mut self, what: &str, most: usize) -> Result<Vec<u8>, Farewell> {
        loop {
            let violation = |what: &str| ClientError::ProtocolViolation { what: what.to_owned() };
            match head(&self.buf) {
                Err(_) => return Err(violation("invalid message length").into()),
                Ok(Some(h)) if h.kind != b'p' => return Err(violation(&format!("expected {what}")).into()),
                Ok(Some(h)) if h.total > most => return Err(violation(&format!("{what} too long")).into()),
                Ok(Some(h)) if self.buf.len() >= h.total => {
                    let message = self.buf.drain(..h.total).collect();
                    if self.turn.is_none() {
                        self.take_turn().await;
                    }
                    return Ok(message);
                }
                Ok(_) => {
                    // Who is asked and says nothing holds up nobody either.
                    self.turn = None;
                    self.more().await?;
                }
            }
        }
    }

    /// Tell the client what it has not been told yet.
    pub(super) async fn flush(&mut self) -> Result<(), Farewell> {
        // What is sent is taken off at once: the login's time may end in between.
        if !self.out.is_empty() {
            let sent = self.stream.write_at_once(&self.out);
            self.out.drain(..sent);
        }
        while !self.out.is_empty() {
            let n = self.stream.write(&self.out).await?;
            self.out.drain(..n);
        }
        Ok(())
    }

    async fn more(&mut self) -> Result<(), Farewell> {
        self.flush().await?;
        self.buf.reserve(ROOM);
        if self.stream.read_buf(&mut self.buf).await? == 0 {
            return Err(Farewell::Silent);
        }
        Ok(())
    }

    /// Serve a client of the console to its end, if it may use it.
    async fn console(&mut self, admitted: &Admitted) -> Farewell {
        let Startup { database, user, .. } = &admitted.startup;
        match console::admit(self.w, database, user) {
            Ok(access) => {
                self.w.counts.logged_in();
                if let Err(farewell) = self.flush().await {
                    return farewell;
                }
                console::run(self.w, &mut self.stream, std::mem::take(&mut self.buf), access).await;
                Farewell::Silent
            }
            Err(report) => {
                let mut out = Vec::new();
                report.encode(&mut out);
                Farewell::Refused(out)
            }
        }
    }
}
