//! The server's side of one exchange: a client logs in to us.

use super::{
    BASE64, BINDING, Key, LoginKeys, MECHANISM, MECHANISM_PLUS, NONCE_LEN, ScramError, Verifier, attribute, mac, same,
    sha256, text, xor,
};
use base64::Engine as _;

/// A client's login that succeeded.
#[derive(Clone, Debug)]
pub struct Accepted {
    /// The body of AuthenticationSASLFinal.
    pub server_final: Vec<u8>,
    /// For logging in to servers as that user.
    pub keys: LoginKeys,
}

/// The server's side of one exchange.
#[derive(Debug)]
pub struct ServerSide {
    verifier: Verifier,
    nonce: String,
    channel: Option<Vec<u8>>,
    state: Option<FirstSeen>,
}

/// What the last step needs of the first.
#[derive(Debug)]
struct FirstSeen {
    /// What the client must repeat: its header, and the channel it is bound to.
    binding: Vec<u8>,
    bound: bool,
    client_first_bare: String,
    server_first: String,
    nonce: String,
}

impl ServerSide {
    /// An exchange against `verifier`. `nonce` must be unpredictable and never used before.
    pub fn new(verifier: Verifier, nonce: [u8; NONCE_LEN]) -> Self {
        Self { verifier, nonce: BASE64.encode(nonce), channel: None, state: None }
    }

    /// Over TLS: offer to bind the exchange to `hash`, the tls-server-end-point of our certificate.
    #[must_use]
    pub fn over_tls(mut self, hash: Option<Vec<u8>>) -> Self {
        self.channel = hash;
        self
    }

    /// The mechanisms to offer, the best first.
    pub fn mechanisms(&self) -> &'static [&'static str] {
        if self.channel.is_some() { &[MECHANISM_PLUS, MECHANISM] } else { &[MECHANISM] }
    }

    /// Read the client's first message, sent for `mechanism`; gives the body of AuthenticationSASLContinue.
    ///
    /// # Errors
    /// Not SCRAM, out of turn, not a mechanism that was offered, or a channel binding that contradicts the offer.
    pub fn first(&mut self, mechanism: &[u8], client_first: &[u8]) -> Result<Vec<u8>, ScramError> {
        if self.state.is_some() {
            return Err(ScramError::Malformed("a second first message"));
        }
        if !self.mechanisms().iter().any(|m| m.as_bytes() == mechanism) {
            return Err(ScramError::Mechanism);
        }
        let text = text(client_first)?;
        let mut parts = text.splitn(3, ',');
        let (flag, authzid) = (parts.next().unwrap_or(""), parts.next());
        let bound = self.check_flag(flag, mechanism == MECHANISM_PLUS.as_bytes())?;
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
        let mut binding = format!("{flag},,").into_bytes();
        if bound {
            binding.extend_from_slice(self.channel.as_deref().unwrap_or_default());
        }
        self.state = Some(FirstSeen { binding, bound, client_first_bare: bare.to_owned(), server_first, nonce });
        Ok(reply)
    }

    /// Is the exchange to be bound to the channel?
    fn check_flag(&self, flag: &str, plus: bool) -> Result<bool, ScramError> {
        match flag {
            "n" | "y" if plus => Err(ScramError::Malformed("no channel binding data for SCRAM-SHA-256-PLUS")),
            "n" => Ok(false),
            // The client could bind the channel and believes that we cannot. True only when nothing was offered.
            "y" if self.channel.is_some() => Err(ScramError::Downgrade),
            "y" => Ok(false),
            BINDING if plus => Ok(true),
            f if f.starts_with("p=") && plus => Err(ScramError::Malformed("an unknown type of channel binding")),
            f if f.starts_with("p=") => Err(ScramError::Malformed("channel binding data without SCRAM-SHA-256-PLUS")),
            _ => Err(ScramError::Malformed("no channel binding flag")),
        }
    }

    /// Read the client's last message and check its proof.
    ///
    /// # Errors
    /// [`ScramError::WrongPassword`], [`ScramError::OtherChannel`], or what is malformed.
    pub fn finish(&mut self, client_final: &[u8]) -> Result<Accepted, ScramError> {
        let seen = self.state.take().ok_or(ScramError::Malformed("no first message"))?;
        let text = text(client_final)?;
        let (without_proof, proof) = text.rsplit_once(",p=").ok_or(ScramError::Malformed("no proof"))?;
        let mut attributes = without_proof.split(',');
        if attribute(attributes.next(), "c=")? != BASE64.encode(&seen.binding) {
            return Err(if seen.bound {
                ScramError::OtherChannel
            } else {
                ScramError::Malformed("the channel binding differs from the first message's")
            });
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
