//! The users as the files have them now, read again when they change.

use crate::auth::credentials::Credentials;
use crate::auth::userlist::{LoadUserlistError, Stored, Userlist};
use crate::config::Config;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::SystemTime;

/// The files' contents.
#[derive(Debug)]
pub struct Users {
    files: RwLock<Arc<Files>>,
}

/// What was read and is not in force yet.
#[derive(Debug)]
pub struct Read(Files);

#[derive(Debug, Default)]
struct Files {
    clients: Userlist,
    servers: Userlist,
    seen: Stamps,
}

/// When the files were written last, as far as that can be told.
pub type Stamps = [Option<(SystemTime, u64)>; 2];

impl Users {
    /// Read the files. Blocks.
    ///
    /// # Errors
    /// One of them cannot be read or used.
    pub fn load(config: &Config) -> Result<Self, LoadUserlistError> {
        Ok(Self { files: RwLock::new(Arc::new(Files::load(config)?)) })
    }

    /// Read the files again. Blocks. True when what they say has changed.
    ///
    /// # Errors
    /// One of them cannot be read or used; what was read before stays.
    pub fn reload(&self, config: &Config) -> Result<bool, LoadUserlistError> {
        let new = Read(Files::load(config)?);
        let old = self.files();
        let changed = new.0.clients != old.clients || new.0.servers != old.servers;
        self.put(new);
        Ok(changed)
    }

    /// Read the files, and put nothing in force yet. Blocks.
    ///
    /// # Errors
    /// One of them cannot be read or used.
    pub fn read(config: &Config) -> Result<Read, LoadUserlistError> {
        Files::load(config).map(Read)
    }

    /// Put what was read in force.
    pub fn put(&self, read: Read) {
        *self.files.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(read.0);
    }

    /// When the files were written, if that is not when they were read. Blocks.
    pub fn outdated(&self, config: &Config) -> Option<Stamps> {
        let now = stamps(config);
        (now != self.files().seen).then_some(now)
    }

    /// How many users the userlist has.
    pub fn len(&self) -> usize {
        self.files().clients.len()
    }

    /// Has it none?
    pub fn is_empty(&self) -> bool {
        self.files().clients.is_empty()
    }

    /// What a client's proof is checked against.
    pub fn stored(&self, user: &str) -> Option<Stored> {
        self.files().clients.get(user).cloned()
    }

    /// What a client whose login has left nothing logs in to servers with: as the configuration says, else as the userlist.
    pub fn leaves(&self, user: &str) -> Credentials {
        let files = self.files.read().unwrap_or_else(PoisonError::into_inner);
        let stored = files.servers.get(user).or_else(|| files.clients.get(user));
        stored.map_or(Credentials::Nothing, Stored::credentials)
    }

    /// What we log in to servers with as `user`, when the configuration says it.
    pub fn for_servers(&self, user: &str) -> Option<Credentials> {
        self.files().servers.get(user).map(Stored::credentials)
    }

    fn files(&self) -> Arc<Files> {
        self.files.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Files {
    fn load(config: &Config) -> Result<Self, LoadUserlistError> {
        // Looked at before reading: what is written in between is read once more.
        let seen = stamps(config);
        let clients = Userlist::load(&config.userlist)?;
        let servers = config.auth.server_userlist.as_deref().map_or(Ok(Userlist::default()), Userlist::load)?;
        Ok(Self { clients, servers, seen })
    }
}

fn stamps(config: &Config) -> Stamps {
    let stamp = |path: &Path| {
        let file = std::fs::metadata(path).ok()?;
        Some((file.modified().ok()?, file.len()))
    };
    [stamp(&config.userlist), config.auth.server_userlist.as_deref().and_then(stamp)]
}
