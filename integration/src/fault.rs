//! Faults: frozen nodes, and a TCP proxy that cuts replication streams.
//!
//! A frozen standby still has WAL in its socket buffer and applies it when it thaws, so freezing does not make a
//! transaction lost. Cutting the stream between primary and standby does; the proxy tells replication connections from
//! others by their startup packet and can cut only those.

use crate::process::{signal_all, state_of, tree};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

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
    cut: AtomicBool,
    replication: Mutex<Vec<TcpStream>>,
}

impl FaultProxy {
    /// Listen at `at` and pass everything on to `target`.
    ///
    /// # Errors
    /// When the address is taken.
    pub fn start(at: SocketAddr, target: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(at)?;
        let addr = listener.local_addr()?;
        let shared = Arc::new(Shared { target, cut: AtomicBool::new(false), replication: Mutex::default() });
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
}

/// Serve one connection to its end.
fn pass(mut client: TcpStream, shared: &Shared) {
    let Ok(mut server) = TcpStream::connect(shared.target) else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let Ok(startup) = read_startup(&mut client, &mut server) else { return };
    if is_replication(&startup) {
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
    let up = std::thread::spawn(move || copy(from_client, to_server));
    copy(server, client);
    let _ = up.join();
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

fn is_replication(startup: &[u8]) -> bool {
    startup.get(8..).is_some_and(|p| p.split(|b| *b == 0).step_by(2).any(|name| name == b"replication"))
}

fn copy(mut from: TcpStream, mut to: TcpStream) {
    let _ = io::copy(&mut from, &mut to);
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_parameter_called_replication_makes_a_replication_connection() {
        let packet = |parameters: &[u8]| [&[0, 0, 0, 0, 0, 3, 0, 0], parameters].concat();
        assert!(is_replication(&packet(b"user\0r\0replication\0true\0\0")));
        assert!(!is_replication(&packet(b"user\0replication\0database\0x\0\0")));
    }
}
