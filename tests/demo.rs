//! `pgtenure demo --exercise` as a person would start it: a whole cluster, its primary killed and switched back to, with
//! every acknowledged row counted. It says itself whether all of that held.

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Some seconds more than the demo gives its own story.
const BOUND: Duration = Duration::from_secs(330);
/// Ports that a demo takes.
const SPAN: u16 = 40;

fn free_base() -> u16 {
    let from = u16::try_from(std::process::id() % 50).expect("below 50");
    let bases = (0..50).map(|i| 13_000 + (from + i) % 50 * SPAN);
    let free = |base: &u16| (*base..base + SPAN).all(|port| TcpListener::bind(("127.0.0.1", port)).is_ok());
    bases.into_iter().find(free).expect("forty ports in a row are free")
}

/// Ends the demo, and with it all that it has started, when the test ends early.
struct Demo(Child);

impl Demo {
    fn exit_within(&mut self, bound: Duration) -> Option<std::process::ExitStatus> {
        let begun = Instant::now();
        while begun.elapsed() < bound {
            if let Some(status) = self.0.try_wait().expect("our own child") {
                return Some(status);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        None
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            let pid = Pid::from_raw(i32::try_from(self.0.id()).expect("a pid"));
            let _ = nix::sys::signal::kill(pid, Signal::SIGTERM);
            if self.exit_within(Duration::from_secs(30)).is_none() {
                let _ = self.0.kill();
                let _ = self.0.wait();
            }
        }
    }
}

#[test]
fn the_exercise_of_the_demo_keeps_every_promise() {
    let dir = tempfile::Builder::new().prefix("demo").tempdir().unwrap();
    // Started by root, the demo's processes are somebody else's.
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let seen = std::fs::File::create(dir.path().join("seen")).unwrap();
    let told = std::fs::File::create(dir.path().join("told")).unwrap();
    let base = free_base().to_string();
    let ground = dir.path().join("d");
    let child = Command::new(env!("CARGO_BIN_EXE_pgtenure"))
        .args(["demo", "--exercise", "--json", "--base-port", &base, "--dir"])
        .arg(&ground)
        .stdin(Stdio::null())
        .stdout(seen)
        .stderr(told)
        .spawn()
        .expect("the program was built");
    let mut demo = Demo(child);
    let status = demo.exit_within(BOUND);
    let text = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
    let status = status.unwrap_or_else(|| panic!("waited {BOUND:?} for the demo to end: {}", text("told")));
    assert!(status.success(), "{status}\n{}\n{}", text("seen"), text("told"));
    let seen: serde_json::Value = serde_json::from_str(&text("seen")).unwrap();
    let rows = |of: &str| (seen[of]["acknowledged"].as_u64(), seen[of]["missing"].as_u64());
    for of in ["failover_rows", "switchover_rows"] {
        let (acknowledged, missing) = rows(of);
        assert!(acknowledged >= Some(200) && missing == Some(0), "{of}: {seen:#}");
    }
    assert!(seen["old_primary"] != seen["new_primary"] && seen["term"].as_u64() > Some(1), "{seen:#}");
    eprintln!("outage {} ms, all of it {} s", seen["outage"]["worst_ms"], seen["seconds"]);
}
