//! The newest that clients have logged in with, and that the primary takes. A session outlives a change of its password, and a
//! server connection that is made for it later needs the new one. Locked when a client comes or leaves, and when a connection is
//! made.

use crate::auth::credentials::Credentials;
use crate::pool::Identity;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// What the clients of the process have logged in with, kept no longer than they are there.
#[derive(Debug, Default)]
pub struct Keyring(Mutex<BTreeMap<Whose, Newest>>);

/// Of another kind they may be of another origin, and worth less.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Whose {
    database: String,
    user: String,
    kind: u8,
}

#[derive(Debug)]
struct Newest {
    credentials: Arc<Credentials>,
    clients: usize,
}

impl Whose {
    fn new(identity: &Identity, credentials: &Credentials) -> Self {
        let kind = match credentials {
            Credentials::Nothing => 0,
            Credentials::Keys(_) => 1,
            Credentials::Md5(_) => 2,
            Credentials::Password(_) => 3,
        };
        Self { database: identity.database.clone(), user: identity.user.clone(), kind }
    }
}

impl Keyring {
    /// One more client, whose login has just succeeded.
    pub fn enter(&self, identity: &Identity, credentials: &Arc<Credentials>) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || Newest { credentials: credentials.clone(), clients: 0 };
        let newest = all.entry(Whose::new(identity, credentials)).or_insert_with(new);
        newest.clients += 1;
        if newest.credentials != *credentials {
            newest.credentials = credentials.clone();
        }
    }

    /// One less, who had logged in with those.
    pub fn leave(&self, identity: &Identity, credentials: &Credentials) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let whose = Whose::new(identity, credentials);
        if let Some(newest) = all.get_mut(&whose) {
            newest.clients -= 1;
            if newest.clients == 0 {
                all.remove(&whose);
            }
        }
    }

    /// A server has refused the newest and takes these, of a client who is there.
    pub fn restore(&self, identity: &Identity, refused: &Credentials, right: &Arc<Credentials>) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Somebody may have come meanwhile.
        if let Some(newest) = all.get_mut(&Whose::new(identity, right)).filter(|n| *n.credentials == *refused) {
            newest.credentials = right.clone();
        }
    }

    /// What to log in to a server with for a client who had logged in with those.
    pub fn newest(&self, identity: &Identity, credentials: &Credentials) -> Option<Arc<Credentials>> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(&Whose::new(identity, credentials)).map(|newest| newest.credentials.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cluster::secret::Secret;

    #[test]
    fn the_newest_holds_for_all_who_are_there_and_is_kept_no_longer() {
        let identity = |parameter: &str| Identity {
            database: "app".to_owned(),
            dbname: "app".to_owned(),
            user: "app".to_owned(),
            parameters: vec![(parameter.to_owned(), "1".to_owned())],
        };
        let (one, other) = (identity("a"), identity("b"));
        let password = |word: &str| Arc::new(Credentials::Password(Secret::new(word)));
        let (old, new, nothing) = (password("old"), password("new"), Arc::new(Credentials::Nothing));
        let keyring = Keyring::default();
        keyring.enter(&one, &old);
        assert_eq!(keyring.newest(&one, &old), Some(old.clone()));
        keyring.enter(&other, &new);
        keyring.enter(&one, &nothing);
        assert_eq!(keyring.newest(&one, &old), Some(new.clone()), "without a password is not with a newer one");
        keyring.restore(&one, &nothing, &old);
        assert_eq!(keyring.newest(&one, &old), Some(new.clone()), "it is not what was refused");
        keyring.restore(&one, &new, &old);
        assert_eq!(keyring.newest(&other, &new), Some(old.clone()), "who came last did not know the newest");
        keyring.restore(&other, &old, &new);
        keyring.leave(&other, &new);
        assert_eq!(keyring.newest(&one, &old), Some(new), "it was right when it was given");
        keyring.leave(&one, &old);
        assert_eq!(keyring.newest(&one, &old), None);
        keyring.leave(&one, &nothing);
        assert!(keyring.0.lock().unwrap().is_empty());
    }
}
