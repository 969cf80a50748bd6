//! Tokens: what one session has written is there for what another reads, and what a token names may have been lost.

use super::common::raw::{Raw, bind, execute, ok, parse, sync, value, words};
use super::common::{Cluster, wait_for};
use super::{WHERE, last_route, one_standby_with_hints};
use proxy::wire::codec::message;

#[test]
fn a_token_carries_what_was_written_to_another_session() {
    let cluster = one_standby_with_hints(true);
    cluster.nodes[1].psql("select pg_wal_replay_pause()");
    let mut a = Raw::login(cluster.port, &[]);
    ok(&mut a, "update seen set n = 7");
    let token = value(&mut a, "show pgtenure.token");
    assert!(token.starts_with("1-1-0/"), "{token}");
    assert_eq!(value(&mut a, "show pgtenure.token"), token, "asking changes nothing");
    // Another one does not know of the write, until it is told.
    let mut b = Raw::login(cluster.port, &[("pgtenure.max_replay_lag", "1h")]);
    assert_eq!(value(&mut b, "select n, current_setting('cluster_name') from seen"), "0 n2");
    ok(&mut b, &format!("set pgtenure.after = '{token}'"));
    // Its own SET ran at the primary too, and waits for a sample like a write.
    wait_for("the position to be what counts", || {
        assert_eq!(value(&mut b, "select n, current_setting('cluster_name') from seen"), "7 n1");
        (last_route(&mut b) == "primary n1: replay_behind").then_some(())
    });
    // By a comment, for one statement or block, of one that minds nothing else.
    let mut any = Raw::login(cluster.port, &[("pgtenure.consistency", "eventual")]);
    let read = "select n, current_setting('cluster_name') from seen";
    let named = format!("/* pgtenure: after={token} */ {read}");
    for _ in 0..2 {
        wait_for("the standby to serve what names no token", || (value(&mut any, read) == "0 n2").then_some(()));
        assert_eq!(value(&mut any, &named), "7 n1");
        ok(&mut any, &format!("/* pgtenure: after={token} */ begin read only"));
        assert_eq!(value(&mut any, read), "7 n1");
        ok(&mut any, "commit");
    }
    // In the startup packet, with a wait for the standby.
    let options = format!("-c pgtenure.after={token} -c pgtenure.standby_wait=60s -c pgtenure.no_standby=error");
    let mut c = Raw::login(cluster.port, &[("options", &options)]);
    c.write(|out| proxy::wire::frontend::write_query(out, "select n, current_setting('cluster_name') from seen"));
    wait_for("the read to wait", || (cluster.counter("pgtenure_proxy_held_statements") > 0.0).then_some(()));
    cluster.nodes[1].psql("select pg_wal_replay_resume()");
    assert_eq!(c.until_ready(), ["T", "D 7 n2", "C SELECT 1", "Z I"]);
    // Reset, it is forgotten; a transaction that sets it is no worse for it.
    ok(&mut b, "reset pgtenure.after");
    ok(&mut b, &format!("begin; set local pgtenure.after = '{token}'; select n from seen; commit"));
}

#[test]
fn a_token_from_beyond_a_fork_is_refused() {
    let cluster = Cluster::start(2, |raw| (raw.workers, raw.reads.hints) = (1, true));
    cluster.nodes[0].psql("create table app.public.seen(n int); grant all on seen to app; insert into seen values (0)");
    let id = cluster.nodes[0].psql("select system_identifier from pg_control_system()");
    cluster.publish(|t| t.system_id = Some(id.parse().unwrap()));
    let mut a = Raw::login(cluster.port, &[]);
    // A token of another cluster, one that nobody was given, and one as they were before they told their cluster.
    assert_eq!(a.query("set pgtenure.after = '1-1-0/1-42'"), ["E 22023", "Z I"]);
    ok(&mut a, "select set_config('pgtenure.after', concat('1-1-0/1-', '42'), false)");
    assert_eq!(a.query("select n from seen"), ["E 22023", "Z I"]);
    ok(&mut a, "set pgtenure.after = '1-1-FF/0'");
    for statement in [WHERE, "update seen set n = 3", "begin"] {
        // A statement does not wait for ever for the sample that tells.
        wait_for(statement, || {
            let refused = a.query(statement) == ["E 08007", "Z I"];
            a.query("rollback");
            refused.then_some(())
        });
    }
    // One takes the place of it in any way, with a server of its own and without.
    for set in ["select set_config('pgtenure.after', '1-1-0/1', false)", "set a.b = 1; set pgtenure.after = '1-1-0/1'"]
    {
        ok(&mut a, "set pgtenure.after = '1-1-FF/0'");
        ok(&mut a, set);
        ok(&mut a, "select n from seen");
    }
    ok(&mut a, "reset pgtenure.after");
    ok(&mut a, "update seen set n = 1");
    let token = value(&mut a, "show pgtenure.token");
    let later = value(&mut a, "update seen set n = 2 returning 'gone'");
    assert_eq!(later, "gone");
    let lost = value(&mut a, "show pgtenure.token");
    assert!(token.ends_with(&format!("-{id}")), "{token}");
    let lsn = |token: &str| token.split('-').nth(2).unwrap().parse::<cluster::Lsn>().unwrap();
    let mut pinned = Raw::login(cluster.port, &[]);
    ok(&mut pinned, &format!("set pgtenure.after = '{lost}'; create temp table t(n int)"));
    let mut told = Raw::login(cluster.port, &[]);
    ok(&mut told, &format!("set pgtenure.after = '{lost}'"));
    // As if the new primary had received the first write only.
    cluster.fail_over_to(1);
    cluster.publish(|t| {
        t.forks = vec![cluster::timeline::Fork { timeline: cluster::TimelineId(1), lsn: lsn(&token) }];
    });
    let mut b = Raw::login(cluster.port, &[]);
    ok(&mut b, &format!("set pgtenure.after = '{token}'"));
    ok(&mut b, "select n from seen");
    // Set where it can be seen, and set where it cannot.
    assert_eq!(b.query(&format!("set pgtenure.after = '{lost}'")), ["E 08007", "Z I"]);
    assert_eq!(b.query("set pgtenure.after = '1-1-16B3748'"), ["E 22023", "Z I"]);
    assert_eq!(value(&mut b, "show pgtenure.after"), token, "what was refused was not set");
    ok(&mut b, &format!("select set_config('pgtenure.after', concat('{lost}'), false)"));
    let sets = ["set work_mem = '8MB'; select n from seen", "select set_config('a.b', 'c', false), n from seen"];
    for statement in [WHERE, "update seen set n = 3", "begin"].into_iter().chain(sets) {
        assert_eq!(b.query(statement), ["E 08007", "Z I"], "{statement}");
    }
    ok(&mut b, "set work_mem = '8MB'");
    ok(&mut b, "reset pgtenure.after");
    ok(&mut b, "select n from seen");
    // Within a block, the block fails.
    ok(&mut b, "begin");
    let set = b.query(&format!("set local pgtenure.after = '{lost}'"));
    assert_eq!(set, ["E 08007", "Z E"]);
    assert_eq!(b.query("select 1"), ["E 25P02", "Z E"]);
    assert_eq!(b.query("rollback"), ["C ROLLBACK", "Z I"]);
    ok(&mut b, "select n from seen");
    // So it is where a comment names it, and behind what is in flight at the primary.
    let named = format!("/* pgtenure: after={lost} */");
    let behind = |client: &mut Raw, ahead: &str, sql: &str| {
        client.write(|out| [ahead, sql].iter().for_each(|sql| proxy::wire::frontend::write_query(out, sql)));
        let first = client.until_ready();
        assert!(first.last().is_some_and(|s| s == "Z I") && !first[0].starts_with("E "), "{ahead}: {first:?}");
        client.until_ready()
    };
    for sql in ["select n from seen", "update seen set n = n", "begin"].map(|sql| format!("{named} {sql}")) {
        assert_eq!(b.query(&sql), ["E 08007", "Z I"], "{sql}");
        for (before, ahead) in [
            (&[][..], "update seen set n = n"),
            (&["begin"], "commit"),
            (&["begin", "update seen set n = n"], "rollback"),
            (&["begin", "select 1 / 0"], "rollback"),
            (&["begin read only", "select n from seen"], "commit"),
        ] {
            before.iter().for_each(|sql| drop(b.query(sql)));
            assert_eq!(behind(&mut b, ahead, &sql), ["E 08007", "Z I"], "{sql} behind {before:?} {ahead}");
        }
    }
    ok(&mut b, "select n from seen");
    assert_eq!(behind(&mut told, "show pgtenure.term", "select n from seen"), ["E 08007", "Z I"]);
    ok(&mut told, "set pgtenure.after = ''");
    // A session that has a server is held to it from the next statement on, however it was set.
    ok(&mut told, "create temp table t(n int)");
    ok(&mut told, &format!("select set_config('pgtenure.after', concat('{lost}'), false)"));
    assert_eq!(told.query(WHERE), ["E 08007", "Z I"]);
    // What the session has set may be lost by a failover after that, also for one that lost its server with it.
    assert_eq!(pinned.query(WHERE)[0], "E 08006");
    assert_eq!(pinned.query(WHERE), ["E 08007", "Z I"]);
    ok(&mut pinned, "select set_config('pgtenure.after', '', false)");
    ok(&mut pinned, WHERE);
}

#[test]
fn a_token_is_looked_at_by_what_sets_it() {
    let cluster = Cluster::start(0, |raw| {
        raw.workers = 1;
        raw.hold_timeout = cluster::config::Span::millis(500);
        raw.reads.hints = true;
    });
    cluster.nodes[0].psql("create table app.public.seen(n int); grant all on seen to app; insert into seen values (0)");
    let ahead = "2-2-0/1";
    // What is refused is refused soon; a login that has no connection to the primary within that time is, too.
    let login = |parameters: &[(&str, &str)]| {
        wait_for("a login in time", || std::panic::catch_unwind(|| Raw::login(cluster.port, parameters)).ok())
    };
    let mut a = login(&[]);
    // A comment names it for its own statement, alone and behind another.
    let named = format!("/* pgtenure: after={ahead} */ select n from seen");
    assert_eq!(a.query(&named), ["E 57P03", "Z I"]);
    a.write(|out| {
        ["update seen set n = n", &named].iter().for_each(|sql| proxy::wire::frontend::write_query(out, sql));
    });
    assert_eq!(a.until_ready(), ["C UPDATE 1", "Z I"]);
    assert_eq!(a.until_ready(), ["E 57P03", "Z I"]);
    assert_eq!(value(&mut a, "select n from seen"), "0");
    for sql in [
        format!("set pgtenure.after = '{ahead}'; select n from seen"),
        format!("select set_config('pgtenure.after', '{ahead}', false), n from seen"),
        format!("begin; set local pgtenure.after = '{ahead}'; select n from seen; commit"),
        format!("select n from seen; set pgtenure.after = '{ahead}'"),
    ] {
        assert_eq!(a.query(&sql), ["E 57P03", "Z I"], "{sql}");
    }
    // What no text shows is set alone.
    let hidden = format!("select set_config('pgtenure.after', concat('{ahead}'), false)");
    let behind = format!("/* x */ {hidden}, n from seen");
    let spelled = [
        format!("set pgtenure.\"after\" = '{ahead}'; select n from seen"),
        format!("set /* x */ pgtenure.after = '{ahead}'; select n from seen"),
        format!("set pgtenure . after = '{ahead}'; select n from seen"),
        format!("select set_config($$pgtenure.after$$, '{ahead}', false), n from seen"),
        format!("select set_config('pgtenure.after', E'{ahead}', false), n from seen"),
        format!("select set_config('pgtenure.after', '{ahead}', 'f'), n from seen"),
        format!(
            "select set_config(setting_name => 'pgtenure.after', new_value => '{ahead}', is_local => false), n from seen"
        ),
    ];
    for sql in
        [format!("{hidden}, n from seen"), behind, format!("{hidden}; select n from seen")].iter().chain(&spelled)
    {
        assert_eq!(a.query(sql), ["E 0A000", "Z I"], "{sql}");
    }
    // A parameter is shown by what is bound to it.
    let batch = |a: &mut Raw, name: &str, parses: bool, token: Option<&str>, read: &str| {
        a.write(|out| {
            if parses {
                parse(out, name, "select set_config('pgtenure.after', $1, false)");
            }
            match token {
                Some(token) => bind(out, "", name, &[token]),
                // One, which is NULL.
                None => message(out, b'B', |b| {
                    b.push(0);
                    b.extend_from_slice(name.as_bytes());
                    b.extend_from_slice(&[0, 0, 0, 0, 1, 255, 255, 255, 255, 0, 0]);
                }),
            }
            execute(out, "");
            if !read.is_empty() {
                parse(out, "", read);
                bind(out, "", "", &[]);
                execute(out, "");
            }
            sync(out);
        });
        words(&a.until_ready())
    };
    const READ: &str = "select n from seen";
    assert_eq!(batch(&mut a, "", true, Some(ahead), READ), "E 57P03 | Z I");
    assert_eq!(batch(&mut a, "", true, Some("a token"), READ), "E 0A000 | Z I");
    assert_eq!(batch(&mut a, "", true, Some(""), READ), "1 | 2 | D  | C SELECT 1 | 1 | 2 | D 0 | C SELECT 1 | Z I");
    assert_eq!(batch(&mut a, "bound", true, Some(""), ""), "1 | 2 | D  | C SELECT 1 | Z I");
    assert_eq!(batch(&mut a, "bound", false, Some(ahead), READ), "E 57P03 | Z I");
    // NULL takes it back to that of the startup packet, which is no empty one.
    let mut began = login(&[("pgtenure.after", ahead)]);
    assert_eq!(batch(&mut began, "", true, None, READ), "E 0A000 | Z I");
    assert_eq!(value(&mut a, "show pgtenure.after"), "", "what was refused was not set");
    ok(&mut a, &hidden);
    // The one in force holds for what only names it, and for what stands before another.
    let mentions = "set a.b = 'c'; select current_setting('pgtenure.after'), n from seen";
    for sql in [mentions, "select n from seen; set pgtenure.after = ''", "select n from seen"] {
        assert_eq!(a.query(sql), ["E 57P03", "Z I"], "{sql}");
    }
    assert_eq!(a.query("set pgtenure.after = ''; select n from seen"), ["C SET", "T", "D 0", "C SELECT 1", "Z I"]);
    let token = value(&mut a, "show pgtenure.token");
    ok(&mut a, &format!("set pgtenure.after = '{token}'; select n from seen"));
    ok(&mut a, &format!("begin; {hidden}; rollback"));
    // In a block as of its BEGIN.
    ok(&mut a, "begin");
    let set = a.query(&format!("set local pgtenure.after = '{ahead}'; select n from seen"));
    assert_eq!(set, ["E 57P03", "Z E"]);
    ok(&mut a, "rollback");
    // What is only defined sets nothing yet, and a comment hides no verb.
    cluster.nodes[0].psql("grant create on schema public to app");
    let body = "declare t text := tok; begin perform set_config('pgtenure.after', t, false); end";
    let define = format!("create function use_token(tok text) returns void language plpgsql as $$ {body} $$");
    assert_eq!(a.query(&define), ["C CREATE FUNCTION", "Z I"]);
    let prepare = "/* x; y */ prepare p as select set_config('pgtenure.after', $1, false)";
    assert_eq!(a.query(prepare), ["C PREPARE", "Z I"]);
    assert_eq!(a.query("/* x */ execute p('')"), ["T", "D ", "C SELECT 1", "Z I"]);
    // What a block or a RESET brings back holds again.
    ok(&mut a, &hidden);
    for (undone, ends) in [("set local pgtenure.after = ''", "commit"), ("set pgtenure.after = ''", "rollback")] {
        let sql = format!("begin; {undone}; {ends}; select n from seen");
        assert_eq!(a.query(&sql), ["E 57P03", "Z I"], "{sql}");
    }
    let mut b = login(&[("options", &format!("-c pgtenure.after={ahead}"))]);
    assert_eq!(b.query("set pgtenure.after = ''; select n from seen"), ["C SET", "T", "D 0", "C SELECT 1", "Z I"]);
    for reset in ["reset pgtenure.after", "set pgtenure.after to default", "discard temp; reset all"] {
        assert_eq!(b.query(&format!("{reset}; select n from seen")), ["E 57P03", "Z I"], "{reset}");
    }
}
