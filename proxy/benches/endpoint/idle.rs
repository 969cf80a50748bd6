//! Clients that are connected and do nothing: what each costs, and whether it is given back.

use crate::peers::Peer;
use crate::process::{Cpu, resident};
use crate::{PASSWORD, USER};
use anyhow::{Context, bail};
use proxy::auth::scram::ClientSide;
use proxy::wire::backend::{self, Authentication};
use proxy::wire::codec::{cstring, head, message};
use proxy::wire::frontend::{write_parse, write_query, write_sasl_initial, write_sasl_response};
use proxy::wire::startup::write_startup;
use rustls::{ClientConnection, StreamOwned};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

/// How long nothing is done before memory is read, so that buffers are given back, and while CPU is watched.
const PAUSE: Duration = Duration::from_secs(2);
/// Longest silence of an endpoint.
const DEADLINE: Duration = Duration::from_secs(30);
/// Length 8, code 80877103: "Message Formats" in PostgreSQL's manual.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

/// What idle clients cost.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Memory {
    clients: usize,
    /// KiB per client: connected only, after a query each, with a named statement each.
    connected: f64,
    queried: f64,
    pub(crate) prepared: Option<f64>,
    /// Percent of a core while all of them are idle.
    pub(crate) idle_cpu: f64,
    /// KiB in all above what was there before the clients came, after they left and after they came a second time and
    /// left: what grows only once is the allocator's.
    left: f64,
    left_again: f64,
}

impl Memory {
    /// The part of the clients' memory that is still there after they left for the second time.
    pub(crate) fn kept(&self) -> Option<f64> {
        let taken = self.prepared.unwrap_or(self.queried) * self.clients as f64;
        (taken > 0.0).then(|| self.left_again.max(0.0) / taken)
    }
}

impl std::fmt::Display for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let prepared = self.prepared.map_or("-".to_owned(), |kib| format!("{kib:.2}"));
        write!(
            f,
            "{} clients, KiB each: connected {:.2}, after a query {:.2}, with a named statement {prepared}; idle CPU \
             {:.2} %; KiB in all after they left {:.0}, the second time {:.0}",
            self.clients, self.connected, self.queried, self.idle_cpu, self.left, self.left_again
        )
    }
}

/// Connect so many clients to a peer, with TLS when its settings are given, and let them go, twice.
pub(crate) fn measure(peer: &Peer, clients: usize, tls: Option<&Arc<rustls::ClientConfig>>) -> anyhow::Result<Memory> {
    let pid = peer.pid.context("the peer's process is not known")?;
    let named = !peer.name().starts_with("pgbouncer 1.1");
    // One query first: what is made once is not the clients'.
    Client::connect(peer, tls)?.query()?;
    std::thread::sleep(PAUSE);
    let base = resident(pid)?;
    let each = |base: f64| -> anyhow::Result<f64> {
        std::thread::sleep(PAUSE);
        Ok((resident(pid)? - base) / clients as f64)
    };
    let mut all = connect(peer, clients, tls)?;
    let connected = each(base)?;
    all.iter_mut().try_for_each(Client::query)?;
    let queried = each(base)?;
    let prepared = if named {
        all.iter_mut().try_for_each(Client::prepare)?;
        Some(each(base)?)
    } else {
        None
    };
    let before = Cpu::of(pid)?;
    std::thread::sleep(2 * PAUSE);
    let idle_cpu = Cpu::of(pid)?.since(before).total() / (2 * PAUSE).as_secs_f64() * 100.0;
    drop(all);
    std::thread::sleep(PAUSE);
    let left = resident(pid)? - base;
    drop(connect(peer, clients, tls)?);
    std::thread::sleep(PAUSE);
    let left_again = resident(pid)? - base;
    Ok(Memory { clients, connected, queried, prepared, idle_cpu, left, left_again })
}

fn connect(peer: &Peer, clients: usize, tls: Option<&Arc<rustls::ClientConfig>>) -> anyhow::Result<Vec<Client>> {
    (0..clients).map(|i| Client::connect(peer, tls).with_context(|| format!("client {i}"))).collect()
}

trait Stream: Read + Write {}
impl<S: Read + Write> Stream for S {}

struct Client {
    stream: Box<dyn Stream>,
    buf: Vec<u8>,
}

impl Client {
    fn connect(peer: &Peer, tls: Option<&Arc<rustls::ClientConfig>>) -> anyhow::Result<Self> {
        let mut socket = TcpStream::connect((peer.host.as_str(), peer.port))?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(DEADLINE))?;
        let stream: Box<dyn Stream> = match tls {
            None => Box::new(socket),
            Some(tls) => {
                socket.write_all(&SSL_REQUEST)?;
                let mut answer = [0];
                socket.read_exact(&mut answer)?;
                if answer != *b"S" {
                    bail!("the endpoint declines TLS");
                }
                let name = "localhost".try_into().context("a name")?;
                Box::new(StreamOwned::new(ClientConnection::new(tls.clone(), name)?, socket))
            }
        };
        let mut client = Self { stream, buf: Vec::new() };
        let mut out = Vec::new();
        write_startup(&mut out, [("user", USER), ("database", USER)].into_iter());
        client.stream.write_all(&out)?;
        let mut exchange = ClientSide::with_password(USER, PASSWORD, [7; 18]);
        loop {
            let (kind, frame) = client.frame()?;
            let mut out = Vec::new();
            match kind {
                b'R' => match backend::authentication(&frame).context("an authentication request")? {
                    Authentication::Ok => {}
                    Authentication::Sasl { .. } => {
                        write_sasl_initial(&mut out, exchange.mechanism(), &exchange.first())
                    }
                    Authentication::SaslContinue(data) => write_sasl_response(&mut out, &exchange.respond(data)?),
                    Authentication::SaslFinal(data) => exchange.finish(data)?,
                    Authentication::Cleartext | Authentication::Md5(_) => {
                        bail!("an authentication method other than SCRAM")
                    }
                    Authentication::Other(other) => bail!("authentication method {other}"),
                },
                b'Z' => return Ok(client),
                b'E' => bail!("login refused: {}", String::from_utf8_lossy(&frame)),
                _ => {}
            }
            client.stream.write_all(&out)?;
        }
    }

    fn query(&mut self) -> anyhow::Result<()> {
        let mut out = Vec::new();
        write_query(&mut out, "SELECT 1");
        self.answered(&out)
    }

    /// A named statement, used once and kept.
    fn prepare(&mut self) -> anyhow::Result<()> {
        let mut out = Vec::new();
        write_parse(&mut out, b"ps1", b"SELECT abalance FROM pgbench_accounts WHERE aid = $1\0\0\0");
        message(&mut out, b'B', |b| {
            cstring(b, b"");
            cstring(b, b"ps1");
            // No formats, one parameter of one byte, no result formats.
            b.extend_from_slice(b"\0\0\0\x01\0\0\0\x017\0\0");
        });
        message(&mut out, b'E', |b| b.extend_from_slice(&[0; 5]));
        message(&mut out, b'S', |_| {});
        self.answered(&out)
    }

    fn answered(&mut self, request: &[u8]) -> anyhow::Result<()> {
        self.stream.write_all(request)?;
        loop {
            match self.frame()? {
                (b'Z', _) => return Ok(()),
                (b'E', frame) => bail!("{}", String::from_utf8_lossy(&frame)),
                _ => {}
            }
        }
    }

    fn frame(&mut self) -> anyhow::Result<(u8, Vec<u8>)> {
        loop {
            if let Some(h) = head(&self.buf)?
                && self.buf.len() >= h.total
            {
                return Ok((h.kind, self.buf.drain(..h.total).collect()));
            }
            let mut chunk = [0; 4096];
            let n = self.stream.read(&mut chunk)?;
            if n == 0 {
                bail!("the endpoint closed the connection");
            }
            self.buf.extend_from_slice(&chunk[..n]);
        }
    }
}
