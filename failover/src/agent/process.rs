//! Processes of PostgreSQL: which belong to our data directory, whether they live, and how they end.
//!
//! A process is ours when it is called `postgres` and its working directory is our data directory: every PostgreSQL
//! process changes there, also the backends that a killed postmaster leaves behind, which belong to no process group
//! or parent of ours any more. A zombie has no working directory, so it never counts as alive.
//!
//! The writer of the log is let end by itself: it has no part in the data, and what the others said last to write.

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;
use tokio::io::unix::AsyncFd;

/// So long the writer of the log may take for what was said last.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Become the one to whom orphans below us are given, so that they can be reaped and none stays a zombie.
pub(crate) fn adopt_orphans() -> io::Result<()> {
    // SAFETY: prctl with PR_SET_CHILD_SUBREAPER takes integers only and touches no memory of ours.
    let done = unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Every live `postgres` process whose working directory is `data`.
///
/// # Errors
/// When they cannot be looked for: there may be some then.
fn of_directory(data: &Path) -> io::Result<Vec<Pid>> {
    let Some(data) = unless_gone(data.canonicalize())? else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for pid in pids()? {
        if is_postgres_in(pid, &data)? {
            found.push(pid);
        }
    }
    Ok(found)
}

/// The live postmaster of `data`, by its pid file.
///
/// # Errors
/// When that cannot be looked at (no descriptor is free, the disk fails): it may run then.
pub(crate) fn postmaster_of(data: &Path) -> io::Result<Option<Pid>> {
    // The directory's path, on a later line, may be of any bytes.
    let Some(text) = unless_gone(fs::read(data.join("postmaster.pid")))? else { return Ok(None) };
    let text = String::from_utf8_lossy(&text);
    let Some(pid) = text.lines().next().and_then(|line| line.trim().parse().ok()) else { return Ok(None) };
    let Some(data) = unless_gone(data.canonicalize())? else { return Ok(None) };
    let pid = Pid::from_raw(pid);
    Ok(is_postgres_in(pid, &data)?.then_some(pid))
}

/// What is there no more is no error; a process may end while it is looked at.
fn unless_gone<T>(read: io::Result<T>) -> io::Result<Option<T>> {
    match read {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Another user's process, of which we may see nothing, is not ours.
fn unless_theirs<T>(read: io::Result<T>) -> io::Result<Option<T>> {
    match read {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(None),
        read => unless_gone(read),
    }
}

fn pids() -> io::Result<Vec<Pid>> {
    let mut pids = Vec::new();
    for entry in fs::read_dir("/proc")? {
        pids.extend(entry?.file_name().to_str().and_then(|name| name.parse().ok()).map(Pid::from_raw));
    }
    Ok(pids)
}

fn is_postgres_in(pid: Pid, data: &Path) -> io::Result<bool> {
    let name = unless_theirs(fs::read(format!("/proc/{pid}/comm")))?;
    if !name.is_some_and(|name| is_name_of_postgres(&name)) {
        return Ok(false);
    }
    let works_in = unless_theirs(fs::read_link(format!("/proc/{pid}/cwd")))?;
    Ok(works_in.is_some_and(|cwd| cwd == data))
}

/// `postmaster` is the name under which old packages start it. Other programs' names may be of any bytes.
fn is_name_of_postgres(comm: &[u8]) -> bool {
    matches!(comm.trim_ascii_end(), b"postgres" | b"postmaster")
}

/// The writer of the log (`logging_collector`). It has given up the shared memory, without which nothing can be written to the
/// data, whatever an extension may call its processes.
fn is_log_writer(pid: Pid) -> bool {
    let title = fs::read(format!("/proc/{pid}/cmdline"));
    // address perms offset device inode path
    let shares =
        |line: &str| line.split_whitespace().nth(1).is_none_or(|perms| perms.contains('w') && perms.ends_with('s'));
    let alone = || fs::read_to_string(format!("/proc/{pid}/maps")).is_ok_and(|maps| !maps.lines().any(shares));
    title.is_ok_and(|title| is_title_of_log_writer(&title)) && alone()
}

/// `postgres: logger`, with the cluster's name in between if it has one. A session's title goes on behind its user's name.
fn is_title_of_log_writer(title: &[u8]) -> bool {
    let title = title.strip_prefix(b"postgres: ").unwrap_or_default();
    let end = title.iter().rposition(|b| !matches!(b, 0 | b' ')).map_or(0, |last| last + 1);
    title[..end] == *b"logger" || title[..end].ends_with(b": logger")
}

/// They end at the end of their pipe, when they have written what is in it, if nobody else has kept its other end.
fn let_end(writers: &[Pid]) {
    for pid in writers {
        let pid = *pid;
        match Death::of(pid) {
            Ok(None) => {}
            Ok(Some(death)) => drop(tokio::spawn(async move {
                if tokio::time::timeout(LAST_WORDS, death.wait()).await.is_err() {
                    death.hasten();
                    death.wait().await;
                }
                reap_one(pid);
            })),
            Err(_) => send(pid, Signal::SIGKILL),
        }
    }
}

/// The postmaster has ended: wait until the rest has, for as long as the log's writer may take.
pub(crate) async fn let_speak(data: &Path) {
    let deadline = tokio::time::Instant::now() + LAST_WORDS;
    while of_directory(data).map_or(true, |left| !left.is_empty()) && tokio::time::Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(5)).await;
        reap();
    }
}

/// Send a signal; a process that is gone is no error.
pub(crate) fn send(pid: Pid, signal: Signal) {
    match kill(pid, signal) {
        Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
        Err(error) => tracing::warn!(pid = pid.as_raw(), %error, "could not signal a postgres process"),
    }
}

/// End a WAL receiver of `data` that a query told of. Its number may be another program's by now.
pub(crate) fn end_receiver(data: &Path, pid: Pid) {
    let is_ours = data.canonicalize().and_then(|data| is_postgres_in(pid, &data));
    if matches!(is_ours, Ok(true)) {
        send(pid, Signal::SIGTERM);
    }
}

/// SIGKILL everything of `data` until nothing is left, at most `bound`. False: something is still there. The writer of the log
/// may outlive this by [`LAST_WORDS`].
///
/// # Errors
/// When it cannot be seen what is left, not even at the end of `bound`.
///
/// `still` is asked after each look for processes and before they are killed: once it says no, what was found may have
/// been started just now by somebody else, and is left alone.
pub(crate) async fn kill_all(data: &Path, bound: Duration, still: impl Fn() -> bool) -> io::Result<bool> {
    let deadline = tokio::time::Instant::now() + bound;
    loop {
        let found = of_directory(data).map(|all| all.into_iter().partition::<Vec<_>, _>(|pid| !is_log_writer(*pid)));
        if let Ok((left, writers)) = &found
            && left.is_empty()
        {
            if still() {
                let_end(writers);
            }
            // Clients may wait for the answer.
            drop(tokio::task::spawn_blocking(reap));
            return Ok(true);
        }
        if !still() {
            return Ok(false);
        }
        for pid in found.iter().flat_map(|(left, _)| left) {
            send(*pid, Signal::SIGKILL);
        }
        if tokio::time::Instant::now() >= deadline {
            return found.map(|_| false);
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
        reap();
    }
}

/// SIGKILL every program that an agent which was killed has left at work below `root`, at most `bound`. False:
/// something is still there.
///
/// # Errors
/// When it cannot be seen what is left.
///
/// They find their files by name: a rewind that goes on while the next agent puts a fresh copy in its place would write
/// into that copy. Only for whoever holds the directory's lock.
pub(crate) async fn kill_tools(root: &Path, bound: Duration) -> io::Result<bool> {
    let Some(root) = unless_gone(root.canonicalize())? else { return Ok(true) };
    let deadline = tokio::time::Instant::now() + bound;
    loop {
        let mut left = false;
        for pid in pids()? {
            if is_tool_below(pid, &root)? {
                tracing::warn!(pid = pid.as_raw(), "ending a program that an earlier agent left");
                send(pid, Signal::SIGKILL);
                left = true;
            }
        }
        if !left {
            return Ok(true);
        }
        if tokio::time::Instant::now() >= deadline {
            return Ok(false);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn is_tool_below(pid: Pid, root: &Path) -> io::Result<bool> {
    let Some(line) = unless_theirs(fs::read(format!("/proc/{pid}/cmdline")))? else { return Ok(false) };
    let words: Vec<&[u8]> = line.split(|b| *b == 0).collect();
    let program = words.first().and_then(|w| w.rsplit(|b| *b == b'/').next()).unwrap_or_default();
    let tool = matches!(program, b"pg_rewind" | b"pg_basebackup" | b"pg_waldump" | b"initdb")
        // What pg_rewind and initdb run.
        || program == b"postgres" && words.iter().any(|w| matches!(*w, b"--single" | b"--boot"));
    let below = |word: &&[u8]| Path::new(std::ffi::OsStr::from_bytes(word)).starts_with(root);
    Ok(tool && words.iter().any(below))
}

/// Collect dead `postgres` processes that are our children, by birth or by adoption. Servers and their backends live
/// in sessions of their own; children in ours (as `postgres --version`) belong to whoever started and awaits them.
pub(crate) fn reap() {
    let me = std::process::id();
    let session = nix::unistd::getsid(None).ok().map(|s| s.to_string());
    for pid in pids().into_iter().flatten() {
        let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
        let Some((name, rest)) = stat.split_once('(').and_then(|(_, r)| r.rsplit_once(')')) else { continue };
        let mut fields = rest.split_whitespace();
        let (state, parent) = (fields.next(), fields.next().and_then(|p| p.parse::<u32>().ok()));
        let theirs = fields.nth(1).map(str::to_owned);
        let served = matches!(name, "postgres" | "postmaster") && theirs.is_some() && theirs != session;
        if state == Some("Z") && parent == Some(me) && served {
            reap_one(pid);
        }
    }
}

/// Collect this process if it is dead and our child.
pub(crate) fn reap_one(pid: Pid) {
    // Not our child, or somebody was faster: both is well.
    let _ = waitpid(pid, Some(WaitPidFlag::WNOHANG));
}

/// Tells when a process has ended, within milliseconds and also when it is not our child.
pub(crate) struct Death(AsyncFd<OwnedFd>);

impl Death {
    /// Watch `pid`. `None` when it does not exist.
    pub(crate) fn of(pid: Pid) -> io::Result<Option<Self>> {
        // SAFETY: pidfd_open takes integers only; the descriptor it returns is ours alone.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) };
        if fd < 0 {
            let error = io::Error::last_os_error();
            return if error.raw_os_error() == Some(libc::ESRCH) { Ok(None) } else { Err(error) };
        }
        let fd = i32::try_from(fd).map_err(io::Error::other)?;
        // SAFETY: just opened, owned by nobody else.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: an OwnedFd stays the same open descriptor for as long as AsyncFd owns it.
        let fd = unsafe { AsyncFd::register_with_interest(fd, tokio::io::Interest::READABLE) };
        Ok(Some(Self(fd.map_err(io::Error::from)?)))
    }

    /// Wait until it has ended. Cancel-safe.
    pub(crate) async fn wait(&self) {
        // The descriptor becomes readable when the process ends; an error of the reactor means shutdown.
        if self.0.readable().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// SIGKILL it: this very process, and no other that has its number by now.
    fn hasten(&self) {
        let (fd, no_info) = (self.0.get_ref().as_raw_fd(), std::ptr::null::<libc::siginfo_t>());
        // SAFETY: pidfd_send_signal reads the descriptor, which is open, and no memory where there is no siginfo.
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, libc::SIGKILL, no_info, 0) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pid_file_that_cannot_be_read_is_no_sign_of_a_dead_postmaster() {
        let data = tempfile::tempdir().unwrap();
        let file = data.path().join("postmaster.pid");
        assert_eq!(postmaster_of(&data.path().join("none")).unwrap(), None);
        assert_eq!(postmaster_of(data.path()).unwrap(), None);
        // Another program has its number now, or nobody has, or it is not written yet.
        let of_ours = format!("{}\n", std::process::id());
        let bytes = [of_ours.as_bytes(), b"/\xff\n"].concat();
        for text in [of_ours.as_bytes(), &bytes, b"999999999\n", b""] {
            fs::write(&file, text).unwrap();
            assert_eq!(postmaster_of(data.path()).unwrap(), None);
        }
        fs::remove_file(&file).unwrap();
        fs::create_dir(&file).unwrap();
        postmaster_of(data.path()).unwrap_err();
    }

    #[test]
    fn the_writer_of_the_log_is_known_by_its_title_and_by_having_no_shared_memory() {
        for (title, is) in [
            (&b"postgres: logger \0\0\0"[..], true),
            (b"postgres: n1: logger", true),
            (b"postgres: n1: checkpointer ", false),
            (b"postgres: n1: logger shop [local] idle", false),
            (b"postgres: n1: app logger [local] idle", false),
            (b"postgres: n1: my logger", false),
            (b"logger", false),
            (b"", false),
        ] {
            assert_eq!(is_title_of_log_writer(title), is, "{}", String::from_utf8_lossy(title));
        }
        assert!(!is_log_writer(Pid::this()));
    }

    #[test]
    fn a_receiver_whose_number_is_another_programs_by_now_is_not_ended() {
        use std::os::unix::process::ExitStatusExt;
        let mut other = std::process::Command::new("sleep").arg("600").current_dir("/").spawn().unwrap();
        end_receiver(Path::new("/"), Pid::from_raw(other.id().try_into().unwrap()));
        other.kill().unwrap();
        assert_eq!(other.wait().unwrap().signal(), Some(libc::SIGKILL));
    }

    #[tokio::test]
    async fn nothing_is_left_only_where_that_was_seen() {
        let at = tempfile::tempdir().unwrap();
        assert!(kill_all(at.path(), Duration::ZERO, || true).await.unwrap());
        assert!(kill_all(&at.path().join("none"), Duration::ZERO, || true).await.unwrap());
        let unseen = at.path().join("loop");
        std::os::unix::fs::symlink(&unseen, &unseen).unwrap();
        kill_all(&unseen, Duration::ZERO, || true).await.unwrap_err();
        kill_tools(&unseen, Duration::ZERO).await.unwrap_err();
    }
}
