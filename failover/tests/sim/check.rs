//! What is checked while a seed is played, and in the end: what was acknowledged is there, commits wait for whom the
//! policy names, promises grow, and everybody follows the open primary.

use super::node::{Names, Node};
use super::{FAULTS_END, HEALED, World, name};
use cluster::sync_names::SyncNames;
use cluster::{NodeId, Term};
use failover::record::{Cause, JournalRecord, Mode};
use std::collections::BTreeSet;

/// Records that a standby may lack when nothing is wrong.
const ON_ITS_WAY: usize = 8;

impl World {
    /// A term opens: it must have everything that was acknowledged.
    pub(crate) fn opened(&mut self, n: usize) {
        let missing: Vec<u64> = self.acked.iter().copied().filter(|id| !self.nodes[n].has(*id)).collect();
        let allowed = self.records.term.as_ref().is_some_and(|t| t.value.may_lack_acknowledged());
        if allowed {
            self.reach("an operator allowed data loss");
            self.check_report(&missing);
            self.acked.retain(|id| !missing.contains(id));
            self.reader.excuse(&missing);
            self.proxy.excuse();
        } else if !missing.is_empty() {
            let name = self.nodes[n].name.clone();
            self.fail(format!("{name} opens without the acknowledged writes {missing:?}"));
        }
        self.check_told(n);
        self.check_whole(n);
        if self.nodes.iter().any(|x| x.is_primary() && !x.flushes(self.now)) {
            self.reach("a primary replaced while its disk hangs");
        }
        self.check_watchdogs(n);
        self.reach(if self.mode == Mode::Async { "an async failover" } else { "a failover" });
        if self.records.policy.as_ref().is_some_and(|p| p.value.joint.is_some()) {
            self.reach("a failover while voters change");
        }
        if self.replaced && self.records.policy.as_ref().is_some_and(|p| !p.value.protects()) {
            self.reach("a failover to other voters while unprotected");
        }
        if self.records.policy.as_ref().is_some_and(|p| p.value.protects() && p.value.k >= 2) {
            self.reach("a failover of two copies");
        }
    }

    /// A term that is said to have all that the last one wrote has it.
    fn check_whole(&mut self, n: usize) {
        let Some(term) = self.records.term.as_ref().map(|t| t.value.clone()) else { return };
        let Some(of) = term.holds_all_of.or(term.holds_written_of) else { return };
        let has = |at: usize, entry: (u32, u64)| self.nodes[n].wal.get(at) == Some(&entry);
        let of_last = self.written.iter().filter(|((timeline, _), _)| u64::from(*timeline) == of.0);
        let missing: Vec<u64> =
            of_last.filter(|((line, place), what)| !has(place - 1, (*line, **what))).map(|(_, what)| *what).collect();
        if !missing.is_empty() {
            self.fail(format!("{} is said to have all of term {of} and lacks {missing:?}", name(n)));
        }
        self.reach(match (term.holds_all_of, term.cause) {
            (Some(_), Cause::Switchover) => "a switchover known to have lost nothing",
            (Some(_), _) => "a failover known to have lost nothing, as the primary was stopped cleanly",
            (None, _) => "a term known to have all that was on the last primary's disk",
        });
    }

    /// The journal of a term that an operator let lose something says from where on that is, or that it is not known yet.
    fn check_report(&mut self, missing: &[u64]) {
        let term = self.records.term.as_ref().map(|t| t.value.term);
        // Where it ends: the new term's node may have had the beginning of it.
        let place = |id: &u64| {
            let at = |n: &Node| Some(n.lsn_at(n.wal.iter().position(|(_, what)| what == id)? + 1));
            self.nodes.iter().find_map(at)
        };
        let Some(first) = missing.iter().filter_map(place).min() else { return };
        let journal = self.records.journal.as_ref().filter(|j| Some(j.term) == term);
        let said = journal.is_some_and(|j| match &j.window {
            Some(window) => window.fork_lsn < first,
            None => j.observed.iter().any(|line| line.contains("not known here")),
        });
        if said {
            self.reach("acknowledged writes lost as an operator allowed, and reported");
        } else {
            self.fail(format!("lost {missing:?} up to {first}, and the journal does not say so: {journal:?}"));
        }
    }

    /// A policy that protects is in force (S7): the primary of the open term makes commits wait.
    fn check_policy(&mut self) {
        let (Some(term), Some(policy)) = (&self.records.term, &self.records.policy) else { return };
        let (term, policy) = (&term.value, &policy.value);
        if term.phase != failover::record::Phase::Active || !policy.protects() {
            return;
        }
        let primary = |n: &&Node| n.serves(term.term) && Some(&n.name) == term.node.as_ref();
        let Some(node) = self.nodes.iter().find(primary) else { return };
        let by = |(voters, k): (&[NodeId], u32)| SyncNames::for_primary(&node.name, voters, k) == node.waits_for;
        let name = &node.name;
        let wrong = match node.names {
            Names::Armed if !policy.quorums().any(by) => {
                format!("commits of {name} wait for {}, which is no quorum of {policy:?}", node.waits_for)
            }
            Names::Off => format!("commits of {name} wait for nobody although the policy protects them"),
            Names::Armed | Names::Fenced => return,
        };
        self.fail(wrong);
    }

    pub(super) fn check(&mut self) {
        self.expire();
        self.check_policy();
        let term = self.records.term.as_ref().map_or(0, |t| t.value.term.0);
        if self.elapsed() >= HEALED && *self.healed.get_or_insert(Term(term)) != Term(term) {
            self.fail(format!("term {term} was begun although nothing had been wrong for {} ms", HEALED - FAULTS_END));
        }
        let old = self.nodes.iter().any(|n| n.is_primary() && u64::from(n.timeline) < term);
        if old {
            self.reach("a superseded primary running");
        }
        let leaders = self.managers.iter().filter(|m| m.planner.leads()).count();
        if leaders > 1 {
            self.reach("two leaders at once");
        }
        self.check_promises();
    }

    /// A promise only grows (S9), whatever crashes and restarts.
    fn check_promises(&mut self) {
        let back = self.nodes.iter().find(|n| n.promise < n.promised);
        if let Some(why) =
            back.map(|n| format!("{} has promised term {} and goes by a promise of {}", n.name, n.promised, n.promise))
        {
            self.fail(why);
        }
        self.nodes.iter_mut().for_each(|n| n.promised = n.promise);
    }

    /// Who is neither the open primary, nor follows it, nor was taken out by an operator.
    pub(super) fn astray(&self) -> Option<String> {
        let term = &self.records.term.as_ref()?.value;
        let primary = (0..self.nodes.len()).find(|p| term.node.as_ref() == Some(&name(*p)))?;
        let strays = |n: &&Node| {
            let leads = n.name == self.nodes[primary].name && n.serves(term.term);
            !(leads || n.fenced || n.receives_from(primary, term.term))
        };
        let node = self.nodes.iter().find(strays)?;
        Some(format!("{} does not follow {} of term {}: {:?}", node.name, name(primary), term.term, node.is))
    }

    /// The journal of a term that is open says so in the end.
    pub(super) fn untold(&self) -> Option<String> {
        let term = self.records.term.as_ref()?.value.term;
        let active = |j: &&JournalRecord| j.finished.as_deref() == Some("active");
        let journal = self.records.journal.as_ref().filter(|j| j.term == term && !active(j))?;
        Some(format!("the journal of term {term} does not say that it opened: {journal:?}"))
    }

    /// What there is in the end: the primary has all that was promised, whatever the terms since then opened with, and who
    /// follows it has a beginning of its WAL, and lacks no more than is on its way.
    pub(super) fn unlike(&self) -> Option<String> {
        let term = &self.records.term.as_ref()?.value;
        let primary = self.nodes.iter().find(|n| term.node.as_ref() == Some(&n.name))?;
        let there: BTreeSet<u64> = primary.wal.iter().map(|e| e.1).collect();
        if let Some(id) = self.acked.iter().find(|id| !there.contains(id)) {
            return Some(format!("{id} was acknowledged and is not on {} in the end", primary.name));
        }
        let own = |n: &&Node| !primary.wal.starts_with(&n.wal) || primary.wal.len() - n.wal.len() > ON_ITS_WAY;
        let node = self.nodes.iter().filter(|n| !n.fenced).find(own)?;
        let ends = (node.whole_end(), primary.whole_end());
        Some(format!("{} has other WAL than {} in the end: they end at {ends:?}", node.name, primary.name))
    }
}
