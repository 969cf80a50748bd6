//! Is there room for a copy? Asked before one begins: it is made beside what is there, costs the primary its disk and network,
//! and pg_basebackup finds out when it has been at it for long.

use super::Agent;
use super::rejoin::{RejoinError, Source};
use super::rewind::remove_tree;
use super::sql::{Sql, SqlError};
use nix::sys::statfs::{EXT4_SUPER_MAGIC, XFS_SUPER_MAGIC, statfs};
use nix::sys::statvfs::statvfs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Bound on adding up the sizes of all files of the primary.
const SIZE_BOUND: Duration = Duration::from_secs(60);
/// Bound on asking for the tablespaces.
const ASK_BOUND: Duration = Duration::from_secs(5);

/// Why a copy cannot be made here.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoRoom {
    #[error(
        "not copied: it would need {needed} bytes or more in {} beside what is there, and {free} are free; what is in `data` there \
         was looked through and is to be replaced, so with the agent stopped it may be removed",
        root.display()
    )]
    TooSmall { needed: u64, free: u64, root: PathBuf },
    #[error(
        "not copied: the directory {} of the primary's tablespace is not empty here, as pg_basebackup needs it; what is in `data` of \
         this node was looked through and is to be replaced, so with the agent stopped both may be removed",
        directory.display()
    )]
    TablespaceThere { directory: PathBuf },
}

impl Agent {
    /// Can the source be copied here, as far as that can be told? What is here has been examined. The caller holds `actuator`.
    pub(super) async fn has_room_for(&self, source: &Source) -> Result<(), RejoinError> {
        for left in [self.env.layout.data_new(), self.env.layout.data_old()] {
            let what = "what a copy has left could not be removed";
            remove_tree(&left).map_err(|source| RejoinError::File { what, source })?;
        }
        let ask = |e| RejoinError::Ask { node: source.node.clone(), source: e };
        let tablespaces = tablespaces(&source.sql).await.map_err(ask)?;
        if let Some(directory) = tablespaces.iter().find(|d| !is_empty(d)) {
            return Err(NoRoom::TablespaceThere { directory: directory.clone() }.into());
        }
        let root = &self.env.layout.root;
        // How much of them is elsewhere is not looked at.
        let Some(free) = free(root).filter(|_| tablespaces.is_empty()) else { return Ok(()) };
        match size(&source.sql).await {
            // All files of the primary are looked at for that, so not each time it is tried.
            Ok(needed) => Ok(suffices(needed, free, root).inspect_err(|error| {
                self.uncopied().failed(self.env.clock.now(), source.term, error.to_string());
            })?),
            Err(error) => {
                tracing::info!(node = %self.env.config.node, %error, "how much room the copy needs is not known");
                Ok(())
            }
        }
    }
}

fn suffices(needed: u64, free: u64, root: &Path) -> Result<(), NoRoom> {
    if needed > free { Err(NoRoom::TooSmall { needed, free, root: root.to_owned() }) } else { Ok(()) }
}

/// Directories outside of the primary's data directory, which are the same ones here.
async fn tablespaces(sql: &Sql) -> Result<Vec<PathBuf>, SqlError> {
    let query = "SELECT l FROM pg_tablespace, pg_tablespace_location(oid) l WHERE l LIKE '/%'";
    let rows = sql.rows("asking for tablespaces", query, ASK_BOUND).await?;
    Ok(rows.into_iter().flatten().flatten().map(PathBuf::from).collect())
}

/// Bytes of all databases, without those that may not be asked for; nor is WAL counted.
async fn size(sql: &Sql) -> Result<u64, SqlError> {
    let query = "SELECT coalesce(sum(pg_database_size(oid)), 0)::bigint FROM pg_database \
        WHERE has_database_privilege(oid, 'CONNECT')";
    sql.value("asking for the primary's size", query, SIZE_BOUND).await
}

/// One that is not there is made.
fn is_empty(directory: &Path) -> bool {
    std::fs::read_dir(directory).map_or(true, |mut found| found.next().is_none())
}

/// Bytes that may be written there, where a file takes what it is long: others compress.
fn free(directory: &Path) -> Option<u64> {
    let kind = statfs(directory).ok()?.filesystem_type();
    let found = statvfs(directory).ok().filter(|_| [EXT4_SUPER_MAGIC, XFS_SUPER_MAGIC].contains(&kind))?;
    Some(found.blocks_available() * found.fragment_size())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_that_would_not_fit_is_refused_with_its_numbers() {
        let told = suffices(4096, 4095, Path::new("/d")).unwrap_err().to_string();
        assert!(told.contains("4096 bytes or more in /d ") && told.contains("4095 are free"), "{told}");
        assert!(suffices(4096, 4096, Path::new("/d")).is_ok());
    }

    #[test]
    fn only_a_directory_without_anything_in_it_is_empty() {
        let root = std::env::temp_dir().join(format!("pgtenure-room-{}", std::process::id()));
        assert!(is_empty(&root), "it would be made");
        std::fs::create_dir(&root).unwrap();
        assert!(is_empty(&root));
        std::fs::create_dir(root.join("PG_15_202209061")).unwrap();
        assert!(!is_empty(&root));
        std::fs::remove_dir_all(&root).unwrap();
    }
}
