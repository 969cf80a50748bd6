//! The way to a server, up to the first word of PostgreSQL's own conversation: its name is resolved, each of the
//! addresses is tried, a silent death of either end is provided for, and TLS is agreed on as `proxy.server_tls` says.
//!
//! Pooled connections, cancel requests and our own queries (catalogs, look-ups of users) all go this way, so none of
//! them is less protected than the others.

mod guarded;

use crate::config::Config;
use crate::net::Stream;
use crate::resolve::Resolver;
use crate::session::encrypt;
use crate::tls::{Contexts, SecureError};
use cluster::demand::Allowed;
use cluster::node::Endpoint;
use guarded::Guarded;
use socket2::{SockRef, TcpKeepalive};
use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, watch};
use tokio_postgres::NoTls;
use tokio_postgres::config::SslMode;
use tokio_postgres::tls::NoTlsStream;

/// Silent keepalive probes after which a connection is dead, a second apart.
const PROBES: u32 = 3;
const PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// Hosts of which it is remembered which address has answered last.
const MAX_HOSTS: usize = 64;

/// Why our own queries did not reach a server.
#[derive(Debug, thiserror::Error)]
pub enum ReachError {
    /// No address of it lets us connect.
    #[error("could not connect")]
    Dial(#[source] io::Error),
    /// The connection could not be encrypted.
    #[error("could not encrypt the connection")]
    Tls(#[source] SecureError),
    /// The server did not let us in.
    #[error("could not log in")]
    Login(#[source] tokio_postgres::Error),
}

/// A connection of our own, which must be polled for the client to work.
pub type Conversation = tokio_postgres::Connection<Guarded<Stream>, NoTlsStream>;

/// What is needed on the way.
pub struct Reach {
    resolver: Resolver,
    tls: watch::Receiver<Arc<Contexts>>,
    config: watch::Receiver<Arc<Config>>,
    /// Handshakes of our own queries at the same time.
    handshakes: Semaphore,
    /// Of hosts that have several addresses, the one that has answered last.
    answered: Mutex<BTreeMap<String, IpAddr>>,
}

impl Reach {
    /// With the newest of both.
    pub fn new(resolver: Resolver, tls: watch::Receiver<Arc<Contexts>>, config: watch::Receiver<Arc<Config>>) -> Self {
        Self { resolver, tls, config, handshakes: Semaphore::new(1), answered: Mutex::default() }
    }

    /// Connect to the first address of the host that lets us, the last one that did before the others, within `limit`. Each
    /// has its share of that.
    ///
    /// # Errors
    /// The last address's.
    pub async fn dial(&self, endpoint: &Endpoint, config: &Config, limit: Duration) -> io::Result<TcpStream> {
        let deadline = tokio::time::Instant::now() + limit;
        let late = |_| io::Error::from(io::ErrorKind::TimedOut);
        let asked = self.resolver.resolve(&endpoint.host, endpoint.port, config.dns_ttl);
        let addresses = tokio::time::timeout_at(deadline, asked).await.map_err(late)??;
        let mut addresses = addresses.to_vec();
        let last = self.answered.lock().unwrap_or_else(PoisonError::into_inner).get(&endpoint.host).copied();
        addresses.sort_by_key(|address| Some(address.ip()) != last);
        let mut failure = io::Error::from(io::ErrorKind::NotFound);
        for (tried, &address) in (0u32..).zip(&addresses) {
            let others = u32::try_from(addresses.len()).unwrap_or(u32::MAX).saturating_sub(tried).max(1);
            let share = deadline.saturating_duration_since(tokio::time::Instant::now()) / others;
            match tokio::time::timeout(share, TcpStream::connect(address)).await.map_err(late) {
                Ok(Ok(stream)) => {
                    tune(&stream, config.tcp_user_timeout)?;
                    if addresses.len() > 1 && last != Some(address.ip()) {
                        self.prefer(&endpoint.host, address.ip());
                    }
                    return Ok(stream);
                }
                Ok(Err(error)) | Err(error) => failure = error,
            }
        }
        Err(failure)
    }

    /// This address of the host has answered: it is tried first from now on.
    fn prefer(&self, host: &str, address: IpAddr) {
        let mut answered = self.answered.lock().unwrap_or_else(PoisonError::into_inner);
        if answered.len() >= MAX_HOSTS {
            answered.clear();
        }
        answered.insert(host.to_owned(), address);
    }

    /// Log in for queries of our own. The caller has the deadline.
    ///
    /// # Errors
    /// See [`ReachError`].
    pub async fn converse(
        &self,
        endpoint: &Endpoint,
        login: &mut tokio_postgres::Config,
    ) -> Result<(tokio_postgres::Client, Conversation), ReachError> {
        let (config, contexts) = (self.config.borrow().clone(), self.tls.borrow().clone());
        let dialled = self.dial(endpoint, &config, config.connect_timeout).await;
        let mut stream = Stream::from(dialled.map_err(ReachError::Dial)?);
        let secured = encrypt::secure(&mut stream, &contexts, &endpoint.host, &self.handshakes).await;
        secured.map_err(ReachError::Tls)?;
        // As for pooled connections.
        let allowed = Allowed { md5: config.auth.server_md5, password: config.auth.server_password };
        let stream = Guarded::new(stream, allowed);
        // Encrypted already, where it is to be.
        login.ssl_mode(SslMode::Disable).connect_raw(stream, NoTls).await.map_err(ReachError::Login)
    }
}

impl std::fmt::Debug for Reach {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reach").finish_non_exhaustive()
    }
}

/// A server that vanishes without a word must be noticed: data unacknowledged for `user_timeout`, or three silent
/// keepalive probes a second apart.
fn tune(stream: &TcpStream, user_timeout: Duration) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    socket.set_tcp_user_timeout(Some(user_timeout))?;
    let idle = user_timeout.max(PROBE_INTERVAL);
    let probes = TcpKeepalive::new().with_time(idle).with_interval(PROBE_INTERVAL).with_retries(PROBES);
    socket.set_tcp_keepalive(&probes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Raw, check};
    use tokio::net::TcpListener;

    fn reach(addresses: &'static [&'static str]) -> (Reach, Config) {
        let config = check(Raw::default()).unwrap();
        let contexts = watch::channel(Arc::new(Contexts::load(&config).unwrap())).1;
        let lookup = move |_: &str| Ok(addresses.iter().map(|a| a.parse::<IpAddr>().unwrap()).collect());
        let resolver = Resolver::new(tokio::runtime::Handle::current(), Arc::new(lookup));
        (Reach::new(resolver, contexts, watch::channel(Arc::new(config.clone())).1), config)
    }

    #[tokio::test]
    async fn an_address_that_is_dead_is_passed_over() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let db = |port| Endpoint { host: "db".to_owned(), port };
        // Nobody listens there; and an address that no packet may be sent to.
        let (reach, config) = self::reach(&["127.0.0.2", "255.255.255.255", "127.0.0.1"]);
        let stream = reach.dial(&db(port), &config, config.connect_timeout).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), listener.local_addr().unwrap());
        // It is the first to be tried the next time.
        let other = TcpListener::bind(("127.0.0.2", port)).await.unwrap();
        let stream = reach.dial(&db(port), &config, config.connect_timeout).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), listener.local_addr().unwrap());
        drop(other);
        drop(listener);
        assert!(reach.dial(&db(port), &config, config.connect_timeout).await.is_err());
    }

    #[tokio::test]
    async fn the_kernel_is_told_when_to_give_a_silent_server_up() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = Endpoint { host: "127.0.0.1".to_owned(), port: listener.local_addr().unwrap().port() };
        let (reach, mut config) = self::reach(&[]);
        config.tcp_user_timeout = Duration::from_secs(7);
        let stream = reach.dial(&endpoint, &config, config.connect_timeout).await.unwrap();
        let socket = SockRef::from(&stream);
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(Duration::from_secs(7)));
        assert!(socket.keepalive().unwrap() && stream.nodelay().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_secs(7));
        assert_eq!(socket.tcp_keepalive_interval().unwrap(), PROBE_INTERVAL);
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), PROBES);
    }
}
