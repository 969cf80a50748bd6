//! What a session can ask the proxy: `SHOW pgtenure.token`, `.last_route` and `.term`, and the notice of each route.
//!
//! The server that is to run the statement is given the values first, by a query of ours. So SHOW is PostgreSQL's own,
//! in either protocol, inside a block, prepared or through `current_setting`, and what asks for nothing costs nothing.

use crate::config::PoolMode;
use crate::config::reads::CommitLsn;
use crate::metrics::bump;
use crate::route::promise::TOLD;
use crate::route::{After, Consistency, ReadFrom, Reason, Token};
use crate::session::batch::Unit;
use crate::session::client::{MAX_TEXT, Session};
use crate::session::in_force;
use crate::session::relay::Hidden;
use crate::session::settings::literal;
use crate::session::tracking::Asked;
use crate::sql::{Access, PinReason, Pins, changes_rows, executed, parameters};
use crate::wire::backend::{self, TxStatus};
use crate::wire::codec::head;
use crate::wire::frontend::{self, Subject};
use cluster::topology::Gate;
use cluster::{Instant, Lsn, Role, Term, TimelineId};

/// Where the WAL ends, and on which timeline. Only a primary answers.
pub(super) const POSITION: &str = "SELECT l::pg_catalog.text,pg_catalog.pg_walfile_name(l) \
                        FROM pg_catalog.pg_current_wal_insert_lsn() AS l";

/// What a standby has replayed at most. It replays what it has received: `pg_last_wal_replay_lsn` alone moves on only after
/// what is replayed can be seen.
const REPLAYED: &str = "SELECT greatest(pg_catalog.pg_last_wal_receive_lsn(),\
                        pg_catalog.pg_last_wal_replay_lsn())::pg_catalog.text";

/// Where a statement went.
#[derive(Debug)]
pub(super) struct Route {
    /// The node's place among those that the worker counts.
    node: usize,
    primary: bool,
    /// When.
    at: Instant,
    why: Why,
}

/// Why a statement went where it went.
#[derive(Debug)]
enum Why {
    /// The server was chosen for it.
    Chosen(Reason),
    /// Its transaction block is there.
    Block,
    /// The session has these there, or in session mode just the server.
    Kept(Pins),
}

impl Session {
    /// Statements of a unit as the client wrote them, those that it binds or has described included.
    pub(super) fn each_text(&self, input: &[u8], unit: &Unit, each: impl FnMut(&[u8])) {
        self.each_text_of(input, unit.len, each);
    }

    /// The same of messages that are so long together.
    pub(super) fn each_text_of(&self, input: &[u8], len: usize, mut each: impl FnMut(&[u8])) {
        let mut at = 0;
        while at < len {
            let Some(frame) = head(&input[at..]).ok().flatten().and_then(|h| input.get(at..at + h.total)) else {
                return;
            };
            self.each_text_in(input, at, frame, &mut each);
            at += frame.len();
        }
    }

    /// The same of the message at `at`.
    fn each_text_in(&self, input: &[u8], at: usize, frame: &[u8], each: &mut impl FnMut(&[u8])) {
        // What the unit has parsed itself has been seen, and is not what the session had under the name before.
        let known = |name: &[u8]| {
            Some(name).filter(|name| parsed_as(&input[..at], name).is_none()).and_then(|name| self.statements.sql(name))
        };
        let sql = match frame[0] {
            b'Q' => frontend::query(frame),
            b'P' => frontend::parse(frame).map(|p| p.sql),
            b'B' => frontend::bind(frame).and_then(|b| known(b.statement)),
            b'D' => match frontend::subject(frame) {
                Some(Subject::Statement(name)) => known(name),
                Some(Subject::Portal(_)) | None => None,
            },
            _ => None,
        }
        .unwrap_or_default();
        each(sql);
        // What an EXECUTE runs has been prepared before.
        if let Some(of) = executed(sql).and_then(|name| self.statements.sql(&name)) {
            each(of);
        }
    }

    /// What a unit executes that may set something to a parameter, with what is bound to that; the other texts as they are.
    pub(super) fn each_bound_text(&self, input: &[u8], unit: &Unit, mut each: impl FnMut(&[u8])) {
        let mut at = 0;
        while at < unit.len {
            let Some(frame) = head(&input[at..]).ok().flatten().and_then(|h| input.get(at..at + h.total)) else {
                return;
            };
            let parsed = match frame[0] {
                b'P' => frontend::parse(frame).map(|p| p.sql),
                b'B' => frontend::bind(frame)
                    .and_then(|b| parsed_as(&input[..at], b.statement).or_else(|| self.statements.sql(b.statement))),
                _ => None,
            };
            match (frame[0], parsed.filter(|sql| takes_value(sql))) {
                // It does nothing before it is bound.
                (b'P', Some(_)) => {}
                (_, Some(sql)) => each(&with_values(sql, &frontend::bind_values(frame).unwrap_or_default())),
                (_, None) => self.each_text_in(input, at, frame, &mut each),
            }
            at += frame.len();
        }
    }

    fn names(&self, input: &[u8], unit: &Unit, name: &str) -> bool {
        let mut named = false;
        self.each_text(input, unit, |sql| named |= find(sql, name.as_bytes()));
        named
    }

    /// Does a unit ask for a token that no position covers yet?
    pub(super) fn position_is_missing(&mut self, input: &[u8], unit: &Unit) -> bool {
        self.asks_token(input, unit) && self.token().is_err() && !self.standby_tells()
    }

    /// Does it ask for one?
    pub(super) fn asks_token(&self, input: &[u8], unit: &Unit) -> bool {
        tells(unit) && self.names(input, unit, TOLD[0])
    }

    /// Can the standby that the session has tell what covers all that was read?
    fn standby_tells(&self) -> bool {
        let standby = self.server.as_ref().filter(|s| s.meta.role == Role::Standby);
        let causality = self.causality.borrow();
        standby.is_some_and(|server| causality.shown_by(&server.meta.node) && causality.may_ask())
    }

    /// Is the standby at hand that shows all that the session has read, and is it fit to? It can tell what covers that, also
    /// while there is no primary.
    pub(super) fn shown_serves(&mut self, now: Instant) -> bool {
        let promise = self.promise();
        let stays = promise.consistency == Consistency::Session && promise.read_from == ReadFrom::Standby;
        let may = stays && self.server.is_none() && self.causality.borrow().may_ask();
        let Some(node) = may.then(|| self.causality.borrow().shown_at()).flatten() else { return false };
        self.w.still_fits(&node, &promise, &mut self.causality.borrow_mut(), now)
    }

    fn token(&mut self) -> Result<Option<Token>, crate::route::consistency::Pending> {
        let view = self.w.view.borrow();
        self.causality.borrow_mut().token(&view.topology, &view.lag)
    }

    fn handed_on(&self, token: Token) -> String {
        let system_id = self.w.view.borrow().topology.system_id;
        After { token, system_id }.to_string()
    }

    /// Give the server the values that a unit asks for. True when that takes an answer of the server first.
    pub(super) fn give_values(&mut self, input: &[u8], unit: &Unit) -> bool {
        let told = std::mem::take(&mut self.told);
        // A block that has failed takes nothing, and within a unit that is half sent nothing can be asked.
        if told || self.relay.status == TxStatus::Failed || self.relay.open.is_some() {
            return false;
        }
        if self.relay.busy() {
            return true;
        }
        let mut sql = String::new();
        for name in TOLD {
            if !self.names(input, unit, name) {
                continue;
            }
            let value = match name {
                "pgtenure.token" => match self.token() {
                    Ok(token) => token.map_or_else(String::new, |token| self.handed_on(token)),
                    Err(_) if tells(unit) && self.on_primary() && self.causality.borrow().may_ask() => {
                        self.send_position();
                        return true;
                    }
                    Err(_) if tells(unit) && self.standby_tells() => {
                        self.send_replayed();
                        return true;
                    }
                    Err(_) => String::new(),
                },
                "pgtenure.last_route" => self.show_route(),
                _ => self.shown_term().to_string(),
            };
            sql.push_str("SET ");
            sql.push_str(name);
            sql.push_str(" TO ");
            literal(&mut sql, &value);
            sql.push(';');
        }
        let mut asked = 0;
        self.each_text(input, unit, |sql| asked |= in_force::asked(sql));
        self.give_settings_in_force(&mut sql, asked);
        if sql.is_empty() {
            return false;
        }
        self.tracking.asked = Some(Asked::Tell);
        self.send_hidden(&sql);
        true
    }

    fn on_primary(&self) -> bool {
        self.server.as_ref().is_some_and(|s| s.meta.role == Role::Primary)
    }

    /// The term that what the session writes now is written in.
    fn shown_term(&self) -> Term {
        let held = self.server.as_ref().filter(|s| s.meta.role == Role::Primary).map(|s| s.meta.term);
        held.unwrap_or_else(|| self.w.view.borrow().topology.term)
    }

    /// The client is told of a later term before anything that is written in it is answered, and who reads at a standby once it
    /// is open.
    pub(super) fn tell_term(&mut self) {
        let Some(server) = &self.server else { return };
        let (on_primary, term) = (server.meta.role == Role::Primary, self.shown_term());
        let later = on_primary || term > self.term_told && self.w.view.borrow().topology.gate == Gate::Open;
        if term == self.term_told || !later {
            return;
        }
        // Nothing can be said in the middle of a message.
        if !self.tunnel && !self.relay.mid_frame() {
            self.term_told = term;
            self.to_client.append(|out| write_term(out, term));
        }
    }

    /// Between transactions: is the primary to be asked for its position, now that it is at hand?
    pub(super) fn ask_position(&mut self) -> bool {
        let each_write = self.w.config().reads.commit_lsn == CommitLsn::Ask;
        if !self.causality.borrow().asks(each_write) || !self.on_primary() || self.relay.busy() {
            return false;
        }
        if !self.reads_at_standbys() {
            return false;
        }
        self.send_position();
        true
    }

    /// Is the primary to be asked for its position in the same write as this unit, behind it? When it is whole, and what it
    /// commits ends with it: a COMMIT, or one statement that changes rows, outside a block. What it is not asked for so
    /// is asked for once it is answered.
    pub(super) fn asks_position_behind(&mut self, input: &[u8], unit: &Unit) -> bool {
        if self.w.config().reads.commit_lsn != CommitLsn::Ask || !self.on_primary() || !unit.complete {
            return false;
        }
        let (at, record) = (self.relay.leads_to(), &unit.record);
        let commits = match at {
            TxStatus::Block => record.is_commit() && self.may_have_xid,
            TxStatus::Idle => record.writes && record.leads_to(at) == TxStatus::Idle && unit.statements == 1,
            TxStatus::Failed => false,
        };
        // What comes behind a Flush executes what was bound before, of which nothing is known here.
        let whole = self.relay.open.is_none() && unit.tail_left == 0;
        let may = commits && whole && unit.len <= MAX_TEXT && self.causality.borrow().may_ask();
        if !may || self.relay.skipping() || self.relay.copy_in() || self.relay.is_blind() {
            return false;
        }
        let mut copies = false;
        if at == TxStatus::Idle {
            self.each_text(input, unit, |sql| copies |= !sql.is_empty() && !changes_rows(sql));
        }
        !copies && self.reads_at_standbys()
    }

    /// Of use only to who may read at a standby next.
    fn reads_at_standbys(&mut self) -> bool {
        let promise = self.promise();
        let promised = promise.consistency == Consistency::Session && promise.read_from == ReadFrom::Standby;
        let stays = self.mode == PoolMode::Session || !self.pins.without(Pins::of(PinReason::Set)).is_empty();
        // A session whose transactions are serializable has no reads there.
        let may = promised && !stays && self.access_outside() == Access::Read;
        may && !self.w.view.borrow().topology.standbys.is_empty()
    }

    fn send_position(&mut self) {
        bump(&self.w.counts.positions_after);
        self.tracking.asked = Some(Asked::Position { at: self.w.now() });
        self.send_hidden(POSITION);
    }

    fn send_replayed(&mut self) {
        self.tracking.asked = Some(Asked::Position { at: self.w.now() });
        self.send_hidden(REPLAYED);
    }

    /// The server has answered where its WAL ends.
    pub(super) fn positioned(&mut self, at: Instant, answer: &Hidden) {
        let Some(server) = &self.server else { return };
        let mut causality = self.causality.borrow_mut();
        if server.meta.role == Role::Standby {
            let view = self.w.view.borrow();
            match replayed(&answer.rows) {
                Some(lsn) => causality.replayed(at, lsn, &view.topology, &view.lag),
                None => causality.give_up(),
            }
            return;
        }
        match position(&answer.rows, server.meta.term) {
            Some(position) => causality.cover(at, position),
            None => causality.give_up(),
        }
    }

    /// A statement goes to the server.
    pub(super) fn note_route(&mut self, primary: bool, reason: Option<Reason>, kept: Pins, at: Instant) {
        let Some(serving) = self.presence.serving.get() else { return };
        let why = match reason {
            Some(reason) => Why::Chosen(reason),
            None if self.relay.status == TxStatus::Idle => Why::Kept(kept),
            None => Why::Block,
        };
        self.route = Some(Route { node: serving.node, primary, at, why });
        // Nothing can be said in the middle of a message.
        if self.explains() && !self.relay.mid_frame() {
            let text = self.show_route();
            self.to_client.append(|out| backend::write_notice(out, &text));
        }
    }

    fn show_route(&self) -> String {
        let Some(Route { node, primary, at, why }) = &self.route else { return String::new() };
        let role = if *primary { "primary" } else { "standby" };
        let node = self.w.node_at(*node).map_or_else(|| "unknown".to_owned(), |n| n.to_string());
        match why {
            Why::Chosen(reason) => {
                let ago = reason.waits_for(*at).map(|ago| format!(", {} ms before", ago.as_millis()));
                format!("{role} {node}: {}: {reason}{}", reason.as_str(), ago.unwrap_or_default())
            }
            Why::Block => format!("{role} {node}: same_server: its transaction block is there"),
            Why::Kept(pins) if pins.is_empty() => format!("{role} {node}: same_server: the session had it already"),
            Why::Kept(pins) => {
                let what = pins.list().into_iter().map(PinReason::as_str).collect::<Vec<_>>().join(", ");
                format!("{role} {node}: same_server: the session keeps it for {what}")
            }
        }
    }
}

/// May a unit be answered by the value that it asks for? A description alone is not; behind one without its Sync the value
/// may be asked for, and then nothing can be asked in between.
fn tells(unit: &Unit) -> bool {
    unit.statements > 0 || !unit.complete
}

/// Append the term as a setting that is reported: drivers keep those that they do not know.
pub(super) fn write_term(out: &mut Vec<u8>, term: Term) {
    backend::write_parameter_status(out, TOLD[2], &term.to_string());
}

/// The one row of an answer to [`POSITION`].
fn position(rows: &[Vec<Option<String>>], term: Term) -> Option<Token> {
    let [row] = rows else { return None };
    let [Some(lsn), Some(file)] = row.as_slice() else { return None };
    let timeline = TimelineId(u32::from_str_radix(file.get(..8)?, 16).ok()?);
    let lsn: Lsn = lsn.parse().ok()?;
    Some(Token { term, timeline, lsn: lsn.normalised_insert() })
}

/// The one value of an answer to [`REPLAYED`].
fn replayed(rows: &[Vec<Option<String>>]) -> Option<Lsn> {
    let [row] = rows else { return None };
    let [Some(lsn)] = row.as_slice() else { return None };
    lsn.parse().ok()
}

/// Is the name in the text?
pub(super) fn find(text: &[u8], name: &[u8]) -> bool {
    text.windows(name.len()).any(|w| w.eq_ignore_ascii_case(name))
}

/// The text of the statement that these whole messages parse under that name, the last one.
fn parsed_as<'a>(mut messages: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let mut found = None;
    while let Some(frame) = head(messages).ok().flatten().and_then(|h| messages.get(..h.total)) {
        if frame[0] == b'P'
            && let Some(parse) = frontend::parse(frame).filter(|p| p.name == name)
        {
            found = Some(parse.sql);
        }
        messages = &messages[frame.len()..];
    }
    found
}

/// Longest text in which parameters are replaced, and longest value, bytes.
const MAX_BOUND: usize = 4096;
const MAX_VALUE: usize = 128;

/// May a text set something to a parameter?
fn takes_value(sql: &[u8]) -> bool {
    sql.len() <= MAX_BOUND && sql.contains(&b'$') && find(sql, b"set_config")
}

/// A text with literals in place of its parameters, where their values are such that it means the same. A text is the same
/// bytes in both formats. NULL is none: it takes a setting back to what the startup packet says.
fn with_values(sql: &[u8], values: &[Option<&[u8]>]) -> Vec<u8> {
    let plain = |value: &&[u8]| {
        let part = |b: &u8| b.is_ascii_alphanumeric() || b"-/._".contains(b);
        value.len() <= MAX_VALUE && value.iter().all(part)
    };
    let (mut out, mut from) = (Vec::with_capacity(sql.len()), 0);
    for (at, number) in parameters(sql) {
        let value = usize::from(number).checked_sub(1).and_then(|i| values.get(i).copied().flatten());
        let Some(value) = value.filter(plain) else { continue };
        out.extend_from_slice(&sql[from..at.start]);
        out.push(b'\'');
        out.extend_from_slice(value);
        out.push(b'\'');
        from = at.end;
    }
    out.extend_from_slice(&sql[from..]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_is_read_from_its_row() {
        let row = |lsn: &str, file: &str| vec![vec![Some(lsn.to_owned()), Some(file.to_owned())]];
        let read = |rows: Vec<_>| position(&rows, Term(7)).map(|t| t.to_string());
        assert_eq!(read(row("0/16B3748", "0000000A0000000000000001")).as_deref(), Some("7-10-0/16B3748"));
        // Behind a page's header, which no standby replays by itself.
        assert_eq!(read(row("0/4002018", "000000010000000000000004")).as_deref(), Some("7-1-0/4002000"));
        assert_eq!(read(row("x", "000000010000000000000004")), None);
        assert_eq!(read(vec![]), None);
    }
}
