//! etcd: records, revisions, transactions that compare and whose outcome may not be heard.

use super::{Event, World, name};
use cluster::{Endpoint, Lsn, Term};
use failover::fsm::action::{Change, ChangeKind, ChangeOutcome, Guard, RecordKey, RecordPut};
use failover::fsm::observe::{At, Records};
use failover::record::{Cause, Limits, MemberRecord, Mode, Phase, PolicyRecord, PrimaryRecord, Standing, TermRecord};

/// What a node says of itself.
pub(crate) fn member(i: usize) -> MemberRecord {
    let endpoint = |port| Endpoint { host: "127.0.0.1".into(), port };
    MemberRecord {
        node: name(i),
        postgres: endpoint(1),
        agent: endpoint(2),
        pg_version: 150_000,
        system_id: None,
        host: format!("h{i}"),
        // One that is liked better than the others.
        standing: Standing { priority: if i == 1 { 110 } else { 100 }, ..Standing::default() },
        slots: true,
        holder: None,
    }
}

/// A cluster in term 1 with the first node as primary, and one besides that does not vote when it has a `spare`.
pub(crate) fn first(m: usize, k: u32, mode: Mode, spare: bool) -> Records {
    let mut records = Records { revision: 100, ..Records::default() };
    for i in 0..m + usize::from(spare) {
        records.members.insert(name(i), member(i));
    }
    let term = TermRecord {
        term: Term(1),
        phase: Phase::Active,
        coordinator: "creator".into(),
        node: Some(name(0)),
        cause: Cause::Bootstrap,
        prev: None,
        fork: None,
        forks: Vec::new(),
        xid_bound: None,
        xid_bounds: Vec::new(),
        record_lsn: Some(Lsn(0)),
        policy_epoch: 1,
        newest_timeline: None,
        holds_all_of: None,
        holds_written_of: None,
        history_lost: false,
        lossy_timelines: Vec::new(),
        chosen_before: None,
        data_loss_allowed: false,
    };
    let voters = (0..m).map(name).collect();
    let policy = PolicyRecord {
        epoch: 1,
        voters,
        k,
        mode,
        suspended: None,
        limits: Limits { max_ms: 8000, ..Limits::default() },
        joint: None,
        rearmed: None,
    };
    records.term = Some(At { value: term, revision: 90 });
    records.policy = Some(At { value: policy, revision: 91 });
    records.primary = Some(PrimaryRecord { term: Term(1), node: name(0), holder: "h".into() });
    records
}

impl World {
    pub(crate) fn bump(&mut self) -> i64 {
        self.records.revision += 1;
        self.records.revision
    }

    fn holds(&self, guard: Guard) -> bool {
        match guard {
            Guard::Term(at) => self.records.term.as_ref().is_some_and(|t| t.revision == at),
            Guard::Policy(at) => self.records.policy.as_ref().is_some_and(|p| p.revision == at),
            Guard::Leader(at) => self.leader.is_some_and(|(_, since, until)| since == at && until > self.now),
            Guard::NoPrimary => self.records.primary.is_none(),
            Guard::NotPaused => self.records.pause.is_none(),
        }
    }

    /// The transaction arrives.
    pub(crate) fn transact(&mut self, manager: usize, life: u32, change: &Change, heard: bool) {
        let outcome = if !self.etcd_up() {
            ChangeOutcome::NotMade("etcd is away".into())
        } else if !change.guards.iter().all(|g| self.holds(*g)) {
            self.reach("a compare-and-put lost");
            ChangeOutcome::Lost
        } else {
            self.make(change);
            if !heard {
                self.reach("an outcome unknown and made");
            }
            ChangeOutcome::Done(self.records.revision)
        };
        self.say(format!(
            "etcd: {} of manager {manager}: {outcome:?}{}",
            change.kind.as_str(),
            if heard { "" } else { ", not heard" }
        ));
        if heard {
            let wait = self.delay();
            self.after(wait, Event::Outcome { manager, life, id: change.id, outcome });
        }
    }

    fn note_change(&mut self, to: &PolicyRecord) {
        let Some(old) = self.records.policy.as_ref().map(|p| p.value.clone()) else { return };
        match (&old.joint, &to.joint) {
            (Some(joint), None) if joint.voters.len() > old.voters.len() => self.reach("one more votes"),
            (Some(joint), None) if joint.voters.len() < old.voters.len() => self.reach("one votes no more"),
            (Some(joint), None) if joint.k != old.k => self.reach("k has changed"),
            _ => {}
        }
        self.note_unprotected(&old, to);
    }

    /// An automatic failover is counted by the transaction that begins it, whatever becomes of its manager. So is a restart, but
    /// where a restored etcd must be brought above what was promised.
    fn check_budget(&mut self, change: &Change) {
        let open = self.records.term.as_ref().is_some_and(|t| matches!(t.value.phase, Phase::Active | Phase::Draining));
        let counted = change.puts.iter().any(|p| matches!(p, RecordPut::Spent(..)));
        let begun = change.puts.iter().find_map(|p| match p {
            RecordPut::Term(t) if t.cause == Cause::Failover => Some(t.term),
            RecordPut::Term(t) if t.cause == Cause::Restart && !self.backup.may_come_back() => Some(t.term),
            _ => None, // asked for, or no term
        });
        if let Some(term) = begun.filter(|_| change.kind == ChangeKind::Begin && open && !counted) {
            self.fail(format!("the failover or restart of term {term} is not counted"));
        }
    }

    /// S8: a node in quarantine is no recruit, but where an operator takes what there is.
    fn check_recruits(&mut self, change: &Change, to: &TermRecord) {
        let journal = change.puts.iter().find_map(|p| match p {
            RecordPut::Journal(journal) => Some(journal),
            _ => None, // names no recruits
        });
        let Some(journal) = journal.filter(|_| change.kind == ChangeKind::Choose && !to.data_loss_allowed) else {
            return;
        };
        let quarantined = |n: &usize| self.quarantined.contains(&(to.term, *n));
        let nodes = (0..self.nodes.len()).filter(quarantined).map(name);
        if let Some(node) = nodes.into_iter().find(|n| journal.recruits.iter().any(|r| r.node == *n)) {
            self.fail(format!("{node} is a recruit of term {} in quarantine", to.term));
        }
    }

    fn make(&mut self, change: &Change) {
        self.check_budget(change);
        if change.kind == ChangeKind::Begin && self.nodes.iter().any(|n| n.is_ending(self.now)) {
            self.reach("a failover begun while the primary was ending");
        }
        let revision = self.bump();
        for put in change.puts.clone() {
            match put {
                RecordPut::Term(value) => {
                    self.check_recruits(change, &value);
                    let old = self.records.term.as_ref().map_or(Term(0), |t| t.value.term);
                    if value.term < old {
                        self.fail(format!("the term went back from {old} to {}", value.term));
                    }
                    if value.data_loss_allowed {
                        self.loss_in = value.term;
                    }
                    self.records.term = Some(At { value, revision });
                }
                RecordPut::Policy(value) => {
                    self.note_change(&value);
                    if change.kind == ChangeKind::Rearm {
                        self.reach("protection restored");
                        if std::mem::take(&mut self.replaced) {
                            self.reach("protection restored by other voters");
                        }
                    }
                    self.records.policy = Some(At { value, revision });
                }
                // The newest is read.
                RecordPut::Journal(journal) => {
                    if self.records.journal.as_ref().is_none_or(|j| j.term <= journal.term) {
                        self.records.journal = Some(*journal);
                    }
                }
                RecordPut::Fence(node, fence) => drop(self.records.fences.insert(node, fence)),
                RecordPut::Maintenance(node, m, _) => drop(self.records.maintenance.insert(node, m)),
                RecordPut::Pause(pause, _) => self.records.pause = Some(pause),
                RecordPut::Grace(length) => (self.records.grace, self.grace_ends) = (true, self.now + length),
                RecordPut::Spent(..) => {} // a budget would end the faults early
            }
        }
        for key in &change.deletes {
            match key {
                RecordKey::Primary => self.records.primary = None,
                RecordKey::Fence(node) => drop(self.records.fences.remove(node)),
                RecordKey::Member(node) => {
                    self.reach("a node removed");
                    self.records.members.remove(node);
                }
                RecordKey::Maintenance(node) => drop(self.records.maintenance.remove(node)),
                RecordKey::Pause => self.records.pause = None,
            }
        }
    }
}
