//! What agents have done, as their logs tell it. PURE.

use std::time::Duration;

/// Something an agent did to its node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Deed {
    /// It promised a term.
    Promised(u64),
    /// Its node receives nothing of older terms any more.
    Frozen(u64),
    /// Its node, frozen for a term, receives from who is still to be promoted in that.
    Attended(u64),
    /// Its node is about to be promoted for a term: the next timeline that PostgreSQL makes there is that one.
    Numbered(u64),
    /// Its node is the primary of a term.
    Promoted(u64),
    /// Its node follows the primary of a term.
    Followed(u64),
    /// The WAL past this position was examined, reported and kept in a directory.
    Examined(String, String),
    /// A rewind back to this position begins.
    Rewinding(String),
    /// It was rewound, and counts for nothing until it has replayed what it once held.
    Rewound,
    /// All that it has is on the primary's line, but the primary does not keep the WAL that follows.
    Outlived,
    /// Its data was moved away, because it could not be examined.
    SetAside,
    /// The cluster was created on it.
    Created,
    /// It was copied, and counts for nothing until it has replayed what it once held.
    Cloned,
    /// It counts again.
    Counts,
}

/// A deed, and when, since 1970.
pub type At = (Duration, Deed);

/// The deeds in an agent's log, in order.
pub fn deeds(log: &str) -> Vec<At> {
    log.lines().filter_map(|line| Some((time(line)?, deed(line)?))).collect()
}

fn deed(line: &str) -> Option<Deed> {
    // `TIME LEVEL module: message key=value …`
    let (_, said) = line.split_once(": ")?;
    let term = || value(said, "term")?.parse().ok();
    let text = |key| value(said, key).map(str::to_owned);
    let is = |message: &str| said.strip_prefix(message).is_some_and(|rest| rest.starts_with(' '));
    Some(match () {
        () if is("promised") => Deed::Promised(term()?),
        () if is("frozen") => Deed::Frozen(term()?),
        () if is("connecting ahead of the promotion") => Deed::Attended(term()?),
        () if is("timelines are numbered, promoting") => Deed::Numbered(term()?),
        () if is("promoted") => Deed::Promoted(term()?),
        () if is("following the primary") => Deed::Followed(term()?),
        () if is("examined lost wal") => Deed::Examined(text("lsn")?, text("kept_in")?),
        () if is("rewinding") => Deed::Rewinding(text("lsn")?),
        () if is("rewound") => Deed::Rewound,
        () if is("cloning") => Deed::Outlived,
        () if is("lost wal could not be examined as a whole, its data is set aside") => Deed::SetAside,
        () if is("cluster created") => Deed::Created,
        () if is("cloned") => Deed::Cloned,
        () if is("replay has passed the quarantine") => Deed::Counts,
        () => return None,
    })
}

/// The value of a field that has no spaces in it.
fn value<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    let word = line.split_whitespace().find_map(|w| w.strip_prefix(key)?.strip_prefix('='))?;
    Some(word.trim_matches('"'))
}

/// `2026-11-28T11:06:51.318715Z` as time since 1970.
fn time(line: &str) -> Option<Duration> {
    let (date, clock) = line.split_whitespace().next()?.strip_suffix('Z')?.split_once('T')?;
    let numbers = |text: &str, by: char| text.split(by).map(|n| n.parse::<f64>().ok()).collect::<Option<Vec<f64>>>();
    let (date, clock) = (numbers(date, '-')?, numbers(clock, ':')?);
    let (&[year, month, day], &[hours, minutes, seconds]) = (&date[..], &clock[..]) else { return None };
    // Years begin in March, so that the leap day is their last.
    let year = if month <= 2.0 { year - 1.0 } else { year };
    let month = (month + 9.0) % 12.0;
    let days = 365.0 * year + (year / 4.0).floor() - (year / 100.0).floor() + (year / 400.0).floor();
    let days = days + ((153.0 * month + 2.0) / 5.0).floor() + day - 1.0 - 719_468.0;
    let whole = ((days * 24.0 + hours) * 60.0 + minutes) * 60.0;
    (whole >= 0.0).then(|| Duration::from_secs_f64(whole) + Duration::from_secs_f64(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deeds_are_read_from_the_lines_that_agents_write() {
        let log = "\
2026-11-28T11:06:48.700879Z  WARN failover::agent::reconcile: another term has begun: stopping postgres node=n1
2026-11-28T11:06:51.318715Z  INFO failover::agent::freeze: promised node=n2 term=2
2026-11-28T11:06:51.980697Z  INFO failover::agent::freeze: frozen node=n2 term=2 timeline=1 lsn=0/51461C8
2026-11-28T11:06:52.080697Z  INFO failover::agent::catch_up: connecting ahead of the promotion node=n2 term=2 primary=n3
2026-11-28T11:06:52.180697Z  INFO failover::agent::promote: timelines are numbered, promoting node=n3 term=2 timeline=2
not a line
2026-11-28T11:06:59.100000Z  WARN failover::agent::wal_tail: examined lost wal node=n1 term=2 timeline=1 lsn=0/51461C8 bytes=120 commits=1 kept_in=/tmp/x/n1/lost/0000000002-timeline-1
2026-11-28T11:07:00.000000Z  INFO failover::agent::rewind: rewinding node=n1 term=2 timeline=1 lsn=0/51461C8
";
        let examined = Deed::Examined("0/51461C8".into(), "/tmp/x/n1/lost/0000000002-timeline-1".into());
        let found: Vec<Deed> = deeds(log).into_iter().map(|(_, deed)| deed).collect();
        let recruited = [Deed::Promised(2), Deed::Frozen(2), Deed::Attended(2), Deed::Numbered(2)];
        assert_eq!(found[..4], recruited);
        assert_eq!(found[4..], [examined, Deed::Rewinding("0/51461C8".into())]);
    }

    #[test]
    fn the_words_are_those_that_agents_write() {
        let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../failover/src/agent");
        let files = std::fs::read_dir(dir).expect("the agents' sources").map(|f| f.expect("a file").path());
        let agents: String = files.filter_map(|path| std::fs::read_to_string(path).ok()).collect();
        let before = concat!("() if is(", "\"");
        let words: Vec<&str> =
            include_str!("deeds.rs").split(before).skip(1).filter_map(|rest| rest.split('"').next()).collect();
        assert!(words.len() > 10, "{words:?}");
        for message in words {
            assert!(agents.contains(&format!("\"{message}\"")), "no agent says {message:?}");
        }
    }

    #[test]
    fn times_are_since_1970() {
        assert_eq!(time("1970-01-01T00:00:01.500000Z"), Some(Duration::from_millis(1500)));
        let seconds = |text| time(text).map(|t| t.as_secs());
        assert_eq!(seconds("2024-02-29T12:00:00Z x"), Some(1_709_208_000));
        assert_eq!(seconds("2026-11-28T11:06:46.300000Z"), Some(1_795_864_006));
        assert_eq!(time("thread 'main' panicked"), None);
    }
}
