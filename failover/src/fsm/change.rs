//! The one change of the records that a planner has under way: sent with what it was decided on, made, lost, or unknown
//! until the records have been read again. PURE.

use crate::fsm::action::{Action, Change, ChangeKind, ChangeOutcome, Guard, RecordKey, RecordPut};
use crate::fsm::observe::{At, Records};
use crate::fsm::planner::Planner;
use crate::record::JournalRecord;
use cluster::Instant;

/// The one change of a record that is under way.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) change: Change,
    pub(super) state: PendingState,
    pub(super) failures: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PendingState {
    Sent,
    /// Not made; sent again at this instant.
    RetryAt(Instant),
    /// A guard failed: decide when the records have been read after this instant.
    LostUntilRead(Instant),
    /// Outcome unknown: decide when the records have been read after this instant.
    UnknownUntilRead(Instant),
}

impl Planner {
    pub(super) fn take_outcome(&mut self, now: Instant, id: u64, outcome: ChangeOutcome, out: &mut Vec<Action>) {
        if self.journal.as_ref().is_some_and(|p| p.change.id == id) {
            self.take_journal_outcome(now, &outcome);
            return;
        }
        let Some(pending) = self.pending.as_mut().filter(|p| p.change.id == id) else {
            return; // a journal that another has followed, or a change of an earlier leadership
        };
        match outcome {
            ChangeOutcome::Done(revision) => {
                let change = self.pending.take().expect("just seen").change;
                self.changed(now, &change, revision, out);
            }
            ChangeOutcome::NotMade(_) => {
                pending.state = PendingState::RetryAt(now + self.settings.backoff(pending.failures));
                pending.failures += 1;
            }
            ChangeOutcome::Lost => {
                pending.state = PendingState::LostUntilRead(now);
                out.push(Action::Read);
            }
            ChangeOutcome::Unknown(_) => {
                pending.state = PendingState::UnknownUntilRead(now);
                out.push(Action::Read);
            }
        }
    }

    /// A read has arrived: decide on a change whose outcome was not known, or that lost.
    pub(super) fn settle_pending(&mut self, now: Instant, sent_at: Instant, out: &mut Vec<Action>) {
        let Some(pending) = &mut self.pending else { return };
        match pending.state {
            PendingState::UnknownUntilRead(since) if sent_at >= since => {
                if let Some(revision) = made(&pending.change, &self.seen.records) {
                    let change = self.pending.take().expect("just seen").change;
                    self.changed(now, &change, revision, out);
                } else {
                    // It may happen yet; sent again, at most one of the two can pass its guards.
                    pending.state = PendingState::RetryAt(now);
                }
            }
            PendingState::LostUntilRead(since) if sent_at >= since => {
                let change = self.pending.take().expect("just seen").change;
                // A retry after an unknown outcome loses against its own first try.
                match made(&change, &self.seen.records) {
                    Some(revision) => self.changed(now, &change, revision, out),
                    None => self.lost(now, &change, out),
                }
            }
            _ => {} // sent or waiting for its retry: a read decides nothing
        }
    }

    fn changed(&mut self, now: Instant, change: &Change, revision: i64, out: &mut Vec<Action>) {
        self.adopt(now, change, revision);
        // What begins a term took it along.
        if self.unwritten_journal().is_some_and(|journal| change.puts.contains(&journal)) {
            self.journal = None;
        }
        match change.kind {
            ChangeKind::Begin => self.begun(now, revision, out),
            ChangeKind::Choose => self.chosen(now, revision, out),
            ChangeKind::Record => self.recorded(now, revision, out),
            ChangeKind::Drain => self.drained_gate(now),
            ChangeKind::Rearm => self.rearmed(),
            ChangeKind::Suspend => self.suspend = None,
            ChangeKind::Pause => self.pause_written(out),
            ChangeKind::Maintenance => self.maintenance_written(out),
            ChangeKind::Remove => self.removed(out),
            // What it began goes on by what the record says.
            ChangeKind::Policy => {}
            ChangeKind::Undrain | ChangeKind::Fence | ChangeKind::Journal => {}
        }
    }

    fn lost(&mut self, now: Instant, change: &Change, out: &mut Vec<Action>) {
        match change.kind {
            ChangeKind::Begin => self.begin_lost(now, out),
            ChangeKind::Choose => self.choose_lost(now, out),
            ChangeKind::Record => self.record_lost(now, out),
            ChangeKind::Drain => self.drain_lost(out),
            ChangeKind::Rearm => self.rearm = None,
            ChangeKind::Suspend => self.suspend = None,
            ChangeKind::Pause => self.pause_lost(out),
            ChangeKind::Maintenance => self.maintenance_lost(out),
            ChangeKind::Remove => self.remove_lost(out),
            ChangeKind::Policy => self.policy_lost(out),
            ChangeKind::Undrain | ChangeKind::Fence | ChangeKind::Journal => {}
        }
    }

    /// What we wrote is what the records are now; older reads are ignored from here on.
    fn adopt(&mut self, now: Instant, change: &Change, revision: i64) {
        self.seen.made_at(now, revision);
        let records = &mut self.seen.records;
        for put in &change.puts {
            match put.clone() {
                RecordPut::Term(value) => records.term = Some(At { value, revision }),
                RecordPut::Policy(value) => records.policy = Some(At { value, revision }),
                RecordPut::Fence(node, fence) => drop(records.fences.insert(node, fence)),
                RecordPut::Maintenance(node, m, _) => drop(records.maintenance.insert(node, m)),
                RecordPut::Pause(pause, _) => records.pause = Some(pause),
                RecordPut::Grace(_) => records.grace = true,
                RecordPut::Spent(term, _) => drop(records.spent.insert(term)),
                RecordPut::Journal(journal) => self.last = Some(*journal),
            }
        }
        for key in &change.deletes {
            match key {
                RecordKey::Primary => records.primary = None,
                RecordKey::Fence(node) => drop(records.fences.remove(node)),
                RecordKey::Member(node) => drop(records.members.remove(node)),
                RecordKey::Maintenance(node) => drop(records.maintenance.remove(node)),
                RecordKey::Pause => records.pause = None,
            }
        }
    }

    /// Send a change; no other may be pending.
    pub(super) fn send(
        &mut self,
        kind: ChangeKind,
        mut guards: Vec<Guard>,
        puts: Vec<RecordPut>,
        deletes: Vec<RecordKey>,
        out: &mut Vec<Action>,
    ) {
        debug_assert!(self.pending.is_none(), "one change at a time");
        guards.extend(self.leading.map(Guard::Leader));
        self.change_ids += 1;
        let change = Change { id: self.change_ids, kind, guards, puts, deletes };
        out.push(Action::Change(Box::new(change.clone())));
        self.pending = Some(Pending { change, state: PendingState::Sent, failures: 0 });
    }

    /// Write a journal, again until it is there: twice it is the same, and nobody waits for it. `guard` is for one that must not
    /// come late, behind another of its term.
    pub(super) fn write_journal(&mut self, journal: &JournalRecord, guard: Option<Guard>, out: &mut Vec<Action>) {
        self.last = Some(journal.clone());
        let guards = guard.into_iter().chain(self.leading.map(Guard::Leader)).collect();
        let puts = vec![RecordPut::Journal(Box::new(journal.clone()))];
        self.change_ids += 1;
        let change = Change { id: self.change_ids, kind: ChangeKind::Journal, guards, puts, deletes: Vec::new() };
        out.push(Action::Change(Box::new(change.clone())));
        self.journal = Some(Pending { change, state: PendingState::Sent, failures: 0 });
    }

    fn take_journal_outcome(&mut self, now: Instant, outcome: &ChangeOutcome) {
        let Some(pending) = &mut self.journal else { return };
        match outcome {
            ChangeOutcome::Done(_) => self.journal = None,
            // Another manager leads, or the term is not any more as it tells.
            ChangeOutcome::Lost => pending.state = PendingState::LostUntilRead(now),
            ChangeOutcome::NotMade(_) | ChangeOutcome::Unknown(_) => {
                pending.state = PendingState::RetryAt(now + self.settings.backoff(pending.failures));
                pending.failures += 1;
            }
        }
    }

    /// The journal that is not known to be there. What begins the next term takes it along: its own guard fails from then on, and
    /// another may follow it.
    pub(super) fn unwritten_journal(&self) -> Option<RecordPut> {
        let pending = self.journal.as_ref().filter(|p| !matches!(p.state, PendingState::LostUntilRead(_)))?;
        pending.change.puts.first().cloned()
    }

    /// Send again what was not made, once it is time.
    pub(super) fn retry_changes(&mut self, now: Instant, out: &mut Vec<Action>) {
        for pending in [&mut self.journal, &mut self.pending].into_iter().flatten() {
            if matches!(pending.state, PendingState::RetryAt(at) if now >= at) {
                pending.state = PendingState::Sent;
                out.push(Action::Change(Box::new(pending.change.clone())));
            }
        }
    }
}

/// The revision at which the change was made, when the records show that it was.
fn made(change: &Change, records: &Records) -> Option<i64> {
    let mut revision = None;
    for put in &change.puts {
        let shown = match put {
            RecordPut::Term(want) => records.term.as_ref().filter(|t| t.value == *want).map(|t| t.revision),
            RecordPut::Policy(want) => records.policy.as_ref().filter(|p| p.value == *want).map(|p| p.revision),
            RecordPut::Fence(node, want) => (records.fences.get(node) == Some(want)).then_some(records.revision),
            RecordPut::Maintenance(node, want, _) => {
                (records.maintenance.get(node) == Some(want)).then_some(records.revision)
            }
            RecordPut::Pause(want, _) => (records.pause.as_ref() == Some(want)).then_some(records.revision),
            RecordPut::Journal(_) | RecordPut::Spent(..) | RecordPut::Grace(_) => continue,
        };
        revision = Some(shown?);
    }
    for key in &change.deletes {
        match key {
            RecordKey::Primary => {} // goes with the term record
            RecordKey::Fence(node) if records.fences.contains_key(node) => return None,
            RecordKey::Member(node) if records.members.contains_key(node) => return None,
            RecordKey::Maintenance(node) if records.maintenance.contains_key(node) => return None,
            RecordKey::Pause if records.pause.is_some() => return None,
            RecordKey::Fence(_) | RecordKey::Member(_) | RecordKey::Maintenance(_) | RecordKey::Pause => {
                revision = revision.or(Some(records.revision))
            }
        }
    }
    revision
}
