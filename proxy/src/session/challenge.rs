//! Answering a server that asks who we are: with what the session's credentials allow, and what the configuration does.

use crate::auth::credentials::Credentials;
use crate::auth::hashing::Hashing;
use crate::auth::md5::Md5Hash;
use crate::auth::scram::{Channel, ClientSide, ScramError};
use crate::wire::backend::Authentication;
use crate::wire::frontend;

/// Why a server's challenge is not answered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChallengeError {
    /// The exchange of proofs failed.
    #[error(transparent)]
    Scram(#[from] ScramError),
    /// Nothing is known that would answer it.
    #[error("it asks for {method} and neither the client's login nor the configuration gave what that needs")]
    Missing {
        /// The method.
        method: &'static str,
    },
    /// The configuration forbids it.
    #[error("it asks for {method}, which {key} does not allow")]
    Forbidden {
        /// The method.
        method: &'static str,
        /// The key.
        key: &'static str,
    },
    /// A method we do not speak.
    #[error("it asks for an authentication method that is not supported (code {code})")]
    Unknown {
        /// Its number in the protocol.
        code: u32,
    },
    /// It says that we are logged in before it has proven that it knows the verifier.
    #[error("it broke off the exchange of proofs")]
    NoProof,
}

/// What may be answered besides SCRAM.
#[derive(Clone, Copy, Debug)]
pub struct Allowed {
    /// `proxy.auth.server_md5`
    pub md5: bool,
    /// `proxy.auth.server_password`
    pub password: bool,
}

/// The answers to one server's challenges.
pub struct Answers<'a> {
    user: &'a str,
    credentials: &'a Credentials,
    allowed: Allowed,
    hashing: &'a Hashing,
    /// The tls-server-end-point of the server's certificate, over TLS.
    endpoint: Option<Vec<u8>>,
    scram: ClientSide,
    begun: bool,
    proven: bool,
}

impl<'a> Answers<'a> {
    /// For one login as `user`.
    pub fn new(
        user: &'a str,
        credentials: &'a Credentials,
        allowed: Allowed,
        hashing: &'a Hashing,
        endpoint: Option<Vec<u8>>,
    ) -> Self {
        let scram = ClientSide::with(user, credentials, rand::random());
        Self { user, credentials, allowed, hashing, endpoint, scram, begun: false, proven: false }
    }

    /// Append the answer to one Authentication message to `out`.
    ///
    /// # Errors
    /// See [`ChallengeError`]; nothing has been appended then.
    pub async fn to(&mut self, challenge: Authentication<'_>, out: &mut Vec<u8>) -> Result<(), ChallengeError> {
        match challenge {
            Authentication::Ok if self.begun && !self.proven => return Err(ChallengeError::NoProof),
            Authentication::Ok => {}
            Authentication::Cleartext => self.cleartext(out)?,
            Authentication::Md5(salt) => self.md5(salt, out)?,
            Authentication::Sasl { scram_sha_256, plus } => self.begin(scram_sha_256, plus, out)?,
            Authentication::SaslContinue(data) => {
                if let Some(work) = self.scram.work(data)? {
                    let (salt, iterations) = (work.salt.clone(), work.iterations);
                    let salted = self.hashing.salted(self.user, work).await;
                    self.scram.supply(salt, iterations, &salted);
                }
                frontend::write_sasl_response(out, &self.scram.respond(data)?);
            }
            Authentication::SaslFinal(data) => {
                self.scram.finish(data)?;
                self.proven = true;
            }
            Authentication::Other(code) => return Err(ChallengeError::Unknown { code }),
        }
        Ok(())
    }

    fn begin(&mut self, plain: bool, plus: bool, out: &mut Vec<u8>) -> Result<(), ChallengeError> {
        match self.credentials {
            Credentials::Keys(_) | Credentials::Password(_) => {}
            Credentials::Nothing | Credentials::Md5(_) => {
                return Err(ChallengeError::Missing { method: "scram-sha-256" });
            }
        }
        let channel = match (&self.endpoint, plus, plain) {
            (Some(endpoint), true, _) => Channel::Bound(endpoint.clone()),
            (Some(_), false, true) => Channel::NotOffered,
            (None, _, true) => Channel::Plain,
            (Some(_), false, false) | (None, _, false) => return Err(ChallengeError::Unknown { code: 10 }),
        };
        self.scram.over(channel);
        self.begun = true;
        frontend::write_sasl_initial(out, self.scram.mechanism(), &self.scram.first());
        Ok(())
    }

    fn md5(&self, salt: [u8; 4], out: &mut Vec<u8>) -> Result<(), ChallengeError> {
        let hash = match self.credentials {
            Credentials::Md5(hash) => hash.clone(),
            Credentials::Password(password) => Md5Hash::of(self.user, password.expose()),
            Credentials::Nothing | Credentials::Keys(_) => return Err(ChallengeError::Missing { method: "md5" }),
        };
        if !self.allowed.md5 {
            return Err(ChallengeError::Forbidden { method: "md5", key: "proxy.auth.server_md5" });
        }
        frontend::write_password(out, hash.answer(salt).as_bytes());
        Ok(())
    }

    fn cleartext(&self, out: &mut Vec<u8>) -> Result<(), ChallengeError> {
        let Credentials::Password(password) = self.credentials else {
            return Err(ChallengeError::Missing { method: "password" });
        };
        if !self.allowed.password {
            return Err(ChallengeError::Forbidden { method: "password", key: "proxy.auth.server_password" });
        }
        frontend::write_password(out, password.expose().as_bytes());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cluster::secret::Secret;

    const ALL: Allowed = Allowed { md5: true, password: true };
    const NONE: Allowed = Allowed { md5: false, password: false };

    async fn answer(credentials: &Credentials, allowed: Allowed, challenge: Authentication<'_>) -> String {
        let hashing = Hashing::new(1);
        let mut out = Vec::new();
        let mut answers = Answers::new("alice", credentials, allowed, &hashing, None);
        match answers.to(challenge, &mut out).await {
            Ok(()) => String::from_utf8_lossy(out.get(5..).unwrap_or_default()).trim_end_matches('\0').to_owned(),
            Err(error) => error.to_string(),
        }
    }

    #[tokio::test]
    async fn a_challenge_is_answered_with_what_there_is_and_what_is_allowed() {
        use Authentication as A;
        let (password, nothing) = (Credentials::Password(Secret::new("secret")), Credentials::Nothing);
        let md5 = Credentials::Md5(Md5Hash::of("alice", "secret"));
        let hash = "md598a0412b9c31436fc53776e863350083";
        assert_eq!(answer(&nothing, NONE, A::Ok).await, "");
        assert_eq!(answer(&password, ALL, A::Cleartext).await, "secret");
        assert_eq!(answer(&password, ALL, A::Md5([1, 2, 3, 4])).await, hash);
        assert_eq!(answer(&md5, ALL, A::Md5([1, 2, 3, 4])).await, hash);
        let forbidden = |method, key| ChallengeError::Forbidden { method, key }.to_string();
        let missing = |method| ChallengeError::Missing { method }.to_string();
        assert_eq!(answer(&password, NONE, A::Cleartext).await, forbidden("password", "proxy.auth.server_password"));
        assert_eq!(answer(&md5, NONE, A::Md5([0; 4])).await, forbidden("md5", "proxy.auth.server_md5"));
        assert_eq!(answer(&md5, ALL, A::Cleartext).await, missing("password"));
        assert_eq!(answer(&nothing, ALL, A::Md5([0; 4])).await, missing("md5"));
        let sasl = || A::Sasl { scram_sha_256: true, plus: false };
        assert_eq!(answer(&md5, ALL, sasl()).await, missing("scram-sha-256"));
        assert!(answer(&password, NONE, sasl()).await.starts_with("SCRAM-SHA-256\0"));
        assert_eq!(answer(&nothing, ALL, A::Other(7)).await, ChallengeError::Unknown { code: 7 }.to_string());
    }

    #[tokio::test]
    async fn a_server_that_breaks_off_its_own_proof_is_not_believed() {
        let hashing = Hashing::new(1);
        let password = Credentials::Password(Secret::new("secret"));
        let mut answers = Answers::new("alice", &password, NONE, &hashing, None);
        let sasl = Authentication::Sasl { scram_sha_256: true, plus: false };
        answers.to(sasl, &mut Vec::new()).await.unwrap();
        assert_eq!(answers.to(Authentication::Ok, &mut Vec::new()).await, Err(ChallengeError::NoProof));
    }
}
