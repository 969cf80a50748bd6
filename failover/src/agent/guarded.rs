//! A login of our own that gives no password away: see [`cluster::demand`].

use cluster::demand::{Allowed, FirstDemand};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A stream to a server that has not been spoken to. Reading ends with an error where it asks for what is not allowed.
#[derive(Debug)]
pub(super) struct Guarded<S> {
    stream: S,
    first: FirstDemand,
    allowed: Allowed,
}

impl<S> Guarded<S> {
    /// Before the first word.
    pub(super) fn new(stream: S, allowed: Allowed) -> Self {
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

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio_postgres::{Config, NoTls};

    #[tokio::test]
    async fn whoever_asks_for_the_password_gets_nothing_more() {
        for demand in [&b"R\0\0\0\x08\0\0\0\x03"[..], b"R\0\0\0\x0c\0\0\0\x05salt"] {
            let (ours, mut theirs) = tokio::io::duplex(1024);
            let asked = tokio::spawn(async move {
                let length = theirs.read_u32().await.unwrap();
                let mut startup = vec![0; length as usize - 4];
                theirs.read_exact(&mut startup).await.unwrap();
                theirs.write_all(demand).await.unwrap();
                let mut more = Vec::new();
                theirs.read_to_end(&mut more).await.unwrap();
                more
            });
            let mut config = Config::new();
            config.user("u").password("the secret");
            let refused =
                config.connect_raw(Guarded::new(ours, Allowed::default()), NoTls).await.map(drop).unwrap_err();
            assert!(format!("{refused:?}").contains("method"), "{refused:?}");
            assert_eq!(asked.await.unwrap(), b"", "the password, or what is as good");
        }
    }
}
