//! SQL straight to a server as its superuser: what `psql -qAt` would print, without a process of its own. Tests ask so
//! every few milliseconds while they wait.

use super::DEADLINE;
use proxy::wire::backend;
use proxy::wire::codec::head;
use proxy::wire::frontend::write_query;
use proxy::wire::startup::write_startup;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;

/// Rows, one a line, columns between bars; or the first error.
pub fn run(port: u16, sql: &str) -> Result<String, String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).map_err(|e| e.to_string())?;
    let _ = (stream.set_nodelay(true), stream.set_read_timeout(Some(DEADLINE)));
    let mut out = Vec::new();
    write_startup(&mut out, [("user", "postgres"), ("database", "app"), ("application_name", "psql")].into_iter());
    // Whoever is let in at once, as this user is, need not wait for it.
    write_query(&mut out, sql);
    stream.write_all(&out).map_err(|e| e.to_string())?;
    let (mut buf, mut lines, mut error, mut ready) = (Vec::new(), Vec::new(), None, 0);
    // Once for the login, once for the query.
    while ready < 2 {
        let Some((kind, frame)) = frame(&mut stream, &mut buf)? else { break };
        match kind {
            b'Z' => ready += 1,
            b'D' => {
                let row = backend::text_row(&frame).ok_or("a row that is none")?;
                lines.push(row.into_iter().map(Option::unwrap_or_default).collect::<Vec<_>>().join("|"));
            }
            b'E' => error = error.or_else(|| Some(in_words(&frame))),
            b'G' | b'W' => return Err("copies are for psql".to_owned()),
            _ => {}
        }
    }
    match error {
        Some(error) => Err(error),
        None if ready < 2 => Err("the server closed the connection".to_owned()),
        None => Ok(lines.join("\n").trim().to_owned()),
    }
}

fn frame(stream: &mut TcpStream, buf: &mut Vec<u8>) -> Result<Option<(u8, Vec<u8>)>, String> {
    loop {
        if let Some(h) = head(buf).map_err(|e| format!("{e:?}"))?
            && buf.len() >= h.total
        {
            return Ok(Some((h.kind, buf.drain(..h.total).collect())));
        }
        let mut chunk = [0; 16384];
        match stream.read(&mut chunk) {
            Ok(0) => return Ok(None),
            Ok(n) => buf.extend_from_slice(&chunk[..n]),
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e.to_string()),
        }
    }
}

fn in_words(frame: &[u8]) -> String {
    let error = backend::fields(frame);
    format!("{}:  {}", String::from_utf8_lossy(error.severity), String::from_utf8_lossy(error.message))
}
