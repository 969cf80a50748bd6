//! What one server has prepared, under which names, and what is closed to make room.

use super::{OVERHEAD, PREFIX, Source, Text, server_name};
use std::collections::BTreeMap;

/// What a server has prepared.
#[derive(Clone, Debug, Default)]
pub struct ServerStatements {
    prepared: BTreeMap<u64, Prepared>,
    /// Those under the names of clients.
    own: BTreeMap<Box<[u8]>, u64>,
    bytes: usize,
    clock: u64,
    /// The serial of the unnamed statement it has.
    pub unnamed: Option<u64>,
}

/// A statement that a server has.
#[derive(Clone, Debug)]
struct Prepared {
    name: Box<[u8]>,
    cost: usize,
    /// When it was used last, by a clock that counts uses.
    used: u64,
    /// The parameters and columns that it had there when they were asked for last, hashed; 0 before.
    columns: u64,
}

impl ServerStatements {
    /// Is this text prepared? If so, it is used now.
    pub fn has(&mut self, id: u64) -> bool {
        self.clock += 1;
        let found = self.prepared.get_mut(&id);
        found.map(|p| p.used = self.clock).is_some()
    }

    /// Is this text prepared? Only asked, not used.
    pub fn knows(&self, id: u64) -> bool {
        self.prepared.contains_key(&id)
    }

    /// The columns that a text has there, hashed, and 0 when they are not known. `None`: it is not prepared.
    pub fn columns(&self, id: u64) -> Option<u64> {
        self.prepared.get(&id).map(|prepared| prepared.columns)
    }

    /// Note which columns a text has there.
    pub fn describe(&mut self, id: u64, columns: u64) {
        if let Some(prepared) = self.prepared.get_mut(&id) {
            prepared.columns = columns;
        }
    }

    /// Note that a text is prepared. Those to close to make room within `limit` bytes: the least recently used.
    pub fn insert(&mut self, text: &Text, limit: usize) -> Vec<u64> {
        self.clock += 1;
        let fresh = Prepared { name: text.server_name.clone(), cost: text.cost(), used: self.clock, columns: 0 };
        self.bytes += fresh.cost;
        if text.source != Source::Shared {
            self.own.insert(text.server_name.clone(), text.id);
        }
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
        if self.own.get(&old.name) == Some(&id) {
            self.own.remove(&old.name);
        }
        Some(old.name)
    }

    /// Note that a text that was thought closed is there all the same.
    pub fn restore(&mut self, id: u64, name: Box<[u8]>) {
        let cost = OVERHEAD + name.len();
        if *name != *server_name(id) {
            self.own.insert(name.clone(), id);
        }
        if self.prepared.insert(id, Prepared { name, cost, used: 0, columns: 0 }).is_none() {
            self.bytes += cost;
        }
    }

    /// Note that nothing is prepared; what was.
    pub fn forget(&mut self) -> Self {
        let (unnamed, clock) = (self.unnamed.take(), self.clock);
        let all = std::mem::replace(self, Self { unnamed, clock, ..Self::default() });
        Self { unnamed: None, ..all }
    }

    /// Note that this is prepared again, and nothing else.
    pub fn recall(&mut self, all: Self) {
        let (unnamed, clock) = (self.unnamed.take(), self.clock);
        *self = Self { unnamed, clock, ..all };
    }

    /// Note that nothing is prepared but these.
    pub fn clear(&mut self, but: &[u64]) {
        self.prepared.retain(|id, _| but.contains(id));
        self.own.retain(|_, id| but.contains(id));
        self.bytes = self.prepared.values().map(|p| p.cost).sum();
    }

    /// Which text has this name of a client's there.
    pub fn holder(&self, name: &[u8]) -> Option<u64> {
        let ours = || self.prepared.iter().find(|(_, p)| *p.name == *name).map(|(id, _)| *id);
        // A client may name its own as we name ours.
        self.own.get(name).copied().or_else(|| name.starts_with(PREFIX).then(ours)?)
    }

    /// Which text of a client's has this name there.
    pub fn own_of(&self, name: &[u8]) -> Option<u64> {
        self.own.get(name).copied()
    }

    /// Everything under names of clients.
    pub fn own(&self) -> impl Iterator<Item = (&[u8], u64)> {
        self.own.iter().map(|(name, id)| (&**name, *id))
    }

    /// Everything.
    pub fn ids(&self) -> Vec<u64> {
        self.prepared.keys().copied().collect()
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
