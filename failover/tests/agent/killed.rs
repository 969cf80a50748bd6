//! Agents with real PostgreSQL: what an agent, or a primary, that was killed half-way leaves behind.

use super::agents::{self, Cluster, kill_all, postgres_of, postmaster, signal, unprivileged, until};
use cluster::{Term, TimelineId};
use failover::api::{AgentState, PostgresState};
use failover::record::{LossReport, Mode, TermRecord};
use nix::sys::signal::Signal;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Killed between writing the stubs and the promotion, or while fetching histories from a primary: PostgreSQL would
/// take the stub for the newest timeline and refuse to start, because its own is no ancestor of that.
#[test]
fn a_stub_history_above_every_real_one_does_not_keep_postgres_from_starting() {
    unprivileged("killed::a_stub_history_above_every_real_one_does_not_keep_postgres_from_starting", async {
        let mut c = Cluster::new(22400, 2, Mode::Async, 0);
        let p = c.bootstrap().await;
        let s = 1 - p;
        let data = c.nodes[s].config.data_dir.join("data");
        c.crash_agent(s).await;
        kill_all(&data);
        for number in 2..=4 {
            std::fs::write(data.join("pg_wal").join(TimelineId(number).history_file()), "").unwrap();
        }
        c.start(s).await;
        c.until_streaming(s, p, Term(1)).await;
        // It can still be promoted to the timeline of a term in the gap.
        c.begin().await;
        let (term, _) = c.failover(s, &[s]).await;
        assert_eq!(term, Term(3));
        c.until_streaming(p, s, term).await;
    });
}

/// A lease that ran short made commits wait, and the agent was killed before it was renewed.
#[test]
fn a_fence_that_a_killed_agent_left_is_lifted_once_the_lease_is_held_again() {
    unprivileged("killed::a_fence_that_a_killed_agent_left_is_lifted_once_the_lease_is_held_again", async {
        let mut c = Cluster::new(22410, 2, Mode::Async, 0);
        let p = c.bootstrap().await;
        c.crash_agent(p).await;
        let conf = c.nodes[p].config.data_dir.join("conf/dynamic.conf");
        let text = std::fs::read_to_string(&conf).unwrap();
        let kept = text.lines().filter(|l| !l.starts_with("synchronous_standby_names"));
        let fenced = format!("synchronous_standby_names = '{}'", cluster::sync_names::SyncNames::Fenced);
        let text: Vec<&str> = kept.chain([fenced.as_str()]).collect();
        std::fs::write(&conf, text.join("\n") + "\n").unwrap();
        signal(postmaster(&c.nodes[p].config), nix::sys::signal::Signal::SIGHUP);
        let names = "SHOW synchronous_standby_names";
        until("the fence", async || c.value(p, names).await.contains("fenced").then_some(())).await;
        c.start(p).await;
        until("the end of the fence", async || c.value(p, names).await.is_empty().then_some(())).await;
        assert!(c.state(p).await.lease_left_ms.is_some());
        c.sql(p).await.batch_execute("CREATE TABLE t (i int)").await.unwrap();
    });
}

/// Killed while it runs initdb, and once everything is filled in but the first term is not on record.
async fn created_at_the_third_attempt(c: &mut Cluster) -> usize {
    let config = c.nodes[0].config.clone();
    let there = |name: &str| config.data_dir.join(name).exists().then_some(());
    c.start(0).await;
    until("initdb", async || there("data.new").or_else(|| there("data"))).await;
    c.crash_agent(0).await;
    let of = |name: &str| std::fs::metadata(config.data_dir.join(name)).ok().map(|m| (m.ino(), m.created().ok()));
    let left = of("data.new");
    c.start(0).await;
    // It has read whose task that is, and needs etcd no more before the term is put.
    let begun = || of("data.new").filter(|_| of("data.new") != left).and(Some(()));
    until("another initdb", async || begun().or_else(|| there("data"))).await;
    c.nodes[0].store.set_down(true);
    let rows = || {
        let mut psql = std::process::Command::new(format!("{}/psql", agents::bin()));
        psql.arg("-h").arg(config.data_dir.join("sock")).args(["-p", &config.postgres_port.to_string()]);
        psql.args(["-U", "postgres", "-Atc", "SELECT count(*) FROM pgtenure.term"]).stderr(std::process::Stdio::null());
        String::from_utf8(psql.output().unwrap().stdout).unwrap()
    };
    until("the term in the data", async || (rows() == "1\n").then_some(())).await;
    c.crash_agent(0).await;
    kill_all(&config.data_dir.join("data"));
    assert_eq!(c.record::<TermRecord>(c.keys.term()).await, None);
    c.nodes[0].store.set_down(false);
    let p = c.bootstrap().await;
    assert_eq!(rows(), "1\n");
    p
}

/// They work on files by name: a rewind that goes on would write into the copy that the next agent makes.
#[test]
fn programs_that_a_killed_agent_left_are_ended_before_anything_else() {
    unprivileged("killed::programs_that_a_killed_agent_left_are_ended_before_anything_else", async {
        let mut c = Cluster::new(22420, 1, Mode::Async, 0);
        let p = created_at_the_third_attempt(&mut c).await;
        c.crash_agent(p).await;
        let data = c.nodes[p].config.data_dir.join("data");
        let run = |name: &str, file: std::path::PathBuf| {
            let script = format!("exec -a {name} tail -f {}", file.display());
            tokio::process::Command::new("bash").args(["-c", &script]).kill_on_drop(true).spawn().unwrap()
        };
        let mut other = run("pg_rewind", "/etc/hostname".into());
        let called = format!("{}/pg_rewind", agents::bin());
        let mut rewind = run(&called, data.join("PG_VERSION"));
        let of = |pid: u32| std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let named = |pid: u32| of(pid).starts_with(called.as_bytes());
        until("the program", async || named(rewind.id().unwrap()).then_some(())).await;
        c.start(p).await;
        assert!(!rewind.wait().await.unwrap().success());
        assert!(other.try_wait().unwrap().is_none(), "what works elsewhere is left alone");
        other.kill().await.unwrap();
    });
}

/// Killed after the rewind or copy, before the server was consistent: it needs the primary's WAL to get there.
#[test]
fn data_that_is_consistent_only_with_the_primarys_wal_is_started_under_it() {
    unprivileged("killed::data_that_is_consistent_only_with_the_primarys_wal_is_started_under_it", async {
        let mut c = Cluster::new(22430, 2, Mode::Async, 0);
        let p = c.bootstrap().await;
        let s = 1 - p;
        c.crash_agent(s).await;
        let (data, memory) = {
            let dir = &c.nodes[s].config.data_dir;
            (dir.join("data"), dir.join("agent.json"))
        };
        kill_all(&data);
        until("their end", async || postgres_of(&data).is_empty().then_some(())).await;
        std::fs::remove_dir_all(&data).unwrap();
        let from = &c.nodes[p].config;
        let mut copy = std::process::Command::new(format!("{}/pg_basebackup", agents::bin()));
        copy.arg("-h").arg(from.data_dir.join("sock")).args(["-p", &from.postgres_port.to_string(), "-U", "postgres"]);
        copy.args(["--wal-method=none", "--checkpoint=fast", "-D"]).arg(&data);
        assert!(copy.status().unwrap().success());
        let floor = c.value(p, "SELECT pg_current_wal_flush_lsn()").await;
        let text = std::fs::read_to_string(&memory).unwrap();
        let mut mark: serde_json::Value = serde_json::from_str(&text).unwrap();
        mark["quarantine"] = serde_json::json!({ "timeline": 1, "lsn": floor });
        std::fs::write(&memory, mark.to_string()).unwrap();
        // It cannot be started yet, for a reason that lies in no data: another copy would not start either.
        std::fs::write(data.join("marker"), "").unwrap();
        let taken = std::net::TcpListener::bind(("127.0.0.1", c.nodes[s].config.postgres_port)).unwrap();
        c.start(s).await;
        let told = |s: &AgentState| s.trouble.as_ref().is_some_and(|t| t.contains("a copy would not change that"));
        let log = c.nodes[s].config.data_dir.join("log/start.log");
        let mut starts = std::collections::BTreeSet::new();
        until("several starts that fail", async || {
            // Each begins it anew, with its own time and process.
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            starts.extend(text.split_once('\n').map(|(first, _)| first.to_owned()));
            (starts.len() >= 3).then_some(())
        })
        .await;
        c.until_state(s, "why it does not start", |s| told(s).then_some(())).await;
        drop(taken);
        c.until_streaming(s, p, Term(1)).await;
        c.until_state(s, "the quarantine's end", |s| s.quarantine.is_none().then_some(())).await;
        c.until_state(s, "no trouble", |s| s.trouble.is_none().then_some(())).await;
        assert!(data.join("marker").exists(), "copied once more");
    });
}

/// A node was rewound under a primary, or copied from it, and has received of it what nobody else has. That primary is lost for
/// good before the node has replayed enough to count: it cannot be started under another, and is replaced, but not unexamined.
#[test]
fn what_only_a_quarantined_node_has_is_kept_before_it_is_replaced() {
    unprivileged("killed::what_only_a_quarantined_node_has_is_kept_before_it_is_replaced", async {
        let mut c = Cluster::new(22435, 3, Mode::Async, 0);
        // It loses more than its agent would let through in a shorter one, on a machine whose disk stalls.
        c.nodes.iter_mut().for_each(|n| n.config.lease_ttl = std::time::Duration::from_secs(40));
        let p = c.bootstrap().await;
        let [s, q] = [(p + 1) % 3, (p + 2) % 3];
        c.sql(p).await.batch_execute("CREATE TABLE t (i int)").await.unwrap();
        c.until_replayed(p, &[s, q]).await;
        // Else it may be asked to sign for the primary's lease, and a freeze waits for what it has signed.
        c.freeze(s, Term(2)).await.unwrap();
        // The term begins, and the primary's agent does not hear of it.
        c.nodes[p].store.set_down(true);
        let (record, revision) = c.begin().await;
        let lost = 7;
        let sql = c.sql(p).await;
        for i in 0..lost {
            sql.batch_execute(&format!("INSERT INTO t VALUES ({i})")).await.unwrap();
        }
        drop(sql);
        c.until_replayed(p, &[q]).await;
        let (data, memory) = {
            let dir = &c.nodes[q].config.data_dir;
            (dir.join("data"), dir.join("agent.json"))
        };
        for i in [q, p] {
            c.crash_agent(i).await;
            kill_all(&c.nodes[i].config.data_dir.join("data"));
        }
        let text = std::fs::read_to_string(&memory).unwrap();
        let mut mark: serde_json::Value = serde_json::from_str(&text).unwrap();
        mark["quarantine"] = serde_json::json!({ "timeline": 1, "lsn": "F/0" });
        std::fs::write(&memory, mark.to_string()).unwrap();
        std::fs::write(data.join("marker"), "an old directory").unwrap();
        let (term, promoted) = c.failover_begun(record, revision, s, &[s]).await;
        c.start(q).await;
        c.until_streaming(q, s, term).await;
        assert!(!data.join("marker").exists(), "the directory was replaced");
        let (report, _) = c.record::<LossReport>(c.keys.report(term, &c.nodes[q].id)).await.expect("a report");
        assert_eq!((report.commits, report.fork_lsn), (lost, promoted.fork.lsn), "{report:#?}");
        let kept = report.kept_in.expect("what it holds is kept");
        assert!(std::fs::read_dir(&kept).unwrap().count() >= 2, "segments and the report in {kept}");
    });
}

/// PostgreSQL's programs but for a pg_rewind that tells that it was begun and does nothing.
fn with_a_rewind_that_waits(dir: &Path) -> (PathBuf, PathBuf) {
    let (bin, begun) = (dir.join("bin"), dir.join("rewind-begun"));
    std::fs::create_dir(&bin).unwrap();
    for program in std::fs::read_dir(agents::bin()).unwrap().map(|f| f.unwrap()) {
        if program.file_name() != "pg_rewind" {
            std::os::unix::fs::symlink(program.path(), bin.join(program.file_name())).unwrap();
        }
    }
    let script = format!("#!/bin/sh\ntouch {}\nexec tail -f /dev/null\n", begun.display());
    std::fs::write(bin.join("pg_rewind"), script).unwrap();
    std::fs::set_permissions(bin.join("pg_rewind"), std::fs::Permissions::from_mode(0o755)).unwrap();
    (bin, begun)
}

/// Killed when its rewind was marked as begun and had changed nothing. The primary under which its WAL was examined is lost for
/// good, and the next one has less: what lies between is in no report but of what is still here.
#[test]
fn what_a_rewind_has_not_changed_yet_is_examined_again_under_another_primary() {
    unprivileged("killed::what_a_rewind_has_not_changed_yet_is_examined_again_under_another_primary", async {
        let mut c = Cluster::new(22445, 3, Mode::Async, 0);
        // It loses more than its agent would let through in a shorter one, on a machine whose disk stalls.
        c.nodes.iter_mut().for_each(|n| n.config.lease_ttl = Duration::from_secs(40));
        let p = c.bootstrap().await;
        let [s, q] = [(p + 1) % 3, (p + 2) % 3];
        let data = [0, 1, 2].map(|i: usize| c.nodes[i].config.data_dir.join("data"));
        let sql = c.sql(p).await;
        sql.batch_execute("CREATE TABLE t (i int)").await.unwrap();
        let insert = async |rows: std::ops::Range<u64>| {
            for i in rows {
                sql.batch_execute(&format!("INSERT INTO t VALUES ({i})")).await.unwrap();
            }
        };
        c.until_replayed(p, &[s, q]).await;
        c.crash_agent(s).await;
        kill_all(&data[s]);
        let (more, most) = (3, 7);
        insert(0..more).await;
        c.until_replayed(p, &[q]).await;
        // Else it may be asked to sign for the primary's lease, and a freeze waits for what it has signed.
        c.freeze(q, Term(2)).await.unwrap();
        // The term begins, and the primary's agent does not hear of it.
        c.nodes[p].store.set_down(true);
        let (record, revision) = c.begin().await;
        insert(more..most).await;
        drop(sql);
        c.crash_agent(p).await;
        kill_all(&data[p]);
        c.nodes[p].store.set_down(false);
        let (second, _) = c.failover_begun(record, revision, q, &[q]).await;
        let (waits, begun) = with_a_rewind_that_waits(c.nodes[p].config.data_dir.parent().unwrap());
        let bin = std::mem::replace(&mut c.nodes[p].config.bin_dir, waits);
        c.start(p).await;
        until("the rewind", async || begun.exists().then_some(())).await;
        for i in [p, q] {
            c.crash_agent(i).await;
            kill_all(&data[i]);
        }
        c.nodes[p].config.bin_dir = bin;
        let (record, revision) = c.begin().await;
        c.start(s).await;
        let runs = |s: &AgentState| matches!(s.postgres, PostgresState::Standby(_)).then_some(());
        c.until_state(s, "its start", runs).await;
        let (third, promoted) = c.failover_begun(record, revision, s, &[s]).await;
        c.start(p).await;
        c.until_streaming(p, s, third).await;
        let report = async |term| c.record::<LossReport>(c.keys.report(term, &c.nodes[p].id)).await.map(|(r, _)| r);
        assert_eq!(report(second).await.map(|r| r.commits), Some(most - more));
        let last = report(third).await.expect("a report");
        assert_eq!((last.commits, last.fork_lsn), (most, promoted.fork.lsn), "{last:#?}");
    });
}

/// Killed when the old data was moved away and the copy had not taken its place: it has no data, and a copy that was whole.
#[test]
fn data_whose_copy_had_not_taken_its_place_yet_is_copied_again() {
    unprivileged("killed::data_whose_copy_had_not_taken_its_place_yet_is_copied_again", async {
        let mut c = Cluster::new(22448, 2, Mode::Strict, 1);
        let p = c.bootstrap().await;
        let s = 1 - p;
        c.crash_agent(s).await;
        let dir = c.nodes[s].config.data_dir.clone();
        kill_all(&dir.join("data"));
        until("their end", async || postgres_of(&dir.join("data")).is_empty().then_some(())).await;
        let memory = dir.join("agent.json");
        let mut mark: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&memory).unwrap()).unwrap();
        let floor = c.value(p, "SELECT pg_current_wal_flush_lsn()").await;
        mark["quarantine"] = serde_json::json!({ "timeline": 1, "lsn": floor });
        mark["examined"] = mark["quarantine"].clone();
        (mark["rewinding"], mark["condemned"]) = (true.into(), true.into());
        std::fs::write(&memory, mark.to_string()).unwrap();
        for (from, to) in [("data", "data.old"), ("data.old", "data.new")] {
            let copied = std::process::Command::new("cp").arg("-a").args([dir.join(from), dir.join(to)]).status();
            assert!(copied.unwrap().success());
        }
        std::fs::remove_dir_all(dir.join("data")).unwrap();
        c.start(s).await;
        c.until_streaming(s, p, Term(1)).await;
        c.until_state(s, "the quarantine's end", |s| s.quarantine.is_none().then_some(())).await;
        assert!(
            !dir.join("data.old").exists() && !dir.join("data.new").exists(),
            "what is left of the copy is removed"
        );
        let mark: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&memory).unwrap()).unwrap();
        assert_eq!((&mark["rewinding"], &mark["condemned"]), (&false.into(), &false.into()));
        assert!(mark["examined"].is_null());
        c.sql(p).await.batch_execute("CREATE TABLE t (i int)").await.unwrap();
    });
}

/// What a killed server has left of its shared memory only the next one on its directory takes away, and here there is none.
#[test]
fn shared_memory_of_a_directory_that_is_replaced_does_not_stay() {
    unprivileged("killed::shared_memory_of_a_directory_that_is_replaced_does_not_stay", async {
        let mut c = Cluster::new(22458, 2, Mode::Async, 0);
        // As agents have it where they can.
        let posix = ("dynamic_shared_memory_type".to_owned(), "posix".to_owned());
        c.nodes.iter_mut().for_each(|n| n.config.parameters.extend([posix.clone()]));
        let p = c.bootstrap().await;
        let s = 1 - p;
        let (data, memory) = {
            let dir = &c.nodes[p].config.data_dir;
            (dir.join("data"), dir.join("agent.json"))
        };
        let mut files = std::collections::BTreeSet::new();
        for pid in postgres_of(&data) {
            let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
            let mapped = maps.lines().filter_map(|line| line.split_whitespace().nth(5).map(PathBuf::from));
            files.extend(mapped.filter(|file| file.starts_with("/dev/shm")));
        }
        let pid_file = std::fs::read_to_string(data.join("postmaster.pid")).unwrap();
        let id = pid_file.lines().nth(6).unwrap().split_whitespace().nth(1).unwrap().to_owned();
        let left = || {
            let segments = std::fs::read_to_string("/proc/sysvipc/shm").unwrap();
            let segment = segments.lines().any(|line| line.split_whitespace().nth(1) == Some(&id));
            (segment, files.iter().filter(|file| file.exists()).count())
        };
        c.crash_agent(p).await;
        kill_all(&data);
        until("their end", async || postgres_of(&data).is_empty().then_some(())).await;
        assert!(!files.is_empty());
        assert_eq!(left(), (true, files.len()));
        assert!(c.store.expire_holder(&c.keys.primary()));
        let (term, _) = c.failover(s, &[s]).await;
        let mut mark: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&memory).unwrap()).unwrap();
        mark["rewinding"] = true.into();
        std::fs::write(&memory, mark.to_string()).unwrap();
        c.start(p).await;
        c.until_streaming(p, s, term).await;
        assert_eq!(left(), (false, 0), "{files:?}");
        // Stopped, they leave nothing.
        for i in [p, s] {
            c.nodes[i].handle.take().unwrap().stop().await;
        }
    });
}

/// A primary died after a follower had fetched its history, before the follower reached the fork. PostgreSQL then takes
/// that history for its own line and would write it, with a fork that lies past the end, into the next one: an old
/// primary would be rewound to the wrong place.
#[test]
fn a_history_whose_fork_was_never_reached_is_not_inherited() {
    unprivileged("killed::a_history_whose_fork_was_never_reached_is_not_inherited", async {
        let mut c = Cluster::new(22440, 2, Mode::Async, 0);
        let p = c.bootstrap().await;
        let s = 1 - p;
        c.begin().await;
        let (record, revision) = c.begin().await;
        let end = c.freeze(s, record.term).await.unwrap().position.unwrap();
        let wal = c.nodes[s].config.data_dir.join("data/pg_wal");
        let beyond = cluster::Lsn(end.lsn.0 + 4096);
        std::fs::write(wal.join("00000002.history"), format!("1\t{beyond}\tno recovery target specified\n")).unwrap();
        let log = c.nodes[s].config.data_dir.join("log");
        until("PostgreSQL to find the history", async || {
            let files = std::fs::read_dir(&log).unwrap().flatten();
            let text: String = files.map(|f| std::fs::read_to_string(f.path()).unwrap_or_default()).collect();
            text.contains("new target timeline is 2").then_some(())
        })
        .await;
        let (term, promoted) = c.failover_begun(record, revision, s, &[s]).await;
        assert_eq!((promoted.fork.timeline, promoted.fork.lsn), (TimelineId(1), end.lsn));
        let history = std::fs::read_to_string(wal.join("00000003.history")).unwrap();
        let forks = history.lines().filter(|l| !l.is_empty() && !l.starts_with('#'));
        assert_eq!(forks.count(), 1, "{history}");
        c.until_streaming(p, s, term).await;
    });
}

#[test]
fn a_standby_that_answers_nothing_for_long_is_started_again_and_its_sessions_are_the_first_to_go() {
    let name = "killed::a_standby_that_answers_nothing_for_long_is_started_again_and_its_sessions_are_the_first_to_go";
    unprivileged(name, async {
        let mut c = Cluster::new(22610, 2, Mode::Strict, 1);
        let p = c.bootstrap().await;
        let s = 1 - p;
        // As systemd gives it to the agent, but that an unprivileged test may only ask for less protection.
        std::fs::write("/proc/self/oom_score_adj", "300").unwrap();
        c.crash_agent(s).await;
        c.nodes[s].config.hung_standby_timeout = Duration::from_secs(2);
        c.start(s).await;
        c.until_streaming(s, p, Term(1)).await;
        let data = c.nodes[s].config.data_dir.join("data");
        let before = postmaster(&c.nodes[s].config);
        postgres_of(&data).into_iter().for_each(|pid| signal(pid, Signal::SIGSTOP));
        until("another postmaster", async || {
            let text = std::fs::read_to_string(data.join("postmaster.pid")).ok()?;
            (text.lines().next()?.parse::<i32>().ok()? != before).then_some(())
        })
        .await;
        c.until_streaming(s, p, Term(1)).await;
        c.sql(p).await.batch_execute("CREATE TABLE t (i int)").await.unwrap();
        let score =
            |pid: &str| std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap().trim().to_owned();
        assert_eq!(score(&postmaster(&c.nodes[s].config).to_string()), "300");
        let sql = c.sql(s).await;
        let pid: i32 = sql.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
        assert_eq!(score(&pid.to_string()), "0");
    });
}
