//! `make test-staleness`: reads are checked against what they were promised, in every mode, while standbys are delayed,
//! paused, killed and cut off and primaries are replaced, until there are enough of them. Exits 0 only when no promise
//! was broken, every mode has its reads, standbys served their share of each, and all of that has happened meanwhile.
//!
//! `STALENESS_READS`, `STALENESS_SECONDS` and `STALENESS_SEED` say how many checked reads there are to be for each mode,
//! how long that may take, and in which order and for how long what happens; `STALENESS_MODE` which modes, and
//! `STALENESS_READERS` how many sessions read in each (24: those of `global` share what they wait for); with
//! `STALENESS_FAULTS=0` nothing happens, which shows what reads take then. `STALENESS_COMMIT_LSN=ask` has the proxies ask for
//! the position of each write. With `STALENESS_CLUSTER=async` commits wait for no standby; the primary is then replaced as
//! planned only, as nothing else keeps all that was acknowledged.

use integration::staleness::{Fault, Faults, Verify, cluster};
use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

fn setting(name: &str, default: u64) -> u64 {
    let given = std::env::var(name).ok().filter(|v| !v.is_empty());
    given.map_or(default, |v| v.parse().unwrap_or_else(|_| panic!("{name}={v}: a number is expected")))
}

fn main() -> ExitCode {
    let reads = setting("STALENESS_READS", 100_000);
    let seconds = setting("STALENESS_SECONDS", 1800);
    let seed = setting("STALENESS_SEED", 1);
    let inflict = setting("STALENESS_FAULTS", 1) > 0;
    let mode = std::env::var("STALENESS_MODE").ok().filter(|v| !v.is_empty()).unwrap_or_else(|| "all".to_owned());
    println!("{reads} reads per mode within {seconds} s, seed {seed}, mode {mode}");
    let asks = std::env::var("STALENESS_COMMIT_LSN").is_ok_and(|how| how == "ask");
    let is_async = match std::env::var("STALENESS_CLUSTER").as_deref() {
        Err(_) | Ok("" | "strict") => false,
        Ok("async") => true,
        Ok(other) => panic!("STALENESS_CLUSTER={other}: strict or async is expected"),
    };
    let reads_of = if asks { "reads = { hints = true, commit_lsn = \"ask\" }\n" } else { "reads = { hints = true }\n" };
    let mut cluster = cluster(if is_async { "async" } else { "strict" }, reads_of);
    // What was acknowledged and lost would be missed by reads that keep their promise.
    let of_primaries = if is_async { &Fault::WITHOUT_LOSS[..] } else { &Fault::OF_PRIMARIES };
    let (reads, limit) = (reads.to_string(), seconds.to_string());
    // Waiting for a standby keeps sessions from staying at the primary for good: they hardly ever pause.
    let readers = setting("STALENESS_READERS", 24).to_string();
    let sessions = ["--readers", &readers, "--standby-wait", "500ms"];
    let arguments = [&["--reads", &reads, "--seconds", &limit, "--mode", &mode][..], &sessions].concat();
    let mut verify = Verify::start(&cluster, &arguments);
    let mut faults = Faults::new(seed, of_primaries);
    let kinds = if inflict { [of_primaries, &Fault::OF_STANDBYS].concat() } else { Vec::new() };
    if inflict {
        verify.begun(&cluster);
        // Each once, and then in rounds: a fast machine has its reads before three of those.
        for fault in of_primaries.iter().copied() {
            if !verify.has_ended() {
                faults.inflict(&mut cluster, fault, &mut || verify.has_ended());
            }
        }
    }
    while !verify.has_ended() {
        if !inflict {
            std::thread::sleep(Duration::from_millis(100));
            continue;
        }
        faults.round(&mut cluster, &mut || verify.has_ended());
    }
    let verdict = verify.finish(Duration::from_secs(120));
    let mut done = BTreeMap::new();
    for fault in &faults.done {
        *done.entry(format!("{fault:?}")).or_insert(0) += 1;
    }
    println!("{:#}\n{}", verdict.report, verdict.stderr);
    println!("faults: {done:?}");
    let modes = verdict.report["modes"].as_array().cloned().unwrap_or_default();
    let number = |value: &serde_json::Value| value.as_f64().map_or("?".to_owned(), |n| format!("{n:+.2}"));
    for mode in &modes {
        let (share, added) = (mode["standby_share"].as_f64().unwrap_or(0.0), &mode["added"]);
        println!(
            "mode {}: {} reads checked, {:.1} % by standbys; {} ms added at the median, {} ms at the 99th percentile, to \
             the same reads at the primary that are promised nothing",
            mode["mode"],
            mode["reads"],
            share * 100.0,
            number(&added["p50_ms"]),
            number(&added["p99_ms"]),
        );
    }
    let missing = faults.missing(&kinds);
    if !missing.is_empty() {
        println!("{missing:?} did not happen before the reads were enough: ask for more");
    }
    let holds = verdict.code == 0 && !modes.is_empty() && missing.is_empty();
    println!("{}", if holds { "every promise held" } else { "FAILED" });
    ExitCode::from(u8::from(!holds))
}
