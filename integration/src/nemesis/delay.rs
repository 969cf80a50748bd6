//! Packets of a host that wait, in user space, as not every kernel has `netem`: real frames, held back by this program.
//!
//! The host's cable is taken off the bridge of all hosts and put on one of its own, beside the first of two tap devices; the
//! second is on the bridge of all. A thread carries frames between them, each when its time has come. As each has a time of its
//! own, they overtake each other, as with `netem`. A tap device offers its kernel no checksums and no segmentation, so frames
//! come whole and right.

use super::sandbox::{BRIDGED_TO, shell};
use super::scenario::{Dice, Wait};
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{ErrorKind, PipeWriter, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// No frame is longer: an Ethernet header and a VLAN's tag beside 1500 bytes.
const LONGEST: usize = 1518;

/// A host whose packets wait. Dropped, it is connected as before, and what waits is lost, as when `netem` is taken away.
#[derive(Debug)]
pub(super) struct Delay {
    host: String,
    /// Closed to end the thread.
    stop: Option<PipeWriter>,
    thread: Option<JoinHandle<()>>,
}

impl Delay {
    /// Begin.
    ///
    /// # Panics
    /// When the kernel refuses.
    pub(super) fn start(host: &str, wait: Wait, seed: u64) -> Self {
        let (near, far) = (tap(&format!("near-{host}")), tap(&format!("far-{host}")));
        shell(&format!(
            "set -e\nip link add wait-{host} type bridge\nip link set wait-{host} addrgenmode none up\n\
             for end in near-{host} far-{host}; do ip link set $end addrgenmode none up; done\n\
             ip link set near-{host} {BRIDGED_TO} wait-{host}\nip link set far-{host} {BRIDGED_TO} hosts\n\
             ip link set to-{host} {BRIDGED_TO} wait-{host}\n"
        ));
        let (over, stop) = std::io::pipe().expect("there are file descriptors left");
        let mut lanes = [Lane::new(near, Some(wait)), Lane::new(far, wait.both_ways.then_some(wait))];
        let thread = std::thread::spawn(move || {
            let mut dice = Dice::new(seed);
            while carry(&mut lanes, &mut dice, &over) {}
        });
        Self { host: host.to_owned(), stop: Some(stop), thread: Some(thread) }
    }
}

impl Drop for Delay {
    fn drop(&mut self) {
        let host = &self.host;
        shell(&format!("ip link set to-{host} {BRIDGED_TO} hosts\n"));
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        // The tap devices went with the thread.
        shell(&format!("ip link del wait-{host}\n"));
    }
}

/// A tap device of that name.
fn tap(name: &str) -> File {
    let mut options = File::options();
    let device = options.read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun");
    let device = device.expect("the kernel has tap devices");
    // SAFETY: an ifreq is plain data, of which zeroes are a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    assert!(name.len() < request.ifr_name.len(), "{name} is too long for a device");
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI;
    request.ifr_ifru.ifru_flags = i16::try_from(flags).expect("the kernel's field is so wide");
    // SAFETY: the descriptor is open, and the kernel reads and writes one ifreq there, which lives through the call.
    let done = unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF, &mut request) };
    assert!(done == 0, "a tap device {name}: {}", std::io::Error::last_os_error());
    device
}

/// What comes from one device, on its way to the other.
struct Lane {
    from: File,
    /// `None`: at once.
    wait: Option<Wait>,
    /// By when, and among equals by the order in which they came.
    queue: BinaryHeap<Reverse<(Instant, u64, Vec<u8>)>>,
    came: u64,
}

impl Lane {
    fn new(from: File, wait: Option<Wait>) -> Self {
        Self { from, wait, queue: BinaryHeap::new(), came: 0 }
    }

    /// Take what is there.
    fn take(&mut self, dice: &mut Dice) {
        let mut frame = [0; LONGEST];
        while let Ok(length @ 1..) = self.from.read(&mut frame) {
            self.keep(&frame[..length], dice);
        }
    }

    /// Let a frame wait, or lose it.
    fn keep(&mut self, frame: &[u8], dice: &mut Dice) {
        let wait = self.wait.unwrap_or_default();
        if dice.below(100) >= wait.percent {
            self.came += 1;
            let due = Instant::now() + dice.between(wait.from, wait.to);
            self.queue.push(Reverse((due, self.came, frame.to_vec())));
        }
    }

    /// Pass on what is due; in how long the next is.
    fn pass(&mut self, mut to: &File) -> Option<Duration> {
        while let Some(Reverse((due, ..))) = self.queue.peek() {
            let left = due.saturating_duration_since(Instant::now());
            if !left.is_zero() {
                return Some(left);
            }
            let Reverse((.., frame)) = self.queue.pop()?;
            // A device that is full loses packets, as cables do.
            let _ = to.write(&frame);
        }
        None
    }
}

/// Wait for a frame, or until one is due; false once it is over.
fn carry(lanes: &mut [Lane; 2], dice: &mut Dice, over: &impl AsFd) -> bool {
    let [near, far] = lanes;
    let next = [near.pass(&far.from), far.pass(&near.from)].into_iter().flatten().min();
    let mut all = [near.from.as_fd(), far.from.as_fd(), over.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
    match ppoll(&mut all, next.map(TimeSpec::from_duration), None) {
        Ok(_) if all[2].any().unwrap_or(true) => return false,
        Err(error) if std::io::Error::from(error).kind() != ErrorKind::Interrupted => return false,
        Ok(_) | Err(_) => {}
    }
    near.take(dice);
    far.take(dice);
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Seek, SeekFrom};

    #[test]
    fn each_frame_has_its_own_time_and_some_are_lost() {
        let wait =
            Wait { from: Duration::from_millis(5), to: Duration::from_millis(40), percent: 50, both_ways: false };
        let (began, mut dice) = (Instant::now(), Dice::new(1));
        let mut lane = Lane::new(tempfile::tempfile().expect("a file"), Some(wait));
        (0..40).for_each(|n| lane.keep(&[n], &mut dice));
        assert!((10..30).contains(&lane.queue.len()), "{} of 40", lane.queue.len());
        let mut order = Vec::new();
        while let Some(Reverse((due, came, _))) = lane.queue.pop() {
            assert!(due >= began + wait.from && due <= Instant::now() + wait.to);
            order.push(came);
        }
        assert!(!order.is_sorted(), "none has overtaken another: {order:?}");
    }

    #[test]
    fn what_does_not_wait_is_passed_on_in_its_order() {
        let (mut to, mut dice) = (tempfile::tempfile().expect("a file"), Dice::new(1));
        let mut lane = Lane::new(tempfile::tempfile().expect("a file"), None);
        (0..9).for_each(|n| lane.keep(&[n], &mut dice));
        assert_eq!(lane.pass(&to), None);
        let mut passed = Vec::new();
        to.seek(SeekFrom::Start(0)).and_then(|_| to.read_to_end(&mut passed)).expect("read");
        assert!(passed.iter().copied().eq(0..9), "{passed:?}");
    }
}
