//! Agents: the commands freeze, recover and promote, and what they do by themselves.

use crate::scope::{Protection, Scope};
use crate::state::{FENCED, Left, Server, State};
use crate::wal::{QUARANTINED, Wal};

/// `agent/freeze.rs`: promise, cut off, say where the WAL ends. What was a primary is stopped and has no end to tell.
pub(crate) fn freeze<const M: usize>(scope: &Scope, s: &mut State<M>, i: usize, term: u8, heard: bool) {
    s.nodes[i].promise = term;
    if bound(scope, s, i, term) {
        return;
    }
    let n = &mut s.nodes[i];
    match n.server {
        Server::Standby | Server::Orphan(_) => {
            n.frozen_for = term;
            if !scope.lacks(Protection::ReceiverKill) {
                (n.upstream, n.source, n.slot) = (0, 0, false);
            }
            answer(scope, s, i, heard);
        }
        Server::Primary(_) => {
            halt(s, i, true);
            lose(s, heard || s.etcd.term != term);
        }
        Server::Promoting(_) => {
            halt(s, i, false);
            lose(s, heard || s.etcd.term != term);
        }
        Server::Down { .. } if n.floor.is_known() => answer(scope, s, i, heard),
        Server::Down { .. } => lose(s, heard || s.etcd.term != term),
    }
}

/// `agent/commands.rs`: start without upstream, then as freeze.
pub(crate) fn recover<const M: usize>(scope: &Scope, s: &mut State<M>, i: usize, heard: bool) {
    let term = s.etcd.term;
    s.nodes[i].promise = term;
    if bound(scope, s, i, term) {
        return;
    }
    let n = &mut s.nodes[i];
    (n.frozen_for, n.server) = (term, Server::Standby);
    answer(scope, s, i, heard);
}

/// `agent/countersign.rs` `outlast_signature`: promised at once, done when what was signed is over.
fn bound<const M: usize>(scope: &Scope, s: &State<M>, i: usize, term: u8) -> bool {
    s.nodes[i].signed && s.signed_for() < term && !scope.lacks(Protection::SignatureBinds)
}

/// `agent/countersign.rs`: may the primary whose lease is its fence have this node sign for it?
pub(crate) fn may_sign<const M: usize>(s: &State<M>, i: usize) -> bool {
    let (term, n) = (s.signed_for(), &s.nodes[i]);
    let serves = s.running(term).is_some_and(|p| p != i && s.nodes[p].names != FENCED);
    serves && !s.etcd.policy.protects() && !n.signed && n.promise <= term && !matches!(n.server, Server::Primary(_))
}

fn answer<const M: usize>(scope: &Scope, s: &mut State<M>, i: usize, heard: bool) {
    let n = &s.nodes[i];
    let counts = !n.floor.is_known() || scope.lacks(Protection::Quarantine);
    let asked = n.promise == s.etcd.term && s.etcd.phase == crate::state::Phase::Recruiting;
    if asked && heard {
        s.recruits[i] = if counts { n.wal.end(scope.numbering()) } else { QUARANTINED };
    }
    lose(s, heard || !asked);
}

/// `agent/catch_up.rs`: receive from another, until the next freeze.
pub(crate) fn may_catch_up<const M: usize>(scope: &Scope, s: &State<M>) -> bool {
    let (term, node, from) = s.brings;
    let Some(n) = s.nodes.get(usize::from(node)).filter(|_| term != 0) else { return false };
    let frozen = n.frozen_for == term && n.promise == term || scope.lacks(Protection::CatchUpFrozen);
    n.server == Server::Standby && frozen && n.source != from + 1
}

pub(crate) fn catch_up<const M: usize>(s: &mut State<M>) {
    let (_, node, from) = s.brings;
    let n = &mut s.nodes[usize::from(node)];
    (n.source, n.upstream, n.slot) = (from + 1, 0, false);
}

fn lose<const M: usize>(s: &mut State<M>, heard: bool) {
    s.lost += u8::from(!heard);
}

pub(crate) fn may_promote<const M: usize>(scope: &Scope, s: &State<M>, i: usize, term: u8) -> bool {
    let n = &s.nodes[i];
    s.primary_of(term) == Some(i)
        && n.server == Server::Standby
        && n.promise <= term
        && n.frozen_for == term
        && n.wal.end(scope.numbering()) == s.base[usize::from(term)]
}

/// `agent/promote.rs`, as far as the call of `pg_promote`.
pub(crate) fn promote<const M: usize>(s: &mut State<M>, i: usize, term: u8) {
    let n = &mut s.nodes[i];
    (n.promise, n.frozen_for, n.upstream, n.source, n.slot) = (term, 0, 0, 0, false);
    n.server = Server::Promoting(term);
    let (voters, k) = s.round.target();
    (n.names, n.of) = (if s.round.protects() { k } else { 0 }, voters);
}

/// `fsm/agent.rs`, `agent/rejoin.rs`: by the record, which may be outdated, or by an order that may be late.
pub(crate) fn may_follow<const M: usize>(s: &State<M>, i: usize, term: u8) -> bool {
    let n = &s.nodes[i];
    let able = matches!(n.server, Server::Standby | Server::Down { was_primary: true });
    let other = s.running(term).is_some_and(|p| p != i);
    able && other && n.promise <= term && n.upstream < term
}

/// Stream, if this node's WAL lies on the primary's line; otherwise its tail is examined and it is rewound, in the worst
/// case to the beginning, and counts for nothing until it has what the primary has now.
pub(crate) fn follow<const M: usize>(scope: &Scope, s: &mut State<M>, i: usize, term: u8) {
    let Some(primary) = s.running(term) else { return };
    let (upstream, slot) = (s.nodes[primary].wal, crate::postgres::wants_slots(scope, s));
    let n = &mut s.nodes[i];
    if !upstream.descends(n.wal, scope.numbering()) {
        n.wal = Wal::default();
        n.floor = upstream.end(scope.numbering());
    }
    (n.server, n.upstream, n.source, n.slot) = (Server::Standby, term, 0, slot);
    (n.frozen_for, n.names, n.visible) = (0, 0, 0);
    if !scope.lacks(Protection::FollowPromises) {
        n.promise = term;
    }
}

pub(crate) fn start<const M: usize>(s: &mut State<M>, i: usize) {
    s.nodes[i].server = Server::Standby;
}

/// It sees a newer term.
pub(crate) fn stop<const M: usize>(s: &mut State<M>, i: usize) {
    halt(s, i, true);
}

/// Everything that is not on disk is gone.
pub(crate) fn crash<const M: usize>(scope: &Scope, s: &mut State<M>, i: usize) {
    s.crashes += 1;
    let was_primary = matches!(s.nodes[i].server, Server::Primary(_));
    halt(s, i, was_primary);
    if scope.lacks(Protection::PromiseFsync) {
        s.nodes[i].promise = 0;
    }
}

pub(crate) fn kill_agent<const M: usize>(s: &mut State<M>, i: usize) {
    s.crashes += 1;
    if let Server::Promoting(term) = s.nodes[i].server {
        s.nodes[i].server = Server::Orphan(term);
    }
}

fn halt<const M: usize>(s: &mut State<M>, i: usize, was_primary: bool) {
    let n = &mut s.nodes[i];
    let ended = n.server;
    n.server = Server::Down { was_primary };
    (n.frozen_for, n.upstream, n.source, n.slot) = (0, 0, 0, false);
    (n.names, n.visible) = (0, 0);
    if let Server::Primary(term) = ended {
        // Its walsenders end with it.
        let left = s.nodes.iter_mut().filter(|n| n.left.term == term);
        left.for_each(|n| n.left = Left::default());
    }
}
