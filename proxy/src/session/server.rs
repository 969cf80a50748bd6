//! A connection to a PostgreSQL server: how it is made, and what is known of it.

mod ask;
mod error;
mod login;

pub use error::{Blame, ConnectError};
pub use login::{Login, connect};

use crate::net::Stream;
use crate::pool::Permit;
use crate::session::cancel::Cancels;
use crate::session::settings::Shared;
use crate::session::statements::ServerStatements;
use crate::session::tracking::Reports;
use crate::wire::backend::{self, TxStatus};
use crate::wire::codec::head;
use cluster::lag::ServerStart;
use cluster::{Instant, NodeId, Role, Term, TimelineId};
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Longest message of a login, bytes: error texts and parameter values.
const MAX_LOGIN_MESSAGE: usize = 64 * 1024;
/// A Sync message: answered with ReadyForQuery, and nothing else happens.
const SYNC: &[u8] = b"S\0\0\0\x04";
/// Rounds of messages a login may take before ReadyForQuery.
const MAX_LOGIN_MESSAGES: usize = 1000;
/// Settings whose change makes a server unusable for other clients are all that it reports; names compare exactly.
type Settings = Vec<(String, String)>;

/// A connection that is logged in.
#[derive(Debug)]
pub struct Server {
    /// The socket.
    pub stream: Stream,
    /// What the pool and the session know of it. Apart, so that checking a connection out and giving it back moves little.
    pub meta: Box<Meta>,
    /// Cancel requests on their way to it.
    pub cancels: Rc<Cancels>,
}

impl Server {
    /// Does it answer an empty message as an idle server does?
    pub async fn answers(&mut self) -> bool {
        if self.stream.write_all(SYNC).await.is_err() || self.stream.flush().await.is_err() {
            return false;
        }
        let mut heard = Vec::new();
        for _ in 0..MAX_LOGIN_MESSAGES {
            match self.meta.absorb(&mut heard) {
                Absorbed::Ready => return heard.is_empty(),
                Absorbed::Unfit => return false,
                Absorbed::All => {}
            }
            if !self.stream.read_buf(&mut heard).await.is_ok_and(|n| n > 0) {
                return false;
            }
        }
        false
    }

    /// Is it as an idle server is: open, with nothing to say but what such a one may say by itself? That is taken in.
    /// Costs a system call only when something has come.
    pub fn is_quiet(&mut self) -> bool {
        let mut first = [0; 64];
        match self.stream.try_fill(&mut first) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => true,
            Ok(n) if n > 0 => self.take_in(&first[..n]),
            Ok(_) | Err(_) => false,
        }
    }

    #[cold]
    fn take_in(&mut self, first: &[u8]) -> bool {
        let (mut heard, mut more) = (first.to_vec(), [0; 4096]);
        for _ in 0..MAX_LOGIN_MESSAGES {
            if self.meta.absorb(&mut heard) != Absorbed::All {
                return false;
            }
            match self.stream.try_fill(&mut more) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return heard.is_empty(),
                Ok(n) if n > 0 => heard.extend_from_slice(&more[..n]),
                Ok(_) | Err(_) => return false,
            }
        }
        false
    }
}

/// What an idle server has said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Absorbed {
    /// All whole messages were such as come at any time; what is left is the start of one.
    All,
    /// It is ready, outside a transaction.
    Ready,
    /// Something that an idle server does not say.
    Unfit,
}

/// What a server does not report and what matters here, as it began with it. Empty when it was not asked:
/// on a replication connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Defaults {
    /// `client_min_messages`: may hide the notice of a cancelled wait for a standby.
    pub client_min_messages: Box<str>,
    /// `synchronous_commit`: may ask for less than the cluster's mode.
    pub synchronous_commit: Box<str>,
    /// `search_path` puts new tables into the temporary schema.
    pub creates_temp: bool,
    /// Every role may ask for the mark of a COMMIT.
    pub marks: bool,
}

/// All that moves with a connection from one worker to another.
#[derive(Debug)]
pub struct Meta {
    /// The node it leads to.
    pub node: NodeId,
    /// The timeline it writes, which a primary does for as long as it runs. `None`: a standby, or it was not asked, on a
    /// replication connection. A view that is behind may take it for the primary of another term.
    pub timeline: Option<TimelineId>,
    /// When it was started, where that was told.
    pub started: Option<ServerStart>,
    /// What the node was when the connection was made, verified.
    pub role: Role,
    /// The term in which it was made.
    pub term: Term,
    /// Where it leads, for cancel requests.
    pub peer: SocketAddr,
    /// The host's name, for cancel requests: certificates are verified against it.
    pub host: Arc<str>,
    /// The server's own key for cancel requests.
    pub key: (u32, u32),
    /// What it has prepared.
    pub statements: ServerStatements,
    /// What it reported at login.
    pub settings: Arc<Settings>,
    /// Settings it began with that it does not report.
    pub defaults: Defaults,
    /// Settings that differ from that now.
    pub changed: Settings,
    /// What the last session has set here.
    pub given: Shared,
    /// It listens to something that no session it serves knows of.
    pub listens: bool,
    /// Values of our settings that it was given only for a client to see.
    pub shown: Vec<(&'static str, String)>,
    /// The number of the session that may have left custom settings here that nobody knows of; 0 when none has.
    pub estranged: u64,
    /// The number of the run of writes that may have drawn from sequences here last; 0 when nobody may have.
    pub drew: u64,
    /// Others may have done so before it, and that was not discarded.
    pub drew_before: bool,
    /// It must not serve another client.
    pub spoilt: bool,
    /// When it was made.
    pub born: Instant,
    /// When its login was over.
    pub ready: Instant,
    /// Its node was sampled since: until then the sample may be of the server before a restart, which had replayed more.
    pub sampled: bool,
    /// When it was last given back.
    pub idle_since: Instant,
    /// Its place in the pool's limit.
    pub permit: Permit,
}

impl Meta {
    /// The term that its transactions are of: its own timeline's, whatever the view said when the connection was made.
    pub fn wrote_in(&self) -> Term {
        self.timeline.map_or(self.term, |timeline| Term(u64::from(timeline.0)))
    }

    /// May another session than the one of that number have left here what nobody knows of?
    pub fn is_strange_to(&self, session: u64) -> bool {
        self.estranged != 0 && self.estranged != session
    }

    /// The server reported a setting.
    pub fn report(&mut self, name: &str, value: &str) {
        self.changed.retain(|(n, _)| n != name);
        if !self.settings.iter().any(|(n, v)| n == name && v == value) {
            self.changed.push((name.to_owned(), value.to_owned()));
        }
    }

    /// Does what the last session has set explain all that has changed? Something else may change settings: a reload
    /// of the server's configuration, a function.
    pub fn explained(&self) -> bool {
        self.changed.iter().all(|(name, value)| self.explains(name, value))
    }

    fn explains(&self, name: &str, value: &str) -> bool {
        let given = || self.given.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v);
        let other_role = || self.given.get("role").is_some() || self.given.get("session_authorization").is_some();
        given() == Some(value) || name == "is_superuser" && other_role()
    }

    /// What has changed and no session has set is what the server begins with from now on: its configuration was
    /// reloaded. Not who it is and what it may do, which no reload changes. True when something was adopted.
    pub fn adopt(&mut self) -> bool {
        let fixed = |name: &str| matches!(name, "in_hot_standby" | "is_superuser" | "session_authorization");
        let new = |(name, value): &&(String, String)| !self.explains(name, value) && !fixed(name);
        let adopted: Settings = self.changed.iter().filter(new).cloned().collect();
        if adopted.is_empty() {
            return false;
        }
        self.changed.retain(|(n, _)| !adopted.iter().any(|(name, _)| n == name));
        for (name, value) in &mut *Arc::make_mut(&mut self.settings) {
            if let Some((_, now)) = adopted.iter().find(|(n, _)| n == name) {
                now.clone_into(value);
            }
        }
        true
    }

    /// Take in what a server may say while nobody asks it anything.
    fn absorb(&mut self, heard: &mut Vec<u8>) -> Absorbed {
        let mut at = 0;
        let absorbed = loop {
            let total = match head(&heard[at..]) {
                Ok(Some(h)) if h.total <= MAX_LOGIN_MESSAGE => h.total,
                Ok(None) => break Absorbed::All,
                Ok(Some(_)) | Err(_) => break Absorbed::Unfit,
            };
            let Some(frame) = heard.get(at..at + total) else { break Absorbed::All };
            match frame[0] {
                b'N' => {}
                // Of a LISTEN that no text showed: whoever is served next has not asked for it.
                b'A' => self.listens = true,
                b'S' => match backend::parameter_status(frame) {
                    Some((name, value)) => self.report(name, &value),
                    None => break Absorbed::Unfit,
                },
                b'Z' if backend::ready_status(frame) == Some(TxStatus::Idle) => {
                    at += total;
                    break Absorbed::Ready;
                }
                _ => break Absorbed::Unfit,
            }
            at += total;
        };
        heard.drain(..at);
        self.adopt();
        if self.explained() { absorbed } else { Absorbed::Unfit }
    }
}

impl Reports for Meta {
    fn reported(&self, name: &str) -> Option<(&str, &str)> {
        let of = |list: &[(String, String)]| list.iter().position(|(n, _)| n.eq_ignore_ascii_case(name));
        let login = self.settings[of(&self.settings)?].1.as_str();
        Some((login, of(&self.changed).map_or(login, |i| self.changed[i].1.as_str())))
    }

    fn known_statements(&self) -> Vec<&str> {
        let ascii = |name| std::str::from_utf8(name).ok().filter(|name: &&str| name.is_ascii());
        self.statements.own().filter_map(|(name, _)| ascii(name)).collect()
    }
}
