//! What sessions of our own say at their login. PURE.
//!
//! Defaults that somebody has set for the server, a role or a database hold for our sessions too, unless they say
//! otherwise; what is said at the login wins over all of them.

/// For the login's `options`. Only PostgreSQL's own functions and operators are looked for: where any user may create in
/// `public` (up to 14, and what was upgraded from there), one of theirs with just the types of a call of ours would run with
/// our rights. A standby refuses every query of a session whose transactions are serializable, and where transactions are
/// read-only no term could be recorded.
pub const DEFAULTS: &str = "-c search_path=pg_catalog -c default_transaction_isolation=read\\ committed \
    -c default_transaction_read_only=off -c default_transaction_deferrable=off";

/// What else a session says that nothing of the server's may end or hold up, as its caller has bounds of its own; `version`
/// as `server_version_num`.
pub fn unhurried(version: u32) -> String {
    let mut options =
        format!("{DEFAULTS} -c statement_timeout=0 -c lock_timeout=0 -c idle_in_transaction_session_timeout=0");
    if version >= 140_000 {
        options.push_str(" -c idle_session_timeout=0");
    }
    if version >= 170_000 {
        options.push_str(" -c transaction_timeout=0");
    }
    options
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_told_no_setting_that_it_does_not_know() {
        let says = |version, name: &str| unhurried(version).contains(&format!(" {name}="));
        assert!(unhurried(130_000).starts_with(DEFAULTS));
        assert!(!says(130_023, "idle_session_timeout") && says(140_000, "idle_session_timeout"));
        assert!(!says(160_009, "transaction_timeout") && says(170_000, "transaction_timeout"));
    }
}
