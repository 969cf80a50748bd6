//! The client's address as a trusted proxy before us tells it.

use crate::wire::proxy_protocol::{BadHeader, Source, parse};
use crate::wire::startup::CANCEL;
use std::net::{IpAddr, SocketAddr};

/// So many bytes tell a cancel request from all else.
pub(super) const CANCEL_BEGINS: usize = 8;

/// Does it begin as a cancel request does, as far as it has come? No header begins so.
pub(super) fn may_be_cancel(buf: &[u8]) -> bool {
    let begun = |at: usize, what: &[u8]| buf.iter().skip(at).zip(what).all(|(is, want)| is == want);
    begun(0, &[0, 0]) && begun(4, &CANCEL.to_be_bytes())
}

/// The client's address and the length of the header that tells it; `None` while the header is incomplete. `proxy` is
/// who tells it, and stands for a client that is not told.
///
/// # Errors
/// What came begins no header.
pub(super) fn origin(buf: &[u8], proxy: SocketAddr) -> Result<Option<(SocketAddr, usize)>, BadHeader> {
    let Some((source, used)) = parse(buf)? else { return Ok(None) };
    let client = match source {
        Source::Unknown => proxy,
        Source::V4 { address, port } => SocketAddr::new(IpAddr::from(address), port),
        Source::V6 { address, port } => SocketAddr::new(IpAddr::from(address), port),
        Source::Text { address, v6, port } => {
            let ip = address.parse::<IpAddr>().ok().filter(|ip| ip.is_ipv6() == v6);
            SocketAddr::new(ip.ok_or(BadHeader("wrong address"))?, port)
        }
    };
    Ok(Some((client, used)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cancel_request_is_told_from_headers_by_its_first_bytes() {
        let request = crate::wire::startup::cancel_request(7, 9);
        assert!((0..request.len()).all(|n| may_be_cancel(&request[..n])));
        for other in [&b"PROXY TCP4"[..], b"\r\n\r\n\0", &[0, 0, 0, 8, 4, 210, 22, 47], &[0, 0, 0, 9, 0, 3]] {
            assert!(!may_be_cancel(other), "{other:?}");
        }
    }

    #[test]
    fn the_address_must_be_of_the_family_that_is_named() {
        let proxy: SocketAddr = "10.0.0.1:1".parse().unwrap();
        let of = |line: &str| origin(line.as_bytes(), proxy);
        let told = of("PROXY TCP6 2001:db8::1 ::1 7 8\r\n").unwrap().unwrap();
        assert_eq!(told, ("[2001:db8::1]:7".parse().unwrap(), 32));
        assert_eq!(of("PROXY UNKNOWN\r\n").unwrap().unwrap().0, proxy);
        assert!(of("PROXY TCP4 ::1 ::1 7 8\r\n").is_err() && of("PROXY TCP6 host x 7 8\r\n").is_err());
    }
}
