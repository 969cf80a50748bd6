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

/// Bounds of the server's that our callers have of their own, which every version knows.
const BOUNDS: [&str; 3] = ["statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"];

/// Those that came later.
fn later_bounds(version: u32) -> impl Iterator<Item = &'static str> {
    let later = [(140_000, "idle_session_timeout"), (170_000, "transaction_timeout")];
    later.into_iter().filter(move |(since, _)| version >= *since).map(|(_, name)| name)
}

/// What else a session says that nothing of the server's may end or hold up, as its caller has bounds of its own; `version`
/// as `server_version_num`, 0 where that is told by the login only (see [`unhurry`]).
pub fn unhurried(version: u32) -> String {
    let bounds = BOUNDS.into_iter().chain(later_bounds(version));
    bounds.fold(DEFAULTS.to_owned(), |options, name| format!("{options} -c {name}=0"))
}

/// What a session that has said [`unhurried`] of version 0 does once it knows the version. May be empty.
pub fn unhurry(version: u32) -> String {
    later_bounds(version).map(|name| format!("SET {name} = 0;")).collect()
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
        assert!(says(0, "statement_timeout") && !says(0, "idle_session_timeout"));
        assert_eq!(unhurry(130_000), "");
        assert_eq!(unhurry(170_000), "SET idle_session_timeout = 0;SET transaction_timeout = 0;");
    }
}
