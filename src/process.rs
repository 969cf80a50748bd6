//! What the process does to itself before it starts any role: give up root, raise its limit of open files, log.

use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{Uid, User, initgroups, setgid, setuid};
use serde::{Deserialize, Serialize};
use std::ffi::CString;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::TryInitError;

/// Form of the log on standard error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// One line per event, for people.
    #[default]
    Text,
    /// One JSON object per line, for collectors.
    Json,
}

/// Why the process could not become what the configuration asks for.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// An agent started by root without a user to become.
    #[error(
        "started as root with the role agent, and process.user is not set: name the unprivileged user to become, \
         because PostgreSQL refuses to run as root"
    )]
    RootWithoutUser,
    /// The named user is root.
    #[error("process.user = {0:?} is root: name an unprivileged user")]
    UserIsRoot(String),
    /// No such user.
    #[error("process.user = {0:?} does not exist on this machine")]
    NoSuchUser(String),
    /// Started by another user than the named one, and not by root.
    #[error("process.user = {wanted:?}, but started as {have:?}: only root can become another user")]
    OtherUser {
        /// As configured.
        wanted: String,
        /// As started.
        have: String,
    },
    /// A system call failed.
    #[error("could not {what}")]
    System {
        /// What was tried.
        what: String,
        /// Why not.
        #[source]
        source: nix::Error,
    },
}

fn system(what: impl Into<String>) -> impl FnOnce(nix::Error) -> ProcessError {
    let what = what.into();
    move |source| ProcessError::System { what, source }
}

/// Become `user` when started by root: supplementary groups, group, then user, in this order, and for good.
/// Must run before any thread starts: Linux keeps credentials per thread. Without a user root stays root, unless
/// `never_root`.
///
/// # Errors
/// Root where it must not be, an unknown user, or a user that is not ours to become.
pub fn drop_privileges(user: Option<&str>, never_root: bool) -> Result<(), ProcessError> {
    let name = match (user, Uid::effective().is_root()) {
        (Some(name), true) => name,
        (None, true) if never_root => return Err(ProcessError::RootWithoutUser),
        (Some(name), false) => return same_user(name),
        (None, _) => return Ok(()),
    };
    let found = User::from_name(name).map_err(system(format!("look up user {name:?}")))?;
    let found = found.ok_or_else(|| ProcessError::NoSuchUser(name.to_owned()))?;
    if found.uid.is_root() {
        return Err(ProcessError::UserIsRoot(name.to_owned()));
    }
    // The kernel forgets the parent-death signal when credentials change; a supervisor that set it relies on it.
    let parent_death = prctl::get_pdeathsig().map_err(system("read the parent-death signal"))?;
    let c_name = CString::new(name).map_err(|_| ProcessError::NoSuchUser(name.to_owned()))?;
    initgroups(&c_name, found.gid).map_err(system(format!("set the groups of {name}")))?;
    setgid(found.gid).map_err(system(format!("become group {}", found.gid)))?;
    setuid(found.uid).map_err(system(format!("become user {name}")))?;
    assert!(setuid(Uid::from_raw(0)).is_err(), "root must not be regained after it was given up");
    prctl::set_pdeathsig(parent_death).map_err(system("set the parent-death signal again"))
}

/// Not root: the named user must be who we are already.
fn same_user(wanted: &str) -> Result<(), ProcessError> {
    let uid = Uid::effective();
    let have = User::from_uid(uid).ok().flatten().map_or_else(|| uid.to_string(), |u| u.name);
    if have == wanted { Ok(()) } else { Err(ProcessError::OtherUser { wanted: wanted.to_owned(), have }) }
}

/// Raise the soft limit of open files to the hard one: a proxy needs two descriptors per session.
///
/// # Errors
/// The system refused.
pub fn raise_open_files() -> Result<u64, ProcessError> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(system("read the limit of open files"))?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map_err(system("raise the limit of open files"))?;
    Ok(hard)
}

/// Log to standard error. `level` is a filter as in `info` or `info,proxy=debug`, checked with the configuration.
///
/// # Errors
/// A logger exists already.
pub fn start_log(format: LogFormat, level: &str) -> Result<(), TryInitError> {
    use tracing_subscriber::util::SubscriberInitExt;
    let filter = EnvFilter::try_new(level).unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(true);
    // It would complain of a line that cannot be written (a full disk, a reader that has gone) on standard error as well, and
    // panic.
    let builder = builder.log_internal_errors(false);
    match format {
        LogFormat::Text => builder.with_ansi(false).finish().try_init(),
        LogFormat::Json => builder.json().flatten_event(true).finish().try_init(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unprivileged_process_cannot_be_told_to_become_another_user() {
        if Uid::effective().is_root() {
            let e = drop_privileges(Some("no_such_user_here"), true).unwrap_err();
            assert!(matches!(e, ProcessError::NoSuchUser(_)), "{e}");
            assert!(matches!(drop_privileges(Some("root"), false), Err(ProcessError::UserIsRoot(_))));
            assert!(matches!(drop_privileges(None, true), Err(ProcessError::RootWithoutUser)));
        } else {
            assert!(matches!(drop_privileges(Some("root"), false), Err(ProcessError::OtherUser { .. })));
            assert!(drop_privileges(None, true).is_ok());
        }
    }
}
