//! A catalog as one server tells it: who is asked, what, and how it becomes a table.

use super::bodies::Unread;
use super::callers::{Found, Searched, Unsearched};
use super::definitions::{Definition, Undefined};
use super::{Settings, Shared, bodies, callers, definitions, draws};
use crate::config::functions::Lists;
use crate::reach::ReachError;
use crate::sql::{Callers, FunctionName, FunctionRow, FunctionTable, Hidden, Volatility};
use cluster::Lsn;
use cluster::node::Endpoint;
use cluster::sessions;
use cluster::topology::{Member, Topology};
use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;
use tokio_postgres::SimpleQueryMessage;

/// How long reading a catalog may take; one with 100,000 functions takes a second.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// A catalog that could not be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadCatalogError {
    #[error("no node is known")]
    NoNode,
    #[error("connecting to {0} took too long")]
    ConnectTimeout(Endpoint),
    #[error("could not connect to {endpoint}")]
    Connect { endpoint: Endpoint, source: ReachError },
    #[error("reading the catalog of {0} took too long")]
    ReadTimeout(Endpoint),
    #[error("could not read the catalog of {endpoint}")]
    Read { endpoint: Endpoint, source: tokio_postgres::Error },
}

/// What was read before.
#[derive(Default)]
pub(super) struct Last {
    /// From a primary.
    pub(super) of_primary: bool,
    pub(super) searched: Option<Searched>,
    pub(super) definitions: Vec<Definition>,
    /// Somebody is known to ask for what was drawn from sequences.
    pub(super) asks: bool,
}

/// What was read.
pub(super) struct Catalog {
    pub(super) table: FunctionTable,
    /// From the primary.
    pub(super) of_primary: bool,
    /// What stands for the defaults of its sessions, and where the WAL ended behind them; `None` when they may be old.
    pub(super) defaults: Option<(u64, Lsn)>,
    /// Its functions, as far as their names are in the lists.
    pub(super) names: BTreeSet<FunctionName>,
    /// What is not known of functions' bodies.
    pub(super) unread: Option<Unread>,
    /// Which functions tell of a server, if that was found out.
    pub(super) searched: Result<Searched, Unsearched>,
    /// What hides behind names, if that could be read.
    pub(super) definitions: Result<Vec<Definition>, Undefined>,
    /// Something in it asks for what was drawn from sequences, if that could be read.
    pub(super) asks: Option<bool>,
}

/// From the primary; as long as none was ever read, else from the first standby that answers, of that one no defaults. What a
/// standby has may be older than what is known.
pub(super) async fn read_any(
    shared: &Shared,
    view: &Topology,
    database: &str,
    (lists, last): (&Lists, &Last),
) -> Result<Catalog, ReadCatalogError> {
    let mut why = ReadCatalogError::NoNode;
    for (member, of_primary) in asked(view, last.of_primary) {
        match read_from(shared, &member.postgres, database, (lists, last)).await {
            Ok(read) => {
                let defaults = read.defaults.filter(|_| of_primary);
                return Ok(Catalog { of_primary, defaults, ..read });
            }
            Err(error) => why = error,
        }
    }
    Err(why)
}

/// Who is asked, and whether that is the primary.
fn asked(view: &Topology, only_primary: bool) -> impl Iterator<Item = (&Member, bool)> {
    let standbys = view.standbys.iter().filter(move |_| !only_primary);
    let all = view.primary.iter().map(|member| (member, true)).chain(standbys.map(|member| (member, false)));
    all.filter(|(member, _)| !member.fenced)
}

async fn read_from(
    shared: &Shared,
    endpoint: &Endpoint,
    database: &str,
    known: (&Lists, &Last),
) -> Result<Catalog, ReadCatalogError> {
    let settings = &shared.settings;
    let mut config = tokio_postgres::Config::new();
    config
        .user(&settings.user)
        .dbname(database)
        .application_name("pgtenure_catalog")
        // pg_get_viewdef locks what a view stands on: rather fail and try again than queue behind somebody's DDL. Each
        // connection asks once: to compile what it asks takes longer than to answer it.
        .options(format!(
            "{} -c standard_conforming_strings=on -c lock_timeout=1s -c statement_timeout=30s -c jit=off",
            sessions::DEFAULTS
        ));
    if let Some(password) = &settings.password {
        config.password(password.expose());
    }
    let connect =
        tokio::time::timeout(settings.connect_timeout * 2, shared.reach.converse(endpoint, &mut config)).await;
    let connect = connect.map_err(|_| ReadCatalogError::ConnectTimeout(endpoint.clone()))?;
    let (client, connection) =
        connect.map_err(|source| ReadCatalogError::Connect { endpoint: endpoint.clone(), source })?;
    let read = async {
        tokio::select! {
            read = read_all(settings, known, &client) => read,
            // The connection ends before the queries do only when it fails; they then tell why.
            Err(error) = connection => Err(error),
        }
    };
    match tokio::time::timeout(READ_TIMEOUT, read).await {
        Ok(read) => read.map_err(|source| ReadCatalogError::Read { endpoint: endpoint.clone(), source }),
        Err(_) => Err(ReadCatalogError::ReadTimeout(endpoint.clone())),
    }
}

/// Functions, with the place of their volatility in `isv`. An aggregate is always labelled immutable, whatever its
/// parts are.
const FUNCTIONS: &str = "\
    SELECT DISTINCT p.proname, \
           greatest(strpos('isv', p.provolatile::text), \
                    (SELECT max(strpos('isv', part.provolatile::text)) FROM pg_proc part \
                     WHERE part.oid = ANY (ARRAY[a.aggtransfn, a.aggfinalfn, a.aggcombinefn, \
                                                 a.aggmtransfn, a.aggminvtransfn, a.aggmfinalfn]::oid[]))), \
           n.nspname \
    FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace LEFT JOIN pg_aggregate a ON a.aggfnoid = p.oid";

/// Operators and casts that came with no server: 16384 is the first identifier after initdb. A type that came with it may be
/// written in other words than its name (`integer` is int4), so a cast to one counts as an implicit one.
const OPERATORS: &str = "\
    SELECT o.oprname, p.proname FROM pg_operator o JOIN pg_proc p ON p.oid = o.oprcode WHERE o.oid >= 16384";
const CASTS: &str = "\
    SELECT t.typname, p.proname, c.castcontext = 'i' OR t.oid < 16384 \
    FROM pg_cast c JOIN pg_proc p ON p.oid = c.castfunc JOIN pg_type t ON t.oid = c.casttarget WHERE c.oid >= 16384";

/// Relations that a standby cannot read, or reads differently, and those that are read with one that is a partition of them or
/// another heir; no temporary one, which nobody reads but its session, and that at the primary.
const LOCAL_RELATIONS: &str = "\
    WITH RECURSIVE local AS ( \
        SELECT oid, relname FROM pg_class \
        WHERE relkind IN ('r', 'p', 'm') AND relpersistence = 'u' OR relkind IN ('S', 'f') AND relpersistence <> 't' \
        UNION SELECT p.oid, p.relname FROM local l JOIN pg_inherits i ON i.inhrelid = l.oid \
        JOIN pg_class p ON p.oid = i.inhparent) \
    SELECT relname FROM local";

/// What ALTER ROLE … SET and ALTER DATABASE … SET say of sessions of this database.
const DEFAULTS: &str = "\
    SELECT setdatabase, setrole, setconfig FROM pg_db_role_setting \
    WHERE setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database())) ORDER BY 1, 2";

/// Where the WAL ends, at a primary.
const POSITION: &str = "SELECT CASE WHEN NOT pg_is_in_recovery() THEN pg_current_wal_insert_lsn() END";

async fn read_all(
    settings: &Settings,
    (lists, last): (&Lists, &Last),
    client: &tokio_postgres::Client,
) -> Result<Catalog, tokio_postgres::Error> {
    let defaults = client.simple_query(DEFAULTS).await?;
    let position = client.simple_query(POSITION).await?;
    let functions = client.simple_query(FUNCTIONS).await?;
    let relations = client.simple_query(LOCAL_RELATIONS).await?;
    let operators = client.simple_query(OPERATORS).await?;
    let casts = client.simple_query(CASTS).await?;
    let (definitions, undefined) = definitions::read(client, &last.definitions).await?;
    let rows = rows(&functions).map(|row| FunctionRow {
        schema: row.get(2).unwrap_or(""),
        name: row.get(0).unwrap_or(""),
        volatility: match row.get(1) {
            Some("1") => Volatility::Immutable,
            Some("2") => Volatility::Stable,
            _ => Volatility::Volatile,
        },
    });
    let table = FunctionTable::new(rows, &lists.allow, &lists.deny).with_pinning(settings.pinning.clone());
    let texts: Vec<(&str, &str)> = definitions.iter().map(|d| (d.name.as_str(), d.text.as_str())).collect();
    let (table, unread) = bodies::read(table, &texts, client).await?;
    let table = table.with_local_relations(self::rows(&relations).filter_map(|row| row.get(0)));
    let operators = || self::rows(&operators).filter_map(|row| Some((row.get(0)?, row.get(1)?)));
    let casts = || self::rows(&casts).filter_map(|row| Some((row.get(0)?, row.get(1)?, row.get(2)? == "t")));
    let hidden = Hidden {
        operators: operators().collect(),
        casts: casts().collect(),
        aggregates: Vec::new(),
        definitions: &texts,
    };
    let own = callers::own(client, lists).await?;
    let (writing, telling, why) = match callers::read(client, lists, hidden).await? {
        Ok(Found { writing, telling }) => (writing, telling, None),
        Err(why) => (Callers::unknown(), callers::may_tell(last.searched.as_ref(), &own), Some(why)),
    };
    let table = table.with_telling(telling.iter().map(|(_, name)| name.as_str())).with_doubtful(writing);
    let searched = why.map_or(Ok(Searched { telling, among: own }), Err);
    let table = table.with_operators(operators()).with_casts(casts());
    let mut hasher = DefaultHasher::new();
    for row in self::rows(&defaults) {
        (0..3).for_each(|column| row.get(column).hash(&mut hasher));
    }
    let at = self::rows(&position).find_map(|row| row.get(0)?.parse::<Lsn>().ok());
    let names = named_ones(lists, &functions);
    Ok(Catalog {
        table: table.with_definitions(&texts),
        of_primary: false,
        defaults: at.map(|at| (hasher.finish(), at.normalised_insert())),
        names,
        unread,
        searched,
        definitions: undefined.map_or(Ok(definitions), Err),
        asks: if last.asks { Some(true) } else { draws::asks(client).await? },
    })
}

/// Those of the database's functions whose names are in the lists.
fn named_ones(lists: &Lists, functions: &[SimpleQueryMessage]) -> BTreeSet<FunctionName> {
    let listed: BTreeSet<&str> = lists.allow.iter().chain(&lists.deny).map(|named| named.name.as_str()).collect();
    let named = |row: &tokio_postgres::SimpleQueryRow| {
        let (name, schema) = (row.get(0)?, row.get(2)?);
        listed.contains(name).then(|| FunctionName { schema: Some(schema.to_owned()), name: name.to_owned() })
    };
    rows(functions).filter_map(named).collect()
}

pub(super) fn rows(messages: &[SimpleQueryMessage]) -> impl Iterator<Item = &tokio_postgres::SimpleQueryRow> {
    messages.iter().filter_map(|m| match m {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_standby_is_asked_only_as_long_as_no_primary_has_told() {
        let member = |name: &str, fenced| {
            let postgres = Endpoint { host: name.to_owned(), port: 5432 };
            Member { node: name.parse().unwrap(), postgres, fenced, candidate: true, zone: None }
        };
        let view = |primary| Topology {
            primary: Some(member("n1", false)).filter(|_| primary),
            standbys: vec![member("n2", false), member("n3", true)],
            ..Topology::unknown()
        };
        for (primary, told, want) in [
            (true, false, &[("n1", true), ("n2", false)][..]),
            (false, false, &[("n2", false)]),
            (true, true, &[("n1", true)]),
            (false, true, &[]),
        ] {
            let view = view(primary);
            let asked: Vec<_> = asked(&view, told).map(|(member, of)| (member.node.as_str(), of)).collect();
            assert_eq!(asked, want, "primary: {primary}, told: {told}");
        }
    }
}
