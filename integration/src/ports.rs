//! Free TCP ports for processes that must be told their port before they start, or that are started again on it.
//!
//! A port stays ours while this process lives: we hold the UDP port of the same number, which nobody here wants and
//! which goes with us, so that no other test process takes it. The range lies below Linux's ephemeral ports, so that no
//! outgoing connection takes it while its server is down.
//!
//! The tests of other crates include this file by its path: it uses nothing but `std`.
#![allow(unreachable_pub, reason = "here it is part of a library, elsewhere of a test")]

use std::net::{TcpListener, UdpSocket};
use std::sync::Mutex;

/// First and one past the last port handed out. `failover`'s agents have fixed ports from 22000 on.
const RANGE: (u16, u16) = (23000, 32500);
/// Processes whose numbers follow each other begin so far apart.
const APART: u32 = 61;

static TAKEN: Mutex<Vec<UdpSocket>> = Mutex::new(Vec::new());

/// A port of every loopback address, on which nothing listens, reserved for this process until it ends.
///
/// # Panics
/// When no port of the range is free.
pub fn free_port() -> u16 {
    let mut taken = TAKEN.lock().expect("no thread panics while it takes a port");
    let span = RANGE.1 - RANGE.0;
    let start = (std::process::id().wrapping_mul(APART) % u32::from(span)) as u16;
    for i in 0..span {
        let port = RANGE.0 + (start + i) % span;
        let Ok(lock) = UdpSocket::bind(("127.0.0.1", port)) else { continue };
        if TcpListener::bind(("0.0.0.0", port)).is_ok() {
            taken.push(lock);
            return port;
        }
    }
    panic!("no free port in {}..{}", RANGE.0, RANGE.1);
}
