//! Which value a text gives a setting, as far as it is written out: SET, SET LOCAL, RESET and `set_config` with
//! literals. Pure.
//!
//! What a setting is the server tells once the transaction is over. This is for settings that must be refused, or take
//! effect, before that.

/// How long the value holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    /// For the session.
    Session,
    /// Until the transaction ends.
    Transaction,
}

/// A value that a text gives a setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Assigned<'a> {
    /// As it is written, without its quotes; `None` for RESET and DEFAULT.
    pub(super) value: Option<&'a [u8]>,
    /// How long it holds.
    pub(super) scope: Scope,
}

/// What a text does where it names a setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use<'a> {
    /// It gives it a value, as it is written out.
    Gives(Assigned<'a>),
    /// It gives it one that is not written out.
    Hides,
    /// It gives it none.
    Names,
}

/// What `sql` gives the setting `name`, the last time it is assigned; `None` when it does not, or not by a literal.
pub(super) fn assigned<'a>(sql: &'a [u8], name: &str) -> Option<Assigned<'a>> {
    let given = uses(sql, name).filter_map(|how| if let Use::Gives(given) = how { Some(given) } else { None });
    given.last()
}

/// What `sql` does wherever it names the setting `name`. It is gone through a few times, however often that is.
pub(super) fn uses<'a>(sql: &'a [u8], name: &str) -> impl Iterator<Item = Use<'a>> {
    let (mut begins, mut sets, mut calls, mut says) = (0, None, None, None);
    (0..sql.len()).filter_map(move |at| {
        if sql[at] == b';' {
            (begins, sets) = (at + 1, None);
        }
        if !starts_with(&sql[at..], name) {
            return None;
        }
        let (before, behind) = (&sql[begins..at], &sql[at + name.len()..]);
        let how = one(before, behind);
        if how != Use::Names {
            return Some(how);
        }
        // A semicolon in a literal or a comment begins nothing.
        let sets = *sets.get_or_insert_with(|| may_set(&sql[begins..]));
        let sets = sets.unwrap_or_else(|| *says.get_or_insert_with(|| says_set(sql)));
        let hides = sets || !is_asked(before) && *calls.get_or_insert_with(|| names(sql, b"set_config"));
        Some(if hides { Use::Hides } else { how })
    })
}

/// Does a text name the setting `name`, a dot within it, in another way than as one word? PostgreSQL takes blanks, comments and
/// quotes for the same, and what is put together from literals.
pub(super) fn is_spelled_otherwise(sql: &[u8], name: &str) -> bool {
    let Some((first, second)) = name.split_once('.') else { return false };
    let otherwise = |at: usize| {
        let behind = sql.get(at + first.len()..).unwrap_or_default();
        if behind.starts_with(b"'") {
            return names(behind.get(..NEAR).unwrap_or(behind), second.as_bytes());
        }
        let unquoted = behind.strip_prefix(b"\"").unwrap_or(behind);
        let Some(dot) = behind_blanks(unquoted) else { return true };
        let Some(last) = dot.strip_prefix(b".") else { return false };
        let Some(word) = behind_blanks(last) else { return true };
        let word = word.strip_prefix(b"U&").or_else(|| word.strip_prefix(b"u&")).unwrap_or(word);
        let plain = word.strip_prefix(b"\"").unwrap_or(word);
        starts_with(plain, second) && !starts_with(behind, &name[first.len()..])
    };
    (0..sql.len()).any(|at| starts_with(&sql[at..], first) && otherwise(at))
}

/// So far is looked for what belongs to a name.
const NEAR: usize = 256;

/// What comes behind blanks and comments; `None` where they do not end near by.
fn behind_blanks(text: &[u8]) -> Option<&[u8]> {
    let (mut left, whole) = (text.get(..NEAR).unwrap_or(text), text.len() <= NEAR);
    loop {
        left = left.trim_ascii_start();
        let end = match left {
            [b'-', b'-', ..] => left.iter().position(|b| matches!(b, b'\n' | b'\r')),
            // One within another is not followed.
            [b'/', b'*', inside @ ..] => {
                let mark = inside.windows(2).position(|w| matches!(w, b"*/" | b"/*"));
                mark.filter(|at| inside[*at] == b'*').map(|at| at + 4)
            }
            [] if !whole => None,
            _ => {
                let skipped = text.len().min(NEAR) - left.len();
                return Some(&text[skipped..]);
            }
        };
        left = left.get(end?..)?;
    }
}

/// Is a statement a SET or a RESET? `None` where none begins.
fn may_set(statement: &[u8]) -> Option<bool> {
    let verb = behind_blanks(statement)?;
    let verb = &verb[..verb.iter().position(|b| !b.is_ascii_alphabetic()).unwrap_or(verb.len())];
    (!verb.is_empty()).then(|| [&b"set"[..], b"reset"].iter().any(|one| verb.eq_ignore_ascii_case(one)))
}

/// Is the word SET, or RESET, anywhere in a text?
fn says_set(sql: &[u8]) -> bool {
    let mut words = sql.split(|b| !(b.is_ascii_alphanumeric() || *b == b'_'));
    words.any(|word| [&b"set"[..], b"reset"].iter().any(|one| word.eq_ignore_ascii_case(one)))
}

/// Does the text before a name end in `current_setting(`, and that?
fn is_asked(before: &[u8]) -> bool {
    ends_in_call(before, b"current_setting")
}

pub(super) fn names(text: &[u8], word: &[u8]) -> bool {
    text.windows(word.len()).any(|w| w.eq_ignore_ascii_case(word))
}

fn starts_with(text: &[u8], word: &str) -> bool {
    text.get(..word.len()).is_some_and(|start| start.eq_ignore_ascii_case(word.as_bytes()))
}

fn one<'a>(statement: &[u8], behind: &'a [u8]) -> Use<'a> {
    if let Some(rest) = behind.strip_prefix(b"'") {
        // The name is a literal itself: set_config('name', 'value', is_local).
        return match configured(rest) {
            Some(given) => Use::Gives(given),
            None if ends_in_call(statement, b"set_config") => Use::Hides,
            None => Use::Names,
        };
    }
    let (before, mut last) = last_word(statement);
    let is = |word: &[u8], what: &str| word.eq_ignore_ascii_case(what.as_bytes());
    if is(last, "reset") {
        return Use::Gives(Assigned { value: None, scope: Scope::Session });
    }
    let mut scope = Scope::Session;
    if is(last, "local") || is(last, "session") {
        scope = if is(last, "local") { Scope::Transaction } else { Scope::Session };
        last = last_word(before).1;
    }
    if !is(last, "set") {
        return Use::Names;
    }
    match set(behind) {
        Some(value) => Use::Gives(Assigned { value, scope }),
        None => Use::Hides,
    }
}

/// The last word of a text, and what is before it; none where it is longer than any that is looked for.
fn last_word(text: &[u8]) -> (&[u8], &[u8]) {
    const LONGEST: usize = "session".len();
    let text = text.trim_ascii_end();
    let within = text.len().saturating_sub(LONGEST + 1);
    let begins = text[within..].iter().rposition(u8::is_ascii_whitespace).map_or(within, |at| within + at + 1);
    let (before, word) = text.split_at(begins);
    if word.len() > LONGEST { (before, b"") } else { (before, word) }
}

/// The rest of a `set_config`, behind the name.
fn configured(rest: &[u8]) -> Option<Assigned<'_>> {
    let (value, rest) = literal(rest.trim_ascii_start().strip_prefix(b",")?)?;
    let rest = behind_cast(rest);
    let flag = rest.trim_ascii_start().strip_prefix(b",")?.trim_ascii_start();
    let ends = flag.iter().position(|b| !b.is_ascii_alphanumeric()).unwrap_or(flag.len());
    let (flag, rest) = flag.split_at(ends);
    let is = |what: &str| rest.trim_ascii_start().starts_with(b")") && flag.eq_ignore_ascii_case(what.as_bytes());
    let scope = if is("true") { Scope::Transaction } else { Scope::Session };
    (scope == Scope::Transaction || is("false")).then_some(Assigned { value: Some(value), scope })
}

/// What comes behind a cast that leaves a literal what it is, if there is one.
fn behind_cast(text: &[u8]) -> &[u8] {
    let Some(of) = text.trim_ascii_start().strip_prefix(b"::") else { return text };
    let of = of.trim_ascii_start();
    let ends = of.iter().position(|b| !(b.is_ascii_alphanumeric() || *b == b'_')).unwrap_or(of.len());
    let (kind, rest) = of.split_at(ends);
    if kind.eq_ignore_ascii_case(b"text") || kind.eq_ignore_ascii_case(b"varchar") { rest } else { text }
}

/// Does the text before a literal's name end in a call of that function?
fn ends_in_call(before: &[u8], name: &[u8]) -> bool {
    let before = before.strip_suffix(b"'").unwrap_or(before);
    let before = before.strip_suffix(b"E").or_else(|| before.strip_suffix(b"e")).unwrap_or(before);
    let Some(before) = before.trim_ascii_end().strip_suffix(b"(") else { return false };
    let before = before.trim_ascii_end();
    before.len() >= name.len() && before[before.len() - name.len()..].eq_ignore_ascii_case(name)
}

/// The rest of a SET, behind the name.
fn set(behind: &[u8]) -> Option<Option<&[u8]>> {
    let is = |word: &[u8], what: &str| word.eq_ignore_ascii_case(what.as_bytes());
    let behind = behind.trim_ascii_start();
    let to = || behind.get(..2).filter(|w| is(w, "to")).map(|_| &behind[2..]);
    let rest = behind.strip_prefix(b"=").or_else(to)?;
    let ends = |rest: &[u8]| matches!(rest.trim_ascii_start(), [] | [b';', ..]);
    if let Some((value, rest)) = literal(rest) {
        return ends(rest).then_some(Some(value));
    }
    let rest = rest.trim_ascii_start();
    let end = rest.iter().position(|b| !(b.is_ascii_alphanumeric() || *b == b'_')).unwrap_or(rest.len());
    let (word, rest) = rest.split_at(end);
    let plain = !word.is_empty() && ends(rest);
    plain.then(|| (!is(word, "default")).then_some(word))
}

/// A plain literal, and what comes behind it. One with a quote within is none that a setting of ours can have.
fn literal(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let rest = text.trim_ascii_start().strip_prefix(b"'")?;
    let end = rest.iter().position(|b| *b == b'\'')?;
    Some((&rest[..end], &rest[end + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_found_where_it_is_written_out() {
        let local = Scope::Transaction;
        for (sql, want) in [
            ("SET pgtenure.after = '7-7-0/1'", Some((Some("7-7-0/1"), Scope::Session))),
            ("set session Pgtenure.After to 'x';", Some((Some("x"), Scope::Session))),
            ("begin; set local pgtenure.after='x'; select 1", Some((Some("x"), local))),
            ("set pgtenure.after = word", Some((Some("word"), Scope::Session))),
            ("set pgtenure.after to default", Some((None, Scope::Session))),
            ("reset pgtenure.after", Some((None, Scope::Session))),
            ("select set_config('pgtenure.after', 'x', false)", Some((Some("x"), Scope::Session))),
            ("select set_config('pgtenure.after' ,'x' , TRUE)", Some((Some("x"), local))),
            ("set pgtenure.after = 'x'; set pgtenure.after = 'y'", Some((Some("y"), Scope::Session))),
            ("select set_config('pgtenure.after', 'x'::text, true)", Some((Some("x"), local))),
            ("select set_config('pgtenure.after', 'x' :: Varchar, false), n", Some((Some("x"), Scope::Session))),
            ("select set_config('pgtenure.after', 'x'::mine, false)", None),
            ("select set_config('pgtenure.after', 'x', 't')", None),
            ("select set_config('pgtenure.after', 'x', true and false)", None),
            ("set pgtenure.after = E'x'", None),
            ("set pgtenure.after = 'x' 'y'", None),
            ("set   local\n\n pgtenure.after = 'x'", Some((Some("x"), local))),
            ("reset          pgtenure.after", Some((None, Scope::Session))),
            ("upset pgtenure.after = 'x'", None),
            ("select set_config('pgtenure.after', $1, false)", None),
            ("show pgtenure.after", None),
            ("select current_setting('pgtenure.after')", None),
            ("select 'pgtenure.after = ''x'''", None),
            ("set pgtenure.after", None),
        ] {
            let got = assigned(sql.as_bytes(), "pgtenure.after");
            let want = want.map(|(value, scope)| Assigned { value: value.map(str::as_bytes), scope });
            assert_eq!(got, want, "{sql}");
        }
    }
    #[test]
    fn a_value_that_is_not_written_out_is_known_to_be_given() {
        for (sql, hides) in [
            ("select set_config('pgtenure.after', $1, false)", true),
            ("select 1; select pg_catalog.SET_CONFIG( E'pgtenure.after', concat('x'), false)", true),
            ("select set_config('pgtenure.after', 'x' || 'y', false)", true),
            ("set pgtenure.after = $$x$$", true),
            ("set /* x */ pgtenure.after = 'x'", true),
            ("/* ; */ set -- x\n local pgtenure.after to 'x'", true),
            ("/*/ x */ set /* x */ pgtenure.after = 'x'", true),
            ("set \"pgtenure.after\" = 'x'", true),
            ("set pgtenure.after /* x */ = 'x'", true),
            ("set pgtenure.after = E'x'", true),
            ("select set_config($$pgtenure.after$$, 'x', false)", true),
            ("select set_config(setting_name => 'pgtenure.after', new_value => 'x', is_local => false)", true),
            ("select set_config(n, 'x', false) from (values ('pgtenure.after')) v(n)", true),
            ("select set_config('pgtenure.after', 'x', 't')", true),
            ("select ';', current_setting('pgtenure.after')", false),
            ("select set_config('a.b', current_setting('pgtenure.after'), false)", false),
            ("select set_config('pgtenure.after', 'x', false)", false),
            ("set a.b = '1'; select current_setting('pgtenure.after')", false),
            ("set a.b = '1'; select 'pgtenure.after'", false),
            ("show pgtenure.after", false),
            ("reset pgtenure.after", false),
        ] {
            assert_eq!(uses(sql.as_bytes(), "pgtenure.after").any(|how| how == Use::Hides), hides, "{sql}");
        }
    }

    #[test]
    fn other_spellings_of_a_name_are_seen() {
        for (sql, seen) in [
            ("set pgtenure.\"after\" = 'x'", true),
            ("set \"Pgtenure\".after = 'x'", true),
            ("set pgtenure . after = 'x'", true),
            ("set pgtenure/* x */./**/-- y\nafter = 'x'", true),
            ("set pgtenure/*/ x */.after = 'x'", true),
            ("set pgtenure/* x /* y */ */.after = 'x'", true),
            ("set pgtenure.U&\"after\" = 'x'", true),
            ("select set_config('pgtenure' || '.after', 'x', false)", true),
            ("select set_config(concat('pgtenure', '.', 'after'), 'x', false)", true),
            ("set pgtenure.after = 'x'", false),
            ("set pgtenure.consistency = 'x'", false),
            ("/* pgtenure: after=2-2-0/1 */ select set_config('a.b', 'x', false)", false),
            ("select set_config('pgtenure.after', 'x', false)", false),
            ("select set_config('pgtenure.read_from', 'x', false) from pgtenure where after = 1", false),
        ] {
            assert_eq!(is_spelled_otherwise(sql.as_bytes(), "pgtenure.after"), seen, "{sql}");
        }
        let far = format!("set pgtenure /* {} */ . after = 'x'", "x".repeat(NEAR));
        assert!(is_spelled_otherwise(far.as_bytes(), "pgtenure.after"));
    }
}
