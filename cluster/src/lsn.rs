//! Log sequence numbers: byte positions in PostgreSQL's write-ahead log.
//!
//! Source: PostgreSQL documentation, "pg_lsn Type"; src/include/access/xlogdefs.h.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

/// WAL page size in bytes (XLOG_BLCKSZ); every distributed build uses 8 KiB.
const PAGE: u64 = 8192;
/// Bytes of a short page header (SizeOfXLogShortPHD).
const SHORT_HEADER: u64 = 24;
/// Bytes of a long page header, the first page of a segment (SizeOfXLogLongPHD).
const LONG_HEADER: u64 = 40;

/// A position in the WAL, in bytes. Positions of different timelines are comparable only up to their fork.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(pub u64);

impl Lsn {
    /// The invalid position `0/0`.
    pub const INVALID: Self = Self(0);

    /// Bytes from `earlier` to `self`; `None` when `earlier` is ahead.
    pub fn checked_sub(self, earlier: Self) -> Option<u64> {
        self.0.checked_sub(earlier.0)
    }

    /// Bytes from `earlier` to `self`; 0 when `earlier` is ahead.
    pub fn bytes_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// An insert position brought back to what a standby can replay up to.
    ///
    /// `pg_current_wal_insert_lsn()` at a page boundary already skips the next page's header, a position that no
    /// standby reaches until another record is written; waiting for it on an idle primary would never end.
    pub fn normalised_insert(self) -> Self {
        match self.0 % PAGE {
            SHORT_HEADER => Self(self.0 - SHORT_HEADER),
            LONG_HEADER => Self(self.0 - LONG_HEADER),
            _ => self,
        }
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

/// A text that is not an LSN.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not an LSN: {0:?} (expected hexadecimal X/X)")]
pub struct ParseLsnError(String);

impl FromStr for Lsn {
    type Err = ParseLsnError;
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let bad = || ParseLsnError(s.chars().take(64).collect());
        let (hi, lo) = s.split_once('/').ok_or_else(bad)?;
        let half = |t: &str| -> Option<u64> {
            let digits = !t.is_empty() && t.len() <= 8 && t.bytes().all(|b| b.is_ascii_hexdigit());
            if digits { u64::from_str_radix(t, 16).ok() } else { None }
        };
        Ok(Self(half(hi).ok_or_else(bad)? << 32 | half(lo).ok_or_else(bad)?))
    }
}

impl Serialize for Lsn {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Lsn {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn parsing_what_was_printed_gives_it_back(v: u64) {
            prop_assert_eq!(Lsn(v).to_string().parse::<Lsn>(), Ok(Lsn(v)));
        }
    }

    #[test]
    fn a_text_that_is_no_lsn_is_refused() {
        for bad in ["", "/", "0", "0/", "/0", "0/123456789", "+1/0", "g/0", "0/0/0", " 0/0"] {
            assert!(bad.parse::<Lsn>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn an_insert_position_behind_a_page_header_falls_back_to_the_page() {
        let at = |s: &str| s.parse::<Lsn>().unwrap().normalised_insert().to_string();
        assert_eq!(at("0/4002018"), "0/4002000");
        assert_eq!(at("0/4000028"), "0/4000000");
        assert_eq!(at("0/4002019"), "0/4002019");
        assert_eq!(at("0/4002000"), "0/4002000");
    }

    #[test]
    fn a_difference_never_wraps() {
        assert_eq!(Lsn(5).checked_sub(Lsn(7)), None);
        assert_eq!(Lsn(5).bytes_since(Lsn(7)), 0);
        assert_eq!(Lsn(7).bytes_since(Lsn(5)), 2);
    }
}
