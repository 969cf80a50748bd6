//! What operators have said about databases: paused, closed to new clients, their connections to be made anew.

use cluster::Instant;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

/// An order of an operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Let transactions end, close their servers, and let statements wait until [`Order::Resume`].
    Pause,
    /// Take back a pause, also that of a [`Order::Kill`].
    Resume,
    /// Close each server connection that exists now as soon as it is free.
    Reconnect,
    /// End all sessions and close their servers at once; what comes later waits until [`Order::Resume`].
    Kill,
    /// Refuse new clients.
    Disable,
    /// Take new clients again.
    Enable,
}

/// Which databases, by the name clients ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All, also those that nobody has asked for yet.
    All,
    /// One.
    Database(String),
}

impl Scope {
    /// Is this database meant?
    pub fn covers(&self, database: &str) -> bool {
        match self {
            Self::All => true,
            Self::Database(name) => name == database,
        }
    }
}

/// Why an order makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Nothing is paused.
    #[error("{} is not paused", match scope { Scope::All => "the proxy".to_owned(), Scope::Database(name) => format!("database \"{name}\"") })]
    NotPaused {
        /// What was to be resumed.
        scope: Scope,
    },
    /// All databases at once cannot be closed to clients.
    #[error("a database is required")]
    NeedsDatabase,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Door {
    /// By the order of that number.
    paused: Option<u64>,
    disabled: bool,
    /// Connections born before are closed when they are free.
    reconnect: Option<Instant>,
}

/// All that operators have said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Doors {
    all: Door,
    databases: BTreeMap<String, Door>,
    /// Pauses so far.
    pauses: u64,
}

impl Doors {
    /// Obey, from now on.
    ///
    /// # Errors
    /// The order makes no sense; nothing has changed.
    pub fn obey(&mut self, order: Order, scope: &Scope, now: Instant) -> Result<(), Refusal> {
        match order {
            Order::Pause | Order::Kill => self.pause(scope),
            Order::Resume => self.resume(scope)?,
            Order::Reconnect => self.door(scope).reconnect = Some(now),
            Order::Disable | Order::Enable if *scope == Scope::All => return Err(Refusal::NeedsDatabase),
            Order::Disable => self.door(scope).disabled = true,
            Order::Enable => self.door(scope).disabled = false,
        }
        self.databases.retain(|_, door| *door != Door::default());
        Ok(())
    }

    /// The orders that make these doors of open ones, but for [`Order::Reconnect`]: what another process is to obey that has
    /// no connection yet.
    pub fn orders(&self) -> Vec<(Order, Scope)> {
        let all = std::iter::once((Scope::All, &self.all));
        let each = self.databases.iter().map(|(name, door)| (Scope::Database(name.clone()), door));
        let of = |(scope, door): (Scope, &Door)| {
            let pause = door.paused.map(|_| (Order::Pause, scope.clone()));
            let disable = door.disabled.then_some((Order::Disable, scope));
            pause.into_iter().chain(disable)
        };
        all.chain(each).flat_map(of).collect()
    }

    /// No connection is left of those that [`Order::Reconnect`] was said of.
    pub fn made_anew(&mut self, scope: &Scope) {
        self.door(scope).reconnect = None;
        self.databases.retain(|_, door| *door != Door::default());
    }

    /// Has somebody said something of this database in particular?
    pub fn knows(&self, database: &str) -> bool {
        self.databases.contains_key(database)
    }

    /// Which pause is in force of just that? Others may pause a part of it, or more.
    pub fn pauses(&self, scope: &Scope) -> Option<u64> {
        match scope {
            Scope::All => self.all.paused,
            Scope::Database(name) => self.databases.get(name).and_then(|door| door.paused),
        }
    }

    /// Take that pause back, and no other.
    pub fn unpause(&mut self, scope: &Scope, number: u64) {
        let door = self.door(scope);
        door.paused = door.paused.filter(|paused| *paused != number);
        self.databases.retain(|_, door| *door != Door::default());
    }

    fn pause(&mut self, scope: &Scope) {
        self.pauses += 1;
        let number = self.pauses;
        self.door(scope).paused.get_or_insert(number);
    }

    fn door(&mut self, scope: &Scope) -> &mut Door {
        match scope {
            Scope::All => &mut self.all,
            Scope::Database(name) => self.databases.entry(name.clone()).or_default(),
        }
    }

    fn resume(&mut self, scope: &Scope) -> Result<(), Refusal> {
        let refusal = || Refusal::NotPaused { scope: scope.clone() };
        match scope {
            Scope::All => {
                if self.all.paused.is_none() && self.databases.values().all(|d| d.paused.is_none()) {
                    return Err(refusal());
                }
                self.all.paused = None;
                self.databases.values_mut().for_each(|d| d.paused = None);
            }
            Scope::Database(name) => {
                let door = self.databases.get_mut(name).filter(|d| d.paused.is_some()).ok_or_else(refusal)?;
                door.paused = None;
            }
        }
        Ok(())
    }

    /// Has nothing been said, so that nobody needs to ask?
    pub fn all_open(&self) -> bool {
        self.all == Door::default() && self.databases.is_empty()
    }

    /// Do statements of this database wait?
    pub fn paused(&self, database: &str) -> bool {
        self.all.paused.is_some() || self.databases.get(database).is_some_and(|d| d.paused.is_some())
    }

    /// Do statements of all databases wait?
    pub fn paused_all(&self) -> bool {
        self.all.paused.is_some()
    }

    /// Are its new clients refused?
    pub fn disabled(&self, database: &str) -> bool {
        self.databases.get(database).is_some_and(|d| d.disabled)
    }

    /// Is a server connection that was made at `born` to be closed when it is free?
    pub fn must_close(&self, database: &str, born: Instant) -> bool {
        let old = |d: &Door| d.reconnect.is_some_and(|at| born <= at);
        self.paused(database) || old(&self.all) || self.databases.get(database).is_some_and(old)
    }
}

/// This worker's copy of what operators have said.
#[derive(Default)]
pub struct Doorway {
    /// Something has been said.
    gated: Cell<bool>,
    doors: RefCell<Doors>,
}

impl Doorway {
    /// Something else has been said.
    pub fn obey(&self, doors: Doors) {
        self.gated.set(!doors.all_open());
        *self.doors.borrow_mut() = doors;
    }

    /// Do statements of this database wait?
    pub fn paused(&self, database: &str) -> bool {
        self.gated.get() && self.doors.borrow().paused(database)
    }

    /// Are its new clients refused?
    pub fn disabled(&self, database: &str) -> bool {
        self.gated.get() && self.doors.borrow().disabled(database)
    }

    /// Is a server connection that was made at `born` to be closed when it is free?
    pub fn must_close(&self, database: &str, born: Instant) -> bool {
        self.gated.get() && self.doors.borrow().must_close(database, born)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn database(name: &str) -> Scope {
        Scope::Database(name.to_owned())
    }

    /// Obey orders such as `pause app` or `pause`, one a second, and describe `app`, and `new` if it differs.
    fn check(orders: &[&str]) -> String {
        let mut doors = Doors::default();
        for (i, text) in orders.iter().enumerate() {
            let (word, name) = text.split_once(' ').map_or((*text, None), |(word, name)| (word, Some(name)));
            let order = match word {
                "pause" => Order::Pause,
                "resume" => Order::Resume,
                "reconnect" => Order::Reconnect,
                "kill" => Order::Kill,
                "disable" => Order::Disable,
                "enable" => Order::Enable,
                other => panic!("no order {other}"),
            };
            let scope = name.map_or(Scope::All, database);
            let now = Instant::from_millis(1000 * (i as u64 + 1));
            if let Err(refusal) = doors.obey(order, &scope, now) {
                return refusal.to_string();
            }
        }
        let of = |name: &str| {
            let born = |ms| doors.must_close(name, Instant::from_millis(ms));
            let mut words = Vec::new();
            words.extend(doors.paused(name).then_some("paused"));
            words.extend(doors.disabled(name).then_some("disabled"));
            words.extend((born(500) && !doors.paused(name)).then_some("closes old"));
            words.extend((born(9500) && !doors.paused(name)).then_some("closes new"));
            words.join(", ")
        };
        let mut next = Doors::default();
        doors.orders().iter().for_each(|(order, scope)| next.obey(*order, scope, Instant::from_millis(0)).unwrap());
        for name in ["app", "new"] {
            assert_eq!(
                (next.paused(name), next.disabled(name)),
                (doors.paused(name), doors.disabled(name)),
                "{orders:?}"
            );
        }
        let open = if doors.all_open() { "all open" } else { "" };
        format!("app: {}; new: {}; {open}", of("app"), of("new"))
    }

    #[test]
    fn orders_hold_for_one_database_or_for_all() {
        for (orders, want) in [
            (&[][..], "app: ; new: ; all open"),
            (&["pause app"], "app: paused; new: ; "),
            (&["pause app", "resume app"], "app: ; new: ; all open"),
            (&["pause app", "resume"], "app: ; new: ; all open"),
            (&["pause"], "app: paused; new: paused; "),
            (&["pause", "resume app"], "database \"app\" is not paused"),
            (&["resume"], "the proxy is not paused"),
            (&["kill app", "resume app"], "app: ; new: ; all open"),
            (&["reconnect app"], "app: closes old; new: ; "),
            (&["reconnect"], "app: closes old; new: closes old; "),
            (&["reconnect app", "pause app"], "app: paused; new: ; "),
            (&["disable app"], "app: disabled; new: ; "),
            (&["disable app", "enable app"], "app: ; new: ; all open"),
            (&["disable"], "a database is required"),
        ] {
            assert_eq!(check(orders), want, "{orders:?}");
        }
    }
}
