//! A socket as it is, and what of this round of the worker's loop is to be sent there.

use super::calls::{self, Watched};
use super::round::Slot;
use std::io;
use std::os::fd::AsRawFd;
use std::task::{Context, Poll, ready};

/// A socket without TLS.
#[derive(Debug)]
pub struct Plain<S> {
    /// Dropped first: what is to be sent there is sent before the socket closes.
    slot: Slot,
    socket: S,
}

impl<S: Watched> Plain<S> {
    pub(super) fn new(socket: S) -> Self {
        Self { slot: Slot::default(), socket }
    }

    /// The socket, to be asked and read.
    #[inline]
    pub(super) fn get(&self) -> &S {
        &self.socket
    }

    /// The same.
    pub(super) fn get_mut(&mut self) -> &mut S {
        &mut self.socket
    }

    /// The socket alone.
    ///
    /// # Errors
    /// It has not taken all that it was sent.
    pub(super) fn into_inner(mut self) -> io::Result<S> {
        if self.is_sent() { Ok(self.socket) } else { Err(io::ErrorKind::WouldBlock.into()) }
    }

    #[inline]
    pub(super) fn try_write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        calls::try_write(self.ready()?, bytes)
    }

    /// Write, whatever the runtime knows of the socket.
    pub(super) fn write_at_once(&mut self, bytes: &[u8]) -> usize {
        if !self.is_sent() {
            return 0;
        }
        calls::send(self.socket.as_fd().as_raw_fd(), bytes).unwrap_or(0)
    }

    /// The socket, once all has been sent that it was sent before.
    ///
    /// # Errors
    /// The socket's.
    #[inline]
    pub(super) fn ready(&mut self) -> io::Result<&S> {
        self.slot.send();
        if self.slot.is_stuck() {
            self.slot.send_rest(|rest| calls::try_write(&self.socket, rest))?;
        }
        Ok(&self.socket)
    }

    #[inline]
    pub(super) fn write_in_round(&mut self, message: &[u8], place: usize) -> bool {
        self.slot.keep(self.socket.as_fd().as_raw_fd(), message, place)
    }

    pub(super) fn is_sent(&mut self) -> bool {
        self.slot.send();
        !self.slot.is_stuck()
    }

    #[inline]
    pub(super) fn unsent(&self) -> bool {
        self.slot.is_stuck()
    }

    pub(super) fn poll_unsent(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            match self.ready() {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => ready!(self.socket.poll_write_ready(cx))?,
                other => return Poll::Ready(other.map(|_| ())),
            }
        }
    }
}
