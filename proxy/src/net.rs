//! The byte stream under a session: what kind of socket it is matters to nobody above.
//!
//! Reading and writing never wait by themselves: a call moves what can be moved now, or registers the task.

mod calls;

use crate::tls::{Peer, Tls};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

/// A connection to a client or a server.
#[derive(Debug)]
pub enum Stream {
    /// TCP.
    Tcp(TcpStream),
    /// A Unix-domain socket.
    Unix(UnixStream),
    /// TLS over one of the others.
    Tls(Box<Tls>),
}

/// Where a client comes from: for rules, the console and logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A network address: the client's own, also where a trusted proxy before us has told it.
    Tcp(SocketAddr),
    /// A process on this host, through the Unix-domain socket.
    Local {
        /// Its user, as the kernel knows it.
        uid: u32,
    },
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(addr) => addr.fmt(f),
            // As PostgreSQL's log has it.
            Self::Local { .. } => f.write_str("[local]"),
        }
    }
}

/// A connection that no runtime watches, on its way to another worker.
#[derive(Debug)]
pub enum Detached {
    /// TCP.
    Tcp(std::net::TcpStream),
    /// A Unix-domain socket.
    Unix(std::os::unix::net::UnixStream),
    /// TLS: the socket, and the state that moves along.
    Tls(Box<Detached>, Box<Tls>),
}

impl Detached {
    /// Let the current runtime watch it. The socket must be non-blocking.
    ///
    /// # Errors
    /// The runtime's.
    pub fn attach(self) -> io::Result<Stream> {
        Ok(match self {
            Self::Tcp(socket) => Stream::Tcp(TcpStream::from_std(socket)?),
            Self::Unix(socket) => Stream::Unix(UnixStream::from_std(socket)?),
            Self::Tls(socket, mut tls) => {
                tls.attach(socket.attach()?);
                Stream::Tls(tls)
            }
        })
    }
}

impl Stream {
    /// Take it from the current runtime.
    ///
    /// # Errors
    /// The runtime's.
    pub fn detach(self) -> io::Result<Detached> {
        Ok(match self {
            Self::Tcp(socket) => Detached::Tcp(socket.into_std()?),
            Self::Unix(socket) => Detached::Unix(socket.into_std()?),
            Self::Tls(mut tls) => Detached::Tls(Box::new(tls.detach()?), tls),
        })
    }

    /// Does it stay on this host, where nobody can listen?
    pub fn is_local(&self) -> bool {
        match self {
            Self::Tcp(_) => false,
            Self::Unix(_) => true,
            Self::Tls(tls) => tls.below().is_local(),
        }
    }

    /// What TLS tells of the other end; `None` without TLS.
    pub fn tls(&self) -> Option<&Peer> {
        match self {
            Self::Tcp(_) | Self::Unix(_) => None,
            Self::Tls(tls) => tls.peer(),
        }
    }

    /// How it is encrypted, for people: protocol version and cipher suite; `None` without TLS.
    pub fn encryption(&self) -> Option<(&'static str, &'static str)> {
        self.tls().map(|peer| (peer.version, peer.cipher))
    }

    /// The other end, when it has an address.
    pub fn peer_addr(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(socket) => socket.peer_addr().ok(),
            Self::Unix(_) => None,
            Self::Tls(tls) => tls.below().peer_addr(),
        }
    }

    /// Write what can be written now.
    ///
    /// # Errors
    /// `WouldBlock` when that is nothing; else the socket's.
    pub fn try_write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(socket) => calls::try_write(socket, bytes),
            Self::Unix(socket) => calls::try_write(socket, bytes),
            Self::Tls(tls) => tls.try_write(bytes),
        }
    }

    /// Write what can be written now of several pieces.
    ///
    /// # Errors
    /// As [`Self::try_write`].
    pub fn try_write_vectored(&mut self, pieces: &[io::IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Tcp(socket) => socket.try_write_vectored(pieces),
            Self::Unix(socket) => socket.try_write_vectored(pieces),
            // Each record is a piece of its own anyway.
            Self::Tls(tls) => tls.try_write(pieces.iter().find(|p| !p.is_empty()).map_or(&[][..], |p| p)),
        }
    }

    /// Does something that was taken wait for the socket? Encrypted data only: the others take what they can send.
    pub fn unsent(&self) -> bool {
        match self {
            Self::Tcp(_) | Self::Unix(_) => false,
            Self::Tls(tls) => tls.unsent(),
        }
    }

    /// Send what was taken and waits, or be woken when the socket takes more.
    ///
    /// # Errors
    /// The socket's.
    pub fn poll_unsent(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(_) | Self::Unix(_) => Poll::Ready(Ok(())),
            Self::Tls(tls) => tls.poll_flush(cx),
        }
    }

    /// Be woken when more can be written.
    ///
    /// # Errors
    /// The socket's.
    pub fn poll_write_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(socket) => socket.poll_write_ready(cx),
            Self::Unix(socket) => socket.poll_write_ready(cx),
            Self::Tls(tls) => tls.poll_write_ready(cx),
        }
    }

    /// May something have come to be read? Costs next to nothing, and asks for no wake-up. With TLS that shows only when it
    /// is tried.
    #[inline]
    pub fn may_read(&self) -> bool {
        match self {
            Self::Tcp(socket) => socket.try_io(Interest::READABLE, || Ok(())).is_ok(),
            Self::Unix(socket) => socket.try_io(Interest::READABLE, || Ok(())).is_ok(),
            Self::Tls(_) => true,
        }
    }

    /// Be woken when something has come to be read. At once with TLS, which finds that out by reading.
    ///
    /// # Errors
    /// The runtime's.
    pub fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(socket) => socket.poll_read_ready(cx),
            Self::Unix(socket) => socket.poll_read_ready(cx),
            Self::Tls(_) => Poll::Ready(Ok(())),
        }
    }

    /// Read what has come, without waiting: `WouldBlock` when nothing has, 0 at the end. Costs a system call only when
    /// something has come.
    ///
    /// # Errors
    /// The socket's.
    pub fn try_fill(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if let Self::Tls(tls) = self {
            return tls.try_fill(buf);
        }
        self.try_read(buf)
    }

    /// Read what has come from a socket without TLS.
    pub(crate) fn try_read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(socket) => calls::try_read(socket, buf),
            Self::Unix(socket) => calls::try_read(socket, buf),
            Self::Tls(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// Read into `buf`, or be woken when something has come.
    pub fn poll_fill(&mut self, buf: &mut [u8], cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        loop {
            match self {
                Self::Tls(tls) => return tls.poll_fill(buf, cx),
                Self::Tcp(_) | Self::Unix(_) => match self.try_read(buf) {
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => ready!(self.poll_read_ready(cx))?,
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    result => return Poll::Ready(result),
                },
            }
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(socket) => Pin::new(socket).poll_read(cx, buf),
            Self::Unix(socket) => Pin::new(socket).poll_read(cx, buf),
            Self::Tls(tls) => tls.poll_fill(buf.initialize_unfilled(), cx).map_ok(|n| buf.advance(n)),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(socket) => Pin::new(socket).poll_write(cx, bytes),
            Self::Unix(socket) => Pin::new(socket).poll_write(cx, bytes),
            Self::Tls(tls) => loop {
                match tls.try_write(bytes) {
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => ready!(tls.poll_write_ready(cx))?,
                    result => return Poll::Ready(result),
                }
            },
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(socket) => Pin::new(socket).poll_flush(cx),
            Self::Unix(socket) => Pin::new(socket).poll_flush(cx),
            Self::Tls(tls) => tls.poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(socket) => Pin::new(socket).poll_shutdown(cx),
            Self::Unix(socket) => Pin::new(socket).poll_shutdown(cx),
            // Announced when it is dropped.
            Self::Tls(tls) => tls.poll_flush(cx),
        }
    }
}
