//! Names that mean the server a statement runs on, or what its session may do, rather than data.

/// The setting that tells what the session may do and that a standby answers otherwise. (`in_hot_standby` in an
/// expression asks which server runs it, as `cluster_name` does; drivers SHOW it to learn what the session may do.)
pub(super) fn is_about_transactions(setting: &[u8]) -> bool {
    setting.eq_ignore_ascii_case(b"transaction_read_only")
}

/// What stands in a plain literal, between its quotes.
pub(super) fn plain_literal(text: &[u8]) -> Option<&[u8]> {
    text.strip_prefix(b"'")?.strip_suffix(b"'")
}

/// Relations and functions that tell about the server they run on rather than about data.
pub(super) fn is_about_this_server(name: &[u8]) -> bool {
    name.starts_with(b"pg_stat_")
        || name.starts_with(b"pg_statio_")
        || name.starts_with(b"pg_temp")
        || matches!(
            name,
            b"pg_locks"
                | b"pg_cursors"
                | b"pg_sequences"
                | b"pg_prepared_statements"
                | b"pg_prepared_xacts"
                | b"pg_replication_slots"
                | b"pg_replication_origin_status"
                | b"pg_settings"
                | b"pg_file_settings"
                | b"pg_hba_file_rules"
                | b"pg_ident_file_mappings"
                | b"pg_backend_memory_contexts"
                | b"pg_shmem_allocations"
                | b"pg_shmem_allocations_numa"
                | b"pg_aios"
                | b"pg_wait_events"
        )
}
