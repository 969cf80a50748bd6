//! The floor of a hop: one thread, epoll, bytes copied from one socket to the other, nothing parsed, nothing pooled.

use anyhow::Context;
use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, RawFd};

const EVENTS: usize = 512;
const BUFFER: usize = 64 * 1024;

/// One of the two sockets of a connection.
struct Side {
    socket: TcpStream,
    other: RawFd,
    /// What the other side sent and this socket has not taken; while there is any the other side is not read.
    pending: Vec<u8>,
}

/// Relay until the process is ended. Prints its port first.
pub(crate) fn run(upstream: u16) -> anyhow::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").context("the relay's port")?;
    listener.set_nonblocking(true)?;
    println!("{}", listener.local_addr()?.port());
    let epoll = Epoll::new()?;
    epoll.set(libc::EPOLL_CTL_ADD, listener.as_raw_fd(), libc::EPOLLIN)?;
    let mut sides: HashMap<RawFd, Side> = HashMap::new();
    let mut events = [libc::epoll_event { events: 0, u64: 0 }; EVENTS];
    let mut buffer = vec![0; BUFFER];
    loop {
        for event in epoll.wait(&mut events)? {
            let fd = RawFd::try_from(event.u64).expect("we put a descriptor there");
            if fd == listener.as_raw_fd() {
                match listener.accept() {
                    Ok((client, _)) => {
                        // One that has no server is closed: others go on.
                        if let Err(error) = connect(&epoll, &mut sides, client, upstream) {
                            eprintln!("{error:#}");
                        }
                    }
                    // It has gone.
                    Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::ConnectionAborted) => {}
                    // Without descriptors it would be told again at once, for ever, and be measured at that.
                    Err(error) => return Err(error).context("the relay's next client"),
                }
            } else if turn(&epoll, &mut sides, fd, event.events.cast_signed(), &mut buffer).is_err() {
                close(&mut sides, fd);
            }
        }
    }
}

fn connect(epoll: &Epoll, sides: &mut HashMap<RawFd, Side>, client: TcpStream, upstream: u16) -> anyhow::Result<()> {
    let server = TcpStream::connect(("127.0.0.1", upstream)).context("the relay's server")?;
    let (a, b) = (client.as_raw_fd(), server.as_raw_fd());
    for socket in [&client, &server] {
        socket.set_nodelay(true)?;
        socket.set_nonblocking(true)?;
        epoll.set(libc::EPOLL_CTL_ADD, socket.as_raw_fd(), libc::EPOLLIN)?;
    }
    // Both or none: the number of one that is closed is another's next.
    for (socket, other) in [(client, b), (server, a)] {
        sides.insert(socket.as_raw_fd(), Side { socket, other, pending: Vec::new() });
    }
    Ok(())
}

fn close(sides: &mut HashMap<RawFd, Side>, fd: RawFd) {
    if let Some(side) = sides.remove(&fd) {
        sides.remove(&side.other);
    }
}

/// A socket is ready. An error ends both sides.
fn turn(
    epoll: &Epoll,
    sides: &mut HashMap<RawFd, Side>,
    fd: RawFd,
    events: i32,
    buffer: &mut [u8],
) -> std::io::Result<()> {
    let Some(side) = sides.get_mut(&fd) else { return Ok(()) };
    let other = side.other;
    if events & libc::EPOLLOUT != 0 && !side.pending.is_empty() {
        let taken = blocked_is_zero(side.socket.write(&side.pending))?;
        side.pending.drain(..taken);
        if side.pending.is_empty() {
            epoll.set(libc::EPOLL_CTL_MOD, fd, libc::EPOLLIN)?;
            epoll.set(libc::EPOLL_CTL_MOD, other, libc::EPOLLIN)?;
        }
    }
    if events & (libc::EPOLLIN | libc::EPOLLHUP | libc::EPOLLERR) == 0 {
        return Ok(());
    }
    let n = match side.socket.read(buffer) {
        Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
        result => blocked_is_zero(result)?,
    };
    let Some(to) = sides.get_mut(&other) else { return Err(ErrorKind::NotConnected.into()) };
    let taken = if n > 0 { blocked_is_zero(to.socket.write(&buffer[..n]))? } else { 0 };
    if taken < n {
        to.pending.extend_from_slice(&buffer[taken..n]);
        epoll.set(libc::EPOLL_CTL_MOD, fd, 0)?;
        epoll.set(libc::EPOLL_CTL_MOD, other, libc::EPOLLIN | libc::EPOLLOUT)?;
    }
    Ok(())
}

fn blocked_is_zero(result: std::io::Result<usize>) -> std::io::Result<usize> {
    match result {
        Err(e) if e.kind() == ErrorKind::WouldBlock => Ok(0),
        other => other,
    }
}

struct Epoll(RawFd);

impl Epoll {
    fn new() -> std::io::Result<Self> {
        // SAFETY: no pointers are passed.
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if fd < 0 { Err(std::io::Error::last_os_error()) } else { Ok(Self(fd)) }
    }

    fn set(&self, operation: i32, fd: RawFd, events: i32) -> std::io::Result<()> {
        let mut event = libc::epoll_event { events: events.cast_unsigned(), u64: u64::from(fd.unsigned_abs()) };
        // SAFETY: `event` lives for the call, which only reads it.
        let result = unsafe { libc::epoll_ctl(self.0, operation, fd, &raw mut event) };
        if result < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
    }

    fn wait<'a>(
        &self,
        events: &'a mut [libc::epoll_event; EVENTS],
    ) -> std::io::Result<impl Iterator<Item = libc::epoll_event> + use<'a>> {
        let room = i32::try_from(EVENTS).expect("a small constant");
        // SAFETY: the array has room for as many events as we say.
        let n = unsafe { libc::epoll_wait(self.0, events.as_mut_ptr(), room, -1) };
        let interrupted = n < 0 && std::io::Error::last_os_error().kind() == ErrorKind::Interrupted;
        if n < 0 && !interrupted {
            return Err(std::io::Error::last_os_error());
        }
        Ok(events[..usize::try_from(n).unwrap_or(0)].iter().copied())
    }
}
