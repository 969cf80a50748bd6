//! Answers of the console on the wire: tables with typed columns, in text or binary form.
//!
//! Source: PostgreSQL documentation, "Message Formats"; src/include/catalog/pg_type.dat; numeric_send in
//! src/backend/utils/adt/numeric.c for the binary form of numeric.

use crate::wire::codec::{cstring, message};

/// A column's type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// text
    Text,
    /// int4
    Int4,
    /// int8
    Int8,
    /// numeric, whole numbers only: PgBouncer's sums have this type.
    Numeric,
}

impl Kind {
    const fn oid(self) -> u32 {
        match self {
            Self::Text => 25,
            Self::Int4 => 23,
            Self::Int8 => 20,
            Self::Numeric => 1700,
        }
    }

    const fn size(self) -> i16 {
        match self {
            Self::Text | Self::Numeric => -1,
            Self::Int4 => 4,
            Self::Int8 => 8,
        }
    }
}

/// A column: name and type.
pub type Column = (&'static str, Kind);

/// A value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cell {
    /// NULL
    Null,
    /// For a text column.
    Text(String),
    /// For a column of numbers; what does not fit an int4 column is shown as its largest value.
    Number(i64),
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

macro_rules! from_number {
    ($($t:ty)+) => {$(
        impl From<$t> for Cell {
            fn from(n: $t) -> Self {
                Self::Number(i64::try_from(n).unwrap_or(i64::MAX))
            }
        }
    )+};
}
from_number!(u16 u32 u64 usize u128);

impl From<bool> for Cell {
    fn from(yes: bool) -> Self {
        Self::Number(i64::from(yes))
    }
}

impl<T: Into<Self>> From<Option<T>> for Cell {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, Into::into)
    }
}

/// One row.
pub type Row = Vec<Cell>;

/// Result formats as a Bind gives them: none for text everywhere, one for all columns, or one for each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Formats(pub Vec<u16>);

impl Formats {
    /// 0 for text, 1 for binary.
    pub fn of(&self, column: usize) -> u16 {
        match self.0.as_slice() {
            [] => 0,
            [all] => *all,
            each => each.get(column).copied().unwrap_or(0),
        }
    }
}

/// Append a RowDescription.
pub fn write_columns(out: &mut Vec<u8>, columns: &[Column], formats: &Formats) {
    message(out, b'T', |b| {
        b.extend_from_slice(&count(columns.len()));
        for (i, (name, kind)) in columns.iter().enumerate() {
            cstring(b, name.as_bytes());
            // No table, no column there.
            b.extend_from_slice(&[0; 6]);
            b.extend_from_slice(&kind.oid().to_be_bytes());
            b.extend_from_slice(&kind.size().to_be_bytes());
            b.extend_from_slice(&(-1i32).to_be_bytes());
            b.extend_from_slice(&formats.of(i).to_be_bytes());
        }
    });
}

/// Append a DataRow.
pub fn write_row(out: &mut Vec<u8>, columns: &[Column], row: &Row, formats: &Formats) {
    assert_eq!(columns.len(), row.len(), "a row has a cell for each column");
    message(out, b'D', |b| {
        b.extend_from_slice(&count(row.len()));
        for (i, (cell, (_, kind))) in row.iter().zip(columns).enumerate() {
            let value = match cell {
                Cell::Null => {
                    b.extend_from_slice(&(-1i32).to_be_bytes());
                    continue;
                }
                Cell::Text(text) => text.clone().into_bytes(),
                Cell::Number(n) if formats.of(i) == 1 => binary(*kind, *n),
                Cell::Number(n) => fitted(*kind, *n).to_string().into_bytes(),
            };
            b.extend_from_slice(&u32::try_from(value.len()).expect("values are short").to_be_bytes());
            b.extend_from_slice(&value);
        }
    });
}

/// Append a NoticeResponse.
pub fn write_notice(out: &mut Vec<u8>, text: &str, detail: Option<&str>) {
    message(out, b'N', |b| {
        let fields = [(b'S', "NOTICE"), (b'V', "NOTICE"), (b'C', "00000"), (b'M', text)];
        for (kind, value) in fields.into_iter().chain(detail.map(|d| (b'D', d))) {
            b.push(kind);
            cstring(b, value.as_bytes());
        }
        b.push(0);
    });
}

fn count(n: usize) -> [u8; 2] {
    u16::try_from(n).expect("tables have few columns").to_be_bytes()
}

fn fitted(kind: Kind, n: i64) -> i64 {
    match kind {
        Kind::Int4 => n.clamp(i64::from(i32::MIN), i64::from(i32::MAX)),
        Kind::Text | Kind::Int8 | Kind::Numeric => n,
    }
}

fn binary(kind: Kind, n: i64) -> Vec<u8> {
    match kind {
        Kind::Text => n.to_string().into_bytes(),
        Kind::Int4 => i32::try_from(fitted(kind, n)).expect("just made to fit").to_be_bytes().to_vec(),
        Kind::Int8 => n.to_be_bytes().to_vec(),
        Kind::Numeric => numeric(n),
    }
}

/// Digits to the base 10000, their number, the weight of the first, the sign, and no decimals.
fn numeric(n: i64) -> Vec<u8> {
    let mut digits = Vec::new();
    let mut rest = n.unsigned_abs();
    while rest > 0 {
        digits.push(u16::try_from(rest % 10_000).expect("below 10000"));
        rest /= 10_000;
    }
    let weight = u16::try_from(digits.len().saturating_sub(1)).expect("at most five digits");
    // Zeroes at the end are left out; the weight tells that they are there.
    let zeroes = digits.iter().take_while(|d| **d == 0).count();
    digits.drain(..zeroes);
    let sign: u16 = if n < 0 { 0x4000 } else { 0 };
    let mut out = Vec::new();
    out.extend_from_slice(&count(digits.len()));
    for part in [weight, sign, 0].into_iter().chain(digits.into_iter().rev()) {
        out.extend_from_slice(&part.to_be_bytes());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_the_forms_of_their_types() {
        assert_eq!(binary(Kind::Int4, 5), [0, 0, 0, 5]);
        assert_eq!(binary(Kind::Int4, i64::MAX), i32::MAX.to_be_bytes());
        assert_eq!(binary(Kind::Int8, 5), [0, 0, 0, 0, 0, 0, 0, 5]);
        // As `select numeric_send(n)` has them.
        assert_eq!(numeric(0), [0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(numeric(1), [0, 1, 0, 0, 0, 0, 0, 0, 0, 1]);
        assert_eq!(numeric(10_000), [0, 1, 0, 1, 0, 0, 0, 0, 0, 1]);
        assert_eq!(numeric(12_345), [0, 2, 0, 1, 0, 0, 0, 0, 0, 1, 9, 41]);
        assert_eq!(numeric(-3), [0, 1, 0, 0, 64, 0, 0, 0, 0, 3]);
    }

    #[test]
    fn a_row_has_null_text_and_numbers() {
        let columns = [("a", Kind::Text), ("b", Kind::Int8), ("c", Kind::Text)];
        let mut out = Vec::new();
        write_row(&mut out, &columns, &vec!["x".into(), 7u64.into(), Cell::Null], &Formats(vec![0, 1, 0]));
        let want = b"D\0\0\0\x1b\0\x03\0\0\0\x01x\0\0\0\x08\0\0\0\0\0\0\0\x07\xff\xff\xff\xff";
        assert_eq!(out, want);
        assert_eq!((Formats(vec![1]).of(4), Formats::default().of(4)), (1, 0));
    }
}
