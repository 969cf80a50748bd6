//! Protocol-level prepared statements: kept per client, prepared on a server where needed.
//!
//! A client's statement has the client's name; on servers the same text with the same parameter types has one name
//! for all clients, so that a server prepares it once. What is never shared is the verdict on the text: it depends on
//! how the client's session reads it.

use crate::sql::Statement;
use crate::wire::codec::split_cstring;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::{Rc, Weak};

/// What a statement costs a server beyond its text, bytes: its parse tree and plan are larger than the text, and this
/// is less than any of them takes.
const OVERHEAD: usize = 1024;

/// A text with its parameter types, under the name it has on every server.
#[derive(Debug, PartialEq, Eq)]
pub struct Text {
    /// Unique in the process.
    pub id: u64,
    /// What else decides what the text means, such as `search_path` and role: equal for sessions that agree.
    pub parse_key: u64,
    /// Its name on servers.
    pub server_name: Box<[u8]>,
    /// The tail of its Parse message: text, terminator, types.
    pub tail: Rc<[u8]>,
    /// A server said that its result has other columns than when it was prepared: it is not prepared any more.
    retired: Cell<bool>,
}

impl Text {
    /// Has a server refused it, because its result has other columns now?
    pub fn is_retired(&self) -> bool {
        self.retired.get()
    }

    /// What it takes of a server's memory, bytes: a lower bound.
    fn cost(&self) -> usize {
        self.tail.len() + self.server_name.len() + OVERHEAD
    }
}

/// All texts that clients of one worker have prepared.
#[derive(Debug)]
pub struct Texts {
    known: BTreeMap<Rc<[u8]>, Vec<Weak<Text>>>,
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
        Self { known: BTreeMap::new(), next_id: first_id, sweep_at: 1024 }
    }

    /// The shared text of a Parse message with this tail, for sessions with this `parse_key`.
    pub fn intern(&mut self, tail: &[u8], parse_key: u64) -> Rc<Text> {
        if let Some(text) = self.known.get(tail).and_then(|of| of.iter().find_map(|t| with_key(t, parse_key))) {
            return text;
        }
        if self.known.len() >= self.sweep_at {
            self.known.retain(|_, of| {
                of.retain(|text| text.strong_count() > 0);
                !of.is_empty()
            });
            self.sweep_at = (self.known.len() * 2).max(1024);
        }
        let id = self.fresh_id();
        let known = self.known.get_key_value(tail).map(|(tail, _)| tail.clone());
        let tail: Rc<[u8]> = known.unwrap_or_else(|| tail.into());
        let retired = Cell::new(false);
        let text = Rc::new(Text { id, parse_key, server_name: server_name(id), tail: tail.clone(), retired });
        let of = self.known.entry(tail).or_default();
        of.retain(|text| text.strong_count() > 0);
        of.push(Rc::downgrade(&text));
        text
    }

    /// Look at every text that is in use, in order of age, and at how many have it. Forgets those that nobody has.
    pub fn each(&mut self, mut look: impl FnMut(&Text, usize)) {
        let mut all: Vec<Rc<Text>> = Vec::new();
        self.known.retain(|_, of| {
            of.retain(|text| text.strong_count() > 0);
            all.extend(of.iter().filter_map(Weak::upgrade));
            !of.is_empty()
        });
        all.sort_by_key(|text| text.id);
        // Our own hold on it does not count.
        all.iter().for_each(|text| look(text, Rc::strong_count(text) - 1));
    }

    /// A text that is one session's alone, under the name its client gave it.
    pub fn own(&mut self, name: &[u8], tail: &[u8]) -> Rc<Text> {
        let (id, retired) = (self.fresh_id(), Cell::new(false));
        Rc::new(Text { id, parse_key: 0, server_name: name.into(), tail: tail.into(), retired })
    }

    /// A text that is prepared once, under a name of ours.
    pub fn single(&mut self, tail: &[u8], parse_key: u64) -> Rc<Text> {
        let (id, retired) = (self.fresh_id(), Cell::new(false));
        Rc::new(Text { id, parse_key, server_name: server_name(id), tail: tail.into(), retired })
    }

    /// Retire a text, so that the next client that prepares it gets another name: its result has other columns now, and
    /// the servers that have it prepared will refuse it for ever.
    pub fn retire(&mut self, text: &Text) {
        text.retired.set(true);
        if let Some(of) = self.known.get_mut(&text.tail) {
            of.retain(|other| other.upgrade().is_some_and(|other| other.id != text.id));
        }
    }

    /// A number that no other text or unnamed statement has.
    pub fn fresh_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }
}

fn with_key(text: &Weak<Text>, parse_key: u64) -> Option<Rc<Text>> {
    text.upgrade().filter(|text| text.parse_key == parse_key)
}

/// A client's named statement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// The client's name for it.
    pub name: Rc<[u8]>,
    /// The shared text.
    pub text: Rc<Text>,
    /// What it does.
    pub class: Statement,
    /// The client has described or bound it, so it may know the columns of its result.
    pub used: bool,
}

impl Named {
    /// A statement that its client has just prepared.
    pub fn new(name: &[u8], text: Rc<Text>, class: Statement) -> Self {
        Self { name: name.into(), text, class, used: false }
    }
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
    named: BTreeMap<Rc<[u8]>, Named>,
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

    /// As [`named`](Self::named), to change it.
    pub fn named_mut(&mut self, name: &[u8]) -> Option<&mut Named> {
        self.named.get_mut(name)
    }

    /// The tail of the Parse message of the statement of that name, when it is kept.
    pub fn tail(&self, name: &[u8]) -> Option<&[u8]> {
        if name.is_empty() { self.unnamed.as_ref()?.tail.as_deref() } else { self.named(name).map(|n| &*n.text.tail) }
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

    /// Keep a statement whose name is free.
    pub fn insert(&mut self, statement: Named) {
        let length = statement.name.len();
        self.bytes += length + statement.text.tail.len();
        if let Some(old) = self.named.insert(statement.name.clone(), statement) {
            self.bytes -= length + old.text.tail.len();
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

    /// Drop all but these names, as DEALLOCATE ALL and DISCARD ALL do; the unnamed statement stays.
    pub fn clear(&mut self, but: &[Box<[u8]>]) {
        self.named.retain(|name, _| but.iter().any(|kept| **kept == **name));
        self.bytes = self.named.iter().map(|(name, n)| name.len() + n.text.tail.len()).sum();
    }
}

/// What a server has prepared.
#[derive(Debug, Default)]
pub struct ServerStatements {
    prepared: BTreeMap<u64, Prepared>,
    bytes: usize,
    clock: u64,
    /// The serial of the unnamed statement it has.
    pub unnamed: Option<u64>,
}

/// A statement that a server has.
#[derive(Debug)]
struct Prepared {
    name: Box<[u8]>,
    cost: usize,
    /// When it was used last, by a clock that counts uses.
    used: u64,
}

impl ServerStatements {
    /// Is this text prepared? If so, it is used now.
    pub fn has(&mut self, id: u64) -> bool {
        self.clock += 1;
        let found = self.prepared.get_mut(&id);
        found.map(|p| p.used = self.clock).is_some()
    }

    /// Note that a text is prepared. Those to close to make room within `limit` bytes: the least recently used.
    pub fn insert(&mut self, text: &Text, limit: usize) -> Vec<u64> {
        self.clock += 1;
        let fresh = Prepared { name: text.server_name.clone(), cost: text.cost(), used: self.clock };
        self.bytes += fresh.cost;
        if let Some(old) = self.prepared.insert(text.id, fresh) {
            self.bytes -= old.cost;
        }
        let mut bytes = self.bytes;
        if bytes <= limit {
            return Vec::new();
        }
        let others = self.prepared.iter().filter(|(id, _)| **id != text.id);
        let mut others: Vec<_> = others.map(|(id, p)| (p.used, *id, p.cost)).collect();
        others.sort_unstable();
        let mut evicted = Vec::new();
        for (_, id, cost) in others {
            if bytes <= limit {
                break;
            }
            bytes -= cost;
            evicted.push(id);
        }
        evicted
    }

    /// Note that a text is not prepared any more; its name, when it was.
    pub fn remove(&mut self, id: u64) -> Option<Box<[u8]>> {
        let old = self.prepared.remove(&id)?;
        self.bytes -= old.cost;
        Some(old.name)
    }

    /// Note that a text that was thought closed is there all the same.
    pub fn restore(&mut self, id: u64, name: Box<[u8]>) {
        let cost = OVERHEAD + name.len();
        if self.prepared.insert(id, Prepared { name, cost, used: 0 }).is_none() {
            self.bytes += cost;
        }
    }

    /// Note that nothing is prepared but these.
    pub fn clear(&mut self, but: &[u64]) {
        self.prepared.retain(|id, _| but.contains(id));
        self.bytes = self.prepared.values().map(|p| p.cost).sum();
    }

    /// How many are prepared.
    pub fn len(&self) -> usize {
        self.prepared.len()
    }

    /// None prepared?
    pub fn is_empty(&self) -> bool {
        self.prepared.is_empty()
    }

    /// What they take, bytes, as far as we count it.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sql::{Access, Control, Pins};

    const CLASS: Statement = Statement {
        access: Access::Read,
        control: Control::None,
        may_commit: false,
        pins: Pins::NONE,
        unpins: false,
        advisory: false,
        ours: false,
    };

    #[test]
    fn the_same_text_types_and_key_share_a_name_until_retired() {
        let mut texts = Texts::new(1 << 40);
        let a = texts.intern(b"select 1\0\0\0", 0);
        assert!(Rc::ptr_eq(&a, &texts.intern(b"select 1\0\0\0", 0)));
        assert_ne!(a.id, texts.intern(b"select 2\0\0\0", 0).id);
        let b = texts.intern(b"select 1\0\0\0", 7);
        assert_ne!(a.id, b.id);
        assert!(Rc::ptr_eq(&b, &texts.intern(b"select 1\0\0\0", 7)));
        texts.retire(&a);
        assert!(a.is_retired() && !b.is_retired());
        assert_ne!(a.id, texts.intern(b"select 1\0\0\0", 0).id);
        assert!(Rc::ptr_eq(&b, &texts.intern(b"select 1\0\0\0", 7)));
    }

    #[test]
    fn the_bytes_of_a_client_follow_its_statements() {
        let (mut texts, mut client) = (Texts::new(0), ClientStatements::default());
        let named = Named::new(b"abc", texts.intern(b"12345", 0), CLASS);
        client.insert(named.clone());
        client.insert(named);
        assert_eq!((client.bytes(), client.len()), (8, 1));
        client.insert(Named::new(b"other", texts.intern(b"12345", 0), CLASS));
        client.clear(&[(*b"abc").into()]);
        assert_eq!((client.bytes(), client.len()), (8, 1));
        assert!(client.remove(b"abc").is_some() && client.remove(b"abc").is_none());
        assert_eq!(client.bytes(), 0);
    }

    #[test]
    fn a_full_server_gives_up_what_it_has_not_used_for_longest() {
        let (mut texts, mut server) = (Texts::new(0), ServerStatements::default());
        let text: Vec<_> = (0..5).map(|i| texts.intern(format!("select {i}").as_bytes(), 0)).collect();
        let limit = 3 * text[0].cost() + 100;
        for t in &text[..3] {
            assert!(server.insert(t, limit).is_empty());
        }
        assert!(server.has(text[0].id));
        assert_eq!(server.insert(&text[3], limit), [text[1].id]);
        server.remove(text[1].id).unwrap();
        assert!(!server.has(text[1].id));
        // One that alone is too large is kept all the same, and alone.
        let mut evicted = server.insert(&text[4], 1);
        evicted.sort_unstable();
        assert_eq!(evicted, [text[0].id, text[2].id, text[3].id]);
        evicted.iter().for_each(|id| assert!(server.remove(*id).is_some()));
        assert_eq!((server.len(), server.bytes()), (1, text[4].cost()));
        server.clear(&[]);
        assert_eq!((server.has(text[4].id), server.bytes()), (false, 0));
    }
}
