//! The secrets of cancel keys: which process a key belongs to, told by a MAC, so that processes that share a secret can
//! pass requests on to each other and throw forged ones away.
//!
//! Half of a key's secret is random, half a MAC over the owner's id, the process number and the random half. Clients of
//! protocol 3.2 get 32 bytes, older ones 4, of which an outsider must guess all 32 bits all the same. A request that one
//! process passes on carries a further MAC and is never passed on again. Source: PostgreSQL documentation,
//! "Canceling Requests in Progress".

use ring::hmac;

/// Bytes of a secret for clients of protocol 3.2 and later.
pub const LONG: usize = 32;
/// Bytes of a secret for older clients.
pub const SHORT: usize = 4;
/// Bytes of the MAC that a request passed on carries behind its secret.
const STAMP: usize = 32;

/// The shared secret in force, and the one before it for keys that were given out under it.
#[derive(Clone, Debug)]
pub struct Keyring {
    newest: hmac::Key,
    older: Option<hmac::Key>,
}

/// Whose key a request has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// One of the processes asked about, by its id.
    Process(u8),
    /// A peer has found out that it is this process's.
    PassedOn,
    /// Nobody's: forged, or of a process that is not known.
    Nobody,
}

impl Keyring {
    /// With the shared secret.
    pub fn new(secret: &[u8]) -> Self {
        Self { newest: hmac::Key::new(hmac::HMAC_SHA256, secret), older: None }
    }

    /// With another secret from now on.
    #[must_use]
    pub fn rotated(&self, secret: &[u8]) -> Self {
        Self { older: Some(self.newest.clone()), ..Self::new(secret) }
    }

    /// A secret for the session with this process number in the process `id`. `random` must be unpredictable.
    pub fn secret(&self, id: u8, pid: u32, random: [u8; LONG / 2], long: bool) -> Secret {
        let half = if long { LONG / 2 } else { SHORT / 2 };
        let mut bytes = [0; LONG];
        bytes[..half].copy_from_slice(&random[..half]);
        bytes[half..2 * half].copy_from_slice(&key_mac(&self.newest, id, pid, &random[..half]).as_ref()[..half]);
        Secret { len: 2 * half as u8, bytes }
    }

    /// Which of the processes `ids` gave this key out, or that one of them passes it on.
    pub fn owner(&self, ids: impl Iterator<Item = u8> + Clone, pid: u32, secret: &[u8]) -> Owner {
        if !matches!(secret.len(), SHORT | LONG) {
            return if self.stamped(pid, secret).is_some() { Owner::PassedOn } else { Owner::Nobody };
        }
        let (random, mac) = secret.split_at(secret.len() / 2);
        for key in [Some(&self.newest), self.older.as_ref()].into_iter().flatten() {
            let right = |id: &u8| same(&key_mac(key, *id, pid, random).as_ref()[..mac.len()], mac);
            if let Some(id) = ids.clone().find(right) {
                return Owner::Process(id);
            }
        }
        Owner::Nobody
    }

    /// The secret of a request that is passed on, for [`Keyring::stamped`].
    pub fn stamp(&self, pid: u32, secret: &[u8]) -> Vec<u8> {
        [secret, stamp_mac(&self.newest, pid, secret).as_ref()].concat()
    }

    /// The client's secret within that of a request that was passed on, when a peer did.
    pub fn stamped<'a>(&self, pid: u32, secret: &'a [u8]) -> Option<&'a [u8]> {
        let (inner, stamp) = secret.split_at_checked(secret.len().checked_sub(STAMP)?)?;
        let keys = [Some(&self.newest), self.older.as_ref()].into_iter().flatten();
        let right = keys.into_iter().any(|key| same(stamp_mac(key, pid, inner).as_ref(), stamp));
        (right && matches!(inner.len(), SHORT | LONG)).then_some(inner)
    }
}

/// A session's secret, whole.
#[derive(Clone, Copy, Default)]
pub struct Secret {
    len: u8,
    bytes: [u8; LONG],
}

impl Secret {
    /// Of the bytes that follow the process number; `None` when no session has one so long.
    pub fn new(secret: &[u8]) -> Option<Self> {
        if !matches!(secret.len(), SHORT | LONG) {
            return None;
        }
        let mut bytes = [0; LONG];
        bytes[..secret.len()].copy_from_slice(secret);
        Some(Self { len: secret.len() as u8, bytes })
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

/// Takes the same time whatever differs.
impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        same(self.as_bytes(), other.as_bytes())
    }
}

impl Eq for Secret {}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Secret").field("len", &self.len).finish_non_exhaustive()
    }
}

fn key_mac(key: &hmac::Key, id: u8, pid: u32, random: &[u8]) -> hmac::Tag {
    tag(key, &[b"cancel key", &[id], &pid.to_be_bytes(), random])
}

fn stamp_mac(key: &hmac::Key, pid: u32, secret: &[u8]) -> hmac::Tag {
    tag(key, &[b"passed on", &pid.to_be_bytes(), secret])
}

fn tag(key: &hmac::Key, parts: &[&[u8]]) -> hmac::Tag {
    let mut context = hmac::Context::with_key(key);
    parts.iter().for_each(|part| context.update(part));
    context.sign()
}

/// Equal? Takes the same time whatever differs.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && std::hint::black_box(a.iter().zip(b).fold(0, |seen, (x, y)| seen | (x ^ y))) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDS: [u8; 3] = [0, 1, 7];

    fn owner(ring: &Keyring, pid: u32, secret: &[u8]) -> Owner {
        ring.owner(IDS.into_iter(), pid, secret)
    }

    #[test]
    fn a_key_tells_its_owner_to_whoever_shares_the_secret() {
        let (ring, other) = (Keyring::new(b"shared"), Keyring::new(b"another"));
        for long in [true, false] {
            let secret = ring.secret(7, 42, [5; 16], long);
            assert_eq!(secret.as_bytes().len(), if long { LONG } else { SHORT });
            assert_eq!(owner(&ring, 42, secret.as_bytes()), Owner::Process(7));
            assert_eq!(owner(&ring, 43, secret.as_bytes()), Owner::Nobody);
            assert_eq!(owner(&other, 42, secret.as_bytes()), Owner::Nobody);
            let mut forged = secret.as_bytes().to_vec();
            forged[0] ^= 1;
            assert_eq!(owner(&ring, 42, &forged), Owner::Nobody);
        }
        assert_eq!(owner(&ring, 42, ring.secret(9, 42, [5; 16], true).as_bytes()), Owner::Nobody);
    }

    #[test]
    fn keys_given_out_under_the_secret_before_still_count() {
        let old = Keyring::new(b"one");
        let secret = old.secret(1, 42, [5; 16], true);
        let new = old.rotated(b"two");
        assert_eq!(owner(&new, 42, secret.as_bytes()), Owner::Process(1));
        assert_eq!(owner(&new.rotated(b"three"), 42, secret.as_bytes()), Owner::Nobody);
    }

    #[test]
    fn a_request_passed_on_is_known_as_such_and_cannot_be_forged() {
        let ring = Keyring::new(b"shared");
        for long in [true, false] {
            let secret = ring.secret(7, 42, [5; 16], long);
            let stamped = ring.stamp(42, secret.as_bytes());
            assert_eq!(owner(&ring, 42, &stamped), Owner::PassedOn);
            assert_eq!(ring.stamped(42, &stamped), Some(secret.as_bytes()));
            assert_eq!(owner(&Keyring::new(b"another"), 42, &stamped), Owner::Nobody);
            assert_eq!(owner(&ring, 41, &stamped), Owner::Nobody);
        }
        assert_eq!(owner(&ring, 1, &[]), Owner::Nobody);
    }

    #[test]
    fn secrets_are_compared_whole() {
        let mut other = [1; LONG];
        assert_eq!(Secret::new(&[1; LONG]), Secret::new(&other));
        other[LONG - 1] ^= 1;
        assert_ne!(Secret::new(&[1; LONG]), Secret::new(&other));
        assert_ne!(Secret::new(&[1; LONG]), Secret::new(&[1; SHORT]));
        assert_eq!(Secret::new(&[1; SHORT + 1]), None);
        assert!(!format!("{:?}", Secret::new(&[77; SHORT])).contains("77"));
    }
}
