//! The least HTTP/1.1 client that can read an admin port or Prometheus: one request per connection.

use anyhow::{Context, Result, bail};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Longest answer read, bytes.
const MAX_ANSWER: u64 = 64 << 20;

/// `GET path`: the status code and the body.
///
/// # Errors
/// When nothing listens, the answer takes longer than `within`, or it is not HTTP.
pub fn get(addr: SocketAddr, path: &str, within: Duration) -> Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&addr, within).with_context(|| format!("connect to {addr}"))?;
    stream.set_read_timeout(Some(within))?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: {addr}\r\nconnection: close\r\n\r\n")?;
    let mut raw = Vec::new();
    stream.take(MAX_ANSWER).read_to_end(&mut raw).with_context(|| format!("read http://{addr}{path}"))?;
    parse(&raw).with_context(|| format!("http://{addr}{path}"))
}

/// `GET path` that must answer 200: the body as JSON.
///
/// # Errors
/// As [`get`], and for any other status or a body that is not JSON.
pub fn get_json(addr: SocketAddr, path: &str, within: Duration) -> Result<serde_json::Value> {
    let (status, body) = get(addr, path, within)?;
    if status != 200 {
        bail!("http://{addr}{path} answered {status}: {body}");
    }
    serde_json::from_str(&body).with_context(|| format!("http://{addr}{path} answered {body:?}"))
}

/// Percent-encode everything but letters, digits and `-_.~`.
pub fn encode(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.~".contains(&b);
    text.bytes().map(|b| if plain(b) { (b as char).to_string() } else { format!("%{b:02X}") }).collect()
}

fn parse(raw: &[u8]) -> Result<(u16, String)> {
    let end = raw.windows(4).position(|w| w == b"\r\n\r\n").context("no end of the HTTP header")?;
    let head = std::str::from_utf8(&raw[..end])?;
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).context("no status line")?;
    let body = &raw[end + 4..];
    let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    let body = if chunked { unchunk(body)? } else { body.to_vec() };
    Ok((status, String::from_utf8(body)?))
}

fn unchunk(mut body: &[u8]) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    loop {
        let line = body.windows(2).position(|w| w == b"\r\n").context("chunk without length")?;
        let text = std::str::from_utf8(&body[..line])?;
        let len = usize::from_str_radix(text.split(';').next().unwrap_or("").trim(), 16)?;
        if len == 0 {
            return Ok(out);
        }
        out.extend_from_slice(body.get(line + 2..line + 2 + len).context("a chunk is cut short")?);
        body = body.get(line + 4 + len..).context("a chunk is cut short")?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunked_answer_is_put_together() {
        let raw = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n";
        assert_eq!(parse(raw).unwrap(), (200, "abcde".to_owned()));
        assert!(parse(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nabc").is_err());
    }

    #[test]
    fn an_expression_becomes_a_query_parameter() {
        assert_eq!(encode("a{b=\"c d\"}"), "a%7Bb%3D%22c%20d%22%7D");
    }
}
