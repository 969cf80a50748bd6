//! Reads the bodies of functions that leave something in the session that calls them, and what relations run when they are
//! used.
//!
//! What cannot be read of them is told, and nothing else is missing for it: a database whose bodies are in no encoding of
//! the server's must not be one without a catalog.

use super::read::rows;
use crate::sql::{BodyRow, FunctionTable, MAX_CALLS, RelationRow};
use std::collections::BTreeSet;
use tokio_postgres::{SimpleQueryMessage, SimpleQueryRow};

/// Bodies that may leave something in the session that calls the function, or that are too long to be looked at.
const BODIES: &str = "\
    SELECT DISTINCT p.proname, l.lanname IN ('sql', 'plpgsql'), CASE WHEN length(p.body) <= 100000 THEN p.body END \
    FROM (SELECT proname, prolang, BODY AS body FROM pg_proc WHERE oid >= 16384 OFFSET 0) p \
    JOIN pg_language l ON l.oid = p.prolang \
    WHERE l.lanname NOT IN ('c', 'internal') AND (length(p.body) > 100000 OR p.body ~* ";
/// From PostgreSQL 14 on a body may be kept as parsed statements.
pub(super) const PARSED: &str = "CASE WHEN prosqlbody IS NULL THEN prosrc ELSE pg_get_function_sqlbody(oid) END";
pub(super) const HAS_PARSED: &str =
    "SELECT FROM pg_attribute WHERE attrelid = 'pg_proc'::regclass AND attname = 'prosqlbody' AND NOT attisdropped";
/// What says so in the body itself.
const LEAVING: &str = r#"set_config|setseed|set_limit|isn_weak|pg_settings|_session_setup|_replication_slot|_backup_start|pg_start_backup|pg_(try_)?advisory_|\mlisten\M|dblink_connect|\m(pg_)?temp|\mhold\M|\mGD\M|\mSD\M|_SHARED|\m(drop|close|discard|deallocate|unlisten|execute)\M|(^|[;'">$`/{(]|\m(begin|then|else|loop)|\n)\s*(set|reset|load|prepare)\M"#;
/// Functions in C that were given other names than those by which they are known, by the latter's code.
const NATIVE: &str = "\
    SELECT p.proname, p.prosrc FROM pg_proc p JOIN pg_language l ON l.oid = p.prolang \
    WHERE p.oid >= 16384 AND l.lanname IN ('c', 'internal') AND p.prosrc ~ \
    '^(set_config_by_name|setseed|pg_(try_)?advisory_(un)?lock.*|dblink_connect|set_limit|weak_input_status|accept_weak_input)$'";
/// What relations run when they are changed: triggers, rules, defaults and generated columns, checks; and what is changed
/// with them: partitions and other heirs, what refers to them, domains and composite types of columns, and with a domain
/// its default. Defaults that only draw from a sequence leave nothing, and
/// are the most.
const RELATIONS: &str = "\
    SELECT DISTINCT name, body FROM ( \
    SELECT c.relname, 'PERFORM ' || quote_ident(p.proname) || '()' \
    FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_proc p ON p.oid = t.tgfoid WHERE p.oid >= 16384 \
    UNION ALL \
    SELECT c.relname, pg_get_ruledef(r.oid) FROM pg_rewrite r JOIN pg_class c ON c.oid = r.ev_class \
    WHERE r.rulename <> '_RETURN' AND r.oid >= 16384 \
    UNION ALL \
    SELECT c.relname, 'SELECT ' || pg_get_expr(d.adbin, d.adrelid) \
    FROM pg_attrdef d JOIN pg_class c ON c.oid = d.adrelid WHERE d.adbin::text ~ 'FUNCEXPR|OPEXPR' \
    UNION ALL \
    SELECT c.relname, 'SELECT ' || pg_get_expr(k.conbin, k.conrelid) \
    FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid \
    WHERE k.contype = 'c' AND k.conbin::text ~ 'FUNCEXPR|:opno (1638[4-9]|1639|16[4-9]|1[7-9]...|[2-9]....|[0-9]{6})' \
    UNION ALL \
    SELECT c.relname, 'SELECT ' || concat_ws(', ', pg_get_expr(i.indexprs, i.indrelid), pg_get_expr(i.indpred, i.indrelid)) \
    FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid \
    WHERE i.indrelid >= 16384 AND concat(i.indexprs, i.indpred) ~ 'FUNCEXPR|OPEXPR' \
    UNION ALL \
    SELECT c.relname, 'SELECT ' || pg_get_expr(p.partexprs, p.partrelid) \
    FROM pg_partitioned_table p JOIN pg_class c ON c.oid = p.partrelid WHERE p.partexprs IS NOT NULL \
    UNION ALL \
    SELECT relname, pg_get_viewdef(oid) FROM pg_class WHERE relkind = 'm' \
    UNION ALL \
    SELECT c.relname, 'SELECT ' || pg_get_expr(p.polwithcheck, p.polrelid) \
    FROM pg_policy p JOIN pg_class c ON c.oid = p.polrelid WHERE p.polwithcheck IS NOT NULL \
    UNION ALL \
    SELECT t.typname, 'SELECT ' || pg_get_expr(t.typdefaultbin, 0) \
    FROM pg_type t WHERE t.oid >= 16384 AND t.typtype = 'd' AND t.typdefaultbin::text ~ 'FUNCEXPR|OPEXPR' \
    UNION ALL \
    SELECT c.relname, 'UPDATE ' || format_type(t.oid, NULL) \
    FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_type y ON y.oid = a.atttypid \
    JOIN pg_type t ON t.oid = CASE y.typcategory WHEN 'A' THEN y.typelem ELSE y.oid END \
    WHERE t.oid >= 16384 AND t.typtype IN ('d', 'c') AND NOT a.attisdropped AND c.relkind IN ('r', 'p', 'f', 'c') \
    UNION ALL \
    SELECT o.relname, 'UPDATE ' || quote_ident(c.relname) \
    FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid JOIN pg_class o ON o.oid = i.inhparent WHERE c.relkind <> 'i' AND c.relkind <> 'I' \
    UNION ALL \
    SELECT o.relname, 'UPDATE ' || quote_ident(c.relname) \
    FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid JOIN pg_class o ON o.oid = k.confrelid \
    WHERE k.contype = 'f' AND (k.confdeltype IN ('c', 'n', 'd') OR k.confupdtype IN ('c', 'n', 'd')) \
    ) r(name, body) WHERE length(body) <= 100000 AND body !~ '^SELECT nextval[(][^()]*[)]$'";
/// What runs functions behind other names, by kind: `a`, what an aggregate calls; `r`, operators, and types by casts to
/// them; `h`, what no text shows (implicit casts, operators that the grammar uses unwritten, the comparisons of operator
/// classes); `d`, event triggers; `u`, functions of which nothing tells what they do: in C, of no module of contrib, and
/// those that run what they are given as text.
const HIDDEN: &str = "\
    WITH own AS (SELECT oid, proname, 'PERFORM ' || quote_ident(proname) || '()' AS call FROM pg_proc WHERE oid >= 16384) \
    SELECT 'a', p.proname, (SELECT string_agg('PERFORM ' || quote_ident(part.proname) || '()', '; ') FROM pg_proc part \
        WHERE part.oid = ANY (ARRAY[a.aggtransfn, a.aggfinalfn, a.aggcombinefn, a.aggmtransfn, a.aggminvtransfn, \
                                    a.aggmfinalfn]::oid[])) \
    FROM pg_aggregate a JOIN own p ON p.oid = a.aggfnoid \
    UNION ALL \
    SELECT CASE WHEN o.oprname = ANY ('{=,<,>,<=,>=,<>,~~,!~~,~~*,!~~*,~,!~}') THEN 'h' ELSE 'r' END, o.oprname, p.call \
    FROM pg_operator o JOIN own p ON p.oid = o.oprcode \
    UNION ALL \
    SELECT CASE WHEN c.castcontext = 'e' AND t.oid >= 16384 THEN 'r' ELSE 'h' END, t.typname, p.call \
    FROM pg_cast c JOIN own p ON p.oid = c.castfunc JOIN pg_type t ON t.oid = c.casttarget \
    UNION ALL \
    SELECT 'h', p.proname, p.call FROM pg_amproc a JOIN own p ON p.oid = a.amproc \
    UNION ALL \
    SELECT 'd', p.proname, p.call FROM pg_event_trigger e JOIN own p ON p.oid = e.evtfoid WHERE e.evtenabled <> 'D' \
    UNION ALL \
    SELECT 'u', p.proname, '' FROM pg_proc p JOIN pg_language l ON l.oid = p.prolang \
    WHERE p.oid >= 16384 AND l.lanname = 'c' AND (p.provolatile = 'v' OR p.probin ~ '/tablefunc$') AND p.prorettype::regtype::text !~ '(handler|internal|trigger)$' \
    AND 'internal'::regtype::oid <> ALL (p.proargtypes) AND p.probin !~ '/(adminpack|amcheck|autoinc|bloom|btree_gin|btree_gist|citext|\
cube|dblink|dict_int|dict_xsyn|earthdistance|file_fdw|fuzzystrmatch|hstore|hstore_pl.*|insert_username|_int|isn|jsonb_pl.*|lo|\
ltree|ltree_pl.*|moddatetime|old_snapshot|pageinspect|pg_buffercache|pg_freespacemap|pg_prewarm|pg_stat_statements|pg_surgery|\
pg_trgm|pgrowlocks|pgstattuple|pg_visibility|pg_walinspect|pgcrypto|plperl|plpython.*|pltcl|plpgsql|postgres_fdw|refint|seg|\
sslinfo|tcn|tsm_system_rows|tsm_system_time|unaccent|uuid-ossp|pgxml)$' \
    UNION ALL \
    SELECT 'u', proname, '' FROM pg_proc \
    WHERE oid < 16384 AND proname IN ('query_to_xml', 'query_to_xmlschema', 'query_to_xml_and_xmlschema', 'ts_stat', \
    'table_to_xml', 'table_to_xml_and_xmlschema', 'schema_to_xml', 'schema_to_xml_and_xmlschema', 'database_to_xml', \
    'database_to_xml_and_xmlschema')";
/// Bodies that are looked at, at most.
const MAX_BODIES: usize = 20_000;
/// Functions whose callers are looked for, at most: their names are one regular expression.
const MAX_CALLED: usize = 1000;

/// What is not known of functions' bodies.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unread {
    #[error("the bodies of functions could not be read, what functions leave in a session is not known: {0}")]
    Failed(String),
    #[error(
        "what functions leave in a session is not known of all: {long} bodies are too long; more than {MAX_BODIES} to \
         read: {many}; {uncalled} functions' callers were not looked for; calls deeper than {MAX_CALLS}: {deeper}"
    )]
    Limited { long: usize, many: bool, uncalled: usize, deeper: bool },
}

/// Warn of it when it is not what was `told` last. True when bodies could not be read at all.
pub(super) fn complain_of(unread: Option<Unread>, told: &mut Option<Unread>, database: &str) -> bool {
    let failed = matches!(unread, Some(Unread::Failed(_)));
    if *told != unread {
        if let Some(why) = &unread {
            tracing::warn!(database, %why, "not all bodies of functions are known");
        }
        *told = unread;
    }
    failed
}

/// The functions that leave something in the session, and those that call them, and the relations whose use does, with
/// the `definitions` of views and policies; and what is not known of them. An error only of the connection.
pub(super) async fn read(
    mut table: FunctionTable,
    definitions: &[(&str, &str)],
    client: &tokio_postgres::Client,
) -> Result<(FunctionTable, Option<Unread>), tokio_postgres::Error> {
    match read_bodies(&mut table, definitions, client).await {
        Ok(unread) => Ok((table, unread)),
        Err(error) => match error.as_db_error() {
            Some(said) => {
                let said = format!("{} ({})", said.message(), said.code().code());
                Ok((table, Some(Unread::Failed(said))))
            }
            None => Err(error),
        },
    }
}

async fn read_bodies(
    table: &mut FunctionTable,
    definitions: &[(&str, &str)],
    client: &tokio_postgres::Client,
) -> Result<Option<Unread>, tokio_postgres::Error> {
    let used = client.simple_query(&format!("{RELATIONS} LIMIT {MAX_BODIES}")).await?;
    let shown = definitions.iter().map(|&(name, text)| RelationRow { name, read: true, text });
    let changed = rows(&used).filter_map(|row| Some((row.try_get(0).ok()??, row.try_get(1).ok()??)));
    let changed = changed.map(|(name, text)| RelationRow { name, read: false, text });
    let hidden = client.simple_query(&format!("{HIDDEN} LIMIT {MAX_BODIES}")).await?;
    let hidden: Vec<(&str, &str, &str)> =
        rows(&hidden).filter_map(|row| Some((row.get(0)?, row.get(1)?, row.get(2)?))).collect();
    let of =
        |kind: &'static str| hidden.iter().filter(move |(k, _, _)| *k == kind).map(|&(_, name, text)| (name, text));
    let named = of("r").map(|(name, text)| RelationRow { name, read: true, text });
    let relations: Vec<_> = shown.chain(changed).chain(named).collect();
    *table = std::mem::take(table).with_unfollowed(of("u").map(|(name, _)| name));
    let native = native(&client.simple_query(NATIVE).await?);
    let parsed = rows(&client.simple_query(HAS_PARSED).await?).next().is_some();
    let query = BODIES.replace("BODY", if parsed { PARSED } else { "prosrc" });
    let pinning: Vec<&str> = table.pinning().iter().map(String::as_str).filter(is_plain).collect();
    let mut pattern = LEAVING.to_owned();
    if !pinning.is_empty() {
        pattern = format!(r"{pattern}|\m({})\M", pinning.join("|"));
    }
    let aggregates = of("a").map(|(name, text)| (name.to_owned(), true, text.to_owned()));
    let (mut found, mut long): (BTreeSet<_>, _) = (native.into_iter().chain(aggregates).collect(), BTreeSet::new());
    let (mut uncalled, mut deeper) = (0, false);
    for _ in 0..MAX_CALLS {
        let answer = client.simple_query(&format!("{query}$pattern${pattern}$pattern$) LIMIT {MAX_BODIES}")).await?;
        for row in rows(&answer) {
            let Some(name) = text(row, 0) else { continue };
            match text(row, 2) {
                Some(body) => _ = found.insert((name, text(row, 1).as_deref() == Some("t"), body)),
                None => _ = long.insert(name),
            }
        }
        let bodies: Vec<_> = found.iter().map(|(name, sql, text)| BodyRow { name, sql: *sql, text }).collect();
        let before = table.bodies().names().count();
        *table = std::mem::take(table).with_bodies(&bodies, &relations);
        let names: Vec<&str> = table.bodies().names().collect();
        let plain: Vec<&str> = names.iter().copied().filter(is_plain).take(MAX_CALLED).collect();
        uncalled = names.len() - plain.len();
        deeper = names.len() > before;
        if !deeper || plain.is_empty() || found.len() >= MAX_BODIES {
            deeper = false;
            break;
        }
        pattern = format!(r"\m({})\M", plain.join("|"));
    }
    let everywhere = of("h").map(|(_, text)| (true, text)).chain(of("d").map(|(_, text)| (false, text)));
    *table = std::mem::take(table).with_hidden(everywhere);
    let (long, many) = (long.len(), found.len() >= MAX_BODIES || relations.len() >= MAX_BODIES);
    let limited = long > 0 || many || uncalled > 0 || deeper;
    Ok(limited.then_some(Unread::Limited { long, many, uncalled, deeper }))
}

/// Functions in C as if they called those by whose names they are known.
fn native(answer: &[SimpleQueryMessage]) -> BTreeSet<(String, bool, String)> {
    let known = |code: &str| match code {
        "set_config_by_name" => "set_config".to_owned(),
        "weak_input_status" | "accept_weak_input" => "isn_weak".to_owned(),
        // Their codes tell the types of their arguments, too.
        code if code.starts_with("pg_") => {
            let shared = if code.contains("_shared") { "_shared" } else { "" };
            let stem = code.find("lock").map_or(code, |at| &code[..at + "lock".len()]);
            [stem, shared].concat()
        }
        code => code.to_owned(),
    };
    let calls = |row: &SimpleQueryRow| {
        let (name, known) = (text(row, 0)?, known(&text(row, 1)?));
        (name != known).then(|| (name, true, format!("PERFORM {known}()")))
    };
    rows(answer).filter_map(calls).collect()
}

/// A name that is one word, in a regular expression too.
pub(super) fn is_plain(name: &&str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

fn text(row: &SimpleQueryRow, column: usize) -> Option<String> {
    row.try_get(column).ok().flatten().map(str::to_owned)
}
