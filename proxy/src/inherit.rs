//! Listening sockets that outlive their process: handed to the next one, which accepts what waits in their queues.
//!
//! A socket that is bound anew, also with SO_REUSEPORT, has a queue of its own; what waits in the old one is reset when
//! the old process closes it. A descriptor of the very same socket loses nobody.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::sync::{Mutex, PoisonError};

/// A listening socket and the name of what it is for, as in `tcp 127.0.0.1:6432`.
pub type Named = (String, OwnedFd);

/// The name of a TCP socket for clients.
pub fn tcp_name(addr: SocketAddr) -> String {
    format!("tcp {addr}")
}

/// Listening sockets of a process before this one.
#[derive(Debug, Default)]
pub struct Inherited(Vec<Named>);

impl Inherited {
    /// All that were handed over; those that nobody asks for are closed with this.
    pub fn new(sockets: Vec<Named>) -> Self {
        Self(sockets)
    }

    /// The socket of that name.
    pub fn take(&mut self, name: &str) -> Option<OwnedFd> {
        let at = self.0.iter().position(|(n, _)| n == name)?;
        Some(self.0.swap_remove(at).1)
    }

    /// The TCP socket that listens where `addr` says, ready for a runtime.
    ///
    /// # Errors
    /// It cannot be made non-blocking.
    pub fn tcp(&mut self, addr: SocketAddr) -> std::io::Result<Option<TcpListener>> {
        let Some(socket) = self.take(&tcp_name(addr)) else { return Ok(None) };
        let listener = TcpListener::from(socket);
        listener.set_nonblocking(true)?;
        Ok(Some(listener))
    }
}

/// The sockets this process listens on, for as long as it accepts.
#[derive(Debug, Default)]
pub(crate) struct Listening(Mutex<Vec<Named>>);

impl Listening {
    /// Keep a second descriptor of the socket.
    pub(crate) fn keep(&self, name: String, socket: OwnedFd) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push((name, socket));
    }

    /// Descriptors for the next process.
    pub(crate) fn copies(&self) -> std::io::Result<Vec<Named>> {
        let sockets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        sockets.iter().map(|(name, socket)| Ok((name.clone(), socket.try_clone()?))).collect()
    }

    /// Close ours: a socket whose last descriptor is closed listens no more.
    pub(crate) fn close(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpStream;

    #[test]
    fn who_waits_in_the_queue_is_accepted_by_the_next() {
        let first = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = first.local_addr().unwrap();
        let listening = Listening::default();
        listening.keep(tcp_name(addr), first.try_clone().unwrap().into());
        let client = TcpStream::connect(addr).unwrap();
        let mut inherited = Inherited::new(listening.copies().unwrap());
        drop(first);
        listening.close();
        assert!(inherited.tcp(([127, 0, 0, 1], 1).into()).unwrap().is_none());
        let second = inherited.tcp(addr).unwrap().expect("handed over");
        second.set_nonblocking(false).unwrap();
        assert_eq!(second.accept().unwrap().1, client.local_addr().unwrap());
    }
}
