//! A connection to a proxy in this process on which each byte arrives alone.

use super::wait_for;
use socket2::SockRef;
use std::io::{self, Read, Write};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{BorrowedFd, RawFd};

/// The other end of a connection, in this process.
#[derive(Clone, Copy)]
pub struct Peer(RawFd);

impl Peer {
    /// Of the one whose end here has this address, once it was accepted.
    pub fn of(local: SocketAddr) -> Self {
        wait_for("the proxy's end of the connection", || {
            let fds = std::fs::read_dir("/proc/self/fd").ok()?.flatten();
            let mut numbers = fds.filter_map(|e| e.file_name().to_str()?.parse::<RawFd>().ok());
            numbers.find(|fd| Self(*fd).with(|s| s.peer_addr().ok()?.as_socket()) == Some(local)).map(Self)
        })
    }

    fn with<T>(self, use_it: impl FnOnce(SockRef<'_>) -> T) -> T {
        // SAFETY: the number was read from the list of open ones; were it closed since, the calls made here fail.
        let fd = unsafe { BorrowedFd::borrow_raw(self.0) };
        use_it(SockRef::from(&fd))
    }

    /// Nothing waits to be read there.
    fn is_empty(self) -> bool {
        let mut byte = [MaybeUninit::uninit()];
        let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
        self.with(|s| s.recv_with_flags(&mut byte, flags)).is_err()
    }

    /// Wait until what was sent has been read, so that it is not joined with what is sent next.
    pub fn wait_until_read(self) {
        for _ in 0..2000 {
            if self.is_empty() {
                return;
            }
            std::thread::yield_now();
        }
        wait_for("the proxy to read what was sent", || self.is_empty().then_some(()));
    }
}

/// Sends a byte only when the one before has been read.
pub struct Slow {
    stream: TcpStream,
    peer: Option<Peer>,
}

impl Slow {
    pub fn new(stream: TcpStream) -> Self {
        stream.set_nodelay(true).expect("a TCP socket");
        Self { stream, peer: None }
    }
}

impl Write for Slow {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.stream.write(&bytes[..bytes.len().min(1)])?;
        // It is accepted with the first.
        let local = self.stream.local_addr()?;
        self.peer.get_or_insert_with(|| Peer::of(local)).wait_until_read();
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

impl Read for Slow {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.stream.read(bytes)
    }
}
