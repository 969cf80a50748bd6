//! An operator works on a node: what is checked before, and what it means for the planner. PURE.
//!
//! While `maintenance/<node>` exists its agent leaves a stopped PostgreSQL stopped, proxies send no reads there, and
//! nobody is switched over to it. Its WAL counts as ever, as long as it runs; it is chosen only when it alone has
//! everything. A primary is moved first. A maintenance of limited length is bound to a lease: etcd ends it.

use crate::fsm::action::{Action, Answer, ChangeKind, Guard, RecordKey, RecordPut};
use crate::fsm::blocker::{Blocker, list};
use crate::fsm::observe::millis;
use crate::fsm::planner::{Planner, Stage};
use crate::fsm::sync_set;
use crate::record::{MaintenanceRecord, PolicyRecord};
use cluster::{Instant, NodeId, Term};
use std::collections::BTreeSet;
use std::time::Duration;

/// A maintenance being put or removed.
#[derive(Debug)]
pub(super) struct MaintenanceOp {
    pub(super) id: u64,
    node: NodeId,
    /// The record to put and how long it holds; `None` removes it.
    put: Option<(MaintenanceRecord, Option<Duration>)>,
    sent: bool,
    deadline: Instant,
}

impl MaintenanceOp {
    /// Is that node about to be worked on?
    pub(super) fn begins(&self, node: &NodeId) -> bool {
        self.put.is_some() && self.node == *node
    }
}

/// Who asks, why, and for how long.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) by: String,
    pub(super) why: String,
    pub(super) length: Option<Duration>,
}

impl Planner {
    pub(super) fn begin_maintenance(
        &mut self,
        now: Instant,
        id: u64,
        node: NodeId,
        stop_writes: bool,
        asked: Asked,
    ) -> Result<(), Vec<Blocker>> {
        if !self.seen.records.members.contains_key(&node) {
            return Err(vec![self.no_such(&node)]);
        }
        if self.is_term_node(&node) {
            return Err(vec![Blocker::PrimaryMustMove { node }]);
        }
        if !matches!(self.stage, Stage::Idle) {
            return Err(self.busy());
        }
        if !stop_writes {
            self.writes_survive(now, &node, false)?;
        }
        let until = asked.length.map(|l| self.wall.saturating_add(millis(l)));
        let record = MaintenanceRecord { by: asked.by, why: asked.why, at: self.wall, until };
        self.queue_maintenance(now, id, node, Some((record, asked.length)))
    }

    pub(super) fn end_maintenance(&mut self, now: Instant, id: u64, node: NodeId) -> Result<(), Vec<Blocker>> {
        if !self.seen.maintained(&node) {
            return Err(vec![Blocker::NotInMaintenance { node }]);
        }
        self.queue_maintenance(now, id, node, None)
    }

    fn queue_maintenance(
        &mut self,
        now: Instant,
        id: u64,
        node: NodeId,
        put: Option<(MaintenanceRecord, Option<Duration>)>,
    ) -> Result<(), Vec<Blocker>> {
        if self.maintenance_op.is_some() {
            return Err(vec![Blocker::Busy { what: "another request about maintenance".into() }]);
        }
        let deadline = now + self.settings.operation_timeout / 2;
        self.maintenance_op = Some(MaintenanceOp { id, node, put, sent: false, deadline });
        Ok(())
    }

    /// Write it when no other change is under way; say so when that takes too long.
    pub(super) fn advance_maintenance(&mut self, now: Instant, out: &mut Vec<Action>) {
        let Some(op) = &mut self.maintenance_op else { return };
        if now >= op.deadline {
            let (id, sent) = (op.id, op.sent);
            self.maintenance_op = None;
            let why = if sent { "it may be written yet" } else { "nothing was written" };
            let why = format!("not recorded in time: {why}; `pgtenure status` shows which nodes are in maintenance");
            out.push(Action::Answer { id, answer: Box::new(Answer::Failed { why, journal: None }) });
            return;
        }
        if op.sent || self.pending.is_some() {
            return;
        }
        op.sent = true;
        let node = op.node.clone();
        let (puts, deletes) = match op.put.clone() {
            Some((record, length)) => (vec![RecordPut::Maintenance(node, record, length)], Vec::new()),
            None => (Vec::new(), vec![RecordKey::Maintenance(node)]),
        };
        // In another term the node may be the primary.
        let guards = self.seen.records.term.as_ref().map(|t| Guard::Term(t.revision)).into_iter().collect();
        self.send(ChangeKind::Maintenance, guards, puts, deletes, out);
    }

    pub(super) fn maintenance_written(&mut self, out: &mut Vec<Action>) {
        let Some(op) = self.maintenance_op.take() else { return };
        let node = op.node;
        let note = match op.put {
            Some((_, None)) => format!("{node} is in maintenance until it is ended"),
            Some((_, Some(length))) => {
                format!("{node} is in maintenance for {} s, or until it is ended", length.as_secs())
            }
            None => format!("{node} is not in maintenance any more"),
        };
        let term = self.seen.term().map_or(Term(0), |t| t.term);
        let answer = Answer::Done { term, node: Some(node), note, journal: None };
        out.push(Action::Answer { id: op.id, answer: Box::new(answer) });
    }

    pub(super) fn maintenance_lost(&mut self, out: &mut Vec<Action>) {
        let Some(op) = self.maintenance_op.take() else { return };
        let why = "nothing was written: the term or the leading manager changed first".to_owned();
        out.push(Action::Answer { id: op.id, answer: Box::new(Answer::Failed { why, journal: None }) });
    }

    /// Nodes in maintenance without which a failover would find too few recruits, in words.
    pub(super) fn leans_on_maintained(&self, now: Instant, policy: &PolicyRecord, primary: &NodeId) -> Option<String> {
        let there = self.prospects(now);
        let (worked_on, rest): (BTreeSet<NodeId>, BTreeSet<NodeId>) =
            there.into_iter().filter(|n| n != primary).partition(|n| self.seen.maintained(n));
        let prev = self.last_tenure();
        let short = !worked_on.is_empty() && !sync_set::enough(policy, prev.as_ref(), &rest, []);
        let names: Vec<&NodeId> = worked_on.iter().collect();
        short.then(|| format!("too few standbys but for those in maintenance ({})", list(&names)))
    }
}
