//! PostgreSQL's MD5 passwords: `md5` and the hash of password and user, which is both what is stored and all that a
//! login needs. Kept for servers and clients that know nothing better; used only where the configuration says so.
//!
//! Source: PostgreSQL documentation, "Password Authentication"; src/common/md5_common.c.

use crate::wire::lossless;
use md5::{Digest, Md5};
use std::fmt;
use std::str::FromStr;

/// The 32 hexadecimal digits behind `md5`. A secret: it logs in as well as the password does.
#[derive(Clone, PartialEq, Eq)]
pub struct Md5Hash(String);

/// Not `md5` and 32 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an MD5 hash")]
pub struct BadHash;

impl Md5Hash {
    /// The hash of the password of a user, whose name is as [`lossless`] keeps it.
    pub fn of(user: &str, password: &str) -> Self {
        Self(hex(&[password.as_bytes(), &lossless::bytes(user)]))
    }

    /// The answer to the challenge `salt`: the text of a PasswordMessage.
    pub fn answer(&self, salt: [u8; 4]) -> String {
        format!("md5{}", hex(&[self.0.as_bytes(), &salt]))
    }
}

impl FromStr for Md5Hash {
    type Err = BadHash;
    fn from_str(text: &str) -> Result<Self, BadHash> {
        let digits = text.strip_prefix("md5").filter(|d| d.len() == 32).ok_or(BadHash)?;
        let good = digits.bytes().all(|b| b.is_ascii_hexdigit());
        if good { Ok(Self(digits.to_ascii_lowercase())) } else { Err(BadHash) }
    }
}

impl fmt::Debug for Md5Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<md5 hash>")
    }
}

fn hex(parts: &[&[u8]]) -> String {
    let mut hasher = Md5::new();
    parts.iter().for_each(|part| hasher.update(part));
    hasher.finalize().iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_and_answers_are_those_of_postgresql() {
        let odd = Md5Hash::of(&lossless::keep(b"gr\xfcn"), "secret");
        assert_eq!(odd.0, hex(&[b"secretgr\xfcn"]));
        let hash = Md5Hash::of("alice", "secret");
        assert_eq!("md54a0a68b43b6cd5cf266fa02f196e2371".parse(), Ok(hash.clone()));
        assert_eq!("md54A0A68B43B6CD5CF266FA02F196E2371".parse(), Ok(hash.clone()));
        assert_eq!(hash.answer([1, 2, 3, 4]), "md598a0412b9c31436fc53776e863350083");
        assert_eq!("md5zz".parse::<Md5Hash>(), Err(BadHash));
    }
}
