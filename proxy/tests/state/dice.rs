//! Random sequences of what sets: several clients on fewer connections see what each would on its own.

use super::common::dice::Dice;
use super::common::raw::{Raw, two_servers, value};

const SETTERS: [&str; 30] = [
    "set work_mem = '3072 kB'",
    "set local work_mem = '7MB'",
    "reset work_mem",
    "set datestyle = 'german'",
    "set datestyle = 'sql, dmy'",
    "set local datestyle = 'postgres'",
    "set datestyle to default",
    "set search_path = a, \"B c\", public",
    "set search_path to ''",
    "select set_config('search_path', 'x', true)",
    "select set_config('search_path', 'y, z', false)",
    "set time zone 'Europe/Berlin'",
    "set time zone interval '-03:30' hour to minute",
    "set time zone local",
    "set local timezone to 'UTC'",
    "set statement_timeout = '90s'",
    "set session statement_timeout = 45000",
    "reset statement_timeout",
    "set role worker",
    "set local role odd",
    "set role none",
    "reset role",
    "set app.x = 'it''s'",
    "set local app.x = 'local'",
    "select set_config('App.X', 'é'::char(1) || 'b', true)",
    "set names 'LATIN1'; set names 'UTF8'",
    "set session characteristics as transaction isolation level repeatable read",
    "reset all",
    "set no_such_setting = 1",
    "set work_mem = 'nonsense'",
];
const BLOCKS: [&str; 8] =
    ["begin", "commit", "rollback", "savepoint s", "rollback to s", "release s", "begin; savepoint s", "select 1/0"];
const SHOWN: &str = "select current_setting('work_mem'), current_setting('datestyle'), current_setting('search_path'), \
     current_setting('timezone'), current_setting('statement_timeout'), current_user, session_user, \
     coalesce(current_setting('app.x', true), ''), current_setting('client_encoding'), \
     current_setting('default_transaction_isolation')";

/// Settings by every way to set them, in and out of blocks and savepoints, of three clients that share two server
/// connections: each sees what it would see on a connection of its own.
#[test]
fn three_clients_on_two_connections_see_what_they_would_on_their_own() {
    let c = two_servers();
    c.nodes[0].psql("create role worker; grant worker to app; create role odd; grant odd to app");
    for seed in 1..=4_u64 {
        let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let names = ["one", "two", "three"];
        let mut pooled = names.map(|n| Raw::login(c.port, &[("application_name", n)]));
        let mut direct = names.map(|n| Raw::login(c.nodes[0].port, &[("application_name", n)]));
        let mut story = Vec::new();
        for _ in 0..120 {
            let who = dice.roll(3);
            // A block keeps its connection: two blocks leave none for the third.
            let in_blocks = |pooled: &[bool; 3]| pooled.iter().filter(|b| **b).count();
            let mut open = [false; 3];
            for (i, o) in open.iter_mut().enumerate() {
                *o = story
                    .iter()
                    .rev()
                    .find(|(w, _, _)| *w == i)
                    .is_some_and(|(_, _, z): &(usize, &str, String)| z != "Z I");
            }
            let sql = if dice.roll(3) == 0 { dice.of(&BLOCKS) } else { dice.of(&SETTERS) };
            if !open[who] && sql.starts_with("begin") && in_blocks(&open) > 0 {
                continue;
            }
            let told = |seen: Vec<String>| seen.into_iter().filter(|s| !s.starts_with("S ")).collect::<Vec<_>>();
            let (got, want) = (told(pooled[who].query(sql)), told(direct[who].query(sql)));
            let end = want.last().cloned().unwrap_or_default();
            story.push((who, sql, end.clone()));
            assert_eq!(got, want, "seed {seed}: {story:?}");
            if end == "Z E" {
                continue;
            }
            let (got, want) = (told(pooled[who].query(SHOWN)), told(direct[who].query(SHOWN)));
            assert_eq!(got, want, "seed {seed}: {story:?}");
            // Within a block RESET ALL shows the proxy's own name until the block is over.
            if end == "Z I" {
                assert_eq!(value(&mut pooled[who], "show application_name"), names[who], "seed {seed}: {story:?}");
            }
        }
        for (pooled, direct) in pooled.iter_mut().zip(&mut direct) {
            pooled.query("rollback");
            direct.query("rollback");
            assert_eq!(pooled.query(SHOWN)[1], direct.query(SHOWN)[1], "seed {seed}: {story:?}");
        }
    }
}
