//! The same messages to PostgreSQL and through the proxy, in pieces of every size: the answers must be the same,
//! message for message.
//!
//! What is not compared: the fields F and L of errors, which name places in a server's source, the field R of some, and the process id
//! in a notification.

#![allow(unreachable_pub, missing_docs, reason = "a test program has no public interface")]

mod author;
#[path = "../common/mod.rs"]
mod common;
mod copies;
mod names;
mod random;
mod script;
mod scripts;
mod session;
mod shared;
mod sql_names;
mod texts;

use common::Cluster;
use proxy::config::PoolMode;
use proxy::config::pools::Database;
use random::Random;
use script::Script;
use session::{Cuts, Session};

/// Sequences made from seeds, and how long each is.
const SEQUENCES: u64 = 150;
const SEQUENCES_FULL: u64 = 2000;
const SEQUENCE_LENGTH: usize = 30;
/// Of so many scripts one is sent with pauses.
const PAUSED: usize = 16;
/// Runs that are cut at places made from a seed.
const SEEDED_CUTS: u64 = 1000;

/// `PGTENURE_SEED`, or one that is new with every run.
fn first_seed() -> u64 {
    let seed = match std::env::var("PGTENURE_SEED") {
        Ok(seed) => seed.parse().expect("PGTENURE_SEED is a number"),
        // The tests play the same ones every time; the long run plays others each time.
        Err(_) if full() => std::process::id().into(),
        Err(_) => 1,
    };
    println!("PGTENURE_SEED={seed}");
    seed
}

/// `PGTENURE_DIFFERENTIAL=full`: all that can be tried, which takes minutes.
fn full() -> bool {
    std::env::var("PGTENURE_DIFFERENTIAL").is_ok_and(|v| v == "full")
}

/// The database whose clients have a server each.
const BY_SESSION: &str = "by_session";

struct Pair {
    cluster: Cluster,
}

impl Pair {
    fn start() -> Self {
        // Whether a busy machine makes the standby stale is not what is compared.
        let cluster = Cluster::start(1, |raw| {
            raw.max_replay_lag = cluster::config::Span::secs(3600);
            let pool_mode = Some(PoolMode::Session);
            let database = Database { dbname: Some("app".to_owned()), pool_mode, ..Database::default() };
            raw.databases.insert(BY_SESSION.to_owned(), database);
        });
        let fixture = "create table t(id int primary key, word text);
            create table parent_of(id int references t deferrable initially deferred);
            create schema other; create table other.t(flag bool);
            create function noisy(n int) returns int language plpgsql as
                $$ begin for i in 1..n loop raise notice 'noise %', i; end loop; return n; end $$;
            create table shut(id int);
            create function refuses() returns trigger language plpgsql as
                $$ begin raise 'nothing may come in'; end $$;
            create trigger shut before insert on shut execute function refuses();
            create procedure commits() language plpgsql as
                $$ begin perform 1; commit; perform 2; end $$";
        cluster.nodes[0].psql(&format!("set role app; {fixture}"));
        Self { cluster }
    }

    fn direct(&self) -> Session {
        Session::login(self.cluster.nodes[0].port, "app", false)
    }

    fn proxied(&self) -> Session {
        Session::login(self.cluster.port, "app", true)
    }

    fn by_session(&self) -> Session {
        Session::login(self.cluster.port, BY_SESSION, true)
    }
}

#[test]
fn scripts_are_answered_alike_however_they_are_cut() {
    let pair = Pair::start();
    let (mut direct, mut wrong) = (pair.direct(), Vec::new());
    // Each script is cut at other places than the one before, in the tests, where not all are tried.
    let (seed, mut by_session) = (first_seed() as usize, pair.by_session());
    for (n, script) in scripts::short().iter().enumerate() {
        let want = direct.run(script, &Cuts::None);
        let mut cut = |mode: &str, proxied: &mut Session, step: usize| {
            let places = (1 + (seed + n) % step..script.bytes().len()).step_by(step).map(|at| Cuts::At(vec![at]));
            // Pauses take their time: the tests have them in some scripts.
            let paused = (full() || (seed + n).is_multiple_of(PAUSED)).then_some(Cuts::Paused);
            for cuts in [Cuts::None, Cuts::Messages, Cuts::Bytes].into_iter().chain(paused).chain(places) {
                if let Some(difference) = session::difference(&want, &proxied.run(script, &cuts)) {
                    wrong.push(format!("{} ({cuts:?}), by {mode}\n{difference}", script.name));
                    break;
                }
            }
        };
        cut("transaction", &mut pair.proxied(), if full() { 1 } else { 9 });
        cut("session", &mut by_session, if full() { 1 } else { 50 });
    }
    assert!(wrong.is_empty(), "{} scripts differ:\n{}", wrong.len(), wrong.join("\n\n"));
}

#[test]
fn scripts_are_answered_alike_cut_at_seeded_places() {
    let pair = Pair::start();
    let seed = first_seed();
    let all: Vec<Script> = scripts::short().into_iter().chain(scripts::long()).collect();
    let (mut direct, mut proxied, mut by_session) = (pair.direct(), pair.proxied(), pair.by_session());
    let want: Vec<_> = all.iter().map(|s| direct.run(s, &Cuts::None)).collect();
    for (script, want) in scripts::long().iter().zip(&want[scripts::short().len()..]) {
        for proxied in [&mut proxied, &mut by_session] {
            let got = proxied.run(script, &Cuts::None);
            same(want, &got, format_args!("{} in one write", script.name));
        }
    }
    for n in 0..SEEDED_CUTS {
        let mut random = Random(seed.wrapping_add(n));
        let which = random.below(all.len());
        let length = all[which].bytes().len();
        let mut cuts: Vec<usize> = (0..1 + random.below(6)).map(|_| 1 + random.below(length - 1)).collect();
        cuts.sort_unstable();
        cuts.dedup();
        // Each fourth by session, where there are names of the client's own and nothing is translated.
        let (proxied, mode) = if n % 4 == 3 { (&mut by_session, "session") } else { (&mut proxied, "transaction") };
        let got = proxied.run(&all[which], &Cuts::At(cuts.clone()));
        same(&want[which], &got, format_args!("{} cut at {cuts:?}, seed {seed}, by {mode}", all[which].name));
    }
}

#[test]
fn random_sequences_are_answered_alike() {
    let pair = Pair::start();
    let seed = first_seed();
    let (mut direct, mut pooled, mut by_session) = (pair.direct(), pair.proxied(), pair.by_session());
    for n in 0..if full() { SEQUENCES_FULL } else { SEQUENCES } {
        // Each fifth by session. The long run pauses, too.
        let proxied = if n % 5 == 4 { &mut by_session } else { &mut pooled };
        let cuts = match n % 4 {
            0 | 2 => Cuts::None,
            3 if full() => Cuts::Paused,
            _ => Cuts::Messages,
        };
        // Before a message that cannot be there the proxy may put one of its own, which is then the one that is refused.
        let alike = |answer: &String| match answer.split_once("unexpected message type 0x") {
            Some((before, after)) => [before, after.get(2..).unwrap_or_default()].concat(),
            None => answer.clone(),
        };
        let mut differ = |script: &Script| {
            let want: Vec<_> = direct.run(script, &Cuts::None).iter().map(alike).collect();
            let got: Vec<_> = proxied.run(script, &cuts).iter().map(alike).collect();
            session::difference(&want, &got)
        };
        let mut script = random::script(seed.wrapping_add(n), SEQUENCE_LENGTH);
        let Some(mut difference) = differ(&script) else { continue };
        eprintln!("{}, whole:\n{}\n{difference}", script.name, script.in_words());
        // What is not needed for a difference is left out, so that a person can read the rest.
        let (mut at, mut attempts) = (0, 40);
        while at < script.steps.len() && attempts > 0 {
            attempts -= 1;
            let mut fewer = script.clone();
            fewer.steps.remove(at);
            match differ(&fewer) {
                Some(other) => (script, difference) = (fewer, other),
                None => at += 1,
            }
        }
        panic!("{}, sent as {cuts:?}:\n{}\n{difference}", script.name, script.in_words());
    }
}

fn same(want: &[String], got: &[String], what: std::fmt::Arguments<'_>) {
    if let Some(difference) = session::difference(want, got) {
        panic!("{what}\n{difference}");
    }
}
