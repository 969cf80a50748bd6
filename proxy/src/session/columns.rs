//! Does a statement have the columns still that its client was told?
//!
//! A client that has described a statement decodes its rows by that for as long as it keeps it, and PostgreSQL refuses to run
//! it when its columns have become others (0A000). A server that has the statement does so by itself. One that lacks it
//! would prepare it with the columns of now, so there it is described first, and its client refused where they differ: a
//! round trip of its own, as what is sent behind it may write; once for each text and server. A standby that has other
//! columns may not have replayed yet what changed them: another server is looked for then.
//!
//! A server that has the statement has it with the columns of when it was prepared there, which may be others than those that
//! a client was told elsewhere. So it is known of each which they are there, or asked; where they are others, the client's
//! statement is prepared anew beside it.

use crate::config::PoolMode;
use crate::console::tally::Counter;
use crate::session::batch::Unit;
use crate::session::client::{Failure, Session};
use crate::session::lost;
use crate::session::relay::Hidden;
use crate::session::statements::{Source, Text};
use crate::session::tracking::Asked;
use crate::wire::backend::{self, TxStatus};
use crate::wire::codec::{HEAD, head, split_cstring};
use crate::wire::error_response::ClientError;
use crate::wire::frontend::{self, Subject, write_parse, write_subject, write_sync};
use cluster::Role;
use std::rc::Rc;

/// Stands for columns that are no more what a server has prepared. Hashes are odd.
const OUTDATED: u64 = 2;
/// The SQLSTATEs of what was cancelled, or has waited for a lock for as long as its client lets it.
const OVER: [&[u8]; 2] = [b"57014", b"55P03"];

impl Session {
    /// Does the unit bind what its client has described elsewhere, and the server lacks it, or may have it with other columns?
    /// It is asked for the columns first. True when that takes an answer.
    pub(super) fn ask_columns(&mut self, input: &[u8], unit: &Unit) -> bool {
        let may = unit.binds_named && self.mode == PoolMode::Transaction && self.relay.open.is_none();
        // What sets the modes of a block must come before anything is parsed in it.
        let first = unit.block.sets.is_some() || self.relay.status == TxStatus::Failed;
        if !may || !self.statements.described || first {
            return false;
        }
        let Some((name, text)) = self.unknown_here(&input[..unit.len]) else { return false };
        if self.relay.busy() {
            return true;
        }
        let limit = usize::try_from(self.w.config().server_statement_bytes).unwrap_or(usize::MAX);
        let Some(server) = &mut self.server else { return false };
        // It may be evicted by the next one of the same unit.
        self.tracking.described.push(text.id);
        let mut out = Vec::with_capacity(text.tail.len() + 64);
        let parsed = !server.meta.statements.knows(text.id);
        if parsed {
            for id in server.meta.statements.insert(&text, limit) {
                if let Some(evicted) = server.meta.statements.remove(id) {
                    write_subject(&mut out, b'C', &evicted);
                }
            }
            write_parse(&mut out, &text.server_name, &text.tail);
            self.tally.add(Counter::ServerParses, 1);
        }
        write_subject(&mut out, b'D', &text.server_name);
        write_sync(&mut out);
        self.relay.hide();
        self.tracking.asked = Some(Asked::Columns { name, text, parsed });
        self.send(&out);
        true
    }

    /// The first statement that these messages bind, that its client has described, of which the server is not known to have
    /// it with these columns, and for which it was not asked yet; as it is to be there.
    fn unknown_here(&self, messages: &[u8]) -> Option<(Rc<[u8]>, Rc<Text>)> {
        let server = self.server.as_ref()?;
        let there = &server.meta.statements;
        // Names that the unit itself makes or closes: behind that they are of other statements.
        let mut anew: Vec<&[u8]> = Vec::new();
        let mut at = 0;
        while let Some(head) = head(&messages[at..]).ok().flatten() {
            // The last one may not have come whole: its names have.
            let frame = &messages[at..messages.len().min(at + head.total)];
            at += frame.len();
            let bound = match head.kind {
                b'B' => frontend::bind(frame).map(|b| b.statement),
                b'P' => {
                    anew.extend(frame.get(HEAD..).and_then(split_cstring).map(|(name, _)| name));
                    None
                }
                b'C' => {
                    if let Some(Subject::Statement(name)) = frontend::subject(frame) {
                        anew.push(name);
                    }
                    None
                }
                _ => None,
            };
            let known = bound.filter(|name| !anew.contains(name));
            let Some(named) = known.and_then(|name| self.statements.named(name)) else { continue };
            let text = &named.text;
            if named.columns == 0 || text.source != Source::Shared || text.is_retired() {
                continue;
            }
            let here = match text.parse_key == self.parse_key {
                true => text.clone(),
                // The server plans it anew under other settings, and says itself when it has other columns then.
                false if there.knows(text.id) => continue,
                false => self.w.texts.borrow_mut().for_account(&self.account).again(text, self.parse_key),
            };
            let here = match there.columns(here.id) {
                Some(columns) if columns == named.columns => continue,
                None | Some(0) => here,
                Some(_) => self.w.texts.borrow_mut().for_account(&self.account).single(&here.tail, here.parse_key),
            };
            if !self.tracking.described.contains(&here.id) {
                return Some((named.name.clone(), here));
            }
        }
        None
    }

    /// The columns have come, or why there are none; `parsed` when the statement was prepared for that.
    pub(super) fn columns_told(&mut self, name: &[u8], text: &Rc<Text>, parsed: bool, answer: Hidden) {
        let Some(server) = &mut self.server else { return };
        let standby = server.meta.role == Role::Standby;
        if let Some(frame) = answer.error {
            // What is over for its client is over everywhere, and says nothing of columns.
            let over = OVER.contains(&backend::fields(&frame).code);
            if parsed {
                server.meta.statements.remove(text.id);
            } else if !over {
                server.meta.statements.describe(text.id, OUTDATED);
                if self.relay.status == TxStatus::Idle {
                    // It is prepared anew beside that one.
                    return;
                }
            }
            if !standby || over || !self.looks_elsewhere() {
                self.fail = Some(Failure::Frame(frame));
                self.rest(self.w.now());
            }
            return;
        }
        server.meta.statements.describe(text.id, answer.columns);
        let Some(named) = self.statements.named_mut(name) else { return };
        if named.columns == answer.columns {
            named.text = text.clone();
            return;
        }
        if !parsed {
            return;
        }
        if let Some(tail) = with_types(&text.tail, &named.types).filter(|_| answer.types != *named.types) {
            // PostgreSQL keeps the types that it has told.
            let mut texts = self.w.texts.borrow_mut();
            let kept = texts.for_account(&self.account).single(&tail, text.parse_key);
            drop(texts);
            self.statements.replace(name, kept);
            return;
        }
        if standby {
            // What changed them may not be replayed there yet. Nobody is to find the statement there that has them.
            server.meta.statements.remove(text.id);
            let mut out = Vec::new();
            write_subject(&mut out, b'C', &text.server_name);
            write_sync(&mut out);
            self.relay.hide();
            self.tracking.asked = Some(Asked::Close);
            self.send(&out);
            return;
        }
        // Refused for as long as its client keeps it.
        let mut texts = self.w.texts.borrow_mut();
        let gone = texts.for_account(&self.account).single(&text.tail, text.parse_key);
        texts.retire(&gone);
        named.text = gone;
    }

    /// A standby has closed a statement that has other columns there: another server may have those that its client knows.
    pub(super) fn other_columns_closed(&mut self) {
        if self.looks_elsewhere() {
            return;
        }
        if self.relay.status == TxStatus::Block {
            lost::fail_block(self, ClientError::ResultChanged);
        } else {
            self.fail = Some(Failure::Error(ClientError::ResultChanged));
            self.rest(self.w.now());
        }
    }

    /// The unit at the head of the inbox is for another server than this standby, where nothing keeps the session on it.
    fn looks_elsewhere(&mut self) -> bool {
        let may = self.relay.status == TxStatus::Idle && self.pins.is_empty() && !self.tracking.stuck;
        if let Some(server) = self.server.as_ref().filter(|_| may) {
            self.avoid.push(server.meta.node.clone());
            self.give_back(self.w.now());
        }
        may
    }
}

/// The tail of a Parse message with these types of parameters; `None` when it has them already.
fn with_types(tail: &[u8], types: &[u8]) -> Option<Vec<u8>> {
    let (sql, declared) = split_cstring(tail)?;
    (declared != types).then(|| [sql, &[0], types].concat())
}
