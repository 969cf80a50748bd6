//! A blocking PostgreSQL client that shows the protocol as it is: every message, every SQLSTATE, every status byte.
//!
//! The login uses rust-postgres's SCRAM, not ours, so that both sides of the product's own are checked against
//! another implementation. Source of the formats: PostgreSQL documentation, "Message Formats".

use postgres_protocol::authentication::sasl::{ChannelBinding, ScramSha256};
use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Longest message accepted from a server, bytes.
const MAX_MESSAGE: usize = 256 << 20;

/// Whom to log in as, and where.
#[derive(Clone, Debug)]
pub struct Target {
    /// Address of the endpoint or of a PostgreSQL.
    pub addr: SocketAddr,
    /// User name.
    pub user: String,
    /// Its password.
    pub password: String,
    /// Database.
    pub database: String,
    /// Longest time without a byte while an answer is owed.
    pub patience: Duration,
}

impl Target {
    /// The same as a libpq connection string.
    pub fn conninfo(&self) -> String {
        let quote = |s: &str| format!("'{}'", s.replace('\\', "\\\\").replace('\'', "\\'"));
        let Self { addr, user, password, database, .. } = self;
        let (user, password, database) = (quote(user), quote(password), quote(database));
        format!("host={} port={} user={user} password={password} dbname={database}", addr.ip(), addr.port())
    }
}

/// A message from the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Its type byte.
    pub tag: u8,
    /// What follows the length.
    pub body: Vec<u8>,
}

/// An ErrorResponse or NoticeResponse.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerError {
    /// Field V (S when the server is older): `ERROR`, `FATAL`.
    pub severity: String,
    /// Field C.
    pub sqlstate: String,
    /// Field M.
    pub message: String,
    /// Field D.
    pub detail: Option<String>,
    /// Field H.
    pub hint: Option<String>,
}

/// Why a statement has no result.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The server answered with an error.
    #[error("{} {}: {} ({})", .0.severity, .0.sqlstate, .0.message, .0.detail.as_deref().unwrap_or("no detail"))]
    Server(ServerError),
    /// The connection is gone, or nothing came in time.
    #[error("connection: {0}")]
    Io(#[from] io::Error),
}

impl ClientError {
    /// The SQLSTATE, when the server answered.
    pub fn sqlstate(&self) -> Option<&str> {
        match self {
            Self::Server(e) => Some(&e.sqlstate),
            Self::Io(_) => None,
        }
    }
}

/// What came back for a simple query.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// All rows of all results, as text.
    pub rows: Vec<Vec<Option<String>>>,
    /// The command tags, in order.
    pub tags: Vec<String>,
}

impl Answer {
    /// The first column of the first row.
    ///
    /// # Panics
    /// When there is no such value.
    pub fn value(&self) -> &str {
        self.rows.first().and_then(|r| r.first()).and_then(Option::as_deref).expect("the query returns one value")
    }
}

/// A connection.
#[derive(Debug)]
pub struct Client {
    stream: TcpStream,
    read: Vec<u8>,
    read_at: usize,
    /// The status byte of the last ReadyForQuery.
    pub status: u8,
    /// ParameterStatus as last reported.
    pub parameters: BTreeMap<String, String>,
    /// BackendKeyData's body.
    pub key: Vec<u8>,
    /// NoticeResponses received and not yet looked at.
    pub notices: Vec<ServerError>,
}

impl Client {
    /// Log in.
    ///
    /// # Errors
    /// The server's refusal, or the connection's.
    pub fn connect(target: &Target) -> Result<Self, ClientError> {
        Self::connect_with(target, &[("application_name", "pgtenure-test")])
    }

    /// Log in with these startup parameters besides user and database.
    ///
    /// # Errors
    /// As [`Self::connect`].
    pub fn connect_with(target: &Target, parameters: &[(&str, &str)]) -> Result<Self, ClientError> {
        let mut client = Self::raw(target)?;
        let named = [("user", target.user.as_str()), ("database", target.database.as_str())];
        let mut body = 196_608u32.to_be_bytes().to_vec();
        for (name, value) in named.iter().chain(parameters) {
            cstr(&mut body, name);
            cstr(&mut body, value);
        }
        body.push(0);
        client.send(&with_length(&body))?;
        client.authenticate(target.password.as_bytes())?;
        client.until_ready()?;
        Ok(client)
    }

    /// Only the TCP connection, nothing sent.
    ///
    /// # Errors
    /// When nothing listens.
    pub fn raw(target: &Target) -> Result<Self, ClientError> {
        let stream = TcpStream::connect_timeout(&target.addr, target.patience)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(target.patience))?;
        stream.set_write_timeout(Some(target.patience))?;
        Ok(Self {
            stream,
            read: Vec::new(),
            read_at: 0,
            status: 0,
            parameters: BTreeMap::new(),
            key: Vec::new(),
            notices: Vec::new(),
        })
    }

    /// The connection itself, for who may have to end it while this client waits for an answer.
    ///
    /// # Errors
    /// When there is no file descriptor left.
    pub fn line(&self) -> io::Result<TcpStream> {
        self.stream.try_clone()
    }

    /// Send bytes as they are.
    ///
    /// # Errors
    /// When the connection is gone.
    pub fn send(&mut self, bytes: &[u8]) -> Result<(), ClientError> {
        Ok(self.stream.write_all(bytes)?)
    }

    /// The next single byte, as answered to an SSLRequest.
    ///
    /// # Errors
    /// When the connection is gone or silent.
    pub fn byte(&mut self) -> Result<u8, ClientError> {
        self.fill(1)?;
        self.read_at += 1;
        Ok(self.read[self.read_at - 1])
    }

    /// The next message, asynchronous ones included.
    ///
    /// # Errors
    /// When the connection is gone or silent, or the length is absurd.
    pub fn message(&mut self) -> Result<Message, ClientError> {
        self.fill(5)?;
        let at = self.read_at;
        let tag = self.read[at];
        let len = u32::from_be_bytes(self.read[at + 1..at + 5].try_into().expect("four bytes")) as usize;
        if !(4..=MAX_MESSAGE).contains(&len) {
            let what = format!("message {:?} of length {len}", tag as char);
            return Err(io::Error::new(io::ErrorKind::InvalidData, what).into());
        }
        self.fill(len + 1)?;
        let body = self.read[self.read_at + 5..self.read_at + 1 + len].to_vec();
        self.read_at += len + 1;
        Ok(Message { tag, body })
    }

    /// The next message that belongs to a statement; notices and parameter changes are noted on the way.
    ///
    /// # Errors
    /// As [`Self::message`].
    pub fn reply(&mut self) -> Result<Message, ClientError> {
        loop {
            let m = self.message()?;
            match m.tag {
                b'N' => self.notices.push(parse_error(&m.body)),
                b'S' => {
                    let mut parts = m.body.split(|b| *b == 0).map(text);
                    let (name, value) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
                    self.parameters.insert(name, value);
                }
                b'K' => self.key = m.body,
                b'Z' => {
                    self.status = m.body.first().copied().unwrap_or(0);
                    return Ok(m);
                }
                _ => return Ok(m),
            }
        }
    }

    /// All replies up to and including ReadyForQuery; the first error among them, if any.
    ///
    /// # Errors
    /// The server's error (after its ReadyForQuery, so that the connection can be used on), or the connection's. A
    /// FATAL error returns at once.
    pub fn until_ready(&mut self) -> Result<Vec<Message>, ClientError> {
        let mut seen = Vec::new();
        let mut error = None;
        loop {
            let m = self.reply()?;
            match m.tag {
                b'Z' => return error.map_or(Ok(seen), |e| Err(ClientError::Server(e))),
                b'E' => {
                    let e = parse_error(&m.body);
                    if e.severity == "FATAL" || e.severity == "PANIC" {
                        return Err(ClientError::Server(e));
                    }
                    error.get_or_insert(e);
                }
                _ => seen.push(m),
            }
        }
    }

    /// A simple query, whole.
    ///
    /// # Errors
    /// The server's error or the connection's.
    pub fn query(&mut self, sql: &str) -> Result<Answer, ClientError> {
        let mut body = Vec::new();
        cstr(&mut body, sql);
        self.send(&message(b'Q', &body))?;
        Ok(answer(&self.until_ready()?))
    }

    /// Parse, Bind, Execute and Sync in one write, with text parameters.
    ///
    /// # Errors
    /// The server's error or the connection's.
    pub fn extended(&mut self, statement: &str, sql: Option<&str>, parameters: &[&str]) -> Result<Answer, ClientError> {
        let mut out = Vec::new();
        if let Some(sql) = sql {
            out.extend(parse(statement, sql));
        }
        out.extend(bind(statement, parameters));
        out.extend(execute(0));
        out.extend(message(b'S', b""));
        self.send(&out)?;
        Ok(answer(&self.until_ready()?))
    }

    /// Say goodbye.
    pub fn terminate(mut self) {
        let _ = self.send(&message(b'X', b""));
    }

    fn authenticate(&mut self, password: &[u8]) -> Result<(), ClientError> {
        let mut scram = None;
        loop {
            let m = self.reply()?;
            let body = match m.tag {
                b'R' if m.body.len() >= 4 => &m.body[..],
                b'E' => return Err(ClientError::Server(parse_error(&m.body))),
                tag => return Err(unexpected(tag)),
            };
            let kind = u32::from_be_bytes(body[..4].try_into().expect("four bytes"));
            match (kind, &mut scram) {
                (0, _) => return Ok(()),
                (10, None) => {
                    let exchange = ScramSha256::new(password, ChannelBinding::unsupported());
                    let first = exchange.message();
                    let mut out = b"SCRAM-SHA-256\0".to_vec();
                    out.extend((first.len() as u32).to_be_bytes());
                    out.extend(first);
                    self.send(&message(b'p', &out))?;
                    scram = Some(exchange);
                }
                (11, Some(exchange)) => {
                    exchange.update(&body[4..])?;
                    let last = message(b'p', exchange.message());
                    self.send(&last)?;
                }
                (12, Some(exchange)) => exchange.finish(&body[4..])?,
                _ => return Err(io::Error::other(format!("authentication request {kind} not expected")).into()),
            }
        }
    }

    /// Have at least `n` unread bytes.
    fn fill(&mut self, n: usize) -> Result<(), ClientError> {
        while self.read.len() - self.read_at < n {
            if self.read_at > 0 {
                self.read.drain(..self.read_at);
                self.read_at = 0;
            }
            let old = self.read.len();
            self.read.resize(old + n.max(8192), 0);
            let got = self.stream.read(&mut self.read[old..]);
            self.read.truncate(old + *got.as_ref().unwrap_or(&0));
            match got {
                Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }
}

/// A message of that type with that body.
pub fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    out.extend(with_length(body));
    out
}

/// A body behind its length, as the startup packet and its relatives have it.
pub fn with_length(body: &[u8]) -> Vec<u8> {
    let mut out = (body.len() as u32 + 4).to_be_bytes().to_vec();
    out.extend(body);
    out
}

/// Parse.
pub fn parse(statement: &str, sql: &str) -> Vec<u8> {
    let mut body = Vec::new();
    cstr(&mut body, statement);
    cstr(&mut body, sql);
    body.extend(0u16.to_be_bytes());
    message(b'P', &body)
}

/// Bind to the unnamed portal, text parameters and results.
pub fn bind(statement: &str, parameters: &[&str]) -> Vec<u8> {
    let mut body = vec![0];
    cstr(&mut body, statement);
    body.extend(0u16.to_be_bytes());
    body.extend((parameters.len() as u16).to_be_bytes());
    for p in parameters {
        body.extend((p.len() as u32).to_be_bytes());
        body.extend(p.as_bytes());
    }
    body.extend(0u16.to_be_bytes());
    message(b'B', &body)
}

/// Execute the unnamed portal for at most that many rows, 0 for all.
pub fn execute(max_rows: u32) -> Vec<u8> {
    let mut body = vec![0];
    body.extend(max_rows.to_be_bytes());
    message(b'E', &body)
}

/// The fields of an ErrorResponse or NoticeResponse.
pub fn parse_error(body: &[u8]) -> ServerError {
    let mut e = ServerError::default();
    for field in body.split(|b| *b == 0).filter(|f| !f.is_empty()) {
        let value = text(&field[1..]);
        match field[0] {
            b'V' => e.severity = value,
            b'S' if e.severity.is_empty() => e.severity = value,
            b'C' => e.sqlstate = value,
            b'M' => e.message = value,
            b'D' => e.detail = Some(value),
            b'H' => e.hint = Some(value),
            // The other fields say where in the server's source; no test asks.
            _ => {}
        }
    }
    e
}

fn answer(messages: &[Message]) -> Answer {
    let mut a = Answer::default();
    for m in messages {
        match m.tag {
            b'D' => a.rows.push(parse_row(&m.body)),
            b'C' => a.tags.push(text(m.body.strip_suffix(b"\0").unwrap_or(&m.body))),
            // Descriptions and completions of the extended protocol carry nothing that a caller reads.
            _ => {}
        }
    }
    a
}

fn parse_row(mut body: &[u8]) -> Vec<Option<String>> {
    let mut take = |n: usize| {
        let (head, tail) = body.split_at_checked(n).expect("the server sends whole rows");
        body = tail;
        head
    };
    let columns = u16::from_be_bytes(take(2).try_into().expect("two bytes"));
    let mut row = Vec::new();
    for _ in 0..columns {
        let len = i32::from_be_bytes(take(4).try_into().expect("four bytes"));
        row.push(usize::try_from(len).ok().map(|n| text(take(n))));
    }
    row
}

fn unexpected(tag: u8) -> ClientError {
    io::Error::new(io::ErrorKind::InvalidData, format!("message {:?} not expected", tag as char)).into()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn cstr(out: &mut Vec<u8>, s: &str) {
    out.extend(s.as_bytes());
    out.push(0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_read_field_by_field() {
        let e = parse_error(b"SFEHLER\0VERROR\0C57P03\0Mno primary\0Dgate recruiting\0\0");
        assert_eq!((e.severity.as_str(), e.sqlstate.as_str()), ("ERROR", "57P03"));
        assert_eq!((e.message.as_str(), e.detail.as_deref(), e.hint), ("no primary", Some("gate recruiting"), None));
    }

    #[test]
    fn a_row_with_null_and_empty_is_told_apart() {
        let row = parse_row(b"\0\x03\0\0\0\x01a\xff\xff\xff\xff\0\0\0\0");
        assert_eq!(row, [Some("a".to_owned()), None, Some(String::new())]);
    }
}
