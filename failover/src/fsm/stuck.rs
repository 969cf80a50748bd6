//! A primary that answers but cannot commit: its WAL's disk hangs, or no quorum acknowledges. PURE.
//!
//! Both look healthy to a probe that reads. But PostgreSQL goes on inserting WAL (its agent writes a record every
//! second), so what was inserted must be flushed soon, and what was flushed must be flushed by a quorum soon: a position
//! that is due and not reached, while nothing that is reached moves on, is a primary that is stuck. A failover is only
//! better where the nodes that would carry it can themselves flush; else it is only said.

use crate::api::{PostgresState, Primary};
use crate::fsm::observe::{Observed, millis};
use crate::fsm::sync_set;
use crate::fsm::timers::Settings;
use crate::record::{Mode, PolicyRecord};
use cluster::{Instant, Lsn, NodeId, Term};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::time::Duration;

/// What keeps the primary from committing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stuck {
    /// What does not move on.
    pub what: Held,
    /// Since it last did, or something was due, ms.
    pub for_ms: u64,
    /// It should be here at least.
    pub due_lsn: Lsn,
    /// It is here.
    pub reached_lsn: Lsn,
}

/// What does not move on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Held {
    /// The primary's own flush position: its WAL's disk hangs.
    Disk,
    /// The position that k voters have flushed.
    Quorum,
}

impl fmt::Display for Stuck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { for_ms, due_lsn, reached_lsn, .. } = self;
        match self.what {
            Held::Disk => {
                write!(f, "its disk has flushed no WAL for {for_ms} ms: {due_lsn} is written, {reached_lsn} is flushed")
            }
            Held::Quorum => write!(
                f,
                "commits have waited for standbys for {for_ms} ms: {due_lsn} is flushed, by a quorum {reached_lsn}"
            ),
        }
    }
}

/// Positions that one must reach once the other has.
#[derive(Clone, Debug, Default, PartialEq)]
struct Pursuit {
    reached: Lsn,
    moved_at: Instant,
    /// Not reached yet, and since when it is due.
    due: Option<(Lsn, Instant)>,
}

impl Pursuit {
    fn hear(&mut self, now: Instant, ahead: Lsn, reached: Lsn) {
        if reached > self.reached {
            (self.reached, self.moved_at) = (reached, now);
        }
        self.due = match self.due {
            Some((lsn, since)) if lsn > self.reached => Some((lsn, since)),
            _ if ahead > self.reached => Some((ahead, now)),
            _ => None, // all of it is reached
        };
    }

    fn stuck(&self, what: Held, heard_at: Instant) -> Option<Stuck> {
        let (due_lsn, since) = self.due?;
        let for_ms = millis(heard_at.since(since.max(self.moved_at)));
        Some(Stuck { what, for_ms, due_lsn, reached_lsn: self.reached })
    }
}

/// Does the primary flush what it inserts, and do the voters follow?
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Progress {
    term: Term,
    heard_at: Instant,
    disk: Pursuit,
    quorum: Pursuit,
}

impl Progress {
    /// What the primary of `term` reported was so at `now`.
    pub(super) fn hear(&mut self, now: Instant, term: Term, primary: &Primary, policy: &PolicyRecord) {
        if self.term != term {
            *self = Self { term, ..Self::default() };
        }
        let now = now.max(self.heard_at);
        self.heard_at = now;
        self.disk.hear(now, primary.insert_lsn, primary.flush_lsn);
        self.quorum.hear(now, primary.flush_lsn, quorum_flush(primary, policy));
    }
}

/// The k-th highest flush position of the voters that stream; while they are being changed, of the quorum that is
/// further, as that may be the one that commits wait for. A voter that is connected twice is one.
fn quorum_flush(primary: &Primary, policy: &PolicyRecord) -> Lsn {
    let of = |(voters, k): (&[NodeId], u32)| {
        let of_voter = |v: &NodeId| primary.followers.iter().filter(|f| f.node == *v).filter_map(|f| f.flush_lsn).max();
        let mut flushed: Vec<Lsn> = voters.iter().filter_map(of_voter).collect();
        flushed.sort_unstable_by(|a, b| b.cmp(a));
        flushed.get((k as usize).saturating_sub(1)).copied().unwrap_or_default()
    };
    policy.quorums().map(of).max().unwrap_or_default()
}

impl Observed {
    /// What has kept the primary, as it last reported, from committing for `stuck_timeout` or longer.
    pub fn stuck(&self, settings: &Settings) -> Option<Stuck> {
        let (term, policy) = (self.term()?.term, self.policy()?);
        let p = Some(&self.progress).filter(|p| p.term == term)?;
        let quorum = p.quorum.stuck(Held::Quorum, p.heard_at).filter(|_| policy.protects());
        let limit = millis(settings.stuck_timeout);
        // A disk that hangs holds the standbys back too, and is the reason to name.
        p.disk.stuck(Held::Disk, p.heard_at).into_iter().chain(quorum).find(|s| s.for_ms >= limit)
    }

    /// Why a failover would not be better: the nodes that would carry it and what is wrong with each; empty when
    /// enough of them can flush WAL. `may_return`: once it is stopped the old primary can be one of those that a new term needs.
    pub(super) fn no_better(
        &self,
        primary: &NodeId,
        may_return: bool,
        now: Instant,
        settings: &Settings,
    ) -> Vec<String> {
        let (Some(policy), Some(term)) = (self.policy(), self.term()) else { return vec!["no policy is known".into()] };
        // In available mode a term opens alone if it must.
        let to_open = if policy.mode == Mode::Available { 1 } else { sync_set::open_quorum(policy) as usize + 1 };
        let needed = sync_set::needed(policy, Some(primary)).max(to_open);
        let mut wrong = Vec::new();
        let mut well = 0;
        let mut unwilling = Vec::new();
        for voter in policy.voters.iter().filter(|v| *v != primary) {
            match self.trouble_of(voter, term.term, now, settings) {
                Some(why) => wrong.push(format!("{voter} {why}")),
                None => {
                    well += 1;
                    let standing = self.records.members.get(voter).map(|m| m.standing.clone()).unwrap_or_default();
                    if !standing.is_promoted_by_itself() {
                        unwilling.push(format!("{voter} is never promoted by itself"));
                    }
                }
            }
        }
        if well >= needed && unwilling.len() < well {
            return Vec::new();
        }
        wrong.extend(unwilling);
        if wrong.is_empty() && well + usize::from(may_return) < needed {
            wrong.push(format!("only {well} of the {needed} nodes that a new term needs can be there"));
        }
        wrong
    }

    /// Standbys that have flushed what the primary is said not to get flushed, if they show that it does. Of acknowledgements
    /// that is only believed for a while: they have the WAL, but if the primary does not hear of it, its clients wait.
    pub(super) fn contradicts(
        &self,
        primary: &NodeId,
        stuck: &Stuck,
        now: Instant,
        settings: &Settings,
    ) -> Vec<String> {
        let (Some(policy), Some(term)) = (self.policy(), self.term().map(|t| t.term)) else { return Vec::new() };
        let has = |v: &&NodeId| {
            let standby = self.on_timeline(v, term, now, settings).filter(|_| *v != primary);
            standby.is_some_and(|s| s.receive_lsn >= stuck.due_lsn)
        };
        let shown = match stuck.what {
            // Nothing is sent before it is flushed.
            Held::Disk => policy.voters.iter().any(|v| has(&v)),
            Held::Quorum if stuck.for_ms >= 2 * millis(settings.stuck_timeout) => false,
            Held::Quorum => policy.quorums().all(|(voters, k)| voters.iter().filter(has).count() >= k as usize),
        };
        let told = |v: &NodeId| format!("{v} has flushed {} all the same", stuck.due_lsn);
        policy.voters.iter().filter(|v| shown && has(v)).map(told).collect()
    }

    fn trouble_of(&self, voter: &NodeId, term: Term, now: Instant, settings: &Settings) -> Option<String> {
        let Some(state) = self.reachable(voter, now, settings) else {
            return Some(format!("has been silent for {} ms", millis(self.silent_for(voter, now))));
        };
        if self.fenced(voter) {
            return Some("is fenced".into());
        }
        if self.foreign(state.system_id.as_ref()).is_some() {
            return Some("has another cluster's data".into());
        }
        if state.quarantine.is_some() {
            return Some("is quarantined".into());
        }
        if !matches!(&state.postgres, PostgresState::Standby(s) if Some(s.timeline) == term.timeline()) {
            return Some("is no standby of this term".into());
        }
        match state.fsync_probe_ms.map(Duration::from_millis) {
            None => Some("has not tried its disk yet".into()),
            Some(took) if took >= settings.stuck_timeout / 2 => {
                Some(format!("needs {} ms to write to its disk", millis(took)))
            }
            Some(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Follower;
    use crate::record::Limits;
    use cluster::TimelineId;

    fn primary(flush: u64, followers: &[(&str, u64)]) -> Primary {
        let follower = |(node, lsn): &(&str, u64)| Follower {
            node: node.parse().unwrap(),
            state: "streaming".into(),
            flush_lsn: Some(Lsn(*lsn)),
            replay_lsn: None,
            sync_state: "quorum".into(),
        };
        Primary {
            timeline: TimelineId(7),
            insert_lsn: Lsn(flush),
            flush_lsn: Lsn(flush),
            sync_names: String::new(),
            followers: followers.iter().map(follower).collect(),
            impostors: Vec::new(),
            doubted: Vec::new(),
        }
    }

    /// When it came, what the primary had flushed, and what each follower had.
    type Report<'a> = (u64, u64, &'a [(&'a str, u64)]);

    /// For how long the quorum is stuck at the last of the reports, ms.
    fn check(k: u32, reports: &[Report<'_>]) -> Option<u64> {
        let voters = ["n1", "n2", "n3"].map(|n| n.parse().unwrap()).to_vec();
        let policy = PolicyRecord {
            epoch: 1,
            voters,
            k,
            mode: Mode::Strict,
            suspended: None,
            limits: Limits::default(),
            joint: None,
            rearmed: None,
        };
        let mut progress = Progress::default();
        for (ms, flush, followers) in reports {
            progress.hear(Instant::from_millis(*ms), Term(7), &primary(*flush, followers), &policy);
        }
        progress.quorum.stuck(Held::Quorum, progress.heard_at).map(|s| s.for_ms)
    }

    #[test]
    fn a_quorum_that_moves_is_not_stuck_however_far_behind() {
        assert_eq!(check(1, &[(0, 100, &[("n2", 10)]), (3000, 900, &[("n2", 60)])]), Some(0));
        assert_eq!(check(1, &[(0, 100, &[("n2", 100)]), (3000, 100, &[("n2", 100)])]), None);
    }

    #[test]
    fn a_quorum_is_stuck_since_it_last_moved_or_something_was_due() {
        assert_eq!(check(1, &[(0, 100, &[("n2", 100)]), (3000, 200, &[("n2", 100)])]), Some(0));
        let since = [(0, 100, &[("n2", 100)][..]), (1000, 200, &[("n2", 100)]), (3000, 200, &[("n2", 100)])];
        assert_eq!(check(1, &since), Some(2000));
    }

    #[test]
    fn k_voters_count_and_nobody_else() {
        let two: &[(&str, u64)] = &[("n2", 200), ("n3", 100), ("x9", 200)];
        assert_eq!(check(2, &[(0, 200, two), (4000, 200, two)]), Some(4000));
        assert_eq!(check(1, &[(0, 200, two), (4000, 200, two)]), None);
    }

    #[test]
    fn a_voter_that_is_connected_twice_is_one() {
        let twice: &[(&str, u64)] = &[("n2", 150), ("n2", 200), ("n3", 100)];
        assert_eq!(check(2, &[(0, 200, twice), (4000, 200, twice)]), Some(4000));
        assert_eq!(check(1, &[(0, 200, twice), (4000, 200, twice)]), None);
    }

    #[test]
    fn a_disk_that_flushes_nothing_is_stuck_however_much_is_inserted() {
        let mut disk = Pursuit::default();
        for (ms, insert, flush) in [(0, 100, 100), (1000, 150, 100), (2000, 180, 100), (4000, 200, 100)] {
            disk.hear(Instant::from_millis(ms), Lsn(insert), Lsn(flush));
        }
        assert_eq!(disk.stuck(Held::Disk, Instant::from_millis(4000)).unwrap().for_ms, 3000);
        disk.hear(Instant::from_millis(4100), Lsn(200), Lsn(160));
        assert_eq!(disk.stuck(Held::Disk, Instant::from_millis(4100)).unwrap().for_ms, 0);
    }

    #[test]
    fn without_followers_what_is_flushed_is_due() {
        assert_eq!(check(1, &[(0, 200, &[]), (4000, 200, &[])]), Some(4000));
    }
}
