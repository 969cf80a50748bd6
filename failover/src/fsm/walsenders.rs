//! What a primary shows of its walsenders: the nodes' own, and who only uses their names. PURE.
//!
//! For `synchronous_standby_names` PostgreSQL counts names. One that is used wrongly (by another user, in another spelling,
//! without its slot where that is a must) is told of and ended. Which of two that log in as a node does is the node nobody
//! can tell; but a connection that was left behind says nothing any more, so two of them that go on answering are two that
//! live. What they have confirmed may be with one that no failover asks.
//!
//! A connection that begins or ends has no slot for a moment. So whoever lacks one is told of only under a name under which
//! somebody was still there without when he was to be ended: not by his process, as he comes back with another.

use crate::api::Follower;
use cluster::{Instant, Lsn, NodeId};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// So many answers of each, seen one by one since there were both, and both live. What was on its way from one that has been
/// left arrives at once.
const ANSWERS: u32 = 3;
/// Managers ask now and then: for so long they are told of who was seen.
const DOUBTED_FOR: Duration = Duration::from_secs(10);
/// For so long a name is remembered under which somebody was ended for want of a slot.
const ENDED_FOR: Duration = Duration::from_secs(60);

/// A row of pg_stat_replication.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Walsender {
    /// Its process.
    pub pid: i32,
    /// application_name, as it was given.
    pub name: String,
    /// Who has logged in.
    pub user: String,
    /// `startup`, `catchup`, `streaming`, …
    pub state: String,
    /// flush_lsn.
    pub flush_lsn: Option<Lsn>,
    /// replay_lsn.
    pub replay_lsn: Option<Lsn>,
    /// sync_state.
    pub sync_state: String,
    /// reply_time, as text: when its last answer was sent, by the clock of whoever sent it.
    pub replied: Option<String>,
    /// The slots that it has, where slots are a must.
    pub slots: Option<String>,
}

/// What there is.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Those of nodes, by name.
    pub followers: Vec<Follower>,
    /// In words, those that use a name as if they were a node: the wrong user, another spelling, without the slot, or one
    /// name twice.
    pub impostors: Vec<String>,
    /// Names that somebody has in one of the former ways but the last. They are to be ended.
    pub false_names: Vec<NodeId>,
    /// Of these the nodes that are to be ended for want of their slot.
    pub slotless: BTreeSet<NodeId>,
    /// Nodes in whose name somebody else confirms what it receives, or did a moment ago: what was acknowledged meanwhile
    /// may be with that one only.
    pub doubted: Vec<NodeId>,
}

/// What has to be remembered from one look to the next.
#[derive(Debug, Default)]
pub struct Watch {
    /// Nodes that have been seen to stream through their slots: their agents know of slots, whatever their records say.
    know: BTreeSet<NodeId>,
    /// Names under which somebody had to be ended who had no slot.
    ended: BTreeMap<NodeId, Instant>,
    /// Of those without a slot in the last look the ones that confirm something.
    confirmed: BTreeSet<NodeId>,
    /// Names under which somebody else has confirmed something, and when that was last seen.
    doubted: BTreeMap<NodeId, Instant>,
    /// Of each name that is used twice the connections, with their last answer and how many there have been.
    together: BTreeMap<NodeId, BTreeMap<i32, (Option<String>, u32)>>,
}

impl Watch {
    /// What one look at a primary shows. `user`: whom standbys log in as. `slots`: where standbys must stream through slots,
    /// those whose records say that their agents know of them.
    pub fn look(&mut self, now: Instant, rows: &[Walsender], user: &str, slots: Option<&BTreeSet<NodeId>>) -> Seen {
        let named: Vec<(NodeId, &Walsender)> = rows.iter().filter_map(|row| Some((node_named(row)?, row))).collect();
        let has_slot = |node: &NodeId, row: &Walsender| row.slots.as_deref() == Some(&node.slot_name());
        self.know.retain(|_| slots.is_some());
        let through = named.iter().filter(|(node, row)| how_wrong(node, row, user).is_none() && has_slot(node, row));
        self.know.extend(through.map(|(node, _)| node.clone()).filter(|_| slots.is_some()));
        self.ended.retain(|_, at| now.since(*at) < ENDED_FOR);
        self.confirmed.clear();
        let mut seen = Seen::default();
        let mut connections = BTreeMap::<NodeId, Vec<&Walsender>>::new();
        for (node, row) in named {
            let must = slots.is_some_and(|known| known.contains(&node) || self.know.contains(&node));
            // Before it streams it has no slot, and counts for nothing.
            let slotless = must && row.state != "startup" && !has_slot(&node, row);
            let wrong = how_wrong(&node, row, user);
            if wrong.is_none() && !slotless {
                connections.entry(node).or_default().push(row);
                continue;
            }
            if wrong.is_none() {
                seen.slotless.insert(node.clone());
                if confirms(row) {
                    self.confirmed.insert(node.clone());
                }
            }
            let again = self.ended.contains_key(&node).then(|| format!("{node} is used without its slot"));
            if let Some(told) = wrong.or(again) {
                seen.impostors.push(told);
                // What only receives (a backup, say) confirms nothing.
                if confirms(row) {
                    self.doubted.insert(node.clone(), now);
                }
            }
            seen.false_names.push(node);
        }
        self.together.retain(|node, _| connections.get(node).is_some_and(|all| all.len() > 1));
        for (node, rows) in connections {
            if rows.len() > 1 {
                seen.impostors.extend(rows.iter().skip(1).map(|_| format!("{node} is connected twice")));
                if self.live(&node, &rows) > 1 {
                    self.doubted.insert(node.clone(), now);
                }
            }
            seen.followers.extend(rows.into_iter().map(|row| follower(&node, row)));
        }
        seen.false_names.sort();
        seen.false_names.dedup();
        self.doubted.retain(|_, at| now.since(*at) < DOUBTED_FOR);
        seen.doubted = self.doubted.keys().cloned().collect();
        seen
    }

    /// Under these names somebody was still there, without a slot, to be ended.
    pub fn ended(&mut self, now: Instant, nodes: impl IntoIterator<Item = NodeId>) {
        for node in nodes {
            self.ended.insert(node.clone(), now);
            if self.confirmed.remove(&node) {
                self.doubted.insert(node, now);
            }
        }
    }

    /// How many of the connections under one name have gone on answering beside the others.
    fn live(&mut self, node: &NodeId, rows: &[&Walsender]) -> usize {
        let known = self.together.entry(node.clone()).or_default();
        known.retain(|pid, _| rows.iter().any(|r| r.pid == *pid));
        for row in rows {
            let (last, answers) = known.entry(row.pid).or_insert_with(|| (row.replied.clone(), 0));
            if *last != row.replied {
                (*last, *answers) = (row.replied.clone(), *answers + 1);
            }
        }
        known.values().filter(|(_, answers)| *answers >= ANSWERS).count()
    }
}

/// PostgreSQL compares names without regard to case: whoever is called N2 counts as n2.
fn node_named(row: &Walsender) -> Option<NodeId> {
    row.name.to_ascii_lowercase().parse().ok()
}

/// PostgreSQL counts those that stream and have told what they have flushed.
fn confirms(row: &Walsender) -> bool {
    row.flush_lsn.is_some() && matches!(row.state.as_str(), "streaming" | "stopping")
}

/// In words, why this one does not use the node's name as the node does.
fn how_wrong(node: &NodeId, row: &Walsender, user: &str) -> Option<String> {
    if row.name != node.as_str() {
        Some(format!("{node} is used as {} by user {}", row.name, row.user))
    } else if row.user != user {
        Some(format!("{node} is used by user {}", row.user))
    } else {
        None
    }
}

fn follower(node: &NodeId, row: &Walsender) -> Follower {
    Follower {
        node: node.clone(),
        state: row.state.clone(),
        flush_lsn: row.flush_lsn,
        replay_lsn: row.replay_lsn,
        sync_state: row.sync_state.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: &str = "pgtenure_repl";

    fn row(name: &str, user: &str) -> Walsender {
        let (state, flush_lsn) = ("streaming".into(), Some(Lsn(16)));
        Walsender { name: name.into(), user: user.into(), state, flush_lsn, ..Walsender::default() }
    }

    fn nodes(of: &[NodeId]) -> String {
        of.iter().map(NodeId::as_str).collect::<Vec<_>>().join(" ")
    }

    fn names(of: &Seen) -> String {
        of.followers.iter().map(|f| f.node.to_string()).collect::<Vec<_>>().join(" ")
    }

    fn all(names: &str) -> BTreeSet<NodeId> {
        names.split_whitespace().map(|n| n.parse().unwrap()).collect()
    }

    fn through(pid: i32, name: &str, state: &str, slots: Option<&str>) -> Walsender {
        Walsender { pid, state: state.into(), slots: slots.map(str::to_owned), ..row(name, OURS) }
    }

    fn at(s: u64) -> Instant {
        Instant::from_millis(s * 1000)
    }

    #[test]
    fn who_streams_without_its_slot_is_told_of_once_it_had_to_be_ended_whatever_its_process() {
        let known = all("n1 n2 n3 n4");
        let watch = &mut Watch::default();
        let mut look = |s, rows: &[Walsender], ended: &str| {
            let seen = watch.look(at(s), rows, OURS, Some(&known));
            watch.ended(at(s), all(ended));
            (seen.impostors.join(", "), nodes(&seen.false_names), nodes(&seen.doubted))
        };
        let told = |a: &str, b: &str, c: &str| (a.to_owned(), b.to_owned(), c.to_owned());
        let one_look = [
            through(1, "n2", "streaming", Some("pgtenure_n2")),
            through(2, "n2", "catchup", None),
            through(3, "n3", "streaming", Some("pgtenure_n2")),
            through(4, "n4", "startup", None),
        ];
        // To be ended at once; but n2's may just have ended by itself, and nobody is there any more.
        assert_eq!(look(0, &one_look, "n3"), told("", "n2 n3", ""));
        assert_eq!(look(1, &[], ""), told("", "", "n3"), "what it has confirmed until then counted");
        // It is back at once, as another process.
        let back = [through(5, "n3", "streaming", None), through(6, "n2", "streaming", None)];
        assert_eq!(look(5, &back, ""), told("n3 is used without its slot", "n2 n3", "n3"));
        assert_eq!(look(14, &[], ""), told("", "", "n3"));
        assert_eq!(look(15, &[], ""), told("", "", ""));
        assert_eq!(look(59, &back, ""), told("n3 is used without its slot", "n2 n3", "n3"));
        assert_eq!(look(70, &back, ""), told("", "n2 n3", ""));
    }

    #[test]
    fn a_node_must_have_its_slot_if_its_record_says_so_or_it_was_seen_to_have_it() {
        let watch = &mut Watch::default();
        let mut look = |rows: &[Walsender], slots: Option<&str>| {
            let seen = watch.look(at(0), rows, OURS, slots.map(all).as_ref());
            assert_eq!(seen.slotless, seen.false_names.iter().cloned().collect());
            (names(&seen), nodes(&seen.false_names))
        };
        let seen = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        let without = [through(1, "n2", "streaming", None), through(2, "n3", "streaming", None)];
        assert_eq!(look(&without, None), seen("n2 n3", ""), "none has to");
        assert_eq!(look(&without, Some("")), seen("n2 n3", ""), "agents from before there were slots");
        assert_eq!(look(&without, Some("n3")), seen("n2", "n3"));
        // The agents of the version before this one do not say it on record, but do it; another's slot tells nothing.
        let twice = [&without[..], &[through(3, "n2", "streaming", Some("pgtenure_n2"))]].concat();
        assert_eq!(look(&twice, Some("")), seen("n2 n3", "n2"));
        assert_eq!(look(&without, Some("")), seen("n3", "n2"));
        let other = [through(4, "n4", "streaming", Some("pgtenure_n2"))];
        assert_eq!(look(&other, Some("")), seen("n4", ""));
        assert_eq!(look(&without, None), seen("n2 n3", ""));
        assert_eq!(look(&without, Some("")), seen("n2 n3", ""), "k was lowered and raised again");
    }

    #[test]
    fn a_name_that_is_used_by_another_user_or_twice_is_an_impostors() {
        let told = |rows: &[Walsender]| {
            let seen = Watch::default().look(at(0), rows, OURS, None);
            (names(&seen), seen.impostors.join(", "), nodes(&seen.false_names))
        };
        let want = |a: &str, b: &str, c: &str| (a.to_owned(), b.to_owned(), c.to_owned());
        assert_eq!(told(&[row("n3", OURS), row("n2", OURS), row("Not A Node", "backup")]), want("n2 n3", "", ""));
        assert_eq!(told(&[row("n2", OURS), row("n2", OURS)]), want("n2 n2", "n2 is connected twice", ""));
        assert_eq!(told(&[row("n2", "backup")]), want("", "n2 is used by user backup", "n2"));
        let doubted = |row: Walsender| nodes(&Watch::default().look(at(0), &[row], OURS, None).doubted);
        assert_eq!(doubted(row("n2", "backup")), "n2");
        assert_eq!(doubted(Walsender { flush_lsn: None, ..row("n2", "backup") }), "", "it confirms nothing");
        let both = [row("n2", "backup"), row("n2", OURS)];
        assert_eq!(told(&both), want("n2", "n2 is used by user backup", "n2"));

        // PostgreSQL counts another spelling for the quorum too, whoever has it.
        assert_eq!(told(&[row("N2", "backup")]), want("", "n2 is used as N2 by user backup", "n2"));
        let spelled = format!("n_i is used as N_I by user {OURS}");
        assert_eq!(told(&[row("N_I", OURS), row("n3", OURS)]), want("n3", &spelled, "n_i"));
        let several = [row("N_I", OURS), row("n_I", "backup"), row("n_i", OURS)];
        assert_eq!(told(&several), want("n_i", &format!("{spelled}, n_i is used as n_I by user backup"), "n_i"));
    }

    #[test]
    fn two_that_go_on_answering_as_one_node_live_and_one_that_was_left_does_not() {
        let (watch, mut now) = (&mut Watch::default(), at(0));
        let mut look = |pids: &[(i32, u32)]| {
            let rows: Vec<Walsender> = pids
                .iter()
                .map(|(pid, replied)| Walsender { pid: *pid, replied: Some(replied.to_string()), ..row("n2", OURS) })
                .collect();
            let seen = watch.look(now, &rows, OURS, None);
            now = now + DOUBTED_FOR / 2;
            (seen.impostors.len(), nodes(&seen.doubted))
        };
        let (none, both) = ((1, String::new()), (1, "n2".to_owned()));
        assert_eq!(look(&[(1, 5)]), (0, String::new()));
        // The second is its new connection: of the first only what was on its way comes.
        for second in 0..20 {
            assert_eq!(look(&[(1, 5 + second.min(2)), (2, second)]), none, "{second}");
        }
        assert_eq!(look(&[(2, 20)]), (0, String::new()));
        // Both go on: they are two.
        assert_eq!(look(&[(2, 21), (3, 0)]), none);
        assert_eq!(look(&[(2, 22), (3, 1)]), none);
        assert_eq!(look(&[(2, 23), (3, 2)]), none);
        assert_eq!(look(&[(2, 24), (3, 3)]), both);
        // A third begins to live with the next answers.
        assert_eq!(look(&[(2, 25), (4, 0)]), both, "a moment ago there were two");
        assert_eq!(look(&[(2, 26), (4, 1)]), none);
    }
}
