//! What keeps a standby's replay from its end, and whether readers are to be ended for that. PURE.

use crate::record::PolicyRecord;
use cluster::NodeId;
use std::time::Duration;

/// Readers that keep replay from going on for this long are ended.
const READERS_MAY: Duration = Duration::from_millis(500);

/// Wait events of every conflict with readers have names from here on.
const NAMES_SNAPSHOTS: u32 = 140_000;

/// What the startup process waits for, as `pg_stat_activity` shows it; empty when it does not wait.
#[derive(Clone, Copy, Debug)]
pub struct Waits<'a> {
    /// `server_version_num`.
    pub version: u32,
    /// `wait_event`.
    pub event: &'a str,
    /// `wait_event_type`.
    pub kind: &'a str,
}

impl Waits<'_> {
    /// It may be readers that it waits for: a lock, a pinned buffer, a snapshot.
    fn for_readers(&self) -> bool {
        match (self.kind, self.event) {
            ("Lock" | "BufferPin", _) => true,
            (_, "") => self.version < NAMES_SNAPSHOTS, // else it is at work, on a record that takes long
            (_, event) => event.starts_with("RecoveryConflict"),
        }
    }
}

/// Are readers to be ended, after replay has stood still for so long?
pub fn ends_readers(waits: &Waits<'_>, unmoved: Duration) -> bool {
    unmoved >= READERS_MAY && waits.for_readers()
}

/// Does the node vote, in any quorum that holds? `configured`: as its own configuration says, when no policy is known.
pub fn votes(policy: Option<&PolicyRecord>, node: &NodeId, configured: bool) -> bool {
    policy.map_or(configured, |p| p.counts(node))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Limits, Mode, Quorum};

    #[test]
    fn readers_are_ended_where_replay_waits_for_them_and_not_where_it_works() {
        for (version, kind, event, want) in [
            (150_000, "Lock", "relation", true),
            (150_000, "BufferPin", "BufferPin", true),
            (150_000, "IPC", "RecoveryConflictSnapshot", true),
            (150_000, "IPC", "RecoveryConflictTablespace", true),
            (150_000, "", "", false),
            (140_000, "", "", false),
            (130_020, "", "", true),
            (150_000, "IO", "WALRead", false),
            (130_020, "IO", "DataFileRead", false),
            (150_000, "Timeout", "RecoveryApplyDelay", false),
        ] {
            let waits = Waits { version, event, kind };
            let after = |ms| ends_readers(&waits, Duration::from_millis(ms));
            assert_eq!((after(499), after(500)), (false, want), "{waits:?}");
        }
    }

    #[test]
    fn a_node_that_is_being_made_a_voter_votes() {
        let n = |name: &str| name.parse::<NodeId>().unwrap();
        let voters = |names: [&str; 3]| names.map(n).to_vec();
        let policy = PolicyRecord {
            epoch: 2,
            voters: voters(["n1", "n2", "n3"]),
            k: 1,
            mode: Mode::Strict,
            suspended: None,
            limits: Limits::default(),
            joint: Some(Quorum { voters: voters(["n1", "n2", "n4"]), k: 1 }),
            rearmed: None,
        };
        for (node, configured, want) in [("n3", false, true), ("n4", false, true), ("n5", true, false)] {
            assert_eq!(votes(Some(&policy), &n(node), configured), want, "{node}");
        }
        assert!(votes(None, &n("n5"), true) && !votes(None, &n("n1"), false));
    }
}
