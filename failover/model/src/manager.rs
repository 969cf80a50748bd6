//! Managers: T1, T2, T3. Which of them does a step makes no difference: a term is one manager's, by its transaction.

use crate::check::{LOST, UNREAD};
use crate::scope::{Protection, Scope};
use crate::state::{Backup, Limbo, NOBODY, Phase, State};
use crate::wal::{Entry, Position, QUARANTINED};

/// `fsm/begin.rs`. Any suspicion will do: safety must not rest on who is thought dead.
pub(crate) fn may_begin<const M: usize>(s: &State<M>) -> bool {
    s.etcd.policy.protects() || !s.etcd.leased
}

/// `planner.rs` `next_term`. That somebody knows a higher term than etcd is only so once it was restored; then whoever knows
/// is heard.
pub(crate) fn next_term<const M: usize>(scope: &Scope, s: &State<M>) -> u8 {
    1 + if scope.lacks(Protection::AboveThePromised) { s.etcd.term } else { s.known_term() }
}

/// etcd's members lose what they hold and hold the copy. What was under way there comes to nothing.
pub(crate) fn restore<const M: usize>(s: &mut State<M>) {
    let Backup::Taken(etcd) = std::mem::replace(&mut s.backup, Backup::Restored) else { return };
    (s.etcd, s.limbo, s.relaxes) = (etcd, Limbo::Empty, 0);
    (s.recruits, s.left) = ([Position::default(); M], [Position::default(); M]);
}

pub(crate) fn begin<const M: usize>(scope: &Scope, s: &mut State<M>, heard: bool) {
    let (term, phase) = (s.etcd.term, s.etcd.phase);
    if heard {
        let policy = s.etcd.policy;
        begin_with(scope, s, policy, phase == Phase::Active);
    } else {
        s.lost += 1;
        s.limbo = Limbo::Begin { term, phase, epoch: s.etcd.policy.epoch };
    }
}

fn begin_with<const M: usize>(scope: &Scope, s: &mut State<M>, policy: crate::state::Policy, opened: bool) {
    s.etcd.prev = if opened { s.etcd.term } else { s.etcd.prev };
    s.etcd.history_lost = s.known_term() > s.etcd.term || s.etcd.history_lost && !opened;
    s.etcd.chosen_before = match s.etcd.phase {
        _ if opened || s.known_term() > s.etcd.term => NOBODY,
        Phase::Recruiting => s.etcd.chosen_before,
        Phase::Promoting | Phase::Opening | Phase::Active => s.chosen[usize::from(s.etcd.term)],
    };
    s.etcd.term = next_term(scope, s);
    (s.etcd.phase, s.etcd.leased, s.round) = (Phase::Recruiting, false, policy);
    (s.recruits, s.left) = ([Position::default(); M], [Position::default(); M]);
    s.chosen[usize::from(s.etcd.term)] = NOBODY;
}

/// What was read may be old: the policy before its last change, or the term before it was opened.
pub(crate) fn begin_outdated<const M: usize>(scope: &Scope, s: &mut State<M>) {
    let mut policy = s.etcd.policy;
    let mut opened = s.etcd.phase == Phase::Active;
    if scope.lacks(Protection::BeginPolicyCompare) {
        policy.suspended = false;
    } else {
        opened = opened && s.etcd.term == 1;
    }
    begin_with(scope, s, policy, opened);
}

/// `fsm/sync_set.rs`, for both rules of a change of k.
fn sufficient<const M: usize>(scope: &Scope, s: &State<M>, recruits: &[Position; M]) -> bool {
    let prev = s.primary_of(s.etcd.prev);
    let known = |i: &usize| recruits[*i].is_known();
    if s.etcd.history_lost && !scope.lacks(Protection::AnyPrimary) {
        // `sufficient_for_any`; without a quorum all of them.
        let there = |voters: u8| (0..M).filter(|i| voters & 1 << *i != 0 && known(i)).count();
        let most = |(voters, k): (u8, u8)| there(voters) + usize::from(k) >= voters.count_ones() as usize;
        return if s.round.protects() {
            s.round.quorums().all(most)
        } else {
            there(s.round.voters) == s.round.voters.count_ones() as usize
        };
    }
    // One in quarantine makes up no number there: see `enough_beside`.
    if prev.is_some_and(|p| recruits[p] > QUARANTINED) {
        return true;
    }
    let others = (0..M).filter(known).filter(|i| Some(*i) != prev).count();
    let less = usize::from(scope.lacks(Protection::Quorum));
    let quorum = |(voters, k): (u8, u8)| {
        let of = |i: &usize| voters & 1 << *i != 0;
        let standbys = || (0..M).filter(of).filter(|i| Some(*i) != prev);
        standbys().filter(known).count() >= standbys().count() + 1 - usize::from(k) - less
    };
    let complete = s.round.complete.is_known() && recruits.iter().any(|end| *end >= s.round.complete);
    match s.round {
        crate::state::Policy { suspended: true, lowered: true, voters, k, .. } => quorum((voters, k)) || complete,
        crate::state::Policy { suspended: true, .. } => false,
        crate::state::Policy { k: 0, .. } => others > 0,
        round => round.quorums().all(quorum),
    }
}

/// `fsm/recruit.rs` `beside`: who is quarantined counts where somebody is who was chosen since a term was open.
fn beside<const M: usize>(scope: &Scope, s: &State<M>, mut recruits: [Position; M]) -> [Position; M] {
    let there = recruits.get(usize::from(s.etcd.chosen_before)).is_some_and(|end| *end > QUARANTINED);
    if !there && !scope.lacks(Protection::ChosenThere) {
        recruits.iter_mut().filter(|end| **end == QUARANTINED).for_each(|end| *end = Position::default());
    }
    recruits
}

/// Can somebody be chosen only because who is quarantined counts?
pub(crate) fn decided_before<const M: usize>(scope: &Scope, s: &State<M>) -> bool {
    let none = State { etcd: crate::state::Etcd { chosen_before: NOBODY, ..s.etcd }, ..*s };
    s.etcd.phase == Phase::Recruiting
        && !choices(scope, s, &s.recruits).is_empty()
        && choices(scope, &none, &s.recruits).is_empty()
}

/// `fsm/candidate.rs`: the furthest; of several any.
pub fn choices<const M: usize>(scope: &Scope, s: &State<M>, recruits: &[Position; M]) -> Vec<u8> {
    // Who does not vote does not count.
    let counted = std::array::from_fn(|i| if s.round.counts(i) { recruits[i] } else { Position::default() });
    let recruits = beside(scope, s, counted);
    let recruits: &[Position; M] = &recruits;
    if !sufficient(scope, s, recruits) {
        return Vec::new();
    }
    let furthest = recruits.iter().max().copied().unwrap_or_default();
    (0..M).filter(|i| recruits[*i] == furthest).map(|i| i as u8).collect()
}

/// `fsm/adopt.rs`: a new leader goes on with the round and asks everybody again. The one before it may act on, with what
/// it was told.
pub(crate) fn take_over<const M: usize>(s: &mut State<M>) {
    s.leads += 1;
    s.left = std::mem::replace(&mut s.recruits, [Position::default(); M]);
}

/// The manager that was left behind makes its choice.
pub(crate) fn choices_of_the_left<const M: usize>(scope: &Scope, s: &State<M>) -> Vec<u8> {
    let unchanged = s.etcd.phase == Phase::Recruiting || scope.lacks(Protection::ChoiceCompare);
    let unchanged = unchanged && policy_is_the_round_s(scope, s);
    let mut chosen = choices(scope, s, &s.left);
    chosen.retain(|_| unchanged);
    chosen
}

pub(crate) fn choose_left<const M: usize>(s: &mut State<M>, node: u8) {
    let base = s.left[usize::from(node)];
    chosen(s, node, base);
    s.left = [Position::default(); M];
}

/// `fsm/catch_up.rs`: whom a recruit that lacks something may be told to receive from; once in a term. `heard` or not is
/// the same: the order may come late, again, or never.
pub(crate) fn may_bring<const M: usize>(scope: &Scope, s: &State<M>, node: u8, from: u8) -> bool {
    let (to, source) = (s.recruits[usize::from(node)], s.recruits[usize::from(from)]);
    if s.brings.0 == s.etcd.term || !to.is_known() || node == from {
        return false;
    }
    if scope.lacks(Protection::CatchUpRecruit) && s.primary_of(s.etcd.prev) == Some(usize::from(from)) {
        return true;
    }
    choices(scope, s, &s.recruits).contains(&from) && to.timeline() == source.timeline() && to < source
}

/// What T2 compares besides the term's record.
fn policy_is_the_round_s<const M: usize>(scope: &Scope, s: &State<M>) -> bool {
    s.round == s.etcd.policy || scope.lacks(Protection::ChoicePolicyCompare)
}

/// `fsm/recruit.rs`: a manager whose T2 is not made, because the policy is another, goes by that from then on.
pub(crate) fn choose<const M: usize>(scope: &Scope, s: &mut State<M>, node: u8, heard: bool) {
    if !policy_is_the_round_s(scope, s) {
        s.round = s.etcd.policy;
        return;
    }
    let base = s.recruits[usize::from(node)];
    if heard {
        chosen(s, node, base);
    } else {
        s.lost += 1;
        s.limbo = Limbo::Choose { term: s.etcd.term, node, base };
    }
}

fn chosen<const M: usize>(s: &mut State<M>, node: u8, base: Position) {
    let term = usize::from(s.etcd.term);
    (s.chosen[term], s.base[term], s.etcd.phase) = (node, base, Phase::Promoting);
    s.etcd.chosen_before = NOBODY;
    s.recruits = [Position::default(); M];
}

/// `fsm/opening.rs` and `agent/lease.rs`: the record is on k standbys, as their own agents say.
pub(crate) fn may_open<const M: usize>(scope: &Scope, s: &State<M>) -> bool {
    let term = s.etcd.term;
    let Some(p) = s.running(term).filter(|_| s.etcd.phase == Phase::Opening) else { return false };
    let wal = s.nodes[p].wal;
    let record = (0..wal.len()).find(|at| wal.get(*at) == Entry::Term(term)).map_or(0, |at| at + 1);
    if !s.round.protects() {
        // Every proxy has seen the term, or its view has run out.
        // One that the old primary has vouched for is registered nowhere.
        return s.views & !s.vouched & ((1 << term) - 1) == 0 || scope.lacks(Protection::ViewWait);
    }
    let there = |(voters, k): (u8, u8)| s.holders(p, voters, wal, record, scope.numbering()) >= k;
    s.round.quorums().all(there) || scope.lacks(Protection::RecordWait)
}

pub(crate) fn open<const M: usize>(s: &mut State<M>, heard: bool) {
    if heard {
        opened(s);
    } else {
        s.lost += 1;
        s.limbo = Limbo::Open { term: s.etcd.term };
    }
}

pub(crate) fn opened<const M: usize>(s: &mut State<M>) {
    let term = s.etcd.term;
    let Some(p) = s.primary_of(term) else { return };
    let wal = s.nodes[p].wal;
    (s.etcd.phase, s.etcd.leased) = (Phase::Active, true);
    s.opened |= 1 << term;
    s.views |= 1 << term;
    s.kept = wal.writes(wal.len());
    s.wrong |= if s.acked & !s.kept != 0 { LOST } else { 0 };
    s.wrong |= if s.shown & !s.kept != 0 { UNREAD } else { 0 };
    if s.round.protects() {
        s.shown |= wal.writes(s.nodes[p].visible);
    }
}

/// The transaction passes its guards, at any later time.
pub(crate) fn made_late<const M: usize>(scope: &Scope, s: &mut State<M>) {
    match std::mem::replace(&mut s.limbo, Limbo::Empty) {
        Limbo::Empty => {}
        Limbo::Begin { .. } => begin(scope, s, true),
        Limbo::Choose { node, base, .. } => chosen(s, node, base),
        Limbo::Open { .. } => opened(s),
        Limbo::Change { what, term, .. } => crate::etcd::perform_of(scope, s, what.step(), term),
    }
}

/// A transaction whose guards will never hold again is as good as none.
pub(crate) fn forget_the_impossible<const M: usize>(scope: &Scope, s: &mut State<M>) {
    if s.etcd.phase != Phase::Recruiting && !scope.lacks(Protection::ChoiceCompare) {
        s.left = [Position::default(); M];
    }
    let possible = match s.limbo {
        Limbo::Empty => true,
        Limbo::Begin { term, phase, epoch } => (term, phase, epoch) == (s.etcd.term, s.etcd.phase, s.etcd.policy.epoch),
        Limbo::Choose { term, .. } => {
            (term, Phase::Recruiting) == (s.etcd.term, s.etcd.phase) && policy_is_the_round_s(scope, s)
        }
        Limbo::Open { term } => (term, Phase::Opening) == (s.etcd.term, s.etcd.phase),
        Limbo::Change { .. } if scope.lacks(Protection::ChangeCompare) => true,
        Limbo::Change { epoch, .. } if scope.lacks(Protection::ChangeTermCompare) => epoch == s.etcd.policy.epoch,
        Limbo::Change { term, phase, epoch, .. } => {
            (term, phase, epoch) == (s.etcd.term, s.etcd.phase, s.etcd.policy.epoch)
        }
    };
    if !possible {
        s.limbo = Limbo::Empty;
    }
}
