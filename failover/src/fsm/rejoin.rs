//! How a node comes back under a new primary: follow, rewind or clone. PURE.
//!
//! A node's WAL is described by its line of descent (ancestors and where each ended) and the end of its last WAL. It
//! may simply follow when that end lies on the primary's line of descent. Otherwise it holds WAL that the cluster has
//! not: that tail is examined and reported before anything overwrites it (INV-5).

use crate::api::Position;
use cluster::timeline::{Fork, History};
use cluster::{Lsn, Term, TimelineId};

/// What is known when the decision is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts<'a> {
    /// End of this node's WAL.
    pub own_end: Position,
    /// This node's line of descent; `None` when the history file of its timeline is missing.
    pub own: Option<&'a History>,
    /// The new primary's line of descent.
    pub upstream: &'a History,
    /// The data directory must not be started: a rewind was begun and not finished, which only happens after its tail was
    /// examined; or it is whole, but can never become consistent under the primary there is, and its tail was not examined.
    pub rewind_interrupted: bool,
    /// The latter of the two: its WAL can be examined again, for another primary.
    pub whole: bool,
    /// The tail from this fork on was examined and reported.
    pub examined: Option<Fork>,
    /// The highest term that this agent has read as open.
    pub opened: Term,
    /// The new primary's term is open, as last read.
    pub source_is_open: bool,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Stream from the primary.
    Follow,
    /// Examine, save and report the WAL past this point first, then ask again.
    Examine(Fork),
    /// Rewind to where the two lines of descent part.
    Rewind(Fork),
    /// Replace the data by a fresh copy.
    Reclone(Why),
    /// Leave it as it is: what was acknowledged may be here, and not at the new primary, which has this timeline from elsewhere.
    Keep(TimelineId),
}

/// Why a rewind cannot help.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// A rewind was interrupted, or what was rewound or copied lacks WAL that the primary has not.
    RewindInterrupted,
    /// Both call the same timeline by the same number, but it began at different places, or with two promotions: pg_rewind would
    /// see no difference.
    Twins(TimelineId),
    /// This node's own history file is missing.
    HistoryUnknown,
    /// Not even the first timelines agree: another cluster's data would have been noticed before by its identifier,
    /// so this is a history file that was damaged.
    NothingInCommon,
}

impl Why {
    /// The reason as an operator reads it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::RewindInterrupted => "a rewind was interrupted, or what it needs the primary has not",
            Self::Twins(_) => "the same timeline was begun twice",
            Self::HistoryUnknown => "the node's own history file is missing",
            Self::NothingInCommon => "the histories have nothing in common",
        }
    }
}

/// A timeline was begun twice: may what this node has of it be replaced by the other one's? Not where this agent has read that
/// the term of that number was open, and etcd tells that the source's is not: etcd was restored from a backup, and this one may
/// have what was acknowledged. The managers begin another term.
fn may_replace(twin: TimelineId, opened: Term, source_is_open: bool) -> bool {
    source_is_open || opened.timeline() < Some(twin)
}

/// Decide.
pub fn plan(facts: &Facts<'_>) -> Plan {
    let twin = facts.own.and_then(|own| twins(own, facts.upstream).next());
    if let Some(twin) = twin.filter(|twin| !may_replace(*twin, facts.opened, facts.source_is_open))
        // What is half rewound is of no use by itself.
        && (facts.whole || !facts.rewind_interrupted)
    {
        return Plan::Keep(twin);
    }
    let (parted, why_not_rewind) = match facts.own {
        Some(own) if facts.upstream.contains_line(own, facts.own_end.lsn) => {
            // An interrupted rewind may well look like a fit, because the control file is written first or last.
            return if facts.rewind_interrupted { Plan::Reclone(Why::RewindInterrupted) } else { Plan::Follow };
        }
        Some(own) => match divergence(own, facts.own_end.lsn, facts.upstream) {
            Some(fork) => (fork, twin.map(Why::Twins)),
            None => (start_of(own), Some(Why::NothingInCommon)),
        },
        None => (oldest_possible(facts), Some(Why::HistoryUnknown)),
    };
    match (facts.rewind_interrupted, facts.examined, why_not_rewind) {
        (true, Some(_), _) if !facts.whole => Plan::Reclone(Why::RewindInterrupted),
        (_, None, _) => Plan::Examine(parted),
        (_, Some(done), _) if done != parted => Plan::Examine(parted),
        (true, Some(_), _) => Plan::Reclone(Why::RewindInterrupted),
        (false, Some(_), Some(why)) => Plan::Reclone(why),
        (false, Some(_), None) => Plan::Rewind(parted),
    }
}

/// Is `number` a timeline on the way from `timeline` to nowhere on `upstream`'s line? A standby that knows such a one, of a
/// term that was given up, may have taken it for its target, and then follows no other until it starts again
/// (xlogrecovery.c, `rescanLatestTimeLine`).
pub fn leads_elsewhere(number: TimelineId, timeline: TimelineId, upstream: &History) -> bool {
    number > timeline && number != upstream.timeline && upstream.forks.iter().all(|f| f.timeline != number)
}

/// Where `own` (ending at `end`) and `upstream` part: the last timeline they share and the first byte of it that they
/// may not share. `None` when they share no timeline.
pub fn divergence(own: &History, end: Lsn, upstream: &History) -> Option<Fork> {
    let mine = segments(own, end);
    let theirs = segments(upstream, Lsn(u64::MAX));
    let mut last = None;
    for (a, b) in mine.iter().zip(&theirs) {
        if a.timeline != b.timeline || own.began_otherwise(upstream, a.timeline) {
            break;
        }
        last = Some(Fork { timeline: a.timeline, lsn: a.lsn.min(b.lsn) });
        if a.lsn != b.lsn {
            break;
        }
    }
    last
}

/// The parts of `own`'s line past `parted`: timeline, from, to. Oldest first.
pub fn tail(own: &History, end: Lsn, parted: Fork) -> Vec<(TimelineId, Lsn, Lsn)> {
    let mut from = parted.lsn;
    let mut parts = Vec::new();
    for segment in segments(own, end).into_iter().skip_while(|s| s.timeline < parted.timeline) {
        if segment.lsn > from || segment.timeline == own.timeline {
            parts.push((segment.timeline, from, segment.lsn.max(from)));
        }
        from = from.max(segment.lsn);
    }
    parts
}

/// Each timeline of a line of descent with its end.
fn segments(history: &History, end: Lsn) -> Vec<Fork> {
    let mut all = history.forks.clone();
    all.push(Fork { timeline: history.timeline, lsn: end });
    all
}

fn start_of(history: &History) -> Fork {
    segments(history, Lsn::INVALID).first().copied().unwrap_or(Fork { timeline: history.timeline, lsn: Lsn::INVALID })
}

/// Without an own history the tail can only be read on the own timeline, from where the primary's line last left it or
/// a lower one.
fn oldest_possible(facts: &Facts<'_>) -> Fork {
    let timeline = facts.own_end.timeline;
    let lower = facts.upstream.forks.iter().rev().find(|f| f.timeline <= timeline);
    Fork { timeline, lsn: lower.map_or(facts.own_end.lsn, |f| f.lsn) }
}

/// Which timelines of `own`'s began twice, the lowest first: its own one elsewhere on `upstream`'s line of descent, or any one
/// with another promotion. Where ancestors of one number began at different places the two part before, as pg_rewind sees, too.
pub fn twins<'a>(own: &'a History, upstream: &'a History) -> impl Iterator<Item = TimelineId> {
    let begins = |h: &History, timeline: TimelineId| -> Option<Option<Fork>> {
        let all = segments(h, Lsn::INVALID);
        let i = all.iter().position(|s| s.timeline == timeline)?;
        Some(i.checked_sub(1).map(|before| all[before]))
    };
    let elsewhere = match (begins(own, own.timeline), begins(upstream, own.timeline)) {
        (Some(a), Some(b)) => a != b,
        _ => false,
    };
    let all = segments(own, Lsn::INVALID).into_iter().map(|s| s.timeline);
    all.filter(move |t| own.began_otherwise(upstream, *t) || elsewhere && *t == own.timeline)
}

/// Comparing whole lines of descent.
trait ContainsLine {
    /// Is `own`, ending at `end`, wholly on this line?
    fn contains_line(&self, own: &History, end: Lsn) -> bool;
}

impl ContainsLine for History {
    fn contains_line(&self, own: &History, end: Lsn) -> bool {
        self.contains(own.timeline, end) && twins(own, self).next().is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `1@10,2@20 3` reads: timeline 3, whose ancestor 1 ended at 10 and 2 at 20.
    fn history(text: &str) -> History {
        let (forks, timeline) = text.split_once(' ').unwrap_or(("", text));
        let forks = forks.split(',').filter(|f| !f.is_empty()).map(|f| {
            let (t, l) = f.split_once('@').unwrap();
            Fork { timeline: TimelineId(t.parse().unwrap()), lsn: Lsn(l.parse().unwrap()) }
        });
        History { forks: forks.collect(), ..History::root(TimelineId(timeline.parse().unwrap())) }
    }

    /// With marks: `2a,3b` reads: who began timeline 2 left an `a`.
    fn marked(text: &str, marks: &str) -> History {
        let mark = |m: &str| (TimelineId(m[..1].parse().unwrap()), m[1..].to_owned());
        History { marks: marks.split(',').map(mark).collect(), ..history(text) }
    }

    fn check(own: &str, end: u64, upstream: &str, examined: Option<(u32, u64)>, expected: Plan) {
        let own = history(own);
        let facts = Facts {
            own_end: Position { timeline: own.timeline, lsn: Lsn(end) },
            own: Some(&own),
            upstream: &history(upstream),
            rewind_interrupted: false,
            whole: false,
            examined: examined.map(|(t, l)| Fork { timeline: TimelineId(t), lsn: Lsn(l) }),
            opened: Term(0),
            source_is_open: false,
        };
        assert_eq!(plan(&facts), expected, "{own:?} {end} under {upstream}");
    }

    fn at(timeline: u32, lsn: u64) -> Fork {
        Fork { timeline: TimelineId(timeline), lsn: Lsn(lsn) }
    }

    #[test]
    fn a_node_whose_wal_ends_on_the_primarys_line_follows() {
        check("1", 90, "1@100 2", None, Plan::Follow);
        check("1", 100, "1@100 2", None, Plan::Follow);
        check("1@100 2", 130, "1@100 2", None, Plan::Follow);
        check("1@100 2", 150, "1@100,2@150 5", None, Plan::Follow);
    }

    #[test]
    fn a_tail_is_examined_before_it_is_rewound() {
        check("1", 101, "1@100 2", None, Plan::Examine(at(1, 100)));
        check("1", 101, "1@100 2", Some((1, 100)), Plan::Rewind(at(1, 100)));
        check("1", 101, "1@90,2@95 3", Some((1, 100)), Plan::Examine(at(1, 90)));
    }

    #[test]
    fn a_timeline_that_was_never_opened_is_rewound_to_its_parent() {
        // Promoted under term 2, died before it was opened; term 3 began from another node that had less.
        check("1@100 2", 120, "1@95 3", Some((1, 95)), Plan::Rewind(at(1, 95)));
        check("1@100 2", 120, "1@110 3", Some((1, 100)), Plan::Rewind(at(1, 100)));
    }

    #[test]
    fn twins_are_never_rewound() {
        check("1@100 2", 120, "1@90 2", None, Plan::Examine(at(1, 90)));
        check("1@100 2", 120, "1@90 2", Some((1, 90)), Plan::Reclone(Why::Twins(TimelineId(2))));
    }

    #[test]
    fn twins_that_began_at_one_place_are_known_by_their_marks() {
        let (own, end) = (marked("1@100 2", "2a"), Position { timeline: TimelineId(2), lsn: Lsn(120) });
        fn facts<'a>(own: &'a History, upstream: &'a History, own_end: Position, examined: Option<Fork>) -> Facts<'a> {
            Facts {
                own_end,
                own: Some(own),
                upstream,
                rewind_interrupted: false,
                whole: false,
                examined,
                opened: Term(0),
                source_is_open: false,
            }
        }
        let twins = Plan::Reclone(Why::Twins(TimelineId(2)));
        for upstream in [marked("1@100 2", "2b"), marked("1@100,2@150 3", "2b,3c")] {
            // All that is past where both began, or "nothing lost" would be said of it.
            assert_eq!(plan(&facts(&own, &upstream, end, None)), Plan::Examine(at(1, 100)));
            assert_eq!(plan(&facts(&own, &upstream, end, Some(at(1, 100)))), twins);
            let opened = Facts { opened: Term(2), ..facts(&own, &upstream, end, None) };
            assert_eq!(plan(&opened), Plan::Keep(TimelineId(2)));
        }
        // What was begun from it, too; pg_rewind would take 2 for what they have in common.
        let (later, upstream) = (marked("1@100,2@130 4", "2a,4d"), marked("1@100,2@150 5", "2b,5e"));
        let end = Position { timeline: TimelineId(4), ..end };
        assert_eq!(plan(&facts(&later, &upstream, end, None)), Plan::Examine(at(1, 100)));
        assert_eq!(plan(&facts(&later, &upstream, end, Some(at(1, 100)))), twins);
        // The same promotion's, or nobody knows whose.
        let end = Position { timeline: TimelineId(2), ..end };
        for upstream in [own.clone(), history("1@100 2"), marked("1@100,2@150 3", "2a,3c"), history("1@100,2@150 3")] {
            assert_eq!(plan(&facts(&own, &upstream, end, None)), Plan::Follow);
        }
    }

    #[test]
    fn what_was_open_is_neither_examined_nor_replaced_for_a_twin_that_never_was() {
        let (own, upstream) = (history("7@90 8"), history("7@80 8"));
        let at_twin = |opened, source_is_open, examined: Option<Fork>| Facts {
            own_end: Position { timeline: TimelineId(8), lsn: Lsn(120) },
            own: Some(&own),
            upstream: &upstream,
            rewind_interrupted: false,
            whole: false,
            examined,
            opened: Term(opened),
            source_is_open,
        };
        let parted = at(7, 80);
        for examined in [None, Some(parted)] {
            assert_eq!(plan(&at_twin(8, false, examined)), Plan::Keep(TimelineId(8)));
            assert_eq!(plan(&at_twin(9, false, examined)), Plan::Keep(TimelineId(8)));
        }
        // Nothing was acknowledged in it, as far as is known here; or the cluster goes by the other one already.
        for (opened, open) in [(7, false), (8, true)] {
            assert_eq!(plan(&at_twin(opened, open, None)), Plan::Examine(parted));
            assert_eq!(plan(&at_twin(opened, open, Some(parted))), Plan::Reclone(Why::Twins(TimelineId(8))));
        }
        let never_started = Facts { rewind_interrupted: true, whole: true, ..at_twin(8, false, None) };
        assert_eq!(plan(&never_started), Plan::Keep(TimelineId(8)));
        let half_rewound = Facts { rewind_interrupted: true, ..at_twin(8, false, Some(parted)) };
        assert_eq!(plan(&half_rewound), Plan::Reclone(Why::RewindInterrupted));
    }

    #[test]
    fn an_interrupted_rewind_is_replaced_even_if_it_looks_fit() {
        let own = history("1@100 2");
        let facts = Facts {
            own_end: Position { timeline: TimelineId(2), lsn: Lsn(130) },
            own: Some(&own),
            upstream: &own,
            rewind_interrupted: true,
            whole: false,
            examined: Some(at(1, 100)),
            opened: Term(0),
            source_is_open: false,
        };
        assert_eq!(plan(&facts), Plan::Reclone(Why::RewindInterrupted));
        // Never begun to be rewound: nobody has looked at what it has and the primary has not.
        let past = Position { timeline: TimelineId(1), lsn: Lsn(120) };
        let (root, examined) = (history("1"), None);
        let copy = Facts { own_end: past, own: Some(&root), examined, ..facts.clone() };
        assert_eq!(plan(&copy), Plan::Examine(at(1, 100)));
        assert_eq!(plan(&Facts { examined: Some(at(1, 100)), ..copy.clone() }), Plan::Reclone(Why::RewindInterrupted));
        // The primary that it was examined for is lost before the copy was made, and the next one has less.
        let shorter = history("1@90 3");
        let next = Facts { examined: Some(at(1, 100)), upstream: &shorter, ..copy.clone() };
        assert_eq!(plan(&Facts { whole: true, ..next.clone() }), Plan::Examine(at(1, 90)));
        let done = Facts { whole: true, examined: Some(at(1, 90)), ..next.clone() };
        assert_eq!(plan(&done), Plan::Reclone(Why::RewindInterrupted));
        assert_eq!(plan(&next), Plan::Reclone(Why::RewindInterrupted), "its WAL may be the source's by now");
        let gone = Facts { own: None, rewind_interrupted: false, examined: None, ..facts };
        assert_eq!(plan(&gone), Plan::Examine(at(2, 100)));
    }

    #[test]
    fn the_tail_spans_every_own_timeline_past_the_parting() {
        let own = history("1@100,2@150 3");
        let parts = tail(&own, Lsn(170), at(1, 90));
        let part = |t, a, b| (TimelineId(t), Lsn(a), Lsn(b));
        assert_eq!(parts, [part(1, 90, 100), part(2, 100, 150), part(3, 150, 170)]);
        assert_eq!(tail(&own, Lsn(170), at(2, 150)), [part(3, 150, 170)]);
        assert_eq!(tail(&history("1"), Lsn(170), at(1, 100)), [part(1, 100, 170)]);
    }
}
