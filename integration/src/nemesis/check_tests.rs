//! Hand-made runs, each with one thing wrong: a checker that finds nothing is worth nothing.

use super::super::deeds::{At, Deed};
use super::super::told::{Asked, Doubts, Lowered, Policy, Provisional};
use super::*;
use std::time::Duration;

const STRICT: Rules = Rules { strict: true, no_errors: false };
const ASYNC: Rules = Rules { strict: false, no_errors: false };

fn stamp(node: &str, term: u64, xid: u64) -> Option<Stamp> {
    let others: Vec<&str> = ["n1", "n2", "n3"].into_iter().filter(|n| *n != node).collect();
    let (sync_names, sync_commit) = (format!("ANY 1 ({})", others.join(", ")), "on".to_owned());
    // Of the order in which they are numbered.
    Some(Stamp { node: node.to_owned(), timeline: term, lsn: 100 * xid, xid, sync_names, sync_commit })
}

/// Sent at `at`, answered a millisecond later.
fn event(at: u64, op: Op, outcome: Outcome, by: Option<Stamp>, seen: &[i64]) -> Event {
    let sent = Duration::from_millis(at);
    let (answered, at_standby) = (sent + Duration::from_millis(1), matches!(op, Op::Read { at_primary: false, .. }));
    let commit = matches!(op, Op::Transfer { .. });
    Event { client: 0, session: 1, op, sent, answered, outcome, stamp: by, seen: seen.to_vec(), at_standby, commit }
}

/// Two terms, everything as it should be: row 1 and value 10 in term 1, the rest in term 2.
fn sound() -> Told {
    let ok = Outcome::Ok;
    let events = vec![
        event(0, Op::Insert { id: 1 }, ok.clone(), stamp("n1", 1, 700), &[]),
        event(10, Op::Append { list: 1, value: 10 }, ok.clone(), stamp("n1", 1, 701), &[10]),
        event(20, Op::Insert { id: 2 }, Outcome::Unknown("08007".into()), None, &[]),
        event(20, Op::Insert { id: 3 }, Outcome::Failed("57P03".into()), None, &[]),
        event(30, Op::Append { list: 1, value: 11 }, ok.clone(), stamp("n2", 2, 702), &[10, 11]),
        event(40, Op::Transfer { id: 5, from: 1, to: 2, amount: 30 }, ok.clone(), stamp("n2", 2, 703), &[]),
        event(50, Op::Read { list: 1, at_primary: true }, ok.clone(), None, &[10, 11]),
        event(50, Op::Read { list: 1, at_primary: false }, ok.clone(), None, &[10]),
        event(60, Op::Total, ok, None, &[2000]),
    ];
    let mut events = events;
    events[7].session = 2;
    let end = Content {
        rows: BTreeMap::from([(1, 1), (2, 1)]),
        balances: BTreeMap::from([(1, 970), (2, 1030)]),
        transfers: BTreeMap::from([(5, 1)]),
        lists: BTreeMap::from([(1, vec![10, 11])]),
        terms: vec![(1, "n1".into()), (2, "n2".into())],
    };
    Told {
        events,
        nodes: ["n1", "n2", "n3"].map(|n| (n.to_owned(), end.clone())).into(),
        primary: "n2".into(),
        timeline: 2,
        histories: ["n1", "n2"].map(|n| ((2, n.to_owned()), "1\t0/3000000\tno recovery target".to_owned())).into(),
        reported: BTreeMap::new(),
        given_up: BTreeSet::new(),
        provisional: BTreeMap::new(),
        away: BTreeSet::new(),
        doubts: Doubts::default(),
        policy: Some(policy()),
        most: 1,
        asked: vec![asked(1, 1)],
        at_times: None,
        deeds: deeds().into_iter().map(|(node, all)| (node.to_owned(), all)).collect(),
        promises: ["n1", "n2", "n3"].map(|n| (n.to_owned(), 2)).into(),
        recruits: BTreeMap::from([(2, vec!["n2".to_owned(), "n3".to_owned()])]),
        slots: BTreeMap::from([("n1".into(), (Vec::new(), Vec::new()))]),
        kept: BTreeSet::from([KEPT.to_owned()]),
        began: Some(Duration::from_secs(1000)),
    }
}

fn policy() -> Policy {
    Policy { voters: ["n1", "n2", "n3"].map(str::to_owned).to_vec(), k: 1 }
}

fn asked(least: usize, most: usize) -> Asked {
    Asked { least, most, voters: policy().voters.into_iter().collect() }
}

const KEPT: &str = "/data/n1/lost/2";

/// n1 was primary and comes back as a standby of n2.
fn deeds() -> [(&'static str, Vec<At>); 3] {
    let at = |ms: u64, deed: Deed| (Duration::from_millis(1_000_000 + ms), deed);
    let follower = vec![at(0, Deed::Cloned), at(0, Deed::Counts), at(25, Deed::Promised(2)), at(26, Deed::Frozen(2))];
    let old = vec![
        at(0, Deed::Created),
        at(0, Deed::Promised(1)),
        at(35, Deed::Promised(2)),
        at(36, Deed::Examined("0/30".into(), KEPT.into())),
        at(37, Deed::Rewinding("0/30".into())),
        at(38, Deed::Rewound),
        at(39, Deed::Followed(2)),
        at(40, Deed::Counts),
    ];
    let with = |more: Deed| [follower.clone(), vec![at(28, more)]].concat();
    [("n1", old), ("n2", with(Deed::Promoted(2))), ("n3", with(Deed::Followed(2)))]
}

/// The same on every node.
fn everywhere(told: &mut Told, change: impl Fn(&mut Content)) {
    told.nodes.values_mut().for_each(change);
}

/// The invariants found broken, each once.
fn broken(told: &Told, rules: Rules) -> Vec<&'static str> {
    let found: BTreeSet<&str> = violations(told, rules).iter().map(|v| v.invariant).collect();
    found.into_iter().collect()
}

#[test]
fn a_sound_run_breaks_nothing() {
    assert_eq!(violations(&sound(), STRICT), []);
    assert_eq!(violations(&sound(), ASYNC), []);
    assert_eq!(stale_primary_reads(&sound()), 0);
}

type Break = fn(&mut Told);

#[test]
fn every_broken_promise_is_seen() {
    let cases: [(&str, &str, Break); 16] = [
        ("an acknowledged row is lost", "S1", |t| {
            everywhere(t, |c| {
                let _ = c.rows.remove(&1);
            })
        }),
        ("an acknowledged transfer is lost", "S1", |t| {
            everywhere(t, |c| {
                c.transfers.clear();
                c.balances = BTreeMap::from([(1, 1000), (2, 1000)]);
            });
        }),
        ("an acknowledged value at the end of a list is lost", "S1", |t| {
            everywhere(t, |c| {
                let _ = c.lists.insert(1, vec![10]);
            });
        }),
        ("a row is there twice", "S5", |t| {
            everywhere(t, |c| {
                let _ = c.rows.insert(1, 2);
            })
        }),
        ("a refused row is there", "S5", |t| {
            everywhere(t, |c| {
                let _ = c.rows.insert(3, 1);
            })
        }),
        ("a row is there that nobody sent", "S5", |t| {
            everywhere(t, |c| {
                let _ = c.rows.insert(99, 1);
            })
        }),
        ("two nodes acknowledge in one term", "S2", |t| {
            t.events.push(event(45, Op::Insert { id: 2 }, Outcome::Ok, stamp("n3", 2, 800), &[]));
        }),
        ("an old term acknowledges what was sent after a newer one had", "S2", |t| {
            t.events.push(event(45, Op::Insert { id: 2 }, Outcome::Ok, stamp("n1", 1, 800), &[]));
        }),
        ("an acknowledgement of nobody", "S2", |t| t.events[0].stamp = None),
        ("a timeline that is no term", "S4", |t| {
            everywhere(t, |c| {
                let _ = c.terms.remove(0);
            })
        }),
        ("terms go back", "S4", |t| everywhere(t, |c| c.terms.insert(0, (3, "n3".into())))),
        ("the primary writes another timeline than its term", "S4", |t| t.timeline = 3),
        ("one timeline was written by two", "S4", |t| {
            t.histories.insert((2, "n3".into()), "1\t0/4000000\tno recovery target".into());
        }),
        ("a standby holds something else", "S4", |t| {
            t.nodes.get_mut("n3").expect("a node").rows.insert(2, 7);
        }),
        ("a value that was read is lost", "S6", |t| t.events[7].seen = vec![10, 12]),
        ("money is made", "S6", |t| t.events[8].seen = vec![2001]),
    ];
    for (what, invariant, wrong) in cases {
        let mut told = sound();
        wrong(&mut told);
        let found = broken(&told, STRICT);
        assert!(found.contains(&invariant), "{what}: {invariant} expected, found {found:?}");
    }
}

fn did<'t>(told: &'t mut Told, node: &str) -> &'t mut Vec<At> {
    told.deeds.get_mut(node).expect("a node")
}

#[test]
fn every_broken_promise_to_sessions_is_seen() {
    let cases: [(&str, &str, Break); 6] = [
        ("commits wait for nobody", "S7", |t| stamped(t).sync_names.clear()),
        ("commits wait for a stranger", "S7", |t| stamped(t).sync_names = "ANY 1 (n3, n9)".into()),
        ("commits wait for the primary itself", "S7", |t| stamped(t).sync_names = "ANY 1 (n1, n2, n3)".into()),
        ("commits wait for no disk", "S7", |t| stamped(t).sync_commit = "remote_write".into()),
        ("a standby has not what the session wrote", "S10", |t| t.events[7].session = 1),
        ("a standby lacks what is older than it may", "S10", |t| t.events[7].sent = Duration::from_millis(1100)),
    ];
    for (what, invariant, wrong) in cases {
        let mut told = sound();
        wrong(&mut told);
        assert_eq!(broken(&told, STRICT), [invariant], "{what}");
    }
    let mut told = sound();
    stamped(&mut told).sync_names = r#"ANY 2 ("n2", n3)"#.into();
    assert_eq!(violations(&told, STRICT), [], "more than is asked for");
}

fn stamped(told: &mut Told) -> &mut Stamp {
    told.events[0].stamp.as_mut().expect("it was acknowledged")
}

#[test]
fn every_broken_promise_of_nodes_is_seen() {
    let cases: [(&str, &str, Break); 15] = [
        ("two nodes promoted for one term, from the same end", "S4", |t| {
            did(t, "n3").push((Duration::ZERO, Deed::Promoted(2)));
        }),
        ("one more that began to be promoted", "S4", |t| did(t, "n3").push((Duration::ZERO, Deed::Numbered(2)))),
        ("a node that connected ahead and did not count", "S8", |t| {
            t.recruits.clear();
            drop(did(t, "n3").remove(1));
            did(t, "n3").insert(3, (Duration::ZERO, Deed::Attended(2)));
        }),
        ("ahead for a term below the promise", "S9", |t| did(t, "n3").push((Duration::ZERO, Deed::Attended(1)))),
        ("logs that are not understood", "S9", |t| t.deeds.clear()),
        ("a recruit that did not count", "S8", |t| drop(did(t, "n3").remove(1))),
        ("a primary that did not count", "S8", |t| {
            t.recruits.clear();
            drop(did(t, "n2").remove(1));
        }),
        ("a promise forgotten", "S9", |t| did(t, "n3").insert(4, (Duration::ZERO, Deed::Promised(1)))),
        ("an act for a term below the promise", "S9", |t| did(t, "n3").push((Duration::ZERO, Deed::Followed(1)))),
        ("a promise that is not on the disk", "S9", |t| t.promises.extend([("n3".to_owned(), 1)])),
        ("an acknowledgement of a term that is over", "S9", |t| {
            let at = |deeds: &mut Vec<At>| deeds.iter_mut().for_each(|d| d.0 = Duration::from_millis(1_000_005));
            ["n2", "n3"].into_iter().for_each(|n| at(did(t, n)));
        }),
        ("a rewind of what nobody examined", "S11", |t| drop(did(t, "n1").remove(3))),
        ("a rewind past what was examined", "S11", |t| did(t, "n1")[3].1 = Deed::Examined("0/40".into(), KEPT.into())),
        ("a copy over what nobody examined", "S11", |t| {
            did(t, "n1").splice(3..6, [(Duration::ZERO, Deed::Cloned)]);
        }),
        ("lost WAL that was not kept", "S11", |t| t.kept.clear()),
    ];
    for (what, invariant, wrong) in cases {
        let mut told = sound();
        wrong(&mut told);
        assert_eq!(broken(&told, STRICT), [invariant], "{what}");
    }
    // What is a copy itself, and does not count yet, has nothing of its own.
    let mut told = sound();
    did(&mut told, "n3").insert(1, (Duration::ZERO, Deed::Cloned));
    assert_eq!(violations(&told, STRICT), []);
}

/// How many of the others have to be frozen is a matter of how many have to confirm.
#[test]
fn an_acknowledgement_of_two_is_over_when_one_is_frozen() {
    // Sent at 10 ms with that many to confirm; n2 alone was frozen before.
    let told = |names: &str, policies: &[Asked]| {
        let mut told = sound();
        told.asked = policies.to_vec();
        did(&mut told, "n2").iter_mut().for_each(|d| d.0 = Duration::from_millis(1_000_005));
        let append = told.events[1].stamp.as_mut().expect("it was acknowledged");
        append.sync_names = names.to_owned();
        told
    };
    let (one, both, rising) = ("ANY 1 (n2, n3)", "ANY 2 (n2, n3)", [asked(1, 1), asked(1, 2), asked(2, 2)]);
    let none = [] as [&str; 0];
    assert_eq!(broken(&told(one, &rising[..1]), STRICT), none, "n3 confirms");
    assert_eq!(broken(&told(both, &rising), STRICT), ["S9"]);
    assert_eq!(broken(&told(both, &rising[..2]), STRICT), ["S9"], "both quorums are asked for by now");
    for passing in ["ANY 1 (n2, __fenced__)", "ANY 2 (n2)"] {
        assert_eq!(
            broken(&told(passing, &rising), STRICT),
            none,
            "{passing}: another list may have come before the answer"
        );
    }
    // It may have been answered when one was enough again, or when others were asked for.
    let lowered = [&rising[..], &[asked(1, 2), asked(1, 1)]].concat();
    assert_eq!(broken(&told(both, &lowered), STRICT), none);
    let mut others = [&rising[..], &[asked(2, 2)]].concat();
    others[3].voters.remove("n3");
    assert_eq!(broken(&told(both, &others), STRICT), none);
}

/// A COMMIT whose server was lost was looked for, and its client told what was found: that must be so.
#[test]
fn a_commit_that_was_resolved_wrongly_is_seen() {
    let transfer =
        |outcome| event(45, Op::Transfer { id: 6, from: 2, to: 1, amount: 5 }, outcome, stamp("n1", 1, 704), &[]);
    let there = |told: &mut Told| {
        everywhere(told, |c| {
            c.transfers.insert(6, 1);
            c.balances = BTreeMap::from([(1, 975), (2, 1025)]);
        });
    };
    let (survived, lost) = (Outcome::Ok, Outcome::Failed("40001".into()));
    let unknown = Outcome::Unknown("08007".into());
    for (outcome, is_there, wanted) in [
        (&survived, false, &["S1"][..]),
        (&survived, true, &[]),
        (&lost, true, &["S5"]),
        (&lost, false, &[]),
        (&unknown, true, &[]),
        (&unknown, false, &[]),
    ] {
        let mut told = sound();
        // Sent while term 1 was open, answered when term 2 was.
        let mut resolved = transfer(outcome.clone());
        resolved.sent = Duration::from_millis(22);
        told.events.push(resolved);
        if is_there {
            there(&mut told);
        }
        assert_eq!(broken(&told, STRICT), wanted, "{outcome:?}, there: {is_there}");
    }
    let mut told = sound();
    told.events.push(transfer(lost));
    there(&mut told);
    let found = violations(&told, STRICT).pop().expect("it is seen").found;
    assert!(found.contains("told to be lost with 40001 at its COMMIT"), "{found}");
}

#[test]
fn half_a_transfer_is_seen() {
    let mut told = sound();
    everywhere(&mut told, |c| {
        let _ = c.balances.insert(1, 1000);
    });
    assert_eq!(broken(&told, STRICT), ["S6"]);
    assert_eq!(broken(&told, ASYNC), ["S6"]);
}

#[test]
fn slots_that_are_missing_or_left_are_seen() {
    let slots = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
    for (have, want) in
        [(&["pgtenure_n2"][..], &[][..]), (&[], &["pgtenure_n2"]), (&["pgtenure_n2"], &["pgtenure_n2 in use"])]
    {
        let mut told = sound();
        told.slots.insert("n1".into(), (slots(have), slots(want)));
        assert_eq!(broken(&told, STRICT), ["S7"], "{have:?}");
    }
}

#[test]
fn what_only_a_standby_showed_may_be_left_behind_where_two_confirm_and_who_saw_it_is_told() {
    let read = |at: u64, seen: &[i64]| {
        let mut read = event(at, Op::Read { list: 1, at_primary: false }, Outcome::Ok, None, seen);
        read.session = 3;
        read
    };
    let mut told = sound();
    told.events.push(read(12, &[10, 12]));
    assert_eq!(broken(&told, STRICT), ["S6"], "where one confirms every standby is asked");
    told.most = 2;
    assert_eq!(broken(&told, STRICT), [] as [&str; 0]);
    told.events.push(read(60, &[10, 11]));
    assert_eq!(broken(&told, STRICT), ["S10"], "it has gone back, without a word");
    let mut error = event(55, Op::Total, Outcome::Failed("08007 what this session has read".into()), None, &[]);
    error.session = 3;
    told.events.push(error);
    assert_eq!(broken(&told, STRICT), [] as [&str; 0]);
    // But not what is there elsewhere, nor what a primary shows.
    told.events.push(read(61, &[11, 10]));
    assert_eq!(broken(&told, STRICT), ["S6"]);
    let mut told = sound();
    told.most = 2;
    told.events.push(event(12, Op::Read { list: 1, at_primary: true }, Outcome::Ok, None, &[10, 12]));
    assert_eq!(broken(&told, STRICT), ["S6"]);
    // A read that has waited for it in vain makes those behind it miss it, too, in that term.
    let mut told = sound();
    told.most = 2;
    told.events.push(read(12, &[10, 12]));
    let at_primary = |at: u64| Event { at_standby: false, ..read(at, &[10, 11]) };
    let waited = Event { answered: Duration::from_secs(6), ..at_primary(13) };
    told.events.iter_mut().filter(|e| e.stamp.as_ref().is_some_and(|s| s.timeline == 2)).for_each(|e| {
        (e.sent, e.answered) = (Duration::from_secs(8), Duration::from_secs(9));
    });
    told.events.extend([waited, at_primary(7000), at_primary(9900)]);
    assert_eq!(broken(&told, STRICT), [] as [&str; 0]);
    // Whatever it reads.
    told.events.iter_mut().filter(|e| e.answered == Duration::from_secs(6)).for_each(|e| e.op = Op::Total);
    told.events.iter_mut().filter(|e| e.op == Op::Total).for_each(|e| e.seen = vec![2000]);
    assert_eq!(broken(&told, STRICT), [] as [&str; 0]);
    told.events.push(at_primary(10_000));
    assert_eq!(broken(&told, STRICT), ["S10"], "a later term does not have it");
    told.events.pop();
    told.events.last_mut().expect("the one at 9900").at_standby = true;
    assert_eq!(broken(&told, STRICT), ["S10"], "only a primary may miss it");
}

/// A node that stays away does not hide what else is wrong.
#[test]
fn a_run_in_which_a_node_stays_away_is_judged_all_the_same() {
    let away = |node: &str| {
        let mut told = sound();
        told.nodes.remove(node);
        told.slots.remove(node);
        told.away.insert(node.to_owned());
        told
    };
    assert_eq!(broken(&away("n3"), STRICT), ["L2"], "and nothing besides");
    let cases: [(&str, &[&str], Break); 5] = [
        ("an acknowledged row is lost", &["L2", "S1"], |t| {
            everywhere(t, |c| {
                let _ = c.rows.remove(&1);
            })
        }),
        ("two nodes acknowledge in one term", &["L2", "S2"], |t| {
            t.events.push(event(45, Op::Insert { id: 2 }, Outcome::Ok, stamp("n3", 2, 800), &[]));
        }),
        ("it was promoted too", &["L2", "S4"], |t| did(t, "n3").push((Duration::ZERO, Deed::Promoted(2)))),
        ("it acted below its promise", &["L2", "S9"], |t| did(t, "n3").push((Duration::ZERO, Deed::Followed(1)))),
        ("a rewind of what nobody examined", &["L2", "S11"], |t| drop(did(t, "n1").remove(3))),
    ];
    for (what, wanted, wrong) in cases {
        let mut told = away("n3");
        wrong(&mut told);
        let found = broken(&told, STRICT);
        assert!(wanted.iter().all(|w| found.contains(w)), "{what}: {wanted:?} expected, found {found:?}");
    }
    // What it alone had in async mode is reported once it is back; what another had is to be there, or reported.
    for (node, wanted) in [("n1", &["L2"][..]), ("n3", &["L2", "S3"])] {
        let mut told = away(node);
        told.policy = None;
        everywhere(&mut told, |c| {
            let _ = c.rows.remove(&1);
        });
        assert_eq!(broken(&told, ASYNC), wanted, "{node} is away");
    }
}

/// Nor does it that no term is open: only what is lost nobody can say then.
#[test]
fn a_run_that_ends_without_a_primary_is_judged_by_what_else_is_told() {
    let nobody = || Told { nodes: BTreeMap::new(), primary: String::new(), slots: BTreeMap::new(), ..sound() };
    assert_eq!(broken(&nobody(), STRICT), ["L1"]);
    let mut told = nobody();
    told.events.push(event(45, Op::Insert { id: 2 }, Outcome::Ok, stamp("n3", 2, 800), &[]));
    assert!(broken(&told, STRICT).contains(&"S2"));
    let mut told = nobody();
    did(&mut told, "n3").push((Duration::ZERO, Deed::Followed(1)));
    assert_eq!(broken(&told, STRICT), ["L1", "S9"]);
}

#[test]
fn reordered_appends_are_seen() {
    let mut told = sound();
    everywhere(&mut told, |c| {
        let _ = c.lists.insert(1, vec![11, 10]);
    });
    assert_eq!(broken(&told, STRICT), ["S6"]);
}

#[test]
fn in_async_mode_a_loss_must_be_reported_by_its_transaction() {
    let mut told = sound();
    told.policy = None;
    everywhere(&mut told, |c| {
        let _ = c.rows.remove(&1);
    });
    assert_eq!(broken(&told, ASYNC), ["S3"]);
    told.reported.insert(2, vec![701]);
    assert_eq!(broken(&told, ASYNC), ["S3"]);
    told.reported.insert(2, vec![700]);
    assert_eq!(broken(&told, ASYNC), [] as [&str; 0]);
    told.reported.insert(2, vec![700, 701]);
    assert_eq!(broken(&told, ASYNC), ["S3"], "what is there was not lost");
    told.given_up.insert(2);
    assert_eq!(broken(&told, ASYNC), [] as [&str; 0], "the term after it has the other");
}

#[test]
fn what_is_told_at_once_of_a_loss_covers_what_is_found() {
    // Its last acknowledgement was of what begins at 70100, at 11 ms.
    let window = |from, to| Provisional { node: "n1".into(), ended: 1, from, to, ..Provisional::default() };
    let heard = |ms: u64| Some(Duration::from_millis(1_000_000 + ms));
    let none = [] as [&str; 0];
    let cases: [(&str, Provisional, &[&str]); 10] = [
        ("as far as it was heard", Provisional { left: Some((60_000, 80_000)), ..window(60_000, 70_000) }, &none),
        ("it begins too late", Provisional { left: Some((59_999, 59_999)), ..window(60_000, 70_000) }, &["S3"]),
        ("to the known end", Provisional { end: Some(70_000), ..window(60_000, 70_000) }, &none),
        ("not to the known end", Provisional { end: Some(70_001), ..window(60_000, 70_000) }, &["S3"]),
        ("nothing is lost of that", Provisional { end: Some(60_000), ..window(60_000, 50_000) }, &none),
        (
            "a commit behind what it was told to end at",
            Provisional { end: Some(70_000), left: Some((60_000, 70_001)), ..window(60_000, 70_000) },
            &["S3"],
        ),
        (
            "heard for long enough, to the last one",
            Provisional { heard: heard(2_011), ..window(60_000, 70_100) },
            &none,
        ),
        ("and not to the last one", Provisional { heard: heard(2_011), ..window(60_000, 70_099) }, &["S3"]),
        ("not heard since", Provisional { heard: heard(2_010), ..window(60_000, 70_099) }, &none),
        ("of another term", Provisional { heard: heard(2_011), ended: 2, ..window(60_000, 70_099) }, &none),
    ];
    for (what, provisional, wanted) in cases {
        let mut told = sound();
        told.provisional.insert(2, provisional);
        assert_eq!(broken(&told, STRICT), wanted, "{what}");
    }
}

/// A run in which protection was lowered: row 1 was acknowledged before, at 1 ms, and the rest after.
fn lowered(since: u64, until: Option<(u64, u64)>) -> Told {
    let mut told = sound();
    let since = Some(Duration::from_millis(1_000_000 + since));
    (told.policy, told.at_times) = (None, Some((policy(), vec![Lowered { since, until }])));
    told
}

#[test]
fn what_was_acknowledged_before_protection_was_lowered_is_kept() {
    let lost = |mut told: Told, id: i64| {
        everywhere(&mut told, |c| {
            let _ = c.rows.remove(&id);
        });
        told.reported = if id == 1 { [(2, vec![700])] } else { [(3, vec![705])] }.into();
        told
    };
    let none = [] as [&str; 0];
    assert_eq!(broken(&lost(lowered(5, None), 1), ASYNC), ["S1"], "a report excuses nothing");
    assert_eq!(broken(&lost(lowered(1, None), 1), ASYNC), none, "it was released with the lowering, perhaps");
    // So is what was acknowledged behind the place from where on commits wait again.
    let with_last = |until| {
        let mut told = lowered(1, until);
        told.events.push(event(70, Op::Insert { id: 7 }, Outcome::Ok, stamp("n2", 2, 705), &[]));
        everywhere(&mut told, |c| {
            c.rows.insert(7, 1);
        });
        told
    };
    assert_eq!(broken(&lost(with_last(Some((2, 70_500))), 7), ASYNC), ["S1"]);
    assert_eq!(broken(&lost(with_last(Some((2, 70_501))), 7), ASYNC), none);
    assert_eq!(broken(&lost(with_last(Some((3, 0))), 7), ASYNC), none);
    // With what they wait for while they do.
    let bare = |mut told: Told| {
        stamped(&mut told).sync_names.clear();
        told
    };
    assert_eq!(broken(&bare(lowered(5, None)), ASYNC), ["S7"]);
    assert_eq!(broken(&bare(lowered(1, None)), ASYNC), none);
    // Where the hosts' clocks are wrong nobody can tell.
    let mut told = lost(lowered(5, None), 1);
    told.began = None;
    assert_eq!(broken(&told, ASYNC), none);
}

#[test]
fn where_no_errors_are_allowed_each_is_one() {
    let told = sound();
    let found = violations(&told, Rules { strict: true, no_errors: true });
    assert_eq!(found.iter().filter(|v| v.invariant == "S12").count(), 2);
}

#[test]
fn a_stale_read_at_a_primary_is_counted() {
    let mut told = sound();
    told.events[6].seen = vec![10];
    assert_eq!(stale_primary_reads(&told), 1);
    assert_eq!(violations(&told, STRICT), []);
    // For longer than that nobody reads at a primary that was replaced.
    told.events[6].sent = Duration::from_millis(1031);
    assert_eq!(violations(&told, STRICT), [], "acknowledged at 31 ms");
    told.events[6].sent = Duration::from_millis(1032);
    assert_eq!(broken(&told, STRICT), ["S6"]);
    told.policy = None;
    assert_eq!(violations(&told, ASYNC), []);
    // What is lost in the end nobody can see any more.
    everywhere(&mut told, |c| {
        let _ = c.lists.insert(1, vec![10]);
    });
    assert_eq!(stale_primary_reads(&told), 0);
}
