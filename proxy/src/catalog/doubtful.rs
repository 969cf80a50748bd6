//! Reads which functions may write although they are not labelled volatile: those that call one that is.

use super::bodies::{HAS_PARSED, PARSED, is_plain};
use super::rows;
use crate::config::functions::Lists;
use crate::sql::{Doubtful, MAX_CALLS};
use std::collections::BTreeSet;
use tokio_postgres::Client;

/// Functions that are labelled so.
const VOLATILE: &str = "SELECT DISTINCT proname FROM pg_proc WHERE oid >= 16384 AND provolatile = 'v' LIMIT 1001";
/// Of PostgreSQL's own those that write, and what runs a text that is not known.
const WRITERS: &str = "nextval|setval|lo_[a-z_]+|lo(read|write)|pg_notify|pg_logical_emit_message|txid_current|pg_current_xact_id|query_to_xml|execute";
/// Functions that are not labelled so and whose bodies have a word of those.
const CALLERS: &str = "\
    SELECT DISTINCT n.nspname, p.proname \
    FROM (SELECT proname, pronamespace, prolang, BODY AS body FROM pg_proc \
          WHERE oid >= 16384 AND provolatile <> 'v' OFFSET 0) p \
    JOIN pg_language l ON l.oid = p.prolang JOIN pg_namespace n ON n.oid = p.pronamespace \
    WHERE l.lanname NOT IN ('c', 'internal') AND p.body ~* ";
/// As many names are looked for in bodies at most; of more, any body has one.
const MAX_NAMES: usize = 1000;

/// Their names, but for those that the configuration vouches for.
pub(super) async fn read(client: &Client, lists: &Lists) -> Result<Doubtful, tokio_postgres::Error> {
    match read_names(client, lists).await {
        Ok(names) => Ok(Doubtful::new(names.iter().map(String::as_str))),
        // Only a connection's own error is one: what cannot be read of bodies must not cost a database its catalog.
        Err(error) if error.as_db_error().is_some() => Ok(Doubtful::unknown()),
        Err(error) => Err(error),
    }
}

async fn read_names(client: &Client, lists: &Lists) -> Result<BTreeSet<String>, tokio_postgres::Error> {
    let volatile = client.simple_query(VOLATILE).await?;
    let parsed = rows(&client.simple_query(HAS_PARSED).await?).next().is_some();
    let query = CALLERS.replace("BODY", if parsed { PARSED } else { "prosrc" });
    let volatile: Vec<&str> = rows(&volatile).filter_map(|row| row.get(0)).collect();
    let mut pattern = pattern(&volatile, WRITERS);
    let mut names = BTreeSet::new();
    for _ in 0..MAX_CALLS {
        let answer = client.simple_query(&format!("{query}$pattern${pattern}$pattern$")).await?;
        let found = rows(&answer).filter_map(|row| Some((row.get(0)?, row.get(1)?)));
        let found = found.filter(|(schema, name)| !lists.allow.iter().any(|allowed| allowed.is(schema, name)));
        let new: Vec<&str> = found.map(|(_, name)| name).filter(|name| !names.contains(*name)).collect();
        if new.is_empty() {
            break;
        }
        pattern = self::pattern(&new, "");
        names.extend(new.into_iter().map(str::to_owned));
    }
    Ok(names)
}

/// What matches a text that has one of these words.
fn pattern(names: &[&str], others: &str) -> String {
    if names.len() > MAX_NAMES || !names.iter().all(is_plain) {
        return String::new();
    }
    let others = Some(others).filter(|others| !others.is_empty());
    format!(r"\m({})\M", names.iter().copied().chain(others).collect::<Vec<_>>().join("|"))
}
