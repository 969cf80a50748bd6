//! Texts and the commands they are.

use super::*;

fn check(text: &str) -> String {
    match parse(text) {
        Ok(commands) => commands.iter().map(|c| format!("{c:?}")).collect::<Vec<_>>().join(", "),
        Err(BadCommand::Unknown { text, nearest: Some(nearest) }) => format!("{text}? {nearest}!"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn commands_are_understood_as_pgbouncer_understands_them() {
    for (text, want) in [
        ("SHOW POOLS;", "Show(Pools)"),
        ("  show\n stats_totals ; show lists", "Show(StatsTotals), Show(Lists)"),
        ("select pools", "Show(Pools)"),
        ("SHOW ACTIVE_SOCKETS", "Show(Sockets)"),
        ("PAUSE", "Order(Pause, All)"),
        ("pause My_App;", "Order(Pause, Database(\"My_App\"))"),
        ("RESUME \"odd \"\"name\"", "Order(Resume, Database(\"odd \\\"name\"))"),
        ("RECONNECT app", "Order(Reconnect, Database(\"app\"))"),
        ("KILL app", "Order(Kill, Database(\"app\"))"),
        ("ENABLE app", "Order(Enable, Database(\"app\"))"),
        ("DISABLE", "DISABLE needs the name of a database"),
        ("KILL_CLIENT 1025", "KillClient(1025)"),
        ("KILL_CLIENT x", "KILL_CLIENT needs the id of a client, as SHOW CLIENTS has it"),
        ("WAIT_CLOSE app", "WaitClose(Database(\"app\"))"),
        ("WAIT_CLOSE", "WaitClose(All)"),
        ("RELOAD", "Reload"),
        ("SHUTDOWN", "Shutdown(Nothing)"),
        ("SHUTDOWN WAIT_FOR_CLIENTS", "Shutdown(Clients)"),
        ("SHUTDOWN now", "SHUTDOWN needs nothing, WAIT_FOR_SERVERS or WAIT_FOR_CLIENTS"),
        ("SUSPEND", "SUSPEND is not supported by this proxy"),
        ("show dns_hosts", "SHOW DNS_HOSTS is not supported by this proxy"),
        ("SET pool_size = 4", "parameter \"pool_size\" cannot be changed at the console"),
        ("", ""),
        (" ; -- nothing\n;", ""),
    ] {
        assert_eq!(check(text), want, "{text}");
    }
}

#[test]
fn what_drivers_say_on_their_own_is_understood() {
    for (text, want) in [
        ("SELECT 1", "One"),
        ("/* ping */ select 1 -- alive?", "One"),
        ("SELECT version()", "Version"),
        ("SHOW server_version", "server_version? SHOW VERSION!"),
        ("SHOW TRANSACTION ISOLATION LEVEL", "Setting(\"transaction_isolation\", \"read committed\")"),
        ("show DateStyle", "Setting(\"datestyle\", \"ISO, MDY\")"),
        ("SET extra_float_digits = 3", "Ignored(\"SET\")"),
        ("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY", "Ignored(\"SET\")"),
        ("set client_encoding to 'UTF8'", "Ignored(\"SET\")"),
        ("SET TIME ZONE 'UTC'", "Ignored(\"SET\")"),
        ("BEGIN", "Ignored(\"BEGIN\")"),
        ("ROLLBACK", "Ignored(\"ROLLBACK\")"),
        ("DISCARD ALL", "Ignored(\"DISCARD ALL\")"),
    ] {
        if want.contains("server_version") {
            assert!(parse(text).is_err(), "{text}");
        } else {
            assert_eq!(check(text), want, "{text}");
        }
    }
}

#[test]
fn a_slip_of_the_fingers_is_answered_with_the_nearest_name() {
    for (text, want) in [
        ("SHOW POLS", "SHOW POLS? SHOW POOLS!"),
        ("show client", "show client? SHOW CLIENTS!"),
        ("SHOW STATS_TOTAL", "SHOW STATS_TOTAL? SHOW STATS_TOTALS!"),
        ("PUASE app", "PUASE app? PAUSE!"),
        ("SHOW nothing_like_it", "invalid command \"SHOW nothing_like_it\""),
        ("DROP TABLE x", "invalid command \"DROP TABLE x\""),
        ("SHOW", "SHOW needs the name of a table; SHOW HELP lists them"),
    ] {
        assert_eq!(check(text), want, "{text}");
    }
}

#[test]
fn no_text_makes_it_panic() {
    for text in ["'", "\"", "/*", "--", "'a''", "é", "SET", "SET x", "SHOW 'x", "select (", ";;;", "KILL_CLIENT -1"] {
        let _ = parse(text);
    }
}
