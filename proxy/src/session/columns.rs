//! Does a statement have the columns still that its client was told?
//!
//! A client that has described a statement decodes its rows by that for as long as it keeps it, and PostgreSQL refuses to run
//! it when its columns have become others (0A000). A server that has the statement does so by itself. One that lacks it
//! would prepare it with the columns of now, so there it is described first, and its client refused where they differ: a
//! round trip of its own, as what is sent behind it may write; once for each text and server.

use crate::config::PoolMode;
use crate::console::tally::Counter;
use crate::session::batch::Unit;
use crate::session::client::{Failure, Session};
use crate::session::relay::Hidden;
use crate::session::statements::{Source, Text};
use crate::session::tracking::Asked;
use crate::wire::backend::TxStatus;
use crate::wire::codec::head;
use crate::wire::frontend::{self, write_parse, write_subject, write_sync};
use std::rc::Rc;

impl Session {
    /// Does the unit bind what was described elsewhere, and the server lacks it? It is asked for the columns first. True when
    /// that takes an answer.
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
        let mut out = Vec::with_capacity(text.tail.len() + 64);
        for id in server.meta.statements.insert(&text, limit) {
            if let Some(evicted) = server.meta.statements.remove(id) {
                write_subject(&mut out, b'C', &evicted);
            }
        }
        write_parse(&mut out, &text.server_name, &text.tail);
        write_subject(&mut out, b'D', &text.server_name);
        write_sync(&mut out);
        self.tally.add(Counter::ServerParses, 1);
        self.relay.hide();
        self.tracking.asked = Some(Asked::Columns { name, text });
        self.send(&out);
        true
    }

    /// The first statement that these messages bind, that its client has described, and that the server lacks.
    fn unknown_here(&self, messages: &[u8]) -> Option<(Rc<[u8]>, Rc<Text>)> {
        let server = self.server.as_ref()?;
        let mut at = 0;
        while let Some(frame) = head(&messages[at..]).ok().flatten().and_then(|h| messages.get(at..at + h.total)) {
            at += frame.len();
            let bound = (frame[0] == b'B').then(|| frontend::bind(frame)).flatten();
            let Some(named) = bound.and_then(|b| self.statements.named(b.statement)) else { continue };
            let text = &named.text;
            let lacks = |id| !server.meta.statements.knows(id);
            if named.columns == 0 || text.source != Source::Shared || text.is_retired() || !lacks(text.id) {
                continue;
            }
            let here = if text.parse_key == self.parse_key {
                text.clone()
            } else {
                self.w.texts.borrow_mut().again(text, self.parse_key)
            };
            if lacks(here.id) {
                return Some((named.name.clone(), here));
            }
        }
        None
    }

    /// The columns have come, or why there are none.
    pub(super) fn columns_told(&mut self, name: &[u8], text: &Rc<Text>, answer: Hidden) {
        if let Some(frame) = answer.error {
            if let Some(server) = &mut self.server {
                server.meta.statements.remove(text.id);
            }
            self.fail = Some(Failure::Frame(frame));
            self.rest(self.w.now());
            return;
        }
        let Some(named) = self.statements.named_mut(name) else { return };
        if named.columns == answer.columns {
            named.text = text.clone();
            return;
        }
        // Refused for as long as its client keeps it.
        let mut texts = self.w.texts.borrow_mut();
        let gone = texts.single(&text.tail, text.parse_key);
        texts.retire(&gone);
        named.text = gone;
    }
}
