//! etcd is restored from a backup: all of its members lost what they held, and hold what they held earlier.

use super::{LEASE, World, ms};
use cluster::Term;
use failover::fsm::observe::Records;

/// It is away for so long: whoever led has noticed that its lease is over, and no request is on its way any more.
const AWAY: u64 = 4500;

/// What was copied, in seeds in which it is put back.
pub(crate) struct Backup {
    enabled: bool,
    records: Option<Records>,
}

impl Backup {
    pub(crate) fn new(enabled: bool) -> Self {
        Self { enabled, records: None }
    }

    pub(crate) const fn may_come_back(&self) -> bool {
        self.enabled
    }
}

impl World {
    /// Copied at any moment, also while a term is being made.
    pub(crate) fn back_up(&mut self) {
        if self.backup.enabled && self.etcd_up() && self.chance.below(150) == 0 {
            self.backup.records = Some(self.records.clone());
        }
    }

    /// Now and then instead of another fault.
    pub(crate) fn restore(&mut self) -> bool {
        if !self.backup.enabled || self.backup.records.is_none() || !self.chance.percent(15) {
            return false;
        }
        let Some(records) = self.backup.records.take() else { return false };
        let term = |records: &Records| records.term.as_ref().map_or(Term(0), |t| t.value.term);
        let (held, holds) = (term(&self.records), term(&records));
        self.say(format!("etcd is restored from a backup: it held term {held} and holds term {holds}"));
        self.reach("etcd restored from a backup");
        if holds < held {
            self.reach("etcd restored to an earlier term");
        }
        self.records = records;
        self.etcd_down_until = self.now + ms(AWAY);
        // Leases last as long again as they were granted for.
        let (up, revision) = (self.etcd_down_until, self.records.revision);
        self.leader = Some((usize::MAX, revision, up + ms(2000)));
        self.primary_ends = up + LEASE;
        self.proxy.ends = up + LEASE;
        true
    }
}
