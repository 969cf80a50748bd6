//! Receiving and sending as the kernel has them.
//!
//! glibc's functions are points at which a thread can be cancelled: four atomic operations around each call, for something
//! that nobody here does. A statement is four such calls, and little else as far as the proxy goes.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::Interest;

/// A socket as the runtime watches it.
pub trait Watched: AsFd {
    /// Call `f` if the socket may be ready; that it is not is noted when `f` says so.
    fn try_io<R>(&self, interest: Interest, f: impl FnOnce() -> io::Result<R>) -> io::Result<R>;

    /// Be woken when it takes more.
    fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
}

impl Watched for tokio::net::TcpStream {
    #[inline]
    fn try_io<R>(&self, interest: Interest, f: impl FnOnce() -> io::Result<R>) -> io::Result<R> {
        Self::try_io(self, interest, f)
    }

    fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Self::poll_write_ready(self, cx)
    }
}

impl Watched for tokio::net::UnixStream {
    #[inline]
    fn try_io<R>(&self, interest: Interest, f: impl FnOnce() -> io::Result<R>) -> io::Result<R> {
        Self::try_io(self, interest, f)
    }

    fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Self::poll_write_ready(self, cx)
    }
}

/// Read what has come, without waiting. A buffer that was not filled has taken all there was: the next call is spared
/// until the kernel tells of more.
#[inline]
pub(super) fn try_read(socket: &impl Watched, buf: &mut [u8]) -> io::Result<usize> {
    let mut got = 0;
    let read = socket.try_io(Interest::READABLE, || {
        got = receive(socket, buf)?;
        if got > 0 && got < buf.len() { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
    });
    match read {
        Err(e) if got == 0 => Err(e),
        Err(_) | Ok(()) => Ok(got),
    }
}

/// Write what can be written now.
#[inline]
pub(super) fn try_write(socket: &impl Watched, bytes: &[u8]) -> io::Result<usize> {
    socket.try_io(Interest::WRITABLE, || send(socket.as_fd().as_raw_fd(), bytes))
}

/// Accept a connection that does not block, without waiting for one.
#[cfg(target_os = "linux")]
pub(super) fn accept(listener: &TcpListener) -> io::Result<(TcpStream, SocketAddr)> {
    use std::os::fd::{FromRawFd, OwnedFd};
    let accept = |storage: *mut socket2::SockAddrStorage, len: *mut libc::socklen_t| {
        // SAFETY: storage and length are live and belong together.
        let fd = unsafe {
            libc::accept4(listener.as_raw_fd(), storage.cast(), len, libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC)
        };
        // SAFETY: a new descriptor, which nobody else has.
        if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(unsafe { OwnedFd::from_raw_fd(fd) }) }
    };
    // SAFETY: the kernel writes the address and its length.
    let (socket, address) = unsafe { socket2::SockAddr::try_init(accept)? };
    Ok((socket.into(), address.as_socket().ok_or(io::ErrorKind::Unsupported)?))
}

/// Have connections of this listener accepted only once something of them has come, or so long has passed.
///
/// # Errors
/// The kernel's.
#[cfg(target_os = "linux")]
pub fn defer_accept(listener: &impl AsFd, most: Duration) -> io::Result<()> {
    let seconds = libc::c_int::try_from(most.as_secs()).unwrap_or(libc::c_int::MAX);
    let (fd, len) = (listener.as_fd().as_raw_fd(), std::mem::size_of_val(&seconds) as libc::socklen_t);
    // SAFETY: the kernel reads `len` bytes, of `seconds`.
    let done =
        unsafe { libc::setsockopt(fd, libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, (&raw const seconds).cast(), len) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(target_os = "linux")]
pub(super) fn receive(socket: &impl AsFd, buf: &mut [u8]) -> io::Result<usize> {
    let (fd, null) = (socket.as_fd().as_raw_fd(), std::ptr::null_mut::<libc::c_void>());
    // SAFETY: the kernel writes at most `buf.len()` bytes, to `buf`; null is for an address that is not asked for.
    let n = unsafe { libc::syscall(libc::SYS_recvfrom, fd, buf.as_mut_ptr(), buf.len(), 0, null, null) };
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}

#[cfg(target_os = "linux")]
pub(super) fn send(fd: RawFd, bytes: &[u8]) -> io::Result<usize> {
    let null = std::ptr::null::<libc::c_void>();
    // SAFETY: the kernel reads at most `bytes.len()` bytes, of `bytes`; null is for no address.
    let n =
        unsafe { libc::syscall(libc::SYS_sendto, fd, bytes.as_ptr(), bytes.len(), libc::MSG_NOSIGNAL, null, 0_usize) };
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}

/// End a connection both ways, whatever is under way.
pub(super) fn shut_down(fd: RawFd) {
    // SAFETY: it touches no memory. That it fails means that the connection has ended.
    unsafe { libc::shutdown(fd, libc::SHUT_RDWR) };
}

#[cfg(not(target_os = "linux"))]
pub(super) fn accept(listener: &TcpListener) -> io::Result<(TcpStream, SocketAddr)> {
    let (socket, address) = listener.accept()?;
    socket.set_nonblocking(true)?;
    Ok((socket, address))
}

/// Linux's only: elsewhere connections are accepted at once.
///
/// # Errors
/// None.
#[cfg(not(target_os = "linux"))]
pub fn defer_accept(_listener: &impl AsFd, _most: Duration) -> io::Result<()> {
    Ok(())
}

#[cfg(not(target_os = "linux"))]
pub(super) fn receive(socket: &impl AsFd, buf: &mut [u8]) -> io::Result<usize> {
    io::Read::read(&mut &*socket2::SockRef::from(&socket.as_fd()), buf)
}

#[cfg(not(target_os = "linux"))]
pub(super) fn send(fd: RawFd, bytes: &[u8]) -> io::Result<usize> {
    // SAFETY: who sends has the socket.
    let socket = unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) };
    io::Write::write(&mut &*socket2::SockRef::from(&socket), bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use tokio::net::UnixStream;

    #[tokio::test]
    async fn what_was_read_whole_is_not_asked_for_again() {
        let (a, b) = UnixStream::pair().unwrap();
        let ready = async || poll_fn(|cx| b.poll_read_ready(cx)).await.unwrap();
        let would_block = |r: io::Result<usize>| r.unwrap_err().kind() == io::ErrorKind::WouldBlock;
        assert_eq!(try_write(&a, b"abcdef").unwrap(), 6);
        ready().await;
        let mut buf = [0; 4];
        assert_eq!(try_read(&b, &mut buf).unwrap(), 4);
        // A full buffer says nothing of what is behind it.
        assert!(b.try_io(Interest::READABLE, || Ok(())).is_ok());
        assert_eq!((try_read(&b, &mut buf).unwrap(), &buf[..2]), (2, &b"ef"[..]));
        assert!(b.try_io(Interest::READABLE, || Ok(())).is_err());
        assert!(would_block(try_read(&b, &mut buf)));
        // And more is told of, the end too.
        try_write(&a, b"gh").unwrap();
        ready().await;
        drop(a);
        assert_eq!(try_read(&b, &mut buf).unwrap(), 2);
        ready().await;
        assert_eq!(try_read(&b, &mut buf).unwrap(), 0);
        assert!(try_write(&b, b"x").is_err());
    }
}
