//! Several sessions on fewer servers, each doing what comes from a seed, are answered as each alone at PostgreSQL.
//!
//! A seed chooses what is said, not who meets whom at which server: a difference may take some runs of its seed to come
//! again. `PGTENURE_STRESS_SEED` is the first seed, `PGTENURE_STRESS_SEEDS` how many.

use super::author::Author;
use super::common::raw::Raw;
use super::common::{Cluster, Node, wait_for};
use super::random::Random;
use super::script::Script;
use super::session;
use proxy::config::PoolMode;
use std::fmt::Write as _;
use std::io::Write as _;

const SESSIONS: usize = 6;
const SERVERS: usize = 2;
const ROUNDS: usize = 14;
/// Some of the seeds from here on find a role that was lost on the way to another session's server, as it once was.
const FIRST_SEED: u64 = 22;

/// What a session said, and what was answered, round by round.
struct Talk {
    said: Vec<Script>,
    answers: Vec<Vec<String>>,
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().filter(|v| !v.is_empty()).map(|v| v.parse().expect("a number"))
}

/// One session's own schema, and another with a table of the same name.
fn fixture(k: usize) -> String {
    format!(
        "reset role; drop schema if exists s{k}, o{k} cascade; drop table if exists public.n{k};
         drop function if exists public.one{k}; set role app; create schema s{k}; create schema o{k};
         create table o{k}.t(flag bool); grant usage on schema s{k}, o{k} to r1, r2; set search_path = s{k};
         create table t(id int primary key, word text); insert into t values (1, 'one{k}'), (2, 'two'), (3, null);
         create table kid(id int references t deferrable initially deferred); create sequence sq;
         create function noisy(n int) returns int language plpgsql as
             $$ begin for i in 1..n loop raise notice 'noise % {k}', i; end loop; return n; end $$;
         create procedure commits() language plpgsql as $$ begin perform 1; commit; perform 2; end $$;
         create function bump() returns int language plpgsql as
             $$ begin update t set word = coalesce(word, '') || '!' where id = 3; return 1; end $$;
         create function bump_stable() returns int stable language plpgsql as
             $$ begin perform count(*) from t; return {k}; end $$;
         create function bump_nothing() returns int immutable language sql as 'select 1';
         create view v as select id, word from t where id < 3; create materialized view mv as select {k} as a;
         grant all on all tables in schema s{k} to r1;"
    )
}

/// All sessions' tables as at first, on the standbys too.
fn set_up(primary: &Node) {
    primary.psql(&(0..SESSIONS).map(fixture).collect::<String>());
    let position = primary.psql("select pg_current_wal_lsn()");
    let behind = format!("select count(*) from pg_stat_replication where replay_lsn < '{position}'");
    wait_for("the standbys to have the tables", || (primary.psql(&behind) == "0").then_some(()));
}

/// Table OIDs differ whenever the tables are made.
fn without_tables(frame: &mut [u8]) {
    let mut at = 7;
    while let Some(end) = frame.get(at..).and_then(|rest| rest.iter().position(|b| *b == 0)) {
        let Some(oid) = frame.get_mut(at + end + 1..at + end + 5) else { return };
        if *oid >= *16_384u32.to_be_bytes().as_slice() {
            oid.fill(0xff);
        }
        at += end + 19;
    }
}

/// All answers up to those of the Sync and the empty Query that end a round; `None` if the connection ended.
fn answers(raw: &mut Raw) -> Option<Vec<String>> {
    let (mut all, mut last) = (Vec::new(), 0);
    loop {
        let (kind, mut frame) = raw.frame()?;
        if kind == b'T' {
            without_tables(&mut frame);
        }
        all.push(session::words(kind, &frame));
        if last == b'I' && kind == b'Z' {
            return Some(all);
        }
        last = kind;
    }
}

fn ended(script: &Script) -> Vec<u8> {
    script.clone().sync().query("").bytes()
}

/// The session alone at PostgreSQL, which decides how it goes on. `None`: PostgreSQL itself ended it.
fn alone(port: u16, seed: u64, k: usize) -> Option<Talk> {
    let (mut raw, mut author) = (Raw::login(port, &[]), Author::new(seed, k));
    let mut talk = Talk { said: vec![author.first()], answers: Vec::new() };
    for _ in 0..ROUNDS {
        raw.send(&ended(talk.said.last().expect("there is a first")));
        let Some(seen) = answers(&mut raw) else {
            eprintln!("seed {seed}: PostgreSQL ended session {k} at\n{}", talk.said.last()?.in_words());
            return None;
        };
        talk.said.push(author.round(seen.last().is_some_and(|z| z == "Z E")));
        talk.answers.push(seen);
    }
    talk.said.pop();
    Some(talk)
}

/// The same through the proxy. What is different, if anything is.
fn shared(port: u16, talk: &Talk, random: &mut Random) -> Option<String> {
    let mut raw = Raw::login(port, &[]);
    for (round, (said, want)) in talk.said.iter().zip(&talk.answers).enumerate() {
        let bytes = ended(said);
        let cut = if random.below(3) == 0 { random.below(bytes.len()) } else { 0 };
        // One that was closed has said why.
        let _ = raw.stream.write_all(&bytes[..cut]);
        std::thread::yield_now();
        let _ = raw.stream.write_all(&bytes[cut..]);
        let got = answers(&mut raw).unwrap_or_else(|| vec![session::CLOSED.to_owned()]);
        if let Some(difference) = session::difference(want, &got) {
            let mut story = format!("in round {round}:\n{difference}\n  what was said:\n");
            for (n, said) in talk.said[..=round].iter().enumerate() {
                let _ = writeln!(story, "round {n}\n{}", said.in_words());
            }
            return Some(story);
        }
    }
    None
}

/// What differs, session by session; `None` if PostgreSQL could not be asked.
fn play(cluster: &Cluster, seed: u64) -> Option<Vec<String>> {
    let primary = &cluster.nodes[0];
    set_up(primary);
    let Some(talks) = (0..SESSIONS).map(|k| alone(primary.port, seed, k)).collect::<Option<Vec<_>>>() else {
        wait_for("PostgreSQL to accept connections", || primary.try_psql("select 1").ok());
        return None;
    };
    set_up(primary);
    std::thread::scope(|scope| {
        let one = |(k, talk)| scope.spawn(move || shared(cluster.port, talk, &mut Random(seed ^ k as u64)));
        let threads: Vec<_> = talks.iter().enumerate().map(one).collect();
        let differ = threads.into_iter().enumerate().filter_map(|(k, thread)| {
            let difference = thread.join().unwrap_or_else(|_| Some("no answer".to_owned()))?;
            Some(format!("PGTENURE_STRESS_SEED={seed}, session {k}, {difference}"))
        });
        Some(differ.collect())
    })
}

fn play_seeds(mode: PoolMode, standbys: usize, seeds: u64) {
    let cluster = Cluster::start(standbys, |raw| {
        raw.pool_size = SERVERS;
        raw.pools.pool_mode = mode;
    });
    cluster.nodes[0].psql(
        "create role r1; create role r2; grant r1, r2 to app;
         alter role app set my.v = 'none'",
    );
    let first = number("PGTENURE_STRESS_SEED").unwrap_or(FIRST_SEED);
    let seeds = number("PGTENURE_STRESS_SEEDS").unwrap_or(seeds);
    let (mut left_out, mut differ) = (0, 0);
    for seed in first..first + seeds {
        let Some(differences) = play(&cluster, seed) else {
            left_out += 1;
            continue;
        };
        differ += usize::from(!differences.is_empty());
        differences.iter().for_each(|d| eprintln!("{d}"));
    }
    println!("{mode:?}: {seeds} seeds from {first} on, {left_out} left out, {differ} differ");
    assert_eq!(differ, 0, "seeds of {seeds} that differ");
    assert!(left_out * 10 <= seeds, "PostgreSQL ended sessions of {left_out} seeds of {seeds}");
}

#[test]
fn sessions_that_share_servers_by_transaction_are_answered_as_if_alone() {
    play_seeds(PoolMode::Transaction, 1, 10);
}

#[test]
fn sessions_that_share_servers_by_session_are_answered_as_if_alone() {
    play_seeds(PoolMode::Session, 1, 4);
}
