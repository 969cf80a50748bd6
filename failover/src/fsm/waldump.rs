//! Reading what `pg_waldump` prints: the end of valid WAL and the transactions of a lost tail. PURE.
//!
//! Lines look like (PostgreSQL 13 to 18):
//! `rmgr: Transaction len (rec/tot):     34/    34, tx:        729, lsn: 0/03000170, prev 0/03000138, desc: COMMIT
//! 2026-11-23 16:39:59.223163 UTC`. Source: src/bin/pg_waldump/pg_waldump.c, src/backend/access/rmgrdesc/xactdesc.c.

use crate::record::LostTransaction;
use cluster::Lsn;
use std::ops::Range;

/// WAL page size, bytes (XLOG_BLCKSZ).
pub const PAGE: u64 = 8192;
/// Short page header, bytes; the first page of a segment has a long one.
const SHORT_HEADER: u64 = 24;
/// Long page header, bytes.
const LONG_HEADER: u64 = 40;
/// At most so many lost transactions are listed; all are counted.
pub const MAX_LISTED: usize = 1000;

/// One record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// Resource manager.
    pub rmgr: &'a str,
    /// Length with its full-page images, bytes.
    pub total: u64,
    /// Transaction, 0 for none.
    pub xid: u32,
    /// Where it starts.
    pub lsn: Lsn,
    /// The description.
    pub desc: &'a str,
}

/// Parse a line; `None` for anything that is not a record.
pub fn parse(line: &str) -> Option<Record<'_>> {
    let rest = line.strip_prefix("rmgr: ")?;
    let (rmgr, rest) = rest.split_once(" len (rec/tot):")?;
    let (lengths, rest) = rest.split_once(", tx:")?;
    let (xid, rest) = rest.split_once(", lsn:")?;
    let (lsn, rest) = rest.split_once(", prev ")?;
    let (_, desc) = rest.split_once(", desc: ")?;
    let (_, total) = lengths.split_once('/')?;
    Some(Record {
        rmgr: rmgr.trim(),
        total: total.trim().parse().ok()?,
        xid: xid.trim().parse().ok()?,
        lsn: lsn.trim().parse().ok()?,
        desc: desc.trim_end(),
    })
}

/// Did it end because valid WAL ends, and not because it could not read what there is? Given what it complained of, in
/// English.
pub fn is_end(complaint: &str) -> bool {
    ["error in WAL record at ", "could not find a valid record after ", "could not find file "]
        .iter()
        .any(|end| complaint.contains(end))
}

/// The first byte past a record, counting the page headers that it runs across. `segment` in bytes.
pub fn record_end(lsn: Lsn, total: u64, segment: u64) -> Lsn {
    let header = |at: u64| if at.is_multiple_of(segment) { LONG_HEADER } else { SHORT_HEADER };
    let (mut at, mut left) = (lsn.0, total.next_multiple_of(8));
    while left > 0 {
        if at.is_multiple_of(PAGE) {
            at += header(at);
        }
        let room = PAGE - at % PAGE;
        let step = room.min(left);
        at += step;
        left -= step;
    }
    Lsn(at)
}

/// What a tail contains, gathered line by line in bounded memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tail {
    /// The first record seen.
    pub first: Option<Lsn>,
    /// End of the last valid record.
    pub end: Option<Lsn>,
    /// Commits, prepared ones included.
    pub commits: u64,
    /// Aborts.
    pub aborts: u64,
    /// Commits in the range given to [`Tail::take`].
    pub unprotected: u64,
    /// The first [`MAX_LISTED`] commits.
    pub listed: Vec<LostTransaction>,
    /// Time of the last commit, microseconds within its own count; see [`micros`].
    last_commit: Option<i64>,
    /// Time of the first commit.
    first_commit: Option<i64>,
}

impl Tail {
    /// Take one line of output. `segment` in bytes; `unprotected`: commits in there were made below the
    /// cluster's mode.
    pub fn take(&mut self, line: &str, segment: u64, unprotected: Option<&Range<Lsn>>) {
        let Some(record) = parse(line) else { return };
        self.first.get_or_insert(record.lsn);
        self.end = Some(record_end(record.lsn, record.total, segment));
        if record.rmgr != "Transaction" {
            return;
        }
        match outcome(record.desc) {
            Some(Outcome::Commit { at, xid }) => {
                self.commits += 1;
                self.unprotected += u64::from(unprotected.is_some_and(|range| range.contains(&record.lsn)));
                let time = micros(at);
                self.first_commit = self.first_commit.or(time);
                self.last_commit = time.or(self.last_commit);
                if self.listed.len() < MAX_LISTED {
                    let xid = xid.unwrap_or(record.xid);
                    self.listed.push(LostTransaction { xid, lsn: record.lsn, committed_at: at.to_owned() });
                }
            }
            Some(Outcome::Abort) => self.aborts += 1,
            None => {}
        }
    }

    /// Add a later part of the same tail.
    pub fn append(&mut self, later: Self) {
        self.first = self.first.or(later.first);
        self.end = later.end.or(self.end);
        self.commits += later.commits;
        self.aborts += later.aborts;
        self.unprotected += later.unprotected;
        self.listed.extend(later.listed);
        self.listed.truncate(MAX_LISTED);
        self.first_commit = self.first_commit.or(later.first_commit);
        self.last_commit = later.last_commit.or(self.last_commit);
    }

    /// From the first to the last commit, milliseconds.
    pub fn span_ms(&self) -> Option<u64> {
        let (first, last) = (self.first_commit?, self.last_commit?);
        u64::try_from((last - first) / 1000).ok()
    }
}

enum Outcome<'a> {
    Commit { at: &'a str, xid: Option<u32> },
    Abort,
}

fn outcome(desc: &str) -> Option<Outcome<'_>> {
    let (verb, rest) = desc.split_once(' ').unwrap_or((desc, ""));
    match verb {
        "COMMIT" => Some(Outcome::Commit { at: time_of(rest), xid: None }),
        "COMMIT_PREPARED" => {
            let (xid, rest) = rest.split_once(": ").unwrap_or(("", rest));
            Some(Outcome::Commit { at: time_of(rest), xid: xid.trim().parse().ok() })
        }
        "ABORT" | "ABORT_PREPARED" => Some(Outcome::Abort),
        _ => None,
    }
}

/// The time stands first, up to `;` where details follow.
fn time_of(rest: &str) -> &str {
    rest.split(';').next().unwrap_or("").trim()
}

/// Microseconds since 1970 of `2026-11-23 16:39:59.223163 UTC`. `None` for another form.
pub fn micros(text: &str) -> Option<i64> {
    let text = text.strip_suffix(" UTC")?;
    let (date, time) = text.split_once(' ')?;
    let mut date = date.splitn(3, '-').map(|n| n.parse::<i64>().ok());
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let mut time = time.splitn(3, ':');
    let (hour, minute) = (time.next()?.parse::<i64>().ok()?, time.next()?.parse::<i64>().ok()?);
    let (second, fraction) = time.next().map(|s| s.split_once('.').unwrap_or((s, "0")))?;
    if fraction.len() > 6 || !(1..=12).contains(&month) {
        return None;
    }
    let fraction = fraction.parse::<i64>().ok()? * 10i64.pow(6 - u32::try_from(fraction.len()).ok()?);
    // Days from civil, with years that begin in March.
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * y + y.div_euclid(4) - y.div_euclid(100) + y.div_euclid(400) + (153 * m + 2) / 5 + day - 719_469;
    let seconds = ((days * 24 + hour) * 60 + minute) * 60 + second.parse::<i64>().ok()?;
    Some(seconds * 1_000_000 + fraction)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEGMENT: u64 = 16 << 20;
    const LINES: &str = "\
rmgr: Heap        len (rec/tot):     54/   150, tx:        729, lsn: 0/03000138, prev 0/03000100, desc: INSERT off 1 flags 0x00, blkref #0: rel 1663/5/16385 blk 0 FPW
rmgr: Transaction len (rec/tot):     34/    34, tx:        729, lsn: 0/030001D0, prev 0/03000138, desc: COMMIT 2026-11-23 16:39:59.223163 UTC
rmgr: Transaction len (rec/tot):     34/    34, tx:        730, lsn: 0/030001F8, prev 0/030001D0, desc: ABORT 2026-11-23 16:39:59.300000 UTC
rmgr: Transaction len (rec/tot):     82/    82, tx:          0, lsn: 0/03000220, prev 0/030001F8, desc: COMMIT_PREPARED 731: 2026-11-23 16:40:00.223163 UTC; gid x
pg_waldump: error: error in WAL record at 0/3000220: invalid record length at 0/3000278: wanted 24, got 0";

    fn lsn(text: &str) -> Lsn {
        text.parse().unwrap()
    }

    #[test]
    fn only_the_end_of_valid_wal_is_taken_for_its_end() {
        assert!(LINES.lines().last().is_some_and(is_end));
        assert!(is_end("pg_waldump: fatal: could not find a valid record after 0/3000000"));
        assert!(!is_end("pg_waldump: error: could not read file \"000000010000000000000003\": Input/output error"));
        let zeros = "WAL segment size must be a power of two between 1 MB and 1 GB, but the WAL file \"x\" header specifies 0 bytes";
        assert!(!is_end(zeros));
    }

    #[test]
    fn lost_transactions_are_counted_and_listed() {
        let mut tail = Tail::default();
        LINES.lines().for_each(|l| tail.take(l, SEGMENT, Some(&(lsn("0/3000220")..Lsn(u64::MAX)))));
        assert_eq!((tail.commits, tail.aborts, tail.unprotected), (2, 1, 1));
        assert_eq!((tail.first, tail.end), (Some(lsn("0/3000138")), Some(lsn("0/3000278"))));
        assert_eq!(tail.listed[1].xid, 731);
        assert_eq!(tail.listed[0].committed_at, "2026-11-23 16:39:59.223163 UTC");
        assert_eq!(tail.span_ms(), Some(1000));
    }

    #[test]
    fn a_record_that_crosses_a_page_has_its_header_inside() {
        assert_eq!(record_end(lsn("0/3000138"), 150, SEGMENT), lsn("0/30001D0"));
        // Eight bytes before the page's end, then 24 bytes of header.
        assert_eq!(record_end(lsn("0/3001FF8"), 32, SEGMENT), Lsn(0x0300_2000 + 24 + 24));
        // Into the next segment: a long header.
        assert_eq!(record_end(lsn("0/3FFFFF8"), 32, SEGMENT), Lsn(0x0400_0000 + 40 + 24));
        // Ending exactly with the page: the header of the next one is not part of it.
        assert_eq!(record_end(lsn("0/3001FE0"), 32, SEGMENT), lsn("0/3002000"));
    }

    #[test]
    fn times_are_read_to_the_microsecond() {
        assert_eq!(micros("1970-01-01 00:00:00 UTC"), Some(0));
        assert_eq!(micros("2026-11-23 16:39:59.223163 UTC"), Some(1_795_451_999_223_163));
        assert_eq!(micros("2024-02-29 00:00:00.5 UTC"), Some(1_709_164_800_500_000));
        for bad in ["", "now", "2026-11-23 16:39:59", "2026-13-01 00:00:00 UTC"] {
            assert_eq!(micros(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn other_lines_are_not_records() {
        for line in ["", "first record is after 0/3000100, at 0/3000138, skipping over 56 bytes", "rmgr: x"] {
            assert_eq!(parse(line), None);
        }
    }
}
