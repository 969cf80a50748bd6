//! Certificates, keys and authorities that change while the proxy runs: read again when the configuration or a file
//! changes. What cannot be used is refused whole, and what was in force stays.

use crate::config::Config;
use crate::config::tls::{ClientTls, ServerTls};
use crate::tls::{Contexts, LoadError};
use prometheus::{GaugeVec, IntCounterVec, Opts, Registry};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::watch;

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(2);

/// What TLS counts.
#[derive(Clone, Debug)]
pub struct Metrics {
    reloads: IntCounterVec,
    remaining: GaugeVec,
}

impl Metrics {
    /// Create and register.
    ///
    /// # Errors
    /// A metric of that name is registered already.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let reloads = Opts::new("pgtenure_proxy_tls_reloads_total", "Readings of changed TLS files, by result");
        let remaining =
            Opts::new("pgtenure_proxy_tls_certificate_remaining_seconds", "Time until our certificate ends, by side");
        let metrics = Self {
            reloads: IntCounterVec::new(reloads, &["result"])?,
            remaining: GaugeVec::new(remaining, &["side"])?,
        };
        registry.register(Box::new(metrics.reloads.clone()))?;
        registry.register(Box::new(metrics.remaining.clone()))?;
        Ok(metrics)
    }

    /// A side without certificate is absent.
    fn show(&self, contexts: &Contexts) {
        // A clock before 1970 is wrong by more than this gauge can tell.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        self.remaining.reset();
        let ends =
            [("client", contexts.acceptor.as_ref().map(|a| a.not_after)), ("server", contexts.connector.not_after)];
        for (side, end) in ends {
            if let Some(end) = end {
                self.remaining.with_label_values(&[side]).set(end as f64 - now);
            }
        }
    }
}

/// A file's device, inode, size and time of change.
type Stamp = (u64, u64, u64, i64, i64);

/// What was last read.
#[derive(PartialEq)]
struct Seen {
    tls: ClientTls,
    server_tls: ServerTls,
    files: Vec<Option<Stamp>>,
}

impl Seen {
    fn look(config: &Config) -> Self {
        let (tls, server_tls) = (config.tls.clone(), config.server_tls.clone());
        let mut files = Vec::new();
        let mut stamp = |path: &Path| {
            let stamp = |m: std::fs::Metadata| (m.dev(), m.ino(), m.size(), m.mtime(), m.mtime_nsec());
            files.push(std::fs::metadata(path).ok().map(stamp));
        };
        if let ClientTls::Enabled { identity, client_ca, .. } = &tls {
            [Some(&identity.cert), Some(&identity.key), client_ca.as_ref()]
                .into_iter()
                .flatten()
                .for_each(|p| stamp(p));
        }
        let identity = server_tls.identity.as_ref();
        let paths = [identity.map(|i| &i.cert), identity.map(|i| &i.key), server_tls.ca.as_ref()];
        paths.into_iter().flatten().for_each(|p| stamp(p));
        Self { tls, server_tls, files }
    }
}

/// Contexts that follow the configuration and its files.
pub struct Live {
    seen: Seen,
    contexts: watch::Sender<Arc<Contexts>>,
    metrics: Metrics,
}

impl Live {
    /// Read the files for the first time.
    ///
    /// # Errors
    /// See [`LoadError`].
    pub fn load(config: &Config, metrics: Metrics) -> Result<Self, LoadError> {
        // Looked at first: what changes while it is read is read again.
        let seen = Seen::look(config);
        let contexts = Contexts::load(config)?;
        metrics.show(&contexts);
        Ok(Self { seen, contexts: watch::channel(Arc::new(contexts)).0, metrics })
    }

    /// Where the newest contexts are.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Contexts>> {
        self.contexts.subscribe()
    }

    /// Follow the configuration and the files until `stop`.
    pub async fn follow(mut self, mut config: watch::Receiver<Arc<Config>>, mut stop: watch::Receiver<bool>) {
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                Ok(()) = config.changed() => {}
                _ = look.tick() => {}
                _ = stop.wait_for(|stop| *stop) => return,
            }
            let config = config.borrow_and_update().clone();
            // Files may be slow: the thread that accepts does not wait for them.
            let read = tokio::task::spawn_blocking(move || {
                self.read(&config);
                self
            });
            match read.await {
                Ok(live) => self = live,
                Err(error) => {
                    tracing::error!(%error, "tls files are not followed any more");
                    return;
                }
            }
        }
    }

    fn read(&mut self, config: &Config) {
        let seen = Seen::look(config);
        if seen != self.seen {
            self.seen = seen;
            let result = match Contexts::load(config) {
                Ok(contexts) => {
                    tracing::info!("tls files read again");
                    self.contexts.send_replace(Arc::new(contexts));
                    "ok"
                }
                Err(error) => {
                    tracing::warn!(error = %chain(&error), "changed tls files cannot be used, the old ones stay");
                    "failed"
                }
            };
            self.metrics.reloads.with_label_values(&[result]).inc();
        }
        self.metrics.show(&self.contexts.borrow());
    }
}

/// An error with its causes.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |e| e.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
