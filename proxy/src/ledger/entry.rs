//! What is known of a COMMIT in flight.

use cluster::Lsn;

/// The question in front of a COMMIT: the transaction's id, when it has one, a position that its commit record cannot
/// begin before, and which notices will be told.
pub const ASK: &str = "SELECT pg_catalog.pg_current_xact_id_if_assigned(),pg_catalog.pg_current_wal_insert_lsn(),\
                       pg_catalog.current_setting('client_min_messages')";

/// Does that value of `client_min_messages` hide the notice of a wait for standbys that was given up?
pub fn hides_notices(client_min_messages: &str) -> bool {
    matches!(client_min_messages, "error" | "fatal" | "panic")
}

/// A column that tells whether every role may ask [`ASK`]. Where the right to call its functions is revoked, the question would
/// fail the block that it is asked in; and a session may take on any role in a block, or a function may for it.
pub const ANYONE_MAY: &str = "\
    pg_catalog.has_function_privilege('public','pg_catalog.pg_current_xact_id_if_assigned()','EXECUTE') \
    AND pg_catalog.has_function_privilege('public','pg_catalog.pg_current_wal_insert_lsn()','EXECUTE')";

/// What the server said just before it began to commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The transaction's 64-bit id. `None`: it had none; what runs at the end of a transaction may have given it one since.
    pub xid: Option<u64>,
    /// The commit's record begins here or later, on the timeline of the term.
    pub lsn: Lsn,
}

impl Mark {
    /// Of the first columns of the row that [`ASK`] is answered; `None` when they are none.
    pub fn of_row([xid, lsn]: [Option<&str>; 2]) -> Option<Self> {
        let xid = match xid {
            Some(xid) => Some(xid.parse().ok()?),
            None => None,
        };
        Some(Self { xid, lsn: lsn?.parse().ok()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_question_is_answered_is_a_mark() {
        let mark = Mark::of_row;
        assert_eq!(mark([Some("731"), Some("0/5000060")]), Some(Mark { xid: Some(731), lsn: Lsn(0x500_0060) }));
        // Beyond 32 bits: an epoch and more.
        assert_eq!(mark([Some("4294968027"), Some("1/0")]).and_then(|m| m.xid), Some(4_294_968_027));
        assert_eq!(mark([None, Some("0/5000060")]), Some(Mark { xid: None, lsn: Lsn(0x500_0060) }));
        for row in [[Some("731"), None], [Some("x"), Some("0/1")], [Some("731"), Some("x")], [None, None]] {
            assert_eq!(mark(row), None, "{row:?}");
        }
    }
}
