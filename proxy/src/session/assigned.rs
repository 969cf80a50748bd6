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

/// What `sql` gives the setting `name`, the last time it is assigned; `None` when it does not, or not by a literal.
pub(super) fn assigned<'a>(sql: &'a [u8], name: &str) -> Option<Assigned<'a>> {
    let (mut found, mut from) = (None, 0);
    while let Some(at) = sql[from..].windows(name.len()).position(|w| w.eq_ignore_ascii_case(name.as_bytes())) {
        let start = from + at;
        from = start + name.len();
        found = one(&sql[..start], &sql[from..]).or(found);
    }
    found
}

fn one<'a>(before: &'a [u8], behind: &'a [u8]) -> Option<Assigned<'a>> {
    if let Some(rest) = behind.strip_prefix(b"'") {
        // The name is a literal itself: set_config('name', 'value', is_local).
        let (value, rest) = literal(rest.trim_ascii_start().strip_prefix(b",")?)?;
        let flag = rest.trim_ascii_start().strip_prefix(b",")?.trim_ascii_start();
        let local = flag.get(..4).is_some_and(|w| w.eq_ignore_ascii_case(b"true"));
        return Some(Assigned { value: Some(value), scope: if local { Scope::Transaction } else { Scope::Session } });
    }
    let statement = before.rsplit(|b| *b == b';').next().unwrap_or_default();
    let mut words = statement.split(u8::is_ascii_whitespace).filter(|w| !w.is_empty()).rev();
    let mut last = words.next()?;
    let is = |word: &[u8], what: &str| word.eq_ignore_ascii_case(what.as_bytes());
    if is(last, "reset") {
        return Some(Assigned { value: None, scope: Scope::Session });
    }
    let mut scope = Scope::Session;
    if is(last, "local") || is(last, "session") {
        scope = if is(last, "local") { Scope::Transaction } else { Scope::Session };
        last = words.next()?;
    }
    if !is(last, "set") {
        return None;
    }
    let behind = behind.trim_ascii_start();
    let to = |b: &'a [u8]| b.get(..2).filter(|w| is(w, "to")).map(|_| &b[2..]);
    let rest = behind.strip_prefix(b"=").or_else(|| to(behind))?;
    if let Some((value, _)) = literal(rest) {
        return Some(Assigned { value: Some(value), scope });
    }
    let end = |b: &u8| !(b.is_ascii_alphanumeric() || *b == b'_');
    let word = rest.trim_ascii_start().split(end).next().filter(|w| !w.is_empty())?;
    Some(Assigned { value: (!is(word, "default")).then_some(word), scope })
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
}
