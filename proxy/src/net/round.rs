//! What a worker sends in one round of its loop, handed to the kernel together.
//!
//! The loop wakes up for several sockets at once nearly always when there is much to do. What their sessions send is kept
//! until all of them have had their turn, and then goes in one call ([`super::ring`]). A session takes it for sent, as it
//! takes for sent what a socket has taken: whatever it does with that socket next sends it first. What a socket does not
//! take then stays with it as unsent, and its session is woken.
//!
//! Of each thread its own. Where there is no ring nothing is kept, and all is sent at once.

use super::calls;
use super::ring::{Broken, Message, Ring};
use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::os::fd::RawFd;
use std::task::{Poll, Waker};

/// Messages of a round before they are sent, done or not.
const MOST: usize = 32;
/// Longest message that is kept, bytes: what is longer is not worth the copy.
const LONGEST: usize = 2048;
/// Bytes of a round before they are sent.
const ROOM: usize = 16 * 1024;

thread_local! {
    static ROUND: RefCell<Round> = const { RefCell::new(Round::new()) };
    /// Sockets that did not take all of what was kept for them.
    static STUCK: Cell<usize> = const { Cell::new(0) };
}

/// What is kept for a socket, when something was once. To drop it sends that: no other socket may have its number before.
#[derive(Debug, Default)]
pub(super) struct Slot(Option<usize>);

impl Slot {
    /// Keep a message until the end of the round; `whose` is woken if the socket does not take it. False when it is not
    /// kept: it is to be sent now.
    pub(super) fn keep(&mut self, fd: RawFd, message: &[u8], whose: usize) -> bool {
        // Nothing is as good as sent, and costs no call.
        message.is_empty() || with(|round| round.keep(&mut self.0, fd, message, whose)).unwrap_or(false)
    }

    /// Send what is kept.
    #[inline]
    pub(super) fn send(&self) {
        if let Some(slot) = self.0 {
            with(|round| {
                if round.slots[slot].kept {
                    round.send();
                }
            });
        }
    }

    /// Is there anything that the socket has not taken?
    #[inline]
    pub(super) fn is_stuck(&self) -> bool {
        STUCK.get() > 0 && self.0.is_some_and(|slot| with(|round| round.slots[slot].is_stuck()).unwrap_or(false))
    }

    /// Send what the socket has not taken, by `send`.
    ///
    /// # Errors
    /// `WouldBlock` when it does not take all of it; else why it failed, once.
    #[cold]
    pub(super) fn send_rest(&self, mut send: impl FnMut(&[u8]) -> io::Result<usize>) -> io::Result<()> {
        let Some(slot) = self.0.filter(|_| self.is_stuck()) else { return Ok(()) };
        let take = |round: &mut Round| {
            let slot = &mut round.slots[slot];
            (std::mem::take(&mut slot.rest), slot.error.take())
        };
        let Some((mut rest, error)) = with(take) else { return Ok(()) };
        let mut outcome = error.map_or(Ok(()), |error| Err(io::Error::from_raw_os_error(error)));
        while outcome.is_ok() && !rest.is_empty() {
            match send(&rest) {
                Ok(n) => drop(rest.drain(..n)),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => outcome = Err(e),
            }
        }
        let waits = matches!(&outcome, Err(e) if e.kind() == io::ErrorKind::WouldBlock);
        if waits {
            with(|round| round.slots[slot].rest = rest);
        } else {
            STUCK.set(STUCK.get() - 1);
        }
        outcome
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(slot) = self.0 {
            with(|round| round.free(slot));
        }
    }
}

/// `None` when the thread ends.
#[inline]
fn with<R>(f: impl FnOnce(&mut Round) -> R) -> Option<R> {
    ROUND.try_with(|round| f(&mut round.borrow_mut())).ok()
}

/// From now on this thread sends together what its rounds send, or no more. True when it did not before.
///
/// # Errors
/// The kernel does not let it: it sends each message by itself.
pub fn together(wanted: bool) -> io::Result<bool> {
    with(|round| round.together(wanted)).unwrap_or(Ok(false))
}

/// Send what is kept.
pub fn send() {
    with(Round::send);
}

/// Send what each round has kept, at its end, and wake by `wake` whose socket did not take it. A task of its own, which
/// never ends: it is woken by the first message, and so gets its turn behind all that were woken before.
pub async fn run(wake: impl Fn(usize)) {
    let _last = Last;
    let mut told = Vec::new();
    poll_fn(|cx| {
        with(|round| {
            round.end.get_or_insert_with(|| cx.waker().clone());
            round.send();
            std::mem::swap(&mut round.stuck, &mut told);
        });
        told.drain(..).for_each(&wake);
        Poll::<()>::Pending
    })
    .await;
}

/// Nobody ends rounds from here on, so nothing is kept.
struct Last;

impl Drop for Last {
    fn drop(&mut self) {
        with(|round| {
            round.send();
            round.end = None;
        });
    }
}

/// What is known of one socket.
#[derive(Debug, Default)]
struct Kept {
    /// A message of the round.
    kept: bool,
    /// What the socket did not take.
    rest: Vec<u8>,
    /// Why it takes nothing.
    error: Option<i32>,
}

impl Kept {
    fn is_stuck(&self) -> bool {
        !self.rest.is_empty() || self.error.is_some()
    }
}

/// Whose a message is.
#[derive(Clone, Copy, Debug)]
struct Owner {
    slot: usize,
    whose: usize,
}

struct Round {
    /// Messages are kept.
    keeps: bool,
    /// Sends several.
    ring: Option<Ring>,
    messages: Vec<Message>,
    owners: Vec<Owner>,
    bytes: Vec<u8>,
    slots: Vec<Kept>,
    free: Vec<usize>,
    /// Whom to wake.
    stuck: Vec<usize>,
    /// Who ends the round.
    end: Option<Waker>,
}

impl Round {
    const fn new() -> Self {
        Self {
            keeps: false,
            ring: None,
            messages: Vec::new(),
            owners: Vec::new(),
            bytes: Vec::new(),
            slots: Vec::new(),
            free: Vec::new(),
            stuck: Vec::new(),
            end: None,
        }
    }

    fn together(&mut self, wanted: bool) -> io::Result<bool> {
        if wanted == self.keeps {
            return Ok(false);
        }
        self.send();
        self.ring = if wanted { Some(Ring::new(MOST)?) } else { None };
        self.keeps = wanted;
        Ok(true)
    }

    fn keep(&mut self, slot: &mut Option<usize>, fd: RawFd, message: &[u8], whose: usize) -> bool {
        let Some(end) = self.end.as_ref().filter(|_| self.keeps) else { return false };
        if message.len() > LONGEST {
            // It takes its time: nobody else's waits for it.
            self.send();
            return false;
        }
        let fits = self.bytes.len() + message.len() <= ROOM;
        let at = *slot.get_or_insert_with(|| match self.free.pop() {
            Some(free) => free,
            None => {
                self.slots.push(Kept::default());
                self.slots.len() - 1
            }
        });
        if self.slots[at].kept && fits && self.owners.last().is_some_and(|last| last.slot == at) {
            // Behind its last one, as it would be in the socket.
            self.bytes.extend_from_slice(message);
            self.messages.last_mut().expect("each has an owner").1.end = self.bytes.len();
            return true;
        }
        if self.messages.is_empty() {
            end.wake_by_ref();
        }
        if self.slots[at].kept || !fits || self.messages.len() == MOST {
            self.send();
        }
        if self.slots[at].is_stuck() {
            return false;
        }
        let start = self.bytes.len();
        self.bytes.extend_from_slice(message);
        self.messages.push((fd, start..self.bytes.len()));
        self.owners.push(Owner { slot: at, whose });
        self.slots[at].kept = true;
        true
    }

    fn send(&mut self) {
        match self.messages.len() {
            0 => return,
            1 => self.send_alone(0),
            _ => self.send_all(),
        }
        self.messages.clear();
        self.owners.clear();
        self.bytes.clear();
    }

    fn send_alone(&mut self, i: usize) {
        let (fd, range) = &self.messages[i];
        let result = calls::send(*fd, &self.bytes[range.clone()]);
        self.note(i, result);
    }

    fn send_all(&mut self) {
        let Some(ring) = &mut self.ring else { return (0..self.messages.len()).for_each(|i| self.send_alone(i)) };
        let results = match ring.send(&self.messages, &self.bytes) {
            Ok(results) => results,
            Err(broken) => return self.give_up_ring(broken),
        };
        // Nearly always all is as it should be.
        let mut whole = true;
        for ((result, (_, range)), owner) in results.iter().zip(&self.messages).zip(&self.owners) {
            let sent = usize::try_from(*result) == Ok(range.len());
            self.slots[owner.slot].kept = !sent;
            whole &= sent;
        }
        if !whole {
            self.note_rest();
        }
    }

    #[cold]
    fn note_rest(&mut self) {
        for i in 0..self.messages.len() {
            let result = self.ring.as_ref().and_then(|ring| ring.result(i));
            if let Some(result) = result.filter(|_| self.slots[self.owners[i].slot].kept) {
                self.note(i, outcome(result));
            }
        }
    }

    /// The ring failed: what it has not taken is sent without it, as is all from now on.
    #[cold]
    fn give_up_ring(&mut self, broken: Broken) {
        tracing::warn!(error = %broken.error, "io_uring failed, messages are sent one by one");
        let Some(ring) = self.ring.take() else { return };
        self.keeps = false;
        for i in 0..self.messages.len() {
            match ring.result(i) {
                Some(result) => self.note(i, outcome(result)),
                None if i >= broken.taken => self.send_alone(i),
                // Nobody knows what became of it: the connection ends, for who reads there too.
                None => {
                    calls::shut_down(self.messages[i].0);
                    self.note(i, Err(io::Error::from_raw_os_error(libc::EIO)));
                }
            }
        }
        if broken.unfinished {
            std::mem::forget(std::mem::take(&mut self.bytes));
        }
    }

    /// What came of a message.
    fn note(&mut self, i: usize, result: io::Result<usize>) {
        let (Owner { slot, whose }, range) = (self.owners[i], self.messages[i].1.clone());
        let slot = &mut self.slots[slot];
        slot.kept = false;
        let sent = match result {
            Ok(n) => n,
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => 0,
            Err(e) => {
                slot.error = Some(e.raw_os_error().unwrap_or(libc::EIO));
                range.len()
            }
        };
        slot.rest.extend_from_slice(&self.bytes[range][sent..]);
        if slot.is_stuck() {
            STUCK.set(STUCK.get() + 1);
            self.stuck.push(whose);
        }
    }

    fn free(&mut self, slot: usize) {
        if self.slots[slot].kept {
            self.send();
        }
        let kept = std::mem::take(&mut self.slots[slot]);
        if kept.is_stuck() {
            STUCK.set(STUCK.get() - 1);
        }
        self.free.push(slot);
    }
}

/// A result as io_uring has it.
fn outcome(result: i32) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result))
}

#[cfg(test)]
#[path = "round_tests.rs"]
mod tests;
