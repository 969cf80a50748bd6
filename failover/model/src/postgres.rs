//! PostgreSQL: a primary writes, standbys receive and acknowledge, commits wait, become visible and are acknowledged.
//!
//! Flushing, the standby's answer, the release of a waiting commit and the client's acknowledgement are one step: the
//! later ones can only be late, and a late acknowledgement is of WAL that the standby had when it was frozen. A standby
//! counts as long as its WAL reaches the commit, also when it streams no more; PostgreSQL counts fewer. Where it has left a
//! connection to that primary, connections are counted.

use crate::check::{LATE, TWIN};
use crate::scope::{Protection, Scope};
use crate::state::{FENCED, Left, Server, State};
use crate::wal::{Entry, Position, Wal};

pub(crate) fn noise<const M: usize>(s: &State<M>) -> u8 {
    let count = |wal: Wal| (0..wal.len()).filter(|at| wal.get(*at) == Entry::Noise).count() as u8;
    s.nodes.iter().map(|n| count(n.wal)).max().unwrap_or(0)
}

pub(crate) fn write<const M: usize>(scope: &Scope, s: &mut State<M>, i: usize) {
    s.writes += 1;
    let entry = Entry::Write(s.writes);
    s.nodes[i].wal = s.nodes[i].wal.with(entry);
    if s.nodes[i].server == Server::Primary(s.newest_open()) {
        s.kept |= 1 << s.writes;
    }
    release(scope, s, i);
}

pub(crate) fn write_noise<const M: usize>(s: &mut State<M>, i: usize) {
    s.nodes[i].wal = s.nodes[i].wal.with(Entry::Noise);
}

/// The node that standby `i` receives from, when there is something to receive: the primary that it follows, or another
/// recruit, whatever has become of that.
pub(crate) fn receives<const M: usize>(scope: &Scope, s: &State<M>, i: usize) -> Option<usize> {
    let n = &s.nodes[i];
    let other = (n.source != 0).then(|| usize::from(n.source - 1));
    let other = other.filter(|from| !matches!(s.nodes[*from].server, Server::Down { .. }));
    let from = s.running(n.upstream).filter(|_| !n.is_refused()).or(other).filter(|from| *from != i)?;
    let wal = s.nodes[from].wal;
    (n.wal.len() < wal.len() && wal.descends(n.wal, scope.numbering())).then_some(from)
}

pub(crate) fn stream<const M: usize>(scope: &Scope, s: &mut State<M>, i: usize) {
    let Some(from) = receives(scope, s, i) else { return };
    let own = s.nodes[i].wal;
    s.nodes[i].wal = own.with(s.nodes[from].wal.get(own.len()));
    let end = s.nodes[i].wal.end(scope.numbering());
    let floor = s.nodes[i].floor;
    if end.timeline() >= floor.timeline() && end.lsn() >= floor.lsn() {
        s.nodes[i].floor = Position::default();
    }
    release(scope, s, from);
}

/// `fsm/slots.rs` `wanted`: do agents have their standbys stream through slots?
pub(crate) fn wants_slots<const M: usize>(scope: &Scope, s: &State<M>) -> bool {
    let wanted = s.etcd.policy.quorums().any(|(_, k)| k >= 2);
    wanted && scope.reconnects > 0 && !scope.lacks(Protection::Slots)
}

/// The primary that standby `i` is connected to.
pub(crate) fn connected<const M: usize>(s: &State<M>, i: usize) -> Option<usize> {
    let n = &s.nodes[i];
    s.running(n.upstream).filter(|p| *p != i && n.follows(n.upstream) && !n.is_refused())
}

/// Standby `i` connects anew, as its agent has it by now, and confirms what it has.
pub(crate) fn reconnect<const M: usize>(scope: &Scope, s: &mut State<M>, i: usize, leaves: bool) {
    let Some(p) = connected(s, i) else { return };
    let slot = wants_slots(scope, s);
    let n = &mut s.nodes[i];
    if leaves {
        n.left = Left { term: n.upstream, lsn: n.wal.len(), slot: n.slot };
        s.reconnects += 1;
    }
    n.slot = slot;
    release(scope, s, p);
}

/// `fsm/slots.rs` `not_through`: do `k` of these stream through slots, and is nobody connected without?
pub(crate) fn all_through_slots<const M: usize>(scope: &Scope, s: &State<M>, term: u8, voters: u8, k: u8) -> bool {
    if k < 2 || !wants_slots(scope, s) || scope.lacks(Protection::SlotsFirst) {
        return true;
    }
    let left = |i: usize, slot: bool| s.nodes[i].left.term == term && s.nodes[i].left.slot == slot;
    let there = |i: usize, slot: bool| s.nodes[i].follows(term) && !s.nodes[i].is_refused() && s.nodes[i].slot == slot;
    let by = |slot: bool| (0..M).filter(move |i| left(*i, slot) || there(*i, slot));
    by(true).filter(|i| voters & 1 << i != 0).count() >= usize::from(k) && by(false).count() == 0
}

/// Commits that enough standbys have are acknowledged and become visible.
pub(crate) fn release<const M: usize>(scope: &Scope, s: &mut State<M>, i: usize) {
    let n = s.nodes[i];
    let Server::Primary(term) = n.server else { return };
    let false_name = u8::from(scope.lacks(Protection::UniqueNames));
    let confirmed = |lsn: u8| s.confirmations(i, term, n.of, lsn, scope.numbering()) + false_name;
    let enough = |lsn: &u8| n.names == 0 || confirmed(*lsn) >= n.names;
    let Some(upto) = (n.visible + 1..=n.wal.len()).rev().find(enough).filter(|_| n.names != FENCED) else { return };
    let newly = n.wal.writes(upto) & !n.wal.writes(n.visible);
    s.nodes[i].visible = upto;
    if s.opened & 1 << term == 0 {
        return; // no client is there
    }
    // Knowingly unprotected is not promised, also while commits happen to wait.
    let promised = !(s.etcd.policy.suspended && s.etcd.policy.lowered);
    if n.names > 0 && promised {
        s.acked |= newly & !s.unknown;
        s.shown |= n.wal.writes(upto);
    }
    // Without a proxy that acts on the term, nobody hears of it.
    let heard = s.views & 1 << term != 0;
    if heard && s.newest_open() > term && newly & !s.kept != 0 {
        s.wrong |= LATE;
    }
}

/// The commits of a primary that wait, and whose clients have not been told anything yet.
pub(crate) fn waiting<const M: usize>(s: &State<M>, i: usize) -> u8 {
    let n = &s.nodes[i];
    n.wal.writes(n.wal.len()) & !n.wal.writes(n.visible) & !s.unknown
}

/// A wait is cancelled: PostgreSQL reports success with a warning, the proxy an unknown outcome. Readers of the primary
/// see the commit from here on, although no standby may have it: it is not among what clients could read, see the head
/// of the crate.
pub(crate) fn cancel<const M: usize>(scope: &Scope, s: &mut State<M>, i: usize) {
    let first = waiting(s, i) & waiting(s, i).wrapping_neg();
    s.cancels += 1;
    s.unknown |= first;
    if scope.lacks(Protection::CancelUnknown) {
        s.acked |= first;
    }
}

/// End of recovery: everything replayed is visible, and the term's record is written.
pub(crate) fn promoted<const M: usize>(scope: &Scope, s: &mut State<M>, i: usize) {
    let n = &mut s.nodes[i];
    let (Server::Promoting(term) | Server::Orphan(term)) = n.server else { return };
    n.wal = n.wal.with(Entry::Term(term));
    (n.server, n.visible) = (Server::Primary(term), n.wal.len());
    let number = n.wal.timeline(scope.numbering());
    if s.numbers & 1 << number != 0 {
        s.wrong |= TWIN;
    }
    s.numbers |= 1 << number;
}

/// What must not happen: the same primary in the same term again. Crash recovery releases what waited.
pub(crate) fn restart_in_place<const M: usize>(s: &mut State<M>, i: usize) {
    let term = s.etcd.term;
    let n = &mut s.nodes[i];
    let (voters, k) = s.etcd.policy.target();
    (n.server, n.visible, n.names, n.of) = (Server::Primary(term), n.wal.len(), k, voters);
    s.shown |= n.wal.writes(n.visible);
}
