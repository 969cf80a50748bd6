//! Reads what hides behind names: views, row security policies, domains, arrays and row types with such, and what functions are
//! given where their callers give less, as text to classify.
//!
//! PostgreSQL locks what a view stands on to tell its text. While somebody else has that locked, what was read before stands in,
//! so that the rest of a catalog is not missing for it.

use super::read::rows;
use std::collections::BTreeMap;
use tokio_postgres::{Client, Error};

/// What one name stands for, or one of several things.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Definition {
    /// Of a relation, a type or a function.
    pub(super) name: String,
    /// As text to classify.
    pub(super) text: String,
    /// Tells apart the texts that it has had.
    version: String,
}

/// A definition longer than this is not examined: its relation is read on the primary.
const MAX_DEFINITION: usize = 100_000;
/// What is no text that a standby is sent.
const UNKNOWN: &str = "?";

/// Each with its version: an UPDATE of its row gives it another `xmin`.
const DEFINITIONS: &str = "\
    SELECT c.relname, concat_ws(' ', r.oid, r.xmin), pg_get_viewdef(c.oid) \
    FROM pg_class c JOIN pg_rewrite r ON r.ev_class = c.oid AND r.rulename = '_RETURN' \
    WHERE c.relkind = 'v' AND c.relnamespace NOT IN ('pg_catalog'::regnamespace, 'information_schema'::regnamespace) \
    UNION ALL \
    SELECT c.relname, concat_ws(' ', p.oid, p.xmin), 'SELECT ' || pg_get_expr(p.polqual, p.polrelid) \
    FROM pg_policy p JOIN pg_class c ON c.oid = p.polrelid WHERE p.polqual IS NOT NULL \
    UNION ALL \
    SELECT t.typname, concat_ws(' ', t.oid, c.oid, c.xmin), \
           'SELECT NULL::' || format_type(t.typbasetype, NULL) || coalesce(', ' || pg_get_expr(c.conbin, 0), '') \
    FROM pg_type t LEFT JOIN pg_constraint c ON c.contypid = t.oid WHERE t.typtype = 'd' AND t.oid >= 16384 \
    UNION ALL \
    SELECT a.typname, concat_ws(' ', a.oid, t.oid, t.xmin), 'SELECT NULL::' || format_type(t.oid, NULL) \
    FROM pg_type t JOIN pg_type a ON a.oid = t.typarray LEFT JOIN pg_class c ON c.oid = t.typrelid \
    WHERE t.oid >= 16384 AND (t.typtype = 'd' OR c.relkind = 'c' OR t.oid IN (SELECT casttarget FROM pg_cast)) \
    UNION ALL \
    SELECT c.relname, concat_ws(' ', c.oid, a.attnum, a.xmin), 'SELECT NULL::' || format_type(a.atttypid, NULL) \
    FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid \
    WHERE c.relkind = 'c' AND NOT a.attisdropped AND a.atttypid >= 16384 \
    UNION ALL \
    SELECT proname, concat_ws(' ', oid, xmin), 'SELECT ' || pg_get_expr(proargdefaults, 0) \
    FROM pg_proc WHERE proargdefaults IS NOT NULL AND oid >= 16384";
/// The same without the texts, which need locks.
const VERSIONS: &str = "\
    SELECT c.relname, concat_ws(' ', r.oid, r.xmin) \
    FROM pg_class c JOIN pg_rewrite r ON r.ev_class = c.oid AND r.rulename = '_RETURN' \
    WHERE c.relkind = 'v' AND c.relnamespace NOT IN ('pg_catalog'::regnamespace, 'information_schema'::regnamespace) \
    UNION ALL SELECT c.relname, concat_ws(' ', p.oid, p.xmin) \
    FROM pg_policy p JOIN pg_class c ON c.oid = p.polrelid WHERE p.polqual IS NOT NULL \
    UNION ALL SELECT t.typname, concat_ws(' ', t.oid, c.oid, c.xmin) \
    FROM pg_type t LEFT JOIN pg_constraint c ON c.contypid = t.oid WHERE t.typtype = 'd' AND t.oid >= 16384 \
    UNION ALL SELECT a.typname, concat_ws(' ', a.oid, t.oid, t.xmin) \
    FROM pg_type t JOIN pg_type a ON a.oid = t.typarray LEFT JOIN pg_class c ON c.oid = t.typrelid \
    WHERE t.oid >= 16384 AND (t.typtype = 'd' OR c.relkind = 'c' OR t.oid IN (SELECT casttarget FROM pg_cast)) \
    UNION ALL SELECT c.relname, concat_ws(' ', c.oid, a.attnum, a.xmin) \
    FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid \
    WHERE c.relkind = 'c' AND NOT a.attisdropped AND a.atttypid >= 16384 \
    UNION ALL SELECT proname, concat_ws(' ', oid, xmin) FROM pg_proc WHERE proargdefaults IS NOT NULL AND oid >= 16384";

/// Definitions that could not be read.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("what views, policies and domains stand for could not be read, new ones are used on the primary: {0}")]
pub(super) struct Undefined(String);

/// All of them; where they cannot be read, as they were `before`, and those that are new or others as what cannot be known. An
/// error only of the connection.
pub(super) async fn read(
    client: &Client,
    before: &[Definition],
) -> Result<(Vec<Definition>, Option<Undefined>), Error> {
    let error = match client.simple_query(DEFINITIONS).await {
        Ok(answer) => {
            let text =
                |text: Option<&str>| text.filter(|text| text.len() <= MAX_DEFINITION).unwrap_or(UNKNOWN).to_owned();
            let all = rows(&answer).filter_map(|row| {
                let (name, version) = (row.get(0)?.to_owned(), row.get(1)?.to_owned());
                Some(Definition { name, text: text(row.get(2)), version })
            });
            return Ok((all.collect(), None));
        }
        Err(error) => error,
    };
    let Some(said) = error.as_db_error() else { return Err(error) };
    let why = Undefined(format!("{} ({})", said.message(), said.code().code()));
    let answer = client.simple_query(VERSIONS).await?;
    let now = rows(&answer).filter_map(|row| Some((row.get(0)?, row.get(1)?)));
    Ok((as_before(before, now), Some(why)))
}

/// What these names stand for, each in that version, as far as it was read before.
fn as_before<'a>(before: &[Definition], now: impl Iterator<Item = (&'a str, &'a str)>) -> Vec<Definition> {
    let known: BTreeMap<(&str, &str), &str> =
        before.iter().map(|d| ((d.name.as_str(), d.version.as_str()), d.text.as_str())).collect();
    let of = |(name, version): (&str, &str)| Definition {
        name: name.to_owned(),
        text: known.get(&(name, version)).map_or(UNKNOWN, |text| *text).to_owned(),
        version: version.to_owned(),
    };
    now.map(of).collect()
}

/// Warn of it when it is not what was `told` last. True when they could not be read.
pub(super) fn complain_of(undefined: Option<Undefined>, told: &mut Option<Undefined>, database: &str) -> bool {
    let failed = undefined.is_some();
    if *told != undefined {
        if let Some(why) = &undefined {
            tracing::warn!(database, %why, "not all definitions are known");
        }
        *told = undefined;
    }
    failed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_new_or_another_since_it_was_read_is_not_known() {
        let of = |all: &[(&str, &str, &str)]| -> Vec<Definition> {
            let one = |&(name, version, text): &(&str, &str, &str)| Definition {
                name: name.to_owned(),
                text: text.to_owned(),
                version: version.to_owned(),
            };
            all.iter().map(one).collect()
        };
        let before = of(&[
            ("v", "1 5", "SELECT 1"),
            ("t", "2 5", "SELECT a"),
            ("t", "3 5", "SELECT b"),
            ("w", "4 5", "SELECT 2"),
        ]);
        let now = [("new", "9 9"), ("t", "2 5"), ("t", "3 7"), ("v", "1 5")];
        let want = of(&[("new", "9 9", "?"), ("t", "2 5", "SELECT a"), ("t", "3 7", "?"), ("v", "1 5", "SELECT 1")]);
        assert_eq!(as_before(&before, now.into_iter()), want);
    }
}
