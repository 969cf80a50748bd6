use super::*;
use crate::sql::LexRules;

/// (name, at login, now)
struct Fixed(&'static [(&'static str, &'static str, &'static str)]);

impl Reports for Fixed {
    fn reported(&self, name: &str) -> Option<(&str, &str)> {
        self.0.iter().find(|(n, _, _)| *n == name).map(|(_, login, now)| (*login, *now))
    }
}

const SILENT: Fixed = Fixed(&[]);

fn touch(t: &mut Tracking, pins: &mut Pins, sql: &str) {
    pins.add(PinReason::Set);
    t.fresh.add(PinReason::Set);
    t.touched.add(sql.as_bytes(), &[], LexRules::STANDARD);
}

fn row(kind: &str, name: &str, value: Option<&str>) -> Vec<Option<String>> {
    vec![Some(kind.to_owned()), Some(name.to_owned()), value.map(str::to_owned)]
}

fn answer(t: &mut Tracking, pins: &mut Pins, rows: &[Vec<Option<String>>]) {
    let Some(Asked::Question { settings, pins: asked }) = t.asked.take() else { panic!("{t:?}") };
    t.answer((settings, asked), rows, pins, &SILENT);
}

#[test]
fn a_reported_setting_needs_no_question() {
    let (mut t, mut pins) = (Tracking::new(Some("app")), Pins::NONE);
    touch(&mut t, &mut pins, "set timezone = 'utc'");
    assert!(t.is_due(pins));
    let server = Fixed(&[("timezone", "GMT", "UTC"), ("application_name", "pgtenure", "app")]);
    assert_eq!(t.question(&mut pins, &server), None);
    assert_eq!((t.settings.get("timezone"), pins), (Some("UTC"), Pins::NONE));
    assert!(!t.is_due(pins));
}

#[test]
fn a_reset_application_name_is_the_clients_own() {
    let (mut t, mut pins) = (Tracking::new(Some("app")), Pins::NONE);
    touch(&mut t, &mut pins, "reset application_name");
    assert_eq!(t.question(&mut pins, &Fixed(&[("application_name", "pgtenure", "pgtenure")])), None);
    assert_eq!(t.settings.get("application_name"), Some("app"));
    // One that was given is the client's, be it the proxy's own.
    touch(&mut t, &mut pins, "set application_name = pgtenure");
    assert_eq!(t.question(&mut pins, &Fixed(&[("application_name", "pgtenure", "pgtenure")])), None);
    assert_eq!(t.settings.get("application_name"), Some("pgtenure"));
}

#[test]
fn the_servers_spelling_is_kept() {
    let (mut t, mut pins) = (Tracking::new(None), Pins::NONE);
    touch(&mut t, &mut pins, "set work_mem = '1024 kB'");
    assert!(t.question(&mut pins, &SILENT).is_some());
    answer(&mut t, &mut pins, &[row("s", "work_mem", Some("1MB"))]);
    assert_eq!((t.settings.get("work_mem"), pins), (Some("1MB"), Pins::NONE));
    touch(&mut t, &mut pins, "reset all");
    assert!(t.question(&mut pins, &SILENT).is_some());
    answer(&mut t, &mut pins, &[row("s", "role", None)]);
    assert!(t.settings.is_empty() && pins.is_empty());
}

#[test]
fn what_cannot_be_moved_stays_until_it_is_gone() {
    let (mut t, mut pins) = (Tracking::new(None), Pins::NONE);
    touch(&mut t, &mut pins, "select set_config('a.' || $1, 'x', false)");
    assert!(t.question(&mut pins, &SILENT).is_some());
    answer(&mut t, &mut pins, &[]);
    assert!(pins.has(PinReason::Set) && t.stuck);
    for (failed, stays) in [(true, true), (false, false)] {
        touch(&mut t, &mut pins, "discard all");
        (t.discards, t.failed) = (true, failed);
        assert!(t.question(&mut pins, &SILENT).is_some());
        answer(&mut t, &mut pins, &[]);
        assert_eq!(pins.has(PinReason::Set), stays);
    }
    touch(&mut t, &mut pins, "set application_name = 'é'");
    assert!(t.question(&mut pins, &SILENT).is_some());
    answer(&mut t, &mut pins, &[row("s", "application_name", Some("é"))]);
    assert!(pins.has(PinReason::Set) && t.stuck);
    // What is known can be moved as soon as it is something else.
    touch(&mut t, &mut pins, "set application_name = 'e'");
    assert!(t.question(&mut pins, &SILENT).is_some());
    answer(&mut t, &mut pins, &[row("s", "application_name", Some("e"))]);
    assert!(pins.is_empty() && !t.stuck);
}

#[test]
fn pins_end_when_the_server_says_so() {
    let (mut t, mut pins) = (Tracking::new(None), Pins::NONE);
    for reason in [PinReason::Temp, PinReason::Listen, PinReason::Load] {
        pins.add(reason);
        t.fresh.add(reason);
    }
    assert!(t.question(&mut pins, &SILENT).is_some());
    answer(&mut t, &mut pins, &[row("p", "temp", Some("true")), row("l", "news", None)]);
    assert_eq!(pins.list(), [PinReason::Temp, PinReason::Listen, PinReason::Load]);
    assert_eq!(t.channels, ["news"]);
    // Nothing that could end them: no question.
    assert!(!t.is_due(pins));
    t.unpins = true;
    assert!(t.is_due(pins) && t.question(&mut pins, &SILENT).is_some());
    answer(&mut t, &mut pins, &[row("p", "temp", Some("false"))]);
    assert_eq!(pins.list(), [PinReason::Load]);
}

#[test]
fn what_a_lost_transaction_set_is_not_lost() {
    let (mut t, mut pins) = (Tracking::new(None), Pins::of(PinReason::AdvisoryLock));
    touch(&mut t, &mut pins, "set work_mem = 1");
    t.lose(&mut pins, true);
    assert_eq!(pins.list(), [PinReason::AdvisoryLock]);
    let mut pins = Pins::NONE;
    touch(&mut t, &mut pins, "set work_mem = 1");
    t.lose(&mut pins, false);
    assert_eq!(pins.list(), [PinReason::Set]);
    assert!(t.touched.is_empty());
}

#[test]
fn the_client_is_corrected_once() {
    let mut t = Tracking::new(None);
    let base = [("TimeZone".to_owned(), "GMT".to_owned())];
    t.tell("TimeZone".into(), "UTC".into());
    assert_eq!(t.corrections(&base), base);
    assert!(t.corrections(&base).is_empty() && t.told.is_empty());
}

#[test]
fn a_question_that_is_never_answered_in_time_is_given_up() {
    let (mut t, mut pins) = (Tracking::new(None), Pins::NONE);
    t.pin(&mut pins, Pins::of(PinReason::Temp));
    for round in 1..=MAX_UNHEARD {
        assert!(t.question(&mut pins, &SILENT).is_some(), "{round}");
        t.asked = None;
        assert!(t.ask_again(pins) && t.postponed && t.is_due(pins), "{round}");
    }
    assert!(t.question(&mut pins, &SILENT).is_some());
    assert!(!t.ask_again(pins) && !t.postponed && !t.is_due(pins), "it keeps its server");
    assert!(pins.has(PinReason::Temp));
}
