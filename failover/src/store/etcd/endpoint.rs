//! One etcd member, and what this process gets in with: certificate, key, authorities and password.
//!
//! They are in files, which are replaced while the process runs, and what was read of them may be refused from then on. So
//! whenever a request has failed and a file is another than it was, they are read again, in a task of its own: neither the
//! disk nor the member is waited for. What does not get in, or cannot be used, is said once, and what was in force stays.

use super::ConnectError;
use super::classify::{Fate, fate};
use crate::config::etcd::{Config, Login, Tls};
use cluster::secret::Secret;
use etcd_client::{Certificate, Client, ConnectOptions, Identity, TlsOptions};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::OnceCell;
use tracing::{info, warn};

/// HTTP/2 pings find a dead connection in the sum of these; pings only flow while nothing else arrives.
const PING: (Duration, Duration) = (Duration::from_secs(1), Duration::from_millis(500));

/// Each file's device, inode, size and time of change; `None`: it is not there.
type Stamps = Vec<Option<(u64, u64, u64, i64, i64)>>;

/// An endpoint.
pub(super) struct Endpoint {
    pub(super) url: String,
    config: Arc<Config>,
    access: Mutex<Arc<Access>>,
    /// Held while the files are looked at; those of which was said last that they are of no use.
    told: Arc<tokio::sync::Mutex<Option<Stamps>>>,
}

/// What is in force.
struct Access {
    stamps: Stamps,
    options: ConnectOptions,
    client: OnceCell<Client>,
}

impl Access {
    /// Nothing is connected before it is needed.
    fn read(config: &Config) -> Result<Self, ConnectError> {
        // Looked at first: what changes while it is read is read again.
        let stamps = stamps(config);
        Ok(Self { stamps, options: options(config)?, client: OnceCell::new() })
    }

    /// Connected (which means something only when a user logs in) once; the channel below reconnects by itself.
    async fn client(&self, url: &str) -> Result<Client, etcd_client::Error> {
        let connect = || Client::connect([url], Some(self.options.clone()));
        self.client.get_or_try_init(connect).await.cloned()
    }

    /// Does it get in? That etcd answers with a refusal of the question shows that it does.
    async fn gets_in(&self, url: &str) -> Result<(), etcd_client::Error> {
        match self.client(url).await?.status().await {
            Err(error) if fate(&error) != Fate::Refused => Err(error),
            Ok(_) | Err(_) => Ok(()),
        }
    }
}

impl Endpoint {
    /// Every endpoint of `config`.
    ///
    /// # Errors
    /// A file named there cannot be read.
    pub(super) fn all(config: &Arc<Config>) -> Result<Vec<Arc<Self>>, ConnectError> {
        let of = |url: &String| {
            let (config, access) = (Arc::clone(config), Mutex::new(Arc::new(Access::read(config)?)));
            Ok(Arc::new(Self { url: url.clone(), config, access, told: Arc::default() }))
        };
        config.endpoints.iter().map(of).collect()
    }

    /// The same member with connections of its own.
    pub(super) fn apart(&self) -> Arc<Self> {
        let access = self.access();
        let (stamps, options) = (access.stamps.clone(), access.options.clone());
        let access = Mutex::new(Arc::new(Access { stamps, options, client: OnceCell::new() }));
        Arc::new(Self { url: self.url.clone(), config: Arc::clone(&self.config), access, told: Arc::default() })
    }

    fn access(&self) -> Arc<Access> {
        Arc::clone(&self.access.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Who asks it.
    pub(super) async fn client(&self) -> Result<Client, etcd_client::Error> {
        self.access().client(&self.url).await
    }

    /// A request has failed here: look whether the files are what they were.
    pub(super) fn failed(self: &Arc<Self>) {
        if files(&self.config).is_empty() {
            return;
        }
        // One look at a time.
        let Ok(mut told) = Arc::clone(&self.told).try_lock_owned() else { return };
        let endpoint = Arc::clone(self);
        tokio::spawn(async move { endpoint.look(&mut told).await });
    }

    async fn look(&self, told: &mut Option<Stamps>) {
        let (config, old) = (Arc::clone(&self.config), self.access());
        let read = tokio::task::spawn_blocking(move || {
            let now = stamps(&config);
            (now != old.stamps).then(|| (now, Access::read(&config)))
        });
        let Ok(Some((stamps, read))) = read.await else { return };
        let failed = match read {
            Err(error) => chain(&error),
            Ok(access) => match tokio::time::timeout(self.config.request_timeout, access.gets_in(&self.url)).await {
                Ok(Ok(())) => {
                    info!(endpoint = self.url, "etcd's certificates and password read again");
                    *self.access.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(access);
                    return;
                }
                Ok(Err(error)) => chain(&error),
                Err(_) => "no answer in time".to_owned(),
            },
        };
        if told.as_ref() != Some(&stamps) {
            warn!(
                endpoint = self.url,
                error = failed,
                "etcd's changed certificates or password do not get in, the old ones stay"
            );
            *told = Some(stamps);
        }
    }
}

/// An error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |e| e.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

fn files(config: &Config) -> Vec<&Path> {
    let (tls, login) = (&config.tls, config.login.as_ref().filter(|login| login.password.is_none()));
    let identity = tls.identity.iter().flat_map(|(cert, key)| [cert, key]);
    let password = login.and_then(|login| login.password_file.as_ref());
    tls.ca_file.iter().chain(identity).chain(password).map(PathBuf::as_path).collect()
}

fn stamps(config: &Config) -> Stamps {
    let stamp = |m: std::fs::Metadata| (m.dev(), m.ino(), m.size(), m.mtime(), m.mtime_nsec());
    files(config).into_iter().map(|file| std::fs::metadata(file).ok().map(stamp)).collect()
}

fn options(config: &Config) -> Result<ConnectOptions, ConnectError> {
    let mut options = ConnectOptions::new()
        .with_connect_timeout(config.connect_timeout)
        .with_keep_alive(PING.0, PING.1)
        .with_keep_alive_while_idle(true)
        .with_require_leader(true);
    if let Some(login) = &config.login {
        options = options.with_user(&login.username, password(login)?).with_auto_token_refresh(true);
    }
    if let Some(tls) = tls(&config.tls)? {
        options = options.with_tls(tls);
    }
    Ok(options)
}

fn password(login: &Login) -> Result<String, ConnectError> {
    if let Some(password) = &login.password {
        return Ok(password.expose().to_owned());
    }
    let path = login.password_file.clone().ok_or_else(|| ConnectError::NoPassword(login.username.clone()))?;
    let text = read_file("etcd.password_file", path)?;
    Ok(Secret::first_line(&String::from_utf8_lossy(&text)).expose().to_owned())
}

fn tls(files: &Tls) -> Result<Option<TlsOptions>, ConnectError> {
    if files.ca_file.is_none() && files.identity.is_none() {
        return Ok(None);
    }
    let mut tls = TlsOptions::new();
    if let Some(ca) = &files.ca_file {
        tls = tls.ca_certificate(Certificate::from_pem(read_file("etcd.ca_file", ca.clone())?));
    }
    if let Some((cert, key)) = &files.identity {
        let cert = read_file("etcd.cert_file", cert.clone())?;
        tls = tls.identity(Identity::from_pem(cert, read_file("etcd.key_file", key.clone())?));
    }
    Ok(Some(tls))
}

fn read_file(key: &'static str, path: PathBuf) -> Result<Vec<u8>, ConnectError> {
    std::fs::read(&path).map_err(|source| ConnectError::File { key, path, source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::etcd::{Raw, check};

    #[tokio::test]
    async fn what_cannot_be_used_leaves_what_was_in_force_and_is_said_once() {
        let dir = tempfile::tempdir().unwrap();
        let [cert, key] = ["cert.pem", "key.pem"].map(|name| dir.path().join(name));
        let write = |text: &str| [&cert, &key].into_iter().for_each(|file| std::fs::write(file, text).unwrap());
        write("what was there");
        let nobody = vec!["https://127.0.0.1:1".to_owned()];
        let (cert_file, key_file) = (Some(cert.clone()), Some(key.clone()));
        let raw = Raw { endpoints: nobody, cert_file, key_file, ..Raw::default() };
        let endpoint = Endpoint::all(&Arc::new(check(raw, None).unwrap())).unwrap().remove(0);
        let (before, mut told) = (endpoint.access(), None);
        endpoint.look(&mut told).await;
        assert_eq!(told, None, "nothing has changed");
        write("no certificate, nor a key");
        endpoint.look(&mut told).await;
        let garbled = told.clone().expect("it is said");
        std::fs::remove_file(&key).unwrap();
        endpoint.look(&mut told).await;
        assert_ne!(told, Some(garbled), "it is said again of other files");
        assert!(Arc::ptr_eq(&before, &endpoint.access()));
    }
}
