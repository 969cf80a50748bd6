//! WAL that the cluster has not: where it ends, what it holds, and keeping it before it is overwritten (INV-5).

use super::control::Control;
use super::layout::{fsync_dir, write_durably};
use super::rejoin::{RejoinError, Source};
use super::tool::{self, ToolError};
use super::{Agent, wall_millis};
use crate::api::Position;
use crate::fsm::control_file::shutdown_checkpoint_end;
use crate::fsm::rejoin::tail;
use crate::fsm::waldump::{self, PAGE, Tail, parse, record_end};
use crate::record::{LossReport, Rearmed, Suspension};
use crate::store::{Compare, StoreError, Txn};
use cluster::timeline::{Fork, History};
use cluster::{Lsn, Term, TimelineId};
use std::fs;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::process::Command;

/// Reading a long tail takes its time, but not for ever.
const READ_BOUND: Duration = Duration::from_secs(3600);

/// A tail that could not be examined. Nothing may overwrite it then.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExamineError {
    #[error(transparent)]
    Tool(#[from] ToolError),
    #[error("the lost WAL could not be kept")]
    Keep(#[source] io::Error),
    #[error("the report could not be put into etcd")]
    Report(#[source] StoreError),
    #[error("the WAL from {lsn} on timeline {timeline} is not there any more")]
    Missing { timeline: TimelineId, lsn: Lsn },
    #[error("the report could not be written")]
    Write(#[source] serde_json::Error),
}

impl Agent {
    /// The timeline of the newest WAL here: a primary that died soon after its promotion has not put it into
    /// pg_control yet.
    pub(super) fn newest_timeline(&self, control: TimelineId) -> TimelineId {
        wal_files(&self.env.layout.data().join("pg_wal"))
            .iter()
            .map(|f| f.timeline)
            .max()
            .unwrap_or(control)
            .max(control)
    }

    /// End of the last whole record on `own`'s own timeline, reading from `from` or from where that timeline begins.
    pub(super) async fn end_of_wal(&self, own: &History, from: Fork, control: &Control) -> Result<Lsn, RejoinError> {
        let begin = own.forks.last().map_or(from.lsn, |f| f.lsn.max(from.lsn));
        let read = self.read_tail(own, own.timeline, begin, None, control.segment_size, None).await;
        match read {
            Ok(found) => Ok(found.end.unwrap_or(begin)),
            // The segment was never begun: nothing was written past this point. Or it is not kept any more, if a checkpoint
            // came later.
            Err(ExamineError::Missing { .. }) if control.timeline == own.timeline => Ok(begin.max(control.checkpoint)),
            Err(ExamineError::Missing { .. }) => Ok(begin),
            Err(error) => Err(error.into()),
        }
    }

    /// End of the record at the latest checkpoint, that of a clean shutdown.
    pub(super) async fn end_of_record(&self, control: &Control) -> Result<Lsn, ToolError> {
        if let Some(end) = self.shutdown_checkpoint_end(control) {
            return Ok(end);
        }
        let files = wal_files(&self.env.layout.data().join("pg_wal"));
        let mut command = self.waldump(&files, control.timeline, control.checkpoint, None, control.segment_size);
        command.arg("-n").arg("1");
        let out = tool::run(command, Duration::from_secs(30)).await?;
        let record = out.stdout.lines().find_map(parse);
        let record = record.filter(|r| r.lsn == control.checkpoint);
        let record = record.ok_or_else(|| ToolError::Output { program: "pg_waldump".into() })?;
        Ok(record_end(record.lsn, record.total, control.segment_size))
    }

    /// The same, where it can be told from the page alone that the record is in.
    fn shutdown_checkpoint_end(&self, control: &Control) -> Option<Lsn> {
        let (at, segment) = (control.checkpoint, control.segment_size);
        let name = segment_file(control.timeline, at, segment);
        let file = fs::File::open(self.env.layout.data().join("pg_wal").join(name)).ok()?;
        let mut page = vec![0; usize::try_from(PAGE).ok()?];
        file.read_exact_at(&mut page, at.0 % segment / PAGE * PAGE).ok()?;
        shutdown_checkpoint_end(&page, at, segment)
    }

    /// The files are named: left to itself `pg_waldump` learns the segments' size from any file of the directory, and fails
    /// when that is one which PostgreSQL has made in advance.
    fn waldump(&self, files: &[WalFile], timeline: TimelineId, from: Lsn, to: Option<Lsn>, segment: u64) -> Command {
        let mut command = self.env.program("pg_waldump");
        command.arg("-p").arg(self.env.layout.data().join("pg_wal"));
        command.arg("-t").arg(timeline.to_string()).arg("-s").arg(from.to_string());
        let (names, to) = span(files, timeline, from, to, segment);
        if let Some(to) = to {
            command.arg("-e").arg(to.to_string());
        }
        command.args(names);
        command
    }

    /// Read records of `timeline` from `from` to `to` (or to the end of valid WAL).
    async fn read_tail(
        &self,
        own: &History,
        timeline: TimelineId,
        from: Lsn,
        to: Option<Lsn>,
        segment: u64,
        unprotected: Option<Range<Lsn>>,
    ) -> Result<Tail, ExamineError> {
        let files = wal_files(&self.env.layout.data().join("pg_wal"));
        // A promotion renames the old timeline's last segment; the new one's begins with a copy of it.
        let lineage = own.forks.iter().map(|f| f.timeline).chain([own.timeline]).filter(|t| *t >= timeline);
        let here = lineage.clone().find(|t| files.iter().any(|f| f.timeline == *t && f.number == from.0 / segment));
        let here = here.ok_or(ExamineError::Missing { timeline, lsn: from })?;
        let command = self.waldump(&files, here, from, to, segment);
        let mut found = Tail::default();
        let done =
            tool::run_lines(command, READ_BOUND, |line| found.take(line, segment, unprotected.as_ref()), |_| {}).await;
        match done {
            Ok(()) => Ok(found),
            // Ending with an error is how it tells that the next record is not valid: the end of WAL.
            Err(ToolError::Failed { stderr, .. })
                if waldump::is_end(&stderr) || unbegun(&self.env, here, from, segment) =>
            {
                Ok(found)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Where the WAL of `timeline` that is still there begins, between these.
    fn left_of(&self, own: &History, timeline: TimelineId, (from, to): (Lsn, Lsn), segment: u64) -> Option<Lsn> {
        let files = wal_files(&self.env.layout.data().join("pg_wal"));
        let lineage: Vec<TimelineId> = own.forks.iter().map(|f| f.timeline).chain([own.timeline]).collect();
        let of_it = files.iter().filter(|f| f.timeline >= timeline && lineage.contains(&f.timeline));
        let begins = of_it.map(|f| Lsn(f.number * segment)).filter(|begin| from < *begin && *begin < to);
        begins.min()
    }

    /// Read the tail past `parted`, keep it, report it, and remember that this was done. Of a tail that is not there as a
    /// whole any more what is left is read and reported, and that is its error: it is not to be overwritten.
    pub(super) async fn examine(
        &self,
        source: &Source,
        own: Option<&History>,
        end: Position,
        parted: Fork,
    ) -> Result<(), RejoinError> {
        let control = Control::read(&self.env).await?;
        let alone = History::root(end.timeline);
        let own = own.unwrap_or(&alone);
        let (memory, policy) = (self.memory(), self.policy());
        let suspended = memory.suspended.as_ref();
        // It may have ended without having read of it.
        let read = policy.and_then(|p| p.rearmed).filter(|r| suspended.is_some_and(|s| r.ended(s)));
        let rearmed = memory.rearmed.or(read);
        let (mut total, mut missing, mut unread_to) = (Tail::default(), None, None);
        let segment = control.segment_size;
        for (timeline, from, to) in tail(own, end.lsn, parted) {
            let last = timeline == own.timeline;
            let unprotected = unprotected(suspended, rearmed, timeline, from);
            let until = (!last).then_some(to);
            match self.read_tail(own, timeline, from, until, segment, unprotected.clone()).await {
                Ok(part) => total.append(part),
                Err(ExamineError::Missing { .. }) if from == to => {}
                Err(error @ ExamineError::Missing { .. }) => {
                    let left = self.left_of(own, timeline, (from, to), segment);
                    (missing, unread_to) = (Some(error), Some(left.unwrap_or(to)));
                    if let Some(begin) = left {
                        total.append(self.read_tail(own, timeline, begin, until, segment, unprotected).await?);
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
        let term = began_at(&source.history, parted);
        let (kept, kept_to) = self.keep_tail(term, own, parted, segment).map_err(ExamineError::Keep)?;
        let end_lsn = total.end.max(unread_to).unwrap_or(parted.lsn).max(parted.lsn);
        let report = LossReport {
            term,
            node: self.env.config.node.clone(),
            timeline: end.timeline,
            fork_lsn: parted.lsn,
            end_lsn,
            unread_to,
            bytes: end_lsn.bytes_since(parted.lsn),
            commits: total.commits,
            aborts: total.aborts,
            span_ms: total.span_ms(),
            commits_while_suspended: total.unprotected,
            transactions: total.listed,
            kept_in: Some(kept.display().to_string()),
            kept_to: kept_to.filter(|to| *to < end_lsn),
            examined: wall_millis(),
        };
        let json = serde_json::to_vec_pretty(&report).map_err(ExamineError::Write)?;
        write_durably(&kept.join("report.json"), &json).map_err(ExamineError::Keep)?;
        let key = self.env.keys.report(term, &self.env.config.node);
        self.store.txn(Txn::new().put(key, json)).await.map_err(ExamineError::Report)?;
        tracing::warn!(
            node = %self.env.config.node, term = term.0, timeline = end.timeline.0, lsn = %parted.lsn,
            bytes = report.bytes, commits = report.commits, kept_in = %kept.display(), "examined lost wal"
        );
        self.metrics.lost_commits.inc_by(report.at_least());
        if let Some(error) = missing {
            return Err(error.into());
        }
        self.remember(|m| m.examined = Some(parted))
            .map_err(|source| RejoinError::File { what: "the mark could not be written", source })
    }

    /// An old primary whose WAL ends on the new line says so, unless a report of its WAL is there already: "nothing
    /// was lost" must be told apart from "nobody has looked yet". Asks the new primary, so a freeze must not wait for it.
    pub(super) async fn report_nothing_lost(&self, source: &Source, end: Position) {
        let Some(fork) = source.history.fork_of(end.timeline) else { return };
        let term = began_at(&source.history, Fork { timeline: end.timeline, lsn: fork });
        let prev = self.records.borrow().term.as_ref().and_then(|t| t.value.prev.clone());
        let was_primary = match prev.filter(|p| p.timeline == end.timeline) {
            Some(prev) => prev.node == self.env.config.node,
            // It was away for longer, or etcd does not tell of all terms.
            None => source.ended(&self.env.config.node, end.timeline, term).await.unwrap_or_else(|error| {
                tracing::warn!(node = %self.env.config.node, term = term.0, %error, "not known whose term it was");
                false
            }),
        };
        if !was_primary {
            return;
        }
        let report = LossReport {
            term,
            node: self.env.config.node.clone(),
            timeline: end.timeline,
            fork_lsn: fork,
            end_lsn: end.lsn,
            unread_to: None,
            bytes: 0,
            commits: 0,
            aborts: 0,
            span_ms: None,
            commits_while_suspended: 0,
            transactions: Vec::new(),
            kept_in: None,
            kept_to: None,
            examined: wall_millis(),
        };
        let key = self.env.keys.report(term, &self.env.config.node);
        let put = match serde_json::to_vec_pretty(&report) {
            Ok(json) => self.store.txn(Txn::new().when(Compare::Absent(key.clone())).put(key, json)).await,
            Err(error) => return tracing::warn!(node = %report.node, term = term.0, %error, "report not written"),
        };
        match put {
            Ok(_) => tracing::info!(node = %report.node, term = term.0, lsn = %fork, "nothing was lost"),
            Err(error) => tracing::warn!(node = %report.node, term = term.0, %error, "report not written"),
        }
    }

    /// Copy the segments of the tail, the newest `lost_wal_keep` tails only, and of each at most `lost_wal_max` bytes. To where,
    /// and where what does not fit begins.
    fn keep_tail(&self, term: Term, own: &History, parted: Fork, segment: u64) -> io::Result<(PathBuf, Option<Lsn>)> {
        let lost = self.env.layout.lost();
        let kept = lost.join(format!("{:010}-timeline-{}", term.0, own.timeline));
        fs::create_dir_all(&kept)?;
        let wal = self.env.layout.data().join("pg_wal");
        let (mut left, mut kept_to) = (self.env.config.lost_wal_max, None);
        let lineage: Vec<TimelineId> = own.forks.iter().map(|f| f.timeline).chain([own.timeline]).collect();
        let mut files = wal_files(&wal);
        files.retain(|f| {
            f.number >= parted.lsn.0 / segment && f.timeline >= parted.timeline && lineage.contains(&f.timeline)
        });
        files.sort_by_key(|f| (f.number, f.timeline));
        for file in files {
            let size = wal.join(&file.name).metadata()?.len();
            if size > left {
                tracing::warn!(node = %self.env.config.node, file = %file.name, "lost wal past agent.lost_wal_max not kept");
                kept_to = Some(Lsn(file.number * segment));
                break;
            }
            left -= size;
            fs::copy(wal.join(&file.name), kept.join(&file.name))?;
            fs::File::open(kept.join(&file.name))?.sync_all()?;
        }
        let history = own.timeline.history_file();
        if wal.join(&history).exists() {
            fs::copy(wal.join(&history), kept.join(&history))?;
        }
        fsync_dir(&kept)?;
        forget_oldest(&lost, self.env.config.lost_wal_keep)?;
        Ok((kept, kept_to))
    }
}

/// From where to where commits of `timeline`, which begins at `from`, were unprotected: given the last suspension that this
/// node saw as primary, and its end.
fn unprotected(
    suspended: Option<&Suspension>,
    rearmed: Option<Rearmed>,
    timeline: TimelineId,
    from: Lsn,
) -> Option<Range<Lsn>> {
    let suspended = suspended?;
    let since = match suspended.term.timeline()? {
        t if t == timeline => suspended.since,
        t if t < timeline => from,
        _ => return None,
    };
    match rearmed.and_then(|r| Some((r.term.timeline()?, r.lsn))) {
        Some((t, lsn)) if t == timeline => Some(since..lsn),
        Some((t, _)) if t < timeline => None,
        _ => Some(since..Lsn(u64::MAX)), // not over, or only later
    }
}

/// The term whose timeline left `parted.timeline` there.
pub(super) fn began_at(upstream: &History, parted: Fork) -> Term {
    let all = upstream.forks.iter().map(|f| f.timeline).chain([upstream.timeline]);
    let next = all.into_iter().find(|t| *t > parted.timeline).unwrap_or(upstream.timeline);
    Term(u64::from(next.0))
}

/// The name of the file that holds `lsn`, in segments of that many bytes.
fn segment_file(timeline: TimelineId, lsn: Lsn, segment: u64) -> String {
    let (number, each) = (lsn.0 / segment, (1u64 << 32) / segment);
    format!("{:08X}{:08X}{:08X}", timeline.0, number / each, number % each)
}

struct WalFile {
    name: String,
    timeline: TimelineId,
    /// Position divided by the segment size.
    number: u64,
}

/// Segments in `dir`, whole ones only. For 16 MiB segments and others alike: the name's last two parts are the
/// position's high half and the segment within 4 GiB.
fn wal_files(dir: &Path) -> Vec<WalFile> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let names =
        entries.filter_map(|e| e.file_name().into_string().ok().map(|n| (n, e.metadata().map_or(0, |m| m.len()))));
    names
        .filter_map(|(name, size)| {
            if name.len() != 24 || size == 0 || !name.bytes().all(|b| b.is_ascii_hexdigit()) {
                return None;
            }
            let part = |i: usize| u64::from_str_radix(&name[i..i + 8], 16).ok();
            let timeline = TimelineId(u32::try_from(part(0)?).ok()?);
            let number = part(8)? * ((1u64 << 32) / size) + part(16)?;
            Some(WalFile { name, timeline, number })
        })
        .collect()
}

/// The names of the first and last of `timeline`'s files that hold what lies between `from` and `to`, and `to` where they
/// reach so far. Those behind the end of WAL are among them: PostgreSQL makes some in advance.
fn span(
    files: &[WalFile],
    timeline: TimelineId,
    from: Lsn,
    to: Option<Lsn>,
    segment: u64,
) -> (Vec<String>, Option<Lsn>) {
    let name = |number: u64| files.iter().find(|f| f.timeline == timeline && f.number == number).map(|f| &f.name);
    let first = from.0 / segment;
    let wanted = to.map_or(u64::MAX, |to| (to.0.saturating_sub(1) / segment).max(first));
    let Some(begin) = name(first) else { return (Vec::new(), to) };
    let mut names = vec![begin.clone()];
    let last = (first + 1..=wanted).map_while(|n| name(n).map(|file| (n, file))).last();
    names.extend(last.map(|(_, file)| file.clone()));
    let reached = last.map_or(first, |(n, _)| n);
    (names, to.filter(|_| reached == wanted))
}

/// Is the segment at `from` one that was made in advance, of zeros?
fn unbegun(env: &super::env::Env, timeline: TimelineId, from: Lsn, segment: u64) -> bool {
    let wal = env.layout.data().join("pg_wal");
    let Some(file) = wal_files(&wal).into_iter().find(|f| f.timeline == timeline && f.number == from.0 / segment)
    else {
        return false;
    };
    let mut page = [0; 512];
    let read = fs::File::open(wal.join(file.name)).and_then(|mut f| io::Read::read_exact(&mut f, &mut page));
    read.is_ok() && page == [0; 512]
}

/// Keep the newest `keep` directories; their names sort by term.
fn forget_oldest(lost: &Path, keep: usize) -> io::Result<()> {
    let mut tails: Vec<PathBuf> = fs::read_dir(lost)?.flatten().map(|e| e.path()).filter(|p| p.is_dir()).collect();
    tails.sort();
    let surplus = tails.len().saturating_sub(keep);
    tails.into_iter().take(surplus).try_for_each(fs::remove_dir_all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_term_that_left_a_tail_behind_is_read_from_the_new_history() {
        let history = History::parse(TimelineId(7), "1\t0/100\tx\n4\t0/200\tx\n").unwrap();
        let at = |t, l| Fork { timeline: TimelineId(t), lsn: Lsn(l) };
        assert_eq!(began_at(&history, at(1, 0x100)), Term(4));
        assert_eq!(began_at(&history, at(4, 0x200)), Term(7));
    }

    #[test]
    fn the_files_that_hold_a_tail_are_named() {
        const SEGMENT: u64 = 16 << 20;
        let file = |timeline: u32, number: u64| WalFile {
            name: format!("{timeline:08X}00000000{number:08X}"),
            timeline: TimelineId(timeline),
            number,
        };
        let files = [file(1, 9), file(2, 4), file(2, 3), file(2, 6), file(1, 3), file(2, 5), file(2, 8)];
        let at = |segment: u64, bytes: u64| Lsn(segment * SEGMENT + bytes);
        let names = |from, to| {
            let (names, to) = span(&files, TimelineId(2), from, to, SEGMENT);
            (names.iter().map(|n| n[23..].to_owned()).collect::<Vec<_>>().join(" "), to)
        };
        assert_eq!(names(at(3, 40), None), ("3 6".into(), None));
        assert_eq!(names(at(6, 0), None), ("6".into(), None));
        assert_eq!(names(at(3, 40), Some(at(3, 90))), ("3".into(), Some(at(3, 90))));
        assert_eq!(
            names(at(3, 40), Some(at(4, 0))),
            ("3".into(), Some(at(4, 0))),
            "its last byte is in the one before"
        );
        assert_eq!(names(at(3, 40), Some(at(4, 1))), ("3 4".into(), Some(at(4, 1))));
        assert_eq!(names(at(4, 0), Some(at(4, 0))), ("4".into(), Some(at(4, 0))));
        assert_eq!(names(at(5, 0), Some(at(8, 1))), ("5 6".into(), None), "7 is missing");
        assert_eq!(names(at(7, 0), None), (String::new(), None), "the first is missing");
    }

    #[test]
    fn what_was_committed_after_protection_was_back_was_not_unprotected() {
        let lowered =
            |term| Suspension { term: Term(term), since: Lsn(50), since_wall: 0, why: String::new(), lowered: None };
        let check = |suspended: u64, rearmed: Option<(u64, u64)>, expected: Option<(u64, u64)>| {
            let rearmed = rearmed.map(|(term, lsn)| Rearmed { term: Term(term), lsn: Lsn(lsn) });
            let found = unprotected(Some(&lowered(suspended)), rearmed, TimelineId(7), Lsn(20));
            assert_eq!(found, expected.map(|(from, to)| Lsn(from)..Lsn(to)));
        };
        check(7, None, Some((50, u64::MAX)));
        check(7, Some((7, 90)), Some((50, 90)));
        check(7, Some((8, 90)), Some((50, u64::MAX)));
        check(5, None, Some((20, u64::MAX)));
        check(5, Some((6, 90)), None);
        check(5, Some((7, 90)), Some((20, 90)));
        check(8, None, None);
    }

    #[test]
    fn segments_are_numbered_by_position_and_only_the_newest_tails_stay() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str| fs::File::create(dir.path().join(name)).unwrap().set_len(16 << 20).unwrap();
        write("000000040000000100000002");
        write("00000004000000010000000A.partial");
        write("00000004.history");
        let files = wal_files(dir.path());
        assert_eq!((files.len(), files[0].timeline, files[0].number), (1, TimelineId(4), 256 + 2));
        assert_eq!(segment_file(TimelineId(4), Lsn((256 + 2) * (16 << 20) + 5), 16 << 20), files[0].name);
        assert_eq!(segment_file(TimelineId(31), Lsn(0x9_4020_0000), 1 << 20), "0000001F0000000900000402");
        for term in ["0000000002-timeline-1", "0000000003-timeline-2", "0000000010-timeline-3"] {
            fs::create_dir(dir.path().join(term)).unwrap();
        }
        forget_oldest(dir.path(), 2).unwrap();
        assert!(!dir.path().join("0000000002-timeline-1").exists());
        assert!(dir.path().join("0000000010-timeline-3").exists());
    }
}
