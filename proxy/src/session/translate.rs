//! A unit as one particular server must read it: statement names are the shared ones, and what the server lacks is
//! prepared on the way.

mod fits;
mod named;

use crate::session::batch::Unit;
use crate::session::relay::{Entry, Kind, Relay, Undo, Use};
use crate::session::statements::{ClientStatements, Named, ServerStatements, Source, Text, Texts, Unnamed};
use crate::sql::{Control, Names, Statement, fetches};
use crate::wire::backend::TxStatus;
use crate::wire::codec::{Sink, head, message, split_cstring};
use crate::wire::error_response::ClientError;
use crate::wire::frontend::{self, Subject, write_bind, write_parse, write_subject};
use std::ops::Range;
use std::rc::Rc;

/// A statement that no server has: binding it fails, which puts the server where the client believes it to be.
const REFUSED: &[u8] = b"pgtenure_refused";

/// Whose names a server's statements have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Naming {
    /// Ours: the same text has one name for all clients that agree on its meaning.
    Shared {
        /// Equal for clients that agree on what a text means.
        parse_key: u64,
        /// The client has statements there that are not followed: names that we do not know may be theirs.
        sql: bool,
    },
    /// The client's: the server is its alone.
    Own,
}

/// What was done with named statements, for `SHOW STATS`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// Prepared by the client.
    pub client_parses: u64,
    /// Prepared on the server, whether the client had asked for it here or not.
    pub server_parses: u64,
    /// Bound.
    pub binds: u64,
}

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
    /// What the client's may take now, bytes,
    pub statement_bytes: usize,
    /// and what they may usually: `proxy.prepared_statement_bytes`.
    pub usual_statement_bytes: usize,
    /// `proxy.server_statement_bytes`.
    pub server_bytes: usize,
    /// Longest unnamed text that is kept, bytes.
    pub unnamed_bytes: usize,
    /// Whose names the server's statements have.
    pub naming: Naming,
    /// The classifier, as the session reads its texts.
    pub classify: &'a dyn Fn(&[u8]) -> Statement,
    /// What was done, for who asks afterwards.
    pub done: &'a mut Done,
    /// The unit stays in a block that has failed, where nothing can be prepared.
    pub failed: bool,
}

impl Translator<'_> {
    /// Write `unit`, the first bytes of `input`, to `sink`, and note what is owed. `classes` are what [`scan`] found
    /// its Parse and Query messages to do. True when the rest of its last message must be thrown away.
    ///
    /// [`scan`]: crate::session::batch::scan
    pub fn unit(&mut self, input: &[u8], unit: &Unit, classes: &[Statement], sink: &mut Sink) -> bool {
        let (mut at, mut classes, mut refused) = (0, classes.iter(), false);
        let fails = self.relay.status == TxStatus::Failed && self.relay.owed() == 0;
        self.failed = fails && unit.record.leads_to(TxStatus::Failed) == TxStatus::Failed;
        while at < unit.len {
            let head = head(&input[at..]).ok().flatten().expect("scan has read this head");
            let end = (at + head.total).min(unit.len);
            let span = at..end;
            let frame = &input[span.clone()];
            // Of an earlier message that was refused nothing is left.
            refused = false;
            match head.kind {
                b'P' => {
                    let class = *classes.next().expect("scan classified each Parse");
                    if span.len() < head.total {
                        refused = self.long_parse(input, span, class, sink);
                    } else {
                        self.parse(input, span, class, sink);
                    }
                }
                b'B' => {
                    let by_name = unit.sql_names || !self.client.portals.is_empty();
                    if by_name && !self.bind_by_name(input, frame, sink) {
                        self.refuse_bytes(input, sink);
                        refused = true;
                    } else {
                        refused = self.bind(input, span, head.total, sink);
                    }
                }
                b'D' => self.describe(input, span, sink),
                b'C' => self.close(input, span, sink),
                b'E' => {
                    let portals = !self.client.portals.is_empty();
                    let undo = if portals { self.execute_by_name(input, frame, sink) } else { Undo::None };
                    sink.pass(input, span);
                    self.relay.push(Entry { undo, ..Entry::plain(Kind::Execute) });
                }
                b'S' | b'F' => {
                    sink.pass(input, span);
                    self.relay.open = None;
                    let kind = if head.kind == b'F' { Kind::Function } else { Kind::Sync };
                    self.relay.push(Entry { record: Some(unit.record), ..Entry::plain(kind) });
                }
                b'Q' => {
                    let class = *classes.next().expect("scan classified each Query");
                    let mut entry = Entry { record: Some(unit.record), ..Entry::plain(Kind::Query) };
                    let named = if class.names == Names::None {
                        Undo::None
                    } else {
                        let apart = at == 0 && self.relay.open.is_none();
                        self.query_by_name(input, frame, class.names, apart, &mut entry.uses, sink)
                    };
                    // A simple query destroys the unnamed statement, unless it is skipped.
                    entry.undo = self.drop_unnamed(&frame[5..]).and(named);
                    sink.pass(input, span);
                    self.relay.open = None;
                    self.relay.push(entry);
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
            self.relay.forgets();
        }
        refused && unit.tail_left > 0
    }

    /// A Parse that is too long to be kept passes as it comes, unless it has a name. True when it is refused.
    fn long_parse(&mut self, input: &[u8], span: Range<usize>, class: Statement, sink: &mut Sink) -> bool {
        let named = split_cstring(&input[span.start + 5..span.end]).is_none_or(|(name, _)| !name.is_empty());
        if named {
            self.refuse_bytes(input, sink);
        } else {
            sink.pass(input, span);
            self.unnamed(None, class);
        }
        named
    }

    fn parse(&mut self, input: &[u8], span: Range<usize>, class: Statement, sink: &mut Sink) {
        let Some(p) = frontend::parse(&input[span.clone()]) else { return self.malformed(input, span, sink) };
        if class.names != Names::None {
            // What it will result in is decided here.
            self.names_ready(input, class.names, p.sql, false, sink);
        }
        if p.name.is_empty() {
            sink.pass(input, span);
            let keep = p.tail.len() <= self.unnamed_bytes;
            return self.unnamed(keep.then_some(p.tail), class);
        }
        if let Some(known) = self.client.named(p.name) {
            // The server finds what else is wrong with the text before it finds the name taken.
            let (text, taken) = (known.text.clone(), ClientError::DuplicateStatement { name: lossy(p.name) });
            if self.server.has(text.id) {
                write_parse(sink.insert(input), &text.server_name, p.tail);
                let refusal = Some(Box::new(taken));
                return self.relay.push(Entry { refusal, ..Entry::plain(Kind::Parse) });
            }
            // Nor does it lack what it says of it besides. An empty statement can always be prepared.
            let stand_in = self.texts.single(&[0; 3], 0);
            self.prepare(input, &stand_in, None, false, sink);
            write_parse(sink.insert(input), &stand_in.server_name, p.tail);
            let refusal = Some(Box::new(taken));
            return self.relay.push(Entry { refusal, ..Entry::plain(Kind::Parse) });
        }
        if !self.client.has_room(p.name, p.tail.len(), self.statement_bytes) {
            return self.refuse_bytes(input, sink);
        }
        let text = match self.naming {
            Naming::Own => self.texts.own(p.name, p.tail),
            // It shows itself; and what is the server's alone may have the name.
            Naming::Shared { parse_key, sql } if sql || class.names == Names::List => {
                self.texts.named_once(p.name, p.tail, parse_key)
            }
            // What it means is up to what its client has under the names in it, or to its cursor.
            Naming::Shared { parse_key, .. } if class.names != Names::None || fetches(p.sql) => {
                self.texts.single(p.tail, parse_key)
            }
            Naming::Shared { parse_key, .. } if !self.may_be_refused(class) && !self.client.apart => {
                let text = self.texts.intern(p.tail, parse_key);
                // What the server says of it is for each that prepares it.
                if text.is_noticed() { self.texts.single(p.tail, parse_key) } else { text }
            }
            // In a block that has failed the server refuses it, whether the text is prepared there or not; and what it
            // means may be up to settings that are not known yet.
            Naming::Shared { parse_key, .. } => self.texts.single(p.tail, parse_key),
        };
        self.client.insert(Named::new(p.name, text.clone(), class));
        self.done.client_parses += 1;
        if self.server.has(text.id) {
            let undo = Undo::Registered(p.name.into());
            self.relay.push(Entry { undo, ..Entry::plain(Kind::LocalParse) });
        } else {
            self.prepare(input, &text, Some(p.name), false, sink);
        }
    }

    /// May the server refuse to parse a statement like this, because its block has failed or it copies?
    fn may_be_refused(&self, class: Statement) -> bool {
        let ends = matches!(
            class.control,
            Control::Commit { .. } | Control::Rollback { .. } | Control::RollbackTo | Control::PrepareTransaction
        );
        // Within a COPY it refuses all, and must see it.
        self.relay.copy_in() || self.relay.may_be_failed() && !ends && class.control != Control::Empty
    }

    fn unnamed(&mut self, tail: Option<&[u8]>, class: Statement) {
        let serial = self.texts.fresh_id();
        // An earlier one's buffer is used again: no allocation per statement.
        let spare = std::mem::take(&mut self.relay.spare);
        let tail = tail.map(|tail| {
            let mut kept = spare;
            kept.clear();
            kept.extend_from_slice(tail);
            kept
        });
        let client = Some(self.client.unnamed.replace(Unnamed { serial, tail, class }));
        let server = Some(self.server.unnamed.replace(serial));
        let undo = Undo::Unnamed { client, server, illegible: false };
        self.relay.push(Entry { undo, ..Entry::plain(Kind::Parse) });
    }

    /// The unnamed statement is destroyed by a message with this text.
    fn drop_unnamed(&mut self, text: &[u8]) -> Undo {
        let illegible = self.client.unnamed.is_some() && std::str::from_utf8(text).is_err();
        // Also when there is none: what brings one back that was sent before must not.
        let (client, server) = (self.client.unnamed.take(), self.server.unnamed.take());
        Undo::Unnamed { client: Some(client), server: Some(server), illegible }
    }

    /// Have a text prepared under its name there; hidden when the client has not asked for it here. `apart` from what
    /// is sent next, so that it fails alone.
    fn prepare(&mut self, input: &[u8], text: &Rc<Text>, name: Option<&[u8]>, apart: bool, sink: &mut Sink) {
        if text.source != Source::Shared
            && let Some(other) = self.server.holder(&text.server_name)
        {
            self.close_hidden(input, other, sink);
        }
        self.free(input, &text.server_name, sink);
        // A session's own statements are its own to close.
        let limit = if self.naming == Naming::Own { usize::MAX } else { self.server_bytes };
        for id in self.server.insert(text, limit) {
            self.close_hidden(input, id, sink);
        }
        self.done.server_parses += 1;
        let undo = Undo::Prepared(text.clone(), name.map(Into::into));
        if text.source == Source::Sql {
            return self.replay(input, text, undo, apart, sink);
        }
        write_parse(sink.insert(input), &text.server_name, &text.tail);
        self.relay.push(Entry { hidden: name.is_none(), undo, ..Entry::plain(Kind::Parse) });
        if apart {
            self.end_apart(input, sink);
        }
    }

    /// What was sent for ourselves is a unit of its own.
    fn end_apart(&mut self, input: &[u8], sink: &mut Sink) {
        frontend::write_sync(sink.insert(input));
        self.relay.push(Entry { hidden: true, ..Entry::plain(Kind::Sync) });
    }

    /// A name of ours is to be nobody's there: SQL may have given it to a statement of a client's, which has it prepared again
    /// when it comes to that.
    fn free(&mut self, input: &[u8], name: &[u8], sink: &mut Sink) {
        if let Some(of_a_client) = self.server.own_of(name) {
            self.close_hidden(input, of_a_client, sink);
        }
    }

    /// Close a statement that the server has and that nobody asks for.
    fn close_hidden(&mut self, input: &[u8], id: u64, sink: &mut Sink) {
        let Some(name) = self.server.remove(id) else { return };
        write_subject(sink.insert(input), b'C', &name);
        self.relay.push(Entry { hidden: true, undo: Undo::Closed(id, name), ..Entry::plain(Kind::Close) });
    }

    /// The text of a client's statement as this server is to have it.
    fn resolve(&mut self, name: &[u8]) -> Resolved {
        let may_be_failed = self.relay.may_be_failed();
        let Some(named) = self.client.named_mut(name) else {
            let pass = matches!(self.naming, Naming::Own | Naming::Shared { sql: true, .. });
            let unknown = || ClientError::UnknownStatement { name: lossy(name) };
            return if pass { Resolved::NotOurs } else { Resolved::Refuse(unknown()) };
        };
        let (mut before, mut foreign) = (None, false);
        let first = !std::mem::replace(&mut named.used, true);
        if let Naming::Shared { parse_key, .. } = self.naming {
            let retired = named.text.is_retired();
            if retired && !first {
                return Resolved::Refuse(ClientError::ResultChanged);
            }
            foreign = named.text.parse_key != parse_key;
            // Where it is known the server plans it anew, and says so when its columns are not those that its client may
            // know. In a block that has failed nothing can be prepared.
            let stays = (may_be_failed || !first) && self.server.has(named.text.id);
            if retired || foreign && !stays {
                foreign = false;
                let again = self.texts.again(&named.text, parse_key);
                before = Some(std::mem::replace(&mut named.text, again));
            }
        }
        let undo = before.map_or(Undo::None, |before| Undo::Moved(named.name.clone(), before));
        Resolved::Text(Use { text: named.text.clone(), name: named.name.clone(), first, foreign }, undo)
    }

    fn bind(&mut self, input: &[u8], span: Range<usize>, total: usize, sink: &mut Sink) -> bool {
        let Some(b) = frontend::bind(&input[span.clone()]) else {
            self.malformed(input, span, sink);
            return false;
        };
        if b.statement.is_empty() {
            if !self.ensure_unnamed(input, false, sink) {
                self.refuse(input, ClientError::UnknownStatement { name: String::new() }, sink);
                return true;
            }
            sink.pass(input, span);
            self.relay.push(Entry::plain(Kind::Bind));
            return false;
        }
        match self.resolve(b.statement) {
            Resolved::NotOurs => {
                sink.pass(input, span);
                self.relay.push(Entry::plain(Kind::Bind));
            }
            Resolved::Text(of, undo) => {
                if self.relay.status == TxStatus::Failed
                    && !self.server.has(of.text.id)
                    && let Some(error) = fits::misfit(&input[span.clone()], &of.name, &of.text)
                {
                    self.refuse_undoing(input, error, undo, sink);
                    return true;
                }
                self.done.binds += 1;
                self.ensure(input, &of.text, false, sink);
                if self.naming == Naming::Own {
                    sink.pass(input, span);
                } else {
                    write_bind(sink.insert(input), &input[span], &b, total, &of.text.server_name);
                }
                self.relay.push(Entry { uses: self.shared(of), undo, ..Entry::plain(Kind::Bind) });
            }
            Resolved::Refuse(error) => {
                self.refuse(input, error, sink);
                return true;
            }
        }
        false
    }

    /// Only a shared statement is retired: a session's own fails for as long as its client keeps it.
    fn shared(&self, of: Use) -> Option<Use> {
        (self.naming != Naming::Own).then_some(of)
    }

    fn describe(&mut self, input: &[u8], span: Range<usize>, sink: &mut Sink) {
        let Some(subject) = frontend::subject(&input[span.clone()]) else { return self.malformed(input, span, sink) };
        // To parse a query takes a snapshot, to describe it does not: what is behind it may begin a block, or set its
        // isolation level, which must come first.
        let apart = span.start == 0 && self.relay.open.is_none();
        match subject {
            Subject::Portal(name) if !self.client.portals.is_empty() => {
                self.describe_portal_by_name(input, name, sink);
            }
            Subject::Portal(_) => {}
            Subject::Statement(name) => self.describe_by_name(input, name, apart, sink),
        }
        match subject {
            Subject::Portal(_) => {
                sink.pass(input, span);
                self.relay.push(Entry::plain(Kind::DescribePortal));
            }
            Subject::Statement(b"") => {
                if !self.ensure_unnamed(input, apart, sink) {
                    return self.refuse(input, ClientError::UnknownStatement { name: String::new() }, sink);
                }
                sink.pass(input, span);
                self.relay.push(Entry::plain(Kind::DescribeStatement));
            }
            Subject::Statement(name) => match self.resolve(name) {
                Resolved::NotOurs => {
                    sink.pass(input, span);
                    self.relay.push(Entry::plain(Kind::DescribeStatement));
                }
                Resolved::Text(of, undo) => {
                    self.ensure(input, &of.text, apart, sink);
                    write_subject(sink.insert(input), b'D', &of.text.server_name);
                    let uses = self.shared(of);
                    self.relay.push(Entry { uses, undo, ..Entry::plain(Kind::DescribeStatement) });
                }
                Resolved::Refuse(error) => self.refuse(input, error, sink),
            },
        }
    }

    fn close(&mut self, input: &[u8], span: Range<usize>, sink: &mut Sink) {
        let mut undo = Undo::None;
        let Some(subject) = frontend::subject(&input[span.clone()]) else { return self.malformed(input, span, sink) };
        match subject {
            Subject::Statement(b"") => undo = self.drop_unnamed(b""),
            Subject::Statement(name) => {
                let known = self.client.remove(name);
                let there = self.server.holder(name);
                match (self.naming, known) {
                    (Naming::Own, Some(old)) => {
                        self.server.remove(old.text.id);
                        undo = Undo::RemovedOwn(old);
                    }
                    // Names that we do not know reach the server, so that this one must be gone there.
                    (Naming::Own | Naming::Shared { sql: true, .. }, known) if known.is_none() || there.is_some() => {
                        let closed = there.and_then(|id| Some(Undo::Closed(id, self.server.remove(id)?)));
                        undo = closed.unwrap_or_default().and(known.map_or(Undo::None, Undo::Removed));
                    }
                    (_, known) => {
                        if self.relay.copy_in() {
                            // The server must see it: it refuses all but the COPY's own messages.
                            write_subject(sink.insert(input), b'C', REFUSED);
                            let undo = known.map_or(Undo::None, Undo::Removed);
                            return self.relay.push(Entry { undo, ..Entry::plain(Kind::Close) });
                        }
                        // The shared statement stays on the server; closing an unknown one is no error.
                        let undo = known.map_or(Undo::None, Undo::Removed);
                        return self.relay.push(Entry { undo, ..Entry::plain(Kind::LocalClose) });
                    }
                }
            }
            Subject::Portal(name) => self.client.portals.remove(name),
        }
        sink.pass(input, span);
        self.relay.push(Entry { undo, ..Entry::plain(Kind::Close) });
    }

    fn ensure(&mut self, input: &[u8], text: &Rc<Text>, apart: bool, sink: &mut Sink) {
        if !self.server.has(text.id) {
            self.prepare(input, text, None, apart, sink);
        }
    }

    /// False when the client has no unnamed statement, or it is lost.
    fn ensure_unnamed(&mut self, input: &[u8], apart: bool, sink: &mut Sink) -> bool {
        let Some(unnamed) = &self.client.unnamed else { return false };
        if self.server.unnamed == Some(unnamed.serial) {
            return true;
        }
        let Some(tail) = &unnamed.tail else { return false };
        write_parse(sink.insert(input), b"", tail);
        let server = Some(self.server.unnamed.replace(unnamed.serial));
        let undo = Undo::Unnamed { client: None, server, illegible: false };
        self.relay.push(Entry { hidden: true, undo, ..Entry::plain(Kind::Parse) });
        if apart {
            self.end_apart(input, sink);
        }
        true
    }

    /// A malformed message goes to the server as it is: nothing comes of it but an error.
    fn malformed(&mut self, input: &[u8], span: Range<usize>, sink: &mut Sink) {
        sink.pass(input, span);
        self.relay.push(Entry::plain(Kind::Bind));
    }

    /// Make the server fail here, and report `error` for it.
    fn refuse(&mut self, input: &[u8], error: ClientError, sink: &mut Sink) {
        self.refuse_undoing(input, error, Undo::None, sink);
    }

    /// There is no room for what the client would keep here.
    fn refuse_bytes(&mut self, input: &[u8], sink: &mut Sink) {
        let (limit, configured) = (self.statement_bytes, self.usual_statement_bytes);
        self.refuse(input, ClientError::StatementBytes { limit, configured }, sink);
    }

    fn refuse_undoing(&mut self, input: &[u8], error: ClientError, undo: Undo, sink: &mut Sink) {
        self.free(input, REFUSED, sink);
        message(sink.insert(input), b'B', |b| {
            b.push(0);
            b.extend_from_slice(REFUSED);
            b.extend_from_slice(&[0; 7]);
        });
        self.relay.push(Entry { refusal: Some(Box::new(error)), undo, ..Entry::plain(Kind::Bind) });
    }
}

/// What a name of the client's stands for.
enum Resolved {
    /// This; what to take back when the message fails.
    Text(Use, Undo),
    /// Nothing of ours: the server knows, or says that it does not.
    NotOurs,
    /// Nothing.
    Refuse(ClientError),
}

fn lossy(name: &[u8]) -> String {
    String::from_utf8_lossy(name).into_owned()
}

#[cfg(test)]
#[path = "translate_tests.rs"]
mod tests;
