//! What the words of a text could do, wherever they stand: for texts that cannot be read with certainty, and for the
//! bodies of DO.

use super::classify::words;
use super::effects::Head;
use super::ends::Ends;
use super::functions::FunctionTable;
use super::keyword::{Keyword as K, Known, keyword};
use super::{Local, Names, PinReason, Pins};

/// Longer words are none that matter.
const MAX_NAME: usize = 63;

/// What any word of a text could leave in the session, wherever it stands: also within literals, as the bodies of DO
/// and of functions are.
pub(super) fn pins_anywhere(sql: &[u8], functions: &FunctionTable) -> Pins {
    let (mut head, mut pins, mut before) = (Head::new(), Pins::NONE, K::None);
    each_word(sql, |word, name| {
        head.call(name);
        if name == b"set_config" {
            head.sets(false);
        }
        if functions.is_pinning(name) {
            pins.add(PinReason::Extension);
        }
        if let Some(left) = functions.bodies().get(name) {
            pins.join(left.pins);
        }
        if let Some(used) = functions.used(name) {
            pins.join(used.changed.pins);
        }
        match (before, word) {
            (_, K::Temp) => pins.add(PinReason::Temp),
            (K::With, K::Hold) => pins.add(PinReason::HeldCursor),
            (_, K::Listen) => pins.add(PinReason::Listen),
            (_, K::Set | K::Reset) => pins.add(PinReason::Set),
            _ => {}
        }
        before = word;
    });
    pins.join(head.calls);
    pins
}

/// May a function be called, wherever that stands, that is newer than what is known?
pub(super) fn calls_new(sql: &[u8], functions: &FunctionTable) -> bool {
    let mut lower = [0_u8; MAX_NAME];
    words(sql).any(|(at, word)| {
        let called = sql[at + word.len()..].trim_ascii_start().starts_with(b"(");
        let Some(lower) = lower.get_mut(..word.len()).filter(|_| called) else { return false };
        lower.copy_from_slice(word);
        lower.make_ascii_lowercase();
        Known::of(Ends::of(lower), lower) == Known::NOTHING && functions.is_new(lower)
    })
}

/// Could any word of a text take or leave an advisory lock?
pub(super) fn locks_anywhere(sql: &[u8], functions: &FunctionTable) -> bool {
    let (mut head, mut locks) = (Head::new(), false);
    each_word(sql, |_, name| {
        head.call(name);
        locks |= functions.bodies().get(name).is_some_and(|left| left.advisory);
        locks |= functions.used(name).is_some_and(|used| used.changed.advisory);
    });
    head.advisory || locks
}

/// Could any word of a text set something for its transaction only?
pub(super) fn local_anywhere(sql: &[u8], functions: &FunctionTable) -> Local {
    let mut sets = false;
    each_word(sql, |word, name| {
        sets |= word == K::Local || name == b"set_config";
        sets |= functions.bodies().get(name).is_some_and(|left| left.local != Local::Nothing);
        sets |= functions.used(name).is_some_and(|used| used.changed.local != Local::Nothing);
    });
    if sets { Local::Hidden } else { Local::Nothing }
}

/// What any word of a text could do with prepared statements, wherever it stands.
pub(super) fn names_anywhere(sql: &[u8]) -> Names {
    let mut names = Names::None;
    each_word(sql, |word, name| {
        names = worse(
            names,
            match word {
                K::Prepare | K::Deallocate => Names::Unknown,
                K::Execute => Names::Several,
                _ if name.starts_with(b"pg_prepared_statement") => Names::List,
                _ => Names::None,
            },
        );
    });
    names
}

/// Every run of characters that could be a word, as a keyword and in lower case.
pub(super) fn each_word(sql: &[u8], mut look: impl FnMut(K, &[u8])) {
    let mut lower = [0_u8; MAX_NAME];
    for word in sql.split(|b| !(b.is_ascii_alphanumeric() || matches!(b, b'_' | b'$' | 0x80..))) {
        if word.is_empty() || word.len() > MAX_NAME {
            continue;
        }
        let lower = &mut lower[..word.len()];
        lower.copy_from_slice(word);
        lower.make_ascii_lowercase();
        look(keyword(lower), lower);
    }
}

/// In a string of several statements that cannot be read: does any word begin a statement that pins?
pub(super) fn loose_pins(sql: &[u8]) -> Pins {
    sql.split(|b| *b == b';').fold(Pins::NONE, |mut pins, piece| {
        let mut head = Head::new();
        for word in piece.split(|b| !b.is_ascii_alphanumeric()).filter(|w| !w.is_empty()).take(6) {
            let mut lower = [0_u8; MAX_NAME];
            let known = word.len() <= MAX_NAME;
            let len = if known { word.len() } else { 0 };
            lower[..len].copy_from_slice(&word[..len]);
            lower[..len].make_ascii_lowercase();
            head.word(keyword(&lower[..len]));
        }
        pins.join(head.pins());
        pins
    })
}

/// What two statements of one text do with prepared statements, or one of which the text is only a part.
pub(super) fn worse(a: Names, b: Names) -> Names {
    let rank = |names: Names| match names {
        // The server tells when that has happened.
        Names::None | Names::All => 0,
        Names::Execute { .. } | Names::Several => 1,
        Names::List => 2,
        Names::Prepare | Names::Deallocate | Names::Unknown => 3,
    };
    [Names::None, Names::Several, Names::List, Names::Unknown][rank(a).max(rank(b))]
}
