//! What a statement does, as far as its text tells: may a standby run it, does it begin or end a transaction, does it
//! leave something behind in the session.
//!
//! Purely lexical, with the server's own function volatility: one pass, no grammar, no regular expressions. Whatever
//! is not recognised is a write, so an error here costs a read its standby and never sends a write to one. What only
//! the server can know (a volatile function behind a view, an operator or a cast) is caught by the standby's own
//! refusal, SQLSTATE 25006.

mod alone;
mod aside;
mod bodies;
mod callers;
mod classify;
mod effects;
mod ends;
mod fingerprint;
mod function_name;
mod functions;
mod keyword;
mod lexer;
mod loose;
mod modes;
mod named;
mod parameters;
mod pin;
mod reading;
mod recall;
mod redefines;
mod spliced;
mod touched;

pub use alone::alone_in;
pub use aside::{changes_rows, first_words, keeps_read_only, only_configures, only_sets, sets_aside, statements};
pub use bodies::{BodyRow, MAX_CALLS, RelationRow};
pub use callers::{Callers, Hidden};
pub use classify::{Leaves, LongText, Why, classify, first_of, why};
pub use fingerprint::fingerprint;
pub use function_name::{FunctionName, FunctionNameError};
pub use functions::{FunctionRow, FunctionTable, HARMLESS, Volatility, is_primary_only};
#[cfg(test)]
pub(crate) use lexer::read_by_lexers;
pub use modes::{Isolation, Modes};
pub use named::{Name, about_names, deallocated, executed, fetches, prepared};
pub use parameters::{highest_parameter, parameters};
pub use pin::{PinReason, Pins};
pub use reading::{sets_plainly, tells};
pub use recall::Recall;
pub use redefines::redefines;
pub use touched::Touched;

/// A statement, or a string of several, as the proxy sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Statement {
    /// May a standby run it?
    pub access: Access,
    /// It only reads, be it what only the primary has.
    pub quiet: bool,
    /// It calls what may have been made since the functions were read, and may leave anything in the session.
    pub strange: bool,
    /// What it does to the transaction block, by its text. Only ReadyForQuery tells what it really did.
    pub control: Control,
    /// It contains COMMIT, END or PREPARE TRANSACTION, or cannot be read well enough to exclude them.
    pub may_commit: bool,
    /// What it leaves in the session that only this server has. [`PinReason::Set`] means that settings may have
    /// changed, whatever the transaction comes to.
    pub pins: Pins,
    /// It may end what bound the session to its server.
    pub unpins: bool,
    /// It locks or unlocks an advisory lock: those of a standby are others than the primary's.
    pub advisory: bool,
    /// It may name a setting of the proxy's own or `synchronous_commit`, by SHOW, SET, `current_setting` or `set_config`,
    /// or in what it defines.
    pub ours: bool,
    /// Not proven to read, and yet a standby may run it within a READ ONLY block: it sets what does not decide what
    /// transactions may do, or declares a cursor for what is proven to read.
    pub aside: bool,
    /// What it may set for its transaction only.
    pub local: Local,
    /// What it does with prepared statements by their names.
    pub names: Names,
}

/// What a text may set for its transaction only: by SET LOCAL, or by `set_config` with `true`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Local {
    /// Nothing.
    #[default]
    Nothing,
    /// What its words name.
    Named,
    /// What its words do not tell, by which texts are read.
    Hidden,
}

/// What a text does with prepared statements by their names, as SQL has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Names {
    /// Nothing.
    None,
    /// It is one PREPARE.
    Prepare,
    /// It is one EXECUTE: alone, explained, or as what a table is created from.
    Execute {
        /// Its own words write nothing: a standby may run it if that may run the statement.
        plain: bool,
    },
    /// It is one DEALLOCATE of one statement.
    Deallocate,
    /// It is one DEALLOCATE ALL or DISCARD ALL.
    All,
    /// It uses some, which are not found out.
    Several,
    /// It shows all that there are.
    List,
    /// It may make or drop some, which are not found out.
    Unknown,
}

/// May a standby run it?
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Access {
    /// Proven to write nothing.
    Read,
    /// Not proven read-only.
    Write,
}

/// What a statement does to the transaction block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Control {
    /// Nothing.
    None,
    /// No statement at all: blanks and comments. The server answers EmptyQueryResponse.
    Empty,
    /// BEGIN or START TRANSACTION.
    Begin(Modes),
    /// SET TRANSACTION, but not of a snapshot.
    SetTransaction(Modes),
    /// COMMIT or END.
    Commit {
        /// `AND CHAIN`.
        chain: bool,
    },
    /// ROLLBACK or ABORT of the whole block.
    Rollback {
        /// `AND CHAIN`.
        chain: bool,
    },
    /// SAVEPOINT.
    Savepoint,
    /// ROLLBACK TO SAVEPOINT.
    RollbackTo,
    /// RELEASE SAVEPOINT.
    Release,
    /// PREPARE TRANSACTION.
    PrepareTransaction,
    /// COMMIT PREPARED or ROLLBACK PREPARED: never inside a block.
    FinishPrepared,
    /// DEALLOCATE of one SQL-level statement.
    Deallocate,
    /// DEALLOCATE ALL: protocol-level statements go too.
    DeallocateAll,
    /// DISCARD ALL: the session is as new.
    DiscardAll,
    /// DISCARD PLANS, SEQUENCES or TEMP.
    Discard,
    /// Several statements in one string.
    Multi {
        /// One of them is BEGIN, START TRANSACTION or AND CHAIN, or the string cannot be read well enough to exclude it.
        begins: bool,
        /// One of them is COMMIT, ROLLBACK or PREPARE TRANSACTION, or that cannot be excluded.
        ends: bool,
        /// One of them is ROLLBACK TO SAVEPOINT, or that cannot be excluded.
        revives: bool,
        /// The last of them that begins or ends a block is known, and ends it.
        over: bool,
    },
}

/// What the server reported that changes how its lexer reads a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LexRules {
    /// `standard_conforming_strings = on`: a backslash in a plain literal is just a backslash.
    pub standard_conforming_strings: bool,
    /// No byte below 0x80 is ever part of a longer character, as in UTF8 and LATIN1; false for SJIS, BIG5, GBK, UHC,
    /// GB18030, JOHAB and SHIFT_JIS_2004.
    pub ascii_safe_encoding: bool,
    /// The client writes UTF-8.
    pub client_utf8: bool,
    /// The database is in UTF-8.
    pub server_utf8: bool,
}

impl LexRules {
    /// What every server starts with unless it says otherwise.
    pub const STANDARD: Self =
        Self { standard_conforming_strings: true, ascii_safe_encoding: true, client_utf8: true, server_utf8: true };

    /// The same where the server has reported a setting.
    pub fn learn(&mut self, name: &str, value: &str) {
        match name {
            "standard_conforming_strings" => self.standard_conforming_strings = value == "on",
            "client_encoding" => {
                self.ascii_safe_encoding = Self::encoding_is_ascii_safe(value);
                self.client_utf8 = value.eq_ignore_ascii_case("UTF8");
            }
            "server_encoding" => self.server_utf8 = value.eq_ignore_ascii_case("UTF8"),
            _ => {}
        }
    }

    /// Is a `client_encoding`, as the server reports it, safe to scan as ASCII? Unknown names are not.
    /// Source: PostgreSQL documentation, "Character Set Support": those not allowed as server encodings.
    pub fn encoding_is_ascii_safe(client_encoding: &str) -> bool {
        // Their Windows names are aliases; servers report the canonical ones, but nothing is lost by naming both.
        const UNSAFE: [&str; 11] = [
            "SJIS",
            "SHIFT_JIS_2004",
            "BIG5",
            "GBK",
            "UHC",
            "GB18030",
            "JOHAB",
            "WIN932",
            "WIN936",
            "WIN949",
            "WIN950",
        ];
        const SAFE_PREFIXES: [&str; 8] = ["UTF8", "SQL_ASCII", "LATIN", "WIN", "ISO_8859", "KOI8", "EUC", "MULE"];
        !UNSAFE.contains(&client_encoding) && SAFE_PREFIXES.iter().any(|p| client_encoding.starts_with(p))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encodings_with_ascii_second_bytes_are_unsafe() {
        for bad in ["SJIS", "BIG5", "GBK", "UHC", "GB18030", "JOHAB", "SHIFT_JIS_2004", "", "KLINGON"] {
            assert!(!LexRules::encoding_is_ascii_safe(bad), "{bad}");
        }
        for good in ["UTF8", "LATIN1", "LATIN10", "WIN1252", "SQL_ASCII", "EUC_JIS_2004", "ISO_8859_5", "KOI8R"] {
            assert!(LexRules::encoding_is_ascii_safe(good), "{good}");
        }
    }
}
