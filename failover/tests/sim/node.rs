//! A node: its WAL and what is on its disk, PostgreSQL as far as it matters, and what its agent reports.

use super::walsenders::Sender;
use super::watchdog::Armed;
use super::{Event, RECORDS, World, ms, name};
use cluster::sync_names::SyncNames;
use cluster::timeline::{Fork, History};
use cluster::{Instant, Lsn, NodeId, Term, TimelineId};
use failover::api::{AgentState, Position, PostgresState, Primary, Sighting, Standby};
use failover::fsm::observe::Records;
use failover::fsm::rejoin::leads_elsewhere;
use failover::fsm::walsenders::{Seen, Watch};
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

/// Bytes of a client's write and of a term's record, and of what is received of a write of which the rest does not come: more
/// than the term's record that is written in its place.
const WRITE: u64 = 4;
const TERM_RECORD: u64 = 1;
const BEGINNING: u64 = 3;

/// A primary acknowledges nothing from so long before the end of its lease.
pub(crate) const SOFT: Duration = ms(600);

pub(crate) struct Node {
    pub(crate) names: Names,
    /// The standbys that its commits wait for while they wait.
    pub(crate) waits_for: SyncNames,
    /// The end of its lease as its agent counts it, from when it asked.
    pub(crate) lease: Option<(Term, Instant)>,
    /// When it was last renewed, by etcd or by signatures.
    pub(crate) renewed: Instant,
    /// The last term that it has signed for, and until when that binds it.
    pub(crate) signed: (Term, Instant),
    /// Until when the proxy may act on what it has vouched for.
    pub(crate) vouched_until: Instant,
    pub(crate) unleased_since: Option<Instant>,
    pub(crate) watchdog: Option<Armed>,
    /// The newest epoch under which it was ordered to make commits wait.
    pub(crate) armed: u64,
    pub(crate) name: NodeId,
    pub(crate) is: Is,
    /// It was stopped cleanly, as a primary.
    pub(crate) clean: bool,
    /// An operator has taken it out, as its agent has read.
    pub(crate) fenced: bool,
    /// Timeline and content of each record.
    pub(crate) wal: Vec<(u32, u64)>,
    /// The record of which the beginning was received, and not the rest.
    pub(crate) half: Option<u64>,
    /// Timeline of the end.
    pub(crate) timeline: u32,
    /// The timeline whose history came without its WAL: its PostgreSQL follows no line without it.
    pub(crate) target: Option<TimelineId>,
    pub(crate) promise: Term,
    /// Highest term that its agent has read as open.
    pub(crate) opened: Term,
    /// The highest that it was seen to have promised.
    pub(crate) promised: Term,
    pub(crate) frozen_for: Option<Term>,
    pub(crate) upstream: Option<(usize, Term)>,
    /// Where its WAL receiver is connected, and by which connection.
    pub(crate) receiver: Option<(usize, Term)>,
    pub(crate) pid: i32,
    /// It connects through its slot.
    pub(crate) through_slot: bool,
    /// Connections to it, also such as were left.
    pub(crate) senders: Vec<Sender>,
    /// Its agent, as a primary's, lets no standby be without its slot; what it has seen of them, and remembers.
    pub(crate) must_have_slots: bool,
    pub(crate) seen_senders: Seen,
    pub(crate) watch: Watch,
    /// The epoch under which it is to wait for standbys that do not all stream through slots, and since when.
    pub(crate) arming: Option<(u64, Instant)>,
    pub(crate) quarantine: Option<Position>,
    pub(crate) examined: Option<Fork>,
    /// A primary's commits up to here are acknowledged.
    pub(crate) released: usize,
    pub(crate) view: Option<Records>,
    /// The revision of the latest leader that it has read of.
    pub(crate) leader: Option<i64>,
    pub(crate) ordered: Option<(usize, Term)>,
    /// Whom it takes for the primary, and when its agent and its PostgreSQL last answered.
    pub(crate) seen: Option<(NodeId, Term, Instant, Instant)>,
    pub(crate) not_streaming_since: Instant,
    pub(crate) down_until: Instant,
    pub(crate) paused_until: Instant,
    pub(crate) cut_until: Instant,
    pub(crate) stalled_until: Instant,
    /// Its PostgreSQL does nothing and answers nothing, since and until when.
    pub(crate) hung: (Instant, Instant),
    /// Its postmaster is dead and what that left has not been ended yet: until then its agent says so.
    pub(crate) ending_until: Instant,
    /// The same of its disk: nothing is flushed, neither WAL nor what its agent promises.
    pub(crate) disk: (Instant, Instant),
    pub(crate) seq: u64,
}

impl Node {
    pub(crate) fn new(i: usize) -> Self {
        Self {
            names: Names::Armed,
            waits_for: SyncNames::Off,
            lease: None,
            renewed: Instant::default(),
            signed: (Term(0), Instant::default()),
            vouched_until: Instant::default(),
            unleased_since: None,
            watchdog: None,
            armed: 0,
            name: name(i),
            fenced: false,
            clean: false,
            is: if i == 0 { Is::Primary } else { Is::Standby },
            wal: Vec::new(),
            half: None,
            timeline: 1,
            target: None,
            promise: Term(1),
            opened: Term(0),
            promised: Term(1),
            frozen_for: None,
            upstream: (i != 0).then_some((0, Term(1))),
            receiver: (i != 0).then_some((0, Term(1))),
            pid: 0,
            through_slot: false,
            senders: Vec::new(),
            must_have_slots: false,
            seen_senders: Seen::default(),
            watch: Watch::default(),
            arming: None,
            quarantine: None,
            examined: None,
            released: 0,
            view: None,
            leader: None,
            ordered: None,
            seen: None,
            not_streaming_since: Instant::default(),
            down_until: Instant::default(),
            paused_until: Instant::default(),
            cut_until: Instant::default(),
            stalled_until: Instant::default(),
            hung: Default::default(),
            ending_until: Instant::default(),
            disk: Default::default(),
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

    /// A primary that was, and of which its agent has told no more yet than that it is on its way to that.
    pub(crate) fn is_ending(&self, now: Instant) -> bool {
        self.is == Is::Stopped { was_primary: true } && now < self.ending_until
    }

    pub(crate) fn hangs(&self, now: Instant) -> bool {
        now < self.hung.1
    }

    pub(crate) fn flushes(&self, now: Instant) -> bool {
        now >= self.disk.1
    }

    /// Its WAL receiver is connected to `primary`, in that term.
    pub(crate) fn receives_from(&self, primary: usize, term: Term) -> bool {
        self.receiver == Some((primary, term))
    }

    pub(crate) fn serves(&self, term: Term) -> bool {
        self.is == Is::Primary && u64::from(self.timeline) == term.0
    }

    pub(crate) fn has(&self, write: u64) -> bool {
        self.wal.iter().any(|(_, what)| *what == write)
    }

    /// Where the first `records` of its WAL end.
    pub(crate) fn lsn_at(&self, records: usize) -> Lsn {
        // Every timeline but the first begins with its term's record.
        let (mut at, mut begun) = (0, 0);
        while at < records {
            let timeline = self.wal[at].0;
            begun += u64::from(timeline > 1);
            let rest = &self.wal[at..records];
            let last = rest[rest.len() - 1].0 <= timeline;
            at += if last { rest.len() } else { rest.partition_point(|e| e.0 <= timeline) };
        }
        Lsn((records as u64 - begun) * WRITE + begun * TERM_RECORD)
    }

    /// So many records of its WAL end there, or before.
    pub(crate) fn records_to(&self, lsn: Lsn) -> usize {
        (0..=self.wal.len()).rev().find(|records| self.lsn_at(*records) <= lsn).unwrap_or(0)
    }

    /// Where its WAL ends that can be replayed.
    pub(crate) fn whole_end(&self) -> Position {
        Position { timeline: TimelineId(self.timeline), lsn: self.lsn_at(self.wal.len()) }
    }

    /// Where its WAL ends, which may be within a record.
    pub(crate) fn end(&self) -> Position {
        let whole = self.whole_end();
        Position { lsn: Lsn(whole.lsn.0 + if self.half.is_some() { BEGINNING } else { 0 }), ..whole }
    }

    pub(crate) fn history(&self) -> History {
        let mut forks = Vec::new();
        let mut timeline = 1;
        for (at, (next, _)) in self.wal.iter().enumerate() {
            if *next != timeline {
                forks.push(Fork { timeline: TimelineId(timeline), lsn: self.lsn_at(at) });
                timeline = *next;
            }
        }
        History { forks, ..History::root(TimelineId(timeline)) }
    }

    pub(crate) fn stop(&mut self) {
        let was_primary = match self.is {
            Is::Stopped { was_primary } => was_primary,
            is => is == Is::Primary,
        };
        (self.is, self.clean) = (Is::Stopped { was_primary }, self.clean && self.is == Is::Stopped { was_primary });
        (self.receiver, self.hung) = (None, Default::default());
        self.senders.clear();
        (self.must_have_slots, self.seen_senders) = (false, Seen::default());
        // Who starts it finds the end of the last record.
        self.half = None;
    }

    pub(crate) fn start_detached(&mut self) {
        (self.is, self.upstream, self.receiver, self.clean) = (Is::Standby, None, None, false);
    }

    pub(crate) fn truncate(&mut self, len: usize) {
        self.wal.truncate(len);
        self.clean = false;
        self.half = None;
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
        if self.nodes[n].is_primary() {
            self.nodes[n].ending_until = self.now + ms(self.chance.below(400));
        }
        self.nodes[n].stop();
    }

    pub(crate) fn forget(&mut self, n: usize) {
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
        (node.lease, node.watchdog, node.disk) = (None, None, Default::default());
        node.down_until = until;
    }

    pub(crate) fn report(&mut self, n: usize) -> AgentState {
        let now = self.now;
        let followers = self.followers(n);
        let armed = self.nodes[n].names == Names::Armed;
        let sync_names = if armed { self.nodes[n].waits_for.to_string() } else { String::new() };
        let node = &mut self.nodes[n];
        node.seq += 1;
        let end = node.end();
        let is = if node.is_ending(now) { Is::Primary } else { node.is };
        let postgres = match is {
            Is::Stopped { was_primary } => {
                let (clean, checkpoint_lsn) = (node.clean, if node.clean { end.lsn } else { Lsn(0) });
                PostgresState::Stopped { clean, timeline: end.timeline, was_primary, checkpoint_lsn }
            }
            Is::Standby => PostgresState::Standby(Standby {
                timeline: end.timeline,
                receive_lsn: end.lsn,
                replay_lsn: node.whole_end().lsn,
                streams_from: node.receiver.map(|(p, _)| name(p)),
                replay_paused: false,
                sync_names: String::new(),
            }),
            Is::Primary if node.hangs(now) => PostgresState::Hung { for_ms: now.since(node.hung.0).as_millis() as u64 },
            Is::Primary => PostgresState::Primary(Primary {
                timeline: end.timeline,
                // Its agent's record of every second, and what clients send.
                insert_lsn: Lsn(end.lsn.0 + u64::from(!node.flushes(now))),
                flush_lsn: end.lsn,
                sync_names,
                followers,
                impostors: node.seen_senders.impostors.clone(),
                doubted: node.seen_senders.doubted.clone(),
            }),
        };
        let sighting = node.seen.clone().map(|(node, term, agent, sql)| {
            let ago = |at| now.since(at).as_millis() as u64;
            let (agent_ms_ago, sql_ms_ago) = (ago(agent), ago(sql));
            let accept_ms_ago = Some(sql_ms_ago);
            Sighting { node, term, agent_ms_ago, sql_ms_ago, accept_ms_ago, full_ms_ago: None, refused: false }
        });
        AgentState {
            seq: node.seq,
            node: node.name.clone(),
            holder: "a".into(),
            host: node.name.to_string(),
            promise: node.promise,
            opened: node.opened,
            postgres,
            observed_ms_ago: 0,
            system_id: None,
            memory_of: None,
            frozen_for: node.frozen_for,
            quarantine: node.quarantine,
            rejoin: None,
            fenced: node.fenced,
            sees_primary: sighting,
            lease_left_ms: None,
            fsync_probe_ms: Some(if node.flushes(now) { 1 } else { now.since(node.disk.0).as_millis() as u64 }),
            trouble: None,
            namesake: None,
            slot_room: None,
            ending: node.is_ending(now),
            policy: None,
        }
    }

    /// The WAL receiver connects, receives, flushes, and says so.
    pub(crate) fn stream(&mut self, n: usize) {
        let next = 5 + self.chance.below(20);
        self.after(next, Event::Stream(n));
        self.receive(n);
    }

    pub(crate) fn receive(&mut self, n: usize) {
        let node = &self.nodes[n];
        if self.now < node.stalled_until || !node.flushes(self.now) {
            return;
        }
        let Some((p, term)) = node.upstream.filter(|_| node.is == Is::Standby) else { return };
        if self.nodes[p].hangs(self.now) {
            return; // the connection stays
        }
        // A standby streams too, to who has connected ahead of its promotion.
        let attended = self.nodes[p].is == Is::Standby && self.nodes[p].frozen_for == Some(term);
        let there = self.linked(n, p) && (attended || self.nodes[p].serves(term));
        let elsewhere =
            node.target.is_some_and(|t| leads_elsewhere(t, TimelineId(node.timeline), &self.nodes[p].history()));
        let fits = there && !elsewhere && self.nodes[p].wal.starts_with(&node.wal);
        // While its candidate may still die before anybody has more of the new timeline.
        let early = fits && self.nodes[p].timeline != node.timeline && self.nodes[p].opened < term;
        if early && node.target.is_none() && self.chance.percent(50) {
            self.nodes[n].target = Some(TimelineId(self.nodes[p].timeline));
            self.reach("a history that came without its WAL");
            if self.faulty() && self.chance.percent(3) {
                self.crash_postgres(p);
            }
            return;
        }
        if !fits {
            return self.disconnect(n);
        }
        if !self.connects(n, p, term) {
            return;
        }
        let have = self.nodes[n].wal.len();
        let most = have + self.sent_at_most(n, p);
        let mut upto = self.nodes[p].wal.len().min(most);
        // Of the last only the beginning, now and then.
        upto -= usize::from(upto > have && self.chance.percent(20));
        let new = self.nodes[p].wal[have..upto].to_vec();
        let next = match self.nodes[p].wal.get(upto) {
            Some((_, what)) => Some(*what).filter(|what| *what < RECORDS),
            None => self.nodes[p].half,
        };
        let node = &mut self.nodes[n];
        node.wal.extend(new);
        node.timeline = node.wal.last().map_or(1, |e| e.0);
        node.target = node.target.filter(|t| t.0 > node.timeline);
        node.half = next;
        let end = node.whole_end();
        if node.quarantine.is_some_and(|q| end.lsn >= q.lsn && end.timeline >= q.timeline) {
            node.quarantine = None;
        }
        self.confirm(n, p);
    }
}
