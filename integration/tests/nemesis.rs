//! A selection of the nemesis: whole hosts and their network fail, and nothing acknowledged is lost. `make nemesis` has
//! all of it.
//!
//! The test starts itself again inside network namespaces of its own. Where those are not permitted it says so loudly and
//! does nothing.

use integration::cluster::one_at_a_time;
use integration::nemesis::run::Verdict;
use integration::nemesis::sandbox::{again, impossible, inside};
use integration::nemesis::session::{Session, scenario};
use std::io::Write;

/// Each a kind of its own, in a world that they share.
const SELECTION: [(&str, u64); 3] = [("partition", 3), ("switchover", 1), ("host-stopped", 1)];

#[test]
fn hosts_and_networks_fail_and_nothing_acknowledged_is_lost() {
    let _turn = one_at_a_time();
    if inside() {
        return play();
    }
    if let Some(why) = impossible() {
        // Past the capture of what passing tests print.
        let _ = writeln!(std::io::stderr(), "\nSKIPPED: no network namespaces here, the nemesis did not run: {why}\n");
        return;
    }
    let name = "hosts_and_networks_fail_and_nothing_acknowledged_is_lost";
    let arguments = ["--exact", name, "--nocapture", "--test-threads=1"].map(str::to_owned);
    let status = again(&arguments).status();
    assert!(status.expect("a test can be started again").success(), "the nemesis, see above");
}

/// One run, in which nothing may be lost or doubled.
fn once(session: &mut Session, name: &str, seed: u64) -> Verdict {
    let verdict = session.play(&scenario(name).expect("a scenario of ours"), seed);
    let verdict = verdict.unwrap_or_else(|why| panic!("{name} seed {seed}: {why}"));
    eprintln!("{}", verdict.line());
    eprint!("{}", verdict.complaints(20));
    assert!(verdict.is_safe(), "{name} seed {seed} has lost or doubled something, see above");
    assert!(verdict.counts.0 > 100, "{name} seed {seed}: too little was acknowledged: {:?}", verdict.counts);
    verdict
}

fn play() {
    let mut session = Session::default();
    for (name, seed) in SELECTION {
        let verdict = once(&mut session, name, seed);
        // An error that a client saw, or a change of term that was not expected: a machine that is much too busy may cause
        // one of these, but hardly twice in a row.
        if !verdict.broken.is_empty() {
            eprintln!("{name} seed {seed}: once more");
            let again = once(&mut session, name, seed);
            assert!(again.broken.is_empty(), "{name} seed {seed} has broken something twice, see above");
        }
    }
}
