//! A connection that was just accepted, before a runtime watches it.

use super::calls;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};

/// Bytes of a first packet that are looked for: nearly all have fewer.
const ROOM: usize = 512;

/// A client's socket, and what has come of the client.
#[derive(Debug)]
pub struct Fresh {
    /// The socket, which does not block.
    pub socket: TcpStream,
    /// The first bytes, when they have come.
    pub first: Vec<u8>,
}

impl Fresh {
    /// Accept a connection, without waiting for one, and read what has come of it.
    ///
    /// # Errors
    /// The listener's; `WouldBlock` when there is none.
    pub fn accept(listener: &TcpListener) -> io::Result<(Self, SocketAddr)> {
        let (socket, address) = calls::accept(listener)?;
        let mut room = [0; ROOM];
        // That it has failed, or ended, shows when it is read again.
        let n = calls::receive(&socket, &mut room).unwrap_or(0);
        Ok((Self { socket, first: room[..n].to_vec() }, address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    /// Accept, once a connection is there.
    fn accept(listener: &TcpListener) -> (Fresh, SocketAddr) {
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        loop {
            match Fresh::accept(listener) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    assert!(std::time::Instant::now() < deadline, "no connection came");
                    std::thread::yield_now();
                }
                accepted => return accepted.unwrap(),
            }
        }
    }

    #[test]
    fn a_deferred_connection_comes_with_its_first_bytes() {
        for any in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(any) else { continue };
            listener.set_nonblocking(true).unwrap();
            calls::defer_accept(&listener, std::time::Duration::from_secs(30)).unwrap();
            let mut silent = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            client.write_all(b"hello").unwrap();
            let (fresh, address) = accept(&listener);
            assert_eq!((fresh.first.as_slice(), address), (&b"hello"[..], client.local_addr().unwrap()));
            // It does not block, and nothing else is there.
            assert_eq!((&fresh.socket).read(&mut [0]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
            silent.write_all(b"x").unwrap();
            assert_eq!(accept(&listener).1, silent.local_addr().unwrap());
        }
    }

    #[test]
    fn a_connection_of_which_nothing_has_come_is_accepted_all_the_same() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (fresh, address) = accept(&listener);
        assert_eq!((fresh.first.len(), address), (0, client.local_addr().unwrap()));
    }
}
