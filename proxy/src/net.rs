//! The byte stream under a session: what kind of socket it is matters to nobody above.
//!
//! Reading and writing never wait by themselves: a call moves what can be moved now, or registers the task.

mod calls;
mod fresh;
mod plain;
#[cfg_attr(not(target_os = "linux"), path = "net/no_ring.rs")]
mod ring;
pub mod round;

pub use calls::defer_accept;
pub use fresh::Fresh;

use crate::tls::{Peer, Tls};
use plain::Plain;
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
    Tcp(Plain<TcpStream>),
    /// A Unix-domain socket.
    Unix(Plain<UnixStream>),
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
            Self::Tcp(socket) => TcpStream::from_std(socket)?.into(),
            Self::Unix(socket) => UnixStream::from_std(socket)?.into(),
            Self::Tls(socket, mut tls) => {
                tls.attach(socket.attach()?);
                Stream::Tls(tls)
            }
        })
    }
}

impl From<TcpStream> for Stream {
    fn from(socket: TcpStream) -> Self {
        Self::Tcp(Plain::new(socket))
    }
}

impl From<UnixStream> for Stream {
    fn from(socket: UnixStream) -> Self {
        Self::Unix(Plain::new(socket))
    }
}

impl Stream {
    /// Take it from the current runtime.
    ///
    /// # Errors
    /// The runtime's.
    pub fn detach(self) -> io::Result<Detached> {
        Ok(match self {
            Self::Tcp(socket) => Detached::Tcp(socket.into_inner()?.into_std()?),
            Self::Unix(socket) => Detached::Unix(socket.into_inner()?.into_std()?),
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
            Self::Tcp(socket) => socket.get().peer_addr().ok(),
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
            Self::Tcp(socket) => socket.try_write(bytes),
            Self::Unix(socket) => socket.try_write(bytes),
            Self::Tls(tls) => tls.try_write(bytes),
        }
    }

    /// Write to a socket that may be new: the runtime does not know then that it takes something, as each does. How many
    /// bytes it has taken; why it takes none shows when more is written, which is what there is for TLS.
    pub fn write_at_once(&mut self, bytes: &[u8]) -> usize {
        match self {
            Self::Tcp(socket) => socket.write_at_once(bytes),
            Self::Unix(socket) => socket.write_at_once(bytes),
            Self::Tls(_) => 0,
        }
    }

    /// Take a message for sent that is sent with what others send in this round of the worker's loop ([`round`]), and have
    /// the session at `place` woken if the socket does not take it. False when that is not possible: it is to be written.
    #[inline]
    pub fn write_in_round(&mut self, message: &[u8], place: usize) -> bool {
        match self {
            Self::Tcp(socket) => socket.write_in_round(message, place),
            Self::Unix(socket) => socket.write_in_round(message, place),
            Self::Tls(_) => false,
        }
    }

    /// Has the socket all that was taken? What waits for the end of the round is sent.
    pub fn is_sent(&mut self) -> bool {
        match self {
            Self::Tcp(socket) => socket.is_sent(),
            Self::Unix(socket) => socket.is_sent(),
            Self::Tls(tls) => !tls.unsent(),
        }
    }

    /// Write what can be written now of several pieces.
    ///
    /// # Errors
    /// As [`Self::try_write`].
    pub fn try_write_vectored(&mut self, pieces: &[io::IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Tcp(socket) => socket.ready()?.try_write_vectored(pieces),
            Self::Unix(socket) => socket.ready()?.try_write_vectored(pieces),
            // Each record is a piece of its own anyway.
            Self::Tls(tls) => tls.try_write(pieces.iter().find(|p| !p.is_empty()).map_or(&[][..], |p| p)),
        }
    }

    /// Does something that was taken wait for the socket? Encrypted data, or what it has not taken at the end of a round.
    #[inline]
    pub fn unsent(&self) -> bool {
        match self {
            Self::Tcp(socket) => socket.unsent(),
            Self::Unix(socket) => socket.unsent(),
            Self::Tls(tls) => tls.unsent(),
        }
    }

    /// Send what was taken and waits, or be woken when the socket takes more.
    ///
    /// # Errors
    /// The socket's.
    pub fn poll_unsent(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(socket) => socket.poll_unsent(cx),
            Self::Unix(socket) => socket.poll_unsent(cx),
            Self::Tls(tls) => tls.poll_flush(cx),
        }
    }

    /// Be woken when more can be written.
    ///
    /// # Errors
    /// The socket's.
    pub fn poll_write_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(socket) => socket.get().poll_write_ready(cx),
            Self::Unix(socket) => socket.get().poll_write_ready(cx),
            Self::Tls(tls) => tls.poll_write_ready(cx),
        }
    }

    /// May something have come to be read? Costs next to nothing, and asks for no wake-up. With TLS that shows only when it
    /// is tried.
    #[inline]
    pub fn may_read(&self) -> bool {
        match self {
            Self::Tcp(socket) => socket.get().try_io(Interest::READABLE, || Ok(())).is_ok(),
            Self::Unix(socket) => socket.get().try_io(Interest::READABLE, || Ok(())).is_ok(),
            Self::Tls(_) => true,
        }
    }

    /// Be woken when something has come to be read. At once with TLS, which finds that out by reading.
    ///
    /// # Errors
    /// The runtime's.
    pub fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(socket) => socket.get().poll_read_ready(cx),
            Self::Unix(socket) => socket.get().poll_read_ready(cx),
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
            Self::Tcp(socket) => calls::try_read(socket.get(), buf),
            Self::Unix(socket) => calls::try_read(socket.get(), buf),
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
            Self::Tcp(socket) => Pin::new(socket.get_mut()).poll_read(cx, buf),
            Self::Unix(socket) => Pin::new(socket.get_mut()).poll_read(cx, buf),
            Self::Tls(tls) => tls.poll_fill(buf.initialize_unfilled(), cx).map_ok(|n| buf.advance(n)),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(socket) => {
                ready!(socket.poll_unsent(cx))?;
                Pin::new(socket.get_mut()).poll_write(cx, bytes)
            }
            Self::Unix(socket) => {
                ready!(socket.poll_unsent(cx))?;
                Pin::new(socket.get_mut()).poll_write(cx, bytes)
            }
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
            Self::Tcp(socket) => {
                ready!(socket.poll_unsent(cx))?;
                Pin::new(socket.get_mut()).poll_flush(cx)
            }
            Self::Unix(socket) => {
                ready!(socket.poll_unsent(cx))?;
                Pin::new(socket.get_mut()).poll_flush(cx)
            }
            Self::Tls(tls) => tls.poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(socket) => {
                ready!(socket.poll_unsent(cx))?;
                Pin::new(socket.get_mut()).poll_shutdown(cx)
            }
            Self::Unix(socket) => {
                ready!(socket.poll_unsent(cx))?;
                Pin::new(socket.get_mut()).poll_shutdown(cx)
            }
            // Announced when it is dropped.
            Self::Tls(tls) => tls.poll_flush(cx),
        }
    }
}
