//! The state of the model: etcd's records, each node's disk and processes, and what clients were told.

use crate::scope::{Protection, Scope};
use crate::step::Decided;
use crate::wal::{Numbering, Position, Wal};

/// Room for terms 1 to 4.
pub const TERMS: usize = 5;
/// No node.
pub const NOBODY: u8 = 15;
/// A list of standbys that nobody satisfies.
pub const FENCED: u8 = 9;

/// PostgreSQL on a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Server {
    /// Not running.
    Down {
        /// It was a primary when it stopped: never started before a manager or its own agent has compared histories.
        was_primary: bool,
    },
    /// In recovery.
    Standby,
    /// `pg_promote` was called under this term and its agent watches.
    Promoting(u8),
    /// The agent died since: nobody stops it when it is late.
    Orphan(u8),
    /// Accepts writes, as the primary of this term.
    Primary(u8),
}

/// A connection that a standby has left. Its walsender is not seen to have ended, and counts on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Left {
    /// At the primary of this term; 0: there is none.
    pub term: u8,
    /// Records that it has confirmed.
    pub lsn: u8,
    /// It has the standby's slot.
    pub slot: bool,
}

/// A node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Node {
    /// What is on its disk. Everything written is flushed: what is not flushed acknowledges nothing.
    pub wal: Wal,
    /// Its process.
    pub server: Server,
    /// Highest term promised.
    pub promise: u8,
    /// Frozen for this term by a command, as its agent remembers; 0: not.
    pub frozen_for: u8,
    /// Term whose primary its WAL receiver is given; 0: none.
    pub upstream: u8,
    /// One more than the node that it receives from without following it; 0: none.
    pub source: u8,
    /// Its WAL receiver goes through its slot.
    pub slot: bool,
    /// The connection that it has left.
    pub left: Left,
    /// Neither counted nor chosen before it has this.
    pub floor: Position,
    /// How many standbys its commits wait for, in force. [`FENCED`]: more than there are.
    pub names: u8,
    /// Of which, one bit each.
    pub of: u8,
    /// It has signed for the primary's term: see [`State::signed_for`].
    pub signed: bool,
    /// Commits in the first so many records are visible to readers.
    pub visible: u8,
}

impl Node {
    /// Its WAL receiver is given the primary of this term.
    pub fn follows(&self, term: u8) -> bool {
        self.server == Server::Standby && self.upstream == term && term != 0
    }

    /// Its slot is the connection's that it has left.
    pub fn is_refused(&self) -> bool {
        self.slot && self.left.slot && self.left.term != 0 && self.left.term == self.upstream
    }
}

/// How far a term has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Phase {
    /// T1 made.
    Recruiting,
    /// T2 made.
    Promoting,
    /// Promoted, and recorded as such.
    Opening,
    /// T3 made.
    Active,
}

/// Who votes and how many copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Policy {
    /// Copies besides the primary's.
    pub k: u8,
    /// Who votes, one bit each.
    pub voters: u8,
    /// A change of both is under way: to this k.
    pub next: Option<u8>,
    /// And these voters.
    pub next_voters: u8,
    /// Commits are not protected.
    pub suspended: bool,
    /// They were let through knowingly: what had been promised before is all that must be kept.
    pub lowered: bool,
    /// Who has this has all of that; unknown at first.
    pub complete: Position,
    /// Changes so far.
    pub epoch: u8,
}

impl Policy {
    /// Do commits wait for standbys?
    pub fn protects(self) -> bool {
        !self.suspended && self.k > 0
    }

    /// Every rule in force: who votes and how many of them are needed.
    pub fn quorums(self) -> impl Iterator<Item = (u8, u8)> {
        std::iter::once((self.voters, self.k)).chain(self.next.map(|k| (self.next_voters, k)))
    }

    /// Who votes by any of them.
    pub fn counts(self, node: usize) -> bool {
        self.quorums().any(|(voters, _)| voters & 1 << node != 0)
    }

    /// What it comes to: who votes, and how many copies.
    pub fn target(self) -> (u8, u8) {
        self.quorums().last().unwrap_or((self.voters, self.k))
    }
}

/// etcd.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Etcd {
    /// The newest term.
    pub term: u8,
    /// How far it has come.
    pub phase: Phase,
    /// The last term opened before it.
    pub prev: u8,
    /// The policy.
    pub policy: Policy,
    /// The `primary` key exists.
    pub leased: bool,
    /// Agents had promised more than etcd knew when this term was begun, or the one before that was not opened.
    pub history_lost: bool,
    /// Who was chosen last in the terms since the last open one, in vain; of a term in which nobody is chosen yet.
    pub chosen_before: u8,
}

/// What was copied of etcd.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Backup {
    /// Nothing yet.
    None,
    /// This.
    Taken(Etcd),
    /// It has been restored from that.
    Restored,
}

/// A transaction whose sender does not know whether it was made. It compares what it was decided on, so it still may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[expect(missing_docs, reason = "fields are what the transaction compares and writes")]
pub enum Limbo {
    /// None.
    Empty,
    /// T1, decided on this term in this phase under this policy epoch.
    Begin { term: u8, phase: Phase, epoch: u8 },
    /// T2 of this term.
    Choose { term: u8, node: u8, base: Position },
    /// T3 of this term.
    Open { term: u8 },
    /// T5, decided on this term in this phase under this policy epoch.
    Change { term: u8, phase: Phase, epoch: u8, what: Decided },
}

/// The whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct State<const M: usize> {
    /// Records.
    pub etcd: Etcd,
    /// A copy of them.
    pub backup: Backup,
    /// Nodes.
    pub nodes: [Node; M],
    /// Ends of WAL that the current term's manager was told.
    pub recruits: [Position; M],
    /// The same of the manager that made the term before another went on with it, and that knows nothing of that.
    pub left: [Position; M],
    /// The policy that the current round goes by.
    pub round: Policy,
    /// The node chosen in each term.
    pub chosen: [u8; TERMS],
    /// Its end of WAL then.
    pub base: [Position; TERMS],
    /// Terms opened, one bit each.
    pub opened: u8,
    /// Terms that some proxy may still act on.
    pub views: u8,
    /// A transaction under way.
    pub limbo: Limbo,
    /// Everything past here on the primary waits for standbys.
    pub armed: u8,
    /// Where the primary's WAL ended when it let commits through.
    pub relaxed: Position,
    /// The old primary relaxes what commits wait for: it has recorded the suspension in this term.
    pub relaxes: u8,
    /// Waits cancelled so far.
    pub cancels: u8,
    /// Writes whose clients were told that their outcome is unknown, one bit each.
    pub unknown: u8,
    /// Views of these terms, one bit each, last as long as the primary's lease: it has vouched for them.
    pub vouched: u8,
    /// In this term this node was told to receive from that one; term 0: none was.
    pub brings: (u8, u8, u8),
    /// Connections left so far.
    pub reconnects: u8,
    /// Rounds that changed hands so far.
    pub leads: u8,
    /// Faults so far.
    pub crashes: u8,
    /// Answers lost so far.
    pub lost: u8,
    /// Client writes so far.
    pub writes: u8,
    /// Writes acknowledged under the strict guarantee, one bit each.
    pub acked: u8,
    /// Writes that some client has read.
    pub shown: u8,
    /// Writes on the line of the newest open term.
    pub kept: u8,
    /// Timelines begun, by number.
    pub numbers: u8,
    /// What went wrong, see `check`.
    pub wrong: u8,
}

impl<const M: usize> State<M> {
    /// A healthy cluster in term 1 with node 0 as primary.
    pub fn first(k: u8) -> Self {
        let all = ((1u16 << M) - 1) as u8;
        let node = |i| Node {
            wal: Wal::default(),
            server: if i == 0 { Server::Primary(1) } else { Server::Standby },
            promise: 1,
            frozen_for: 0,
            upstream: u8::from(i != 0),
            source: 0,
            slot: false,
            left: Left::default(),
            floor: Position::default(),
            names: if i == 0 { k } else { 0 },
            of: all,
            signed: false,
            visible: 0,
        };
        let complete = Position::default();
        let (next, suspended, lowered, epoch) = (None, false, false, 1);
        let policy = Policy { k, voters: all, next, next_voters: 0, suspended, lowered, complete, epoch };
        let mut chosen = [NOBODY; TERMS];
        chosen[1] = 0;
        Self {
            etcd: Etcd {
                term: 1,
                phase: Phase::Active,
                prev: 0,
                policy,
                leased: true,
                history_lost: false,
                chosen_before: NOBODY,
            },
            backup: Backup::None,
            nodes: std::array::from_fn(node),
            recruits: [Position::default(); M],
            left: [Position::default(); M],
            round: policy,
            chosen,
            base: [Position::default(); TERMS],
            opened: 0b10,
            views: 0b10,
            limbo: Limbo::Empty,
            armed: 0,
            relaxed: Position::default(),
            relaxes: 0,
            cancels: 0,
            unknown: 0,
            vouched: 0,
            brings: (0, NOBODY, NOBODY),
            reconnects: 0,
            leads: 0,
            crashes: 0,
            lost: 0,
            writes: 0,
            acked: 0,
            shown: 0,
            kept: 0,
            numbers: 0b10,
            wrong: 0,
        }
    }

    /// The node chosen in `term`.
    pub fn primary_of(&self, term: u8) -> Option<usize> {
        let node = self.chosen[usize::from(term)];
        (node != NOBODY).then_some(usize::from(node))
    }

    /// The node that runs as the primary of `term`.
    pub fn running(&self, term: u8) -> Option<usize> {
        self.primary_of(term).filter(|n| self.nodes[*n].server == Server::Primary(term))
    }

    /// The term that signatures are given for: the newest open one.
    pub fn signed_for(&self) -> u8 {
        self.newest_open()
    }

    /// Have enough of the others signed for it, by the rule of `scope`?
    pub fn is_signed(&self, scope: &Scope) -> bool {
        let needed = if scope.lacks(Protection::AllSign) { M / 2 } else { M - 1 };
        self.nodes.iter().filter(|n| n.signed).count() >= needed
    }

    /// The highest term that anybody knows of.
    pub fn known_term(&self) -> u8 {
        self.nodes.iter().map(|n| n.promise).max().unwrap_or(0).max(self.etcd.term)
    }

    /// The newest term that was opened.
    pub fn newest_open(&self) -> u8 {
        (7 - self.opened.leading_zeros()) as u8
    }

    /// Nodes of `among` other than `than` whose WAL lies on `wal`'s line and reaches `lsn`.
    pub fn holders(&self, than: usize, among: u8, wal: Wal, lsn: u8, numbering: Numbering) -> u8 {
        let holds = |i: &usize| *i != than && among & 1 << *i != 0 && self.holds(*i, wal, lsn, numbering);
        (0..M).filter(holds).count() as u8
    }

    fn holds(&self, i: usize, wal: Wal, lsn: u8, numbering: Numbering) -> bool {
        let own = self.nodes[i].wal;
        own.len() >= lsn && wal.descends(own, numbering)
    }

    /// Connections under the names of `among` by which the primary `p` of `term` knows that `lsn` is flushed.
    pub fn confirmations(&self, p: usize, term: u8, among: u8, lsn: u8, numbering: Numbering) -> u8 {
        let of = |i: usize| {
            let n = &self.nodes[i];
            let holds = self.holds(i, self.nodes[p].wal, lsn, numbering);
            if n.left.term != term {
                return u8::from(holds);
            }
            let connected = n.follows(term) && !n.is_refused();
            u8::from(n.left.lsn >= lsn) + u8::from(holds && connected)
        };
        (0..M).filter(|i| *i != p && among & 1 << *i != 0).map(of).sum()
    }

    /// The same with nodes in a fixed order: which of two nodes is called what makes no difference.
    pub fn canonical(&self) -> Self {
        let terms = |i: usize| {
            let bit = |t: usize| u8::from(usize::from(self.chosen[t]) == i) << t;
            (0..TERMS).map(bit).fold(0, |all, one| all | one)
        };
        let limbo = |i: usize| match self.limbo {
            Limbo::Choose { node, .. }
            | Limbo::Change { what: Decided::ChangeVoters(node) | Decided::Replace(node), .. } => {
                usize::from(node) == i
            }
            Limbo::Empty | Limbo::Begin { .. } | Limbo::Open { .. } | Limbo::Change { .. } => false,
        };
        let before = |i: usize| usize::from(self.etcd.chosen_before) == i;
        let brought = |i: usize| (usize::from(self.brings.1) == i, usize::from(self.brings.2) == i);
        // Names in a node's own state are renamed below; here they would make nodes differ by names.
        let plain = |i: usize| Node { source: u8::from(self.nodes[i].source != 0), of: 0, ..self.nodes[i] };
        let voters = |i: usize| [self.etcd.policy, self.round].map(|p| (p.voters >> i & 1, p.next_voters >> i & 1));
        let waited = |i: usize| self.nodes.iter().map(|n| n.of >> i & 1).sum::<u8>();
        let mut order: [usize; M] = std::array::from_fn(|i| i);
        order.sort_unstable_by_key(|i| {
            let (named, counted) = ((terms(*i), limbo(*i), brought(*i), before(*i)), (voters(*i), waited(*i)));
            (plain(*i), self.recruits[*i], self.left[*i], named, counted)
        });
        let renamed = |node: u8| order.iter().position(|i| *i == usize::from(node)).map_or(node, |at| at as u8);
        let mut same = *self;
        same.nodes = order.map(|i| self.nodes[i]);
        let set = |of: u8| (0..M).map(|at| (of >> order[at] & 1) << at).fold(0, |all, one| all | one);
        for node in &mut same.nodes {
            node.source = if node.source == 0 { 0 } else { renamed(node.source - 1) + 1 };
            node.of = set(node.of);
        }
        for policy in [&mut same.etcd.policy, &mut same.round] {
            (policy.voters, policy.next_voters) = (set(policy.voters), set(policy.next_voters));
        }
        same.etcd.chosen_before = renamed(self.etcd.chosen_before);
        same.brings = (self.brings.0, renamed(self.brings.1), renamed(self.brings.2));
        same.recruits = order.map(|i| self.recruits[i]);
        same.left = order.map(|i| self.left[i]);
        same.chosen = self.chosen.map(renamed);
        if let Limbo::Choose { node, .. }
        | Limbo::Change { what: Decided::ChangeVoters(node) | Decided::Replace(node), .. } = &mut same.limbo
        {
            *node = renamed(*node);
        }
        same
    }
}
