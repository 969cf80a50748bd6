//! Prepared statements: kept per client, prepared on a server where needed.
//!
//! A client's statement has the client's name; on servers the same text with the same parameter types has one name
//! for all clients, so that a server prepares it once. What SQL made or uses has the client's own name there as well,
//! because its texts go to the server as they are. What is never shared is the verdict on the text: it depends on how
//! the client's session reads it.

mod server;

pub use server::ServerStatements;

use crate::session::account::Account;
use crate::session::portals::Portals;
use crate::sql::{Statement, fetches, prepared};
use crate::wire::codec::split_cstring;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What a statement costs a server beyond its text, bytes: its parse tree and plan are larger than the text, and this
/// is less than any of them takes.
pub const OVERHEAD: usize = 1024;
/// What a statement or a portal takes here beyond its name and text, bytes.
pub const OVERHEAD_HERE: usize = 256;

/// How a text comes to a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// By a Parse message, under a name of ours.
    Shared,
    /// By a Parse message, under the name that its client gave it.
    Own,
    /// By SQL PREPARE, which is the text.
    Sql,
}

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
    /// How it comes to a server.
    pub source: Source,
    /// How often tables had been altered when it was first prepared.
    era: u64,
    /// A server said that its result has other columns than when it was prepared: it is not prepared any more.
    retired: Cell<bool>,
    /// A server had something to say when it was prepared, without refusing it.
    noticed: Cell<bool>,
    held: Held,
}

/// What a text takes, for as long as it is there.
#[derive(Debug, PartialEq, Eq)]
struct Held {
    all: Rc<Cell<usize>>,
    /// Of who was the first to prepare it.
    account: Rc<Account>,
    bytes: usize,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.all.set(self.all.get() - self.bytes);
        self.account.subtract(self.bytes);
    }
}

impl Text {
    /// Whoever prepares it is to be told something, so it must be sent for each client: a backslash in a string, a name
    /// that was cut.
    pub fn is_noticed(&self) -> bool {
        self.noticed.get()
    }

    /// A notice has come while it was prepared.
    pub fn notice(&self) {
        self.noticed.set(true);
    }

    /// Has a server refused it, because its result has other columns now?
    pub fn is_retired(&self) -> bool {
        self.retired.get()
    }

    /// The statement, as it is to be classified; `None` when it cannot be found.
    pub fn statement(&self) -> Option<&[u8]> {
        let (sql, _) = split_cstring(&self.tail)?;
        if self.source == Source::Sql { prepared(sql).map(|(_, statement)| statement) } else { Some(sql) }
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
    /// What those take that are in use.
    bytes: Rc<Cell<usize>>,
    /// Whose the next ones are.
    account: Rc<Account>,
    /// How often clients have altered tables, of all workers.
    altered: Arc<AtomicU64>,
}

/// What the names of ours on servers begin with.
pub const PREFIX: &[u8] = b"pgtenure_";

/// The name on servers of a text.
pub fn server_name(id: u64) -> Box<[u8]> {
    format!("pgtenure_{id:x}").into_bytes().into()
}

impl Texts {
    /// `first_id` keeps the workers' numbers apart: servers move between workers with what they have prepared.
    pub fn new(first_id: u64) -> Self {
        let (bytes, account) = (Rc::default(), Rc::default());
        let altered = Arc::default();
        Self { known: BTreeMap::new(), next_id: first_id, sweep_at: 1024, bytes, account, altered }
    }

    /// The same, where `altered` counts how often clients have altered tables. A text that is prepared behind that is another
    /// one than before: servers would tell the types of then.
    #[must_use]
    pub fn since(mut self, altered: Arc<AtomicU64>) -> Self {
        self.altered = altered;
        self
    }

    /// A client has altered a table.
    pub fn alter(&self) {
        self.altered.fetch_add(1, Ordering::SeqCst);
    }

    fn era(&self) -> u64 {
        self.altered.load(Ordering::SeqCst)
    }

    /// What is not there yet from now on is that one's.
    pub fn for_account(&mut self, account: &Rc<Account>) -> &mut Self {
        if !Rc::ptr_eq(&self.account, account) {
            self.account = account.clone();
        }
        self
    }

    /// What all that are in use take, bytes, however many clients have them.
    pub fn bytes(&self) -> usize {
        self.bytes.get()
    }

    /// The shared text of a Parse message with this tail, for sessions with this `parse_key`.
    pub fn intern(&mut self, tail: &[u8], parse_key: u64) -> Rc<Text> {
        self.find_or_keep(tail, (parse_key, self.era()), Source::Shared, None)
    }

    /// The number of the shared text of a Parse message with this tail, when there is one.
    pub fn known(&self, tail: &[u8], parse_key: u64) -> Option<u64> {
        let era = self.era();
        let shared = |t: &Rc<Text>| t.parse_key == parse_key && t.era == era && t.source == Source::Shared;
        self.known.get(tail)?.iter().find_map(|text| text.upgrade().filter(shared)).map(|text| text.id)
    }

    /// The text of this tail that is to have the client's `name` on servers, for sessions with this `parse_key`.
    pub fn intern_named(&mut self, name: &[u8], tail: &[u8], parse_key: u64, source: Source) -> Rc<Text> {
        self.find_or_keep(tail, (parse_key, self.era()), source, Some(name))
    }

    /// A shared text under the client's `name`, for sessions with this `parse_key`.
    pub fn alias(&mut self, name: &[u8], text: &Text, parse_key: u64) -> Rc<Text> {
        self.find_or_keep(&text.tail, (parse_key, text.era), Source::Own, Some(name))
    }

    /// The same text for sessions with another `parse_key`, or anew because it is retired.
    pub fn again(&mut self, text: &Text, parse_key: u64) -> Rc<Text> {
        if text.statement().is_some_and(fetches) {
            return self.single(&text.tail, parse_key);
        }
        let name = (text.source != Source::Shared).then_some(&*text.server_name);
        let era = if text.is_retired() { self.era() } else { text.era };
        self.find_or_keep(&text.tail, (parse_key, era), text.source, name)
    }

    fn find_or_keep(
        &mut self,
        tail: &[u8],
        (parse_key, era): (u64, u64),
        source: Source,
        name: Option<&[u8]>,
    ) -> Rc<Text> {
        let same = |text: &Weak<Text>| {
            let alike = |t: &Rc<Text>| t.parse_key == parse_key && t.era == era && t.source == source;
            text.upgrade().filter(alike).filter(|t| name.is_none_or(|name| *t.server_name == *name))
        };
        if let Some(text) = self.known.get(tail).and_then(|of| of.iter().find_map(same)) {
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
        let server_name = name.map_or_else(|| server_name(id), Into::into);
        let text = self.once(id, (parse_key, era), server_name, tail.clone(), source);
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
        self.named_once(name, tail, 0)
    }

    /// A text that is prepared once, under the name its client gave it.
    pub fn named_once(&mut self, name: &[u8], tail: &[u8], parse_key: u64) -> Rc<Text> {
        let id = self.fresh_id();
        self.once(id, (parse_key, self.era()), name.into(), tail.into(), Source::Own)
    }

    /// A text that is prepared once, under a name of ours.
    pub fn single(&mut self, tail: &[u8], parse_key: u64) -> Rc<Text> {
        let id = self.fresh_id();
        self.once(id, (parse_key, self.era()), server_name(id), tail.into(), Source::Shared)
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

    fn once(
        &self,
        id: u64,
        (parse_key, era): (u64, u64),
        server_name: Box<[u8]>,
        tail: Rc<[u8]>,
        source: Source,
    ) -> Rc<Text> {
        let (retired, noticed) = (Cell::new(false), Cell::new(false));
        let bytes = tail.len() + server_name.len() + OVERHEAD_HERE;
        self.bytes.set(self.bytes.get() + bytes);
        self.account.add(bytes);
        let held = Held { all: self.bytes.clone(), account: self.account.clone(), bytes };
        Rc::new(Text { id, parse_key, era, server_name, tail, source, retired, noticed, held })
    }
}

/// A client's named statement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// The client's name for it.
    pub name: Rc<[u8]>,
    /// Its text.
    pub text: Rc<Text>,
    /// The same text under the client's name, when SQL has used that.
    pub alias: Option<Rc<Text>>,
    /// What it does.
    pub class: Statement,
    /// The client has described or bound it, so it may know the columns of its result.
    pub used: bool,
    /// Its parameters and columns that it was told, hashed; 0 before.
    pub columns: u64,
    /// The types of those parameters, as a Parse message has them.
    pub types: Box<[u8]>,
}

impl Named {
    /// A statement that its client has just prepared.
    pub fn new(name: &[u8], text: Rc<Text>, class: Statement) -> Self {
        Self { name: name.into(), text, alias: None, class, used: false, columns: 0, types: Box::default() }
    }

    /// What it takes here; its text is counted for each client that has it.
    fn bytes(&self) -> usize {
        self.own() + self.text.tail.len()
    }

    /// The same without its text.
    fn own(&self) -> usize {
        self.name.len() + self.types.len() + OVERHEAD_HERE
    }
}

/// A client's unnamed statement.
#[derive(Clone, Debug)]
pub struct Unnamed {
    /// Tells whether a server still has this very one.
    pub serial: u64,
    /// The tail of its Parse message; `None` when it was too long to keep, or has not passed yet.
    pub tail: Option<Vec<u8>>,
    /// What it does.
    pub class: Statement,
}

/// A client's named statements.
pub type ByName = BTreeMap<Rc<[u8]>, Named>;

/// The statements of one client.
#[derive(Debug, Default)]
pub struct ClientStatements {
    named: ByName,
    bytes: usize,
    /// Without their texts.
    own: usize,
    /// The unnamed statement, until a simple query or a failed Parse destroys it.
    pub unnamed: Option<Unnamed>,
    /// Portals of this transaction that have names of statements in them.
    pub portals: Portals,
    /// One of them was described.
    pub described: bool,
    /// What is prepared now is shared with no other session: settings that it depends on may not be known.
    pub apart: bool,
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

    /// The client was told the parameters and columns of a statement, if the name is still that one's.
    pub fn told(&mut self, name: &[u8], text: &Text, columns: u64, types: Box<[u8]>) {
        let Some(named) = self.named.get_mut(name).filter(|named| named.text.id == text.id) else { return };
        let before = named.types.len();
        (named.columns, named.types) = (columns, types);
        let now = named.types.len();
        (self.bytes, self.own) = (self.bytes - before + now, self.own - before + now);
        self.described = true;
    }

    /// The statement of that name is to be prepared by another text from now on.
    pub fn replace(&mut self, name: &[u8], text: Rc<Text>) {
        let Some(named) = self.named.get_mut(name) else { return };
        let (before, now) = (named.text.tail.len(), text.tail.len());
        named.text = text;
        self.bytes = self.bytes - before + now;
    }

    /// The text of the statement of that name, when it is kept.
    pub fn sql(&self, name: &[u8]) -> Option<&[u8]> {
        if !name.is_empty() {
            return self.named(name)?.text.statement();
        }
        let (sql, _) = split_cstring(self.unnamed.as_ref()?.tail.as_deref()?)?;
        Some(sql)
    }

    /// What all of them take, bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// What is this client's alone, bytes: all but the texts of statements with names.
    pub fn own_bytes(&self) -> usize {
        let unnamed = self.unnamed.as_ref().and_then(|unnamed| unnamed.tail.as_deref()).map_or(0, <[u8]>::len);
        self.own + unnamed + self.portals.bytes()
    }

    /// Is there room for one more statement or portal with this name and text, within `limit` bytes?
    pub fn has_room(&self, name: &[u8], text: usize, limit: usize) -> bool {
        self.bytes + self.portals.bytes() + name.len() + text + OVERHEAD_HERE <= limit
    }

    /// How many are kept.
    pub fn len(&self) -> usize {
        self.named.len()
    }

    /// None kept?
    pub fn is_empty(&self) -> bool {
        self.named.is_empty()
    }

    /// All names, in order.
    pub fn names(&self) -> impl Iterator<Item = &Rc<[u8]>> {
        self.named.keys()
    }

    /// Keep a statement whose name is free.
    pub fn insert(&mut self, statement: Named) {
        (self.bytes, self.own) = (self.bytes + statement.bytes(), self.own + statement.own());
        if let Some(old) = self.named.insert(statement.name.clone(), statement) {
            (self.bytes, self.own) = (self.bytes - old.bytes(), self.own - old.own());
        }
    }

    /// Drop the statement of that name.
    pub fn remove(&mut self, name: &[u8]) -> Option<Named> {
        let old = self.named.remove(name)?;
        (self.bytes, self.own) = (self.bytes - old.bytes(), self.own - old.own());
        Some(old)
    }

    /// Look at every text again: what its functions do has become known, or has changed.
    pub fn reclassify(&mut self, classify: impl Fn(&[u8]) -> Statement) {
        for named in self.named.values_mut() {
            named.class = named.text.statement().map_or(named.class, &classify);
        }
        if let Some(unnamed) = &mut self.unnamed {
            let sql = unnamed.tail.as_deref().and_then(split_cstring).map(|(sql, _)| sql);
            unnamed.class = sql.map_or(unnamed.class, classify);
        }
    }

    /// Drop all; what there was.
    pub fn forget(&mut self) -> ByName {
        (self.bytes, self.own) = (0, 0);
        std::mem::take(&mut self.named)
    }

    /// Have this again, and nothing else.
    pub fn recall(&mut self, named: ByName) {
        self.named = named;
        self.count();
    }

    fn count(&mut self) {
        self.bytes = self.named.values().map(Named::bytes).sum();
        self.own = self.named.values().map(Named::own).sum();
    }

    /// Drop all but these names, as DEALLOCATE ALL and DISCARD ALL do; the unnamed statement stays.
    pub fn clear(&mut self, but: &[Box<[u8]>]) {
        self.named.retain(|name, _| but.iter().any(|kept| **kept == **name));
        self.count();
    }
}

#[cfg(test)]
#[path = "statements_tests.rs"]
mod tests;
