//! Names that units in flight make or drop: until their answers come it is not known what stands for them, neither to
//! the client nor on the server. What follows in a pipeline and names none of them need not wait.

use crate::session::relay::{Entry, Relay, Undo};

/// What is in doubt.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct InDoubt<'a> {
    /// Names of the client's.
    pub names: Vec<&'a [u8]>,
    /// Texts on the server, by their numbers.
    pub ids: Vec<u64>,
    /// Everything is.
    pub all: bool,
}

impl Relay {
    /// What units that have their Sync and are not answered may have changed; `None` when that is nothing. A unit that
    /// fails makes and drops nothing, and one behind it that was sent already would use another statement.
    pub fn in_doubt(&self) -> Option<InDoubt<'_>> {
        if !(self.unconfirmed || self.forgetting) || self.owed == 0 {
            return None;
        }
        let mut found = InDoubt { all: self.forgetting, ..InDoubt::default() };
        let ends = |entry: &Entry| entry.kind.owes_ready();
        // What is behind the last of them belongs to the unit that is being sent, and fails with it.
        let whole = self.queue.iter().rposition(ends).map_or(0, |last| last + 1);
        self.queue.iter().take(whole).for_each(|entry| found.add(&entry.undo));
        (found != InDoubt::default()).then_some(found)
    }
}

impl<'a> InDoubt<'a> {
    fn add(&mut self, undo: &'a Undo) {
        match undo {
            Undo::None | Undo::Unnamed { .. } | Undo::Moved(..) => {}
            Undo::Registered(name) => self.names.push(name),
            Undo::Removed(named) => self.names.push(&named.name),
            Undo::RemovedOwn(named) => {
                self.names.push(&named.name);
                self.ids.push(named.text.id);
            }
            Undo::Prepared(text, name) => {
                self.ids.push(text.id);
                self.names.extend(name.as_deref());
            }
            Undo::Closed(id, _) => self.ids.push(*id),
            Undo::LetGo(..) | Undo::Forgotten(..) => self.all = true,
            Undo::All(all) => all.iter().for_each(|undo| self.add(undo)),
        }
    }
}
