//! Hand-made runs, each with one thing wrong: a checker that finds nothing is worth nothing.

use super::*;
use std::time::Duration;

const STRICT: Rules = Rules { strict: true, no_errors: false };
const ASYNC: Rules = Rules { strict: false, no_errors: false };

fn stamp(node: &str, term: u64, xid: u64) -> Option<Stamp> {
    Some(Stamp { node: node.to_owned(), timeline: term, xid })
}

/// Sent at `at`, answered a millisecond later.
fn event(at: u64, op: Op, outcome: Outcome, by: Option<Stamp>, seen: &[i64]) -> Event {
    let sent = Duration::from_millis(at);
    Event { client: 0, op, sent, answered: sent + Duration::from_millis(1), outcome, stamp: by, seen: seen.to_vec() }
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
    }
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
    // What is lost in the end nobody can see any more.
    everywhere(&mut told, |c| {
        let _ = c.lists.insert(1, vec![10]);
    });
    assert_eq!(stale_primary_reads(&told), 0);
}
