//! What can happen next, and what it does.

use crate::scope::{Change, Protection, Scope};
use crate::state::{Backup, FENCED, Left, Limbo, Phase, Server, State};
use crate::wal::LONGEST;
use crate::{agent, etcd, manager, postgres};

/// Something happens. Nodes are named by number; `heard`: the sender got the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "fields are nodes, terms and `heard`")]
pub enum Step {
    /// A client's commit reaches a primary.
    Write(u8),
    /// A primary writes a record that nobody waits for.
    Noise(u8),
    /// A standby receives, flushes and acknowledges one record.
    Stream(u8),
    /// A standby's WAL receiver connects anew; `leaves`: its old connection is not seen to have ended, and counts on.
    Reconnect { node: u8, leaves: bool },
    /// A connection that was left has ended.
    Ended(u8),
    /// A host crashes.
    Crash(u8),
    /// An agent is killed and starts again; PostgreSQL lives.
    KillAgent(u8),
    /// T1.
    Begin { heard: bool },
    /// T1 decided on records read before their last change, which it does not compare.
    BeginOutdated,
    /// `/agent/freeze`.
    Freeze { node: u8, term: u8, heard: bool },
    /// `/agent/recover`.
    Recover { node: u8, heard: bool },
    /// T2.
    Choose { node: u8, heard: bool },
    /// Another manager leads and goes on with the round; the one before it does not know.
    TakeOver,
    /// T2 by the manager that was left behind.
    ChooseLeft { node: u8 },
    /// A recruit is told to receive what another has.
    Bring { node: u8, from: u8 },
    /// It obeys, now or later or again.
    CatchUp,
    /// The chosen node's promotion is recorded.
    Record,
    /// T3.
    Open { heard: bool },
    /// A transaction whose outcome nobody heard is made after all.
    MadeLate,
    /// An agent starts its standby without upstream.
    Start(u8),
    /// `/agent/promote`, up to `pg_promote`.
    Promote { node: u8, term: u8 },
    /// PostgreSQL ends recovery.
    Promoted(u8),
    /// An agent compares histories with a term's primary, and follows it or rewinds to it first.
    Follow { node: u8, term: u8 },
    /// An agent sees a newer term and stops its primary.
    StopSuperseded(u8),
    /// A primary that stopped is started again in its own term.
    RestartInPlace(u8),
    /// The primary's agent records that commits will not be protected.
    Suspend,
    /// It lets them through.
    Relax,
    /// The record says from which position on.
    Note,
    /// T3 although nobody follows, which it records: commits are not protected.
    OpenAlone,
    /// It makes them wait again, and has proof of that.
    Arm,
    /// The record says that they are protected.
    Rearm,
    /// The primary's lease ends; its agent has stopped acknowledging before, unless it was paused.
    LeaseEnds { fenced: bool },
    /// No proxy acts on this term any more.
    ProxiesLeave(u8),
    /// A change of k is recorded.
    ChangeCopies,
    /// A change of voters, and of k with it, is recorded: of this node.
    ChangeVoters(u8),
    /// One votes that did not, or does no more, at once, as commits are let through.
    Replace(u8),
    /// A commit's wait is cancelled.
    Cancel(u8),
    /// An agent signs for the primary of the newest open term, which etcd does not answer.
    Sign(u8),
    /// The primary vouches for views of its term.
    Vouch,
    /// etcd ends the primary's key; the signatures are its lease.
    KeyEnds,
    /// The signatures end, and what was vouched for; its agent has stopped acknowledging before, unless it was paused.
    SignaturesEnd { fenced: bool },
    /// Commits wait for the new number, and that is proved.
    SetCopies,
    /// The change ends.
    ChangedCopies,
    /// etcd is copied.
    BackUp,
    /// And restored from that.
    Restore,
    /// T5 whose outcome nobody hears: see [`Step::MadeLate`].
    Unheard(Decided),
}

/// What a T5 writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Decided {
    Suspend,
    Note,
    Rearm,
    ChangeCopies,
    ChangeVoters(u8),
    ChangedCopies,
    Replace(u8),
}

impl Decided {
    /// Of a step that is a T5.
    fn of(step: Step) -> Option<Self> {
        Some(match step {
            Step::Suspend => Self::Suspend,
            Step::Note => Self::Note,
            Step::Rearm => Self::Rearm,
            Step::ChangeCopies => Self::ChangeCopies,
            Step::ChangeVoters(node) => Self::ChangeVoters(node),
            Step::ChangedCopies => Self::ChangedCopies,
            Step::Replace(node) => Self::Replace(node),
            _ => return None, // another transaction, or none
        })
    }

    /// The step that makes it.
    pub(crate) fn step(self) -> Step {
        match self {
            Self::Suspend => Step::Suspend,
            Self::Note => Step::Note,
            Self::Rearm => Step::Rearm,
            Self::ChangeCopies => Step::ChangeCopies,
            Self::ChangeVoters(node) => Step::ChangeVoters(node),
            Self::ChangedCopies => Step::ChangedCopies,
            Self::Replace(node) => Step::Replace(node),
        }
    }
}

/// Every step that can happen now. Some change nothing.
pub(crate) fn possible<const M: usize>(scope: &Scope, s: &State<M>, out: &mut Vec<Step>) {
    if s.wrong != 0 {
        return;
    }
    managers(scope, s, out);
    policy(scope, s, out);
    for i in 0..M {
        node(scope, s, i, out);
    }
}

fn managers<const M: usize>(scope: &Scope, s: &State<M>, out: &mut Vec<Step>) {
    let may_lose = s.lost < scope.lost;
    let answers: &[bool] = if may_lose { &[true, false] } else { &[true] };
    if scope.restores {
        match s.backup {
            Backup::None if s.etcd.phase == Phase::Active => out.push(Step::BackUp),
            Backup::Taken(_) => out.push(Step::Restore),
            Backup::None | Backup::Restored => {}
        }
    }
    if manager::next_term(scope, s) <= scope.terms {
        if manager::may_begin(s) {
            out.extend(answers.iter().map(|heard| Step::Begin { heard: *heard }));
        }
        if scope.lacks(Protection::BeginPolicyCompare) || scope.lacks(Protection::TermCompare) {
            out.push(Step::BeginOutdated);
        }
    }
    if s.etcd.phase == Phase::Recruiting {
        for node in manager::choices(scope, s, &s.recruits) {
            out.extend(answers.iter().map(|heard| Step::Choose { node, heard: *heard }));
        }
        if s.leads < scope.leads {
            out.push(Step::TakeOver);
        }
        if scope.catch_up {
            let pairs = (0..M as u8).flat_map(|node| (0..M as u8).map(move |from| (node, from)));
            let may = pairs.filter(|(node, from)| manager::may_bring(scope, s, *node, *from));
            out.extend(may.map(|(node, from)| Step::Bring { node, from }));
        }
    }
    out.extend(manager::choices_of_the_left(scope, s).into_iter().map(|node| Step::ChooseLeft { node }));
    if agent::may_catch_up(scope, s) {
        out.push(Step::CatchUp);
    }
    if s.etcd.phase == Phase::Promoting && s.running(s.etcd.term).is_some() {
        out.push(Step::Record);
    }
    if manager::may_open(scope, s) {
        out.extend(answers.iter().map(|heard| Step::Open { heard: *heard }));
    }
    if s.limbo != Limbo::Empty {
        out.push(Step::MadeLate);
    }
}

fn policy<const M: usize>(scope: &Scope, s: &State<M>, out: &mut Vec<Step>) {
    match scope.change {
        Change::None if scope.k > 0 => return,
        Change::None => {}
        Change::Suspension => out.extend([Step::Suspend, Step::Relax, Step::Arm, Step::Rearm]),
        Change::Available | Change::Replaced => {
            out.extend([Step::Suspend, Step::Relax, Step::Note, Step::OpenAlone, Step::Arm, Step::Rearm]);
            let replaces = scope.change == Change::Replaced;
            out.extend((0..M as u8).filter(|_| replaces).map(Step::Replace));
        }
        Change::Copies(_) => out.extend([Step::ChangeCopies, Step::SetCopies, Step::ChangedCopies]),
        Change::Voters(_) => {
            out.extend([Step::SetCopies, Step::ChangedCopies]);
            out.extend((0..M as u8).map(Step::ChangeVoters));
        }
    }
    out.retain(|step| etcd::possible(scope, s, *step));
    if s.lost < scope.lost {
        let changes: Vec<Decided> = out.iter().filter_map(|step| Decided::of(*step)).collect();
        out.extend(changes.into_iter().map(Step::Unheard));
    }
    if !s.etcd.policy.protects() && s.etcd.leased && s.etcd.phase == Phase::Active {
        if scope.signatures && s.is_signed(scope) {
            out.push(Step::KeyEnds);
        } else {
            out.push(Step::LeaseEnds { fenced: true });
            if s.crashes < scope.crashes {
                out.push(Step::LeaseEnds { fenced: false });
            }
        }
    }
    if scope.signatures {
        signatures(scope, s, out);
        if s.nodes.iter().any(|n| n.signed) {
            out.push(Step::SignaturesEnd { fenced: true });
            if !s.etcd.leased && s.crashes < scope.crashes {
                out.push(Step::SignaturesEnd { fenced: false });
            }
        }
    }
    if matches!(scope.change, Change::Suspension | Change::Available | Change::Replaced) || scope.k == 0 {
        out.extend((1..s.etcd.term).filter(|t| s.views & 1 << t != 0).map(Step::ProxiesLeave));
    }
}

/// While etcd does not answer the primary whose lease is its fence.
fn signatures<const M: usize>(scope: &Scope, s: &State<M>, out: &mut Vec<Step>) {
    let term = s.signed_for();
    let Some(primary) = s.running(term) else { return };
    let leased = s.etcd.leased && s.etcd.term == term;
    // Fenced, it has let its lease run out.
    let holds = (leased || s.is_signed(scope)) && s.nodes[primary].names != FENCED;
    out.extend((0..M).filter(|i| holds && agent::may_sign(s, *i)).map(|i| Step::Sign(i as u8)));
    if s.views & !s.vouched & 1 << term != 0 && holds {
        out.push(Step::Vouch);
    }
}

fn node<const M: usize>(scope: &Scope, s: &State<M>, i: usize, out: &mut Vec<Step>) {
    let (node, n) = (i as u8, &s.nodes[i]);
    let may_lose = s.lost < scope.lost;
    if s.crashes < scope.crashes && !matches!(n.server, Server::Down { .. }) {
        out.push(Step::Crash(node));
        if matches!(n.server, Server::Promoting(_)) {
            out.push(Step::KillAgent(node));
        }
    }
    if postgres::connected(s, i).is_some() {
        if n.left.term == 0 && s.reconnects < scope.reconnects {
            out.push(Step::Reconnect { node, leaves: true });
        }
        if n.slot != postgres::wants_slots(scope, s) {
            out.push(Step::Reconnect { node, leaves: false });
        }
    }
    if n.left.term != 0 {
        out.push(Step::Ended(node));
    }
    // Orders of terms that a restored etcd has forgotten may still be under way.
    let newest = s.known_term();
    for term in n.promise.max(2)..=newest {
        let asks = term == s.etcd.term && s.etcd.phase == Phase::Recruiting;
        out.push(Step::Freeze { node, term, heard: true });
        if asks && may_lose {
            out.push(Step::Freeze { node, term, heard: false });
        }
        if asks && matches!(n.server, Server::Down { .. }) {
            out.push(Step::Recover { node, heard: true });
            if may_lose {
                out.push(Step::Recover { node, heard: false });
            }
        }
        if agent::may_promote(scope, s, i, term) {
            out.push(Step::Promote { node, term });
        }
    }
    for term in 1..=newest {
        if agent::may_follow(s, i, term) {
            out.push(Step::Follow { node, term });
        }
    }
    match n.server {
        Server::Primary(term) => {
            let room = n.wal.len() < LONGEST;
            if room && s.writes < scope.writes && s.opened & s.views & 1 << term != 0 {
                out.push(Step::Write(node));
            }
            if room && postgres::noise(s) < scope.noise {
                out.push(Step::Noise(node));
            }
            if term < s.etcd.term {
                out.push(Step::StopSuperseded(node));
            }
            if s.cancels < scope.cancels && n.names > 0 && postgres::waiting(s, i) != 0 {
                out.push(Step::Cancel(node));
            }
        }
        Server::Standby if postgres::receives(scope, s, i).is_some() => out.push(Step::Stream(node)),
        Server::Standby => {}
        Server::Promoting(_) | Server::Orphan(_) => out.push(Step::Promoted(node)),
        Server::Down { was_primary: false } => out.push(Step::Start(node)),
        Server::Down { was_primary: true } => {
            if scope.lacks(Protection::RestartGate) && s.primary_of(s.etcd.term) == Some(i) {
                out.push(Step::RestartInPlace(node));
            }
        }
    }
}

/// Do it.
pub(crate) fn perform<const M: usize>(scope: &Scope, s: &mut State<M>, step: Step) {
    match step {
        Step::Write(node) => postgres::write(scope, s, usize::from(node)),
        Step::Noise(node) => postgres::write_noise(s, usize::from(node)),
        Step::Stream(node) => postgres::stream(scope, s, usize::from(node)),
        Step::Promoted(node) => postgres::promoted(scope, s, usize::from(node)),
        Step::RestartInPlace(node) => postgres::restart_in_place(s, usize::from(node)),
        Step::Reconnect { node, leaves } => postgres::reconnect(scope, s, usize::from(node), leaves),
        Step::Ended(node) => s.nodes[usize::from(node)].left = Left::default(),
        Step::Crash(node) => agent::crash(scope, s, usize::from(node)),
        Step::KillAgent(node) => agent::kill_agent(s, usize::from(node)),
        Step::Start(node) => agent::start(s, usize::from(node)),
        Step::Freeze { node, term, heard } => agent::freeze(scope, s, usize::from(node), term, heard),
        Step::Recover { node, heard } => agent::recover(scope, s, usize::from(node), heard),
        Step::Promote { node, term } => agent::promote(s, usize::from(node), term),
        Step::Follow { node, term } => agent::follow(scope, s, usize::from(node), term),
        Step::StopSuperseded(node) => agent::stop(s, usize::from(node)),
        Step::Begin { heard } => manager::begin(scope, s, heard),
        Step::BeginOutdated => manager::begin_outdated(scope, s),
        Step::Choose { node, heard } => manager::choose(scope, s, node, heard),
        Step::TakeOver => manager::take_over(s),
        Step::ChooseLeft { node } => manager::choose_left(s, node),
        Step::Bring { node, from } => s.brings = (s.etcd.term, node, from),
        Step::CatchUp => agent::catch_up(s),
        Step::BackUp => s.backup = Backup::Taken(s.etcd),
        Step::Restore => manager::restore(s),
        Step::Record => s.etcd.phase = Phase::Opening,
        Step::Open { heard } => manager::open(s, heard),
        Step::MadeLate => manager::made_late(scope, s),
        Step::ProxiesLeave(term) => s.views &= !(1 << term),
        Step::Cancel(node) => postgres::cancel(scope, s, usize::from(node)),
        Step::Sign(node) => {
            let term = s.signed_for();
            let n = &mut s.nodes[usize::from(node)];
            (n.promise, n.signed) = (term, true);
        }
        Step::Unheard(what) => {
            let (term, phase, epoch) = (s.etcd.term, s.etcd.phase, s.etcd.policy.epoch);
            s.lost += 1;
            s.limbo = Limbo::Change { term, phase, epoch, what };
        }
        Step::Vouch => s.vouched |= 1 << s.signed_for(),
        Step::Suspend
        | Step::Relax
        | Step::Note
        | Step::OpenAlone
        | Step::Arm
        | Step::Rearm
        | Step::LeaseEnds { .. }
        | Step::KeyEnds
        | Step::SignaturesEnd { .. }
        | Step::ChangeCopies
        | Step::ChangeVoters(_)
        | Step::Replace(_)
        | Step::SetCopies
        | Step::ChangedCopies => etcd::perform(scope, s, step),
    }
    manager::forget_the_impossible(scope, s);
}
