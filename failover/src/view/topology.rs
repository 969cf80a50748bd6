//! From the records in etcd to what a proxy may do: PURE.
//!
//! Where commits are protected (strict mode, not suspended) an old view does no harm: a write it lets through to a
//! fenced primary is acknowledged by no quorum. Everywhere else the view must end before a new term opens (INV-1).
//! In strict mode protection is only ever lowered together with the opening of a new term, so a view that says
//! "protected" of its term stays true for that term, until an operator lowers the mode: so it ends too, long after it was
//! last confirmed, and the primary's agent waits as long. In available mode protection may be lowered at any time, so its
//! views end as those of async mode do. A change of the mode also waits until every registered proxy goes by it
//! (`fsm::suspend`).

use crate::record::{
    FenceRecord, InitRecord, MaintenanceRecord, MemberRecord, Mode, Phase, PolicyRecord, PrimaryRecord, TermRecord,
};
use cluster::timeline::XidBound;
use cluster::topology::{Closed, Gate, Member, Quorum, Topology};
use cluster::{Instant, NodeId, Term};
use std::collections::BTreeMap;
use std::time::Duration;

/// The clocks of two hosts may differ in rate by a thousandth (1000 ppm; NTP slews by at most half of that).
pub const CLOCK_DRIFT_PER_MILLE: u32 = 1;

/// The records of one linearizable read.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Records {
    /// etcd's revision when they were read.
    pub revision: u64,
    /// `init`; `None` before anybody creates the cluster.
    pub init: Option<InitRecord>,
    /// `term`; `None` before the cluster is created.
    pub term: Option<TermRecord>,
    /// `primary`; `None` once its lease is gone.
    pub primary: Option<PrimaryRecord>,
    /// `policy`.
    pub policy: Option<PolicyRecord>,
    /// `members/*` by name.
    pub members: BTreeMap<NodeId, MemberRecord>,
    /// `fences/*` by name.
    pub fences: BTreeMap<NodeId, FenceRecord>,
    /// `maintenance/*` by name.
    pub maintenance: BTreeMap<NodeId, MaintenanceRecord>,
}

/// When a view was learnt, and how long it may be used where safety hangs on time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// When the read was sent.
    pub sent_at: Instant,
    /// T_p, see `etcd.view_validity`.
    pub lasts: Duration,
    /// The same for a strict cluster, see [`cluster::topology::STRICT_VIEW`].
    pub strict_lasts: Duration,
    /// Where this process must be registered for a manager to wait for it: the deadline of its registration's lease
    /// as known when the read was sent; `sent_at` or earlier when it was not registered.
    pub registered_until: Option<Instant>,
}

impl Validity {
    /// The instant from which the view must not be acted on, early by what our clock may be slow.
    pub fn end(&self) -> Instant {
        let end = self.sent_at + shortened(self.lasts);
        self.registered_until.map_or(end, |registered| registered.min(end))
    }

    /// The same for a strict cluster. No manager waits for it, so no registration matters.
    pub fn strict_end(&self) -> Instant {
        self.sent_at + shortened(self.strict_lasts)
    }
}

/// A time that another host measures, by what our clock may be slow.
pub fn shortened(time: Duration) -> Duration {
    time.saturating_sub(time * CLOCK_DRIFT_PER_MILLE / 1000)
}

/// The same for who waits until another host's time is over, with twice the drift to spare.
pub fn lengthened(time: Duration) -> Duration {
    time + time * CLOCK_DRIFT_PER_MILLE * 2 / 1000
}

/// The topology that `records` describe.
pub fn topology(records: &Records, validity: Validity) -> Topology {
    let Some(term) = &records.term else {
        let nobody = Topology {
            gate: Gate::Closed(Closed::Vacant),
            revision: records.revision,
            system_id: system_id(records),
            read_at: Some(validity.sent_at),
            ..Topology::unknown()
        };
        return Topology { standbys: members(records, None), ..nobody };
    };
    let node = term.node.as_ref().or(term.prev.as_ref().map(|t| &t.node));
    let primary = node.and_then(|n| records.members.get(n)).map(|m| member(records, m));
    let protected = records.policy.as_ref().is_some_and(PolicyRecord::protects);
    let strict = records.policy.as_ref().is_some_and(|p| p.mode == Mode::Strict);
    let gate = match primary {
        Some(_) => gate(records, term, protected),
        // Its agent has never written an address: nothing can be sent there.
        None => Gate::Closed(closed_by(term.phase).unwrap_or(Closed::Unknown)),
    };
    Topology {
        term: term.term,
        system_id: system_id(records),
        revision: records.revision,
        gate,
        standbys: members(records, node),
        primary,
        // Where protection may be lowered while the term goes on, an old view must end.
        valid_until: (!(protected && strict)).then(|| validity.end()),
        confirmed_until: (protected && strict).then(|| validity.strict_end()),
        epoch: records.policy.as_ref().map_or(0, |p| p.epoch),
        protected,
        semi_sync: records.policy.as_ref().is_some_and(|p| p.mode != Mode::Async),
        quorums: records.policy.as_ref().filter(|p| p.protects()).map_or_else(Vec::new, quorums),
        begun_by: term.policy_epoch,
        read_at: Some(validity.sent_at),
        fork: term.fork,
        forks: if term.forks.is_empty() { term.fork.into_iter().collect() } else { term.forks.clone() },
        xid_bounds: xid_bounds(term),
        holds_all_of: term.holds_all_of,
        holds_written_of: term.holds_written_of,
        loss_allowed: term.may_lack_acknowledged(),
    }
}

/// Where the terms begin that lead to this one; older managers record but this one's own.
fn xid_bounds(term: &TermRecord) -> Vec<XidBound> {
    if term.xid_bounds.is_empty() {
        return term.xid_bound.map(|xid| XidBound { term: term.term, xid }).into_iter().collect();
    }
    term.xid_bounds.clone()
}

/// What a later term must have frozen enough of.
fn quorums(policy: &PolicyRecord) -> Vec<Quorum> {
    policy.quorums().map(|(voters, k)| Quorum { voters: voters.to_vec(), k }).collect()
}

fn system_id(records: &Records) -> Option<u64> {
    records.init.as_ref().and_then(|init| init.system_id.as_ref()?.parse().ok())
}

/// Why the phase alone keeps the gate closed.
fn closed_by(phase: Phase) -> Option<Closed> {
    match phase {
        Phase::Recruiting => Some(Closed::Recruiting),
        Phase::Promoting => Some(Closed::Promoting),
        Phase::Opening => Some(Closed::Opening),
        Phase::Active | Phase::Draining => None,
    }
}

fn gate(records: &Records, term: &TermRecord, protected: bool) -> Gate {
    if let Some(why) = closed_by(term.phase) {
        return Gate::Closed(why);
    }
    // A fence from the time when the node was a standby does not stop writes: its agent ignores it too.
    let fence = term.node.as_ref().and_then(|n| records.fences.get(n));
    if fence.is_some_and(|f| f.stop_writes) {
        return Gate::Closed(Closed::Fenced);
    }
    let leased = records.primary.as_ref().is_some_and(|p| p.term == term.term && Some(&p.node) == term.node.as_ref());
    if !protected && !leased {
        return Gate::Closed(Closed::Unleased);
    }
    if term.phase == Phase::Draining { Gate::Draining } else { Gate::Open }
}

fn member(records: &Records, m: &MemberRecord) -> Member {
    let fenced = records.fences.contains_key(&m.node);
    let candidate = records.policy.as_ref().is_none_or(|policy| policy.counts(&m.node))
        && m.standing.is_promoted_by_itself()
        && !fenced
        && !records.maintenance.contains_key(&m.node);
    Member { node: m.node.clone(), postgres: m.postgres.clone(), fenced, candidate, zone: m.standing.zone.clone() }
}

/// Everybody but the primary. Reads are kept from those that are not meant for them or that somebody works on.
fn members(records: &Records, except: Option<&NodeId>) -> Vec<Member> {
    let standbys = records.members.values().filter(|m| Some(&m.node) != except);
    let kept = |m: &MemberRecord| {
        let out = !m.standing.serves_reads() || records.maintenance.contains_key(&m.node);
        let member = member(records, m);
        Member { fenced: member.fenced || out, ..member }
    };
    standbys.map(kept).collect()
}

/// Do the two views tell a proxy the same, though read at different revisions? A view that was confirmed again a little
/// later is the same: proxies need not wake for that. `step`: what is more than a little.
pub fn same_but_revision(a: &Topology, b: &Topology, step: Duration) -> bool {
    let blank = |t: &Topology| Topology { revision: 0, confirmed_until: None, read_at: None, ..t.clone() };
    let later = |a: Option<Instant>, b: Option<Instant>| match (a, b) {
        (Some(a), Some(b)) => b >= a + step,
        (a, b) => a != b,
    };
    // How old a reading is matters only where nothing else tells whether the term is over.
    let read_again = !b.quorums.is_empty() && later(a.read_at, b.read_at);
    !read_again && !later(a.confirmed_until, b.confirmed_until) && blank(a) == blank(b)
}

/// `next`, which was just read, for at least as long as `current` may be acted on: the primary's agent may have vouched
/// for the same longer than this reading reaches.
pub fn not_shortened(current: &Topology, mut next: Topology) -> Topology {
    if (current.term, current.epoch) == (next.term, next.epoch) {
        if next.valid_until.is_some() {
            next.valid_until = next.valid_until.max(current.valid_until);
        }
        if next.confirmed_until.is_some() {
            next.confirmed_until = next.confirmed_until.max(current.confirmed_until);
        }
    }
    next
}

/// `current`, vouched for until `end` by the agent of its primary. `None` when it is another view, or lasts longer.
pub fn vouched(current: &Topology, term: Term, epoch: u64, end: Instant) -> Option<Topology> {
    let open = matches!(current.gate, Gate::Open | Gate::Draining) && (current.term, current.epoch) == (term, epoch);
    let longer = open && current.ends_at().is_some_and(|now| now < end);
    longer.then(|| match current.valid_until {
        Some(_) => Topology { valid_until: Some(end), ..current.clone() },
        None => Topology { confirmed_until: Some(end), ..current.clone() },
    })
}

/// A reading that is older than what is known: etcd was restored from an older copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepBack {
    /// Of what.
    pub what: &'static str,
    /// As known.
    pub current: u64,
    /// As read.
    pub read: u64,
}

/// Would `next` be a step back? Terms only grow (INV-1), and within one the policy's epochs.
pub fn steps_back(current: &Topology, next: &Topology) -> Option<StepBack> {
    let back = |what, current, read| (read < current).then_some(StepBack { what, current, read });
    match back("term", current.term.0, next.term.0) {
        None if next.term == current.term => back("epoch of the policy", current.epoch, next.epoch),
        found => found,
    }
}

/// `next`, which was read after `current` and does not step back, so that [`Topology::merge`] takes it for newer: an etcd
/// that was restored counts its revisions from that of its backup.
pub fn later(current: &Topology, mut next: Topology) -> Topology {
    if next.term == current.term && next.revision < current.revision {
        next.revision = current.revision + 1;
    }
    next
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{self, Cause, Limits, Standing, Suspension, Tenure};
    use cluster::timeline::Fork;
    use cluster::{Endpoint, Lsn, TimelineId};

    const SENT: Instant = Instant::from_millis(10_000);
    const VALIDITY: Validity = Validity {
        sent_at: SENT,
        lasts: Duration::from_secs(2),
        strict_lasts: Duration::from_secs(6),
        registered_until: None,
    };

    fn n(name: &str) -> NodeId {
        name.parse().unwrap()
    }

    fn records(phase: Phase, mode: Mode) -> Records {
        let member = |name: &str| MemberRecord {
            node: n(name),
            postgres: Endpoint { host: name.to_owned(), port: 5432 },
            agent: Endpoint { host: name.to_owned(), port: 8008 },
            pg_version: 150_018,
            system_id: None,
            host: name.to_owned(),
            standing: Standing { zone: (name == "n3").then(|| "west".to_owned()), ..Standing::default() },
            slots: true,
            holder: None,
        };
        let chosen = phase != Phase::Recruiting;
        Records {
            revision: 70,
            init: Some(InitRecord { node: n("n1"), system_id: Some("7713088373620781476".to_owned()) }),
            term: Some(TermRecord {
                term: Term(7),
                phase,
                coordinator: "m".to_owned(),
                node: chosen.then(|| n("n2")),
                cause: Cause::Failover,
                prev: Some(Tenure { term: Term(5), node: n("n1"), timeline: TimelineId(5) }),
                fork: None,
                forks: Vec::new(),
                xid_bound: None,
                xid_bounds: Vec::new(),
                record_lsn: None,
                policy_epoch: 1,
                newest_timeline: None,
                holds_all_of: None,
                holds_written_of: None,
                history_lost: false,
                lossy_timelines: Vec::new(),
                chosen_before: None,
                data_loss_allowed: false,
            }),
            primary: Some(PrimaryRecord { term: Term(7), node: n("n2"), holder: "a".to_owned() }),
            policy: Some(PolicyRecord {
                epoch: 1,
                voters: vec![n("n1"), n("n2"), n("n3")],
                k: u32::from(mode != Mode::Async),
                mode,
                suspended: None,
                limits: Limits::default(),
                joint: None,
                rearmed: None,
            }),
            members: ["n1", "n2", "n3"].into_iter().map(|name| (n(name), member(name))).collect(),
            fences: BTreeMap::new(),
            maintenance: BTreeMap::new(),
        }
    }

    fn names(members: &[Member]) -> Vec<&str> {
        members.iter().map(|m| m.node.as_str()).collect()
    }

    #[test]
    fn each_phase_has_its_gate() {
        for (phase, gate, primary) in [
            (Phase::Recruiting, Gate::Closed(Closed::Recruiting), "n1"),
            (Phase::Promoting, Gate::Closed(Closed::Promoting), "n2"),
            (Phase::Opening, Gate::Closed(Closed::Opening), "n2"),
            (Phase::Active, Gate::Open, "n2"),
            (Phase::Draining, Gate::Draining, "n2"),
        ] {
            for mode in [Mode::Strict, Mode::Async] {
                let t = topology(&records(phase, mode), VALIDITY);
                assert_eq!((t.gate, t.term, t.revision), (gate, Term(7), 70), "{phase:?}");
                assert_eq!(t.primary.unwrap().node, n(primary), "{phase:?}");
                assert_eq!(names(&t.standbys), if primary == "n1" { ["n2", "n3"] } else { ["n1", "n3"] });
            }
        }
    }

    #[test]
    fn a_term_that_an_operator_let_lose_data_is_known_as_such() {
        for allowed in [false, true] {
            let mut r = records(Phase::Active, Mode::Strict);
            r.term.iter_mut().for_each(|term| term.data_loss_allowed = allowed);
            r.term.iter_mut().for_each(|term| term.holds_all_of = Some(Term(6)).filter(|_| allowed));
            let told = topology(&r, VALIDITY);
            assert_eq!((told.loss_allowed, told.holds_all_of), (allowed, Some(Term(6)).filter(|_| allowed)));
        }
    }

    #[test]
    fn so_is_one_that_goes_on_with_a_line_that_was_allowed_to_lose_and_never_opened() {
        for (lossy, line, expected) in [(6, &[4, 6][..], true), (6, &[4], false), (6, &[], true), (5, &[4, 6], false)] {
            let mut r = records(Phase::Active, Mode::Strict);
            r.term.iter_mut().for_each(|term| {
                term.lossy_timelines = vec![TimelineId(lossy)];
                term.forks = line.iter().map(|t| Fork { timeline: TimelineId(*t), lsn: Lsn(0x100) }).collect();
            });
            assert_eq!(topology(&r, VALIDITY).loss_allowed, expected, "{lossy} {line:?}");
        }
    }

    #[test]
    fn a_cluster_that_was_never_created_is_vacant() {
        let t = topology(&Records { term: None, ..records(Phase::Active, Mode::Strict) }, VALIDITY);
        assert_eq!((t.gate, t.term, t.primary), (Gate::Closed(Closed::Vacant), Term(0), None));
        assert_eq!(names(&t.standbys), ["n1", "n2", "n3"]);
        let zones: Vec<_> = t.standbys.iter().map(|m| m.zone.as_deref()).collect();
        assert_eq!(zones, [None, None, Some("west")], "as their agents say");
    }

    #[test]
    fn a_protected_view_lasts_longer_and_without_a_registration() {
        let mut r = records(Phase::Active, Mode::Strict);
        let unregistered = Validity { registered_until: Some(SENT), ..VALIDITY };
        let strict = topology(&r, unregistered);
        assert_eq!((strict.valid_until, strict.ends_at()), (None, Some(Instant::from_millis(15_994))));
        let since =
            Suspension { term: Term(7), since: Lsn(1), since_wall: 0, why: "operator".to_owned(), lowered: None };
        r.policy.as_mut().unwrap().suspended = Some(since);
        let end = Some(Instant::from_millis(11_998));
        assert_eq!(topology(&r, VALIDITY).valid_until, end);
        assert_eq!(topology(&records(Phase::Active, Mode::Async), VALIDITY).valid_until, end);
        assert_eq!(topology(&records(Phase::Active, Mode::Available), VALIDITY).valid_until, end);
        r.policy = None;
        assert_eq!(topology(&r, VALIDITY).valid_until, end, "an unknown policy protects nothing");
    }

    #[test]
    fn a_view_names_what_a_later_term_must_freeze_where_that_is_what_keeps_it_from_opening() {
        for (mode, quorum) in [(Mode::Strict, true), (Mode::Available, true), (Mode::Async, false)] {
            let mut r = records(Phase::Active, mode);
            let voters = vec![n("n1"), n("n2"), n("n3")];
            let want = if quorum { vec![Quorum { voters: voters.clone(), k: 1 }] } else { Vec::new() };
            r.term.iter_mut().for_each(|term| term.policy_epoch = 9);
            let t = topology(&r, VALIDITY);
            assert_eq!((t.quorums, t.read_at, t.semi_sync), (want, Some(SENT), quorum), "{mode:?}");
            assert_eq!((t.epoch, t.begun_by), (1, 9));
            let changed = Quorum { voters: vec![n("n1"), n("n3")], k: 1 };
            let joint = record::Quorum { voters: changed.voters.clone(), k: 1 };
            let policy = r.policy.as_mut().unwrap();
            policy.joint = Some(joint);
            let want = if quorum { vec![Quorum { voters, k: 1 }, changed] } else { Vec::new() };
            assert_eq!(topology(&r, VALIDITY).quorums, want, "{mode:?}, while voters are changed");
        }
    }

    #[test]
    fn a_reading_that_is_newer_is_news_where_its_age_matters() {
        let step = Duration::from_millis(500);
        for (mode, ms, same) in [(Mode::Strict, 499, true), (Mode::Strict, 500, false), (Mode::Async, 500, true)] {
            let a = topology(&records(Phase::Active, mode), VALIDITY);
            let b = Topology { read_at: Some(SENT + Duration::from_millis(ms)), ..a.clone() };
            assert_eq!(same_but_revision(&a, &b, step), same, "{mode:?} after {ms} ms");
        }
    }

    #[test]
    fn a_view_ends_with_the_registration_that_a_manager_waits_for() {
        let until = |ms| Validity { registered_until: Some(Instant::from_millis(ms)), ..VALIDITY }.end();
        assert_eq!(until(10_500), Instant::from_millis(10_500));
        assert_eq!(until(20_000), Instant::from_millis(11_998));
    }

    #[test]
    fn without_its_lease_a_primary_is_written_to_only_where_commits_are_protected() {
        let gone = |mode| Records { primary: None, ..records(Phase::Active, mode) };
        assert_eq!(topology(&gone(Mode::Async), VALIDITY).gate, Gate::Closed(Closed::Unleased));
        assert_eq!(topology(&gone(Mode::Strict), VALIDITY).gate, Gate::Open);
        let mut old = records(Phase::Active, Mode::Async);
        old.primary = Some(PrimaryRecord { term: Term(5), node: n("n1"), holder: "b".to_owned() });
        assert_eq!(topology(&old, VALIDITY).gate, Gate::Closed(Closed::Unleased), "a lease of another term");
    }

    #[test]
    fn a_fence_closes_the_gate_only_when_it_was_meant_to_stop_writes() {
        let fenced = |name: &str, stop_writes| {
            let mut r = records(Phase::Active, Mode::Strict);
            r.fences.insert(n(name), FenceRecord { by: "ops@host".to_owned(), at: 0, stop_writes, removed: false });
            topology(&r, VALIDITY)
        };
        assert_eq!(fenced("n2", true).gate, Gate::Closed(Closed::Fenced));
        assert_eq!(fenced("n2", false).gate, Gate::Open);
        let t = fenced("n3", false);
        assert_eq!(t.gate, Gate::Open);
        assert_eq!(t.standbys.iter().map(|m| m.fenced).collect::<Vec<_>>(), [false, true]);
    }

    #[test]
    fn reads_are_kept_from_standbys_that_are_not_meant_for_them() {
        let mut r = records(Phase::Active, Mode::Strict);
        r.members.get_mut(&n("n1")).unwrap().standing.serve_reads = false;
        r.members.get_mut(&n("n2")).unwrap().standing.serve_reads = false;
        r.members.get_mut(&n("n3")).unwrap().standing.apply_delay_ms = 1;
        let t = topology(&r, VALIDITY);
        assert_eq!(t.standbys.iter().map(|m| m.fenced).collect::<Vec<_>>(), [true, true]);
        assert!(!t.primary.unwrap().fenced, "a primary has to serve");
        let mut r = records(Phase::Active, Mode::Strict);
        let m = MaintenanceRecord { by: "ops@host".to_owned(), why: String::new(), at: 0, until: None };
        r.maintenance.insert(n("n3"), m);
        assert_eq!(topology(&r, VALIDITY).standbys.iter().map(|m| m.fenced).collect::<Vec<_>>(), [false, true]);
    }

    #[test]
    fn who_may_become_primary_is_told_apart_from_who_serves_reads() {
        let candidates = |change: fn(&mut Records)| {
            let mut r = records(Phase::Active, Mode::Async);
            change(&mut r);
            topology(&r, VALIDITY).standbys.iter().map(|m| m.candidate).collect::<Vec<_>>()
        };
        assert_eq!(candidates(|_| {}), [true, true]);
        assert_eq!(candidates(|r| r.members.get_mut(&n("n1")).unwrap().standing.serve_reads = false), [true, true]);
        assert_eq!(candidates(|r| r.members.get_mut(&n("n1")).unwrap().standing.never_promote = true), [false, true]);
        assert_eq!(candidates(|r| r.policy.as_mut().unwrap().voters.retain(|v| *v != n("n3"))), [true, false]);
        let fence = |r: &mut Records| {
            let fence = FenceRecord { by: "ops@host".to_owned(), at: 0, stop_writes: false, removed: false };
            r.fences.insert(n("n3"), fence);
        };
        assert_eq!(candidates(fence), [true, false]);
    }

    #[test]
    fn a_primary_without_an_address_is_not_written_to() {
        let mut r = records(Phase::Active, Mode::Strict);
        r.members.remove(&n("n2"));
        let t = topology(&r, VALIDITY);
        assert_eq!((t.gate, t.primary), (Gate::Closed(Closed::Unknown), None));
        assert_eq!(names(&t.standbys), ["n1", "n3"]);
    }

    #[test]
    fn a_view_that_differs_in_nothing_but_its_revision_is_no_news() {
        let a = topology(&records(Phase::Active, Mode::Strict), VALIDITY);
        let b = Topology { revision: 71, ..a.clone() };
        let step = Duration::from_secs(2);
        assert!(same_but_revision(&a, &b, step));
        assert!(!same_but_revision(&a, &Topology { gate: Gate::Draining, ..b.clone() }, step));
        for (later, same) in [(1999, true), (2000, false)] {
            let confirmed_until = a.confirmed_until.map(|end| end + Duration::from_millis(later));
            assert_eq!(same_but_revision(&a, &Topology { confirmed_until, ..b.clone() }, step), same, "{later}");
        }
        let back = Topology { term: Term(6), ..b };
        assert_eq!(steps_back(&a, &back), Some(StepBack { what: "term", current: 7, read: 6 }));
        assert_eq!(steps_back(&back, &a), None);
    }

    #[test]
    fn what_a_restored_etcd_says_of_the_same_term_is_news_unless_its_policy_is_older() {
        let known = topology(&records(Phase::Active, Mode::Strict), VALIDITY);
        let draining = topology(&Records { revision: 12, ..records(Phase::Draining, Mode::Strict) }, VALIDITY);
        assert_eq!(steps_back(&known, &draining), None);
        let mut view = known.clone();
        assert!(view.merge(later(&known, draining.clone())));
        assert_eq!((view.gate, view.revision), (Gate::Draining, known.revision + 1));
        let higher = Topology { revision: 90, ..draining.clone() };
        assert_eq!(later(&known, higher.clone()), higher, "as it is where revisions have grown");
        let raised = Topology { epoch: known.epoch + 1, ..draining.clone() };
        assert_eq!(steps_back(&known, &raised), None);
        let (current, read) = (raised.epoch, draining.epoch);
        assert_eq!(steps_back(&raised, &draining), Some(StepBack { what: "epoch of the policy", current, read }));
        assert_eq!(steps_back(&raised, &Topology { term: Term(8), ..draining }), None, "a term of its own");
    }

    #[test]
    fn a_view_is_vouched_for_only_as_it_is_and_never_shortened() {
        let end = Instant::from_millis(60_000);
        for mode in [Mode::Strict, Mode::Available, Mode::Async] {
            let seen = topology(&records(Phase::Active, mode), VALIDITY);
            let longer = vouched(&seen, Term(7), seen.epoch, end).unwrap();
            assert_eq!(longer.ends_at(), Some(end), "{mode:?}");
            assert_eq!(longer.valid_until.is_some(), mode != Mode::Strict, "{mode:?}");
            assert_eq!(vouched(&longer, Term(7), seen.epoch, end), None, "no longer than it lasts");
            assert_eq!(vouched(&seen, Term(8), seen.epoch, end), None, "of another term");
            assert_eq!(vouched(&seen, Term(7), seen.epoch + 1, end), None, "of another policy");
            assert_eq!(not_shortened(&longer, seen.clone()).ends_at(), Some(end));
            let lowered = Topology { epoch: seen.epoch + 1, ..seen.clone() };
            assert_eq!(not_shortened(&longer, lowered).ends_at(), seen.ends_at(), "by another policy it ends as read");
        }
        let closed = topology(&records(Phase::Recruiting, Mode::Strict), VALIDITY);
        assert_eq!(vouched(&closed, Term(7), closed.epoch, end), None);
    }
}
