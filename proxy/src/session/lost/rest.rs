//! What is left of a block, or of a session, whose server is gone: its client's messages are answered here, with the error
//! that is due, until it ends the block.

use crate::session::batch;
use crate::session::client::Session;
use crate::session::incoming::Step;
use crate::session::relay::Undo;
use crate::session::state::{LostBlock, Pins};
use crate::session::statements::{Named, Unnamed};
use crate::sql::{Control, LexRules, Statement, classify, first_of};
use crate::wire::backend::{self, TxStatus};
use crate::wire::error_response::ClientError;
use crate::wire::frontend::{self, Subject};

/// A message above this size does not end a block, bytes.
const MAX_WHOLE: usize = 64 * 1024;

/// A message of a client whose block, or whose session's state, is gone with its server.
pub(in crate::session) fn step(s: &mut Session, input: &[u8]) -> Step {
    let head = match batch::frame_head(input, s.longest_message()) {
        Ok(Some(head)) => head,
        Ok(None) => return Step::More,
        Err(error) => return s.violation(&error),
    };
    if matches!(head.kind, b'd' | b'c' | b'f' | b'H') {
        // The rest of a COPY, of which a message may have come in part.
        return s.discard(head.total, input);
    }
    let Some(frame) = input.get(..head.total) else {
        // It may end the block, and comes as it is cut on its way.
        if head.total <= MAX_WHOLE {
            return Step::More;
        }
        // Too long to be the end of a block.
        return fail(s, head.kind, head.total, input);
    };
    match head.kind {
        b'X' => s.terminate(),
        b'S' => {
            s.ends_block = false;
            let status = s.status();
            if s.lost_block == LostBlock::Ended {
                s.lost_block = LostBlock::None;
            }
            s.ready(status);
            Step::Used(head.total)
        }
        // What follows the end of the block is executed.
        _ if s.lost_block == LostBlock::Ended => {
            s.lost_block = LostBlock::None;
            Step::Used(0)
        }
        _ if !s.lost_block.exists() => fail(s, head.kind, head.total, input),
        b'Q' => {
            let sql = frontend::query(frame).unwrap_or_default();
            query(s, sql, head.total, input)
        }
        _ => extended(s, head.kind, frame, input),
    }
}

/// What a session is told that has lost what it had on its server.
pub(super) fn session_lost(s: &mut Session) -> ClientError {
    let (node, pins) = s.lost_pins.take().expect("the caller has seen it");
    ClientError::SessionLost { node, lost: Pins::list(pins) }
}

/// The statement gets the error that is due; in the extended protocol the rest of its unit is thrown away.
fn fail(s: &mut Session, kind: u8, total: usize, input: &[u8]) -> Step {
    let error = if s.lost_block.exists() { s.lost_block.tell() } else { session_lost(s) };
    fail_with(s, &error, kind, total, input)
}

/// The statement would go on with the block, in a new transaction or from a savepoint: what is gone is said again, for
/// who asks for that has not given up.
fn fail_to_go_on(s: &mut Session, kind: u8, total: usize, input: &[u8]) -> Step {
    let error = s.lost_block.tell_again();
    fail_with(s, &error, kind, total, input)
}

fn fail_with(s: &mut Session, error: &ClientError, kind: u8, total: usize, input: &[u8]) -> Step {
    s.error(error);
    s.ends_block = false;
    let status = s.status();
    if matches!(kind, b'Q' | b'F') {
        s.ready(status);
    } else {
        s.skip = true;
    }
    s.discard(total, input)
}

fn query(s: &mut Session, sql: &[u8], total: usize, input: &[u8]) -> Step {
    let (control, rest) = first_of(sql);
    match control {
        Control::Rollback { chain: false } => end_block(s, rest, total),
        Control::Commit { chain: false } if s.lost_block.is_told() => end_block(s, rest, total),
        Control::Commit { chain: false } => {
            // A COMMIT ends its block also when it fails, as PostgreSQL's does: no ROLLBACK will come.
            let error = s.lost_block.tell();
            s.error(&error);
            s.lost_block = LostBlock::None;
            s.ready(TxStatus::Idle);
            Step::Used(total)
        }
        control if goes_on(control) => fail_to_go_on(s, b'Q', total, input),
        Control::Empty => {
            s.to_client.append(|out| backend::write_bare(out, b'I'));
            let status = s.status();
            s.ready(status);
            Step::Used(total)
        }
        _ => fail(s, b'Q', total, input),
    }
}

/// A new transaction like the lost one, or the lost one from a savepoint on: neither can be had, and a client that was
/// told that it has one would run outside of it what belongs together.
fn goes_on(control: Control) -> bool {
    matches!(control, Control::RollbackTo | Control::Rollback { chain: true } | Control::Commit { chain: true })
}

/// The block is over; what else is in the string is executed as a string of its own, as the server does.
fn end_block(s: &mut Session, rest: &[u8], total: usize) -> Step {
    s.to_client.append(|out| backend::write_command_complete(out, "ROLLBACK"));
    s.lost_block = LostBlock::None;
    if first_of(rest).0 == Control::Empty {
        s.ready(TxStatus::Idle);
    } else {
        // What is sent to the client keeps the client's next messages away, so this comes before them.
        let mut again = Vec::with_capacity(rest.len() + 6);
        frontend::write_query_bytes(&mut again, rest);
        again.append(&mut s.inbox);
        (s.inbox, s.rescan) = (again, true);
    }
    Step::Used(total)
}

/// An extended message in a lost block: only what leads to its end succeeds.
fn extended(s: &mut Session, kind: u8, frame: &[u8], input: &[u8]) -> Step {
    let ends = |s: &Session, class: Option<Statement>| match class.map(|c| c.control) {
        Some(Control::Rollback { chain: false }) => true,
        Some(Control::Commit { chain: false }) => s.lost_block.is_told(),
        _ => false,
    };
    let answer: &[u8] = match kind {
        b'P' => {
            let Some(p) = frontend::parse(frame) else { return malformed(s) };
            let class = classify(p.sql, &crate::sql::FunctionTable::unloaded(), LexRules::STANDARD);
            if !ends(s, Some(class)) {
                return fail_extended(s, class.control, frame.len(), input);
            }
            if let Err(error) = keep_statement(s, &p, class) {
                s.error(&error);
                s.skip = true;
                return Step::Used(frame.len());
            }
            b"1"
        }
        b'B' => {
            let Some(b) = frontend::bind(frame) else { return malformed(s) };
            let class = s.statements.class(b.statement);
            if !ends(s, class) {
                let control = class.map_or(Control::None, |c| c.control);
                return fail_extended(s, control, frame.len(), input);
            }
            s.ends_block = true;
            b"2"
        }
        b'D' => match frontend::subject(frame) {
            Some(Subject::Portal(_)) => b"n",
            Some(Subject::Statement(name)) if ends(s, s.statements.class(name)) => b"tn",
            Some(Subject::Statement(_)) => return fail(s, kind, frame.len(), input),
            None => return malformed(s),
        },
        // A portal that was there before is gone with its server.
        b'E' if !std::mem::take(&mut s.ends_block) => return fail(s, kind, frame.len(), input),
        b'E' => {
            s.to_client.append(|out| backend::write_command_complete(out, "ROLLBACK"));
            s.lost_block = LostBlock::Ended;
            return Step::Used(frame.len());
        }
        b'C' => match frontend::subject(frame) {
            Some(Subject::Statement(name)) => {
                s.undo(Undo::Registered(name.into()));
                b"3"
            }
            Some(Subject::Portal(_)) => b"3",
            None => return malformed(s),
        },
        _ => return fail(s, kind, frame.len(), input),
    };
    s.to_client.append(|out| {
        for &kind in answer {
            if kind == b't' { backend::write_no_parameters(out) } else { backend::write_bare(out, kind) }
        }
    });
    Step::Used(frame.len())
}

/// Keep a statement that ends the block: drivers name it as any other, and use it again later.
fn keep_statement(s: &mut Session, p: &frontend::Parse<'_>, class: Statement) -> Result<(), ClientError> {
    if p.name.is_empty() {
        let serial = s.w.texts.borrow_mut().fresh_id();
        s.statements.unnamed = Some(Unnamed { serial, tail: Some(p.tail.to_vec()), class });
        return Ok(());
    }
    if s.statements.named(p.name).is_some() {
        return Err(ClientError::DuplicateStatement { name: String::from_utf8_lossy(p.name).into_owned() });
    }
    let configured = s.w.config().statement_bytes();
    let limit = s.account.most(configured);
    if !s.statements.has_room(p.name, p.tail.len(), limit) {
        return Err(ClientError::StatementBytes { limit, configured });
    }
    let text = s.w.texts.borrow_mut().for_account(&s.account).intern(p.tail, s.parse_key);
    s.statements.insert(Named::new(p.name, text, class));
    Ok(())
}

fn fail_extended(s: &mut Session, control: Control, total: usize, input: &[u8]) -> Step {
    if goes_on(control) {
        return fail_to_go_on(s, b'P', total, input);
    }
    let step = fail(s, b'P', total, input);
    if matches!(control, Control::Commit { chain: false }) {
        // As for a simple COMMIT: it was told, and the block is over.
        s.lost_block = LostBlock::None;
    }
    step
}

fn malformed(s: &mut Session) -> Step {
    s.violation(&ClientError::ProtocolViolation { what: "malformed message".to_owned() })
}
