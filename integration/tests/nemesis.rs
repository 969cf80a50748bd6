//! A selection of the nemesis: hosts and what runs on them, their network, disks and etcd fail, and nothing acknowledged is
//! lost. `make nemesis` has all of it.
//!
//! The test starts itself again inside network namespaces of its own. Where those are not permitted it says so loudly and
//! does nothing.

use integration::cluster::one_at_a_time;
use integration::nemesis::run::{Verdict, needs};
use integration::nemesis::sandbox::{Sandbox, address, again, impossible, inside};
use integration::nemesis::scenario::Wait;
use integration::nemesis::session::{Session, scenario};
use integration::wait::wait_for;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// Each a kind of its own: a disk, the network, an operator, a host, an agent that is killed at a step of a failover, etcd, and
/// with two copies a manager that is; then the other modes. The first seven share a world, with disks because the first of them
/// needs those, and the seventh changes its policy.
const SELECTION: [(&str, u64); 9] = [
    ("disk-frozen", 9002),
    ("partition", 3),
    ("switchover", 1),
    ("host-stopped", 1),
    ("candidate-killed", 4),
    ("etcd-leader", 9000),
    ("two-copies-coordinator-killed", 9202),
    ("async-host-lost", 9003),
    ("available", 9003),
];

/// What can only be tried inside: plays itself there, or says loudly that nothing is played.
fn inside_or_again(name: &str) -> bool {
    if inside() {
        return true;
    }
    if let Some(why) = impossible() {
        // Past the capture of what passing tests print.
        let _ = writeln!(std::io::stderr(), "\nSKIPPED: no network namespaces here, {name} did not run: {why}\n");
        return false;
    }
    let arguments = ["--exact", name, "--nocapture", "--test-threads=1"].map(str::to_owned);
    let status = again(&arguments).status();
    assert!(status.expect("a test can be started again").success(), "{name}, see above");
    false
}

#[test]
fn hosts_and_networks_fail_and_nothing_acknowledged_is_lost() {
    let _turn = one_at_a_time();
    if inside_or_again("hosts_and_networks_fail_and_nothing_acknowledged_is_lost") {
        play();
    }
}

/// Sends what it knows to whoever connects to a host of the nemesis.
const SERVER: &str = "import socket\n\
    s = socket.create_server(('10.77.0.1', 7000))\n\
    while True:\n c, _ = s.accept()\n c.sendall(bytes(range(256)) * 4096)\n c.close()";

#[test]
fn packets_wait_and_overtake_each_other_and_what_they_carry_arrives() {
    let _turn = one_at_a_time();
    if !inside_or_again("packets_wait_and_overtake_each_other_and_what_they_carry_arrives") {
        return;
    }
    let mut sandbox = Sandbox::new();
    let mut server = sandbox.command("n1", Path::new("python3"), true).args(["-c", SERVER]).spawn().expect("python3");
    let wanted: Vec<u8> = (0..4096).flat_map(|_| 0..=255).collect();
    // How long it takes until it is connected, and whether all arrives.
    let fetch = || -> std::io::Result<Duration> {
        let begun = Instant::now();
        let mut stream = TcpStream::connect_timeout(&(address("n1"), 7000).into(), Duration::from_secs(60))?;
        let (connected, mut got) = (begun.elapsed(), Vec::new());
        stream.read_to_end(&mut got)?;
        assert!(got == wanted, "{} of {} bytes, or others", got.len(), wanted.len());
        Ok(connected)
    };
    wait_for("the server", Duration::from_secs(60), fetch);
    let from = Duration::from_millis(40);
    for both_ways in [false, true] {
        let wait = Wait { from, to: 2 * from, percent: 1, both_ways };
        sandbox.delay("n1", wait, 1);
        let connected = fetch().expect("it comes through");
        assert!(connected >= if both_ways { 2 * from } else { from }, "{connected:?}, both ways: {both_ways}");
        sandbox.heal();
        // As before, at once; of a busy machine the best of some.
        let at_once = (0..20).any(|_| fetch().expect("it is connected as before") < from);
        assert!(at_once, "it waits although it was healed");
    }
    let _ = (server.kill(), server.wait());
}

/// One run, in which nothing may be lost or doubled. What could not be judged says why.
fn once(session: &mut Session, name: &str, seed: u64) -> Result<Verdict, String> {
    let verdict = session.play(&scenario(name).expect("a scenario of ours"), seed)?;
    eprintln!("{}", verdict.line());
    eprint!("{}", verdict.complaints(20));
    assert!(verdict.is_safe(), "{name} seed {seed} has lost or doubled something, see above");
    assert!(verdict.counts.0 > 20, "{name} seed {seed}: too little was acknowledged: {:?}", verdict.counts);
    Ok(verdict)
}

fn play() {
    let mut session = Session::default();
    for (name, seed) in SELECTION {
        if let Some(why) = needs(&scenario(name).expect("a scenario of ours")).impossible() {
            eprintln!("SKIPPED: {name}: {why}");
            continue;
        }
        // An error that a client saw, a change of term that was not expected, or a cluster that did not come back in time: a
        // machine that is much too busy may cause one of these, but hardly twice in a row.
        match once(&mut session, name, seed) {
            Ok(verdict) if verdict.broken.is_empty() => continue,
            Ok(_) => eprintln!("{name} seed {seed}: once more"),
            Err(why) => eprintln!("{name} seed {seed} could not be judged ({why}): once more"),
        }
        let again = once(&mut session, name, seed).unwrap_or_else(|why| panic!("{name} seed {seed}: {why}"));
        assert!(again.broken.is_empty(), "{name} seed {seed} has broken something twice, see above");
    }
}
