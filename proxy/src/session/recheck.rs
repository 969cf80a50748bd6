//! Reads that fail on a standby for a name which it may not have replayed yet: the primary is asked about them, and what it
//! says is remembered.

use crate::config::PoolMode;
use crate::route::{NoStandby, Promise, Reason};
use crate::session::client::Session;
use crate::session::misroute::shapes;
use crate::session::statements::ClientStatements;
use cluster::NodeId;
use std::time::Duration;

/// So long a unit waits for a connection to the primary. Then it is told what the standby has said: that serves.
pub(super) const ASKED_FOR: Duration = Duration::from_secs(1);

/// A unit for the primary, as standbys do not know what it names.
#[derive(Debug)]
pub struct Recheck {
    unit: Option<u64>,
    /// What a standby has said to it just now, as long as the primary has not answered. `None`: it was not asked.
    pub(super) told: Option<Box<[u8]>>,
}

/// A unit, and what tells which texts it runs.
pub(super) struct Runs<'a> {
    pub(super) unit: &'a [u8],
    pub(super) statements: &'a ClientStatements,
    pub(super) database: &'a str,
}

impl Runs<'_> {
    /// A number for the shapes of all of them. `None`: it runs none that is known.
    pub(super) fn key(&self) -> Option<u64> {
        let shapes = shapes(self.unit, self.statements, self.database, |_| true);
        shapes.into_iter().reduce(|all, shape| all.rotate_left(7) ^ shape)
    }
}

impl Session {
    fn runs<'a>(&'a self, unit: &'a [u8]) -> Runs<'a> {
        Runs { unit, statements: &self.statements, database: &self.identity.dbname }
    }

    /// A standby said that it does not know what the oldest unit names, of which the primary is to be asked.
    pub(super) fn lacking(&self, told: Box<[u8]>) -> Box<Recheck> {
        let len = self.retained_lens.front().copied().unwrap_or(0);
        Box::new(Recheck { unit: self.runs(&self.retained[..len]).key(), told: Some(told) })
    }

    /// That unit, which is sent again, goes to no standby.
    pub(super) fn recheck(&mut self, recheck: Box<Recheck>) {
        self.avoid = self.w.standbys();
        self.rechecks = Some(recheck);
    }

    /// A read goes to no standby of which is known that it lacks what is read, when it may go to the primary instead.
    pub(super) fn avoid_lacking(&mut self, unit: &[u8]) {
        if self.rechecks.is_some() || !self.w.knows_lacking() {
            return;
        }
        let may = !self.read_only && self.mode == PoolMode::Transaction && self.pins.is_empty();
        if !may || self.promise_of_unit().no_standby != NoStandby::Primary {
            return;
        }
        let Some(key) = self.runs(unit).key() else { return };
        let mut lacking = self.w.lacking(key);
        lacking.retain(|node: &NodeId| !self.avoid.contains(node));
        if !lacking.is_empty() {
            self.avoid.append(&mut lacking);
            self.rechecks = Some(Box::new(Recheck { unit: Some(key), told: None }));
        }
    }

    /// What is promised to the unit as far as a server is looked for. One for the primary waits for no standby.
    pub(super) fn promise_to_keep(&mut self) -> Promise {
        let promise = self.promise_of_unit();
        match self.rechecks {
            Some(_) => Promise { standby_wait: Duration::ZERO, ..promise },
            None => promise,
        }
    }

    /// Why a unit goes where it goes, when no standby was fit only because they were not to be asked.
    pub(super) fn reason_of_recheck(&self, reason: Reason) -> Reason {
        match reason {
            Reason::NoStandby { .. } if self.rechecks.is_some() => Reason::Rechecked,
            reason => reason,
        }
    }

    /// The server has answered, or begun to: is that what the primary was asked for?
    #[cold]
    pub(super) fn note_recheck(&mut self) {
        let Some(recheck) = self.rechecks.as_deref_mut().filter(|_| !self.relay.standby) else { return };
        if recheck.told.take().is_none() {
            return;
        }
        let fails = match self.relay.errors.first() {
            None => Some(false),
            // What it does not know, but for values of enums, which a shape does not tell.
            Some(b"42" | b"3F") => Some(true),
            Some(_) => None,
        };
        if let (Some(unit), Some(fails)) = (recheck.unit, fails) {
            self.w.rechecked(unit, fails);
        }
    }
}
