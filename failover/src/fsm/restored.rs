//! An etcd that was restored from a backup under a leader. PURE.
//!
//! Where its lease and its key are in the backup too, the leader is still the leader, and no watch tells. But a read that
//! was sent after a revision was known cannot give an older one.

use crate::fsm::action::Action;
use crate::fsm::planner::Planner;
use cluster::Instant;

impl Planner {
    /// Records of an older revision than known have come.
    pub(super) fn take_older(&mut self, now: Instant, sent_at: Instant, out: &mut Vec<Action>) {
        if sent_at <= self.seen.revision_known_at {
            // Overtaken by a newer answer, or by a change.
            out.push(Action::Read);
            return;
        }
        // Whatever is under way was decided by what is not there any more: as a manager that has just come to lead.
        if let Some(revision) = self.leading.take() {
            self.lead(now, revision, out);
        }
    }
}
