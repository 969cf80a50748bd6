//! SCRAM-SHA-256 without IO, both sides: clients log in to us with a verifier, we log in to servers with what that
//! login gave us.
//!
//! A client's proof reveals its ClientKey to whoever holds the verifier. With that key the same exchange can be
//! passed at a server that has the same verifier, so the proxy needs no password, as PgBouncer does it. Nonces come
//! from the caller: nothing here is random.
//! Source: RFC 5802, RFC 7677; PostgreSQL documentation, "SASL Authentication"; src/common/scram-common.c.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use pgwire::api::auth::sasl::scram::gen_salted_password;
use ring::{digest, hmac};
use std::fmt;
use std::str::FromStr;

/// The mechanism's name as PostgreSQL spells it. SCRAM-SHA-256-PLUS is never offered: it needs TLS.
pub const MECHANISM: &str = "SCRAM-SHA-256";
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
    /// The client asks for channel binding, which is not offered.
    #[error("channel binding is not supported here")]
    ChannelBinding,
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

/// A client's login that succeeded.
#[derive(Clone, Debug)]
pub struct Accepted {
    /// The body of AuthenticationSASLFinal.
    pub server_final: Vec<u8>,
    /// For logging in to servers as that user.
    pub keys: LoginKeys,
}

/// The server's side of one exchange: a client logs in to us.
#[derive(Debug)]
pub struct ServerSide {
    verifier: Verifier,
    nonce: String,
    state: Option<FirstSeen>,
}

/// What the last step needs of the first.
#[derive(Debug)]
struct FirstSeen {
    gs2_header: String,
    client_first_bare: String,
    server_first: String,
    nonce: String,
}

impl ServerSide {
    /// An exchange against `verifier`. `nonce` must be unpredictable and never used before.
    pub fn new(verifier: Verifier, nonce: [u8; NONCE_LEN]) -> Self {
        Self { verifier, nonce: BASE64.encode(nonce), state: None }
    }

    /// Read the client's first message; gives the body of AuthenticationSASLContinue.
    ///
    /// # Errors
    /// Not SCRAM, out of turn, or with channel binding.
    pub fn first(&mut self, client_first: &[u8]) -> Result<Vec<u8>, ScramError> {
        if self.state.is_some() {
            return Err(ScramError::Malformed("a second first message"));
        }
        let text = text(client_first)?;
        let mut parts = text.splitn(3, ',');
        let (flag, authzid) = (parts.next().unwrap_or(""), parts.next());
        match flag {
            // "y": the client could do channel binding and thinks that we cannot, which is so.
            "n" | "y" => {}
            flag if flag.starts_with("p=") => return Err(ScramError::ChannelBinding),
            _ => return Err(ScramError::Malformed("no channel binding flag")),
        }
        match authzid {
            Some("") => {}
            Some(_) => return Err(ScramError::Malformed("an authorization identity is not supported")),
            None => return Err(ScramError::Malformed("no authorization identity")),
        }
        let bare = parts.next().ok_or(ScramError::Malformed("no user name"))?;
        // The user of the startup packet counts; PostgreSQL ignores the one given here, and libpq leaves it empty.
        let mut attributes = bare.split(',');
        attribute(attributes.next(), "n=")?;
        let client_nonce = attribute(attributes.next(), "r=")?;
        if client_nonce.is_empty() || !client_nonce.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(ScramError::Malformed("the nonce is not printable"));
        }
        let nonce = format!("{client_nonce}{}", self.nonce);
        let salt = BASE64.encode(&self.verifier.salt);
        let server_first = format!("r={nonce},s={salt},i={}", self.verifier.iterations);
        let reply = server_first.clone().into_bytes();
        self.state = Some(FirstSeen {
            gs2_header: format!("{flag},,"),
            client_first_bare: bare.to_owned(),
            server_first,
            nonce,
        });
        Ok(reply)
    }

    /// Read the client's last message and check its proof.
    ///
    /// # Errors
    /// [`ScramError::WrongPassword`], or what is malformed.
    pub fn finish(&mut self, client_final: &[u8]) -> Result<Accepted, ScramError> {
        let seen = self.state.take().ok_or(ScramError::Malformed("no first message"))?;
        let text = text(client_final)?;
        let (without_proof, proof) = text.rsplit_once(",p=").ok_or(ScramError::Malformed("no proof"))?;
        let mut attributes = without_proof.split(',');
        let binding = attribute(attributes.next(), "c=")?;
        if binding != BASE64.encode(&seen.gs2_header) {
            return Err(ScramError::Malformed("the channel binding differs from the first message's"));
        }
        if attribute(attributes.next(), "r=")? != seen.nonce {
            return Err(ScramError::Malformed("the nonce differs from ours"));
        }
        let proof = BASE64.decode(proof).ok().and_then(|p| Key::try_from(p).ok());
        let proof = proof.ok_or(ScramError::Malformed("the proof is not 32 bytes in base64"))?;
        let FirstSeen { client_first_bare, server_first, .. } = &seen;
        let message = format!("{client_first_bare},{server_first},{without_proof}");
        let client_key = xor(proof, mac(&self.verifier.stored_key, &[message.as_bytes()]));
        same(&sha256(&client_key), &self.verifier.stored_key).map_err(|()| ScramError::WrongPassword)?;
        let signature = mac(&self.verifier.server_key, &[message.as_bytes()]);
        Ok(Accepted {
            server_final: format!("v={}", BASE64.encode(signature)).into_bytes(),
            keys: LoginKeys { client_key, verifier: self.verifier.clone() },
        })
    }
}

/// The client's side of one exchange: we log in to a server.
#[derive(Debug)]
pub struct ClientSide {
    user: String,
    credentials: Credentials,
    nonce: String,
    server_signature: Option<Key>,
}

enum Credentials {
    Keys(LoginKeys),
    Password(String),
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<credentials>")
    }
}

impl ClientSide {
    /// Log in as `user` with what that user's own login left. `nonce` must be unpredictable and never used before.
    pub fn with_keys(user: &str, keys: LoginKeys, nonce: [u8; NONCE_LEN]) -> Self {
        Self::new(user, Credentials::Keys(keys), nonce)
    }

    /// Log in as `user` with a password. `nonce` must be unpredictable and never used before.
    pub fn with_password(user: &str, password: &str, nonce: [u8; NONCE_LEN]) -> Self {
        Self::new(user, Credentials::Password(password.to_owned()), nonce)
    }

    fn new(user: &str, credentials: Credentials, nonce: [u8; NONCE_LEN]) -> Self {
        Self { user: user.to_owned(), credentials, nonce: BASE64.encode(nonce), server_signature: None }
    }

    /// The body of the first message: goes into SASLInitialResponse with [`MECHANISM`].
    pub fn first(&self) -> Vec<u8> {
        format!("n,,{}", self.first_bare()).into_bytes()
    }

    /// The user is empty: the server takes the one of the startup packet.
    fn first_bare(&self) -> String {
        format!("n=,r={}", self.nonce)
    }

    /// Answer the server's first message; gives the body of SASLResponse.
    ///
    /// # Errors
    /// Not SCRAM, or [`ScramError::OtherVerifier`] when salt or iterations are not those of the keys.
    pub fn respond(&mut self, server_first: &[u8]) -> Result<Vec<u8>, ScramError> {
        let server_first = text(server_first)?;
        let mut attributes = server_first.split(',');
        let nonce = attribute(attributes.next(), "r=")?;
        if !nonce.starts_with(&self.nonce) || nonce.len() == self.nonce.len() {
            return Err(ScramError::Malformed("the server's nonce does not extend ours"));
        }
        let salt = BASE64.decode(attribute(attributes.next(), "s=")?);
        let salt = salt.map_err(|_| ScramError::Malformed("the salt is not base64"))?;
        let iterations = attribute(attributes.next(), "i=")?.parse().ok().filter(|n| *n > 0);
        let iterations = iterations.ok_or(ScramError::Malformed("the iterations are not a number"))?;
        let (client_key, stored_key, server_key) = self.keys(&salt, iterations)?;
        let without_proof = format!("c={},r={nonce}", BASE64.encode("n,,"));
        let message = format!("{},{server_first},{without_proof}", self.first_bare());
        let proof = xor(client_key, mac(&stored_key, &[message.as_bytes()]));
        self.server_signature = Some(mac(&server_key, &[message.as_bytes()]));
        Ok(format!("{without_proof},p={}", BASE64.encode(proof)).into_bytes())
    }

    /// Check the server's last message: it must know the verifier too.
    ///
    /// # Errors
    /// The server refused, or its signature is wrong.
    pub fn finish(&self, server_final: &[u8]) -> Result<(), ScramError> {
        let want = self.server_signature.ok_or(ScramError::Malformed("no first message"))?;
        let text = text(server_final)?;
        if let Some(why) = text.strip_prefix("e=") {
            return Err(ScramError::Refused(why.chars().take(100).collect()));
        }
        let signature = BASE64.decode(attribute(text.split(',').next(), "v=")?);
        let signature = signature.map_err(|_| ScramError::Malformed("the signature is not base64"))?;
        same(&signature, &want).map_err(|()| ScramError::WrongServerSignature)
    }

    /// ClientKey, StoredKey and ServerKey for that salt and number of iterations.
    fn keys(&self, salt: &[u8], iterations: u32) -> Result<(Key, Key, Key), ScramError> {
        match &self.credentials {
            Credentials::Keys(LoginKeys { client_key, verifier }) => {
                let differs = |what| ScramError::OtherVerifier { user: self.user.clone(), what };
                if verifier.iterations != iterations {
                    let what = format!("iterations {} here, {iterations} there", verifier.iterations);
                    return Err(differs(what));
                }
                if verifier.salt != salt {
                    return Err(differs("the salt".to_owned()));
                }
                Ok((*client_key, verifier.stored_key, verifier.server_key))
            }
            Credentials::Password(password) => {
                if iterations > MAX_ITERATIONS {
                    return Err(ScramError::TooManyIterations { asked: iterations });
                }
                let salted = salted_password(password, salt, iterations);
                let client_key = mac(&salted, &[b"Client Key"]);
                Ok((client_key, sha256(&client_key), mac(&salted, &[b"Server Key"])))
            }
        }
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
