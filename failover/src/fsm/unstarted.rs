//! A rewound or copied directory that PostgreSQL does not start on: is a copy made anew, and when? PURE.
//!
//! It may lack WAL that its primary has not, and then only another copy helps. But a port that is taken, a configuration that is
//! wrong or a host that is short of something is not mended by one, and a copy costs the primary more than anything else here.
//! Where one might mend it all the same it is made late, and again at greater and greater distances.

use cluster::{Instant, Term};
use std::fmt;
use std::time::Duration;

/// Before the second copy in a row, and before the first where the log gives no reason; twice as long before each that follows.
const FIRST_PAUSE: Duration = Duration::from_secs(10);
/// Longest pause, and the first where the reason seems to lie elsewhere.
const LONGEST_PAUSE: Duration = Duration::from_secs(600);
/// Longest pause there.
const LONGEST_ELSEWHERE: Duration = Duration::from_secs(12 * 3600);

/// A reason that does not lie in the data, as far as the log tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Elsewhere {
    /// What it is to an operator.
    pub why: &'static str,
    /// A copy might mend it all the same: it brings the primary's settings, in files and in pg_control, and files of its own.
    pub copy_may_help: bool,
}

/// Why it did not start, as far as the log tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Nothing says that it is not the data.
    InTheData,
    /// It is not the data.
    Elsewhere(Elsewhere),
    /// Nothing is said: it was ended by a signal, or the log's writer was late.
    Untold,
}

const fn no_copy_helps(why: &'static str) -> Elsewhere {
    Elsewhere { why, copy_may_help: false }
}

const fn a_copy_may_help(why: &'static str) -> Elsewhere {
    Elsewhere { why, copy_may_help: true }
}

/// What PostgreSQL says last where the reason is not in its data.
const NOT_IN_THE_DATA: &[(&[&str], Elsewhere)] = &[
    (
        &["could not create any TCP/IP sockets", "Address already in use"],
        no_copy_helps("its address or port cannot be used"),
    ),
    (&["any Unix-domain sockets", "lock file"], no_copy_helps("its socket's directory or a lock file cannot be used")),
    (
        &[
            "configuration file",
            "configuration parameter",
            "invalid value for parameter",
            "conflicting configuration",
            "could not load",
            "could not access file",
            "private key file",
            "insufficient parameter settings",
        ],
        a_copy_may_help("what it is configured with does not work"),
    ),
    (
        &[
            "shared memory",
            "semaphore",
            "Cannot allocate memory",
            "Too many open files",
            "No space left on device",
            "Read-only file system",
        ],
        no_copy_helps("the host is short of something"),
    ),
    (&["Permission denied", "has invalid permissions", "has wrong ownership"], a_copy_may_help("it may not")),
    (
        &["database files are incompatible with server"],
        no_copy_helps("the data are of another major version of PostgreSQL, or of one that was built otherwise"),
    ),
];

/// Of the end of PostgreSQL's log the lines that say why it ended: the last FATAL or PANIC, what follows it, and some before.
/// Without what each begins with, so that a start that fails again for the same reason tells the same.
pub fn last_words(log: &str) -> Vec<&str> {
    const MOST: usize = 8;
    let lines: Vec<&str> = log.lines().map(without_prefix).collect();
    let from = lines.len().saturating_sub(MOST);
    let fatal = begin_of_reason(&lines[from..]).map_or(usize::MAX, |i| from + i);
    lines[fatal.min(lines.len().saturating_sub(4))..].to_vec()
}

/// Without the time and the process (`log_line_prefix`).
fn without_prefix(line: &str) -> &str {
    const BEGINS: [&str; 8] = ["LOG:", "FATAL:", "PANIC:", "HINT:", "DETAIL:", "WARNING:", "ERROR:", "CONTEXT:"];
    let begins = BEGINS.iter().filter_map(|b| line.find(&format!("{b}  "))).min();
    begins.map_or(line, |at| &line[at..])
}

/// Where the reason begins. That it does not let anybody in yet is none.
fn begin_of_reason(lines: &[&str]) -> Option<usize> {
    lines.iter().rposition(|l| (l.contains("FATAL") || l.contains("PANIC")) && !l.contains("the database system is"))
}

/// Would PostgreSQL start on a copy, as far as its log tells?
pub fn reason(log: &str) -> Reason {
    let lines = last_words(log);
    let Some(begin) = begin_of_reason(&lines) else { return Reason::Untold };
    let said = lines[begin..].join("\n");
    let known = NOT_IN_THE_DATA.iter().find(|(words, _)| words.iter().any(|w| said.contains(w)));
    known.map_or(Reason::InTheData, |(_, elsewhere)| Reason::Elsewhere(*elsewhere))
}

/// What is there is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// A copy would not start either.
    ForGood {
        /// Why.
        why: &'static str,
    },
    /// Nor would it, most likely.
    Long {
        /// Why.
        why: &'static str,
        /// For how long it must have failed to start before it is replaced.
        pause: Duration,
    },
    /// Copies have not started before, or nothing says that one is needed.
    For {
        /// How many have not.
        copies: u32,
        /// For how long it must have failed to start before it is replaced.
        pause: Duration,
    },
}

impl fmt::Display for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ForGood { why } => write!(f, "a copy would not change that: {why}"),
            Self::Long { why, pause } => {
                write!(
                    f,
                    "a copy would hardly change that: {why}; copied all the same when it has failed for {pause:?}"
                )
            }
            Self::For { copies: 0, pause } => {
                write!(f, "its log does not tell why; copied when it has failed for {pause:?}")
            }
            Self::For { copies, pause } => {
                write!(f, "copied in vain before ({copies}), copied again when it has failed for {pause:?}")
            }
        }
    }
}

/// Copies that were made because what was there did not start, since the node counted last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unstarted {
    copies: u32,
    failing_since: Option<Instant>,
}

impl Unstarted {
    /// It did not start: may it be replaced now?
    ///
    /// # Errors
    /// What is to happen before; until then it is tried again.
    pub fn replace(&mut self, now: Instant, reason: Reason) -> Result<(), Kept> {
        if let Reason::Elsewhere(Elsewhere { why, copy_may_help: false }) = reason {
            return Err(Kept::ForGood { why });
        }
        let since = *self.failing_since.get_or_insert(now);
        let doubled = |first: Duration, times: u32| first.saturating_mul(1 << times.min(10));
        let pause = match reason {
            Reason::Elsewhere(_) => doubled(LONGEST_PAUSE, self.copies).min(LONGEST_ELSEWHERE),
            Reason::InTheData if self.copies == 0 => Duration::ZERO,
            Reason::InTheData | Reason::Untold => {
                doubled(FIRST_PAUSE, self.copies.saturating_sub(1)).min(LONGEST_PAUSE)
            }
        };
        if now.since(since) < pause {
            return Err(match reason {
                Reason::Elsewhere(Elsewhere { why, .. }) => Kept::Long { why, pause },
                Reason::InTheData | Reason::Untold => Kept::For { copies: self.copies, pause },
            });
        }
        *self = Self { copies: self.copies + 1, failing_since: None };
        Ok(())
    }

    /// It runs; whether it gets so far that it counts is seen later.
    pub fn started(&mut self) {
        self.failing_since = None;
    }
}

/// Copies that failed in a row: each costs the primary a checkpoint, and as much of its disk and network as it came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Failing {
    times: u32,
    last: Option<(Instant, Term, String)>,
}

/// Not yet again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("copying has failed ({times} in a row: {why}); tried again {pause:?} after that")]
pub struct NotYet {
    /// How many have failed.
    pub times: u32,
    /// How the last one did.
    pub why: String,
    /// From its failure to the next.
    pub pause: Duration,
}

impl Failing {
    /// May another begin, from the primary of that term? Whatever became of copies of an earlier one.
    ///
    /// # Errors
    /// It has failed too often and not long ago.
    pub fn may_copy(&self, now: Instant, term: Term) -> Result<(), NotYet> {
        let Some((at, of, why)) = &self.last else { return Ok(()) };
        let pause = match self.times {
            0 | 1 => Duration::ZERO,
            times => FIRST_PAUSE.saturating_mul(1 << (times - 2).min(10)).min(LONGEST_PAUSE),
        };
        if *of != term || now.since(*at) >= pause {
            return Ok(());
        }
        Err(NotYet { times: self.times, why: why.clone(), pause })
    }

    /// One from the primary of that term has failed.
    pub fn failed(&mut self, now: Instant, term: Term, why: String) {
        let goes_on = self.last.as_ref().is_some_and(|(_, of, _)| *of == term);
        self.times = if goes_on { self.times + 1 } else { 1 };
        self.last = Some((now, term, why));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_that_fail_are_made_again_at_growing_distances_and_of_another_primary_at_once() {
        let (mut failing, mut now) = (Failing::default(), Instant::from_nanos(0));
        let mut waited = Vec::new();
        for _ in 0..10 {
            let begun = now;
            while let Err(NotYet { why, .. }) = failing.may_copy(now, Term(7)) {
                assert_eq!(why, "no space");
                now = now + Duration::from_secs(1);
            }
            waited.push(now.since(begun).as_secs());
            failing.failed(now, Term(7), "no space".into());
        }
        assert_eq!(waited, [0, 0, 10, 20, 40, 80, 160, 320, 600, 600]);
        assert_eq!(failing.may_copy(now, Term(8)), Ok(()));
        failing.failed(now, Term(8), "gone".into());
        assert_eq!(failing.may_copy(now, Term(8)), Ok(()), "the first is repeated at once");
    }

    fn elsewhere(log: &str) -> Elsewhere {
        match reason(log) {
            Reason::Elsewhere(elsewhere) => elsewhere,
            other => panic!("{other:?}: {log}"),
        }
    }

    #[test]
    fn a_start_that_fails_for_want_of_wal_is_mended_by_a_copy_and_others_are_not() {
        let port = "LOG:  could not bind IPv4 address \"127.0.0.1\": Address already in use\n\
            HINT:  Is another postmaster already running on port 5432? If not, wait a few seconds and retry.\n\
            WARNING:  could not create listen socket for \"127.0.0.1\"\n\
            2026-11-29 19:29:14.699 GMT [9299] FATAL:  could not create any TCP/IP sockets\n\
            LOG:  database system is shut down\n";
        assert_eq!(elsewhere(port).why, "its address or port cannot be used");
        let words = last_words(port);
        assert_eq!((words.len(), words[2]), (4, "FATAL:  could not create any TCP/IP sockets"));
        for (log, mended) in [
            ("FATAL:  could not create lock file \"/s/.s.PGSQL.1.lock\": Permission denied", false),
            (
                "LOG:  syntax error in file \"x\" line 1, near token \"y\"\nFATAL:  configuration file \"x\" contains errors",
                false,
            ),
            (
                "FATAL:  could not map anonymous shared memory: Cannot allocate memory\nHINT:  This error usually means",
                false,
            ),
            (
                "FATAL:  could not create semaphores: No space left on device\nDETAIL:  Failed system call was semget",
                false,
            ),
            ("FATAL:  data directory \"d\" has invalid permissions\nDETAIL:  Permissions should be u=rwx", false),
            ("FATAL:  could not access file \"pg_stat_statements\": No such file or directory", false),
            (
                "FATAL:  database files are incompatible with server\nDETAIL:  The data directory was initialized by PostgreSQL \
                 version 15, which is not compatible with this version 17.10.",
                false,
            ),
            (
                "FATAL:  recovery aborted because of insufficient parameter settings\nDETAIL:  max_connections = 10 is a lower\n\
                 HINT:  You can restart\nLOG:  startup process (PID 7) exited with exit code 1\n\
                 LOG:  aborting startup due to startup process failure\nLOG:  database system is shut down",
                false,
            ),
            ("FATAL:  could not locate required checkpoint record\nHINT:  If you are restoring", true),
            (
                "LOG:  could not bind IPv6 address \"::1\": Address already in use\nPANIC:  WAL contains references to invalid pages",
                true,
            ),
            (
                "FATAL:  could not create any TCP/IP sockets\nLOG:  shut down\nFATAL:  requested timeline 3 is not a child",
                true,
            ),
            ("FATAL:  requested timeline 3 is not a child\nFATAL:  the database system is starting up", true),
        ] {
            assert_eq!(matches!(reason(log), Reason::InTheData), mended, "{log}");
            assert_ne!(reason(log), Reason::Untold, "{log}");
        }
    }

    #[test]
    fn a_start_that_ended_without_a_word_is_tried_again_for_a_while_before_the_first_copy() {
        let killed = "LOG:  redo starts at 0/3000028\nLOG:  startup process (PID 7) was terminated by signal 9: Killed\n\
            LOG:  aborting startup due to startup process failure\nLOG:  database system is shut down";
        for log in [killed, "FATAL:  the database system is starting up", "LOG:  redirecting log output", ""] {
            assert_eq!(reason(log), Reason::Untold, "{log}");
        }
        let at = Instant::from_millis;
        let mut unstarted = Unstarted::default();
        let wait = Err(Kept::For { copies: 0, pause: FIRST_PAUSE });
        assert_eq!(unstarted.replace(at(1000), Reason::Untold), wait);
        assert_eq!(unstarted.replace(at(10_999), Reason::Untold), wait);
        // The reason is told late.
        let mut told = unstarted;
        assert_eq!(told.replace(at(1400), Reason::InTheData), Ok(()));
        assert_eq!(unstarted.replace(at(11_000), Reason::Untold), Ok(()));
        assert_eq!(unstarted.replace(at(20_000), Reason::Untold), Err(Kept::For { copies: 1, pause: FIRST_PAUSE }));
        // It has run meanwhile.
        let mut unstarted = Unstarted::default();
        assert_eq!(unstarted.replace(at(0), Reason::Untold), wait);
        unstarted.started();
        assert_eq!(unstarted.replace(at(60_000), Reason::Untold), wait);
    }

    #[test]
    fn copies_that_do_not_start_follow_each_other_at_growing_distances() {
        let at = Instant::from_millis;
        let mut unstarted = Unstarted::default();
        assert_eq!(unstarted.replace(at(1000), Reason::InTheData), Ok(()), "the first at once");
        // However long the copy took, it has failed to start since now only.
        let mut now = 100_000;
        for pause in [10, 20, 40, 80, 160, 320, 600, 600, 600, 600, 600, 600] {
            let wait = Kept::For { copies: unstarted.copies, pause: Duration::from_secs(pause) };
            assert_eq!(unstarted.replace(at(now), Reason::InTheData), Err(wait));
            assert_eq!(unstarted.replace(at(now + pause * 1000 - 1), Reason::InTheData), Err(wait));
            now += pause * 1000;
            assert_eq!(unstarted.replace(at(now), Reason::InTheData), Ok(()));
            now += 100_000;
        }
        // One that ran has failed anew.
        assert_eq!(unstarted.replace(at(now), Reason::InTheData), Err(Kept::For { copies: 13, pause: LONGEST_PAUSE }));
        unstarted.started();
        assert_eq!(
            unstarted.replace(at(now + 600_000), Reason::InTheData),
            Err(Kept::For { copies: 13, pause: LONGEST_PAUSE })
        );
    }

    #[test]
    fn what_a_copy_may_mend_all_the_same_is_copied_late_and_what_it_cannot_never() {
        let at = |s: u64| Instant::from_millis(s * 1000);
        let mut unstarted = Unstarted::default();
        let port = reason("FATAL:  could not create any TCP/IP sockets");
        let for_good = Err(Kept::ForGood { why: "its address or port cannot be used" });
        assert_eq!((unstarted.replace(at(0), port), unstarted.replace(at(90_000), port)), (for_good, for_good));
        // Where the primary's max_connections were lowered since, pg_control of another copy tells of that.
        for log in [
            "FATAL:  recovery aborted because of insufficient parameter settings\nDETAIL:  max_connections = 100 is a lower",
            "FATAL:  could not open file \"base/1/1259\": Permission denied",
            "FATAL:  configuration file \"/d/data/postgresql.auto.conf\" contains errors",
        ] {
            let mut unstarted = unstarted;
            let reason = reason(log);
            let long = |pause| Kept::Long { why: elsewhere(log).why, pause: Duration::from_secs(pause) };
            let mut now = 100_000;
            for pause in [600, 1200, 2400, 4800, 9600, 19_200, 38_400, 43_200, 43_200, 43_200, 43_200, 43_200, 43_200] {
                assert_eq!(unstarted.replace(at(now), reason), Err(long(pause)), "{log}");
                assert_eq!(unstarted.replace(at(now + pause - 1), reason), Err(long(pause)));
                now += pause;
                assert_eq!(unstarted.replace(at(now), reason), Ok(()));
            }
        }
    }
}
