//! What a server that somebody set up by hand says of itself, with real PostgreSQL. Taking it over: integration's tests.

use super::agents::{bin, kill_all, signal, unprivileged};
use cluster::TimelineId;
use failover::adopt;
use nix::sys::signal::Signal;
use std::path::{Path, PathBuf};
use std::process::Command;
use tokio_postgres::{Client, NoTls};

/// A standby of nobody, as an operator runs it.
struct ByHand(tempfile::TempDir);

impl Drop for ByHand {
    fn drop(&mut self) {
        kill_all(&self.data());
    }
}

fn run(program: &str, args: &[&str]) {
    let out = Command::new(format!("{}/{program}", bin())).args(args).output().unwrap();
    assert!(out.status.success(), "{program}: {}", String::from_utf8_lossy(&out.stderr));
}

impl ByHand {
    fn start(port: u16) -> Self {
        let it = Self(tempfile::tempdir().unwrap());
        run("initdb", &["-D", text(&it.data()), "-U", "postgres", "-A", "trust", "-N"]);
        std::fs::write(it.data().join("standby.signal"), "").unwrap();
        let settings = format!(
            "port = {port}\nlisten_addresses = '127.0.0.1'\nunix_socket_directories = ''\n\
             dynamic_shared_memory_type = mmap\n"
        );
        std::fs::write(it.data().join("postgresql.conf"), settings).unwrap();
        it.pg_ctl("start");
        it
    }

    fn pg_ctl(&self, verb: &str) {
        run("pg_ctl", &["-D", text(&self.data()), "-w", "-l", text(&self.0.path().join("log")), verb]);
    }

    fn data(&self) -> PathBuf {
        self.0.path().join("hand")
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

#[test]
fn the_timeline_is_the_one_that_is_written_though_no_checkpoint_has_noted_it() {
    unprivileged("adopt::the_timeline_is_the_one_that_is_written_though_no_checkpoint_has_noted_it", async {
        const PORT: u16 = 22480;
        let hand = ByHand::start(PORT);
        let client = connect(PORT).await;
        let checkpointer = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'";
        let checkpointer: i32 = client.query_one(checkpointer, &[]).await.unwrap().get(0);
        signal(checkpointer, Signal::SIGSTOP);
        hand.pg_ctl("promote");
        assert_eq!(adopt::survey(&client).await.unwrap().timeline, TimelineId(2));
        signal(checkpointer, Signal::SIGCONT);
        // Nor does it fail on a standby, which the plan refuses by name.
        std::fs::write(hand.data().join("standby.signal"), "").unwrap();
        hand.pg_ctl("restart");
        let found = adopt::survey(&connect(PORT).await).await.unwrap();
        assert!(found.in_recovery && found.timeline == TimelineId(2), "{found:?}");
    });
}
