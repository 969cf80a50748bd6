//! Faults: frozen nodes, and a TCP proxy that cuts replication streams.
//!
//! A frozen standby still has WAL in its socket buffer and applies it when it thaws, so freezing does not make a
//! transaction lost. Cutting the stream between primary and standby does; the proxy tells replication connections from
//! others by their startup packet and can cut only those.

use crate::process::{signal_all, state_of, tree};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

/// Stop every process of `roots` and their descendants, again and again until none of them runs: a process may fork
/// while the tree is walked.
pub fn freeze(roots: &[Pid]) -> Vec<Pid> {
    loop {
        let all: Vec<Pid> = roots.iter().flat_map(|p| tree(*p)).collect();
        let running: Vec<Pid> =
            all.iter().copied().filter(|p| !matches!(state_of(*p), Some('T' | 'Z' | 'X') | None)).collect();
        if running.is_empty() {
            return all;
        }
        signal_all(&running, Signal::SIGSTOP);
    }
}

/// Let frozen processes run again.
pub fn thaw(pids: &[Pid]) {
    signal_all(pids, Signal::SIGCONT);
}

/// A TCP proxy in front of one PostgreSQL.
#[derive(Debug)]
pub struct FaultProxy {
    addr: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    target: SocketAddr,
    /// What passes is no PostgreSQL.
    plain: bool,
    cut: AtomicBool,
    replication: Mutex<Vec<TcpStream>>,
    slowness: Mutex<Slowness>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Slowness {
    /// No byte passes.
    held: bool,
    /// How long what is sent to a standby waits, by its application_name.
    delays: BTreeMap<String, Duration>,
}

impl Shared {
    /// Wait as long as what arrived just now has to wait. `standby` is the one to which it is sent.
    fn gate(&self, standby: Option<&str>) {
        let arrived = Instant::now();
        let mut slowness = self.slowness.lock().expect("no panic under the lock");
        loop {
            let delay = standby.and_then(|s| slowness.delays.get(s)).copied().unwrap_or_default();
            let left = delay.saturating_sub(arrived.elapsed());
            slowness = match (slowness.held, left.is_zero()) {
                (true, _) => self.changed.wait(slowness).expect("no panic under the lock"),
                (false, false) => self.changed.wait_timeout(slowness, left).expect("no panic under the lock").0,
                (false, true) => return,
            };
        }
    }

    fn change(&self, change: impl FnOnce(&mut Slowness)) {
        change(&mut self.slowness.lock().expect("no panic under the lock"));
        self.changed.notify_all();
    }
}

impl FaultProxy {
    /// Listen at `at` and pass everything on to `target`.
    ///
    /// # Errors
    /// When the address is taken.
    pub fn start(at: SocketAddr, target: SocketAddr) -> io::Result<Self> {
        Self::in_front_of(at, target, false)
    }

    /// The same in front of something that is no PostgreSQL, on a port that the system chooses: all can be held.
    ///
    /// # Errors
    /// When no socket can be made.
    pub fn plain(target: SocketAddr) -> io::Result<Self> {
        Self::in_front_of(SocketAddr::from(([127, 0, 0, 1], 0)), target, true)
    }

    fn in_front_of(at: SocketAddr, target: SocketAddr, plain: bool) -> io::Result<Self> {
        let listener = TcpListener::bind(at)?;
        let addr = listener.local_addr()?;
        let shared = Arc::new(Shared {
            target,
            plain,
            cut: AtomicBool::new(false),
            replication: Mutex::default(),
            slowness: Mutex::default(),
            changed: Condvar::new(),
        });
        let for_thread = shared.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let shared = for_thread.clone();
                std::thread::spawn(move || pass(client, &shared));
            }
        });
        Ok(Self { addr, shared })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Close every replication connection and refuse new ones until [`Self::heal`]. Other connections go on.
    ///
    /// # Panics
    /// Never: no thread panics while it holds the list.
    pub fn cut_replication(&self) {
        self.shared.cut.store(true, Ordering::SeqCst);
        for stream in self.shared.replication.lock().expect("no panic under the lock").drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Let replication connections through again.
    pub fn heal(&self) {
        self.shared.cut.store(false, Ordering::SeqCst);
    }

    /// Let no byte through until [`Self::release`], on any connection, and lose none: a network that is down.
    pub fn hold(&self) {
        self.shared.change(|s| s.held = true);
    }

    /// Let everything through again.
    pub fn release(&self) {
        self.shared.change(|s| s.held = false);
    }

    /// Let all that is streamed to `standby` wait between `delay` and twice that. Zero ends it.
    pub fn delay_stream(&self, standby: &str, delay: Duration) {
        self.shared.change(|s| {
            s.delays.insert(standby.to_owned(), delay);
        });
    }
}

/// Serve one connection to its end.
fn pass(mut client: TcpStream, shared: &Shared) {
    shared.gate(None);
    let Ok(mut server) = TcpStream::connect(shared.target) else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let startup = if shared.plain { Ok(Vec::new()) } else { read_startup(&mut client, &mut server) };
    let Ok(startup) = startup else { return };
    let replication = parameter(&startup, "replication").is_some();
    let standby = parameter(&startup, "application_name").filter(|_| replication);
    if replication {
        let mut list = shared.replication.lock().expect("no panic under the lock");
        // Read under the lock, so that a cut either sees this connection in the list or is seen here.
        if shared.cut.load(Ordering::SeqCst) {
            return;
        }
        list.extend([client.try_clone(), server.try_clone()].into_iter().flatten());
    }
    if server.write_all(&startup).is_err() {
        return;
    }
    let (Ok(from_client), Ok(to_server)) = (client.try_clone(), server.try_clone()) else { return };
    std::thread::scope(|both| {
        both.spawn(|| copy(from_client, to_server, || shared.gate(None)));
        copy(server, client, || shared.gate(standby.as_deref()));
    });
}

/// The startup packet, after requests for encryption have been passed on and answered.
fn read_startup(client: &mut TcpStream, server: &mut TcpStream) -> io::Result<Vec<u8>> {
    loop {
        let packet = read_packet(client)?;
        // SSLRequest and GSSENCRequest are 8 bytes and answered by one byte; these servers offer neither.
        let code = packet.get(4..8).map(|c| u32::from_be_bytes(c.try_into().expect("four bytes")));
        if packet.len() != 8 || !matches!(code, Some(80_877_103 | 80_877_104)) {
            return Ok(packet);
        }
        server.write_all(&packet)?;
        let mut answer = [0];
        server.read_exact(&mut answer)?;
        client.write_all(&answer)?;
        if answer != *b"N" {
            return Err(io::Error::other("encrypted connections cannot be told apart"));
        }
    }
}

fn read_packet(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut packet = vec![0; 4];
    stream.read_exact(&mut packet)?;
    let len = u32::from_be_bytes(packet[..4].try_into().expect("four bytes")) as usize;
    if !(8..=10_000).contains(&len) {
        return Err(io::Error::other("not a startup packet"));
    }
    packet.resize(len, 0);
    stream.read_exact(&mut packet[4..])?;
    Ok(packet)
}

/// A parameter of a startup packet.
fn parameter(startup: &[u8], name: &str) -> Option<String> {
    let mut parts = startup.get(8..)?.split(|b| *b == 0);
    while let (Some(key), Some(value)) = (parts.next(), parts.next()) {
        if key == name.as_bytes() {
            return Some(String::from_utf8_lossy(value).into_owned());
        }
    }
    None
}

fn copy(mut from: TcpStream, mut to: TcpStream, gate: impl Fn()) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let n = from.read(&mut buffer).unwrap_or(0);
        gate();
        if n == 0 || to.write_all(&buffer[..n]).is_err() {
            break;
        }
    }
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parameter_is_found_by_its_name_and_not_by_its_value() {
        let packet = |parameters: &[u8]| [&[0, 0, 0, 0, 0, 3, 0, 0], parameters].concat();
        let replication = |packet: &[u8]| parameter(packet, "replication");
        assert_eq!(replication(&packet(b"user\0r\0replication\0true\0\0")).as_deref(), Some("true"));
        assert_eq!(replication(&packet(b"user\0replication\0database\0x\0\0")), None);
    }
}
