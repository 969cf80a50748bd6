//! Data directories of PostgreSQL that are made once, by whoever comes first, and then copied by every test program of
//! this build: `initdb` is most of what the start of a server costs.
//!
//! All copies have one system identifier, as no two real servers that were made apart: a test for which that matters
//! runs `initdb` itself. What an agent makes is never copied, for that is what is tested.
//!
//! The tests of other crates include this file by its path: it uses nothing but `std`.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Make the data directory `data`, which is not there yet, as `make` does: by copying what the same `recipe` made with
/// the same `program`, where there is such a thing.
pub(crate) fn data_dir(data: &Path, program: &Path, recipe: &[&str], make: impl FnOnce()) {
    let Some(kept) = place(program, recipe) else { return make() };
    if kept.is_dir() && copy(&kept, data) {
        return;
    }
    let _ = std::fs::remove_dir_all(data);
    make();
    // Others see it once it is whole. Of two that make it at once the second leaves it as it is.
    let new = kept.with_extension(hash((std::process::id(), data)));
    if copy(data, &new) {
        let _ = std::fs::rename(&new, &kept);
    }
    let _ = std::fs::remove_dir_all(&new);
}

/// Where it is kept: among the products of this build, by what it was made of. `None` when that cannot be told.
fn place(program: &Path, recipe: &[&str]) -> Option<PathBuf> {
    let exe = std::env::current_exe().ok()?;
    let templates = exe.ancestors().nth(2)?.join("postgres-templates");
    std::fs::create_dir_all(&templates).ok()?;
    let program_is = std::fs::metadata(program).ok()?;
    Some(templates.join(hash((program, program_is.len(), program_is.modified().ok()?, recipe))))
}

fn hash(of: impl Hash) -> String {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

/// With owners and modes, which PostgreSQL insists on.
fn copy(from: &Path, to: &Path) -> bool {
    let mut cp = Command::new("cp");
    cp.args(["-a", "--reflink=auto"]).arg(from.join(".")).arg(to).stdin(Stdio::null()).stderr(Stdio::null());
    cp.status().is_ok_and(|status| status.success())
}
