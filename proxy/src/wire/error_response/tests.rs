//! One of each error, with the words a client reads.

use super::*;
use cluster::topology::Closed;

fn n1() -> NodeId {
    "n1".parse().unwrap()
}

/// One of each variant, with the line a client sees. A variant missing here fails `every_variant_is_listed`.
fn all() -> Vec<(ClientError, &'static str)> {
    use ClientError as E;
    let (term, node, gate) = (Term(7), n1(), Gate::Closed(Closed::Promoting));
    vec![
        (
            E::HoldTimeout { waited: Duration::from_secs(30), read: None, gate, term, node: Some(n1()) },
            "ERROR 57P03 no primary accepts writes at present | Held for 30000 ms; writes are promoting, term 7, primary n1. | Retry the transaction.",
        ),
        (
            E::HoldTimeout { waited: Duration::from_secs(30), read: None, gate: Gate::Open, term, node: Some(n1()) },
            "ERROR 57P03 the primary cannot be reached at present | Held for 30000 ms; writes are open, term 7, primary n1. | Retry the transaction.",
        ),
        (
            E::HoldTimeout {
                waited: Duration::from_secs(30),
                read: Some("there is no standby".into()),
                gate,
                term,
                node: None,
            },
            "ERROR 57P03 no server can serve this statement at present | Held for 30000 ms: there is no standby; writes are promoting, term 7, primary unknown. | Retry the transaction.",
        ),
        (
            E::HoldFull { bytes: 9, limit: 8, gate: Gate::Draining, term },
            "ERROR 57P03 no primary accepts writes at present | 9 bytes to hold, 8 allowed; writes are draining, term 7. | Retry the transaction.",
        ),
        (
            E::HoldFull { bytes: 9, limit: 8, gate: Gate::Open, term },
            "ERROR 53300 no server connection is free, and too much waits for one | 9 bytes to hold, 8 allowed. | Raise proxy.pool_size or proxy.hold_bytes, or shorten transactions.",
        ),
        (
            E::Durability(DurabilityError::Invalid { value: "odd".into() }),
            "ERROR 22023 invalid value for parameter \"pgtenure.durability\": \"odd\" |  | Available values: async, local, received, semi_sync, applied.",
        ),
        (
            E::ReadOnly(ReadOnlyError::ReadWrite),
            "ERROR 0A000 cannot set transaction read-write mode during recovery |  | ",
        ),
        (E::Promise(PromiseError::Invalid { what: "odd".into() }), "ERROR 22023 odd |  | "),
        (E::Pool(PoolError::Idle), "FATAL 57P05 terminating connection due to idle-session timeout |  | "),
        (
            E::NoStandby { consistency: "bounded", waited: Duration::from_secs(2), why: "there is no standby".into() },
            "ERROR 57P03 no standby can serve this read at present | Waited 2000 ms for consistency bounded: there is no standby. | Retry later, or SET pgtenure.no_standby = 'primary'.",
        ),
        (
            E::ServerLogin { node: node.clone(), why: "wrong proof".into() },
            "ERROR 28000 could not log in to the server | Server n1: wrong proof. | Compare the proxy's userlist with pg_authid.",
        ),
        (
            E::BlockAborted { node: node.clone(), term },
            "ERROR 40001 transaction aborted because its server was lost | Server n1 served it in term 7; nothing was committed. | Retry the transaction.",
        ),
        (
            E::ReadLost { node: node.clone(), before: None },
            "ERROR 40001 query interrupted because its server was lost | Server n1 was lost before all of the answer had come. | Run the query again.",
        ),
        (
            E::ReadLost { node: node.clone(), before: Some("n2".parse().unwrap()) },
            "ERROR 40001 query interrupted because its server was lost | The connection to server n2 was lost while it ran there, and then that to n1. | Find out whether they were lost because of it before you run it again.",
        ),
        (
            E::CommitUnknown { node: node.clone(), term, doubt: Doubt::NotReplicated },
            "ERROR 08007 it is unknown whether the statement was committed | Server n1, primary in term 7, committed it without waiting for a standby. | Check whether its effects are there before doing it again.",
        ),
        (
            E::CommitUnknown { node: node.clone(), term, doubt: Doubt::Unconfirmed },
            "ERROR 08007 it is unknown whether the statement was committed | Server n1, primary in term 7, committed it, hides whether it waited for a standby, and none has confirmed it in time. | Check whether its effects are there before doing it again.",
        ),
        (
            E::CommitLost {
                node: node.clone(),
                term,
                xid: Some(731),
                proof: Proof::PastBound { by: Term(8), bound: 731 },
            },
            "ERROR 40001 transaction was not committed because its server was lost | Server n1, primary in term 7, was lost during the COMMIT of transaction 731: term 8 begins at transaction 731. | Retry the transaction.",
        ),
        (
            E::CommitUnresolved {
                node: node.clone(),
                term,
                mark: Mark { xid: Some(731), lsn: cluster::Lsn(0x500_0060) },
                why: Why::NoPrimary,
                doubt: Doubt::ServerLost,
            },
            "ERROR 08007 it is unknown whether the transaction was committed | Server n1, primary in term 7, was lost during the COMMIT of transaction 731 at 0/5000060 or later: no primary could be asked in time. | Check whether its effects are there before doing it again.",
        ),
        (
            E::CommitUnresolved {
                node: node.clone(),
                term,
                mark: Mark { xid: None, lsn: cluster::Lsn(0x500_0060) },
                why: Why::NotFinal,
                doubt: Doubt::ViewStale,
            },
            "ERROR 08007 it is unknown whether the transaction was committed | Server n1, primary in term 7, may no longer have been primary when it answered the COMMIT at 0/5000060 or later: the term that is open has not got it, and a later one may. | Check whether its effects are there before doing it again.",
        ),
        (
            E::SessionLost { node, lost: vec![PinReason::Set, PinReason::Temp] },
            "ERROR 08006 session state was lost with its server | Server n1 was lost. Gone: session settings (SET), temporary objects. | Set up the session again; the connection itself goes on.",
        ),
        (
            E::InFailedTransaction,
            "ERROR 25P02 current transaction is aborted, commands ignored until end of transaction block |  | ",
        ),
        (E::Cancelled, "ERROR 57014 canceling statement due to user request |  | "),
        (E::DuplicateStatement { name: "s".into() }, "ERROR 42P05 prepared statement \"s\" already exists |  | "),
        (E::BadBind { what: "bind message has 2 ...".into() }, "ERROR 08P01 bind message has 2 ... |  | "),
        (E::UnknownStatement { name: "s".into() }, "ERROR 26000 prepared statement \"s\" does not exist |  | "),
        (
            E::StatementBytes { limit: 1024, configured: 1024 },
            "ERROR 54000 too many prepared statements | The statements of one connection may take 1024 bytes. | Close statements that are no longer used, or raise proxy.prepared_statement_bytes.",
        ),
        (
            E::StatementBytes { limit: 64, configured: 1024 },
            "ERROR 54000 too many prepared statements | Those of all clients take too much memory, and those of this user more than their share: until that is over, the statements of each of its connections may take 64 bytes instead of 1024. | Close statements that are no longer used, on whichever connection of the user.",
        ),
        (E::Unsupported { feature: "FunctionCall" }, "ERROR 0A000 FunctionCall is not supported by this proxy |  | "),
        (
            E::UnsupportedStartup { feature: "replication connections" },
            "FATAL 0A000 replication connections are not supported by this proxy |  | ",
        ),
        (
            E::UnsupportedProtocol { major: 2, minor: 0 },
            "FATAL 0A000 unsupported frontend protocol 2.0: server supports 3.0 to 3.0 |  | ",
        ),
        (
            E::BadReplication { value: "odd".into() },
            "FATAL 22023 invalid value for parameter \"replication\": \"odd\" |  | Valid values are: \"false\", 0, \"true\", 1, \"database\".",
        ),
        (E::ProtocolViolation { what: "odd".into() }, "FATAL 08P01 odd |  | "),
        (
            E::MessageTooLong { length: 9, limit: 8 },
            "FATAL 08P01 invalid message length | 9 bytes announced, 8 allowed. | ",
        ),
        (E::NoUser, "FATAL 28000 no PostgreSQL user name specified in startup packet |  | "),
        (E::BadPassword { user: "u".into() }, "FATAL 28P01 password authentication failed for user \"u\" |  | "),
        (
            E::NotAdmitted {
                way: Way::Host { address: core::net::Ipv4Addr::LOCALHOST.into(), tls: false },
                user: "u".into(),
                database: "d".into(),
                by_rule: false,
            },
            "FATAL 28000 no proxy.auth.rules entry for host \"127.0.0.1\", user \"u\", database \"d\", no encryption |  | ",
        ),
        (
            E::AuthenticationFailed { method: Method::Peer, user: "u".into() },
            "FATAL 28000 Peer authentication failed for user \"u\" |  | ",
        ),
        (
            E::UserLookup { why: "no node is known".into() },
            "FATAL 57P03 could not look up the user | proxy.auth.query: no node is known. | ",
        ),
        (E::ChannelBinding { what: "odd".into() }, "FATAL 28000 odd |  | "),
        (E::LoginTimeout, "FATAL 57014 canceling authentication due to timeout |  | "),
        (
            E::TooManyClients { limit: 100 },
            "FATAL 53300 sorry, too many clients already | This proxy takes 100 connections. | ",
        ),
        (E::ShuttingDown, "FATAL 57P01 terminating connection due to administrator command |  | "),
        (E::Internal { what: "No target" }, "ERROR XX000 internal error of the proxy | No target. | "),
        (E::ResultChanged, "ERROR 0A000 cached plan must not change result type |  | "),
        (
            E::SettingsRefused { node: "n1".parse().unwrap(), why: "role \"r\" does not exist".into() },
            "FATAL 08006 could not restore the session's settings on its server | Server n1: role \"r\" does not exist. | Connect again; the settings begin anew.",
        ),
        (
            E::NotOnStandby { node: "n2".parse().unwrap(), what: vec![PinReason::AdvisoryLock] },
            "ERROR 0A000 not possible in a READ ONLY transaction that a standby serves: session-level advisory locks | Standby n2 serves it. | SET pgtenure.read_from = 'primary' before such a transaction.",
        ),
        (
            E::TlsRequired,
            "FATAL 28000 connection requires TLS (SSL off) |  | Connect with sslmode=require or stronger.",
        ),
    ]
}

#[test]
fn every_variant_has_its_words() {
    for (error, want) in all() {
        let r = error.report();
        let (severity, detail, hint) = (r.severity.as_str(), r.detail.unwrap_or_default(), r.hint.unwrap_or(""));
        let got = format!("{severity} {} {} | {detail} | {hint}", r.sqlstate, r.message);
        assert_eq!(got, want, "{error:?}");
    }
}

/// This match is exhaustive: a new variant does not compile until it is counted, and is not counted until listed.
#[test]
fn every_variant_is_listed() {
    use ClientError as E;
    let index = |e: &E| match e {
        E::HoldTimeout { .. } => 0,
        E::HoldFull { .. } => 1,
        E::Pool(_) => 2,
        E::ServerLogin { .. } => 3,
        E::BlockAborted { .. } => 4,
        E::ReadLost { .. } => 5,
        E::CommitUnknown { .. } => 6,
        E::SessionLost { .. } => 7,
        E::InFailedTransaction => 8,
        E::Cancelled => 9,
        E::DuplicateStatement { .. } => 10,
        E::UnknownStatement { .. } => 11,
        E::StatementBytes { .. } => 12,
        E::Unsupported { .. } => 13,
        E::UnsupportedStartup { .. } => 14,
        E::UnsupportedProtocol { .. } => 15,
        E::ProtocolViolation { .. } => 16,
        E::MessageTooLong { .. } => 17,
        E::NoUser => 18,
        E::BadPassword { .. } => 19,
        E::NotAdmitted { .. } => 20,
        E::AuthenticationFailed { .. } => 21,
        E::UserLookup { .. } => 22,
        E::ChannelBinding { .. } => 23,
        E::LoginTimeout => 24,
        E::TooManyClients { .. } => 25,
        E::ShuttingDown => 26,
        E::Internal { .. } => 27,
        E::ResultChanged => 28,
        E::SettingsRefused { .. } => 29,
        E::TlsRequired => 30,
        E::NoStandby { .. } => 31,
        E::NotOnStandby { .. } => 32,
        E::Promise(_) => 33,
        E::Durability(_) => 34,
        E::ReadOnly(_) => 35,
        E::BadReplication { .. } => 36,
        E::BadBind { .. } => 37,
        E::CommitLost { .. } => 38,
        E::CommitUnresolved { .. } => 39,
    };
    let mut seen: Vec<usize> = all().iter().map(|(e, _)| index(e)).collect();
    seen.sort_unstable();
    // Some are there more than once.
    seen.dedup();
    assert_eq!(seen, (0..40).collect::<Vec<_>>());
}

#[test]
fn an_error_response_is_framed_as_the_protocol_says() {
    let mut out = b"before".to_vec();
    ClientError::ProtocolViolation { what: "a\0b".into() }.encode(&mut out);
    assert_eq!(&out[..7], b"beforeE");
    let body = &out[7..];
    assert_eq!(u32::from_be_bytes(body[..4].try_into().unwrap()) as usize, body.len());
    assert_eq!(&body[4..], b"SFATAL\0VFATAL\0C08P01\0Mab\0\0");
}

/// Drivers prepare a statement again when the routine tells them to, and know that by nothing else.
#[test]
fn what_postgresql_says_of_prepared_statements_names_its_routine() {
    let unknown = |name: &str| ClientError::UnknownStatement { name: name.into() };
    for (error, want) in [
        (ClientError::ResultChanged, Some("RevalidateCachedQuery")),
        (unknown("s"), Some("FetchPreparedStatement")),
        (unknown(""), None),
        (ClientError::DuplicateStatement { name: "s".into() }, Some("StorePreparedStatement")),
        (ClientError::Cancelled, None),
    ] {
        let mut out = Vec::new();
        error.encode(&mut out);
        let fields = crate::wire::backend::fields(&out);
        assert_eq!(fields.routine, want.unwrap_or("").as_bytes(), "{error:?}");
    }
}

#[test]
fn a_client_before_protocol_3_reads_its_own_form() {
    let text = |major| {
        let mut out = Vec::new();
        ClientError::UnsupportedProtocol { major, minor: 0 }.encode(&mut out);
        out
    };
    assert_eq!(text(2), b"EFATAL:  unsupported frontend protocol 2.0: server supports 3.0 to 3.0\n\0");
    assert_eq!(
        &text(4)[5..],
        b"SFATAL\0VFATAL\0C0A000\0Munsupported frontend protocol 4.0: server supports 3.0 to 3.0\0\0"
    );
}
