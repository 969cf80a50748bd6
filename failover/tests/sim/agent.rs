//! An agent's own loop: its lease, what it guards, and the shipped machine that says what is to be done.

use super::node::{Is, Names, SOFT};
use super::{Event, LEASE, World, name};
use cluster::lease::Lease;
use cluster::{Term, TimelineId};
use failover::fsm::agent::{Act, Facts, Others, Server, decide};
use failover::fsm::lease::{Fence, fence_at};
use failover::fsm::namesake::Place;
use failover::fsm::rejoin::{self, Plan, leads_elsewhere, plan};
use failover::fsm::sync_set;
use failover::record::{Phase, PolicyRecord, PrimaryRecord, TermRecord};
impl World {
    /// The agent's own loop.
    pub(crate) fn reconcile(&mut self, n: usize) {
        if self.nodes[n].awake(self.now) {
            if self.etcd_up() && self.reachable(n) && !self.lost() {
                self.register(n);
                self.nodes[n].view = Some(self.records.clone());
                self.nodes[n].leader = self.leader.map(|(_, since, _)| since);
                let term = self.records.term.as_ref().map(|t| &t.value);
                let open = term.filter(|t| matches!(t.phase, Phase::Active | Phase::Draining)).map(|t| t.term);
                self.nodes[n].opened = self.nodes[n].opened.max(open.unwrap_or_default());
                self.renew(n);
                self.give_back(n);
            }
            self.gather_signatures(n);
            self.tend_watchdog(n);
            self.guard(n);
            self.tend_walsenders(n);
            self.look_at_primary(n);
            self.act(n);
            self.tend_slot(n);
            self.tend_watchdog(n);
        }
        let next = 80 + self.chance.below(60);
        self.after(next, Event::Reconcile(n));
    }

    pub(crate) fn policy(&self, n: usize) -> Option<PolicyRecord> {
        Some(self.nodes[n].view.as_ref()?.policy.as_ref()?.value.clone())
    }

    /// The open term that the node serves, as its agent has read.
    pub(crate) fn served(&self, n: usize) -> Option<Term> {
        let term = &self.nodes[n].view.as_ref()?.term.as_ref()?.value;
        let mine = term.node.as_ref() == Some(&self.nodes[n].name) && self.nodes[n].serves(term.term);
        (mine && matches!(term.phase, Phase::Active | Phase::Draining)).then_some(term.term)
    }

    /// `Agent::keep_registered`: whoever is not removed has a record.
    fn register(&mut self, n: usize) {
        let removed = self.records.fences.get(&name(n)).is_some_and(|f| f.removed);
        if !removed && !self.records.members.contains_key(&name(n)) {
            self.say(format!("{} registers", name(n)));
            self.records.members.insert(name(n), super::etcd::member(n));
            self.bump();
            self.reach("a removed node that came back");
        }
    }

    /// T4, as `Agent::renew`: what was read just now says that the term is ours.
    fn renew(&mut self, n: usize) {
        let Some(term) = self.served(n) else { return };
        let holds = self.records.primary.as_ref().is_some_and(|p| p.term == term && p.node == self.nodes[n].name);
        if !holds {
            self.records.primary = Some(PrimaryRecord { term, node: name(n), holder: "h".into() });
            self.bump();
        }
        self.primary_ends = self.now + LEASE;
        (self.nodes[n].lease, self.nodes[n].renewed) = (Some((term, self.now + self.counted(n, LEASE))), self.now);
    }

    /// What is stopped acknowledges nothing: nobody needs to wait for its lease.
    fn give_back(&mut self, n: usize) {
        let stopped = matches!(self.nodes[n].is, Is::Stopped { .. });
        if stopped && self.records.primary.as_ref().is_some_and(|p| p.node == self.nodes[n].name) {
            (self.records.primary, self.nodes[n].lease) = (None, None);
            self.bump();
        }
    }

    /// `Agent::enforce` and `Agent::preset_by_policy`.
    fn guard(&mut self, n: usize) {
        let (Some(term), Some(policy)) = (self.served(n), self.policy(n)) else { return };
        let armed = sync_set::waits(&policy, &name(n)).protects();
        let now = self.now;
        let node = &mut self.nodes[n];
        // On a primary only towards more waiting: another list is a manager's to order.
        if policy.protects() || armed && node.names == Names::Off {
            if node.names != Names::Armed {
                node.waits_for = sync_set::armed_names(&policy, &node.name);
            }
            node.names = Names::Armed;
        }
        if policy.protects() {
            return;
        }
        let held = node.lease.filter(|(t, _)| *t == term).map(|(_, end)| end);
        node.unleased_since = if held.is_some() { None } else { node.unleased_since.or(Some(now)) };
        let lease = held.map(|end| Lease { term, sent_at: end - LEASE, ttl: LEASE });
        let by_lease = fence_at(lease.as_ref(), node.unleased_since, SOFT, LEASE, now);
        let fence = if self.must_stop(n) { Fence::Hard } else { by_lease };
        let node = &mut self.nodes[n];
        match fence {
            Fence::Free if node.names == Names::Fenced => {
                node.names = if armed { Names::Armed } else { Names::Off };
                node.waits_for = sync_set::armed_names(&policy, &node.name);
            }
            Fence::Free => {}
            Fence::Soft => node.names = Names::Fenced,
            Fence::Hard => {
                node.stop();
                self.say(format!("{} stops at the end of its lease", name(n)));
                self.reach("a primary fenced by its lease");
                if self.drift[n].abs() > 100 {
                    self.reach("a lease that ended by a clock that drifts");
                }
            }
        }
        self.acknowledge(n);
    }

    fn look_at_primary(&mut self, n: usize) {
        let record = self.nodes[n].view.as_ref().and_then(|v| v.term.as_ref()).map(|t| t.value.clone());
        let Some((primary, term)) = record.and_then(|t| Some((t.node?, t.term))).filter(|(p, _)| *p != name(n)) else {
            self.nodes[n].seen = None;
            return;
        };
        let other = (0..self.nodes.len()).find(|p| name(*p) == primary).expect("a node of ours");
        let before = self.nodes[n].seen.take().filter(|(p, t, ..)| (p, *t) == (&primary, term));
        let (mut agent, mut sql) = before.map_or((self.now, self.now), |(.., agent, sql)| (agent, sql));
        if self.linked(n, other) {
            agent = self.now;
            sql = if self.nodes[other].hangs(self.now) { sql } else { self.now };
        }
        self.nodes[n].seen = Some((primary, term, agent, sql));
    }

    fn act(&mut self, n: usize) {
        let Some(read) = self.nodes[n].view.as_ref().and_then(|v| v.term.as_ref()).map(|t| t.value.clone()) else {
            return;
        };
        let node = &self.nodes[n];
        // As `Agent::ordered_record`.
        let ordered = node.ordered.filter(|(_, term)| {
            *term > read.term || *term == read.term && matches!(read.phase, Phase::Recruiting | Phase::Promoting)
        });
        let record = match ordered {
            Some((p, term)) => TermRecord { term, phase: Phase::Opening, node: Some(name(p)), ..read },
            None => read,
        };
        let timeline = TimelineId(node.timeline);
        let server = match node.is {
            Is::Stopped { was_primary } => Server::Stopped { was_primary },
            Is::Standby => Server::Standby { streaming: node.receiver.map(|_| timeline) },
            Is::Primary => Server::Primary { timeline },
        };
        let view = node.view.as_ref().expect("it has a term");
        let fence = view.fences.get(&node.name).cloned();
        let votes = view.policy.as_ref().is_some_and(|p| p.value.counts(&node.name));
        let fenced = fence.is_some();
        let upstream = node.upstream.map(|(p, term)| (name(p), term));
        let act = decide(&Facts {
            node: &node.name,
            server,
            promise: node.promise,
            record: Some(&record),
            init: None,
            system_id: None,
            memory_of: None,
            fence: fence.as_ref(),
            maintenance: false,
            adopts: None,
            upstream: upstream.as_ref().map(|(p, term)| (p, *term)),
            starts_late: false,
            hangs_late: false,
            not_streaming_for: self.now.since(node.not_streaming_since),
            rewind_interrupted: false,
            quarantined: node.quarantine.is_some(),
            remembers: true,
            others: Others::Empty,
            voter: votes,
            place: Place::Own,
        });
        self.nodes[n].fenced = fenced;
        match act {
            Act::StopFenced => {
                self.say(format!("{} is fenced and stops", name(n)));
                self.nodes[n].stop();
            }
            Act::StopSuperseded => {
                self.say(format!("{} sees term {} and stops", name(n), record.term));
                self.nodes[n].stop();
            }
            Act::StartDetached => self.nodes[n].start_detached(),
            Act::StartUnder | Act::Rejoin if !self.nodes[n].flushes(self.now) => {}
            Act::StartUnder | Act::Rejoin => self.rejoin(n, &record),
            Act::Wait(_)
            | Act::StopStranded
            | Act::StopHung
            | Act::StopNamesake
            | Act::Create
            | Act::ResumeCreation
            | Act::Clone
            | Act::TakeOver => {}
        }
    }

    fn rejoin(&mut self, n: usize, record: &TermRecord) {
        let Some(p) = (0..self.nodes.len()).find(|p| record.node.as_ref() == Some(&name(*p))) else { return };
        let term = record.term;
        if p == n || !self.linked(n, p) || !self.nodes[p].serves(term) || self.nodes[n].promise > term {
            return;
        }
        let upstream = self.nodes[p].history();
        for _ in 0..3 {
            let own = self.nodes[n].history();
            let (own_end, examined) = (self.nodes[n].whole_end(), self.nodes[n].examined);
            let facts = rejoin::Facts {
                own_end,
                own: Some(&own),
                upstream: &upstream,
                rewind_interrupted: false,
                whole: false,
                examined,
                opened: self.nodes[n].opened,
                source_is_open: record.is_open(),
            };
            match plan(&facts) {
                Plan::Follow => {
                    let elsewhere = |t: &TimelineId| leads_elsewhere(*t, own_end.timeline, &upstream);
                    if self.nodes[n].target.take_if(|t| elsewhere(t)).is_some() {
                        self.reach("a standby started without the history of a term that was given up");
                    }
                    return self.follow(n, p, term);
                }
                Plan::Examine(fork) => self.nodes[n].examined = Some(fork),
                Plan::Rewind(fork) => {
                    let left = self.chance.below(self.nodes[n].records_to(fork.lsn) as u64 + 1) as usize;
                    self.rewind(n, p, left);
                    return self.follow(n, p, term);
                }
                Plan::Keep(_) => return,
                Plan::Reclone(why) => {
                    self.say(format!("{} is cloned: {}", name(n), why.as_str()));
                    self.rewind(n, p, 0);
                    return self.follow(n, p, term);
                }
            }
        }
    }

    /// Back to a checkpoint that both have; counts for nothing until it has what the source has now.
    fn rewind(&mut self, n: usize, p: usize, left: usize) {
        self.say(format!("{} is rewound to {left} for {}", name(n), name(p)));
        self.reach("WAL rewound");
        let floor = self.nodes[p].end();
        let node = &mut self.nodes[n];
        node.truncate(left);
        node.senders.clear();
        (node.quarantine, node.examined, node.target) = (Some(floor), None, None);
    }

    pub(crate) fn follow(&mut self, n: usize, p: usize, term: Term) {
        let now = self.now;
        let node = &mut self.nodes[n];
        node.promise = node.promise.max(term);
        (node.is, node.clean, node.upstream, node.frozen_for) = (Is::Standby, false, Some((p, term)), None);
        (node.receiver, node.not_streaming_since) = (None, now);
        self.go_through_slot(n);
        self.say(format!("{} follows {} of term {term}", name(n), name(p)));
    }
}
