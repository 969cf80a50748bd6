//! What a client sends, message by message.

use proxy::wire::codec::{cstring, message};

/// The type `int4`.
pub const INT4: u32 = 23;
/// The type `text`.
pub const TEXT: u32 = 25;

/// A part of a script.
#[derive(Clone, Debug)]
pub enum Step {
    /// One message.
    Send(Vec<u8>),
    /// When messages are sent one at a time: so many answers must come before the next is sent.
    Await(usize),
}

/// A sequence of messages that a session can be sent again and again.
#[derive(Clone, Debug)]
pub struct Script {
    pub name: String,
    pub steps: Vec<Step>,
}

impl Script {
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), steps: Vec::new() }
    }

    /// The messages, for a person to read.
    pub fn in_words(&self) -> String {
        let line = |s: &Step| match s {
            Step::Send(bytes) => format!("  {} {}", bytes[0] as char, bytes[5..].escape_ascii()),
            Step::Await(n) => format!("  ({n} answers)"),
        };
        self.steps.iter().map(line).collect::<Vec<_>>().join("\n")
    }

    /// All messages in one piece.
    pub fn bytes(&self) -> Vec<u8> {
        let sent = self.steps.iter().filter_map(|s| match s {
            Step::Send(bytes) => Some(bytes.as_slice()),
            Step::Await(_) => None,
        });
        sent.collect::<Vec<_>>().concat()
    }

    /// That many answers come now, without a further message.
    pub fn answers(mut self, n: usize) -> Self {
        self.steps.push(Step::Await(n));
        self
    }

    pub fn raw(mut self, kind: u8, body: impl FnOnce(&mut Vec<u8>)) -> Self {
        let mut out = Vec::new();
        message(&mut out, kind, body);
        self.steps.push(Step::Send(out));
        self
    }

    pub fn query(self, sql: impl AsRef<[u8]>) -> Self {
        self.raw(b'Q', |b| cstring(b, sql.as_ref()))
    }

    pub fn parse(self, statement: &str, sql: impl AsRef<[u8]>, types: &[u32]) -> Self {
        self.raw(b'P', |b| {
            cstring(b, statement.as_bytes());
            cstring(b, sql.as_ref());
            b.extend((types.len() as u16).to_be_bytes());
            types.iter().for_each(|t| b.extend(t.to_be_bytes()));
        })
    }

    /// Text parameters and results.
    pub fn bind(self, portal: &str, statement: &str, parameters: &[Option<&str>]) -> Self {
        let parameters: Vec<_> = parameters.iter().map(|p| p.map(str::as_bytes)).collect();
        self.bind_as(portal, statement, &[], &parameters, &[])
    }

    pub fn bind_as(
        self,
        portal: &str,
        statement: &str,
        formats: &[u16],
        parameters: &[Option<&[u8]>],
        results: &[u16],
    ) -> Self {
        let list = |b: &mut Vec<u8>, formats: &[u16]| {
            b.extend((formats.len() as u16).to_be_bytes());
            formats.iter().for_each(|f| b.extend(f.to_be_bytes()));
        };
        self.raw(b'B', |b| {
            cstring(b, portal.as_bytes());
            cstring(b, statement.as_bytes());
            list(b, formats);
            b.extend((parameters.len() as u16).to_be_bytes());
            for p in parameters {
                b.extend(p.map_or(-1, |p| p.len() as i32).to_be_bytes());
                b.extend(p.unwrap_or_default());
            }
            list(b, results);
        })
    }

    pub fn execute(self, portal: &str, max_rows: u32) -> Self {
        self.raw(b'E', |b| {
            cstring(b, portal.as_bytes());
            b.extend(max_rows.to_be_bytes());
        })
    }

    pub fn describe(self, kind: u8, name: &str) -> Self {
        self.subject(b'D', kind, name)
    }

    pub fn close(self, kind: u8, name: &str) -> Self {
        self.subject(b'C', kind, name)
    }

    fn subject(self, what: u8, kind: u8, name: &str) -> Self {
        self.raw(what, |b| {
            b.push(kind);
            cstring(b, name.as_bytes());
        })
    }

    pub fn sync(self) -> Self {
        self.raw(b'S', |_| {})
    }

    pub fn flush(self) -> Self {
        self.raw(b'H', |_| {})
    }

    pub fn copy_data(self, data: &[u8]) -> Self {
        self.raw(b'd', |b| b.extend(data))
    }

    pub fn copy_done(self) -> Self {
        self.raw(b'c', |_| {})
    }

    pub fn copy_fail(self, why: &str) -> Self {
        self.raw(b'f', |b| cstring(b, why.as_bytes()))
    }

    /// FunctionCall with text arguments and result.
    pub fn function(self, oid: u32, arguments: &[&str]) -> Self {
        self.raw(b'F', |b| {
            b.extend(oid.to_be_bytes());
            b.extend(0u16.to_be_bytes());
            b.extend((arguments.len() as u16).to_be_bytes());
            for a in arguments {
                b.extend((a.len() as u32).to_be_bytes());
                b.extend(a.as_bytes());
            }
            b.extend(0u16.to_be_bytes());
        })
    }

    /// Parse, Bind and Execute of the unnamed statement.
    pub fn run(self, sql: impl AsRef<[u8]>, parameters: &[Option<&str>]) -> Self {
        self.parse("", sql, &[]).bind("", "", parameters).execute("", 0)
    }
}
