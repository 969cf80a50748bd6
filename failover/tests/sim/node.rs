//! A node: its WAL and what is on its disk, PostgreSQL as far as it matters, and an agent that goes by `fsm::agent`.

use super::{Event, LEASE, RECORDS, World, ms, name};
use cluster::timeline::{Fork, History};
use cluster::{Instant, Lsn, NodeId, Term, TimelineId};
use failover::api::{
    AgentState, Armed, CatchUp, Follower, Frozen, Open, Opened, Position, PostgresState, Primary, Promote, Promoted,
    Refused, Relaxed, Sighting, Standby, Stopped,
};
use failover::fsm::action::{Command, CommandError, Reply};
use failover::fsm::agent::{Act, Facts, Server, decide};
use failover::fsm::observe::Records;
use failover::fsm::rejoin::{self, Plan, plan};
use failover::fsm::sync_set;
use failover::record::{Phase, PolicyRecord, PrimaryRecord, TermRecord};
use std::time::Duration;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Is {
    Stopped { was_primary: bool },
    Standby,
    Primary,
}

/// What a primary's commits wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Names {
    Armed,
    Off,
    Fenced,
}

/// A primary acknowledges nothing from so long before the end of its lease, and is stopped from so long before it.
pub(crate) const SOFT: Duration = ms(600);
const HARD: Duration = ms(200);

pub(crate) struct Node {
    pub(crate) names: Names,
    /// The end of its lease as its agent counts it, from when it asked.
    pub(crate) lease: Option<(Term, Instant)>,
    /// When it was last renewed, by etcd or by signatures.
    pub(crate) renewed: Instant,
    /// The last term that it has signed for, and until when that binds it.
    pub(crate) signed: (Term, Instant),
    /// Until when the proxy may act on what it has vouched for.
    pub(crate) vouched_until: Instant,
    unleased_since: Option<Instant>,
    /// The newest epoch under which it was ordered to make commits wait.
    armed: u64,
    pub(crate) name: NodeId,
    is: Is,
    /// Timeline and content of each record.
    pub(crate) wal: Vec<(u32, u64)>,
    /// Timeline of the end.
    pub(crate) timeline: u32,
    pub(crate) promise: Term,
    frozen_for: Option<Term>,
    upstream: Option<(usize, Term)>,
    /// Where its WAL receiver is connected, and what it has acknowledged there.
    receiver: Option<(usize, Term)>,
    told: Option<(usize, Term, usize)>,
    quarantine: Option<Position>,
    examined: Option<Fork>,
    /// A primary's commits up to here are acknowledged.
    pub(crate) released: usize,
    view: Option<Records>,
    ordered: Option<(usize, Term)>,
    seen: Option<(NodeId, Term, Instant)>,
    not_streaming_since: Instant,
    down_until: Instant,
    pub(crate) paused_until: Instant,
    pub(crate) cut_until: Instant,
    pub(crate) stalled_until: Instant,
    seq: u64,
}

impl Node {
    pub(crate) fn new(i: usize) -> Self {
        Self {
            names: Names::Armed,
            lease: None,
            renewed: Instant::default(),
            signed: (Term(0), Instant::default()),
            vouched_until: Instant::default(),
            unleased_since: None,
            armed: 0,
            name: name(i),
            is: if i == 0 { Is::Primary } else { Is::Standby },
            wal: Vec::new(),
            timeline: 1,
            promise: Term(1),
            frozen_for: None,
            upstream: (i != 0).then_some((0, Term(1))),
            receiver: (i != 0).then_some((0, Term(1))),
            told: None,
            quarantine: None,
            examined: None,
            released: 0,
            view: None,
            ordered: None,
            seen: None,
            not_streaming_since: Instant::default(),
            down_until: Instant::default(),
            paused_until: Instant::default(),
            cut_until: Instant::default(),
            stalled_until: Instant::default(),
            seq: 0,
        }
    }

    /// Is the host up and not paused?
    pub(crate) fn awake(&self, now: Instant) -> bool {
        now >= self.down_until && now >= self.paused_until
    }

    pub(crate) fn is_primary(&self) -> bool {
        self.is == Is::Primary
    }

    pub(crate) fn serves(&self, term: Term) -> bool {
        self.is == Is::Primary && u64::from(self.timeline) == term.0
    }

    pub(crate) fn has(&self, write: u64) -> bool {
        self.wal.iter().any(|(_, what)| *what == write)
    }

    pub(crate) fn has_told(&self, primary: usize, term: Term, lsn: usize) -> bool {
        self.told.is_some_and(|(p, t, upto)| p == primary && t == term && upto >= lsn)
    }

    fn end(&self) -> Position {
        Position { timeline: TimelineId(self.timeline), lsn: Lsn(self.wal.len() as u64) }
    }

    fn history(&self) -> History {
        let mut forks = Vec::new();
        let mut timeline = 1;
        for (at, (next, _)) in self.wal.iter().enumerate() {
            if *next != timeline {
                forks.push(Fork { timeline: TimelineId(timeline), lsn: Lsn(at as u64) });
                timeline = *next;
            }
        }
        History { timeline: TimelineId(timeline), forks }
    }

    fn stop(&mut self) {
        let was_primary = match self.is {
            Is::Stopped { was_primary } => was_primary,
            is => is == Is::Primary,
        };
        self.is = Is::Stopped { was_primary };
        (self.receiver, self.told) = (None, None);
    }

    fn start_detached(&mut self) {
        (self.is, self.upstream, self.receiver) = (Is::Standby, None, None);
    }

    fn truncate(&mut self, len: usize) {
        self.wal.truncate(len);
        self.timeline = self.wal.last().map_or(1, |e| e.0);
    }
}

impl World {
    /// Does a message from outside reach the node's agent?
    pub(crate) fn reachable(&self, n: usize) -> bool {
        self.nodes[n].awake(self.now) && self.now >= self.nodes[n].cut_until
    }

    pub(crate) fn linked(&self, a: usize, b: usize) -> bool {
        self.reachable(a) && self.reachable(b)
    }

    pub(crate) fn crash_postgres(&mut self, n: usize) {
        self.say(format!("PostgreSQL of {} crashes", name(n)));
        self.forget(n);
        self.nodes[n].stop();
    }

    fn forget(&mut self, n: usize) {
        if self.disks_forget {
            let left = self.nodes[n].wal.len().saturating_sub(1 + self.chance.below(20) as usize);
            self.nodes[n].truncate(left);
        }
    }

    pub(crate) fn crash_host(&mut self, n: usize, until: Instant) {
        self.say(format!("the host of {} crashes", name(n)));
        self.forget(n);
        let node = &mut self.nodes[n];
        node.stop();
        (node.frozen_for, node.view, node.ordered, node.seen) = (None, None, None, None);
        node.down_until = until;
    }

    pub(crate) fn report(&mut self, n: usize) -> AgentState {
        let now = self.now;
        let followers = self.followers(n);
        let policy = self.records.policy.as_ref().map(|p| sync_set::armed_names(&p.value, &name(n)).to_string());
        let sync_names = if self.nodes[n].names == Names::Armed { policy.unwrap_or_default() } else { String::new() };
        let node = &mut self.nodes[n];
        node.seq += 1;
        let end = node.end();
        let postgres = match node.is {
            Is::Stopped { was_primary } => {
                PostgresState::Stopped { clean: false, timeline: end.timeline, was_primary, checkpoint_lsn: Lsn(0) }
            }
            Is::Standby => PostgresState::Standby(Standby {
                timeline: end.timeline,
                receive_lsn: end.lsn,
                replay_lsn: end.lsn,
                streams_from: node.receiver.map(|(p, _)| name(p)),
                replay_paused: false,
                sync_names: String::new(),
            }),
            Is::Primary => PostgresState::Primary(Primary {
                timeline: end.timeline,
                insert_lsn: end.lsn,
                flush_lsn: end.lsn,
                sync_names,
                followers,
                impostors: Vec::new(),
            }),
        };
        let sighting = node.seen.clone().map(|(node, term, at)| {
            let ago = now.since(at).as_millis() as u64;
            Sighting { node, term, agent_ms_ago: ago, sql_ms_ago: ago, refused: false }
        });
        AgentState {
            seq: node.seq,
            node: node.name.clone(),
            holder: "a".into(),
            host: node.name.to_string(),
            promise: node.promise,
            postgres,
            observed_ms_ago: 0,
            system_id: None,
            frozen_for: node.frozen_for,
            quarantine: node.quarantine,
            rejoin: None,
            fenced: false,
            sees_primary: sighting,
            lease_left_ms: None,
            fsync_probe_ms: Some(1),
            trouble: None,
            policy: None,
        }
    }

    /// As pg_stat_replication shows them.
    fn followers(&self, n: usize) -> Vec<Follower> {
        let told = |s: &Node| {
            s.told
                .filter(|(p, ..)| *p == n && s.receiver.is_some())
                .map(|(.., upto)| (s.name.clone(), Lsn(upto as u64)))
        };
        let row = |(node, at): (NodeId, Lsn)| Follower {
            node,
            state: "streaming".into(),
            flush_lsn: Some(at),
            replay_lsn: Some(at),
            sync_state: "quorum".into(),
        };
        self.nodes.iter().filter_map(told).map(row).collect()
    }

    /// The agent's own loop.
    pub(crate) fn reconcile(&mut self, n: usize) {
        if self.nodes[n].awake(self.now) {
            if self.etcd_up() && self.reachable(n) && !self.lost() {
                self.nodes[n].view = Some(self.records.clone());
                self.renew(n);
                self.give_back(n);
            }
            self.gather_signatures(n);
            self.guard(n);
            self.look_at_primary(n);
            self.act(n);
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
        if armed && node.names == Names::Off {
            node.names = Names::Armed;
        }
        if policy.protects() {
            node.names = Names::Armed;
            return;
        }
        let held = node.lease.filter(|(t, _)| *t == term).map(|(_, end)| end);
        node.unleased_since = if held.is_some() { None } else { node.unleased_since.or(Some(now)) };
        let (soft, hard) = match (held, node.unleased_since) {
            (Some(end), _) => (now + SOFT >= end, now + HARD >= end),
            (None, Some(since)) => (true, now.since(since) >= LEASE),
            (None, None) => (true, false),
        };
        match (soft, hard) {
            (false, _) if node.names == Names::Fenced => node.names = if armed { Names::Armed } else { Names::Off },
            (false, _) => {}
            (true, false) => node.names = Names::Fenced,
            (true, true) => {
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

    fn relax(&mut self, n: usize, term: Term, epoch: u64) -> Result<Reply, CommandError> {
        if !self.nodes[n].serves(term) {
            return Err(wrong_state(n, "primary of the term"));
        }
        if !self.etcd_up() {
            return Err(CommandError::NoAnswer("etcd is away".into()));
        }
        self.nodes[n].view = Some(self.records.clone());
        let policy = self.policy(n).filter(|p| p.epoch == epoch);
        let allowed = policy.is_some_and(|p| !sync_set::waits(&p, &name(n)).protects());
        let leased = self.nodes[n].lease.is_some_and(|(t, end)| t == term && self.now + SOFT < end);
        if self.now < self.nodes[n].vouched_until {
            return Err(CommandError::NoAnswer("what was vouched for is not over".into()));
        }
        let late = self.nodes[n].armed >= epoch;
        if late {
            self.reach("an order to let commits through that came late");
        }
        if late || !allowed || !leased || self.served(n) != Some(term) {
            return Err(wrong_state(n, "allowed to"));
        }
        self.nodes[n].names = Names::Off;
        self.reach("commits let through without a standby");
        self.acknowledge(n);
        Ok(Reply::Relaxed(Relaxed { lsn: self.nodes[n].end().lsn }))
    }

    fn arm(&mut self, n: usize, term: Term, epoch: u64) -> Result<Reply, CommandError> {
        if !self.nodes[n].serves(term) || !self.etcd_up() {
            return Err(wrong_state(n, "primary of the term, and in touch with etcd"));
        }
        self.nodes[n].view = Some(self.records.clone());
        if self.policy(n).is_none_or(|p| p.epoch != epoch) {
            return Err(wrong_state(n, "an order of the policy in force"));
        }
        self.nodes[n].armed = self.nodes[n].armed.max(epoch);
        self.nodes[n].names = Names::Armed;
        Ok(Reply::Armed(Armed { lsn: self.nodes[n].end().lsn }))
    }

    fn look_at_primary(&mut self, n: usize) {
        let record = self.nodes[n].view.as_ref().and_then(|v| v.term.as_ref()).map(|t| t.value.clone());
        let Some((primary, term)) = record.and_then(|t| Some((t.node?, t.term))).filter(|(p, _)| *p != name(n)) else {
            self.nodes[n].seen = None;
            return;
        };
        let other = (0..3).find(|p| name(*p) == primary).expect("a node of ours");
        let new = self.nodes[n].seen.as_ref().is_none_or(|(p, t, _)| (p, *t) != (&primary, term));
        if new || self.linked(n, other) {
            self.nodes[n].seen = Some((primary, term, self.now));
        }
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
        let upstream = node.upstream.map(|(p, term)| (name(p), term));
        let act = decide(&Facts {
            node: &node.name,
            server,
            promise: node.promise,
            record: Some(&record),
            init: None,
            system_id: None,
            fence: None,
            maintenance: false,
            adopts: None,
            upstream: upstream.as_ref().map(|(p, term)| (p, *term)),
            not_streaming_for: self.now.since(node.not_streaming_since),
            rewind_interrupted: false,
            quarantined: node.quarantine.is_some(),
            voter: true,
        });
        match act {
            Act::StopSuperseded => {
                self.say(format!("{} sees term {} and stops", name(n), record.term));
                self.nodes[n].stop();
            }
            Act::StartDetached => self.nodes[n].start_detached(),
            Act::StartUnder | Act::Rejoin => self.rejoin(n, &record),
            Act::Wait(_) | Act::Create | Act::ResumeCreation | Act::Clone | Act::StopFenced | Act::TakeOver => {}
        }
    }

    fn rejoin(&mut self, n: usize, record: &TermRecord) {
        let Some(p) = (0..3).find(|p| record.node.as_ref() == Some(&name(*p))) else { return };
        let term = record.term;
        if p == n || !self.linked(n, p) || !self.nodes[p].serves(term) || self.nodes[n].promise > term {
            return;
        }
        let upstream = self.nodes[p].history();
        for _ in 0..3 {
            let own = self.nodes[n].history();
            let (own_end, examined) = (self.nodes[n].end(), self.nodes[n].examined);
            let facts =
                rejoin::Facts { own_end, own: Some(&own), upstream: &upstream, rewind_interrupted: false, examined };
            match plan(&facts) {
                Plan::Follow => return self.follow(n, p, term),
                Plan::Examine(fork) => self.nodes[n].examined = Some(fork),
                Plan::Rewind(fork) => {
                    let left = self.chance.below(fork.lsn.0 + 1) as usize;
                    self.rewind(n, p, left);
                    return self.follow(n, p, term);
                }
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
        (node.quarantine, node.examined) = (Some(floor), None);
    }

    fn follow(&mut self, n: usize, p: usize, term: Term) {
        let now = self.now;
        let node = &mut self.nodes[n];
        node.promise = node.promise.max(term);
        (node.is, node.upstream, node.frozen_for) = (Is::Standby, Some((p, term)), None);
        (node.receiver, node.told, node.not_streaming_since) = (None, None, now);
        self.say(format!("{} follows {} of term {term}", name(n), name(p)));
    }

    /// The WAL receiver connects, receives, flushes, and says so.
    pub(crate) fn stream(&mut self, n: usize) {
        let next = 5 + self.chance.below(20);
        self.after(next, Event::Stream(n));
        let node = &self.nodes[n];
        if self.now < node.stalled_until {
            return;
        }
        let Some((p, term)) = node.upstream.filter(|_| node.is == Is::Standby) else { return };
        let there = self.linked(n, p) && self.nodes[p].serves(term);
        let fits = there && self.nodes[p].wal.starts_with(&node.wal);
        if !fits {
            if self.nodes[n].receiver.take().is_some() {
                self.nodes[n].not_streaming_since = self.now;
            }
            return;
        }
        let have = node.wal.len();
        let upto = self.nodes[p].wal.len().min(have + 1 + self.chance.below(8) as usize);
        let new = self.nodes[p].wal[have..upto].to_vec();
        let node = &mut self.nodes[n];
        node.wal.extend(new);
        node.timeline = node.wal.last().map_or(1, |e| e.0);
        (node.receiver, node.told) = (Some((p, term)), Some((p, term, upto)));
        let end = node.end();
        if node.quarantine.is_some_and(|q| end.lsn >= q.lsn && end.timeline >= q.timeline) {
            node.quarantine = None;
        }
        self.acknowledge(p);
    }

    /// A command arrives at an agent.
    pub(crate) fn order(&mut self, manager: usize, life: u32, n: usize, command: &Command, answered: bool) {
        let (term, kind) = (command.term(), command.kind());
        if let Some(wait) = self.bound_by_signature(n, command) {
            let command = Box::new(command.clone());
            return self.after(wait, Event::Order { manager, life, node: n, command, answered });
        }
        let result =
            if self.reachable(n) { self.obey(n, command) } else { Err(CommandError::Unreachable("no route".into())) };
        let short = match &result {
            Ok(_) => "done".to_owned(),
            Err(error) => error.to_string(),
        };
        self.say(format!("{} is ordered to {} in term {term}: {short}", name(n), kind.as_str()));
        if matches!(&result, Err(CommandError::Refused(Refused::LowerTerm { .. }))) {
            self.reach("a command refused for its term");
        }
        if answered {
            let wait = self.delay();
            self.after(wait, Event::Answer { manager, life, node: n, term, kind, result: Box::new(result) });
        }
    }

    fn obey(&mut self, n: usize, command: &Command) -> Result<Reply, CommandError> {
        let (term, promised) = (command.term(), self.nodes[n].promise);
        if term < promised {
            return Err(CommandError::Refused(Refused::LowerTerm { node: name(n), term, promised }));
        }
        self.nodes[n].promise = term;
        match command {
            Command::Freeze(_) | Command::Recover(_) if self.nodes[n].serves(term) => {
                self.reach("a freeze that came late");
                Err(wrong_state(n, "not the primary of the term already"))
            }
            Command::Freeze(_) => Ok(Reply::Frozen(self.freeze(n, term))),
            Command::Recover(_) => {
                if matches!(self.nodes[n].is, Is::Stopped { .. }) {
                    if self.nodes[n].quarantine.is_some() {
                        return Err(wrong_state(n, "out of quarantine"));
                    }
                    self.nodes[n].start_detached();
                }
                Ok(Reply::Frozen(self.freeze(n, term)))
            }
            Command::CatchUp(order) => self.catch_up(n, order),
            Command::Promote(order) => self.promote(n, order),
            Command::Follow(order) => {
                let p = (0..3).find(|p| name(*p) == order.primary).expect("a node of ours");
                self.nodes[n].ordered = Some((p, term));
                Ok(Reply::Done)
            }
            Command::Open(order) => self.open(n, order),
            Command::Checkpoint(_) => Ok(Reply::Done),
            Command::Stop(_) => {
                if !self.nodes[n].serves(term) {
                    return Err(wrong_state(n, "primary of the term"));
                }
                let end = Some(self.nodes[n].end());
                self.nodes[n].stop();
                Ok(Reply::Stopped(Stopped { clean: true, end }))
            }
            Command::Relax(order) => self.relax(n, term, order.policy_epoch),
            Command::Arm(order) => self.arm(n, term, order.policy_epoch),
        }
    }

    fn freeze(&mut self, n: usize, term: Term) -> Frozen {
        let node = &mut self.nodes[n];
        node.frozen_for = Some(term);
        (node.upstream, node.receiver, node.told) = (None, None, None);
        let was_primary = matches!(node.is, Is::Primary | Is::Stopped { was_primary: true });
        if node.is == Is::Primary {
            node.stop();
        }
        let position = (node.is == Is::Standby).then(|| node.end());
        let replay_lsn = position.map(|p| p.lsn);
        let (node, quarantine) = (node.name.clone(), node.quarantine);
        Frozen {
            node,
            term,
            position,
            replay_lsn,
            history: None,
            quarantine,
            was_primary: was_primary && position.is_none(),
            system_id: None,
        }
    }

    /// Receives all that the other has, some of it, or nothing when that is not reached.
    fn catch_up(&mut self, n: usize, order: &CatchUp) -> Result<Reply, CommandError> {
        if self.nodes[n].is != Is::Standby || self.nodes[n].frozen_for != Some(order.term) {
            return Err(wrong_state(n, "frozen for this term"));
        }
        let from = (0..self.nodes.len()).find(|p| name(*p) == order.from).expect("a node of ours");
        let fits = self.nodes[from].is == Is::Standby && self.nodes[from].wal.starts_with(&self.nodes[n].wal);
        if fits && self.linked(n, from) {
            let (have, all) = (self.nodes[n].wal.len(), self.nodes[from].wal.len());
            let upto = if self.chance.below(4) == 0 { have + (all - have) / 2 } else { all };
            let new = self.nodes[from].wal[have..upto].to_vec();
            let node = &mut self.nodes[n];
            node.wal.extend(new);
            node.timeline = node.wal.last().map_or(1, |e| e.0);
            self.reach("a recruit that caught up with another");
        }
        Ok(Reply::Frozen(self.freeze(n, order.term)))
    }

    fn promote(&mut self, n: usize, order: &Promote) -> Result<Reply, CommandError> {
        let node = &self.nodes[n];
        let again = node.serves(order.term);
        if !again {
            if node.is != Is::Standby || node.frozen_for != Some(order.term) {
                return Err(wrong_state(n, "frozen for this term"));
            }
            let have = node.end();
            if have != order.base {
                let refused = Refused::OtherPosition { node: name(n), have: Some(have), want: order.base };
                return Err(CommandError::Refused(refused));
            }
            let timeline = order.term.timeline().expect("a small term");
            let node = &mut self.nodes[n];
            (node.is, node.timeline, node.frozen_for) = (Is::Primary, timeline.0, None);
            node.names = if order.sync_names.is_empty() { Names::Off } else { Names::Armed };
            node.released = node.wal.len();
            self.append(n, RECORDS + order.term.0);
        }
        let node = &self.nodes[n];
        let forks = node.history().forks;
        let fork = *forks.last().expect("it was promoted");
        Ok(Reply::Promoted(Promoted { fork, forks, xid_bound: 1, record_lsn: Lsn(fork.lsn.0 + 1) }))
    }

    fn open(&mut self, n: usize, order: &Open) -> Result<Reply, CommandError> {
        let (term, term_revision) = (order.term, order.term_revision);
        if !self.nodes[n].serves(term) {
            return Err(wrong_state(n, "primary of the term"));
        }
        let away = || {
            let (what, why) = ("opening".to_owned(), "etcd is away".to_owned());
            CommandError::Failed(failover::api::Failed { node: name(n), what, why, at: 0 })
        };
        if !self.etcd_up() {
            return Err(away());
        }
        let Some(record) = self.records.term.clone() else { return Err(away()) };
        let mine = record.value.term == term && record.value.node == Some(name(n));
        if mine && record.value.phase == Phase::Active {
            return Ok(Reply::Opened(Opened { revision: record.revision }));
        }
        if !mine || record.revision != term_revision || self.records.primary.is_some() {
            return Err(wrong_state(n, "the chosen node of an unchanged term record"));
        }
        if let Some(suspend) = &order.suspend {
            self.nodes[n].names = Names::Off;
            let revision = self.records.revision + 1;
            let Some(policy) = self.records.policy.as_mut().filter(|p| p.revision == order.policy_revision) else {
                return Err(wrong_state(n, "an unchanged policy"));
            };
            policy.revision = revision;
            policy.value.epoch += 1;
            policy.value.suspended = Some(suspend.clone());
            self.reach("a term opened alone");
        } else if self.records.policy.as_ref().is_some_and(|p| p.value.protects()) {
            self.nodes[n].names = Names::Armed;
        }
        let revision = self.bump();
        self.primary_ends = self.now + LEASE;
        (self.nodes[n].lease, self.nodes[n].renewed) = (Some((term, self.now + self.counted(n, LEASE))), self.now);
        if let Some(record) = &mut self.records.term {
            (record.value.phase, record.revision) = (Phase::Active, revision);
        }
        self.records.primary = Some(PrimaryRecord { term, node: name(n), holder: "h".into() });
        self.say(format!("{} opens term {term}", name(n)));
        if order.suspend.is_none() && self.records.policy.as_ref().is_some_and(|p| !p.value.protects()) {
            self.reach("a failover of a suspended cluster");
        }
        self.opened(n);
        Ok(Reply::Opened(Opened { revision }))
    }
}

fn wrong_state(n: usize, needs: &str) -> CommandError {
    let state = "otherwise".to_owned();
    CommandError::Refused(Refused::WrongState { node: name(n), state, needs: needs.to_owned() })
}
