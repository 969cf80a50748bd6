//! The primary dies under load, in each way that a primary can die; so do standbys, agents and managers.

mod asynchronous;
mod etcd;
mod restart;
mod switchover;

use integration::client::Client;
use integration::cluster::{Active, Cluster, Frozen, LONG, one_at_a_time};
use integration::config_file::Options;
use integration::history::{FAILOVER_REFUSALS, History};
use integration::process::signal_all;
use integration::workload::{Readers, Style, Workload};
use nix::sys::signal::Signal;
use std::time::{Duration, Instant};

const STYLES: [Style; 3] = [Style::Autocommit, Style::Block, Style::Prepared];
const CONNECTIONS: usize = 6;
const PAUSE: Duration = Duration::from_millis(5);
/// Far above what is expected of an idle machine (below 4 s): tests share two cores with each other's PostgreSQLs.
const WORST_OUTAGE: Duration = Duration::from_secs(20);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Death {
    /// kill -9 of the postmaster.
    Postmaster,
    /// kill -9 of postmaster and agent at once; the agent is started again later.
    PostmasterAndAgent,
    /// SIGSTOP of the agent and every PostgreSQL process; SIGCONT later.
    Freeze,
    /// kill -9 of the postmaster and of the leading manager at once; the manager is started again later.
    PostmasterAndLeader,
}

#[test]
fn a_dead_primary_is_replaced_and_comes_back_whatever_killed_it() {
    let _turn = one_at_a_time();
    let mut cluster = Cluster::healthy();
    Workload::create_table(&cluster.target()).expect("a table");
    let deaths = [Death::Postmaster, Death::PostmasterAndAgent, Death::Freeze, Death::PostmasterAndLeader];
    for (block, death) in deaths.into_iter().enumerate() {
        play(&mut cluster, death, 1 + 100 * block as i64);
    }
}

fn play(cluster: &mut Cluster, death: Death, block: i64) {
    let before = cluster.active();
    let load = Workload::start(&cluster.target(), CONNECTIONS, &STYLES, block, PAUSE);
    load.wait_for_more(200, LONG);
    let sessions = Sessions::open(cluster);
    let died = Instant::now();
    let undo = kill(cluster, death, &before);
    let after = cluster.active_after(before.term);
    // Until the other manager leads, the node may have come back as a standby and be the most advanced one.
    if death != Death::PostmasterAndLeader {
        assert_ne!(after.primary, before.primary, "{death:?}: a standby takes over");
    }
    let open = Instant::now();
    sessions.check(death);
    load.wait_for_more(200, LONG);
    undo.apply(cluster, &before.primary);
    cluster.all_stream();
    let history = load.finish();
    judge(&history, open, death);
    cluster.verify(&history, block);
    cluster.timelines_are(after.term);
    report_is_there(cluster, after.term, &before.primary, after.primary == before.primary);
    let gaps = history.longest_gaps();
    let median = gaps[gaps.len() / 2];
    eprintln!(
        "{death:?}: term {} opened after {:?}; outage median {median:?}, worst {:?}; answers {:?}",
        after.term,
        open - died,
        gaps[gaps.len() - 1],
        history.refusals()
    );
    assert!(gaps[gaps.len() - 1] < WORST_OUTAGE, "{death:?}: {gaps:?}");
}

#[test]
fn a_primary_that_answers_and_whose_commits_nobody_acknowledges_is_replaced() {
    let _turn = one_at_a_time();
    let manager = "stuck_timeout = \"2s\"\n";
    let cluster = Cluster::start(&Options { manager, fault_proxies: true, ..Options::default() });
    Workload::create_table(&cluster.target()).expect("a table");
    let before = cluster.active();
    let load = Workload::start(&cluster.target(), CONNECTIONS, &STYLES, 1, PAUSE);
    load.wait_for_more(100, LONG);
    // Its agent, its PostgreSQL and everything that reads are as well as ever.
    cluster.fault_proxy(&before.primary).cut_replication();
    let after = cluster.active_after(before.term);
    assert_ne!(after.primary, before.primary);
    cluster.fault_proxy(&before.primary).heal();
    load.wait_for_more(100, LONG);
    cluster.all_stream();
    let history = load.finish();
    cluster.verify(&history, 1);
    let journal = cluster.verb(&["history", "--json"]).exits(0).json()["history"].to_string();
    assert!(journal.contains("commits have waited for standbys"), "the reason is told: {journal}");
}

/// Connections in each state that a failover must treat differently.
struct Sessions {
    idle: Client,
    in_block: Client,
    pinned: Client,
    prepared: Client,
}

impl Sessions {
    fn open(cluster: &Cluster) -> Self {
        let (mut in_block, mut pinned, mut prepared) = (cluster.connect(), cluster.connect(), cluster.connect());
        in_block.query("begin").and_then(|_| in_block.query("insert into rows(id) values (-1)")).expect("begun");
        pinned.query("set work_mem = '1MB'").expect("set");
        pinned.query("create temporary table mine (i int)").expect("a temporary table");
        prepared.extended("twice", Some("select 2 * $1::int"), &["4"]).expect("prepared");
        Self { idle: cluster.connect(), in_block, pinned, prepared }
    }

    /// Errors answer statements: 40001 in a block until it is rolled back, 08006 once where session state was lost,
    /// and nothing at all where nothing was lost.
    fn check(mut self, death: Death) {
        assert!(self.idle.query("create temp table if not exists idle_was_told_nothing()").is_ok(), "{death:?}");
        assert!(self.idle.notices.is_empty(), "{death:?}: {:?}", self.idle.notices);

        let lost = self.in_block.query("select 1").expect_err("the block died with its server");
        assert_eq!((lost.sqlstate(), self.in_block.status), (Some("40001"), b'E'), "{death:?}: {lost}");
        let still = self.in_block.query("select 1").expect_err("the block has failed");
        assert_eq!(still.sqlstate(), Some("25P02"), "{death:?}: {still}");
        let ended = self.in_block.query("rollback").expect("a failed block can be rolled back");
        assert_eq!(
            (ended.tags.as_slice(), self.in_block.status),
            (["ROLLBACK".to_owned()].as_slice(), b'I'),
            "{death:?}"
        );
        self.in_block.query("select 1").expect("the connection goes on");

        let told = self.pinned.query("select 1").expect_err("the session state is lost");
        assert_eq!(told.sqlstate(), Some("08006"), "{death:?}: {told}");
        // It is told once, and what can be known survives.
        let work_mem = self.pinned.query("show work_mem").expect("it is told once");
        assert_eq!(work_mem.rows, [[Some("1MB".to_owned())]], "{death:?}");

        let answer = self.prepared.extended("twice", None, &["21"]).expect("a prepared statement survives");
        assert_eq!(answer.value(), "42", "{death:?}");
    }
}

/// What brings a node back.
enum Undo {
    Nothing,
    StartAgent,
    Thaw(Frozen),
    StartManager(String),
}

fn kill(cluster: &mut Cluster, death: Death, now: &Active) -> Undo {
    let node = &now.primary;
    match death {
        Death::Postmaster => {
            cluster.kill_postmaster(node);
            Undo::Nothing
        }
        Death::PostmasterAndAgent => {
            cluster.role(node).signal(Signal::SIGKILL);
            cluster.kill_postmaster(node);
            cluster.kill_role(node);
            Undo::StartAgent
        }
        Death::Freeze => Undo::Thaw(cluster.freeze_node(node)),
        Death::PostmasterAndLeader => {
            let leader = cluster.leader();
            cluster.kill_postmaster(node);
            cluster.kill_role(&leader);
            Undo::StartManager(leader)
        }
    }
}

impl Undo {
    fn apply(self, cluster: &mut Cluster, node: &str) {
        match self {
            Self::Nothing => {}
            Self::StartAgent => cluster.start_role(node),
            Self::Thaw(frozen) => frozen.thaw(),
            Self::StartManager(name) => cluster.start_role(&name),
        }
    }
}

/// No connection was closed, every one went on writing, and nothing but a failover's answers was given.
fn judge(history: &History, open: Instant, death: Death) {
    for answer in history.refusals().keys() {
        assert!(answer == "08007" || FAILOVER_REFUSALS.contains(&answer.as_str()), "{death:?}: a client saw {answer}");
    }
    let since = history.acknowledged_since(open);
    assert_eq!(since.len(), CONNECTIONS);
    assert!(since.values().all(|n| *n > 0), "{death:?}: rows acknowledged since, by connection: {since:?}");
}

/// `report` tells of this term and of the old primary, whose WAL was read to its end unless it is primary again.
fn report_is_there(cluster: &Cluster, term: u64, old: &str, took_over_itself: bool) {
    let asked = term.to_string();
    integration::wait::wait_for("the report of the term", LONG, || {
        let verb = cluster.verb(&["report", &asked, "--json"]);
        let text = format!("{verb:?}");
        if verb.code != 0 {
            return Err(text);
        }
        let json = verb.json();
        let named = json["journal"]["term"] == term && verb.stdout.contains(old);
        let reports = json["reports"].as_array().cloned().unwrap_or_default();
        let read = took_over_itself || reports.iter().any(|r| r["node"] == old && r["end_lsn"].is_string());
        if named && read { Ok(()) } else { Err(text) }
    });
}

#[test]
fn the_death_of_a_standby_an_agent_or_a_manager_disturbs_no_client() {
    let _turn = one_at_a_time();
    let mut cluster = Cluster::healthy();
    Workload::create_table(&cluster.target()).expect("a table");
    let before = cluster.active();
    let load = Workload::start(&cluster.target(), CONNECTIONS, &STYLES, 1, PAUSE);
    let readers = Readers::start(&cluster.target(), 3, PAUSE);
    load.wait_for_more(100, LONG);
    for standby in cluster.standbys() {
        cluster.kill_postmaster(standby);
        load.wait_for_more(200, LONG);
        integration::wait::wait_until("the standby's PostgreSQL to be up again", LONG, || {
            cluster.postmaster(standby).is_some()
        });
        cluster.streams(standby);
    }
    // The primary's agent dies alone: its PostgreSQL serves on, and the agent finds it again.
    cluster.kill_role(&before.primary);
    load.wait_for_more(200, LONG);
    cluster.start_role(&before.primary);
    let leader = cluster.leader();
    cluster.kill_role(&leader);
    load.wait_for_more(200, LONG);
    cluster.start_role(&leader);
    cluster.all_stream();
    load.wait_for_more(100, LONG);
    let (history, reads) = (load.finish(), readers.finish());
    assert_eq!(cluster.active(), before, "nobody took over");
    assert!(history.refusals().is_empty(), "writers saw {:?}", history.refusals());
    assert!(reads.errors.is_empty(), "readers saw {:?}", reads.errors);
    cluster.verify(&history, 1);
}

#[test]
fn a_held_statement_is_refused_with_57p03_when_no_primary_comes_in_time() {
    let _turn = one_at_a_time();
    let options = integration::config_file::Options { proxy: "hold_timeout = \"5s\"\n", ..Default::default() };
    let mut cluster = Cluster::start(&options);
    Workload::create_table(&cluster.target()).expect("a table");
    let mut client = cluster.connect();
    client.query("insert into rows(id) values (1)").expect("a healthy cluster takes a row");
    for node in integration::config_file::NODES {
        cluster.kill_role(node);
        cluster.kill_postgres(node);
    }
    // The first statement may have been sent before the deaths were noticed; the second one cannot.
    let first = client.query("insert into rows(id) values (2)").expect_err("there is no PostgreSQL");
    assert!(matches!(first.sqlstate(), Some("08007" | "57P03")), "{first}");
    let asked = Instant::now();
    let second = client.query("insert into rows(id) values (3)").expect_err("there is no PostgreSQL");
    assert_eq!(second.sqlstate(), Some("57P03"), "{second}");
    assert!(asked.elapsed() >= Duration::from_millis(4900), "held for only {:?}", asked.elapsed());
    for node in integration::config_file::NODES {
        cluster.start_role(node);
    }
    integration::wait::wait_for("the same connection to write again", LONG, || {
        client.query("insert into rows(id) values (4)")
    });
}

/// One COMMIT is on the standbys' disks when the primary dies, and waits to be applied there; one is on its own disk only,
/// and so is a write that commits by itself, of which nobody can ask.
#[test]
fn commits_in_doubt_are_answered_as_the_new_primary_has_them_and_the_report_counts_them() {
    let _turn = one_at_a_time();
    let cluster = Cluster::healthy();
    let before = cluster.active();
    cluster.connect().query("create table if not exists doubtful (id int)").expect("a table");
    cluster.all_stream();
    for standby in cluster.standbys() {
        Obstacle::Pause.put(&cluster, standby);
    }
    Obstacle::Pause.stops_replay(&cluster);
    let [survivor, lost, single] = [1, 2, 3].map(|id| {
        let mut client = cluster.connect();
        let insert = format!("insert into doubtful values ({id})");
        if id < 3 {
            client.query("begin").expect("begun");
            client.query(&insert).expect("written");
        }
        (client, insert)
    });
    let waiting = |commits: usize| {
        integration::wait::wait_for(&format!("{commits} commits to wait for standbys"), LONG, || {
            let sql = "select count(*) from pg_stat_activity where wait_event = 'SyncRep' and backend_type = 'client \
                       backend' and query ~ '^(commit|insert into doubtful)'";
            match cluster.superuser(&before.primary, sql) {
                Ok(count) if count == commits.to_string() => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
    };
    let send = |mut client: Client, sql: String| std::thread::spawn(move || client.query(&sql));
    let (mut client, _) = survivor;
    client.query("set local synchronous_commit = remote_apply").expect("a session may ask for more");
    let survivor = send(client, "commit".into());
    waiting(1);
    integration::wait::wait_for("a standby to have flushed it", LONG, || {
        let sql = "select bool_or(flush_lsn >= pg_current_wal_flush_lsn()) from pg_stat_replication";
        match cluster.superuser(&before.primary, sql) {
            Ok(flushed) if flushed == "t" => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    let senders = cluster.postgres_processes(&before.primary, "walsender");
    assert_eq!(senders.len(), 2, "{senders:?}");
    signal_all(&senders, Signal::SIGSTOP);
    let (lost, single) = (send(lost.0, "commit".into()), send(single.0, single.1));
    waiting(3);
    cluster.kill_postgres(&before.primary);
    let after = cluster.active_after(before.term);
    assert_ne!(after.primary, before.primary);

    let told = |answer: std::thread::JoinHandle<_>| -> Result<Vec<String>, Option<String>> {
        let answer: Result<integration::client::Answer, integration::client::ClientError> =
            answer.join().expect("no panic");
        answer.map(|a| a.tags).map_err(|e| e.sqlstate().map(str::to_owned))
    };
    assert_eq!(told(survivor), Ok(vec!["COMMIT".to_owned()]));
    assert_eq!(told(lost), Err(Some("40001".to_owned())));
    assert_eq!(told(single), Err(Some("08007".to_owned())));
    let rows = cluster.connect().query("select string_agg(id::text, ' ') from doubtful").expect("rows");
    assert_eq!(rows.value(), "1");
    // The proxy tells it when it knows, which is after the term has opened.
    let term = after.term.to_string();
    let sum = |report: &serde_json::Value, what: &str| -> u64 {
        report["doubts"].as_array().into_iter().flatten().filter_map(|d| d[what].as_u64()).sum()
    };
    integration::wait::wait_for("the report to count them", LONG, || {
        let report = cluster.verb(&["report", &term, "--json"]).exits(0).json();
        let counts = ["survived", "lost", "unknown"].map(|what| sum(&report, what));
        if counts == [1, 1, 1] { Ok(()) } else { Err(format!("{counts:?} in {report:#}")) }
    });
    let text = cluster.verb(&["report", &term]).exits(0).stdout;
    let line = format!("writes in doubt in term {}: 1 commits survived", before.term);
    assert!(text.contains(&line), "{text}");
    cluster.all_stream();
}

/// PostgreSQL asks a new primary for WAL only once it has replayed what it has.
#[test]
fn paused_replay_and_readers_in_its_way_keep_no_failover_back() {
    let _turn = one_at_a_time();
    let parameters = "max_standby_streaming_delay = \"-1\"\n";
    let mut cluster = Cluster::start(&Options { parameters, ..Options::default() });
    Workload::create_table(&cluster.target()).expect("a table");
    for (block, obstacle) in [(1, Obstacle::Pause), (101, Obstacle::Readers)] {
        let before = cluster.active();
        let load = Workload::start(&cluster.target(), CONNECTIONS, &STYLES, block, PAUSE);
        load.wait_for_more(100, LONG);
        let readers: Vec<Client> =
            cluster.standbys().into_iter().filter_map(|standby| obstacle.put(&cluster, standby)).collect();
        obstacle.stops_replay(&cluster);
        load.wait_for_more(100, LONG);
        // The old one must not come back as the standby that the new one needs.
        let undo = kill(&mut cluster, Death::PostmasterAndAgent, &before);
        let after = cluster.active_after(before.term);
        load.wait_for_more(100, LONG);
        drop(readers);
        undo.apply(&mut cluster, &before.primary);
        cluster.all_stream();
        cluster.verify(&load.finish(), block);
        cluster.timelines_are(after.term);
    }
}

/// What keeps a standby from replaying.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Obstacle {
    Pause,
    Readers,
}

impl Obstacle {
    /// Put it in the way; gives the reader who holds a lock.
    fn put(self, cluster: &Cluster, standby: &str) -> Option<Client> {
        if self == Self::Pause {
            cluster.superuser(standby, "select pg_wal_replay_pause()").expect("replay pauses");
            return None;
        }
        cluster.connect().query("create table if not exists obstacle (id int)").expect("a table");
        Some(integration::wait::wait_for(&format!("a reader of the table on {standby}"), LONG, || {
            let mut reader = Client::connect(&cluster.node_target(standby))?;
            reader.query("begin; select count(*) from obstacle")?;
            Ok::<_, integration::client::ClientError>(reader)
        }))
    }

    /// Wait until no standby replays.
    fn stops_replay(self, cluster: &Cluster) {
        if self == Self::Readers {
            cluster.connect().query("drop table obstacle").expect("the primary has no reader of it");
        }
        for standby in cluster.standbys() {
            integration::wait::wait_for(&format!("replay to stand still on {standby}"), LONG, || {
                let waits = "select pg_get_wal_replay_pause_state() = 'paused' or exists (select from \
                             pg_stat_activity where backend_type = 'startup' and wait_event_type = 'Lock')";
                match cluster.superuser(standby, waits) {
                    Ok(stands) if stands == "t" => Ok(()),
                    other => Err(format!("{other:?}")),
                }
            });
        }
    }
}
