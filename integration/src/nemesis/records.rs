//! What the product itself has on record of a run: policies, recruits, what was lost, what became of commits in doubt.

use super::run::WRITES_AGAIN;
use super::told::{Doubts, Policy, Reported};
use super::world::World;
use crate::wait::wait_for;
use serde_json::Value;
use std::collections::BTreeMap;

/// What commits had to wait for in a run, by the policies that were in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Promise {
    /// For the quorums of all of them, all the time.
    Kept(Policy),
    /// There was a time when they waited for nobody.
    Lowered,
}

/// The promise since the policy was in that epoch.
pub(super) fn promise(world: &World, since: u64) -> Result<Promise, String> {
    let history: Value = wait_for("the policies", WRITES_AGAIN, || {
        let verb = world.verb(&["policy", "--history", "--json"]);
        serde_json::from_str(&verb.stdout).map_err(|e| format!("{e}: {verb:?}"))
    });
    let now = wait_for("the policy", WRITES_AGAIN, || Ok::<_, String>(world.status()?["policy"].clone()));
    // The first one of a cluster may be on no record but its own.
    let all: Vec<&Value> = history["history"].as_array().into_iter().flatten().chain([&now]).collect();
    promise_of(&all, since).ok_or_else(|| format!("no policy since epoch {since}: {history}"))
}

/// Of several quorums the weakest: as many as the least asks for, of whoever any names.
fn promise_of(policies: &[&Value], since: u64) -> Option<Promise> {
    let mut kept: Option<Policy> = None;
    for policy in policies.iter().filter(|p| p["epoch"].as_u64().is_some_and(|epoch| epoch >= since)) {
        if policy["mode"] == "async" || !policy["suspended"].is_null() {
            return Some(Promise::Lowered);
        }
        for quorum in [*policy, &policy["joint"]].into_iter().filter(|q| q["voters"].is_array()) {
            let k = usize::try_from(quorum["k"].as_u64()?).ok()?;
            let names = quorum["voters"].as_array()?.iter().filter_map(|v| Some(v.as_str()?.to_owned()));
            let all = kept.get_or_insert_with(|| Policy { voters: Vec::new(), k });
            all.k = all.k.min(k);
            all.voters.extend(names);
        }
    }
    kept.map(Promise::Kept)
}

/// The epoch of the policy now.
pub(super) fn epoch(world: &World) -> u64 {
    wait_for("the policy", WRITES_AGAIN, || {
        let status = world.status()?;
        status["policy"]["epoch"].as_u64().ok_or_else(|| format!("no policy in the status: {status}"))
    })
}

/// The nodes that each term was decided on, as the managers' journal has them.
pub(super) fn recruits(world: &World) -> BTreeMap<u64, Vec<String>> {
    let history: Value = wait_for("the managers' journal", WRITES_AGAIN, || {
        let verb = world.verb(&["history", "--json"]);
        serde_json::from_str(&verb.stdout).map_err(|e| format!("{e}: {verb:?}"))
    });
    let of = |entry: &Value| {
        let all = entry["recruits"].as_array().into_iter().flatten();
        Some((entry["term"].as_u64()?, all.filter_map(|r| Some(r["node"].as_str()?.to_owned())).collect()))
    };
    history["history"].as_array().into_iter().flatten().filter_map(of).collect()
}

/// The reports of the terms that began in a run.
pub(super) fn reports(world: &World, began: u64, ended: u64) -> BTreeMap<u64, Value> {
    let report = |term: u64| {
        let verb = world.verb(&["report", &term.to_string(), "--json"]);
        Some((term, serde_json::from_str::<Value>(&verb.stdout).ok()?))
    };
    (began + 1..=ended).filter_map(report).collect()
}

/// What they list as lost. A report comes when the old primary has been looked at.
pub(super) fn reported(reports: &BTreeMap<u64, Value>) -> Reported {
    let mut all = Reported::new();
    for (term, report) in reports {
        lost_in(report, all.entry(*term).or_default());
    }
    all
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
        let Promise::Kept(Policy { voters, k }) = &found else { panic!("{found:?}") };
        assert_eq!(*k, 1);
        assert!(["n1", "n2", "n3"].iter().all(|n| voters.iter().any(|v| v == n)), "{voters:?}");
        assert!(!voters.iter().any(|v| v == "n9"), "that was over when the run began");
        let mut suspended = after.clone();
        suspended["suspended"] = json!({ "since": "0/1" });
        assert_eq!(promise_of(&[&before, &suspended], 4), Some(Promise::Lowered));
        assert_eq!(promise_of(&[&before], 4), None);
    }

    #[test]
    fn doubts_are_summed_over_proxies_and_terms_once() {
        let told = |term: u64, proxy: &str, n: u64| json!({ "term": term, "proxy": proxy, "survived": n, "lost": 10 * n, "unknown": 100 * n });
        let reports = BTreeMap::from([
            (2, json!({ "doubts": [told(1, "p1", 1), told(1, "p2", 2)] })),
            // Term 2 was given up.
            (3, json!({ "doubts": [told(1, "p1", 1), told(1, "p2", 2)] })),
            (4, json!({ "doubts": [told(3, "p1", 3)] })),
        ]);
        assert_eq!(doubts(&reports), Doubts { survived: 6, lost: 60, unknown: 600 });
    }
}
