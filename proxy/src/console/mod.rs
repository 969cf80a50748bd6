//! The admin console: databases `pgtenure` and `pgbouncer` that lead to no server, for people, scripts and exporters.
//!
//! Commands, tables and columns are PgBouncer's, so that what was written for it works; `SHOW LAG`, `TOPOLOGY`, `PINS`
//! and `PREPARED` are ours. Settings are not changed here: the configuration file is the truth, and `RELOAD` reads it.

mod answer;
pub mod columns;
pub mod command;
pub mod rows;
pub mod table;
pub mod tally;

pub use crate::config::console::is_console;

use crate::net::Stream;
use crate::wire::backend::{self, TxStatus};
use crate::wire::codec::{head, split_cstring};
use crate::wire::console_error;
use crate::wire::error_response::{Report, Severity};
use crate::wire::frontend::{self, Subject};
use crate::worker::Worker;
use command::Command;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use table::Formats;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Longest message to the console, bytes.
const MAX_MESSAGE: usize = 64 << 10;
/// Statements and portals a console may have prepared, each.
const MAX_PREPARED: usize = 256;
/// Bytes of answers above which they are sent before the next command is carried out.
const MAX_OUT: usize = 1 << 20;

/// What a console's user may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Everything.
    Admin,
    /// `SHOW` only.
    Stats,
}

/// May this user use the console, and for what?
///
/// # Errors
/// What to tell the client.
pub fn admit(w: &Worker, database: &str, user: &str) -> Result<Access, Report> {
    let config = w.config();
    let has = |users: &[String]| users.iter().any(|u| u == user);
    match (has(&config.console.admin_users), has(&config.console.stats_users)) {
        (true, _) => Ok(Access::Admin),
        (false, true) => Ok(Access::Stats),
        (false, false) => Err(console_error::denied(database)),
    }
}

/// A statement or portal: at most one command.
#[derive(Clone)]
struct Prepared(Option<Command>);

#[derive(Clone)]
struct Portal {
    prepared: Prepared,
    formats: Formats,
}

struct Console<'a> {
    w: &'a Rc<Worker>,
    access: Access,
    stream: &'a mut Stream,
    out: Vec<u8>,
    /// The client takes no more.
    gone: bool,
    statements: BTreeMap<Vec<u8>, Prepared>,
    portals: BTreeMap<Vec<u8>, Portal>,
    /// An error was told for an extended message: the client's messages up to its Sync are thrown away.
    skip: bool,
}

/// How the console goes on after a message.
enum Then {
    Next,
    End,
}

/// Serve a client that is logged in and has been told so, from the parameters it is sent first to its end.
pub async fn run(w: &Rc<Worker>, stream: &mut Stream, mut inbox: Vec<u8>, access: Access) {
    let (statements, portals) = (BTreeMap::new(), BTreeMap::new());
    let mut console = Console { w, access, stream, out: Vec::new(), gone: false, statements, portals, skip: false };
    console.greet();
    let _seat = Seat::take(w);
    loop {
        let mut used = 0;
        let then = loop {
            match head(&inbox[used..]) {
                Ok(Some(h)) if h.total <= MAX_MESSAGE && inbox.len() - used >= h.total => {
                    let then = console.message(&inbox[used..used + h.total]).await;
                    used += h.total;
                    console.spill().await;
                    if console.gone || matches!(then, Then::End) {
                        break Then::End;
                    }
                }
                Ok(Some(h)) if h.total > MAX_MESSAGE => break console.violation("message too long for the console"),
                Err(_) => break console.violation("invalid message length"),
                Ok(_) => break Then::Next,
            }
        };
        inbox.drain(..used);
        console.flush().await;
        if console.gone || matches!(then, Then::End) {
            return;
        }
        match console.stream.read_buf(&mut inbox).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
    }
}

/// A client of the console keeps no process from ending: not who has ordered that, nor an exporter.
struct Seat<'a>(&'a Worker);

impl<'a> Seat<'a> {
    fn take(w: &'a Worker) -> Self {
        w.shared.consoles.fetch_add(1, Ordering::SeqCst);
        w.shared.left.notify_waiters();
        Self(w)
    }
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        self.0.shared.consoles.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Console<'_> {
    fn greet(&mut self) {
        // Drivers read a PostgreSQL version here and choose by it what they may send.
        let version = format!("15.0 (pgtenure {})", env!("CARGO_PKG_VERSION"));
        for (name, value) in [
            ("server_version", version.as_str()),
            ("server_encoding", "UTF8"),
            ("client_encoding", "UTF8"),
            ("DateStyle", "ISO, MDY"),
            ("TimeZone", "UTC"),
            ("integer_datetimes", "on"),
            ("standard_conforming_strings", "on"),
            ("is_superuser", "off"),
            ("application_name", ""),
        ] {
            backend::write_parameter_status(&mut self.out, name, value);
        }
        backend::write_ready(&mut self.out, TxStatus::Idle);
    }

    fn violation(&mut self, what: &str) -> Then {
        let mut report = console_error::protocol(what);
        report.severity = Severity::Fatal;
        report.encode(&mut self.out);
        Then::End
    }

    /// Send what is answered, if that is much: however many commands a message has, it takes no more memory than this and
    /// one table.
    async fn spill(&mut self) {
        if self.out.len() >= MAX_OUT {
            self.flush().await;
        }
    }

    /// Send what is answered, to a client that takes some of it within `client_write_timeout` each time.
    async fn flush(&mut self) {
        let out = std::mem::take(&mut self.out);
        let limit = self.w.config().timeouts.client_write.unwrap_or(Duration::MAX);
        let mut rest = out.as_slice();
        while !rest.is_empty() && !self.gone {
            match tokio::time::timeout(limit, self.stream.write(rest)).await {
                Ok(Ok(n @ 1..)) => rest = &rest[n..],
                Ok(Ok(0) | Err(_)) | Err(_) => self.gone = true,
            }
        }
    }

    fn ready(&mut self) {
        backend::write_ready(&mut self.out, TxStatus::Idle);
    }

    /// One whole message of the client.
    async fn message(&mut self, frame: &[u8]) -> Then {
        let kind = frame[0];
        if self.skip && !matches!(kind, b'S' | b'X') {
            return Then::Next;
        }
        let outcome = match kind {
            b'Q' => {
                self.simple(frame).await;
                return Then::Next;
            }
            b'X' => return Then::End,
            b'S' => {
                self.skip = false;
                self.portals.clear();
                self.ready();
                return Then::Next;
            }
            // Everything is sent at once anyway.
            b'H' => return Then::Next,
            b'P' => self.parse(frame),
            b'B' => self.bind(frame),
            b'D' => self.describe(frame),
            b'E' => self.execute(frame).await,
            b'C' => self.close(frame),
            _ => return self.violation(&format!("invalid frontend message type {kind}")),
        };
        if let Err(report) = outcome {
            report.encode(&mut self.out);
            self.skip = true;
        }
        Then::Next
    }

    async fn simple(&mut self, frame: &[u8]) {
        let outcome = self.run_all(frame).await;
        if let Err(report) = outcome {
            report.encode(&mut self.out);
        }
        self.ready();
    }

    async fn run_all(&mut self, frame: &[u8]) -> Result<(), Report> {
        let malformed = || console_error::protocol("invalid Query message");
        let text = text(frontend::query(frame).ok_or_else(malformed)?)?;
        let commands = command::parse(text).map_err(|bad| console_error::bad_command(&bad))?;
        if commands.is_empty() {
            backend::write_bare(&mut self.out, b'I');
        }
        for command in commands {
            if let Some(columns) = columns::of(&command) {
                table::write_columns(&mut self.out, &columns, &Formats::default());
            }
            answer::run(self.w, self.access, &command, &Formats::default(), &mut self.out).await?;
            self.spill().await;
            if self.gone {
                break;
            }
        }
        Ok(())
    }

    fn parse(&mut self, frame: &[u8]) -> Result<(), Report> {
        let parse = frontend::parse(frame).ok_or_else(|| console_error::protocol("invalid Parse message"))?;
        let mut commands = command::parse(text(parse.sql)?).map_err(|bad| console_error::bad_command(&bad))?;
        if commands.len() > 1 {
            return Err(console_error::syntax("cannot insert multiple commands into a prepared statement"));
        }
        if !parse.name.is_empty() && self.statements.contains_key(parse.name) {
            return Err(console_error::duplicate(parse.name));
        }
        if self.statements.len() >= MAX_PREPARED {
            return Err(console_error::too_many());
        }
        self.statements.insert(parse.name.to_vec(), Prepared(commands.pop()));
        backend::write_bare(&mut self.out, b'1');
        Ok(())
    }

    fn statement(&self, name: &[u8]) -> Result<&Prepared, Report> {
        self.statements.get(name).ok_or_else(|| console_error::unknown_statement(name))
    }

    fn bind(&mut self, frame: &[u8]) -> Result<(), Report> {
        let malformed = || console_error::protocol("invalid Bind message");
        let (portal, rest) = split_cstring(&frame[5..]).ok_or_else(malformed)?;
        let (name, rest) = split_cstring(rest).ok_or_else(malformed)?;
        let (_, rest) = shorts(rest).ok_or_else(malformed)?;
        let (given, rest) = rest.split_first_chunk::<2>().ok_or_else(malformed)?;
        let given = u16::from_be_bytes(*given);
        if given > 0 {
            return Err(console_error::parameters(given));
        }
        let (formats, rest) = shorts(rest).ok_or_else(malformed)?;
        if !rest.is_empty() || formats.iter().any(|f| *f > 1) {
            return Err(malformed());
        }
        let prepared = self.statement(name)?.clone();
        if self.portals.len() >= MAX_PREPARED {
            return Err(console_error::too_many());
        }
        self.portals.insert(portal.to_vec(), Portal { prepared, formats: Formats(formats) });
        backend::write_bare(&mut self.out, b'2');
        Ok(())
    }

    fn describe(&mut self, frame: &[u8]) -> Result<(), Report> {
        let subject = frontend::subject(frame).ok_or_else(|| console_error::protocol("invalid Describe message"))?;
        let (prepared, formats) = match subject {
            Subject::Statement(name) => (self.statement(name)?.clone(), Formats::default()),
            Subject::Portal(name) => {
                let portal = self.portals.get(name).ok_or_else(|| console_error::unknown_portal(name))?;
                (portal.prepared.clone(), portal.formats.clone())
            }
        };
        if matches!(subject, Subject::Statement(_)) {
            backend::write_no_parameters(&mut self.out);
        }
        match prepared.0.as_ref().and_then(columns::of) {
            Some(columns) => table::write_columns(&mut self.out, &columns, &formats),
            None => backend::write_bare(&mut self.out, b'n'),
        }
        Ok(())
    }

    async fn execute(&mut self, frame: &[u8]) -> Result<(), Report> {
        let malformed = || console_error::protocol("invalid Execute message");
        let (name, rest) = split_cstring(&frame[5..]).ok_or_else(malformed)?;
        if rest.len() != 4 {
            return Err(malformed());
        }
        let portal = self.portals.get(name).cloned().ok_or_else(|| console_error::unknown_portal(name))?;
        match portal.prepared.0 {
            Some(command) => answer::run(self.w, self.access, &command, &portal.formats, &mut self.out).await,
            None => {
                backend::write_bare(&mut self.out, b'I');
                Ok(())
            }
        }
    }

    fn close(&mut self, frame: &[u8]) -> Result<(), Report> {
        match frontend::subject(frame).ok_or_else(|| console_error::protocol("invalid Close message"))? {
            Subject::Statement(name) => drop(self.statements.remove(name)),
            Subject::Portal(name) => drop(self.portals.remove(name)),
        }
        backend::write_bare(&mut self.out, b'3');
        Ok(())
    }
}

fn text(bytes: &[u8]) -> Result<&str, Report> {
    std::str::from_utf8(bytes).map_err(|_| console_error::syntax("invalid byte sequence for encoding \"UTF8\""))
}

/// A count of 16 bits, and as many numbers of 16 bits.
fn shorts(bytes: &[u8]) -> Option<(Vec<u16>, &[u8])> {
    let (count, rest) = bytes.split_first_chunk::<2>()?;
    let (numbers, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes(*count)) * 2)?;
    Some((numbers.chunks_exact(2).map(|c| u16::from_be_bytes([c[0], c[1]])).collect(), rest))
}
