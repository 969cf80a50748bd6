//! What the first primary of a cluster is given: users of ours, what they may, and the table of terms. As SQL that can be
//! repeated.

use super::env::{MONITOR_USER, REPLICATION_USER, identifier, literal};
use cluster::NodeId;
use cluster::secret::Secret;

/// Statements with passwords must not end up in PostgreSQL's log, whatever the user has it log.
pub(crate) const QUIET: &str =
    "SET log_statement = 'none'; SET log_min_duration_statement = -1; SET log_min_error_statement = 'panic'";

/// The schema of ours with the table of terms, which every user may read.
pub(crate) const TERMS: &str = "CREATE SCHEMA IF NOT EXISTS pgtenure; \
    CREATE TABLE IF NOT EXISTS pgtenure.term (term bigint PRIMARY KEY, node text NOT NULL, prev bigint, \
     fork_timeline bigint, fork_lsn pg_lsn, xid_bound numeric, policy_epoch bigint NOT NULL, \
     record_lsn pg_lsn NOT NULL, at timestamptz NOT NULL DEFAULT now()); \
    GRANT USAGE ON SCHEMA pgtenure TO PUBLIC; GRANT SELECT ON pgtenure.term TO PUBLIC";

/// A role that logs in, with `rest` as ALTER ROLE takes it.
pub(crate) fn role(name: &str, rest: &str) -> String {
    format!(
        "DO $pgtenure$ BEGIN CREATE ROLE {} LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $pgtenure$; \
         ALTER ROLE {} {rest};",
        identifier(name),
        identifier(name)
    )
}

/// What pg_rewind calls on its source (see its manual), in this database, and the monitor's statistics.
pub(crate) fn grants() -> String {
    format!(
        "GRANT EXECUTE ON FUNCTION pg_catalog.pg_ls_dir(text, boolean, boolean) TO {REPLICATION_USER}; \
         GRANT EXECUTE ON FUNCTION pg_catalog.pg_stat_file(text, boolean) TO {REPLICATION_USER}; \
         GRANT EXECUTE ON FUNCTION pg_catalog.pg_read_binary_file(text) TO {REPLICATION_USER}; \
         GRANT EXECUTE ON FUNCTION pg_catalog.pg_read_binary_file(text, bigint, bigint, boolean) TO {REPLICATION_USER}; \
         GRANT pg_monitor TO {MONITOR_USER}"
    )
}

/// Our own users and [`grants`].
pub(crate) fn roles(replication_password: &Secret, monitor_password: &Secret) -> [String; 3] {
    let repl = format!("REPLICATION PASSWORD {}", literal(replication_password.expose()));
    let monitor = format!("PASSWORD {}", literal(monitor_password.expose()));
    [role(REPLICATION_USER, &repl), role(MONITOR_USER, &monitor), grants()]
}

/// The row of the first term.
pub(crate) fn first_term(term: u64, node: &NodeId) -> String {
    format!(
        "INSERT INTO pgtenure.term (term, node, policy_epoch, record_lsn) \
         VALUES ({term}, {}, 1, pg_current_wal_insert_lsn()) ON CONFLICT DO NOTHING",
        literal(node.as_str())
    )
}
