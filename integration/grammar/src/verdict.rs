//! What PostgreSQL's grammar says of a text: is any of it a write?

use pg_query::NodeRef;
use pg_query::protobuf::node::Node as N;

/// Functions that write, for this test; the expressions of the corpus call most of them.
pub const WRITING: [&str; 22] = [
    "writes",
    "nextval",
    "setval",
    "currval",
    "lastval",
    "writing_fn",
    "overloaded",
    "txid_current",
    "pg_current_xact_id",
    "set_config",
    "pg_advisory_lock",
    "pg_advisory_xact_lock",
    "pg_try_advisory_lock",
    "pg_try_advisory_xact_lock_shared",
    "pg_notify",
    "lo_create",
    "lo_from_bytea",
    "pg_logical_emit_message",
    "pg_export_snapshot",
    "setseed",
    "writing_agg",
    "pg_switch_wal",
];

/// Functions that only read.
pub const READING: [&str; 34] = [
    "lower",
    "upper",
    "length",
    "substring",
    "btrim",
    "position",
    "extract",
    "date_trunc",
    "stable_fn",
    "Odd Name",
    "max",
    "sum",
    "count",
    "random",
    "now",
    "clock_timestamp",
    "current_setting",
    "version",
    "current_schema",
    "to_jsonb",
    "format",
    "md5",
    "generate_series",
    "unnest",
    "row_number",
    "has_table_privilege",
    "has_schema_privilege",
    "pg_typeof",
    "to_regclass",
    "obj_description",
    "pg_table_size",
    "array_agg",
    "string_agg",
    "jsonb_agg",
];

/// Of a text.
pub enum Verdict {
    /// The server would refuse it.
    Invalid,
    /// Some statement of it may write, lock rows, or change the session.
    Writes,
    /// Nothing of it does.
    Reads,
}

/// What the grammar says of a text.
pub fn of(text: &str) -> Verdict {
    let Ok(parsed) = pg_query::parse(text) else { return Verdict::Invalid };
    let top = parsed.protobuf.stmts.iter().filter_map(|s| s.stmt.as_ref()).filter_map(|s| s.node.as_ref());
    if top.into_iter().any(|node| !may_read(node)) {
        return Verdict::Writes;
    }
    // Below the top: what writes at any depth. What is only planned calls none of its functions.
    let top = parsed.protobuf.stmts.iter().filter_map(|s| s.stmt.as_ref()).filter_map(|s| s.node.as_ref());
    let writes = top.into_iter().any(|top| {
        let calls = !only_plans(top);
        top.nodes().iter().any(|(node, ..)| writes(node) || calls && calls_writing(node))
    });
    if writes { Verdict::Writes } else { Verdict::Reads }
}

/// Is it EXPLAIN without ANALYZE, whatever that is set to?
fn only_plans(node: &N) -> bool {
    let N::ExplainStmt(e) = node else { return false };
    !e.options.iter().any(|o| matches!(&o.node, Some(N::DefElem(d)) if d.defname == "analyze"))
}

/// Is a statement one of the kinds that can read only?
fn may_read(node: &N) -> bool {
    match node {
        N::SelectStmt(_) | N::VariableShowStmt(_) => true,
        N::ExplainStmt(e) => {
            e.query.as_ref().and_then(|q| q.node.as_ref()).is_some_and(|q| matches!(q, N::SelectStmt(_)))
        }
        N::CopyStmt(c) => !c.is_from && !c.is_program && c.filename.is_empty(),
        // All other statements change data, a definition, the session or the transaction.
        _ => false,
    }
}

/// Does a node write, wherever it stands?
fn writes(node: &NodeRef<'_>) -> bool {
    match node {
        NodeRef::InsertStmt(_) | NodeRef::UpdateStmt(_) | NodeRef::DeleteStmt(_) | NodeRef::MergeStmt(_) => true,
        NodeRef::SelectStmt(s) => s.into_clause.is_some() || !s.locking_clause.is_empty(),
        NodeRef::LockingClause(_) | NodeRef::IntoClause(_) => true,
        // Everything else is an expression or a clause; what it holds is looked at by itself.
        _ => false,
    }
}

/// Does a node call a function that writes?
fn calls_writing(node: &NodeRef<'_>) -> bool {
    let NodeRef::FuncCall(call) = node else { return false };
    let name = call.funcname.last().and_then(|n| n.node.as_ref());
    matches!(name, Some(N::String(s)) if WRITING.contains(&s.sval.as_str()))
}
