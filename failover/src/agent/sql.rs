//! Asking PostgreSQL, always with a deadline: our own over its Unix socket, another node's over TCP.
//!
//! Answers are texts (the simple protocol): few columns, no types to keep in step with the server's version.

use super::env::{Env, MONITOR_USER, REPLICATION_USER};
use super::guarded::Guarded;
use cluster::demand::Allowed;
use cluster::secret::Secret;
use cluster::sessions::unhurried;
use cluster::{Endpoint, Lsn, TimelineId};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage};

/// What the agent's sessions call themselves, in its own PostgreSQL and in others.
pub(super) const APPLICATION_NAME: &str = "pgtenure_agent";

const CONNECTING: &str = "connecting";

/// The SQLSTATE by which PostgreSQL says that all connections, or all places for receivers of WAL, are taken.
pub(super) const FULL: &str = "53300";

/// A row of texts.
pub(crate) type Row = Vec<Option<String>>;

/// A question that was not answered.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SqlError {
    /// PostgreSQL said no, or the connection broke.
    #[error("{what}: {}", reason(source))]
    Postgres {
        /// The question.
        what: &'static str,
        /// Its answer.
        #[source]
        source: tokio_postgres::Error,
    },
    /// No answer in time.
    #[error("{what}: no answer within {after:?}")]
    TimedOut {
        /// The question.
        what: &'static str,
        /// The bound.
        after: Duration,
    },
    /// The answer has another form than expected.
    #[error("{what}: unexpected answer {answer}")]
    Answer {
        /// The question.
        what: &'static str,
        /// The answer's beginning.
        answer: String,
    },
    /// There is no place left for it.
    #[error("{what}: no place is left: {answer}")]
    Full {
        /// The question.
        what: &'static str,
        /// What PostgreSQL said.
        answer: String,
    },
    /// A connection failed before PostgreSQL said anything of it.
    #[error("{what}: {source}")]
    Socket {
        /// The question.
        what: &'static str,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

fn reason(error: &tokio_postgres::Error) -> String {
    let cause = || std::error::Error::source(error).map_or_else(String::new, |s| format!(": {s}"));
    error
        .as_db_error()
        .map_or_else(|| format!("{error}{}", cause()), |e| format!("{} ({})", e.message(), e.code().code()))
}

impl SqlError {
    /// The server's SQLSTATE, if it answered.
    pub(crate) fn code(&self) -> Option<&str> {
        match self {
            Self::Postgres { source, .. } => source.code().map(tokio_postgres::error::SqlState::code),
            Self::Full { .. } => Some(FULL),
            _ => None,
        }
    }

    /// Nothing listens there.
    pub(crate) fn is_refused(&self) -> bool {
        let mut cause: Option<&(dyn std::error::Error + 'static)> = match self {
            Self::Postgres { source, .. } => Some(source),
            Self::Socket { source, .. } => Some(source),
            Self::TimedOut { .. } | Self::Answer { .. } | Self::Full { .. } => None,
        };
        while let Some(error) = cause {
            if let Some(io) = error.downcast_ref::<std::io::Error>() {
                return io.kind() == std::io::ErrorKind::ConnectionRefused;
            }
            cause = error.source();
        }
        false
    }
}

/// What the agent's own sessions say at their login. Their statements never wait for standbys; and a trigger at logins that
/// fails, which concerns superusers too, must not lock the agent out of the very server on which it could be dropped.
fn local_options(version: u32) -> String {
    let triggers = if version >= 170_000 { " -c event_triggers=off" } else { "" };
    format!("{} -c synchronous_commit=local{triggers}", unhurried(version))
}

/// A connection. Dropping it closes it.
pub(crate) struct Sql {
    client: Client,
}

impl Sql {
    /// Our own PostgreSQL, as superuser over the Unix socket.
    pub(crate) async fn local(env: &Env, database: &str, bound: Duration) -> Result<Self, SqlError> {
        let mut config = Config::new();
        config.host_path(env.layout.socket_dir()).port(env.config.postgres_port).user("postgres").dbname(database);
        config.application_name(APPLICATION_NAME).options(local_options(env.version));
        let opened = tokio::time::timeout(bound, config.connect(NoTls)).await;
        let (client, connection) = opened
            .map_err(|_| SqlError::TimedOut { what: CONNECTING, after: bound })?
            .map_err(|source| SqlError::Postgres { what: CONNECTING, source })?;
        // As below.
        tokio::spawn(connection);
        Ok(Self { client })
    }

    /// Another node's, as the replication user.
    pub(crate) async fn of_primary(env: &Env, to: &Endpoint, bound: Duration) -> Result<Self, SqlError> {
        Self::remote(env, to, (REPLICATION_USER, &env.replication_password), bound).await
    }

    /// Another node's, as the monitoring user.
    pub(crate) async fn observer(env: &Env, to: &Endpoint, bound: Duration) -> Result<Self, SqlError> {
        Self::remote(env, to, (MONITOR_USER, &env.monitor_password), bound).await
    }

    /// All nodes run the same major version: what one understands at a login all do.
    async fn remote(
        env: &Env,
        to: &Endpoint,
        (user, password): (&str, &Secret),
        bound: Duration,
    ) -> Result<Self, SqlError> {
        let mut config = Config::new();
        config.user(user).password(password.expose()).dbname("postgres");
        config.application_name(APPLICATION_NAME).options(unhurried(env.version));
        let opened = async {
            let io = |source| SqlError::Socket { what: CONNECTING, source };
            let stream = TcpStream::connect((to.host.as_str(), to.port)).await.map_err(io)?;
            stream.set_nodelay(true).map_err(io)?;
            // Our passwords are verified by SCRAM everywhere: whoever asks for one is no server of ours.
            let stream = Guarded::new(stream, Allowed::default());
            let opened = config.connect_raw(stream, NoTls).await;
            opened.map_err(|source| SqlError::Postgres { what: CONNECTING, source })
        };
        let opened = tokio::time::timeout(bound, opened).await;
        let (client, connection) = opened.map_err(|_| SqlError::TimedOut { what: CONNECTING, after: bound })??;
        // Ends when the client is dropped or the server closes; the client then answers with an error.
        tokio::spawn(connection);
        Ok(Self { client })
    }

    /// The connection is known to be broken.
    pub(crate) fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    /// Run statements; the rows of each.
    pub(crate) async fn batch(
        &self,
        what: &'static str,
        sql: &str,
        bound: Duration,
    ) -> Result<Vec<Vec<Row>>, SqlError> {
        let answer = tokio::time::timeout(bound, self.client.simple_query(sql)).await;
        let messages = answer
            .map_err(|_| SqlError::TimedOut { what, after: bound })?
            .map_err(|source| SqlError::Postgres { what, source })?;
        let mut all = vec![Vec::new()];
        for message in messages {
            match message {
                SimpleQueryMessage::Row(row) => {
                    let texts = (0..row.len()).map(|i| row.get(i).map(str::to_owned)).collect();
                    all.last_mut().expect("it starts with one and only grows").push(texts);
                }
                SimpleQueryMessage::CommandComplete(_) => all.push(Vec::new()),
                // RowDescription and whatever a later version of the library adds carry no values.
                _ => {}
            }
        }
        all.pop();
        Ok(all)
    }

    /// Run one statement; its rows.
    pub(crate) async fn rows(&self, what: &'static str, sql: &str, bound: Duration) -> Result<Vec<Row>, SqlError> {
        Ok(self.batch(what, sql, bound).await?.into_iter().next().unwrap_or_default())
    }

    /// Run one statement that gives one value, and parse it.
    pub(crate) async fn value<T: std::str::FromStr>(
        &self,
        what: &'static str,
        sql: &str,
        bound: Duration,
    ) -> Result<T, SqlError> {
        let rows = self.rows(what, sql, bound).await?;
        let text = rows.first().and_then(|r| r.first()).and_then(Option::as_deref);
        let parsed = text.and_then(|t| t.parse().ok());
        parsed.ok_or_else(|| SqlError::Answer { what, answer: format!("{text:?}").chars().take(200).collect() })
    }
}

/// A replication connection to our own PostgreSQL: the only place where it tells the replay timeline exactly.
///
/// See walsender.c, `GetStandbyFlushRecPtr`. The message flow is PostgreSQL's documented frontend/backend protocol;
/// over this socket the server authenticates us by our user id.
pub(crate) struct Replication(UnixStream);

const IDENTIFY: &str = "IDENTIFY_SYSTEM";

impl Replication {
    /// Connect and log in, within `bound`.
    pub(crate) async fn open(env: &Env, bound: Duration) -> Result<Self, SqlError> {
        let opened = tokio::time::timeout(bound, Self::log_in(env)).await;
        opened.map_err(|_| SqlError::TimedOut { what: "connecting for IDENTIFY_SYSTEM", after: bound })?
    }

    async fn log_in(env: &Env) -> Result<Self, SqlError> {
        let io = |source| SqlError::Socket { what: IDENTIFY, source };
        let mut socket = UnixStream::connect(socket(env)).await.map_err(io)?;
        let hello = startup(&["user", "postgres", "replication", "true", "application_name", APPLICATION_NAME]);
        socket.write_all(&hello).await.map_err(io)?;
        let mut opened = Self(socket);
        opened.until_ready().await?;
        Ok(opened)
    }

    /// The timeline that PostgreSQL replays (or writes) and the end of its WAL on it, from `IDENTIFY_SYSTEM`. After an
    /// error the connection is of no use any more.
    pub(crate) async fn identify(&mut self, bound: Duration) -> Result<(TimelineId, Lsn), SqlError> {
        let asked = async {
            let query = framed(Some(b'Q'), b"IDENTIFY_SYSTEM\0");
            let io = |source| SqlError::Socket { what: IDENTIFY, source };
            self.0.write_all(&query).await.map_err(io)?;
            let found = self.until_ready().await?;
            found.ok_or_else(|| answer(IDENTIFY, b"no row"))
        };
        let answered = tokio::time::timeout(bound, asked).await;
        answered.map_err(|_| SqlError::TimedOut { what: IDENTIFY, after: bound })?
    }

    /// Read until the server is ready; gives the identity if a row held one.
    async fn until_ready(&mut self) -> Result<Option<(TimelineId, Lsn)>, SqlError> {
        let io = |source| SqlError::Socket { what: IDENTIFY, source };
        let mut found = None;
        loop {
            let kind = self.0.read_u8().await.map_err(io)?;
            let length = self.0.read_u32().await.map_err(io)?;
            let length = length.checked_sub(4).filter(|l| *l <= 64 * 1024);
            let mut body = vec![0; length.ok_or_else(|| answer(IDENTIFY, b"a message of absurd length"))? as usize];
            self.0.read_exact(&mut body).await.map_err(io)?;
            match kind {
                b'E' => return Err(refusal(&body)),
                b'R' if body.get(..4) != Some(&[0; 4]) => return Err(answer(IDENTIFY, b"a request for a password")),
                b'D' => found = identity(&body),
                b'Z' => return Ok(found),
                // Parameter status, key data, row description, notices: not needed here.
                _ => {}
            }
        }
    }
}

impl Drop for Replication {
    fn drop(&mut self) {
        // Terminate; nothing is lost when the server does not read it.
        let _ = self.0.try_write(&framed(Some(b'X'), b""));
    }
}

/// Where our own PostgreSQL listens.
pub(super) fn socket(env: &Env) -> std::path::PathBuf {
    env.layout.socket_dir().join(format!(".s.PGSQL.{}", env.config.postgres_port))
}

/// The first message of a login: names and values.
pub(super) fn startup(words: &[&str]) -> Vec<u8> {
    let mut hello = 196_608u32.to_be_bytes().to_vec();
    for word in words {
        hello.extend_from_slice(word.as_bytes());
        hello.push(0);
    }
    hello.push(0);
    framed(None, &hello)
}

fn framed(kind: Option<u8>, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).expect("our own messages are short");
    kind.into_iter().chain(length.to_be_bytes()).chain(body.iter().copied()).collect()
}

fn answer(what: &'static str, body: &[u8]) -> SqlError {
    let text: String =
        String::from_utf8_lossy(body).chars().map(|c| if c == '\0' { ' ' } else { c }).take(300).collect();
    SqlError::Answer { what, answer: text }
}

/// An ErrorResponse: fields that end with a zero, each begins with its kind.
fn refusal(body: &[u8]) -> SqlError {
    let said = answer(IDENTIFY, body);
    let is_full = body.split(|b| *b == 0).any(|field| field.strip_prefix(b"C") == Some(FULL.as_bytes()));
    match said {
        SqlError::Answer { what, answer } if is_full => SqlError::Full { what, answer },
        other => other,
    }
}

/// Columns of IDENTIFY_SYSTEM: systemid, timeline, xlogpos, dbname.
fn identity(row: &[u8]) -> Option<(TimelineId, Lsn)> {
    let mut rest = row.get(2..)?;
    let mut columns = Vec::new();
    while let Some((length, tail)) = rest.split_first_chunk::<4>() {
        let length = i32::from_be_bytes(*length);
        let length = usize::try_from(length).unwrap_or(0);
        columns.push(std::str::from_utf8(tail.get(..length)?).ok()?);
        rest = &tail[length..];
    }
    Some((TimelineId(columns.get(1)?.parse().ok()?), columns.get(2)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_row_is_read_and_a_cut_one_refused() {
        let mut row = 4u16.to_be_bytes().to_vec();
        for text in ["738", "5", "0/3000148"] {
            row.extend(u32::try_from(text.len()).unwrap().to_be_bytes());
            row.extend(text.as_bytes());
        }
        row.extend((-1i32).to_be_bytes());
        assert_eq!(identity(&row), Some((TimelineId(5), Lsn(0x0300_0148))));
        assert_eq!(identity(&row[..12]), None);
        assert_eq!(identity(&[]), None);
    }
}
