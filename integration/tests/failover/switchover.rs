//! Planned changes of the primary.

use integration::client::Client;
use integration::cluster::{Cluster, LONG, one_at_a_time};
use integration::config_file::Options;
use integration::process::signal_all;
use integration::wait::wait_for;
use integration::workload::{Readers, Style, Workload};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use std::time::Duration;

const STYLES: [Style; 3] = [Style::Autocommit, Style::Block, Style::Prepared];
const PAUSE: Duration = Duration::from_millis(5);

#[test]
fn no_client_sees_an_error_in_a_switchover_and_the_old_primary_is_a_standby_at_once() {
    let _turn = one_at_a_time();
    let cluster = Cluster::healthy();
    Workload::create_table(&cluster.target()).expect("a table");
    let first = cluster.active();
    let load = Workload::start(&cluster.target(), 6, &STYLES, 1, PAUSE);
    let readers = Readers::start(&cluster.target(), 3, PAUSE);
    load.wait_for_more(200, LONG);

    // As whoever is to work on the primary's host begins.
    let work = ["--on", "--for", "1h", "--why", "a new disk", "--switchover"];
    cluster.verb(&[&["maintenance", &first.primary][..], &work].concat()).exits(0);
    let second = cluster.active_after(first.term);
    assert_ne!(second.primary, first.primary);
    let shown = cluster.verb(&["status"]).exits(0).stdout;
    assert!(shown.contains("IN MAINTENANCE") && shown.contains("a new disk"), "{shown}");
    load.wait_for_more(200, LONG);

    // What the switchover has stopped there may stay so until the work is done.
    let term = second.term.to_string();
    let back = ["switchover", "--to", &first.primary, "--expect-term", &term];
    cluster.verb(&back).exits(2);
    for code in [0, 2] {
        cluster.verb(&["maintenance", &first.primary, "--off"]).exits(code);
    }
    cluster.all_stream();
    let back = cluster.verb(&back).exits(0);
    assert!(back.stdout.contains(&first.primary), "a person is told who is primary: {}", back.stdout);
    let third = cluster.active_after(second.term);
    assert_eq!(third.primary, first.primary);
    load.wait_for_more(200, LONG);
    cluster.all_stream();
    cluster.timelines_are(third.term);

    let (history, reads) = (load.finish(), readers.finish());
    eprintln!("longest gaps over two switchovers: {:?}", history.longest_gaps());
    assert!(history.refusals().is_empty(), "writers saw {:?}", history.refusals());
    assert!(reads.errors.is_empty(), "readers saw {:?}", reads.errors);
    cluster.verify(&history, 1);
}

#[test]
fn the_report_counts_commits_below_the_mode() {
    let _turn = one_at_a_time();
    let cluster = Cluster::start(&Options { proxy: "durability = { allow_lower = true }\n", ..Options::default() });
    let before = cluster.active();
    let mut lowered = cluster.connect();
    lowered.query("create table if not exists relaxed (id int)").expect("a commit at the cluster's mode");
    lowered.query("set synchronous_commit = off").expect("a session may ask for less");
    for id in 0..3 {
        lowered.query(&format!("insert into relaxed values ({id})")).expect("a commit below the mode");
    }
    lowered.query("set synchronous_commit = on").expect("and for the mode again");
    lowered.query("insert into relaxed values (3)").expect("a commit at the cluster's mode");
    lowered.terminate();
    cluster.verb(&["switchover"]).exits(0);
    let after = cluster.active_after(before.term);
    // The SET to `on` ends the count, the commits before it were acknowledged below. The journal is written behind the answer.
    wait_for("the report to count them", LONG, || {
        let report = cluster.verb(&["report", &after.term.to_string(), "--json"]).exits(0).json();
        let below = report.pointer("/journal/below_mode").and_then(serde_json::Value::as_u64);
        if below == Some(3) { Ok(()) } else { Err(report) }
    });
    let text = cluster.verb(&["report", &after.term.to_string()]).exits(0).stdout;
    assert!(text.contains("below the cluster's mode in the term that ended: 3"), "{text}");
    cluster.all_stream();
}

#[test]
fn a_switchover_that_makes_no_sense_is_refused_and_changes_nothing() {
    let _turn = one_at_a_time();
    let mut cluster = Cluster::healthy();
    let before = cluster.active();
    cluster.verb(&["switchover", "--to", &before.primary]).exits(2);
    cluster.verb(&["switchover", "--to", "n9"]).exits(2);
    let wrong_term = cluster.verb(&["switchover", "--expect-term", "999"]).exits(2);
    let told = format!("{}{}", wrong_term.stdout, wrong_term.stderr);
    assert!(told.contains("999") && told.contains(&before.term.to_string()), "both terms are named: {told}");

    let down = cluster.standbys()[0];
    cluster.kill_role(down);
    cluster.kill_postgres(down);
    wait_for("the manager to see the standby gone", LONG, || match cluster.node_state(down)? {
        state if state == "unreachable" => Ok(()),
        state => Err(state),
    });
    cluster.verb(&["switchover", "--to", down]).exits(2);
    assert_eq!(cluster.active(), before);
}

#[test]
fn a_switchover_whose_shutdown_exceeds_its_bound_leaves_the_cluster_writable() {
    let _turn = one_at_a_time();
    let cluster =
        Cluster::start(&Options { manager: "drain_timeout = \"1s\"\nstop_timeout = \"1s\"\n", ..Options::default() });
    Workload::create_table(&cluster.target()).expect("a table");
    let before = cluster.active();
    let load = Workload::start(&cluster.target(), 4, &STYLES, 1, PAUSE);
    load.wait_for_more(100, LONG);

    // A fast shutdown waits for every backend to end; one that is stopped does not.
    let mut bystander =
        Client::connect(&cluster.node_target(&before.primary)).expect("the node accepts the application");
    let pid = bystander.query("select pg_backend_pid()").expect("an answer").value().parse().expect("a number");
    signal_all(&[Pid::from_raw(pid)], Signal::SIGSTOP);
    let verb = cluster.verb(&["switchover", "--json"]).exits(1);
    let after = cluster.active_after(before.term);
    // An agent without a processor may fail to say in time that it gave up; then its node is as good as lost.
    if !verb.stdout.contains("no answer") {
        assert_eq!(after.primary, before.primary, "the old primary was started again: {verb:?}");
    }
    load.wait_for_more(100, LONG);
    cluster.all_stream();
    let history = load.finish();
    for answer in history.refusals().keys() {
        assert!(["08007", "40001"].contains(&answer.as_str()), "a client saw {answer}");
    }
    cluster.verify(&history, 1);
}

#[test]
fn while_paused_a_dead_primary_is_replaced_only_when_an_operator_acts() {
    let _turn = one_at_a_time();
    let cluster = Cluster::healthy();
    let before = cluster.active();
    cluster.verb(&["resume"]).exits(2);
    cluster.verb(&["pause", "--for", "1h", "--why", "moving cables"]).exits(0);
    let shown = cluster.verb(&["status"]).exits(0).stdout;
    assert!(shown.contains("PAUSED") && shown.contains("moving cables"), "{shown}");

    cluster.kill_postgres(&before.primary);
    wait_for("the pause to hold a failover back", LONG, || {
        let status = cluster.verb(&["status", "--json"]).exits(0).json();
        match status.pointer("/verdict/blockers/0/blocker").and_then(serde_json::Value::as_str) {
            Some("paused") => Ok(()),
            _ => Err(status["verdict"].to_string()),
        }
    });
    assert_eq!(cluster.active().term, before.term, "nothing began");
    cluster.verb(&["resume"]).exits(0);
    let after = cluster.active_after(before.term);
    cluster.all_stream();

    // A pause that ends by itself.
    cluster.verb(&["pause", "--for", "1s"]).exits(0);
    cluster.kill_postgres(&after.primary);
    cluster.active_after(after.term);
    cluster.all_stream();
}

#[test]
fn a_node_joins_is_given_a_vote_and_takes_over_and_the_old_one_leaves() {
    let _turn = one_at_a_time();
    let mut cluster = Cluster::healthy();
    Workload::create_table(&cluster.target()).expect("a table");
    let before = cluster.active();
    let load = Workload::start(&cluster.target(), 4, &STYLES, 1, PAUSE);
    load.wait_for_more(100, LONG);
    // Not there, and no quorum that could be.
    cluster.verb(&["policy", "--voters", "n1,n2,n3,n4"]).exits(2);
    cluster.verb(&["policy", "--k", "3"]).exits(2);

    cluster.join("n4");
    wait_for("the new node to stream", LONG, || match cluster.node_state("n4")? {
        state if state == "streaming" => Ok(()),
        state => Err(state),
    });
    wait_for("the new node to be given a vote", LONG, || {
        let verb = cluster.verb(&["policy", "--voters", "n1,n2,n3,n4", "--k", "2"]);
        if verb.code == 0 { Ok(()) } else { Err(verb) }
    });
    let shown = cluster.verb(&["policy"]).exits(0).stdout;
    assert!(shown.contains("voters n1, n2, n3, n4; commits wait for 2"), "{shown}");
    load.wait_for_more(100, LONG);
    let mut monitor = Client::connect(&cluster.monitor_target(&before.primary)).expect("the node answers");
    let names = monitor.query("show synchronous_standby_names").expect("a setting").value().to_owned();
    monitor.terminate();
    assert!(names.starts_with("ANY 2 (") && names.contains("n4"), "{names}");

    // It takes over like any other, and whom it replaced may leave.
    cluster.verb(&["switchover", "--to", "n4"]).exits(0);
    cluster.active_after(before.term);
    cluster.all_stream();
    let rest: Vec<&str> = ["n1", "n2", "n3", "n4"].into_iter().filter(|n| *n != before.primary).collect();
    cluster.verb(&["policy", "--voters", &rest.join(","), "--k", "1"]).exits(0);
    cluster.kill_role(&before.primary);
    cluster.kill_postgres(&before.primary);
    load.wait_for_more(100, LONG);
    let history = load.finish();
    assert!(history.refusals().is_empty(), "writers saw {:?}", history.refusals());
    cluster.verify(&history, 1);
}
