//! Reads which functions do what their labels do not tell, by what their bodies name: those that may write, and those whose
//! answer is their session's or their server's own.

use super::bodies::{HAS_PARSED, PARSED, is_plain};
use super::read::rows;
use crate::config::functions::Lists;
use crate::sql::{Callers, Hidden, MAX_CALLS};
use std::collections::{BTreeMap, BTreeSet};
use tokio_postgres::{Client, Error};

/// What writes: functions that are labelled so, and of PostgreSQL's own those that do, each with whether the words below have
/// it.
const WRITERS: &str = "\
    SELECT DISTINCT proname, false FROM pg_proc WHERE oid >= 16384 AND provolatile = 'v' \
    UNION ALL SELECT DISTINCT proname, true FROM pg_proc WHERE oid < 16384 AND \
    (proname = ANY ('{nextval,setval,loread,lowrite,pg_notify,pg_logical_emit_message,txid_current,pg_current_xact_id}') \
     OR proname LIKE 'lo\\_%' OR proname LIKE 'query\\_to\\_xml%')";
/// Those of PostgreSQL's own, and what runs a text that is not known.
const WRITING: &str = "nextval|setval|lo_[a-z_]+|lo(read|write)|pg_notify|pg_logical_emit_message|txid_current|pg_current_xact_id|query_to_xml[a-z_]*|execute";
/// What a session or a server tells of itself, and a standby otherwise than the primary, without refusing it: all of PostgreSQL's
/// own that is labelled volatile, but for what writes, and what does the same anywhere; and some that is not. With foreign
/// tables, which may be a server's own files, and views upon sequences. Each with whether the words below have it.
const TELLERS: &str = "\
    SELECT DISTINCT proname, false FROM pg_proc WHERE oid < 16384 AND provolatile = 'v' \
    AND prorettype <> ALL ('{internal,trigger,tsm_handler,index_am_handler,table_am_handler,language_handler}'::regtype[]) \
    AND proname <> ALL ('{SAME}') AND proname NOT IN (SELECT w.proname FROM (WRITERS) w (proname, had) WHERE w.had) \
    UNION ALL SELECT DISTINCT proname, true FROM pg_proc WHERE oid < 16384 AND \
    (proname = ANY ('{currval,lastval,pg_sequence_last_value,inet_server_addr,inet_server_port,pg_backend_pid,pg_blocking_pids,\
pg_safe_snapshot_blocking_pids,pg_current_snapshot,txid_current_snapshot,pg_my_temp_schema,pg_is_other_temp_schema,pg_listening_channels,pg_cursor,pg_prepared_statement,\
pg_prepared_xact,pg_lock_status,pg_get_replication_slots,pg_show_all_settings,pg_show_replication_origin_status,\
pg_postmaster_start_time,pg_conf_load_time,pg_numa_available,table_to_xml,table_to_xml_and_xmlschema,schema_to_xml,schema_to_xml_and_xmlschema,\
database_to_xml,database_to_xml_and_xmlschema}') OR proname LIKE 'pg\\_stat\\_%') \
    UNION ALL SELECT relname, true FROM pg_class WHERE oid < 16384 AND \
    (relname = ANY ('{pg_locks,pg_cursors,pg_sequences,pg_prepared_statements,pg_prepared_xacts,pg_replication_slots,\
pg_replication_origin_status,pg_settings,pg_file_settings,pg_hba_file_rules,pg_ident_file_mappings,pg_backend_memory_contexts,\
pg_shmem_allocations,pg_shmem_allocations_numa,pg_aios,pg_wait_events}') \
     OR relname LIKE 'pg\\_stat\\_%' OR relname LIKE 'pg\\_statio\\_%') \
    UNION ALL SELECT DISTINCT relname, false FROM pg_class WHERE relkind = 'f' \
    UNION ALL SELECT DISTINCT v.relname, false FROM pg_depend d JOIN pg_rewrite r ON r.oid = d.objid \
        JOIN pg_class v ON v.oid = r.ev_class AND v.relkind = 'v' JOIN pg_class s ON s.oid = d.refobjid AND s.relkind = 'S' \
        WHERE d.classid = 'pg_rewrite'::regclass AND d.refclassid = 'pg_class'::regclass";
/// What is labelled volatile and does on a standby what it does on the primary, besides what reads may call: with the session's
/// settings, of which is known what a function leaves there, and with data.
const SAME: &str = "set_config,current_query,cursor_to_xml,cursor_to_xmlschema,ts_stat,ts_rewrite,pg_partition_tree,\
pg_partition_ancestors,pg_relation_size,pg_table_size,pg_indexes_size,pg_total_relation_size,pg_xact_status,txid_status,\
pg_extension_config_dump,dsnowball_init,dsnowball_lexize";
/// Those of PostgreSQL's own; and the columns of a sequence, which may be too new to be known. A call of that name is a window
/// function's.
const TELLING: &str = r#"currval|lastval|pg_sequence_last_value|inet_server_(addr|port)|pg_backend_pid|pg_(safe_snapshot_)?blocking_pids|(pg|txid)_current_snapshot|transaction_read_only|pg_my_temp_schema|pg_is_other_temp_schema|pg_listening_channels|pg_cursors?|pg_prepared_(statement|xact)s?|pg_lock_status|pg_(get_)?replication_slots|pg_(show_)?replication_origin_status|pg_show_all_settings|pg_postmaster_start_time|pg_conf_load_time|pg_numa_available|pg_stat(io)?_\w+|pg_locks|pg_sequences|pg_(file_)?settings|pg_hba_file_rules|pg_ident_file_mappings|pg_backend_memory_contexts|pg_shmem_allocations(_numa)?|pg_aios|pg_wait_events|(table|schema|database)_to_xml(_and_xmlschema)?|last_value(?!\s*\()|is_called|log_cnt"#;
/// Where a body, or a literal in it, may name a relation that it reads. What draws from a sequence has its name in quotes: a
/// standby refuses that.
const RELATION: &str = r#"(?:\m(?:from|join|table|only)\M|[,(])(?:\s|/\*(?:[^*]|\*+[^*/])*\*+/|--[^\n]*)*(?:(?:"(?:[^"]|"")+"|[\w$]+)\s*\.\s*){0,2}("(?:[^"]|"")+"|[\w$]+)"#;
/// One of these is a sequence. Asked only of bodies that have the name of one, as it costs PostgreSQL a second for each MB.
const READS_SEQUENCE: &str = "\
    EXISTS (SELECT FROM regexp_matches(p.body, $pattern$RELATION$pattern$, 'gi') AS m(part) WHERE (CASE \
        WHEN m.part[1] LIKE '\"%' THEN replace(btrim(m.part[1], '\"'), '\"\"', '\"') ELSE lower(m.part[1]) END \
        IN (SELECT relname::text FROM pg_class WHERE relkind = 'S')) IS TRUE)";
/// What is named like a sequence.
const LIKE_SEQUENCE: &str = r"(\w+_)?(seq|sequence)(_\w*|\d*)";
/// Sequences that are not. There may be as many as tables, so not all are looked for: a thousand names cost 0.2 s for each MB.
const OTHER_SEQUENCES: &str = "\
    SELECT DISTINCT relname FROM pg_class WHERE relkind = 'S' AND relname !~* '(^|_)(seq|sequence)(_|\\d*$)' ORDER BY 1 LIMIT 1000";

/// What a standby refuses to read, and what holds such tables. Each with whether the words below have it.
const UNLOGGED: &str = "\
    SELECT name, had FROM (WITH RECURSIVE unlogged AS (\
        SELECT oid, relname FROM pg_class WHERE relkind IN ('r', 'p') AND relpersistence = 'u' \
        UNION SELECT p.oid, p.relname FROM unlogged u JOIN pg_inherits i ON i.inhrelid = u.oid JOIN pg_class p ON p.oid = i.inhparent) \
    SELECT DISTINCT relname, false FROM unlogged) u (name, had)";

/// What writes in the body of a function that may.
const CHANGING: &str = "insert|update|delete|merge|truncate|copy|create|alter|drop|call";
/// A body that goes on behind an error. Of languages that are not known any may.
const HANDLES: &str = r#"(prolang NOT IN (SELECT oid FROM pg_language WHERE lanname IN ('sql', 'plpgsql')) OR prosrc ~* $pattern$\mexception(?:\s|/\*(?:[^*]|\*+[^*/])*\*+/|--[^\n]*)+when\M$pattern$)"#;

/// Functions whose bodies have one of some words, but for those that the pattern does not reach: in C.
const CALLERS: &str = "\
    SELECT DISTINCT n.nspname, p.proname \
    FROM (SELECT proname, pronamespace, prolang, provolatile, BODY AS body FROM pg_proc WHERE oid >= 16384 AND WHICH OFFSET 0) p \
    JOIN pg_language l ON l.oid = p.prolang JOIN pg_namespace n ON n.oid = p.pronamespace \
    WHERE l.lanname NOT IN ('c', 'internal') AND ";
const AGGREGATES: &str = "\
    SELECT p.proname, part.proname FROM pg_aggregate a JOIN pg_proc p ON p.oid = a.aggfnoid JOIN pg_proc part ON part.oid = \
    ANY (ARRAY[a.aggtransfn, a.aggfinalfn, a.aggcombinefn, a.aggmtransfn, a.aggminvtransfn, a.aggmfinalfn]::oid[]) \
    WHERE p.oid >= 16384";
/// As many words are looked for in bodies at once, and so often; of more, any body has one.
const MAX_WORDS: (usize, usize) = (250, 40);

/// Functions, by schema and name.
pub(super) type Functions = BTreeSet<(String, String)>;

/// What the bodies of functions tell beyond their labels.
pub(super) struct Found {
    /// What leads to functions that may write although they are not labelled volatile.
    pub(super) writing: Callers,
    /// Functions whose answer is their session's or their server's own, or that go on, perhaps, where a standby has refused a write.
    pub(super) telling: Functions,
}

/// A database's own functions, by schema and name, each with what tells apart the definitions that it has had.
pub(super) type Own = BTreeMap<(String, String), String>;

/// What was found when bodies were searched.
pub(super) struct Searched {
    /// Functions whose answer is their session's or their server's own.
    pub(super) telling: Functions,
    /// All that there were then.
    pub(super) among: Own,
}

/// All of them, but for those that the configuration vouches for. An UPDATE of its row gives a function another `xmin`.
const OWN: &str = "\
    SELECT n.nspname, p.proname, string_agg(concat_ws(' ', p.oid, p.xmin), ',' ORDER BY p.oid) \
    FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace WHERE n.nspname <> 'pg_catalog' GROUP BY 1, 2";

/// The database's own functions. To be asked before their bodies are searched: what comes later is news.
pub(super) async fn own(client: &Client, lists: &Lists) -> Result<Own, Error> {
    let answer = client.simple_query(OWN).await?;
    let all = rows(&answer).filter_map(|row| Some((row.get(0)?, row.get(1)?, row.get(2)?)));
    let own = all.filter(|(schema, name, _)| !lists.allow.iter().any(|a| a.is(schema, name)));
    Ok(own.map(|(schema, name, is)| ((schema.to_owned(), name.to_owned()), is.to_owned())).collect())
}

/// Where bodies cannot be searched: the functions that may tell of a server, by what was found last. Those that have come since
/// are among them; and any is where one has become another, which any may call.
pub(super) fn may_tell(told: Option<&Searched>, own: &Own) -> Functions {
    let Some(Searched { telling, among }) = told else { return own.keys().cloned().collect() };
    if among.iter().any(|(name, was)| own.get(name).is_some_and(|is| is != was)) {
        return own.keys().cloned().collect();
    }
    telling.iter().chain(own.keys().filter(|name| !among.contains_key(*name))).cloned().collect()
}

/// Bodies that could not be searched.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the bodies of functions could not be searched, which of them write, or tell of a server, is not known: {0}")]
pub(super) struct Unsearched(String);

/// Which functions these are, but for those that the configuration vouches for. An error only of the connection: what
/// cannot be read of bodies must not cost a database its catalog.
pub(super) async fn read(
    client: &Client,
    lists: &Lists,
    hidden: Hidden<'_>,
) -> Result<Result<Found, Unsearched>, Error> {
    match search(client, lists, hidden).await {
        Ok(found) => Ok(Ok(found)),
        Err(error) => match error.as_db_error() {
            Some(said) => Ok(Err(Unsearched(format!("{} ({})", said.message(), said.code().code())))),
            None => Err(error),
        },
    }
}

/// Warn of it when it is not what was `told` last. True when they could not be searched.
pub(super) fn complain_of(unsearched: Option<Unsearched>, told: &mut Option<Unsearched>, database: &str) -> bool {
    let failed = unsearched.is_some();
    if *told != unsearched {
        if let Some(why) = &unsearched {
            tracing::warn!(database, %why, "not all functions are known");
        }
        *told = unsearched;
    }
    failed
}

async fn search(client: &Client, lists: &Lists, hidden: Hidden<'_>) -> Result<Found, Error> {
    let parsed = rows(&client.simple_query(HAS_PARSED).await?).next().is_some();
    let question = CALLERS.replace("BODY", if parsed { PARSED } else { "prosrc" });
    let aggregates = client.simple_query(AGGREGATES).await?;
    let aggregates = rows(&aggregates).filter_map(|row| Some((row.get(0)?, row.get(1)?))).collect();
    let search = Search { client, lists, hidden: &Hidden { aggregates, ..hidden } };
    let writing = search.functions(WRITERS, &question.replace("WHICH", "provolatile <> 'v'"), (WRITING, None)).await?;
    let swallowing = search.swallowing(&writing, &question).await?;
    let sequences = sequences(client).await?;
    let same = [&crate::sql::HARMLESS[..], &[SAME]].concat().join(",");
    let tellers = TELLERS.replace("SAME", &same).replace("WRITERS", WRITERS);
    let mut telling =
        search.functions(&tellers, &question.replace("WHICH", "true"), (TELLING, Some(&sequences))).await?;
    telling.extend(swallowing);
    let names = writing.iter().map(|(_, name)| name.as_str());
    Ok(Found { writing: Callers::new(names).with_hidden(search.hidden), telling })
}

/// What is true of functions that read a sequence.
async fn sequences(client: &Client) -> Result<String, Error> {
    let others = client.simple_query(OTHER_SEQUENCES).await?;
    let (plain, odd): (Vec<&str>, Vec<&str>) = rows(&others).filter_map(|row| row.get(0)).partition(is_plain);
    let named = [LIKE_SEQUENCE].into_iter().chain(plain).collect::<Vec<_>>().join("|");
    let pattern = [whole(&named)].into_iter().chain(odd.into_iter().map(literal)).collect::<Vec<_>>().join("|");
    let reads = READS_SEQUENCE.replace("RELATION", RELATION);
    Ok(format!("p.body ~* $pattern${pattern}$pattern$ AND {reads}"))
}

struct Search<'a> {
    client: &'a Client,
    lists: &'a Lists,
    hidden: &'a Hidden<'a>,
}

impl Search<'_> {
    /// Functions that may write, or read what is not logged, and go on when that is refused, as a standby does, and those that are not labelled volatile and
    /// call one: nobody would be told that what they write or read is missing. `writing`: what may write in spite of its label.
    async fn swallowing(&self, writing: &Functions, question: &str) -> Result<Functions, Error> {
        let named = |functions: &Functions| {
            let names = functions.iter().map(|(_, name)| format!("({}, false)", quoted(name)));
            names.collect::<Vec<_>>().join(",")
        };
        let mut first = WRITERS.to_owned();
        if !writing.is_empty() {
            first = format!("{first} UNION ALL VALUES {}", named(writing));
        }
        if rows(&self.client.simple_query(UNLOGGED).await?).next().is_some() {
            first = format!("{first} UNION ALL {UNLOGGED}");
            // Whatever is labelled volatile is there already.
            let reading =
                self.functions(UNLOGGED, &question.replace("WHICH", "provolatile <> 'v'"), ("", None)).await?;
            if !reading.is_empty() {
                first = format!("{first} UNION ALL VALUES {}", named(&reading));
            }
        }
        let changes = format!("p.provolatile = 'v' AND p.body ~* $pattern${}$pattern$", whole(CHANGING));
        let mut found = self.functions(&first, &question.replace("WHICH", HANDLES), (WRITING, Some(&changes))).await?;
        if !found.is_empty() {
            let first = format!("VALUES {}", named(&found));
            found.extend(self.functions(&first, &question.replace("WHICH", "provolatile <> 'v'"), ("", None)).await?);
        }
        Ok(found)
    }

    /// The functions that name what `first` names, or what leads to that, or one of these words, or of which the `other`
    /// condition is true; with their schemas.
    async fn functions(
        &self,
        first: &str,
        question: &str,
        (words, other): (&str, Option<&str>),
    ) -> Result<Functions, Error> {
        let answer = self.client.simple_query(first).await?;
        let mut known = Callers::new(rows(&answer).filter_map(|row| row.get(0))).with_hidden(self.hidden);
        let mut found = BTreeSet::new();
        let had = rows(&answer).filter(|row| row.get(1) == Some("t")).filter_map(|row| row.get(0));
        let mut asked: BTreeSet<String> = had.map(str::to_owned).collect();
        for round in 0..MAX_CALLS {
            let new: Vec<&str> = known.words().filter(|word| !asked.contains(*word)).collect();
            let before = found.len();
            let patterns = patterns(&new, known.is_every(), if round == 0 { words } else { "" });
            let named = patterns.into_iter().map(|pattern| format!("p.body ~* $pattern${pattern}$pattern$"));
            let other = other.filter(|_| round == 0).map(str::to_owned);
            for condition in named.chain(other) {
                let answer = self.client.simple_query(&format!("{question}{condition}")).await?;
                let named = rows(&answer).filter_map(|row| Some((row.get(0)?, row.get(1)?)));
                let named = named.filter(|(schema, name)| !self.lists.allow.iter().any(|a| a.is(schema, name)));
                found.extend(named.map(|(schema, name)| (schema.to_owned(), name.to_owned())));
            }
            if found.len() == before {
                break;
            }
            asked.extend(new.iter().map(|word| (*word).to_owned()));
            let names = found.iter().map(|(_, name)| name.as_str());
            known = Callers::new(known.words().chain(names).collect::<Vec<_>>()).with_hidden(self.hidden);
        }
        Ok(found)
    }
}

/// One of these words. Brackets around all of them: bounds around each cost PostgreSQL fifteen times as much for a thousand.
fn whole(words: &str) -> String {
    format!(r"\m({words})\M")
}

/// What matches texts that have one of these words. A name that may be written by its numbers may be any.
fn patterns(words: &[&str], every: bool, others: &str) -> Vec<String> {
    if every || words.len() > MAX_WORDS.0 * MAX_WORDS.1 {
        return vec![String::new()];
    }
    let (plain, odd): (Vec<&str>, Vec<&str>) = words.iter().partition(|word| is_plain(word));
    let chunks = plain.chunks(MAX_WORDS.0).map(|chunk| whole(&chunk.join("|")));
    let odd = odd.iter().map(|word| literal(word)).chain([r#"u&""#.to_owned()]).collect::<Vec<_>>().join("|");
    let others = Some(others).filter(|others| !others.is_empty()).map(whole);
    chunks.chain(others.into_iter().chain([odd]).reduce(|a, b| format!("{a}|{b}"))).collect()
}

/// A name as a literal.
fn quoted(name: &str) -> String {
    format!("'{}'", name.replace('\'', "''"))
}

/// A name as it stands in a body, between quotes where it has any, in a regular expression.
fn literal(name: &str) -> String {
    let mut pattern = String::with_capacity(name.len() * 2);
    for c in name.chars() {
        if c == '"' {
            pattern.push('"');
        } else if c.is_ascii() && !c.is_ascii_alphanumeric() {
            pattern.push('\\');
        }
        pattern.push(c);
    }
    pattern
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_come_or_changed_since_bodies_were_searched_may_tell_of_its_server() {
        let own = |all: &[(&str, &str)]| -> Own {
            all.iter().map(|(name, is)| (("public".to_owned(), (*name).to_owned()), (*is).to_owned())).collect()
        };
        let told = Searched {
            telling: own(&[("here", "")]).into_keys().collect(),
            among: own(&[("here", "1 5"), ("plain", "2 5"), ("gone", "3 5")]),
        };
        for (now, want) in [
            (&[("here", "1 5"), ("plain", "2 5")][..], &["here"][..]),
            (&[("here", "1 5"), ("plain", "2 5"), ("new", "4 9")], &["here", "new"]),
            // It may call what is another now.
            (&[("here", "1 5"), ("plain", "2 9"), ("gone", "3 5")], &["gone", "here", "plain"]),
            // As well another overload.
            (&[("here", "1 5,7 9"), ("plain", "2 5")], &["here", "plain"]),
        ] {
            let found = may_tell(Some(&told), &own(now));
            assert_eq!(found.iter().map(|(_, name)| name.as_str()).collect::<Vec<_>>(), want, "{now:?}");
        }
        assert_eq!(may_tell(None, &own(&[("plain", "2 5")])).len(), 1, "nothing was ever found");
    }

    #[test]
    fn an_odd_name_is_looked_for_as_it_is_written() {
        let words = ["bump", "lift", "Odd one", "a\"b", "§", "@@>", "x$pattern$"];
        assert_eq!(
            patterns(&words, false, "execute"),
            [r"\m(bump|lift)\M", r#"\m(execute)\M|Odd\ one|a""b|§|\@\@\>|x\$pattern\$|u&""#]
        );
        assert_eq!(patterns(&words, true, ""), [""]);
        let many: Vec<String> = (0..300).map(|i| format!("f{i}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert_eq!(patterns(&many, false, "").len(), 3);
    }
}
