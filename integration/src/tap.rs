//! A TCP proxy that reads along: which SQLSTATEs a program was answered with, and whether its connections lived until
//! it said goodbye itself. Programs such as pgbench print messages, not SQLSTATEs.

use crate::client::{ServerError, parse_error};
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// Longest message kept for reading; longer ones are passed on unread.
const MAX_READ: usize = 1 << 20;

/// The message by which a client ends its connection.
const TERMINATE: &[u8] = b"X\0\0\0\x04";

/// What was seen on all connections.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Every ErrorResponse.
    pub errors: Vec<ServerError>,
    /// Messages from the server.
    pub messages: u64,
    /// Connections made.
    pub connections: usize,
    /// Connections that the server's side ended: by a fatal error, or closed before the client did.
    pub closed_by_server: usize,
}

/// A running tap.
#[derive(Debug)]
pub struct Tap {
    addr: SocketAddr,
    seen: Arc<Mutex<Seen>>,
}

impl Tap {
    /// Listen on a port of 127.0.0.1 that the system chooses, in front of `target`. Clients must not ask for
    /// encryption.
    ///
    /// # Errors
    /// When no socket can be made.
    pub fn start(target: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let addr = listener.local_addr()?;
        let seen = Arc::new(Mutex::new(Seen::default()));
        let shared = seen.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let seen = shared.clone();
                std::thread::spawn(move || pass(client, target, &seen));
            }
        });
        Ok(Self { addr, seen })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// What was seen so far.
    ///
    /// # Panics
    /// Never: no thread panics while it notes what it saw.
    pub fn seen(&self) -> Seen {
        self.seen.lock().expect("no panic under the lock").clone()
    }
}

fn pass(client: TcpStream, target: SocketAddr, seen: &Mutex<Seen>) {
    let note = |f: &dyn Fn(&mut Seen)| f(&mut seen.lock().expect("no panic under the lock"));
    note(&|s| s.connections += 1);
    let Ok(server) = TcpStream::connect(target) else {
        note(&|s| s.closed_by_server += 1);
        return;
    };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (Ok(from_client), Ok(to_server)) = (client.try_clone(), server.try_clone()) else { return };
    let goodbye = Arc::new(AtomicBool::new(false));
    let said = goodbye.clone();
    let up = std::thread::spawn(move || {
        let _ = pass_up(&from_client, &to_server, &said);
        let _ = to_server.shutdown(Shutdown::Write);
    });
    let mut fatal = false;
    let _ = read_along(&server, &client, |count, errors| {
        fatal |= errors.iter().any(|e| e.severity != "ERROR");
        note(&|s| {
            s.messages += count;
            s.errors.extend_from_slice(errors);
        });
    });
    // The server's side ended: by itself, unless the client has said goodbye or closed its own side. A client may
    // close as soon as it is told of a fatal error; the server ended it all the same.
    let client_first = goodbye.load(Ordering::SeqCst) && !fatal;
    let _ = client.shutdown(Shutdown::Both);
    let _ = up.join();
    if !client_first {
        note(&|s| s.closed_by_server += 1);
    }
}

/// Pass the client's bytes on, noting its end or its Terminate message before that is passed on.
fn pass_up(mut client: &TcpStream, mut server: &TcpStream, goodbye: &AtomicBool) -> io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let n = client.read(&mut buffer).unwrap_or(0);
        if n == 0 || buffer[..n].ends_with(TERMINATE) {
            goodbye.store(true, Ordering::SeqCst);
        }
        if n == 0 {
            return Ok(());
        }
        server.write_all(&buffer[..n])?;
    }
}

/// Pass bytes on as they come and tell of the messages in them: how many, and the errors.
fn read_along(
    mut server: &TcpStream,
    mut client: &TcpStream,
    mut tell: impl FnMut(u64, &[ServerError]),
) -> io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    let mut messages = Messages::default();
    loop {
        let n = server.read(&mut buffer)?;
        if n == 0 {
            return Ok(());
        }
        client.write_all(&buffer[..n])?;
        let (mut count, mut errors) = (0, Vec::new());
        messages.feed(&buffer[..n], |tag, body| {
            count += 1;
            if tag == b'E' {
                errors.push(parse_error(body));
            }
        });
        tell(count, &errors);
    }
}

/// Takes a byte stream apart into messages.
#[derive(Debug, Default)]
struct Messages {
    head: Vec<u8>,
    body: Vec<u8>,
    left: usize,
}

impl Messages {
    fn feed(&mut self, mut bytes: &[u8], mut message: impl FnMut(u8, &[u8])) {
        while !bytes.is_empty() {
            if self.head.len() < 5 {
                let take = bytes.len().min(5 - self.head.len());
                self.head.extend(&bytes[..take]);
                bytes = &bytes[take..];
                if self.head.len() < 5 {
                    return;
                }
                let len = u32::from_be_bytes(self.head[1..].try_into().expect("four bytes")) as usize;
                self.left = len.saturating_sub(4);
            }
            let take = bytes.len().min(self.left);
            if self.body.len() + take <= MAX_READ {
                self.body.extend(&bytes[..take]);
            }
            (self.left, bytes) = (self.left - take, &bytes[take..]);
            if self.left == 0 {
                message(self.head[0], &self.body);
                self.head.clear();
                self.body.clear();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_found_however_the_stream_is_cut() {
        let stream = [b"Z\0\0\0\x05I".as_slice(), b"1\0\0\0\x04", b"E\0\0\0\x0cVERROR\0\0"].concat();
        for cut in 1..stream.len() {
            let (mut messages, mut found) = (Messages::default(), Vec::new());
            for part in stream.chunks(cut) {
                messages.feed(part, |tag, body| found.push((tag, body.len())));
            }
            assert_eq!(found, [(b'Z', 1), (b'1', 0), (b'E', 8)], "cut into {cut}");
        }
    }
}
