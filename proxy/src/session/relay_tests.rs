use super::*;
use crate::sql::{FunctionTable, LexRules, classify};
use crate::wire::backend::{fields, write_bare, write_command_complete, write_ready};
use crate::wire::codec::{cstring, message};
use proptest::prelude::*;

fn doubt() -> ClientError {
    ClientError::InFailedTransaction
}

fn plain(kind: Kind) -> Entry {
    let record = kind.owes_ready().then(Record::default);
    Entry { record, ..Entry::plain(kind) }
}

fn hidden(kind: Kind) -> Entry {
    Entry { hidden: true, ..plain(kind) }
}

fn error(out: &mut Vec<u8>, severity: &str, code: &str, routine: &str) {
    message(out, if severity == "WARNING" { b'N' } else { b'E' }, |b| {
        for (kind, text) in [(b'S', severity), (b'V', severity), (b'C', code), (b'M', "m"), (b'R', routine)] {
            b.push(kind);
            cstring(b, text.as_bytes());
        }
        b.push(0);
    });
}

/// The messages in `bytes`: type, and for an error its code.
fn shape(bytes: &[u8]) -> String {
    let (mut at, mut out) = (0, String::new());
    while let Some(h) = head(&bytes[at..]).unwrap() {
        let frame = &bytes[at..at + h.total];
        out.push(h.kind as char);
        if h.kind == b'E' {
            out.push_str(&format!("({})", String::from_utf8_lossy(fields(frame).code)));
        }
        at += h.total;
    }
    assert_eq!(at, bytes.len(), "whole messages only");
    out
}

/// Feed `input` in pieces of the given sizes, as sockets do.
fn feed(relay: &mut Relay, input: &[u8], pieces: &[usize]) -> (Vec<u8>, Vec<Event>) {
    let (mut out, mut events, mut left, mut fed) = (Vec::new(), Vec::new(), Vec::new(), 0);
    let mut pieces = pieces.iter().copied().chain(std::iter::repeat(usize::MAX));
    while fed < input.len() {
        let n = pieces.next().unwrap().clamp(1, input.len() - fed);
        left.extend_from_slice(&input[fed..fed + n]);
        fed += n;
        loop {
            let mut sink = Sink::default();
            let progress = relay.server_bytes(&left, &mut sink, &doubt);
            out.extend_from_slice(sink.bytes(&left));
            left.drain(..progress.consumed);
            match progress.event {
                Some(event @ Event::Retry { .. }) => {
                    events.push(event);
                    return (out, events);
                }
                Some(event) => events.push(event),
                None => break,
            }
            if left.is_empty() {
                break;
            }
        }
    }
    (out, events)
}

/// An extended unit whose Parse is hidden and whose Close is ours, then a simple query, then one that fails.
fn conversation() -> (Relay, Vec<u8>, &'static str) {
    let mut relay = Relay::default();
    for entry in [
        hidden(Kind::Parse),
        plain(Kind::Bind),
        plain(Kind::LocalClose),
        plain(Kind::DescribePortal),
        plain(Kind::Execute),
        plain(Kind::LocalParse),
        plain(Kind::Sync),
        plain(Kind::Query),
        plain(Kind::Bind),
        plain(Kind::Execute),
        plain(Kind::Query),
        plain(Kind::Sync),
    ] {
        relay.push(entry);
    }
    let mut s = Vec::new();
    write_bare(&mut s, b'1');
    write_bare(&mut s, b'2');
    message(&mut s, b'T', |b| b.extend_from_slice(&[0, 0]));
    for row in [10, 70_000, 3] {
        message(&mut s, b'D', |b| b.extend(vec![b'x'; row]));
    }
    write_command_complete(&mut s, "SELECT 3");
    write_ready(&mut s, TxStatus::Idle);
    message(&mut s, b'T', |b| b.extend_from_slice(&[0, 0]));
    backend::write_parameter_status(&mut s, "TimeZone", "UTC");
    write_command_complete(&mut s, "SELECT 0");
    write_ready(&mut s, TxStatus::Block);
    error(&mut s, "ERROR", "26000", "r");
    write_ready(&mut s, TxStatus::Failed);
    (relay, s, "23TDDDC1ZTSCZE(26000)Z")
}

proptest! {
    #[test]
    fn any_split_of_the_stream_gives_the_same_answer(pieces in prop::collection::vec(1usize..40_000, 0..30), tiny in prop::collection::vec(1usize..9, 0..60)) {
        for pieces in [&pieces, &tiny] {
            let (mut relay, input, want) = conversation();
            let (out, events) = feed(&mut relay, &input, pieces);
            prop_assert_eq!(shape(&out), want);
            prop_assert_eq!(events, [Event::Idle]);
            prop_assert_eq!((relay.status, relay.answered, relay.owed(), relay.pending()), (TxStatus::Failed, 3, 0, 0));
        }
    }

    #[test]
    fn garbage_of_a_server_is_an_event_and_never_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut relay = Relay::default();
        relay.push(plain(Kind::Query));
        let mut sink = Sink::default();
        let progress = relay.server_bytes(&bytes, &mut sink, &doubt);
        prop_assert!(progress.consumed <= bytes.len());
    }
}

#[test]
fn a_success_behind_the_notice_of_a_cancelled_wait_is_replaced() {
    // Simple: the notice comes before the tag. Extended: the tag has gone out, the commit comes with the Sync.
    let mut relay = Relay::default();
    relay.push(plain(Kind::Query));
    let mut s = Vec::new();
    error(&mut s, "WARNING", "01000", "SyncRepWaitForLSN");
    write_command_complete(&mut s, "INSERT 0 1");
    write_ready(&mut s, TxStatus::Idle);
    assert_eq!(shape(&feed(&mut relay, &s, &[]).0), "NE(25P02)Z");
    relay.push(plain(Kind::Execute));
    relay.push(plain(Kind::Sync));
    let mut s = Vec::new();
    write_command_complete(&mut s, "INSERT 0 1");
    error(&mut s, "WARNING", "01000", "SyncRepWaitForLSN");
    write_ready(&mut s, TxStatus::Idle);
    assert_eq!(shape(&feed(&mut relay, &s, &[]).0), "CNE(25P02)Z");
    relay.push(plain(Kind::Query));
    let mut s = Vec::new();
    write_command_complete(&mut s, "INSERT 0 1");
    write_ready(&mut s, TxStatus::Idle);
    assert_eq!(shape(&feed(&mut relay, &s, &[]).0), "CZ");
}

#[test]
fn a_setting_of_megabytes_is_reported() {
    let mut relay = Relay::default();
    relay.push(plain(Kind::Query));
    let (mut s, path) = (Vec::new(), "p, ".repeat(1 << 20));
    backend::write_parameter_status(&mut s, "search_path", &path);
    write_command_complete(&mut s, "SET");
    write_ready(&mut s, TxStatus::Idle);
    let (out, events) = feed(&mut relay, &s, &[1 << 20, 1 << 20]);
    assert_eq!((shape(&out).as_str(), events.as_slice()), ("SCZ", &[Event::Idle][..]));
    assert_eq!(relay.reported[0].value, path);
}

#[test]
fn a_doubt_is_told_once_however_often_it_is_raised() {
    let mut relay = Relay::default();
    relay.push(plain(Kind::Query));
    let mut s = Vec::new();
    write_command_complete(&mut s, "INSERT 0 1");
    relay.doubt(doubt());
    assert_eq!(shape(&feed(&mut relay, &s, &[]).0), "E(25P02)");
    s.clear();
    write_ready(&mut s, TxStatus::Idle);
    relay.doubt(doubt());
    assert_eq!(shape(&feed(&mut relay, &s, &[]).0), "Z");
}

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
    for (commits, want) in [(false, Event::TimedOut { code, told: s.as_slice().into() }), (true, Event::Fatal { code })]
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

#[test]
fn what_a_client_raises_itself_under_the_code_of_a_crash_is_shown() {
    let mut relay = Relay::default();
    relay.push(plain(Kind::Query));
    let mut s = Vec::new();
    error(&mut s, "WARNING", "57P02", "exec_stmt_raise");
    assert_eq!(feed(&mut relay, &s, &[]).0, s);
    let mut s = Vec::new();
    error(&mut s, "WARNING", "57P01", "SyncRepWaitForLSN");
    assert_eq!(shape(&feed(&mut relay, &s, &[]).0), "", "its backend ends with that");
}

#[test]
fn a_fatal_error_is_an_event_and_does_not_reach_the_client() {
    let mut relay = Relay::default();
    relay.push(plain(Kind::Query));
    let mut s = Vec::new();
    error(&mut s, "WARNING", "57P02", "quickdie");
    error(&mut s, "FATAL", "57P01", "ProcessInterrupts");
    let (out, events) = feed(&mut relay, &s, &[]);
    assert_eq!((out.len(), events), (0, vec![Event::Fatal { code: *b"57P01" }]));
}

#[test]
fn an_error_before_its_sync_was_sent_skips_what_follows() {
    let mut relay = Relay { open: Some(Record::default()), ..Relay::default() };
    relay.push(plain(Kind::Parse));
    let mut s = Vec::new();
    error(&mut s, "ERROR", "42601", "r");
    assert_eq!(shape(&feed(&mut relay, &s, &[]).0), "E(42601)");
    assert!(relay.skipping());
    for kind in [Kind::Bind, Kind::Query, Kind::Execute] {
        relay.push(plain(kind));
    }
    relay.open = None;
    relay.push(plain(Kind::Sync));
    assert_eq!((relay.owed(), relay.pending()), (1, 1));
    let mut s = Vec::new();
    write_ready(&mut s, TxStatus::Idle);
    assert_eq!(feed(&mut relay, &s, &[]).1, [Event::Idle]);
}

#[test]
fn a_copy_of_the_extended_protocol_swallows_the_sync_sent_before_its_data() {
    let mut relay = Relay::default();
    for kind in [Kind::Bind, Kind::Execute, Kind::Sync] {
        relay.push(plain(kind));
    }
    let mut s = Vec::new();
    write_bare(&mut s, b'2');
    message(&mut s, b'G', |b| b.extend_from_slice(&[0, 0, 0]));
    feed(&mut relay, &s, &[]);
    assert!(relay.copy_in() && relay.owed() == 0 && relay.busy());
    relay.end_copy_in();
    relay.open = None;
    relay.push(plain(Kind::Sync));
    let mut s = Vec::new();
    write_command_complete(&mut s, "COPY 1");
    write_ready(&mut s, TxStatus::Idle);
    assert_eq!(feed(&mut relay, &s, &[]).1, [Event::Idle]);
}

#[test]
fn syncs_that_a_failed_copy_may_have_read_are_found_out_about() {
    // What the server says behind the error, part of it before it was asked; a simple query has one of its own.
    for (kind, heard, early, want) in [
        (Kind::Execute, "Z3Z", 0, (0, true)),
        (Kind::Execute, "ZZ3Z", 0, (1, false)),
        (Kind::Execute, "ZZ3Z", 1, (1, false)),
        (Kind::Execute, "ZZZ3Z", 1, (2, false)),
        (Kind::Query, "ZZ3Z", 0, (0, false)),
        (Kind::Query, "ZZ3Z", 1, (0, false)),
        (Kind::Query, "ZZZ3Z", 2, (1, false)),
    ] {
        let mut relay = Relay::default();
        relay.push(plain(kind));
        if kind == Kind::Execute {
            relay.push(plain(Kind::Sync));
        }
        let answers = |of: &str| {
            let mut s = Vec::new();
            of.bytes().for_each(|b| match b {
                b'Z' => write_ready(&mut s, TxStatus::Idle),
                b'G' => message(&mut s, b'G', |b| b.extend_from_slice(&[0, 0, 0])),
                b'E' => error(&mut s, "ERROR", "22P02", "x"),
                other => write_bare(&mut s, other),
            });
            s
        };
        feed(&mut relay, &answers("G"), &[]);
        relay.blind_sync();
        let (told, events) = feed(&mut relay, &answers(&("E".to_owned() + &heard[..early])), &[]);
        assert!(shape(&told).starts_with("E(22P02)") && events.is_empty(), "{kind:?} {heard} {events:?}");
        assert!(relay.blind_question().is_some() && relay.blind_question().is_none() && relay.busy());
        let (told, events) = feed(&mut relay, &answers(&heard[early..]), &[]);
        let (answered, skips) = want;
        assert_eq!(events, [Event::Seen { answered, skips }], "{kind:?} {heard}");
        assert_eq!(shape(&told), if kind == Kind::Query && early == 0 { "Z" } else { "" }, "{kind:?} {heard}");
        assert!(!relay.busy() && !relay.is_blind() && relay.owed() == 0, "{kind:?} {heard}");
    }
}

#[test]
fn only_what_whole_units_have_not_been_answered_is_in_doubt() {
    let text = text("b");
    let mut relay = Relay::default();
    relay.push(Entry { undo: Undo::Registered((*b"a").into()), ..plain(Kind::LocalParse) });
    assert_eq!(relay.in_doubt(), None, "a unit without its Sync fails with what it names");
    relay.push(plain(Kind::Sync));
    relay.push(Entry { undo: Undo::Prepared(text.clone(), Some((*b"b").into())), ..plain(Kind::Parse) });
    let only_a = relay.in_doubt().unwrap();
    assert_eq!((only_a.names.as_slice(), only_a.ids.as_slice(), only_a.all), (&[&b"a"[..]][..], &[][..], false));
    relay.push(plain(Kind::Sync));
    let both = relay.in_doubt().unwrap();
    assert_eq!((both.names.as_slice(), both.ids.as_slice()), (&[&b"a"[..], b"b"][..], &[text.id][..]));
    let mut s = Vec::new();
    write_ready(&mut s, TxStatus::Idle);
    write_bare(&mut s, b'1');
    feed(&mut relay, &s, &[]);
    assert_eq!(relay.in_doubt(), None, "all of it was answered");
    relay.forgets();
    assert!(relay.in_doubt().is_some_and(|doubt| doubt.all));
}

#[test]
fn what_was_answered_to_the_next_unit_is_not_said_again() {
    let mut relay = Relay::default();
    for entry in [
        plain(Kind::Query),
        Entry { undo: Undo::Registered((*b"s").into()), ..plain(Kind::LocalParse) },
        plain(Kind::Bind),
        plain(Kind::Execute),
        plain(Kind::Sync),
    ] {
        relay.push(entry);
    }
    let mut answer = Vec::new();
    write_command_complete(&mut answer, "SELECT 0");
    write_ready(&mut answer, TxStatus::Idle);
    let (out, _) = feed(&mut relay, &answer, &[]);
    assert_eq!(shape(&out), "CZ1");
    // The server is lost: the name is known to the client, and its unit cannot be sent again as a whole.
    assert!(relay.delivered());
    relay.abandon();
    assert!(relay.undone.iter().all(|undo| !undo.names()), "{:?}", relay.undone);
}

fn text(name: &str) -> Rc<Text> {
    crate::session::statements::Texts::new(0).own(name.as_bytes(), b"select\0\0\0")
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
    let class = crate::sql::classify(b"select", &crate::sql::FunctionTable::unloaded(), crate::sql::LexRules::STANDARD);
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
fn a_block_in_a_pipeline_is_one_transaction() {
    let (mut relay, mut bytes) = (Relay::default(), Vec::new());
    for (tag, status) in [("BEGIN", TxStatus::Block), ("SELECT 1", TxStatus::Block), ("COMMIT", TxStatus::Idle)] {
        relay.push(plain(Kind::Query));
        write_command_complete(&mut bytes, tag);
        write_ready(&mut bytes, status);
    }
    feed(&mut relay, &bytes, &[bytes.len()]);
    assert_eq!((relay.answered, relay.ended), (3, 1));
}

/// What is prepared before a client's query fails: the client is told that, in place of what its query says.
#[test]
fn the_error_of_what_a_query_needed_is_told_as_its_own() {
    let text = std::rc::Rc::clone(&crate::session::statements::Texts::new(0).own(b"p", b"select\0\0\0"));
    for kinds in [&[Kind::Query][..], &[Kind::Parse, Kind::Sync]] {
        let mut relay = Relay::default();
        for (i, kind) in kinds.iter().enumerate() {
            let undo = if i == 0 { Undo::Prepared(text.clone(), None) } else { Undo::None };
            relay.push(Entry { hidden: true, undo, ..Entry::plain(*kind) });
        }
        relay.push(plain(Kind::Query));
        let mut s = Vec::new();
        error(&mut s, "ERROR", "42P01", "r");
        write_ready(&mut s, TxStatus::Idle);
        error(&mut s, "ERROR", "26000", "r");
        write_ready(&mut s, TxStatus::Idle);
        let (out, events) = feed(&mut relay, &s, &[]);
        assert_eq!((shape(&out).as_str(), events), ("E(42P01)Z", vec![Event::Idle]));
        assert_eq!((relay.answered, relay.owed(), relay.pending()), (1, 0, 0));
        assert!(relay.undone.iter().any(|undo| matches!(undo, Undo::Prepared(..))));
    }
}

/// A block's COMMIT with the question in front of it, and what the server says to both.
fn marked(row: Option<[Option<&str>; 2]>, error_code: Option<&str>, status: TxStatus, tag: &str) -> (Relay, Vec<u8>) {
    let mut relay = Relay { status: TxStatus::Block, ..Relay::default() };
    let mut sink = Sink::default();
    relay.ask_mark(&[], &mut Some(7), &mut sink);
    assert_eq!(shape(sink.bytes(&[])), "Q");
    relay.push(plain(Kind::Query));
    let mut said = Vec::new();
    if let Some(row) = row {
        message(&mut said, b'T', |b| b.extend_from_slice(&[0, 0]));
        message(&mut said, b'D', |b| {
            b.extend_from_slice(&[0, 3]);
            for value in row.into_iter().chain([Some("notice")]) {
                b.extend_from_slice(&value.map_or(-1, |v| v.len() as i32).to_be_bytes());
                b.extend_from_slice(value.unwrap_or_default().as_bytes());
            }
        });
        write_command_complete(&mut said, "SELECT 1");
    }
    if let Some(code) = error_code {
        error(&mut said, "ERROR", code, "any");
    }
    write_ready(&mut said, status);
    let (told, events) = feed(&mut relay, &said, &[3, 50]);
    assert_eq!((shape(&told).as_str(), events), ("", Vec::new()), "nothing of it is the client's");
    let mut rest = Vec::new();
    write_command_complete(&mut rest, tag);
    write_ready(&mut rest, TxStatus::Idle);
    (relay, rest)
}

#[test]
fn a_commit_is_marked_by_what_the_server_said_before_it_until_it_is_answered() {
    let (mut relay, rest) = marked(Some([Some("731"), Some("0/5000060")]), None, TxStatus::Block, "COMMIT");
    assert_eq!(relay.mark(), Some(Mark { xid: Some(731), lsn: cluster::Lsn(0x500_0060) }));
    assert_eq!((relay.status, relay.owed()), (TxStatus::Block, 1));
    let (told, events) = feed(&mut relay, &rest, &[]);
    assert_eq!((shape(&told).as_str(), events), ("CZ", vec![Event::Idle]));
    assert_eq!((relay.mark(), relay.status), (None, TxStatus::Idle));
    let (mut relay, _) = marked(Some([None, Some("0/5000060")]), None, TxStatus::Block, "COMMIT");
    assert_eq!(relay.mark(), Some(Mark { xid: None, lsn: cluster::Lsn(0x500_0060) }));
    relay.abandon();
    assert_eq!(relay.mark(), None, "nor of the next server");
}

#[test]
fn a_question_that_fails_a_good_block_is_told_and_one_in_a_failed_block_is_not() {
    // Cancelled: what was a COMMIT rolls back, and must not look like a success.
    let (mut relay, rest) = marked(None, Some("57014"), TxStatus::Failed, "ROLLBACK");
    assert_eq!((relay.mark(), relay.status), (None, TxStatus::Block), "the client believes in its block");
    let (told, _) = feed(&mut relay, &rest, &[]);
    assert_eq!(shape(&told), "E(57014)Z");
    assert_eq!(relay.status, TxStatus::Idle);
    // An earlier unit of the pipeline had failed, and that was told.
    let (mut relay, rest) = marked(None, Some("25P02"), TxStatus::Failed, "ROLLBACK");
    let (told, _) = feed(&mut relay, &rest, &[]);
    assert_eq!(shape(&told), "CZ");
    // Outside a block there is nothing to be marked.
    let (relay, _) = marked(Some([None, Some("0/5000060")]), None, TxStatus::Idle, "COMMIT");
    assert_eq!(relay.mark(), None);
}

/// What a server answers to the question behind a write.
fn position(out: &mut Vec<u8>) {
    message(out, b'T', |b| b.extend_from_slice(&[0, 0]));
    message(out, b'D', |b| b.extend_from_slice(b"\0\x01\0\0\0\x030/7"));
    write_command_complete(out, "SELECT 1");
    write_ready(out, TxStatus::Idle);
}

#[test]
fn a_position_is_asked_for_behind_a_write_and_its_answer_is_not_the_clients() {
    for pieces in [&[][..], &[1, 1, 1, 20, 1], &[33, 7]] {
        let (mut relay, mut sink, mut unnamed) = (Relay::default(), Sink::default(), Some(7));
        relay.push(plain(Kind::Query));
        relay.ask_position(b"", "select 1", &mut unnamed, &mut sink);
        assert_eq!((shape(sink.bytes(b"")).as_str(), unnamed), ("Q", None));
        assert!(!relay.only_asks_position(), "the write is owed");
        // What comes next is sent without waiting for it: a Parse that needs no server, and a Flush.
        let mut said = Vec::new();
        write_command_complete(&mut said, "INSERT 0 1");
        write_ready(&mut said, TxStatus::Idle);
        let (told, events) = feed(&mut relay, &said, pieces);
        assert_eq!((shape(&told).as_str(), events), ("CZ", vec![]), "the client does not wait for it");
        assert!(relay.only_asks_position() && relay.busy());
        relay.push(plain(Kind::LocalParse));
        said.clear();
        position(&mut said);
        let (told, events) = feed(&mut relay, &said, pieces);
        assert_eq!((shape(&told).as_str(), events), ("1", vec![Event::Position]));
        assert_eq!((relay.hidden.rows.as_slice(), relay.owed()), (&[vec![Some("0/7".to_owned())]][..], 0));
    }
}

#[test]
fn a_position_that_cannot_be_told_is_nobodys_error() {
    let (mut relay, mut sink) = (Relay::default(), Sink::default());
    relay.push(plain(Kind::Query));
    relay.ask_position(b"", "select 1", &mut None, &mut sink);
    let mut said = Vec::new();
    write_command_complete(&mut said, "INSERT 0 1");
    write_ready(&mut said, TxStatus::Idle);
    error(&mut said, "ERROR", "57014", "ProcessInterrupts");
    write_ready(&mut said, TxStatus::Idle);
    let (told, events) = feed(&mut relay, &said, &[]);
    assert_eq!((shape(&told).as_str(), events), ("CZ", vec![Event::Position]));
    assert!(relay.hidden.error.is_some() && relay.errors.is_empty() && !relay.busy());
}

#[test]
fn a_position_asked_for_behind_a_unit_leaves_none_of_its_names_in_doubt() {
    let (mut relay, mut sink) = (Relay::default(), Sink::default());
    relay.push(plain(Kind::Query));
    relay.forgets();
    relay.ask_position(b"", "select 1", &mut None, &mut sink);
    assert!(relay.in_doubt().is_some_and(|doubt| doubt.all));
    let mut said = Vec::new();
    write_command_complete(&mut said, "DEALLOCATE ALL");
    write_ready(&mut said, TxStatus::Idle);
    feed(&mut relay, &said, &[]);
    assert_eq!(relay.in_doubt(), None);
    said.clear();
    position(&mut said);
    feed(&mut relay, &said, &[]);
    relay.push(plain(Kind::Query));
    assert_eq!(relay.in_doubt(), None, "what comes behind need not wait");
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

#[test]
fn answers_of_ours_follow_the_servers_last_one_at_once() {
    let mut relay = Relay { open: Some(Record::default()), ..Relay::default() };
    for kind in [Kind::Bind, Kind::Execute, Kind::LocalClose, Kind::DescribeStatement, Kind::LocalParse] {
        relay.push(plain(kind));
    }
    let mut said = Vec::new();
    write_bare(&mut said, b'2');
    write_command_complete(&mut said, "SELECT 0");
    assert_eq!(shape(&feed(&mut relay, &said, &[]).0), "2C3");
    let mut said = Vec::new();
    backend::write_no_parameters(&mut said);
    write_bare(&mut said, b'n');
    assert_eq!(shape(&feed(&mut relay, &said, &[]).0), "tn1");
    assert!(relay.pending() == 0 && relay.delivered());
}

/// What is handed on stays where it was read: of 200,000 rows nothing is copied, and what a read has cut is moved once.
#[test]
fn rows_are_handed_on_where_they_were_read() {
    const READ: usize = 32 * 1024;
    let rows = |kind: u8| {
        let mut rows = Vec::new();
        (0..200_000)
            .for_each(|i| message(&mut rows, kind, |b| b.extend_from_slice(format!("{i} some text").as_bytes())));
        rows
    };
    for (begins, kind) in [(&b"T\0\0\0\x06\0\0"[..], b'D'), (b"H\0\0\0\x07\0\0\0", b'd')] {
        let (mut relay, mut input) = (Relay::default(), begins.to_vec());
        relay.push(plain(Kind::Query));
        input.extend(rows(kind));
        if kind == b'd' {
            write_bare(&mut input, b'c');
        }
        write_command_complete(&mut input, "ROWS 200000");
        write_ready(&mut input, TxStatus::Idle);
        let (mut left, mut handed_on, mut moved) = (Vec::new(), 0, 0);
        for read in input.chunks(READ) {
            left.extend_from_slice(read);
            while !left.is_empty() {
                let mut sink = Sink::default();
                let progress = relay.server_bytes(&left, &mut sink, &doubt);
                let bytes = sink.bytes(&left);
                handed_on += bytes.len();
                let there = left.as_ptr_range();
                assert!(bytes.is_empty() || there.contains(&bytes.as_ptr()), "behind {handed_on} bytes it was copied");
                left.drain(..progress.consumed);
                if progress.event.is_none() {
                    break;
                }
            }
            moved += left.len();
        }
        assert_eq!(handed_on, input.len());
        let each = input.len() / 200_000 + 8;
        assert!(moved <= each * (input.len() / READ + 1), "{moved} bytes of rows that a read has cut");
    }
}
