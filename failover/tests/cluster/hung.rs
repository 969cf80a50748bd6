//! A primary that stands still under an agent that lives.

use super::*;

#[test]
fn a_postmaster_that_stands_still_alone_is_replaced_though_its_sessions_answer() {
    unprivileged("hung::a_postmaster_that_stands_still_alone_is_replaced_though_its_sessions_answer", async {
        let mut c = Cluster::new(22500, 3, Mode::Strict, 1);
        let m = started(&mut c).await;
        let s = status_is(&m, "the first term", |s| is_active(s) && all_stream(s, 2)).await;
        let (first, old) = (s.term.expect("it is active"), primary_of(&c, &s));
        let session = c.sql(old).await;
        let begun = Instant::now();
        signal(postmaster(&c.nodes[old].config), Signal::SIGSTOP);
        status_is(&m, "the reason to wait", |s| s.verdict_text.iter().any(|t| t.contains("has not answered"))).await;
        session.batch_execute("SELECT 1").await.expect("a session needs no postmaster");
        let s = status_is(&m, "the second term", |s| is_active(s) && s.term > Some(first)).await;
        let journal = s.last_failover.clone().unwrap();
        eprintln!("outage: {:?}; {:?}", begun.elapsed(), journal.phases);
        assert!(journal.observed[0].contains("without an answer"), "{:?}", journal.observed);
        let new = primary_of(&c, &s);
        assert_ne!(new, old);
        c.sql(new).await.batch_execute("CREATE TABLE t (i int)").await.unwrap();
        status_is(&m, "the old primary as a standby", |s| all_stream(s, 2)).await;
        for node in &c.nodes {
            let logs = std::fs::read_dir(node.config.data_dir.join("log")).unwrap();
            let logs: String = logs.map(|f| std::fs::read_to_string(f.unwrap().path()).unwrap()).collect();
            let complains = |l: &&str| ["SSL", "startup packet", "password", "client"].iter().any(|w| l.contains(w));
            assert_eq!(logs.lines().find(complains), None, "whoever knocks leaves nothing in the log of {}", node.id);
        }
        m.stop().await;
    });
}
