//! What an operator may and may not do, what the refusals say, and what an allowed loss leaves behind.

use integration::cluster::{Cluster, LONG, Verb, one_at_a_time, program};
use integration::etcd::Etcd;
use integration::ports::free_port;
use integration::postgres::describe;
use integration::process::{Process, unprivileged};
use integration::scratch::Scratch;
use integration::wait::{wait_for, wait_until};
use integration::workload::{Readers, Style, Workload};
use std::process::Command;
use std::time::Duration;

fn said(verb: &Verb) -> String {
    format!("{}{}", verb.stdout, verb.stderr)
}

#[test]
fn a_failover_that_could_lose_commits_needs_a_word_and_leaves_a_mark_until_rearmed() {
    let _turn = one_at_a_time();
    let mut cluster = Cluster::healthy();
    Workload::create_table(&cluster.target()).expect("a table");
    let before = cluster.active();
    let standbys = cluster.standbys();
    let (down, left) = (standbys[0], standbys[1]);
    wait_until("the status to call the cluster safe", LONG, || {
        cluster.verb(&["status"]).stdout.to_lowercase().contains("safe")
    });

    cluster.kill_role(down);
    cluster.kill_postgres(down);
    refuses_with_numbers(&cluster, down);
    let load = Workload::start(&cluster.target(), 3, &[Style::Autocommit], 1, Duration::from_millis(5));
    load.wait_for_more(100, LONG);

    // Now the primary as well. One standby of three nodes cannot know that it has every acknowledged commit.
    cluster.kill_role(&before.primary);
    cluster.kill_postgres(&before.primary);
    refuses_with_numbers(&cluster, &before.primary);
    refuses_with_numbers(&cluster, down);
    let status = wait_for("a manager's answer", LONG, || cluster.status());
    assert_eq!(status["primary"], serde_json::json!(before.primary));

    cluster.verb(&["failover", "--allow-data-loss"]).exits(0);
    let after = cluster.active_after(before.term);
    assert_eq!(after.primary, left);
    load.wait_for_more(100, LONG);
    let status = cluster.verb(&["status"]).exits(0).stdout;
    assert!(status.to_lowercase().contains("unprotected"), "commits are unprotected and a person is told: {status}");
    assert!(status.contains("0/"), "since which LSN: {status}");
    let json = cluster.verb(&["status", "--json"]).exits(0).json();
    assert!(json["suspended"]["since"].is_string(), "{json}");

    cluster.start_role(down);
    cluster.start_role(&before.primary);
    cluster.all_stream();
    wait_for("the cluster to be protected again", LONG, || {
        let json = cluster.verb(&["status", "--json"]).json();
        if json["suspended"].is_null() { Ok(()) } else { Err(json) }
    });
    assert!(!cluster.verb(&["status"]).stdout.to_lowercase().contains("unprotected"));
    load.wait_for_more(50, LONG);
    let history = load.finish();
    // The standby left was connected all the time, and with one standby down every commit waited for it.
    cluster.verify(&history, 1);

    let terms = cluster.verb(&["history", "--json"]).exits(0);
    assert!(terms.stdout.contains(&after.term.to_string()), "{terms:?}");
    cluster.verb(&["history"]).exits(0);
    cluster.verb(&["lag"]).exits(0);
    let lag = cluster.verb(&["lag", "--json"]).exits(0);
    assert!(lag.json().is_object() || lag.json().is_array(), "{lag:?}");
    watches_the_lag(&cluster);
}

/// `lag --watch`: each look a table, and the past of every standby as a line that grows by a point.
fn watches_the_lag(cluster: &Cluster) {
    let standbys = cluster.verb(&["lag", "--json"]).exits(0).json()["standbys"].as_array().cloned().unwrap_or_default();
    assert_eq!(standbys.len(), 2, "{standbys:?}");
    let watched = cluster.verb(&["lag", "--watch", "--interval", "100ms", "--count", "3"]).exits(0).stdout;
    assert_eq!(watched.matches("REPLAY LAG").count(), 3, "{watched}");
    for standby in &standbys {
        let node = standby["node"].as_str().expect("a standby has a name");
        let past = watched.lines().filter(|line| line.starts_with(node));
        let points = |line: &str| line.chars().filter(|c| ('▁'..='█').contains(c) || *c == '?').count();
        let past: Vec<usize> = past.map(points).filter(|points| *points > 0).collect();
        assert!(past.len() == 3 && past.is_sorted_by(|a, b| a < b || *b == 60), "{node}: {past:?} in {watched}");
    }
    let json = cluster.verb(&["lag", "--watch", "--interval", "100ms", "--count", "2", "--json"]).exits(0).stdout;
    let looks: Vec<serde_json::Value> = json.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert!(looks.len() == 2 && looks.iter().all(|look| look["standbys"].is_array()), "{json}");
}

/// `failover` says no, with m, k and who is missing, in words and in JSON.
fn refuses_with_numbers(cluster: &Cluster, missing: &str) {
    // Until it is missed, a failover would be begun and would succeed with the live primary's own WAL.
    wait_for("the manager to miss the dead node", LONG, || match cluster.node_state(missing)? {
        state if state == "unreachable" => Ok(()),
        state => Err(state),
    });
    let refused = cluster.verb(&["failover"]).exits(2);
    let text = said(&refused);
    assert!(["m=3", "k=1", "2 needed", missing].iter().all(|n| text.contains(n)), "{text}");
    let json = cluster.verb(&["failover", "--json"]).exits(2);
    let text = json.json().to_string();
    assert!(text.contains(missing) && text.contains("blockers"), "{text}");
    let status = cluster.verb(&["status"]).exits(0).stdout.to_lowercase();
    assert!(
        status.contains("not safe") || status.contains("unsafe") || status.contains("safe to lose the primary: no"),
        "{status}"
    );
    assert!(status.contains(missing), "the status says why: {status}");
}

#[test]
fn a_fenced_node_serves_nothing_until_it_is_unfenced() {
    let _turn = one_at_a_time();
    let cluster = Cluster::healthy();
    Workload::create_table(&cluster.target()).expect("a table");
    let before = cluster.active();
    let fenced = cluster.standbys()[0];
    let load = Workload::start(&cluster.target(), 3, &[Style::Autocommit], 1, Duration::from_millis(5));
    let readers = Readers::start(&cluster.target(), 3, Duration::from_millis(2));
    load.wait_for_more(50, LONG);

    let primary = cluster.verb(&["fence", &before.primary]).exits(2);
    assert!(said(&primary).contains("stops writes"), "{primary:?}");
    cluster.verb(&["fence", "n9"]).exits(2);

    cluster.verb(&["fence", fenced]).exits(0);
    wait_until("PostgreSQL of the fenced node to be stopped", LONG, || cluster.postmaster(fenced).is_none());
    load.wait_for_more(100, LONG);
    let status = cluster.verb(&["status"]).exits(0).stdout;
    assert!(status.contains("fenced"), "{status}");
    // With one of two standbys out, the primary cannot be replaced without a word.
    wait_for("a switchover to the fenced node to be refused", LONG, || {
        let verb = cluster.verb(&["switchover", "--to", fenced]);
        if verb.code == 2 { Ok(()) } else { Err(verb) }
    });

    cluster.verb(&["unfence", fenced]).exits(0);
    cluster.streams(fenced);
    load.wait_for_more(50, LONG);
    let (history, reads) = (load.finish(), readers.finish());
    assert!(history.refusals().is_empty(), "writers saw {:?}", history.refusals());
    assert!(reads.errors.is_empty(), "readers saw {:?}", reads.errors);
    assert_eq!(cluster.active(), before);
    cluster.verify(&history, 1);
    a_fenced_primary_stops_writes(&cluster, &before.primary);
}

fn a_fenced_primary_stops_writes(cluster: &Cluster, primary: &str) {
    let mut client = cluster.connect();
    client.query("insert into rows(id) values (-1)").expect("a row");
    cluster.verb(&["fence", primary, "--stop-writes"]).exits(0);
    wait_until("PostgreSQL of the fenced primary to be stopped", LONG, || cluster.postmaster(primary).is_none());
    let read = client.query("select current_setting('cluster_name')");
    // Reads go on at the standbys, as far as they are fresh; a write is held.
    if let Ok(answer) = &read {
        assert_ne!(answer.value(), primary);
    }
    let writer = std::thread::spawn(move || client.query("insert into rows(id) values (-2)").map(|_| client));
    cluster.verb(&["unfence", primary]).exits(0);
    cluster.endpoint_writes();
    let mut client = writer.join().expect("no panic").expect("a held write is done once writes are back");
    assert_eq!(client.query("begin; select count(*) from rows where id = -2; commit").expect("a read").value(), "1");
}

#[test]
fn wrong_usage_and_wrong_secrets_are_told_apart_from_refusals() {
    let _turn = one_at_a_time();
    let cluster = Cluster::healthy();
    cluster.verb(&["fence"]).exits(64);
    cluster.verb(&["nonsense"]).exits(64);
    let wrong = cluster.scratch().file("wrong.secret", "not the secret of this cluster\n");
    let manager = format!("http://{}", cluster.layout().managers[0]);
    let mut command = std::process::Command::new(integration::cluster::program());
    command.args(["fence", "n2", "--admin", &manager, "--secret-file"]).arg(wrong);
    let output = command.output().expect("our own program starts");
    assert_eq!(output.status.code(), Some(1), "{}", integration::postgres::describe(&output));
    assert!(String::from_utf8_lossy(&output.stderr).contains("secret"), "{}", integration::postgres::describe(&output));
    for name in ["n1", "m1", "proxy"] {
        let mut command = std::process::Command::new(integration::cluster::program());
        let output =
            command.args(["config", "check"]).arg(cluster.config(name)).output().expect("our own program starts");
        assert!(output.status.success(), "{name}: {}", integration::postgres::describe(&output));
    }
}

#[test]
fn managers_of_two_clusters_answer_for_the_one_of_the_file_or_the_one_named() {
    let _turn = one_at_a_time();
    let scratch = Scratch::new();
    let etcd = Etcd::start(&scratch);
    let (dir, admin) = (scratch.path().display(), format!("127.0.0.1:{}", free_port()));
    scratch.file("shared.secret", "0123456789abcdef\n");
    let file = |name: &str, prefix: &str, more: &str| {
        let text = format!(
            "roles = [\"manager\"]\n[admin]\nlisten = \"{admin}\"\n[cluster]\nname = \"{name}\"\nvoters = [\"n1\", \"n2\"]\n\
             secret_file = \"{dir}/shared.secret\"\n[etcd]\nendpoints = [\"http://{}\"]\nprefix = \"{prefix}\"\n{more}",
            etcd.endpoint()
        );
        scratch.file(&format!("{name}.toml"), &text)
    };
    let first = file("a", "/first", "[manager]\nclusters = { b = { prefix = \"/second\" } }\n");
    let second = file("b", "/second", "");
    let mut managers = unprivileged(program());
    managers.args(["run", "--config"]).arg(&first);
    let _managers =
        Process::spawn("managers", managers, scratch.path(), &scratch.path().join("managers.log")).expect("they start");

    let first = first.to_str().expect("plain text");
    let second = second.to_str().expect("plain text");
    let status = |target: &[&str]| {
        let output = Command::new(program()).args(["status", "--json"]).args(target).output().expect("it starts");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        serde_json::from_str::<serde_json::Value>(&text).map_err(|e| format!("{e}: {text}{}", describe(&output)))
    };
    for (target, name) in [
        (vec!["--config", first], "a"),
        (vec!["--config", second], "b"),
        (vec!["--config", first, "--cluster", "b"], "b"),
        (vec!["--admin", &admin], "a"),
        (vec!["--admin", &admin, "--cluster", "b"], "b"),
        (vec!["--admin", &admin, "--config", second], "b"),
    ] {
        wait_for(&format!("the status of {name} by {target:?}"), LONG, || {
            status(&target).and_then(|s| if s["cluster"] == name { Ok(()) } else { Err(s.to_string()) })
        });
    }
    let nobody = status(&["--admin", &admin, "--cluster", "c"]).expect("JSON").to_string();
    assert!(nobody.contains("cluster c is not looked after here, but a, b"), "{nobody}");
}
