//! What the clients of a run did and were told, and what the database held afterwards. PURE data.

use super::deeds::At;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// What every account holds at first.
pub const OPENING_BALANCE: i64 = 1000;

/// Who answered, as the statement itself found out on that server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stamp {
    /// The node.
    pub node: String,
    /// The timeline it writes, which has to be its term.
    pub timeline: u64,
    /// Where its WAL ended then, before the commit.
    pub lsn: u64,
    /// The transaction's id.
    pub xid: u64,
    /// `synchronous_standby_names` as it saw it.
    pub sync_names: String,
    /// Its `synchronous_commit`.
    pub sync_commit: String,
}

/// What commits have to wait for, by the record in etcd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Nodes that count.
    pub voters: Vec<String>,
    /// Of how many besides the primary.
    pub k: usize,
}

/// What one of a run's policies asked for; two quorums at once, while they are changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// The fewest copies besides the primary's that either asks for.
    pub least: usize,
    /// And the most.
    pub most: usize,
    /// Whoever votes in either.
    pub voters: BTreeSet<String>,
}

/// A time in which commits waited for nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lowered {
    /// What was acknowledged before is kept. Since 1970, where that is known.
    pub since: Option<Duration>,
    /// From here on, in this term, it is kept again.
    pub until: Option<(u64, u64)>,
}

/// What a client tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// A row that nobody else inserts.
    Insert {
        /// Its id.
        id: i64,
    },
    /// Money from one account to another, in a transaction block.
    Transfer {
        /// The transfer's own id.
        id: i64,
        /// Debited account.
        from: i64,
        /// Credited account.
        to: i64,
        /// How much.
        amount: i64,
    },
    /// A value that nobody else appends, to the end of a list.
    Append {
        /// The list.
        list: i64,
        /// The value.
        value: i64,
    },
    /// A list read.
    Read {
        /// The list.
        list: i64,
        /// In a transaction block, which only a primary serves.
        at_primary: bool,
    },
    /// The sum of all accounts read.
    Total,
}

/// How it ended for the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Success was answered.
    Ok,
    /// Refused with this SQLSTATE: nothing has happened.
    Failed(String),
    /// It may have happened or not.
    Unknown(String),
}

/// One operation. Times are since the start of the run.
#[derive(Clone, Debug)]
pub struct Event {
    /// The client.
    pub client: usize,
    /// Its session: one more with each connection.
    pub session: u64,
    /// What it tried.
    pub op: Op,
    /// When the statement that could do it was sent.
    pub sent: Duration,
    /// When the answer was there.
    pub answered: Duration,
    /// How it ended.
    pub outcome: Outcome,
    /// Who answered, when somebody did.
    pub stamp: Option<Stamp>,
    /// The list as an append or a read answered it; the total, of a [`Op::Total`].
    pub seen: Vec<i64>,
    /// A read that a standby answered.
    pub at_standby: bool,
    /// A COMMIT was sent, and this is what was answered to it.
    pub commit: bool,
}

/// What a node held once everything had come to rest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Content {
    /// How often each row was there.
    pub rows: BTreeMap<i64, usize>,
    /// The accounts.
    pub balances: BTreeMap<i64, i64>,
    /// How often each transfer was there.
    pub transfers: BTreeMap<i64, usize>,
    /// The lists.
    pub lists: BTreeMap<i64, Vec<i64>>,
    /// Terms and the nodes that were primary, by `pgtenure.term`.
    pub terms: Vec<(u64, String)>,
}

/// Transactions that the product has reported as lost, by the term that began without them.
pub type Reported = BTreeMap<u64, Vec<u64>>;

/// What a term's managers told at once of what the old primary had written and the new one lacks, and what was known of that then
/// and later. Positions are of the old primary's timeline.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Provisional {
    /// The old primary.
    pub node: String,
    /// Its term.
    pub ended: u64,
    /// The window's beginning.
    pub from: u64,
    /// And its end.
    pub to: u64,
    /// It was heard until then, since 1970, where the term began because it was not heard any more, or was dead.
    pub heard: Option<Duration>,
    /// Where it ended, where that was known when the new primary was chosen.
    pub end: Option<u64>,
    /// By its own WAL, read later: where that begins which the new primary lacks, and the last commit in it.
    pub left: Option<(u64, u64)>,
}

/// What became of writes in doubt, by the product's reports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Doubts {
    /// COMMITs answered as done after their server was lost.
    pub survived: u64,
    /// COMMITs answered 40001.
    pub lost: u64,
    /// Writes answered 08007.
    pub unknown: u64,
}

/// A whole run.
#[derive(Clone, Debug, Default)]
pub struct Told {
    /// All operations, in no particular order.
    pub events: Vec<Event>,
    /// What each node held at the end, by name, but for those that were away; the primary's among them.
    pub nodes: BTreeMap<String, Content>,
    /// The primary at the end; nobody, where no term was open then.
    pub primary: String,
    /// Those that did not stream at the end, or did not replay all there is. What they lost nobody may have looked at yet.
    pub away: BTreeSet<String>,
    /// The timeline it writes.
    pub timeline: u64,
    /// Every timeline's history file on every node, by (timeline, node). Empty files are left out.
    pub histories: BTreeMap<(u64, String), String>,
    /// What was reported as lost.
    pub reported: Reported,
    /// Terms whose managers gave them up. What their reports list may be in a later term all the same.
    pub given_up: BTreeSet<u64>,
    /// What was told at once of what terms lack, by the term.
    pub provisional: BTreeMap<u64, Provisional>,
    /// What was reported of writes in doubt.
    pub doubts: Doubts,
    /// The policy, where commits wait for standbys all the time.
    pub policy: Option<Policy>,
    /// The most standbys that any of the policies in force asked for.
    pub most: usize,
    /// What each of them asked for, in their order.
    pub asked: Vec<Asked>,
    /// Where they do not: the weakest of the policies under which they did, and when they did not. An operator who let data be
    /// lost takes all of it back.
    pub at_times: Option<(Policy, Vec<Lowered>)>,
    /// What each node's agent did, by its log, since the cluster was made.
    pub deeds: BTreeMap<String, Vec<At>>,
    /// The highest term that each agent has promised, on its disk.
    pub promises: BTreeMap<String, u64>,
    /// The nodes whose WAL each term was decided on.
    pub recruits: BTreeMap<u64, Vec<String>>,
    /// Our replication slots on each node in the end, and those that it ought to have.
    pub slots: BTreeMap<String, (Vec<String>, Vec<String>)>,
    /// Directories with lost WAL and its report.
    pub kept: BTreeSet<String>,
    /// When the operations began, since 1970, where the agents' clocks are right.
    pub began: Option<Duration>,
}

impl Told {
    /// What an acknowledged write waited for, if it was acknowledged while commits wait for standbys: then it is kept,
    /// whatever was lowered afterwards.
    pub fn promised(&self, event: &Event) -> Option<&Policy> {
        let Some((policy, times)) = &self.at_times else { return self.policy.as_ref() };
        let (answered, stamp) = (self.began? + event.answered, event.stamp.as_ref()?);
        let outside = |t: &Lowered| {
            let before = t.since.is_some_and(|since| answered < since);
            let behind = t.until.is_some_and(|until| (stamp.timeline, stamp.lsn) >= until);
            before || behind
        };
        times.iter().all(outside).then_some(policy)
    }
}
