//! What must hold, and what must happen at least once for that to mean anything.

use crate::Checked;
use crate::scope::Change;
use crate::state::{Backup, FENCED, Limbo, Node, Phase, Server, State};
use crate::wal::{Entry, Position};
use stateright::Property;

/// An acknowledged strict write is missing in a term that was opened later.
pub const LOST: u8 = 1;
/// A write that clients could read is missing in a term that was opened later.
pub const UNREAD: u8 = 1 << 1;
/// A term acknowledged after a later one was open, and the later one has it not.
pub const LATE: u8 = 1 << 2;
/// Two promotions began a timeline of the same number.
pub const TWIN: u8 = 1 << 3;
/// An agent's promise went back.
pub const BROKEN: u8 = 1 << 4;

/// Names of the properties.
pub const NAMES: [&str; 6] = [
    "an acknowledged strict write is in every later term",
    "what clients could read is in every later term",
    "no acknowledgement of an older term once a newer one is open",
    "a timeline has one writer",
    "a promise never goes back",
    "commits wait for at least what the policy says",
];

/// The bit of `wrong` that a property is about.
pub fn bit(name: &str) -> u8 {
    let at = NAMES.iter().position(|n| *n == name);
    at.filter(|at| *at < 5).map_or(0, |at| 1 << at)
}

/// A property's name and what it says of a state.
pub type Named<const M: usize> = (&'static str, fn(&Checked<M>, &State<M>) -> bool);

/// What must hold in every state.
pub fn always<const M: usize>() -> Vec<Named<M>> {
    let [lost, unread, late, twin, promise, policy] = NAMES;
    vec![
        (lost, |_, s| s.wrong & LOST == 0),
        (unread, |_, s| s.wrong & UNREAD == 0),
        (late, |_, s| s.wrong & LATE == 0),
        (twin, |_, s| s.wrong & TWIN == 0),
        (promise, |_, s| s.wrong & BROKEN == 0),
        (policy, policy_is_sound),
    ]
}

fn policy_is_sound<const M: usize>(_: &Checked<M>, s: &State<M>) -> bool {
    let open = s.etcd.phase == Phase::Active;
    let protected = s.running(s.etcd.term).filter(|_| open && s.etcd.policy.protects());
    protected.is_none_or(|p| {
        let n = &s.nodes[p];
        n.names == FENCED || s.etcd.policy.quorums().any(|(voters, k)| n.of == voters && n.names >= k)
    })
}

/// What must happen in some state: otherwise the model proves nothing.
pub fn sometimes<const M: usize>(model: &Checked<M>) -> Vec<Named<M>> {
    if model.scope.k == 0 {
        let mut all: Vec<Named<M>> = vec![
            ("the failover opens its term", |_, s| s.opened == 0b110),
            ("a write is lost", |_, s| s.newest_open() > 1 && ((1u16 << (s.writes + 1)) - 2) as u8 & !s.kept != 0),
            ("an agent that was paused leaves its primary unfenced", |_, s| {
                s.newest_open() > 1 && s.nodes.iter().any(|n| n.server == Server::Primary(1) && n.names == 0)
            }),
        ];
        if model.scope.signatures {
            all.push(("a primary goes on by signatures", |m, s| {
                s.etcd.term == 1 && !s.etcd.leased && s.is_signed(&m.scope) && s.nodes.iter().any(|n| n.names == 0)
            }));
            all.push(("a freeze waits for what was signed", |_, s| s.nodes.iter().any(|n| n.signed && n.promise > 1)));
            all.push(("a view lasts because it is vouched for", |_, s| s.vouched != 0 && !s.etcd.leased));
        }
        return all;
    }
    let mut all: Vec<Named<M>> = vec![
        ("every failover opens its term", |m, s| {
            let every = ((1u16 << (m.scope.terms + 1)) - 2) as u8;
            s.opened == every
        }),
        ("a write is acknowledged", |_, s| s.acked != 0),
        ("a write is acknowledged in a later term", |_, s| {
            s.newest_open() > 1 && s.running(s.newest_open()).is_some_and(|p| later_ack(s, p))
        }),
        ("a superseded primary runs and its commits wait", |_, s| {
            s.nodes.iter().any(|n| {
                matches!(n.server, Server::Primary(t) if s.newest_open() > t)
                    && n.wal.writes(n.wal.len()) & !s.acked != 0
            })
        }),
        ("an unacknowledged write survives", |_, s| {
            s.newest_open() > 1
                && s.running(s.newest_open())
                    .is_some_and(|p| s.nodes[p].wal.writes(s.nodes[p].visible) & !s.acked & s.shown != 0)
        }),
        ("an unacknowledged write is lost", |_, s| {
            s.newest_open() > 1 && ((1u16 << (s.writes + 1)) - 2) as u8 & !s.kept != 0
        }),
        ("a node that holds WAL the cluster has not is rewound", |_, s| s.nodes.iter().any(|n| n.floor.is_known())),
    ];
    if model.scope.terms > 2 {
        all.push(("a promoted node is never opened and the next term is", |_, s| s.opened == 0b1010));
        all.push(("a superseded node is promoted all the same", |_, s| {
            s.nodes.iter().any(|n| matches!(n.server, Server::Primary(t) if t < s.etcd.term && s.opened & 1 << t == 0))
        }));
    }
    // Somebody must have been no recruit, where k = 1 leaves none in three terms, and be needed the next time.
    if model.scope.terms > 2 && model.scope.k >= 2 && M >= usize::from(model.scope.k) + 2 {
        all.push(("quarantined nodes count beside one that was chosen in vain", |m, s| {
            crate::manager::decided_before(&m.scope, s)
        }));
    }
    if model.scope.leads > 0 {
        all.push(("a round that another manager goes on with opens its term", |_, s| {
            s.leads > 0 && s.etcd.term > 1 && s.etcd.phase == Phase::Active
        }));
        all.push(("the manager left behind could choose another node", |_, s| {
            let best = |of: &[Position; M]| of.iter().max().copied().unwrap_or_default();
            best(&s.left).is_known() && best(&s.left) != best(&s.recruits)
        }));
    }
    if model.scope.restores {
        all.push(("a term opens whose history was lost", |_, s| s.etcd.history_lost && s.etcd.phase == Phase::Active));
        all.push(("etcd is restored while a later term is open", |_, s| {
            s.backup == Backup::Restored && s.newest_open() > s.etcd.term
        }));
    }
    if model.scope.catch_up {
        all.push(("a node that caught up is chosen", |_, s| {
            let (term, node, _) = s.brings;
            term > 1 && s.chosen[usize::from(term)] == node && s.opened & 1 << term != 0
        }));
    }
    if model.scope.reconnects > 0 {
        all.push(("a connection that was left counts", |_, s| {
            let counts = |p: usize, n: &Node| n.left.lsn > 0 && s.nodes[p].visible >= n.left.lsn;
            s.nodes.iter().any(|n| n.left.term != 0 && s.running(n.left.term).is_some_and(|p| counts(p, n)))
        }));
        all.push(("a superseded primary counts a connection that was left", |_, s| {
            s.nodes.iter().any(|n| n.left.term != 0 && n.left.term < s.newest_open())
        }));
        all.push(("a node that has left a connection is promoted", |_, s| {
            s.nodes.iter().any(|n| n.left.term != 0 && matches!(n.server, Server::Primary(_)))
        }));
    }
    if model.scope.reconnects > 0 && (model.scope.k >= 2 || matches!(model.scope.change, Change::Copies(2..))) {
        all.push(("a standby is refused as its old connection has its slot", |_, s| {
            let lacks = |n: &Node| s.running(n.upstream).is_some_and(|p| s.nodes[p].wal.len() > n.wal.len());
            s.nodes.iter().any(|n| n.is_refused() && lacks(n))
        }));
    }
    if model.scope.cancels > 0 {
        all.push(("a commit whose wait was cancelled is lost", |_, s| s.newest_open() > 1 && s.unknown & !s.kept != 0));
        all.push(("a commit whose wait was cancelled survives", |_, s| s.newest_open() > 1 && s.unknown & s.kept != 0));
    }
    if model.scope.lost > 0 {
        all.push(("a transaction's outcome is unknown", |_, s| s.limbo != Limbo::Empty));
    }
    if model.scope.lost > 0 && model.scope.change != Change::None {
        all.push(("a change's outcome is unknown", |_, s| matches!(s.limbo, Limbo::Change { .. })));
    }
    match model.scope.change {
        Change::None => {}
        Change::Suspension => {
            all.push(("commits are not protected", |_, s| {
                s.running(s.etcd.term).is_some_and(|p| s.nodes[p].names == 0)
            }));
            all.push(("protection is restored", |_, s| s.etcd.policy.epoch == 3));
            all.push(("a primary is fenced by its lease", |_, s| s.nodes.iter().any(|n| n.names == FENCED)));
            all.push(("a failover without protection", |_, s| s.round.suspended && s.opened > 0b11));
        }
        Change::Available | Change::Replaced => {
            all.push(("commits are not protected", |_, s| {
                s.running(s.etcd.term).is_some_and(|p| s.nodes[p].names == 0)
            }));
            all.push(("protection is restored", |_, s| s.etcd.policy.epoch > 2 && s.etcd.policy.protects()));
            all.push(("a failover without protection", |_, s| s.round.lowered && s.etcd.prev > 0 && s.opened > 0b11));
            all.push(("a node succeeds because it is complete", |_, s| {
                s.round.complete.is_known() && s.etcd.term > 1 && s.opened & 1 << s.etcd.term != 0
            }));
            if model.scope.change == Change::Replaced {
                all.push(("a failover with one more voter without protection", |_, s| {
                    s.round.lowered && s.round.voters.count_ones() as usize == M && s.opened > 0b11
                }));
                all.push(("one votes in the place of another without protection", |_, s| {
                    s.etcd.policy.suspended
                        && s.etcd.policy.epoch >= 5
                        && (s.etcd.policy.voters.count_ones() as usize) < M
                }));
                all.push(("protection is restored by other voters", |_, s| {
                    s.etcd.policy.protects() && s.etcd.policy.voters.count_ones() as usize == M
                }));
            }
        }
        Change::Copies(_) => {
            all.push(("a failover while k changes", |_, s| s.round.next.is_some() && s.opened > 0b11));
            all.push(("k has changed", |_, s| s.etcd.policy.epoch == 3));
        }
        Change::Voters(_) => {
            all.push(("a failover while voters change", |_, s| s.round.next.is_some() && s.opened > 0b11));
            all.push(("a failover with one more voter", |_, s| s.round.epoch == 3 && s.opened > 0b11));
            all.push(("a failover after the voters changed twice", |_, s| s.round.epoch == 5 && s.opened > 0b11));
        }
    }
    all
}

/// Has the primary acknowledged something behind its own term's record?
fn later_ack<const M: usize>(s: &State<M>, p: usize) -> bool {
    let wal = s.nodes[p].wal;
    let record = (0..wal.len()).rev().find(|at| matches!(wal.get(*at), Entry::Term(_)));
    record.is_some_and(|at| wal.writes(wal.len()) & !wal.writes(at) & s.acked != 0)
}

/// Both, as the checker takes them.
pub fn properties<const M: usize>(model: &Checked<M>) -> Vec<Property<Checked<M>>> {
    let wanted = |name: &str| model.only.is_none_or(|only| only == name);
    let must = always().into_iter().filter(|(name, _)| wanted(name));
    let mut all: Vec<_> = must.map(|(name, holds)| Property::always(name, holds)).collect();
    if model.scope.without.is_none() {
        all.extend(sometimes(model).into_iter().map(|(name, holds)| Property::sometimes(name, holds)));
    }
    all
}
