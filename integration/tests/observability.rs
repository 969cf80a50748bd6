//! Every process answers on its admin port, and Debian's Prometheus finds what the dashboards and alerts ask for.

use integration::cluster::{Cluster, LONG, one_at_a_time};
use integration::config_file::NODES;
use integration::http;
use integration::postgres::{bin_dir, describe};
use integration::process::unprivileged;
use integration::prometheus::{Prometheus, alert_expressions, dashboard_expressions, operands};
use integration::wait::wait_for;
use integration::workload::{Readers, Style, Workload};
use nix::sys::signal::Signal;
use rcgen::{CertificateParams, KeyPair};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

fn configs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").join("configs")
}

fn read(name: &str) -> String {
    let path = configs().join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

#[test]
fn promtool_accepts_the_configuration_and_every_alert_fires_and_does_not() {
    let dir = configs().join("prometheus");
    let files = ["alerts_test.yml", "alerts_hours_test.yml"];
    for (what, of) in
        [("check config", &["prometheus.yml"][..]), ("check rules", &["alerts.yml"]), ("test rules", &files)]
    {
        let output = Command::new("promtool").args(what.split(' ')).args(of).current_dir(&dir).output();
        let output = output.expect("promtool is installed (Debian package prometheus)");
        assert!(output.status.success(), "promtool {what} {of:?}: {}", describe(&output));
    }
    // A test that shows an alert firing names it with labels expected; one that does not, with none.
    let tests = files.map(|file| read(&format!("prometheus/{file}"))).concat();
    for (alert, _) in alert_expressions(&read("prometheus/alerts.yml")) {
        let named = tests.matches(&format!("alertname: {alert}\n")).count();
        assert!(named >= 2, "{alert} is named {named} times in {files:?}: firing and not firing are two");
    }
}

#[test]
fn prometheus_finds_data_for_every_panel_and_both_operands_of_every_alert() {
    let _turn = one_at_a_time();
    let mut cluster = Cluster::healthy();
    Workload::create_table(&cluster.target()).expect("a table");
    every_process_answers(&cluster);
    let load = Workload::start(&cluster.target(), 2, &[Style::Autocommit, Style::Block], 1, Duration::from_millis(10));
    let readers = Readers::start(&cluster.target(), 2, Duration::from_millis(10));
    // A failover belongs to the picture: annotations and in-doubt answers have something to show.
    let before = cluster.active();
    cluster.kill_postmaster(&before.primary);
    cluster.active_after(before.term);
    cluster.all_stream();
    keep_a_slot(&cluster);
    every_page_shows_what_there_is(&cluster);
    show_a_certificate(&mut cluster);

    let config = scrape_config(&cluster);
    let prometheus = Prometheus::start(cluster.scratch(), &config);
    let targets = admin_ports(&cluster).len().to_string();
    wait_for("every process to be scraped", LONG, || match prometheus.query("sum(up)") {
        Ok(result) if result.first().is_some_and(|r| r["value"][1].as_str() == Some(&targets)) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    let mut wanted = dashboard_expressions(&read("grafana/lag.json")).expect("a dashboard");
    assert!(wanted.len() >= 7, "replay lag in time and bytes, age, share, term, roles, annotations: {wanted:?}");
    for (alert, expression) in alert_expressions(&read("prometheus/alerts.yml")) {
        // No node of this cluster replays later on purpose.
        let there = |o: &String| !o.contains("(pgtenure_lagmon_apply_delay_seconds)");
        wanted.extend(operands(&expression).into_iter().filter(there).map(|o| (format!("alert {alert}"), o)));
    }
    for (place, expression) in &wanted {
        wait_for(&format!("data for {place}: {expression}"), LONG, || match prometheus.query(expression) {
            Ok(result) if !result.is_empty() => Ok(()),
            other => Err(format!("{other:?}")),
        });
    }
    drop((load.finish(), readers.finish()));
    a_failover_that_is_held_back_is_told_of(&cluster, &prometheus);
}

/// The page of each kind of process, run as in a browser on what that process answers. A field that was renamed is missing there.
fn every_page_shows_what_there_is(cluster: &Cluster) {
    if !Command::new("node").args(["-e", "fetch"]).output().is_ok_and(|output| output.status.success()) {
        eprintln!(
            "SKIPPED, NOT TESTED: nodejs is not installed, or older than 18 (scripts/setup --wishes installs it)"
        );
        return;
    }
    let (layout, active) = (cluster.layout(), cluster.active());
    let standby = cluster.standbys()[0];
    // Whoever leads by then.
    let manager = |leads: bool| {
        let status = cluster.status()?;
        let is_leader = |admin: &SocketAddr| status["leader"]["admin"] == admin.to_string();
        let found = layout.managers.iter().copied().find(|admin| is_leader(admin) == leads);
        found.ok_or_else(|| status["leader"].to_string())
    };
    let term = active.term;
    shows(
        || manager(true),
        &[
            "Losing the primary now: ✔ safe",
            &format!("term: {term}"),
            &format!("primary: {}", active.primary),
            "mode: strict",
            "commits wait for 1 of the standbys among n1, n2, n3",
            &format!("{} | primary | primary | {term} | ", active.primary),
            &format!("{standby} | standby | streaming | {term} | "),
            "by what agents reported",
            &format!("term {term} by failover, "),
            "final, from the WAL of ",
            "since the first evidence",
            &format!("{term} | 20"),
            "manager | ready",
        ],
    );
    shows(|| manager(false), &["? not known here", "leading manager: 127.0.0.1:", "History of terms"]);
    let all = format!("all | {term} | open | ");
    let node = format!("{standby} | ");
    shows(|| Ok(layout.proxy_admin), &["by the lag monitor", &node, "up to ", "slot kept on ", &all, "lagmon | ready"]);
    let agent = layout.nodes.iter().zip(NODES).find(|(_, node)| *node == standby).expect("a node").0.admin;
    shows(
        || Ok(agent),
        &["Agent of this process", &format!("node: {standby}"), "PostgreSQL: standby", "agent | ready"],
    );
}

/// Wait until that one's page has all of these.
fn shows(admin: impl Fn() -> Result<SocketAddr, String>, wanted: &[&str]) {
    wait_for(&format!("a page with {wanted:?}"), LONG, || {
        let text = page(admin()?).join("\n");
        let missing: Vec<&&str> = wanted.iter().filter(|part| !text.contains(**part)).collect();
        if missing.is_empty() { Ok(()) } else { Err(format!("{missing:?} not in\n{text}")) }
    });
}

/// The lines of a process's page.
fn page(admin: SocketAddr) -> Vec<String> {
    let browser = configs().with_file_name("tests").join("page/browser.mjs");
    let output = Command::new("node").arg(browser).arg(format!("http://{admin}/")).output();
    let output = output.expect("node is there");
    assert!(output.status.success(), "{admin}: {}", describe(&output));
    let seen: serde_json::Value = serde_json::from_slice(&output.stdout).expect("it prints JSON");
    assert_eq!(seen["lacking"], serde_json::json!([]), "answers of {admin} lack what its page shows: {seen:#}");
    serde_json::from_value(seen["lines"].clone()).expect("lines")
}

/// Nobody can write, and every gate is open: the term is on record as it was.
fn a_failover_that_is_held_back_is_told_of(cluster: &Cluster, prometheus: &Prometheus) {
    cluster.verb(&["pause"]).exits(0);
    cluster.kill_postmaster(&cluster.active().primary);
    let alerts = alert_expressions(&read("prometheus/alerts.yml"));
    let (_, held) = alerts.iter().find(|(alert, _)| alert == "PgtenureFailoverHeld").expect("an alert");
    wait_for(&format!("{held} to hold"), LONG, || match prometheus.query(held) {
        Ok(result) if !result.is_empty() => Ok(()),
        other => Err(format!("{other:?}")),
    });
}

/// The proxy offers TLS from now on.
fn show_a_certificate(cluster: &mut Cluster) {
    let key = KeyPair::generate().expect("a key");
    let params = CertificateParams::new(["localhost".to_owned()]).expect("a good name");
    let certificate = params.self_signed(&key).expect("a certificate");
    let files = [("server.crt", certificate.pem()), ("server.key", key.serialize_pem())];
    let [cert, key] = files.map(|(name, text)| cluster.scratch().file(name, &text));
    let file = cluster.config("proxy");
    let text = std::fs::read_to_string(&file).expect("the proxy's file");
    let tls = format!("\n[proxy.tls]\nmode = \"allow\"\ncert = {cert:?}\nkey = {key:?}\n");
    cluster.scratch().file("proxy.toml", &(text + &tls));
    cluster.role("proxy").signal(Signal::SIGHUP);
}

/// One that somebody else made must be seen.
fn keep_a_slot(cluster: &Cluster) {
    // Over the node's Unix socket, as only its own user may.
    let primary = cluster.active().primary;
    let mut psql = unprivileged(bin_dir().join("psql"));
    psql.args(["-X", "-q", "-U", "postgres", "-d", "postgres", "-p"]);
    psql.arg(cluster.ports(&primary).postgres.port().to_string());
    psql.arg("-h").arg(cluster.scratch().path().join(&primary).join("sock"));
    psql.args(["-c", "SELECT pg_create_physical_replication_slot('kept', true)"]).current_dir("/");
    let output = psql.output().expect("psql is installed");
    assert!(output.status.success(), "{}", describe(&output));
}

fn admin_ports(cluster: &Cluster) -> Vec<SocketAddr> {
    let layout = cluster.layout();
    let nodes = layout.nodes.iter().map(|n| n.admin);
    nodes.chain(layout.managers.iter().copied()).chain([layout.proxy_admin]).collect()
}

fn every_process_answers(cluster: &Cluster) {
    for admin in admin_ports(cluster) {
        for path in ["/livez", "/readyz"] {
            wait_for(&format!("200 from {admin}{path}"), LONG, || {
                match http::get(admin, path, Duration::from_secs(2)) {
                    Ok((200, _)) => Ok(()),
                    other => Err(format!("{other:?}")),
                }
            });
        }
        let (code, metrics) = http::get(admin, "/metrics", LONG).expect("metrics");
        assert_eq!(code, 200, "{admin}");
        names_are_as_agreed(&metrics);
        // A manager that does not lead names the one that does (307), and shows itself.
        let (code, status) = http::get(admin, "/status", LONG).expect("a status");
        let object = serde_json::from_str::<serde_json::Value>(&status).is_ok_and(|s| s.is_object());
        assert!([200, 307].contains(&code) && object, "{admin}: {code} {status}");
        let (code, _) = http::get(admin, "/nonsense", LONG).expect("an answer");
        assert_eq!(code, 404, "{admin}");
    }
}

/// `pgtenure_<crate>_<thing>_<unit>[_total]`, and every series has help and type.
fn names_are_as_agreed(metrics: &str) {
    let names: Vec<&str> = metrics.lines().filter_map(|l| l.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    assert!(!names.is_empty(), "no metrics");
    for name in names {
        let ours = ["pgtenure_proxy_", "pgtenure_lagmon_", "pgtenure_failover_", "pgtenure_admin_"];
        assert!(ours.iter().any(|p| name.starts_with(p)), "{name}");
    }
}

/// The shipped scrape configuration with this cluster's ports, scraped often.
fn scrape_config(cluster: &Cluster) -> PathBuf {
    let targets: Vec<String> = admin_ports(cluster).iter().map(|a| format!("'{a}'")).collect();
    let shipped = read("prometheus/prometheus.yml");
    let job = shipped.lines().find_map(|l| l.trim().strip_prefix("- job_name:")).expect("a job").trim().to_owned();
    let text = format!(
        "global:\n  scrape_interval: 1s\n  evaluation_interval: 1s\nscrape_configs:\n- job_name: {job}\n  \
         static_configs:\n  - targets: [{}]\n",
        targets.join(", ")
    );
    cluster.scratch().file("prometheus.yml", &text)
}
