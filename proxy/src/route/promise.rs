//! What a session is promised of its reads, and what happens when no standby can keep the promise.
//!
//! The configuration says what holds for all, for a database and for a user; a session says otherwise by the settings
//! `pgtenure.*`, in its startup packet or by SET. They are PostgreSQL's own custom settings: the server keeps them,
//! SHOW, RESET, SET LOCAL, ROLLBACK and savepoints mean what they always mean, and what the proxy goes by is what the
//! server says they are.

use super::token::After;
use crate::sql::Access;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// What a read may miss, each less than the one before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Consistency {
    /// Anything: any standby of the cluster that answers serves, however far behind.
    Eventual,
    /// What was committed within the last `max_replay_lag`.
    Bounded,
    /// As `bounded`, but never what the session itself has written or already read.
    #[default]
    Session,
    /// Nothing that any proxy of the cluster had acknowledged before the read began.
    Global,
    /// Nothing at all that was acknowledged before it began: the primary serves it, once it is proven that it is that.
    Strong,
}

impl Consistency {
    const ALL: [Self; 5] = [Self::Eventual, Self::Bounded, Self::Session, Self::Global, Self::Strong];

    /// As it is written in settings and in the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Eventual => "eventual",
            Self::Bounded => "bounded",
            Self::Session => "session",
            Self::Global => "global",
            Self::Strong => "strong",
        }
    }
}

/// Where reads outside transaction blocks may go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ReadFrom {
    /// To a standby that keeps the promise.
    #[default]
    Standby,
    /// To the primary only.
    Primary,
}

impl ReadFrom {
    const ALL: [Self; 2] = [Self::Standby, Self::Primary];

    /// As it is written in settings and in the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Standby => "standby",
            Self::Primary => "primary",
        }
    }
}

/// What a read does that no standby may serve, once it has waited for one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum NoStandby {
    /// It goes to the primary, which always keeps the promise.
    #[default]
    Primary,
    /// It fails: reads shall never burden the primary.
    Error,
}

impl NoStandby {
    const ALL: [Self; 2] = [Self::Primary, Self::Error];

    /// As it is written in settings and in the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Primary => "primary",
            Self::Error => "error",
        }
    }
}

/// What holds for the reads of one session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Promise {
    /// What a read may miss.
    pub consistency: Consistency,
    /// Where it may go.
    pub read_from: ReadFrom,
    /// Greatest staleness of a standby that serves it; of no account for `eventual`.
    pub max_replay_lag: Duration,
    /// How long it waits for a standby that may serve it; zero: not at all.
    pub standby_wait: Duration,
    /// What it does then.
    pub no_standby: NoStandby,
    /// A standby that sorts text by other rules than the primary may serve it; `eventual` ones it may in any case.
    pub other_collations: bool,
    /// A position that it must not miss, whatever the consistency.
    pub after: Option<After>,
    /// The client is told of each statement where it went and why.
    pub explain_route: bool,
    /// A setting of it means nothing.
    pub unclear: bool,
}

impl Promise {
    /// What holds unless something else is configured: session consistency within this lag.
    pub const fn session(max_replay_lag: Duration) -> Self {
        Self {
            consistency: Consistency::Session,
            read_from: ReadFrom::Standby,
            max_replay_lag,
            standby_wait: Duration::ZERO,
            no_standby: NoStandby::Primary,
            other_collations: false,
            after: None,
            explain_route: false,
            unclear: false,
        }
    }

    /// Is it a read that is rather to fail than to burden the primary?
    pub fn spares_primary(&self, access: Access) -> bool {
        let at_standbys = self.read_from == ReadFrom::Standby && self.consistency != Consistency::Strong;
        access == Access::Read && at_standbys && self.no_standby == NoStandby::Error
    }

    /// What keeps both: for statements that are sent together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        let primary = [self.read_from, other.read_from].contains(&ReadFrom::Primary);
        let error = [self.no_standby, other.no_standby].contains(&NoStandby::Error);
        Self {
            consistency: self.consistency.max(other.consistency),
            read_from: if primary { ReadFrom::Primary } else { ReadFrom::Standby },
            max_replay_lag: self.max_replay_lag.min(other.max_replay_lag),
            standby_wait: self.standby_wait.min(other.standby_wait),
            no_standby: if error { NoStandby::Error } else { NoStandby::Primary },
            other_collations: self.other_collations && other.other_collations,
            after: self.after.map_or(other.after, |after| Some(after.later(other.after))),
            explain_route: self.explain_route || other.explain_route,
            unclear: self.unclear || other.unclear,
        }
    }
}

/// Every setting begins with this.
pub const PREFIX: &str = "pgtenure.";
/// Names the position that later reads of the session must have seen.
pub const AFTER: &str = "pgtenure.after";
/// Stands for a comment that cannot be read, with why. Nobody can set it.
pub const COMMENT: &str = "pgtenure./*";
/// Settings that only tell: the proxy has the server answer with their values.
pub const TOLD: [&str; 3] = ["pgtenure.token", "pgtenure.last_route", "pgtenure.term"];
/// Settings that a session may set.
pub const SETTINGS: [&str; 8] = [
    "pgtenure.consistency",
    "pgtenure.read_from",
    "pgtenure.max_replay_lag",
    "pgtenure.standby_wait",
    "pgtenure.no_standby",
    AFTER,
    "pgtenure.explain_route",
    "pgtenure.durability",
];
/// Longest wait and greatest lag that a session may ask for.
pub const LONGEST: Duration = Duration::from_secs(3600);

/// A setting whose value means nothing. Reads go to the primary until it is put right: that keeps any promise.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadPromise {
    /// One word of a few is expected.
    #[error("invalid value for parameter \"{name}\": \"{value}\" (available values: {available})")]
    Word {
        /// The setting.
        name: String,
        /// Its value.
        value: String,
        /// What it could be.
        available: String,
    },
    /// A time is expected.
    #[error("invalid value for parameter \"{name}\": \"{value}\" (a time of at most 1h, as in \"500ms\" or \"2s\")")]
    Time {
        /// The setting.
        name: String,
        /// Its value.
        value: String,
    },
    /// A token is expected.
    #[error("invalid value for parameter \"{name}\": \"{value}\" is {}", super::token::BadToken)]
    Token {
        /// The setting.
        name: String,
        /// Its value.
        value: String,
    },
    /// A statement says something of itself that is not read.
    #[error("a comment that begins with \"pgtenure:\" {why}")]
    Comment {
        /// Why not.
        why: String,
    },
    /// It only tells.
    #[error("parameter \"{name}\" cannot be changed")]
    Told {
        /// The setting.
        name: String,
    },
    /// There is no such setting.
    #[error(
        "unrecognized configuration parameter \"{name}\" (there are pgtenure.consistency, .read_from, .max_replay_lag, .standby_wait, .no_standby, .after, .explain_route and .durability)"
    )]
    Name {
        /// The setting.
        name: String,
    },
}

impl BadPromise {
    /// The setting, in lower case.
    pub fn name(&self) -> &str {
        match self {
            Self::Word { name, .. }
            | Self::Time { name, .. }
            | Self::Token { name, .. }
            | Self::Told { name }
            | Self::Name { name } => name,
            Self::Comment { .. } => COMMENT,
        }
    }
}

/// `configured` as the session's own settings change it. Names are in lower case; those of others are passed over.
/// What a setting's value does not tell is as configured, and reads go to the primary.
pub fn resolve<'a>(
    configured: Promise,
    settings: impl Iterator<Item = (&'a str, &'a str)>,
) -> (Promise, Vec<BadPromise>) {
    let (mut promise, mut bad) = (configured, Vec::new());
    for (full, value) in settings {
        let Some(name) = full.strip_prefix(PREFIX) else { continue };
        let result = match name {
            // RESET of a custom setting leaves it empty.
            _ if value.is_empty() => Ok(()),
            "consistency" => word(full, value, &Consistency::ALL, |c| c.as_str()).map(|c| promise.consistency = c),
            "read_from" => word(full, value, &ReadFrom::ALL, |r| r.as_str()).map(|r| promise.read_from = r),
            "no_standby" => word(full, value, &NoStandby::ALL, |n| n.as_str()).map(|n| promise.no_standby = n),
            "max_replay_lag" => time(full, value).map(|t| promise.max_replay_lag = t),
            "standby_wait" => time(full, value).map(|t| promise.standby_wait = t),
            // What commits wait for is another matter.
            "durability" => Ok(()),
            "after" => token(full, value).map(|t| promise.after = Some(t)),
            "explain_route" => word(full, value, &SWITCH, |(text, _)| text).map(|(_, on)| promise.explain_route = on),
            _ if full == COMMENT => Err(BadPromise::Comment { why: value.to_owned() }),
            _ if TOLD.contains(&full) => Err(BadPromise::Told { name: full.to_owned() }),
            _ => Err(BadPromise::Name { name: full.to_owned() }),
        };
        bad.extend(result.err());
    }
    if !bad.is_empty() {
        (promise.read_from, promise.unclear) = (ReadFrom::Primary, true);
    }
    (promise, bad)
}

/// PostgreSQL's words for a boolean.
const SWITCH: [(&str, bool); 8] = [
    ("on", true),
    ("off", false),
    ("true", true),
    ("false", false),
    ("yes", true),
    ("no", false),
    ("1", true),
    ("0", false),
];

/// The value of `pgtenure.after`.
///
/// # Errors
/// It is not a token.
pub fn token(name: &str, value: &str) -> Result<After, BadPromise> {
    value.trim().parse().map_err(|_| BadPromise::Token { name: name.to_owned(), value: value.to_owned() })
}

fn word<T: Copy>(name: &str, value: &str, all: &[T], text: impl Fn(&T) -> &'static str) -> Result<T, BadPromise> {
    let found = all.iter().find(|one| text(one).eq_ignore_ascii_case(value.trim()));
    found.copied().ok_or_else(|| BadPromise::Word {
        name: name.to_owned(),
        value: value.to_owned(),
        available: all.iter().map(&text).collect::<Vec<_>>().join(", "),
    })
}

/// A time in PostgreSQL's spelling; without a unit, milliseconds, as PostgreSQL takes its own timeouts.
fn time(name: &str, value: &str) -> Result<Duration, BadPromise> {
    let bad = || BadPromise::Time { name: name.to_owned(), value: value.to_owned() };
    let text = value.trim();
    let span = match text.parse::<u64>() {
        Ok(ms) => Duration::from_millis(ms),
        Err(_) => text.parse::<cluster::config::Span>().map_err(|_| bad())?.0,
    };
    (span <= LONGEST).then_some(span).ok_or_else(bad)
}

/// The custom settings in a startup packet's parameters, in lower case; of those in its `options`, ours.
pub fn of_startup(parameters: &[(String, String)]) -> Vec<(String, String)> {
    let each = parameters.iter().flat_map(|(name, value)| match name.as_str() {
        options if options.eq_ignore_ascii_case("options") => in_options(value),
        // Names of others are none of its business.
        name if !name.contains('.') => Vec::new(),
        name => vec![(name.to_ascii_lowercase(), value.clone())],
    });
    each.collect()
}

/// The settings in `options` of a startup packet that are ours, in lower case.
pub fn in_options(options: &str) -> Vec<(String, String)> {
    let all = self::options(options).into_iter();
    all.filter(|(name, _)| name.starts_with(PREFIX)).collect()
}

/// The settings in `options` of a startup packet (`-c name=value`, `--name=value`), names in lower case.
/// Source: PostgreSQL's process_postgres_switches and pg_split_opts.
pub fn options(options: &str) -> Vec<(String, String)> {
    let mut words = split(options).into_iter();
    let mut found = Vec::new();
    while let Some(word) = words.next() {
        let setting = match (word.strip_prefix("--"), word.strip_prefix("-c")) {
            (Some(setting), _) => setting.to_owned(),
            (None, Some("")) => words.next().unwrap_or_default(),
            (None, Some(setting)) => setting.to_owned(),
            (None, None) => continue,
        };
        if let Some((name, value)) = setting.split_once('=') {
            found.push((name.to_ascii_lowercase().replace('-', "_"), value.to_owned()));
        }
    }
    found
}

/// Words of an options string: white space ends one unless a backslash stands before it.
fn split(options: &str) -> Vec<String> {
    let (mut words, mut word, mut chars) = (Vec::new(), String::new(), options.chars());
    while let Some(c) = chars.next() {
        match c {
            '\\' => word.extend(chars.next()),
            c if c.is_ascii_whitespace() => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
            }
            c => word.push(c),
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIGURED: Promise = Promise::session(Duration::from_secs(1));

    #[test]
    fn what_is_sent_together_is_promised_what_keeps_all_of_it() {
        let base = Promise::session(Duration::from_secs(1));
        let of = |settings: &[(&str, &str)]| resolve(base, settings.iter().copied()).0;
        let loose = of(&[("pgtenure.consistency", "eventual"), ("pgtenure.max_replay_lag", "1h")]);
        let tight = of(&[
            ("pgtenure.consistency", "global"),
            ("pgtenure.read_from", "primary"),
            ("pgtenure.max_replay_lag", "5ms"),
            ("pgtenure.after", "3-3-0/1"),
        ]);
        let later = of(&[("pgtenure.after", "3-3-0/2"), ("pgtenure.no_standby", "error")]);
        for (a, b) in [(loose, base), (base, loose)] {
            assert_eq!(a.and(b), base);
        }
        for (a, b) in [(loose, tight), (tight, loose), (base, tight)] {
            assert_eq!(a.and(b), tight);
        }
        let all = Promise { no_standby: NoStandby::Error, after: later.after, ..tight };
        assert_eq!((tight.and(later), later.and(tight)), (all, all));
    }

    #[test]
    fn settings_change_what_is_configured() {
        let settings = [
            ("pgtenure.consistency", "Bounded"),
            ("pgtenure.max_replay_lag", "250"),
            ("pgtenure.standby_wait", "2s"),
            ("pgtenure.no_standby", "error"),
            ("pgtenure.read_from", ""),
            ("pgtenure.after", "7-7-0/10"),
            ("pgtenure.explain_route", "ON"),
            ("app.consistency", "none"),
        ];
        let want = Promise {
            consistency: Consistency::Bounded,
            max_replay_lag: Duration::from_millis(250),
            standby_wait: Duration::from_secs(2),
            no_standby: NoStandby::Error,
            after: Some("7-7-0/10".parse().unwrap()),
            explain_route: true,
            ..CONFIGURED
        };
        assert_eq!(resolve(CONFIGURED, settings.into_iter()), (want, vec![]));
    }

    #[test]
    fn what_cannot_be_understood_is_said_and_reads_go_to_the_primary() {
        for (name, value, says) in [
            (
                "pgtenure.consistency",
                "strongest",
                "invalid value for parameter \"pgtenure.consistency\": \"strongest\" (available values: eventual, \
                 bounded, session, global, strong)",
            ),
            (
                "pgtenure.standby_wait",
                "2 weeks",
                "invalid value for parameter \"pgtenure.standby_wait\": \"2 weeks\" (a time of at most 1h, as in \
                 \"500ms\" or \"2s\")",
            ),
            (
                "pgtenure.max_replay_lag",
                "2h",
                "invalid value for parameter \"pgtenure.max_replay_lag\": \"2h\" (a time of at most 1h, as in \
                 \"500ms\" or \"2s\")",
            ),
            (
                "pgtenure.consistancy",
                "global",
                "unrecognized configuration parameter \"pgtenure.consistancy\" (there are pgtenure.consistency, \
                 .read_from, .max_replay_lag, .standby_wait, .no_standby, .after, .explain_route and .durability)",
            ),
            (
                "pgtenure.after",
                "7-0/1",
                "invalid value for parameter \"pgtenure.after\": \"7-0/1\" is not a token (a value of pgtenure.token is \
                 expected, as in \"3-3-0/16B3748\")",
            ),
            ("pgtenure.token", "1-1-0/1", "parameter \"pgtenure.token\" cannot be changed"),
        ] {
            let (promise, bad) = resolve(CONFIGURED, [(name, value)].into_iter());
            assert_eq!(promise, Promise { read_from: ReadFrom::Primary, unclear: true, ..CONFIGURED });
            assert_eq!(bad.iter().map(BadPromise::to_string).collect::<Vec<_>>(), [says]);
            assert_eq!(bad[0].name(), name);
        }
    }

    #[test]
    fn options_are_read_as_postgresql_reads_them() {
        let options =
            r"-c work_mem=1MB -cpgtenure.Read_From=primary --pgtenure.x=a\ b -c  pgtenure.no_standby=error -c";
        let found = in_options(options);
        let want = [("pgtenure.read_from", "primary"), ("pgtenure.x", "a b"), ("pgtenure.no_standby", "error")];
        assert_eq!(found, want.map(|(n, v)| (n.to_owned(), v.to_owned())));
    }
}
