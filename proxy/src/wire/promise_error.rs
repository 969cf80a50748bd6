//! What a client is told whose reads cannot be what it asks for.

use super::error_response::{Report, error, millis};
use super::sqlstate::SqlState;
use crate::route::{After, Gone, LostRead, LostWrite};
use cluster::{Lsn, NodeId, Term};
use std::time::Duration;

/// What a session asks of its reads cannot be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PromiseError {
    /// The position of `pgtenure.after` is in no history any more.
    AfterLost {
        /// The position.
        after: After,
        /// Why not.
        why: Gone,
        /// The term in force.
        term: Term,
    },
    /// The position of `pgtenure.after` could not be judged in time.
    AfterUnknown {
        /// The position.
        after: After,
        /// The newest term known.
        term: Term,
        /// How long the statement waited.
        waited: Duration,
    },
    /// `pgtenure.after` is set to what no text shows, by something that reads besides.
    AfterHidden,
    /// What the session was told is written may be lost.
    WriteLost {
        /// The write.
        lost: LostWrite,
        /// How long ago it was acknowledged.
        ago: Duration,
    },
    /// What the session has read may be lost.
    ReadLost {
        /// What it was.
        lost: LostRead,
        /// How long ago it was shown.
        ago: Duration,
    },
    /// It could not be proved that the server is the primary.
    Unproven {
        /// The server.
        node: NodeId,
        /// The term that it is the primary of, as far as is known.
        term: Term,
        /// How long that was tried.
        waited: Duration,
        /// What is lacking.
        why: String,
    },
    /// More is asked for in a block than its server can be proven to keep, now that it has begun.
    Late {
        /// The setting.
        name: &'static str,
        /// What it was to be.
        to: String,
    },
    /// A value that a setting of ours cannot have.
    Invalid {
        /// PostgreSQL's words for it.
        what: String,
    },
}

impl PromiseError {
    /// As the client reads it.
    pub fn report(&self) -> Report {
        match self {
            Self::AfterLost { after, why, term } => after_lost(after, *why, *term),
            Self::AfterUnknown { after, term, waited } => {
                let what = "the position of pgtenure.after cannot be judged at present";
                error(SqlState::CANNOT_CONNECT_NOW, what)
                    .detail(format!("Token {after}; the newest term known is {term}, after {}.", millis(*waited)))
                    .hint("Retry later.")
            }
            Self::AfterHidden => {
                let what = "pgtenure.after cannot be set in a way that does not show its value together with statements that read";
                error(SqlState::FEATURE_NOT_SUPPORTED, what)
                    .hint("Set it by itself, before them, or by SET or set_config to a literal.")
            }
            Self::WriteLost { lost, ago } => write_lost(lost, *ago),
            Self::ReadLost { lost, ago } => read_lost(lost, *ago),
            Self::Unproven { node, term, waited, why } => {
                let what = "it cannot be proved at present that the server is still the primary";
                error(SqlState::CANNOT_CONNECT_NOW, what)
                    .detail(format!("Server {node}, primary in term {term}, was asked for {}: {why}.", millis(*waited)))
                    .hint("Retry later, or choose another pgtenure.consistency.")
            }
            Self::Late { name, to } => {
                let what = format!("{name} cannot become \"{to}\" in this transaction block");
                error(SqlState::FEATURE_NOT_SUPPORTED, what)
                    .detail(
                        "A server is proven to be the primary before BEGIN, and the session keeps its server."
                            .to_owned(),
                    )
                    .hint("Set it before BEGIN.")
            }
            Self::Invalid { what } => error(SqlState::INVALID_PARAMETER_VALUE, what.clone()),
        }
    }
}

/// Whoever wrote up to there was acknowledged, perhaps, and must look: as for a COMMIT whose outcome is unknown.
fn after_lost(after: &After, why: Gone, term: Term) -> Report {
    let why = match why {
        Gone::Fork(fork) => format!("lies past {fork}, where a later term left its timeline"),
        Gone::Lineage => format!("is of a timeline that is not known to be an ancestor of term {term}"),
        Gone::End(end) => format!("lies past {end}, where the WAL of term {term} ended when the primary was asked"),
        Gone::OtherCluster(ours) => {
            return error(SqlState::INVALID_PARAMETER_VALUE, "the token of pgtenure.after is of another cluster")
                .detail(format!("Token {after} has another system identifier than this cluster, {ours}."))
                .hint("Set pgtenure.after to a token of this cluster, or RESET it.");
        }
    };
    error(SqlState::TRANSACTION_RESOLUTION_UNKNOWN, "the write that pgtenure.after names may have been lost")
        .detail(format!("Token {after} {why}."))
        .hint("Check whether its effects are there, then RESET pgtenure.after.")
}

/// Who goes on from what was read must look, too.
fn read_lost(lost: &LostRead, ago: Duration) -> Report {
    let LostRead { node, term, fork, open, .. } = lost;
    let by = node.as_ref().map_or_else(|| "standbys".to_owned(), |node| format!("standby {node}"));
    error(SqlState::TRANSACTION_RESOLUTION_UNKNOWN, "what this session has read may have been lost")
        .detail(format!("It was shown by {by} in term {term}, {} ago; {}.", millis(ago), holds(*open, *fork)))
        .hint("This statement was not executed. What was read may never have been acknowledged to anybody.")
}

/// How much a later term has.
fn holds(open: Term, fork: Option<Lsn>) -> String {
    match fork {
        Some(fork) => format!("term {open}, which is open now, has that term's WAL only up to {fork}"),
        None => format!("term {open}, which is open now, is not known to have that term's WAL"),
    }
}

/// It was acknowledged: whoever goes on from it must look, as above.
fn write_lost(lost: &LostWrite, ago: Duration) -> Report {
    let LostWrite { term, fork, before, open, .. } = lost;
    let holds = holds(*open, *fork);
    let at = before.map_or_else(String::new, |before| format!("; its commit lies before {before}"));
    error(SqlState::TRANSACTION_RESOLUTION_UNKNOWN, "a write of this session may have been lost")
        .detail(format!("Its commit was acknowledged in term {term}, {} ago; {holds}{at}.", millis(ago)))
        .hint("This statement was not executed. Check whether the effects of earlier ones are there.")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lost(fork: Option<Lsn>, before: Option<Lsn>) -> LostWrite {
        LostWrite { term: Term(3), at: cluster::Instant::from_millis(1), fork, before, open: Term(4) }
    }

    #[test]
    fn every_refusal_has_its_words() {
        let after: After = "3-3-0/16B3748".parse().unwrap();
        for (error, want) in [
            (
                PromiseError::AfterLost { after, why: Gone::Fork(Lsn(0x16B_0000)), term: Term(4) },
                "ERROR 08007 the write that pgtenure.after names may have been lost | Token 3-3-0/16B3748 lies past 0/16B0000, where a later term left its timeline. | Check whether its effects are there, then RESET pgtenure.after.",
            ),
            (
                PromiseError::AfterLost { after, why: Gone::End(Lsn(0x16B_0000)), term: Term(3) },
                "ERROR 08007 the write that pgtenure.after names may have been lost | Token 3-3-0/16B3748 lies past 0/16B0000, where the WAL of term 3 ended when the primary was asked. | Check whether its effects are there, then RESET pgtenure.after.",
            ),
            (
                PromiseError::AfterLost { after, why: Gone::OtherCluster(42), term: Term(4) },
                "ERROR 22023 the token of pgtenure.after is of another cluster | Token 3-3-0/16B3748 has another system identifier than this cluster, 42. | Set pgtenure.after to a token of this cluster, or RESET it.",
            ),
            (
                PromiseError::AfterLost { after, why: Gone::Lineage, term: Term(4) },
                "ERROR 08007 the write that pgtenure.after names may have been lost | Token 3-3-0/16B3748 is of a timeline that is not known to be an ancestor of term 4. | Check whether its effects are there, then RESET pgtenure.after.",
            ),
            (
                PromiseError::AfterUnknown { after, term: Term(2), waited: Duration::from_secs(30) },
                "ERROR 57P03 the position of pgtenure.after cannot be judged at present | Token 3-3-0/16B3748; the newest term known is 2, after 30000 ms. | Retry later.",
            ),
            (
                PromiseError::AfterHidden,
                "ERROR 0A000 pgtenure.after cannot be set in a way that does not show its value together with statements that read |  | Set it by itself, before them, or by SET or set_config to a literal.",
            ),
            (
                PromiseError::WriteLost {
                    lost: lost(Some(Lsn(0x16B_0000)), Some(Lsn(0x16B_3748))),
                    ago: Duration::from_millis(70),
                },
                "ERROR 08007 a write of this session may have been lost | Its commit was acknowledged in term 3, 70 ms ago; term 4, which is open now, has that term's WAL only up to 0/16B0000; its commit lies before 0/16B3748. | This statement was not executed. Check whether the effects of earlier ones are there.",
            ),
            (
                PromiseError::WriteLost { lost: lost(None, None), ago: Duration::from_millis(70) },
                "ERROR 08007 a write of this session may have been lost | Its commit was acknowledged in term 3, 70 ms ago; term 4, which is open now, is not known to have that term's WAL. | This statement was not executed. Check whether the effects of earlier ones are there.",
            ),
            (
                PromiseError::ReadLost {
                    lost: LostRead {
                        node: Some("n3".parse().unwrap()),
                        term: Term(3),
                        at: cluster::Instant::from_millis(1),
                        fork: Some(Lsn(0x16B_0000)),
                        open: Term(4),
                    },
                    ago: Duration::from_millis(70),
                },
                "ERROR 08007 what this session has read may have been lost | It was shown by standby n3 in term 3, 70 ms ago; term 4, which is open now, has that term's WAL only up to 0/16B0000. | This statement was not executed. What was read may never have been acknowledged to anybody.",
            ),
            (
                PromiseError::Unproven {
                    node: "n1".parse().unwrap(),
                    term: Term(7),
                    waited: Duration::from_secs(2),
                    why: "odd".into(),
                },
                "ERROR 57P03 it cannot be proved at present that the server is still the primary | Server n1, primary in term 7, was asked for 2000 ms: odd. | Retry later, or choose another pgtenure.consistency.",
            ),
            (
                PromiseError::Late { name: "pgtenure.consistency", to: "strong".into() },
                "ERROR 0A000 pgtenure.consistency cannot become \"strong\" in this transaction block | A server is proven to be the primary before BEGIN, and the session keeps its server. | Set it before BEGIN.",
            ),
            (PromiseError::Invalid { what: "odd".into() }, "ERROR 22023 odd |  | "),
        ] {
            let r = error.report();
            let (severity, detail, hint) = (r.severity.as_str(), r.detail.unwrap_or_default(), r.hint.unwrap_or(""));
            assert_eq!(format!("{severity} {} {} | {detail} | {hint}", r.sqlstate, r.message), want);
        }
    }
}
