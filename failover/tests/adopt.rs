//! Taking over a primary and standbys that somebody set up by hand, with real PostgreSQL.

#[allow(dead_code)] // another test's harness, of which this one needs the half
mod agents;

use agents::{Cluster, SECRET, bin, kill_all, postmaster, signal, unprivileged, until};
use cluster::secret::Secret;
use cluster::{NodeId, Term, TimelineId};
use failover::adopt::{self, plan};
use failover::config::manager::{ManagerRaw, check};
use failover::fsm::status::Status;
use failover::manager::{ManagerConfig, ManagerHandle, start};
use failover::record::{Mode, Phase};
use nix::sys::signal::Signal;
use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_postgres::{Client, NoTls};

/// Servers as an operator runs them: in a directory each, with configuration inside.
struct ByHand {
    dir: tempfile::TempDir,
    ports: [u16; 3],
    /// How often each was told to stop.
    stops: [Cell<usize>; 3],
}

impl Drop for ByHand {
    fn drop(&mut self) {
        (0..3).for_each(|i| kill_all(&self.data(i)));
    }
}

fn run(program: &str, args: &[&str]) {
    let out = Command::new(format!("{}/{program}", bin())).args(args).output().unwrap();
    assert!(out.status.success(), "{program}: {}", String::from_utf8_lossy(&out.stderr));
}

impl ByHand {
    /// A primary and two standbys that stream, with this port and the following.
    fn start(port: u16) -> Self {
        let it =
            Self { dir: tempfile::tempdir().unwrap(), ports: [port, port + 1, port + 2], stops: Default::default() };
        let (first, sync) = (it.data(0), ["--data-checksums", "-N"]);
        run("initdb", &[&["-D", text(&first), "-U", "postgres", "-A", "trust"][..], &sync].concat());
        it.configure(0);
        for i in 1..3 {
            let from = format!("host=127.0.0.1 port={port} user=postgres application_name=n{}", i + 1);
            run("pg_basebackup", &["-D", text(&it.data(i)), "-d", &from, "-R", "-c", "fast", "-N"]);
            it.configure(i);
        }
        it
    }

    /// A standby of nobody.
    fn alone(port: u16) -> Self {
        let it = Self { dir: tempfile::tempdir().unwrap(), ports: [port; 3], stops: Default::default() };
        run("initdb", &["-D", text(&it.data(0)), "-U", "postgres", "-A", "trust", "-N"]);
        std::fs::write(it.data(0).join("standby.signal"), "").unwrap();
        it.configure(0);
        it
    }

    fn configure(&self, i: usize) {
        let settings = format!(
            "port = {}\nlisten_addresses = '127.0.0.1'\nunix_socket_directories = ''\nshared_buffers = '16MB'\n\
             synchronous_standby_names = ''\n",
            self.ports[i]
        );
        let file = self.data(i).join("postgresql.conf");
        let before = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, before + &settings).unwrap();
        self.run(i);
    }

    fn run(&self, i: usize) {
        let log = self.dir.path().join(format!("{i}.log"));
        run("pg_ctl", &["-D", text(&self.data(i)), "-w", "-l", text(&log), "start"]);
    }

    fn data(&self, i: usize) -> PathBuf {
        self.dir.path().join(format!("hand{i}"))
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

async fn connect(port: u16) -> Client {
    let to = format!("host=127.0.0.1 port={port} user=postgres dbname=postgres");
    let (client, connection) = tokio_postgres::connect(&to, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

fn manager(c: &Cluster) -> ManagerHandle {
    let config = ManagerConfig {
        cluster: "t".into(),
        one_of_several: false,
        keys: c.keys.clone(),
        section: check(&ManagerRaw::default()).unwrap(),
        secret: Secret::new(SECRET),
        admin: "127.0.0.1:1".into(),
        view_validity: Duration::from_secs(1),
    };
    start(config, Arc::new(c.store.client()), &prometheus::Registry::new()).unwrap()
}

async fn status_is(m: &ManagerHandle, what: &str, test: impl Fn(&Status) -> bool) -> Arc<Status> {
    let mut status = m.status();
    match tokio::time::timeout(Duration::from_secs(60), status.wait_for(|s| test(s))).await {
        Ok(found) => Arc::clone(&found.unwrap()),
        Err(_) => panic!("waited for {what}; the manager says {:#?}", m.status().borrow()),
    }
}

#[test]
fn the_timeline_is_the_one_that_is_written_though_no_checkpoint_has_noted_it() {
    unprivileged("the_timeline_is_the_one_that_is_written_though_no_checkpoint_has_noted_it", async {
        let hand = ByHand::alone(22470);
        let client = connect(hand.ports[0]).await;
        let checkpointer = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'";
        let checkpointer: i32 = client.query_one(checkpointer, &[]).await.unwrap().get(0);
        signal(checkpointer, Signal::SIGSTOP);
        run("pg_ctl", &["-D", text(&hand.data(0)), "-w", "promote"]);
        assert_eq!(adopt::survey(&client).await.unwrap().timeline, TimelineId(2));
        signal(checkpointer, Signal::SIGCONT);
        // Nor does it fail on a standby, which the plan refuses by name.
        std::fs::write(hand.data(0).join("standby.signal"), "").unwrap();
        run("pg_ctl", &["-D", text(&hand.data(0)), "-w", "-l", text(&hand.dir.path().join("log")), "restart"]);
        let found = adopt::survey(&connect(hand.ports[0]).await).await.unwrap();
        assert!(found.in_recovery && found.timeline == TimelineId(2), "{found:?}");
    });
}

/// The node has its turn, and its agent stops the server, which goes on stopping until what is given here is done.
async fn while_it_stops(c: &mut Cluster, hand: &ByHand, i: usize, meanwhile: impl AsyncFnOnce(&mut Cluster)) {
    let checkpointer = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'";
    let checkpointer: i32 = connect(hand.ports[i]).await.query_one(checkpointer, &[]).await.unwrap().get(0);
    signal(checkpointer, Signal::SIGSTOP);
    adopt::give_turn(&c.store, &c.keys, &c.nodes[i].id).await.unwrap();
    let asked = "received fast shutdown request";
    let log = hand.dir.path().join(format!("{i}.log"));
    let times = || std::fs::read_to_string(&log).unwrap().matches(asked).count();
    let before = hand.stops[i].replace(hand.stops[i].get() + 1);
    until("the agent's order to stop", async || (times() > before).then_some(())).await;
    meanwhile(c).await;
    signal(checkpointer, Signal::SIGCONT);
    let pid_file = hand.data(i).join("postmaster.pid");
    until("the end of the server", async || (!pid_file.exists()).then_some(())).await;
}

#[test]
fn a_cluster_made_by_hand_is_adopted_and_a_failover_keeps_its_rows() {
    unprivileged("a_cluster_made_by_hand_is_adopted_and_a_failover_keeps_its_rows", async {
        let hand = ByHand::start(22160);
        let old = connect(22160).await;
        old.batch_execute("CREATE TABLE t (i int); INSERT INTO t SELECT generate_series(1, 1000)").await.unwrap();
        let mut c = Cluster::new(22160, 3, Mode::Strict, 1);
        for i in 0..3 {
            c.nodes[i].config.adopt = hand.data(i);
            c.start(i).await;
        }
        let n1: NodeId = c.nodes[0].id.clone();
        let found = adopt::survey(&old).await.unwrap();
        // Without a manager it is refused, and nothing is touched.
        let plan_now = async || plan::plan(&found, &adopt::wanted(&c.store, &c.keys, &c.shared, &n1).await.unwrap());
        until("the members", async || (plan_now().await.obstacles.len() == 1).then_some(())).await;
        assert!(plan_now().await.obstacles[0].contains("no manager leads"));
        let m = manager(&c);
        until("a plan without obstacles", async || plan_now().await.obstacles.is_empty().then_some(())).await;
        // They go by the nodes' names already, as if they were under their agents.
        assert_eq!(adopt::following(&old).await.unwrap(), [] as [String; 0]);

        let (repl, monitor) = (Secret::new("repl's: password\\"), Secret::new("monitor"));
        adopt::prepare(&old, &found, &n1, &repl, &monitor).await.unwrap();
        adopt::prepare(&old, &found, &n1, &repl, &monitor).await.expect("it can be repeated");
        let found = adopt::survey(&old).await.unwrap();
        let (store, keys, shared) = (c.store.client(), c.keys.clone(), c.shared.clone());
        let begin = async || adopt::begin(&store, &keys, &shared, &found, (&n1, "test", 0)).await;
        begin().await.unwrap();
        assert!(matches!(begin().await, Err(adopt::AdoptError::Exists { term: Term(1) })));
        // Taken back while a server is being stopped: it is not moved, and started as before.
        while_it_stops(&mut c, &hand, 2, async |c| {
            assert_eq!(adopt::undo(&c.store, &c.keys).await.unwrap(), [c.nodes[2].id.clone()]);
        })
        .await;
        c.until_state(2, "the end of its turn", |s| s.rejoin.is_none().then_some(())).await;
        hand.run(2);
        begin().await.unwrap();
        // The primary serves all the while, and so do the standbys whose turn has not come. An agent that ends when it has
        // stopped its server, or has moved the directory too, goes on with what it finds.
        let turn = async |node: &str, then: &[&str]| {
            adopt::give_turn(&store, &keys, &node.parse().unwrap()).await.unwrap();
            until(&format!("{node} under its agent"), async || {
                old.batch_execute("INSERT INTO public.t VALUES (0)").await.unwrap();
                (adopt::following(&old).await.unwrap() == then).then_some(())
            })
            .await;
        };
        while_it_stops(&mut c, &hand, 1, async |c| c.crash_agent(1).await).await;
        assert!(hand.data(1).exists());
        c.start(1).await;
        turn("n2", &["n2"]).await;
        // Taken back, and what was moved serves on.
        assert_eq!(adopt::undo(&c.store, &c.keys).await.unwrap(), [c.nodes[1].id.clone()]);
        c.crash_agent(1).await;
        c.start(1).await;
        old.batch_execute("CREATE TABLE public.undone ()").await.unwrap();
        let reads = async || (c.value(1, "SELECT to_regclass('undone') IS NOT NULL").await == "t").then_some(());
        until("what was written after the undo at n2", reads).await;
        begin().await.unwrap();
        turn("n2", &["n2"]).await;
        while_it_stops(&mut c, &hand, 2, async |c| c.crash_agent(2).await).await;
        std::fs::rename(hand.data(2), c.nodes[2].config.data_dir.join("data")).unwrap();
        c.start(2).await;
        turn("n3", &["n2", "n3"]).await;
        assert!(hand.data(0).exists() && !hand.data(1).exists() && !hand.data(2).exists());
        let s = m.status().borrow().clone();
        assert!(s.paused.is_some() && !s.safe_to_lose_primary.safe, "{s:#?}");
        let rows: i64 = old.query_one("SELECT count(*) FROM public.t", &[]).await.unwrap().get(0);

        let begun = Instant::now();
        adopt::take_primary(&c.store, &c.keys).await.unwrap();
        let s = status_is(&m, "the next term", |s| s.term == Some(Term(2)) && s.phase == Some(Phase::Active)).await;
        eprintln!("without writes for {:?}: {:?}", begun.elapsed(), s.last_failover.as_ref().map(|j| &j.phases));
        assert_eq!(s.primary, Some(n1.clone()));
        let safe = |s: &Status| s.suspended.is_none() && s.paused.is_none() && s.safe_to_lose_primary.safe;
        status_is(&m, "protection", safe).await;
        assert_eq!(c.value(0, "SHOW synchronous_standby_names").await, "ANY 1 (n2, n3)");
        assert_eq!(c.value(0, "SELECT count(*) FROM t").await, rows.to_string());
        assert_eq!(adopt::standing(&c.store, &c.keys).await.unwrap().begun, None);

        signal(postmaster(&c.nodes[0].config), Signal::SIGKILL);
        let s = status_is(&m, "the failover", |s| s.term == Some(Term(3)) && s.phase == Some(Phase::Active)).await;
        let new = c.number(s.primary.as_ref().unwrap());
        assert_ne!(new, 0);
        assert_eq!(c.value(new, "SELECT count(*) FROM t").await, rows.to_string());
        status_is(&m, "the old primary as a standby", safe).await;
        m.stop().await;
    });
}
