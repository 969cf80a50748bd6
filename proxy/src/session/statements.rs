//! Protocol-level prepared statements: kept per client, prepared on a server where needed.
//!
//! A client's statement has the client's name; on servers the same text with the same parameter types has one name
//! for all clients, so that a server prepares it once. What is never shared is the verdict on the text: it depends on
//! how the client's session reads it.

use crate::sql::Statement;
use crate::wire::codec::split_cstring;
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::rc::{Rc, Weak};

/// Statements that a server keeps for us at most; the oldest is closed when one more is needed.
const MAX_PER_SERVER: usize = 1000;

/// A text with its parameter types, under the name it has on every server.
#[derive(Debug, PartialEq, Eq)]
pub struct Text {
    /// Unique in the process.
    pub id: u64,
    /// Its name on servers.
    pub server_name: Box<[u8]>,
    /// The tail of its Parse message: text, terminator, types.
    pub tail: Rc<[u8]>,
}

/// All texts that clients of one worker have prepared.
#[derive(Debug)]
pub struct Texts {
    known: HashMap<Rc<[u8]>, Weak<Text>>,
    next_id: u64,
    sweep_at: usize,
}

/// The name on servers of a text.
pub fn server_name(id: u64) -> Box<[u8]> {
    format!("pgtenure_{id:x}").into_bytes().into()
}

impl Texts {
    /// `first_id` keeps the workers' numbers apart: servers move between workers with what they have prepared.
    pub fn new(first_id: u64) -> Self {
        Self { known: HashMap::new(), next_id: first_id, sweep_at: 1024 }
    }

    /// The shared text of a Parse message with this tail.
    pub fn intern(&mut self, tail: &[u8]) -> Rc<Text> {
        if let Some(text) = self.known.get(tail).and_then(Weak::upgrade) {
            return text;
        }
        if self.known.len() >= self.sweep_at {
            self.known.retain(|_, text| text.strong_count() > 0);
            self.sweep_at = (self.known.len() * 2).max(1024);
        }
        let tail: Rc<[u8]> = tail.into();
        let id = self.fresh_id();
        let text = Rc::new(Text { id, server_name: server_name(id), tail: tail.clone() });
        self.known.insert(tail, Rc::downgrade(&text));
        text
    }

    /// Forget a text, so that the next client that prepares it gets another name: its plans have become unusable.
    pub fn forget(&mut self, text: &Text) {
        self.known.remove(&text.tail);
    }

    /// A number that no other text or unnamed statement has.
    pub fn fresh_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }
}

/// A client's named statement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// The shared text.
    pub text: Rc<Text>,
    /// What it does.
    pub class: Statement,
}

/// A client's unnamed statement.
#[derive(Clone, Debug)]
pub struct Unnamed {
    /// Tells whether a server still has this very one.
    pub serial: u64,
    /// The tail of its Parse message; `None` when it was too long to keep.
    pub tail: Option<Vec<u8>>,
    /// What it does.
    pub class: Statement,
}

/// The statements of one client.
#[derive(Debug, Default)]
pub struct ClientStatements {
    named: BTreeMap<Box<[u8]>, Named>,
    bytes: usize,
    /// The unnamed statement, until a simple query or a failed Parse destroys it.
    pub unnamed: Option<Unnamed>,
}

impl ClientStatements {
    /// The statement of that name.
    pub fn named(&self, name: &[u8]) -> Option<&Named> {
        self.named.get(name)
    }

    /// What the statement of that name does; the empty name is the unnamed one.
    pub fn class(&self, name: &[u8]) -> Option<Statement> {
        if name.is_empty() { self.unnamed.as_ref().map(|u| u.class) } else { self.named(name).map(|n| n.class) }
    }

    /// Bytes of all names and texts.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// How many are kept.
    pub fn len(&self) -> usize {
        self.named.len()
    }

    /// None kept?
    pub fn is_empty(&self) -> bool {
        self.named.is_empty()
    }

    /// Keep a statement under a name that is free.
    pub fn insert(&mut self, name: &[u8], statement: Named) {
        self.bytes += name.len() + statement.text.tail.len();
        if let Some(old) = self.named.insert(name.into(), statement) {
            self.bytes -= name.len() + old.text.tail.len();
        }
    }

    /// Drop the statement of that name.
    pub fn remove(&mut self, name: &[u8]) -> Option<Named> {
        let old = self.named.remove(name)?;
        self.bytes -= name.len() + old.text.tail.len();
        Some(old)
    }

    /// Look at every text again: what its functions do has become known, or has changed.
    pub fn reclassify(&mut self, classify: impl Fn(&[u8]) -> Statement) {
        let of = |tail: &[u8]| split_cstring(tail).map(|(sql, _)| classify(sql));
        for named in self.named.values_mut() {
            named.class = of(&named.text.tail).unwrap_or(named.class);
        }
        if let Some(unnamed) = &mut self.unnamed {
            unnamed.class = unnamed.tail.as_deref().and_then(of).unwrap_or(unnamed.class);
        }
    }

    /// Drop all, as DEALLOCATE ALL and DISCARD ALL do.
    pub fn clear(&mut self) {
        self.named.clear();
        self.bytes = 0;
        self.unnamed = None;
    }
}

/// What a server has prepared.
#[derive(Debug, Default)]
pub struct ServerStatements {
    prepared: HashSet<u64>,
    order: VecDeque<u64>,
    /// The serial of the unnamed statement it has.
    pub unnamed: Option<u64>,
}

impl ServerStatements {
    /// Is this text prepared?
    pub fn has(&self, id: u64) -> bool {
        self.prepared.contains(&id)
    }

    /// Note that a text is prepared; returns the one to close to make room.
    pub fn insert(&mut self, id: u64) -> Option<u64> {
        if self.prepared.insert(id) {
            self.order.push_back(id);
        }
        if self.prepared.len() <= MAX_PER_SERVER {
            return None;
        }
        let oldest = self.order.pop_front()?;
        self.prepared.remove(&oldest);
        Some(oldest)
    }

    /// Note that a text is not prepared after all.
    pub fn remove(&mut self, id: u64) {
        if self.prepared.remove(&id) {
            self.order.retain(|&other| other != id);
        }
    }

    /// Note that nothing is prepared.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// How many are prepared.
    pub fn len(&self) -> usize {
        self.prepared.len()
    }

    /// None prepared?
    pub fn is_empty(&self) -> bool {
        self.prepared.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sql::{Access, Control, Pins};

    const CLASS: Statement =
        Statement { access: Access::Read, control: Control::None, may_commit: false, pins: Pins::NONE, unpins: false };

    #[test]
    fn the_same_text_and_types_share_a_name_until_forgotten() {
        let mut texts = Texts::new(1 << 40);
        let a = texts.intern(b"select 1\0\0\0");
        assert!(Rc::ptr_eq(&a, &texts.intern(b"select 1\0\0\0")));
        assert_ne!(a.id, texts.intern(b"select 2\0\0\0").id);
        texts.forget(&a);
        assert_ne!(a.id, texts.intern(b"select 1\0\0\0").id);
    }

    #[test]
    fn the_bytes_of_a_client_follow_its_statements() {
        let (mut texts, mut client) = (Texts::new(0), ClientStatements::default());
        let named = Named { text: texts.intern(b"12345"), class: CLASS };
        client.insert(b"abc", named.clone());
        client.insert(b"abc", named);
        assert_eq!((client.bytes(), client.len()), (8, 1));
        assert!(client.remove(b"abc").is_some() && client.remove(b"abc").is_none());
        assert_eq!(client.bytes(), 0);
    }

    #[test]
    fn a_full_server_gives_up_its_oldest_statement() {
        let mut server = ServerStatements::default();
        for id in 0..MAX_PER_SERVER as u64 {
            assert_eq!(server.insert(id), None);
        }
        assert_eq!(server.insert(5), None);
        assert_eq!(server.insert(10_000), Some(0));
        assert!(!server.has(0) && server.has(1) && server.has(10_000));
    }
}
