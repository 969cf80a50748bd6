//! A way to a server on which an answer arrives together with the one behind it, as on a busy host.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};

/// A ReadyForQuery but for its status.
const READY: &[u8] = b"Z\0\0\0\x05";

/// Listen in front of `port`: what the server says that has `tag` in it is passed on in one write with the next answer.
pub fn joined(port: u16, tag: &'static [u8]) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let own = listener.local_addr().expect("it is bound").port();
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let Ok(server) = TcpStream::connect(("127.0.0.1", port)) else { continue };
            let _ = (client.set_nodelay(true), server.set_nodelay(true));
            let (Ok(from), Ok(to)) = (client.try_clone(), server.try_clone()) else { continue };
            std::thread::spawn(move || pass_up(from, to));
            std::thread::spawn(move || {
                let _ = pass_down(&server, &client, tag);
                let _ = client.shutdown(Shutdown::Both);
            });
        }
    });
    own
}

fn pass_up(mut from: TcpStream, mut to: TcpStream) {
    let _ = io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Write);
}

fn pass_down(mut from: &TcpStream, mut to: &TcpStream, tag: &[u8]) -> io::Result<()> {
    let (mut held, mut chunk) = (Vec::new(), [0; 16384]);
    loop {
        let n = from.read(&mut chunk)?;
        if n == 0 {
            return to.write_all(&held);
        }
        held.extend_from_slice(&chunk[..n]);
        let find = |part: &[u8]| held.windows(part.len()).position(|w| w == part);
        // What the proxy asks at a login is a block of its own, and nothing comes behind it.
        let at = find(tag).filter(|_| find(b"BEGIN\0") > find(tag) || find(b"BEGIN\0").is_none());
        let behind = at.map_or(&[][..], |at| &held[at..]);
        if at.is_none() || behind.windows(READY.len()).filter(|w| *w == READY).count() > 1 {
            to.write_all(&held)?;
            held.clear();
        }
    }
}
