//! `proxy.listen` and `proxy.listen_read_only`: one address, or several.

use cluster::config::BadSetting;
use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::net::SocketAddr;

/// Most addresses: all of them are handed over at a restart, in one message.
const MOST: usize = 16;

/// Addresses with their ports, in the order typed. Checked ones are at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Addresses(Vec<SocketAddr>);

impl Addresses {
    /// These.
    pub fn new(addresses: Vec<SocketAddr>) -> Self {
        Self(addresses)
    }

    /// All of them.
    pub fn all(&self) -> &[SocketAddr] {
        &self.0
    }

    /// The first: its port names the Unix-domain socket, and it stands for all where there is room for one.
    pub fn first(&self) -> SocketAddr {
        *self.0.first().expect("checked addresses are at least one")
    }
}

impl<A: Into<SocketAddr>> From<A> for Addresses {
    fn from(address: A) -> Self {
        Self(vec![address.into()])
    }
}

impl fmt::Display for Addresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, address) in self.0.iter().enumerate() {
            write!(f, "{}{address}", if i > 0 { ", " } else { "" })?;
        }
        Ok(())
    }
}

impl Serialize for Addresses {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.as_slice() {
            [one] => one.serialize(serializer),
            several => several.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Addresses {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(OneOrMore)
    }
}

struct OneOrMore;

impl<'de> Visitor<'de> for OneOrMore {
    type Value = Addresses;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an address with its port, as in \"127.0.0.1:6432\", or a list of them")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Addresses, E> {
        let address: SocketAddr =
            text.parse().map_err(|_| E::invalid_value(serde::de::Unexpected::Str(text), &self))?;
        Ok(address.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Addresses, A::Error> {
        let mut addresses = Vec::new();
        while let Some(address) = list.next_element()? {
            addresses.push(address);
        }
        Ok(Addresses(addresses))
    }
}

/// Check them.
pub(super) fn check(addresses: &Addresses, read_only: Option<&Addresses>) -> Vec<BadSetting> {
    let mut bad = check_one("proxy.listen", addresses);
    let Some(read_only) = read_only else { return bad };
    bad.extend(check_one("proxy.listen_read_only", read_only));
    let mut tell = |problem: &str| bad.push(BadSetting::new("proxy.listen_read_only", read_only, problem));
    if addresses.0.len() <= MOST && read_only.0.len() <= MOST && addresses.0.len() + read_only.0.len() > MOST {
        tell("must be 16 addresses at most together with proxy.listen");
    }
    if read_only.0.iter().any(|a| a.port() != 0 && addresses.0.contains(a)) {
        tell("names an address of proxy.listen");
    }
    bad
}

fn check_one(key: &str, addresses: &Addresses) -> Vec<BadSetting> {
    let mut bad = Vec::new();
    let mut tell = |problem: &str| bad.push(BadSetting::new(key, addresses, problem));
    if addresses.0.is_empty() {
        tell("must name an address");
    }
    if addresses.0.len() > MOST {
        tell("must be 16 addresses at most");
    }
    // Port 0 is a different one each time.
    let twice = |(i, a): (usize, &SocketAddr)| a.port() != 0 && addresses.0[..i].contains(a);
    if addresses.0.iter().enumerate().any(twice) {
        tell("names an address twice");
    }
    bad
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_json(json: &str, want: &str) {
        let said = match serde_json::from_str::<Addresses>(json) {
            Err(error) => error.to_string(),
            Ok(addresses) => match check(&addresses, None).first() {
                Some(bad) => bad.to_string(),
                None => {
                    assert_eq!(serde_json::to_string(&addresses).unwrap(), json);
                    addresses.to_string()
                }
            },
        };
        assert!(said.starts_with(want), "{json}: {said}");
    }

    #[test]
    fn one_address_or_a_list() {
        check_json("\"127.0.0.1:6432\"", "127.0.0.1:6432");
        check_json("[\"127.0.0.1:6432\",\"[::1]:6432\"]", "127.0.0.1:6432, [::1]:6432");
        check_json("\"localhost\"", "invalid value: string \"localhost\", expected an address with its port");
        check_json("[]", "proxy.listen = : must name an address");
        check_json("[\"[::1]:1\",\"[::1]:1\"]", "proxy.listen = [::1]:1, [::1]:1: names an address twice");
    }

    #[test]
    fn those_for_reads_only_are_others() {
        let of = |ports: std::ops::Range<u16>| Addresses::new(ports.map(|p| ([127, 0, 0, 1], p).into()).collect());
        let told =
            |all: &Addresses, reads: &Addresses| check(all, Some(reads)).iter().map(ToString::to_string).collect();
        let none: Vec<String> = told(&of(1..9), &of(9..17));
        assert!(none.is_empty(), "{none:?}");
        let one: Vec<String> = told(&of(1..2), &of(1..2));
        assert_eq!(one, ["proxy.listen_read_only = 127.0.0.1:1: names an address of proxy.listen"]);
        let many: Vec<String> = told(&of(1..9), &of(9..18));
        assert!(many[0].ends_with("must be 16 addresses at most together with proxy.listen"), "{many:?}");
        assert_eq!(check(&of(1..2), Some(&of(1..1))).len(), 1);
    }
}
