//! The System V shared memory segment that a PostgreSQL leaves behind when it is killed. The next one on the same
//! directory takes it away; of a directory that is thrown away it stays until the machine restarts, and there can be
//! 4096 at most.
//!
//! There is more that it shares, of which the next one learns by that segment only: files in /dev/shm, which would stay as
//! well. The tests' servers have it in their data directory, with which it goes (`dynamic_shared_memory_type = mmap`).
//!
//! The tests of other crates include this file by its path: it uses nothing but `std`.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How long processes that were just killed are waited for.
const DYING: Duration = Duration::from_secs(2);

/// Remove the segment that `postmaster.pid` in a data directory names, once nobody is attached to it. Without such a
/// file, or while somebody stays attached, nothing happens.
pub(crate) fn remove_segment(data_dir: &Path) {
    let Ok(text) = std::fs::read_to_string(data_dir.join("postmaster.pid")) else { return };
    // Key and id are in the seventh line, which a postmaster that has only begun has not written yet.
    let Some(id) = text.lines().nth(6).and_then(|l| l.split_whitespace().nth(1)) else { return };
    let start = Instant::now();
    while start.elapsed() < DYING {
        match attached(&std::fs::read_to_string("/proc/sysvipc/shm").unwrap_or_default(), id) {
            None => return,
            Some("0") => {
                let mut command = Command::new("ipcrm");
                command.args(["-m", id]).stdin(Stdio::null()).stderr(Stdio::null());
                let _ = command.status();
                return;
            }
            Some(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

/// How many processes are attached to a segment, by /proc/sysvipc/shm; `None` when there is no such segment.
fn attached<'a>(shm: &'a str, id: &str) -> Option<&'a str> {
    shm.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).find(|w| w.get(1) == Some(&id))?.get(6).copied()
}
