//! Does a session ask for less durability than its cluster promises? Pure.
//!
//! A commit under a lowered `synchronous_commit` is acknowledged before as many copies exist as the cluster's mode
//! asks for, so a failover may lose it: such commits are counted, and the report of a failover tells their number.
//! Seen are SET, SET LOCAL, `set_config` and startup options in the text that passes through; what ALTER ROLE or a
//! function sets is not. A SET that a ROLLBACK undoes still counts: rather one too many.
//!
//! Source: PostgreSQL documentation, "synchronous_commit".

/// The setting.
const NAME: &[u8] = b"synchronous_commit";
/// How much of a unit is searched: a SET is short, and long parameters of a write are not to be read twice.
const SEARCHED: usize = 1024;

/// What a session asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Durability {
    session: Level,
    transaction: Option<Level>,
}

/// Values of `synchronous_commit`, as far as they differ here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Level {
    /// `on`, `remote_apply`, or never set.
    #[default]
    Full,
    /// `local` or `remote_write`: flushed here, but perhaps nowhere else.
    Local,
    /// `off`: not even flushed here.
    Off,
}

impl Durability {
    /// What a session begins with.
    pub(super) fn of_startup(parameters: &[(String, String)]) -> Self {
        let mut durability = Self::default();
        for (name, value) in parameters {
            durability.note(format!("{name}={value}").as_bytes());
        }
        durability
    }

    /// Note what a unit on its way to the server sets, if it sets anything. True when setting is all that it does, so
    /// that it commits nothing.
    pub(super) fn note(&mut self, unit: &[u8]) -> bool {
        let text = &unit[..unit.len().min(SEARCHED)];
        let mut from = 0;
        let mut alone = false;
        while let Some(at) = find(&text[from..]) {
            let start = from + at;
            from = start + NAME.len();
            alone = is_alone(&text[..start], &text[from..]);
            let level = level_of(&text[from..]);
            if is_local(&text[..start], &text[from..]) {
                self.transaction = Some(level);
            } else {
                (self.session, self.transaction) = (level, None);
            }
        }
        alone
    }

    /// The transaction is over.
    pub(super) fn end_transaction(&mut self) {
        self.transaction = None;
    }

    /// Is a commit now less durable than the mode? In async mode only `off` is.
    pub(super) fn is_below(self, strict: bool) -> bool {
        match self.transaction.unwrap_or(self.session) {
            Level::Full => false,
            Level::Local => strict,
            Level::Off => true,
        }
    }
}

fn find(text: &[u8]) -> Option<usize> {
    text.windows(NAME.len()).position(|w| w[0] | 0x20 == NAME[0] && w.eq_ignore_ascii_case(NAME))
}

/// The value behind the name: `= off`, `TO 'off'`, `', 'off'`. None at all is a RESET or a SHOW.
fn level_of(behind: &[u8]) -> Level {
    let mut words = words(statement_head(behind));
    let first = words.next().unwrap_or_default();
    let value = if first.eq_ignore_ascii_case(b"to") { words.next().unwrap_or_default() } else { first };
    let is = |names: &[&[u8]]| names.iter().any(|n| n.eq_ignore_ascii_case(value));
    if is(&[b"off", b"false", b"no", b"0"]) {
        Level::Off
    } else if is(&[b"local", b"remote_write"]) {
        Level::Local
    } else {
        Level::Full
    }
}

/// Only for the transaction: `SET LOCAL name`, or `set_config('name', 'value', true)`.
fn is_local(before: &[u8], behind: &[u8]) -> bool {
    let last = words(statement_tail(before)).last().unwrap_or_default();
    let third = words(statement_head(behind)).nth(1).unwrap_or_default();
    let call = before.last() == Some(&b'\'');
    last.eq_ignore_ascii_case(b"local") || call && third.eq_ignore_ascii_case(b"true")
}

/// Is there no other statement in a simple query's text around the one that sets? What follows a text in the extended
/// protocol are messages, which cannot hold another statement's text before the next Parse.
fn is_alone(before: &[u8], behind: &[u8]) -> bool {
    let simple = before.first() == Some(&b'Q');
    let earlier = before.contains(&b';');
    let rest = &behind[statement_head(behind).len()..];
    !earlier && (!simple || words(rest).next().is_none())
}

/// Up to the end of the statement that `text` begins in.
fn statement_head(text: &[u8]) -> &[u8] {
    text.split(|b| matches!(b, b';' | 0)).next().unwrap_or_default()
}

/// From the beginning of the statement that `text` ends in.
fn statement_tail(text: &[u8]) -> &[u8] {
    text.rsplit(|b| matches!(b, b';' | 0)).next().unwrap_or_default()
}

fn words(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|b| !(b.is_ascii_alphanumeric() || *b == b'_')).filter(|w| !w.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// (below strict, below async) in the transaction that follows, and after its end.
    fn check(texts: &[&str], during: (bool, bool), after: (bool, bool)) {
        let mut d = Durability::default();
        texts.iter().for_each(|t| _ = d.note(t.as_bytes()));
        assert_eq!((d.is_below(true), d.is_below(false)), during, "{texts:?}");
        d.end_transaction();
        assert_eq!((d.is_below(true), d.is_below(false)), after, "{texts:?} after its transaction");
    }

    const FULL: (bool, bool) = (false, false);
    const LOCAL: (bool, bool) = (true, false);
    const OFF: (bool, bool) = (true, true);

    #[test]
    fn every_way_to_lower_it_is_seen() {
        check(&["SET synchronous_commit = off"], OFF, OFF);
        check(&["set Synchronous_Commit TO 'local'"], LOCAL, LOCAL);
        check(&["SET SESSION synchronous_commit TO remote_write;"], LOCAL, LOCAL);
        check(&["begin; set local synchronous_commit=0; insert into t values (1)"], OFF, FULL);
        check(&["select set_config('synchronous_commit', 'off', false)"], OFF, OFF);
        check(&["select pg_catalog.set_config('synchronous_commit','off',true)"], OFF, FULL);
        check(&["-c synchronous_commit=off -c work_mem=1MB"], OFF, OFF);
    }

    #[test]
    fn a_unit_that_only_sets_commits_nothing() {
        let alone = |unit: &[u8]| Durability::default().note(unit);
        assert!(alone(b"Q\0\0\0\x1eset synchronous_commit = off;\0"));
        assert!(alone(b"P\0\0\0\x1e\0set synchronous_commit = off\0\0\0B\0\0\0\x0c\0\0"));
        assert!(!alone(b"Q\0\0\0\x30set synchronous_commit = off; insert into t values (1)\0"));
        assert!(!alone(b"Q\0\0\0\x30begin; set local synchronous_commit = off\0"));
        assert!(!alone(b"Q\0\0\0\x30insert into t values (1)\0"));
    }

    #[test]
    fn raising_it_again_counts_no_more() {
        check(&["set synchronous_commit = off", "SET synchronous_commit TO on"], FULL, FULL);
        check(&["set synchronous_commit = off", "reset synchronous_commit"], FULL, FULL);
        check(&["set synchronous_commit = off; set local synchronous_commit = remote_apply; select 1"], FULL, OFF);
        check(&["set synchronous_commit to default"], FULL, FULL);
        check(&["insert into t values ('local')", "set work_mem = '1MB'"], FULL, FULL);
    }
}
