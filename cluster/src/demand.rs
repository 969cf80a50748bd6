//! What a server asks for at a login of our own, seen before anything is answered to it.
//!
//! A client library with a password at hand answers whoever asks for it in clear text, or for its MD5, which is as good.
//! Whoever answers at a server's address could ask. A server's first message says which it is: later ones of a login
//! cannot change to another way (the library ends it).

use std::fmt;

/// How much of the first message tells: its kind, its length, and what it asks for.
const TELLING: usize = 9;

/// Reads the beginning of what a server sends.
#[derive(Clone, Copy, Debug, Default)]
pub struct FirstDemand {
    seen: [u8; TELLING],
    length: usize,
}

/// Ways to be asked for a password that give it away, where allowed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Allowed {
    /// Its MD5.
    pub md5: bool,
    /// The password itself.
    pub password: bool,
}

/// A demand that is not met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forbidden {
    /// As pg_hba.conf names it.
    pub method: &'static str,
}

impl fmt::Display for Forbidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the server asks for the password by the method {}, where scram-sha-256 is needed", self.method)
    }
}

impl std::error::Error for Forbidden {}

impl FirstDemand {
    /// `bytes` came next. They must not be passed on before this has allowed them.
    ///
    /// # Errors
    /// The server asks for what is not `allowed`.
    pub fn read(&mut self, bytes: &[u8], allowed: Allowed) -> Result<(), Forbidden> {
        let left = TELLING - self.length;
        if left == 0 {
            return Ok(());
        }
        let taken = &bytes[..bytes.len().min(left)];
        self.seen[self.length..self.length + taken.len()].copy_from_slice(taken);
        self.length += taken.len();
        match self.seen {
            [b'R', _, _, _, _, 0, 0, 0, 3] if self.length == TELLING && !allowed.password => {
                Err(Forbidden { method: "password" })
            }
            [b'R', _, _, _, _, 0, 0, 0, 5] if self.length == TELLING && !allowed.md5 => {
                Err(Forbidden { method: "md5" })
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_demand_for_the_password_is_refused_however_it_arrives() {
        let message = |kind: u8, asks: u8| [kind, 0, 0, 0, 8, 0, 0, 0, asks, b'x', b'y'];
        for (asks, want) in [(0, None), (3, Some("password")), (5, Some("md5")), (10, None)] {
            for piece in 1..=11 {
                let mut first = FirstDemand::default();
                let mut read = message(b'R', asks);
                let read = read.chunks_mut(piece).map(|p| first.read(p, Allowed::default()));
                let refused = read.into_iter().find_map(Result::err).map(|f| f.method);
                assert_eq!(refused, want, "{asks} in pieces of {piece}");
            }
        }
        let all = Allowed { md5: true, password: true };
        for asks in [3, 5] {
            assert_eq!(FirstDemand::default().read(&message(b'R', asks), all), Ok(()));
            assert_eq!(FirstDemand::default().read(&message(b'E', asks), Allowed::default()), Ok(()));
        }
    }
}
