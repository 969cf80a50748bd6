//! Conversations that drivers have or could have, each held with PostgreSQL directly and with the proxy before it: the
//! answers must be the same, message for message.
//!
//! A conversation is a text, a message a line: `Q sql`, `P name sql`, `B portal statement arguments...`, `DS name`,
//! `DP name`, `E portal rows`, `CS name`, `CP name`, `S`, `H`, `d data`, `c`, `f why`, `F oid argument`, `X`. `-` is the
//! empty name. `> Z` sends what is written so far and reads to ReadyForQuery, `> 3` reads three messages, `> EOF` to
//! the end of the connection; `> .` only sends.

use super::common::Cluster;
use super::common::raw::Raw;
use proxy::config::PoolMode;
use proxy::wire::backend;
use proxy::wire::codec::{cstring, message};
use proxy::wire::frontend::{write_parse, write_query};

/// Say one line.
fn say(out: &mut Vec<u8>, line: &str) {
    let (kind, rest) = line.split_once(' ').unwrap_or((line, ""));
    let name = |s: &str| if s == "-" { String::new() } else { s.to_owned() };
    let mut words = rest.split(' ').map(name);
    let mut word = || words.next().unwrap_or_default();
    match kind {
        "Q" => write_query(out, rest),
        "P" => {
            let (statement, sql) = rest.split_once(' ').unwrap_or((rest, ""));
            write_parse(out, name(statement).as_bytes(), &[sql.as_bytes(), &[0, 0, 0]].concat());
        }
        "B" => {
            let (portal, statement) = (word(), word());
            let arguments: Vec<String> = words.collect();
            message(out, b'B', |b| {
                cstring(b, portal.as_bytes());
                cstring(b, statement.as_bytes());
                b.extend_from_slice(&[0, 0]);
                b.extend_from_slice(&(arguments.len() as u16).to_be_bytes());
                for a in &arguments {
                    b.extend_from_slice(&(a.len() as u32).to_be_bytes());
                    b.extend_from_slice(a.as_bytes());
                }
                b.extend_from_slice(&[0, 0]);
            });
        }
        "E" => {
            let (portal, rows) = (word(), word());
            message(out, b'E', |b| {
                cstring(b, portal.as_bytes());
                b.extend_from_slice(&rows.parse::<u32>().unwrap_or(0).to_be_bytes());
            });
        }
        "DS" | "DP" | "CS" | "CP" => message(out, kind.as_bytes()[0], |b| {
            b.push(kind.as_bytes()[1]);
            cstring(b, word().as_bytes());
        }),
        "F" => {
            let (oid, argument) = (word(), word());
            message(out, b'F', |b| {
                b.extend_from_slice(&oid.parse::<u32>().expect("an oid").to_be_bytes());
                b.extend_from_slice(&[0, 0, 0, 1]);
                b.extend_from_slice(&(argument.len() as u32).to_be_bytes());
                b.extend_from_slice(argument.as_bytes());
                b.extend_from_slice(&[0, 0]);
            });
        }
        "d" => message(out, b'd', |b| b.extend_from_slice(format!("{rest}\n").as_bytes())),
        "f" => message(out, b'f', |b| cstring(b, rest.as_bytes())),
        "S" | "H" | "c" | "X" => message(out, kind.as_bytes()[0], |_| {}),
        other => panic!("no message {other:?} in {line:?}"),
    }
}

/// A message in full: what differs between two runs of the same on one server is left out.
fn told(kind: u8, frame: &[u8]) -> String {
    let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
    match kind {
        b'E' | b'N' => {
            let f = backend::fields(frame);
            format!("{} {} {} {}", kind as char, text(f.severity), text(f.code), text(f.message))
        }
        // The number of the process that notified differs.
        b'A' => format!("A {}", text(&frame[9..])),
        _ => format!("{} {}", kind as char, text(&frame[5..])),
    }
}

/// Hold a conversation; what was answered.
fn hold(port: u16, script: &str) -> Vec<String> {
    let mut raw = Raw::login(port, &[]);
    let (mut out, mut heard) = (Vec::new(), Vec::new());
    for line in script.lines().map(str::trim).filter(|l| !l.is_empty()) {
        let Some(until) = line.strip_prefix("> ") else {
            say(&mut out, line);
            continue;
        };
        raw.send(&std::mem::take(&mut out));
        let mut left = until.parse::<usize>().unwrap_or(if until == "." { 0 } else { usize::MAX });
        while left > 0 {
            left -= 1;
            // Silence fails as a difference, so that the conversation is named.
            let answer = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| raw.frame()));
            let Ok(answer) = answer else {
                heard.push(format!("silence at {line:?}"));
                return heard;
            };
            let Some((kind, frame)) = answer else {
                heard.push("end".to_owned());
                break;
            };
            heard.push(told(kind, &frame));
            if until == "Z" && kind == b'Z' {
                break;
            }
        }
    }
    heard
}

/// The same answers from both.
fn check(c: &Cluster, scripts: &[&str]) {
    let mut bad = Vec::new();
    for script in scripts {
        let direct = hold(c.nodes[0].port, script);
        let through = hold(c.port, script);
        if direct != through {
            bad.push(format!("{script}\ndirect:  {direct:#?}\nthrough: {through:#?}"));
        }
    }
    assert!(bad.is_empty(), "{} of {} differ\n{}", bad.len(), scripts.len(), bad.join("\n\n"));
}

const SCRIPTS: &[&str] = &[
    // The unnamed statement survives a Parse that was skipped, and not one that failed.
    "P - select 1\nS\n> Z\nQ select 1/0\n> Z\nB - -\nE - 0\nS\n> Z",
    "P - select 1\nS\n> Z\nB - nosuch\nP - select 2\nS\n> Z\nB - -\nE - 0\nS\n> Z",
    "P - select 1\nS\n> Z\nB - nosuch\nP - select 2\nQ select 3\nS\n> Z\nB - -\nE - 0\nS\n> Z",
    "P - select 1\nS\n> Z\nB - nosuch\nCS -\nS\n> Z\nB - -\nE - 0\nS\n> Z",
    "P - select 1\nS\n> Z\nP - select from from\nS\n> Z\nB - -\nE - 0\nS\n> Z",
    "P - select 1\nS\n> Z\nP - select from from\nP - select 2\nS\n> Z\nB - -\nE - 0\nS\n> Z",
    "P - select 1\nCS -\nB - -\nS\n> Z",
    // The order of errors: syntax, failed block, name taken.
    "P s select 1\nS\n> Z\nP s select from from\nS\n> Z\nP s select 2\nS\n> Z\nB - s\nE - 0\nS\n> Z",
    "P s select 1\nS\n> Z\nQ begin\n> Z\nQ select 1/0\n> Z\nP s select 2\nS\n> Z\nP s select from from\nS\n> Z\nP t select 1\nS\n> Z\nP s rollback\nS\n> Z\nP r rollback\nB - r\nE - 0\nS\n> Z\nB - s\nE - 0\nS\n> Z",
    "P s select 1\nS\n> Z\nP s select * from nosuch\nS\n> Z\nP s select 1\nS\n> Z\nB - s\nS\n> Z",
    "Q begin\n> Z\nQ select 1/0\n> Z\nP a select 1\nB - a\nE - 0\nS\n> Z\nQ rollback\n> Z\nP a select 1\nB - a\nE - 0\nS\n> Z",
    "P a select 1\nB - a\nE - 0\nS\n> Z\nCS a\nS\n> Z\nQ begin\n> Z\nQ select 1/0\n> Z\nP a select 1\nS\n> Z\nDS a\nS\n> Z\nCS a\nS\n> Z\nQ rollback\n> Z",
    // Unknown names.
    "B - nosuch\nE - 0\nS\n> Z\nDS nosuch\nS\n> Z\nDP nosuch\nS\n> Z\nE nosuch 0\nS\n> Z\nCS nosuch\nCP nosuch\nS\n> Z\nDS -\nS\n> Z\nDP -\nS\n> Z",
    // Several Syncs, nothing but Syncs, a Sync in a block.
    "S\nS\nS\n> Z\n> Z\n> Z",
    "P - select 1\nB - -\nE - 0\nS\nS\nP - select 1/0\nB - -\nE - 0\nS\nS\nQ select 2\n> Z\n> Z\n> Z\n> Z\n> Z",
    "Q begin\nS\nP - select 1/0\nB - -\nE - 0\nP - select 1\nS\nS\nQ select 1\nQ rollback\n> Z\n> Z\n> Z\n> Z\n> Z\n> Z",
    // An error skips everything to its Sync: Queries, function calls, further extended messages.
    "P - select 1/0\nB - -\nE - 0\nQ select 2\nQ select 3\nP - select 4\nS\nQ select 5\n> Z\n> Z",
    "B - nosuch\nF 1598 1\nQ select 2\nCS x\nDS y\nH\nS\nQ select 5\n> Z\n> Z",
    "P s select 1\nB - nosuch\nP t select 2\nCS s\nS\n> Z\nB - s\nE - 0\nS\n> Z\nB - t\nS\n> Z",
    "P s select 1\nS\n> Z\nCS s\nP s select 2\nB - nosuch\nCS s\nP s select 3\nS\n> Z\nB - s\nE - 0\nS\n> Z",
    // The error comes at once, without Flush or Sync, and the rest is skipped.
    "P - select from from\n> 1\nP - select 1\nB - -\nE - 0\nS\n> Z",
    "B - nosuch\n> 1\nP - select 1\nH\nQ select 2\nS\n> Z",
    // Flush without Sync.
    "P - select 1\nH\n> 1\nDS -\nH\n> 2\nB - -\nH\n> 1\nE - 0\nH\n> 2\nS\n> Z",
    "P s select 1\nDS s\nH\n> 3\nS\n> Z\nB - s\nH\n> 1\nE - 0\nH\n> 2\nCS s\nH\n> 1\nS\n> Z",
    "P s select 1\nS\n> Z\nCS s\nH\n> 1\nP s select 1\nH\n> 1\nDS s\nH\n> 2\nS\n> Z",
    "H\nH\nS\n> Z",
    // Portals: limits, suspension, their end with the transaction.
    "P - select * from generate_series(1,5)\nB - -\nE - 2\nE - 2\nE - 2\nE - 2\nS\n> Z\nE - 1\nS\n> Z",
    "P - select * from generate_series(1,5)\nB p -\nE p 2\nS\n> Z\nE p 2\nS\n> Z",
    "Q begin\nP - select * from generate_series(1,5)\nB p -\nE p 2\nS\n> Z\n> Z\nE p 2\nS\n> Z\nE p 0\nS\n> Z\nE p 0\nS\n> Z\nQ commit\n> Z\nE p 0\nS\n> Z",
    "Q begin\n> Z\nP s select * from generate_series(1,3)\nB p s\nS\n> Z\nB p s\nS\n> Z\nQ rollback\n> Z",
    "Q begin\n> Z\nP s select * from generate_series(1,3)\nB p s\nDP p\nE p 1\nS\n> Z\nCP p\nB p s\nE p 2\nS\n> Z\nQ fetch 1 from p\n> Z\nQ close p\n> Z\nDP p\nS\n> Z\nQ rollback\n> Z",
    "Q begin\n> Z\nQ declare c cursor for select * from generate_series(1,4)\n> Z\nDP c\nE c 1\nS\n> Z\nQ fetch 2 from c\n> Z\nE c 0\nS\n> Z\nCP c\nS\n> Z\nQ fetch c\n> Z\nQ rollback\n> Z",
    "Q begin\n> Z\nP - declare c cursor for select 1\nB c -\nE c 0\nS\n> Z\nQ fetch c\n> Z\nQ rollback\n> Z",
    // The unnamed portal dies with its transaction, and with a simple query.
    "P s select 1\nB - s\nS\n> Z\nE - 0\nS\n> Z",
    "Q begin\n> Z\nP s select 1\nB - s\nS\n> Z\nQ select 2\n> Z\nE - 0\nS\n> Z\nQ rollback\n> Z",
    // Rows that no Execute asked for twice: an insert's portal cannot run again.
    "P - select 1 where false\nB - -\nDP -\nE - 0\nE - 0\nS\n> Z",
    // Several statements in one string: one implicit transaction, explicit ones within.
    "Q select 1; select 2; select 3\n> Z",
    "Q select 1; select 1/0; select 3\n> Z",
    "Q select 1; begin; select 2\n> Z\nQ rollback; select 3; begin; select 4\n> Z\nQ commit; select 5\n> Z",
    "Q begin; select 1/0; rollback\n> Z\nQ rollback; begin; select 7\n> Z\nQ rollback and chain\n> Z\nQ commit and chain\n> Z\nQ rollback\n> Z",
    "Q ;;; ;\n> Z\nQ\n> Z\nQ /* nothing */ -- at all\n> Z\nP - \nB - -\nDS -\nDP -\nE - 0\nS\n> Z",
    "P - select 1; select 2\nS\n> Z",
    "Q commit\n> Z\nQ rollback\n> Z\nQ begin\n> Z\nQ begin\n> Z\nQ savepoint a\n> Z\nQ select 1/0\n> Z\nQ rollback to a\n> Z\nQ select 1\n> Z\nQ select 1/0\n> Z\nQ commit\n> Z",
    "Q savepoint a\n> Z\nQ rollback to a\n> Z\nQ release a\n> Z",
    // Function calls.
    "F 2000000000 1\n> Z\nQ begin\n> Z\nF 2000000000 1\n> Z\nF 1598 1\n> Z\nQ rollback\n> Z",
    // COPY: in, out, failing, late data, in the extended protocol, in a block.
    "Q truncate talk\n> Z\nQ copy talk from stdin\n> 1\nd 1\nd 2\nc\n> Z\nQ copy talk to stdout\n> Z\nQ copy talk from stdin\n> 1\nf stop it\n> Z\nQ select count(*) from talk\n> Z",
    "Q copy talk from stdin\n> 1\nd x\nd 2\nc\n> Z\nQ select 1\n> Z",
    "Q copy talk from stdin\n> 1\nd x\n> .\n> 1\nd 2\nc\nQ select 1\n> Z\n> Z",
    "Q copy nosuch from stdin\nd 1\nc\nQ select 1\n> Z\n> Z",
    "d 1\nc\nf why\nQ select 1\n> Z",
    "P - copy talk from stdin\nB - -\nE - 0\nS\n> 3\nd 1\nc\nS\n> Z\nQ select 1\n> Z",
    "P - copy talk from stdin\nB - -\nE - 0\nH\n> 3\nd 1\nc\nS\n> Z",
    "P - copy talk from stdin\nB - -\nE - 0\nH\n> 3\nd x\nc\nS\nQ select 1\n> Z\n> Z",
    "P - copy talk from stdin\nB - -\nE - 0\nH\n> 3\nf no\nS\nQ select 1\n> Z\n> Z",
    "P - copy talk from stdin\nB - -\nE - 0\nH\n> 3\nd x\n> 1\nd 1\nd 2\nc\nQ select 0\nS\nQ select 1\n> Z\n> Z",
    "Q begin; truncate talk\n> Z\nQ copy talk from stdin; select count(*) from talk\n> 1\nd 5\nc\n> Z\nQ rollback\n> Z",
    "Q copy (select 1) to stdout; copy (select 2) to stdout\n> Z",
    "P - copy (select * from generate_series(1,3)) to stdout\nB - -\nE - 0\nS\n> Z",
    "Q copy talk from stdin\n> 1\nH\nS\nd 1\nH\nS\nc\n> Z\nQ select 1\n> Z",
    // A message that does not belong into a COPY.
    "Q copy talk from stdin\n> 1\nd 1\nQ select 1\n> EOF",
    // Notices, settings and notifications of one's own.
    "Q do $$ begin raise notice 'a'; raise warning 'b'; end $$\n> Z\nQ set application_name = 'me'\n> Z\nQ listen l\n> Z\nQ notify l, 'x'\n> 3\nQ unlisten l\n> Z",
    // SQL's own prepared statements share the namespace with the protocol's.
    "Q prepare q as select 1\n> Z\nB - q\nE - 0\nS\n> Z\nQ execute q\n> Z\nQ deallocate q\n> Z\nQ execute q\n> Z",
    // Terminate.
    "Q select 1\nX\n> EOF",
    "P - select 1\nB - -\nE - 0\nX\n> EOF",
];

fn start(mode: PoolMode) -> Cluster {
    let c = Cluster::start(0, |raw| raw.pools.pool_mode = mode);
    c.nodes[0].psql("create table talk(a int); alter table talk owner to app");
    c
}

#[test]
fn in_transaction_mode_every_conversation_is_answered_as_postgresql_does() {
    check(&start(PoolMode::Transaction), SCRIPTS);
}

#[test]
fn in_session_mode_every_conversation_is_answered_as_postgresql_does() {
    let c = start(PoolMode::Session);
    check(&c, SCRIPTS);
    check(&c, OWN_NAMES);
}

/// What only a session with a server of its own can do as PostgreSQL does.
const OWN_NAMES: &[&str] = &[
    "P s select 1\nS\n> Z\nQ execute s\n> Z\nQ select name, statement from pg_prepared_statements\n> Z\nQ deallocate s\n> Z\nB - s\nE - 0\nS\n> Z",
    "P s select 1\nS\n> Z\nCS s\nS\n> Z\nQ select count(*) from pg_prepared_statements\n> Z\nP s select 2\nB - s\nE - 0\nS\n> Z",
    "P s select 1\nS\n> Z\nB - nosuch\nCS s\nS\n> Z\nB - s\nE - 0\nS\n> Z",
    "Q set work_mem = '5MB'\n> Z\nQ create temp table mine(a int)\n> Z\nQ show work_mem\n> Z\nQ discard temp\n> Z\nQ select * from mine\n> Z",
    "P s select * from talk\nS\n> Z\nQ alter table talk add b int\n> Z\nB - s\nE - 0\nS\n> Z\nB - s\nE - 0\nS\n> Z\nQ alter table talk drop b\n> Z",
];
