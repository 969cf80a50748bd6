//! Taking over a data directory whose PostgreSQL ran without us (see `crate::adopt`): stop it cleanly, move it to where
//! ours is. A move within a file system is one step: the directory is there or here, never half.

use super::Agent;
use super::control::Control;
use super::layout::fsync_dir;
use super::tool::{self, ToolError};
use crate::store::StoreError;
use nix::unistd::{AccessFlags, access};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// It was not taken over; it is where and as it was, stopped at most. Tried again.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AdoptError {
    #[error("{} is of another cluster: system identifier {have}, {want} is being adopted", path.display())]
    OtherCluster { path: PathBuf, have: String, want: String },
    #[error("{} is not shut down cleanly: {state}", path.display())]
    NotClean { path: PathBuf, state: String },
    #[error("{} cannot be moved to {}", from.display(), to.display())]
    Move {
        from: PathBuf,
        to: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the adoption was taken back: {} stays where it is; if it was stopped, start it as before", path.display())]
    TakenBack { path: PathBuf },
    #[error(
        "whether the adoption still stands could not be asked, and {} {}", path.display(),
        if *stopped { "stays where it is, stopped for its turn" } else { "serves on" }
    )]
    Unasked {
        path: PathBuf,
        stopped: bool,
        #[source]
        source: crate::adopt::AdoptError,
    },
    #[error(transparent)]
    Tool(#[from] ToolError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Could `from` be renamed to something in `root`? As far as can be told without doing it.
fn check_movable(from: &Path, root: &Path) -> io::Result<()> {
    let above = from.parent().ok_or_else(|| io::Error::other("the root directory cannot be moved"))?;
    // A link would be moved itself.
    let device = std::fs::symlink_metadata(from)?.dev();
    if device != std::fs::metadata(above)?.dev() {
        return Err(io::Error::other(
            "it is a mount point; let agent.adopt and agent.data_dir be below one mount point",
        ));
    }
    if device != std::fs::metadata(root)?.dev() {
        return Err(io::Error::other("agent.data_dir is in another file system"));
    }
    access(above, AccessFlags::W_OK | AccessFlags::X_OK)
        .map_err(|errno| io::Error::new(io::Error::from(errno).kind(), format!("{}: {errno}", above.display())))
}

impl Agent {
    /// The directory to take over, as long as it is there and we have none.
    pub(super) fn to_adopt(&self) -> Option<&Path> {
        let path = self.env.config.adopt.as_path();
        let there = !path.as_os_str().is_empty() && path.join("global/pg_control").exists();
        (there && !self.env.layout.has_data()).then_some(path)
    }

    /// `Some` while there is a directory to take over: has its turn come?
    pub(super) fn adoption(&self) -> Option<bool> {
        self.to_adopt()?;
        let records = self.records.borrow();
        Some(records.adopt.as_ref().is_some_and(|a| a.is_turn_of(&self.env.config.node)))
    }

    /// System identifier of the directory to take over.
    pub(super) async fn system_id_to_adopt(&self) -> Option<String> {
        let path = self.to_adopt()?;
        Control::of(&self.env, path).await.ok().map(|c| c.system_id)
    }

    /// Take it over. The caller holds `actuator`.
    pub(super) async fn take_over(&self) -> Result<(), AdoptError> {
        let Some(from) = self.to_adopt().map(Path::to_owned) else { return Ok(()) };
        let want = self.records.borrow().adopt.as_ref().map(|a| a.system_id.clone()).unwrap_or_default();
        let control = Control::of(&self.env, &from).await?;
        if control.system_id != want {
            return Err(AdoptError::OtherCluster { path: from, have: control.system_id, want });
        }
        let to = self.env.layout.data();
        let immovable = |source| AdoptError::Move { from: from.clone(), to: to.clone(), source };
        // Before anything is stopped: a server whose directory cannot be moved goes on serving.
        check_movable(&from, &self.env.layout.root).map_err(immovable)?;
        self.must_have_its_turn(&from, false).await?;
        self.rejoining("taking over");
        if from.join("postmaster.pid").exists() {
            tracing::info!(node = %self.env.config.node, path = %from.display(), "stopping the postgres to adopt");
            let bound = self.env.config.stop_timeout;
            let mut stop = self.env.program("pg_ctl");
            stop.arg("stop").arg("-D").arg(&from).args(["-m", "fast", "-w", "-t"]).arg(bound.as_secs().to_string());
            tool::run(stop, bound + Duration::from_secs(5)).await?;
        }
        self.must_have_its_turn(&from, true).await?;
        let control = Control::of(&self.env, &from).await?;
        if !control.clean() {
            return Err(AdoptError::NotClean { path: from, state: control.state });
        }
        let moved = std::fs::rename(&from, &to).and_then(|()| {
            from.parent().map_or(Ok(()), fsync_dir)?;
            fsync_dir(&self.env.layout.root)
        });
        moved.map_err(immovable)?;
        tracing::info!(
            node = %self.env.config.node, from = %from.display(), timeline = control.timeline.0,
            lsn = %control.checkpoint, "adopted a data directory"
        );
        self.look_again(self.env.config.probe_timeout).await;
        Ok(())
    }

    /// Whoever has taken the adoption back would find it in a place where nothing starts it. What was read of the term is kept when
    /// etcd forgets it, so this is asked for.
    async fn must_have_its_turn(&self, path: &Path, stopped: bool) -> Result<(), AdoptError> {
        let has_turn = match crate::adopt::standing(&*self.store, &self.env.keys).await {
            Ok(standing) => standing.begun.is_some_and(|a| a.is_turn_of(&self.env.config.node)),
            // A server that was stopped for its turn, as etcd had it then, is not to wait for etcd. One that serves is.
            Err(crate::adopt::AdoptError::Store(_)) if stopped => self.adoption() == Some(true),
            Err(source) => return Err(AdoptError::Unasked { path: path.to_owned(), stopped, source }),
        };
        if has_turn {
            return Ok(());
        }
        Err(AdoptError::TakenBack { path: path.to_owned() })
    }

    /// The primary's directory is ours: the managers may begin the term that starts it.
    pub(super) async fn finish_adoption(&self) -> Result<(), AdoptError> {
        let due =
            self.records.borrow().adopt.as_ref().is_some_and(|a| a.take_primary && a.primary == self.env.config.node);
        if !due || !self.env.layout.has_data() {
            return Ok(());
        }
        crate::adopt::finish(&*self.store, &self.env.keys).await?;
        self.read_records().await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_moved_is_found_out_before_its_server_is_stopped() {
        let dir = tempfile::tempdir().unwrap();
        let (from, root) = (dir.path().join("old"), dir.path().join("agent"));
        [&from, &root].into_iter().for_each(|d| std::fs::create_dir(d).unwrap());
        check_movable(&from, &root).unwrap();
        let refused = |from: &Path, root: &Path| check_movable(from, root).unwrap_err().to_string();
        assert!(refused(&from, Path::new("/proc")).contains("another file system"));
        assert!(refused(Path::new("/proc"), &root).contains("mount point"));
        assert!(refused(Path::new("/proc/self"), &root).contains("another file system"));
    }

    #[test]
    fn a_server_that_was_stopped_for_its_turn_is_not_said_to_serve() {
        let told = |stopped| {
            let source = crate::adopt::AdoptError::TimedOut { what: "reading the adoption" };
            AdoptError::Unasked { path: "/old".into(), stopped, source }.to_string()
        };
        assert!(told(false).ends_with("and /old serves on"), "{}", told(false));
        assert!(told(true).ends_with("and /old stays where it is, stopped for its turn"), "{}", told(true));
    }
}
