//! Accepting clients. The first worker does, on its own thread: most clients are its own, and a connection that moves
//! to another thread costs two registrations and two wake-ups more.
//!
//! A client speaks first, and its first packet comes in one piece nearly always: so the kernel is asked to keep a
//! connection until that is there, and it is read before the socket is watched. The runtime looks at its sockets once less
//! for a login then.

use crate::net::{Detached, Fresh, Origin, Stream, defer_accept};
use crate::placing;
use crate::worker::run::{Seat, serve};
use crate::worker::{ToWorker, Worker};
use socket2::{SockRef, TcpKeepalive};
use std::io;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixListener;
use tokio::sync::watch;

/// How long a client's connection is silent before its host is asked whether it lives: one that has vanished is noticed
/// after a minute and a half.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
/// The pause between such questions.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// Questions without an answer after which it is gone.
const KEEPALIVE_RETRIES: u32 = 3;
/// How long the kernel keeps a connection of which nothing has come. That of a client that says nothing is accepted then.
const SILENCE: Duration = Duration::from_secs(1);
/// The pause after a failed accept: out of descriptors, most likely.
const PAUSE: Duration = Duration::from_millis(50);
/// Clients accepted before those that are here get their turn.
const AT_ONCE: usize = 16;

/// A socket that clients connect to, which no runtime watches yet.
#[derive(Debug)]
pub enum Entrance {
    /// TCP; for clients that only read?
    Tcp(std::net::TcpListener, bool),
    /// A Unix-domain socket.
    Unix(std::os::unix::net::UnixListener),
}

/// What accepting depends on.
#[derive(Debug)]
pub struct Entrances {
    /// The sockets.
    pub sockets: Vec<Entrance>,
    /// May clients come in? Once they may not any more, the sockets are closed.
    pub accepting: watch::Receiver<bool>,
}

/// Set what every connection of this socket is to have: the kernel hands it on to each, which saves as many calls.
/// `user_timeout`: TCP_USER_TIMEOUT; `None`: the kernel's own.
///
/// # Errors
/// The kernel's.
pub fn tune(socket: &std::net::TcpListener, user_timeout: Option<Duration>) -> io::Result<()> {
    let socket = SockRef::from(socket);
    socket.set_tcp_nodelay(true)?;
    // Also without one: the socket may come from a process that had one.
    socket.set_tcp_user_timeout(user_timeout)?;
    defer_accept(&*socket, SILENCE)?;
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE_IDLE).with_interval(KEEPALIVE_INTERVAL);
    socket.set_tcp_keepalive(&keepalive.with_retries(KEEPALIVE_RETRIES))
}

enum Listener {
    Tcp(AsyncFd<std::net::TcpListener>, bool),
    Unix(UnixListener),
}

/// The connection of a client.
enum Arrival {
    /// That no runtime watches yet, and what has been read of it.
    Fresh(Fresh),
    /// That this worker's runtime watches.
    Watched(Stream),
}

impl Listener {
    /// May the sessions of its clients only read?
    fn read_only(&self) -> bool {
        match self {
            Self::Tcp(_, read_only) => *read_only,
            Self::Unix(_) => false,
        }
    }

    async fn accept(&self) -> io::Result<(Arrival, Origin)> {
        match self {
            Self::Tcp(listener, _) => {
                let (fresh, address) = listener.async_io(Interest::READABLE, Fresh::accept).await?;
                Ok((Arrival::Fresh(fresh), Origin::Tcp(address)))
            }
            Self::Unix(listener) => {
                let stream = listener.accept().await?.0;
                let origin = Origin::Local { uid: stream.peer_cred()?.uid() };
                Ok((Arrival::Watched(stream.into()), origin))
            }
        }
    }
}

/// Accept clients in tasks of this worker, as soon and as long as they may come in.
///
/// # Errors
/// The runtime does not take a socket.
pub(super) fn begin(worker: &Rc<Worker>, entrances: Entrances) -> io::Result<()> {
    for socket in entrances.sockets {
        let listener = match socket {
            Entrance::Tcp(socket, read_only) => Listener::Tcp(watch(socket)?, read_only),
            Entrance::Unix(socket) => Listener::Unix(UnixListener::from_std(socket)?),
        };
        let (worker, mut accepting) = (worker.clone(), entrances.accepting.clone());
        tokio::task::spawn_local(async move {
            // The sender lives as long as the proxy.
            if accepting.wait_for(|accepting| *accepting).await.is_ok() {
                tokio::select! {
                    () = accept(&worker, listener) => {}
                    _ = accepting.wait_for(|accepting| !*accepting) => {}
                }
            }
        });
    }
    Ok(())
}

fn watch(socket: std::net::TcpListener) -> io::Result<AsyncFd<std::net::TcpListener>> {
    // SAFETY: a listener has one descriptor, its own, for as long as it lives.
    Ok(unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE)? })
}

async fn accept(worker: &Rc<Worker>, listener: Listener) {
    loop {
        for _ in 0..AT_ONCE {
            match listener.accept().await {
                Ok((arrival, origin)) => place(worker, arrival, origin, listener.read_only()),
                Err(error) => {
                    tracing::warn!(%error, "could not accept a client");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
        tokio::task::yield_now().await;
    }
}

/// Give a client to the worker that is to have it.
fn place(worker: &Rc<Worker>, arrival: Arrival, origin: Origin, read_only: bool) {
    let (shared, config) = (&worker.shared, worker.config());
    // As many as may be clients may be on their way to that, or be told that they are too many.
    let most = config.max_client_connections.saturating_mul(2);
    if shared.clients.load(Ordering::SeqCst) >= most && !worker.make_room() {
        return;
    }
    let sessions = shared.boards.iter().map(|board| board.sessions.load(Ordering::SeqCst));
    let to = placing::worker_for(sessions, config.worker_fill).expect("there is at least one worker");
    let seat = Seat::take(shared.clone(), to, read_only);
    if to == worker.index {
        let taken = match arrival {
            Arrival::Fresh(Fresh { socket, first }) => Detached::Tcp(socket).attach().map(|stream| (stream, first)),
            Arrival::Watched(stream) => Ok((stream, Vec::new())),
        };
        return match taken {
            Ok((stream, first)) => serve(worker, (stream, first), origin, seat),
            Err(error) => tracing::warn!(%error, "client socket could not be registered"),
        };
    }
    let sent = match arrival {
        Arrival::Fresh(Fresh { socket, first }) => send(worker, to, (Detached::Tcp(socket), first), origin, seat),
        Arrival::Watched(stream) => {
            stream.detach().is_ok_and(|stream| send(worker, to, (stream, Vec::new()), origin, seat))
        }
    };
    if !sent && let Some(left_out) = worker.logs_refusal(true) {
        tracing::warn!(worker = to, left_out, "worker takes no more clients, one was refused");
    }
}

fn send(worker: &Worker, to: usize, (stream, first): (Detached, Vec<u8>), origin: Origin, seat: Seat) -> bool {
    worker.shared.peers[to].try_send(ToWorker::Client { stream, first, origin, seat }).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_accepted_connection_has_what_its_listener_was_given() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let user_timeout = Some(Duration::from_secs(77));
        tune(&listener, user_timeout).unwrap();
        let _client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let accepted = listener.accept().unwrap().0;
        let socket = SockRef::from(&accepted);
        assert!(socket.tcp_nodelay().unwrap() && socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), KEEPALIVE_IDLE);
        assert_eq!(socket.tcp_keepalive_interval().unwrap(), KEEPALIVE_INTERVAL);
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), KEEPALIVE_RETRIES);
        assert_eq!(socket.tcp_user_timeout().unwrap(), user_timeout);
    }
}
