//! The client's bytes cut into units: a Query, a FunctionCall, or extended messages up to their Sync.
//!
//! A unit is what is routed, held and answered for as a whole. It is scanned before a server is chosen, so nothing is
//! changed here; [`super::translate`] writes it for the server that was chosen.

mod few;
mod unit;

pub use unit::{Block, Unit};

use crate::session::outcome::Record;
use crate::session::state::Pins;
use crate::session::statements::{ClientStatements, OVERHEAD_HERE};
use crate::sql::{Access, Control, Local, Name, Names, PinReason, Statement, about_names, executed, prepared};
use crate::wire::codec::{Head, head};
use crate::wire::error_response::ClientError;
use crate::wire::frontend::{self, Subject};
use few::{Few, One};

/// What nothing is known about: it may do anything.
const OPAQUE: Statement = Statement {
    access: Access::Write,
    quiet: false,
    strange: false,
    control: Control::None,
    may_commit: true,
    pins: Pins::NONE,
    unpins: true,
    advisory: true,
    ours: false,
    aside: false,
    local: Local::Nothing,
    names: Names::None,
};

/// A text that is read as it passes.
const PASSING: Statement = Statement { unpins: false, local: Local::Hidden, ..OPAQUE };

/// One that makes, uses or drops prepared statements by SQL.
const UNFOLLOWED: Statement =
    Statement { pins: Pins::of(PinReason::Prepare), unpins: true, names: Names::Unknown, ..PASSING };

/// A malformed message: it goes to the server as it is, which says what is wrong with it and does nothing.
const REFUSED: Statement = Statement { may_commit: false, ..OPAQUE };

/// Longest name in SQL and what frames its text, bytes.
const MAX_NAME: usize = 63 + 3;

/// Limits on what is buffered.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// A unit is sent in parts to the primary when it grows beyond this, bytes.
    pub unit: usize,
    /// A Query or Parse is read whole, to be classified, up to this, bytes.
    pub text: usize,
    /// Longest message accepted, bytes.
    pub message: usize,
    /// Prepared statements of one client, bytes.
    pub statements: usize,
}

/// What scanning needs to know of the session.
pub struct Context<'a> {
    /// The client's statements.
    pub statements: &'a ClientStatements,
    /// The classifier, with the functions and lexical rules in force.
    pub classify: &'a dyn Fn(&[u8]) -> Statement,
    /// What the open unit did so far.
    pub open: Option<Record>,
    /// A portal bound earlier in this transaction may commit when it is executed.
    pub portal_may_commit: bool,
    /// The client has sent no more for a while: what has come is sent although its Sync has not.
    pub impatient: bool,
    /// Limits.
    pub limits: Limits,
}

/// What the input starts with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scan {
    /// A unit, or as much of one as may be sent.
    Unit(Unit),
    /// Not enough to tell.
    More,
    /// Copy messages outside a COPY, or a Flush outside a unit: this many bytes are to be thrown away, which may not all
    /// have come.
    Ignore(usize),
    /// Terminate.
    Terminate,
    /// The client broke the protocol; the connection ends.
    Violation(ClientError),
}

struct Scanner<'a> {
    cx: &'a Context<'a>,
    input: &'a [u8],
    unit: Unit,
    /// Statements parsed in this unit: name and what they do.
    parsed: Few<'a>,
    /// Portals bound in this unit.
    bound: Few<'a>,
    /// Statements that SQL may prepare in this unit.
    prepared: Vec<(Name, Statement)>,
    /// What is kept of it of statements with names, bytes.
    kept: usize,
}

enum Step {
    Next,
    End,
    Refuse(ClientError),
}

/// Cut the next unit from `input`. What its Parse messages do is appended to `classes`, in order.
pub fn scan(input: &[u8], cx: &Context<'_>, classes: &mut Vec<Statement>) -> Scan {
    let unit = Unit { record: cx.open.unwrap_or_default(), read: cx.open.is_none(), quiet: true, ..Unit::default() };
    let (parsed, bound, prepared) = (Few::default(), Few::default(), Vec::new());
    let mut s = Scanner { cx, input, unit, parsed, bound, prepared, kept: 0 };
    loop {
        let at = s.unit.len;
        let head = match frame_head(&input[at..], s.cx.limits.message) {
            Ok(Some(head)) => head,
            Ok(None) => return s.incomplete(at),
            Err(error) => return Scan::Violation(error),
        };
        match head.kind {
            b'X' if at == 0 => return Scan::Terminate,
            // Nor is there anything to flush: what is behind a unit's end came with that.
            b'd' | b'c' | b'f' if at == 0 => return Scan::Ignore(head.total),
            b'H' if at == 0 && s.cx.open.is_none() => return Scan::Ignore(head.total),
            b'X' => return Scan::Unit(Unit { read: false, quiet: false, ..s.unit }),
            // They may belong to what is executed before them: that is sent, and shows whether it copies.
            b'd' | b'c' | b'f' if s.unit.statements > 0 => {
                return Scan::Unit(Unit { read: false, quiet: false, ..s.unit });
            }
            _ => {}
        }
        let step = match input.get(at..at + head.total) {
            Some(frame) => s.whole(head, frame, classes),
            None if s.must_wait(head, at) => return s.incomplete(at),
            None => s.part(head, &input[at..], classes),
        };
        match step {
            Step::Next => {}
            Step::End => return Scan::Unit(s.unit),
            Step::Refuse(error) => return Scan::Violation(error),
        }
    }
}

/// The head of the client's next frame, checked against what clients may send: `longest` bytes, and less where the
/// protocol says so.
///
/// # Errors
/// The protocol violation to report.
pub fn frame_head(input: &[u8], longest: usize) -> Result<Option<Head>, ClientError> {
    if let Some(&kind) = input.first() {
        let Some(limit) = frontend::limit(kind).map(|l| l.min(longest)) else {
            return Err(ClientError::ProtocolViolation { what: format!("invalid frontend message type {kind}") });
        };
        return match head(input) {
            Ok(Some(h)) if h.total > limit + 1 => {
                Err(ClientError::MessageTooLong { length: h.total as u64, limit: limit as u64 })
            }
            Ok(h) => Ok(h),
            Err(bad) => Err(ClientError::ProtocolViolation { what: format!("invalid message length {}", bad.length) }),
        };
    }
    Ok(None)
}

impl<'a> Scanner<'a> {
    /// A message that needs no Sync comes behind what was executed without one: from PostgreSQL 18 on the transaction is still open
    /// when it is done (postgres.c, `exec_execute_message` begins an implicit block), and what follows may write.
    fn goes_on(&mut self) {
        if self.unit.statements > 0 {
            (self.unit.read, self.unit.quiet) = (false, false);
        }
    }

    fn incomplete(self, at: usize) -> Scan {
        // A unit that is being sent goes on as it comes; one that grows too long starts.
        let begun = self.cx.open.is_some() || self.cx.impatient;
        if at > 0 && (begun || at >= self.cx.limits.unit) {
            return Scan::Unit(Unit { read: false, quiet: false, ..self.unit });
        }
        Scan::More
    }

    fn must_wait(&self, head: Head, at: usize) -> bool {
        let here = self.input.len() - at;
        match head.kind {
            b'Q' => head.total <= self.cx.limits.text || here < self.cx.limits.unit,
            b'P' => {
                // Under a name it is kept whole in any case, if there is room for it at all.
                let name = crate::wire::codec::split_cstring(&self.input[(at + 5).min(self.input.len())..]);
                let kept = name.is_none_or(|(name, _)| !name.is_empty()) && head.total <= self.cx.limits.statements;
                kept || head.total <= self.cx.limits.text || here < self.cx.limits.unit
            }
            // Names may be longer than most messages are.
            b'B' => {
                let named = frontend::bind(&self.input[at..]).is_some();
                here < self.cx.limits.unit || (!named && here < self.cx.limits.text)
            }
            b'F' => here < self.cx.limits.unit,
            // A CopyData that nobody reads, or a short message.
            _ => true,
        }
    }

    fn whole(&mut self, head: Head, frame: &'a [u8], classes: &mut Vec<Statement>) -> Step {
        self.unit.len += head.total;
        match head.kind {
            b'Q' => {
                self.goes_on();
                let sql = frontend::query(frame);
                let class = sql.map_or(REFUSED, self.cx.classify);
                let class =
                    if class.names == Names::None { class } else { self.by_name(class, sql.unwrap_or_default()) };
                classes.push(class);
                self.execute(class);
                self.end()
            }
            b'P' => {
                let parse = frontend::parse(frame);
                let mut class = parse.map_or(REFUSED, |p| (self.cx.classify)(p.sql));
                // Parsing writes nothing, so it does not need the primary: only what is executed counts.
                if let Some(p) = parse {
                    self.unit.sql_names |= class.names != Names::None;
                    class.names = self.unless_too_long(class.names, p.sql);
                    self.parsed.push(One { name: p.name, class, sql: p.sql });
                    if !p.name.is_empty() {
                        self.kept += p.name.len() + p.tail.len() + OVERHEAD_HERE;
                    }
                }
                classes.push(class);
                Step::Next
            }
            b'B' => {
                self.bind(frame);
                Step::Next
            }
            b'D' | b'C' => match frontend::subject(frame) {
                Some(Subject::Statement(name)) => {
                    self.names(name);
                    // The server describes SHOW only of what it knows.
                    let class = self.class(name).0;
                    self.unit.ours |= head.kind == b'D' && class.ours && class.access == Access::Read;
                    Step::Next
                }
                Some(Subject::Portal(_)) | None => Step::Next,
            },
            b'E' => {
                if let Some((portal, _)) = crate::wire::codec::split_cstring(&frame[5..]) {
                    // What it does but write was seen when it was bound.
                    let unknown = Statement { may_commit: self.cx.portal_may_commit, advisory: false, ..OPAQUE };
                    self.execute(self.bound.last(portal).map_or(unknown, |one| one.class));
                }
                Step::Next
            }
            b'F' => {
                self.goes_on();
                self.execute(called(frame));
                self.end()
            }
            b'S' => self.end(),
            b'H' => {
                self.unit.flush = true;
                // What follows in the same transaction is not known: it may write.
                (self.unit.read, self.unit.quiet) = (false, false);
                Step::End
            }
            // Copy messages inside a unit: thrown away by translate, as the server would.
            _ => Step::Next,
        }
    }

    /// A message that is too long to be read whole: what is there goes out, the rest follows as it comes.
    fn part(&mut self, head: Head, here: &'a [u8], classes: &mut Vec<Statement>) -> Step {
        let at = self.unit.len;
        self.unit.len += here.len();
        self.unit.tail_left = head.total - here.len();
        (self.unit.read, self.unit.quiet) = (false, false);
        match head.kind {
            b'Q' => {
                // What it leaves in the session is known when all of it has passed.
                self.unit.text_at = Some(at + 5);
                // What it names is looked for in what is there of it.
                let named = about_names(&here[5..]);
                self.unit.sql_names |= named;
                let class = if named { UNFOLLOWED } else { PASSING };
                classes.push(class);
                self.execute(class);
                self.unit.complete = true;
            }
            b'P' => {
                let Some((name, _)) = crate::wire::codec::split_cstring(&here[5..]) else { return malformed("Parse") };
                // There is no room for one with a name, and who writes it for the server says so.
                self.unit.text_at = name.is_empty().then_some(at + 6);
                classes.push(PASSING);
                self.parsed.push(One { name, class: PASSING, sql: b"" });
            }
            b'B' => {
                if !self.bind(here) {
                    return malformed("Bind");
                }
            }
            b'F' => {
                self.execute(called(here));
                self.unit.complete = true;
            }
            _ => return malformed("message"),
        }
        Step::End
    }

    /// False when its names cannot be read.
    fn bind(&mut self, frame: &'a [u8]) -> bool {
        let Some(b) = frontend::bind(frame) else { return false };
        let (mut class, sql) = self.class(b.statement);
        if class.names != Names::None {
            class = self.by_name(class, sql);
        }
        self.unit.binds_commit |= class.may_commit;
        self.names(b.statement);
        // It may be executed in a later unit, which does not know what the portal holds. Nor is what would stay in the
        // session begun where it could not.
        self.unit.pins.join(class.pins);
        self.unit.read &= class.pins.is_empty() && !class.strange;
        self.unit.block.advisory |= class.advisory;
        self.unit.unpins |= class.unpins;
        self.unit.ours |= class.ours;
        self.unit.strange |= class.strange;
        self.sets(&class);
        self.bound.push(One { name: b.portal, class, sql: b"" });
        true
    }

    /// A statement is named.
    fn names(&mut self, name: &[u8]) {
        self.unit.binds_named |= !name.is_empty();
        self.unit.takes_unnamed |= name.is_empty() && self.parsed.last(name).is_none();
    }

    /// What a statement does, and its text.
    fn class(&self, name: &[u8]) -> (Statement, &'a [u8]) {
        if let Some(here) = self.parsed.last(name) {
            return (here.class, here.sql);
        }
        let statements = self.cx.statements;
        match statements.class(name) {
            Some(class) if class.names == Names::None => (class, b""),
            Some(class) => (class, statements.sql(name).unwrap_or_default()),
            // An unknown name is an error that the server will report.
            None => (Statement { may_commit: false, ..OPAQUE }, b""),
        }
    }

    /// What a text does that is about prepared statements: what an EXECUTE does is up to the one it names.
    fn by_name(&mut self, class: Statement, sql: &[u8]) -> Statement {
        self.unit.sql_names = true;
        let names = self.unless_too_long(class.names, sql);
        match names {
            Names::Prepare => {
                let of = |(name, statement)| (name, (self.cx.classify)(statement));
                self.prepared.extend(prepared(sql).map(of));
                self.kept += sql.len() + MAX_NAME + OVERHEAD_HERE;
                Statement { names, ..class }
            }
            Names::Execute { plain } => {
                let Some(name) = executed(sql) else { return class };
                let here = || self.prepared.iter().rev().find(|(n, _)| *n == name).map(|(_, class)| *class);
                let parsed = || self.parsed.last(&name).map(|one| one.class);
                let Some(of) = self.cx.statements.class(&name).or_else(parsed).or_else(here) else { return class };
                let reads =
                    plain && of.access == Access::Read && of.control == Control::None && of.names == Names::None;
                let (mut pins, unpins) = (class.pins, class.unpins | of.unpins);
                pins.join(of.pins);
                // Its result may have other columns than when it was prepared: it is sent again then.
                self.unit.binds_named = true;
                let may_commit = class.may_commit | of.may_commit;
                Statement {
                    access: if reads { Access::Read } else { Access::Write },
                    quiet: plain && of.quiet,
                    strange: class.strange | of.strange,
                    pins,
                    unpins,
                    may_commit,
                    advisory: class.advisory | of.advisory,
                    ours: class.ours | of.ours,
                    local: class.local.max(of.local),
                    ..class
                }
            }
            Names::Unknown => {
                let mut pins = class.pins;
                pins.add(PinReason::Prepare);
                Statement { names, pins, ..class }
            }
            Names::None | Names::Deallocate | Names::All | Names::Several | Names::List => class,
        }
    }

    /// A statement for which there is no room is not followed.
    fn unless_too_long(&self, names: Names, sql: &[u8]) -> Names {
        let fits = self.cx.statements.has_room(&[], sql.len() + MAX_NAME + self.kept, self.cx.limits.statements);
        if names == Names::Prepare && !fits { Names::Unknown } else { names }
    }

    fn execute(&mut self, class: Statement) {
        self.unit.block.execute(&class);
        match class.names {
            // What they change is taken back with the server, and made again with the unit.
            Names::Prepare | Names::Deallocate => {
                self.unit.record.execute(&Statement { access: Access::Read, control: Control::None, ..class });
            }
            _ => self.unit.record.execute(&class),
        }
        self.unit.statements = self.unit.statements.saturating_add(1);
        self.unit.read &= class.access == Access::Read
            && matches!(class.control, Control::None | Control::Empty)
            && class.pins.is_empty()
            && !class.strange;
        self.unit.quiet &= class.quiet && matches!(class.control, Control::None | Control::Empty);
        self.unit.strange |= class.strange;
        self.unit.forgets |= matches!(class.control, Control::DeallocateAll | Control::DiscardAll);
        self.unit.discards |= class.control == Control::DiscardAll;
        self.unit.pins.join(class.pins);
        self.unit.unpins |= class.unpins;
        self.unit.ours |= class.ours;
        self.sets(&class);
    }

    /// What holds for the transaction.
    fn sets(&mut self, class: &Statement) {
        self.unit.local = self.unit.local.max(class.local);
        self.unit.undoes |= matches!(
            class.control,
            Control::Commit { .. }
                | Control::Rollback { .. }
                | Control::RollbackTo
                | Control::PrepareTransaction
                | Control::Multi { ends: true, .. }
                | Control::Multi { revives: true, .. }
        );
    }

    fn end(&mut self) -> Step {
        self.unit.complete = true;
        Step::End
    }
}

/// What a FunctionCall does: of those by which drivers use large objects, as libpq does, it is known what they leave.
/// Numbers are those of PostgreSQL's src/include/catalog/pg_proc.dat.
fn called(frame: &[u8]) -> Statement {
    const LARGE_OBJECTS: [u32; 14] = [715, 764, 952, 953, 954, 955, 956, 957, 958, 964, 1004, 3170, 3171, 3172];
    // currval and lastval.
    const DRAWN: [u32; 2] = [1575, 2559];
    let function = frame.get(5..9).and_then(|bytes| bytes.try_into().ok()).map(u32::from_be_bytes);
    let is_of = |list: &[u32]| function.is_some_and(|oid| list.contains(&oid));
    let pins = if is_of(&DRAWN) { Pins::of(PinReason::Sequence) } else { Pins::NONE };
    let strange = !is_of(&LARGE_OBJECTS) && pins.is_empty();
    let local = if strange { Local::Hidden } else { Local::Nothing };
    Statement { may_commit: false, strange, pins, local, ..OPAQUE }
}

fn malformed(what: &str) -> Step {
    Step::Refuse(ClientError::ProtocolViolation { what: format!("malformed {what} message") })
}

#[cfg(test)]
#[path = "batch_tests.rs"]
mod tests;
