//! SCRAM-SHA-256 without IO, both sides: clients log in to us with a verifier, we log in to servers with what that
//! login gave us.
//!
//! A client's proof reveals its ClientKey to whoever holds the verifier. With that key the same exchange can be
//! passed at a server that has the same verifier, so the proxy needs no password, as PgBouncer does it. Nonces come
//! from the caller: nothing here is random.
//! Source: RFC 5802, RFC 7677; PostgreSQL documentation, "SASL Authentication"; src/common/scram-common.c.

use crate::auth::credentials::Credentials;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
pub use client_side::{Channel, ClientSide, Salted, Work};
use pgwire::api::auth::sasl::scram::gen_salted_password;
use ring::{digest, hmac};
pub use server_side::{Accepted, ServerSide};
use std::fmt;
use std::str::FromStr;

mod client_side;
mod server_side;

/// The mechanism's name as PostgreSQL spells it.
pub const MECHANISM: &str = "SCRAM-SHA-256";
/// The mechanism bound to a TLS channel by the hash of the server's certificate.
pub const MECHANISM_PLUS: &str = "SCRAM-SHA-256-PLUS";
/// The only kind of channel binding that PostgreSQL knows (RFC 5929).
const BINDING: &str = "p=tls-server-end-point";
/// Bytes of randomness in a nonce (SCRAM_RAW_NONCE_LEN).
pub const NONCE_LEN: usize = 18;
/// PostgreSQL's default number of iterations.
pub const ITERATIONS: u32 = 4096;
/// Longest SCRAM message read; PostgreSQL's own are below 300 bytes.
const MAX_MESSAGE: usize = 2048;
/// Most iterations computed for a server that asks for them: more would hold up a worker for seconds.
const MAX_ITERATIONS: u32 = 1_000_000;

type Key = [u8; digest::SHA256_OUTPUT_LEN];

/// An exchange that failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScramError {
    /// The peer's message is not SCRAM, or not in its turn.
    #[error("malformed SCRAM message: {0}")]
    Malformed(&'static str),
    /// The client speaks of a mechanism that was not offered.
    #[error("client selected an invalid SASL authentication mechanism")]
    Mechanism,
    /// The client could bind the channel and believes that we cannot: somebody between us may have hidden our offer.
    #[error("SCRAM channel binding negotiation error")]
    Downgrade,
    /// The client is bound to another channel than ours.
    #[error("SCRAM channel binding check failed")]
    OtherChannel,
    /// A password is needed and there are only keys, or nothing.
    #[error("the server asks for a proof that needs the password of user {user:?}")]
    NoPassword {
        /// The user.
        user: String,
    },
    /// The client does not know the password, or there is no such user.
    #[error("wrong password")]
    WrongPassword,
    /// The server's verifier is not the one the client logged in with.
    #[error("the userlist's verifier for user {user:?} differs from the server's: {what}")]
    OtherVerifier {
        /// The user.
        user: String,
        /// What differs: salt or iterations, with both values.
        what: String,
    },
    /// The server asks for more work than is reasonable.
    #[error("the server asks for {asked} iterations, {MAX_ITERATIONS} are the limit")]
    TooManyIterations {
        /// How many.
        asked: u32,
    },
    /// The server did not accept the proof.
    #[error("the server refused the login: {0}")]
    Refused(String),
    /// The server could not prove that it knows the verifier.
    #[error("the server's signature is wrong: it does not know this user's verifier")]
    WrongServerSignature,
}

/// What a server stores instead of a password: `SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>`.
#[derive(Clone, PartialEq, Eq)]
pub struct Verifier {
    iterations: u32,
    salt: Vec<u8>,
    stored_key: Key,
    server_key: Key,
}

/// A text that is not a verifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a SCRAM-SHA-256 verifier: {0}")]
pub struct BadVerifier(&'static str);

impl Verifier {
    /// The verifier of a password. `iterations` of 0 is taken as 1.
    pub fn from_password(password: &str, salt: [u8; 16], iterations: u32) -> Self {
        let salted = salted_password(password, &salt, iterations);
        Self {
            iterations: iterations.max(1),
            salt: salt.to_vec(),
            stored_key: sha256(&mac(&salted, &[b"Client Key"])),
            server_key: mac(&salted, &[b"Server Key"]),
        }
    }

    /// Is it this password's? Thousands of hashes: not to be done where others wait.
    pub fn matches(&self, password: &str) -> Option<LoginKeys> {
        let salted = salted_password(password, &self.salt, self.iterations);
        let client_key = mac(&salted, &[b"Client Key"]);
        same(&sha256(&client_key), &self.stored_key).ok()?;
        Some(LoginKeys { client_key, verifier: self.clone() })
    }

    /// A verifier for a user that does not exist: the exchange runs as with any other and fails at its end, and asks
    /// for the same salt each time, so that nobody learns which users exist. `secret` belongs to the process.
    pub fn mock(user: &str, secret: &[u8; 32]) -> Self {
        let derive = |what: &[u8]| mac(secret, &[what, user.as_bytes()]);
        Self {
            iterations: ITERATIONS,
            salt: derive(b"salt")[..16].to_vec(),
            stored_key: derive(b"stored"),
            server_key: derive(b"server"),
        }
    }
}

impl FromStr for Verifier {
    type Err = BadVerifier;
    fn from_str(s: &str) -> Result<Self, BadVerifier> {
        let rest = s.strip_prefix("SCRAM-SHA-256$").ok_or(BadVerifier("it does not start with SCRAM-SHA-256$"))?;
        let (head, keys) = rest.split_once('$').ok_or(BadVerifier("no keys behind the salt"))?;
        let (iterations, salt) = head.split_once(':').ok_or(BadVerifier("no salt behind the iterations"))?;
        let (stored, server) = keys.split_once(':').ok_or(BadVerifier("no ServerKey behind the StoredKey"))?;
        let iterations = iterations.parse().ok().filter(|n| (1..=MAX_ITERATIONS).contains(n));
        let salt = BASE64.decode(salt).ok().filter(|s| (1..=1024).contains(&s.len()));
        let key = |text: &str| BASE64.decode(text).ok().and_then(|k| Key::try_from(k).ok());
        Ok(Self {
            iterations: iterations.ok_or(BadVerifier("the iterations are not a number from 1 to 1000000"))?,
            salt: salt.ok_or(BadVerifier("the salt is not base64"))?,
            stored_key: key(stored).ok_or(BadVerifier("the StoredKey is not 32 bytes in base64"))?,
            server_key: key(server).ok_or(BadVerifier("the ServerKey is not 32 bytes in base64"))?,
        })
    }
}

/// The form of `pg_authid.rolpassword` and of a userlist. It is a secret: who has it can impersonate the server.
impl fmt::Display for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (salt, stored) = (BASE64.encode(&self.salt), BASE64.encode(self.stored_key));
        write!(f, "{MECHANISM}${}:{salt}${stored}:{}", self.iterations, BASE64.encode(self.server_key))
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<verifier>")
    }
}

/// What a login leaves behind: enough to log in to a server that has the same verifier.
#[derive(Clone, PartialEq, Eq)]
pub struct LoginKeys {
    client_key: Key,
    verifier: Verifier,
}

impl fmt::Debug for LoginKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<login keys>")
    }
}

/// A message as text, bounded.
fn text(message: &[u8]) -> Result<&str, ScramError> {
    if message.len() > MAX_MESSAGE {
        return Err(ScramError::Malformed("too long"));
    }
    std::str::from_utf8(message).map_err(|_| ScramError::Malformed("not UTF-8"))
}

/// The value of an attribute that must stand here.
fn attribute<'a>(part: Option<&'a str>, name: &'static str) -> Result<&'a str, ScramError> {
    part.and_then(|p| p.strip_prefix(name)).ok_or(ScramError::Malformed("an attribute is missing or out of order"))
}

/// Hi(SASLprep(password), salt, iterations). What SASLprep refuses is taken as it is, as PostgreSQL does.
fn salted_password(password: &str, salt: &[u8], iterations: u32) -> Key {
    let iterations = usize::try_from(iterations.max(1)).expect("usize has 32 bits at least");
    let salted = gen_salted_password(password, salt, iterations);
    salted.try_into().expect("PBKDF2 with SHA-256 gives 32 bytes")
}

fn mac(key: &[u8], parts: &[&[u8]]) -> Key {
    let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, key));
    parts.iter().for_each(|part| context.update(part));
    context.sign().as_ref().try_into().expect("HMAC-SHA-256 is 32 bytes long")
}

fn sha256(bytes: &[u8]) -> Key {
    digest::digest(&digest::SHA256, bytes).as_ref().try_into().expect("SHA-256 is 32 bytes long")
}

fn xor(a: Key, b: Key) -> Key {
    std::array::from_fn(|i| a[i] ^ b[i])
}

/// Equal? Looks at every byte whatever it finds, so that the time taken tells nothing.
fn same(a: &[u8], b: &[u8]) -> Result<(), ()> {
    let differing = a.iter().zip(b).fold(0, |seen, (x, y)| seen | (x ^ y));
    if a.len() == b.len() && differing == 0 { Ok(()) } else { Err(()) }
}

#[cfg(test)]
mod tests;
