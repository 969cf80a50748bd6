//! Portals whose execution makes, drops or looks up prepared statements by their names: what they do is looked up again
//! then. Pure.

use crate::session::statements::{OVERHEAD_HERE, Text};
use crate::sql::Names;
use std::collections::BTreeMap;
use std::rc::Rc;

/// Where a portal's text is.
#[derive(Clone, Debug)]
pub enum Source {
    /// It is that of a named statement.
    Named(Rc<Text>),
    /// It was that of the unnamed one.
    Unnamed(Rc<[u8]>),
}

/// One of them.
#[derive(Clone, Debug)]
pub struct Portal {
    /// What it does.
    pub names: Names,
    /// Its text.
    pub source: Source,
}

impl Portal {
    /// Its text.
    pub fn sql(&self) -> &[u8] {
        match &self.source {
            Source::Named(text) => text.statement().unwrap_or_default(),
            Source::Unnamed(sql) => sql,
        }
    }

    /// What is kept for it alone, bytes.
    pub fn length(&self) -> usize {
        match &self.source {
            Source::Named(_) => 0,
            Source::Unnamed(sql) => sql.len(),
        }
    }
}

/// Those of a client's transaction.
#[derive(Debug, Default)]
pub struct Portals {
    by_name: BTreeMap<Box<[u8]>, Portal>,
    bytes: usize,
}

impl Portals {
    /// None?
    pub fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }

    /// What they take, bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The portal of that name.
    pub fn get(&self, name: &[u8]) -> Option<&Portal> {
        self.by_name.get(name)
    }

    /// Keep one whose name is free.
    pub fn insert(&mut self, name: &[u8], portal: Portal) {
        self.remove(name);
        self.bytes += name.len() + portal.length() + OVERHEAD_HERE;
        self.by_name.insert(name.into(), portal);
    }

    /// It is bound to something else, or closed.
    pub fn remove(&mut self, name: &[u8]) {
        if let Some(old) = self.by_name.remove(name) {
            self.bytes -= name.len() + old.length() + OVERHEAD_HERE;
        }
    }

    /// The transaction is over.
    pub fn clear(&mut self) {
        self.by_name.clear();
        self.bytes = 0;
    }
}
