//! The world: a clock, a queue of events, etcd's records, nodes, managers, one proxy and its client.

mod agent;
mod check;
mod commands;
mod endpoint;
mod etcd;
mod faults;
mod lease;
mod manager;
mod node;
mod reader;
mod restore;
mod unprotected;
mod walsenders;
mod watchdog;

use cluster::sync_names::SyncNames;
use cluster::{Instant, Lsn, NodeId, Term};
use endpoint::Proxy;
use failover::fsm::action::{Change, ChangeOutcome, Command, CommandError, CommandKind, Reply};
use failover::fsm::observe::Records;
use failover::fsm::overdue::Inaction;
use failover::record::Mode;
use manager::Manager;
use node::{Names, Node};
use reader::Reader;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use walsenders::Sender;

/// What must happen in some seed.
pub(crate) const SOMETIMES: [&str; 73] = [
    "a failover begun while the primary was ending",
    "a primary replaced while its disk hangs",
    "a term that the proxy has heard of",
    "an older view ignored",
    "a commit in doubt that survived",
    "a commit in doubt that was lost",
    "a commit whose outcome nobody can tell",
    "an operator allowed data loss",
    "acknowledged writes lost as an operator allowed, and reported",
    "k has changed",
    "one more votes",
    "one votes no more",
    "a node removed",
    "a removed node that came back",
    "a failover while voters change",
    "a recruit that caught up with another",
    "a recruit that connects ahead of the promotion",
    "a history that came without its WAL",
    "a standby started without the history of a term that was given up",
    "an async failover",
    "a lease signed by the others",
    "a freeze that waited for what was signed",
    "a view vouched for",
    "a lease that ended by a clock that drifts",
    "an order to let commits through that came late",
    "commits let through without a standby",
    "protection restored",
    "a failover of a suspended cluster",
    "a term opened alone",
    "a primary fenced by its lease",
    "a freeze that came late",
    "a failover",
    "a primary that hung and was stopped",
    "a compare-and-put lost",
    "a manager took the lead from another",
    "an outcome unknown and made",
    "a promotion's answer lost",
    "a promotion given up before it happened",
    "a promotion given up after it happened",
    "etcd restored from a backup",
    "etcd restored to an earlier term",
    "two leaders at once",
    "WAL rewound",
    "a superseded primary running",
    "a command refused for its term",
    "a term proven by the standbys that receive",
    "a read refused at a replaced primary",
    "a strict view that ended",
    "a host reset by its watchdog",
    "a watchdog that starved and was stopped in time",
    "a watchdog stopped because a quorum fences again",
    "a connection that was left and counted",
    "a standby connected twice",
    "a connection ended for want of its slot",
    "a standby refused because its old connection has its slot",
    "a slot taken back from a connection that was left",
    "an order to wait for two that waited for slots",
    "a failover of two copies",
    "a primary that was stopped when the order to stop came",
    "a switchover known to have lost nothing",
    "a failover known to have lost nothing, as the primary was stopped cleanly",
    "a term known to have all that was on the last primary's disk",
    "a standby sent WAL of long ago",
    "voters given a vote while unprotected",
    "voters let go while unprotected",
    "k lowered while unprotected",
    "k raised while unprotected",
    "voters changed beyond the limits of a suspension",
    "a change while a suspension is written",
    "a change while a suspension is written, begun under it",
    "a change refused while unprotected, as of what is promised",
    "protection restored by other voters",
    "a failover to other voters while unprotected",
];

/// Faults come until here, then everything heals.
const FAULTS_END: u64 = 40_000;
/// By here the cluster has healed: nothing is a reason to begin another term from then on.
const HEALED: u64 = 62_000;
/// By here a write must have been acknowledged again.
const END: u64 = 75_000;

/// Leases in etcd, and how long a proxy goes by what it has read.
pub(crate) const LEASE: Duration = ms(3000);
pub(crate) const VIEW: Duration = ms(2000);

/// Something that is to happen.
#[derive(Debug)]
pub(crate) enum Event {
    Manage(usize),
    Elect(usize),
    Poll(usize, usize),
    Read {
        manager: usize,
        life: u32,
        sent: Instant,
        records: Box<Records>,
    },
    Order {
        manager: usize,
        life: u32,
        node: usize,
        command: Box<Command>,
        answered: bool,
    },
    Answer {
        manager: usize,
        life: u32,
        node: usize,
        term: Term,
        kind: CommandKind,
        result: Box<Result<Reply, CommandError>>,
    },
    Transact {
        manager: usize,
        life: u32,
        change: Box<Change>,
        heard: bool,
    },
    Outcome {
        manager: usize,
        life: u32,
        id: u64,
        outcome: ChangeOutcome,
    },
    /// A campaign for the lead of another arrives at etcd.
    Take {
        manager: usize,
        life: u32,
        instead: Inaction,
    },
    /// Its answer arrives.
    Taken {
        manager: usize,
        life: u32,
        revision: i64,
        sent: Instant,
    },
    Reconcile(usize),
    Stream(usize),
    Write,
    Proxy,
    Fault,
    /// Operators change voters, k or limits while commits are not protected, or about to be so no more.
    Unprotected,
    /// All hosts but this one are lost until then.
    Strand(usize, Instant),
    /// Did a request to lose data come to nothing?
    Insist,
    /// A standby is cut off until then.
    Lose(usize, Instant),
    /// A standby leaves its connection.
    Leave(usize),
    /// A primary is lost, with that standby.
    Bereave(usize, usize),
}

/// A seed's numbers (splitmix64).
pub(crate) struct Chance(u64);

impl Chance {
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }

    /// True in `percent` of cases.
    pub(crate) fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

pub(crate) struct World {
    pub(crate) now: Instant,
    pub(crate) chance: Chance,
    queue: BTreeMap<(Instant, u64), Event>,
    queued: u64,
    pub(crate) records: Records,
    /// The manager that leads as etcd sees it, since which revision, until when.
    pub(crate) leader: Option<(usize, i64, Instant)>,
    pub(crate) etcd_down_until: Instant,
    pub(crate) managers: Vec<Manager>,
    pub(crate) nodes: Vec<Node>,
    pub(crate) mode: Mode,
    /// How much faster than the simulator's the clocks of the nodes run, and of the proxy, in millionths. No two differ by
    /// more than a thousandth.
    pub(crate) drift: Vec<i64>,
    /// When etcd ends the primary's lease, and the time that commits may go unprotected.
    pub(crate) primary_ends: Instant,
    pub(crate) grace_ends: Instant,
    pub(crate) proxy: Proxy,
    pub(crate) writes: u64,
    /// The last term for which an operator allowed data loss.
    pub(crate) loss_in: Term,
    /// Operators allow data loss.
    pub(crate) lossy: bool,
    /// Operators' requests about voters so far, the last that was refused, and the last that was not at once.
    pub(crate) operations: u64,
    pub(crate) refused: u64,
    pub(crate) accepted: u64,
    /// A suspension is being written, by this manager in this life; and what an operator asked for just then.
    pub(crate) suspending: Option<(usize, u32, u64)>,
    pub(crate) asked_in_between: bool,
    /// Voters became others while commits were not protected.
    pub(crate) replaced: bool,
    /// Acknowledged as promised to survive; other acknowledgements are not kept.
    pub(crate) acked: BTreeSet<u64>,
    pub(crate) reader: Reader,
    last_ack: Instant,
    /// The term that there was when all had healed.
    healed: Option<Term>,
    /// What was first written at each place of each timeline.
    written: BTreeMap<(u32, usize), u64>,
    lines: Vec<String>,
    reached: BTreeSet<&'static str>,
    wrong: Option<String>,
    /// Who was frozen for which term while it counted for nothing.
    pub(crate) quarantined: BTreeSet<(Term, usize)>,
    /// etcd's files of an earlier time, where they are put back now and then.
    pub(crate) backup: restore::Backup,
    /// Every node has a watchdog device, which it must have.
    pub(crate) devices: bool,
    /// Connections of standbys so far.
    connections: i32,
    /// Broken on purpose: a crash takes back what was flushed last.
    pub(crate) disks_forget: bool,
    /// Broken on purpose: standbys stream without slots.
    pub(crate) without_slots: bool,
}

pub(crate) const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

pub(crate) fn name(i: usize) -> NodeId {
    format!("n{}", i + 1).parse().expect("a name")
}

/// Do commits wait for two, of four or five, from the beginning?
pub(crate) const fn waits_for_two(seed: u64) -> bool {
    // None of the async ones.
    matches!(seed % 16, 4 | 9 | 12) && seed % 6 != 5
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        let start = Instant::from_millis(100_000);
        let mode = match (seed % 2, seed % 6) {
            (_, 5) => Mode::Async,
            (1, _) => Mode::Available,
            _ => Mode::Strict,
        };
        let mut chance = Chance(seed);
        let two = waits_for_two(seed);
        // With a spare node operators change who votes.
        let spare = if two { seed % 16 == 12 } else { mode != Mode::Async && seed % 4 < 2 };
        let restores = mode == Mode::Strict && seed % 8 == 6;
        let voters = if two { 4 } else { 3 };
        let nodes = voters + usize::from(spare);
        let drift = (0..=nodes).map(|_| chance.below(1001) as i64 - 500).collect();
        let mut world = Self {
            mode,
            drift,
            primary_ends: start + LEASE,
            grace_ends: start,
            proxy: Proxy::new(start),
            now: start,
            chance,
            queue: BTreeMap::new(),
            queued: 0,
            records: etcd::first(voters, u32::from(mode != Mode::Async) + u32::from(two), mode, spare),
            leader: None,
            etcd_down_until: Instant::default(),
            managers: (0..2).map(|m| Manager::new(m, mode)).collect(),
            nodes: (0..nodes).map(Node::new).collect(),
            writes: 0,
            loss_in: Term(0),
            lossy: mode == Mode::Strict && seed % 4 == 2 && !restores,
            backup: restore::Backup::new(restores),
            quarantined: BTreeSet::new(),
            operations: 0,
            refused: 0,
            accepted: 0,
            suspending: None,
            asked_in_between: false,
            replaced: false,
            acked: BTreeSet::new(),
            reader: Reader::new(seed),
            last_ack: Instant::default(),
            healed: None,
            written: BTreeMap::new(),
            lines: Vec::new(),
            reached: BTreeSet::new(),
            wrong: None,
            devices: mode != Mode::Strict && (seed / 2).is_multiple_of(2),
            connections: 0,
            disks_forget: false,
            without_slots: false,
        };
        let policy = &mut world.records.policy.as_mut().expect("the first").value;
        if mode == Mode::Available {
            // Operators have something to do beyond it.
            policy.limits.max_ms = 4000;
        }
        let policy = policy.clone();
        world.nodes[0].waits_for = failover::fsm::sync_set::armed_names(&policy, &name(0));
        if mode == Mode::Async {
            world.nodes[0].names = Names::Off;
        }
        for m in 0..world.managers.len() {
            world.after(10 + m as u64, Event::Elect(m));
            world.after(20, Event::Manage(m));
            (0..nodes).for_each(|n| world.after(30 + n as u64, Event::Poll(m, n)));
        }
        for n in 0..world.nodes.len() {
            world.after(5, Event::Reconcile(n));
            world.after(7, Event::Stream(n));
        }
        world.after(50, Event::Write);
        world.after(40, Event::Proxy);
        world.after(3000, Event::Fault);
        world.after(FAULTS_END + 8000, Event::Insist);
        world
    }

    pub(crate) fn transcript(&self) -> impl Iterator<Item = String> + '_ {
        self.lines.iter().cloned()
    }

    pub(crate) fn reached(&self) -> impl Iterator<Item = &&'static str> {
        self.reached.iter()
    }

    pub(crate) fn reach(&mut self, what: &'static str) {
        if self.reached.insert(what) {
            self.say(format!("for the first time: {what}"));
        }
    }

    pub(crate) fn say(&mut self, what: String) {
        let at = self.elapsed();
        self.lines.push(format!("{:>3}.{:03} {what}", at / 1000, at % 1000));
    }

    pub(crate) fn fail(&mut self, why: String) {
        self.say(format!("WRONG: {why}"));
        self.wrong.get_or_insert(why);
    }

    pub(crate) fn elapsed(&self) -> u64 {
        self.now.since(Instant::from_millis(100_000)).as_millis() as u64
    }

    pub(crate) fn after(&mut self, wait: u64, event: Event) {
        self.queued += 1;
        self.queue.insert((self.now + ms(wait), self.queued), event);
    }

    /// Time on the network: usually a millisecond or two, sometimes seconds.
    pub(crate) fn delay(&mut self) -> u64 {
        let late = self.faulty() && self.chance.percent(3);
        1 + if late { self.chance.below(4000) } else { self.chance.below(4) }
    }

    pub(crate) fn faulty(&self) -> bool {
        self.elapsed() < FAULTS_END
    }

    /// Is a message lost?
    pub(crate) fn lost(&mut self) -> bool {
        self.faulty() && self.chance.percent(3)
    }

    pub(crate) fn etcd_up(&self) -> bool {
        self.now >= self.etcd_down_until
    }

    /// Play to the end, or to the first thing that is wrong.
    pub(crate) fn run(&mut self) -> Result<(), String> {
        while let Some(((at, _), event)) = self.queue.pop_first() {
            self.now = at;
            if self.elapsed() >= END {
                break;
            }
            self.fire_watchdogs();
            self.happen(event);
            self.check();
            if let Some(why) = self.wrong.take() {
                return Err(why);
            }
        }
        if self.now.since(self.last_ack) > ms(10_000) {
            for m in 0..self.managers.len() {
                let verdict = format!("manager {m}: {:?}", self.managers[m].planner.verdict());
                self.say(verdict);
            }
            let why = format!("no write was acknowledged in the last 10 s: {:?}", self.records.term);
            self.fail(why.clone());
            return Err(why);
        }
        self.astray().or_else(|| self.unlike()).or_else(|| self.untold()).map_or(Ok(()), Err)
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Manage(m) => self.manage(m),
            Event::Elect(m) => self.elect(m),
            Event::Poll(m, n) => self.poll(m, n),
            Event::Read { manager, life, sent, records } => self.read(manager, life, sent, records),
            Event::Order { manager, life, node, command, answered } => {
                self.order(manager, life, node, &command, answered)
            }
            Event::Answer { manager, life, node, term, kind, result } => {
                self.answer(manager, life, node, term, kind, result);
            }
            Event::Transact { manager, life, change, heard } => self.transact(manager, life, &change, heard),
            Event::Outcome { manager, life, id, outcome } => self.outcome(manager, life, id, outcome),
            Event::Take { manager, life, instead } => self.take_lead(manager, life, instead),
            Event::Taken { manager, life, revision, sent } => self.taken(manager, life, revision, sent),
            Event::Reconcile(n) => self.reconcile(n),
            Event::Stream(n) => self.stream(n),
            Event::Write => {
                self.reader_asks();
                self.write();
                let next = 20 + self.chance.below(60);
                self.after(next, Event::Write);
            }
            Event::Proxy => {
                self.back_up();
                self.reader_looks();
                self.look();
                let next = 20 + self.chance.below(60);
                self.after(next, Event::Proxy);
            }
            Event::Fault => self.fault(),
            Event::Unprotected => self.ask_while_unprotected(),
            Event::Strand(n, until) => self.strand(n, until),
            Event::Lose(n, until) => self.nodes[n].cut_until = until,
            Event::Insist => self.insist(),
            Event::Leave(n) => self.leave(n),
            Event::Bereave(p, n) => self.bereave(p, n),
        }
    }

    /// A record at the end of a primary's WAL.
    pub(crate) fn append(&mut self, n: usize, what: u64) {
        let node = &mut self.nodes[n];
        let timeline = node.timeline;
        node.half = None;
        node.wal.push((timeline, what));
        let place = (timeline, node.wal.len());
        let first = *self.written.entry(place).or_insert(what);
        if first != what {
            self.fail(format!("timeline {timeline} was written twice at {}: {first} and {what}", place.1));
        }
    }

    /// `n` acknowledges what enough of the connections under its standbys' names have confirmed.
    pub(crate) fn acknowledge(&mut self, n: usize) {
        let node = &self.nodes[n];
        let term = Term(node.timeline.into());
        if !node.is_primary() || !node.awake(self.now) || node.hangs(self.now) {
            return;
        }
        self.look_for_left(n);
        let node = &self.nodes[n];
        let counted = |s: &&Sender| match (&node.waits_for, node.names) {
            (SyncNames::Any { names, .. }, Names::Armed) => names.contains(&self.nodes[s.node].name),
            (SyncNames::Any { .. } | SyncNames::Off | SyncNames::Fenced, _) => false,
        };
        let counted: Vec<&Sender> = node.senders.iter().filter(counted).collect();
        let have = |lsn: Lsn| counted.iter().filter(move |s| s.flushed >= lsn);
        let enough = |records: &usize| match node.names {
            Names::Armed => match &node.waits_for {
                SyncNames::Any { k, .. } => have(node.lsn_at(*records)).count() >= *k as usize,
                SyncNames::Off => true,
                SyncNames::Fenced => false,
            },
            Names::Off => true,
            Names::Fenced => false,
        };
        let Some(upto) = (node.released + 1..=node.wal.len()).rev().find(enough) else { return };
        let had = have(node.lsn_at(upto)).filter(|s| !self.is_left(s)).map(|s| &self.nodes[s.node]);
        if let Some(without) = had.into_iter().find(|s| s.wal.get(upto - 1) != node.wal.get(upto - 1)) {
            let why =
                format!("{} counts {} for record {upto} of term {term}, which it has not", node.name, without.name);
            return self.fail(why);
        }
        let left = have(node.lsn_at(upto)).any(|s| self.is_left(s));
        // Nobody is told by a proxy whose view has ended, or is of another term.
        let heard = node.names == Names::Armed || self.passes_on(term, n);
        let protects = self.records.policy.as_ref().is_some_and(|p| p.value.protects());
        // Whoever knows of no suspension yet takes it for protected, and commits wait until all know.
        let believed = self.proxy.topology.protected && self.passes_on(term, n);
        let promised = node.names == Names::Armed && (protects || believed);
        // Who allows loss lets a primary that nobody froze go on with a standby that nobody froze either: see INV-1.
        let lossy = self.loss_in > term;
        let (heard, promised) = (heard && !lossy, promised && !lossy);
        let newly: Vec<u64> = node.wal[node.released..upto].iter().map(|e| e.1).filter(|w| *w < RECORDS).collect();
        let open = self.records.term.as_ref().map(|t| (t.value.term, t.value.phase, t.value.node.clone()));
        let own = node.name.clone();
        self.nodes[n].released = upto;
        if left {
            self.reach("a connection that was left and counted");
        }
        for id in newly.into_iter().filter(|_| heard) {
            self.proxy.acknowledged(id);
            if promised {
                self.promise(id);
            }
            self.last_ack = self.now;
            if let Some((newest, failover::record::Phase::Active, Some(primary))) = &open
                && *newest > term
                && !self.nodes.iter().any(|x| x.name == *primary && x.has(id))
            {
                self.fail(format!("{own} acknowledged {id} in term {term} although term {newest} is open without it"));
            }
        }
    }

    /// A client was told that this one survives.
    pub(crate) fn promise(&mut self, id: u64) {
        self.acked.insert(id);
        self.reader.note(id, self.now);
    }

    /// What etcd's leases end.
    fn expire(&mut self) {
        if self.records.primary.is_some() && self.now >= self.primary_ends {
            self.records.primary = None;
            self.bump();
        }
        if self.now >= self.proxy.ends && self.records.proxies.remove("p").is_some() {
            self.bump();
        }
        if self.records.grace && self.now >= self.grace_ends {
            self.records.grace = false;
            self.bump();
        }
    }
}

/// Numbers from here on are terms' records, not clients' writes.
pub(crate) const RECORDS: u64 = 1 << 32;
