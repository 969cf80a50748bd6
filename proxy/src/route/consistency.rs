//! Read your writes, at no cost to the write: what must a standby have replayed before this session may read there?
//!
//! After a write acknowledged at t, any insert position of the primary whose query was sent at or after t lies at or
//! past the end of its commit record. So nothing is asked at commit: the session reads from the primary until such a
//! sample comes by, at most one probe interval later, and from then on from standbys that have replayed it. What it
//! reads at the primary meanwhile it must not miss later either, so that moves t on. A session that reads without a
//! pause would so never find a sample that is new enough: after a while it is told to ask the primary itself, once
//! ([`Causality::asks`]).
//!
//! Positions of an older term are carried into a newer one by the fork: what lies past it is gone. Where the fork is
//! not known, the new primary's samples do, every one of which lies past whatever survived.

use super::lost::{Acknowledged, By, LostWrite};
use super::policy::Lag;
use super::seen::{LostRead, Seen, Shows};
use super::token::Token;
use cluster::lag::ServerStart;
use cluster::topology::Topology;
use cluster::{Instant, Lsn, NodeId, Term, TimelineId};
use std::time::Duration;

/// What one session has written and read.
#[derive(Clone, Debug, Default)]
pub struct Causality {
    pub(super) seen: Seen,
    /// What the primary has answered.
    bound: Option<Bound>,
    /// Greatest replay position, as sampled, of the standbys it has read from.
    read: Option<Token>,
    /// The primary did not tell its position when asked: it is not asked again.
    mute: bool,
    /// Since when it reads at the primary, writes nothing, and how often it has waited for a standby in vain meanwhile.
    away: Option<(Instant, u32)>,
    /// The position that the last `global` read needed, and when it was sampled.
    all: Option<(Instant, Token)>,
    acknowledged: Acknowledged,
}

/// A session that only reads, and for so long at the primary, waits for a standby once: each of those reads moves what a
/// standby must have replayed, so that without a pause none ever has.
const AWAY: Duration = Duration::from_secs(1);
/// A session that has read at the primary so often, or for so long, without a write and without a pause asks for its position,
/// once a sample has come that it would have been covered by with one. Where others ask for samples they come every few
/// milliseconds, and a question behind nearly each transaction would cost more than standbys save.
const MANY: u8 = 8;
const CHASED: Duration = Duration::from_millis(50);
/// How long it waits. In vain, it does so again after twice the time.
const CATCH_UP: Duration = Duration::from_millis(250);
/// How long a `global` read waits for the sample that it needs, and for a standby that has replayed it.
const OF_ALL: Duration = Duration::from_millis(100);
/// The time is doubled so often at most.
const DOUBLINGS: u32 = 6;

#[derive(Clone, Copy, Debug)]
struct Bound {
    /// When the last answer came.
    at: Instant,
    /// When the first came that no position covers, or the last of a write.
    since: Instant,
    /// How many reads have come since then.
    reads: u8,
    /// There is a write among them.
    wrote: bool,
    /// The position that covers them.
    covered: Option<Token>,
    /// [`MANY`] reads went to the primary, or for [`CHASED`], although a sample had come that covers the first of them.
    chasing: bool,
}

/// No position of the primary covers what must be seen yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pending {
    /// A sample whose query was sent at or after this instant will.
    pub since: Instant,
}

impl Causality {
    /// Something that may have written was acknowledged at `now`, or its outcome became unknown: anything that ran on
    /// the primary and is not a proven read. Call it when the answer arrives, not when the statement is sent: a sample
    /// taken in between would not cover it.
    ///
    /// That says nothing of what was read at standbys: what has written nothing waits for none of them, and the commits of
    /// others may wait for more than it did.
    pub fn wrote(&mut self, now: Instant) {
        self.answered(now, true, Shows::Some);
    }

    /// What may have written in `term` was acknowledged to the client.
    pub fn acknowledged(&mut self, term: Term, by: By, now: Instant) {
        self.acknowledged.note(term, by, now);
    }

    /// Was anything acknowledged in a term before this one, of which nobody has looked yet whether it is in this one?
    pub fn wrote_before(&self, term: Term) -> bool {
        self.acknowledged.precedes(term)
    }

    /// The same of what was read at a standby.
    pub fn read_before(&self, term: Term) -> bool {
        self.seen.precedes(term)
    }

    /// What was read at a standby and may be lost: told once. `in_vain`: it was waited for until that is known, for as long as reads
    /// wait.
    pub fn take_lost_read(&mut self, topology: &Topology, lag: &Lag, in_vain: bool) -> Option<LostRead> {
        self.seen.take_lost(topology, lag, in_vain)
    }

    /// A write that was acknowledged to the client and may be lost: told once.
    pub fn take_lost(&mut self, topology: &Topology, lag: &Lag) -> Option<LostWrite> {
        self.acknowledged.take_lost(topology, lag)
    }

    /// A read at the primary was answered at `now`.
    pub fn saw(&mut self, now: Instant, shows: Shows) {
        self.answered(now, false, shows);
    }

    /// The primary has answered at `now` what may have written, or only read.
    pub fn answered(&mut self, now: Instant, wrote: bool, shows: Shows) {
        self.seen.at_primary(shows);
        let vain = self.away.map_or(0, |(_, vain)| vain);
        if wrote || self.away.is_none() {
            self.away = Some((now, vain));
        }
        let open = self.bound.filter(|b| b.covered.is_none());
        let before = open.is_some_and(|b| b.wrote);
        // Who writes again and again is at the primary anyway.
        let (since, reads, chasing) = match open.filter(|_| !wrote) {
            Some(b) => (b.since, b.reads.saturating_add(1), b.chasing),
            None => (now, u8::from(!wrote), false),
        };
        self.bound = Some(Bound { at: now, since, reads, wrote: wrote || before, covered: None, chasing });
    }

    /// Does the primary show all that was read at standbys, as far as is known?
    pub fn is_shown_at_primary(&self, topology: &Topology, lag: &Lag) -> bool {
        self.seen.is_at_primary(topology, lag).is_ok()
    }

    /// Has it read anything at standbys that the primary has not shown it since?
    pub fn has_seen(&self) -> bool {
        self.seen.has_any()
    }

    /// A statement goes to the primary of `term`, which may not show that after as long as statements wait for it.
    pub fn misses(&mut self, term: Term) {
        self.seen.give_up(term);
    }

    /// Which standby, if one has, has shown what the primary may miss, and when: for the client, which is told once.
    pub fn take_untold(&mut self) -> Option<(Option<NodeId>, Instant)> {
        self.seen.take_untold()
    }

    /// Should the primary be asked for its position before the session's next statement? `each_write`: after each
    /// write, and not only when samples do not help.
    pub fn asks(&self, each_write: bool) -> bool {
        !self.mute && self.bound.is_some_and(|b| b.covered.is_none() && (b.chasing || each_write && b.wrote))
    }

    /// Does the primary tell its position, as far as is known?
    pub fn may_ask(&self) -> bool {
        !self.mute
    }

    /// The primary was asked at `asked`, and this is its position.
    pub fn cover(&mut self, asked: Instant, position: Token) {
        self.seen.cover_by(asked, position);
        if let Some(bound) = self.bound.as_mut().filter(|b| b.at <= asked) {
            bound.covered = Some(position);
        }
    }

    /// The primary does not tell its position.
    pub fn give_up(&mut self) {
        self.mute = true;
    }

    /// A read was answered at `now`, at least in part, by a standby that was started then. In which term it was asked, in a block
    /// the block, and in which it was answered.
    pub fn read_at(
        &mut self,
        standby: (&NodeId, Option<ServerStart>),
        terms: (Term, Term),
        now: Instant,
        shows: Shows,
    ) {
        self.seen.at_standby(standby, terms, now, shows);
    }

    /// A read goes to a standby that had replayed `replay_lsn` when sampled. Its later reads do not go to one that
    /// was sampled behind that.
    pub(super) fn read(&mut self, topology: &Topology, lag: &Lag, replay_lsn: Lsn) {
        // Whoever samples in the name of a term that begins samples the history of the one before.
        let term = lag.snapshot().term.min(lag.shown(topology));
        let read = Token { term, timeline: timeline(term, topology, lag), lsn: replay_lsn };
        self.read = Some(read.later(self.read));
        self.away = None;
    }

    /// How long a read waits for a standby to catch up with the session itself.
    pub(super) fn patience(&self, now: Instant) -> Duration {
        let due = |(since, vain): (Instant, u32)| now.since(since) >= AWAY * 2_u32.pow(vain.min(DOUBLINGS));
        if self.away.is_some_and(due) { CATCH_UP } else { Duration::ZERO }
    }

    /// How long a `global` read waits for a standby: each needs a sample of its own, so without waiting none would ever get
    /// one.
    pub(super) fn patience_of_all(&self, now: Instant) -> Duration {
        let vain = |(_, vain): (Instant, u32)| vain > 0;
        if self.away.is_some_and(vain) { self.patience(now).min(OF_ALL) } else { OF_ALL }
    }

    /// It has waited in vain.
    pub(super) fn waited(&mut self, now: Instant) {
        let vain = self.away.map_or(0, |(_, vain)| vain);
        self.away = Some((now, vain.saturating_add(1)));
    }

    /// The position a standby must have replayed for the session to read there; `None` when any will do.
    ///
    /// # Errors
    /// What the primary has answered last is not covered by any sample yet.
    pub(super) fn need(&mut self, topology: &Topology, lag: &Lag) -> Result<Option<Lsn>, Pending> {
        let read = self.need_of_reads(topology, lag)?;
        let Some(bound) = &mut self.bound else { return Ok(read) };
        let lsn = match bound.covered {
            Some(covered) => carried(covered, topology, lag)?,
            None if self.acknowledged.is_undecided(topology, lag) => return Err(Pending { since: bound.at }),
            None => {
                let sample = lag.primary_of(topology);
                let long = bound.reads >= MANY || bound.at.since(bound.since) >= CHASED;
                bound.chasing |= long && sample.is_some_and(|s| s.sent_at >= bound.since);
                let sample = sample.filter(|s| s.sent_at >= bound.at).ok_or(Pending { since: bound.at })?;
                bound.covered = Some(Token { term: topology.term, timeline: sample.timeline, lsn: sample.insert_lsn });
                sample.insert_lsn
            }
        };
        Ok(read.max(Some(lsn)))
    }

    fn need_of_reads(&self, topology: &Topology, lag: &Lag) -> Result<Option<Lsn>, Pending> {
        match self.read {
            None => Ok(None),
            // Also while a new term begins, and the figures are still the old one's.
            Some(read) if read.term == lag.snapshot().term => Ok(Some(read.lsn)),
            Some(read) => carried(read, topology, lag).map(Some),
        }
    }

    /// The position a standby must have replayed for a read that began at `since` to miss nothing that anybody was
    /// acknowledged before: the first insert position of the primary sampled since then, and what the session has read.
    /// Not the newest: while others write no standby has replayed that yet.
    ///
    /// # Errors
    /// There is no such sample yet.
    pub(super) fn need_of_all(
        &mut self,
        topology: &Topology,
        lag: &Lag,
        since: Instant,
    ) -> Result<Option<Lsn>, Pending> {
        // What another term's primary told says nothing of what this one's has acknowledged.
        let known = self.all.filter(|(sampled, position)| *sampled >= since && position.term == topology.term);
        let of_all = match known {
            Some((_, position)) => position.lsn,
            None if self.acknowledged.is_undecided(topology, lag) => return Err(Pending { since }),
            None => {
                let sample = lag.primary_of(topology).filter(|s| s.sent_at >= since).ok_or(Pending { since })?;
                let position = Token { term: topology.term, timeline: sample.timeline, lsn: sample.insert_lsn };
                self.all = Some((sample.sent_at, position));
                sample.insert_lsn
            }
        };
        Ok(self.need_of_reads(topology, lag)?.max(Some(of_all)))
    }

    /// A position that covers all that the session was answered; `None` when it has neither written nor read.
    ///
    /// # Errors
    /// What the primary, or a standby, has answered last is not covered by any sample yet.
    pub fn token(&mut self, topology: &Topology, lag: &Lag) -> Result<Option<Token>, Pending> {
        let open = self.bound.filter(|b| b.covered.is_none());
        if let Some(bound) = open {
            let chasing = bound.chasing;
            self.need(topology, lag)?;
            self.bound.iter_mut().for_each(|b| b.chasing = chasing);
        }
        // Of an older term it stays what it was: only so it can be seen whether that is lost.
        let covered = self.bound.and_then(|b| b.covered);
        self.seen.cover(topology, lag);
        // What a standby has shown goes further than the sample by which it was chosen.
        let seen = self.seen.position().map_err(|since| Pending { since })?;
        Ok([covered, self.read, seen].into_iter().flatten().reduce(|a, b| a.later(Some(b))))
    }

    /// Does `node` show all that the session has read at standbys, and has the primary answered nothing since that no position
    /// covers?
    pub fn shown_by(&self, node: &NodeId) -> bool {
        self.seen.is_shown_by(node) && self.bound.is_none_or(|b| b.covered.is_some())
    }

    /// The standby of which that is so.
    pub fn shown_at(&self) -> Option<NodeId> {
        let covered = self.bound.is_none_or(|b| b.covered.is_some());
        self.seen.shown_at().filter(|_| covered).cloned()
    }

    /// The standby that shows all of that was asked at `asked`, and has replayed no more than this.
    pub fn replayed(&mut self, asked: Instant, lsn: Lsn, topology: &Topology, lag: &Lag) {
        let term = lag.shown(topology);
        let position = Token { term, timeline: timeline(term, topology, lag), lsn };
        self.seen.cover_by(asked, position);
    }
}

/// What a position of a term comes to in the present one.
fn carried(position: Token, topology: &Topology, lag: &Lag) -> Result<Lsn, Pending> {
    if let Some(lsn) = position.carried(topology) {
        return Ok(lsn);
    }
    // Any position of the new primary lies past the fork.
    lag.primary_of(topology).map(|s| s.insert_lsn).ok_or(Pending { since: Instant::from_millis(0) })
}

/// The timeline that the term's primary writes.
fn timeline(term: Term, topology: &Topology, lag: &Lag) -> TimelineId {
    let of_term = || TimelineId(u32::try_from(term.0).unwrap_or(u32::MAX));
    lag.primary_of(topology).filter(|_| topology.term == term).map_or_else(of_term, |sample| sample.timeline)
}
