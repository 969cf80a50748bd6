//! Views of the messages a client sends, and the few that we send to servers ourselves.
//!
//! A view borrows from the frame and looks only at the head: names and query text. Source: PostgreSQL documentation,
//! "Message Formats".

use crate::wire::codec::{HEAD, SMALL_LIMIT, cstring, message, split_cstring};

/// May a message of this kind come from a logged-in client, and how long may it be? `None`: no such message.
pub const fn limit(kind: u8) -> Option<usize> {
    match kind {
        b'Q' | b'P' | b'B' | b'F' | b'd' => Some(crate::wire::codec::LARGE_LIMIT),
        b'D' | b'E' | b'C' | b'S' | b'H' | b'X' | b'c' | b'f' => Some(SMALL_LIMIT),
        _ => None,
    }
}

/// A Parse message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parse<'a> {
    /// Statement name; empty for the unnamed one.
    pub name: &'a [u8],
    /// Query text.
    pub sql: &'a [u8],
    /// Everything behind the name: query text with its terminator, count and OIDs of parameter types.
    pub tail: &'a [u8],
}

/// Read a whole Parse frame.
pub fn parse(frame: &[u8]) -> Option<Parse<'_>> {
    let (name, tail) = split_cstring(frame.get(HEAD..)?)?;
    let (sql, types) = split_cstring(tail)?;
    let (count, oids) = types.split_first_chunk::<2>()?;
    (usize::from(u16::from_be_bytes(*count)) * 4 == oids.len()).then_some(Parse { name, sql, tail })
}

/// The head of a Bind message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bind<'a> {
    /// Portal name.
    pub portal: &'a [u8],
    /// Statement name.
    pub statement: &'a [u8],
    /// Bytes of the frame before the statement's name.
    pub name_at: usize,
}

/// Read the names of a Bind frame, which need not be complete. `None` while the names are not all there.
pub fn bind(frame: &[u8]) -> Option<Bind<'_>> {
    let (portal, rest) = split_cstring(frame.get(HEAD..)?)?;
    let (statement, _) = split_cstring(rest)?;
    Some(Bind { portal, statement, name_at: HEAD + portal.len() + 1 })
}

/// The parameters of a whole Bind frame, `None` for NULL; `None` when it is malformed.
pub fn bind_values(frame: &[u8]) -> Option<Vec<Option<&[u8]>>> {
    let (_, rest) = split_cstring(frame.get(HEAD..)?)?;
    let (_, rest) = split_cstring(rest)?;
    let (formats, rest) = rest.split_first_chunk::<2>()?;
    let rest = rest.get(2 * usize::from(u16::from_be_bytes(*formats))..)?;
    let (count, mut rest) = rest.split_first_chunk::<2>()?;
    let mut values = Vec::new();
    for _ in 0..u16::from_be_bytes(*count) {
        let (length, after) = rest.split_first_chunk::<4>()?;
        let length = usize::try_from(i32::from_be_bytes(*length)).ok();
        let (value, after) = after.split_at_checked(length.unwrap_or(0))?;
        values.push(length.map(|_| value));
        rest = after;
    }
    Some(values)
}

/// How many formats of parameters and how many parameters a Bind has; `None` when they are not there.
pub fn bind_counts(frame: &[u8]) -> Option<(u16, u16)> {
    let (_, rest) = split_cstring(frame.get(HEAD..)?)?;
    let (_, rest) = split_cstring(rest)?;
    let (formats, rest) = rest.split_first_chunk::<2>()?;
    let formats = u16::from_be_bytes(*formats);
    let (count, _) = rest.get(2 * usize::from(formats)..)?.split_first_chunk::<2>()?;
    Some((formats, u16::from_be_bytes(*count)))
}

/// What a Describe or Close message is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject<'a> {
    /// The prepared statement of that name.
    Statement(&'a [u8]),
    /// The portal of that name.
    Portal(&'a [u8]),
}

/// Read a whole Describe or Close frame.
pub fn subject(frame: &[u8]) -> Option<Subject<'_>> {
    let (&kind, rest) = frame.get(HEAD..)?.split_first()?;
    let (name, after) = split_cstring(rest)?;
    match kind {
        b'S' if after.is_empty() => Some(Subject::Statement(name)),
        b'P' if after.is_empty() => Some(Subject::Portal(name)),
        _ => None,
    }
}

/// The text of a whole Query frame.
pub fn query(frame: &[u8]) -> Option<&[u8]> {
    let (sql, after) = split_cstring(frame.get(HEAD..)?)?;
    after.is_empty().then_some(sql)
}

/// Append a Parse for `name` with the `tail` of another.
pub fn write_parse(out: &mut Vec<u8>, name: &[u8], tail: &[u8]) {
    message(out, b'P', |b| {
        cstring(b, name);
        b.extend_from_slice(tail);
    });
}

/// Append what is there of a Bind frame, with another statement name. The announced length follows the change, so a
/// frame whose end has not come yet may be given.
pub fn write_bind(out: &mut Vec<u8>, frame: &[u8], bind: &Bind<'_>, total: usize, statement: &[u8]) {
    let length = total - 1 + statement.len() - bind.statement.len();
    out.push(b'B');
    out.extend_from_slice(&u32::try_from(length).expect("frames are below 1 GiB").to_be_bytes());
    out.extend_from_slice(&frame[HEAD..bind.name_at]);
    out.extend_from_slice(statement);
    out.extend_from_slice(&frame[bind.name_at + bind.statement.len()..]);
}

/// Append a Describe (`D`) or Close (`C`) of a statement.
pub fn write_subject(out: &mut Vec<u8>, kind: u8, statement: &[u8]) {
    message(out, kind, |b| {
        b.push(b'S');
        cstring(b, statement);
    });
}

/// Append a Query.
pub fn write_query(out: &mut Vec<u8>, sql: &str) {
    write_query_bytes(out, sql.as_bytes());
}

/// Append a Query of a client's text, which need not be UTF-8.
pub fn write_query_bytes(out: &mut Vec<u8>, sql: &[u8]) {
    message(out, b'Q', |b| cstring(b, sql));
}

/// Append a Sync.
pub fn write_sync(out: &mut Vec<u8>) {
    message(out, b'S', |_| {});
}

/// Append a Flush.
pub fn write_flush(out: &mut Vec<u8>) {
    message(out, b'H', |_| {});
}

/// Append a SASLInitialResponse for SCRAM-SHA-256.
pub fn write_sasl_initial(out: &mut Vec<u8>, mechanism: &str, data: &[u8]) {
    message(out, b'p', |b| {
        cstring(b, mechanism.as_bytes());
        b.extend_from_slice(&u32::try_from(data.len()).expect("SCRAM messages are short").to_be_bytes());
        b.extend_from_slice(data);
    });
}

/// Append a SASLResponse.
pub fn write_sasl_response(out: &mut Vec<u8>, data: &[u8]) {
    message(out, b'p', |b| b.extend_from_slice(data));
}

/// Append a PasswordMessage.
pub fn write_password(out: &mut Vec<u8>, password: &[u8]) {
    message(out, b'p', |b| cstring(b, password));
}

/// The password of a PasswordMessage frame.
pub fn password(frame: &[u8]) -> Option<&[u8]> {
    let (password, rest) = split_cstring(frame.get(HEAD..)?)?;
    rest.is_empty().then_some(password)
}

/// The mechanism and the data of a SASLInitialResponse frame.
pub fn sasl_initial(frame: &[u8]) -> Option<(&[u8], &[u8])> {
    let (mechanism, rest) = split_cstring(frame.get(HEAD..)?)?;
    let (length, data) = rest.split_first_chunk::<4>()?;
    (usize::try_from(i32::from_be_bytes(*length)).ok()? == data.len()).then_some((mechanism, data))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parse_is_read_and_written_under_another_name() {
        let mut frame = Vec::new();
        write_parse(&mut frame, b"s1", b"select $1\0\0\x01\0\0\0\x17");
        let p = parse(&frame).unwrap();
        assert_eq!((p.name, p.sql), (&b"s1"[..], &b"select $1"[..]));
        let mut other = Vec::new();
        write_parse(&mut other, b"other", p.tail);
        assert_eq!(parse(&other).unwrap().tail, p.tail);
    }

    #[test]
    fn a_parse_whose_types_do_not_fit_is_refused() {
        for tail in [&b"select 1"[..], b"select 1\0", b"select 1\0\0", b"x\0\0\x01\0\0\0", b"x\0\0\0\0"] {
            let mut frame = Vec::new();
            write_parse(&mut frame, b"", tail);
            assert_eq!(parse(&frame), None, "{tail:?}");
        }
    }

    #[test]
    fn a_bind_keeps_its_parameters_when_its_statement_is_renamed() {
        let mut frame = Vec::new();
        message(&mut frame, b'B', |b| b.extend_from_slice(b"port\0s1\0rest of it"));
        let total = frame.len();
        for cut in [total, total - 4] {
            let b = bind(&frame[..cut]).unwrap();
            assert_eq!((b.portal, b.statement), (&b"port"[..], &b"s1"[..]));
            let mut out = Vec::new();
            write_bind(&mut out, &frame[..cut], &b, total, b"pgt_12345");
            out.extend_from_slice(&frame[cut..]);
            let mut want = Vec::new();
            message(&mut want, b'B', |b| b.extend_from_slice(b"port\0pgt_12345\0rest of it"));
            assert_eq!(out, want);
        }
        assert_eq!(bind(&frame[..10]), None);
    }

    #[test]
    fn subjects_are_statements_or_portals() {
        let mut frame = Vec::new();
        write_subject(&mut frame, b'D', b"s1");
        assert_eq!(subject(&frame), Some(Subject::Statement(b"s1")));
        assert_eq!(subject(b"C\0\0\0\x06P\0"), Some(Subject::Portal(b"")));
        assert_eq!(subject(b"C\0\0\0\x06X\0"), None);
        assert_eq!(subject(b"C\0\0\0\x05S"), None);
    }
}
