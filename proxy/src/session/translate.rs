//! A unit as one particular server must read it: statement names are the shared ones, and what the server lacks is
//! prepared on the way.

use crate::session::batch::Unit;
use crate::session::relay::{Entry, Kind, Relay, Undo};
use crate::session::statements::{ClientStatements, Named, ServerStatements, Text, Texts, Unnamed, server_name};
use crate::sql::Statement;
use crate::wire::codec::{Sink, head, message};
use crate::wire::error_response::ClientError;
use crate::wire::frontend::{self, Subject, write_bind, write_parse, write_subject};
use std::rc::Rc;

/// A statement that no server has: binding it fails, which puts the server where the client believes it to be.
const REFUSED: &[u8] = b"pgtenure_refused";

/// Both ends' statements and the limits in force.
pub struct Translator<'a> {
    /// The client's.
    pub client: &'a mut ClientStatements,
    /// The server's.
    pub server: &'a mut ServerStatements,
    /// The worker's.
    pub texts: &'a mut Texts,
    /// What is owed.
    pub relay: &'a mut Relay,
    /// `proxy.prepared_statement_bytes`.
    pub statement_bytes: usize,
    /// Longest unnamed text that is kept, bytes.
    pub unnamed_bytes: usize,
}

impl Translator<'_> {
    /// Write `unit`, the first bytes of `input`, to `sink`, and note what is owed. `classes` are what [`scan`] found
    /// its Parse and Query messages to do. True when the rest of its last message must be thrown away.
    ///
    /// [`scan`]: crate::session::batch::scan
    pub fn unit(&mut self, input: &[u8], unit: &Unit, classes: &[Statement], sink: &mut Sink) -> bool {
        let (mut at, mut classes, mut refused) = (0, classes.iter(), false);
        while at < unit.len {
            let head = head(&input[at..]).ok().flatten().expect("scan has read this head");
            let end = (at + head.total).min(unit.len);
            let span = at..end;
            let frame = &input[span.clone()];
            match head.kind {
                b'P' => {
                    let class = *classes.next().expect("scan classified each Parse");
                    self.parse(input, span, head.total, class, sink);
                }
                b'B' => refused = self.bind(input, span, head.total, sink),
                b'D' => self.describe(input, span, sink),
                b'C' => self.close(input, span, sink),
                b'E' => {
                    sink.pass(input, span);
                    self.relay.push(Entry::plain(Kind::Execute));
                }
                b'S' | b'Q' | b'F' => {
                    if head.kind == b'Q' {
                        classes.next();
                        // A simple query destroys the unnamed statement.
                        (self.client.unnamed, self.server.unnamed) = (None, None);
                    }
                    sink.pass(input, span);
                    let kind = match head.kind {
                        b'S' => Kind::Sync,
                        b'Q' => Kind::Query,
                        _ => Kind::Function,
                    };
                    self.relay.open = None;
                    self.relay.push(Entry { record: Some(unit.record), ..Entry::plain(kind) });
                }
                b'H' => sink.pass(input, span),
                // Copy messages outside a COPY, which the server would ignore.
                _ => debug_assert!(frame.len() <= head.total, "frames end with the unit at the latest"),
            }
            at = end;
        }
        if !unit.complete {
            self.relay.open = Some(unit.record);
        }
        if unit.forgets {
            self.client.clear();
            self.server.clear();
        }
        refused && unit.tail_left > 0
    }

    fn parse(&mut self, input: &[u8], span: std::ops::Range<usize>, total: usize, class: Statement, sink: &mut Sink) {
        if span.len() < total {
            // Too long to be kept; scan lets only the unnamed statement through.
            sink.pass(input, span);
            return self.unnamed(None, class);
        }
        let p = frontend::parse(&input[span.clone()]).expect("scan has read this Parse");
        if p.name.is_empty() {
            sink.pass(input, span);
            let keep = p.tail.len() <= self.unnamed_bytes;
            return self.unnamed(keep.then_some(p.tail), class);
        }
        if self.client.named(p.name).is_some() {
            return self.refuse(input, ClientError::DuplicateStatement { name: lossy(p.name) }, sink);
        }
        if self.client.bytes() + p.name.len() + p.tail.len() > self.statement_bytes {
            let limit = self.statement_bytes as u64;
            return self.refuse(input, ClientError::StatementBytes { limit }, sink);
        }
        let text = self.texts.intern(p.tail);
        self.client.insert(p.name, Named { text: text.clone(), class });
        if self.server.has(text.id) {
            let undo = Undo::Registered(p.name.into());
            self.relay.push(Entry { undo, ..Entry::plain(Kind::LocalParse) });
        } else {
            self.prepare(input, &text, Some(p.name), sink);
        }
    }

    fn unnamed(&mut self, tail: Option<&[u8]>, class: Statement) {
        let serial = self.texts.fresh_id();
        // The last one's buffer is used again: no allocation per statement.
        let spare = self.client.unnamed.take().and_then(|u| u.tail);
        let tail = tail.map(|tail| {
            let mut kept = spare.unwrap_or_default();
            kept.clear();
            kept.extend_from_slice(tail);
            kept
        });
        self.client.unnamed = Some(Unnamed { serial, tail, class });
        self.server.unnamed = Some(serial);
        self.relay.push(Entry { undo: Undo::Unnamed, ..Entry::plain(Kind::Parse) });
    }

    /// Write a Parse for a text under its shared name; hidden when the client has not asked for it here.
    fn prepare(&mut self, input: &[u8], text: &Rc<Text>, name: Option<&[u8]>, sink: &mut Sink) {
        let out = sink.insert(input);
        if let Some(oldest) = self.server.insert(text.id) {
            write_subject(out, b'C', &server_name(oldest));
            self.relay.push(Entry { hidden: true, ..Entry::plain(Kind::Close) });
        }
        write_parse(out, &text.server_name, &text.tail);
        let undo = Undo::Prepared(text.clone(), name.map(Into::into));
        self.relay.push(Entry { hidden: name.is_none(), undo, ..Entry::plain(Kind::Parse) });
    }

    fn bind(&mut self, input: &[u8], span: std::ops::Range<usize>, total: usize, sink: &mut Sink) -> bool {
        let b = frontend::bind(&input[span.clone()]).expect("scan has read these names");
        if b.statement.is_empty() {
            if !self.ensure_unnamed(input, sink) {
                self.refuse(input, ClientError::UnknownStatement { name: String::new() }, sink);
                return true;
            }
            sink.pass(input, span);
        } else {
            let Some(text) = self.client.named(b.statement).map(|n| n.text.clone()) else {
                self.refuse(input, ClientError::UnknownStatement { name: lossy(b.statement) }, sink);
                return true;
            };
            self.ensure(input, &text, sink);
            write_bind(sink.insert(input), &input[span], &b, total, &text.server_name);
        }
        self.relay.push(Entry::plain(Kind::Bind));
        false
    }

    fn describe(&mut self, input: &[u8], span: std::ops::Range<usize>, sink: &mut Sink) {
        match frontend::subject(&input[span.clone()]).expect("scan has read this Describe") {
            Subject::Portal(_) => {
                sink.pass(input, span);
                self.relay.push(Entry::plain(Kind::DescribePortal));
            }
            Subject::Statement(b"") => {
                if !self.ensure_unnamed(input, sink) {
                    return self.refuse(input, ClientError::UnknownStatement { name: String::new() }, sink);
                }
                sink.pass(input, span);
                self.relay.push(Entry::plain(Kind::DescribeStatement));
            }
            Subject::Statement(name) => {
                let Some(text) = self.client.named(name).map(|n| n.text.clone()) else {
                    return self.refuse(input, ClientError::UnknownStatement { name: lossy(name) }, sink);
                };
                self.ensure(input, &text, sink);
                write_subject(sink.insert(input), b'D', &text.server_name);
                self.relay.push(Entry::plain(Kind::DescribeStatement));
            }
        }
    }

    fn close(&mut self, input: &[u8], span: std::ops::Range<usize>, sink: &mut Sink) {
        match frontend::subject(&input[span.clone()]).expect("scan has read this Close") {
            Subject::Statement(name) if !name.is_empty() => {
                // The shared statement stays on the server; closing an unknown one is no error.
                let undo = self.client.remove(name).map_or(Undo::None, |old| Undo::Removed(name.into(), old));
                self.relay.push(Entry { undo, ..Entry::plain(Kind::LocalClose) });
            }
            Subject::Statement(_) => {
                (self.client.unnamed, self.server.unnamed) = (None, None);
                sink.pass(input, span);
                self.relay.push(Entry::plain(Kind::Close));
            }
            Subject::Portal(_) => {
                sink.pass(input, span);
                self.relay.push(Entry::plain(Kind::Close));
            }
        }
    }

    fn ensure(&mut self, input: &[u8], text: &Rc<Text>, sink: &mut Sink) {
        if !self.server.has(text.id) {
            self.prepare(input, text, None, sink);
        }
    }

    /// False when the client has no unnamed statement, or it is lost.
    fn ensure_unnamed(&mut self, input: &[u8], sink: &mut Sink) -> bool {
        let Some(unnamed) = &self.client.unnamed else { return false };
        if self.server.unnamed == Some(unnamed.serial) {
            return true;
        }
        let Some(tail) = &unnamed.tail else { return false };
        write_parse(sink.insert(input), b"", tail);
        self.server.unnamed = Some(unnamed.serial);
        self.relay.push(Entry { hidden: true, ..Entry::plain(Kind::Parse) });
        true
    }

    /// Make the server fail here, and report `error` for it.
    fn refuse(&mut self, input: &[u8], error: ClientError, sink: &mut Sink) {
        message(sink.insert(input), b'B', |b| {
            b.push(0);
            b.extend_from_slice(REFUSED);
            b.extend_from_slice(&[0; 7]);
        });
        self.relay.push(Entry { refusal: Some(Box::new(error)), ..Entry::plain(Kind::Bind) });
    }
}

fn lossy(name: &[u8]) -> String {
    String::from_utf8_lossy(name).into_owned()
}

#[cfg(test)]
#[path = "translate_tests.rs"]
mod tests;
