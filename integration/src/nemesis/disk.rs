//! A file system of its own for a host: ext4 in a file, which can be filled and frozen without hurting anybody else.

use super::sandbox::shell;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Bytes of the file system; the file is sparse.
const SIZE: &str = "900M";
/// A disk is thawed after so long by a process of its own: what waits for a frozen one cannot even be killed.
const LONGEST_FREEZE_S: u32 = 30;

/// A mounted file system.
#[derive(Debug)]
pub struct Disk {
    at: PathBuf,
}

/// Why there can be none here, if so.
pub fn impossible() -> Option<String> {
    let missing = ["mkfs.ext4", "fsfreeze", "losetup"].into_iter().find(|p| !found(p));
    let none = || (!Path::new("/dev/loop-control").exists()).then(|| "there are no loop devices".to_owned());
    missing.map(|p| format!("{p} is not installed")).or_else(none)
}

fn found(program: &str) -> bool {
    ["/usr/sbin", "/sbin", "/usr/bin", "/bin"].iter().any(|dir| Path::new(dir).join(program).exists())
}

impl Disk {
    /// Make one in file `image`, mounted at `at`, owned by the unprivileged user.
    ///
    /// # Panics
    /// When the kernel refuses.
    pub fn mount(image: &Path, at: &Path) -> Self {
        let (file, dir) = (image.display(), at.display());
        let label = at.file_name().and_then(|n| n.to_str()).unwrap_or("disk").to_owned();
        shell(&format!(
            "set -e\ntruncate -s {SIZE} {file}\nmkfs.ext4 -q -F -m 0 -L {label} -E lazy_itable_init=1 {file}\n\
             mount -o loop {file} {dir}\nrmdir {dir}/lost+found\n"
        ));
        crate::process::give_to_postgres(at);
        Self { at: at.to_owned() }
    }

    /// Take all the space that is left.
    pub fn fill(&self) {
        let file = self.at.join("ballast");
        // Whole first, then what the first could not get. The last block fails, as it should.
        let (dir, file) = (self.at.display(), file.display());
        shell(&format!(
            "fallocate -l $(($(stat -f -c '%a * %S' {dir}) - 65536)) {file} 2>/dev/null\n\
             dd if=/dev/zero of={file}.rest bs=4096 2>/dev/null\ntrue\n"
        ));
    }

    /// Give it back.
    pub fn free(&self) {
        for name in ["ballast", "ballast.rest"] {
            let _ = std::fs::remove_file(self.at.join(name));
        }
    }

    /// Let every write and every fsync wait.
    ///
    /// # Panics
    /// When the programs for it cannot be started.
    pub fn freeze(&self) {
        let dir = self.at.display().to_string();
        let later = format!("sleep {LONGEST_FREEZE_S}; fsfreeze -u {dir}");
        let mut guard = Command::new("sh");
        guard.args(["-c", &later]).current_dir("/").process_group(0).stdin(Stdio::null());
        drop(guard.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("sh starts"));
        shell(&format!("fsfreeze -f {dir}"));
    }

    /// Let every write and every fsync wait for so long. What ends it is a process of its own.
    ///
    /// # Panics
    /// When the programs for it cannot be started.
    pub fn stall(&self, length: Duration) -> Stall {
        let (dir, length) = (self.at.display(), length.as_secs_f64());
        let mut command = Command::new("sh");
        command.args(["-c", &format!("fsfreeze -f {dir} && sleep {length}; fsfreeze -u {dir}")]);
        command.current_dir("/").process_group(0).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Stall(command.spawn().expect("sh starts"))
    }

    /// Let them go on.
    pub fn thaw(&self) {
        shell(&format!("fsfreeze -u {} 2>/dev/null || true", self.at.display()));
    }
}

/// A disk that stands still for a while.
#[derive(Debug)]
pub struct Stall(Child);

impl Stall {
    /// Wait until it is over.
    pub fn over(mut self) {
        let _ = self.0.wait();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.thaw();
        shell(&format!("umount -l {} || true", self.at.display()));
    }
}
