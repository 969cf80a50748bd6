//! Against real sockets, with a ring and without.

use super::*;
use socket2::SockRef;
use std::io::{ErrorKind, Read};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Wake;
use std::time::Duration;

/// Counts how often a round begins.
#[derive(Default)]
struct Begun(AtomicUsize);

impl Wake for Begun {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// This thread's round: with a ring, and (a ring being what many kernels refuse) with none.
fn both(test: impl Fn(&Begun) + Copy + Send + 'static) {
    for ring in [true, false] {
        let thread = std::thread::spawn(move || {
            let begun = Arc::<Begun>::default();
            let made = with(|round| {
                round.ring = ring.then(|| Ring::new(MOST).ok()).flatten();
                (round.keeps, round.end) = (true, Some(begun.clone().into()));
                round.ring.is_some()
            });
            if made == Some(ring) {
                test(&begun);
            } else {
                let told = !cfg!(target_os = "linux") || std::env::var_os("PGTENURE_NO_IO_URING").is_some();
                assert!(told, "this kernel gives no ring: PGTENURE_NO_IO_URING=1 tests without");
            }
            assert_eq!(STUCK.get(), 0, "all has been sent or given up");
        });
        thread.join().unwrap();
    }
}

struct Socket {
    slot: Slot,
    ours: UnixStream,
    theirs: UnixStream,
}

impl Socket {
    fn new() -> Self {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        theirs.set_nonblocking(true).unwrap();
        Self { slot: Slot::default(), ours, theirs }
    }

    fn keep(&mut self, message: &[u8], whose: usize) -> bool {
        self.slot.keep(self.ours.as_raw_fd(), message, whose)
    }

    fn arrived(&mut self) -> Vec<u8> {
        let mut all = Vec::new();
        match self.theirs.read_to_end(&mut all) {
            Ok(_) => {}
            Err(e) => assert_eq!(e.kind(), ErrorKind::WouldBlock),
        }
        all
    }

    /// Until it takes no more: how much that was.
    fn fill(&self) -> usize {
        let mut sent = 0;
        loop {
            match calls::send(self.ours.as_raw_fd(), &[b'.'; 1000]) {
                Ok(n) => sent += n,
                Err(e) => {
                    assert_eq!(e.kind(), ErrorKind::WouldBlock);
                    return sent;
                }
            }
        }
    }

    fn send_rest(&self) -> io::Result<()> {
        self.slot.send_rest(|rest| calls::send(self.ours.as_raw_fd(), rest))
    }
}

fn told() -> Vec<usize> {
    with(|round| std::mem::take(&mut round.stuck)).unwrap()
}

#[test]
fn what_a_round_keeps_goes_at_its_end() {
    both(|begun| {
        let mut sockets: Vec<Socket> = (0..5).map(|_| Socket::new()).collect();
        assert!(sockets[0].keep(b"", 0) && begun.0.load(Ordering::SeqCst) == 0, "nothing begins no round");
        for (i, socket) in sockets.iter_mut().enumerate() {
            assert!(socket.keep(format!("to {i}").as_bytes(), i));
            assert!(socket.keep(b", twice", i), "behind its last one");
            assert_eq!(socket.arrived(), b"", "not yet");
        }
        assert_eq!(begun.0.load(Ordering::SeqCst), 1, "the first begins the round");
        send();
        for (i, socket) in sockets.iter_mut().enumerate() {
            assert_eq!(socket.arrived(), format!("to {i}, twice").as_bytes());
        }
        assert!(sockets[0].keep(b"alone", 0));
        send();
        assert_eq!(sockets[0].arrived(), b"alone");
        assert_eq!((begun.0.load(Ordering::SeqCst), told()), (2, vec![]));
    });
}

#[test]
fn a_socket_gets_its_messages_in_order_whoever_comes_in_between() {
    both(|_| {
        let (mut a, mut b) = (Socket::new(), Socket::new());
        for i in 0..200_u8 {
            assert!(a.keep(&[i], 0) && b.keep(&[i; 100], 1));
        }
        send();
        assert_eq!(a.arrived(), (0..200).collect::<Vec<u8>>());
        assert_eq!(b.arrived(), (0..200).flat_map(|i| [i; 100]).collect::<Vec<u8>>());
    });
}

#[test]
fn more_than_a_round_holds_goes_before_its_end() {
    both(|_| {
        let mut sockets: Vec<Socket> = (0..=MOST).map(|_| Socket::new()).collect();
        assert!(sockets.iter_mut().enumerate().all(|(i, socket)| socket.keep(b"x", i)));
        assert!(sockets[..MOST].iter_mut().all(|socket| socket.arrived() == b"x"));
        assert_eq!(sockets[MOST].arrived(), b"");
        let mut long = Socket::new();
        assert!(!long.keep(&[0; LONGEST + 1], 0), "it is for its socket at once");
        assert_eq!(sockets[MOST].arrived(), b"x", "and nobody waits for it");
        assert!(sockets[0].keep(b"y", 0));
        while with(|round| round.bytes.len()).unwrap() + LONGEST <= ROOM {
            assert!(long.keep(&[0; LONGEST], 0));
        }
        assert_eq!(sockets[0].arrived(), b"");
        assert!(long.keep(&[0; LONGEST], 0));
        assert_eq!(sockets[0].arrived(), b"y");
    });
}

#[test]
fn what_a_socket_does_not_take_waits_and_its_session_is_woken() {
    both(|_| {
        let (mut full, mut other) = (Socket::new(), Socket::new());
        let before = full.fill();
        assert!(full.keep(b"late", 7) && other.keep(b"in time", 8));
        send();
        assert_eq!((other.arrived(), told()), (b"in time".to_vec(), vec![7]));
        assert!(full.slot.is_stuck() && !other.slot.is_stuck());
        assert!(!full.keep(b"r", 7), "what comes behind it waits elsewhere");
        assert_eq!(full.send_rest().unwrap_err().kind(), ErrorKind::WouldBlock);
        assert!(full.slot.is_stuck());
        assert_eq!(full.arrived().len(), before);
        full.send_rest().unwrap();
        assert!(!full.slot.is_stuck());
        assert!(full.keep(b"r", 7));
        send();
        assert_eq!(full.arrived(), b"later");
    });
}

/// A socket over TCP that holds little, and the end that reads it.
fn narrow() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    SockRef::from(&listener).set_recv_buffer_size(1024).unwrap();
    let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    SockRef::from(&ours).set_send_buffer_size(2048).unwrap();
    let (theirs, _) = listener.accept().unwrap();
    ours.set_nonblocking(true).unwrap();
    theirs.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    (ours, theirs)
}

#[test]
fn what_a_socket_has_taken_of_a_message_is_not_sent_again() {
    both(|_| {
        let ((ours, mut theirs), mut other) = (narrow(), Socket::new());
        let (fd, mut slot, mut said, mut short) = (ours.as_raw_fd(), Slot::default(), Vec::new(), 0);
        for i in 0..300_usize {
            let message = vec![u8::try_from(i % 251).unwrap(); 500 + i % 1500];
            assert!(slot.keep(fd, &message, 5) && other.keep(b"x", 6));
            said.extend_from_slice(&message);
            send();
            assert_eq!(other.arrived(), b"x");
            if !slot.is_stuck() {
                continue;
            }
            assert_eq!(told(), [5]);
            let rest = with(|round| round.slots[slot.0.unwrap()].rest.len()).unwrap();
            short += usize::from(rest < message.len());
            // Whatever the socket does not take now it takes later.
            let mut heard = vec![0; said.len()];
            let end = std::thread::scope(|scope| {
                let reader = scope.spawn(|| theirs.read_exact(&mut heard));
                while slot.send_rest(|rest| calls::send(fd, rest)).is_err_and(|e| e.kind() == ErrorKind::WouldBlock) {
                    std::thread::yield_now();
                }
                reader.join().unwrap()
            });
            end.unwrap();
            assert!(heard == said, "message {i}, {rest} bytes of it late");
            said.clear();
        }
        assert!(short > 0, "no message was taken in part");
    });
}

#[test]
fn a_socket_that_failed_says_so_once() {
    both(|_| {
        let (mut dead, mut other) = (Socket::new(), Socket::new());
        (dead.theirs, _) = UnixStream::pair().unwrap();
        assert!(dead.keep(b"x", 3) && other.keep(b"y", 4));
        send();
        assert_eq!((other.arrived(), told()), (b"y".to_vec(), vec![3]));
        assert!(dead.slot.is_stuck());
        assert_eq!(dead.send_rest().unwrap_err().kind(), ErrorKind::BrokenPipe);
        assert!(!dead.slot.is_stuck() && dead.send_rest().is_ok());
    });
}

#[test]
fn a_socket_that_is_closed_has_got_what_was_kept_for_it() {
    both(|_| {
        let (mut closed, mut other) = (Socket::new(), Socket::new());
        assert!(closed.keep(b"last words", 0) && other.keep(b"x", 1));
        let Socket { slot, ours, mut theirs } = closed;
        drop(slot);
        drop(ours);
        let mut all = Vec::new();
        theirs.read_to_end(&mut all).unwrap();
        assert_eq!(all, b"last words");
        // Its slot is another's.
        let mut next = Socket::new();
        assert!(next.keep(b"y", 2));
        send();
        assert_eq!((next.arrived(), told()), (b"y".to_vec(), vec![]));
    });
}

#[test]
fn without_a_ring_all_that_it_has_not_taken_is_sent_and_nothing_is_kept_any_more() {
    both(|_| {
        let mut sockets: Vec<Socket> = (0..3).map(|_| Socket::new()).collect();
        assert!(sockets.iter_mut().enumerate().all(|(i, socket)| socket.keep(b"x", i)));
        let broke = with(|round| {
            let had = round.ring.is_some();
            round.give_up_ring(Broken { taken: 1, unfinished: true, error: ErrorKind::Other.into() });
            round.messages.clear();
            round.owners.clear();
            had
        });
        if broke == Some(true) {
            assert_eq!([1, 2].map(|i: usize| sockets[i].arrived()), [b"x", b"x"]);
            // Of the first nobody knows.
            assert_eq!(told(), [0]);
            assert_eq!(sockets[0].theirs.read(&mut [0; 8]).unwrap(), 0, "who reads sees that the connection ends");
            assert_eq!(sockets[0].send_rest().unwrap_err().raw_os_error(), Some(libc::EIO));
            assert!(!sockets[1].keep(b"y", 1));
        }
    });
}
