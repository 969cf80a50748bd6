//! What the planner knows: the records in etcd, each agent's last report, and whether the primary lives. PURE.
//!
//! Nothing here trusts one witness: a primary whose agent is silent is dead only when enough of the other agents
//! have lost both its agent and its PostgreSQL, and alive as soon as one of them still gets an answer.

use crate::api::{AgentState, KNOCK, PostgresState, Sighting, Standby};
use crate::fsm::blocker::Blocker;
use crate::fsm::doubt::Doubts;
use crate::fsm::stuck::{Held, Progress};
use crate::fsm::timers::Settings;
use crate::record::{
    FenceRecord, JournalRecord, MaintenanceRecord, MemberRecord, PauseRecord, Phase, PolicyRecord, PrimaryRecord,
    ProxyRecord, TermRecord,
};
use cluster::{Instant, NodeId, Term};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// A record and the `mod_revision` that a change of it compares.
#[derive(Clone, Debug, PartialEq)]
pub struct At<T> {
    /// The record.
    pub value: T,
    /// Its `mod_revision`.
    pub revision: i64,
}

/// The cluster's records, read at one revision.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Records {
    /// etcd's revision of the read.
    pub revision: i64,
    /// `term`.
    pub term: Option<At<TermRecord>>,
    /// `policy`.
    pub policy: Option<At<PolicyRecord>>,
    /// PostgreSQL's system identifier of the cluster, from `init`, once it was created.
    pub system_id: Option<String>,
    /// `primary`, while its lease lives.
    pub primary: Option<PrimaryRecord>,
    /// `members/*`.
    pub members: BTreeMap<NodeId, MemberRecord>,
    /// `fences/*`.
    pub fences: BTreeMap<NodeId, FenceRecord>,
    /// `maintenance/*`.
    pub maintenance: BTreeMap<NodeId, MaintenanceRecord>,
    /// `proxies/*`.
    pub proxies: BTreeMap<String, ProxyRecord>,
    /// `pause`, while it holds.
    pub pause: Option<PauseRecord>,
    /// `grace` exists: the time for which commits may go unprotected is not over.
    pub grace: bool,
    /// `spent/*`: terms of automatic failovers within the budget's window.
    pub spent: BTreeSet<Term>,
    /// The journal of the newest term, if it was read.
    pub journal: Option<JournalRecord>,
}

/// One agent as this manager hears it.
#[derive(Clone, Debug, PartialEq)]
pub struct Agent {
    /// Its last report.
    pub state: Option<AgentState>,
    /// When that arrived.
    pub heard_at: Option<Instant>,
    /// Since when this manager has been listening.
    pub since: Instant,
    /// Since when nothing listens at its address.
    pub refused_since: Option<Instant>,
    /// Since when its sighting of the primary says "refused".
    pub sighting_refused_since: Option<Instant>,
}

/// Records and reports together.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observed {
    /// The newest records.
    pub records: Records,
    /// When the read that gave them was sent.
    pub read_at: Option<Instant>,
    /// Since when etcd's revision has been known to be that of the records.
    pub revision_known_at: Instant,
    /// Since when the term in them has been known as it is: what an agent said before may be of an earlier one.
    pub term_known_since: Instant,
    /// Every agent known.
    pub agents: BTreeMap<NodeId, Agent>,
    /// Whether the voters follow the primary.
    pub progress: Progress,
    /// Whose name somebody else has used.
    pub doubts: Doubts,
}

/// Is the primary of the current term alive?
#[derive(Clone, Debug, PartialEq)]
pub enum Health {
    /// Yes, or nothing speaks against it yet.
    Well,
    /// No: since when, and the evidence as shown to an operator.
    Dead {
        /// The last moment at which it may have lived.
        since: Instant,
        /// What was seen.
        evidence: Vec<String>,
        /// This manager never saw it as primary: all nodes had been stopped, rather than this one died.
        restarted: bool,
    },
    /// Signs of death that do not suffice.
    Unsure(Vec<Blocker>),
}

fn plus_age(ms_ago: u64, age: Duration) -> Duration {
    Duration::from_millis(ms_ago).saturating_add(age)
}

impl Observed {
    /// Take a report. Returns false when it changes nothing but ages.
    pub fn hear(&mut self, now: Instant, state: AgentState) {
        self.watch_progress(now, &state);
        let agent = self.agents.entry(state.node.clone()).or_insert_with(|| Agent::unheard(now));
        let refused = state.sees_primary.as_ref().is_some_and(|s| s.refused);
        let of = |s: &AgentState| s.sees_primary.as_ref().map(|s| (s.node.clone(), s.term));
        let same = agent.state.as_ref().is_some_and(|old| of(old) == of(&state));
        let since = agent.sighting_refused_since.filter(|_| same);
        agent.sighting_refused_since = refused.then_some(since.unwrap_or(now));
        agent.refused_since = None;
        agent.heard_at = Some(now);
        agent.state = Some(state);
        self.settle_doubt();
    }

    fn settle_doubt(&mut self) {
        let (Some(term), Some(policy)) = (self.term(), self.policy()) else { return };
        let Some(node) = &term.node else { return };
        let (timeline, told) = (term.term.timeline(), |n: &NodeId| self.agents.get(n)?.state.as_ref());
        let primary = match told(node).map(|s| &s.postgres) {
            Some(PostgresState::Primary(p)) if Some(p.timeline) == timeline => Some(p),
            _ => None, // what it has told before is all that there is
        };
        // What one in quarantine once had it may lack.
        let own = |n: &NodeId| match told(n).filter(|s| s.quarantine.is_none()).map(|s| &s.postgres) {
            Some(PostgresState::Standby(s)) if Some(s.timeline) == timeline => Some(s.receive_lsn),
            _ => None,
        };
        let mut doubts = self.doubts.clone();
        doubts.settle(term.term, policy, (node, primary), own);
        self.doubts = doubts;
    }

    fn watch_progress(&mut self, now: Instant, state: &AgentState) {
        let (Some(term), Some(policy), PostgresState::Primary(p)) = (self.term(), self.policy(), &state.postgres)
        else {
            return;
        };
        if term.node.as_ref() == Some(&state.node) && Some(p.timeline) == term.term.timeline() {
            let (term, policy) = (term.term, policy.clone());
            // A server that is full tells nothing new: the same positions again are no sign that they stand still.
            let looked_at = now - Duration::from_millis(state.observed_ms_ago);
            self.progress.hear(looked_at, term, p, &policy);
            self.doubts.hear(term, &policy, &state.node, p);
        }
    }

    /// An exchange with an agent failed.
    pub fn silence(&mut self, now: Instant, node: &NodeId, refused: bool) {
        let agent = self.agents.entry(node.clone()).or_insert_with(|| Agent::unheard(now));
        agent.refused_since = if refused { agent.refused_since.or(Some(now)) } else { None };
    }

    /// Take newly read records; older ones than known are ignored.
    pub fn read(&mut self, now: Instant, sent_at: Instant, records: Records) {
        if records.revision < self.records.revision {
            return;
        }
        for node in records.members.keys() {
            self.agents.entry(node.clone()).or_insert_with(|| Agent::unheard(now));
        }
        // Who was removed is not asked any more; nobody else's record goes.
        let removed = |n: &NodeId| records.fences.get(n).is_some_and(|f| f.removed);
        self.agents.retain(|node, _| records.members.contains_key(node) || !removed(node));
        if records.revision > self.records.revision {
            self.revision_known_at = now;
        }
        self.records = records;
        self.read_at = Some(sent_at);
    }

    /// A change was made at `revision`.
    pub(super) fn made_at(&mut self, now: Instant, revision: i64) {
        if revision > self.records.revision {
            (self.records.revision, self.revision_known_at) = (revision, now);
        }
    }

    /// Forget what was heard: a leader that has not listened all the time listens afresh.
    pub fn start_listening(&mut self, now: Instant) {
        for agent in self.agents.values_mut() {
            *agent = Agent::unheard(now);
        }
    }

    /// The report of an agent that is reachable now.
    pub fn reachable(&self, node: &NodeId, now: Instant, settings: &Settings) -> Option<&AgentState> {
        let agent = self.agents.get(node)?;
        let fresh = now.since(agent.heard_at?) < settings.detect_timeout && agent.refused_since.is_none();
        agent.state.as_ref().filter(|_| fresh)
    }

    /// Is the node's last report from before the term was known as it is, or too soon after to tell?
    pub(super) fn is_outdated(&self, node: &NodeId, settings: &Settings) -> bool {
        let heard = self.agents.get(node).and_then(|a| a.heard_at);
        heard.is_none_or(|at| at <= self.term_known_since + settings.refused_confirm)
    }

    /// For how long nothing was heard of an agent.
    pub fn silent_for(&self, node: &NodeId, now: Instant) -> Duration {
        self.agents.get(node).map_or(Duration::MAX, |a| now.since(a.heard_at.unwrap_or(a.since)))
    }

    /// The current term's record.
    pub fn term(&self) -> Option<&TermRecord> {
        self.records.term.as_ref().map(|t| &t.value)
    }

    /// The policy in force.
    pub fn policy(&self) -> Option<&PolicyRecord> {
        self.records.policy.as_ref().map(|p| &p.value)
    }

    /// A policy that an agent has read and etcd does not hold any more, and the members that were not heard and may know
    /// a newer one.
    pub fn lost_policy(&self, now: Instant, settings: &Settings) -> Option<(PolicyRecord, Vec<NodeId>)> {
        let have = self.policy()?.epoch;
        let told = self.agents.values().filter_map(|a| self.of_this_cluster(a)?.policy.as_ref());
        let known = told.filter(|p| p.epoch > have).max_by_key(|p| p.epoch)?;
        let unheard = |n: &&NodeId| self.reachable(n, now, settings).is_none();
        Some((known.clone(), self.records.members.keys().filter(unheard).cloned().collect()))
    }

    /// The node that is open to clients, if the term has got so far.
    pub fn open_primary(&self) -> Option<&NodeId> {
        let term = self.term()?;
        if matches!(term.phase, Phase::Active | Phase::Draining) { term.node.as_ref() } else { None }
    }

    /// Taken out by an operator, by the key or as the agent says.
    pub fn fenced(&self, node: &NodeId) -> bool {
        self.records.fences.contains_key(node)
            || self.agents.get(node).and_then(|a| a.state.as_ref()).is_some_and(|s| s.fenced)
    }

    /// Does an operator work on the node?
    pub fn maintained(&self, node: &NodeId) -> bool {
        self.records.maintenance.contains_key(node)
    }

    /// The identifier of the node's data, when that is known not to be this cluster's: a directory that was made anew, or
    /// another cluster's, holds none of its commits whatever its positions say.
    pub fn foreign<'a>(&self, told: Option<&'a String>) -> Option<&'a String> {
        told.filter(|have| self.records.system_id.as_ref().is_some_and(|want| want != *have))
    }

    /// What an agent told last, unless its data is another cluster's, or was: then so are the terms and the policy that it
    /// remembers.
    pub(super) fn of_this_cluster<'a>(&self, agent: &'a Agent) -> Option<&'a AgentState> {
        let ours = |told: &Option<String>| self.foreign(told.as_ref()).is_none();
        agent.state.as_ref().filter(|s| ours(&s.system_id) && ours(&s.memory_of))
    }

    /// The node as a standby that streams the current term's timeline from its primary.
    pub fn streaming(&self, node: &NodeId, now: Instant, settings: &Settings) -> Option<&Standby> {
        let term = self.term()?;
        let standby = self.on_timeline(node, term.term, now, settings)?;
        (standby.streams_from.is_some() && standby.streams_from == term.node).then_some(standby)
    }

    /// The node as a standby that has WAL of `term`'s timeline.
    pub fn on_timeline(&self, node: &NodeId, term: Term, now: Instant, settings: &Settings) -> Option<&Standby> {
        let state = self.reachable(node, now, settings).filter(|s| self.foreign(s.system_id.as_ref()).is_none())?;
        match &state.postgres {
            PostgresState::Standby(s) if Some(s.timeline) == term.timeline() => Some(s),
            _ => None, // any other state holds no WAL of that timeline that a commit may count on
        }
    }

    /// Its agent is reachable and says that a PostgreSQL that may write runs, also one that does not answer.
    pub(super) fn at_work(&self, node: &NodeId, now: Instant, settings: &Settings) -> bool {
        let state = self.reachable(node, now, settings);
        matches!(state.map(|s| &s.postgres), Some(PostgresState::Primary(_) | PostgresState::Hung { .. }))
    }

    /// Does the primary of the current term live?
    pub fn health(&self, now: Instant, settings: &Settings) -> Health {
        let Some((term, node)) = self.term().and_then(|t| Some((t.term, self.open_primary()?))) else {
            return Health::Well;
        };
        match self.reachable(node, now, settings) {
            Some(state) => match self.health_as_reported(now, term, state, settings) {
                // It may not have been promoted yet when it said so.
                Health::Dead { .. } if self.is_outdated(node, settings) => {
                    Health::Unsure(vec![Blocker::PrimaryUnheard { node: node.clone(), term }])
                }
                health => health,
            },
            None => self.health_as_observed(now, term, node, settings),
        }
    }

    fn health_as_reported(&self, now: Instant, term: Term, state: &AgentState, settings: &Settings) -> Health {
        let heard = self.agents.get(&state.node).and_then(|a| a.heard_at).unwrap_or(now);
        let dead = |what: String, restarted| Health::Dead {
            since: heard,
            evidence: vec![format!("agent of {} reports PostgreSQL {what}", state.node)],
            restarted,
        };
        // Where a quorum fences, the new term needs not wait until nothing of the old primary is left.
        let fenced_by_quorum = self.policy().is_some_and(PolicyRecord::protects);
        match &state.postgres {
            PostgresState::Primary(p) if Some(p.timeline) == term.timeline() && state.ending && fenced_by_quorum => {
                dead("without its postmaster".into(), false)
            }
            PostgresState::Primary(p) if Some(p.timeline) == term.timeline() => self.able(now, state, settings),
            PostgresState::Primary(p) => {
                let (node, have) = (state.node.clone(), p.timeline);
                Health::Unsure(vec![Blocker::PrimaryOnOtherTimeline { node, term, timeline: have }])
            }
            PostgresState::Hung { for_ms } => match self.hangs(now, term, &state.node, *for_ms, settings) {
                Some(blocker) => Health::Unsure(vec![blocker]),
                None => dead(format!("without an answer for {for_ms} ms"), false),
            },
            PostgresState::Absent => dead("without a data directory".into(), false),
            PostgresState::Stopped { clean, .. } => {
                dead(format!("stopped {}", if *clean { "cleanly" } else { "without a shutdown checkpoint" }), false)
            }
            // A primary is only ever started again as a standby.
            PostgresState::Starting => dead("starting again".into(), true),
            PostgresState::Standby(s) => dead(format!("restarted as a standby at {}", s.replay_lsn), true),
        }
    }

    /// It answers, but can it commit?
    fn able(&self, now: Instant, state: &AgentState, settings: &Settings) -> Health {
        let Some(stuck) = self.stuck(settings) else { return Health::Well };
        // Behind a disk that hangs its agent can do nothing.
        let may_return = stuck.what == Held::Quorum;
        let mut others = self.no_better(&state.node, may_return, now, settings);
        // One agent's word alone is no reason.
        others.extend(self.contradicts(&state.node, &stuck, now, settings));
        if !others.is_empty() {
            return Health::Unsure(vec![Blocker::PrimaryStuck { node: state.node.clone(), stuck, others }]);
        }
        let since = now - Duration::from_millis(stuck.for_ms);
        let evidence = vec![format!("{} cannot commit: {stuck}; the others can", state.node)];
        Health::Dead { since, evidence, restarted: false }
    }

    /// Why a primary that does not answer its own agent is no reason for a failover: not for long enough, it answers
    /// others, or those could not take its place.
    fn hangs(&self, now: Instant, term: Term, node: &NodeId, for_ms: u64, settings: &Settings) -> Option<Blocker> {
        let (node, limit_ms) = (node.clone(), millis(settings.hung_timeout));
        if for_ms < limit_ms {
            return Some(Blocker::PrimaryHung { node, for_ms, limit_ms, others: Vec::new() });
        }
        let voters = self.policy().map(|p| &p.voters[..]).unwrap_or_default();
        let observers: Vec<String> =
            voters.iter().filter_map(|v| self.is_answered(v, &node, term, now, settings)).collect();
        if !observers.is_empty() {
            return Some(Blocker::PrimaryAnswersOthers { node, for_ms, observers });
        }
        let others = self.no_better(&node, true, now, settings);
        (!others.is_empty()).then_some(Blocker::PrimaryHung { node, for_ms, limit_ms, others })
    }

    /// A session of the observer's was answered, and so was a new one: the former alone needs no postmaster. That it is full is
    /// no answer: sessions that hang are what may have filled it.
    fn is_answered(
        &self,
        observer: &NodeId,
        primary: &NodeId,
        term: Term,
        now: Instant,
        settings: &Settings,
    ) -> Option<String> {
        let sight = self.reachable(observer, now, settings)?.sees_primary.as_ref()?;
        let age = now.since(self.agents.get(observer)?.heard_at?);
        let sql = plus_age(sight.sql_ms_ago, age);
        let accepted = sight.accept_ms_ago.map_or(sql, |ms| plus_age(ms, age));
        let answered = sql < settings.detect_timeout && accepted < settings.detect_timeout + KNOCK;
        let looks = sight.node == *primary && sight.term == term;
        (looks && answered).then(|| format!("{observer}: its PostgreSQL answered {} ms ago", millis(sql.max(accepted))))
    }

    fn health_as_observed(&self, now: Instant, term: Term, node: &NodeId, settings: &Settings) -> Health {
        let Some(agent) = self.agents.get(node) else { return Health::Well };
        let since = agent.heard_at.unwrap_or(agent.since);
        let refused = agent.refused_since.is_some_and(|at| now.since(at) >= settings.refused_confirm);
        if now.since(since) < settings.detect_timeout && !refused {
            return Health::Well;
        }
        let mut votes = Votes::default();
        let Some(policy) = self.policy() else { return Health::Well };
        let left = settings.restart_grace.saturating_sub(now.since(agent.since));
        if !policy.protects() && agent.heard_at.is_none() && !left.is_zero() {
            let left_ms = millis(left);
            return Health::Unsure(vec![Blocker::PrimaryAwaited { node: node.clone(), left_ms }]);
        }
        for voter in policy.voters.iter().filter(|v| *v != node) {
            votes.others += 1;
            match self.vote(voter, node, term, now, settings) {
                Vote::Lost(how) => votes.lost.push(how),
                Vote::Sees(what) => votes.sees.push(format!("{voter}: {what}")),
                Vote::Abstains(why) => votes.abstained.push(format!("{voter}: {why}")),
            }
        }
        // Without a quorum to fence, the lease is the second witness: it runs out only when the primary's agent has
        // lost etcd as well.
        let needed = if policy.protects() { votes.others / 2 + 1 } else { 1 };
        if self.serves_no_more(now, node, policy, now.since(since), settings) {
            let mut evidence = vec![format!(
                "agent of {node} is silent, last heard {} ms ago, and its lease is gone",
                millis(now.since(since))
            )];
            evidence.extend(votes.lost.into_iter().chain(votes.sees));
            return Health::Dead { since, evidence, restarted: false };
        }
        if !votes.sees.is_empty() {
            return Health::Unsure(vec![Blocker::PrimaryStillAnswers { node: node.clone(), observers: votes.sees }]);
        }
        if votes.lost.len() < needed {
            let (lost, abstained) = (votes.lost.len(), votes.abstained);
            return Health::Unsure(vec![Blocker::TooFewObservers { node: node.clone(), lost, needed, abstained }]);
        }
        let how = if refused { "refuses connections" } else { "is silent" };
        let mut evidence = vec![format!("agent of {node} {how}, last heard {} ms ago", millis(now.since(since)))];
        evidence.extend(votes.lost);
        Health::Dead { since, evidence, restarted: false }
    }

    /// Where the lease is the fence nobody is let in to a primary without one, though its PostgreSQL goes on: an agent that
    /// stands still keeps writes away for ever. One that is only restarted has the lease again before that, and one that
    /// others hear may go on by their signatures.
    fn serves_no_more(
        &self,
        now: Instant,
        primary: &NodeId,
        policy: &PolicyRecord,
        silent: Duration,
        settings: &Settings,
    ) -> bool {
        let hears = |agent: &Agent| {
            let sight = agent.state.as_ref().and_then(|s| s.sees_primary.as_ref()).filter(|s| s.node == *primary);
            let age = agent.heard_at.map_or(Duration::MAX, |at| now.since(at));
            sight.is_some_and(|s| plus_age(s.agent_ms_ago, age) < settings.restart_grace)
        };
        let unleased = !policy.protects() && self.records.primary.is_none();
        unleased && silent >= settings.restart_grace && !self.agents.values().any(hears)
    }

    fn vote(&self, voter: &NodeId, primary: &NodeId, term: Term, now: Instant, settings: &Settings) -> Vote {
        let Some(state) = self.reachable(voter, now, settings) else {
            return Vote::Abstains("its agent is unreachable".into());
        };
        let agent = self.agents.get(voter).expect("reachable() found it");
        let age = agent.heard_at.map_or(Duration::ZERO, |at| now.since(at));
        match &state.sees_primary {
            None => Vote::Abstains("it has not looked yet".into()),
            Some(s) if s.node != *primary || s.term != term => {
                Vote::Abstains(format!("it still looks at {} of term {}", s.node, s.term))
            }
            Some(s) => judge(voter, s, age, agent.sighting_refused_since.map(|at| now.since(at)), settings),
        }
    }
}

impl Agent {
    fn unheard(now: Instant) -> Self {
        Self { state: None, heard_at: None, since: now, refused_since: None, sighting_refused_since: None }
    }
}

#[derive(Default)]
struct Votes {
    others: usize,
    lost: Vec<String>,
    sees: Vec<String>,
    abstained: Vec<String>,
}

enum Vote {
    Lost(String),
    Sees(String),
    Abstains(String),
}

/// A manager that has not run for a while, or that hears nobody, must not take its own deafness for their silence: agents
/// report four times in a `detect_timeout` at least.
fn unheard(age: Duration) -> Vote {
    Vote::Abstains(format!("it last reported {} ms ago", millis(age)))
}

fn judge(voter: &NodeId, s: &Sighting, age: Duration, refused_for: Option<Duration>, settings: &Settings) -> Vote {
    if refused_for.is_some_and(|d| d >= settings.refused_confirm) {
        if age >= settings.detect_timeout / 2 {
            return unheard(age);
        }
        return Vote::Lost(format!("{voter} is refused by its agent and its PostgreSQL"));
    }
    let (agent, sql) = (plus_age(s.agent_ms_ago, age), plus_age(s.sql_ms_ago, age));
    let limit = settings.detect_timeout;
    // Nobody says what its sessions do: it is taken for alive for as long as one that hangs would be.
    let full = s.full_ms_ago.map(|ms| plus_age(ms, age)).filter(|full| *full < limit && sql < settings.hung_timeout);
    if sql < limit {
        Vote::Sees(format!("its PostgreSQL answered {} ms ago", millis(sql)))
    } else if let Some(full) = full {
        Vote::Sees(format!("its PostgreSQL said {} ms ago that it is full", millis(full)))
    } else if agent < limit {
        Vote::Sees(format!("its agent answered {} ms ago", millis(agent)))
    } else if age >= limit / 2 {
        unheard(age)
    } else {
        let ago = |d: Duration| format!("{} ms", millis(d));
        Vote::Lost(format!("{voter} has not heard its agent for {}, its PostgreSQL for {}", ago(agent), ago(sql)))
    }
}

/// Whole milliseconds of a duration, for evidence and blockers.
pub fn millis(d: Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX)
}
