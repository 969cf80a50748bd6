//! The header by which a proxy before us tells who the client is, versions 1 and 2.
//!
//! Source: HAProxy's doc/proxy-protocol.txt, sections 2.1 and 2.2.

/// Longest header of version 1, bytes, its line end included.
const MAX_V1: usize = 107;
/// Longest header of version 2 that we take, bytes; what exceeds the addresses is skipped.
const MAX_V2: usize = 4096;
const V2_SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
const V2_FIXED: usize = 16;

/// Who the client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source<'a> {
    /// The proxy itself, or it does not say.
    Unknown,
    /// An address as text, not yet looked at.
    Text {
        /// The address.
        address: &'a str,
        /// It must be IPv6, else IPv4.
        v6: bool,
        /// The port.
        port: u16,
    },
    /// IPv4.
    V4 {
        /// The address.
        address: [u8; 4],
        /// The port.
        port: u16,
    },
    /// IPv6.
    V6 {
        /// The address.
        address: [u8; 16],
        /// The port.
        port: u16,
    },
}

/// Bytes that begin no header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid PROXY protocol header: {0}")]
pub struct BadHeader(pub &'static str);

/// The header at the start of `buf` and its length; `None` while it is incomplete.
///
/// # Errors
/// What is there is not the beginning of a header, or a header longer than we take.
pub fn parse(buf: &[u8]) -> Result<Option<(Source<'_>, usize)>, BadHeader> {
    let begins = |signature: &[u8]| {
        let n = buf.len().min(signature.len());
        buf[..n] == signature[..n]
    };
    if begins(V2_SIGNATURE) {
        v2(buf)
    } else if begins(b"PROXY ") {
        v1(buf)
    } else {
        Err(BadHeader("no signature"))
    }
}

fn v1(buf: &[u8]) -> Result<Option<(Source<'_>, usize)>, BadHeader> {
    let window = &buf[..buf.len().min(MAX_V1)];
    let Some(end) = window.windows(2).position(|w| w == b"\r\n") else {
        return if window.len() < MAX_V1 { Ok(None) } else { Err(BadHeader("no end of line")) };
    };
    let line = std::str::from_utf8(&window[6.min(end)..end]).map_err(|_| BadHeader("no text"))?;
    let mut words = line.split(' ');
    let v6 = match words.next() {
        // What follows is to be ignored.
        Some("UNKNOWN") => return Ok(Some((Source::Unknown, end + 2))),
        Some("TCP4") => false,
        Some("TCP6") => true,
        _ => return Err(BadHeader("unknown protocol")),
    };
    let (Some(address), Some(_), Some(from), Some(to), None) =
        (words.next(), words.next(), words.next(), words.next(), words.next())
    else {
        return Err(BadHeader("wrong number of fields"));
    };
    let port = |text: &str| -> Result<u16, BadHeader> {
        let plain = text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
        text.parse().ok().filter(|_| plain).ok_or(BadHeader("wrong port"))
    };
    port(to)?;
    Ok(Some((Source::Text { address, v6, port: port(from)? }, end + 2)))
}

fn v2(buf: &[u8]) -> Result<Option<(Source<'_>, usize)>, BadHeader> {
    let Some(&[version_command, family, high, low]) = buf.get(12..V2_FIXED) else { return Ok(None) };
    if version_command >> 4 != 2 {
        return Err(BadHeader("unknown version"));
    }
    let total = V2_FIXED + usize::from(u16::from_be_bytes([high, low]));
    if total > MAX_V2 {
        return Err(BadHeader("too long"));
    }
    let Some(body) = buf.get(V2_FIXED..total) else { return Ok(None) };
    let source = match (version_command & 15, family) {
        // LOCAL; and addresses that are none of ours: unspecified, Unix-domain.
        (0, _) | (1, 0x00 | 0x31) => Source::Unknown,
        (1, 0x11) => body
            .first_chunk::<12>()
            .map(|b| Source::V4 { address: [b[0], b[1], b[2], b[3]], port: u16::from_be_bytes([b[8], b[9]]) })
            .ok_or(BadHeader("too short for its addresses"))?,
        (1, 0x21) => {
            let (address, ports) = body.split_first_chunk::<16>().ok_or(BadHeader("too short for its addresses"))?;
            let port = ports.get(16..20).ok_or(BadHeader("too short for its addresses"))?;
            Source::V6 { address: *address, port: u16::from_be_bytes([port[0], port[1]]) }
        }
        (1, _) => return Err(BadHeader("unknown protocol")),
        _ => return Err(BadHeader("unknown command")),
    };
    Ok(Some((source, total)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v2(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let len = u16::try_from(body.len()).unwrap().to_be_bytes();
        [V2_SIGNATURE, &[0x20 | command, family], &len, body].concat()
    }

    #[test]
    fn headers_of_both_versions_are_read_whole_or_not_at_all() {
        let v4 = [&[10, 0, 0, 1, 10, 0, 0, 2, 0x30, 0x39, 0x1a, 0x0b][..], b"tlv"].concat();
        let mut v6 = [0x20; 16].to_vec();
        v6.extend([0; 16]);
        v6.extend([0x30, 0x39, 0, 1]);
        for (header, want) in [
            (b"PROXY UNKNOWN anything at all\r\n".to_vec(), Source::Unknown),
            (
                b"PROXY TCP4 192.0.2.1 192.0.2.2 12345 6432\r\n".to_vec(),
                Source::Text { address: "192.0.2.1", v6: false, port: 12345 },
            ),
            (b"PROXY TCP6 ::1 ::2 1 2\r\n".to_vec(), Source::Text { address: "::1", v6: true, port: 1 }),
            (v2(0, 0, b""), Source::Unknown),
            (v2(1, 0x31, &[0; 216]), Source::Unknown),
            (v2(1, 0x11, &v4), Source::V4 { address: [10, 0, 0, 1], port: 12345 }),
            (v2(1, 0x21, &v6), Source::V6 { address: [0x20; 16], port: 12345 }),
        ] {
            for at in 0..header.len() {
                assert_eq!(parse(&header[..at]), Ok(None), "{at} of {header:?}");
            }
            let more = [&header[..], b"\0\0\0\x08"].concat();
            assert_eq!(parse(&more), Ok(Some((want, header.len()))));
        }
    }

    #[test]
    fn nothing_else_is_taken_for_a_header() {
        let long = [&b"PROXY TCP4 "[..], &[b'1'; 120]].concat();
        for bad in [
            &b"\0\0\0\x08"[..],
            b"GET / HTTP/1.1",
            b"PROXY UDP4 1.1.1.1 1.1.1.1 1 2\r\n",
            b"PROXY TCP4 1.1.1.1 1.1.1.1 1\r\n",
            b"PROXY TCP4 1.1.1.1 1.1.1.1 1 2 3\r\n",
            b"PROXY TCP4 1.1.1.1 1.1.1.1 65536 2\r\n",
            b"PROXY TCP4 1.1.1.1 1.1.1.1 +1 2\r\n",
            b"PROXY TCP4 1.1.1.1 1.1.1.1 01 2\r\n",
            b"PROXY TCP4  1.1.1.1 1.1.1.1 1 2\r\n",
            &long,
            &v2(2, 0x11, &[0; 12]),
            &v2(1, 0x12, &[0; 12]),
            &v2(1, 0x11, &[0; 11]),
            &v2(1, 0x21, &[0; 35]),
            &v2(0, 0, &[0; 5000]),
            &[V2_SIGNATURE, &[0x11, 0x11, 0, 0]].concat(),
        ] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }
}
