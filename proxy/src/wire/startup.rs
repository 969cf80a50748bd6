//! The packets that come before the first typed message: startup, SSL and GSS requests, cancel.
//!
//! Source: PostgreSQL documentation, "Message Formats" (StartupMessage, SSLRequest, GSSENCRequest, CancelRequest);
//! src/include/libpq/pqcomm.h.

use crate::wire::codec::split_cstring;
use crate::wire::lossless;

/// Longest startup packet, bytes: MAX_STARTUP_PACKET_LENGTH is without the length field.
pub const MAX_PACKET: usize = 10_000 + 4;

/// Longest secret of a cancel key, bytes (protocol 3.2).
const MAX_SECRET: usize = 256;
/// The newest minor version of protocol 3 that we speak. 3.1 was never one.
pub const NEWEST_MINOR: u16 = 2;

/// The code of a CancelRequest.
pub const CANCEL: u32 = 80_877_102;
const SSL: u32 = 80_877_103;
const GSSENC: u32 = 80_877_104;

/// An SSLRequest.
pub const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

/// What a client asks for with its first packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Packet {
    /// May we talk TLS?
    Ssl,
    /// May we talk GSSAPI encryption?
    GssEnc,
    /// Cancel what the session of this key does.
    Cancel {
        /// Process number as we gave it out.
        pid: u32,
        /// Secret as we gave it out, 4 to 256 bytes.
        secret: Vec<u8>,
    },
    /// Start a session.
    Startup(Startup),
    /// `replication` is neither a truth value nor `database`.
    BadReplication {
        /// What it is.
        value: String,
    },
    /// A protocol version we do not speak.
    UnknownVersion {
        /// Major version.
        major: u16,
        /// Minor version.
        minor: u16,
    },
}

/// A StartupMessage of protocol 3. All text in it is as [`lossless`] keeps it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Startup {
    /// Minor version asked for; see [`NEWEST_MINOR`].
    pub minor: u16,
    /// `user`; empty when missing.
    pub user: String,
    /// `database`; the user's name when missing.
    pub database: String,
    /// `replication`, when given and not off.
    pub replication: bool,
    /// `application_name`: any bytes, which are shown as far as they are ASCII.
    pub application_name: Option<Vec<u8>>,
    /// Every other parameter in order of name, to be sent to the servers as they are. The last of duplicates wins, whatever the
    /// case of its name.
    pub parameters: Vec<(String, String)>,
    /// `_pq_.` options, none of which we know.
    pub extensions: Vec<String>,
}

impl Startup {
    /// Does it ask for physical replication, which belongs to no database? Logical replication belongs to one.
    pub fn is_physical(&self) -> bool {
        self.replication && !self.parameters.iter().any(|(n, v)| n == "replication" && v == "database")
    }
}

/// A first packet that makes no sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadPacket {
    /// The length field is out of range.
    #[error("invalid length of startup packet")]
    Length,
    /// No terminator, a name without value, or bytes behind the end.
    #[error("invalid startup packet layout")]
    Layout,
}

/// Bytes of the packet at the start of `buf`, its length field included; `None` while that field is incomplete.
///
/// # Errors
/// A length below 8 or above [`MAX_PACKET`].
pub fn packet_len(buf: &[u8]) -> Result<Option<usize>, BadPacket> {
    let Some((length, _)) = buf.split_first_chunk::<4>() else { return Ok(None) };
    match usize::try_from(i32::from_be_bytes(*length)) {
        Ok(n) if (8..=MAX_PACKET).contains(&n) => Ok(Some(n)),
        _ => Err(BadPacket::Length),
    }
}

/// Read a whole packet, its length field included.
///
/// # Errors
/// See [`BadPacket`].
pub fn parse(packet: &[u8]) -> Result<Packet, BadPacket> {
    let word = |at: usize| -> Option<u32> { Some(u32::from_be_bytes(packet.get(at..at + 4)?.try_into().ok()?)) };
    let code = word(4).ok_or(BadPacket::Length)?;
    match code {
        SSL | GSSENC if packet.len() != 8 => Err(BadPacket::Length),
        SSL => Ok(Packet::Ssl),
        GSSENC => Ok(Packet::GssEnc),
        CANCEL if !(16..=12 + MAX_SECRET).contains(&packet.len()) => Err(BadPacket::Length),
        CANCEL => Ok(Packet::Cancel { pid: word(8).ok_or(BadPacket::Length)?, secret: packet[12..].to_vec() }),
        _ if code >> 16 != 3 => Ok(Packet::UnknownVersion { major: (code >> 16) as u16, minor: code as u16 }),
        _ => startup(code as u16, &packet[8..]),
    }
}

fn startup(minor: u16, mut rest: &[u8]) -> Result<Packet, BadPacket> {
    let mut s = Startup { minor, ..Startup::default() };
    let mut database = None;
    loop {
        let (name, after) = split_cstring(rest).ok_or(BadPacket::Layout)?;
        if name.is_empty() {
            break if after.is_empty() { Ok(()) } else { Err(BadPacket::Layout) };
        }
        let (value, after) = split_cstring(after).ok_or(BadPacket::Layout)?;
        rest = after;
        let name = &*lossless::keep(name);
        if name == "application_name" {
            s.application_name = Some(value.to_owned());
            continue;
        }
        let value = lossless::keep(value).into_owned();
        match name {
            "user" => s.user = value,
            "database" => database = Some(value),
            "replication" => {
                let asked = if value == "database" { Some(true) } else { truth(&value) };
                let Some(asked) = asked else { return Ok(Packet::BadReplication { value }) };
                s.replication = asked;
                s.parameters.retain(|(n, _)| *n != name);
                if s.replication {
                    s.parameters.push((name.to_owned(), value));
                }
            }
            _ if name.starts_with("_pq_.") => s.extensions.push(name.to_owned()),
            _ => {
                s.parameters.retain(|(n, _)| !n.eq_ignore_ascii_case(name));
                s.parameters.push((name.to_owned(), value));
            }
        }
    }?;
    s.parameters.sort();
    s.database = database.filter(|d| !d.is_empty()).unwrap_or_else(|| s.user.clone());
    Ok(Packet::Startup(s))
}

/// A truth value as PostgreSQL reads one: any beginning of its words that is no other's (parse_bool).
fn truth(value: &str) -> Option<bool> {
    let begins = |word: &str, least: usize| {
        value.len() >= least && word.get(..value.len()).is_some_and(|w| w.eq_ignore_ascii_case(value))
    };
    match value {
        "1" => Some(true),
        "0" => Some(false),
        _ if begins("true", 1) || begins("yes", 1) || begins("on", 2) => Some(true),
        _ if begins("false", 1) || begins("no", 1) || begins("off", 2) => Some(false),
        _ => None,
    }
}

/// Append a StartupMessage of protocol 3.0.
pub fn write_startup<'a>(out: &mut Vec<u8>, parameters: impl Iterator<Item = (&'a str, &'a str)>) {
    let at = out.len();
    out.extend_from_slice(&[0, 0, 0, 0, 0, 3, 0, 0]);
    for (name, value) in parameters {
        for text in [name, value] {
            out.extend_from_slice(&lossless::bytes(text));
            out.push(0);
        }
    }
    out.push(0);
    let length = u32::try_from(out.len() - at).expect("startup packets are bounded");
    out[at..at + 4].copy_from_slice(&length.to_be_bytes());
}

/// A CancelRequest.
pub fn cancel_request(pid: u32, secret: u32) -> [u8; 16] {
    let mut packet = [0; 16];
    for (i, word) in [16, CANCEL, pid, secret].into_iter().enumerate() {
        packet[i * 4..i * 4 + 4].copy_from_slice(&u32::to_be_bytes(word));
    }
    packet
}

/// A CancelRequest with a secret of any length.
pub fn long_cancel_request(pid: u32, secret: &[u8]) -> Vec<u8> {
    let length = u32::try_from(12 + secret.len()).expect("secrets are short");
    [&length.to_be_bytes()[..], &CANCEL.to_be_bytes(), &pid.to_be_bytes(), secret].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(parameters: &[(&str, &str)]) -> Vec<u8> {
        let mut out = Vec::new();
        write_startup(&mut out, parameters.iter().copied());
        out
    }

    #[test]
    fn the_database_defaults_to_the_user_and_the_last_duplicate_wins() {
        let parameters = [("search_path", "a"), ("datestyle", "SQL"), ("DateStyle", "ISO"), ("search_path", "b")];
        let p = packet(&[&[("user", "ann")][..], &parameters].concat());
        assert_eq!(packet_len(&p), Ok(Some(p.len())));
        let Ok(Packet::Startup(s)) = parse(&p) else { panic!("{:?}", parse(&p)) };
        assert_eq!((s.user.as_str(), s.database.as_str()), ("ann", "ann"));
        let want = [("DateStyle", "ISO"), ("search_path", "b")].map(|(a, b)| (a.to_owned(), b.to_owned()));
        assert_eq!(s.parameters, want);
    }

    #[test]
    fn special_parameters_are_taken_out() {
        let p = packet(&[
            ("user", "u"),
            ("database", "d"),
            ("replication", "database"),
            ("_pq_.x", "1"),
            ("application_name", "psql"),
        ]);
        let Ok(Packet::Startup(s)) = parse(&p) else { panic!("{:?}", parse(&p)) };
        // The server must read this one too.
        assert!(s.replication && s.parameters == [("replication".to_owned(), "database".to_owned())]);
        assert_eq!(
            (s.extensions.as_slice(), s.application_name.as_deref()),
            (&["_pq_.x".to_owned()][..], Some(&b"psql"[..]))
        );
    }

    #[test]
    fn the_name_of_an_application_may_be_any_bytes() {
        let mut p = vec![0, 0, 0, 0, 0, 3, 0, 0];
        p.extend_from_slice(b"user\0u\0application_name\0gr\xfcn\0\0");
        let Ok(Packet::Startup(s)) = parse(&p) else { panic!("{:?}", parse(&p)) };
        assert_eq!(s.application_name.as_deref(), Some(&b"gr\xfcn"[..]));
    }

    #[test]
    fn any_bytes_reach_the_server_as_they_are() {
        let mut p = vec![0, 0, 0, 0, 0, 3, 0, 0];
        p.extend_from_slice(b"database\0d\xe4\0options\0-c app.x=\xff\xc3\xa4\0user\0gr\xfcn\0\0");
        let Ok(Packet::Startup(s)) = parse(&p) else { panic!("{:?}", parse(&p)) };
        let mut out = Vec::new();
        let own = s.parameters.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let (database, user) = (("database", s.database.as_str()), ("user", s.user.as_str()));
        write_startup(&mut out, [database].into_iter().chain(own).chain([user]));
        assert_eq!(out[8..], p[8..]);
    }

    #[test]
    fn replication_is_a_truth_value_or_a_database() {
        for value in ["", "o", "2", "Database", "nonsense", "t ", "truest"] {
            let bad = Packet::BadReplication { value: value.to_owned() };
            assert_eq!(parse(&packet(&[("user", "u"), ("replication", value)])), Ok(bad));
        }
        for (value, want) in [("tr", true), ("ON", true), ("1", true), ("of", false), ("N", false), ("0", false)] {
            let Ok(Packet::Startup(s)) = parse(&packet(&[("user", "u"), ("replication", value)])) else {
                panic!("{value}")
            };
            assert_eq!(s.replication, want, "{value}");
        }
    }

    #[test]
    fn requests_and_nonsense_are_told_apart() {
        assert_eq!(parse(&[0, 0, 0, 8, 4, 210, 22, 47]), Ok(Packet::Ssl));
        assert_eq!(parse(&[0, 0, 0, 8, 4, 210, 22, 48]), Ok(Packet::GssEnc));
        assert_eq!(parse(&cancel_request(7, 9)), Ok(Packet::Cancel { pid: 7, secret: vec![0, 0, 0, 9] }));
        for (length, good) in [(3, false), (4, true), (32, true), (256, true), (257, false)] {
            let packet = long_cancel_request(7, &vec![1; length]);
            assert_eq!(parse(&packet).is_ok(), good, "a secret of {length} bytes");
        }
        assert_eq!(parse(&[0, 0, 0, 9, 0, 2, 0, 0, 0]), Ok(Packet::UnknownVersion { major: 2, minor: 0 }));
        assert_eq!(packet_len(&[0, 0, 0, 7]), Err(BadPacket::Length));
        assert_eq!(packet_len(b"GET "), Err(BadPacket::Length));
        // As PostgreSQL, which counts without the length field.
        assert_eq!(packet_len(&10_004u32.to_be_bytes()), Ok(Some(10_004)));
        assert_eq!(packet_len(&10_005u32.to_be_bytes()), Err(BadPacket::Length));
        assert_eq!(packet_len(&[0, 0]), Ok(None));
        for body in [&b"user\0x"[..], b"user\0x\0", b"user\0x\0\0more"] {
            let mut p = vec![0, 0, 0, 0, 0, 3, 0, 0];
            p.extend_from_slice(body);
            assert_eq!(parse(&p), Err(BadPacket::Layout), "{body:?}");
        }
    }
}
