//! The store against real etcd: one member, three members, and members that are frozen, killed or absent.

mod etcd_server;

use cluster::secret::Secret;
use etcd_server::{Etcd, etcdctl};
use failover::config::etcd::{Config, Login, Raw, Tls, check};
use failover::store::etcd::EtcdStore;
use failover::store::{Compare, LeaseId, Range, Store, StoreError, Txn};
use nix::sys::signal::Signal;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

/// Longest wait for any condition.
const PATIENCE: Duration = Duration::from_secs(60);

fn config(endpoints: Vec<String>) -> Config {
    check(Raw { endpoints, ..Raw::default() }, None).expect("a valid configuration")
}

fn store(etcd: &Etcd) -> EtcdStore {
    EtcdStore::new(&config(etcd.urls())).expect("a store")
}

async fn hinted(hints: &mut failover::store::Hints, what: &str) {
    tokio::time::timeout(PATIENCE, hints.changed())
        .await
        .unwrap_or_else(|_| panic!("no hint within {PATIENCE:?} after {what}"));
}

#[tokio::test]
async fn transactions_compare_and_reads_see_one_revision() {
    let etcd = Etcd::start(1);
    let s = store(&etcd);
    let first = s.txn(Txn::new().when(Compare::Absent("/t/a".into())).put("/t/a", "1").put("/t/b", "2")).await.unwrap();
    assert!(first.succeeded);
    for stale in [
        Compare::Absent("/t/a".into()),
        Compare::ModRevision("/t/a".into(), first.revision + 1),
        Compare::CreateRevision("/t/b".into(), first.revision - 1),
        Compare::ModRevision("/t/none".into(), 1),
    ] {
        assert!(!s.txn(Txn::new().when(stale.clone()).put("/t/a", "x")).await.unwrap().succeeded, "{stale:?}");
    }
    let second = Compare::ModRevision("/t/a".into(), first.revision);
    let second = s.txn(Txn::new().when(second).put("/t/a", "3").delete("/t/b")).await.unwrap();
    assert!(second.succeeded);
    let got = s.read(vec![Range::Key("/t/a".into()), Range::Prefix("/t/".into())]).await.unwrap();
    assert_eq!((got.revision, got.found.len()), (second.revision, 1));
    let a = got.get("/t/a").unwrap();
    assert_eq!((a.value.as_slice(), a.create_revision, a.mod_revision), (&b"3"[..], first.revision, second.revision));
    assert_eq!(s.get("/t/b").await.unwrap(), None);
}

#[tokio::test]
async fn a_lease_that_is_not_renewed_takes_its_keys_along_and_its_end_is_hinted() {
    let etcd = Etcd::start(1);
    let s = store(&etcd);
    let granted = s.grant(Duration::from_millis(1900)).await.unwrap();
    assert!(granted.ttl >= Duration::from_secs(2), "{granted:?}");
    s.txn(Txn::new().put_leased("/p", "me", granted.lease)).await.unwrap();
    assert_eq!(s.get("/p").await.unwrap().unwrap().lease, Some(granted.lease));
    let mut hints = s.watch("/p");
    hinted(&mut hints, "setting the watch up").await;
    let until = Instant::now() + granted.ttl * 3 / 2;
    while Instant::now() < until {
        assert_eq!(s.keep_alive(granted.lease).await.unwrap(), granted.ttl);
        tokio::time::sleep(granted.ttl / 10).await;
    }
    // Setting the watch up again is a hint, too.
    while s.get("/p").await.unwrap().is_some() {
        hinted(&mut hints, "the lease ended").await;
    }
    let lost = StoreError::LeaseLost { lease: granted.lease };
    assert_eq!(s.keep_alive(granted.lease).await, Err(lost.clone()));
    assert_eq!(s.txn(Txn::new().put_leased("/p", "me", granted.lease)).await, Err(lost));
    s.revoke(granted.lease).await.expect("revoking what is gone is no error");
    let other = s.grant(Duration::from_secs(60)).await.unwrap();
    s.txn(Txn::new().put_leased("/q", "me", other.lease)).await.unwrap();
    s.revoke(other.lease).await.unwrap();
    assert_eq!(s.get("/q").await.unwrap(), None);
    assert_eq!(s.keep_alive(LeaseId(77)).await, Err(StoreError::LeaseLost { lease: LeaseId(77) }));
}

#[tokio::test]
async fn a_restarted_member_is_found_again_and_the_gap_is_hinted() {
    let mut etcd = Etcd::start(1);
    let s = store(&etcd);
    s.txn(Txn::new().put("/a", "1")).await.unwrap();
    let mut hints = s.watch("/");
    hinted(&mut hints, "setting the watch up").await;
    etcd.kill(0);
    let down = s.txn(Txn::new().put("/a", "2")).await;
    assert!(matches!(down, Err(StoreError::Unavailable { .. } | StoreError::Indeterminate { .. })), "{down:?}");
    // With the dead connection noticed, nothing is sent and so nothing is unknown.
    let down = s.txn(Txn::new().put("/a", "2")).await;
    assert!(matches!(down, Err(StoreError::Unavailable { .. })), "{down:?}");
    etcd.spawn(0);
    etcd.await_healthy();
    hinted(&mut hints, "the member came back").await;
    let deadline = Instant::now() + PATIENCE;
    while let Err(error) = s.txn(Txn::new().put("/a", "3")).await {
        assert!(Instant::now() < deadline, "{error}");
    }
    hinted(&mut hints, "a put").await;
}

#[tokio::test]
async fn a_write_sent_to_a_member_that_freezes_is_indeterminate() {
    let etcd = Etcd::start(1);
    let s = store(&etcd);
    // On a busy machine the write before may be too long ago, and the member is asked first: nothing is sent then. Nor
    // do all threads of a member stop at once: it may still answer.
    let mut outcomes = Vec::new();
    while !matches!(outcomes.last(), Some(Err(StoreError::Indeterminate { .. }))) {
        assert!(outcomes.len() < 10, "{outcomes:?}");
        etcd.signal(0, Signal::SIGCONT);
        let deadline = Instant::now() + PATIENCE;
        while let Err(error) = s.txn(Txn::new().put("/a", "1")).await {
            assert!(Instant::now() < deadline, "{error}");
        }
        etcd.signal(0, Signal::SIGSTOP);
        outcomes.push(s.txn(Txn::new().put("/a", "2")).await);
    }
    let read = s.get("/a").await;
    assert!(matches!(read, Err(StoreError::Unavailable { .. })), "{read:?}");
    etcd.signal(0, Signal::SIGCONT);
    let deadline = Instant::now() + PATIENCE;
    let value = loop {
        match s.get("/a").await {
            Ok(found) => break found.unwrap().value,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
    };
    assert!(value == b"1" || value == b"2", "{value:?}");
}

#[tokio::test]
async fn a_frozen_leader_of_three_costs_no_lease_and_reads_overtake_it() {
    let etcd = Etcd::start(3);
    let s = store(&etcd);
    // Long enough for an election on a machine whose disk stalls meanwhile: how long that takes is etcd's affair.
    let granted = s.grant(Duration::from_secs(20)).await.unwrap();
    s.txn(Txn::new().put_leased("/primary", "me", granted.lease)).await.unwrap();
    let mut hints = s.watch("/t/");
    hinted(&mut hints, "setting the watch up").await;
    // It leads from wherever it may. On a busy machine the members may elect another by themselves meanwhile.
    let deadline = Instant::now() + PATIENCE;
    let (first, host, from, to) = loop {
        let first = etcd.leader();
        let host = BTreeSet::from([format!("127.0.0.{}", 1 + first)]);
        match s.move_leader(&host).await {
            Ok(Some((from, to))) => break (first, host, from, to),
            other => assert!(Instant::now() < deadline, "it was there: {other:?}"),
        }
    };
    let leader = etcd.leader();
    assert_ne!(leader, first);
    assert_eq!((&from, &to), (&etcd.urls()[first], &etcd.urls()[leader]));
    assert_eq!(s.move_leader(&host).await.unwrap(), None, "once");
    etcd.signal(leader, Signal::SIGSTOP);
    let frozen_at = Instant::now();
    let (mut renewals, mut written) = (0, false);
    // With the leader frozen a follower leads, and both kinds of request reach it.
    while renewals < 20 || !written {
        assert!(frozen_at.elapsed() < granted.ttl, "{renewals} renewals, written: {written}");
        match s.keep_alive(granted.lease).await {
            Ok(_) => renewals += 1,
            Err(StoreError::Unavailable { .. }) => (),
            Err(other) => panic!("the lease must not be lost: {other}"),
        }
        if !written {
            written = s.txn(Txn::new().put("/t/x", "1")).await.is_ok();
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    hinted(&mut hints, "a write, from whichever member still lives").await;
    // With a new leader the frozen member's silence fails no read, whichever member is asked first.
    let mut served = 0;
    for _ in 0..6 {
        match s.get("/primary").await {
            Ok(found) => served += i32::from(found.is_some()),
            Err(error) => eprintln!("{error}"),
        }
    }
    // One may fall into an election for another reason.
    assert!(served >= 5, "{served} of 6");
}

#[tokio::test]
async fn a_killed_follower_of_three_and_an_endpoint_where_nothing_listens_are_skipped() {
    let mut etcd = Etcd::start(3);
    let mut urls = vec!["http://127.0.0.1:1".to_owned()];
    urls.extend(etcd.urls());
    let s = EtcdStore::new(&config(urls)).unwrap();
    let follower = (etcd.leader() + 1) % 3;
    etcd.kill(follower);
    let mut written = 0;
    for n in 0..20 {
        // A write has a deadline of a second: one that waited for the dead member would fail.
        match s.txn(Txn::new().put("/a", n.to_string())).await {
            Ok(_) => written += 1,
            Err(error) => eprintln!("{error}"),
        }
    }
    // The two that are left may elect a leader anew meanwhile.
    assert!(written >= 15, "{written} of 20");
    let mut told = std::collections::BTreeMap::new();
    assert_eq!(s.check_versions(&mut told).await.len(), 2);
    // One that was down is told of once it is back, and nobody twice.
    etcd.spawn(follower);
    etcd.await_healthy();
    let back = s.check_versions(&mut told).await;
    assert_eq!(back.iter().map(|(url, _)| url).collect::<Vec<_>>(), [&etcd.urls()[follower]]);
    assert!(s.check_versions(&mut told).await.is_empty());
    // All are of one version: either all are told of, or none is.
    let all: Vec<String> = told.iter().map(|(url, version)| format!("{url} ({version})")).collect();
    assert!(s.outdated() == all || s.outdated().is_empty(), "{:?} of {all:?}", s.outdated());
}

#[tokio::test]
async fn an_etcd_without_space_refuses_writes_and_is_told_of() {
    let etcd = Etcd::start_with(1, vec!["--quota-backend-bytes".into(), (2 << 20).to_string()]);
    let s = store(&etcd);
    let alarms = async || s.check_alarms().await.into_iter().map(|(_, alarms, _)| alarms).collect::<Vec<_>>();
    assert_eq!(alarms().await, [Vec::<String>::new()]);
    let deadline = Instant::now() + PATIENCE;
    let refused = loop {
        match s.txn(Txn::new().put("/a", vec![b'x'; 1 << 20])).await {
            Err(StoreError::Refused { why, .. }) => break why,
            other => assert!(Instant::now() < deadline, "{other:?}"),
        }
    };
    assert!(refused.contains("space exceeded"), "{refused}");
    assert!(matches!(s.grant(Duration::from_secs(9)).await, Err(StoreError::Refused { .. })));
    assert!(s.get("/a").await.unwrap().is_some(), "reads go on");
    assert_eq!(alarms().await, [["NOSPACE"]]);
    assert!(s.check_alarms().await[0].2 > 1 << 20, "near its quota");
}

#[tokio::test]
async fn where_nothing_listens_a_write_is_certainly_not_done() {
    let s = EtcdStore::new(&config(vec!["http://127.0.0.1:1".into(), "http://127.0.0.1:2".into()])).unwrap();
    for result in [s.txn(Txn::new().put("/a", "1")).await.err(), s.get("/a").await.err()] {
        let Some(StoreError::Unavailable { why, .. }) = result else { panic!("{result:?}") };
        assert!(why.contains("tcp connect error"), "{why}");
    }
}

#[tokio::test]
async fn a_user_logs_in_with_a_password_and_a_wrong_one_is_refused() {
    let etcd = Etcd::start(1);
    let urls = etcd.urls();
    for args in [&["user", "add", "root:top"][..], &["user", "grant-role", "root", "root"], &["auth", "enable"]] {
        assert!(etcdctl(&[&urls[0]], args).0, "etcdctl {args:?}");
    }
    let dir = tempfile::tempdir().unwrap();
    let with = |password: &str| {
        let file = dir.path().join(password);
        std::fs::write(&file, format!("{password}\n")).unwrap();
        let login = Login { username: "root".into(), password: None, password_file: Some(file) };
        EtcdStore::new(&Config { login: Some(login), ..config(urls.clone()) }).unwrap()
    };
    let s = with("top");
    s.txn(Txn::new().put("/a", "1")).await.expect("logged in");
    assert_eq!(s.get("/a").await.unwrap().unwrap().value, b"1");
    for refused in [with("wrong").get("/a").await.err(), store(&etcd).get("/a").await.err()] {
        assert!(matches!(refused, Some(StoreError::Refused { .. })), "{refused:?}");
    }
    // One that is changed in the file and in etcd is taken when the one before is refused.
    std::fs::write(dir.path().join("top"), "other\n").unwrap();
    let changes = format!("etcdctl --endpoints={} --user root:top user passwd root --interactive=false", urls[0]);
    let changed = std::process::Command::new("sh").args(["-c", &format!("echo other | {changes}")]).status();
    assert!(changed.expect("a shell").success(), "{changes}");
    let deadline = Instant::now() + PATIENCE;
    while let Err(error) = s.get("/a").await {
        assert!(matches!(error, StoreError::Refused { .. }) && Instant::now() < deadline, "{error}");
    }
}

#[tokio::test]
async fn a_change_of_etcds_users_ends_nobodys_access() {
    let dir = tempfile::tempdir().unwrap();
    let key = dir.path().join("key");
    std::fs::write(&key, "a key of the tests only").unwrap();
    // Tokens that carry the revision of the user store.
    let token = format!("jwt,sign-method=HS256,priv-key={},ttl=10m", key.display());
    let etcd = Etcd::start_with(1, vec!["--auth-token".into(), token]);
    let urls = etcd.urls();
    for args in [&["user", "add", "root:top"][..], &["user", "grant-role", "root", "root"], &["auth", "enable"]] {
        assert!(etcdctl(&[&urls[0]], args).0, "etcdctl {args:?}");
    }
    let login = Login { username: "root".into(), password: Some(Secret::new("top")), password_file: None };
    let s = EtcdStore::new(&Config { login: Some(login), ..config(urls.clone()) }).unwrap();
    let lease = s.grant(Duration::from_secs(30)).await.expect("logged in").lease;
    for n in 0..3 {
        let user = format!("other{n}:pw");
        assert!(etcdctl(&[&urls[0]], &["--user", "root:top", "user", "add", &user]).0, "etcdctl user add");
        match n {
            0 => drop(s.get("/a").await.unwrap()),
            1 => drop(s.txn(Txn::new().put("/a", "1")).await.unwrap()),
            _ => drop(s.keep_alive(lease).await.unwrap()),
        }
    }
    assert_eq!(s.get("/a").await.unwrap().unwrap().value, b"1");
}

/// An authority's certificate, and a certificate of its own for this host with its key, as files in `dir`.
fn certify(dir: &Path) {
    let key = || KeyPair::generate().expect("a key");
    let mut params = CertificateParams::new(Vec::new()).expect("parameters");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let issuer = CertifiedIssuer::self_signed(params, key()).expect("a certificate");
    let own = key();
    let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("parameters");
    let certificate = params.signed_by(&own, &issuer).expect("a certificate");
    for (name, text) in [("ca.pem", issuer.pem()), ("cert.pem", certificate.pem()), ("key.pem", own.serialize_pem())] {
        std::fs::write(dir.join(name), text).expect("scratch is writable");
    }
}

#[tokio::test]
async fn certificates_that_replace_those_in_force_are_taken_once_etcd_refuses_these() {
    let dir = tempfile::tempdir().unwrap();
    certify(dir.path());
    let [ca, cert, key] = ["ca.pem", "cert.pem", "key.pem"].map(|name| dir.path().join(name));
    let files = [("--trusted-ca-file", &ca), ("--cert-file", &cert), ("--key-file", &key)];
    let more = files.iter().map(|(option, file)| format!("{option}={}", file.display()));
    let mut etcd = Etcd::start_tls(more.chain(["--client-cert-auth".to_owned()]).collect());
    let tls = Tls { ca_file: Some(ca), identity: Some((cert, key)) };
    let s = EtcdStore::new(&Config { tls, ..config(etcd.urls()) }).unwrap();
    // The agent's lease has connections of its own.
    let apart = s.apart();
    let both_read = async || {
        let deadline = Instant::now() + PATIENCE;
        while let Err(error) = s.get("/a").await.and(apart.get("/a").await) {
            assert!(Instant::now() < deadline, "{error}");
        }
    };
    both_read().await;
    etcd.kill(0);
    certify(dir.path());
    etcd.spawn(0);
    both_read().await;
    let written = s.txn(Txn::new().put("/a", "1")).await;
    assert!(written.is_ok(), "{written:?}");
}
