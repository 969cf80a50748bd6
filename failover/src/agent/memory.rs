//! What an agent must not forget: the highest term promised, and marks about its data directory.
//!
//! One small file, replaced and fsynced before anything is answered or begun that relies on it.

use super::layout::{Layout, write_durably};
use crate::api::Position;
use crate::record::{PolicyRecord, Rearmed, Suspension};
use cluster::Term;
use cluster::timeline::Fork;
use serde::{Deserialize, Serialize};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;

/// An agent process that has worked in this directory. A copy of the directory has another number, but where its host was started
/// since, and there what another process holds may be held by a living one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Worker {
    /// Its random id.
    pub(crate) holder: String,
    /// Boot id of the host.
    pub(crate) host: String,
    /// The directory's device and inode.
    pub(crate) directory: (u64, u64),
}

impl Worker {
    /// This process.
    pub(crate) fn here(layout: &Layout, holder: &str, host: &str) -> io::Result<Self> {
        let found = std::fs::metadata(&layout.root)?;
        let directory = (found.dev(), found.ino());
        Ok(Self { holder: holder.to_owned(), host: host.to_owned(), directory })
    }

    /// Is it certainly over, now that another holds the directory's lock?
    pub(crate) fn is_succeeded_by(&self, other: &Self) -> bool {
        !self.host.is_empty() && (&self.host, self.directory) == (&other.host, other.directory)
    }
}

/// So many are remembered. One that is killed before it has read etcd has given nothing back, and nor may the next.
const MOST_WORKERS: usize = 16;

/// The content of `agent.json`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Memory {
    /// Highest term promised: commands of lower terms are refused for ever.
    pub(crate) promise: Term,
    /// System identifier of the data that was here when it had promised or read something first: what it remembers is that
    /// cluster's, whoever's data is here later. Not known where none was here, and to older versions.
    pub(crate) system_id: Option<String>,
    /// Highest term read as open. It is never recruited for again, whatever an etcd restored from a backup says.
    pub(crate) opened: Term,
    /// Neither counted nor chosen before replay has passed this point: a rewind or clone took WAL back that the node
    /// may have acknowledged.
    pub(crate) quarantine: Option<Position>,
    /// pg_rewind was begun. Until it is cleared, the data directory must not be started.
    pub(crate) rewinding: bool,
    /// Of a directory so marked: no rewind has changed anything, it is whole. Its WAL is examined for each primary that it
    /// might be replaced under.
    pub(crate) condemned: bool,
    /// The WAL past this fork was examined, saved and reported.
    pub(crate) examined: Option<Fork>,
    /// The newest epoch of the policy under which it was ordered to make commits wait: an order of that epoch to let them
    /// through is late.
    pub(crate) armed: u64,
    /// Its commits waited for nobody when it was last primary, so its lease fences it.
    pub(crate) leased: bool,
    /// It has signed for a primary whose agent has lost etcd and may be bound by that: no later term begins here sooner
    /// than a lease's length after a start.
    pub(crate) signed: bool,
    /// The longest that it has signed for since, ms; 0 by versions that did not note it.
    pub(crate) signed_ms: u64,
    /// The mode was strict since commits were last let through: proxies may act on that for a while after it was lowered.
    pub(crate) was_strict: bool,
    /// The newest policy read.
    pub(crate) policy: Option<PolicyRecord>,
    /// The last suspension seen while this node was primary: what it committed past it was unprotected.
    pub(crate) suspended: Option<Suspension>,
    /// Where it ended, once it had and this node was primary still.
    pub(crate) rearmed: Option<Rearmed>,
    /// Who has worked here lately, the last one at the end.
    pub(crate) workers: Vec<Worker>,
}

impl Memory {
    /// Who is certainly over, now that `here` works in their place, which is noted.
    pub(crate) fn succeed(&mut self, here: Worker) -> Vec<String> {
        // Of a host that was started since, or of another directory, none will be over with more certainty some day.
        self.workers.retain(|w| w.is_succeeded_by(&here));
        let over = self.workers.iter().map(|w| w.holder.clone()).collect();
        self.workers.push(here);
        let surplus = self.workers.len().saturating_sub(MOST_WORKERS);
        self.workers.drain(..surplus);
        over
    }

    /// Is anything remembered that counts in its cluster?
    pub(crate) fn remembers(&self) -> bool {
        self.promise > Term(0) || self.opened > Term(0) || self.policy.is_some()
    }

    /// For how long it may have signed at most. `lease_ttl`: the bound in the configuration of now.
    pub(crate) fn signed_for(&self, lease_ttl: Duration) -> Duration {
        if self.signed_ms == 0 { lease_ttl } else { Duration::from_millis(self.signed_ms) }
    }

    /// Of the policy read and the newest one remembered the later: an etcd restored from a backup tells of an older one
    /// until the managers write the remembered one anew. Nothing remembered counts while nothing is read.
    pub(crate) fn in_force(&self, read: Option<&PolicyRecord>) -> Option<PolicyRecord> {
        let read = read?;
        let newer = self.policy.as_ref().filter(|p| p.epoch > read.epoch);
        Some(newer.unwrap_or(read).clone())
    }
}

/// [`Memory`] with its file. Who reads it never waits for the disk.
#[derive(Debug)]
pub(crate) struct Keeper {
    path: PathBuf,
    /// Held while the file is replaced.
    writing: Mutex<()>,
    memory: Mutex<Memory>,
}

/// The file cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// It exists and is not readable.
    #[error("could not read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is damaged. Starting without it could break a promise.
    #[error("{path} is damaged")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

impl Keeper {
    /// Read the file; a missing one is an agent's first start.
    pub(crate) fn open(layout: &Layout) -> Result<Self, MemoryError> {
        let path = layout.memory();
        let memory = match std::fs::read(&path) {
            Ok(text) => {
                serde_json::from_slice(&text).map_err(|source| MemoryError::Damaged { path: path.clone(), source })?
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Memory::default(),
            Err(source) => return Err(MemoryError::Read { path, source }),
        };
        Ok(Self { path, writing: Mutex::new(()), memory: Mutex::new(memory) })
    }

    pub(crate) fn get(&self) -> Memory {
        self.memory.lock().expect("no holder of this lock panics").clone()
    }

    /// Change and make durable. When the disk refuses, nothing has changed.
    pub(crate) fn update(&self, change: impl FnOnce(&mut Memory)) -> io::Result<()> {
        let _writing = self.writing.lock().expect("no holder of this lock panics");
        let before = self.get();
        let mut next = before.clone();
        change(&mut next);
        if next != before {
            let text = serde_json::to_vec_pretty(&next).map_err(io::Error::other)?;
            write_durably(&self.path, &text)?;
            *self.memory.lock().expect("no holder of this lock panics") = next;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Limits, Mode};

    #[test]
    fn an_older_policy_of_a_restored_etcd_is_not_in_force() {
        let policy = |epoch, mode| PolicyRecord {
            epoch,
            voters: Vec::new(),
            k: 1,
            mode,
            suspended: None,
            limits: Limits::default(),
            joint: None,
            rearmed: None,
        };
        let memory = Memory { policy: Some(policy(5, Mode::Strict)), ..Memory::default() };
        let mode = |read: Option<PolicyRecord>| memory.in_force(read.as_ref()).map(|p| (p.epoch, p.mode));
        assert_eq!(mode(Some(policy(3, Mode::Async))), Some((5, Mode::Strict)));
        assert_eq!(
            mode(Some(policy(5, Mode::Async))),
            Some((5, Mode::Async)),
            "what is read, as long as it is not older"
        );
        assert_eq!(mode(Some(policy(6, Mode::Async))), Some((6, Mode::Async)));
        assert_eq!(mode(None), None);
        assert_eq!(Memory::default().in_force(Some(&policy(3, Mode::Async))).map(|p| p.epoch), Some(3));
    }

    #[test]
    fn only_who_worked_in_the_same_directory_since_the_host_was_started_is_certainly_over() {
        let dir = tempfile::tempdir().unwrap();
        let layouts = ["n1", "copy"].map(|name| Layout::new(&dir.path().join(name)));
        layouts.iter().for_each(|l| l.create().unwrap());
        let [old, next] = ["a", "b"].map(|holder| Worker::here(&layouts[0], holder, "boot 1").unwrap());
        assert!(old.is_succeeded_by(&next));
        assert!(!old.is_succeeded_by(&Worker::here(&layouts[0], "b", "boot 2").unwrap()));
        assert!(!old.is_succeeded_by(&Worker::here(&layouts[1], "b", "boot 1").unwrap()));
        let unknown = Worker { host: String::new(), ..old };
        assert!(!unknown.is_succeeded_by(&unknown));
    }

    #[test]
    fn all_who_worked_here_since_the_host_was_started_are_over_however_short_they_lived() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path());
        layout.create().unwrap();
        let here = |holder: &str, host: &str| Worker::here(&layout, holder, host).unwrap();
        let mut memory = Memory::default();
        assert!(memory.succeed(here("a", "boot 1")).is_empty());
        assert_eq!(memory.succeed(here("b", "boot 1")), ["a"]);
        assert_eq!(memory.succeed(here("c", "boot 1")), ["a", "b"], "b may not have come to give back what a held");
        assert!(memory.succeed(here("d", "boot 2")).is_empty());
        assert_eq!(memory.succeed(here("e", "boot 2")), ["d"]);
        (0..99).for_each(|i| drop(memory.succeed(here(&i.to_string(), "boot 2"))));
        assert_eq!(memory.workers.len(), MOST_WORKERS);
    }

    #[test]
    fn a_promise_survives_a_restart_and_a_damaged_file_stops_the_agent() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path());
        layout.create().unwrap();
        let keeper = Keeper::open(&layout).unwrap();
        assert_eq!(keeper.get().promise, Term(0));
        keeper.update(|m| m.promise = Term(7)).unwrap();
        assert_eq!(Keeper::open(&layout).unwrap().get().promise, Term(7));
        std::fs::write(layout.memory(), b"{\"promise\":").unwrap();
        assert!(matches!(Keeper::open(&layout), Err(MemoryError::Damaged { .. })));
    }
}
