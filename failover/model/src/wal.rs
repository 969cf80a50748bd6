//! A log of a few records, and where lines of descent part. PostgreSQL's WAL with one record per position.

/// Commits and other records in the order written. Four bits each, the number of them on top.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Wal(u32);

/// A record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Anything but a client's commit: a checkpoint, a vacuum.
    Noise,
    /// The client's commit of this number, from 1.
    Write(u8),
    /// End of recovery and the record of this term: what a promotion writes first.
    Term(u8),
}

/// Longest log.
pub const LONGEST: u8 = 7;

/// A timeline and a position on it, ordered by both. Zero: unknown.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Position(pub u8);

/// What a manager has of a recruit in quarantine: that it is frozen. Before every end of WAL.
pub const QUARANTINED: Position = Position(1);

impl Position {
    /// Its timeline.
    pub fn timeline(self) -> u8 {
        self.0 >> 4
    }

    /// Its position.
    pub fn lsn(self) -> u8 {
        self.0 & 15
    }

    /// Is it known?
    pub fn is_known(self) -> bool {
        self.0 != 0
    }
}

impl std::fmt::Debug for Position {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.timeline(), self.lsn())
    }
}

/// How timelines are numbered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Numbering {
    /// The term's number, by stub histories.
    Term,
    /// PostgreSQL's own: one more than the parent's.
    Next,
}

impl Wal {
    /// How many records.
    pub fn len(self) -> u8 {
        (self.0 >> 28) as u8
    }

    /// Nothing written?
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// The record at `at`, from 0.
    pub fn get(self, at: u8) -> Entry {
        match (self.0 >> (at * 4)) as u8 & 15 {
            0 => Entry::Noise,
            n @ 1..=7 => Entry::Write(n),
            n => Entry::Term(n - 8),
        }
    }

    /// With one record more.
    pub fn with(self, entry: Entry) -> Self {
        let at = self.len();
        assert!(at < LONGEST, "the bounds keep logs short");
        let code = match entry {
            Entry::Noise => 0,
            Entry::Write(n) => u32::from(n),
            Entry::Term(t) => u32::from(t) + 8,
        };
        Self((self.0 & 0x0fff_ffff) | code << (at * 4) | (u32::from(at) + 1) << 28)
    }

    /// The commits among the first `upto` records, one bit each.
    pub fn writes(self, upto: u8) -> u8 {
        let bit = |at| if let Entry::Write(n) = self.get(at) { 1 << n } else { 0 };
        (0..upto.min(self.len())).map(bit).fold(0, |all, one| all | one)
    }

    /// The timeline of its end.
    pub fn timeline(self, numbering: Numbering) -> u8 {
        self.segments(numbering).last().map_or(1, |s| s.timeline())
    }

    /// Its end.
    pub fn end(self, numbering: Numbering) -> Position {
        Position(self.timeline(numbering) << 4 | self.len())
    }

    /// Each timeline with where it ends, oldest first: a history file and the end of WAL.
    pub fn segments(self, numbering: Numbering) -> impl Iterator<Item = Position> + Clone {
        let mut timeline = 1;
        let mut at = 0;
        let mut done = false;
        std::iter::from_fn(move || {
            while at < self.len() {
                let here = at;
                at += 1;
                if let Entry::Term(term) = self.get(here) {
                    let ended = Position(timeline << 4 | here);
                    timeline = if numbering == Numbering::Term { term } else { timeline + 1 };
                    return Some(ended);
                }
            }
            (!std::mem::replace(&mut done, true)).then_some(Position(timeline << 4 | at))
        })
    }

    /// Does a log that ends at `own`'s end lie wholly on this line, as far as PostgreSQL and `fsm::rejoin::plan` can
    /// tell from numbers?
    pub fn descends(self, own: Self, numbering: Numbering) -> bool {
        let end = own.end(numbering);
        let newest = self.timeline(numbering);
        let on_line = self
            .segments(numbering)
            .any(|s| s.timeline() == end.timeline() && (s.timeline() == newest || end.lsn() <= s.lsn()));
        on_line && !self.is_twin(own, numbering)
    }

    fn is_twin(self, own: Self, numbering: Numbering) -> bool {
        let timeline = own.timeline(numbering);
        let begin = |wal: Self| {
            let mut before = Position::default();
            for segment in wal.segments(numbering) {
                if segment.timeline() == timeline {
                    return Some(before);
                }
                before = segment;
            }
            None
        };
        matches!((begin(self), begin(own)), (Some(a), Some(b)) if a != b)
    }
}

impl std::fmt::Debug for Wal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let word = |at| match self.get(at) {
            Entry::Noise => "-".to_owned(),
            Entry::Write(n) => format!("w{n}"),
            Entry::Term(t) => format!("T{t}"),
        };
        write!(f, "[{}]", (0..self.len()).map(word).collect::<Vec<_>>().join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wal(text: &str) -> Wal {
        text.split_whitespace().fold(Wal::default(), |wal, word| {
            let number = word[1..].parse().unwrap_or(0);
            wal.with(match &word[..1] {
                "w" => Entry::Write(number),
                "T" => Entry::Term(number),
                _ => Entry::Noise,
            })
        })
    }

    #[test]
    fn a_log_knows_its_timelines() {
        let log = wal("w1 - T3 w2");
        assert_eq!(format!("{log:?}"), "[w1 - T3 w2]");
        let segments = |n| log.segments(n).map(|p| format!("{p:?}")).collect::<Vec<_>>();
        assert_eq!(segments(Numbering::Term), ["1:2", "3:4"]);
        assert_eq!(segments(Numbering::Next), ["1:2", "2:4"]);
        assert_eq!((log.writes(3), log.writes(9)), (0b10, 0b110));
    }

    #[test]
    fn a_line_is_left_by_what_is_past_its_fork() {
        let (up, n) = (wal("w1 T3 w2"), Numbering::Term);
        for (own, on_line) in [("", true), ("w1", true), ("w1 w2", false), ("w1 T3", true), ("w1 T2", false)] {
            assert_eq!(up.descends(wal(own), n), on_line, "{own}");
        }
        assert!(up.descends(wal("w1 T2"), Numbering::Next), "twins that began at one place look alike");
        assert!(!up.descends(wal("T2 -"), Numbering::Next), "those that did not are told apart");
    }
}
