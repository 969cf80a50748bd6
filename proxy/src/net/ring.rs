//! Several sends in one system call: io_uring used as a call that returns when all of them are done.
//!
//! A send that would have to wait is not waited for (`MSG_DONTWAIT`), so the kernel is done with each while it takes it,
//! and nothing goes on behind the caller's back.

use io_uring::{IoUring, opcode, types};
use std::io;
use std::ops::Range;
use std::os::fd::RawFd;

/// What has no result yet.
const NONE: i32 = i32::MIN;
/// How often a kernel that is short of memory is asked again.
const ATTEMPTS: usize = 8;

/// A message: the socket, and which of the bytes.
pub(super) type Message = (RawFd, Range<usize>);

/// A ring for sends. Made and used by one thread.
pub(super) struct Ring {
    ring: IoUring,
    results: Vec<i32>,
}

/// The ring is of no use any more.
#[derive(Debug)]
pub(super) struct Broken {
    /// So many messages were taken; those behind them have not been touched.
    pub(super) taken: usize,
    /// Of those taken, the kernel may be busy with some still: their bytes must stay where they are.
    pub(super) unfinished: bool,
    /// Why.
    pub(super) error: io::Error,
}

impl Ring {
    /// For so many messages at once.
    ///
    /// # Errors
    /// The kernel has no io_uring, or does not let us use it.
    pub(super) fn new(most: usize) -> io::Result<Self> {
        let most = u32::try_from(most).unwrap_or(u32::MAX);
        // The flags spare the kernel locks and interrupts; older kernels (before 6.0) do not know them.
        let ring = IoUring::builder().setup_single_issuer().setup_coop_taskrun().setup_submit_all().build(most);
        let ring = ring.or_else(|e| match e.raw_os_error() {
            Some(libc::EINVAL) => IoUring::new(most),
            _ => Err(e),
        })?;
        Ok(Self { ring, results: Vec::new() })
    }

    /// Send messages, each as far as its socket takes it now: what the kernel said of each, a length or an error negated.
    ///
    /// # Errors
    /// The ring fails.
    pub(super) fn send(&mut self, messages: &[Message], bytes: &[u8]) -> Result<&[i32], Broken> {
        self.results.clear();
        self.results.resize(messages.len(), NONE);
        {
            let mut queue = self.ring.submission();
            for (i, (fd, range)) in messages.iter().enumerate() {
                let message = &bytes[range.clone()];
                let len = u32::try_from(message.len()).expect("messages are short");
                let entry = opcode::Send::new(types::Fd(*fd), message.as_ptr(), len)
                    .flags(libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL)
                    .build()
                    .user_data(i as u64);
                // SAFETY: the kernel reads `len` bytes of `message`, which is borrowed until all have been reaped below;
                // who is told that some have not been is told to keep the bytes.
                unsafe { queue.push(&entry) }.expect("no more messages than the ring was made for");
            }
        }
        let (mut left, mut failed) = (messages.len(), 0);
        // All are done when the call returns, so it is not asked to wait; if ever one is not, it is from then on.
        let mut wait = 0;
        loop {
            let outcome = self.ring.submit_and_wait(wait);
            for done in self.ring.completion() {
                let of = usize::try_from(done.user_data()).unwrap_or(usize::MAX);
                if let Some(result) = self.results.get_mut(of).filter(|r| **r == NONE) {
                    *result = done.result();
                    left -= 1;
                }
            }
            if left == 0 {
                return Ok(&self.results);
            }
            wait = 1;
            match outcome {
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::EBUSY)) && failed < ATTEMPTS => {
                    failed += 1;
                }
                Err(error) => {
                    // In order: what the kernel has not taken are the last.
                    let taken = messages.len() - self.ring.submission().len();
                    let unfinished = self.results[..taken].contains(&NONE);
                    return Err(Broken { taken, unfinished, error });
                }
            }
        }
    }

    /// What came of the message at `i`, after the ring broke: `None` when that is not known.
    pub(super) fn result(&self, i: usize) -> Option<i32> {
        self.results.get(i).copied().filter(|r| *r != NONE)
    }
}
