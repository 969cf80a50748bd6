//! An operator's pause, and the budget: what keeps the managers from changing the primary by themselves. PURE.
//!
//! While `pause` exists no failover begins that nobody asked for; the transaction that would begin one compares the
//! key, so a pause that was acknowledged holds whatever a leader has read. Operators' orders, and the completion of a
//! change that had begun, go on. A pause of limited length is bound to a lease: etcd ends it, no clock is compared.

use crate::fsm::action::{Action, Answer, ChangeKind, RecordKey, RecordPut};
use crate::fsm::blocker::Blocker;
use crate::fsm::observe::millis;
use crate::fsm::planner::Planner;
use crate::fsm::round::Begin;
use crate::record::{Cause, PauseRecord, Phase};
use cluster::{Instant, Term};
use std::time::Duration;

/// A pause being put or removed.
#[derive(Debug)]
pub(super) struct PauseOp {
    pub(super) id: u64,
    /// The record to put and how long it holds; `None` removes it.
    put: Option<(PauseRecord, Option<Duration>)>,
    sent: bool,
    deadline: Instant,
}

impl Planner {
    pub(super) fn pause(
        &mut self,
        now: Instant,
        id: u64,
        by: String,
        why: String,
        length: Option<Duration>,
    ) -> Result<(), Vec<Blocker>> {
        let until = length.map(|l| self.wall.saturating_add(millis(l)));
        let record = PauseRecord { by, why, at: self.wall, until };
        self.queue_pause(now, id, Some((record, length)))
    }

    pub(super) fn resume(&mut self, now: Instant, id: u64) -> Result<(), Vec<Blocker>> {
        if self.seen.records.pause.is_none() {
            return Err(vec![Blocker::NotPaused]);
        }
        self.queue_pause(now, id, None)
    }

    fn queue_pause(
        &mut self,
        now: Instant,
        id: u64,
        put: Option<(PauseRecord, Option<Duration>)>,
    ) -> Result<(), Vec<Blocker>> {
        if self.pause_op.is_some() {
            return Err(vec![Blocker::Busy { what: "another request to pause or resume".into() }]);
        }
        let deadline = now + self.settings.operation_timeout / 2;
        self.pause_op = Some(PauseOp { id, put, sent: false, deadline });
        Ok(())
    }

    /// Write it when no other change is under way; say so when that takes too long.
    pub(super) fn advance_pause(&mut self, now: Instant, out: &mut Vec<Action>) {
        let Some(op) = &mut self.pause_op else { return };
        if now >= op.deadline {
            let (id, sent) = (op.id, op.sent);
            self.pause_op = None;
            let why = if sent { "it may be written yet" } else { "nothing was written" };
            let why = format!("not recorded in time: {why}; `pgtenure status` shows whether changes are paused");
            out.push(Action::Answer { id, answer: Box::new(Answer::Failed { why, journal: None }) });
            return;
        }
        if op.sent || self.pending.is_some() {
            return;
        }
        op.sent = true;
        let (puts, deletes) = match op.put.clone() {
            Some((record, length)) => (vec![RecordPut::Pause(record, length)], Vec::new()),
            None => (Vec::new(), vec![RecordKey::Pause]),
        };
        self.send(ChangeKind::Pause, Vec::new(), puts, deletes, out);
    }

    pub(super) fn pause_written(&mut self, out: &mut Vec<Action>) {
        let Some(op) = self.pause_op.take() else { return };
        let note = match op.put {
            Some((_, None)) => "no change of primary begins by itself until `pgtenure resume`".into(),
            Some((_, Some(length))) => {
                format!("no change of primary begins by itself for {} s, or until `pgtenure resume`", length.as_secs())
            }
            None => "changes of primary begin by themselves again".into(),
        };
        let term = self.seen.term().map_or(Term(0), |t| t.term);
        out.push(Action::Answer {
            id: op.id,
            answer: Box::new(Answer::Done { term, node: None, note, journal: None }),
        });
    }

    pub(super) fn pause_lost(&mut self, out: &mut Vec<Action>) {
        let Some(op) = self.pause_op.take() else { return };
        let why = "nothing was written: another manager leads now".to_owned();
        out.push(Action::Answer { id: op.id, answer: Box::new(Answer::Failed { why, journal: None }) });
    }

    /// The pause as a reason not to begin.
    pub(super) fn paused(&self) -> Option<Blocker> {
        let pause = self.seen.records.pause.as_ref()?;
        Some(Blocker::Paused { by: pause.by.clone(), why: pause.why.clone() })
    }

    /// Is this a change that nobody asked for, of a primary that was open?
    pub(super) fn bound_by_pause(&self, begin: &Begin) -> bool {
        let was_open = self.seen.term().is_some_and(|t| matches!(t.phase, Phase::Active | Phase::Draining));
        was_open && matches!(begin.cause, Cause::Failover | Cause::Restart)
    }
}
