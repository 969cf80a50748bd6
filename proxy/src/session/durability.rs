//! Does a session ask for less durability than its cluster promises? Pure.
//!
//! A commit under a lowered `synchronous_commit` is acknowledged before as many copies exist as the cluster's mode
//! asks for, so a failover may lose it: such commits are counted, and the report of a failover tells their number.
//! What the session has set is known from its server, and what it began with from the server's login. Between a
//! statement that sets it and the server's answer, the text of SET, SET LOCAL and `set_config` counts; what a
//! function sets for its transaction is not seen. A SET that a ROLLBACK undoes counts until then: rather one too many.
//!
//! Source: PostgreSQL documentation, "synchronous_commit".

use crate::route::durability::{COMMIT, Durability, Waits};

/// How much of a unit is searched: a SET is short, and long parameters of a write are not to be read twice.
const SEARCHED: usize = 1024;

/// What the statements in flight set, as far as their text tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Noted {
    guess: Option<Guess>,
    /// What was in force before that and before every other since the session was known.
    before: Option<Waits>,
    /// The transaction may be over, or a part of it undone, in which that was set.
    reverts: bool,
    /// A unit that may have set `pgtenure.durability` was sent.
    pub(super) named: bool,
    /// What it sets is not in force yet in the block that it was sent in.
    pub(super) due: Option<Due>,
    /// What the session's `pgtenure.durability` has made of its `synchronous_commit`.
    pub(super) chosen: Option<Durability>,
}

/// What is to be done about the block that a unit was sent in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// Its `synchronous_commit` becomes what its `pgtenure.durability` stands for.
    Set,
    /// Its `synchronous_commit` is to be seen: the text did not tell the value.
    Ask,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Guess {
    /// SET.
    To(Durability),
    /// RESET, or SET to DEFAULT.
    Default,
}

/// What a unit sets, as far as its text tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sets {
    /// Setting is all that it does, so that it commits nothing.
    pub(super) alone: bool,
    /// What that waits for which it commits.
    pub(super) waits: Waits,
}

/// What is known of a session: what it has set, and what its server began with.
pub(super) type Known = (Option<Durability>, Durability);

impl Noted {
    /// Note what a unit on its way to the server sets, if it sets anything. `names`: it executes statements that its text
    /// does not show.
    pub(super) fn note(&mut self, unit: &[u8], known: Known, names: bool) -> Sets {
        let text = &unit[..unit.len().min(SEARCHED)];
        let (mut from, mut alone) = (0, false);
        // Of what was in force within it, all that something may have been committed under.
        let mut within: Option<Waits> = None;
        let mut count = |now: Waits| within = Some(within.map_or(now, |within| within.and(now)));
        while let Some(at) = find(&text[from..]) {
            let start = from + at;
            let between = &text[from..start];
            if names || commits(between) {
                count(self.in_force(known));
            }
            if self.is_guessed() && ends(between).is_some() {
                count(self.end(known));
            }
            from = start + COMMIT.len();
            alone = is_alone(&text[..start], &text[from..]);
            let now = self.in_force(known);
            self.before = Some(self.before.map_or(now, |before| before.and(now)));
            (self.guess, self.reverts) = (Some(guess(&text[from..])), false);
        }
        count(self.in_force(known));
        // All of it: what was set may hold no longer behind the end of a long text, either.
        if self.is_guessed()
            && let Some(behind) = ends(&unit[from..])
        {
            let after = self.end(known);
            if goes_on(behind) {
                count(after);
            }
        }
        Sets { alone, waits: within.unwrap_or_default() }
    }

    /// The transaction may be over in which something was set, or undone to before that. What is in force then.
    pub(super) fn end(&mut self, known: Known) -> Waits {
        self.reverts = true;
        self.in_force(known)
    }

    /// The server has said what the open transaction has.
    pub(super) fn told(&mut self, level: Durability) {
        (self.guess, self.before, self.reverts, self.due) = (Some(Guess::To(level)), None, false, None);
    }

    /// Has the open transaction perhaps another than its session?
    pub(super) fn is_guessed(&self) -> bool {
        self.guess.is_some()
    }

    /// A part of the transaction is undone: what it has then only the server knows.
    pub(super) fn undone(&mut self) {
        if self.guess.is_some() {
            self.due.get_or_insert(Due::Ask);
        }
    }

    /// What the session has set is known again.
    pub(super) fn settle(&mut self) {
        (self.guess, self.before, self.reverts) = (None, None, false);
        (self.due, self.named) = (None, false);
    }

    /// All that a commit now may wait for.
    fn in_force(self, known: Known) -> Waits {
        let now = self.level(known).into();
        let before = || self.before.unwrap_or_else(|| known.0.unwrap_or(known.1).into());
        if self.reverts { before().and(now) } else { now }
    }

    /// What a commit now waits for, where what was set last still holds.
    fn level(self, (session, default): Known) -> Durability {
        match self.guess {
            Some(Guess::To(level)) => level,
            Some(Guess::Default) => default,
            None => session.unwrap_or(default),
        }
    }
}

/// Of a value that a server has told; what we do not know asks for no less.
pub(super) fn level(value: &str) -> Durability {
    Durability::of_commit(value).unwrap_or(Durability::SemiSync)
}

fn find(text: &[u8]) -> Option<usize> {
    let name = COMMIT.as_bytes();
    text.windows(name.len()).position(|w| w[0] | 0x20 == name[0] && w.eq_ignore_ascii_case(name))
}

/// The value behind the name: `= off`, `TO 'off'`, `', 'off'`. None at all is a RESET or a SHOW.
fn guess(behind: &[u8]) -> Guess {
    let mut words = words(statement_head(behind));
    let first = words.next().unwrap_or_default();
    let value = if first.eq_ignore_ascii_case(b"to") { words.next().unwrap_or_default() } else { first };
    let value = std::str::from_utf8(value).unwrap_or_default();
    match Durability::of_commit(value) {
        Some(level) => Guess::To(level),
        None if value.is_empty() || value.eq_ignore_ascii_case("default") => Guess::Default,
        None => Guess::To(Durability::SemiSync),
    }
}

/// May a part of a unit commit something before the rest of it: by COMMIT, by a procedure, or by what may not run in a block?
fn commits(text: &[u8]) -> bool {
    const ENDS: [&str; 12] = [
        "commit", "end", "prepare", "call", "do", "vacuum", "create", "alter", "drop", "reindex", "cluster", "execute",
    ];
    words(text).any(|word| ENDS.iter().any(|end| word.eq_ignore_ascii_case(end.as_bytes())))
}

/// What comes behind a word that may end a transaction, or undo a part of one: what was set in it may hold no longer.
pub(super) fn ends(text: &[u8]) -> Option<&[u8]> {
    const ENDS: [&str; 5] = ["commit", "end", "rollback", "abort", "prepare"];
    let ends = |word: &&[u8]| ENDS.iter().any(|end| word.eq_ignore_ascii_case(end.as_bytes()));
    let word = words(text).find(ends)?;
    let at = word.as_ptr() as usize - text.as_ptr() as usize;
    Some(&text[at + word.len()..])
}

/// Is there more behind such a word than what belongs to it? In the extended protocol the types of the messages behind it
/// are words of one letter.
fn goes_on(behind: &[u8]) -> bool {
    const OWN: [&str; 5] = ["work", "transaction", "and", "no", "chain"];
    let own = |word: &[u8]| OWN.iter().any(|own| word.eq_ignore_ascii_case(own.as_bytes()));
    words(behind).any(|word| word.len() > 1 && !own(word))
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

fn words(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|b| !(b.is_ascii_alphanumeric() || *b == b'_')).filter(|w| !w.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use Durability::{Async, SemiSync};

    impl Noted {
        /// Is a commit now less durable than the mode?
        fn is_below(self, session: Option<Durability>, default: Durability, strict: bool) -> bool {
            self.level((session, default)) < Durability::of_mode(strict)
        }
    }

    /// (below strict, below async) while these are in flight, and when the session is known to have `after`.
    fn check(texts: &[&str], during: (bool, bool), after: &str, then: (bool, bool)) {
        let mut d = Noted::default();
        texts.iter().for_each(|t| _ = d.note(t.as_bytes(), ON, false));
        let below = |d: Noted, session| (d.is_below(session, SemiSync, true), d.is_below(session, SemiSync, false));
        assert_eq!(below(d, None), during, "{texts:?}");
        d.settle();
        assert_eq!(below(d, Some(level(after))), then, "{texts:?} when {after} is known");
    }

    const ON: Known = (None, SemiSync);
    const FULL: (bool, bool) = (false, false);
    const LOCAL: (bool, bool) = (true, false);
    const OFF: (bool, bool) = (true, true);

    #[test]
    fn every_way_to_lower_it_is_seen() {
        check(&["SET synchronous_commit = off"], OFF, "off", OFF);
        check(&["set Synchronous_Commit TO 'local'"], LOCAL, "local", LOCAL);
        check(&["SET SESSION synchronous_commit TO remote_write;"], LOCAL, "remote_write", LOCAL);
        check(&["begin; set local synchronous_commit=0; insert into t values (1)"], OFF, "on", FULL);
        check(&["select set_config('synchronous_commit', 'off', false)"], OFF, "off", OFF);
        check(&["select pg_catalog.set_config('synchronous_commit','off',true)"], OFF, "remote_apply", FULL);
        check(&["-c synchronous_commit=off -c work_mem=1MB"], OFF, "off", OFF);
    }

    #[test]
    fn what_a_session_begins_with_counts_until_it_sets_something_else() {
        let mut d = Noted::default();
        assert!(d.is_below(None, Async, false) && !d.is_below(Some(SemiSync), Async, true));
        d.note(b"set synchronous_commit = on", ON, false);
        assert!(!d.is_below(None, Async, true));
        for back in [&b"reset synchronous_commit"[..], b"set local synchronous_commit to default"] {
            d.note(back, ON, false);
            assert!(d.is_below(Some(SemiSync), Async, false));
        }
    }

    #[test]
    fn what_the_server_says_of_a_block_counts_until_it_ends() {
        let mut d = Noted { due: Some(Due::Set), ..Noted::default() };
        d.told(Durability::Local);
        assert!(d.is_below(None, SemiSync, true) && !d.is_below(None, SemiSync, false) && d.due.is_none());
        d.settle();
        assert!(!d.is_below(None, SemiSync, true));
    }

    #[test]
    fn a_unit_that_only_sets_commits_nothing() {
        let alone = |unit: &[u8]| Noted::default().note(unit, ON, false).alone;
        assert!(alone(b"Q\0\0\0\x1eset synchronous_commit = off;\0"));
        assert!(alone(b"P\0\0\0\x1e\0set synchronous_commit = off\0\0\0B\0\0\0\x0c\0\0"));
        assert!(!alone(b"Q\0\0\0\x30set synchronous_commit = off; insert into t values (1)\0"));
        assert!(!alone(b"Q\0\0\0\x30begin; set local synchronous_commit = off\0"));
        assert!(!alone(b"Q\0\0\0\x30insert into t values (1)\0"));
    }

    #[test]
    fn what_a_unit_commits_waits_for_what_is_in_force_when_it_does() {
        use Durability::{Applied, Local, Received};
        for (text, (least, most)) in [
            ("insert into t values (1)", (SemiSync, SemiSync)),
            ("set synchronous_commit = off; insert into t values (1)", (Async, Async)),
            ("begin; set local synchronous_commit = off; insert into t values (1); commit", (Async, Async)),
            ("begin; insert into t values (1); commit; set synchronous_commit = off", (Async, SemiSync)),
            ("insert into t values (1); set synchronous_commit = off", (Async, Async)),
            ("begin; insert into t values (1); END; set synchronous_commit to local; select 1", (Local, SemiSync)),
            (
                "begin; set local synchronous_commit = remote_apply; insert into t values (1); commit; \
                 set synchronous_commit = remote_write",
                (Received, Applied),
            ),
            ("call p(); set synchronous_commit = off", (Async, SemiSync)),
            // What is set in a transaction may hold no longer behind it.
            (
                "begin; set local synchronous_commit = off; insert into a values (1); commit; insert into b values (1)",
                (Async, SemiSync),
            ),
            ("begin; set synchronous_commit = off; rollback; insert into b values (1)", (Async, SemiSync)),
            ("begin; savepoint s; set local synchronous_commit = off; rollback to s; commit", (Async, SemiSync)),
            ("begin; set local synchronous_commit = off; COMMIT WORK AND NO CHAIN; ", (Async, Async)),
            (
                "begin; set synchronous_commit = off; set local synchronous_commit = local; commit; select f()",
                (Async, SemiSync),
            ),
        ] {
            let sets = |names| Noted::default().note(text.as_bytes(), ON, names).waits;
            assert_eq!(sets(false), Waits { least, most }, "{text}");
            // What it names may be a COMMIT.
            assert_eq!(sets(true).most, if most == Async { SemiSync } else { most }, "{text}");
        }
        let mut d = Noted::default();
        d.note(b"set synchronous_commit = off", ON, false);
        let raised = d.note(b"insert into t values (1); set synchronous_commit = on", ON, false);
        assert_eq!(raised.waits, SemiSync.into(), "it is one transaction");
        let next = d.note(b"insert into t values (1)", (Some(Applied), SemiSync), false);
        assert_eq!(next.waits, SemiSync.into(), "what was sent last counts until the server has told");
    }

    #[test]
    fn what_a_unit_commits_behind_the_transaction_of_another_waits_for_what_the_session_has() {
        let both = Waits { least: Async, most: SemiSync };
        for (units, want) in [
            (&["insert into a values (1)", "commit; insert into b values (1)"][..], both),
            (&["insert into a values (1)", "commit", "insert into b values (1)"], both),
            (&["insert into a values (1)", "rollback to s; insert into b values (1); commit"], both),
            (&["insert into a values (1)", "commit"], Async.into()),
            // As it comes in the extended protocol.
            (&["P\0\0\0\x0e\0commit\0\0\0B\0\0\0\x0c\0\0E\0\0\0\x09\0\0\0\0\0S\0\0\0\x04"], Async.into()),
            (&["commit", "set synchronous_commit = off"], Async.into()),
        ] {
            let mut d = Noted::default();
            d.note(b"begin; set local synchronous_commit = off", ON, false);
            let waits = units.iter().map(|unit| d.note(unit.as_bytes(), ON, false).waits).last();
            assert_eq!(waits, Some(want), "{units:?}");
            d.settle();
            assert_eq!(d.note(b"insert into b values (1)", ON, false).waits, SemiSync.into());
        }
        // However far behind.
        let long = format!("begin; set local synchronous_commit = off; select '{}'", "x".repeat(SEARCHED));
        assert_eq!(Noted::default().note(long.as_bytes(), ON, false).waits, Async.into());
        let long = long + "; commit; insert into b values (1)";
        assert_eq!(Noted::default().note(long.as_bytes(), ON, false).waits, both);
        // What the server has said of a block holds to its end.
        let mut d = Noted::default();
        d.told(Async);
        assert_eq!(d.note(b"insert into a values (1)", ON, false).waits, Async.into());
        assert_eq!(d.note(b"commit; insert into b values (1)", ON, false).waits, both);
    }

    #[test]
    fn raising_it_again_counts_no_more() {
        check(&["set synchronous_commit = off", "SET synchronous_commit TO on"], FULL, "on", FULL);
        check(&["set synchronous_commit = off", "reset synchronous_commit"], FULL, "on", FULL);
        check(
            &["set synchronous_commit = off; set local synchronous_commit = remote_apply; select 1"],
            FULL,
            "off",
            OFF,
        );
        check(&["set synchronous_commit to default"], FULL, "on", FULL);
        check(&["insert into t values ('local')", "set work_mem = '1MB'"], FULL, "on", FULL);
    }
}
