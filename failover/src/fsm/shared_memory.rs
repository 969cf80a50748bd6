//! What PostgreSQL's shared memory says of itself, as the next server of a directory reads it. PURE.
//!
//! A small System V segment, whose id is in `postmaster.pid`, tells the directory that it belongs to, and the handle of a file in
//! `/dev/shm` which lists the others (src/include/storage/pg_shmem.h, src/backend/storage/ipc/dsm.c).

/// Bytes of the segment.
pub const HEADER: usize = 56;
/// `PGShmemMagic`.
const SEGMENT_MAGIC: u32 = 679_834_894;
/// `PG_DYNSHMEM_CONTROL_MAGIC`.
const CONTROL_MAGIC: u32 = 0x9a50_3d32;
/// Where the list begins.
const LIST: usize = 16;

/// The beginning of the segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Of the file that lists the rest; 0 where there is none.
    pub control: u32,
    /// Device and inode of the data directory.
    pub directory: (u64, u64),
}

/// The System V segment that a pid file names.
pub fn segment_of(pid_file: &str) -> Option<i32> {
    // Key and id are in the seventh line, which a postmaster that has only begun has not written yet.
    pid_file.lines().nth(6)?.split_whitespace().nth(1)?.parse().ok()
}

/// Read the segment's beginning. `None`: it is none of PostgreSQL's.
pub fn header(bytes: &[u8; HEADER]) -> Option<Header> {
    let directory = (long(bytes, 40)?, long(bytes, 48)?);
    // Its size is that of all shared memory, of which this is the part that has an id.
    let ours = word(bytes, 0)? == SEGMENT_MAGIC && long(bytes, 8)? >= HEADER as u64;
    ours.then_some(Header { control: word(bytes, 24)?, directory })
}

/// The handles that a control file lists, also those that are being given up. `version` as `server_version_num`. `None`: it is not
/// understood.
pub fn handles(control: &[u8], version: u32) -> Option<Vec<u32>> {
    let (items, most) = (word(control, 4)?, word(control, 8)?);
    if word(control, 0)? != CONTROL_MAGIC || items > most {
        return None;
    }
    let each = if version >= 140_000 { 40 } else { 24 };
    let item = |i: u32| -> Option<(u32, u32)> {
        let at = LIST + usize::try_from(i).ok()? * each;
        Some((word(control, at)?, word(control, at + 4)?))
    };
    let all: Option<Vec<(u32, u32)>> = (0..items).map(item).collect();
    Some(all?.into_iter().filter(|(_, users)| *users != 0).map(|(handle, _)| handle).collect())
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn long(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
        bytes[at..at + value.len()].copy_from_slice(value);
    }

    #[test]
    fn the_segment_is_named_by_the_pid_file_and_tells_its_directory() {
        let whole = "11\n/d\n1700000000\n5432\n/s\nlocalhost\n 10134853   2621440\nready\n";
        assert_eq!(segment_of(whole), Some(2_621_440));
        assert_eq!(segment_of("11\n/d\n1700000000\n5432\n/s\nlocalhost\n"), None);
        let mut bytes = [0; HEADER];
        put(&mut bytes, 0, &SEGMENT_MAGIC.to_ne_bytes());
        put(&mut bytes, 8, &20_000_000_u64.to_ne_bytes());
        put(&mut bytes, 24, &7_u32.to_ne_bytes());
        put(&mut bytes, 40, &8_u64.to_ne_bytes());
        put(&mut bytes, 48, &9_u64.to_ne_bytes());
        assert_eq!(header(&bytes), Some(Header { control: 7, directory: (8, 9) }));
        for (at, wrong) in [(0, 1), (8, 55)] {
            let mut other = bytes;
            put(&mut other, at, &u32::to_ne_bytes(wrong));
            assert_eq!(header(&other), None);
        }
    }

    #[test]
    fn what_is_listed_is_read_by_the_version() {
        for (version, each) in [(130_000, 24), (150_018, 40)] {
            let mut bytes = vec![0; LIST + 3 * each];
            put(&mut bytes, 0, &CONTROL_MAGIC.to_ne_bytes());
            put(&mut bytes, 4, &3_u32.to_ne_bytes());
            put(&mut bytes, 8, &64_u32.to_ne_bytes());
            for (i, (handle, users)) in [(70_u32, 2_u32), (71, 0), (72, 1)].into_iter().enumerate() {
                put(&mut bytes, LIST + i * each, &handle.to_ne_bytes());
                put(&mut bytes, LIST + i * each + 4, &users.to_ne_bytes());
            }
            assert_eq!(handles(&bytes, version), Some(vec![70, 72]));
            assert_eq!(handles(&bytes[..bytes.len() - each], version), None, "it is cut off");
            put(&mut bytes, 4, &65_u32.to_ne_bytes());
            assert_eq!(handles(&bytes, version), None);
        }
        assert_eq!(handles(b"", 150_018), None);
    }
}
