//! What the product itself has on record of a run: policies, recruits, what was lost, what became of commits in doubt.

use super::collect::Since;
use super::run::WRITES_AGAIN;
use super::told::{Asked, Doubts, Lowered, Policy, Provisional, Reported, Told};
use super::world::{ASK_EVERY, World};
use crate::config_file::NODES;
use crate::wait::wait_for;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// Agents look at slots every 500 ms; one that was used and left is made anew after 10 s.
const SLOTS_WITHIN: Duration = Duration::from_secs(20);

/// What commits had to wait for in a run, by the policies that were in force.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Promise {
    /// The weakest of the quorums that they waited for.
    weakest: Option<Policy>,
    /// The most standbys that any of them asked for.
    most: usize,
    /// What each of them asked for.
    asked: Vec<Asked>,
    /// When they waited for nobody.
    lowered: Vec<Lowered>,
    /// An operator let data be lost.
    taken_back: bool,
}

impl Promise {
    /// Write into what is told of the run what it is to be held to.
    pub(super) fn told(self, reports: &BTreeMap<u64, Value>, told: &mut Told) {
        (told.most, told.asked) = (self.most, self.asked);
        if self.lowered.is_empty() {
            told.policy = self.weakest;
            return;
        }
        told.reported = reported(reports);
        told.given_up = given_up(reports);
        told.at_times = self.weakest.filter(|_| !self.taken_back).map(|policy| (policy, self.lowered));
    }
}

/// The promise in a run.
pub(super) fn promise(world: &World, since: Since) -> Result<Promise, String> {
    let history: Value = wait_for("the policies", WRITES_AGAIN, || {
        let verb = world.verb(&["policy", "--history", "--json"]);
        serde_json::from_str(&verb.stdout).map_err(|e| format!("{e}: {verb:?}"))
    });
    let now = wait_for("the policy", WRITES_AGAIN, || Ok::<_, String>(world.status()?["policy"].clone()));
    let mut all: Vec<&Value> = history["history"].as_array().into_iter().flatten().collect();
    // The first one of a cluster may be on no record but its own.
    if !all.iter().any(|p| p["epoch"] == now["epoch"]) {
        all.push(&now);
    }
    all.sort_by_key(|p| p["epoch"].as_u64());
    let mut promise =
        promise_of(&all, since.epoch).ok_or_else(|| format!("no policy since epoch {}: {history}", since.epoch))?;
    let lossy = |entry: &Value| entry["term"].as_u64() > Some(since.term) && entry["data_loss_allowed"] == true;
    promise.taken_back |= journal(world)["history"].as_array().into_iter().flatten().any(lossy);
    Ok(promise)
}

/// Of several quorums the weakest: as many as the least asks for, of whoever any names. And the times without any, of
/// policies in the order of their epochs.
fn promise_of(policies: &[&Value], since: u64) -> Option<Promise> {
    let mut promise = Promise::default();
    let mut low: Option<Lowered> = None;
    for policy in policies.iter().filter(|p| p["epoch"].as_u64().is_some_and(|epoch| epoch >= since)) {
        let suspended = &policy["suspended"];
        if policy["mode"] == "async" || !suspended.is_null() {
            // Once without steps in between: by an operator who let data be lost.
            promise.taken_back |= !suspended.is_null() && suspended["lowered"].is_null();
            let since = suspended["since_wall"].as_u64().map(Duration::from_millis);
            low = low.or(Some(Lowered { since, until: None }));
            continue;
        }
        if let Some(low) = low.take() {
            promise.lowered.push(Lowered { until: rearmed(policy), ..low });
        }
        let mut asked = Asked { least: usize::MAX, ..Asked::default() };
        for quorum in [*policy, &policy["joint"]].into_iter().filter(|q| q["voters"].is_array()) {
            let k = usize::try_from(quorum["k"].as_u64()?).ok()?;
            let names = quorum["voters"].as_array()?.iter().filter_map(|v| Some(v.as_str()?.to_owned()));
            let names: Vec<String> = names.collect();
            (asked.least, asked.most) = (asked.least.min(k), asked.most.max(k));
            asked.voters.extend(names.iter().cloned());
            let all = promise.weakest.get_or_insert_with(|| Policy { voters: Vec::new(), k });
            all.k = all.k.min(k);
            promise.most = promise.most.max(k);
            all.voters.extend(names);
        }
        promise.asked.push(asked);
    }
    promise.lowered.extend(low);
    (promise != Promise::default()).then_some(promise)
}

/// Where protection began again.
fn rearmed(policy: &Value) -> Option<(u64, u64)> {
    let rearmed = &policy["rearmed"];
    Some((rearmed["term"].as_u64()?, lsn(&rearmed["lsn"])?))
}

/// A position, as records have it.
fn lsn(text: &Value) -> Option<u64> {
    let (high, low) = text.as_str()?.split_once('/')?;
    let [high, low] = [high, low].map(|half| u64::from_str_radix(half, 16).ok());
    Some((high? << 32) + low?)
}

/// The epoch of the policy now.
pub(super) fn epoch(world: &World) -> u64 {
    wait_for("the policy", WRITES_AGAIN, || {
        let status = world.status()?;
        status["policy"]["epoch"].as_u64().ok_or_else(|| format!("no policy in the status: {status}"))
    })
}

/// The managers' journal.
fn journal(world: &World) -> Value {
    wait_for("the managers' journal", WRITES_AGAIN, || {
        let verb = world.verb(&["history", "--json"]);
        serde_json::from_str(&verb.stdout).map_err(|e| format!("{e}: {verb:?}"))
    })
}

/// Our slots on each node, and those that the policy asks for. Agents see to that soon, but not at once. Those of who is away,
/// there and elsewhere, are nobody's business.
pub(super) fn slots(world: &World, primary: &str, away: &[&str]) -> BTreeMap<String, (Vec<String>, Vec<String>)> {
    let policy = wait_for("the policy", WRITES_AGAIN, || Ok::<_, String>(world.status()?["policy"].clone()));
    let wanted = [&policy, &policy["joint"]].iter().any(|q| q["k"].as_u64() > Some(1));
    let want = |node: &str| {
        let others = NODES.into_iter().filter(|n| wanted && *n != node && !away.contains(n));
        others.map(|n| format!("pgtenure_{n}{}", if node == primary { " in use" } else { "" })).collect::<Vec<_>>()
    };
    // Those of standbys nobody uses.
    let sql = "select slot_name || case when active then ' in use' else '' end from pg_replication_slots \
         where starts_with(slot_name::text, 'pgtenure_') order by 1";
    let have = |node: &str| -> Vec<String> {
        let found = world.superuser(node, sql).unwrap_or_else(|e| e);
        let of = |line: &str, node: &str| line.split(' ').next() == Some(&format!("pgtenure_{node}"));
        found.lines().filter(|line| !away.iter().any(|node| of(line, node))).map(str::to_owned).collect()
    };
    let begun = Instant::now();
    loop {
        let there = NODES.iter().filter(|n| !away.contains(n));
        let all: BTreeMap<_, _> = there.map(|n| ((*n).to_owned(), (have(n), want(n)))).collect();
        if begun.elapsed() > SLOTS_WITHIN || all.values().all(|(have, want)| have == want) {
            return all;
        }
        std::thread::sleep(ASK_EVERY);
    }
}

/// The nodes that each term was decided on, as the managers' journal has them.
pub(super) fn recruits(world: &World) -> BTreeMap<u64, Vec<String>> {
    let history = journal(world);
    let of = |entry: &Value| {
        let all = entry["recruits"].as_array().into_iter().flatten();
        Some((entry["term"].as_u64()?, all.filter_map(|r| Some(r["node"].as_str()?.to_owned())).collect()))
    };
    history["history"].as_array().into_iter().flatten().filter_map(of).collect()
}

/// The reports of the terms that began in a run, as far as the managers' journal has them. One that is not told at once, as while etcd
/// has no leader, is asked for again: what it lists would count as unreported.
pub(super) fn reports(world: &World, began: u64, ended: u64) -> BTreeMap<u64, Value> {
    let history = journal(world);
    let listed = history["history"].as_array().into_iter().flatten().filter_map(|entry| entry["term"].as_u64());
    let report = |term: u64| {
        let report = wait_for(&format!("the report of term {term}"), WRITES_AGAIN, || {
            let verb = world.verb(&["report", &term.to_string(), "--json"]);
            serde_json::from_str(&verb.stdout).map_err(|e| format!("{e}: {verb:?}"))
        });
        (term, report)
    };
    listed.filter(|term| (began + 1..=ended).contains(term)).map(report).collect()
}

/// What they list as lost. A report comes when the old primary has been looked at.
pub(super) fn reported(reports: &BTreeMap<u64, Value>) -> Reported {
    let mut all = Reported::new();
    for (term, report) in reports {
        lost_in(report, all.entry(*term).or_default());
    }
    all
}

/// Of which terms do they tell that they were given up?
fn given_up(reports: &BTreeMap<u64, Value>) -> BTreeSet<u64> {
    let outcome = |report: &Value| report.pointer("/journal/finished").and_then(Value::as_str).map(str::to_owned);
    reports.iter().filter(|(_, r)| outcome(r).is_some_and(|how| how != "active")).map(|(term, _)| *term).collect()
}

/// What they tell at once of what terms that were opened lack, and what was found of that later.
pub(super) fn provisional(reports: &BTreeMap<u64, Value>) -> BTreeMap<u64, Provisional> {
    let open = reports.iter().filter(|(_, report)| report["journal"]["finished"] == "active");
    open.filter_map(|(term, report)| Some((*term, provisional_of(report)?))).collect()
}

fn provisional_of(report: &Value) -> Option<Provisional> {
    let (journal, list) = (&report["journal"], |value: &Value| value.as_array().cloned().unwrap_or_default());
    let (node, window) = (journal["from"].as_str()?, &journal["window"]);
    let ended = journal["ended"].as_u64()?;
    let of_it = |value: &Value| value["timeline"] == ended;
    let recruit = list(&journal["recruits"]).into_iter().find(|r| r["node"] == node && of_it(r));
    let clean = Some(&journal["clean_end"]).filter(|end| of_it(end)).and_then(|end| lsn(&end["lsn"]));
    // In milliseconds since it was heard last.
    let begun = list(&journal["phases"]).iter().find(|p| p["phase"] == "recruiting").and_then(|p| p["ms"].as_u64());
    let heard = begun.filter(|_| journal["cause"] == "failover").zip(journal["started"].as_u64());
    let own = |r: &Value| r["node"] == node && of_it(r) && r["unread_to"].is_null();
    let left = list(&report["reports"]).into_iter().find(own).and_then(|r| {
        let begin = lsn(&r["fork_lsn"])?;
        let last = list(&r["transactions"]).iter().filter_map(|t| lsn(&t["lsn"])).max();
        Some((begin, last.unwrap_or(begin)))
    });
    Some(Provisional {
        node: node.to_owned(),
        ended,
        from: lsn(&window["fork_lsn"])?,
        to: lsn(&window["last_known_lsn"])?,
        heard: heard.map(|(begun, started)| Duration::from_millis(started.saturating_sub(begun))),
        end: recruit.and_then(|r| lsn(&r["lsn"])).max(clean),
        left,
    })
}

/// What they tell of writes in doubt. A term that was given up tells of the same as the one after it.
pub(super) fn doubts(reports: &BTreeMap<u64, Value>) -> Doubts {
    let mut by_proxy: BTreeMap<(u64, String), &Value> = BTreeMap::new();
    for told in reports.values().flat_map(|r| r["doubts"].as_array().into_iter().flatten()) {
        if let (Some(term), Some(proxy)) = (told["term"].as_u64(), told["proxy"].as_str()) {
            by_proxy.insert((term, proxy.to_owned()), told);
        }
    }
    let sum = |what: &str| by_proxy.values().filter_map(|told| told[what].as_u64()).sum();
    Doubts { survived: sum("survived"), lost: sum("lost"), unknown: sum("unknown") }
}

/// Every transaction id in a report, wherever it keeps them.
fn lost_in(json: &Value, ids: &mut Vec<u64>) {
    match json {
        Value::Array(list) => list.iter().for_each(|v| lost_in(v, ids)),
        Value::Object(map) => {
            ids.extend(map.get("xid").and_then(Value::as_u64));
            map.values().for_each(|v| lost_in(v, ids));
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_weakest_of_the_policies_in_force_is_what_was_promised() {
        let of = |epoch: u64, k: u64, voters: &[&str]| json!({ "epoch": epoch, "mode": "strict", "k": k, "voters": voters, "suspended": null });
        let mut changing = of(4, 1, &["n1", "n2"]);
        changing["joint"] = json!({ "voters": ["n1", "n2", "n3"], "k": 2 });
        let (before, after) = (of(1, 0, &["n9"]), of(5, 2, &["n1", "n2", "n3"]));
        let found = promise_of(&[&before, &changing, &after], 4).unwrap();
        let asked: Vec<(usize, usize)> = found.asked.iter().map(|a| (a.least, a.most)).collect();
        assert_eq!(asked, [(1, 2), (2, 2)]);
        let Policy { voters, k } = found.weakest.unwrap();
        assert_eq!((k, found.most, found.lowered.len(), found.taken_back), (1, 2, 0, false));
        assert!(["n1", "n2", "n3"].iter().all(|n| voters.iter().any(|v| v == n)), "{voters:?}");
        assert!(!voters.iter().any(|v| v == "n9"), "that was over when the run began");
        assert_eq!(promise_of(&[&before], 4), None);
    }

    #[test]
    fn the_times_without_protection_are_told_from_the_others() {
        let of = |epoch: u64, mode: &str| json!({ "epoch": epoch, "mode": mode, "k": 1, "voters": ["n1", "n2"], "suspended": null });
        let suspended = |epoch: u64, mode: &str, wall: u64| {
            let mut policy = of(epoch, mode);
            policy["suspended"] = json!({ "term": 3, "since": "0/1", "since_wall": wall, "lowered": { "k": 1 } });
            policy
        };
        let mut again = of(6, "available");
        again["rearmed"] = json!({ "term": 3, "lsn": "1/20" });
        let (a, b) = (suspended(4, "available", 7_000), suspended(5, "available", 7_000));
        let (c, d) = (suspended(7, "async", 9_000), of(8, "async"));
        let found = promise_of(&[&of(3, "available"), &a, &b, &again, &c, &d], 3).unwrap();
        let first = Lowered { since: Some(Duration::from_secs(7)), until: Some((3, (1 << 32) + 0x20)) };
        let last = Lowered { since: Some(Duration::from_secs(9)), until: None };
        assert_eq!(found.lowered, [first, last]);
        assert_eq!((found.weakest.map(|p| p.k), found.taken_back), (Some(1), false));

        let mut lossy = suspended(4, "strict", 7_000);
        lossy["suspended"]["lowered"] = Value::Null;
        assert!(promise_of(&[&of(3, "strict"), &lossy], 3).unwrap().taken_back);
        let always = promise_of(&[&of(3, "async")], 3).unwrap();
        assert_eq!((always.weakest, always.lowered), (None, vec![Lowered { since: None, until: None }]));
    }

    #[test]
    fn what_was_told_at_once_of_a_loss_is_read_with_what_was_found_of_it() {
        let window = json!({ "fork_lsn": "0/30", "last_known_lsn": "1/40", "bytes": 10, "ms": null });
        let mut journal = json!({
            "finished": "active", "from": "n1", "ended": 7, "cause": "failover", "started": 9_000, "window": window,
            "phases": [{ "phase": "detected", "ms": 5 }, { "phase": "recruiting", "ms": 1_500 }],
            "recruits": [{ "node": "n2", "timeline": 7, "lsn": "0/30" }],
        });
        let report = |node: &str| {
            let lost = [json!({ "xid": 8, "lsn": "0/31" }), json!({ "xid": 9, "lsn": "0/38" })];
            json!({ "node": node, "timeline": 7, "fork_lsn": "0/30", "transactions": lost })
        };
        let of = |journal: &Value, by: &str| {
            provisional(&[(8, json!({ "journal": journal, "reports": [report(by)] }))].into())
        };
        let told = Provisional {
            node: "n1".into(),
            ended: 7,
            from: 0x30,
            to: (1 << 32) + 0x40,
            heard: Some(Duration::from_millis(7_500)),
            end: None,
            left: Some((0x30, 0x38)),
        };
        assert_eq!(of(&journal, "n1"), BTreeMap::from([(8, told.clone())]));
        assert_eq!(of(&journal, "n2")[&8], Provisional { left: None, ..told.clone() }, "another's WAL");
        journal["cause"] = "switchover".into();
        journal["clean_end"] = json!({ "timeline": 7, "lsn": "0/35" });
        assert_eq!(of(&journal, "n1")[&8], Provisional { heard: None, end: Some(0x35), ..told.clone() });
        journal["recruits"] = json!([{ "node": "n1", "timeline": 7, "lsn": "0/39" }]);
        assert_eq!(of(&journal, "n1")[&8].end, Some(0x39));
        journal["finished"] = "given up".into();
        assert_eq!(of(&journal, "n1"), BTreeMap::new());
    }

    #[test]
    fn doubts_are_summed_over_proxies_and_terms_once() {
        let told = |term: u64, proxy: &str, n: u64| json!({ "term": term, "proxy": proxy, "survived": n, "lost": 10 * n, "unknown": 100 * n });
        let reports = BTreeMap::from([
            (2, json!({ "doubts": [told(1, "p1", 1), told(1, "p2", 2)] })),
            // Term 3 was given up.
            (3, json!({ "journal": { "finished": "given up" }, "doubts": [told(1, "p1", 1), told(1, "p2", 2)] })),
            (4, json!({ "journal": { "finished": "active" }, "doubts": [told(3, "p1", 3)] })),
        ]);
        assert_eq!(given_up(&reports), BTreeSet::from([3]));
        assert_eq!(doubts(&reports), Doubts { survived: 6, lost: 60, unknown: 600 });
    }
}
