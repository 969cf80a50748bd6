//! An ErrorResponse: whose it is, what the server throws away behind it, and what has to be taken back.

use crate::session::outcome::Record;
use crate::session::relay::entry::is_no_text;
use crate::session::relay::{Event, Host, Kind, Relay, Step, Undo, Use};
use crate::wire::backend::{TxStatus, fields, with_name};
use crate::wire::codec::Sink;
use crate::wire::error_response::ClientError;

impl Relay {
    pub(super) fn error(
        &mut self,
        frame: &[u8],
        input: &[u8],
        span: std::ops::Range<usize>,
        sink: &mut Sink,
        host: &dyn Host,
    ) -> Step {
        let f = fields(frame);
        let mut code = [b'0'; 5];
        if f.code.len() == 5 {
            code.copy_from_slice(f.code);
        }
        // A transaction may be ended while it works, which only a COMMIT among what was sent leaves in doubt.
        let ended = match &code {
            b"25P03" | b"57P05" => !self.busy(),
            b"25P04" => !self.busy() || !self.may_commit(),
            _ => false,
        };
        if f.is_fatal() && ended {
            return Step::Stop(Event::TimedOut { code, told: frame.into() });
        }
        if f.is_fatal() {
            return Step::Stop(Event::Fatal { code });
        }
        let stale = code == *b"0A000" && f.routine == b"RevalidateCachedQuery";
        // That is a refusal, too.
        let told = if writes_wal(&code, f.routine) { *b"25006" } else { code };
        let may_run_again = self.retries && !self.delivered && self.queue.len() + usize::from(self.open.is_some()) > 0;
        let may_be_lacking = may_run_again && self.rechecks && self.status == TxStatus::Idle;
        let lacks = may_be_lacking && may_lack(&code, f.routine) && host.must_recheck();
        if may_run_again
            && (lacks
                || self.parse_only
                || self.hidden_unit()
                || (elsewhere(&told) && !stale && !self.is_kept(&told, f.routine)))
        {
            self.lacks = lacks.then(|| frame.into());
            self.serializable = f.routine == b"GetSerializableTransactionSnapshot";
            self.unfilled = f.routine == b"ExecOpenScanRelation";
            return Step::Stop(Event::Retry { code: told });
        }
        if self.retries && self.delivered && told == *b"25006" && !self.is_kept(&told, f.routine) {
            self.refused = Some(self.answered);
        }
        if self.hidden_unit() {
            self.fail_head(&code);
            self.untold = Some(frame.into());
            return Step::Pass { shown: false };
        }
        self.local_answers(input, sink);
        self.copy_in = false;
        self.fail_blind();
        if self.again {
            return Step::Pass { shown: false };
        }
        if stale && self.retire_head() {
            // A simple query is answered by a ReadyForQuery of its own.
            self.fail_head(&code);
            (self.again, self.withhold) = (true, true);
            return Step::Again;
        }
        if self.errors.len() < 16 {
            self.errors.push([code[0], code[1]]);
        }
        let named = self.queue.front_mut().and_then(|e| e.uses.take());
        let refusal = self.fail_head(&code);
        // Of a COMMIT that has failed nothing is left to be found out.
        (self.doubt, self.foiled, self.mark) = (None, None, None);
        self.failed = true;
        // What was to be prepared before it could not be, and that is why.
        if let Some(before) = self.untold.take() {
            if !self.withhold {
                sink.insert(input).extend_from_slice(&before);
            }
            return Step::Pass { shown: true };
        }
        match refusal {
            Some(error) => error.encode(sink.insert(input)),
            None if self.withhold => {}
            None => match named.and_then(|of| with_name(frame, &of.text.server_name, &of.name)) {
                Some(told) => sink.insert(input).extend_from_slice(&told),
                None => sink.pass(input, span),
            },
        }
        Step::Pass { shown: true }
    }

    /// Is what is answered now a unit of ours before one of the client's?
    fn hidden_unit(&self) -> bool {
        self.queue.iter().find(|e| e.kind.owes_ready()).is_some_and(|e| e.hidden)
    }

    /// The oldest message has failed: the error to tell instead, when there is one.
    fn fail_head(&mut self, code: &[u8; 5]) -> Option<Box<ClientError>> {
        let entry = self.queue.front_mut()?;
        if entry.kind.owes_ready() {
            // The ReadyForQuery comes by itself, or is the next Sync's.
            let mut undone = [std::mem::take(&mut entry.undo).of_failed(code)];
            self.hand_down_unnamed(&mut undone);
            self.undone.extend(undone);
            return None;
        }
        // A Parse under a name that is taken may fail for other reasons before that one.
        let refusal = entry.refusal.take().filter(|_| entry.kind != Kind::Parse || code == b"42P05");
        if let (Kind::Parse, Undo::Unnamed { client, server, .. }) = (entry.kind, &mut entry.undo) {
            // A Parse that is skipped leaves the unnamed statement as it was; one that fails destroys it first, unless
            // its bytes are not even a text.
            let before = client.take();
            *client = if is_no_text(code) { before } else { before.map(|_| None) };
            *server = Some(None);
        }
        if entry.kind == Kind::Execute {
            entry.undo = std::mem::take(&mut entry.undo).of_failed(code);
        }
        self.skip_to_sync();
        refusal
    }

    /// The oldest message failed because the result of its shared statement has other columns now. True when its client
    /// does not know the old ones and the whole of what is in flight can be sent again: nothing of it was executed, for that
    /// may be committed.
    fn retire_head(&mut self) -> bool {
        let Some(Use { text, name, first, foreign }) = self.queue.front_mut().and_then(|e| e.uses.take()) else {
            return false;
        };
        if foreign {
            return false;
        }
        self.retired.push(text);
        let alone = self.open.is_none() && self.owed - self.positions() == 1;
        if first {
            // Its client knows no columns of it still.
            self.unused.push(name);
        }
        let again = first && alone && self.head_kept && self.status == TxStatus::Idle && !self.delivered;
        again && !self.executed
    }

    /// Throw away what the server throws away after an error in the extended protocol.
    fn skip_to_sync(&mut self) {
        let mut swallowed = Record::default();
        let mut undone = Vec::new();
        loop {
            match self.queue.front_mut() {
                Some(entry) if entry.kind == Kind::Sync => {
                    if let Some(record) = &mut entry.record {
                        record.absorb(&swallowed);
                    }
                    break;
                }
                Some(_) => {
                    let entry = self.queue.pop_front().expect("front_mut was Some");
                    self.owed -= usize::from(entry.kind.owes_ready());
                    swallowed.absorb(&entry.record.unwrap_or_default());
                    undone.push(entry.undo);
                }
                None => {
                    self.skipping = true;
                    self.open.get_or_insert_default().absorb(&swallowed);
                    break;
                }
            }
        }
        self.hand_down_unnamed(&mut undone);
        self.undone.extend(undone.into_iter().rev());
    }

    /// A later unit that was sent already has put another unnamed statement in the place of what is taken back: that
    /// one stays, and what was before comes back only when it fails as well.
    fn hand_down_unnamed(&mut self, undone: &mut [Undo]) {
        let (mut of_client, mut of_server) = (None, None);
        for entry in &mut self.queue {
            if let Some((client, server)) = entry.undo.unnamed() {
                of_client = of_client.or(client.as_mut());
                of_server = of_server.or(server.as_mut());
            }
        }
        // From the last to the first: the oldest state is what remains.
        for undo in undone.iter_mut().rev() {
            if let Some((client, server)) = undo.unnamed() {
                if let Some(later) = &mut of_client
                    && let Some(before) = client.take()
                {
                    **later = before;
                }
                if let Some(later) = &mut of_server
                    && let Some(before) = server.take()
                {
                    **later = before;
                }
            }
        }
    }
}

impl Relay {
    /// Is the refusal of a standby for the client? But that it cannot run SERIALIZABLE is no answer to a read.
    fn is_kept(&self, code: &[u8; 5], routine: &[u8]) -> bool {
        self.keeps_refusals
            && matches!(code, b"25006" | b"0A000" | b"55000")
            && routine != b"GetSerializableTransactionSnapshot"
    }
}

/// Has a server in recovery refused to write, in a place of its code that nothing should have come to? What comes there is a
/// function that writes and does not ask first, as `pg_logical_emit_message`.
fn writes_wal(code: &[u8; 5], routine: &[u8]) -> bool {
    const REFUSE: [&[u8]; 4] = [b"XLogBeginInsert", b"GetNewTransactionId", b"GetNewMultiXactId", b"GetNewObjectId"];
    code == b"XX000" && REFUSE.contains(&routine)
}

/// Errors of a standby that the primary, or another standby, would not give: its being in recovery, conflicts with
/// recovery, deadlocks with the startup process, shutdown and crash, its own disk.
fn elsewhere(code: &[u8; 5]) -> bool {
    matches!(code, b"25006" | b"40001" | b"40P01" | b"55000" | b"0A000" | b"57P01" | b"57P02" | b"57P03" | b"57P04")
        || code.starts_with(b"58")
        || code.starts_with(b"XX")
        || code.starts_with(b"53")
}

/// Errors by which a server says that it does not know what a statement names, or knows it as something else, or that its user
/// may not use it: a standby may not have replayed yet what has changed that. All that is in the catalogs, and no more.
fn may_lack(code: &[u8; 5], routine: &[u8]) -> bool {
    const CODES: [&[u8; 5]; 11] = [
        b"42P01", // undefined_table
        b"42703", // undefined_column
        b"42883", // undefined_function
        b"42704", // undefined_object
        b"3F000", // invalid_schema_name
        b"42501", // insufficient_privilege
        b"42725", // ambiguous_function
        b"42804", // datatype_mismatch
        b"42809", // wrong_object_type
        b"42846", // cannot_coerce
        b"42803", // grouping_error: by a primary key the other columns are there as well
    ];
    // A new value of an enum as well, as a text or in binary.
    CODES.contains(&code) || code == b"22P02" && matches!(routine, b"enum_in" | b"enum_recv")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::relay::Entry;
    use crate::session::relay::testing::{error, feed, plain, shape, text};
    use crate::session::statements::Unnamed;
    use crate::sql::{FunctionTable, LexRules, classify};
    use crate::wire::backend::{write_bare, write_command_complete, write_ready};

    #[test]
    fn a_refused_read_of_a_standby_leaves_no_trace_unless_some_of_it_was_seen() {
        let mut refusal = Vec::new();
        write_bare(&mut refusal, b'1');
        write_bare(&mut refusal, b'2');
        let begun = refusal.len();
        error(&mut refusal, "ERROR", "40001", "ProcessInterrupts");
        for (pieces, delivered) in [(vec![], false), (vec![begun], true)] {
            let mut relay = Relay { standby: true, retries: true, ..Relay::default() };
            for kind in [Kind::Parse, Kind::Bind, Kind::Execute, Kind::Sync] {
                relay.push(plain(kind));
            }
            let (out, events) = feed(&mut relay, &refusal, &pieces);
            assert_eq!(relay.delivered(), delivered);
            if delivered {
                assert_eq!((shape(&out).as_str(), events.len()), ("12E(40001)", 0));
            } else {
                assert_eq!((shape(&out).as_str(), &events[..]), ("", &[Event::Retry { code: *b"40001" }][..]));
            }
        }
    }

    #[test]
    fn whatever_recovery_cancels_a_read_for_it_runs_elsewhere() {
        // By the startup process: a conflict, a deadlock with it, a database that was dropped.
        for (severity, code) in [("ERROR", b"40001"), ("ERROR", b"40P01"), ("FATAL", b"40001"), ("FATAL", b"57P04")] {
            let mut relay = Relay { standby: true, retries: true, ..Relay::default() };
            relay.push(plain(Kind::Query));
            let mut s = Vec::new();
            error(&mut s, severity, std::str::from_utf8(code).unwrap(), "ProcessInterrupts");
            let (out, events) = feed(&mut relay, &s, &[]);
            // One that ends the session is a lost server, from which a read that showed nothing is repeated.
            let want = if severity == "FATAL" { Event::Fatal { code: *code } } else { Event::Retry { code: *code } };
            assert_eq!((shape(&out).as_str(), events, relay.delivered()), ("", vec![want], false), "{code:?}");
        }
    }

    /// What a standby may lack, and a primary that is asked.
    struct Asked;

    impl Host for Asked {
        fn not_replicated(&self) -> ClientError {
            panic!("nothing is committed")
        }

        fn must_recheck(&self) -> bool {
            true
        }
    }

    #[test]
    fn what_a_standby_may_not_know_yet_is_asked_elsewhere_while_nothing_was_told_of_it() {
        for (code, routine, rechecks, delivered, asked) in [
            ("42P01", "parserOpenTable", true, false, true),
            ("42883", "ParseFuncOrColumn", true, false, true),
            ("22P02", "enum_in", true, false, true),
            ("22P02", "enum_recv", true, false, true),
            ("22P02", "pg_strtoint32_safe", true, false, false),
            ("42601", "scanner_yyerror", true, false, false),
            ("42P01", "parserOpenTable", false, false, false),
            ("42P01", "parserOpenTable", true, true, false),
        ] {
            let mut relay = Relay { standby: true, retries: true, rechecks, delivered, ..Relay::default() };
            relay.push(plain(Kind::Query));
            let mut s = Vec::new();
            error(&mut s, "ERROR", code, routine);
            let event = relay.server_bytes(&s, &mut Sink::new(Vec::new()), &Asked).event;
            assert_eq!((event.is_some(), relay.lacks.is_some()), (asked, asked), "{code} {routine}");
        }
        let mut relay = Relay { standby: true, retries: true, rechecks: true, ..Relay::default() };
        relay.push(plain(Kind::Query));
        let mut s = Vec::new();
        error(&mut s, "ERROR", "42P01", "parserOpenTable");
        assert_eq!(feed(&mut relay, &s, &[]).1, [], "no primary can be asked");
        let mut relay = Relay { standby: true, retries: true, rechecks: true, parse_only: true, ..Relay::default() };
        relay.push(plain(Kind::Query));
        let event = relay.server_bytes(&s, &mut Sink::new(Vec::new()), &Asked).event;
        assert!(event.is_some() && relay.lacks.is_some());
        let mut relay = Relay { standby: true, retries: true, rechecks: true, parse_only: true, ..Relay::default() };
        relay.push(plain(Kind::Query));
        assert_eq!(feed(&mut relay, &s, &[]).1.len(), 1, "nothing but a name is asked for, of another standby");
        assert!(relay.lacks.is_none());
    }

    #[test]
    fn a_session_that_the_server_ends_for_its_own_limit_is_told_so_only_when_nothing_was_sent() {
        let mut s = Vec::new();
        error(&mut s, "FATAL", "25P03", "ProcessInterrupts");
        let code = *b"25P03";
        let (out, events) = feed(&mut Relay::default(), &s, &[]);
        assert_eq!((out.len(), events), (0, vec![Event::TimedOut { code, told: s.as_slice().into() }]));
        let mut relay = Relay::default();
        relay.push(plain(Kind::Query));
        assert_eq!(feed(&mut relay, &s, &[]).1, [Event::Fatal { code }]);
    }

    #[test]
    fn a_transaction_that_the_server_ends_at_work_is_told_so_unless_it_may_commit() {
        let mut s = Vec::new();
        error(&mut s, "FATAL", "25P04", "ProcessInterrupts");
        let code = *b"25P04";
        for (commits, want) in
            [(false, Event::TimedOut { code, told: s.as_slice().into() }), (true, Event::Fatal { code })]
        {
            let mut relay = Relay { status: TxStatus::Block, ..Relay::default() };
            let mut record = Record::default();
            if commits {
                record.execute(&classify(b"commit", &FunctionTable::unloaded(), LexRules::STANDARD));
            } else {
                record.execute(&classify(b"update t set a = 1", &FunctionTable::unloaded(), LexRules::STANDARD));
            }
            relay.push(Entry { record: Some(record), ..plain(Kind::Query) });
            assert_eq!(feed(&mut relay, &s, &[]).1, [want]);
        }
    }

    /// A unit that binds a shared statement whose result has changed since it was prepared.
    fn stale(first: bool, kept: bool) -> (Relay, String, Vec<Event>) {
        let mut relay = Relay { head_kept: kept, ..Relay::default() };
        relay.push(Entry { undo: Undo::Registered((*b"s").into()), ..plain(Kind::LocalParse) });
        relay.push(Entry {
            uses: Some(Use { text: text("s"), name: b"s".as_slice().into(), first, foreign: false }),
            ..plain(Kind::Bind)
        });
        relay.push(plain(Kind::Execute));
        relay.push(plain(Kind::Sync));
        let mut s = Vec::new();
        error(&mut s, "ERROR", "0A000", "RevalidateCachedQuery");
        write_ready(&mut s, TxStatus::Idle);
        let (out, events) = feed(&mut relay, &s, &[]);
        (relay, shape(&out), events)
    }

    #[test]
    fn a_result_that_changed_is_hidden_only_from_a_client_that_does_not_know_the_old_one() {
        let (relay, out, events) = stale(true, true);
        assert_eq!((out.as_str(), events), ("", vec![Event::Again]));
        assert_eq!((relay.retired.len(), relay.pending(), relay.delivered()), (1, 0, false));
        assert!(matches!(&relay.undone[..], [Undo::None, .., Undo::Registered(_)]), "{:?}", relay.undone);
        for (first, kept) in [(false, true), (true, false)] {
            let (relay, out, events) = stale(first, kept);
            assert_eq!((out.as_str(), events), ("1E(0A000)Z", vec![Event::Idle]));
            assert_eq!(relay.retired.len(), 1);
        }
    }

    /// EXECUTE by a simple query has no Sync to skip to.
    #[test]
    fn a_result_that_changed_is_hidden_from_a_simple_query() {
        let mut relay = Relay { head_kept: true, ..Relay::default() };
        let of = Use { text: text("s"), name: (*b"s").into(), first: true, foreign: false };
        relay.push(Entry { uses: Some(of), ..plain(Kind::Query) });
        let mut s = Vec::new();
        error(&mut s, "ERROR", "0A000", "RevalidateCachedQuery");
        write_ready(&mut s, TxStatus::Idle);
        let (out, events) = feed(&mut relay, &s, &[]);
        assert_eq!((shape(&out).as_str(), events), ("", vec![Event::Again]));
        assert_eq!((relay.retired.len(), relay.pending(), relay.owed(), relay.busy()), (1, 0, 0, false));
    }

    #[test]
    fn a_skipped_parse_leaves_the_unnamed_statement_and_a_failed_one_destroys_it() {
        let class =
            crate::sql::classify(b"select", &crate::sql::FunctionTable::unloaded(), crate::sql::LexRules::STANDARD);
        let before = || Unnamed { serial: 7, tail: None, class };
        for failed in [true, false] {
            let mut relay = Relay::default();
            if !failed {
                relay.push(plain(Kind::Bind));
            }
            let undo = Undo::Unnamed { client: Some(Some(before())), server: Some(Some(7)), illegible: false };
            relay.push(Entry { undo, ..plain(Kind::Parse) });
            relay.push(plain(Kind::Sync));
            let mut s = Vec::new();
            error(&mut s, "ERROR", "42601", "r");
            feed(&mut relay, &s, &[]);
            let kept = relay.undone.iter().find_map(|undo| match undo {
                Undo::Unnamed { client: Some(client), server: Some(server), .. } => {
                    Some((client.is_some(), server.is_some()))
                }
                _ => None,
            });
            assert_eq!(kept, Some((!failed, !failed)));
        }
    }

    #[test]
    fn a_unit_of_which_something_was_executed_is_not_sent_again() {
        let uses = Use { text: text("s"), name: b"s".as_slice().into(), first: true, foreign: false };
        let mut relay = Relay { head_kept: true, ..Relay::default() };
        relay.push(plain(Kind::Execute));
        relay.push(Entry { uses: Some(uses), ..plain(Kind::Bind) });
        relay.push(plain(Kind::Sync));
        let mut said = Vec::new();
        write_command_complete(&mut said, "COMMIT");
        error(&mut said, "ERROR", "0A000", "RevalidateCachedQuery");
        write_ready(&mut said, TxStatus::Idle);
        let (told, events) = feed(&mut relay, &said, &[]);
        assert_eq!((shape(&told).as_str(), events), ("CE(0A000)Z", vec![Event::Idle]));
    }
}
