//! Histories made by hand, one line per event: `10 write 0`, `12 ack 0`, `13 doubt 0`, `14 refuse 0`, `20 read s`,
//! `21 shows s 1 0`, `22 again s 1 0` (in its transaction), `22 take b s` (`b` takes a token of `s`), `23 put b`. Times are milliseconds, the bound is 1000; sessions are letters.

use super::*;
use std::collections::BTreeMap;

const BOUND: u64 = 1000;
/// The test process's time 0, so that nothing saturates.
const START: u64 = 1_000_000;

fn at(ms: u64) -> Instant {
    Instant::from_millis(START + ms)
}

/// Run a history of two registers, of which session `s` of mode `Session` and `g` of `Global` own the first. The
/// violations as `time broken register showed<owed`.
fn run(history: &str) -> Vec<String> {
    let mut checker = Checker::new(2, Duration::from_millis(BOUND));
    let mut sessions: BTreeMap<&str, (Session, Option<Begun>)> = BTreeMap::new();
    let mut behind: Option<Begun> = None;
    let mut found = Vec::new();
    for line in history.lines().map(str::trim).filter(|l| !l.is_empty()) {
        let words: Vec<&str> = line.split(' ').collect();
        let now: u64 = words[0].parse().expect("a time");
        let number = |i: usize| words[i].parse::<usize>().expect("a number");
        let mode = |letter: &str| match &letter[..1] {
            "b" => (Mode::Bounded, None),
            "m" => (Mode::Monotonic, None),
            "s" => (Mode::Session, Some(0)),
            "g" => (Mode::Global, Some(0)),
            other => panic!("no mode begins with {other}"),
        };
        let mut note = |v: Violation| {
            let compared = if v.broken == Broken::Impossible { '>' } else { '<' };
            found.push(format!("{now} {} {} {}{compared}{}", v.broken.as_str(), v.register, v.showed, v.owed));
        };
        match words[1] {
            "write" => drop(checker.send(number(2))),
            "ack" => assert_eq!(checker.ended(number(2), Outcome::Acknowledged, at(now)), None),
            "doubt" => assert_eq!(checker.ended(number(2), Outcome::InDoubt, at(now)), None),
            "refuse" => checker.ended(number(2), Outcome::Refused, at(now)).into_iter().for_each(&mut note),
            "take" => {
                let (own, other) = (mode(words[2]), mode(words[3]));
                let giver = sessions.entry(words[3]).or_insert_with(|| (Session::new(other.0, other.1), None));
                let covered = checker.covered(&giver.0, at(now));
                let taker = sessions.entry(words[2]).or_insert_with(|| (Session::new(own.0, own.1), None));
                taker.0.take(covered);
            }
            "put" => sessions.get_mut(words[2]).expect("it has taken one").0.put_away(),
            "read" => {
                let (mode, own) = mode(words[2]);
                let entry = sessions.entry(words[2]).or_insert_with(|| (Session::new(mode, own), None));
                entry.1 = Some(checker.begin(&entry.0, at(now)));
            }
            "shows" => {
                let (session, begun) = sessions.get_mut(words[2]).expect("it has begun");
                let shown: Vec<i64> = words[3..].iter().map(|w| w.parse().expect("a number")).collect();
                let begun = begun.take().expect("it has begun");
                checker.end(session, &begun, &shown).into_iter().for_each(&mut note);
                behind = Some(begun.behind(&shown));
            }
            "again" => {
                let shown: Vec<i64> = words[3..].iter().map(|w| w.parse().expect("a number")).collect();
                let (begun, session) = (behind.take().expect("one before it"), sessions.get_mut(words[2]));
                let (session, _) = session.expect("it has read");
                checker.end(session, &begun, &shown).into_iter().for_each(&mut note);
            }
            other => panic!("no event is called {other}"),
        }
    }
    found
}

fn check(history: &str, want: &[&str]) {
    assert_eq!(run(history), want, "{history}");
}

#[test]
fn a_bounded_read_owes_what_was_acknowledged_longer_ago_than_the_bound() {
    let writes = "0 write 0\n10 ack 0\n20 write 0\n30 ack 0\n";
    check(&format!("{writes}1009 read b\n1050 shows b 0 0"), &[]);
    check(&format!("{writes}1010 read b\n1050 shows b 0 0"), &["1050 stale 0 0<1"]);
    check(&format!("{writes}1029 read b\n1050 shows b 1 0"), &[]);
    check(&format!("{writes}1030 read b\n1050 shows b 1 0"), &["1050 stale 0 1<2"]);
    check(&format!("{writes}9000 read b\n9050 shows b 2 0"), &[]);
}

#[test]
fn no_transaction_goes_back() {
    let writes = "0 write 0\n10 ack 0\n";
    check(&format!("{writes}20 read b\n21 shows b 1 0\n22 again b 1 0"), &[]);
    check(&format!("{writes}20 read b\n21 shows b 1 0\n22 again b 0 0"), &["22 went_back 0 0<1"]);
    check(&format!("{writes}20 read b\n21 shows b 1 0\n22 read b\n23 shows b 0 0"), &[]);
    check(
        &format!("{writes}20 read m\n21 shows m 0 0\n22 again m 1 0\n23 read m\n24 shows m 0 0"),
        &["24 went_back 0 0<1"],
    );
}

#[test]
fn what_a_read_owes_is_settled_when_it_begins() {
    check("0 write 0\n10 ack 0\n500 read b\n3000 shows b 0 0", &[]);
    check("0 read g\n1 write 0\n2 ack 0\n3 shows g 0 0", &[]);
}

#[test]
fn a_global_read_owes_all_that_was_acknowledged_before_it_began() {
    check("0 write 1\n10 ack 1\n10 read g\n12 shows g 0 0", &["12 not_global 1 0<1"]);
    check("0 write 1\n10 ack 1\n10 read g\n12 shows g 0 1", &[]);
    check("0 write 1\n10 ack 1\n10 read b\n12 shows b 0 0\n13 read s\n14 shows s 0 0", &[]);
}

#[test]
fn a_session_sees_its_own_acknowledged_writes_and_not_necessarily_others() {
    let writes = "0 write 0\n10 ack 0\n11 write 1\n12 ack 1\n";
    check(&format!("{writes}13 read s\n14 shows s 0 0"), &["14 own_write 0 0<1"]);
    check(&format!("{writes}13 read s\n14 shows s 1 0"), &[]);
    check(&format!("{writes}13 read b\n14 shows b 0 0\n15 read m\n16 shows m 0 0"), &[]);
}

#[test]
fn no_session_goes_back_but_a_bounded_one_may() {
    let writes = "0 write 1\n1 ack 1\n";
    for (letter, want) in [("b", &[][..]), ("m", &["6 went_back 1 0<1"]), ("s", &["6 went_back 1 0<1"])] {
        check(&format!("{writes}2 read {letter}\n3 shows {letter} 0 1\n5 read {letter}\n6 shows {letter} 0 0"), want);
    }
    let global = run(&format!("{writes}2 read g\n3 shows g 0 1\n5 read g\n6 shows g 0 0"));
    assert_eq!(global, ["6 not_global 1 0<1", "6 went_back 1 0<1"]);
    check(&format!("{writes}2 read m1\n3 shows m1 0 1\n5 read m2\n6 shows m2 0 0"), &[]);
}

#[test]
fn who_holds_a_token_owes_what_it_covers() {
    // What its giver has written, whatever the taker asks for besides.
    let written = "0 write 0\n1 ack 0\n2 take b s\n";
    check(&format!("{written}3 read b\n4 shows b 0 0"), &["4 behind_token 0 0<1"]);
    check(&format!("{written}3 read m\n4 shows m 0 0"), &[]);
    check(&format!("{written}3 read b\n4 shows b 1 0\n5 read b\n6 shows b 0 0"), &["6 behind_token 0 0<1"]);
    check(&format!("{written}3 put b\n4 read b\n5 shows b 0 0"), &[]);
    // What it has read, and nothing else that was acknowledged.
    let read = "0 write 1\n1 ack 1\n2 read m\n3 shows m 0 1\n4 write 1\n5 ack 1\n6 take b m\n";
    check(&format!("{read}7 read b\n8 shows b 0 0"), &["8 behind_token 1 0<1"]);
    check(&format!("{read}7 read b\n8 shows b 0 1"), &[]);
    // A node without the table misses all that is covered.
    check(&format!("{read}7 read b\n8 shows b"), &["8 stale 0 -1<0", "8 behind_token 0 -1<0"]);
    // A later one stands for the earlier one; of a read on its way it settles nothing.
    check(&format!("{read}7 take b s\n8 read b\n9 shows b 0 0"), &[]);
    check("0 write 0\n1 ack 0\n2 read b\n3 take b s\n4 shows b 0 0", &[]);
    // What was not acknowledged before it was asked for is not covered.
    check("0 write 0\n1 take b s\n2 ack 0\n3 read b\n4 shows b 0 0", &[]);
    check("0 write 0\n1 doubt 0\n2 take b s\n3 read b\n4 shows b 0 0", &[]);
}

#[test]
fn a_write_in_doubt_may_show_or_not_but_does_not_vanish_once_seen() {
    let writes = "0 write 0\n1 doubt 0\n";
    check(&format!("{writes}2 read g\n3 shows g 0 0\n4 read g\n5 shows g 1 0"), &[]);
    check(&format!("{writes}5000 read b\n5001 shows b 0 0\n5002 read s\n5003 shows s 0 0"), &[]);
    check(&format!("{writes}2 read g\n3 shows g 1 0\n4 read g\n5 shows g 0 0"), &["5 went_back 0 0<1"]);
    // What came after it and was acknowledged is owed.
    check(
        &format!("{writes}2 write 0\n3 ack 0\n4 read g\n5 shows g 1 0"),
        &["5 not_global 0 1<2", "5 own_write 0 1<2"],
    );
}

#[test]
fn what_was_refused_or_never_sent_must_not_show() {
    check("0 write 0\n1 refuse 0\n2 read b\n3 shows b 1 0", &["3 impossible 0 1>1"]);
    check("0 write 0\n1 refuse 0\n2 read b\n3 shows b 0 0", &[]);
    check("0 read b\n1 shows b 0 7", &["1 impossible 1 7>0"]);
    // Seen while it was on its way, and refused after that.
    check("0 write 0\n1 read b\n2 shows b 1 0\n3 refuse 0", &["3 impossible 0 1>0"]);
    check("0 write 0\n1 read b\n2 shows b 1 0\n3 ack 0", &[]);
}

#[test]
fn a_row_that_is_not_there_is_stale() {
    check("0 read b\n1 shows b -1 0", &["1 stale 0 -1<0"]);
    check("0 read b\n1 shows b", &["1 stale 0 -1<0"]);
}

#[test]
fn a_violation_says_how_old_the_missed_write_is_and_how_many_registers_it_concerns() {
    let mut checker = Checker::new(2, Duration::from_millis(BOUND));
    for register in 0..2 {
        checker.send(register);
        checker.ended(register, Outcome::Acknowledged, at(0));
    }
    let mut session = Session::new(Mode::Bounded, None);
    let begun = checker.begin(&session, at(1500));
    let found = checker.end(&mut session, &begun, &[0, 0]);
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].registers, found[0].acknowledged_before), (2, Duration::from_millis(1500)));
}

#[test]
fn what_is_remembered_stays_small() {
    let mut checker = Checker::new(1, Duration::from_millis(BOUND));
    for ms in 0..50_000 {
        checker.send(0);
        let outcome = if ms % 2 == 0 { Outcome::Acknowledged } else { Outcome::Refused };
        checker.ended(0, outcome, at(ms));
    }
    let r = &checker.registers[0];
    assert!(r.acknowledged.len() <= BOUND as usize + 2 && r.refused.len() == MAX_REFUSED);
    let mut session = Session::new(Mode::Bounded, None);
    let begun = checker.begin(&session, at(50_000));
    let owed = checker.end(&mut session, &begun, &[0]);
    assert_eq!((owed[0].owed, owed[0].acknowledged_before), (49_001, Duration::from_millis(BOUND)));
}
