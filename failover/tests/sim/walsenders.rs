//! What a primary counts: walsenders, not nodes. A standby that connects anew may leave one behind whose end nobody sees for
//! a while, as it stands still, or as no packet says that the other side is gone. What that one has confirmed goes on
//! counting. Who streams through a slot and who must are the shipped decisions; the slots themselves are always there.

use super::node::{Is, Node};
use super::{World, ms, name};
use cluster::sync_names::SyncNames;
use cluster::{Instant, Lsn, NodeId, Term};
use failover::api::{Arm, Follower};
use failover::fsm::action::Command;
use failover::fsm::slots;
use failover::fsm::walsenders::Walsender;
use failover::record::PolicyRecord;
use std::collections::BTreeSet;
use std::time::Duration;

/// So long a connection that was left may go on counting, and at least.
const LONGEST: u64 = 6000;
const SHORTEST: u64 = 200;
/// `slots.rs` of the agent: without streaming for so long the slot is asked for.
const REFUSED_FOR: Duration = ms(500);
/// And so long standbys may take to stream through theirs.
const HELD_WITHIN: Duration = ms(5000);
/// Whom standbys log in as.
const USER: &str = "standby";

/// A connection, at the node that sends.
pub(crate) struct Sender {
    pub(crate) pid: i32,
    pub(crate) node: usize,
    slot: bool,
    pub(crate) flushed: Lsn,
    /// It has had all that there was, since it connected; and until then, is it sent that slowly?
    pub(crate) caught_up: bool,
    pub(crate) slow: bool,
    replied: Instant,
    left: Option<Left>,
}

/// Its standby has gone.
struct Left {
    until: Instant,
    /// It stands still, and does not end when it is told to either.
    still: bool,
}

impl Node {
    fn is_connected_by(&self, pid: i32) -> bool {
        self.receiver.is_some() && self.pid == pid
    }
}

impl World {
    pub(crate) fn is_left(&self, sender: &Sender) -> bool {
        !self.nodes[sender.node].is_connected_by(sender.pid)
    }

    /// Which connections to `p` are over, and which were left and count on?
    pub(crate) fn look_for_left(&mut self, p: usize) {
        if !self.nodes[p].senders.iter().any(|s| self.is_left(s)) {
            return;
        }
        let mut senders = std::mem::take(&mut self.nodes[p].senders);
        senders.retain_mut(|sender| !self.is_left(sender) || self.counts_on(p, sender));
        self.nodes[p].senders = senders;
    }

    fn counts_on(&mut self, p: usize, sender: &mut Sender) -> bool {
        if sender.left.is_none() {
            let told = self.linked(p, sender.node) && !self.nodes[p].hangs(self.now);
            let still = self.faulty() && self.chance.percent(15);
            if told && !still {
                return false;
            }
            sender.left = Some(Left { until: self.now + ms(SHORTEST + self.chance.below(LONGEST)), still });
        }
        sender.left.as_ref().is_some_and(|left| self.now < left.until)
    }

    /// The walsender of `n` stands still, and its WAL receiver connects anew. Was there one?
    pub(crate) fn leave_connection(&mut self, n: usize, until: Instant) -> bool {
        let Some((p, _)) = self.nodes[n].receiver else { return false };
        let pid = self.nodes[n].pid;
        let Some(sender) = self.nodes[p].senders.iter_mut().find(|s| s.pid == pid) else { return false };
        sender.left = Some(Left { until, still: true });
        self.disconnect(n);
        self.say(format!("{} leaves its connection to {}", name(n), name(p)));
        true
    }

    /// `n` is connected to `p`, or connects: not where its slot is another connection's.
    pub(crate) fn connects(&mut self, n: usize, p: usize, term: Term) -> bool {
        let node = &self.nodes[n];
        if node.receives_from(p, term) && self.nodes[p].senders.iter().any(|s| s.pid == node.pid) {
            return true;
        }
        self.disconnect(n);
        self.look_for_left(p);
        let slot = self.nodes[n].through_slot;
        if slot && self.nodes[p].senders.iter().any(|s| s.node == n && s.slot) {
            self.reach("a standby refused because its old connection has its slot");
            return false;
        }
        if self.nodes[p].senders.iter().any(|s| s.node == n) {
            self.reach("a standby connected twice");
        }
        self.connections += 1;
        let (pid, flushed, replied) = (self.connections, Lsn(0), self.now);
        let slow = self.faulty() && self.chance.percent(30);
        let sender = Sender { pid, node: n, slot, flushed, caught_up: false, slow, replied, left: None };
        self.nodes[p].senders.push(sender);
        (self.nodes[n].receiver, self.nodes[n].pid) = (Some((p, term)), pid);
        true
    }

    /// So many records `n` is sent at once: of long ago a few at times.
    pub(crate) fn sent_at_most(&mut self, n: usize, p: usize) -> usize {
        let pid = self.nodes[n].pid;
        let slow = self.nodes[p].senders.iter().any(|s| s.pid == pid && s.slow && !s.caught_up);
        if slow && self.faulty() {
            self.reach("a standby sent WAL of long ago");
            return usize::from(self.chance.percent(60));
        }
        1 + self.chance.below(8) as usize
    }

    /// Its WAL receiver ends.
    pub(crate) fn disconnect(&mut self, n: usize) {
        if self.nodes[n].receiver.take().is_some() {
            self.nodes[n].not_streaming_since = self.now;
        }
    }

    /// `n` has flushed so much, and says so where it receives from.
    pub(crate) fn confirm(&mut self, n: usize, p: usize) {
        let (pid, flushed, replied) = (self.nodes[n].pid, self.nodes[n].end().lsn, self.now);
        let all = self.nodes[n].wal.len() >= self.nodes[p].wal.len();
        if let Some(sender) = self.nodes[p].senders.iter_mut().find(|s| s.pid == pid) {
            (sender.flushed, sender.replied) = (flushed, replied);
            sender.caught_up |= all;
        }
        self.acknowledge(p);
    }

    /// `Agent::through_slots`.
    fn wants_slots(&self, policy: &PolicyRecord) -> bool {
        !self.without_slots && slots::wanted(policy)
    }

    /// Whoever follows anew goes by the policy that its agent has read.
    pub(crate) fn go_through_slot(&mut self, n: usize) {
        if let Some(policy) = self.policy(n) {
            self.nodes[n].through_slot = self.wants_slots(&policy);
        }
    }

    /// `Agent::stream_through_slot`.
    pub(crate) fn tend_slot(&mut self, n: usize) {
        let upstream = self.nodes[n].upstream.filter(|_| self.nodes[n].is == Is::Standby);
        let (Some((p, _)), Some(policy)) = (upstream, self.policy(n)) else { return };
        let through = self.wants_slots(&policy);
        let answers = self.linked(n, p) && !self.nodes[p].hangs(self.now);
        if through != self.nodes[n].through_slot && (answers || !through) {
            self.nodes[n].through_slot = through;
            self.disconnect(n);
        }
        let node = &self.nodes[n];
        let refused = node.receiver.is_none() && self.now.since(node.not_streaming_since) >= REFUSED_FOR;
        if through && refused && answers {
            self.look_for_left(p);
            let all = self.nodes[p].senders.len();
            let stays = |s: &Sender| s.node != n || !s.slot || s.left.as_ref().is_some_and(|l| l.still);
            self.nodes[p].senders.retain(stays);
            if self.nodes[p].senders.len() < all {
                self.reach("a slot taken back from a connection that was left");
            }
        }
    }

    /// What the agent of a primary sees of walsenders, and does about those without a slot that must have one.
    pub(crate) fn tend_walsenders(&mut self, n: usize) {
        let node = &self.nodes[n];
        let runs = node.is_primary() && !node.hangs(self.now);
        let policy = self.policy(n).filter(|_| runs && !self.without_slots);
        let must = policy.is_some_and(|p| slots::required(&p));
        if !must && !self.nodes[n].must_have_slots && self.nodes[n].seen_senders.doubted.is_empty() {
            return;
        }
        self.nodes[n].must_have_slots = must;
        if !runs {
            return;
        }
        self.look_for_left(n);
        let rows: Vec<Walsender> = self.nodes[n].senders.iter().map(|s| self.row(s)).collect();
        let members = self.nodes[n].view.as_ref().map(|v| v.members.values()).into_iter().flatten();
        let known: BTreeSet<NodeId> = members.filter(|m| m.slots).map(|m| m.node.clone()).collect();
        let (now, node) = (self.now, &mut self.nodes[n]);
        let seen = node.watch.look(now, &rows, USER, must.then_some(&known));
        if !seen.slotless.is_empty() {
            let is_meant = |s: &Sender| !s.slot && seen.slotless.contains(&name(s.node));
            let meant: Vec<NodeId> = node.senders.iter().filter(|s| is_meant(s)).map(|s| name(s.node)).collect();
            node.senders.retain(|s| !is_meant(s) || s.left.as_ref().is_some_and(|l| l.still));
            node.watch.ended(now, meant);
        }
        node.seen_senders = seen;
        if !self.nodes[n].seen_senders.slotless.is_empty() {
            self.reach("a connection ended for want of its slot");
        }
    }

    fn row(&self, sender: &Sender) -> Walsender {
        let node = name(sender.node);
        Walsender {
            pid: sender.pid,
            name: node.to_string(),
            user: USER.into(),
            state: "streaming".into(),
            flush_lsn: Some(sender.flushed),
            replay_lsn: Some(sender.flushed),
            sync_state: "quorum".into(),
            replied: Some(format!("{:?}", sender.replied)),
            slots: sender.slot.then(|| node.slot_name()),
        }
    }

    /// As pg_stat_replication shows them, without those that must have a slot and have none.
    pub(crate) fn followers(&self, n: usize) -> Vec<Follower> {
        let row = |s: &Sender| Follower {
            node: name(s.node),
            state: if s.caught_up { "streaming" } else { "catchup" }.into(),
            flush_lsn: Some(s.flushed),
            replay_lsn: Some(s.flushed),
            sync_state: "quorum".into(),
        };
        let node = &self.nodes[n];
        node.senders.iter().filter(|s| s.slot || !node.must_have_slots).map(row).collect()
    }

    /// `Agent::all_through_slots`: who keeps commits from waiting for these.
    pub(crate) fn not_through_slots(&self, n: usize, names: &SyncNames) -> BTreeSet<NodeId> {
        let SyncNames::Any { k, names: voters } = names else { return BTreeSet::new() };
        if *k < 2 || !self.policy(n).is_some_and(|p| self.wants_slots(&p)) {
            return BTreeSet::new();
        }
        let named = |slot: bool| self.nodes[n].senders.iter().filter(move |s| s.slot == slot).map(|s| name(s.node));
        slots::not_through(*k, voters, &named(true).collect(), &named(false).collect())
    }

    /// An order to make commits wait for two waits itself, for a while, until those stream through their slots.
    pub(crate) fn waits_for_slots(&mut self, n: usize, command: &Command) -> bool {
        let Command::Arm(Arm { term, sync_names, policy_epoch }) = command else { return false };
        let node = &self.nodes[n];
        let obeys = self.reachable(n) && node.serves(*term) && node.promise <= *term && self.etcd_up();
        if !obeys || node.hangs(self.now) {
            return false;
        }
        self.nodes[n].view = Some(self.records.clone());
        self.look_for_left(n);
        let names: SyncNames = sync_names.parse().expect("a list that the planner wrote");
        if self.not_through_slots(n, &names).is_empty() {
            return false;
        }
        let asked = self.nodes[n].arming.filter(|(epoch, _)| epoch == policy_epoch).map(|(_, since)| since);
        let since = asked.unwrap_or(self.now);
        self.nodes[n].arming = Some((*policy_epoch, since));
        self.now.since(since) < HELD_WITHIN
    }
}
