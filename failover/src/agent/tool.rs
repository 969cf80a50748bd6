//! Running PostgreSQL's programs with a deadline and bounded output.

use std::io;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};
use tokio::process::Command;

/// Most bytes of a program's output that are kept: the last ones of stderr, the first ones of stdout.
const OUTPUT_MAX: usize = 256 * 1024;

/// What a program printed when it succeeded.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) stdout: String,
}

/// A program that did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    /// It could not be started.
    #[error("could not run {program}")]
    Start {
        /// Its name.
        program: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It ended with an error.
    #[error("{program} failed ({status}): {stderr}")]
    Failed {
        /// Its name.
        program: String,
        /// Exit status.
        status: String,
        /// The end of what it printed.
        stderr: String,
    },
    /// It took too long and was killed.
    #[error("{program} was not done after {after:?} and was killed")]
    TimedOut {
        /// Its name.
        program: String,
        /// The bound.
        after: Duration,
    },
    /// It printed something else than expected.
    #[error("{program} printed something unexpected")]
    Output {
        /// Its name.
        program: String,
    },
}

/// Run to the end. Killed when the future is dropped or the bound is exceeded.
pub(crate) async fn run(command: Command, bound: Duration) -> Result<Output, ToolError> {
    let mut stdout = String::new();
    run_lines(
        command,
        bound,
        |line| {
            if stdout.len() + line.len() < OUTPUT_MAX {
                stdout.push_str(line);
                stdout.push('\n');
            }
        },
        |_| {},
    )
    .await?;
    Ok(Output { stdout })
}

/// Run to the end, giving each line of stdout and of stderr (where a carriage return ends a line too) to its function.
pub(crate) async fn run_lines(
    mut command: Command,
    bound: Duration,
    mut out: impl FnMut(&str),
    mut err: impl FnMut(&str),
) -> Result<(), ToolError> {
    let program = command.as_std().get_program().to_string_lossy().rsplit('/').next().unwrap_or("").to_owned();
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command.env("LC_ALL", "C").env("TZ", "UTC").env_remove("PGOPTIONS").env_remove("PGPASSWORD");
    let start = |source| ToolError::Start { program: program.clone(), source };
    // A program that outlives its agent would work on files that the next agent replaces. The kernel counts the thread
    // that starts it as its parent: a worker of the runtime, which lives as long as the runtime.
    // SAFETY: prctl with PR_SET_PDEATHSIG takes integers only, touches no memory of ours and is async-signal-safe.
    unsafe {
        command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        });
    }
    let mut child = command.spawn().map_err(start)?;
    let missing = || ToolError::Output { program: program.clone() };
    let stdout = child.stdout.take().ok_or_else(missing)?;
    let stderr = child.stderr.take().ok_or_else(missing)?;
    let mut last = String::new();
    let work = async {
        let errors = lines(stderr, true, |line| {
            err(line);
            if last.len() > 4096 {
                let cut = last.char_indices().nth(last.chars().count() / 2).map_or(0, |(i, _)| i);
                last.drain(..cut);
            }
            last.push_str(line.get(..2000).unwrap_or(line));
            last.push(' ');
        });
        tokio::join!(lines(stdout, false, &mut out), errors);
        child.wait().await
    };
    let status = match tokio::time::timeout(bound, work).await {
        Ok(status) => status.map_err(start)?,
        Err(_) => return Err(ToolError::TimedOut { program, after: bound }),
    };
    if status.success() {
        return Ok(());
    }
    Err(ToolError::Failed { program, status: status.to_string(), stderr: last.trim_end().to_owned() })
}

/// Lines of bounded length; what exceeds it is cut off.
async fn lines(from: impl AsyncRead + Unpin, returns_too: bool, mut take: impl FnMut(&str)) {
    let mut reader = BufReader::new(from);
    let mut line = Vec::new();
    loop {
        line.clear();
        match (&mut reader).take(64 * 1024).read_until(b'\n', &mut line).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let text = String::from_utf8_lossy(&line);
        for part in text.trim_end_matches('\n').split(|c| returns_too && c == '\r').filter(|p| !p.is_empty()) {
            take(part);
        }
    }
}
