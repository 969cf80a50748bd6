//! Parts of the configuration that several crates share: durations and sizes with their units, and how errors name a
//! key. Reading files is not done here.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A duration as typed: a whole number and a unit, `250ms`, `10s`, `5min`, `2h`, `1d`. Zero is `0s`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

/// A size as typed: a whole number and a unit, `512B`, `16KiB`, `64MiB`, `1GiB`. Bytes inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

const SPANS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("min", 60_000), ("s", 1000), ("ms", 1)];
const SIZES: [(&str, u64); 4] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

/// A value with a missing or unknown unit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{value:?} is not a {what}: expected a whole number and one of {units}, as in {example:?}")]
pub struct UnitError {
    value: String,
    what: &'static str,
    units: &'static str,
    example: &'static str,
}

fn scaled(s: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = s.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = s.split_at(digits);
    let unit = unit.trim_start();
    let factor = units.iter().find(|(u, _)| *u == unit)?.1;
    number.parse::<u64>().ok()?.checked_mul(factor)
}

fn shortest(v: u64, units: &[(&'static str, u64)]) -> (u64, &'static str) {
    let fits = |f: u64| v != 0 && v.is_multiple_of(f);
    units.iter().find(|(_, f)| fits(*f)).map_or((v, units[units.len() - 1].0), |(u, f)| (v / f, u))
}

impl FromStr for Span {
    type Err = UnitError;
    fn from_str(s: &str) -> Result<Self, UnitError> {
        scaled(s.trim(), &SPANS).map(|ms| Self(Duration::from_millis(ms))).ok_or_else(|| UnitError {
            value: s.to_owned(),
            what: "duration",
            units: "ms, s, min, h, d",
            example: "10s",
        })
    }
}

impl FromStr for Size {
    type Err = UnitError;
    fn from_str(s: &str) -> Result<Self, UnitError> {
        scaled(s.trim(), &SIZES).map(Self).ok_or_else(|| UnitError {
            value: s.to_owned(),
            what: "size",
            units: "B, KiB, MiB, GiB",
            example: "16KiB",
        })
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (n, unit) = shortest(u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX), &SPANS);
        write!(f, "{n}{unit}")
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (n, unit) = shortest(self.0, &SIZES);
        write!(f, "{n}{unit}")
    }
}

macro_rules! text_serde {
    ($t:ty) => {
        impl<'de> Deserialize<'de> for $t {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
            }
        }
        impl Serialize for $t {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }
    };
}
text_serde!(Span);
text_serde!(Size);

impl Span {
    /// So many milliseconds.
    pub const fn millis(ms: u64) -> Self {
        Self(Duration::from_millis(ms))
    }

    /// So many seconds.
    pub const fn secs(s: u64) -> Self {
        Self(Duration::from_secs(s))
    }
}

/// A setting that is out of range or contradicts another; `key` is the full dotted key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key} = {value}: {problem}")]
pub struct BadSetting {
    /// Dotted key, as in `proxy.hold_timeout`.
    pub key: String,
    /// The value as typed or as understood. Never a secret.
    pub value: String,
    /// What is wrong, naming the other key and its value when a relation is broken.
    pub problem: String,
}

impl BadSetting {
    /// A problem with `key`.
    pub fn new(key: &str, value: impl fmt::Display, problem: impl Into<String>) -> Self {
        Self { key: key.to_owned(), value: value.to_string(), problem: problem.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn parsing_what_was_printed_gives_it_back(ms in 0u64..10_000_000_000, bytes: u32) {
            prop_assert_eq!(Span::millis(ms).to_string().parse(), Ok(Span::millis(ms)));
            prop_assert_eq!(Size(u64::from(bytes)).to_string().parse(), Ok(Size(u64::from(bytes))));
        }
    }

    #[test]
    fn a_number_without_unit_is_refused() {
        for bad in ["10", "s", "10 sec", "-1s", "1.5s", ""] {
            assert!(bad.parse::<Span>().is_err(), "{bad:?}");
        }
        let text = "16".parse::<Size>().unwrap_err().to_string();
        assert_eq!(text, r#""16" is not a size: expected a whole number and one of B, KiB, MiB, GiB, as in "16KiB""#);
    }
}
