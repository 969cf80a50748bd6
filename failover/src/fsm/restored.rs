//! An etcd that was restored from a backup under a leader. PURE.
//!
//! Where its lease and its key are in the backup too, the leader is still the leader, and no watch tells. But a read that
//! was sent after a revision was known cannot give an older one.

use crate::api::{Frozen, PostgresState};
use crate::fsm::action::Action;
use crate::fsm::blocker::list;
use crate::fsm::planner::Planner;
use crate::fsm::round::{Round, Step};
use cluster::{Instant, NodeId, Term};

impl Planner {
    /// Records of an older revision than known have come.
    pub(super) fn take_older(&mut self, now: Instant, sent_at: Instant, out: &mut Vec<Action>) {
        if sent_at <= self.seen.revision_known_at {
            // Overtaken by a newer answer, or by a change.
            out.push(Action::Read);
            return;
        }
        // Whatever is under way was decided by what is not there any more: as a manager that has just come to lead.
        if let Some(revision) = self.leading.take() {
            self.lead(now, revision, out);
        }
    }

    /// Has an agent read that this round's term was open, which this round has not opened? It was then by another primary, or
    /// before that one was lost: its followers have what was acknowledged, and are none of a second timeline of that number. A
    /// node that waits to be opened has not had it open, or it would know.
    pub(super) fn was_opened_by_another(&self, round: &Round) -> bool {
        let by_this = match &round.step {
            Step::Opening { node, open, .. } => {
                let state = self.seen.agents.get(node).and_then(|a| a.state.as_ref());
                open.in_flight || state.is_some_and(|s| s.opened >= round.term)
            }
            Step::Recruiting | Step::Choosing(_) | Step::Promoting(_) | Step::Recording(..) => false,
        };
        self.was_open_already(round.term) && !by_this
    }

    /// Nobody was chosen in this term yet, but there is a timeline of its number: two of one number could not be told apart.
    /// Either somebody has promoted a node past the managers, or etcd was restored from a backup of the time before somebody
    /// was chosen.
    pub(super) fn number_is_taken(&self, now: Instant, round: &Round) -> Option<String> {
        let number = round.term.timeline().filter(|_| matches!(round.step, Step::Recruiting))?;
        let frozen = |n: &NodeId| {
            let ours = |f: &&Frozen| self.seen.foreign(f.system_id.as_ref()).is_none();
            round.frozen.get(n).filter(ours).and_then(|f| f.position).is_some_and(|p| p.timeline == number)
        };
        // It is not frozen for the term that it takes for its own.
        let at_work = |n: &NodeId| {
            let state = self.seen.reachable(n, now, &self.settings);
            let ours = state.filter(|s| self.seen.foreign(s.system_id.as_ref()).is_none());
            matches!(ours.map(|s| &s.postgres), Some(PostgresState::Primary(p)) if p.timeline == number)
        };
        let who: Vec<&NodeId> = self.seen.agents.keys().filter(|n| frozen(n) || at_work(n)).collect();
        (!who.is_empty()).then(|| format!("timeline {number} is there already, at {}", list(&who)))
    }

    /// A recruit that has the record of a term which had nobody chosen, as far as etcd tells: etcd was restored from a backup
    /// of the time before. Who was primary last is not known then, and which timelines there are neither. The record of the
    /// term that is begun instead says so: whoever leads then need not hear it from that recruit.
    pub(super) fn told_by_a_record(&self, round: &Round) -> Option<String> {
        let newest = round.newest_timeline.filter(|_| matches!(round.step, Step::Recruiting))?;
        let made = |f: &&Frozen| {
            let timeline = f.position.map(|p| p.timeline).filter(|t| *t > newest);
            timeline.is_some() && f.recorded.and_then(Term::timeline) == timeline
        };
        let ours = |f: &&Frozen| self.seen.foreign(f.system_id.as_ref()).is_none();
        let frozen = round.frozen.values().filter(ours).find(made)?;
        let term = frozen.recorded.unwrap_or_default();
        Some(format!("etcd was restored from a backup: {} has the record of term {term}", frozen.node))
    }
}
