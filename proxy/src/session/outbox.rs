//! Bytes that a socket has not taken yet. Empty nearly always: what is sent goes straight to the socket.

use crate::net::Stream;
use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll};

/// What waits for a socket to take it.
#[derive(Debug, Default)]
pub struct Outbox {
    bytes: Vec<u8>,
    at: usize,
    /// The stream has taken bytes that its socket has not.
    unsent: bool,
}

impl Outbox {
    /// Nothing waits?
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty() && !self.unsent
    }

    /// Append without sending: the next flush does.
    pub fn queue(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Append bytes that nobody else needs.
    pub fn take_over(&mut self, bytes: Vec<u8>) {
        if self.bytes.is_empty() {
            self.bytes = bytes;
        } else {
            self.queue(&bytes);
        }
    }

    /// Append what `write` writes.
    pub fn append(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        write(&mut self.bytes);
    }

    /// Has the socket taken all, what is kept for the end of the round included? What it has not waits.
    pub fn settle(&mut self, stream: &mut Stream) -> bool {
        self.unsent |= !stream.is_sent();
        self.is_empty()
    }

    /// Send `bytes` behind what waits, at the end of this round of the worker's loop when nothing does. What the socket
    /// does not take then waits, and the session at `place` is woken.
    ///
    /// # Errors
    /// The socket failed.
    #[inline]
    pub fn send_in_round(&mut self, stream: &mut Stream, bytes: &[u8], place: usize) -> io::Result<()> {
        if self.is_empty() && stream.write_in_round(bytes, place) { Ok(()) } else { self.send(stream, bytes) }
    }

    /// Send `bytes` behind what waits. What the socket does not take now waits.
    ///
    /// # Errors
    /// The socket failed.
    pub fn send(&mut self, stream: &mut Stream, bytes: &[u8]) -> io::Result<()> {
        let mut sent = 0;
        while self.bytes.is_empty() && sent < bytes.len() {
            match stream.try_write(&bytes[sent..]) {
                Ok(n) => sent += n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        self.bytes.extend_from_slice(&bytes[sent..]);
        self.unsent = stream.unsent();
        Ok(())
    }

    /// Send what waits, and be woken when the socket takes more. True when something was sent.
    ///
    /// # Errors
    /// The socket failed.
    #[inline]
    pub fn flush(&mut self, stream: &mut Stream, cx: &mut Context<'_>) -> io::Result<bool> {
        // What was taken for sent may have come back.
        self.unsent |= stream.unsent();
        if self.is_empty() { Ok(false) } else { self.flush_some(stream, cx) }
    }

    fn flush_some(&mut self, stream: &mut Stream, cx: &mut Context<'_>) -> io::Result<bool> {
        let mut moved = false;
        while !self.bytes.is_empty() {
            match stream.try_write(&self.bytes[self.at..]) {
                Ok(n) => {
                    moved = true;
                    self.at += n;
                    if self.at == self.bytes.len() {
                        self.clear();
                    }
                    self.unsent = stream.unsent();
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => match stream.poll_write_ready(cx) {
                    Poll::Ready(ready) => ready?,
                    Poll::Pending => break,
                },
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        if self.bytes.is_empty() && self.unsent {
            match stream.poll_unsent(cx) {
                Poll::Ready(sent) => {
                    sent?;
                    (self.unsent, moved) = (false, true);
                }
                Poll::Pending => {}
            }
        }
        Ok(moved)
    }

    /// Read into `buf` what the other end says, and send what waits meanwhile: it may be what that end waits for, and it
    /// may take nothing before it is read from. Also what is kept for the end of a round, when nobody is woken for it.
    ///
    /// # Errors
    /// The socket failed.
    pub async fn exchange(&mut self, stream: &mut Stream, buf: &mut [u8]) -> io::Result<usize> {
        self.settle(stream);
        poll_fn(|cx| match self.flush(stream, cx) {
            Ok(_) => stream.poll_fill(buf, cx),
            Err(e) => Poll::Ready(Err(e)),
        })
        .await
    }

    /// Send all that waits.
    ///
    /// # Errors
    /// The socket failed.
    pub async fn empty(&mut self, stream: &mut Stream) -> io::Result<()> {
        self.settle(stream);
        poll_fn(|cx| match self.flush(stream, cx) {
            Ok(_) if !self.is_empty() => Poll::Pending,
            sent => Poll::Ready(sent.map(drop)),
        })
        .await
    }

    /// Send what can be sent before the connection is closed.
    pub fn try_flush(&mut self, stream: &mut Stream) {
        if let Ok(n) = stream.try_write(&self.bytes[self.at..]) {
            self.at += n;
        }
    }

    /// Throw away what waits. An idle session keeps no buffer.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
#[path = "outbox_tests.rs"]
mod tests;
