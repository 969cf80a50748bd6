//! Taking over a data directory whose PostgreSQL ran without us (see `crate::adopt`): stop it cleanly, move it to where
//! ours is. A move within a file system is one step: the directory is there or here, never half.

use super::Agent;
use super::control::Control;
use super::layout::fsync_dir;
use super::tool::{self, ToolError};
use crate::store::{StoreError, Txn};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// It was not taken over; it is where and as it was, stopped at most. Tried again.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AdoptError {
    #[error("{} is of another cluster: system identifier {have}, {want} is being adopted", path.display())]
    OtherCluster { path: PathBuf, have: String, want: String },
    #[error("{} is not shut down cleanly: {state}", path.display())]
    NotClean { path: PathBuf, state: String },
    #[error("{} could not be moved to {}; both must be in one file system", from.display(), to.display())]
    Move {
        from: PathBuf,
        to: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Tool(#[from] ToolError),
    #[error(transparent)]
    Store(#[from] StoreError),
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
        let turn = |a: &crate::record::AdoptRecord| a.primary != self.env.config.node || a.take_primary;
        Some(records.adopt.as_ref().is_some_and(turn))
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
        self.rejoining("taking over");
        if from.join("postmaster.pid").exists() {
            tracing::info!(node = %self.env.config.node, path = %from.display(), "stopping the postgres to adopt");
            let bound = self.env.config.stop_timeout;
            let mut stop = self.env.program("pg_ctl");
            stop.arg("stop").arg("-D").arg(&from).args(["-m", "fast", "-w", "-t"]).arg(bound.as_secs().to_string());
            tool::run(stop, bound + Duration::from_secs(5)).await?;
        }
        let control = Control::of(&self.env, &from).await?;
        if !control.clean() {
            return Err(AdoptError::NotClean { path: from, state: control.state });
        }
        let to = self.env.layout.data();
        let moved = std::fs::rename(&from, &to).and_then(|()| {
            from.parent().map_or(Ok(()), fsync_dir)?;
            fsync_dir(&self.env.layout.root)
        });
        moved.map_err(|source| AdoptError::Move { from: from.clone(), to: to.clone(), source })?;
        tracing::info!(
            node = %self.env.config.node, from = %from.display(), timeline = control.timeline.0,
            lsn = %control.checkpoint, "adopted a data directory"
        );
        self.look_again(self.env.config.probe_timeout).await;
        Ok(())
    }

    /// The primary's directory is ours: the managers may begin the term that starts it.
    pub(super) async fn finish_adoption(&self) -> Result<(), AdoptError> {
        let due =
            self.records.borrow().adopt.as_ref().is_some_and(|a| a.take_primary && a.primary == self.env.config.node);
        if !due || !self.env.layout.has_data() {
            return Ok(());
        }
        let keys = &self.env.keys;
        self.store.txn(Txn::new().delete(keys.adopt()).delete(keys.pause())).await?;
        self.read_records().await?;
        Ok(())
    }
}
