//! A primary that stands still under an agent that lives.

use super::*;
use agents::{Node, postgres_of};

/// A state as in /proc/PID/stat: it takes a moment until a signal is obeyed.
async fn stands_still(pid: i32) {
    until("the process to stand still", async || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(['T', 'Z'])).then_some(())
    })
    .await;
}

async fn stop_all_of_postgres(node: &Node) {
    let data = node.config.data_dir.join("data");
    // None is left that could start another.
    let mut stopped = Vec::new();
    loop {
        let new: Vec<i32> = postgres_of(&data).into_iter().filter(|p| !stopped.contains(p)).collect();
        if new.is_empty() {
            return;
        }
        for pid in new {
            signal(pid, Signal::SIGSTOP);
            stands_still(pid).await;
            stopped.push(pid);
        }
    }
}

#[test]
fn a_postmaster_that_stands_still_alone_is_replaced_though_its_sessions_answer() {
    unprivileged("hung::a_postmaster_that_stands_still_alone_is_replaced_though_its_sessions_answer", async {
        let mut c = Cluster::new(22500, 3, Mode::Strict, 1);
        let m = started(&mut c).await;
        let s = status_is(&m, "the first term", |s| is_active(s) && all_stream(s, 2)).await;
        let (first, old) = (s.term.expect("it is active"), primary_of(&c, &s));
        let session = c.sql(old).await;
        let begun = Instant::now();
        let pid = postmaster(&c.nodes[old].config);
        signal(pid, Signal::SIGSTOP);
        stands_still(pid).await;
        session.batch_execute("SELECT 1").await.expect("a session needs no postmaster");
        let s = status_is(&m, "the second term", |s| is_active(s) && s.term > Some(first)).await;
        let journal = s.last_failover.clone().unwrap();
        eprintln!("outage: {:?}; {:?}", begun.elapsed(), journal.phases);
        assert!(journal.observed[0].contains("without an answer"), "{:?}", journal.observed);
        let new = primary_of(&c, &s);
        assert_ne!(new, old);
        c.sql(new).await.batch_execute("CREATE TABLE t (i int)").await.unwrap();
        status_is(&m, "the old primary as a standby", |s| all_stream(s, 2)).await;
        m.stop().await;
    });
}

#[test]
fn in_async_mode_a_postgres_that_stands_still_is_stopped_and_its_lease_is_not_renewed_for_ever() {
    unprivileged(
        "hung::in_async_mode_a_postgres_that_stands_still_is_stopped_and_its_lease_is_not_renewed_for_ever",
        async {
            let mut c = Cluster::new(22510, 2, Mode::Async, 0);
            let m = started(&mut c).await;
            let s = status_is(&m, "the first term", |s| is_active(s) && all_stream(s, 1)).await;
            let (first, old) = (s.term.expect("it is active"), primary_of(&c, &s));
            let begun = Instant::now();
            stop_all_of_postgres(&c.nodes[old]).await;
            // No lease ends by itself in this store.
            let s = status_is(&m, "the second term", |s| is_active(s) && s.term > Some(first)).await;
            let journal = s.last_failover.clone().unwrap();
            eprintln!("outage: {:?}; {:?}", begun.elapsed(), journal.phases);
            let new = primary_of(&c, &s);
            assert_ne!(new, old, "{journal:?}");
            c.sql(new).await.batch_execute("CREATE TABLE t (i int)").await.unwrap();
            status_is(&m, "the old primary as a standby", |s| all_stream(s, 1)).await;

            // An operator need not wait until it has hung for long enough.
            let s = m.status().borrow().clone();
            let hung = primary_of(&c, &s);
            stop_all_of_postgres(&c.nodes[hung]).await;
            let told = |s: &AgentState| matches!(s.postgres, PostgresState::Hung { .. }).then_some(());
            c.until_state(hung, "that it hangs", told).await;
            let (code, answer) = order(&m, "failover", json!({"to": c.nodes[old].id})).await;
            assert_eq!((code, &answer["node"]), (200, &json!(c.nodes[old].id)), "{answer:#}");
            m.stop().await;
        },
    );
}
