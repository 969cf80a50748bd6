//! Reads the bodies of functions that leave something in the session that calls them.

use super::rows;
use crate::sql::{BodyRow, FunctionTable, MAX_CALLS};

/// Bodies that may leave something in the session that calls the function; the text says so, or calls what does.
const BODIES: &str = "\
    SELECT DISTINCT p.proname, l.lanname IN ('sql', 'plpgsql'), p.prosrc FROM pg_proc p JOIN pg_language l ON l.oid = p.prolang \
    WHERE p.oid >= 16384 AND l.lanname NOT IN ('c', 'internal') AND length(p.prosrc) <= 100000 AND p.prosrc ~* ";
const LEAVING: &str = r#"'set_config|setseed|pg_(try_)?advisory_|\mlisten\M|dblink_connect|\mtemp|\mhold\M|\mGD\M|\mSD\M|_SHARED|(^|[;''">$]|\m(begin|then|else|loop)|\n)\s*(set|reset|load|prepare)\M'"#;
/// Bodies that are looked at, at most.
const MAX_BODIES: usize = 20_000;

/// The functions that leave something in the session, and those that call them.
pub(super) async fn read(
    mut table: FunctionTable,
    client: &tokio_postgres::Client,
) -> Result<FunctionTable, tokio_postgres::Error> {
    let (mut found, mut pattern) = (Vec::new(), LEAVING.to_owned());
    for _ in 0..MAX_CALLS {
        found.extend(client.simple_query(&format!("{BODIES}{pattern} LIMIT {MAX_BODIES}")).await?);
        let of = |row: &'_ tokio_postgres::SimpleQueryRow, i: usize| row.get(i).unwrap_or("").to_owned();
        let mut owned: Vec<_> = rows(&found).map(|row| (of(row, 0), row.get(1) == Some("t"), of(row, 2))).collect();
        owned.sort();
        owned.dedup();
        let bodies: Vec<_> = owned.iter().map(|(name, sql, text)| BodyRow { name, sql: *sql, text }).collect();
        let before = table.bodies().names().count();
        table = table.with_bodies(&bodies);
        let plain = |name: &&str| name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        let names: Vec<&str> = table.bodies().names().filter(plain).take(1000).collect();
        if names.len() <= before || owned.len() >= MAX_BODIES {
            break;
        }
        pattern = format!(r"'\m({})\M'", names.join("|"));
    }
    Ok(table)
}
