//! Reads that fail on a standby for a name which it may not have replayed yet: the primary is asked about them.

use crate::route::{Promise, Reason};
use crate::session::client::Session;
use std::time::Duration;

/// So long a unit waits for a connection to the primary. Then it is told what the standby has said: that serves.
pub(super) const ASKED_FOR: Duration = Duration::from_secs(1);

/// A unit for the primary, as a standby did not know what it names.
#[derive(Debug)]
pub struct Recheck {
    /// What that standby has said, as long as the primary has not answered.
    pub(super) told: Option<Box<[u8]>>,
}

impl Session {
    /// The oldest unit, which is sent again, goes to no standby.
    pub(super) fn recheck(&mut self, told: Box<[u8]>) {
        self.avoid = self.w.standbys();
        self.rechecks = Some(Box::new(Recheck { told: Some(told) }));
    }

    /// Nothing is sent again, so what standbys have said to it matters no more.
    pub(super) fn forget_refusals(&mut self) {
        if self.rechecks.take().is_some() | std::mem::take(&mut self.refused) {
            self.avoid.clear();
        }
    }

    /// The primary has answered, or begun to.
    pub(super) fn note_recheck(&mut self) {
        if let Some(recheck) = self.rechecks.as_deref_mut().filter(|_| !self.relay.standby) {
            recheck.told = None;
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
}
