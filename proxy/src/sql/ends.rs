//! The beginning and the end of a name, as numbers: enough to look it up by, and up to sixteen bytes it is the name.

/// The first and the last eight bytes of a name, which overlap where it is shorter than both, and its length. Names of up
/// to 16 bytes are equal where these are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ends {
    first: u64,
    last: u64,
    pub(super) length: usize,
}

impl Ends {
    pub(super) const NONE: Self = Self::of(b"");

    #[inline]
    pub(super) const fn of(name: &[u8]) -> Self {
        let length = name.len();
        let (first, last) = match (name.first_chunk::<8>(), name.last_chunk::<8>()) {
            (Some(first), Some(last)) => (u64::from_le_bytes(*first), u64::from_le_bytes(*last)),
            _ => (short(name), 0),
        };
        Self { first, last, length }
    }

    /// A number of so many bits, which is to differ from that of other names.
    #[inline]
    pub(super) const fn mix(self, bits: u32) -> usize {
        const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
        let all = self.first ^ self.last.rotate_left(29) ^ self.length as u64;
        (all.wrapping_mul(FACTOR) >> (u64::BITS - bits)) as usize
    }

    /// The same in lower case, as far as it is ASCII.
    const fn lower(self) -> Self {
        Self { first: lower(self.first), last: lower(self.last), ..self }
    }
}

/// A name of less than eight bytes, and zeroes behind it.
#[inline]
pub(super) const fn short(name: &[u8]) -> u64 {
    match (name.first_chunk::<4>(), name.last_chunk::<4>()) {
        (Some(first), Some(last)) => {
            u32::from_le_bytes(*first) as u64 | (u32::from_le_bytes(*last) as u64) << (8 * (name.len() - 4))
        }
        _ => match name {
            [a] => *a as u64,
            [a, b] => *a as u64 | (*b as u64) << 8,
            [a, b, c] => *a as u64 | (*b as u64) << 8 | (*c as u64) << 16,
            _ => 0,
        },
    }
}

/// Room for a name.
pub(super) type Room = [u8; 64];

/// Write a name of at most so many bytes in lower case, as far as it is ASCII, and zeroes up to the next multiple of eight;
/// its ends. What is written in words of eight bytes can be read in such words at once, which it could not if these overlapped.
#[inline]
pub(super) fn fold(name: &[u8], room: &mut Room) -> Ends {
    let ends = Ends::of(name).lower();
    let (words, rest) = name.as_chunks::<8>();
    let (to, _) = room.as_chunks_mut::<8>();
    for (to, word) in to.iter_mut().zip(words) {
        *to = lower(u64::from_le_bytes(*word)).to_le_bytes();
    }
    if let Some(to) = to.get_mut(words.len()) {
        *to = lower(short(rest)).to_le_bytes();
    }
    ends
}

/// Eight bytes in lower case.
#[inline]
const fn lower(bytes: u64) -> u64 {
    const EACH: u64 = 0x0101_0101_0101_0101;
    let low = bytes & (EACH * 0x7f);
    // The highest bit of each: at least an A, more than a Z.
    let from = low + EACH * (0x80 - b'A' as u64);
    let behind = low + EACH * (0x7f - b'Z' as u64);
    bytes | (from & !behind & !bytes & (EACH << 7)) >> 2
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn names_are_folded_as_bytes_are(name in prop::collection::vec(any::<u8>(), 0..65)) {
            let mut room = [0x55; 64];
            let ends = fold(&name, &mut room);
            let folded = name.to_ascii_lowercase();
            prop_assert_eq!(&room[..name.len()], &folded);
            prop_assert_eq!(ends, Ends::of(&folded));
        }

        #[test]
        fn short_names_are_told_apart(a in "[a-c_]{0,18}", b in "[a-c_]{0,18}", at in 0_usize..18) {
            let mut near = a.clone().into_bytes();
            if let Some(byte) = near.get_mut(at) {
                *byte ^= 1;
            }
            for other in [b.as_bytes(), &near] {
                let same = Ends::of(a.as_bytes()) == Ends::of(other);
                prop_assert!(same == (a.as_bytes() == other) || a.len() > 16 && other.len() == a.len());
            }
        }
    }

    #[test]
    fn every_byte_is_folded() {
        for byte in 0..=u8::MAX {
            assert_eq!(lower(u64::from(byte) << 24 | 0x41), u64::from(byte.to_ascii_lowercase()) << 24 | 0x61);
        }
    }
}
