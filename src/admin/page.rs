//! The operators' page: what the other routes answer, in a browser. A few files of our own, with no build step and nothing from
//! elsewhere. It asks for the JSON that the commands have, with GET only: no order can come from it, and it needs no secret.

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{
    ACCEPT, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderMap, HeaderValue, REFERRER_POLICY, VARY,
    X_CONTENT_TYPE_OPTIONS,
};
use hyper::{Method, Response};

const SCRIPT: &str = "text/javascript; charset=utf-8";

/// Path, content type and text of each file.
const FILES: [(&str, &str, &str); 5] = [
    ("/", "text/html; charset=utf-8", include_str!("page/index.html")),
    ("/page.css", "text/css; charset=utf-8", include_str!("page/page.css")),
    ("/words.js", SCRIPT, include_str!("page/words.js")),
    ("/view.js", SCRIPT, include_str!("page/view.js")),
    ("/page.js", SCRIPT, include_str!("page/page.js")),
];

/// Nothing runs there, and nobody is asked, but what this process serves.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; \
                      form-action 'none'; frame-ancestors 'none'";

/// The answer, if a file of the page is asked for: `/` is one only for who reads HTML.
pub(super) fn answer(method: &Method, path: &str, headers: &HeaderMap) -> Option<Response<Full<Bytes>>> {
    let reads_html = || headers.get_all(ACCEPT).iter().any(|v| v.to_str().is_ok_and(|v| v.contains("text/html")));
    if method != Method::GET || (path == "/" && !reads_html()) {
        return None;
    }
    let (_, kind, text) = FILES.iter().find(|(at, ..)| *at == path)?;
    let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
    for (name, value) in [
        (CONTENT_TYPE, *kind),
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
        (CACHE_CONTROL, "no-cache"),
        (VARY, "accept"),
    ] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    Some(response)
}

#[cfg(test)]
mod tests {
    use super::super::{Pages, RouteFuture, Routes, bind, serve};
    use failover::fsm::status::Status;
    use failover::http::Loss;
    use failover::record::{DoubtsRecord, JournalRecord, LossReport};
    use serde::Serialize;
    use serde::de::DeserializeOwned;
    use serde_json::{Value, json};
    use std::net::SocketAddr;
    use std::path::Path;
    use std::sync::Arc;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;
    use tokio::process::Command;

    async fn served() -> SocketAddr {
        let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (parts, registry) = (vec![Box::new(Managing) as _], prometheus::Registry::new());
        let routes = Some(Arc::new(InTrouble) as _);
        let pages = Pages { parts, routes, lag_history: None, registry, secret: None, proxy: None, reload: None };
        tokio::spawn(serve(listener, Arc::new(pages)));
        address
    }

    async fn get(address: SocketAddr, path: &str, accept: &str) -> (String, String) {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: a\r\naccept: {accept}\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut told = String::new();
        stream.read_to_string(&mut told).await.unwrap();
        let (head, body) = told.split_once("\r\n\r\n").unwrap();
        (head.to_lowercase(), body.to_owned())
    }

    #[tokio::test]
    async fn a_browser_has_a_page_with_all_it_refers_to_and_others_have_a_line() {
        const BROWSER: &str = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";
        let address = served().await;
        let (head, body) = get(address, "/", "*/*").await;
        assert!(head.starts_with("http/1.1 200") && head.contains("content-type: text/plain"), "{head}");
        assert!(body.starts_with("pgtenure: ") && body.lines().count() == 1, "{body}");
        let (head, html) = get(address, "/?cluster=demo", BROWSER).await;
        assert!(head.starts_with("http/1.1 200") && head.contains("content-type: text/html"), "{head}");
        // All that is inside is elsewhere, so that the policy lets it.
        assert!(html.starts_with("<!doctype html>") && !html.contains("<style") && !html.contains("style="), "{html}");
        assert_eq!(html.matches("<script").count(), html.matches("<script src=").count(), "{html}");
        let referred =
            ["src=\"", "href=\""].map(|at| html.split(at).skip(1).map(|rest| rest.split('"').next().unwrap()));
        let mut files = 0;
        for name in referred.into_iter().flatten() {
            let (head, body) = get(address, &format!("/{name}"), "*/*").await;
            assert!(head.starts_with("http/1.1 200") && !body.is_empty(), "{name}: {head}");
            let kind = match name.rsplit('.').next() {
                Some("js") => "text/javascript",
                Some("css") => "text/css",
                _ => continue,
            };
            files += 1;
            for wanted in [
                &format!("content-type: {kind}; charset=utf-8"),
                "content-security-policy: default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self';",
                "x-content-type-options: nosniff",
                "cache-control: no-cache",
            ] {
                assert!(head.contains(wanted), "{name}: {wanted}: {head}");
            }
        }
        assert_eq!(files + 1, super::FILES.len(), "{html}");
        assert!(get(address, "/page/index.html", BROWSER).await.0.starts_with("http/1.1 404"));
    }

    #[tokio::test]
    async fn the_page_decides_as_its_own_test_says() {
        if !has_node().await {
            return;
        }
        let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/admin/page");
        node("behaviour.mjs", &[page.to_str().unwrap()]).await;
    }

    /// Everything that can be wrong at once, by the types that the managers' answers are made of: each field has something to say,
    /// and a renamed one would be missing.
    #[tokio::test]
    async fn every_trouble_that_managers_know_is_on_the_page() {
        if !has_node().await {
            return;
        }
        let address = served().await;
        let seen = node("browser.mjs", &[&format!("http://{address}/")]).await;
        let seen: Value = serde_json::from_str(&seen).unwrap();
        let lines: Vec<&str> = seen["lines"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
        let text = lines.join("\n");
        assert_eq!((&seen["lacking"], &seen["silent"]), (&json!([]), &json!([])), "{text}");
        for wanted in [
            "Losing the primary now: ✖ NOT SAFE",
            "too few standbys: m=3, k=1",
            "UNPROTECTED since 0/7000 (term 9, 1970-01-01T00:00:00Z): no standby left",
            "PAUSED by ann@db1 since 1970-01-01T00:00:00Z, until 1970-01-01T00:01:00Z: cabling; nothing changes by itself",
            "in the name of a standby by who is not it: thief",
            "etcd with known lease bugs: http://db1:2379 (3.4.23)",
            "term: 9",
            "phase: active",
            "primary: n1",
            "mode: available",
            "the managers: nothing to do",
            "commits wait for 1 of the standbys among n1, n2, n3; without them unprotected for 1024 MiB and 24 h; being changed \
             to 2 of n1, n4",
            "in force: ANY 1 (n2, n3)",
            "n1 | primary | primary | 9 | 0/9000 | – | – | – | – |",
            "n2 | standby | unreachable | 8 | 0/6000 | 0/5000 | 16 KiB | 250 ms | yes (quorum, catchup), flushed 0/5800 | 12 min ago | \
             <b>disk</b> full; cloning 43 %; its agent is silent; FENCED by bob@db2 since 1970-01-01T00:00:00Z; IN MAINTENANCE by \
             ann@db1 since 1970-01-01T00:00:00Z, until 1970-01-01T00:01:00Z: a new disk; quarantined until it has replayed 0/6100 on \
             timeline 8; from n1; zone west; priority 7; replays 60 s later; serves no reads; never promoted by itself; does not \
             vote; another n2",
            "PostgreSQL last seen 12 min ago",
            "its lease had 4321 ms left",
            "app-1 | 8 | draining | 17",
            "term 9 by failover, n0 → n1 in 640 ms, active, 1970-01-01T00:00:00Z",
            "seen: n0 silent for 3000 ms",
            "frozen: n1 at 0/5000 on timeline 8",
            "3 voters, 1 copies",
            "an operator allowed data loss",
            "open | 600 ms | 640 ms",
            "unreplicated-write window, provisional: 4096 B in 25 ms from 0/5000 to 0/6000",
            "not whole, from the WAL of n0: 16 KiB between the fork 0/5000 and its end 0/9000, of which that up to 0/8000 was not \
             kept, at least: 2 commits lost, 1 aborts, within 12 ms, 1 of the commits made while the mode was suspended",
            "701 | 0/8100 | at noon",
            "that WAL is kept in /var/lost up to 0/8800: the rest was more than agent.lost_wal_max",
            "below the mode of the cluster: 7",
            "4 survived and were answered so, 5 were lost and answered 40001, 6 stayed unknown and were answered 08007",
            "term 6 lost at least 12 commits: pgtenure report 6",
            "9 | 1970-01-01T00:00:00Z | failover | n0 | n1 | 640 ms | 4096 B | 3 | active",
            "manager | NOT READY | etcd",
        ] {
            assert!(text.contains(wanted), "{wanted} is missing:\n{text}");
        }
        assert_eq!(seen["title"], "demo: NOT SAFE – pgtenure");
    }

    async fn has_node() -> bool {
        let known = Command::new("node").args(["-e", "fetch"]).output().await;
        let has = known.is_ok_and(|output| output.status.success());
        if !has {
            eprintln!(
                "SKIPPED, NOT TESTED: nodejs is not installed, or older than 18 (scripts/setup --wishes installs it)"
            );
        }
        has
    }

    async fn node(script: &str, args: &[&str]) -> String {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/page").join(script);
        let output = Command::new("node").arg(script).args(args).kill_on_drop(true).output().await;
        let output = output.expect("node is there");
        let [told, complained] = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
        assert!(output.status.success(), "{}\n{told}\n{complained}", output.status);
        told
    }

    struct Managing;
    impl super::super::Part for Managing {
        fn name(&self) -> &'static str {
            "manager"
        }
        fn ready(&self) -> Result<(), String> {
            Err("etcd".to_owned())
        }
        fn status(&self) -> Value {
            Value::Null
        }
    }

    /// As that type says it.
    fn told<T: DeserializeOwned + Serialize>(value: Value) -> Value {
        json!(serde_json::from_value::<T>(value).unwrap())
    }

    struct InTrouble;
    impl Routes for InTrouble {
        fn clusters(&self) -> Vec<&str> {
            vec!["demo"]
        }

        fn handle<'a>(&'a self, _: &'a str, path: &'a str, _: &'a str, _: &'a [u8]) -> RouteFuture<'a> {
            let answer = match path {
                "/status" => told::<Status>(status()),
                "/report" => json!({
                    "journal": told::<JournalRecord>(journal()), "reports": [told::<LossReport>(loss())],
                    "doubts": [told::<DoubtsRecord>(doubts())],
                    "losses": [told::<Loss>(json!({ "term": 6, "commits": 12, "whole": false }))],
                }),
                "/history" => json!({
                    "history": [told::<JournalRecord>(journal())],
                    "losses": [told::<Loss>(json!({ "term": 9, "commits": 3, "whole": true }))],
                }),
                "/lag" => json!({ "term": 9, "primary": null, "standbys": [] }),
                _ => return Box::pin(async { None }),
            };
            Box::pin(async move { Some((200, answer)) })
        }
    }

    fn status() -> Value {
        let suspended = json!({ "term": 9, "since": "0/7000", "since_wall": 0, "why": "no standby left" });
        let mut first = node_status("n1");
        first["agent"]["postgres"] = json!({
            "is": "primary", "timeline": 9, "insert_lsn": "0/9000", "flush_lsn": "0/9000", "sync_names": "ANY 1 (n2, n3)",
            "followers": [{
                "node": "n2", "state": "catchup", "flush_lsn": "0/5800", "replay_lsn": "0/5000", "sync_state": "quorum",
            }],
            "impostors": ["thief"],
        });
        first["agent"]["lease_left_ms"] = json!(4321);
        let mut second = node_status("n2");
        let changes = json!({
            "role": "standby", "state": "unreachable", "voter": false, "agent_reachable": false, "silent_ms": 720_000, "timeline": 8,
            "receive_lsn": "0/6000", "replay_lsn": "0/5000", "replay_lag_bytes": 16384, "replay_lag_ms": 250, "streams_from": "n1",
            "fenced": true, "fence": { "by": "bob@db2", "at": 0, "stop_writes": false },
            "quarantine": { "timeline": 8, "lsn": "0/6100" }, "rejoin": "cloning 43 %", "trouble": "<b>disk</b> full",
            "maintenance": { "by": "ann@db1", "why": "a new disk", "at": 0, "until": 60_000 },
            "standing": {
                "priority": 7, "zone": "west", "never_promote": true, "apply_delay_ms": 60_000, "serve_reads": false,
            },
        });
        second.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        second["agent"]["namesake"] = json!("another n2");
        json!({
            "cluster": "demo", "term": 9, "phase": "active", "primary": "n1", "mode": "available",
            "policy": {
                "epoch": 4, "voters": ["n1", "n2", "n3"], "k": 1, "mode": "available", "suspended": suspended.clone(),
                "joint": { "voters": ["n1", "n4"], "k": 2 },
            },
            "suspended": suspended, "leading": true, "leader": { "id": "m1", "admin": "db1:7400" },
            "nodes": [first, second], "proxies": [{ "id": "app-1", "term": 8, "gate": "draining", "busy": 17 }],
            "safe_to_lose_primary": { "safe": false, "as_promised": false, "why": ["too few standbys: m=3, k=1"] },
            "paused": { "by": "ann@db1", "why": "cabling", "at": 0, "until": 60_000 },
            "verdict": { "verdict": "steady" }, "verdict_text": ["nothing to do"], "last_failover": null,
            "records_ms_ago": 120, "outdated_etcd": ["http://db1:2379 (3.4.23)"],
        })
    }

    fn node_status(node: &str) -> Value {
        json!({
            "node": node, "postgres": { "host": "db", "port": 5432 }, "role": "primary", "state": "primary", "voter": true,
            "agent_reachable": true, "silent_ms": 40, "timeline": 9, "receive_lsn": "0/9000", "replay_lsn": null,
            "replay_lag_bytes": null, "replay_lag_ms": null, "streams_from": null, "fenced": false, "quarantine": null,
            "rejoin": null, "promise": 9, "trouble": null,
            "agent": {
                "seq": 1, "node": node, "holder": "h", "host": "b", "promise": 9, "postgres": { "is": "starting" },
                "observed_ms_ago": 720_000, "system_id": null, "frozen_for": null, "quarantine": null, "rejoin": null,
                "fenced": false, "sees_primary": null, "lease_left_ms": null, "fsync_probe_ms": 3, "trouble": null,
            },
        })
    }

    fn journal() -> Value {
        json!({
            "term": 9, "cause": "failover", "observed": ["n0 silent for 3000 ms"], "from": "n0", "ended": 8, "to": "n1",
            "started": 0, "phases": [{ "phase": "detected", "ms": 40 }, { "phase": "open", "ms": 640 }],
            "recruits": [{ "node": "n1", "timeline": 8, "lsn": "0/5000" }], "m": 3, "k": 1,
            "fork": { "timeline": 8, "lsn": "0/5000" }, "xid_bound": 700, "below_mode": 3,
            "window": { "fork_lsn": "0/5000", "last_known_lsn": "0/6000", "bytes": 4096, "ms": 25 },
            "clean_end": { "timeline": 8, "lsn": "0/6000" }, "finished": "active", "data_loss_allowed": true,
        })
    }

    fn loss() -> Value {
        json!({
            "term": 9, "node": "n0", "timeline": 8, "fork_lsn": "0/5000", "end_lsn": "0/9000", "unread_to": "0/8000",
            "bytes": 16384, "commits": 2, "aborts": 1,
            "transactions": [{ "xid": 701, "lsn": "0/8100", "committed_at": "at noon" }], "span_ms": 12,
            "commits_while_suspended": 1, "kept_in": "/var/lost", "kept_to": "0/8800", "examined": 0,
        })
    }

    fn doubts() -> Value {
        json!({ "term": 8, "proxy": "app-1", "survived": 4, "lost": 5, "unknown": 6, "below_mode": 7 })
    }
}
