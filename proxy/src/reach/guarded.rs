//! A login of our own that gives no password away: see [`cluster::demand`].

use cluster::demand::{Allowed, FirstDemand};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A stream to a server that has not been spoken to. Reading ends with an error where it asks for what is not allowed.
#[derive(Debug)]
pub struct Guarded<S> {
    stream: S,
    first: FirstDemand,
    allowed: Allowed,
}

impl<S> Guarded<S> {
    /// Before the first word.
    pub fn new(stream: S, allowed: Allowed) -> Self {
        Self { stream, first: FirstDemand::default(), allowed }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        let allowed = self.allowed;
        let read = self.first.read(&buf.filled()[before..], allowed);
        Poll::Ready(read.map_err(|forbidden| io::Error::new(io::ErrorKind::PermissionDenied, forbidden)))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
