//! A client that speaks in bytes: what drivers never send can be sent, and what is answered is seen as it is.

use super::{Cluster, PASSWORD, dial, wait_for};
use proxy::auth::md5::Md5Hash;
use proxy::auth::scram::ClientSide;
use proxy::wire::backend::{self, Authentication};
use proxy::wire::codec::{cstring, head, message};
use proxy::wire::frontend::{
    write_parse, write_password, write_query, write_sasl_initial, write_sasl_response, write_subject,
};
use proxy::wire::startup::write_startup;
use std::io::{Read, Write};
use std::net::TcpStream;

pub struct Raw<S = TcpStream> {
    pub stream: S,
    buf: Vec<u8>,
    /// The key for cancel requests.
    pub key: (u32, u32),
    /// What was reported at login.
    pub settings: Vec<(String, String)>,
}

/// A message as a test wants to see it: the type, and the few words that matter.
pub type Seen = String;

impl Raw {
    /// Log in with further startup parameters.
    pub fn login(port: u16, parameters: &[(&str, &str)]) -> Self {
        Self::over(dial(port), parameters)
    }
}

impl<S: Read + Write> Raw<S> {
    /// Log in over a socket.
    pub fn over(stream: S, parameters: &[(&str, &str)]) -> Self {
        let mut raw = Self { stream, buf: Vec::new(), key: (0, 0), settings: Vec::new() };
        let mut out = Vec::new();
        let all = [("user", "app"), ("database", "app")].into_iter().chain(parameters.iter().copied());
        write_startup(&mut out, all);
        raw.send(&out);
        let mut exchange = ClientSide::with_password("app", PASSWORD, [7; 18]);
        loop {
            let (kind, frame) = raw.frame().expect("the login goes on");
            let mut out = Vec::new();
            match kind {
                b'R' => match backend::authentication(&frame).expect("an authentication request") {
                    Authentication::Ok => {}
                    Authentication::Sasl { .. } => {
                        write_sasl_initial(&mut out, exchange.mechanism(), &exchange.first())
                    }
                    Authentication::SaslContinue(data) => {
                        write_sasl_response(&mut out, &exchange.respond(data).expect("a good challenge"));
                    }
                    Authentication::SaslFinal(data) => exchange.finish(data).expect("a good signature"),
                    Authentication::Cleartext => write_password(&mut out, PASSWORD.as_bytes()),
                    Authentication::Md5(salt) => {
                        write_password(&mut out, Md5Hash::of("app", PASSWORD).answer(salt).as_bytes());
                    }
                    Authentication::Other(other) => panic!("authentication method {other}"),
                },
                b'S' => {
                    let (name, value) = backend::parameter_status(&frame).expect("a setting");
                    raw.settings.push((name.to_owned(), value.into_owned()));
                }
                b'K' => raw.key = backend::backend_key(&frame).expect("a key"),
                b'Z' => return raw,
                b'v' => {}
                b'E' => panic!("login refused: {}", seen(kind, &frame)),
                other => panic!("unexpected message {}", other as char),
            }
            raw.send(&out);
        }
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the endpoint reads");
    }

    /// Build and send messages.
    pub fn write(&mut self, build: impl FnOnce(&mut Vec<u8>)) {
        let mut out = Vec::new();
        build(&mut out);
        self.send(&out);
    }

    pub fn query(&mut self, sql: &str) -> Vec<Seen> {
        self.write(|out| write_query(out, sql));
        self.until_ready()
    }

    /// The next frame; `None` at the end of the connection.
    pub fn frame(&mut self) -> Option<(u8, Vec<u8>)> {
        loop {
            if let Some(h) = head(&self.buf).expect("good lengths")
                && self.buf.len() >= h.total
            {
                return Some((h.kind, self.buf.drain(..h.total).collect()));
            }
            let mut chunk = [0; 65536];
            match self.stream.read(&mut chunk) {
                Ok(0) => return None,
                Ok(n) => self.buf.extend_from_slice(&chunk[..n]),
                Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => return None,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => panic!("no answer from the endpoint: {e}"),
            }
        }
    }

    /// The next message. The term's being told of is no answer to anything, and only noted.
    pub fn next(&mut self) -> Seen {
        loop {
            let Some((kind, frame)) = self.frame() else { return "EOF".to_owned() };
            let seen = seen(kind, &frame);
            match seen.strip_prefix("S pgtenure.term=") {
                Some(term) => self.settings.push(("pgtenure.term".to_owned(), term.to_owned())),
                None => return seen,
            }
        }
    }

    /// The terms that it was told of, in order.
    pub fn terms(&self) -> Vec<&str> {
        self.settings.iter().filter(|(name, _)| name == "pgtenure.term").map(|(_, term)| term.as_str()).collect()
    }

    /// All messages up to ReadyForQuery or the end.
    pub fn until_ready(&mut self) -> Vec<Seen> {
        let mut all = Vec::new();
        loop {
            let next = self.next();
            let end = next.starts_with('Z') || next == "EOF";
            all.push(next);
            if end {
                return all;
            }
        }
    }
}

/// Messages in one line.
pub fn words(seen: &[Seen]) -> String {
    seen.join(" | ")
}

/// Run SQL that must not fail.
pub fn ok(client: &mut Raw, sql: &str) -> Vec<Seen> {
    let seen = client.query(sql);
    assert!(!seen.iter().any(|s| s.starts_with("E ") || s == "EOF"), "{sql}: {seen:?}");
    seen
}

/// The one value that a query gives.
pub fn value(client: &mut Raw, sql: &str) -> String {
    let seen = ok(client, sql);
    seen.iter().find_map(|s| s.strip_prefix("D ")).unwrap_or_else(|| panic!("{sql}: {seen:?}")).to_owned()
}

/// Two server connections for all clients.
pub fn two_servers() -> Cluster {
    Cluster::start(0, |raw| {
        raw.workers = 1;
        raw.pool_size = 2;
    })
}

/// Keep the connection that was used last busy, so that others get another one.
pub fn block(cluster: &Cluster) -> Raw {
    let mut client = Raw::login(cluster.port, &[]);
    ok(&mut client, "begin");
    client
}

/// A message in words.
pub fn seen(kind: u8, frame: &[u8]) -> Seen {
    let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
    match kind {
        b'Z' => format!("Z {}", frame[5] as char),
        b'E' => format!("E {}", text(backend::fields(frame).code)),
        b'N' => format!("N {}", text(backend::fields(frame).code)),
        b'C' => format!("C {}", text(&frame[5..frame.len() - 1])),
        b'D' => {
            let (mut out, mut at) = ("D".to_owned(), 7);
            while at + 4 <= frame.len() {
                let len = i32::from_be_bytes(frame[at..at + 4].try_into().unwrap());
                at += 4;
                let len = usize::try_from(len).unwrap_or(0);
                out.push(' ');
                out.push_str(&text(&frame[at..at + len.min(120)]));
                at += len;
            }
            out
        }
        b'S' => backend::parameter_status(frame).map_or_else(String::new, |(n, v)| format!("S {n}={v}")),
        other => (other as char).to_string(),
    }
}

pub fn parse(out: &mut Vec<u8>, name: &str, sql: &str) {
    let mut tail = Vec::new();
    cstring(&mut tail, sql.as_bytes());
    tail.extend_from_slice(&[0, 0]);
    write_parse(out, name.as_bytes(), &tail);
}

pub fn bind(out: &mut Vec<u8>, portal: &str, statement: &str, parameters: &[&str]) {
    message(out, b'B', |b| {
        cstring(b, portal.as_bytes());
        cstring(b, statement.as_bytes());
        b.extend_from_slice(&[0, 0]);
        b.extend_from_slice(&(parameters.len() as u16).to_be_bytes());
        for p in parameters {
            b.extend_from_slice(&(p.len() as u32).to_be_bytes());
            b.extend_from_slice(p.as_bytes());
        }
        b.extend_from_slice(&[0, 0]);
    });
}

pub fn execute(out: &mut Vec<u8>, portal: &str) {
    message(out, b'E', |b| {
        cstring(b, portal.as_bytes());
        b.extend_from_slice(&[0; 4]);
    });
}

pub fn describe(out: &mut Vec<u8>, statement: &str) {
    write_subject(out, b'D', statement.as_bytes());
}

pub fn close(out: &mut Vec<u8>, statement: &str) {
    write_subject(out, b'C', statement.as_bytes());
}

pub fn sync(out: &mut Vec<u8>) {
    message(out, b'S', |_| {});
}

pub fn flush(out: &mut Vec<u8>) {
    message(out, b'H', |_| {});
}

/// Parse, bind and execute the unnamed statement.
pub fn run(out: &mut Vec<u8>, sql: &str) {
    parse(out, "", sql);
    bind(out, "", "", &[]);
    execute(out, "");
}

/// From here on commits at the first node wait for a standby that never comes.
pub fn let_commits_wait(c: &Cluster) {
    c.nodes[0].psql("alter system set synchronous_standby_names = 'nobody'");
    c.nodes[0].psql("select pg_reload_conf()");
    // The checkpointer reads it later than those who are asked: only a commit can tell.
    let mut direct = Raw::login(c.nodes[0].port, &[]);
    let pid = direct.key.0;
    let mut attempt = 0;
    wait_for("commits to wait", || {
        attempt += 1;
        let sql = format!("create table probe_{attempt}()");
        let doing = format!(
            "select wait_event from pg_stat_activity where pid = {pid} and query = '{sql}' \
             and (state, wait_event) in (('active', 'SyncRep'), ('idle', 'ClientRead'))"
        );
        direct.write(|out| write_query(out, &sql));
        let now = wait_for("the commit to wait or to be done", || {
            let seen = c.nodes[0].psql(&doing);
            (!seen.is_empty()).then_some(seen)
        });
        c.nodes[0].psql(&format!("select pg_cancel_backend({pid})"));
        direct.until_ready();
        (now == "SyncRep").then_some(())
    });
}

/// Wait until so many commits at the first node wait for a standby.
pub fn wait_until_waiting(c: &Cluster, count: usize) {
    let sql = "select count(*) from pg_stat_activity where wait_event = 'SyncRep'";
    wait_for("commits to wait for a standby", || (c.nodes[0].psql(sql) == count.to_string()).then_some(()));
}
