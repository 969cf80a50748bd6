//! What a session begins with and falls back to: the server's configuration, its role's and its database's settings, its
//! own startup packet, and what it had set on a server that was lost.

use super::common::raw::{Raw, block, ok, two_servers, value};
use super::common::{Cluster, wait_for};

/// A reload changes what servers begin with: their connections are kept, and each client is told once, by whichever
/// server it meets.
#[test]
fn a_reloaded_configuration_reaches_clients_and_costs_no_connection() {
    let c = two_servers();
    let mut clients: Vec<Raw> = (0..3).map(|_| Raw::login(c.port, &[])).collect();
    ok(&mut clients[2], "set timezone = 'Europe/Berlin'");
    let mut other = block(&c);
    let both = [value(&mut other, "select pg_backend_pid()"), value(&mut clients[0], "select pg_backend_pid()")];
    ok(&mut other, "commit");
    c.nodes[0].psql("alter system set timezone = 'Asia/Tokyo'");
    c.nodes[0].psql("select pg_reload_conf()");
    wait_for("the reload", || (c.nodes[0].psql("show timezone") == "Asia/Tokyo").then_some(()));
    let told = |seen: &[String]| seen.iter().filter(|s| s.starts_with("S ")).cloned().collect::<Vec<_>>();
    wait_for("the server's processes to have heard of it", || {
        let seen = ok(&mut clients[0], "show timezone");
        let now = seen.contains(&"D Asia/Tokyo".to_owned());
        if now {
            assert_eq!(told(&seen), ["S TimeZone=Asia/Tokyo"], "{seen:?}");
        }
        now.then_some(())
    });
    assert!(told(&ok(&mut clients[0], "select 1")).is_empty(), "told once");
    // One that comes to that server without having been told.
    let seen = ok(&mut clients[1], "show timezone");
    assert!(seen.contains(&"D Asia/Tokyo".to_owned()), "{seen:?}");
    assert_eq!(told(&seen), ["S TimeZone=Asia/Tokyo"]);
    // Who has set its own is told nothing, and a new one is told at its login.
    assert_eq!(ok(&mut clients[2], "show timezone"), ["T", "D Europe/Berlin", "C SHOW", "Z I"]);
    ok(&mut clients[0], "select 1");
    let new = Raw::login(c.port, &[]);
    assert!(new.settings.contains(&("TimeZone".to_owned(), "Asia/Tokyo".to_owned())), "{:?}", new.settings);
    // Both connections live on.
    let mut other = block(&c);
    let mut after = [value(&mut other, "select pg_backend_pid()"), value(&mut clients[0], "select pg_backend_pid()")];
    let mut both = both;
    both.sort();
    after.sort();
    assert_eq!(after, both);
}

#[test]
fn settings_survive_a_failover_and_what_a_lost_block_set_does_not() {
    let mut c = Cluster::start(1, |_| {});
    let mut a = Raw::login(c.port, &[]);
    ok(&mut a, "set timezone = 'Europe/Berlin'");
    ok(&mut a, "set work_mem = '2MB'");
    ok(&mut a, "begin");
    assert!(ok(&mut a, "set timezone = 'UTC'").contains(&"S TimeZone=UTC".to_owned()));
    c.nodes[0].kill();
    c.fail_over_to(1);
    let seen = a.query("select 1");
    assert!(seen.contains(&"E 40001".to_owned()), "{seen:?}");
    ok(&mut a, "rollback");
    let mut seen = a.query("show timezone");
    seen.extend(a.query("show work_mem"));
    assert!(seen.contains(&"D Europe/Berlin".to_owned()) && seen.contains(&"D 2MB".to_owned()), "{seen:?}");
}

/// A session begins with what its role and its database say, and not with what they said when its server was connected.
#[test]
fn later_sessions_have_the_defaults_that_were_altered() {
    let c = Cluster::start(0, |raw| {
        raw.pool_size = 2;
        raw.catalog_refresh = cluster::config::Span::secs(1);
    });
    let seen = |name: &str| {
        let mut new = Raw::login(c.port, &[]);
        let answer = ok(&mut new, &format!("show {name}"));
        let shown = answer.iter().find_map(|s| s.strip_prefix("D ")).expect("a row").to_owned();
        // At login, or with the answer when the connection was replaced in between.
        let at_login = new.settings.iter().map(|(n, v)| format!("{n}={v}"));
        let later = answer.iter().filter_map(|s| s.strip_prefix("S ")).map(str::to_owned);
        let all: Vec<String> = at_login.chain(later).collect();
        let of = |s: &&String| s.split_once('=').is_some_and(|(n, _)| n.eq_ignore_ascii_case(name));
        let told = all.iter().rfind(of).and_then(|s| s.split_once('=')).map(|(_, v)| v.to_owned());
        assert!(told.is_none() || told.as_ref() == Some(&shown), "told {told:?}, shown {shown}");
        shown
    };
    let mut a = Raw::login(c.port, &[]);
    ok(&mut a, "set lock_timeout = '3s'");
    assert_eq!(seen("work_mem"), "4MB");
    ok(&mut a, "alter role app set work_mem = '7MB'");
    wait_for("new sessions to have the role's setting", || (seen("work_mem") == "7MB").then_some(()));
    ok(&mut a, "alter database app set timezone = 'Asia/Tokyo'");
    wait_for("new sessions to have the database's setting", || (seen("timezone") == "Asia/Tokyo").then_some(()));
    // It reaches those that live, too, which are told, but for what they have set themselves.
    let mut told = ok(&mut a, "alter role app set lock_timeout = '9s'");
    wait_for("new sessions to have that", || (seen("lock_timeout") == "9s").then_some(()));
    wait_for("the living session to have the rest", || {
        let answer = ok(&mut a, "select current_setting('work_mem'), current_setting('timezone')");
        let there = answer.contains(&"D 7MB Asia/Tokyo".to_owned());
        told.extend(answer);
        there.then_some(())
    });
    told.retain(|s| s.starts_with("S "));
    assert_eq!(told, ["S TimeZone=Asia/Tokyo"], "once");
    assert_eq!(value(&mut a, "show lock_timeout"), "3s");
    // By somebody else.
    c.nodes[0].psql("alter role app reset work_mem");
    wait_for("new sessions to have the server's setting", || (seen("work_mem") == "4MB").then_some(()));
    assert_eq!(value(&mut a, "show lock_timeout"), "3s");
}

/// A standby that has not replayed them yet gives its connections old defaults, which do not stay.
#[test]
fn defaults_that_a_standby_replays_late_reach_its_connections() {
    let c = Cluster::start(1, |raw| {
        raw.workers = 1;
        raw.catalog_refresh = cluster::config::Span::secs(1);
    });
    let mut a = Raw::login(c.port, &[("pgtenure.consistency", "eventual")]);
    let shown = "select current_setting('cluster_name'), current_setting('work_mem')";
    let waits_for = |a: &mut Raw, want: &str| {
        wait_for(want, || (value(a, shown) == want).then_some(()));
    };
    waits_for(&mut a, "n2 4MB");
    c.nodes[1].psql("select pg_wal_replay_pause()");
    wait_for("the pause", || (c.nodes[1].psql("select pg_get_wal_replay_pause_state()") == "paused").then_some(()));
    let process = || c.nodes[1].psql("select min(pid) from pg_stat_activity where usename = 'app'");
    let before = process();
    c.nodes[0].psql("alter role app set work_mem = '7MB'");
    wait_for("a new connection of the standby", || {
        assert_eq!(value(&mut a, shown), "n2 4MB");
        let now = process();
        (!now.is_empty() && now != before).then_some(())
    });
    c.nodes[1].psql("select pg_wal_replay_resume()");
    waits_for(&mut a, "n2 7MB");
}

/// RESET leads back to the client's own startup packet, whoever used the connection before.
#[test]
fn a_reset_leads_back_to_what_the_client_began_with() {
    let c = two_servers();
    let startup = [("DateStyle", "German"), ("options", "-c work_mem=7MB -c search_path=a,b")];
    let mut other = Raw::login(c.port, &[]);
    let (mut pooled, mut direct) = (Raw::login(c.port, &startup), Raw::login(c.nodes[0].port, &startup));
    for sql in [
        "show datestyle",
        "set datestyle = 'SQL, DMY'",
        "reset datestyle",
        "show datestyle",
        "set work_mem = '1MB'; set search_path = c",
        "begin; reset work_mem; rollback",
        "show work_mem",
        "reset all",
        "show work_mem",
        "show search_path",
        "set datestyle to default",
        "set search_path = d",
        "discard all",
        "show search_path",
        "show datestyle",
    ] {
        ok(&mut other, "set datestyle = 'Postgres'; set work_mem = '2MB'");
        assert_eq!(pooled.query(sql), direct.query(sql), "{sql}");
        ok(&mut other, "reset all");
    }
}
