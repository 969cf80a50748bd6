//! Shared memory that a killed PostgreSQL has left. The next one on its directory takes it away; of a directory that is thrown away
//! it would stay until the host is started again.

use crate::fsm::shared_memory::{HEADER, handles, header, segment_of};
use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Remove what the server of `data` left, which does not run and is not started again. What somebody is attached to stays, and what
/// does not say by itself that it is that directory's. Gives whether there was any.
pub(super) fn remove(data: &Path, version: u32) -> io::Result<bool> {
    let text = fs::read(data.join("postmaster.pid"))?;
    let Some(id) = segment_of(&String::from_utf8_lossy(&text)) else { return Ok(false) };
    let Some(found) = read(id)?.as_ref().and_then(header) else { return Ok(false) };
    let directory = fs::metadata(data)?;
    if found.directory != (directory.dev(), directory.ino()) {
        return Ok(false);
    }
    let file = |handle: u32| PathBuf::from(format!("/dev/shm/PostgreSQL.{handle}"));
    // Elsewhere than in such files it is only with other settings than ours.
    if let Ok(control) = fs::read(file(found.control)) {
        for handle in handles(&control, version).unwrap_or_default().into_iter().chain([found.control]) {
            match fs::remove_file(file(handle)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
    }
    // SAFETY: IPC_RMID reads and writes no memory of ours.
    let done = unsafe { libc::shmctl(id, libc::IPC_RMID, std::ptr::null_mut()) };
    if done == 0 { Ok(true) } else { Err(io::Error::last_os_error()) }
}

/// What is in a segment of ours of that size to which nobody is attached. `None`: there is no such one.
fn read(id: i32) -> io::Result<Option<[u8; HEADER]>> {
    let mut stat = MaybeUninit::<libc::shmid_ds>::zeroed();
    // SAFETY: IPC_STAT writes one such struct, which `stat` has the room for.
    if unsafe { libc::shmctl(id, libc::IPC_STAT, stat.as_mut_ptr()) } != 0 {
        return match io::Error::last_os_error() {
            // Another one's, by now, or none.
            error if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EIDRM | libc::EACCES)) => Ok(None),
            error => Err(error),
        };
    }
    // SAFETY: integers all of it, zeroed and then filled in by the kernel.
    let stat = unsafe { stat.assume_init() };
    let ours = stat.shm_perm.uid == nix::unistd::geteuid().as_raw();
    if !ours || stat.shm_nattch != 0 || stat.shm_segsz != HEADER {
        return Ok(None);
    }
    // SAFETY: with no address given the kernel maps it where nothing of ours is, for reading.
    let at = unsafe { libc::shmat(id, std::ptr::null(), libc::SHM_RDONLY) };
    if at.addr() == usize::MAX {
        return Err(io::Error::last_os_error());
    }
    let mut bytes = [0; HEADER];
    // SAFETY: so many bytes are mapped there until it is detached, and nobody else is attached who could write them.
    unsafe { std::ptr::copy_nonoverlapping(at.cast::<u8>(), bytes.as_mut_ptr(), HEADER) };
    // SAFETY: it was attached there just now, and nothing refers to it any more.
    unsafe { libc::shmdt(at) };
    Ok(Some(bytes))
}
