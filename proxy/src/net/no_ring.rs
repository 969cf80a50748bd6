//! There is no ring: io_uring is Linux's.

use std::io;
use std::ops::Range;
use std::os::fd::RawFd;

pub(super) type Message = (RawFd, Range<usize>);

pub(super) enum Ring {}

pub(super) struct Broken {
    pub(super) taken: usize,
    pub(super) unfinished: bool,
    pub(super) error: io::Error,
}

impl Ring {
    pub(super) fn new(_most: usize) -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(super) fn send(&mut self, _messages: &[Message], _bytes: &[u8]) -> Result<&[i32], Broken> {
        match *self {}
    }

    pub(super) fn result(&self, _i: usize) -> Option<i32> {
        match *self {}
    }
}
