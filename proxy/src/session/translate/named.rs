//! What SQL does with prepared statements by their names: PREPARE, EXECUTE and DEALLOCATE.
//!
//! Their texts go to the server as they are, so that whatever it says of them is what the client would be told. Before
//! them the server is made to have under the names in them what the client has, and nothing where it has nothing.

use super::{Naming, Translator, Use};
use crate::session::portals::{self, Portal};
use crate::session::relay::{Entry, Kind, Undo};
use crate::session::statements::{Named, Source, Text};
use crate::sql::{Name, Names, deallocated, executed, prepared};
use crate::wire::backend::TxStatus;
use crate::wire::codec::{Sink, cstring, message, split_cstring};
use crate::wire::frontend::{self, write_parse, write_query_bytes, write_subject};
use std::rc::Rc;

/// The statement and the portal by which SQL PREPARE is sent within a unit of the client's, whose own unnamed ones stay.
const REPLAY: &[u8] = b"pgtenure_replay";

impl Translator<'_> {
    /// A Query of a text with names; what to take back when it fails. `apart`: nothing stands before it in its unit.
    pub(super) fn query_by_name(
        &mut self,
        input: &[u8],
        frame: &[u8],
        names: Names,
        apart: bool,
        uses: &mut Option<Use>,
        sink: &mut Sink,
    ) -> Undo {
        // One that is too long has not come whole.
        let sql = frontend::query(frame).unwrap_or(&frame[5..]);
        let undo = self.run(input, names, sql, apart, sink);
        if let (Names::Execute { .. }, Some(name)) = (names, executed(sql)) {
            // Its columns come with every result, so that nobody knows older ones.
            let of = |text| Use { text, name: (&*name).into(), first: true, foreign: false };
            *uses = self.under_its_name(&name).map(of).filter(|_| self.naming != Naming::Own);
        }
        undo
    }

    /// A statement with names is parsed, described or bound: what it results in is looked up then.
    pub(super) fn names_ready(&mut self, input: &[u8], names: Names, sql: &[u8], apart: bool, sink: &mut Sink) {
        if matches!(names, Names::Execute { .. } | Names::Several | Names::List) {
            self.run(input, names, sql, apart, sink);
        }
    }

    /// A Describe of a statement that may have names: the client may have made or dropped them since it was parsed, and
    /// others may have left theirs.
    pub(super) fn describe_by_name(&mut self, input: &[u8], name: &[u8], apart: bool, sink: &mut Sink) {
        let Some(class) = self.client.class(name).filter(|class| class.names != Names::None) else { return };
        let sql: Box<[u8]> = self.client.sql(name).unwrap_or_default().into();
        self.names_ready(input, class.names, &sql, apart, sink);
    }

    /// The same of a portal.
    pub(super) fn describe_portal_by_name(&mut self, input: &[u8], name: &[u8], sink: &mut Sink) {
        if let Some(portal) = self.portal(name) {
            self.names_ready(input, portal.names, portal.sql(), false, sink);
        }
    }

    fn portal(&self, name: &[u8]) -> Option<Portal> {
        self.client.portals.get(name).cloned()
    }

    /// A Bind, in a unit with names or a transaction with portals that have. False when there is no room for its portal.
    pub(super) fn bind_by_name(&mut self, input: &[u8], frame: &[u8], sink: &mut Sink) -> bool {
        let Some(b) = frontend::bind(frame) else { return true };
        self.client.portals.remove(b.portal);
        let Some(class) = self.client.class(b.statement).filter(|class| class.names != Names::None) else {
            return true;
        };
        let source = match self.client.named(b.statement) {
            Some(named) => portals::Source::Named(named.text.clone()),
            None => portals::Source::Unnamed(self.client.sql(b.statement).unwrap_or_default().into()),
        };
        let portal = Portal { names: class.names, source };
        if !self.client.has_room(b.portal, portal.length(), self.statement_bytes) {
            return false;
        }
        self.names_ready(input, class.names, portal.sql(), false, sink);
        self.client.portals.insert(b.portal, portal);
        true
    }

    /// An Execute of a portal that has names, which it looks up again; what to take back when it fails.
    pub(super) fn execute_by_name(&mut self, input: &[u8], frame: &[u8], sink: &mut Sink) -> Undo {
        let Some((portal, _)) = split_cstring(&frame[5..]) else { return Undo::None };
        let Some(portal) = self.portal(portal) else { return Undo::None };
        self.run(input, portal.names, portal.sql(), false, sink)
    }

    /// A text is to be run: have ready what it names. What to take back when it fails.
    fn run(&mut self, input: &[u8], names: Names, sql: &[u8], apart: bool, sink: &mut Sink) -> Undo {
        match names {
            _ if self.failed => {}
            Names::None => {}
            Names::Prepare => {
                let Some((name, statement)) = prepared(sql) else { return Undo::None };
                // That the name is taken, only the server can say: it finds first what else is wrong.
                if self.client.named(&name).is_some() && self.relay.status == TxStatus::Idle {
                    self.taken(input, &name, sink);
                    return Undo::None;
                }
                self.agree(input, &name, apart, sink);
                if self.client.named(&name).is_none() {
                    return self.register(input, &name, sql, statement, sink);
                }
            }
            Names::Deallocate => {
                if let Some(name) = deallocated(sql) {
                    return self.deallocate(input, &name, sink);
                }
            }
            Names::Execute { .. } => {
                let Some(name) = executed(sql) else { return Undo::None };
                if self.client.class(&name).is_some_and(|class| class.names == Names::List) {
                    self.show_all(input, apart, sink);
                }
                self.agree(input, &name, apart, sink);
            }
            // What follows a simple query of it waits for the answer.
            Names::All if apart => {}
            Names::All => return Undo::Forgotten(Box::new((self.client.forget(), Some(self.server.forget())))),
            Names::Several => {
                self.close_others(input, sink);
                for name in self.mentioned(sql) {
                    self.agree(input, &name, apart, sink);
                }
            }
            Names::List => self.show_all(input, apart, sink),
            Names::Unknown => return self.let_go(input, sql, apart, sink),
        }
        Undo::None
    }

    /// Make the server have under `name` what the client has.
    fn agree(&mut self, input: &[u8], name: &[u8], apart: bool, sink: &mut Sink) {
        let (text, holder) = (self.under_its_name(name), self.server.holder(name));
        match (text, holder) {
            (Some(text), Some(id)) if text.id == id => _ = self.server.has(id),
            (Some(text), _) => self.prepare(input, &text, None, apart, sink),
            (None, Some(id)) => self.close_hidden(input, id, sink),
            (None, None) => {}
        }
    }

    /// The client's statement of this name, as it is under this name on servers.
    fn under_its_name(&mut self, name: &[u8]) -> Option<Rc<Text>> {
        let naming = self.naming;
        let named = self.client.named_mut(name)?;
        let Naming::Shared { parse_key, .. } = naming else { return Some(named.text.clone()) };
        let fresh = |text: &Rc<Text>| text.parse_key == parse_key && !text.is_retired();
        if named.text.source == Source::Shared {
            let known = named.alias.take().filter(fresh);
            let alias = known.unwrap_or_else(|| self.texts.alias(name, &named.text, parse_key));
            named.alias = Some(alias.clone());
            return Some(alias);
        }
        if !fresh(&named.text) {
            named.text = self.texts.again(&named.text, parse_key);
        }
        Some(named.text.clone())
    }

    /// PREPARE under a name that is free on both sides.
    fn register(&mut self, input: &[u8], name: &Name, sql: &[u8], statement: &[u8], sink: &mut Sink) -> Undo {
        let class = (self.classify)(statement);
        let parse_key = match self.naming {
            Naming::Shared { parse_key, .. } => parse_key,
            Naming::Own => 0,
        };
        let text = self.texts.intern_named(name, &[sql, &[0; 3]].concat(), parse_key, Source::Sql);
        self.client.insert(Named::new(name, text.clone(), class));
        let limit = if self.naming == Naming::Own { usize::MAX } else { self.server_bytes };
        for id in self.server.insert(&text, limit) {
            self.close_hidden(input, id, sink);
        }
        (self.done.client_parses, self.done.server_parses) = (self.done.client_parses + 1, self.done.server_parses + 1);
        Undo::Prepared(text, Some((**name).into()))
    }

    /// Have a statement of this name, whatever it is: where the server has none it gets an empty one, which cannot fail.
    fn taken(&mut self, input: &[u8], name: &[u8], sink: &mut Sink) {
        if self.server.holder(name).is_none() {
            let stand_in = self.texts.own(name, &[0; 3]);
            self.prepare(input, &stand_in, None, false, sink);
        }
    }

    /// DEALLOCATE of whatever the server has under that name.
    fn deallocate(&mut self, input: &[u8], name: &[u8], sink: &mut Sink) -> Undo {
        let holder = self.server.holder(name);
        let Some(old) = self.client.remove(name) else {
            if let Some(id) = holder {
                self.close_hidden(input, id, sink);
            }
            return Undo::None;
        };
        self.taken(input, name, sink);
        let there = self.server.holder(name).and_then(|id| Some(Undo::Closed(id, self.server.remove(id)?)));
        there.unwrap_or_default().and(Undo::Removed(old))
    }

    /// The client's names that a text may have in it.
    fn mentioned(&self, sql: &[u8]) -> Vec<Rc<[u8]>> {
        let part = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'$' | 0x80..);
        let is_word = |name: &[u8]| sql.split(|b| !part(b)).any(|word| word.eq_ignore_ascii_case(name));
        // Of an odd name one cannot tell.
        let here = |name: &Rc<[u8]>| !name.iter().all(part) || is_word(name);
        self.client.names().filter(|name| here(name)).cloned().collect()
    }

    /// Have all that the client has under its names, and nothing else.
    fn show_all(&mut self, input: &[u8], apart: bool, sink: &mut Sink) {
        let names: Vec<Rc<[u8]>> = self.client.names().cloned().collect();
        let texts: Vec<Rc<Text>> = names.iter().filter_map(|name| self.under_its_name(name)).collect();
        for id in self.server.ids() {
            if !texts.iter().any(|text| text.id == id) {
                self.close_hidden(input, id, sink);
            }
        }
        for name in names {
            self.agree(input, &name, apart, sink);
        }
    }

    /// Close what other clients, or this one once, have made under names of theirs.
    fn close_others(&mut self, input: &[u8], sink: &mut Sink) {
        let own: Vec<(Rc<[u8]>, u64)> = self.server.own().map(|(name, id)| (name.into(), id)).collect();
        for (name, id) in own {
            if self.under_its_name(&name).is_none_or(|text| text.id != id) {
                self.close_hidden(input, id, sink);
            }
        }
    }

    /// A text does what is not found out. It has what the client has, and nothing of others; from then on the names in it
    /// are the server's alone, and the session stays there.
    fn let_go(&mut self, input: &[u8], sql: &[u8], apart: bool, sink: &mut Sink) -> Undo {
        self.close_others(input, sink);
        let mut undo = Undo::None;
        for name in self.mentioned(sql) {
            self.agree(input, &name, apart, sink);
            let there = self.server.holder(&name).and_then(|id| Some((id, self.server.remove(id)?)));
            if let Some(named) = self.client.remove(&name) {
                undo = undo.and(Undo::LetGo(named, there));
            }
        }
        undo
    }

    /// SQL PREPARE as the client sent it once, hidden.
    pub(super) fn replay(&mut self, input: &[u8], text: &Text, undo: Undo, apart: bool, sink: &mut Sink) {
        let hidden = |kind| Entry { hidden: true, ..Entry::plain(kind) };
        if apart {
            // A simple query destroys the unnamed statement.
            self.server.unnamed = None;
            write_query_bytes(sink.insert(input), split_cstring(&text.tail).map_or(b"", |(sql, _)| sql));
            return self.relay.push(Entry { undo, ..hidden(Kind::Query) });
        }
        self.free(input, REPLAY, sink);
        let out = sink.insert(input);
        write_parse(out, REPLAY, &text.tail);
        message(out, b'B', |b| {
            cstring(b, REPLAY);
            cstring(b, REPLAY);
            b.extend_from_slice(&[0; 6]);
        });
        message(out, b'E', |b| {
            cstring(b, REPLAY);
            b.extend_from_slice(&[0; 4]);
        });
        message(out, b'C', |b| {
            b.push(b'P');
            cstring(b, REPLAY);
        });
        write_subject(out, b'C', REPLAY);
        self.relay.push(hidden(Kind::Parse));
        self.relay.push(hidden(Kind::Bind));
        self.relay.push(Entry { undo, ..hidden(Kind::Execute) });
        self.relay.push(hidden(Kind::Close));
        self.relay.push(hidden(Kind::Close));
    }
}
