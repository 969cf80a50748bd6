//! The client's side of one exchange: we log in to a server.

use super::{
    BASE64, BINDING, Credentials, Key, MAX_ITERATIONS, MECHANISM, MECHANISM_PLUS, NONCE_LEN, ScramError, attribute,
    mac, salted_password, same, sha256, text, xor,
};
use crate::auth::scram::LoginKeys;
use base64::Engine as _;
use cluster::secret::Secret;

/// What a server's channel can be bound to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Channel {
    /// Nothing: the connection is not encrypted.
    #[default]
    Plain,
    /// TLS, and the server did not offer to bind it.
    NotOffered,
    /// The tls-server-end-point of the server's certificate, and the server offers to be bound to it.
    Bound(Vec<u8>),
}

/// The client's side of one exchange.
#[derive(Debug)]
pub struct ClientSide {
    user: String,
    proof: Proof,
    nonce: String,
    channel: Channel,
    server_signature: Option<Key>,
}

enum Proof {
    Keys(LoginKeys),
    Password(Secret),
    Salted { salt: Vec<u8>, iterations: u32, salted: Key },
    Nothing,
}

impl std::fmt::Debug for Proof {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("<proof>")
    }
}

/// A password to be salted: thousands of hashes, not to be done where others wait.
#[derive(Debug)]
pub struct Work {
    password: Secret,
    /// The server's salt.
    pub salt: Vec<u8>,
    /// How many rounds it asks for.
    pub iterations: u32,
}

/// A salted password, for the exchange that asked for it. As secret as the password.
#[derive(Clone)]
pub struct Salted(Key);

impl std::fmt::Debug for Salted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("<salted password>")
    }
}

impl Work {
    /// The password itself.
    pub fn password(&self) -> &Secret {
        &self.password
    }

    /// Do it: about a millisecond for PostgreSQL's 4096 rounds.
    pub fn run(&self) -> Salted {
        Salted(salted_password(self.password.expose(), &self.salt, self.iterations))
    }
}

impl ClientSide {
    /// Log in as `user` with what that user's own login left. `nonce` must be unpredictable and never used before.
    pub fn with_keys(user: &str, keys: LoginKeys, nonce: [u8; NONCE_LEN]) -> Self {
        Self::new(user, Proof::Keys(keys), nonce)
    }

    /// Log in as `user` with a password. `nonce` must be unpredictable and never used before.
    pub fn with_password(user: &str, password: &str, nonce: [u8; NONCE_LEN]) -> Self {
        Self::new(user, Proof::Password(Secret::new(password)), nonce)
    }

    /// Log in as `user` with what there is.
    pub fn with(user: &str, credentials: &Credentials, nonce: [u8; NONCE_LEN]) -> Self {
        let proof = match credentials {
            Credentials::Keys(keys) => Proof::Keys(keys.clone()),
            Credentials::Password(password) => Proof::Password(password.clone()),
            Credentials::Md5(_) | Credentials::Nothing => Proof::Nothing,
        };
        Self::new(user, proof, nonce)
    }

    fn new(user: &str, proof: Proof, nonce: [u8; NONCE_LEN]) -> Self {
        let (nonce, channel) = (BASE64.encode(nonce), Channel::Plain);
        Self { user: user.to_owned(), proof, nonce, channel, server_signature: None }
    }

    /// The channel that the server's offer allows.
    pub fn over(&mut self, channel: Channel) {
        self.channel = channel;
    }

    /// The mechanism to select.
    pub fn mechanism(&self) -> &'static str {
        match self.channel {
            Channel::Plain | Channel::NotOffered => MECHANISM,
            Channel::Bound(_) => MECHANISM_PLUS,
        }
    }

    /// The body of the first message: goes into SASLInitialResponse with [`ClientSide::mechanism`].
    pub fn first(&self) -> Vec<u8> {
        format!("{},,{}", self.flag(), self.first_bare()).into_bytes()
    }

    fn flag(&self) -> &'static str {
        match self.channel {
            Channel::Plain => "n",
            // Told to the server, which knows whether it did: else somebody between us took its offer away.
            Channel::NotOffered => "y",
            Channel::Bound(_) => BINDING,
        }
    }

    /// The user is empty: the server takes the one of the startup packet.
    fn first_bare(&self) -> String {
        format!("n=,r={}", self.nonce)
    }

    /// What must be computed before [`ClientSide::respond`] is quick, when there is a password.
    ///
    /// # Errors
    /// Not SCRAM, or more rounds than are reasonable.
    pub fn work(&self, server_first: &[u8]) -> Result<Option<Work>, ScramError> {
        let Proof::Password(password) = &self.proof else { return Ok(None) };
        let Challenge { salt, iterations, .. } = self.challenge(text(server_first)?)?;
        if iterations > MAX_ITERATIONS {
            return Err(ScramError::TooManyIterations { asked: iterations });
        }
        Ok(Some(Work { password: password.clone(), salt, iterations }))
    }

    /// What came of the work.
    pub fn supply(&mut self, salt: Vec<u8>, iterations: u32, salted: &Salted) {
        self.proof = Proof::Salted { salt, iterations, salted: salted.0 };
    }

    /// Answer the server's first message; gives the body of SASLResponse. Does the [`ClientSide::work`] itself when
    /// nobody has.
    ///
    /// # Errors
    /// Not SCRAM, no credentials for it, or [`ScramError::OtherVerifier`] when salt or iterations are not those of the
    /// keys.
    pub fn respond(&mut self, server_first: &[u8]) -> Result<Vec<u8>, ScramError> {
        if let Some(work) = self.work(server_first)? {
            let salted = work.run();
            self.supply(work.salt, work.iterations, &salted);
        }
        let server_first = text(server_first)?;
        let Challenge { nonce, salt, iterations } = self.challenge(server_first)?;
        let (client_key, stored_key, server_key) = self.keys(&salt, iterations)?;
        let mut binding = format!("{},,", self.flag()).into_bytes();
        if let Channel::Bound(hash) = &self.channel {
            binding.extend_from_slice(hash);
        }
        let without_proof = format!("c={},r={nonce}", BASE64.encode(binding));
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

    fn challenge<'a>(&self, server_first: &'a str) -> Result<Challenge<'a>, ScramError> {
        let mut attributes = server_first.split(',');
        let nonce = attribute(attributes.next(), "r=")?;
        if !nonce.starts_with(&self.nonce) || nonce.len() == self.nonce.len() {
            return Err(ScramError::Malformed("the server's nonce does not extend ours"));
        }
        let salt = BASE64.decode(attribute(attributes.next(), "s=")?);
        let salt = salt.map_err(|_| ScramError::Malformed("the salt is not base64"))?;
        let iterations = attribute(attributes.next(), "i=")?.parse().ok().filter(|n| *n > 0);
        let iterations = iterations.ok_or(ScramError::Malformed("the iterations are not a number"))?;
        Ok(Challenge { nonce, salt, iterations })
    }

    /// ClientKey, StoredKey and ServerKey for that salt and number of iterations.
    fn keys(&self, salt: &[u8], iterations: u32) -> Result<(Key, Key, Key), ScramError> {
        match &self.proof {
            Proof::Keys(LoginKeys { client_key, verifier }) => {
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
            Proof::Salted { salt: for_salt, iterations: rounds, salted }
                if for_salt == salt && *rounds == iterations =>
            {
                let client_key = mac(salted, &[b"Client Key"]);
                Ok((client_key, sha256(&client_key), mac(salted, &[b"Server Key"])))
            }
            Proof::Salted { .. } | Proof::Password(_) | Proof::Nothing => {
                Err(ScramError::NoPassword { user: self.user.clone() })
            }
        }
    }
}

/// What a server's first message asks for.
struct Challenge<'a> {
    nonce: &'a str,
    salt: Vec<u8>,
    iterations: u32,
}
