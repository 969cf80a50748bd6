//! Reading `pg_control`, and the record of a shutdown checkpoint, as bytes. PURE.
//!
//! `pg_controldata` and `pg_waldump` tell the same, but clients wait for each process that a change of primary starts. So
//! only layouts that are known are read, and nothing whose checksum is not right: for everything else there are the
//! programs. Sources: src/include/catalog/pg_control.h (versions 1300, of PostgreSQL 13 to 16, 1700 and 1800; what is read
//! is in the same places but for the checksum), src/include/access/xlogrecord.h.

use crate::fsm::waldump::{PAGE, record_end};
use cluster::{Lsn, TimelineId};

/// Layouts that are known, and where in each the checksum of everything before it is. 1800 says whether `char` is
/// signed, before the nonce.
const CHECKSUMS: [(u32, usize); 3] = [(1300, 288), (1700, 288), (1800, 292)];
/// Bytes of a WAL record's header, and where in it its checksum is.
const RECORD_HEADER: usize = 24;
const RECORD_CHECKSUM: usize = 20;

/// What is used of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlFile {
    /// The system identifier.
    pub system_id: u64,
    /// In `pg_controldata`'s words.
    pub state: &'static str,
    /// Where the latest checkpoint's record begins.
    pub checkpoint: Lsn,
    /// On which timeline that is.
    pub timeline: TimelineId,
    /// Bytes of a WAL segment.
    pub segment_size: u64,
}

/// Read the file's content. `None`: the layout is not known, or it is damaged or half written.
pub fn parse(file: &[u8]) -> Option<ControlFile> {
    let version = u32_at(file, 8)?;
    let (_, checksum) = CHECKSUMS.into_iter().find(|(known, _)| *known == version)?;
    if u32_at(file, checksum)? != crc32c(&[file.get(..checksum)?]) {
        return None;
    }
    let state = match u32_at(file, 16)? {
        0 => "starting up",
        1 => "shut down",
        2 => "shut down in recovery",
        3 => "shutting down",
        4 => "in crash recovery",
        5 => "in archive recovery",
        6 => "in production",
        _ => return None,
    };
    let segment_size = u64::from(u32_at(file, 228)?);
    let sizes = 1 << 20..=1 << 30;
    (sizes.contains(&segment_size) && segment_size.is_power_of_two()).then_some(ControlFile {
        system_id: u64_at(file, 0)?,
        state,
        checkpoint: Lsn(u64_at(file, 32)?),
        timeline: TimelineId(u32_at(file, 48)?),
        segment_size,
    })
}

/// The end of the shutdown checkpoint's record that begins at `lsn`, given the WAL page that it begins in. `None`: it is
/// another record, is damaged, or goes on in the next page.
pub fn shutdown_checkpoint_end(page: &[u8], lsn: Lsn, segment: u64) -> Option<Lsn> {
    let from = usize::try_from(lsn.0 % PAGE).ok()?;
    let total = u32_at(page, from)?;
    let record = page.get(from..from.checked_add(usize::try_from(total).ok()?)?)?;
    let (header, data) = record.split_at_checked(RECORD_HEADER)?;
    // Info 0 of resource manager 0; the low bits of the former are not the record's.
    let kind = (header[16] & 0xF0, header[17]);
    let whole = u32_at(header, RECORD_CHECKSUM)? == crc32c(&[data, &header[..RECORD_CHECKSUM]]);
    (kind == (0, 0) && whole).then(|| record_end(lsn, u64::from(total), segment))
}

/// WAL and `pg_control` are in the byte order of the host that wrote them, which is this one: else no checksum is right.
fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?))
}

/// CRC-32C (Castagnoli) of the parts one after the other. Some hundred bytes: bit by bit is fast enough.
fn crc32c(parts: &[&[u8]]) -> u32 {
    let bit = |crc: u32, _| if crc & 1 == 1 { (crc >> 1) ^ 0x82F6_3B78 } else { crc >> 1 };
    let byte = |crc: u32, b: &u8| (0..8).fold(crc ^ u32::from(*b), bit);
    !parts.iter().flat_map(|p| p.iter()).fold(!0, byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn control(version: u32, checksum: usize) -> Vec<u8> {
        let mut file = vec![0; 8192];
        file[..8].copy_from_slice(&7_381_234_567_890_123_456u64.to_ne_bytes());
        file[8..12].copy_from_slice(&version.to_ne_bytes());
        file[16..20].copy_from_slice(&6u32.to_ne_bytes());
        file[32..40].copy_from_slice(&0x0300_0060u64.to_ne_bytes());
        file[48..52].copy_from_slice(&4u32.to_ne_bytes());
        file[228..232].copy_from_slice(&(16u32 << 20).to_ne_bytes());
        sealed(file, checksum)
    }

    fn sealed(mut file: Vec<u8>, checksum: usize) -> Vec<u8> {
        let sum = crc32c(&[&file[..checksum]]);
        file[checksum..checksum + 4].copy_from_slice(&sum.to_ne_bytes());
        file
    }

    #[test]
    fn a_control_file_is_understood() {
        let want = ControlFile {
            system_id: 7_381_234_567_890_123_456,
            state: "in production",
            checkpoint: Lsn(0x0300_0060),
            timeline: TimelineId(4),
            segment_size: 16 << 20,
        };
        for (version, checksum) in CHECKSUMS {
            assert_eq!(parse(&control(version, checksum)).as_ref(), Some(&want), "{version}");
        }
    }

    #[test]
    fn a_file_that_is_cut_or_damaged_or_of_another_version_is_left_to_the_program() {
        for (version, checksum) in CHECKSUMS {
            let file = control(version, checksum);
            for byte in 0..checksum + 4 {
                let mut damaged = file.clone();
                damaged[byte] ^= 1;
                assert_eq!(parse(&damaged), None, "{version}, byte {byte}");
                assert_eq!(parse(&file[..byte]), None, "{version}, cut at {byte}");
            }
            for (at, value) in [(8, 1201u32), (8, 1900), (16, 7), (228, 3 << 20), (228, 0)] {
                let mut other = file.clone();
                other[at..at + 4].copy_from_slice(&value.to_ne_bytes());
                assert_eq!(parse(&sealed(other, checksum)), None, "{version}, {value} at {at}");
            }
        }
    }

    #[test]
    fn the_checksum_is_castagnolis() {
        assert_eq!(crc32c(&[b"1234", b"56789"]), 0xE306_9283);
    }

    #[test]
    fn a_shutdown_checkpoint_ends_where_its_record_does() {
        const SEGMENT: u64 = 16 << 20;
        let record = |info: u8, manager: u8| {
            let mut record = vec![7u8; 114];
            record[..4].copy_from_slice(&114u32.to_ne_bytes());
            (record[16], record[17]) = (info, manager);
            let sum = crc32c(&[&record[24..], &record[..20]]);
            record[20..24].copy_from_slice(&sum.to_ne_bytes());
            record
        };
        let page = |at: usize, record: &[u8]| {
            let mut page = vec![0; 8192];
            let room = record.len().min(page.len() - at);
            page[at..at + room].copy_from_slice(&record[..room]);
            page
        };
        let at = Lsn(0x0300_0028);
        assert_eq!(shutdown_checkpoint_end(&page(0x28, &record(0, 0)), at, SEGMENT), Some(Lsn(0x0300_00A0)));
        assert_eq!(shutdown_checkpoint_end(&page(0x28, &record(0x10, 0)), at, SEGMENT), None, "an online one");
        assert_eq!(shutdown_checkpoint_end(&page(0x28, &record(0, 1)), at, SEGMENT), None, "of a transaction");
        let mut damaged = record(0, 0);
        damaged[100] ^= 1;
        assert_eq!(shutdown_checkpoint_end(&page(0x28, &damaged), at, SEGMENT), None);
        let last = 8192 - 112;
        let across = shutdown_checkpoint_end(&page(last, &record(0, 0)), Lsn(0x0300_0000 + last as u64), SEGMENT);
        assert_eq!(across, None, "it goes on in the next page");
        assert_eq!(shutdown_checkpoint_end(&[0; 8192], at, SEGMENT), None);
    }
}
