use super::testing::{doubt, error, feed, hidden, plain, shape, text};
use super::*;
use crate::wire::backend::{write_bare, write_command_complete, write_ready};
use crate::wire::codec::message;
use proptest::prelude::*;

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
