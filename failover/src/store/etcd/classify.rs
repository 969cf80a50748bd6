//! What an etcd error says about the request: PURE.
//!
//! Sources: gRPC status codes; etcd api/v3rpc/rpctypes/error.go; tonic reports a failed connection as `unavailable`
//! with the connector's message, before anything was sent.

use etcd_client::Error;

/// What became of a request that was answered by an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// Certainly not done; another endpoint may do it.
    NotDone,
    /// A lease it names does not exist; not done.
    LeaseLost,
    /// Understood and refused; not done, and never will be.
    Refused,
    /// May have been done.
    Unknown,
}

/// gRPC status codes by number (google/rpc/code.proto).
mod code {
    pub(super) const INVALID_ARGUMENT: i32 = 3;
    pub(super) const NOT_FOUND: i32 = 5;
    pub(super) const PERMISSION_DENIED: i32 = 7;
    pub(super) const RESOURCE_EXHAUSTED: i32 = 8;
    pub(super) const FAILED_PRECONDITION: i32 = 9;
    pub(super) const UNIMPLEMENTED: i32 = 12;
    pub(super) const UNAVAILABLE: i32 = 14;
    pub(super) const UNAUTHENTICATED: i32 = 16;
}

/// Sort `error` by what is known about the request.
pub(super) fn fate(error: &Error) -> Fate {
    match error {
        Error::GRpcStatus(status) => status_fate(i32::from(status.code()), status.message()),
        Error::LeaseKeepAliveError(text) if text.contains("lease not found") => Fate::LeaseLost,
        Error::InvalidArgs(_) | Error::InvalidUri(_) | Error::InvalidMetadataValue(_) => Fate::Refused,
        // Every other kind is local to the client library or new to us: nothing is known.
        _ => Fate::Unknown,
    }
}

/// Is it refused because users or roles were changed since the login? A token that carries the revision of the user store
/// (etcd's `--auth-token jwt`) is not taken any more then, and the library logs in again for other answers only.
pub(super) fn is_from_older_login(error: &Error) -> bool {
    matches!(error, Error::GRpcStatus(status) if status.message().contains(OLD_AUTH_REVISION))
}

/// etcd api/v3rpc/rpctypes/error.go, `ErrGRPCAuthOldRevision`.
const OLD_AUTH_REVISION: &str = "revision of auth store is old";

fn status_fate(code: i32, message: &str) -> Fate {
    match code {
        code::NOT_FOUND if message.contains("lease not found") => Fate::LeaseLost,
        code::UNAVAILABLE
            if ["tcp connect error", "dns error", "tcp open error"].iter().any(|t| message.contains(t)) =>
        {
            Fate::NotDone
        }
        // "too many requests": refused before it is proposed. "database space exceeded" is for a person to solve.
        code::RESOURCE_EXHAUSTED if message.contains("too many requests") => Fate::NotDone,
        code::RESOURCE_EXHAUSTED if message.contains("space exceeded") => Fate::Refused,
        // Said by a member that has no vote yet, up to 3.5 as unavailable; another one does it.
        code::FAILED_PRECONDITION | code::UNAVAILABLE if message.contains("not supported for learner") => Fate::NotDone,
        // Refused before anything was done; it is done after another login.
        code::INVALID_ARGUMENT if message.contains(OLD_AUTH_REVISION) => Fate::NotDone,
        code::INVALID_ARGUMENT
        | code::NOT_FOUND
        | code::PERMISSION_DENIED
        | code::FAILED_PRECONDITION
        | code::UNIMPLEMENTED
        | code::UNAUTHENTICATED => Fate::Refused,
        _ => Fate::Unknown,
    }
}

/// Is this etcd older than the releases that fixed renewals of revoked leases (etcd issues 20615, 20616, 20813) and
/// revocation by a stale leader (issue 15247)? A version that cannot be read is not called old.
pub(super) fn is_older_than_fixed(version: &str) -> bool {
    let mut parts = version.split(['.', '-', '+']).map(|p| p.parse::<u32>().ok());
    let (Some(Some(major)), Some(Some(minor)), Some(Some(patch))) = (parts.next(), parts.next(), parts.next()) else {
        return false;
    };
    match (major, minor) {
        (3, 4) => patch < 38,
        (3, 5) => patch < 23,
        (3, 6) => patch < 5,
        _ => (major, minor) < (3, 4),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_errors_from_before_the_request_was_proposed_count_as_not_done() {
        for (code, message, want) in [
            (code::UNAVAILABLE, "tcp connect error", Fate::NotDone),
            (code::UNAVAILABLE, "etcdserver: request timed out", Fate::Unknown),
            (code::UNAVAILABLE, "etcdserver: leader changed", Fate::Unknown),
            (code::UNAVAILABLE, "connection error: broken pipe", Fate::Unknown),
            (code::RESOURCE_EXHAUSTED, "etcdserver: too many requests", Fate::NotDone),
            (code::RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded", Fate::Refused),
            (code::NOT_FOUND, "etcdserver: requested lease not found", Fate::LeaseLost),
            (code::PERMISSION_DENIED, "etcdserver: permission denied", Fate::Refused),
            (code::INVALID_ARGUMENT, "etcdserver: duplicate key given in txn request", Fate::Refused),
            (code::INVALID_ARGUMENT, "etcdserver: revision of auth store is old", Fate::NotDone),
            (code::FAILED_PRECONDITION, "etcdserver: rpc not supported for learner", Fate::NotDone),
            (code::UNAVAILABLE, "etcdserver: rpc not supported for learner", Fate::NotDone),
            (code::FAILED_PRECONDITION, "etcdserver: authentication is not enabled", Fate::Refused),
            (2, "transport error", Fate::Unknown),
        ] {
            assert_eq!(status_fate(code, message), want, "{message}");
        }
    }

    #[test]
    fn versions_with_lease_bugs_are_told() {
        for old in ["3.4.23", "3.4.37", "3.5.22", "3.6.0", "3.6.4-rc.1", "3.3.27", "2.3.8"] {
            assert!(is_older_than_fixed(old), "{old}");
        }
        for fixed in ["3.4.38", "3.5.23", "3.6.5", "3.7.0", "4.0.0", "not known", ""] {
            assert!(!is_older_than_fixed(fixed), "{fixed}");
        }
    }
}
