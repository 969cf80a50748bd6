//! TLS over a socket that never waits: the library's connection is driven directly, so that an idle one keeps no buffer
//! and moves between workers as it is.

use crate::net::{Detached, Stream, round};
use crate::tls::Peer;
use rustls::Connection;
use std::cell::RefCell;
use std::future::poll_fn;
use std::io::{self, Read, Write};
use std::task::{Context, Poll, ready};
use tokio::sync::Semaphore;

/// Bytes read from a socket at a time: two records of the greatest length.
const SCRATCH: usize = 32 * 1024;
/// Least read from a socket, however little the reader asks for.
const MIN_READ: usize = 4096;
/// Plaintext the library holds before it takes no more ciphertext.
const MAX_HELD: usize = 16 * 1024;

thread_local! {
    /// Ciphertext on its way into the library. Used within a call only, so one for each thread is enough.
    static CIPHERTEXT: RefCell<Vec<u8>> = RefCell::new(vec![0; SCRATCH]);
}

/// An encrypted connection.
#[derive(Debug)]
pub struct Tls {
    engine: Engine,
    /// Known once the handshake is over.
    peer: Option<Peer>,
}

/// A TLS connection and the socket under it.
#[derive(Debug)]
struct Engine {
    /// `None` only while it is put in place, and while the connection moves between workers.
    below: Option<Stream>,
    conn: Connection,
    /// Ciphertext that came and that the library has not taken.
    carry: Vec<u8>,
}

impl Engine {
    fn below(&mut self) -> &mut Stream {
        self.below.as_mut().expect("a connection is used by one worker, which has its socket")
    }

    async fn shake_hands(&mut self, turns: &Semaphore) -> io::Result<()> {
        loop {
            poll_fn(|cx| self.poll_flush(cx)).await?;
            if !self.conn.is_handshaking() {
                return Ok(());
            }
            if self.carry.is_empty() && poll_fn(|cx| self.poll_carry(cx)).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let turn = turns.acquire().await.expect("the semaphore is never closed");
            let carry = std::mem::take(&mut self.carry);
            // What others send does not wait until that is computed.
            round::send();
            let computed = self.feed_handshake(&carry);
            if let Err(error) = computed {
                // The alert says why. Best effort: the other end may have gone.
                let _ = self.flush_now();
                return Err(error);
            }
            tokio::task::yield_now().await;
            drop(turn);
        }
    }

    fn poll_carry(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut carry = std::mem::take(&mut self.carry);
        carry.resize(MIN_READ, 0);
        let result = self.below().poll_fill(&mut carry, cx);
        if let Poll::Ready(Ok(n)) = result {
            carry.truncate(n);
            self.carry = carry;
        }
        result
    }

    fn feed_handshake(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() && self.conn.is_handshaking() {
            self.conn.read_tls(&mut bytes)?;
            self.conn.process_new_packets().map_err(broken)?;
        }
        self.carry = bytes.to_vec();
        Ok(())
    }

    /// Write what is encrypted. True when the socket has taken all of it.
    fn flush_now(&mut self) -> io::Result<bool> {
        let Self { below, conn, .. } = self;
        let below = below.as_mut().expect("a connection is used by one worker, which has its socket");
        while conn.wants_write() {
            match conn.write_tls(&mut Below(below)) {
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(true)
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.flush_now()? {
            ready!(self.below().poll_write_ready(cx))?;
        }
        Poll::Ready(Ok(()))
    }

    fn try_write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !self.flush_now()? {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let n = self.conn.writer().write(bytes)?;
        self.flush_now()?;
        Ok(n)
    }

    fn poll_fill(&mut self, buf: &mut [u8], cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        loop {
            if let Some(n) = self.read_plain(buf)? {
                return Poll::Ready(Ok(n));
            }
            let want = buf.len().clamp(MIN_READ, SCRATCH);
            ready!(self.receive(want, |below, scratch| below.poll_fill(scratch, cx)))?;
        }
    }

    /// Plaintext that is there; 0 when there will be none any more. That an end is not announced means nothing: every
    /// message of PostgreSQL's protocol carries its length.
    fn read_plain(&mut self, buf: &mut [u8]) -> io::Result<Option<usize>> {
        match self.conn.reader().read(buf) {
            Ok(n) => Ok(Some(n)),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(Some(0)),
            Err(e) => Err(e),
        }
    }

    /// Take ciphertext in: what was carried over, else what `read` gets from the socket.
    fn receive(
        &mut self,
        want: usize,
        read: impl FnOnce(&mut Stream, &mut [u8]) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<()>> {
        if !self.carry.is_empty() {
            let carry = std::mem::take(&mut self.carry);
            return Poll::Ready(self.feed(&carry));
        }
        CIPHERTEXT.with_borrow_mut(|scratch| {
            let n = ready!(read(self.below(), &mut scratch[..want]))?;
            Poll::Ready(self.feed(&scratch[..n]))
        })
    }

    /// Decrypt; no bytes mean the end. What would exceed the library's buffers is carried over.
    fn feed(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        loop {
            let taken = self.conn.read_tls(&mut bytes)?;
            let state = self.conn.process_new_packets();
            if self.conn.wants_write() {
                // An alert, or the answer to a change of keys. What the socket does not take goes with the next bytes,
                // and that it takes nothing any more is told by the next write.
                let _ = self.flush_now();
            }
            let held = state.map_err(broken)?.plaintext_bytes_to_read();
            // Behind the announced end nothing is taken.
            if bytes.is_empty() || taken == 0 {
                return Ok(());
            }
            if held >= MAX_HELD {
                self.carry = bytes.to_vec();
                return Ok(());
            }
        }
    }

    fn try_fill(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            if let Some(n) = self.read_plain(buf)? {
                return Ok(n);
            }
            let read = |below: &mut Stream, scratch: &mut [u8]| Poll::Ready(below.try_read(scratch));
            match self.receive(MIN_READ, read) {
                // A ticket for another connection says nothing.
                Poll::Ready(result) => result?,
                Poll::Pending => {}
            }
        }
    }
}

impl Drop for Tls {
    /// Announce the end: some clients take one that is not announced for an attack.
    fn drop(&mut self) {
        if self.engine.below.is_some() && !self.engine.conn.is_handshaking() {
            self.engine.conn.send_close_notify();
            let _ = self.engine.flush_now();
        }
    }
}

impl Tls {
    /// Encrypt `stream` from here on: complete the handshake, whose first bytes came already in `first`, and let `judge`
    /// say whether it is good enough. Of the handshakes that wait for `turns`, as many as it has permits compute between
    /// two rounds of the relay.
    pub(super) async fn begin<E: From<io::Error>>(
        stream: &mut Stream,
        conn: Connection,
        first: Vec<u8>,
        turns: &Semaphore,
        judge: impl FnOnce(&Connection) -> Result<Peer, E>,
    ) -> Result<(), E> {
        let engine = Engine { below: None, conn, carry: first };
        let below = std::mem::replace(stream, Stream::Tls(Box::new(Self { engine, peer: None })));
        let Stream::Tls(tls) = stream else { return Err(io::Error::from(io::ErrorKind::Unsupported).into()) };
        tls.attach(below);
        tls.engine.shake_hands(turns).await?;
        tls.peer = Some(judge(&tls.engine.conn)?);
        Ok(())
    }

    /// What the handshake told.
    pub fn peer(&self) -> Option<&Peer> {
        self.peer.as_ref()
    }

    /// The socket under it.
    pub fn below(&self) -> &Stream {
        self.engine.below.as_ref().expect("a connection is used by one worker, which has its socket")
    }

    /// See [`Stream::try_write`]. What is taken may wait here, encrypted: see [`Self::unsent`].
    pub(crate) fn try_write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.engine.try_write(bytes)
    }

    /// Does encrypted data wait for the socket?
    pub(crate) fn unsent(&self) -> bool {
        self.engine.conn.wants_write()
    }

    /// Send what waits, or be woken when the socket takes more.
    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.engine.poll_flush(cx)
    }

    /// See [`Stream::poll_write_ready`].
    pub(crate) fn poll_write_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.engine.below().poll_write_ready(cx)
    }

    /// See [`Stream::poll_fill`].
    pub(crate) fn poll_fill(&mut self, buf: &mut [u8], cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.engine.poll_fill(buf, cx)
    }

    /// See [`Stream::try_fill`].
    pub(crate) fn try_fill(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.engine.try_fill(buf)
    }

    /// Take the socket from the runtime; [`Self::attach`] puts it back.
    pub(crate) fn detach(&mut self) -> io::Result<Detached> {
        self.engine.below.take().expect("a connection is used by one worker, which has its socket").detach()
    }

    /// Put the socket back.
    pub(crate) fn attach(&mut self, below: Stream) {
        self.engine.below = Some(below);
    }
}

fn broken(error: rustls::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// A socket as the library wants to write to it.
struct Below<'a>(&'a mut Stream);

impl Write for Below<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }

    fn write_vectored(&mut self, bytes: &[io::IoSlice<'_>]) -> io::Result<usize> {
        self.0.try_write_vectored(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
