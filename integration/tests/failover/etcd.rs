//! etcd lost and restored: what goes on without it, that an old copy of it brings no old term back, and how the records
//! are made anew when there is no copy.

use integration::client::Client;
use integration::cluster::{Cluster, LONG, one_at_a_time};
use integration::config_file::NODES;
use integration::wait::wait_for;
use integration::workload::{Workload, rows_found};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// A little longer than a proxy acts on a strict view that nobody confirms.
const PAST_A_VIEW: Duration = Duration::from_secs(8);

/// Rows with the numbers from 0 on, each acknowledged.
#[derive(Default)]
struct Rows(i64);

impl Rows {
    fn write(&mut self, client: &mut Client, more: i64) {
        for id in self.0..self.0 + more {
            client.query(&format!("insert into rows(id) values ({id})")).expect("strict writes go on");
        }
        self.0 += more;
    }

    fn write_for(&mut self, client: &mut Client, time: Duration) {
        let begun = Instant::now();
        while begun.elapsed() < time {
            self.write(client, 1);
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn are_all_there(&self, cluster: &Cluster) {
        let found: BTreeMap<i64, _> = rows_found(&mut cluster.connect(), 0).expect("the rows can be read");
        let missing: Vec<i64> = (0..self.0).filter(|id| !found.contains_key(id)).collect();
        assert_eq!(missing, Vec::<i64>::new(), "of {} acknowledged rows", self.0);
    }
}

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
    let mut rows = Rows::default();
    let mut newest = backed_up.clone();
    for _ in 0..2 {
        rows.write(&mut client, 10);
        cluster.all_stream();
        cluster.kill_postmaster(&newest.primary);
        newest = cluster.active_after(newest.term);
    }
    cluster.all_stream();
    rows.write(&mut client, 10);

    cluster.etcd().kill();
    rows.write_for(&mut client, PAST_A_VIEW);
    // A primary's agent that starts now has no record to go by: it vouches by the policy on its disk.
    cluster.kill_role(&newest.primary);
    cluster.start_role(&newest.primary);
    rows.write_for(&mut client, PAST_A_VIEW);
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
    rows.write(&mut client, 10);
    rows.are_all_there(&cluster);
}

#[test]
fn after_the_loss_of_all_of_etcd_the_records_are_made_anew_from_the_agents() {
    let _turn = one_at_a_time();
    let mut cluster = Cluster::healthy();
    Workload::create_table(&cluster.target()).expect("a table");
    let mut client = cluster.connect();
    let mut rows = Rows::default();
    rows.write(&mut client, 10);
    let first = cluster.active();
    cluster.all_stream();
    cluster.kill_postmaster(&first.primary);
    let before = cluster.active_after(first.term);
    cluster.all_stream();

    cluster.etcd().wipe();
    rows.write_for(&mut client, PAST_A_VIEW);
    let planned = |cluster: &Cluster| {
        wait_for("a plan to rebuild by", LONG, || {
            let verb = cluster.verb(&["rebuild"]);
            if verb.code == 0 { Ok(verb) } else { Err(verb) }
        })
    };
    let plan = planned(&cluster).stdout;
    assert!(plan.contains(&format!("in etcd: term {}, above every promise", before.term + 1)), "{plan}");
    assert!(plan.contains("nothing was changed"), "{plan}");

    // One agent less: it may know more than all others.
    let standby = NODES.into_iter().find(|n| *n != before.primary).expect("three nodes");
    cluster.kill_role(standby);
    let refused = cluster.verb(&["rebuild", "--yes"]).exits(2);
    assert!(refused.stderr.contains(&format!("--without {standby}")), "{refused:?}");
    cluster.start_role(standby);
    // A primary's agent that starts now goes by its memory.
    cluster.kill_role(&before.primary);
    cluster.start_role(&before.primary);
    planned(&cluster);
    rows.write_for(&mut client, PAST_A_VIEW);

    let done = cluster.verb(&["rebuild", "--yes"]).exits(0);
    let rebuilt = cluster.active();
    assert!(rebuilt.term > before.term, "{rebuilt:?} after {before:?}: {done:?}");
    cluster.all_stream();
    rows.write(&mut client, 10);
    let again = cluster.verb(&["rebuild", "--yes"]).exits(2);
    assert!(again.stderr.contains("nothing is to be rebuilt"), "{again:?}");

    cluster.kill_postmaster(&rebuilt.primary);
    let after = cluster.active_after(rebuilt.term);
    cluster.all_stream();
    cluster.timelines_are(after.term);
    rows.write(&mut client, 10);
    rows.are_all_there(&cluster);
}
