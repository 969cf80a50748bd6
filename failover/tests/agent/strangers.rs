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
fn a_role_that_a_rule_admits_receives_wal_and_no_other() {
    unprivileged("strangers::a_role_that_a_rule_admits_receives_wal_and_no_other", async {
        let mut c = Cluster::new(22600, 1, Mode::Async, 0);
        let rules = ["host replication backup all scram-sha-256", "host all all all scram-sha-256"];
        c.nodes[0].config.pg_hba = rules.map(str::to_owned).to_vec();
        let p = c.bootstrap().await;
        let roles =
            "CREATE ROLE backup LOGIN REPLICATION PASSWORD 'b'; CREATE ROLE other LOGIN REPLICATION PASSWORD 'b'";
        c.sql(p).await.batch_execute(roles).await.unwrap();
        let identify = async |user: &str| {
            let to = format!("host=127.0.0.1 port={} user={user} replication=true", c.nodes[p].config.postgres_port);
            let mut psql = Command::new(format!("{}/psql", agents::bin()));
            psql.args(["-XAt", "-d", &to, "-c", "IDENTIFY_SYSTEM"]).env("PGPASSWORD", "b").stdin(Stdio::null());
            let out = tokio::task::spawn_blocking(move || psql.output().unwrap()).await.unwrap();
            (out.status.success(), String::from_utf8_lossy(&out.stderr).into_owned())
        };
        let (admitted, why) = identify("backup").await;
        assert!(admitted, "{why}");
        let (admitted, why) = identify("other").await;
        assert!(!admitted && why.contains("no pg_hba.conf entry for replication connection"), "{why}");
    });
}
