//! What commits wait for, as sessions ask for it and operators allow it, against a real server.

use super::common::raw::{Raw, bind, execute, parse, run, sync, words};
use super::common::{self, Cluster, dial};
use proxy::config::durability::Own;
use proxy::route::durability::Durability;
use proxy::wire::backend;
use proxy::wire::codec::head;
use std::io::{Read, Write};

/// Two server connections for all clients, so that settings move.
fn cluster(durability: Own) -> Cluster {
    let cluster = Cluster::start(0, |raw| {
        (raw.workers, raw.pool_size, raw.durability) = (1, 2, durability);
    });
    cluster.nodes[0].psql("create table app.public.t (i int); alter table t owner to app");
    cluster
}

fn lowering() -> Own {
    Own { allow_lower: Some(true), ..Own::default() }
}

fn ok(client: &mut Raw, sql: &str) -> Vec<String> {
    let seen = client.query(sql);
    assert!(!seen.iter().any(|s| s.starts_with("E ") || s == "EOF"), "{sql}: {seen:?}");
    seen
}

fn value(client: &mut Raw, sql: &str) -> String {
    let seen = ok(client, sql);
    seen.iter().find_map(|s| s.strip_prefix("D ")).unwrap_or_else(|| panic!("{sql}: {seen:?}")).to_owned()
}

const SHOW: &str = "show synchronous_commit";

#[test]
fn a_session_chooses_what_its_commits_wait_for() {
    let c = cluster(lowering());
    let (mut a, mut b) = (Raw::login(c.port, &[]), Raw::login(c.port, &[]));
    for (word, commit) in [
        ("async", "off"),
        ("local", "local"),
        ("received", "remote_write"),
        ("semi_sync", "on"),
        ("applied", "remote_apply"),
    ] {
        ok(&mut a, &format!("set pgtenure.durability = '{word}'"));
        assert_eq!(
            (value(&mut a, SHOW), value(&mut a, "show pgtenure.durability")),
            (commit.to_owned(), word.to_owned())
        );
        assert_eq!(value(&mut b, SHOW), "on", "nobody else is touched by it");
    }
    // Of the two settings the one that was set last counts, and what was undone does not.
    ok(&mut a, "set synchronous_commit = local");
    assert_eq!(value(&mut a, SHOW), "local");
    ok(&mut a, "set pgtenure.durability = 'applied'");
    assert_eq!(value(&mut a, SHOW), "remote_apply");
    ok(&mut a, "begin; set work_mem = '1MB'; rollback");
    ok(&mut a, "begin");
    ok(&mut a, "set pgtenure.durability = 'async'");
    ok(&mut a, "rollback");
    assert_eq!(value(&mut a, SHOW), "remote_apply");
    ok(&mut a, "reset pgtenure.durability");
    assert_eq!(value(&mut a, SHOW), "on");
    ok(&mut a, "set pgtenure.durability = 'async'");
    ok(&mut a, "discard all");
    assert_eq!(value(&mut a, SHOW), "on");
}

#[test]
fn what_a_block_sets_holds_for_its_own_commit() {
    let c = cluster(lowering());
    let mut a = Raw::login(c.port, &[]);
    ok(&mut a, "begin");
    ok(&mut a, "set local pgtenure.durability = 'async'");
    assert_eq!(value(&mut a, SHOW), "off");
    ok(&mut a, "savepoint s");
    ok(&mut a, "set local pgtenure.durability = 'applied'");
    assert_eq!(value(&mut a, SHOW), "remote_apply");
    ok(&mut a, "rollback to s");
    assert_eq!(value(&mut a, SHOW), "off");
    ok(&mut a, "insert into t values (1)");
    ok(&mut a, "commit");
    assert_eq!(value(&mut a, SHOW), "on");
    assert_eq!(c.counter("pgtenure_proxy_commits_below_mode_total"), 1.0);
    // By the extended protocol, as drivers begin a transaction: BEGIN and the first statement in one unit.
    a.write(|out| {
        run(out, "begin");
        parse(out, "", "select set_config('pgtenure.durability', $1, true)");
        bind(out, "", "", &["local"]);
        execute(out, "");
        sync(out);
    });
    assert!(a.until_ready().contains(&"Z T".to_owned()));
    assert_eq!(value(&mut a, SHOW), "local");
    ok(&mut a, "insert into t values (2)");
    ok(&mut a, "commit");
    // What asks for the mode again is not counted.
    ok(&mut a, "begin");
    ok(&mut a, "set local pgtenure.durability = 'semi_sync'");
    ok(&mut a, "insert into t values (3)");
    ok(&mut a, "commit");
    // By a statement that was prepared by SQL: asked for once it has run, and counted.
    ok(&mut a, "prepare d(text) as select set_config('synchronous_commit', $1, true)");
    ok(&mut a, "begin");
    ok(&mut a, "execute d('off')");
    ok(&mut a, "insert into t values (3)");
    ok(&mut a, "commit");
    assert_eq!(c.counter("pgtenure_proxy_commits_below_mode_total"), 3.0);
    let among = "begin; set local pgtenure.durability = 'async'; insert into t values (4); commit";
    assert_eq!(a.query(among), ["E 0A000", "Z I"]);
    assert_eq!(value(&mut a, "select count(*) from t"), "4");
    assert_eq!(c.counter("pgtenure_proxy_commits_below_mode_total"), 3.0);
}

#[test]
fn less_than_the_mode_is_refused_unless_it_is_allowed() {
    let c = cluster(Own::default());
    let mut a = Raw::login(c.port, &[]);
    for sql in [
        "set synchronous_commit = off",
        "set local synchronous_commit to 'remote_write'",
        "set pgtenure.durability = 'received'",
        "select set_config('synchronous_commit', 'local', false)",
        "alter role app set synchronous_commit = off",
        "do $$ begin set local synchronous_commit = off; insert into t values (1); end $$",
        "create function f() returns void language plpgsql as 'begin set local synchronous_commit = off; end'",
        "insert into t values (1); set synchronous_commit = off",
    ] {
        assert_eq!(a.query(sql), ["E 42501", "Z I"], "{sql}");
    }
    assert_eq!(a.query("set pgtenure.durability = 'twice'"), ["E 22023", "Z I"]);
    assert_eq!(a.query("insert into t values (1); set pgtenure.durability = 'semi_sync'"), ["E 0A000", "Z I"]);
    // What only looks like it is passed on.
    ok(&mut a, "select 'set synchronous_commit = off'");
    ok(&mut a, "select current_setting('synchronous_commit')");
    // More than the mode is anybody's to ask for.
    ok(&mut a, "set pgtenure.durability = 'applied'");
    assert_eq!(value(&mut a, SHOW), "remote_apply");
    // In a block the block fails, also when only the server could tell.
    for (parameter, error) in [("local", "E 42501"), ("twice", "E 22023")] {
        ok(&mut a, "begin");
        ok(&mut a, "insert into t values (1)");
        a.write(|out| {
            parse(out, "", "select set_config('pgtenure.durability', $1, true)");
            bind(out, "", "", &[parameter]);
            execute(out, "");
            sync(out);
        });
        a.until_ready();
        assert_eq!(a.query("insert into t values (2)"), [error, "Z E"]);
        assert_eq!(a.query("commit"), ["C ROLLBACK", "Z I"]);
    }
    // Prepared by SQL it is the same, by either name.
    for (setting, value) in [("synchronous_commit", "off"), ("pgtenure.durability", "local")] {
        ok(&mut a, &format!("prepare d(text) as select set_config('{setting}', $1, true)"));
        ok(&mut a, "begin");
        ok(&mut a, "insert into t values (1)");
        ok(&mut a, &format!("execute d('{value}')"));
        assert_eq!(a.query("insert into t values (2)"), ["E 42501", "Z E"], "{setting}");
        ok(&mut a, "rollback");
        ok(&mut a, "deallocate d");
    }
    ok(&mut a, "begin");
    assert_eq!(a.query("set local synchronous_commit = off"), ["E 42501", "Z E"]);
    ok(&mut a, "rollback");
    // What no text tells is put right behind it, and told.
    let seen = ok(&mut a, "do $$ begin perform set_config('synchronous_' || 'commit', 'off', false); end $$");
    let seen = [seen, ok(&mut a, "select 1")].concat();
    assert!(seen.contains(&"N 01000".to_owned()), "{seen:?}");
    assert_eq!(value(&mut a, SHOW), "on");
    assert_eq!(value(&mut a, "select count(*) from t"), "0");
    assert_eq!(c.counter("pgtenure_proxy_commits_below_mode_total"), 0.0);
}

#[test]
fn a_statement_says_in_a_comment_what_its_commit_waits_for() {
    let c = Cluster::start(0, |raw| {
        (raw.workers, raw.pool_size, raw.durability, raw.reads.hints) = (1, 1, lowering(), true);
    });
    let (mut a, mut b) = (Raw::login(c.port, &[]), Raw::login(c.port, &[]));
    ok(&mut a, "create table t (i int, how text default current_setting('synchronous_commit'))");
    let hint = |word: &str, sql: &str| format!("/* pgtenure: durability={word} */ {sql}");
    let insert = |i: i32| format!("insert into t values ({i})");
    let how = |client: &mut Raw, i: i32| value(client, &format!("select how from t where i = {i}"));
    ok(&mut a, &hint("local", &insert(1)));
    // Neither the next statement nor the connection's next client has anything of it.
    ok(&mut a, &insert(2));
    ok(&mut a, &hint("applied", &insert(3)));
    ok(&mut b, &insert(4));
    assert_eq!([1, 2, 3, 4].map(|i| how(&mut b, i)), ["local", "on", "remote_apply", "on"]);
    assert_eq!(c.counter("pgtenure_proxy_commits_below_mode_total"), 1.0);
    // What the session says itself holds again afterwards; what comes behind it in a pipeline, too.
    ok(&mut a, "set pgtenure.durability = 'applied'");
    a.write(|out| {
        for sql in [&hint("async", &insert(5)), &insert(6), &hint("local", &insert(7)), &insert(8)] {
            run(out, sql);
            sync(out);
        }
    });
    (0..4).for_each(|_| assert!(a.until_ready().contains(&"C INSERT 0 1".to_owned())));
    assert_eq!([5, 6, 7, 8].map(|i| how(&mut b, i)), ["off", "remote_apply", "local", "remote_apply"]);
    // Of a string of several it speaks for the first, and the others want what the session does.
    ok(&mut a, &hint("local", &format!("{}; {}", insert(12), insert(13))));
    assert_eq!(how(&mut b, 12), "remote_apply");
    // A BEGIN says it for its block, and nothing else within one can.
    ok(&mut a, &hint("local", "begin"));
    let seen = ok(&mut a, &hint("semi_sync", &insert(9)));
    assert!(seen.contains(&"N 01000".to_owned()), "{seen:?}");
    ok(&mut a, "commit");
    assert_eq!((how(&mut b, 9), value(&mut a, SHOW)), ("local".to_owned(), "remote_apply".to_owned()));
    // Nor does what is sent behind its end without waiting for an answer have anything of it; and that may say so for itself.
    ok(&mut a, &hint("local", "begin"));
    a.write(|out| {
        let behind = ["begin", "commit"].map(str::to_owned);
        let all = [insert(14), "commit".to_owned(), insert(15)].into_iter().chain(behind);
        all.chain([hint("local", &insert(16)), insert(17)]).for_each(|sql| {
            run(out, &sql);
            sync(out);
        });
    });
    (0..7).for_each(|_| drop(a.until_ready()));
    ok(&mut a, "begin");
    a.write(|out| {
        ["commit", &hint("local", &insert(18))].iter().for_each(|sql| {
            run(out, sql);
            sync(out);
        });
    });
    let answers = [(); 2].map(|()| a.until_ready());
    let all = [14, 15, 16, 17, 18].map(|i| how(&mut b, i));
    assert_eq!(all, ["local", "remote_apply", "local", "remote_apply", "local"]);
    assert_eq!(answers.map(|seen| words(&seen)), ["1 | 2 | C COMMIT | Z I", "1 | 2 | C INSERT 0 1 | Z I"]);
    // What the block sets for the session stays, also when it is just what the comment says, unless it is rolled back.
    for (set, end, want) in [
        ("set synchronous_commit = 'local'", "rollback", "remote_apply"),
        ("set local synchronous_commit = 'local'", "commit", "remote_apply"),
        ("set synchronous_commit = 'local'", "commit", "local"),
        ("set pgtenure.durability = 'semi_sync'", "commit", "on"),
        ("set pgtenure.durability = 'local'", "commit", "local"),
        ("set pgtenure.durability = 'applied'", "commit", "remote_apply"),
    ] {
        ok(&mut a, &hint("local", "begin"));
        ok(&mut a, set);
        ok(&mut a, end);
        ok(&mut a, "select 1");
        assert_eq!(value(&mut a, SHOW), want, "{set}; {end}");
    }
    // Nor is what the session has had before lost to a comment that says the same.
    ok(&mut a, "set synchronous_commit = 'local'");
    ok(&mut a, &hint("local", &insert(11)));
    ok(&mut a, &hint("local", "begin"));
    ok(&mut a, "commit");
    assert_eq!(value(&mut a, SHOW), "local");
    ok(&mut a, "set pgtenure.durability = 'applied'");
    // What the statement itself sets stays.
    ok(&mut a, &hint("local", "set synchronous_commit = off"));
    assert_eq!(value(&mut a, SHOW), "off");
    assert_eq!(a.query(&hint("twice", &insert(10))), ["E 22023", "Z I"]);
    drop(c);

    let c = Cluster::start(0, |raw| raw.reads.hints = true);
    let mut a = Raw::login(c.port, &[]);
    assert_eq!(a.query(&hint("local", "create table t (i int)")), ["E 42501", "Z I"]);
    ok(&mut a, &hint("applied", "create table t (i int)"));
}

#[test]
fn every_commit_of_a_pipeline_that_asks_for_less_is_counted() {
    let c = cluster(lowering());
    let mut a = Raw::login(c.port, &[]);
    ok(&mut a, "set synchronous_commit = local");
    a.write(|out| {
        for sql in [
            "insert into t values (1)",
            "insert into t values (2)",
            "select 1",
            "begin",
            "insert into t values (3)",
            "commit",
            "begin",
            "insert into t values (4)",
            "commit",
        ] {
            run(out, sql);
            sync(out);
        }
    });
    (0..9).for_each(|_| _ = a.until_ready());
    assert_eq!(value(&mut a, "select count(*) from t"), "4");
    assert_eq!(c.counter("pgtenure_proxy_commits_below_mode_total"), 4.0);
}

#[test]
fn a_session_keeps_what_it_sets_itself_in_a_block_that_a_comment_is_for() {
    let c = Cluster::start(0, |raw| {
        (raw.workers, raw.pool_size, raw.durability, raw.reads.hints) = (1, 1, lowering(), true);
    });
    let mut a = Raw::login(c.port, &[]);
    let begin = "/* pgtenure: durability=local */ begin";
    for (set, want) in [
        ("set synchronous_commit = remote_apply", "remote_apply"),
        // What held for the block alone does not count.
        ("set local synchronous_commit = off", "remote_apply"),
        ("set pgtenure.durability = 'async'", "off"),
        ("reset synchronous_commit", "on"),
    ] {
        ok(&mut a, begin);
        ok(&mut a, set);
        ok(&mut a, "commit");
        assert_eq!(value(&mut a, SHOW), want, "{set}");
    }
    // Another comment is for its own statement, and what was set stays the session's behind it.
    ok(&mut a, begin);
    ok(&mut a, "set synchronous_commit = remote_apply");
    ok(&mut a, "commit");
    ok(&mut a, "/* pgtenure: durability=async */ create table t (i int)");
    assert_eq!(value(&mut a, SHOW), "remote_apply");
    // A statement is warned of once, also when something is asked before it is sent.
    ok(&mut a, begin);
    for _ in 0..2 {
        ok(&mut a, "set local pgtenure.durability = 'applied'");
        let seen = ok(&mut a, "/* pgtenure: durability=local */ insert into t values (1)");
        assert_eq!(seen.iter().filter(|s| *s == "N 01000").count(), 1, "{seen:?}");
    }
    ok(&mut a, "commit");
}

#[test]
fn what_a_role_begins_with_is_raised_to_the_mode() {
    let c = cluster(Own::default());
    c.nodes[0].psql("alter role app set synchronous_commit = off");
    let mut a = Raw::login(c.port, &[]);
    assert_eq!(value(&mut a, SHOW), "on");
    ok(&mut a, "set synchronous_commit = remote_apply");
    ok(&mut a, "reset synchronous_commit");
    ok(&mut a, "insert into t values (1)");
    assert_eq!(value(&mut a, SHOW), "on");
    assert_eq!(c.counter("pgtenure_proxy_commits_below_mode_total"), 0.0);
}

/// The error that a login with these parameters ends with.
fn refused(port: u16, parameters: &[(&str, &str)]) -> String {
    let mut stream = dial(port);
    let mut out = Vec::new();
    proxy::wire::startup::write_startup(&mut out, parameters.iter().copied());
    stream.write_all(&out).expect("the endpoint reads");
    let mut exchange = proxy::auth::scram::ClientSide::with_password("app", common::PASSWORD, [7; 18]);
    let mut buf = Vec::new();
    loop {
        while let Some(h) = head(&buf).expect("good lengths").filter(|h| buf.len() >= h.total) {
            let frame: Vec<u8> = buf.drain(..h.total).collect();
            let mut out = Vec::new();
            match (h.kind, backend::authentication(&frame)) {
                (b'R', Some(backend::Authentication::Sasl { .. })) => {
                    proxy::wire::frontend::write_sasl_initial(&mut out, exchange.mechanism(), &exchange.first());
                }
                (b'R', Some(backend::Authentication::SaslContinue(data))) => {
                    let answer = exchange.respond(data).expect("a good challenge");
                    proxy::wire::frontend::write_sasl_response(&mut out, &answer);
                }
                (b'E', _) => return common::raw::seen(b'E', &frame),
                (b'Z', _) => return "admitted".to_owned(),
                _ => {}
            }
            stream.write_all(&out).expect("the endpoint reads");
        }
        let mut chunk = [0; 4096];
        let n = stream.read(&mut chunk).expect("the endpoint answers");
        assert!(n > 0, "the endpoint says why it ends");
        buf.extend_from_slice(&chunk[..n]);
    }
}

#[test]
fn a_login_chooses_too_and_the_configuration_for_who_does_not() {
    let who = [("user", "app"), ("database", "app")];
    let c = cluster(Own::default());
    for parameter in [
        ("synchronous_commit", "off"),
        ("pgtenure.durability", "local"),
        ("options", "-c synchronous-commit=off"),
        ("options", "-c pgtenure.durability=async"),
    ] {
        assert_eq!(refused(c.port, &[who[0], who[1], parameter]), "E 42501", "{parameter:?}");
    }
    assert_eq!(refused(c.port, &[who[0], who[1], ("pgtenure.durability", "nothing")]), "E 22023");
    let mut a = Raw::login(c.port, &[("options", "-c pgtenure.durability=applied")]);
    assert_eq!(value(&mut a, SHOW), "remote_apply");
    ok(&mut a, "set pgtenure.durability = 'semi_sync'");
    ok(&mut a, "reset pgtenure.durability");
    assert_eq!(value(&mut a, SHOW), "remote_apply");
    drop(c);

    let relaxed = Own { level: Some(Durability::Local), ..Own::default() };
    let c = Cluster::start(0, |raw| {
        raw.users.insert("app".to_owned(), proxy::config::pools::User { durability: relaxed, ..Default::default() });
    });
    let mut a = Raw::login(c.port, &[]);
    assert_eq!(
        (value(&mut a, SHOW), value(&mut a, "show pgtenure.durability")),
        ("local".to_owned(), "local".to_owned())
    );
    ok(&mut a, "create table t (i int)");
    ok(&mut a, "set pgtenure.durability = 'semi_sync'");
    assert_eq!(c.counter("pgtenure_proxy_commits_below_mode_total"), 1.0, "it counts all the same");
    ok(&mut a, "insert into t values (1)");
    ok(&mut a, "select 1");
    assert_eq!(c.counter("pgtenure_proxy_commits_below_mode_total"), 1.0);
    ok(&mut a, "set pgtenure.durability = 'local'");
    assert_eq!(a.query("set pgtenure.durability = 'async'"), ["E 42501", "Z I"]);
}

#[test]
fn every_level_is_had_in_every_way_from_the_mode_up() {
    let c = Cluster::start(0, |raw| (raw.workers, raw.pool_size, raw.reads.hints) = (1, 2, true));
    c.nodes[0].psql("create table app.public.t (i int, how text default current_setting('synchronous_commit'))");
    c.nodes[0].psql("alter table t owner to app");
    let later = || Some(cluster::Clock.now() + std::time::Duration::from_secs(3600));
    let levels =
        [Durability::Async, Durability::Local, Durability::Received, Durability::SemiSync, Durability::Applied];
    for (mode, least) in
        [("strict", Durability::SemiSync), ("available", Durability::SemiSync), ("async", Durability::Local)]
    {
        c.publish(|t| {
            (t.protected, t.semi_sync, t.epoch) = (mode != "async", mode != "async", t.epoch + 1);
            t.valid_until = if mode == "strict" { None } else { later() };
        });
        let mut a = Raw::login(c.port, &[]);
        for level in levels {
            let (word, commit) = (level.as_str(), level.commit());
            let what = format!("{word} in {mode} mode");
            let sets = [
                format!("set pgtenure.durability = '{word}'"),
                format!("set synchronous_commit = {commit}"),
                format!("select set_config('pgtenure.durability', '{word}', false)"),
            ];
            let locally = format!("set local pgtenure.durability = '{word}'");
            let hinted = format!("/* pgtenure: durability={word} */ insert into t values (1) returning how");
            let startup = [("user", "app"), ("database", "app"), ("pgtenure.durability", word)];
            let (admitted, begins) = (refused(c.port, &startup), ok(&mut a, "begin"));
            assert!(begins.contains(&"Z T".to_owned()), "{what}");
            if level < least {
                assert_eq!(a.query(&locally), ["E 42501", "Z E"], "{what}");
                ok(&mut a, "rollback");
                for set in &sets {
                    assert_eq!(a.query(set), ["E 42501", "Z I"], "{set} in {mode} mode");
                }
                assert_eq!(a.query(&hinted), ["E 42501", "Z I"], "{what}");
                assert_eq!(admitted, "E 42501", "{what}");
                continue;
            }
            ok(&mut a, &locally);
            assert_eq!(value(&mut a, SHOW), commit, "{what}, locally");
            ok(&mut a, "rollback");
            for set in &sets {
                ok(&mut a, set);
                assert_eq!(value(&mut a, SHOW), commit, "{set} in {mode} mode");
                ok(&mut a, "discard all");
            }
            assert_eq!(value(&mut a, &hinted), commit, "{what}, by a comment");
            assert_eq!(admitted, "admitted", "{what}");
        }
    }
}

#[test]
fn a_database_and_a_user_are_given_every_level_and_the_users_own_counts() {
    let levels =
        [Durability::Async, Durability::Local, Durability::Received, Durability::SemiSync, Durability::Applied];
    let of = |level: Durability| Own { level: Some(level), ..Own::default() };
    for user in [None, Some(Durability::Received)] {
        let c = Cluster::start(0, |raw| {
            (raw.workers, raw.pool_size) = (1, 2);
            for level in levels {
                let dbname = Some("app".to_owned());
                let database = proxy::config::pools::Database { dbname, durability: of(level), ..Default::default() };
                raw.databases.insert(level.as_str().to_owned(), database);
            }
            if let Some(level) = user {
                let user = proxy::config::pools::User { durability: of(level), ..Default::default() };
                raw.users.insert("app".to_owned(), user);
            }
        });
        c.nodes[0].psql("create table app.public.t (i int, how text default current_setting('synchronous_commit'))");
        c.nodes[0].psql("alter table t owner to app");
        let mut below = 0.0;
        for semi_sync in [true, false] {
            c.publish(|t| (t.protected, t.semi_sync, t.epoch) = (semi_sync, semi_sync, t.epoch + 1));
            for level in levels {
                let given = user.unwrap_or(level);
                let what = format!("{level} for the database, {user:?} for the user, quorum: {semi_sync}");
                let mut a = Raw::login(c.port, &[("database", level.as_str())]);
                assert_eq!(value(&mut a, "insert into t values (1) returning how"), given.commit(), "{what}");
                assert_eq!(value(&mut a, "show pgtenure.durability"), given.as_str(), "{what}");
                // What is less than the mode is counted, with the operator's leave or not.
                below += f64::from(u8::from(given < Durability::of_mode(semi_sync)));
                assert_eq!(c.counter("pgtenure_proxy_commits_below_mode_total"), below, "{what}");
                // A session has more where it asks for it, and returns to what it was given.
                ok(&mut a, "set pgtenure.durability = 'applied'");
                assert_eq!(value(&mut a, SHOW), "remote_apply", "{what}");
                ok(&mut a, "reset pgtenure.durability");
                assert_eq!(value(&mut a, SHOW), given.commit(), "{what}");
                // Less than both it may not have.
                let least = given.min(Durability::of_mode(semi_sync));
                for less in levels.into_iter().filter(|less| *less < least) {
                    let set = format!("set pgtenure.durability = '{less}'");
                    assert_eq!(a.query(&set), ["E 42501", "Z I"], "{set}: {what}");
                }
            }
        }
    }
}
