//! One run of one script: what it printed, and in what that differs from another run.

use crate::places::connects;
use integration::client::Target;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Longest time that one script may take.
const LIMIT: Duration = Duration::from_secs(180);

/// Where a script logs in.
pub struct Login<'a> {
    pub target: &'a Target,
    pub database: &'a str,
    /// The primary's name, where standbys serve reads.
    pub primary: Option<&'a str>,
    /// Over TLS, with a certificate that this file's authorities signed.
    pub authority: Option<&'a Path>,
}

/// What a script printed, line by line, and whether it ran to its end.
pub struct Printed {
    pub lines: Vec<String>,
    pub ended: Result<(), String>,
}

impl Printed {
    /// The driver's version, which every script prints first.
    pub fn version(&self) -> String {
        let first = self.lines.first().map_or("", String::as_str);
        let found = first.strip_prefix("[\"version\"").map(|rest| rest.trim_matches(|c: char| " ,\"]".contains(c)));
        found.unwrap_or("-").to_owned()
    }

    /// Why it did not run to its end, with the last lines that it printed.
    pub fn failure(&self) -> Vec<String> {
        let last = self.lines.len().saturating_sub(3);
        let words = |status: &String| format!("it ended with {status}: {}", self.lines[last..].join(" / "));
        self.ended.as_ref().err().map(words).into_iter().collect()
    }
}

/// Run a script.
pub fn run(mut command: Command, login: &Login<'_>) -> Printed {
    connects(&mut command, login);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let start = Instant::now();
    let output = match command.spawn().and_then(|child| bounded(child, start)) {
        Ok(output) => output,
        Err(error) => return Printed { lines: Vec::new(), ended: Err(error.to_string()) },
    };
    let [mut text, errors] = [output.stdout, output.stderr].map(|b| String::from_utf8_lossy(&b).into_owned());
    let ended = if output.status.success() { Ok(()) } else { Err(output.status.to_string()) };
    // psql says there what the server said; others warn of themselves, or say what ended them.
    if ended.is_err() || errors.starts_with("psql:") {
        text.push_str(&errors);
    }
    Printed { lines: text.lines().map(same_everywhere).collect(), ended }
}

/// The output of a process, which is killed when it takes too long.
fn bounded(mut child: std::process::Child, start: Instant) -> std::io::Result<Output> {
    let (mut out, mut err) = (child.stdout.take(), child.stderr.take());
    let read = |from: Option<Box<dyn std::io::Read + Send>>| {
        std::thread::spawn(move || {
            let mut all = Vec::new();
            let done = from.map_or(Ok(0), |mut from| from.read_to_end(&mut all));
            done.map(|_| all)
        })
    };
    let stdout = read(out.take().map(|o| Box::new(o) as _));
    let stderr = read(err.take().map(|e| Box::new(e) as _));
    let status = loop {
        match child.try_wait()? {
            Some(status) => break status,
            None if start.elapsed() > LIMIT => {
                child.kill()?;
                break child.wait()?;
            }
            None => std::thread::sleep(Duration::from_millis(20)),
        }
    };
    let joined = |t: std::thread::JoinHandle<std::io::Result<Vec<u8>>>| t.join().expect("reading does not panic");
    Ok(Output { status, stdout: joined(stdout)?, stderr: joined(stderr)? })
}

/// A line without what differs between two connections to the same server.
fn same_everywhere(line: &str) -> String {
    let mut line = line.to_owned();
    for before in ["server process with PID ", "pg_temp_", "lo_import ", "lo_unlink ", "127.0.0.1\", port "] {
        if let Some(at) = line.find(before) {
            let digits = at + before.len();
            let end = line[digits..].find(|c: char| !c.is_ascii_digit()).map_or(line.len(), |n| digits + n);
            line.replace_range(digits..end, "N");
        }
    }
    line
}

/// The lines that differ, as `step: direct | through the endpoint`.
pub fn differences(direct: &Printed, through: &Printed) -> Vec<String> {
    let mut all = Vec::new();
    if let Err(status) = &through.ended {
        all.push(format!("ended with {status}"));
    }
    let (count, nothing) = (direct.lines.len().max(through.lines.len()), String::new());
    for n in 0..count {
        let (a, b) = (direct.lines.get(n).unwrap_or(&nothing), through.lines.get(n).unwrap_or(&nothing));
        if a != b {
            all.push(format!("line {}: {a} | {b}", n + 1));
        }
    }
    all
}
