//! etcd lost and restored: what goes on without it, and that an old copy of it brings no old term back.

use integration::cluster::{Cluster, LONG, one_at_a_time};
use integration::wait::wait_for;
use integration::workload::{Workload, rows_found};
use std::time::{Duration, Instant};

/// Twice as long as a proxy acts on a strict view that nobody confirms.
const LONGER_THAN_A_VIEW: Duration = Duration::from_secs(12);

#[test]
fn without_etcd_strict_writes_go_on_and_a_restored_etcd_brings_no_old_term_back() {
    let _turn = one_at_a_time();
    let mut cluster = Cluster::healthy();
    Workload::create_table(&cluster.target()).expect("a table");
    let backed_up = cluster.active();
    let file = cluster.scratch().path().join("etcd/backup");
    cluster.etcd().save(&file);

    // Two terms that the backup does not know, the second with another primary than it names.
    let mut client = cluster.connect();
    let mut ids = 0_i64..;
    let mut write = |client: &mut integration::client::Client, more: i64| {
        for id in ids.by_ref().take(usize::try_from(more).expect("a small number")) {
            client.query(&format!("insert into rows(id) values ({id})")).expect("strict writes go on");
        }
    };
    let mut newest = backed_up.clone();
    for _ in 0..2 {
        write(&mut client, 10);
        cluster.all_stream();
        cluster.kill_postmaster(&newest.primary);
        newest = cluster.active_after(newest.term);
    }
    cluster.all_stream();
    write(&mut client, 10);

    cluster.etcd().kill();
    let begun = Instant::now();
    while begun.elapsed() < LONGER_THAN_A_VIEW {
        write(&mut client, 1);
        std::thread::sleep(Duration::from_millis(50));
    }
    let told = wait_for("a manager to say that etcd is gone", LONG, || {
        let verb = cluster.verb(&["status"]);
        if verb.stdout.contains("no failover is possible") { Ok(verb) } else { Err(verb) }
    });
    assert_eq!(told.code, 1, "{told:?}");
    assert!(told.stdout.contains("NO MANAGER LEADS"), "{told:?}");

    cluster.etcd().restore(&file);
    let after = cluster.active_after(newest.term);
    cluster.all_stream();
    cluster.timelines_are(after.term);
    write(&mut client, 10);
    let found = rows_found(&mut cluster.connect(), 0).expect("the rows can be read");
    let last = ids.start - 1;
    let missing: Vec<i64> = (0..=last).filter(|id| !found.contains_key(id)).collect();
    assert_eq!(missing, Vec::<i64>::new(), "of {last} acknowledged rows");
}
