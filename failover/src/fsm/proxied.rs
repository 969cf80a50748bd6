//! Terms that etcd, restored from a backup, does not tell of: agents have promised them or proxies have read of them. PURE.
//!
//! Only a term above all of them is obeyed by everybody. An agent obeys nothing that etcd tells of until there is one, so
//! nothing else is done before. To a proxy alone the rest of the cluster owes less: while the term may not begin, all goes on
//! as etcd tells it, but that the history counts as lost; and one that asks again and again is not heeded each time.

use crate::api::PostgresState;
use crate::fsm::action::Action;
use crate::fsm::blocker::{Blocker, Verdict};
use crate::fsm::observe::millis;
use crate::fsm::planner::{Flow, Planner};
use crate::fsm::round::Begin;
use crate::record::{Cause, Phase, TermRecord};
use cluster::{Instant, NodeId, Term};
use std::time::Duration;

/// So many terms that no agent has heard of a proxy may have read of.
const MOST_UNPROMISED: u64 = 100;
/// So often within the budget's window a primary that serves is replaced because of a proxy's word. Not once: proxies register
/// again one by one.
const MOST_FOR_PROXIES: usize = 2;

impl Planner {
    /// A term is open, as etcd tells; what agents promised comes first, what a proxy has read of if nothing forbids it.
    pub(super) fn advance_told_open(&mut self, now: Instant, phase: Phase, out: &mut Vec<Action>) -> Flow {
        if now.since(self.leading_since) < self.settings.settle {
            return self.advance_open(now, phase, out);
        }
        if !self.agents_know_no_more() {
            return self.begin_above_the_promised(now, out);
        }
        let Some(held) = self.held_for_a_proxy(now) else { return self.advance_open(now, phase, out) };
        if held.is_empty() {
            return self.begin_above_the_promised(now, out);
        }
        self.verdict = Verdict::Steady;
        let flow = self.advance_open(now, phase, out);
        match &mut self.verdict {
            Verdict::Steady => self.verdict = Verdict::Hold { blockers: held },
            Verdict::Hold { blockers } => {
                let others = held.into_iter().filter(|b| !blockers.contains(b)).collect::<Vec<_>>();
                blockers.extend(others);
            }
            Verdict::Following | Verdict::Acting { .. } => {}
        }
        flow
    }

    /// What keeps a term from beginning that only a proxy's word calls for; empty if nothing does. `None`: nothing calls for
    /// one.
    fn held_for_a_proxy(&mut self, now: Instant) -> Option<Vec<Blocker>> {
        let (proxy, term) = self.proxied().map(|(proxy, term)| (proxy.to_owned(), term))?;
        let begin = self.above_the_promised(now)?;
        let mut held = self.obstacles(now, &begin);
        let next_in_ms = self.heeds_proxies_in(now).map(millis);
        if next_in_ms.is_some() || !held.is_empty() {
            held.insert(0, Blocker::ProxyAhead { proxy, term, next_in_ms });
        }
        Some(held)
    }

    /// In how long a term may begin again because of a proxy's word; `None`: now.
    pub(super) fn heeds_proxies_in(&mut self, now: Instant) -> Option<Duration> {
        let window = self.settings.failover_window;
        self.passed_over.retain(|at| now.since(*at) < window);
        let over = self.passed_over.len().checked_sub(MOST_FOR_PROXIES)?;
        self.passed_over.get(over).map(|at| window.saturating_sub(now.since(*at)))
    }

    /// Agents have promised terms that etcd does not know, or proxies have read of them: it was restored from a backup, and
    /// what it says of the primary is out of date, dead or alive. Only a term above all of them is obeyed.
    pub(super) fn begin_above_the_promised(&mut self, now: Instant, out: &mut Vec<Action>) -> Flow {
        let Some(begin) = self.above_the_promised(now) else { return Flow::Wait };
        (self.rearm, self.suspend) = (None, None);
        self.begin_or_hold(now, begin, out)
    }

    fn above_the_promised(&self, now: Instant) -> Option<Begin> {
        let term = self.seen.term()?.term;
        let open = || format!("an agent has read that term {} was open", self.opened);
        let told = self.known_beyond(term).unwrap_or_else(open);
        let why = format!("etcd was restored from a backup: it tells of term {term}, {told}");
        let mut begin = Self::automatic(Cause::Restart, now, vec![why]);
        let newest = self.promised.max(self.opened).timeline();
        let serves = |n: &&NodeId| {
            let state = self.seen.reachable(n, now, &self.settings);
            state.is_some_and(|s| matches!(&s.postgres, PostgresState::Primary(p) if Some(p.timeline) == newest))
        };
        // It has everything, and nobody would have to be rewound.
        begin.home = self.seen.agents.keys().find(serves).cloned();
        Some(begin)
    }

    /// Who knows of a term above `term`, which etcd does not know.
    pub(super) fn known_beyond(&self, term: Term) -> Option<String> {
        if self.promised > term {
            return Some(format!("an agent has promised term {}", self.promised));
        }
        let (proxy, proxied) = self.proxied().filter(|(_, proxied)| *proxied > term)?;
        Some(format!("proxy {proxy} has read of term {proxied}"))
    }

    /// The newest term above etcd's that a proxy has read of, which ignores all up to it, and the proxy. Rounds that froze nobody
    /// may be behind it, but not many: one that is far beyond was never begun, and a number that is passed over is gone for
    /// good. Nor is one of another cluster's, whose place this one took.
    pub(super) fn proxied(&self) -> Option<(&str, Term)> {
        let term = self.seen.term()?.term;
        let most = self.promised.max(self.opened).max(term).0.saturating_add(MOST_UNPROMISED);
        let ours = self.seen.records.proxies.iter().filter(|(_, p)| p.system_id == self.seen.records.system_id);
        let ahead = ours.map(|(id, p)| (id.as_str(), p.term)).filter(|(_, t)| *t > term && t.0 <= most);
        ahead.max_by_key(|(_, t)| *t)
    }

    /// Otherwise there are promises to terms that etcd does not know, or a proxy has read of one, or one was open that etcd
    /// tells of as unfinished, or somebody has the record of one: it was restored from a backup, and what was acknowledged since is
    /// unknown.
    pub(super) fn knows_of_every_term(&self) -> bool {
        let lost = |t: &TermRecord| !t.is_open() && t.term <= self.history_lost_in;
        self.agents_know_no_more() && self.proxied().is_none() && !self.seen.term().is_some_and(lost)
    }

    /// The same of the agents alone.
    pub(super) fn agents_know_no_more(&self) -> bool {
        self.seen.term().is_none_or(|t| {
            let told = if t.is_open() { self.opened <= t.term } else { self.opened < t.term };
            told && self.promised <= t.term
        })
    }
}
