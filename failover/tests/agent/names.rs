//! What receives WAL under a node's name without being that node: told of, and ended where that can be told.

use super::agents::{Cluster, bin, kill_all, postmaster, signal, unprivileged, until};
use cluster::Term;
use failover::agent::{self, AgentHandle};
use failover::api::{AgentState, PostgresState};
use failover::config::cluster::ClusterConfig;
use failover::record::{MemberRecord, Mode, PrimaryRecord};
use failover::store::Store;
use nix::sys::signal::Signal;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

/// `pg_receivewal` under a standby's name. It ends with the test.
struct Receiver {
    child: Child,
    _dir: tempfile::TempDir,
}

impl Receiver {
    /// `whom`: how it connects, without the name.
    fn start(c: &Cluster, primary: usize, whom: &str) -> Self {
        Self::named(c, primary, whom, c.nodes[1 - primary].id.as_str())
    }

    fn named(c: &Cluster, primary: usize, whom: &str, name: &str) -> Self {
        let config = &c.nodes[primary].config;
        let dir = tempfile::tempdir().unwrap();
        let dsn = format!("{whom} port={} application_name={name}", config.postgres_port);
        let mut command = Command::new(format!("{}/pg_receivewal", bin()));
        command.args(["--no-loop", "--synchronous", "-D"]).arg(dir.path()).args(["-d", &dsn]);
        let child = command.env("PGPASSWORD", "repl's: password\\").stderr(Stdio::piped()).spawn();
        Self { child: child.expect("PostgreSQL's programs are installed"), _dir: dir }
    }

    /// Why the server has ended it.
    async fn told(&mut self) -> String {
        until("the receiver to be ended", async || self.child.try_wait().unwrap()).await;
        let mut told = String::new();
        std::io::Read::read_to_string(&mut self.child.stderr.take().expect("it is piped"), &mut told).unwrap();
        told
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn until_impostors(c: &Cluster, primary: usize, want: &[String]) {
    c.until_state(primary, &format!("the impostors {want:?}"), |s| match &s.postgres {
        PostgresState::Primary(p) => (p.impostors == want).then_some(()),
        _ => None,
    })
    .await;
}

/// A second agent of a node's name, with an empty directory and a port of its own.
async fn second(c: &Cluster, node: usize, shared: ClusterConfig) -> (AgentHandle, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let mut config = c.nodes[node].config.clone();
    (config.data_dir, config.postgres_port) = (dir.path().join("second"), config.postgres_port + 4);
    // By its first look it knows of the other one, however slow that is.
    config.probe_timeout = Duration::from_secs(10);
    let store: Arc<dyn Store> = Arc::new(c.store.client());
    let registry = prometheus::Registry::new();
    let handle = agent::run(config, shared, c.keys.clone(), store, &registry).await.unwrap();
    (handle, dir)
}

/// Nothing runs there, so it gave back a lease by which another's PostgreSQL serves, again and again.
#[test]
fn a_second_agent_of_the_primarys_name_leaves_its_lease_alone() {
    unprivileged("names::a_second_agent_of_the_primarys_name_leaves_its_lease_alone", async {
        let mut c = Cluster::new(22640, 1, Mode::Async, 0);
        let p = c.bootstrap().await;
        let (held, revision) = c.record::<PrimaryRecord>(c.keys.primary()).await.unwrap();
        let (second, _dir) = second(&c, p, c.shared.clone()).await;
        until("it to have read whose term is open", async || (second.state().opened == Term(1)).then_some(())).await;
        // Both say so, orders go on to the one on record, and neither counts.
        let told =
            |state: &AgentState| state.trouble.as_ref().is_some_and(|t| t.contains("another agent")).then_some(());
        until("the second to know", async || told(&second.state())).await;
        c.until_state(p, "the first to know", told).await;
        let (on_record, _) = c.record::<MemberRecord>(c.keys.member(&c.nodes[p].id)).await.unwrap();
        assert_eq!(on_record.agent.port, c.nodes[p].agent_port);
        let refused = c.freeze(p, Term(2)).await.unwrap_err();
        let what = format!("another agent lives under the name of n1, at 127.0.0.1:{}", second.address().port());
        assert!(refused.contains(&what), "{refused}");
        assert!(c.state(p).await.namesake.is_some_and(|told| told.contains(&what)));
        // Which gives back what it may: it has no PostgreSQL.
        second.stop().await;
        c.until_state(p, "nobody else to be there", |s| told(s).is_none().then_some(())).await;
        assert_eq!(c.record::<PrimaryRecord>(c.keys.primary()).await, Some((held.clone(), revision)));

        // Who is killed with its PostgreSQL, and comes back at once, gives back what it held itself.
        c.crash_agent(p).await;
        kill_all(&c.nodes[p].config.data_dir.join("data"));
        c.start(p).await;
        until("the key to be given back", async || {
            c.record::<PrimaryRecord>(c.keys.primary()).await.is_none().then_some(())
        })
        .await;
        // And is on record at once.
        let holder = c.state(p).await.holder;
        let found = || c.record::<MemberRecord>(c.keys.member(&c.nodes[p].id));
        until("its record", async || (found().await?.0.holder.as_ref() == Some(&holder)).then_some(())).await;

        // One with another secret is answered by nobody, and takes the place. That it lives the record tells: who was there says so,
        // and leaves it to that one for a while.
        let dir = tempfile::tempdir().unwrap();
        let secret_file = dir.path().join("secret");
        std::fs::write(&secret_file, "the secret of before it was changed").unwrap();
        let (second, _dir) = self::second(&c, p, ClusterConfig { secret_file, ..c.shared.clone() }).await;
        c.until_state(p, "the first to know", told).await;
        let (on_record, _) = found().await.unwrap();
        assert_eq!((on_record.holder, on_record.agent.port), (Some(second.state().holder), second.address().port()));
        let refused = c.freeze(p, Term(2)).await.unwrap_err();
        assert!(refused.contains("another agent is on record as n1"), "{refused}");
        second.stop().await;
    });
}

#[test]
fn whoever_receives_under_a_standbys_name_is_told_of_and_ended() {
    unprivileged("names::whoever_receives_under_a_standbys_name_is_told_of_and_ended", async {
        let mut c = Cluster::new(22520, 2, Mode::Strict, 1);
        let p = c.bootstrap().await;
        let s = 1 - p;
        until_impostors(&c, p, &[]).await;
        let standby = c.nodes[s].id.clone();
        let local = format!("host={} user=postgres", c.nodes[p].config.data_dir.join("sock").display());

        // A second agent of its name, without data, leaves that to the one on record.
        let (second, _dir) = second(&c, s, c.shared.clone()).await;
        until("it to know who is primary, and of the other", async || {
            let state = second.state();
            (state.opened == Term(1) && state.namesake.is_some()).then_some(())
        })
        .await;
        let state = second.state();
        assert_eq!((&state.postgres, &state.rejoin), (&PostgresState::Absent, &None));
        second.stop().await;

        // A copy of the standby has its password: which of the two is the node nobody can tell.
        let twin = Receiver::start(&c, p, "host=127.0.0.1 user=pgtenure_repl");
        until_impostors(&c, p, &[format!("{standby} is connected twice")]).await;
        // But that both live shows, since both go on confirming what is written.
        c.sql(p).await.batch_execute("CREATE TABLE t (i int)").await.unwrap();
        until("both to be seen to live", async || {
            c.sql(p).await.batch_execute("INSERT INTO t VALUES (1)").await.unwrap();
            matches!(&c.state(p).await.postgres, PostgresState::Primary(p) if p.doubted.iter().eq([&standby]))
                .then_some(())
        })
        .await;
        drop(twin);
        until_impostors(&c, p, &[]).await;

        // Another user: the node is the other one.
        let told = Receiver::start(&c, p, &local).told().await;
        assert!(told.contains("terminating connection due to administrator command"), "{told}");
        until_impostors(&c, p, &[]).await;
        c.until_streaming(s, p, Term(1)).await;

        // PostgreSQL does not look at case when it counts, so nor does who is a standby's user help.
        let upper = standby.as_str().to_uppercase();
        let told = Receiver::named(&c, p, "host=127.0.0.1 user=pgtenure_repl", &upper).told().await;
        assert!(told.contains("terminating connection due to administrator command"), "{told}");
        until_impostors(&c, p, &[]).await;
        c.until_streaming(s, p, Term(1)).await;

        // Alone under the name it would acknowledge what the node lacks.
        c.crash_agent(s).await;
        signal(postmaster(&c.nodes[s].config), Signal::SIGQUIT);
        until("the standby to be gone", async || {
            (c.value(p, "SELECT count(*) FROM pg_stat_replication").await == "0").then_some(())
        })
        .await;
        let told = Receiver::start(&c, p, &local).told().await;
        assert!(told.contains("terminating connection due to administrator command"), "{told}");
        until_impostors(&c, p, &[]).await;
    });
}
