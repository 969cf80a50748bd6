//! Listening sockets that outlive their process: handed to the next one, which accepts what waits in their queues.
//!
//! A socket that is bound anew, also with SO_REUSEPORT, has a queue of its own; what waits in the old one is reset when
//! the old process closes it. A descriptor of the very same socket loses nobody.

use crate::pool::{Doors, Order, Scope};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::sync::{Mutex, PoisonError};

/// A listening socket and the name of what it is for, as in `tcp 127.0.0.1:6432`.
pub type Named = (String, OwnedFd);

/// The name of a pipe that holds the orders of operators that are in force, for the next process to obey. A process that
/// knows nothing of it closes it.
const ORDERS: &str = "orders";
/// What surely goes into a pipe before anybody reads, bytes.
const MAX_ORDERS: usize = 60_000;

/// The name of a TCP socket for clients.
pub fn tcp_name(addr: SocketAddr) -> String {
    format!("tcp {addr}")
}

/// Listening sockets of a process before this one.
#[derive(Debug, Default)]
pub struct Inherited(Vec<Named>);

impl Inherited {
    /// All that were handed over; those that nobody asks for are closed with this.
    pub fn new(sockets: Vec<Named>) -> Self {
        Self(sockets)
    }

    /// The socket of that name.
    pub fn take(&mut self, name: &str) -> Option<OwnedFd> {
        let at = self.0.iter().position(|(n, _)| n == name)?;
        Some(self.0.swap_remove(at).1)
    }

    /// The TCP socket that listens where `addr` says, ready for a runtime.
    ///
    /// # Errors
    /// It cannot be made non-blocking.
    pub fn tcp(&mut self, addr: SocketAddr) -> std::io::Result<Option<TcpListener>> {
        let Some(socket) = self.take(&tcp_name(addr)) else { return Ok(None) };
        let listener = TcpListener::from(socket);
        listener.set_nonblocking(true)?;
        Ok(Some(listener))
    }
}

impl Inherited {
    /// What operators have said to the process before this one.
    ///
    /// # Errors
    /// It cannot be read.
    pub(crate) fn doors(&mut self) -> io::Result<Doors> {
        let mut doors = Doors::default();
        let Some(pipe) = self.take(ORDERS) else { return Ok(doors) };
        let mut text = Vec::new();
        std::fs::File::from(pipe).read_to_end(&mut text)?;
        let orders: Vec<(String, Option<String>)> = serde_json::from_slice(&text)?;
        for (word, database) in orders {
            let scope = database.map_or(Scope::All, Scope::Database);
            let order = match word.as_str() {
                PAUSE => Order::Pause,
                DISABLE => Order::Disable,
                // A later version may know more.
                _ => {
                    tracing::warn!(
                        order = word,
                        ?scope,
                        "order to the process before this one is unknown here and does not hold"
                    );
                    continue;
                }
            };
            tracing::info!(?order, ?scope, "order to the process before this one holds");
            doors.obey(order, &scope, cluster::Clock.now()).map_err(io::Error::other)?;
        }
        Ok(doors)
    }
}

const PAUSE: &str = "pause";
const DISABLE: &str = "disable";

/// What operators have said, for the next process; nothing where they have said nothing.
///
/// # Errors
/// There is no descriptor left, or they have said too much.
pub(crate) fn orders(doors: &Doors) -> io::Result<Option<Named>> {
    let of = |(order, scope): (Order, Scope)| {
        let word = match order {
            Order::Pause | Order::Kill => PAUSE,
            Order::Disable => DISABLE,
            Order::Resume | Order::Reconnect | Order::Enable => return None,
        };
        let Scope::Database(name) = scope else { return Some((word, None)) };
        Some((word, Some(name)))
    };
    let orders: Vec<(&str, Option<String>)> = doors.orders().into_iter().filter_map(of).collect();
    if orders.is_empty() {
        return Ok(None);
    }
    let text = serde_json::to_vec(&orders)?;
    if text.len() > MAX_ORDERS {
        return Err(io::Error::other(format!("{} orders are too many to hand over", orders.len())));
    }
    let (pipe, mut end) = io::pipe()?;
    end.write_all(&text)?;
    Ok(Some((ORDERS.to_owned(), pipe.into())))
}

/// The sockets this process listens on, for as long as it accepts.
#[derive(Debug, Default)]
pub(crate) struct Listening(Mutex<Vec<Named>>);

impl Listening {
    /// Keep a second descriptor of the socket.
    pub(crate) fn keep(&self, name: String, socket: OwnedFd) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push((name, socket));
    }

    /// Descriptors for the next process.
    pub(crate) fn copies(&self) -> std::io::Result<Vec<Named>> {
        let sockets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        sockets.iter().map(|(name, socket)| Ok((name.clone(), socket.try_clone()?))).collect()
    }

    /// Close ours: a socket whose last descriptor is closed listens no more.
    pub(crate) fn close(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpStream;

    #[test]
    fn who_waits_in_the_queue_is_accepted_by_the_next() {
        let first = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = first.local_addr().unwrap();
        let listening = Listening::default();
        listening.keep(tcp_name(addr), first.try_clone().unwrap().into());
        let client = TcpStream::connect(addr).unwrap();
        let mut inherited = Inherited::new(listening.copies().unwrap());
        drop(first);
        listening.close();
        assert!(inherited.tcp(([127, 0, 0, 1], 1).into()).unwrap().is_none());
        assert_eq!(inherited.doors().unwrap(), Doors::default());
        let second = inherited.tcp(addr).unwrap().expect("handed over");
        second.set_nonblocking(false).unwrap();
        assert_eq!(second.accept().unwrap().1, client.local_addr().unwrap());
    }

    #[test]
    fn what_operators_have_said_reaches_the_next() {
        let mut doors = Doors::default();
        for (order, scope) in [
            (Order::Pause, Scope::All),
            (Order::Kill, Scope::Database("a \"b\"".to_owned())),
            (Order::Disable, Scope::Database("c".to_owned())),
        ] {
            doors.obey(order, &scope, cluster::Instant::from_millis(1)).unwrap();
        }
        let mut inherited = Inherited::new(orders(&doors).unwrap().into_iter().collect());
        assert_eq!(inherited.doors().unwrap(), doors);
        // What a later version has said besides closes nothing.
        let (pipe, mut end) = io::pipe().unwrap();
        end.write_all(br#"[["ponder",null],["disable","c"]]"#).unwrap();
        drop(end);
        let mut closed = Doors::default();
        closed.obey(Order::Disable, &Scope::Database("c".to_owned()), cluster::Instant::from_millis(1)).unwrap();
        assert_eq!(Inherited::new(vec![(ORDERS.to_owned(), pipe.into())]).doors().unwrap(), closed);
    }
}
