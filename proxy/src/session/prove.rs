//! A client proves who it is, in the way the rules demand.

use crate::auth::credentials::Credentials;
use crate::auth::md5::Md5Hash;
use crate::auth::query::LookupError;
use crate::auth::rules::{Attempt, Certificate, Demand, Method, Way};
use crate::auth::scram::{Accepted, ScramError, ServerSide, Verifier};
use crate::auth::userlist::Stored;
use crate::config::console::is_console;
use crate::net::Origin;
use crate::pool::policy::dbname;
use crate::session::login::{Farewell, Greeter};
use crate::wire::error_response::ClientError;
use crate::wire::startup::Startup;
use crate::wire::{backend, frontend};
use cluster::secret::Secret;

/// The database to look users up in who ask for none that a server has: for the console, or to replicate all of them.
const EVERYWHERE: &str = "postgres";

impl Greeter<'_> {
    /// Find the rule for this client and let it prove itself; what it leaves for the servers.
    pub(super) async fn prove(&mut self, startup: &Startup) -> Result<Credentials, Farewell> {
        let (user, database) = (startup.user.as_str(), startup.database.as_str());
        let way = self.way();
        let attempt = Attempt { way, database, user, replication: startup.is_physical() };
        let certificate = self.stream.tls().and_then(|peer| peer.certificate.as_ref());
        let of_user = certificate.is_some_and(|c| c.common_name.as_deref() == Some(user));
        let has_certificate = certificate.is_some();
        let refusal =
            |by_rule| ClientError::NotAdmitted { way, user: user.to_owned(), database: database.to_owned(), by_rule };
        let demand = self.w.config().auth.rules.demand(&attempt);
        let Demand { method, certificate } = demand.ok_or_else(|| refusal(false))?;
        match certificate {
            Certificate::None => {}
            Certificate::Valid if has_certificate => {}
            Certificate::OfUser if of_user => {}
            Certificate::Valid | Certificate::OfUser => return Err(failed(Method::Cert, user)),
        }
        let left = match method {
            Method::Reject => return Err(refusal(true).into()),
            Method::Trust => None,
            Method::Cert if of_user => None,
            Method::Peer if Box::pin(self.is_peer(user)).await => None,
            Method::Cert | Method::Peer => return Err(failed(method, user)),
            Method::Scram => Some(Box::pin(self.scram(startup, None)).await?),
            Method::Md5 => Some(Box::pin(self.md5(startup)).await?),
            Method::Password => Some(Box::pin(self.password(startup)).await?),
        };
        backend::write_authentication_ok(&mut self.out);
        let users = &self.w.shared.users;
        Ok(match left {
            Some(left) => users.for_servers(user).unwrap_or(left),
            None => users.leaves(user),
        })
    }

    fn way(&self) -> Way {
        match self.origin {
            Origin::Local { .. } => Way::Local,
            Origin::Tcp(addr) => Way::Host { address: addr.ip(), tls: self.stream.tls().is_some() },
        }
    }

    /// What the client must know: from the userlist, or looked up.
    async fn stored(&self, startup: &Startup) -> Result<Option<Stored>, Farewell> {
        let shared = &self.w.shared;
        if let Some(stored) = shared.users.stored(&startup.user) {
            return Ok(Some(stored));
        }
        let config = self.w.config();
        // Servers know the database by its own name, and what is none is in all of them.
        let database = if is_console(&startup.database) || startup.is_physical() {
            EVERYWHERE
        } else {
            dbname(&config.pools, &startup.database)
        };
        let address = match self.origin {
            Origin::Tcp(addr) => Some(addr.ip()),
            Origin::Local { .. } => None,
        };
        let mut found = shared.lookups.stored(&config, (database, &startup.user), address).await;
        // Users are the cluster's: who has proven who they are hear from a server what is wrong with the database.
        let of_client = config.auth.query.as_ref().is_some_and(|query| query.database.is_none());
        if of_client && database != EVERYWHERE && matches!(found, Err(LookupError::Database(_))) {
            found = shared.lookups.stored(&config, (EVERYWHERE, &startup.user), address).await;
        }
        found.map_err(|error| ClientError::UserLookup { why: error.to_string() }.into())
    }

    fn scram_error(&self, user: &str, error: ScramError) -> Farewell {
        match error {
            ScramError::WrongPassword => self.bad_password(user),
            ScramError::Downgrade | ScramError::OtherChannel => {
                ClientError::ChannelBinding { what: error.to_string() }.into()
            }
            other => violation(&other.to_string()).into(),
        }
    }

    /// The password was wrong, for what was known of it.
    fn bad_password(&self, user: &str) -> Farewell {
        self.w.shared.lookups.doubt(user);
        ClientError::BadPassword { user: user.to_owned() }.into()
    }

    async fn scram(&mut self, startup: &Startup, stored: Option<Stored>) -> Result<Credentials, Farewell> {
        let user = startup.user.as_str();
        let stored = match stored {
            Some(stored) => Some(stored),
            None => self.stored(startup).await?,
        };
        let shared = &self.w.shared;
        let (verifier, password) = match stored {
            Some(Stored::Scram(verifier)) => (verifier, None),
            Some(Stored::Plain(password)) => (shared.hashing.verifier(user, &password).await, Some(password)),
            // Runs to its end like any other and fails there: nobody learns which users exist.
            Some(Stored::Md5(_) | Stored::Nothing) | None => (Verifier::mock(user, &shared.mock_secret), None),
        };
        let endpoint = self.stream.tls().and_then(|peer| peer.server_end_point.as_deref()).map(<[u8]>::to_vec);
        let mut exchange = ServerSide::new(verifier, rand::random()).over_tls(endpoint);
        backend::write_authentication_sasl(&mut self.out, exchange.mechanisms());
        let first = self.message("SASL response").await?;
        let (mechanism, data) =
            frontend::sasl_initial(&first).ok_or_else(|| violation("malformed SASLInitialResponse message"))?;
        let answer = exchange.first(mechanism, data).map_err(|error| self.scram_error(user, error))?;
        backend::write_sasl_continue(&mut self.out, &answer);
        let proof = self.message("SASL response").await?;
        let Accepted { server_final, keys } =
            exchange.finish(&proof[5..]).map_err(|error| self.scram_error(user, error))?;
        backend::write_sasl_final(&mut self.out, &server_final);
        // The password is worth more: it also fits a server whose verifier has another salt.
        Ok(password.map_or(Credentials::Keys(keys), Credentials::Password))
    }

    /// As in PostgreSQL: users whose secret is a verifier are asked for SCRAM.
    async fn md5(&mut self, startup: &Startup) -> Result<Credentials, Farewell> {
        let user = startup.user.as_str();
        let (hash, credentials) = match self.stored(startup).await? {
            Some(scram @ Stored::Scram(_)) => return self.scram(startup, Some(scram)).await,
            Some(Stored::Md5(hash)) => (Some(hash.clone()), Credentials::Md5(hash)),
            Some(Stored::Plain(password)) => {
                (Some(Md5Hash::of(user, password.expose())), Credentials::Password(password))
            }
            Some(Stored::Nothing) | None => (None, Credentials::Nothing),
        };
        let salt = rand::random();
        backend::write_authentication_md5(&mut self.out, salt);
        let answer = self.message("password response").await?;
        let answer = frontend::password(&answer).ok_or_else(|| violation("invalid password packet size"))?;
        let right = hash.is_some_and(|hash| same(hash.answer(salt).as_bytes(), answer));
        if right { Ok(credentials) } else { Err(self.bad_password(user)) }
    }

    async fn password(&mut self, startup: &Startup) -> Result<Credentials, Farewell> {
        let user = startup.user.as_str();
        backend::write_authentication_cleartext(&mut self.out);
        let answer = self.password_message().await?;
        let answer = frontend::password(&answer).ok_or_else(|| violation("invalid password packet size"))?;
        if answer.is_empty() {
            return Err(violation("empty password returned by client").into());
        }
        let answer = std::str::from_utf8(answer).map_err(|_| self.bad_password(user))?;
        let given = Secret::new(answer);
        let shared = &self.w.shared;
        let right = match self.stored(startup).await? {
            Some(Stored::Plain(password)) => same(password.expose().as_bytes(), answer.as_bytes()),
            Some(Stored::Md5(hash)) => hash == Md5Hash::of(user, answer),
            Some(Stored::Scram(verifier)) => shared.hashing.matches(verifier, given.clone()).await.is_some(),
            Some(Stored::Nothing) | None => {
                // As much work as for a user that exists.
                let mock = Verifier::mock(user, &shared.mock_secret);
                shared.hashing.matches(mock, given.clone()).await;
                false
            }
        };
        if right { Ok(Credentials::Password(given)) } else { Err(self.bad_password(user)) }
    }

    /// Has the process at the other end of the Unix-domain socket a user of that name?
    async fn is_peer(&self, user: &str) -> bool {
        let Origin::Local { uid } = self.origin else { return false };
        // The system's user database may be a network away.
        let name = tokio::task::spawn_blocking(move || user_name(uid)).await;
        name.ok().flatten().as_deref() == Some(user)
    }
}

fn failed(method: Method, user: &str) -> Farewell {
    ClientError::AuthenticationFailed { method, user: user.to_owned() }.into()
}

fn violation(what: &str) -> ClientError {
    ClientError::ProtocolViolation { what: what.to_owned() }
}

/// Equal? Takes the same time whatever differs.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && std::hint::black_box(a.iter().zip(b).fold(0, |seen, (x, y)| seen | (x ^ y))) == 0
}

/// The name of a user of the operating system.
fn user_name(uid: u32) -> Option<String> {
    let mut record = std::mem::MaybeUninit::<libc::passwd>::uninit();
    let mut buffer = vec![0; 16 * 1024];
    let mut found = std::ptr::null_mut();
    // SAFETY: all pointers are to live memory of the sizes given, and are only used while it lives.
    let code = unsafe { libc::getpwuid_r(uid, record.as_mut_ptr(), buffer.as_mut_ptr(), buffer.len(), &raw mut found) };
    if code != 0 || found.is_null() {
        return None;
    }
    // SAFETY: success and a result mean that the record is filled and its name is a C string inside `buffer`.
    let name = unsafe { std::ffi::CStr::from_ptr((*found).pw_name) };
    name.to_str().ok().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_operating_systems_users_have_names() {
        assert_eq!(user_name(0).as_deref(), Some("root"));
        assert_eq!(user_name(u32::MAX - 7), None);
        assert!(same(b"ab", b"ab") && !same(b"ab", b"ac") && !same(b"ab", b"abc"));
    }
}
