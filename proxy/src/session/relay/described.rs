//! The parameters and columns of a statement that its client was told.

use crate::session::relay::{Kind, Relay};
use crate::session::statements::Text;
use crate::wire::codec::{HEAD, split_cstring};
use std::rc::Rc;

/// A client has read the description of one of its statements.
#[derive(Debug)]
pub struct Described {
    /// The client's name for it.
    pub name: Rc<[u8]>,
    /// What it was then.
    pub text: Rc<Text>,
    /// Its parameters and columns, hashed.
    pub columns: u64,
    /// Its parameters' types, as a Parse message has them.
    pub types: Box<[u8]>,
}

impl Relay {
    /// ParameterDescription passes: RowDescription or NoData is next.
    pub(super) fn note_types(&mut self, frame: &[u8]) {
        self.types.clear();
        self.types.extend_from_slice(types(frame));
    }

    /// RowDescription or NoData passes.
    pub(super) fn note_description(&mut self, frame: &[u8]) {
        let Some(entry) = self.queue.front().filter(|e| e.kind == Kind::DescribeStatement && !self.withhold) else {
            return;
        };
        if let Some(of) = &entry.uses {
            // Nothing is kept of what may have been long.
            let types = std::mem::take(&mut self.types).into_boxed_slice();
            let columns = columns(&types, frame);
            self.described.push(Described { name: of.name.clone(), text: of.text.clone(), columns, types });
        }
    }
}

/// The types in a ParameterDescription message, as a Parse message has them.
pub(super) fn types(frame: &[u8]) -> &[u8] {
    frame.get(HEAD..).unwrap_or_default()
}

/// Tells apart parameters by their types, and the columns of RowDescription messages by their names and types, as PostgreSQL
/// does; never 0. Which table they are of does not matter: one that is made anew may have the same.
pub(super) fn columns(types: &[u8], frame: &[u8]) -> u64 {
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    let mut key = 0xcbf2_9ce4_8422_2325_u64;
    for byte in types {
        key = (key ^ u64::from(*byte)).wrapping_mul(PRIME);
    }
    let mut rest = frame.get(7..).unwrap_or_default();
    while let Some((name, of)) = split_cstring(rest) {
        let Some((of, behind)) = of.split_at_checked(18) else { break };
        let typed = of[6..10].iter().chain(&of[12..16]);
        for byte in name.iter().chain(&[0]).chain(typed) {
            key = (key ^ u64::from(*byte)).wrapping_mul(PRIME);
        }
        rest = behind;
    }
    key | 1
}

#[cfg(test)]
mod tests {
    use super::types as types_of;
    use super::*;
    use crate::wire::codec::{cstring, message};

    fn described(fields: &[(&str, u32, u32)]) -> u64 {
        let mut out = Vec::new();
        message(&mut out, b'T', |b| {
            b.extend_from_slice(&(fields.len() as u16).to_be_bytes());
            for (name, table, kind) in fields {
                cstring(b, name.as_bytes());
                b.extend_from_slice(&table.to_be_bytes());
                b.extend_from_slice(&[0, 1]);
                b.extend_from_slice(&kind.to_be_bytes());
                b.extend_from_slice(&[0, 4, 0xff, 0xff, 0xff, 0xff, 0, 0]);
            }
        });
        columns(&[0, 0], &out)
    }

    #[test]
    fn columns_are_the_same_whatever_table_they_are_of() {
        let one = described(&[("a", 1, 23), ("b", 1, 25)]);
        assert_eq!(one, described(&[("a", 2, 23), ("b", 2, 25)]));
        for other in [&[("a", 1, 23)][..], &[("a", 1, 23), ("b", 1, 23)], &[("a", 1, 23), ("c", 1, 25)], &[]] {
            assert_ne!(one, described(other));
        }
    }

    #[test]
    fn a_statement_whose_parameters_have_other_types_is_another() {
        let mut none = Vec::new();
        message(&mut none, b'n', |_| {});
        let of = |types: &[u32]| {
            let mut out = Vec::new();
            message(&mut out, b't', |b| {
                b.extend_from_slice(&(types.len() as u16).to_be_bytes());
                types.iter().for_each(|of| b.extend_from_slice(&of.to_be_bytes()));
            });
            columns(types_of(&out), &none)
        };
        assert_eq!(of(&[23]), of(&[23]));
        for other in [&[20][..], &[23, 23], &[]] {
            assert_ne!(of(&[23]), of(other), "{other:?}");
        }
    }
}
