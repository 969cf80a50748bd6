//! Text that need not be UTF-8, kept in a string without loss. Pure.
//!
//! PostgreSQL compares names as bytes, in whatever encoding they were made. What a client sends before an encoding is agreed
//! on (its user, its database, its options) is any bytes, too. In a string, each byte that is in no character of UTF-8
//! stands as one of the last 128 characters of Unicode, which are nobody's; these themselves count as such bytes. So
//! strings are equal where the bytes are, and nothing else in the proxy has to know.

use std::borrow::Cow;

/// The character that stands for the byte 0.
const FIRST: u32 = 0x10_ff00;
/// Those that stand for bytes that can be in no character.
const BYTES: std::ops::RangeInclusive<char> = '\u{10ff80}'..='\u{10ffff}';

/// The string that stands for these bytes.
pub fn keep(bytes: &[u8]) -> Cow<'_, str> {
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.contains(|c| BYTES.contains(&c)) => Cow::Borrowed(text),
        _ => Cow::Owned(stand_in(bytes)),
    }
}

fn stand_in(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    let byte = |b: u8| char::from_u32(FIRST + u32::from(b)).expect("the last characters are no surrogates");
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                c if BYTES.contains(&c) => text.extend(c.encode_utf8(&mut [0; 4]).bytes().map(byte)),
                c => text.push(c),
            }
        }
        text.extend(chunk.invalid().iter().map(|b| byte(*b)));
    }
    text
}

/// The bytes that a string stands for.
pub fn bytes(text: &str) -> Cow<'_, [u8]> {
    if is_utf8(text) {
        return Cow::Borrowed(text.as_bytes());
    }
    let mut bytes = Vec::with_capacity(text.len());
    for c in text.chars() {
        match c {
            c if BYTES.contains(&c) => bytes.push((u32::from(c) - FIRST) as u8),
            c => bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    Cow::Owned(bytes)
}

/// Does a string stand for itself?
pub fn is_utf8(text: &str) -> bool {
    !text.contains(|c| BYTES.contains(&c))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn utf8_stands_for_itself_and_other_bytes_for_themselves() {
        assert!(matches!(keep("für".as_bytes()), Cow::Borrowed("für")));
        assert_eq!(keep(b"gr\xfcn"), "gr\u{10fffc}n");
        assert_eq!(*bytes("gr\u{10fffc}n"), *b"gr\xfcn");
        let last = "\u{10ffff}".as_bytes();
        assert_eq!((keep(last).chars().count(), &*bytes(&keep(last))), (4, last));
    }

    proptest! {
        #[test]
        fn nothing_is_lost(start in proptest::collection::vec(any::<u8>(), 0..8), text in "[a\u{10ff00}-\u{10ffff}é]{0,4}") {
            let all = [&start, text.as_bytes()].concat();
            let kept = keep(&all);
            prop_assert_eq!(&*bytes(&kept), &all[..]);
        }
    }
}
