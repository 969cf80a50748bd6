//! What a session's texts mean for routing: the classifier's verdict, and what standbys have refused lately.

use crate::metrics::bump;
use crate::route::{Misroutes, Reason};
use crate::session::client::Session;
use crate::sql::{Access, FunctionTable, LexRules, Recall, Statement, executed, fingerprint};
use crate::wire::codec::head;
use crate::wire::frontend;
use crate::worker::Worker;
use cluster::{Clock, Instant};
use std::cell::{Ref, RefCell};

/// SQLSTATEs by which a standby says that a statement is none for it: read_only_sql_transaction,
/// feature_not_supported, object_not_in_prerequisite_state.
const REFUSALS: [&[u8; 5]; 3] = [b"25006", b"0A000", b"55000"];

/// Tells what texts do.
pub(super) struct Classifier<'a> {
    table: &'a FunctionTable,
    lex: LexRules,
    database: &'a str,
    misroutes: Ref<'a, Misroutes>,
    recall: &'a RefCell<Recall>,
}

impl<'a> Classifier<'a> {
    pub(super) fn new(table: &'a FunctionTable, lex: LexRules, database: &'a str, w: &'a Worker) -> Self {
        Self { table, lex, database, misroutes: w.misroutes.borrow(), recall: &w.recall }
    }

    /// What a text does.
    pub(super) fn of(&self, sql: &[u8]) -> Statement {
        let class = self.recall.borrow_mut().of(sql, self.table, self.lex);
        if class.access == Access::Read && !self.misroutes.is_empty() && self.refused(sql, Clock.now()) {
            return Statement { access: Access::Write, quiet: false, ..class };
        }
        class
    }

    fn refused(&self, sql: &[u8], now: Instant) -> bool {
        self.misroutes.holds(shape(self.database, sql), now)
    }
}

/// A number for the shape of a text in a database: names mean something else in another one.
pub(crate) fn shape(database: &str, sql: &[u8]) -> u64 {
    fingerprint(sql).rotate_left(1) ^ fingerprint(database.as_bytes())
}

impl Session {
    pub(super) fn classifier(&self) -> Classifier<'_> {
        Classifier::new(&self.table, self.lex, &self.identity.dbname, &self.w)
    }

    /// What is known has changed: prepared statements may mean something else.
    pub(super) fn reclassify(&mut self) {
        self.misroutes = self.w.misroutes.borrow().version();
        let mut statements = std::mem::take(&mut self.statements);
        let classifier = self.classifier();
        statements.reclassify(|sql| classifier.of(sql));
        drop(classifier);
        self.statements = statements;
    }

    /// A standby refuses the unit behind so many in flight that are answered: it goes to the primary if it is sent again, and its
    /// shapes do for a while.
    pub(super) fn remember_refusal(&mut self, code: [u8; 5], before: usize) {
        if std::mem::take(&mut self.relay.serializable) {
            // Not the statement is to blame: this role has SERIALIZABLE for a default.
            (self.serializable, self.promised) = (true, None);
            return;
        }
        if !REFUSALS.contains(&&code) {
            return;
        }
        self.refused = true;
        if std::mem::take(&mut self.relay.unfilled) {
            return;
        }
        let remember = self.w.config().reads.remember_refused.0;
        let from = self.retained_lens.iter().take(before).sum::<usize>();
        let len = self.retained_lens.get(before).copied().unwrap_or(0);
        let reads = {
            let classifier = self.classifier();
            self.shapes(&self.retained[from..from + len], |sql| classifier.of(sql).access == Access::Read)
        };
        for shape in reads {
            if self.w.misroutes.borrow_mut().refused(shape, self.w.now(), remember) {
                bump(&self.w.counts.misroutes);
                let code = String::from_utf8_lossy(&code).into_owned();
                let (database, shape) = (&*self.identity.dbname, format!("{shape:016x}"));
                tracing::debug!(database, shape, code, "statement refused by a standby, its shape goes to the primary");
            }
        }
    }

    /// It went to the primary because a standby has refused what it runs: that is the reason, then.
    pub(super) fn tell_refused_before(&mut self, unit: &[u8], now: Instant) {
        if self.reason != Reason::Write.as_str() || !self.refused && self.w.misroutes.borrow().is_empty() {
            return;
        }
        let shapes = self.shapes(unit, |_| true);
        let misroutes = self.w.misroutes.borrow();
        if self.refused || shapes.iter().any(|shape| misroutes.holds(*shape, now)) {
            self.reason = Reason::RefusedBefore.as_str();
            self.chosen = self.chosen.take().map(|_| Reason::RefusedBefore);
        }
    }

    /// Log where a unit goes, if it is one of those that are logged: its shapes, never its text.
    pub(super) fn log_route(&self, unit: &[u8], now: Instant) {
        let every = self.w.config().reads.log_one_in;
        if every == 0 {
            return;
        }
        let mut sample = self.w.sample.get();
        let takes = sample.takes(every, now);
        self.w.sample.set(sample);
        let Some(server) = self.server.as_ref().filter(|_| takes) else { return };
        let shapes = self.shapes(unit, |_| true);
        let shapes = shapes.iter().map(|shape| format!("{shape:016x}")).collect::<Vec<_>>().join(",");
        let (node, role, database) = (&server.meta.node, server.meta.role, &*self.identity.dbname);
        tracing::info!(%node, ?role, reason = self.reason, database, shapes, "statement routed");
    }

    /// The shapes of what a unit parses or executes, and of the statements that its EXECUTEs name. What it parses and executes
    /// counts once.
    fn shapes(&self, unit: &[u8], counts: impl Fn(&[u8]) -> bool) -> Vec<u64> {
        let (mut shapes, mut parsed, mut at) = (Vec::new(), Vec::new(), 0);
        let mut add = |sql: &[u8]| {
            let named = executed(sql).and_then(|name| self.statements.sql(&name));
            let texts = std::iter::once(sql).chain(named).filter(|sql| counts(sql));
            shapes.extend(texts.map(|sql| shape(&self.identity.dbname, sql)));
        };
        while let Ok(Some(head)) = head(&unit[at..]) {
            let Some(frame) = unit.get(at..at + head.total) else { break };
            match head.kind {
                b'Q' => frontend::query(frame).into_iter().for_each(&mut add),
                b'P' => frontend::parse(frame).into_iter().for_each(|p| {
                    parsed.push(p.name);
                    add(p.sql);
                }),
                b'B' => {
                    let bound = frontend::bind(frame).filter(|b| !parsed.contains(&b.statement));
                    bound.and_then(|b| self.statements.sql(b.statement)).into_iter().for_each(&mut add);
                }
                _ => {}
            }
            at += head.total;
        }
        shapes
    }
}
