//! Reads are as fresh as promised, whatever happens to the cluster. `make test-staleness` does the same for longer.

use integration::client::Client;
use integration::cluster::{Cluster, one_at_a_time};
use integration::http::get;
use integration::staleness::{Fault, Faults, Verdict, Verify, cluster};
use integration::wait::wait_for;
use serde_json::Value;
use std::time::{Duration, Instant};

/// Reads are checked for so long at least, and until so much has been done to standbys.
const LASTS: Duration = Duration::from_secs(25);
const OF_STANDBYS: usize = 3;

const MODES: [&str; 4] = ["bounded", "monotonic", "session", "global"];

fn mode<'r>(verdict: &'r Verdict, name: &str) -> &'r Value {
    let modes = verdict.report["modes"].as_array().unwrap_or_else(|| panic!("no report: {verdict:?}"));
    modes.iter().find(|m| m["mode"] == name).unwrap_or_else(|| panic!("nothing about {name}: {verdict:?}"))
}

/// Change a proxy's configuration while it runs.
fn change(cluster: &mut Cluster, proxy: &str, from: &str, to: &str) {
    let file = cluster.config(proxy);
    let text = std::fs::read_to_string(&file).expect("its file");
    assert!(text.contains(from), "{text}");
    cluster.scratch().file(&format!("{proxy}.toml"), &text.replace(from, to));
    cluster.stop_role(proxy);
    cluster.start_role(proxy);
    let target = if proxy == "proxy2" { cluster.second_target() } else { cluster.target() };
    wait_for("the proxy to be there again", Duration::from_secs(60), || {
        let mut client = Client::connect(&target).map_err(|e| e.to_string())?;
        let answer = client.query("select current_setting('in_hot_standby')").map_err(|e| e.to_string())?;
        if answer.value() == "on" { Ok(()) } else { Err("the primary answers".to_owned()) }
    });
}

#[test]
fn no_read_is_staler_than_promised_while_standbys_fail_and_primaries_change() {
    let _turn = one_at_a_time();
    let mut cluster = cluster("strict", "reads = { hints = true }\n");
    // One proxy learns by a sample what its sessions have written, the other by a query.
    change(&mut cluster, "proxy2", "hints = true", "hints = true, commit_lsn = \"ask\"");
    // On a busy machine standbys are late: how many reads they must have served is said below.
    let share = ["--standby-share", "0"];
    let mut verify = Verify::start(&cluster, &[&["--seconds", "600", "--standby-wait", "500ms"][..], &share].concat());
    verify.begun(&cluster);
    let (mut faults, began) = (Faults::new(1, &Fault::OF_PRIMARIES), Instant::now());
    // The primary first, as that is what takes longest; its standbys while there is time.
    faults.inflict(&mut cluster, Fault::PrimaryKilled, &mut || verify.has_ended());
    for fault in faults.of_standbys().into_iter().cycle() {
        if began.elapsed() >= LASTS && faults.done.len() > OF_STANDBYS {
            break;
        }
        if verify.has_ended() {
            panic!("it has ended by itself: {:#?}", verify.finish(Duration::ZERO));
        }
        faults.inflict(&mut cluster, fault, &mut || verify.has_ended());
    }
    verify.stop();
    let verdict = verify.finish(Duration::from_secs(120));
    eprintln!("{:#}\nfaults: {:?}", verdict.report, faults.done);
    assert_eq!(verdict.code, 0, "{verdict:#?}");
    assert_eq!(faults.done.first(), Some(&Fault::PrimaryKilled), "the primary was to be lost while reads went on");
    for name in MODES {
        let mode = mode(&verdict, name);
        let (reads, by_standbys) = (mode["reads"].as_u64().unwrap_or(0), mode["by_standbys"].as_u64().unwrap_or(0));
        assert!(reads > 50 && by_standbys > 20, "too little was checked: {mode}");
        for way in ["hinted", "pipelined", "with_token"] {
            let of = &mode["ways"][way];
            let (reads, by_standbys) = (of["reads"].as_u64().unwrap_or(0), of["by_standbys"].as_u64().unwrap_or(0));
            assert!(reads > 4 && by_standbys > 0, "too little was {way}: {mode}");
        }
        // What reads where it might write has no standby.
        for way in ["in_block", "unproven"] {
            let of = &mode["ways"][way];
            assert!(of["reads"].as_u64() > Some(0) && of["by_standbys"] == 0, "too little was {way}: {mode}");
        }
        // What the promise costs is told.
        assert!(mode["added"]["p50_ms"].is_f64() && mode["added"]["p99_ms"].is_f64(), "nothing is told of it: {mode}");
    }
    let admin = cluster.layout().second_proxy.expect("it was asked for").1;
    let (_, metrics) = get(admin, "/metrics", Duration::from_secs(10)).expect("the second proxy answers");
    let asked = metrics.lines().filter(|line| line.starts_with("pgtenure_proxy_positions_asked_total"));
    let asked: f64 = asked.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum();
    assert!(asked > 20.0, "{asked} queries asked for the position of a write");
    // A standby may not have replayed that yet.
    wait_for("the run to drop its schema", Duration::from_secs(60), || {
        let left = cluster.connect().query("select count(*) from pg_namespace where nspname = 'pgtenure_verify'");
        let left = left.expect("a count").value().to_owned();
        if left == "0" { Ok(()) } else { Err(format!("{left} are there")) }
    });
}

#[test]
fn a_weaker_promise_breaks_every_stronger_one() {
    let _turn = one_at_a_time();
    let mut cluster = cluster("strict", "pools = { pool_mode = \"transaction\" }\n");
    let standbys = cluster.standbys();
    cluster.fault_proxy(&cluster.active().primary).delay_stream(standbys[0], Duration::from_millis(1500));
    let verdict = Verify::start(&cluster, &["--seconds", "8", "--ask", "eventual"]).finish(Duration::from_secs(60));
    assert_eq!(verdict.code, 1, "{verdict:#?}");
    for (name, broken) in [
        ("bounded", &["stale"][..]),
        ("monotonic", &["stale", "went_back"]),
        ("session", &["stale", "went_back", "own_write"]),
        ("global", &["not_global", "went_back"]),
    ] {
        let found = &mode(&verdict, name)["violations"];
        for broken in broken {
            assert!(found[*broken].as_u64().is_some_and(|n| n > 0), "{name} shows no {broken}: {found}");
        }
        assert_eq!(found["impossible"], Value::Null, "{name}");
        // A position asked for holds whatever else is.
        assert_eq!(found["behind_token"], Value::Null, "{name}");
        assert_eq!(mode(&verdict, name)["ways"]["hinted"], Value::Null, "nobody reads comments");
    }
    assert_eq!(verdict.report["hints_off"].as_array().map(Vec::len), Some(2), "{:#}", verdict.report);
    // The first may come before there is the table, and name nobody.
    let told = verdict.report["violations"].as_array().expect("a list");
    assert!(told.iter().any(|v| v["read"]["node"] == standbys[0]), "the late standby is named: {told:#?}");
    // What a run that was killed has left is dropped only when asked, and nothing of anybody else's ever.
    let mut client = cluster.connect();
    client.query("create schema pgtenure_verify").expect("somebody's schema");
    let refused = Verify::start(&cluster, &["--seconds", "1", "--replace"]).finish(Duration::from_secs(60));
    assert_eq!(refused.code, 2, "{refused:?}");
    client.query("comment on schema pgtenure_verify is 'made by pgtenure verify reads, process 0'").expect("ours");
    let refused = Verify::start(&cluster, &["--seconds", "1"]).finish(Duration::from_secs(60));
    assert!(refused.code == 2 && refused.stderr.contains("process 0"), "{refused:?}");
    let short = ["--seconds", "3", "--replace", "--mode", "session,global", "--standby-share", "0"];
    let held = Verify::start(&cluster, &short);
    assert_eq!(held.finish(Duration::from_secs(60)).code, 0);
    for proxy in ["proxy", "proxy2"] {
        change(&mut cluster, proxy, "\"transaction\"", "\"session\"");
    }
    let session = ["--seconds", "8", "--mode", "session", "--readers", "1", "--standby-wait", "5s", "--standby-share"];
    let kept = |share| Verify::start(&cluster, &[&session[..], &[share]].concat()).finish(Duration::from_secs(60));
    // A session leaves the standbys for good when it writes.
    let of_few = kept("0");
    assert_eq!(of_few.code, 0, "{of_few:#?}");
    let of_all = kept("1");
    let complaint = of_all.report["complaint"].as_str().unwrap_or_default();
    assert!(of_all.code == 1 && complaint.starts_with("standbys have served "), "{of_all:#?}");
}
