//! Explores the model as far as fits: `make model`. Prints the number of states of each scope; a violation's steps. An
//! argument names a part of the scopes' names to explore.
//!
//! `make model` keeps what it printed in `integration/results/model-*.txt`, with the commit whose model it was: the counts are of
//! that one.
//!
//! Nodes that differ by name only are one state (`State::canonical`): a renaming maps every step to a step, no property
//! names a node, and where the order leaves a tie, a state is explored twice and none is left out. Two states are taken for
//! one if all 64 bits of their fingerprints agree: among 12 million that happens with a chance of 4 in a million.

use model::{Change, Checked, Scope};
use stateright::{Checker, Model};
use std::time::{Duration, Instant};

fn main() {
    let three = Scope::three();
    let mut failed = false;
    for (what, scope) in [
        ("two failovers", three),
        ("two failovers, three writes", Scope { writes: 3, crashes: 1, lost: 1, ..three }),
        ("two failovers, writes besides the clients'", Scope { noise: 1, crashes: 1, lost: 1, ..three }),
        ("two failovers, protection suspended", Scope { crashes: 1, lost: 0, change: Change::Suspension, ..three }),
        ("two failovers, more copies", Scope { crashes: 1, lost: 0, change: Change::Copies(2), ..three }),
        ("one failover, fewer copies", Scope { k: 2, terms: 2, change: Change::Copies(1), ..three }),
        ("one failover, protection suspended, lost answers", Scope { terms: 2, change: Change::Suspension, ..three }),
        ("one failover, more copies, lost answers", Scope { terms: 2, crashes: 1, change: Change::Copies(2), ..three }),
        ("one failover, voters replaced while unprotected", Scope { terms: 2, change: Change::Replaced, ..three }),
        ("two failovers, a round changes hands", Scope { crashes: 1, lost: 1, leads: 1, ..three }),
        ("two failovers, recruits catch up", Scope { crashes: 1, lost: 0, catch_up: true, ..three }),
        ("two failovers, left connections", Scope { crashes: 1, lost: 0, reconnects: 1, ..three }),
        (
            "one failover, more copies, left connections",
            Scope { terms: 2, crashes: 1, lost: 0, reconnects: 2, change: Change::Copies(2), ..three },
        ),
        ("two failovers, cancelled waits", Scope { crashes: 1, lost: 0, cancels: 2, ..three }),
        ("two failovers, etcd restored", Scope { crashes: 1, lost: 0, restores: true, ..three }),
        ("two failovers, async, etcd lost", Scope { k: 0, crashes: 1, lost: 0, signatures: true, ..three }),
        ("three failovers", Scope { terms: 4, writes: 1, crashes: 0, lost: 0, ..three }),
        ("two failovers, async", Scope { k: 0, crashes: 2, lost: 1, ..three }),
    ] {
        failed |= !explore::<3>(what, scope);
    }
    let one = Scope { terms: 2, crashes: 1, lost: 1, ..three };
    for k in [1, 2] {
        failed |= !explore::<4>("one failover", Scope { k, ..one });
    }
    let vain = Scope { k: 2, writes: 1, crashes: 1, lost: 0, ..three };
    failed |= !explore::<4>("two failovers, quarantined nodes count", vain);
    failed |= !explore::<4>("one failover, left connections", Scope { k: 2, lost: 0, reconnects: 2, ..one });
    let voters = Scope { terms: 2, writes: 1, crashes: 1, lost: 0, change: Change::Voters(2), ..three };
    failed |= !explore::<4>("one failover, three voters, four, three", voters);
    failed |= !explore::<4>("two failovers, three voters, four, three", Scope { terms: 3, crashes: 0, ..voters });
    failed |= !explore::<5>("one failover", Scope { k: 2, writes: 1, lost: 0, ..one });
    failed |= !explore::<5>("one failover", Scope { k: 3, writes: 1, crashes: 0, ..one });
    std::process::exit(i32::from(failed));
}

/// Did everything hold, and everything that must happen once happen?
fn explore<const M: usize>(what: &str, scope: Scope) -> bool {
    if std::env::args().nth(1).is_some_and(|part| !what.contains(&part)) {
        return true;
    }
    let Scope { k, terms, writes, noise, crashes, lost, .. } = scope;
    let began = Instant::now();
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    // Depth first, of each state its fingerprint alone is kept: ten to twenty bytes.
    let running = Checked::<M>::new(scope).checker().threads(threads).spawn_dfs();
    let mut told = began;
    while !running.is_done() {
        std::thread::sleep(Duration::from_millis(200));
        if told.elapsed() >= Duration::from_secs(60) {
            told = Instant::now();
            eprintln!("  {} s: {} states", began.elapsed().as_secs(), running.unique_state_count());
        }
    }
    let checked = running.join();
    println!(
        "m={M} k={k}: {what}; at most {} failovers, {writes} writes, {noise} others, {crashes} crashes, {lost} lost answers: \
         {} states, {} ms",
        terms - 1,
        checked.unique_state_count(),
        began.elapsed().as_millis()
    );
    let mut well = true;
    for (name, _) in model::check::always::<M>() {
        if let Some(path) = checked.discovery(name) {
            well = false;
            println!("VIOLATED: {name}");
            path.into_vec().iter().for_each(|(state, step)| println!("  {step:?}\n    {state:?}"));
        }
    }
    for (name, _) in model::check::sometimes(checked.model()) {
        if checked.discovery(name).is_none() {
            well = false;
            println!("NEVER: {name}");
        }
    }
    well
}
