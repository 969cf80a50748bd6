//! `pgtenure adopt`: taking over a primary and standbys that somebody set up by hand.

use integration::client::{Client, Target};
use integration::cluster::{Cluster, LONG, Verb, one_at_a_time, program};
use integration::config_file::{NODES, Options};
use integration::postgres::{bin_dir, describe};
use integration::process::{Process, signal_all, unprivileged};
use integration::wait::{wait_for, wait_until};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// Servers as an operator runs them: in a directory each, with configuration inside, where agents will listen.
struct ByHand {
    dir: PathBuf,
    targets: Vec<Target>,
}

impl ByHand {
    /// A primary at the first node and standbys that stream at the others.
    fn start(cluster: &Cluster) -> Self {
        let target =
            |node| Target { user: "postgres".into(), database: "postgres".into(), ..cluster.node_target(node) };
        let it = Self { dir: cluster.scratch().dir("hand"), targets: NODES.map(target).into() };
        for (i, node) in NODES.into_iter().enumerate() {
            let (data, port) = (it.data(i), it.targets[0].addr.port());
            let data = data.to_str().expect("plain text");
            let from = format!("host=127.0.0.1 port={port} user=postgres application_name={node}");
            if i == 0 {
                it.run("initdb", &["-D", data, "-U", "postgres", "-A", "trust", "--data-checksums", "-N"]);
            } else {
                it.run("pg_basebackup", &["-D", data, "-d", &from, "-R", "-c", "fast", "-N"]);
            }
            let settings = format!(
                "port = {}\nlisten_addresses = '127.0.0.1'\nunix_socket_directories = ''\nshared_buffers = '16MB'\n\
                 dynamic_shared_memory_type = mmap\n",
                it.targets[i].addr.port()
            );
            std::fs::write(it.data(i).join("postgresql.conf"), settings).expect("root may write");
            it.serve(i);
        }
        it
    }

    fn serve(&self, i: usize) {
        let (data, log) = (self.data(i), self.log(i));
        let (data, log) = (data.to_str().expect("plain text"), log.to_str().expect("plain text"));
        self.run("pg_ctl", &["-D", data, "-w", "-l", log, "start"]);
    }

    fn run(&self, program: &str, arguments: &[&str]) {
        let mut command = unprivileged(bin_dir().join(program));
        let output = command.args(arguments).current_dir(&self.dir).output().expect("PostgreSQL's programs start");
        assert!(output.status.success(), "{program}: {}", describe(&output));
    }

    fn data(&self, i: usize) -> PathBuf {
        self.dir.join(NODES[i])
    }

    fn log(&self, i: usize) -> PathBuf {
        self.dir.join(format!("{}.log", NODES[i]))
    }

    fn query(&self, i: usize, sql: &str) -> String {
        let mut client = Client::connect(&self.targets[i]).expect("the server serves");
        let answer = client.query(sql).expect("the server answers");
        client.terminate();
        answer.rows.first().and_then(|row| row[0].clone()).unwrap_or_default()
    }

    /// Once told to stop this server goes on stopping.
    fn stops_slowly(&self, i: usize) -> Stopping<'_> {
        let checkpointer = self.query(i, "SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'");
        let checkpointer = Pid::from_raw(checkpointer.parse().expect("a number"));
        signal_all(&[checkpointer], Signal::SIGSTOP);
        Stopping { hand: self, i, checkpointer, before: self.orders_to_stop(i) }
    }

    fn orders_to_stop(&self, i: usize) -> usize {
        let log = std::fs::read_to_string(self.log(i)).expect("a log");
        log.matches("received fast shutdown request").count()
    }
}

/// A server whose checkpointer stands still.
struct Stopping<'a> {
    hand: &'a ByHand,
    i: usize,
    checkpointer: Pid,
    before: usize,
}

impl Stopping<'_> {
    fn is_asked_to(&self) {
        wait_until("the agent's order to stop", LONG, || self.hand.orders_to_stop(self.i) > self.before);
    }

    fn ends(self) {
        signal_all(&[self.checkpointer], Signal::SIGCONT);
        let pid_file = self.hand.data(self.i).join("postmaster.pid");
        wait_until("the end of the server", LONG, || !pid_file.exists());
    }
}

fn command(cluster: &Cluster, more: &[&str]) -> Command {
    let mut command = Command::new(program());
    let primary = format!("host=127.0.0.1 port={} user=postgres", cluster.ports(NODES[0]).postgres.port());
    command.args(["adopt", "--primary", &primary, "--config"]).arg(cluster.config(NODES[0])).args(more);
    command
}

fn adopt(cluster: &Cluster, more: &[&str]) -> Verb {
    let output = command(cluster, more).stdin(Stdio::null()).output().expect("our own program starts");
    let text = |b: Vec<u8>| String::from_utf8_lossy(&b).into_owned();
    Verb { code: output.status.code().unwrap_or(-1), stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// Carries it out beside what else happens.
fn adopting(cluster: &Cluster, name: &str) -> Process {
    let log = cluster.scratch().path().join(format!("log/{name}.log"));
    Process::spawn(name, command(cluster, &["--yes"]), cluster.scratch().path(), &log).expect("our own program starts")
}

#[test]
fn a_cluster_made_by_hand_is_adopted_and_a_failover_keeps_its_rows() {
    let _turn = one_at_a_time();
    let mut cluster = Cluster::unstarted(&Options::default());
    let hand = ByHand::start(&cluster);
    hand.query(0, "CREATE TABLE t (i int); INSERT INTO t SELECT generate_series(1, 1000)");
    for (i, node) in NODES.into_iter().enumerate() {
        let text = std::fs::read_to_string(cluster.config(node)).expect("the agent's file");
        let there = format!("[agent]\nadopt = \"{}\"\n", hand.data(i).display());
        cluster.scratch().file(&format!("{node}.toml"), &text.replacen("[agent]\n", &there, 1));
        cluster.start_role(node);
    }
    // Without a manager it is refused, and nothing is touched.
    wait_for("the agents to register", LONG, || {
        let verb = adopt(&cluster, &["--yes"]).exits(2);
        let (refused, led) = (verb.stderr.matches("refused: ").count(), !verb.stderr.contains("no manager leads"));
        if refused == 1 && !led { Ok(()) } else { Err(verb) }
    });
    cluster.start_role("m1");
    let plan = planned(&cluster);
    let said = ["3. in etcd: the cluster in term 1", "nothing was changed; --yes carries it out"];
    assert!(said.iter().all(|said| plan.stdout.contains(said)), "{plan:?}");
    assert!(adopt(&cluster, &["--undo"]).exits(2).stderr.contains("no adoption is under way"));

    // Taken back while a server is being stopped: it is not moved, and started as before. Who carried it out learns of that.
    let stopping = hand.stops_slowly(1);
    let mut first = adopting(&cluster, "first");
    stopping.is_asked_to();
    let undone = adopt(&cluster, &["--undo", "--wait", "0s"]).exits(0).stdout;
    assert!(undone.contains("n2 does not follow the primary") && !undone.contains("n3"), "{undone}");
    assert_eq!(first.wait(LONG).expect("it ends").code(), Some(1), "{}", first.log());
    assert!(first.log().contains("no adoption is under way"), "{}", first.log());
    stopping.ends();
    wait_until("its agent to say so", LONG, || cluster.role("n2").log().contains("the adoption was taken back"));
    hand.serve(1);

    // The primary serves all the while, and so do the standbys whose turn has not come. An agent that ends when it has stopped its
    // server, or has moved the directory too, goes on with what it finds.
    let (stopping, next) = (hand.stops_slowly(1), hand.stops_slowly(2));
    let mut second = adopting(&cluster, "second");
    stopping.is_asked_to();
    cluster.kill_role("n2");
    stopping.ends();
    assert!(hand.data(1).exists());
    cluster.start_role("n2");
    hand.query(0, "INSERT INTO t VALUES (0)");
    next.is_asked_to();
    // It says so behind what makes the agent stop that.
    wait_for("the command to say that it waits", LONG, || {
        if second.log().contains("waiting for n3") { Ok(()) } else { Err(second.log()) }
    });
    second.kill();
    cluster.kill_role("n3");
    next.ends();
    std::fs::rename(hand.data(2), cluster.data_dir("n3")).expect("one file system");
    // Taken back, and what was moved serves on.
    let undone = adopt(&cluster, &["--undo", "--wait", "0s"]).exits(0).stdout;
    assert!(undone.contains("n2 had its turn") && !undone.contains("n2 does not follow"), "{undone}");
    assert!(undone.contains("n3 does not follow the primary"), "{undone}");
    cluster.kill_role("n2");
    cluster.start_role("n2");
    hand.query(0, "CREATE TABLE undone ()");
    wait_until("what was written after the undo at n2", LONG, || {
        cluster.superuser("n2", "SELECT to_regclass('undone') IS NOT NULL").is_ok_and(|there| there == "t")
    });

    planned(&cluster);
    let waited = adopt(&cluster, &["--yes", "--wait", "1s"]).exits(1);
    assert!(waited.stdout.contains("the cluster is on record, paused"), "{waited:?}");
    assert!(
        waited.stderr.contains("n3 do not stream") && waited.stderr.contains("give the command again"),
        "{waited:?}"
    );
    assert!(hand.data(0).exists() && !hand.data(1).exists() && !hand.data(2).exists());
    hand.query(0, "INSERT INTO t VALUES (0)");
    let status = cluster.verb(&["status", "--json"]).exits(0).json();
    assert!(!status["paused"].is_null() && status["safe_to_lose_primary"]["safe"] == false, "{status}");
    cluster.start_role("n3");
    let adopted = adopt(&cluster, &["--yes"]).exits(0).stdout;
    for said in ["going on with", "term 2 is open on n1, after", "commits wait for 1 standbys", "adopted"] {
        assert!(adopted.contains(said), "{said}: {adopted}");
    }
    assert!(adopt(&cluster, &["--undo"]).exits(2).stderr.contains("no adoption is under way"));
    is_protected(&cluster);
    assert_eq!(cluster.superuser("n1", "SHOW synchronous_standby_names").expect("an answer"), "ANY 1 (n2, n3)");
    has_rows(&cluster, "n1");

    cluster.kill_postmaster("n1");
    let after = cluster.active_after(2);
    assert_ne!(after.primary, "n1");
    has_rows(&cluster, &after.primary);
    cluster.all_stream();
    is_protected(&cluster);
}

fn planned(cluster: &Cluster) -> Verb {
    wait_for("a plan without obstacles", LONG, || {
        let verb = adopt(cluster, &[]);
        if verb.code == 0 { Ok(verb) } else { Err(verb) }
    })
}

fn has_rows(cluster: &Cluster, node: &str) {
    assert_eq!(cluster.superuser(node, "SELECT count(*) FROM t").expect("an answer"), "1002", "{node}");
}

fn is_protected(cluster: &Cluster) {
    wait_for("commits to be protected", LONG, || {
        let s = cluster.status()?;
        let free = s["suspended"].is_null() && s["paused"].is_null();
        if free && s["safe_to_lose_primary"]["safe"] == true { Ok(()) } else { Err(s.to_string()) }
    });
}
