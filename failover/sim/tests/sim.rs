//! The shipped decisions under virtual time, with faults from one seed: managers' planners, the agents' own machine, the
//! comparison of histories, proxies' views and what they tell of commits in doubt. etcd, PostgreSQL, the network and what
//! carries decisions out are the simulator's.
//!
//! `SIM_SEEDS=N` plays seeds 0 to N - 1 (500 when not set); `SIM_SEED=N` plays one and prints what happened.

extern crate decisions as failover;

#[path = "../../tests/sim/mod.rs"]
mod simulated;

use simulated::World;

/// Play a seed to its end. The transcript, what was reached, and what went wrong.
fn play(seed: u64) -> (World, Result<(), String>) {
    let mut world = World::new(seed);
    let result = world.run();
    (world, result)
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().filter(|v| !v.is_empty()).map(|v| v.parse().expect("a number"))
}

#[test]
fn every_seed_keeps_what_was_acknowledged_and_heals() {
    if let Some(seed) = number("SIM_SEED") {
        let (world, result) = play(seed);
        world.transcript().for_each(|line| println!("{line}"));
        result.unwrap_or_else(|why| panic!("seed {seed}: {why}"));
        return;
    }
    let seeds = number("SIM_SEEDS").unwrap_or(500);
    let mut reached = std::collections::BTreeMap::new();
    for seed in 0..seeds {
        let (world, result) = play(seed);
        if let Err(why) = result {
            let lines: Vec<String> = world.transcript().collect();
            lines.iter().skip(lines.len().saturating_sub(60)).for_each(|line| println!("{line}"));
            panic!("seed {seed}: {why}; SIM_SEED={seed} shows all of it");
        }
        for what in world.reached() {
            *reached.entry(*what).or_insert(0u64) += 1;
        }
    }
    println!("{seeds} seeds; in how many: {reached:?}");
    // With fewer seeds chance decides; these are for the usual number.
    for what in simulated::SOMETIMES.iter().filter(|_| seeds >= 500) {
        assert!(reached.contains_key(what), "never reached: {what}");
    }
}

#[test]
fn a_seed_always_gives_the_same_transcript() {
    let lines = |seed| play(seed).0.transcript().collect::<Vec<_>>();
    assert_eq!(lines(7), lines(7));
    assert_ne!(lines(7), lines(8));
}

#[test]
fn disks_that_forget_what_was_flushed_are_noticed() {
    let lost = (0..300).find(|seed| {
        let mut world = World::new(*seed);
        world.disks_forget = true;
        world.run().is_err()
    });
    println!("first noticed with seed {lost:?}");
    assert!(lost.is_some(), "no seed lost anything although what is acknowledged is not on disk");
}

#[test]
fn a_proxy_that_asks_for_no_proof_is_noticed() {
    let old = (0..300).step_by(2).find(|seed| {
        let mut world = World::new(*seed);
        world.reader.trusts = true;
        world.run().is_err_and(|why| why.contains("misses"))
    });
    println!("first noticed with seed {old:?}");
    assert!(old.is_some(), "no seed read anything too old although nothing proved the term");
}

#[test]
fn a_proxy_that_asks_about_ids_which_are_given_out_again_is_noticed() {
    let wrong = (0..300).find(|seed| {
        let mut world = World::new(*seed);
        world.proxy.asks_blindly = true;
        world.run().is_err_and(|why| why.contains("is told to be committed and is not"))
    });
    println!("first noticed with seed {wrong:?}");
    assert!(wrong.is_some(), "no seed told a lost commit to be there");
}

#[test]
fn standbys_that_stream_without_slots_are_noticed() {
    let lost = (0..300).filter(|seed| simulated::waits_for_two(*seed)).find(|seed| {
        let mut world = World::new(*seed);
        world.without_slots = true;
        world.run().is_err_and(|why| why.contains("acknowledged"))
    });
    println!("first noticed with seed {lost:?}");
    assert!(lost.is_some(), "no seed lost anything although one standby may count for two");
}
