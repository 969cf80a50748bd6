//! A term that its manager gave up and that opened all the same, as the order to open was still under way. PURE.
//!
//! What was to follow it was to replace the primary before it, which is replaced: nothing more is done. Whether the new one is any
//! good is seen as of every other, and what an operator's order allowed is not used for that.

use crate::fsm::action::{Action, Answer};
use crate::fsm::blocker::Verdict;
use crate::fsm::observe::Health;
use crate::fsm::planner::{Flow, Planner, Stage};
use crate::fsm::report::{observed, phase};
use crate::fsm::round::{Begin, outcome};
use crate::record::TermRecord;
use cluster::Instant;

impl Planner {
    /// Has the term opened whose round this change has given up?
    pub(super) fn opened_after_all(&self, begin: &Begin) -> Option<TermRecord> {
        let (given_up, _) = begin.given_up.as_ref()?;
        self.seen.term().filter(|t| t.is_open() && t.term >= *given_up).cloned()
    }

    /// Leave it to its primary. An operator is told once that is known to be well, or for long enough not to be.
    pub(super) fn leave_open(
        &mut self,
        now: Instant,
        term: &TermRecord,
        begin: Box<Begin>,
        out: &mut Vec<Action>,
    ) -> Flow {
        let health = self.seen.health(now, &self.settings);
        let well = matches!(health, Health::Well);
        let lately = now.since(self.seen.term_known_since) < self.settings.detect_timeout;
        if let Health::Unsure(blockers) = health
            && begin.op.is_some()
            && lately
        {
            self.verdict = Verdict::Hold { blockers };
            self.stage = Stage::Intent(begin);
            return Flow::Wait;
        }
        let node = term.node.as_ref().map_or_else(String::new, ToString::to_string);
        let told = self.last.clone().filter(|j| j.term == term.term).map(|mut journal| {
            phase(&mut journal, begin.began, self.seen.term_known_since, "open");
            observed(&mut journal, format!("{node} opened it after it had been given up"));
            (journal.to, journal.fork, journal.xid_bound) = (term.node.clone(), term.fork, term.xid_bound);
            journal.finished = Some("active".into());
            journal.below_mode = self.below_mode(&journal);
            self.write_journal(&journal, None, out);
            journal
        });
        // It ran as primary, or it could not have opened.
        (self.saw_primary, self.told_open) = (term.term, term.term);
        self.rearm_not_before = now + self.settings.retry;
        let unfenced = begin.given_up.filter(|(given_up, _)| *given_up == term.term).and_then(|(_, unfenced)| unfenced);
        if let Some(op) = begin.op {
            let answer = match &told {
                Some(journal) if well => outcome(&op, term.term, begin.home.as_ref(), (journal, unfenced)),
                told => {
                    let not = if well { "" } else { ", and is not seen to be well: it counts as any other primary" };
                    let unfenced = unfenced.map(|u| format!("; {u}")).unwrap_or_default();
                    let why = format!("{node} opened term {} after it had been given up{not}{unfenced}", term.term);
                    Answer::Failed { why, journal: told.clone().map(Box::new) }
                }
            };
            out.push(Action::Answer { id: op.id, answer: Box::new(answer) });
        }
        if let Some(journal) = told {
            out.push(Action::Ended { cause: begin.cause, active: true, journal: Box::new(journal) });
        }
        Flow::Again
    }
}
