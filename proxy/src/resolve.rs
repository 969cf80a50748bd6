//! Names to addresses: asked of the system on a thread of its own, kept for a while, and used past that when the system
//! does not answer.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

/// Questions asked at the same time: a name service that hangs holds no more threads.
const MAX_QUESTIONS: usize = 4;
/// Names kept. Each is a host of the topology, so there are few.
const MAX_NAMES: usize = 1024;
/// How long an answer is awaited when an old one is there.
const PATIENCE: Duration = Duration::from_millis(500);

pub(crate) type Lookup = dyn Fn(&str) -> io::Result<Vec<IpAddr>> + Send + Sync;

/// What is known of one name. Locked while the system is asked, so that it is asked once for all who want to know.
type Entry = Arc<tokio::sync::Mutex<Option<Known>>>;

struct Known {
    addresses: Vec<IpAddr>,
    since: Instant,
}

/// Finds addresses, for all workers.
pub struct Resolver {
    names: Mutex<HashMap<String, Entry>>,
    questions: Arc<Semaphore>,
    /// Its threads are blocked, not the relay's.
    runtime: Handle,
    lookup: Arc<Lookup>,
}

impl Resolver {
    /// Ask the system, on threads of `runtime`.
    pub fn system(runtime: Handle) -> Self {
        let lookup = |host: &str| Ok((host, 0).to_socket_addrs()?.map(|a| a.ip()).collect());
        Self::new(runtime, Arc::new(lookup))
    }

    pub(crate) fn new(runtime: Handle, lookup: Arc<Lookup>) -> Self {
        let questions = Arc::new(Semaphore::new(MAX_QUESTIONS));
        Self { names: Mutex::default(), questions, runtime, lookup }
    }

    /// The addresses of `host`, in the system's order, at least one; asked again when older than `ttl`. Waits as long as
    /// the system does: the caller has the deadline. Cancel-safe.
    ///
    /// # Errors
    /// The system's, when nothing is known from before.
    pub async fn resolve(&self, host: &str, port: u16, ttl: Duration) -> io::Result<Vec<SocketAddr>> {
        if let Ok(ip) = host.parse::<IpAddr>() {
            return Ok(vec![SocketAddr::new(ip, port)]);
        }
        let entry = self.entry(host);
        let mut known = entry.lock().await;
        if known.as_ref().is_none_or(|k| k.since.elapsed() >= ttl) {
            let asked = match &*known {
                None => self.ask(host).await,
                Some(_) => {
                    let late = |_| Err(io::ErrorKind::TimedOut.into());
                    tokio::time::timeout(PATIENCE, self.ask(host)).await.unwrap_or_else(late)
                }
            };
            match (asked, &mut *known) {
                (Ok(addresses), known) => *known = Some(Known { addresses, since: Instant::now() }),
                (Err(error), None) => return Err(error),
                (Err(error), Some(old)) => {
                    tracing::warn!(host, %error, "name not resolved, its last addresses are used");
                    // Not asked again by everyone who comes now.
                    old.since = Instant::now();
                }
            }
        }
        let addresses = known.as_ref().map(|k| k.addresses.as_slice()).unwrap_or_default();
        Ok(addresses.iter().map(|&ip| SocketAddr::new(ip, port)).collect())
    }

    fn entry(&self, host: &str) -> Entry {
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        if names.len() >= MAX_NAMES && !names.contains_key(host) {
            names.clear();
        }
        names.entry(host.to_owned()).or_default().clone()
    }

    async fn ask(&self, host: &str) -> io::Result<Vec<IpAddr>> {
        let turn = self.questions.clone().acquire_owned().await.expect("the semaphore is never closed");
        let (lookup, name) = (self.lookup.clone(), host.to_owned());
        let answer = self.runtime.spawn_blocking(move || {
            // Held until the system has answered, also when nobody waits for it any more.
            let _turn = turn;
            lookup(&name)
        });
        let addresses = answer.await.map_err(io::Error::other)??;
        if addresses.is_empty() {
            return Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address"));
        }
        Ok(addresses)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    const TTL: Duration = Duration::from_secs(3600);

    fn counted(
        answer: impl Fn(usize) -> io::Result<Vec<IpAddr>> + Send + Sync + 'static,
    ) -> (Arc<AtomicUsize>, Resolver) {
        let asked = Arc::new(AtomicUsize::new(0));
        let count = asked.clone();
        let lookup = move |_: &str| answer(count.fetch_add(1, Ordering::SeqCst));
        (asked, Resolver::new(Handle::current(), Arc::new(lookup)))
    }

    #[tokio::test]
    async fn a_name_is_asked_for_once_while_it_is_fresh() {
        let (asked, resolver) = counted(|_| Ok(vec!["10.0.0.1".parse().unwrap(), "::1".parse().unwrap()]));
        let want: Vec<SocketAddr> = vec!["10.0.0.1:5432".parse().unwrap(), "[::1]:5432".parse().unwrap()];
        let (a, b) = tokio::join!(resolver.resolve("db", 5432, TTL), resolver.resolve("db", 5432, TTL));
        assert_eq!((a.unwrap(), b.unwrap()), (want.clone(), want));
        assert_eq!(asked.load(Ordering::SeqCst), 1);
        resolver.resolve("db", 1, Duration::ZERO).await.unwrap();
        assert_eq!(asked.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn the_system_is_asked() {
        let resolver = Resolver::system(Handle::current());
        let found = resolver.resolve("localhost", 5432, TTL).await.unwrap();
        assert!(found.iter().all(|a| a.ip().is_loopback() && a.port() == 5432), "{found:?}");
    }

    #[tokio::test]
    async fn an_old_answer_is_better_than_none() {
        let (asked, resolver) = counted(|n| match n {
            0 => Ok(vec!["10.0.0.1".parse().unwrap()]),
            _ => Err(io::ErrorKind::ConnectionRefused.into()),
        });
        for _ in 0..2 {
            let got = resolver.resolve("db", 1, Duration::ZERO).await.unwrap();
            assert_eq!(got, ["10.0.0.1:1".parse().unwrap()]);
        }
        assert_eq!(asked.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn a_name_that_was_never_known_is_an_error_and_an_address_is_no_name() {
        let (asked, resolver) = counted(|_| Ok(Vec::new()));
        assert_eq!(resolver.resolve("db", 1, TTL).await.unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(resolver.resolve("::1", 1, TTL).await.unwrap(), ["[::1]:1".parse().unwrap()]);
        assert_eq!(asked.load(Ordering::SeqCst), 1);
    }
}
