//! Changes of the policy: T5 and what the primary's agent does around it.

use crate::postgres::{all_through_slots, release};
use crate::scope::{Change, Protection, Scope};
use crate::state::{FENCED, Phase, Server, State};
use crate::step::Step;
use crate::wal::Position;

/// The primary of the newest term, if it is open and holds its lease: only it changes the policy.
fn primary<const M: usize>(s: &State<M>) -> Option<usize> {
    s.running(s.etcd.term).filter(|_| s.etcd.phase == Phase::Active && s.etcd.leased)
}

/// Most changes of the policy.
const EPOCHS: u8 = 3;
/// The same where voters change, twice.
const VOTERS_EPOCHS: u8 = 5;
/// The same in available mode, where a suspension takes one more.
const AVAILABLE_EPOCHS: u8 = 4;
/// And where voters change twice under it.
const REPLACED_EPOCHS: u8 = 5;

pub(crate) fn possible<const M: usize>(scope: &Scope, s: &State<M>, step: Step) -> bool {
    let (policy, term) = (s.etcd.policy, s.etcd.term);
    let names = primary(s).map(|p| s.nodes[p].names);
    let most = match scope.change {
        Change::Available => AVAILABLE_EPOCHS,
        Change::Replaced => REPLACED_EPOCHS,
        Change::Voters(_) => VOTERS_EPOCHS,
        Change::None | Change::Suspension | Change::Copies(_) => EPOCHS,
    };
    let room = policy.epoch < most;
    match step {
        Step::Suspend => room && policy.protects() && names == Some(policy.k),
        Step::Relax => s.relaxes == term && policy.suspended && names == Some(policy.k),
        Step::Note => {
            room && policy.lowered
                && policy.suspended
                && !policy.complete.is_known()
                && s.relaxed.is_known()
                && names.is_some()
        }
        Step::OpenAlone => room && s.etcd.phase == Phase::Opening && s.round.protects() && s.running(term).is_some(),
        Step::Arm => {
            let others = |p: usize| s.nodes[p].names != FENCED && (s.nodes[p].of != policy.voters || s.armed == 0);
            let waits =
                scope.change == Change::Replaced && policy.complete.is_known() && primary(s).is_some_and(others);
            room && policy.suspended && (names == Some(0) || waits) && may_rely_on(scope, s)
        }
        Step::Replace(node) => {
            let lets_through = policy.suspended && policy.lowered && policy.complete.is_known();
            room && lets_through && may_replace(scope, s, usize::from(node))
        }
        Step::Rearm | Step::ChangedCopies => room && on_quorum(scope, s, step),
        Step::ChangeCopies => room && policy.epoch == 1 && primary(s).is_some(),
        Step::ChangeVoters(node) => room && policy.next.is_none() && may_change_voters(s, usize::from(node)),
        Step::SetCopies => {
            let (voters, to) = (policy.target().0, wanted(scope, s));
            let changing = policy.next.is_some() || scope.lacks(Protection::JointRule) && policy.epoch == 2;
            let other = |p: usize| (s.nodes[p].names, s.nodes[p].of) != (to, voters) || s.armed == 0;
            changing && primary(s).is_some_and(other) && may_rely_on(scope, s)
        }
        _ => true,
    }
}

/// `agent/slots.rs` `all_through_slots`.
fn may_rely_on<const M: usize>(scope: &Scope, s: &State<M>) -> bool {
    all_through_slots(scope, s, s.etcd.term, s.etcd.policy.target().0, wanted(scope, s))
}

/// `fsm/policy.rs` `policy_obstacles`: who is to vote follows and is whole, the primary goes on voting.
fn may_change_voters<const M: usize>(s: &State<M>, node: usize) -> bool {
    let n = &s.nodes[node];
    let joins = s.etcd.policy.voters & 1 << node == 0;
    let ready = n.server == Server::Standby && n.upstream == s.etcd.term && !n.floor.is_known();
    // First one more, then one less, and no further.
    let turn = joins == (s.etcd.policy.epoch == 1);
    turn && primary(s).is_some_and(|p| p != node) && (ready || !joins)
}

/// `fsm/policy.rs` `policy_obstacles`, `owed_to_the_voters`.
fn may_replace<const M: usize>(scope: &Scope, s: &State<M>, node: usize) -> bool {
    let Some(p) = primary(s).filter(|p| *p != node) else { return false };
    let (policy, term, numbering) = (s.etcd.policy, s.etcd.term, scope.numbering());
    let voters = policy.voters ^ 1 << node;
    if voters & 1 << node != 0 {
        return s.nodes[node].follows(term) && !s.nodes[node].floor.is_known();
    }
    let line = s.nodes[p].wal.end(numbering).timeline();
    let has = |i: usize| {
        let end = s.nodes[i].wal.end(numbering);
        s.nodes[i].follows(term) && end.timeline() == line && end.lsn() >= policy.complete.lsn()
    };
    let stay = (0..M).filter(|i| *i != p && voters & 1 << *i != 0);
    voters.count_ones() > u32::from(policy.k) && (scope.lacks(Protection::Owed) || stay.into_iter().all(has))
}

/// The k that a change is to lead to.
fn wanted<const M: usize>(scope: &Scope, s: &State<M>) -> u8 {
    match scope.change {
        Change::Copies(k) => k,
        Change::Voters(_) => s.etcd.policy.target().1,
        Change::None | Change::Suspension | Change::Available | Change::Replaced => s.etcd.policy.k,
    }
}

/// Commits wait for what the new record will say, and k standbys have everything from before that.
fn on_quorum<const M: usize>(scope: &Scope, s: &State<M>, step: Step) -> bool {
    let policy = s.etcd.policy;
    let under_way = if step == Step::Rearm { policy.suspended } else { policy.next.is_some() };
    let k = wanted(scope, s);
    primary(s).is_some_and(|p| {
        let n = &s.nodes[p];
        let (voters, _) = policy.target();
        let there = s.holders(p, voters, n.wal, s.armed.saturating_sub(1), scope.numbering()) >= k;
        under_way && s.armed > 0 && (n.names, n.of) == (k, voters) && there
    })
}

pub(crate) fn perform<const M: usize>(scope: &Scope, s: &mut State<M>, step: Step) {
    perform_of(scope, s, step, s.etcd.term);
}

/// The same, decided on in that term.
pub(crate) fn perform_of<const M: usize>(scope: &Scope, s: &mut State<M>, step: Step, term: u8) {
    let Some(p) = s.primary_of(term) else { return };
    let k = wanted(scope, s);
    match step {
        Step::Suspend => {
            (s.etcd.policy.suspended, s.relaxes) = (true, term);
            s.etcd.policy.epoch += 1;
            s.etcd.policy.lowered = matches!(scope.change, Change::Available | Change::Replaced);
            s.relaxed = Position::default();
        }
        Step::Relax => {
            (s.nodes[p].names, s.relaxes) = (0, 0);
            s.relaxed = s.nodes[p].wal.end(scope.numbering());
            release(scope, s, p);
        }
        Step::Note => {
            (s.etcd.policy.complete, s.relaxed) = (s.relaxed, Position::default());
            s.etcd.policy.epoch += 1;
        }
        Step::OpenAlone => {
            // Nothing that it has is promised yet but what was before, and it has that: its recruits sufficed.
            s.etcd.policy.complete = s.nodes[p].wal.end(scope.numbering());
            (s.etcd.policy.suspended, s.etcd.policy.lowered) = (true, true);
            s.etcd.policy.epoch += 1;
            s.round = s.etcd.policy;
            s.nodes[p].names = 0;
            crate::manager::opened(s);
            release(scope, s, p);
        }
        Step::Arm | Step::SetCopies => {
            (s.nodes[p].names, s.nodes[p].of) = (k, s.etcd.policy.target().0);
            s.armed = s.nodes[p].wal.len() + 1;
            release(scope, s, p);
        }
        Step::Rearm => {
            (s.etcd.policy.suspended, s.etcd.policy.lowered) = (false, false);
            s.etcd.policy.complete = Position::default();
            s.etcd.policy.epoch += 1;
            // Nothing waits any more where the transaction came later than it may.
            s.shown |= s.nodes[p].wal.writes(s.armed.saturating_sub(1));
            s.armed = 0;
        }
        Step::ChangeVoters(node) => change_voters(scope, s, node),
        Step::Replace(node) => {
            s.etcd.policy.voters ^= 1 << node;
            s.etcd.policy.epoch += 1;
            // What was proved was proved of others.
            s.armed = 0;
        }
        // Its own clock has not ended the lease: the others have signed.
        Step::KeyEnds => s.etcd.leased = false,
        Step::SignaturesEnd { fenced } => {
            s.crashes += u8::from(!fenced && !s.etcd.leased);
            if let Some(p) = s.running(s.signed_for()).filter(|_| fenced && !s.etcd.leased) {
                s.nodes[p].names = FENCED;
            }
            s.nodes.iter_mut().for_each(|n| n.signed = false);
            (s.views, s.vouched) = (s.views & !s.vouched, 0);
        }
        Step::LeaseEnds { fenced } => {
            s.etcd.leased = false;
            (s.views, s.vouched) = (s.views & !s.vouched, 0);
            s.crashes += u8::from(!fenced);
            // Also one whose commits wait again already, while the record does not say so yet.
            if fenced {
                s.nodes[p].names = FENCED;
            }
        }
        Step::ChangeCopies => {
            s.etcd.policy.epoch += 1;
            if scope.lacks(Protection::JointRule) {
                s.etcd.policy.k = k;
            } else {
                (s.etcd.policy.next, s.etcd.policy.next_voters) = (Some(k), s.etcd.policy.voters);
            }
        }
        Step::ChangedCopies => {
            let (voters, _) = s.etcd.policy.target();
            (s.etcd.policy.voters, s.etcd.policy.next_voters) = (voters, 0);
            (s.etcd.policy.k, s.etcd.policy.next, s.armed) = (k, None, 0);
            s.etcd.policy.epoch += 1;
        }
        _ => {}
    }
}

/// One votes that did not, or does no more.
fn change_voters<const M: usize>(scope: &Scope, s: &mut State<M>, node: u8) {
    let Change::Voters(more) = scope.change else { return };
    let policy = &mut s.etcd.policy;
    policy.epoch += 1;
    let (k, voters) = (if policy.epoch == 2 { more } else { scope.k }, policy.voters ^ 1 << node);
    if scope.lacks(Protection::JointRule) {
        (policy.k, policy.voters) = (k, voters);
    } else {
        (policy.next, policy.next_voters) = (Some(k), voters);
    }
}
