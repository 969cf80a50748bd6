//! Where a cancel request goes: to a session of this process, on to the process that gave its key out, or nowhere.

use crate::auth::cancel_keys::{Keyring, Owner, Secret};
use crate::config::Config;
use crate::control::CancelKey;
use crate::net::Origin;
use crate::wire::startup::long_cancel_request;
use crate::worker::Worker;
use cluster::node::Endpoint;
use cluster::{Clock, Instant};
use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::{Mutex, PoisonError, RwLock};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Forged requests that one address may send in a [`WINDOW`]; then all of its requests are dropped for the rest of it.
const MAX_FORGED: u32 = 20;
/// The same while the process before this one ends its sessions: its keys cannot be told from forged ones. A guess hits one
/// of the shortest keys in a year or so at this rate.
const MAX_UNKNOWN: u32 = 1000;
const WINDOW: Duration = Duration::from_secs(10);
/// Addresses remembered; beyond that all are forgotten.
const MAX_ADDRESSES: usize = 4096;
/// The shortest secret that is one.
const MIN_SECRET: usize = 16;
/// Requests that are passed on at the same time.
const MAX_PASSED_ON: usize = 256;

/// What all workers need for cancel requests.
#[derive(Debug)]
pub struct Cancelling {
    ring: RwLock<(Keyring, Vec<u8>)>,
    /// Those while there was a process before this one are not counted with the others: they may be none.
    forged: Mutex<HashMap<(IpAddr, bool), (Instant, u32)>>,
    passing: tokio::sync::Semaphore,
}

impl Cancelling {
    /// With the secret of `proxy.cancel.secret_file`, or one that nobody shares. Blocks.
    ///
    /// # Errors
    /// The file cannot be read, or is too short.
    pub fn new(config: &Config) -> io::Result<Self> {
        let secret = match read(config)? {
            Some(secret) => secret,
            None => rand::random::<[u8; 32]>().to_vec(),
        };
        let passing = tokio::sync::Semaphore::new(MAX_PASSED_ON);
        Ok(Self { ring: RwLock::new((Keyring::new(&secret), secret)), forged: Mutex::default(), passing })
    }

    /// Put a secret in force that was [`read`] again. Keys that were given out under the one before still count.
    pub fn rotate(&self, secret: Vec<u8>) {
        let mut ring = self.ring.write().unwrap_or_else(PoisonError::into_inner);
        if ring.1 != secret {
            *ring = (ring.0.rotated(&secret), secret);
        }
    }

    /// A secret for a session of this process; `long` for clients of protocol 3.2.
    pub fn secret(&self, id: u8, pid: u32, long: bool) -> Secret {
        self.ring.read().unwrap_or_else(PoisonError::into_inner).0.secret(id, pid, rand::random(), long)
    }

    fn ring(&self) -> Keyring {
        self.ring.read().unwrap_or_else(PoisonError::into_inner).0.clone()
    }

    /// Count a forged request of this address, while there is a process before this one or not; or only ask. True when it has
    /// sent as many as are heard.
    fn too_many(&self, address: IpAddr, has_elder: bool, one_more: bool) -> bool {
        let (most, sender) = (if has_elder { MAX_UNKNOWN } else { MAX_FORGED }, (address, has_elder));
        let now = Clock.now();
        let mut forged = self.forged.lock().unwrap_or_else(PoisonError::into_inner);
        if one_more && forged.len() >= MAX_ADDRESSES {
            forged.retain(|_, (since, _)| now.since(*since) < WINDOW);
            if forged.len() >= MAX_ADDRESSES {
                forged.clear();
            }
        }
        let recent = forged.get(&sender).copied().filter(|(since, _)| now.since(*since) < WINDOW);
        let (since, count) = recent.unwrap_or((now, 0));
        if one_more {
            forged.insert(sender, (since, count + 1));
        }
        count >= most
    }
}

/// The secret of `proxy.cancel.secret_file`, if there is one. Blocks.
///
/// # Errors
/// The file cannot be read, or is too short.
pub fn read(config: &Config) -> io::Result<Option<Vec<u8>>> {
    let Some(path) = &config.cancel.secret_file else { return Ok(None) };
    let named = |error: io::Error| io::Error::new(error.kind(), format!("proxy.cancel.secret_file {path:?}: {error}"));
    let mut secret = std::fs::read(path).map_err(named)?;
    while secret.last().is_some_and(u8::is_ascii_whitespace) {
        secret.pop();
    }
    if secret.len() < MIN_SECRET {
        return Err(named(io::Error::other("the secret must have at least 16 bytes")));
    }
    Ok(Some(secret))
}

/// A request has come from `origin`.
pub(super) async fn dispatch(w: &Rc<Worker>, origin: Origin, pid: u32, secret: &[u8]) {
    let (config, cancelling) = (w.config(), &w.shared.cancelling);
    let address = match origin {
        Origin::Tcp(addr) => Some(addr.ip()),
        Origin::Local { .. } => None,
    };
    let has_elder = w.shared.has_elder();
    if address.is_some_and(|a| cancelling.too_many(a, has_elder, false)) {
        w.counts.cancel("ignored");
        return;
    }
    let ring = cancelling.ring();
    let ids = std::iter::once(config.cancel.id).chain(config.cancel.peers.iter().map(|(id, _)| *id));
    let here = async |secret: &[u8]| {
        let Some(secret) = Secret::new(secret) else { return };
        // Its connection ends when it has been acted on, or when that takes too long: the client waits for that.
        w.shared.cancel(CancelKey { pid, secret }, config.connect_timeout).await;
    };
    let owner = ring.owner(ids, pid, secret);
    // Each waits for its process: what comes beyond that many is dropped.
    let turn = match &owner {
        Owner::Process(id) if *id != config.cancel.id => Some(cancelling.passing.try_acquire()),
        Owner::Process(_) | Owner::PassedOn | Owner::Nobody => None,
    };
    w.counts.cancel(match (&turn, &owner) {
        (Some(Ok(_)), _) => "passed_on",
        (Some(Err(_)), _) => "dropped",
        (None, Owner::Process(_) | Owner::PassedOn) => "ours",
        (None, Owner::Nobody) => "unknown",
    });
    match owner {
        Owner::Process(id) if id == config.cancel.id => here(secret).await,
        Owner::Process(id) => {
            let Some(Ok(_turn)) = turn else { return };
            let Some((_, peer)) = config.cancel.peers.iter().find(|(peer, _)| *peer == id) else { return };
            pass_on(w, peer, pid, &ring.stamp(pid, secret)).await;
        }
        Owner::PassedOn => here(ring.stamped(pid, secret).unwrap_or_default()).await,
        Owner::Nobody => {
            if let Some(address) = address {
                cancelling.too_many(address, has_elder, true);
            }
            // The process before this one, which ends its last sessions, may have had a secret of its own.
            if has_elder {
                here(secret).await;
            }
        }
    }
}

/// Hand a request to the process whose it is, once.
async fn pass_on(w: &Worker, peer: &Endpoint, pid: u32, secret: &[u8]) {
    let config = w.config();
    let limit = config.connect_timeout;
    let talk = async {
        let mut stream = w.shared.reach.dial(peer, &config, limit).await?;
        stream.write_all(&long_cancel_request(pid, secret)).await?;
        let mut byte = [0];
        stream.read(&mut byte).await.map(|_| ())
    };
    match tokio::time::timeout(limit, talk).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%peer, %error, "cancel request not passed on"),
        Err(_) => tracing::warn!(%peer, ?limit, "cancel request not taken in time"),
    }
}
