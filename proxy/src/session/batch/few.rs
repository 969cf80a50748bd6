//! The statements and portals that a unit makes, by name.

use crate::sql::Statement;

/// A name and what it stands for.
#[derive(Clone, Copy)]
pub(super) struct One<'a> {
    pub(super) name: &'a [u8],
    pub(super) class: Statement,
    /// Its text, for a statement.
    pub(super) sql: &'a [u8],
}

/// Names and what they stand for. One is usual, and takes no allocation.
#[derive(Default)]
pub(super) struct Few<'a> {
    first: Option<One<'a>>,
    more: Vec<One<'a>>,
}

impl<'a> Few<'a> {
    pub(super) fn push(&mut self, one: One<'a>) {
        match self.first {
            None => self.first = Some(one),
            Some(_) => self.more.push(one),
        }
    }

    /// What the last of that name stands for.
    pub(super) fn last(&self, name: &[u8]) -> Option<One<'a>> {
        let newest_first = self.more.iter().rev().chain(&self.first);
        newest_first.into_iter().find(|one| one.name == name).copied()
    }
}
