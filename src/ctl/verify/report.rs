//! A run's result, for people and as JSON.

use super::checker::{Broken, Mode};
use super::ground::SCHEMA;
use super::run::{Example, Result, Tally};
use super::spread::Spread;
use crate::ctl::table::Table;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;

impl Result {
    /// All violations.
    pub(super) fn violations(&self) -> u64 {
        self.tallies.values().flat_map(|t| t.violations.values()).sum::<u64>() + self.shown_and_refused
    }

    /// Why this is no success; `None` when every promise was checked and held.
    pub(super) fn complaint(&self, reads: Option<u64>) -> Option<String> {
        let violations = self.violations();
        if violations > 0 {
            return Some(format!("{violations} violations: a promise was broken"));
        }
        let least = reads.unwrap_or(1);
        let few = self.tallies.iter().find(|(_, t)| t.reads < least);
        if let Some((mode, tally)) = few {
            return Some(format!("only {} of {least} reads of mode {} were checked", tally.reads, mode.as_str()));
        }
        if self.writes.acknowledged == 0 {
            return Some("no write was acknowledged, so nothing was checked".to_owned());
        }
        let least = self.standby_share?;
        let (mode, tally) = self.tallies.iter().find(|(_, t)| t.by_standbys == 0 || share(t) < least)?;
        let mode = mode.as_str();
        Some(match tally.by_standbys {
            0 => format!("no read of mode {mode} was served by a standby: nothing is known of them"),
            by_standbys => format!(
                "standbys have served {by_standbys} of {} reads of mode {mode}, less than the share of {least} that was asked for",
                tally.reads
            ),
        })
    }

    /// The rarer ways of all modes.
    fn ways(&self) -> BTreeMap<&'static str, (u64, u64)> {
        let mut ways: BTreeMap<&'static str, (u64, u64)> = BTreeMap::new();
        for (way, (reads, by_standbys)) in self.tallies.values().flat_map(|t| &t.ways) {
            let sum = ways.entry(way).or_default();
            *sum = (sum.0 + reads, sum.1 + by_standbys);
        }
        ways
    }

    /// As JSON.
    pub(super) fn json(&self, reads: Option<u64>) -> Value {
        json!({
            "holds": self.complaint(reads).is_none(),
            "complaint": self.complaint(reads),
            "seconds": self.took.as_secs_f64(),
            "interrupted": self.interrupted,
            "writes": {
                "acknowledged": self.writes.acknowledged,
                "refused": self.writes.refused,
                "in_doubt": self.writes.in_doubt,
                "errors": self.writes.errors,
            },
            "shown_and_refused": self.shown_and_refused,
            "hints_off": self.hints_off,
            "unpromised": {
                "reads": self.unpromised.count(),
                "p50_ms": ms(self.unpromised.quantile(0.5)),
                "p99_ms": ms(self.unpromised.quantile(0.99)),
            },
            "modes": self.tallies.iter().map(|(m, tally)| of_mode(*m, tally, &self.unpromised)).collect::<Vec<_>>(),
            "violations": self.examples.iter().map(of_example).collect::<Vec<_>>(),
        })
    }

    /// For people.
    pub(super) fn text(&self, reads: Option<u64>) -> String {
        let mut table = Table::new(&[
            "mode",
            "reads",
            "by standbys",
            "primary p50/p99",
            "standby p50/p99",
            "added p50/p99",
            "violations",
            "errors",
        ]);
        let times = |s: &Spread| format!("{} / {}", shown(s.quantile(0.5)), shown(s.quantile(0.99)));
        for (mode, t) in &self.tallies {
            let added =
                |share| added(&t.all(), &self.unpromised, share).map_or("-".into(), |ms| format!("{ms:+.2} ms"));
            let errors: Vec<String> = t.errors.iter().map(|(code, n)| format!("{code} {n}")).collect();
            table.row([
                mode.as_str().to_owned(),
                t.reads.to_string(),
                format!("{} ({:.1} %)", t.by_standbys, share(t) * 100.0),
                times(&t.primary),
                times(&t.standby),
                format!("{} / {}", added(0.5), added(0.99)),
                t.violations.values().sum::<u64>().to_string(),
                errors.join(", "),
            ]);
        }
        let w = &self.writes;
        let mut text = table.text();
        text += &format!(
            "\nadded to the same reads at the primary that are promised nothing: {}, {} reads\n",
            times(&self.unpromised),
            self.unpromised.count()
        );
        text += &format!(
            "writes: {} acknowledged, {} refused, {} in doubt; {:.1} s\n",
            w.acknowledged,
            w.refused,
            w.in_doubt,
            self.took.as_secs_f64()
        );
        for (way, (reads, by_standbys)) in self.ways() {
            text += &format!("{way}: {reads} reads, {by_standbys} by standbys\n");
        }
        for endpoint in &self.hints_off {
            text += &format!("{endpoint} reads no comments (proxy.reads.hints): none were checked there\n");
        }
        if !self.examples.is_empty() {
            text += "\n";
        }
        for example in &self.examples {
            text += &line(example);
            text.push('\n');
        }
        let more = self.violations().saturating_sub(self.examples.len() as u64);
        if more > 0 {
            text += &format!("… {more} more; the first of each kind are shown\n");
        }
        text += &match self.complaint(reads) {
            Some(complaint) => format!("{complaint}\n"),
            None => "every promise held\n".to_owned(),
        };
        text
    }
}

fn share(tally: &Tally) -> f64 {
    if tally.reads == 0 { 0.0 } else { tally.by_standbys as f64 / tally.reads as f64 }
}

fn ms(time: Option<Duration>) -> Option<f64> {
    time.map(|t| t.as_secs_f64() * 1000.0)
}

fn shown(time: Option<Duration>) -> String {
    ms(time).map_or_else(|| "-".to_owned(), |ms| format!("{ms:.2} ms"))
}

/// What reads took longer than others of the same cluster and time, ms: less than nothing when they were faster.
fn added(reads: &Spread, others: &Spread, share: f64) -> Option<f64> {
    Some(ms(reads.quantile(share))? - ms(others.quantile(share))?)
}

fn of_mode(mode: Mode, t: &Tally, unpromised: &Spread) -> Value {
    let all = t.all();
    let times = |s: &Spread| json!({ "p50_ms": ms(s.quantile(0.5)), "p99_ms": ms(s.quantile(0.99)) });
    json!({
        "mode": mode.as_str(),
        "reads": t.reads,
        "by_standbys": t.by_standbys,
        "standby_share": share(t),
        "nodes": t.nodes,
        "errors": t.errors,
        "primary": times(&t.primary),
        "standby": times(&t.standby),
        "all": times(&all),
        "added": { "p50_ms": added(&all, unpromised, 0.5), "p99_ms": added(&all, unpromised, 0.99) },
        "violations": t.violations,
        "ways": t.ways.iter().map(|(way, (reads, by_standbys))| {
            ((*way).to_owned(), json!({ "reads": reads, "by_standbys": by_standbys }))
        }).collect::<serde_json::Map<_, _>>(),
    })
}

fn of_example(e: &Example) -> Value {
    let v = &e.violation;
    json!({
        "broken": v.broken.as_str(),
        "at_seconds": e.at.as_secs_f64(),
        "register": v.register,
        "showed": v.showed,
        "owed": v.owed,
        "acknowledged_before_ms": ms(Some(v.acknowledged_before)),
        "registers": v.registers,
        "read": e.read.as_ref().map(|r| json!({
            "mode": r.mode.as_str(),
            "session": r.session,
            "endpoint": r.endpoint,
            "node": r.node,
            "standby": r.standby,
            "took_ms": ms(Some(r.took)),
        })),
    })
}

/// One violation as a sentence.
fn line(e: &Example) -> String {
    let v = &e.violation;
    let at = e.at.as_secs_f64();
    let Some(r) = &e.read else {
        return format!(
            "{at:.3} s: {SCHEMA}.registers {}: {} was refused, but a read had shown it",
            v.register, v.showed
        );
    };
    let role = if r.standby { "standby" } else { "primary" };
    let why = match v.broken {
        Broken::Stale | Broken::NotGlobal => {
            format!("{} was acknowledged {} before", v.owed, shown(Some(v.acknowledged_before)))
        }
        Broken::OwnWrite => format!("the session's own {} was acknowledged before", v.owed),
        Broken::WentBack => format!("the session had read {} before", v.owed),
        Broken::BehindToken => format!("the session's token covers {}", v.owed),
        Broken::Impossible => format!("that was refused or never sent ({} is the last sent)", v.owed),
    };
    let (mode, more) = (r.mode.as_str(), v.registers - 1);
    let more = if more > 0 { format!(" (and {more} more registers)") } else { String::new() };
    format!(
        "{at:.3} s: {}: session {} ({mode}) through {}: {role} {} showed register {} at {}{more}; {why}; took {}",
        v.broken.as_str(),
        r.session,
        r.endpoint,
        r.node,
        v.register,
        v.showed,
        shown(Some(r.took))
    )
}

#[cfg(test)]
mod tests {
    use super::super::run::Writes;
    use super::*;

    #[test]
    fn reads_that_only_the_primary_served_have_proven_nothing() {
        let of = |by_standbys, standby_share| {
            let tally = Tally { reads: 10, by_standbys, ..Tally::default() };
            let writes = Writes { acknowledged: 1, ..Writes::default() };
            let result = Result { tallies: [(Mode::Global, tally)].into(), writes, standby_share, ..Result::default() };
            result.complaint(None)
        };
        let complaint = "no read of mode global was served by a standby: nothing is known of them";
        assert_eq!((of(0, Some(0.3)).as_deref(), of(0, Some(0.0)).as_deref()), (Some(complaint), Some(complaint)));
        let few = "standbys have served 2 of 10 reads of mode global, less than the share of 0.3 that was asked for";
        assert_eq!(of(2, Some(0.3)).as_deref(), Some(few));
        assert_eq!((of(3, Some(0.3)), of(1, Some(0.0)), of(0, None)), (None, None, None));
    }
}
