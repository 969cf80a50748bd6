//! Who connects without being a manager or an agent: to the agent's port, and to PostgreSQL for its WAL.

use super::*;
use std::process::{Command, Stdio};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

#[test]
fn idle_connections_to_an_agents_port_keep_no_order_out() {
    unprivileged("strangers::idle_connections_to_an_agents_port_keep_no_order_out", async {
        let mut c = Cluster::new(22595, 1, Mode::Async, 0);
        c.start(0).await;
        let connect = || TcpStream::connect(("127.0.0.1", c.nodes[0].agent_port));
        // A manager's, kept since before.
        let mut kept = connect().await.unwrap();
        let order = "{\"term\": 1, \"coordinator\": \"test\"}";
        let order = format!(
            "POST /agent/freeze HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {SECRET}\r\ncontent-length: {}\r\n\r\n{order}",
            order.len()
        );
        let mut answer = [0; 4096];
        kept.write_all(order.as_bytes()).await.unwrap();
        assert!(kept.read(&mut answer).await.unwrap() > 0);
        let mut idle = Vec::new();
        for _ in 0..400 {
            idle.push(connect().await.unwrap());
        }
        let ordered = tokio::time::timeout(Duration::from_secs(20), c.freeze(0, Term(2))).await;
        ordered.expect("an order is not kept out").unwrap();
        kept.write_all(order.as_bytes()).await.unwrap();
        let length = kept.read(&mut answer).await.unwrap();
        let text = String::from_utf8_lossy(&answer[..length]);
        assert!(text.starts_with("HTTP/1.1 409") && !text.contains("connection: close"), "it is kept: {text}");
        // Whoever says nothing is sent away, and a stranger after one answer.
        for mut one in idle {
            assert_eq!(one.read(&mut answer).await.unwrap_or(0), 0);
        }
        let mut stranger = connect().await.unwrap();
        stranger.write_all(b"GET /livez HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        let mut told = String::new();
        stranger.read_to_string(&mut told).await.unwrap();
        assert!(told.starts_with("HTTP/1.1 200"), "{told}");
    });
}

#[test]
fn an_agent_with_another_clusters_data_promises_nothing_and_stops_nothing() {
    unprivileged("strangers::an_agent_with_another_clusters_data_promises_nothing_and_stops_nothing", async {
        let mut c = Cluster::new(22690, 1, Mode::Async, 0);
        let p = c.bootstrap().await;
        let (mut init, _) = c.record::<InitRecord>(c.keys.init()).await.unwrap();
        init.system_id = Some("another".into());
        let put = failover::store::Txn::new().put(c.keys.init(), serde_json::to_vec(&init).unwrap());
        assert!(failover::store::Store::txn(&c.store, put).await.unwrap().succeeded);
        let noticed = |s: &AgentState| s.trouble.as_ref().filter(|t| t.contains("another cluster")).map(drop);
        c.until_state(p, "its data to be another cluster's", noticed).await;
        let promise = c.state(p).await.promise;
        let recover = failover::api::Recover { term: Term(9) };
        let orders = [c.freeze(p, Term(9)).await, c.post::<Frozen>(p, "recover", &recover).await];
        for refused in orders.map(Result::unwrap_err) {
            assert!(refused.starts_with("409") && refused.contains("with this cluster's data"), "{refused}");
        }
        assert_eq!(c.state(p).await.promise, promise);
        assert_eq!(c.value(p, "SELECT pg_is_in_recovery()").await, "f");
    });
}

/// Its data was removed, and what its agent remembers was not: a term and a policy of that cluster would be taken for this one's.
#[test]
fn an_agent_that_remembers_another_clusters_terms_waits_without_data_until_they_are_removed_too() {
    let name =
        "strangers::an_agent_that_remembers_another_clusters_terms_waits_without_data_until_they_are_removed_too";
    unprivileged(name, async {
        let mut c = Cluster::new(22692, 2, Mode::Strict, 1);
        let p = c.bootstrap().await;
        let s = 1 - p;
        let dir = c.nodes[s].config.data_dir.clone();
        let (data, memory) = (dir.join("data"), dir.join("agent.json"));
        let read =
            || -> serde_json::Value { serde_json::from_str(&std::fs::read_to_string(&memory).unwrap()).unwrap() };
        let ours = c.state(p).await.system_id.expect("it has data");
        until("a note of whose terms these are", async || (read()["system_id"] == ours.as_str()).then_some(())).await;
        c.crash_agent(s).await;
        kill_all(&data);
        until("their end", async || postgres_of(&data).is_empty().then_some(())).await;
        std::fs::remove_dir_all(&data).unwrap();
        let mut mark = read();
        (mark["system_id"], mark["promise"], mark["policy"]["epoch"]) = ("another".into(), 12.into(), 9.into());
        std::fs::write(&memory, mark.to_string()).unwrap();
        c.start(s).await;
        let noticed = |s: &AgentState| s.trouble.as_ref().filter(|t| t.contains("another cluster")).map(drop);
        c.until_state(s, "its memory to be another cluster's", noticed).await;
        let told = c.state(s).await;
        assert_eq!((told.memory_of.as_deref(), told.system_id), (Some("another"), None));
        let refused = c.freeze(s, Term(13)).await.unwrap_err();
        assert!(refused.starts_with("409") && refused.contains("with this cluster's data"), "{refused}");
        assert!(!data.exists());
        c.crash_agent(s).await;
        std::fs::remove_file(&memory).unwrap();
        c.start(s).await;
        c.until_streaming(s, p, Term(1)).await;
    });
}

#[test]
fn a_role_that_a_rule_admits_receives_wal_and_keeps_nobody_out() {
    unprivileged("strangers::a_role_that_a_rule_admits_receives_wal_and_keeps_nobody_out", async {
        let mut c = Cluster::new(22600, 2, Mode::Strict, 1);
        let rules = ["host replication backup all scram-sha-256", "host all all all scram-sha-256"];
        for node in &mut c.nodes {
            node.config.pg_hba = rules.map(str::to_owned).to_vec();
            let few = [("max_wal_senders", "5"), ("max_connections", "30")];
            node.config.parameters.extend(few.map(|(n, v)| (n.to_owned(), v.to_owned())));
        }
        let p = c.bootstrap().await;
        let roles =
            "CREATE ROLE backup LOGIN REPLICATION PASSWORD 'b'; CREATE ROLE other LOGIN REPLICATION PASSWORD 'b'";
        c.sql(p).await.batch_execute(roles).await.unwrap();
        c.until_replayed(p, &[1 - p]).await;
        let identify = async |user: &str| {
            let mut psql = receiver(&c, p, user);
            psql.args(["-c", "IDENTIFY_SYSTEM"]);
            let out = tokio::task::spawn_blocking(move || psql.output().unwrap()).await.unwrap();
            (out.status.success(), String::from_utf8_lossy(&out.stderr).into_owned())
        };
        let (admitted, why) = identify("backup").await;
        assert!(admitted, "{why}");
        let (admitted, why) = identify("other").await;
        assert!(!admitted && why.contains("no pg_hba.conf entry for replication connection"), "{why}");
        clients_keep_no_agent_out(&c, p).await;
        receivers_keep_no_standby_out(&mut c, p).await;
        who_answers_as_the_primary_gets_no_password(&mut c, p).await;
        receivers_of_a_standby_keep_no_freeze_out(&c, 1 - p).await;
    });
}

/// psql, to ask for WAL as that user.
fn receiver(c: &Cluster, i: usize, user: &str) -> Command {
    let to = format!("host=127.0.0.1 port={} user={user} replication=true", c.nodes[i].config.postgres_port);
    let mut psql = Command::new(format!("{}/psql", agents::bin()));
    psql.args(["-XAt", "-d", &to]).env("PGPASSWORD", "b").stdin(Stdio::null());
    psql
}

/// Those that have a place, until they are dropped.
struct Receivers(Vec<std::process::Child>);

impl Receivers {
    fn add(&mut self, c: &Cluster, i: usize) {
        let mut psql = receiver(c, i, "backup");
        psql.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        self.0.push(psql.spawn().unwrap());
    }
}

impl Drop for Receivers {
    fn drop(&mut self) {
        self.0.iter_mut().for_each(|one| drop((one.kill(), one.wait())));
    }
}

async fn clients_keep_no_agent_out(c: &Cluster, p: usize) {
    let port = c.nodes[p].config.postgres_port;
    let to = format!("host=127.0.0.1 port={port} user=backup password=b dbname=postgres");
    let mut clients = Vec::new();
    let full = loop {
        match tokio_postgres::connect(&to, tokio_postgres::NoTls).await {
            Ok((client, connection)) => {
                tokio::spawn(connection);
                clients.push(client);
            }
            Err(error) => break error,
        }
    };
    assert_eq!(full.code(), Some(&tokio_postgres::error::SqlState::TOO_MANY_CONNECTIONS), "{full}");
    let terms = clients[0].simple_query("SELECT max(term) FROM pgtenure.term").await;
    assert!(terms.is_ok(), "every user may read the table of terms: {terms:?}");
    let (policy, _) = c.record::<PolicyRecord>(c.keys.policy()).await.unwrap();
    let sync_names = format!("ANY 1 ({})", c.nodes[1 - p].id);
    let order = Arm { term: Term(1), sync_names, policy_epoch: policy.epoch };
    c.post::<Armed>(p, "arm", &order).await.unwrap();
}

async fn receivers_keep_no_standby_out(c: &mut Cluster, p: usize) {
    let s = 1 - p;
    let (data, name) = (c.nodes[s].config.data_dir.join("data"), c.nodes[s].id.to_string());
    c.crash_agent(s).await;
    kill_all(&data);
    let mut receivers = Receivers(Vec::new());
    c.until_state(p, "the standby's place to be missed", |state| {
        let told = state.trouble.as_ref().is_some_and(|t| t.contains("max_wal_senders") && t.contains(&name));
        if !told {
            receivers.add(c, p);
        }
        told.then_some(())
    })
    .await;
    c.start(s).await;
    c.until_streaming(s, p, Term(1)).await;
}

/// It asks those who observe it for the password itself, in clear and by MD5.
async fn who_answers_as_the_primary_gets_no_password(c: &mut Cluster, p: usize) {
    c.crash_agent(p).await;
    let impostor = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let key = c.keys.member(&c.nodes[p].id);
    let (mut member, _) = c.record::<MemberRecord>(key.clone()).await.unwrap();
    member.postgres.port = impostor.local_addr().unwrap().port();
    let put = failover::store::Txn::new().put(key, serde_json::to_vec(&member).unwrap());
    assert!(failover::store::Store::txn(&c.store, put).await.unwrap().succeeded);
    for demand in [&b"R\0\0\0\x08\0\0\0\x03"[..], b"R\0\0\0\x0c\0\0\0\x05salt"].into_iter().cycle().take(6) {
        let visit = tokio::time::timeout(Duration::from_secs(20), impostor.accept()).await;
        let (mut login, _) = visit.expect("it is looked at").unwrap();
        let length = login.read_u32().await.unwrap();
        let mut startup = vec![0; length as usize - 4];
        login.read_exact(&mut startup).await.unwrap();
        login.write_all(demand).await.unwrap();
        let mut more = Vec::new();
        // One that has given up meanwhile is gone before it has read the demand: an error.
        let _ = login.read_to_end(&mut more).await;
        assert_eq!(more, b"", "the password, or what is as good: {}", String::from_utf8_lossy(&startup));
    }
}

async fn receivers_of_a_standby_keep_no_freeze_out(c: &Cluster, s: usize) {
    let mut receivers = Receivers(Vec::new());
    until("all places at the standby to be taken", async || {
        receivers.add(c, s);
        (c.value(s, "SELECT count(*) FROM pg_stat_get_wal_senders()").await == "5").then_some(())
    })
    .await;
    let (record, _) = c.begin().await;
    assert!(c.freeze(s, record.term).await.unwrap().position.is_some());
}
