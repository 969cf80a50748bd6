//! A crowd of clients on three server connections, doing all that a session can remember and dying in all states, some
//! of them while their requests to cancel are on the way. Whatever the order: no client sees another's settings, rows,
//! statements or answers; what was acknowledged is there, and what was not committed is not.
//!
//! `PGTENURE_CROWD_SECONDS` makes it longer, `PGTENURE_CROWD_SEED` repeats one. The seed is printed when it fails.

use super::common::raw::{Raw, bind, close, execute, flush, parse, run, sync};
use super::common::{Cluster, DEADLINE, dial, wait_for};
use proxy::config::{self, IoUring};
use proxy::wire::codec::message;
use proxy::wire::frontend::write_query;
use proxy::wire::startup::cancel_request;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

const CLIENTS: u64 = 16;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

/// Rows that must be there in the end, and rows that must not.
#[derive(Default)]
struct Rows {
    acknowledged: BTreeSet<u64>,
    never: BTreeSet<u64>,
}

/// One session of one client.
struct Person<'a> {
    port: u16,
    raw: Raw,
    random: &'a mut Random,
    rows: &'a mut Rows,
    ids: &'a AtomicU64,
    name: String,
    /// The value of `app.me`; `None` before it was set.
    setting: Option<String>,
    prepared: BTreeMap<String, u64>,
}

fn env(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default)
}

fn is(what: &str, seen: &[String], want: &[&str]) {
    // What a reset does to application_name is told by another test.
    let silent = |s: &&str| matches!(*s, "T" | "1" | "2" | "3") || s.starts_with("S application_name=");
    let seen: Vec<&str> = seen.iter().map(String::as_str).filter(|s| !silent(s)).collect();
    assert_eq!(seen, want, "{what}");
}

impl Person<'_> {
    fn ask(&mut self, sql: &str, want: &[&str]) {
        is(sql, &self.raw.query(sql), want);
    }

    fn id(&self) -> u64 {
        self.ids.fetch_add(1, Ordering::Relaxed)
    }

    /// A row that must never be seen.
    fn ghost(&mut self) -> u64 {
        let id = self.id();
        self.rows.never.insert(id);
        id
    }

    /// Requests to cancel what runs now, as libpq does it.
    fn cancel(&self) {
        let mut request = dial(self.port);
        request.write_all(&cancel_request(self.raw.key.0, self.raw.key.1)).expect("the endpoint reads");
        let _ = request.read(&mut [0]);
    }

    /// One thing that a client does. False: it dies of it.
    fn act(&mut self) -> bool {
        match self.random.below(22) {
            0..3 => self.echo(),
            3 => {
                let name = self.name.clone();
                self.ask("select current_setting('application_name')", &[&format!("D {name}"), "C SELECT 1", "Z I"]);
            }
            4 => self.set(),
            5 => self.show(),
            6 => {
                let id = self.id();
                self.ask(&format!("insert into crowd values ({id})"), &["C INSERT 0 1", "Z I"]);
                self.rows.acknowledged.insert(id);
            }
            7 => self.prepare(),
            8..11 => self.execute(),
            11 => {
                let id = self.ghost();
                let sql = format!("begin; insert into crowd values ({id}); select 1/0");
                self.ask(&sql, &["C BEGIN", "C INSERT 0 1", "E 22012", "Z E"]);
                self.ask("rollback", &["C ROLLBACK", "Z I"]);
            }
            12 => {
                self.raw.query("begin");
                let id = self.ghost();
                self.ask(&format!("insert into crowd values ({id})"), &["C INSERT 0 1", "Z T"]);
                // Half of them leave with the block open.
                if self.random.below(2) == 0 {
                    return false;
                }
                self.ask("rollback", &["C ROLLBACK", "Z I"]);
            }
            13 => self.unit_that_fails(),
            14 => self.cancel_something(),
            15 => self.temporary(),
            16 => {
                let mark = self.random.next();
                self.raw.write(|out| {
                    run(out, &format!("select '{mark}'"));
                    flush(out);
                });
                let mut seen = vec![self.raw.next()];
                while !seen.iter().any(|s| s.starts_with("C ") || s == "EOF") {
                    seen.push(self.raw.next());
                }
                is("flush", &seen, &[&format!("D {mark}"), "C SELECT 1"]);
                self.raw.write(sync);
                is("sync", &self.raw.until_ready(), &["Z I"]);
            }
            17 => {
                self.ask("discard all", &["C DISCARD ALL", "Z I"]);
                self.prepared.clear();
                self.setting = None;
            }
            18 => {
                let key = self.random.next() >> 2;
                self.ask(&format!("select pg_try_advisory_lock({key})"), &["D t", "C SELECT 1", "Z I"]);
                self.ask(&format!("select pg_advisory_unlock({key})"), &["D t", "C SELECT 1", "Z I"]);
            }
            _ => return self.die(),
        }
        true
    }

    fn echo(&mut self) {
        let mark = self.random.next();
        self.ask(&format!("select '{mark}'"), &[&format!("D {mark}"), "C SELECT 1", "Z I"]);
    }

    fn set(&mut self) {
        let value = self.random.next().to_string();
        let seen = match self.random.below(3) {
            0 => self.raw.query(&format!("set app.me = '{value}'")),
            1 => self.raw.query(&format!("select set_config('app.me', '{value}', false)")),
            _ => {
                self.raw.write(|out| {
                    parse(out, "", "select set_config('app.me', $1, false)");
                    bind(out, "", "", &[&value]);
                    execute(out, "");
                    sync(out);
                });
                self.raw.until_ready()
            }
        };
        assert_eq!(seen.last().map(String::as_str), Some("Z I"), "{seen:?}");
        assert!(!seen.iter().any(|s| s.starts_with("E ")), "{seen:?}");
        self.setting = Some(value);
    }

    fn show(&mut self) {
        let seen = self.raw.query("select current_setting('app.me', true)");
        let own = self.setting.as_ref().map_or_else(|| "D ".to_owned(), |value| format!("D {value}"));
        is("the session's own setting", &seen, &[&own, "C SELECT 1", "Z I"]);
    }

    fn prepare(&mut self) {
        let (name, mark) = (format!("s{}", self.random.below(4)), self.random.below(1_000_000));
        let known = self.prepared.insert(name.clone(), mark).is_some();
        self.raw.write(|out| {
            if known {
                close(out, &name);
            }
            parse(out, &name, &format!("select $1::text || '-{mark}'"));
            sync(out);
        });
        is("prepare", &self.raw.until_ready(), &["Z I"]);
    }

    fn execute(&mut self) {
        let nth = self.random.below(4) as usize;
        let Some((name, mark)) = self.prepared.iter().nth(nth).map(|(n, m)| (n.clone(), *m)) else { return };
        let value = self.random.next().to_string();
        self.raw.write(|out| {
            bind(out, "", &name, &[&value]);
            execute(out, "");
            sync(out);
        });
        is("execute", &self.raw.until_ready(), &[&format!("D {value}-{mark}"), "C SELECT 1", "Z I"]);
    }

    fn unit_that_fails(&mut self) {
        let id = self.ghost();
        self.raw.write(|out| {
            run(out, &format!("insert into crowd values ({id})"));
            run(out, "select 1/0");
            run(out, "select 3");
            sync(out);
        });
        is("a unit that fails", &self.raw.until_ready(), &["C INSERT 0 1", "E 22012", "Z I"]);
    }

    /// What is cancelled ends or is cancelled; what comes next is neither.
    fn cancel_something(&mut self) {
        let sql = ["select pg_sleep(0.03)", "select 1", "select count(*) from generate_series(1, 50000)"];
        let sql = sql[self.random.below(3) as usize];
        self.raw.write(|out| write_query(out, sql));
        std::thread::sleep(Duration::from_micros(self.random.below(40_000)));
        if self.random.below(2) == 0 {
            self.cancel();
            let seen = self.raw.until_ready();
            assert!(!seen.iter().any(|s| s.starts_with("E ") && s != "E 57014"), "{sql}: {seen:?}");
        } else {
            // The request is on its way while the answer is read.
            let seen = std::thread::scope(|scope| {
                let (port, key) = (self.port, self.raw.key);
                scope.spawn(move || {
                    let mut request = dial(port);
                    request.write_all(&cancel_request(key.0, key.1)).expect("the endpoint reads");
                    let _ = request.read(&mut [0]);
                });
                self.raw.until_ready()
            });
            assert!(!seen.iter().any(|s| s.starts_with("E ") && s != "E 57014"), "{sql}: {seen:?}");
        }
        self.echo();
    }

    fn temporary(&mut self) {
        let name = self.name.clone();
        let sql = "create temp table if not exists mine(x text); truncate mine";
        assert!(!self.raw.query(sql).iter().any(|s| s.starts_with("E ")));
        let sql = format!("insert into mine values ('{name}'); select x from mine");
        self.ask(&sql, &["C INSERT 0 1", &format!("D {name}"), "C SELECT 1", "Z I"]);
        if self.random.below(8) > 0 {
            self.ask("drop table mine", &["C DROP TABLE", "Z I"]);
        }
    }

    /// The client goes away in the middle of something.
    fn die(&mut self) -> bool {
        let id = self.ghost();
        match self.random.below(6) {
            0 => self.raw.write(|out| write_query(out, "select pg_sleep(0.2)")),
            1 => {
                let rows = [10, 3000, 60_000][self.random.below(3) as usize];
                self.raw.write(|out| {
                    write_query(out, &format!("select repeat('x', 1000) from generate_series(1, {rows})"))
                });
            }
            2 => self.raw.write(|out| {
                write_query(out, "begin");
                write_query(out, &format!("insert into crowd values ({id})"));
            }),
            3 => self.raw.write(|out| {
                run(out, &format!("insert into crowd values ({id})"));
                flush(out);
            }),
            4 => self.raw.write(|out| {
                write_query(out, "copy crowd from stdin");
                message(out, b'd', |b| b.extend_from_slice(format!("{id}\n").as_bytes()));
            }),
            _ => {
                self.raw.write(|out| write_query(out, "select pg_sleep(0.2)"));
                self.cancel();
            }
        }
        std::thread::sleep(Duration::from_micros(self.random.below(30_000)));
        false
    }
}

/// Sessions one after the other, until the time is over.
fn live(port: u16, number: u64, seed: u64, ids: &AtomicU64, end: Instant) -> Rows {
    let mut random = Random(seed ^ number.wrapping_mul(0x5851_f42d_4c95_7f2d));
    let mut rows = Rows::default();
    while Instant::now() < end {
        let name = format!("c{number}_{}", random.next());
        let raw = Raw::login(port, &[("application_name", &name)]);
        let acts = random.below(60);
        let (setting, prepared) = (None, BTreeMap::new());
        let mut person = Person { port, raw, random: &mut random, rows: &mut rows, ids, name, setting, prepared };
        (0..acts).all(|_| Instant::now() < end && person.act());
    }
    rows
}

#[test]
fn no_client_of_a_crowd_meets_another() {
    let seed = env("PGTENURE_CROWD_SEED", u64::from(std::process::id()));
    let cluster = Cluster::start(1, |raw| {
        raw.workers = 2;
        raw.pool_size = 3;
    });
    cluster.psql("create table crowd(id bigint primary key)").expect("a table");
    let (ids, port) = (AtomicU64::new(1), cluster.port);
    let end = Instant::now() + Duration::from_secs(env("PGTENURE_CROWD_SECONDS", 5));
    let lives: Vec<_> = std::thread::scope(|scope| {
        let ids = &ids;
        let threads: Vec<_> = (0..CLIENTS).map(|n| scope.spawn(move || live(port, n, seed, ids, end))).collect();
        threads.into_iter().map(|t| t.join()).collect()
    });
    let lives: Result<Vec<Rows>, _> = lives.into_iter().collect();
    let lives = lives.unwrap_or_else(|_| panic!("a client saw what it must not, with PGTENURE_CROWD_SEED={seed}"));
    let acknowledged: BTreeSet<u64> = lives.iter().flat_map(|r| r.acknowledged.iter().copied()).collect();
    let never: BTreeSet<u64> = lives.iter().flat_map(|r| r.never.iter().copied()).collect();
    assert!(!acknowledged.is_empty() && !never.is_empty(), "{} rows, {} ghosts", acknowledged.len(), never.len());
    // The servers of those who died have rolled back or will not commit any more.
    let primary = &cluster.nodes[0];
    let open = "select count(*) from pg_stat_activity where usename = 'app' and state <> 'idle'";
    wait_for("the servers of dead clients to end", || (primary.psql(open) == "0").then_some(()));
    let there = primary.psql("select id from crowd");
    let there: BTreeSet<u64> = there.lines().map(|l| l.parse().expect("a number")).collect();
    assert_eq!(acknowledged.difference(&there).count(), 0, "rows are lost, with PGTENURE_CROWD_SEED={seed}");
    assert_eq!(never.intersection(&there).count(), 0, "rows are there that must not be, PGTENURE_CROWD_SEED={seed}");
}

/// Statements of a client that does not read: their answers are more than sockets hold.
const UNREAD: usize = 6000;

/// Tells the others that they may end, also when the test fails.
struct Telling<'a>(&'a AtomicBool);

impl Drop for Telling<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[test]
fn who_does_not_read_gets_all_answers_in_order_later_however_they_are_sent() {
    let mut typed = config::Raw::default();
    let cluster = Cluster::start(0, |raw| {
        (raw.workers, raw.pool_size) = (1, 8);
        typed = raw.clone();
    });
    let (control, port) = (cluster.handle.as_ref().expect("it runs").control(), cluster.port);
    let reload = |io_uring| {
        let changed = config::Raw { io_uring, ..typed.clone() };
        control.reload(config::check(changed).expect("nothing else has changed")).expect("nothing to open");
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let blocked = || {
        let view =
            runtime.block_on(cluster.handle.as_ref().expect("it runs").view(DEADLINE)).expect("the worker answers");
        view.clients.iter().filter(|client| client.blocked_since.is_some()).count()
    };
    let told = AtomicBool::new(false);
    let mut slow: Vec<Raw> = (0..2).map(|_| Raw::login(cluster.port, &[])).collect();
    std::thread::scope(|scope| {
        for raw in &slow {
            let mut stream = raw.stream.try_clone().expect("a descriptor");
            scope.spawn(move || {
                for i in 0..UNREAD {
                    let mut out = Vec::new();
                    write_query(&mut out, &format!("select '{i}', repeat('x', 1000)"));
                    stream.write_all(&out).expect("the endpoint reads");
                }
            });
        }
        let (told, telling) = (&told, Telling(&told));
        let others: Vec<_> = (0..5)
            .map(|n| {
                scope.spawn(move || {
                    let (mut raw, mut i) = (Raw::login(port, &[]), 0);
                    while i < 300 || !told.load(Ordering::SeqCst) {
                        i += 1;
                        let sql = format!("select '{n} {i}'");
                        is(&sql, &raw.query(&sql), &[&format!("D {n} {i}"), "C SELECT 1", "Z I"]);
                    }
                })
            })
            .collect();
        for io_uring in [IoUring::Off, IoUring::Auto] {
            wait_for("both to take nothing any more", || (blocked() == 2).then_some(()));
            reload(io_uring);
        }
        drop(telling);
        others.into_iter().for_each(|thread| thread.join().expect("all answers as they should be"));
        for raw in &mut slow {
            for i in 0..UNREAD {
                let seen = raw.until_ready();
                assert!(seen[1].starts_with(&format!("D {i} x")), "{i}: {seen:?}");
                assert_eq!(seen[2..], ["C SELECT 1", "Z I"]);
            }
        }
    });
}
