//! Views of the messages a server sends, and those we send to clients ourselves.
//!
//! Source: PostgreSQL documentation, "Message Formats" and "Error and Notice Message Fields".

use crate::wire::codec::{HEAD, cstring, message, split_cstring};
use crate::wire::lossless;
use std::borrow::Cow;

/// The status byte of ReadyForQuery: the only truth about a server's transaction state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum TxStatus {
    /// `I`: outside a transaction block.
    #[default]
    Idle,
    /// `T`: inside a block.
    Block,
    /// `E`: inside a block that has failed.
    Failed,
}

impl TxStatus {
    /// From the byte on the wire.
    pub const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            b'I' => Some(Self::Idle),
            b'T' => Some(Self::Block),
            b'E' => Some(Self::Failed),
            _ => None,
        }
    }

    /// The byte on the wire.
    pub const fn byte(self) -> u8 {
        match self {
            Self::Idle => b'I',
            Self::Block => b'T',
            Self::Failed => b'E',
        }
    }
}

/// The fields of an ErrorResponse or NoticeResponse that the proxy acts on. Missing ones are empty.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fields<'a> {
    /// `V`, the severity never localised; `S` when there is no `V`.
    pub severity: &'a [u8],
    /// `C`, the SQLSTATE.
    pub code: &'a [u8],
    /// `M`, the message, in the server's language.
    pub message: &'a [u8],
    /// `R`, the C function that reported it; never localised.
    pub routine: &'a [u8],
}

impl Fields<'_> {
    /// Does the server close the connection behind this?
    pub fn is_fatal(&self) -> bool {
        matches!(self.severity, b"FATAL" | b"PANIC")
    }
}

/// Read a whole ErrorResponse or NoticeResponse frame.
pub fn fields(frame: &[u8]) -> Fields<'_> {
    let mut rest = frame.get(HEAD..).unwrap_or_default();
    let mut f = Fields::default();
    while let Some((&kind, after)) = rest.split_first() {
        let Some((value, after)) = split_cstring(after) else { break };
        match kind {
            b'V' => f.severity = value,
            b'S' if f.severity.is_empty() => f.severity = value,
            b'C' => f.code = value,
            b'M' => f.message = value,
            b'R' => f.routine = value,
            _ => {}
        }
        rest = after;
    }
    f
}

/// An ErrorResponse with the severity ERROR: what ended a connection to a server ends only a statement here.
pub fn as_error(frame: &[u8]) -> Vec<u8> {
    let mut rest = frame.get(HEAD..).unwrap_or_default();
    let mut out = Vec::with_capacity(frame.len());
    message(&mut out, b'E', |body| {
        while let Some((&kind, after)) = rest.split_first() {
            let Some((value, after)) = split_cstring(after) else { break };
            rest = after;
            body.push(kind);
            cstring(body, if matches!(kind, b'S' | b'V') { b"ERROR" } else { value });
        }
        body.push(0);
    });
    out
}

/// An error whose message names the statement `from`, in quotes, as `to`; `None` when it does not name it.
pub fn with_name(frame: &[u8], from: &[u8], to: &[u8]) -> Option<Vec<u8>> {
    let quoted = [b"\"", from, b"\""].concat();
    let mut rest = frame.get(HEAD..).unwrap_or_default();
    let at = fields(frame).message.windows(quoted.len()).position(|w| w == quoted)?;
    let mut out = Vec::with_capacity(frame.len() + to.len());
    message(&mut out, b'E', |body| {
        while let Some((&kind, after)) = rest.split_first() {
            let Some((value, after)) = split_cstring(after) else { break };
            rest = after;
            body.push(kind);
            if kind == b'M' {
                body.extend_from_slice(&value[..=at]);
                body.extend_from_slice(to);
                cstring(body, &value[at + 1 + from.len()..]);
            } else {
                cstring(body, value);
            }
        }
        body.push(0);
    });
    Some(out)
}

/// Name and value of a whole ParameterStatus frame; the value as [`lossless`] keeps it.
pub fn parameter_status(frame: &[u8]) -> Option<(&str, Cow<'_, str>)> {
    let (name, rest) = split_cstring(frame.get(HEAD..)?)?;
    let (value, _) = split_cstring(rest)?;
    Some((std::str::from_utf8(name).ok()?, lossless::keep(value)))
}

/// The values of a whole DataRow frame in text format, with replacements for what is not UTF-8; `None` when it is
/// malformed.
pub fn text_row(frame: &[u8]) -> Option<Vec<Option<String>>> {
    let (count, mut rest) = frame.get(HEAD..)?.split_first_chunk::<2>()?;
    let mut row = Vec::new();
    for _ in 0..u16::from_be_bytes(*count) {
        let (length, after) = rest.split_first_chunk::<4>()?;
        rest = after;
        row.push(match usize::try_from(i32::from_be_bytes(*length)) {
            Ok(length) => {
                let (value, after) = rest.split_at_checked(length)?;
                rest = after;
                Some(String::from_utf8_lossy(value).into_owned())
            }
            Err(_) => None,
        });
    }
    Some(row)
}

/// The process that notifies, of a whole NotificationResponse frame.
pub fn notifying_pid(frame: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(*frame.get(HEAD..)?.first_chunk()?))
}

/// A whole NotificationResponse frame as if that process notified.
pub fn with_notifying_pid(out: &mut Vec<u8>, frame: &[u8], pid: u32) {
    let (head, body) = frame.split_at(HEAD);
    out.extend_from_slice(head);
    out.extend_from_slice(&pid.to_be_bytes());
    out.extend_from_slice(&body[4..]);
}

/// The same of a row of `N` columns, without a copy; `None` when it has another number of them, or is not UTF-8.
pub fn text_columns<const N: usize>(frame: &[u8]) -> Option<[Option<&str>; N]> {
    let (count, mut rest) = frame.get(HEAD..)?.split_first_chunk::<2>()?;
    if usize::from(u16::from_be_bytes(*count)) != N {
        return None;
    }
    let mut row = [None; N];
    for column in &mut row {
        let (length, after) = rest.split_first_chunk::<4>()?;
        rest = after;
        if let Ok(length) = usize::try_from(i32::from_be_bytes(*length)) {
            let (value, after) = rest.split_at_checked(length)?;
            (*column, rest) = (Some(std::str::from_utf8(value).ok()?), after);
        }
    }
    Some(row)
}

/// Process number and secret of a whole BackendKeyData frame of protocol 3.0.
pub fn backend_key(frame: &[u8]) -> Option<(u32, u32)> {
    let (pid, rest) = frame.get(HEAD..)?.split_first_chunk::<4>()?;
    let secret = rest.first_chunk::<4>().filter(|_| rest.len() == 4)?;
    Some((u32::from_be_bytes(*pid), u32::from_be_bytes(*secret)))
}

/// The status of a whole ReadyForQuery frame.
pub fn ready_status(frame: &[u8]) -> Option<TxStatus> {
    frame.get(HEAD).filter(|_| frame.len() == HEAD + 1).and_then(|&b| TxStatus::from_byte(b))
}

/// An authentication request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Authentication<'a> {
    /// Logged in.
    Ok,
    /// Send the password itself.
    Cleartext,
    /// Send its MD5 hash, hashed again with this salt.
    Md5([u8; 4]),
    /// SASL with these mechanisms.
    Sasl {
        /// SCRAM-SHA-256 is among them.
        scram_sha_256: bool,
        /// SCRAM-SHA-256-PLUS is.
        plus: bool,
    },
    /// The server's first SASL message.
    SaslContinue(&'a [u8]),
    /// The server's last SASL message.
    SaslFinal(&'a [u8]),
    /// A method we do not speak, by its number.
    Other(u32),
}

/// Read a whole Authentication frame.
pub fn authentication(frame: &[u8]) -> Option<Authentication<'_>> {
    let (code, rest) = frame.get(HEAD..)?.split_first_chunk::<4>()?;
    Some(match u32::from_be_bytes(*code) {
        0 => Authentication::Ok,
        3 => Authentication::Cleartext,
        5 => Authentication::Md5(rest.try_into().ok()?),
        10 => {
            let offers = |name: &[u8]| rest.split(|&b| b == 0).any(|m| m == name);
            Authentication::Sasl { scram_sha_256: offers(b"SCRAM-SHA-256"), plus: offers(b"SCRAM-SHA-256-PLUS") }
        }
        11 => Authentication::SaslContinue(rest),
        12 => Authentication::SaslFinal(rest),
        other => Authentication::Other(other),
    })
}

/// Append AuthenticationOk.
pub fn write_authentication_ok(out: &mut Vec<u8>) {
    message(out, b'R', |b| b.extend_from_slice(&[0; 4]));
}

/// Append AuthenticationCleartextPassword.
pub fn write_authentication_cleartext(out: &mut Vec<u8>) {
    message(out, b'R', |b| b.extend_from_slice(&3u32.to_be_bytes()));
}

/// Append AuthenticationMD5Password.
pub fn write_authentication_md5(out: &mut Vec<u8>, salt: [u8; 4]) {
    message(out, b'R', |b| {
        b.extend_from_slice(&5u32.to_be_bytes());
        b.extend_from_slice(&salt);
    });
}

/// Append AuthenticationSASL offering `mechanisms`, the best first.
pub fn write_authentication_sasl(out: &mut Vec<u8>, mechanisms: &[&str]) {
    message(out, b'R', |b| {
        b.extend_from_slice(&10u32.to_be_bytes());
        mechanisms.iter().for_each(|name| cstring(b, name.as_bytes()));
        b.push(0);
    });
}

/// Append AuthenticationSASLContinue.
pub fn write_sasl_continue(out: &mut Vec<u8>, data: &[u8]) {
    message(out, b'R', |b| {
        b.extend_from_slice(&11u32.to_be_bytes());
        b.extend_from_slice(data);
    });
}

/// Append AuthenticationSASLFinal.
pub fn write_sasl_final(out: &mut Vec<u8>, data: &[u8]) {
    message(out, b'R', |b| {
        b.extend_from_slice(&12u32.to_be_bytes());
        b.extend_from_slice(data);
    });
}

/// Append NegotiateProtocolVersion: we speak 3.`minor` and none of `extensions`.
pub fn write_negotiate_version(out: &mut Vec<u8>, minor: u16, extensions: &[String]) {
    message(out, b'v', |b| {
        b.extend_from_slice(&(3u32 << 16 | u32::from(minor)).to_be_bytes());
        b.extend_from_slice(&u32::try_from(extensions.len()).expect("startup packets are bounded").to_be_bytes());
        for name in extensions {
            cstring(b, &lossless::bytes(name));
        }
    });
}

/// Append ParameterStatus.
pub fn write_parameter_status(out: &mut Vec<u8>, name: &str, value: &str) {
    message(out, b'S', |b| {
        cstring(b, name.as_bytes());
        cstring(b, &lossless::bytes(value));
    });
}

/// Append BackendKeyData; before protocol 3.2 the secret has 4 bytes.
pub fn write_backend_key(out: &mut Vec<u8>, pid: u32, secret: &[u8]) {
    message(out, b'K', |b| {
        b.extend_from_slice(&pid.to_be_bytes());
        b.extend_from_slice(secret);
    });
}

/// Append a NoticeResponse: a WARNING of SQLSTATE 01000.
pub fn write_warning(out: &mut Vec<u8>, text: &str, detail: &str) {
    message(out, b'N', |b| {
        for (kind, value) in [(b'S', "WARNING"), (b'V', "WARNING"), (b'C', "01000"), (b'M', text), (b'D', detail)] {
            b.push(kind);
            cstring(b, value.as_bytes());
        }
        b.push(0);
    });
}

/// Append a NoticeResponse: a NOTICE of SQLSTATE 00000.
pub fn write_notice(out: &mut Vec<u8>, text: &str) {
    message(out, b'N', |b| {
        for (kind, value) in [(b'S', "NOTICE"), (b'V', "NOTICE"), (b'C', "00000"), (b'M', text)] {
            b.push(kind);
            cstring(b, value.as_bytes());
        }
        b.push(0);
    });
}

/// Append ReadyForQuery.
pub fn write_ready(out: &mut Vec<u8>, status: TxStatus) {
    message(out, b'Z', |b| b.push(status.byte()));
}

/// Append CommandComplete.
pub fn write_command_complete(out: &mut Vec<u8>, tag: &str) {
    message(out, b'C', |b| cstring(b, tag.as_bytes()));
}

/// Append a message that consists of its type only: ParseComplete `1`, BindComplete `2`, CloseComplete `3`, NoData
/// `n`, EmptyQueryResponse `I`.
pub fn write_bare(out: &mut Vec<u8>, kind: u8) {
    message(out, kind, |_| {});
}

/// Append a ParameterDescription of no parameters.
pub fn write_no_parameters(out: &mut Vec<u8>) {
    message(out, b't', |b| b.extend_from_slice(&[0, 0]));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_the_statement_as_the_client_does() {
        let mut frame = Vec::new();
        message(&mut frame, b'E', |b| b.extend_from_slice(b"SERROR\0C08P01\0Mstatement \"pgt_1\" takes 1\0\0"));
        let told = with_name(&frame, b"pgt_1", b"mine").expect("it is named");
        let mut want = Vec::new();
        message(&mut want, b'E', |b| b.extend_from_slice(b"SERROR\0C08P01\0Mstatement \"mine\" takes 1\0\0"));
        assert_eq!(told, want);
        assert_eq!(with_name(&frame, b"pgt", b"mine"), None);
    }

    #[test]
    fn the_fields_of_a_notice_are_found() {
        let mut frame = Vec::new();
        message(&mut frame, b'N', |b| {
            b.extend_from_slice(b"SWARNUNG\0VWARNING\0C01000\0Mtext\0Fsyncrep.c\0L1\0RSyncRepWaitForLSN\0\0");
        });
        let f = fields(&frame);
        assert_eq!((f.severity, f.code, f.routine), (&b"WARNING"[..], &b"01000"[..], &b"SyncRepWaitForLSN"[..]));
        assert!(!f.is_fatal());
        assert!(fields(b"E\0\0\0\x0cSFATAL\0\0").is_fatal());
        assert_eq!(fields(b"E\0\0"), Fields::default());
    }

    #[test]
    fn a_fatal_error_of_a_server_becomes_an_error() {
        let mut frame = Vec::new();
        message(&mut frame, b'E', |b| b.extend_from_slice(b"SFATAL\0VFATAL\0C3D000\0Mno such database\0\0"));
        let error = as_error(&frame);
        let f = fields(&error);
        assert_eq!((f.severity, f.code, f.message), (&b"ERROR"[..], &b"3D000"[..], &b"no such database"[..]));
    }

    #[test]
    fn what_is_written_is_read_back() {
        let mut out = Vec::new();
        write_backend_key(&mut out, 1, &[0, 0, 0, 2]);
        assert_eq!(backend_key(&out), Some((1, 2)));
        out.clear();
        write_parameter_status(&mut out, "TimeZone", "UTC");
        assert_eq!(parameter_status(&out), Some(("TimeZone", "UTC".into())));
        for status in [TxStatus::Idle, TxStatus::Block, TxStatus::Failed] {
            out.clear();
            write_ready(&mut out, status);
            assert_eq!(ready_status(&out), Some(status));
        }
        out.clear();
        write_authentication_sasl(&mut out, &["SCRAM-SHA-256-PLUS", "SCRAM-SHA-256"]);
        assert_eq!(authentication(&out), Some(Authentication::Sasl { scram_sha_256: true, plus: true }));
        out.clear();
        write_authentication_md5(&mut out, [1, 2, 3, 4]);
        assert_eq!(authentication(&out), Some(Authentication::Md5([1, 2, 3, 4])));
        out.clear();
        write_authentication_cleartext(&mut out);
        assert_eq!(authentication(&out), Some(Authentication::Cleartext));
    }
}
