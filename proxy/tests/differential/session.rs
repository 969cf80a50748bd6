//! A session that is sent scripts, in pieces, and what came back.

use super::common::raw::Raw;
use super::common::slow::Peer;
use super::script::{Script, Step};
use proxy::wire::backend;
use proxy::wire::codec::head;
use std::io::{ErrorKind, Read, Write};
use std::time::Duration;

/// In which pieces a script is sent.
#[derive(Clone, Debug)]
pub enum Cuts {
    /// One write.
    None,
    /// One message at a time, waiting for answers where the script says so.
    Messages,
    /// The same without waiting for answers, and with a pause behind each message of an extended unit: longer than the
    /// proxy waits for the rest of one before it sends what it has.
    Paused,
    /// One byte at a time.
    Bytes,
    /// Cut at these places.
    At(Vec<usize>),
}

/// A connection, to PostgreSQL or to the proxy.
pub struct Session {
    raw: Raw,
    /// The other end of the connection: the proxy runs in this process.
    peer: Option<Peer>,
    port: u16,
    database: &'static str,
    buffer: Vec<u8>,
    over: bool,
}

const END: &str = "the end of the script";
/// No answer came in time.
const SILENCE: &str = "(silence)";
/// What stands before an error's routine.
const ROUTINE: char = '\t';
/// Errors that the proxy says by itself, or has another routine of PostgreSQL's say: of blocks that have failed, of an unnamed
/// statement that is not there, and of what ends a COPY with its connection.
const OURS: [&str; 3] = [" C25P02 ", " C26000 Munnamed ", "E SFATAL VFATAL C08P01 "];
/// The connection was closed.
pub const CLOSED: &str = "(closed)";
/// Longer than the rest of a unit is waited for.
const PAUSE: Duration = Duration::from_millis(12);
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(60);

impl Session {
    pub fn login(port: u16, database: &'static str, ours: bool) -> Self {
        let raw = Raw::login(port, &[("database", database)]);
        raw.stream.set_read_timeout(Some(PATIENCE)).expect("a TCP socket");
        let local = raw.stream.local_addr().expect("it is connected");
        let peer = ours.then(|| Peer::of(local));
        Self { raw, peer, port, database, buffer: Vec::new(), over: false }
    }

    /// Send the script to a clean session with the tables as they were, and clean up behind it. All that was
    /// answered; [`SILENCE`] and [`CLOSED`] end it early, and the next run begins with a new connection.
    pub fn run(&mut self, script: &Script, cuts: &Cuts) -> Vec<String> {
        if self.over {
            *self = Self::login(self.port, self.database, self.peer.is_some());
        }
        let reset = "delete from parent_of; delete from t; insert into t values (1, 'one'), (2, 'two'), (3, null)";
        let ready = self.until_end(Script::new("reset").query(reset), Vec::new());
        assert!(ready.iter().any(|s| s == "C INSERT 0 3\\x00"), "before {}: {ready:?}", script.name);
        let mut seen = Vec::new();
        match cuts {
            Cuts::None => self.send(&script.bytes()),
            Cuts::Messages => self.step_by_step(script, &mut seen),
            Cuts::Paused => self.pausing(script),
            Cuts::Bytes => script.bytes().chunks(1).for_each(|piece| self.send_alone(piece)),
            Cuts::At(places) => {
                let (bytes, mut from) = (script.bytes(), 0);
                for at in places.iter().copied().chain([bytes.len()]) {
                    self.send_alone(&bytes[from..at]);
                    from = at;
                }
            }
        }
        self.until_end(Script::new("clean").query("rollback").query("discard all"), seen)
    }

    fn step_by_step(&mut self, script: &Script, seen: &mut Vec<String>) {
        for step in &script.steps {
            match step {
                _ if self.over => return,
                Step::Send(bytes) => self.send_alone(bytes),
                Step::Await(n) => (0..*n).for_each(|_| seen.push(self.next())),
            }
        }
    }

    fn pausing(&mut self, script: &Script) {
        for step in &script.steps {
            let Step::Send(bytes) = step else { continue };
            self.send_alone(bytes);
            if matches!(bytes.first(), Some(b'P' | b'B' | b'D' | b'E' | b'C')) {
                std::thread::sleep(PAUSE);
            }
        }
    }

    /// Send this and a last query, and take all answers up to that one's end.
    fn until_end(&mut self, last: Script, mut seen: Vec<String>) -> Vec<String> {
        self.send(&last.query(format!("select '{END}'")).bytes());
        let mut ending = false;
        while !self.over {
            let next = self.next();
            ending |= next.starts_with('D') && next.contains(END);
            let end = ending && next.starts_with('Z');
            seen.push(next);
            if end {
                break;
            }
        }
        seen
    }

    /// The next message in words.
    fn next(&mut self) -> String {
        let why = loop {
            if let Some(h) = head(&self.buffer).expect("good lengths")
                && self.buffer.len() >= h.total
            {
                let frame: Vec<u8> = self.buffer.drain(..h.total).collect();
                return words(h.kind, &frame);
            }
            let mut chunk = [0; 65536];
            match self.raw.stream.read(&mut chunk) {
                Ok(0) => break CLOSED,
                Ok(n) => self.buffer.extend_from_slice(&chunk[..n]),
                Err(e) if e.kind() == ErrorKind::WouldBlock => break SILENCE,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(_) => break CLOSED,
            }
        };
        self.over = true;
        why.to_owned()
    }

    fn send(&mut self, bytes: &[u8]) {
        // A server that closed the connection has said why; that is what is compared.
        let _ = self.raw.stream.write_all(bytes);
    }

    /// Send a piece, and wait until it has been read alone, so that it is not joined with the next.
    fn send_alone(&mut self, piece: &[u8]) {
        self.send(piece);
        if let Some(peer) = self.peer {
            peer.wait_until_read();
        }
    }
}

/// A message in words, without what differs between any two sessions.
pub fn words(kind: u8, frame: &[u8]) -> String {
    let body = &frame[5..];
    match kind {
        b'E' | b'N' => {
            let fields = body.split(|b| *b == 0).filter(|f| !f.is_empty() && !matches!(f[0], b'F' | b'L'));
            let (routine, fields): (Vec<_>, Vec<_>) = fields.partition(|f| f[0] == b'R');
            let fields: Vec<_> = fields.into_iter().map(short).collect();
            let routine = routine.first().map(|f| short(f)).unwrap_or_default();
            format!("{} {}{ROUTINE}{routine}", kind as char, fields.join(" "))
        }
        b'S' => backend::parameter_status(frame).map_or_else(|| "S ?".to_owned(), |(n, v)| format!("S {n}={v}")),
        b'A' => format!("A {}", short(&body[4..])),
        _ => format!("{} {}", kind as char, short(body)),
    }
}

/// Bytes as text; of many, the ends and a sum.
fn short(bytes: &[u8]) -> String {
    let sum = bytes.iter().fold(0u64, |sum, b| sum.wrapping_mul(31).wrapping_add(u64::from(*b)));
    match bytes.len() {
        0..400 => bytes.escape_ascii().to_string(),
        n => format!("{}... {n} bytes, sum {sum:x}", bytes[..100].escape_ascii()),
    }
}

/// The same, but for the routine of errors that the proxy says by itself.
fn is_alike(want: &str, got: &str) -> bool {
    let rest = |of: &str| of.rsplit_once(ROUTINE).map(|(rest, _)| rest.to_owned());
    want == got || OURS.iter().any(|code| got.contains(code)) && rest(want) == rest(got)
}

/// Where two sequences of answers part, if they do.
pub fn difference(want: &[String], got: &[String]) -> Option<String> {
    let longest = want.len().max(got.len());
    let alike = |i: &usize| matches!((want.get(*i), got.get(*i)), (Some(want), Some(got)) if is_alike(want, got));
    let at = (0..longest).find(|i| !alike(i))?;
    let before = want[at.saturating_sub(4)..at].join("\n    ");
    let rest = |of: &[String]| of.iter().skip(at).take(4).cloned().collect::<Vec<_>>().join("\n      ");
    Some(format!("    {before}\n  PostgreSQL:\n      {}\n  proxy:\n      {}", rest(want), rest(got)))
}
