//! The oracle: statements by the thousand, each classified by us and run by a primary and by its standby.
//!
//! No statement that a standby refuses, answers differently, or that leaves a transaction id or a lock on the primary
//! may be classified as a read; and nearly all others must be. The statements are made of the pieces in
//! `corpus/oracle.txt`, with the two hand-written lists of the corpus. Each runs in a transaction that is rolled back,
//! over one connection to each server.

use super::{READS, WRITES, corpus};
use crate::postgres::Postgres;
use proxy::sql::{Access, FunctionTable, LexRules, classify};
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

const PIECES: &str = include_str!("../corpus/oracle.txt");
/// As promised, of the statements that a standby answers as the primary does.
const LEAST_READS_PERCENT: usize = 95;
const LEAST_STATEMENTS: usize = 1500;

/// A statement to be judged.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Case {
    sql: String,
    /// It belongs to the primary, or to its session, even where no server tells so.
    bound: bool,
}

/// The lines of a section of the pieces.
fn section(name: &str) -> Vec<String> {
    let head = format!("[{name}]");
    let lines = PIECES.lines().skip_while(|l| *l != head).skip(1).take_while(|l| !l.starts_with('['));
    let lines: Vec<_> = lines.filter(|l| !l.is_empty() && !l.starts_with('#')).collect();
    assert!(!lines.is_empty(), "no section {name}");
    lines.into_iter().map(|l| l.replace("\\n", "\n")).collect()
}

/// Every shape with every piece in it.
fn fill<'a>(shapes: &'a [String], pieces: &'a [String]) -> impl Iterator<Item = String> + 'a {
    shapes.iter().flat_map(move |shape| pieces.iter().map(move |piece| shape.replacen('@', piece, 1)))
}

fn cases() -> BTreeSet<Case> {
    let shapes = section("shapes");
    let mut cases = BTreeSet::new();
    let mut add = |sql: String, bound: bool| {
        cases.insert(Case { sql, bound });
    };
    fill(&shapes, &section("expressions")).for_each(|sql| add(sql, false));
    fill(&shapes, &section("writing expressions")).for_each(|sql| {
        let bound = !is_plain_explain(&sql);
        add(sql, bound);
    });
    fill(&section("lock shapes"), &section("locks")).for_each(|sql| add(sql, true));
    fill(&section("change shapes"), &section("changes")).for_each(|sql| add(sql, true));
    section("statements").into_iter().for_each(|sql| add(sql, false));
    corpus(READS).for_each(|sql| add(sql, false));
    corpus(WRITES).for_each(|sql| add(sql, true));
    cases
}

/// EXPLAIN without ANALYZE calls nothing, whatever it explains.
fn is_plain_explain(sql: &str) -> bool {
    let lower = sql.to_ascii_lowercase();
    lower.starts_with("explain") && !lower.contains("analyze")
}

/// Plans and times, and names of servers, differ without meaning anything; rows without ORDER BY come in any order.
fn comparable(sql: &str, mut answer: Answer) -> Answer {
    let lower = sql.to_ascii_lowercase();
    if lower.contains("explain") || ["random()", "now()", "cluster_name"].iter().any(|word| lower.contains(word)) {
        answer.messages.clear();
    }
    answer.messages.sort_unstable();
    answer
}

/// One connection that keeps every byte of an answer.
struct Raw(UnixStream);

/// What a server made of a statement.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    /// Row descriptions, rows, tags and copied data.
    messages: Vec<Vec<u8>>,
    sqlstate: Option<String>,
}

impl Raw {
    fn connect(server: &Postgres) -> Self {
        let path = server.socket_dir().join(format!(".s.PGSQL.{}", server.port));
        let stream = UnixStream::connect(path).expect("the server accepts");
        stream.set_read_timeout(Some(super::DEADLINE)).expect("a socket");
        let mut raw = Self(stream);
        let body = b"\0\x03\0\0user\0postgres\0database\0postgres\0\0";
        let length = u32::try_from(body.len() + 4).expect("short").to_be_bytes();
        raw.0.write_all(&[&length[..], body].concat()).expect("the server reads");
        assert_eq!(raw.answer().sqlstate, None, "the server lets us in");
        raw
    }

    fn send(&mut self, tag: u8, body: &[u8]) {
        let length = u32::try_from(body.len() + 4).expect("short").to_be_bytes();
        self.0.write_all(&[&[tag], &length[..], body].concat()).expect("the server reads");
    }

    fn query(&mut self, sql: &str) -> Answer {
        self.send(b'Q', &[sql.as_bytes(), b"\0"].concat());
        self.answer()
    }

    fn answer(&mut self) -> Answer {
        let mut answer = Answer { messages: Vec::new(), sqlstate: None };
        loop {
            let mut head = [0_u8; 5];
            self.0.read_exact(&mut head).expect("the server answers");
            let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
            let mut body = vec![0; length - 4];
            self.0.read_exact(&mut body).expect("the server answers");
            match head[0] {
                b'Z' => return answer,
                b'G' => self.send(b'f', b"no data\0"),
                b'E' => {
                    let code = body.split(|b| *b == 0).find(|field| field.first() == Some(&b'C'));
                    answer.sqlstate = code.map(|c| String::from_utf8_lossy(&c[1..]).into_owned());
                }
                b'T' | b'D' | b'C' | b'd' | b'H' => {
                    body.push(head[0]);
                    answer.messages.push(body);
                }
                // Notices, parameters and what comes at login.
                _ => {}
            }
        }
    }

    /// Run a statement in a transaction and take it back. Also: did it take a transaction id or an advisory lock?
    fn judge(&mut self, sql: &str) -> (Answer, bool) {
        const LEFT: &str = "select pg_current_xact_id_if_assigned() is not null \
            or exists (select from pg_locks where locktype = 'advisory' and pid = pg_backend_pid())";
        self.query("begin");
        let answer = self.query(sql);
        let left = self.query(LEFT);
        // A row of one column, of one byte: `t`; the last byte is the message's tag.
        let left = left.messages.iter().any(|m| m == b"\0\x01\0\0\0\x01tD");
        self.query("rollback");
        self.query("select pg_advisory_unlock_all()");
        self.query("deallocate all");
        self.query("reset all");
        (answer, left)
    }
}

/// Judge them all.
pub(crate) fn check(primary: &Postgres, standby: &Postgres, table: &FunctionTable) {
    let (mut on_primary, mut on_standby) = (Raw::connect(primary), Raw::connect(standby));
    // Somebody writes meanwhile, and another has committed since, so that snapshots tell who runs.
    let mut writer = Raw::connect(primary);
    writer.query("begin; select pg_current_xact_id(), pg_logical_emit_message(true, 'oracle', 'x')");
    Raw::connect(primary).query("select pg_current_xact_id()");
    let end = primary.sql("select pg_current_wal_flush_lsn()");
    standby.await_sql(&format!("select pg_last_wal_replay_lsn() >= '{end}'"), "t");
    let cases = cases();
    assert!(cases.len() >= LEAST_STATEMENTS, "only {} statements", cases.len());
    let (mut leaks, mut same, mut missed) = (Vec::new(), 0, Vec::new());
    let (mut ran, mut refused) = (0, 0);
    for Case { sql, bound } in &cases {
        let read = classify(sql.as_bytes(), table, LexRules::STANDARD).access == Access::Read;
        let (there, wrote) = on_primary.judge(sql);
        let (here, _) = on_standby.judge(sql);
        let (there, here) = (comparable(sql, there), comparable(sql, here));
        ran += usize::from(there.sqlstate.is_none());
        refused += usize::from(there.sqlstate.is_none() && here.sqlstate.is_some());
        let equal = there == here && !wrote;
        if read && (*bound || !equal) {
            leaks.push(format!("{sql}: {:?} {:?}, wrote: {wrote}", there.sqlstate, here.sqlstate));
        }
        if equal && !bound && there.sqlstate.is_none() {
            same += 1;
            if !read {
                missed.push(sql.clone());
            }
        }
    }
    let reads = same - missed.len();
    println!(
        "{} statements: {ran} run on the primary, {refused} of them refused by the standby, {same} with the same \
         result on both, {reads} of these classified as reads",
        cases.len()
    );
    assert!(leaks.is_empty(), "{} classified as reads: {leaks:#?}", leaks.len());
    assert!(reads * 100 >= same * LEAST_READS_PERCENT, "{reads} of {same}, not: {missed:#?}");
    if std::env::var_os("PGTENURE_ORACLE_VERBOSE").is_some() {
        println!("on the primary without need: {missed:#?}");
    }
    // The pieces are what they should be: most run, and the standby has writes to refuse.
    assert!(ran * 2 > cases.len() && refused > 300, "{ran} ran, {refused} refused");
}
