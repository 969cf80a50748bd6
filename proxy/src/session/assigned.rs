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

/// What `sql` does wherever it names the setting `name`. It is gone through once, however often that is.
pub(super) fn uses<'a>(sql: &'a [u8], name: &str) -> impl Iterator<Item = Use<'a>> {
    let mut begins = 0;
    (0..sql.len()).filter_map(move |at| {
        if sql[at] == b';' {
            begins = at + 1;
        }
        starts_with(&sql[at..], name).then(|| one(&sql[begins..at], &sql[at + name.len()..]))
    })
}

fn starts_with(text: &[u8], word: &str) -> bool {
    text.get(..word.len()).is_some_and(|start| start.eq_ignore_ascii_case(word.as_bytes()))
}

fn one<'a>(statement: &[u8], behind: &'a [u8]) -> Use<'a> {
    if let Some(rest) = behind.strip_prefix(b"'") {
        // The name is a literal itself: set_config('name', 'value', is_local).
        return match configured(rest) {
            Some(given) => Use::Gives(given),
            None if is_configured(statement) => Use::Hides,
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
    let local = flag.get(..4).is_some_and(|w| w.eq_ignore_ascii_case(b"true"));
    Some(Assigned { value: Some(value), scope: if local { Scope::Transaction } else { Scope::Session } })
}

/// What comes behind a cast that leaves a literal what it is, if there is one.
fn behind_cast(text: &[u8]) -> &[u8] {
    let Some(of) = text.trim_ascii_start().strip_prefix(b"::") else { return text };
    let of = of.trim_ascii_start();
    let ends = of.iter().position(|b| !(b.is_ascii_alphanumeric() || *b == b'_')).unwrap_or(of.len());
    let (kind, rest) = of.split_at(ends);
    if kind.eq_ignore_ascii_case(b"text") || kind.eq_ignore_ascii_case(b"varchar") { rest } else { text }
}

/// Does the text before a literal end in `set_config(`?
fn is_configured(before: &[u8]) -> bool {
    let before = before.strip_suffix(b"'").unwrap_or(before);
    let before = before.strip_suffix(b"E").or_else(|| before.strip_suffix(b"e")).unwrap_or(before);
    let Some(before) = before.trim_ascii_end().strip_suffix(b"(") else { return false };
    let name = b"set_config";
    let before = before.trim_ascii_end();
    before.len() >= name.len() && before[before.len() - name.len()..].eq_ignore_ascii_case(name)
}

/// The rest of a SET, behind the name.
fn set(behind: &[u8]) -> Option<Option<&[u8]>> {
    let is = |word: &[u8], what: &str| word.eq_ignore_ascii_case(what.as_bytes());
    let behind = behind.trim_ascii_start();
    let to = || behind.get(..2).filter(|w| is(w, "to")).map(|_| &behind[2..]);
    let rest = behind.strip_prefix(b"=").or_else(to)?;
    if let Some((value, _)) = literal(rest) {
        return Some(Some(value));
    }
    let end = |b: &u8| !(b.is_ascii_alphanumeric() || *b == b'_');
    let word = rest.trim_ascii_start().split(end).next().filter(|w| !w.is_empty())?;
    Some((!is(word, "default")).then_some(word))
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
            ("select set_config('pgtenure.after', 'x', false)", false),
            ("set a.b = '1'; select current_setting('pgtenure.after')", false),
            ("set a.b = '1'; select 'pgtenure.after'", false),
            ("show pgtenure.after", false),
            ("reset pgtenure.after", false),
        ] {
            assert_eq!(uses(sql.as_bytes(), "pgtenure.after").any(|how| how == Use::Hides), hides, "{sql}");
        }
    }
}
