//! Free TCP ports for processes that must be told their port before they start.
//!
//! A port stays ours while this process lives: a lock file per port keeps other test processes off it, and the range
//! lies below Linux's ephemeral ports, so that no outgoing connection takes it in between.

use nix::fcntl::{Flock, FlockArg};
use std::fs::File;
use std::net::TcpListener;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::sync::Mutex;

/// First and one past the last port handed out.
const RANGE: (u16, u16) = (24000, 24980);

static TAKEN: Mutex<Vec<Flock<File>>> = Mutex::new(Vec::new());

/// A port of 127.0.0.1 on which nothing listens, reserved for this test process until it ends.
///
/// # Panics
/// When no port of the range is free.
pub fn free_port() -> u16 {
    let dir = std::env::temp_dir().join("pgtenure-test-ports");
    std::fs::create_dir_all(&dir).expect("the directory of port locks can be made");
    // Tests may be run by root and by others on the same machine.
    let _ = std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o1777));
    let mut taken = TAKEN.lock().expect("no test thread panics while it takes a port");
    let span = RANGE.1 - RANGE.0;
    let start = (std::process::id() % u32::from(span)) as u16;
    for i in 0..span {
        let port = RANGE.0 + (start + i) % span;
        let path = dir.join(port.to_string());
        let Ok(file) = File::options().create(true).write(true).truncate(false).mode(0o666).open(&path) else {
            continue;
        };
        let Ok(lock) = Flock::lock(file, FlockArg::LockExclusiveNonblock) else { continue };
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            taken.push(lock);
            return port;
        }
    }
    panic!("no free port in {}..{}", RANGE.0, RANGE.1);
}
