//! Which of the standbys that may serve does.

use super::*;

#[test]
fn reads_are_spread_and_lean_to_the_less_busy() {
    let count = |w: &mut World| {
        let picks: Vec<_> = (0..1000).map(|seed| w.decide(Access::Read, 1001, seed).target).collect();
        picks.iter().filter(|t| **t == Target::Standby(node("n2"))).count()
    };
    let mut w = World::new();
    let even = count(&mut w);
    assert!((400..=600).contains(&even), "{even}");
    w.busy = Busy(BTreeMap::from([("n2", 1)]), BTreeMap::new());
    assert_eq!(count(&mut w), 0);
    w.busy = Busy(BTreeMap::from([("n2", 1), ("n3", 2)]), BTreeMap::new());
    assert_eq!(count(&mut w), 1000);
}

#[test]
fn every_one_of_many_standbys_gets_its_share() {
    let names = ["n2", "n3", "n4", "n5", "n6"];
    let mut w = World::new();
    w.topology.standbys = names.iter().map(|n| member(n)).collect();
    w.snapshot.standbys = names.iter().map(|n| standby(n, 100, 1000)).collect();
    w.publish();
    let mut share = BTreeMap::new();
    for seed in 0..5000 {
        *share.entry(format!("{:?}", w.decide(Access::Read, 1001, seed).target)).or_insert(0) += 1;
    }
    assert!(share.len() == 5 && share.values().all(|n| (800..=1200).contains(n)), "{share:?}");
}

/// Of 1000 reads, how many go to each of n2, n3 and n4.
fn shares(w: &mut World) -> [usize; 3] {
    let mut shares = [0; 3];
    for seed in 0..1000 {
        match w.decide(Access::Read, 1000, seed).target {
            Target::Standby(node) => shares[["n2", "n3", "n4"].iter().position(|n| *n == node.as_str()).unwrap()] += 1,
            Target::Primary | Target::Wait(_) | Target::Nowhere => {}
        }
    }
    shares
}

#[test]
fn weights_zones_and_who_comes_back_decide_between_equals() {
    let usual = Footing::default();
    let with = |footings: &[(&'static str, Footing)]| {
        let mut w = World::new();
        w.topology.standbys.push(member("n4"));
        w.snapshot.standbys.push(standby("n4", 100, 1000));
        w.publish();
        w.busy.1 = footings.iter().copied().collect();
        w
    };
    let near = |[a, b]: [usize; 2], by: usize| a.abs_diff(b) <= by;
    let [n2, n3, n4] = shares(&mut with(&[]));
    assert!(near([n2, 333], 60) && near([n3, 333], 60) && near([n4, 333], 60), "{n2} {n3} {n4}");
    // Half the weight, about half the reads.
    let [n2, n3, n4] = shares(&mut with(&[("n4", Footing { weight: 5000, ..usual })]));
    assert!(near([n4, 200], 50) && near([n2, n3], 80), "{n2} {n3} {n4}");
    // Its own zone first, whatever the weights.
    let home = Footing { near: true, weight: 100, ..usual };
    assert_eq!(shares(&mut with(&[("n3", home)])), [0, 1000, 0]);
    // One that comes back takes little, also when it is alone in its zone.
    let back = Footing { share: 10, weight: 1000, ..usual };
    let [_, n3, _] = shares(&mut with(&[("n3", back)]));
    assert!((10..=90).contains(&n3), "{n3}");
    let [n2, n3, n4] = shares(&mut with(&[("n3", Footing { near: true, ..back })]));
    assert!((70..=230).contains(&n3) && near([n2, n4], 100), "{n2} {n3} {n4}");
    // Where all have come back at once, its own zone first.
    let others = ["n2", "n4"].map(|n| (n, back));
    let all = [others[0], ("n3", Footing { near: true, ..back }), others[1]];
    assert_eq!(shares(&mut with(&all)), [0, 1000, 0]);
    // Busy for its weight.
    let mut w = with(&[("n4", Footing { weight: 20_000, ..usual })]);
    w.busy.0 = BTreeMap::from([("n2", 3), ("n3", 3), ("n4", 3)]);
    let [n2, n3, n4] = shares(&mut w);
    assert!(n4 > 700 && near([n2, n3], 60), "{n2} {n3} {n4}");
}

#[test]
fn one_that_was_too_stale_must_be_well_within_the_bound() {
    let mut w = World::new().only_n2();
    let at_bound = 1000 + BUDGET.as_millis() as u64;
    assert!(matches!(w.decide(Access::Read, at_bound, 0).target, Target::Standby(_)));
    w.busy.1 = BTreeMap::from([("n2", Footing { exceeded: BUDGET * 2, ..Footing::default() })]);
    assert_eq!(w.decide(Access::Read, at_bound, 0).target, Target::Primary);
    assert_eq!(w.decide(Access::Read, 1801, 0).target, Target::Primary);
    assert!(matches!(w.decide(Access::Read, 1800, 0).target, Target::Standby(_)));
    // Who wants less than it has exceeded lately is not spared it by who wants more, nor the other way round.
    w.promise.max_replay_lag = BUDGET * 3;
    assert!(matches!(w.decide(Access::Read, 4000, 0).target, Target::Standby(_)));
    w.promise.max_replay_lag = BUDGET / 2;
    assert_eq!(w.decide(Access::Read, 1450, 0).target, Target::Primary);
    assert!(matches!(w.decide(Access::Read, 1400, 0).target, Target::Standby(_)));
}
