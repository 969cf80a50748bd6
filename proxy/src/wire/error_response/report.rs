//! An error as a client reads it, and its bytes.

use crate::wire::sqlstate::SqlState;
use std::time::Duration;

/// ERROR or FATAL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// The statement failed; the connection goes on.
    Error,
    /// The connection is closed after this.
    Fatal,
}

impl Severity {
    /// The word on the wire, in the unlocalised form.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Error => "ERROR",
            Self::Fatal => "FATAL",
        }
    }
}

/// An error as the client reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// ERROR or FATAL.
    pub severity: Severity,
    /// The code.
    pub sqlstate: SqlState,
    /// One short phrase.
    pub message: String,
    /// Facts and numbers.
    pub detail: Option<String>,
    /// Advice.
    pub hint: Option<&'static str>,
    /// The routine of PostgreSQL that says the same there: drivers know some errors by nothing else.
    pub routine: Option<&'static str>,
    /// It is for a client before protocol 3, which could not read it in another form than its own.
    pub old: bool,
}

impl Report {
    pub(in crate::wire) fn detail(self, detail: String) -> Self {
        Self { detail: Some(detail), ..self }
    }

    pub(in crate::wire) fn hint(self, hint: &'static str) -> Self {
        Self { hint: Some(hint), ..self }
    }

    pub(in crate::wire) fn routine(self, routine: &'static str) -> Self {
        Self { routine: Some(routine), ..self }
    }

    /// Append an ErrorResponse message. A NUL inside a text would end its field early and shift the rest, so it is
    /// left out.
    pub fn encode(&self, out: &mut Vec<u8>) {
        if self.old {
            // A line of text, and nothing that tells its length.
            return out.extend_from_slice(format!("E{}:  {}\n\0", self.severity.as_str(), self.message).as_bytes());
        }
        let start = out.len();
        out.extend_from_slice(b"E\0\0\0\0");
        let mut field = |code: u8, text: &str| {
            out.push(code);
            out.extend(text.bytes().filter(|b| *b != 0));
            out.push(0);
        };
        field(b'S', self.severity.as_str());
        field(b'V', self.severity.as_str());
        field(b'C', self.sqlstate.as_str());
        field(b'M', &self.message);
        if let Some(detail) = &self.detail {
            field(b'D', detail);
        }
        if let Some(hint) = self.hint {
            field(b'H', hint);
        }
        if let Some(routine) = self.routine {
            field(b'R', routine);
        }
        out.push(0);
        let length = u32::try_from(out.len() - start - 1).expect("a few short texts are far below 4 GiB");
        out[start + 1..start + 5].copy_from_slice(&length.to_be_bytes());
    }
}

pub(in crate::wire) fn error(sqlstate: SqlState, message: impl Into<String>) -> Report {
    let (severity, message) = (Severity::Error, message.into());
    Report { severity, sqlstate, message, detail: None, hint: None, routine: None, old: false }
}

pub(in crate::wire) fn fatal(sqlstate: SqlState, message: impl Into<String>) -> Report {
    Report { severity: Severity::Fatal, ..error(sqlstate, message) }
}

pub(in crate::wire) fn millis(d: Duration) -> String {
    format!("{} ms", d.as_millis())
}
