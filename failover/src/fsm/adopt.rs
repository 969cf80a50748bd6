//! A term that another leader left unfinished: going on with it instead of beginning a higher one. PURE.
//!
//! What the frozen nodes answered was known to that leader alone, and asking again gives the same answers: they stay frozen
//! for the term. The choice of a node and its base are on record. So a lead that changes hands while etcd or this host is
//! slow costs an exchange of messages, and no term. A higher one begins where anything differs from what the term was begun
//! with: the policy, or a promise.

use crate::api::Position;
use crate::fsm::action::Action;
use crate::fsm::blocker::Verdict;
use crate::fsm::candidate::Choice;
use crate::fsm::observe::At;
use crate::fsm::planner::{Flow, Planner, Stage};
use crate::fsm::report::observed;
use crate::fsm::round::{Begin, Round, Step, phase_word};
use crate::record::{Cause, Phase, PolicyRecord, TermRecord};
use cluster::Instant;

impl Planner {
    /// A term found recruiting or promoting.
    pub(super) fn advance_found_round(&mut self, now: Instant, term: &TermRecord, out: &mut Vec<Action>) -> Flow {
        let same_policy = self.seen.records.policy.clone().filter(|p| p.value.epoch == term.policy_epoch);
        let lost = self.seen.lost_policy(now, &self.settings).is_some();
        let Some(policy) = same_policy.filter(|_| !lost && self.knows_of_every_term()) else {
            return self.take_over(now, term, out);
        };
        if term.phase == Phase::Recruiting {
            self.go_on(now, term, &policy, Step::Recruiting);
            return Flow::Again;
        }
        let Some((node, fork)) = term.node.clone().zip(term.fork) else { return self.take_over(now, term, out) };
        if self.seen.reachable(&node, now, &self.settings).is_none() {
            if self.seen.silent_for(&node, now) >= self.settings.detect_timeout {
                return self.take_over(now, term, out);
            }
            self.verdict = Verdict::Acting { term: term.term, step: format!("listening for {node}") };
            return Flow::Wait;
        }
        let choice = Choice { node, base: Position { timeline: fork.timeline, lsn: fork.lsn } };
        self.go_on(now, term, &policy, Step::Promoting(choice.clone()));
        // Only that node can be promoted in this term; it gives the same answer again, or says why it cannot.
        if let Stage::Round(round) = &self.stage {
            self.order_promotion(round, &choice, out);
        }
        Flow::Again
    }

    /// Take the term on record for a round of ours.
    pub(super) fn go_on(&mut self, now: Instant, term: &TermRecord, policy: &At<PolicyRecord>, step: Step) {
        let word = phase_word(term.phase);
        let evidence = vec![format!("{word} of term {} taken over from {}", term.term, term.coordinator)];
        let mut begin = Begin { allow_loss: term.data_loss_allowed, ..Self::automatic(term.cause, now, evidence) };
        begin.lost_candidates = self.rounds_on_record(now, term);
        // Where nothing but the old primary is known to be complete, a switchover whose leader is gone goes back to it: the
        // target and the old primary's end were known to that leader alone.
        let back = term.cause == Cause::Switchover && !policy.value.protects();
        if term.cause == Cause::Restart || back {
            begin.home = term.prev.as_ref().map(|p| p.node.clone());
        }
        let kept = self.last.clone().filter(|j| j.term == term.term);
        let mut journal = match kept {
            Some(mut journal) => {
                begin.evidence.iter().for_each(|e| observed(&mut journal, e.clone()));
                journal
            }
            None => self.new_journal(term.term, &begin, term.prev.as_ref(), &policy.value),
        };
        if term.phase != Phase::Recruiting {
            (journal.to, journal.fork, journal.xid_bound) = (term.node.clone(), term.fork, term.xid_bound);
        }
        let revision = self.seen.records.term.as_ref().map_or(0, |t| t.revision);
        let round = Round::new(now, begin, At { value: term, revision }, policy.clone(), step, journal);
        self.stage = Stage::Round(Box::new(round));
    }
}
