//! The view of the cluster, on a store in memory whose connection and leases fail on demand.

use cluster::keys::Keys;
use cluster::per_term::Fate;
use cluster::topology::{BelowMode, Closed, Gate, PerTerm, ProxyState, Topology};
use cluster::{Clock, Endpoint, Term};
use failover::record::{
    Cause, DoubtsRecord, InitRecord, Limits, MemberRecord, Mode, Phase, PolicyRecord, PrimaryRecord, ProxyRecord,
    Standing, TermRecord,
};
use failover::store::memory::MemoryStore;
use failover::store::{Store, Txn};
use failover::view::{Purpose, Times, View, start};
use prometheus::Registry;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// Longest wait for any condition.
const PATIENCE: Duration = Duration::from_secs(60);
const TIMES: Times =
    Times { validity: Duration::from_millis(600), strict: Duration::from_secs(3), lease_ttl: Duration::from_secs(3) };

fn keys() -> Keys {
    Keys::new("/pgtenure", "test")
}

fn view(store: &MemoryStore, purpose: Purpose) -> (View, Registry) {
    let registry = Registry::new();
    let view = start(Arc::new(store.client()), keys(), TIMES, purpose, &registry).expect("an empty registry");
    (view, registry)
}

fn json(record: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec(record).expect("records are JSON")
}

fn term(term: u64, phase: Phase) -> TermRecord {
    TermRecord {
        term: Term(term),
        phase,
        coordinator: "m".to_owned(),
        node: Some("n1".parse().unwrap()),
        cause: Cause::Failover,
        prev: None,
        fork: None,
        forks: Vec::new(),
        xid_bound: None,
        xid_bounds: Vec::new(),
        record_lsn: None,
        policy_epoch: 1,
        newest_timeline: None,
        holds_all_of: None,
        holds_written_of: None,
        history_lost: false,
        lossy_timelines: Vec::new(),
        chosen_before: None,
        data_loss_allowed: false,
    }
}

async fn put(store: &MemoryStore, key: String, value: Vec<u8>) {
    assert!(store.txn(Txn::new().put(key, value)).await.unwrap().succeeded);
}

async fn cluster(mode: Mode) -> MemoryStore {
    let store = MemoryStore::new();
    let endpoint = |port| Endpoint { host: "127.0.0.1".to_owned(), port };
    for (name, port) in [("n1", 1), ("n2", 2)] {
        let node: cluster::NodeId = name.parse().unwrap();
        let member = MemberRecord {
            node: node.clone(),
            postgres: endpoint(port),
            agent: endpoint(port + 10),
            pg_version: 150_018,
            system_id: None,
            host: "h".to_owned(),
            standing: Standing::default(),
            slots: true,
            holder: None,
        };
        put(&store, keys().member(&node), json(&member)).await;
    }
    let (k, voters) = (u32::from(mode == Mode::Strict), vec!["n1".parse().unwrap(), "n2".parse().unwrap()]);
    put(
        &store,
        keys().policy(),
        json(&PolicyRecord {
            epoch: 1,
            voters,
            k,
            mode,
            suspended: None,
            limits: Limits::default(),
            joint: None,
            rearmed: None,
        }),
    )
    .await;
    let primary = PrimaryRecord { term: Term(3), node: "n1".parse().unwrap(), holder: "a".to_owned() };
    put(&store, keys().primary(), json(&primary)).await;
    put(&store, keys().term(), json(&term(3, Phase::Active))).await;
    store
}

/// Wait until the topology, looked at now, is as `wanted` says.
async fn until(what: &str, topology: &mut watch::Receiver<Topology>, wanted: impl Fn(&Topology) -> bool) -> Topology {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let now = topology.borrow_and_update().clone();
        if wanted(&now) {
            return now;
        }
        assert!(tokio::time::Instant::now() < deadline, "waited {PATIENCE:?} for {what}, last seen {now:?}");
        // A gate also closes by the mere passing of time.
        let _ = tokio::time::timeout(Duration::from_millis(20), topology.changed()).await;
    }
}

async fn proxy_record(store: &MemoryStore, what: &str, wanted: impl Fn(Option<&ProxyRecord>) -> bool) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let found = store.get(&keys().proxy("p1")).await.unwrap();
        let record = found.map(|v| serde_json::from_slice::<ProxyRecord>(&v.value).unwrap());
        if wanted(record.as_ref()) {
            return;
        }
        assert!(tokio::time::Instant::now() < deadline, "waited {PATIENCE:?} for {what}, last seen {record:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn gate_now(topology: &Topology) -> Gate {
    topology.gate_at(Clock.now())
}

#[tokio::test]
async fn a_change_in_etcd_is_seen_at_once_by_its_hint_and_soon_without() {
    let store = cluster(Mode::Strict).await;
    let (view, registry) = view(&store, Purpose::Observe);
    let mut topology = view.topology();
    let seen = until("term 3 to be open", &mut topology, |t| t.gate == Gate::Open).await;
    assert_eq!((seen.term, seen.valid_until, seen.standbys.len()), (Term(3), None, 1));
    put(&store, keys().term(), json(&term(3, Phase::Draining))).await;
    until("draining", &mut topology, |t| t.gate == Gate::Draining).await;
    store.hold_hints(true);
    put(&store, keys().term(), json(&term(4, Phase::Recruiting))).await;
    let closed = until("term 4", &mut topology, |t| t.term == Term(4)).await;
    assert_eq!(closed.gate, Gate::Closed(Closed::Recruiting));
    let text = prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
    for want in [
        "pgtenure_failover_view_term 4",
        "pgtenure_failover_view_gate{gate=\"recruiting\"} 1",
        "pgtenure_failover_view_gate{gate=\"open\"} 0",
        "pgtenure_failover_view_primary{node=\"n1\"} 1",
        "pgtenure_failover_view_reads_total{outcome=\"ok\"}",
        "pgtenure_failover_view_age_seconds",
    ] {
        assert!(text.contains(want), "{want} is not in\n{text}");
    }
}

#[tokio::test]
async fn a_reading_that_somebody_waits_for_comes_at_once_and_is_published() {
    let store = cluster(Mode::Strict).await;
    // By itself it reads again in twenty minutes.
    let times = Times { validity: Duration::from_secs(3600), strict: Duration::from_secs(7200), ..TIMES };
    let view = start(Arc::new(store.client()), keys(), times, Purpose::Observe, &Registry::new()).unwrap();
    let (mut topology, ask) = (view.topology(), view.ask());
    until("term 3 to be open", &mut topology, |t| t.gate == Gate::Open).await;
    for _ in 0..3 {
        let since = Clock.now();
        ask();
        until("a reading that began since", &mut topology, |t| t.read_at.is_some_and(|at| at >= since)).await;
    }
}

#[tokio::test]
async fn cut_off_from_etcd_an_async_view_ends_and_a_strict_one_much_later() {
    for (mode, gate) in [(Mode::Strict, Gate::Open), (Mode::Async, Gate::Closed(Closed::Stale))] {
        let store = cluster(mode).await;
        let link = store.client();
        let view = start(Arc::new(link.clone()), keys(), TIMES, Purpose::Observe, &Registry::new()).unwrap();
        let mut topology = view.topology();
        until("open", &mut topology, |t| gate_now(t) == Gate::Open).await;
        link.set_down(true);
        let cut_at = Clock.now();
        // On a slow machine a strict one may have ended, too, when it is looked at.
        until("the view's end", &mut topology, |t| {
            let at = Clock.now().min(cut_at + TIMES.validity * 2);
            at.since(cut_at) > TIMES.validity && t.gate_at(at) == gate
        })
        .await;
        let health = view.health();
        until("why", &mut topology, |_| health.borrow().error.is_some()).await;
        // Nor does a strict one last for ever: the mode may have been lowered, and no agent says that it was not.
        let stale = Gate::Closed(Closed::Stale);
        until("the end of what nobody confirms", &mut topology, |t| gate_now(t) == stale).await;
        // It counts from the last reading, which was a while before.
        assert!(Clock.now().since(cut_at) > if mode == Mode::Strict { TIMES.validity * 2 } else { TIMES.validity / 2 });
        link.set_down(false);
        until("open again", &mut topology, |t| gate_now(t) == Gate::Open).await;
    }
}

#[tokio::test]
async fn an_older_term_read_back_from_a_restored_etcd_is_ignored() {
    let store = cluster(Mode::Strict).await;
    let (view, _) = view(&store, Purpose::Observe);
    let mut topology = view.topology();
    until("term 3", &mut topology, |t| t.term == Term(3)).await;
    put(&store, keys().term(), json(&term(2, Phase::Active))).await;
    put(&store, keys().fence(&"n2".parse().unwrap()), br#"{"by":"x","at":0,"stop_writes":false}"#.to_vec()).await;
    let reads = view.health();
    let before = reads.borrow().read_at;
    until("two more reads", &mut topology, |_| reads.borrow().read_at > before.map(|b| b + TIMES.validity)).await;
    assert_eq!(topology.borrow().term, Term(3));
    put(&store, keys().term(), json(&term(4, Phase::Active))).await;
    let next = until("term 4", &mut topology, |t| t.term == Term(4)).await;
    assert!(next.standbys[0].fenced);
}

#[tokio::test]
async fn an_etcd_restored_within_the_term_is_obeyed_unless_its_policy_is_older() {
    let (store, backup) = (cluster(Mode::Strict).await, cluster(Mode::Strict).await);
    let (view, _) = view(&store, Purpose::Observe);
    let mut topology = view.topology();
    let fence = keys().fence(&"n2".parse().unwrap());
    put(&store, fence.clone(), br#"{"by":"x","at":0,"stop_writes":false}"#.to_vec()).await;
    let fenced = until("the fence", &mut topology, |t| t.standbys.iter().any(|s| s.fenced)).await;
    store.restore(&backup);
    let restored = until("no fence", &mut topology, |t| t.standbys.iter().all(|s| !s.fenced)).await;
    assert!((restored.term, restored.revision) > (fenced.term, fenced.revision), "or no worker takes it");
    put(&store, keys().term(), json(&term(3, Phase::Draining))).await;
    until("draining", &mut topology, |t| t.gate == Gate::Draining).await;

    let policy = store.get(&keys().policy()).await.unwrap().unwrap().value;
    let raised = PolicyRecord { epoch: 2, ..serde_json::from_slice(&policy).unwrap() };
    put(&store, keys().policy(), json(&raised)).await;
    until("the next policy", &mut topology, |t| t.epoch == 2).await;
    store.restore(&backup);
    let reads = view.health();
    let before = reads.borrow().read_at;
    until("two more reads", &mut topology, |_| reads.borrow().read_at > before.map(|b| b + TIMES.validity)).await;
    assert_eq!((topology.borrow().epoch, topology.borrow().gate), (2, Gate::Draining));
    put(&store, keys().policy(), json(&raised)).await;
    until("what is there now", &mut topology, |t| t.gate == Gate::Open).await;
}

#[tokio::test]
async fn a_registration_that_a_backup_has_set_back_is_written_again() {
    let store = cluster(Mode::Strict).await;
    let init = |id: &str| InitRecord { node: "n1".parse().unwrap(), system_id: Some(id.to_owned()) };
    put(&store, keys().init(), json(&init("41"))).await;
    let (view, _) = view(&store, Purpose::Proxy);
    let mut topology = view.topology();
    let of = |term| ProxyState {
        term: Term(term),
        epoch: 1,
        gate: Gate::Open,
        busy: 0,
        below_mode: BelowMode::default(),
        doubts: PerTerm::default(),
    };
    let (state, states) = watch::channel(of(3));
    let _registration = view.register("p1", states);
    proxy_record(&store, "the key", |r| r.is_some_and(|r| r.term == Term(3))).await;
    // With the lease: it is renewed as if nothing had happened.
    let backup = MemoryStore::new();
    backup.restore(&store);
    // Another cluster takes the place of this one: that it has read of the term it knows must not be told of that.
    put(&backup, keys().init(), json(&init("42"))).await;
    put(&store, keys().term(), json(&term(4, Phase::Active))).await;
    until("term 4", &mut topology, |t| t.term == Term(4)).await;
    state.send_replace(of(4));
    let mut known = of(4);
    known.below_mode.add(Term(2), 5);
    state.send_replace(known);
    let told = |r: Option<&ProxyRecord>| r.is_some_and(|r| r.term == Term(4) && r.system_id.as_deref() == Some("41"));
    let of_term = async || store.get(&keys().doubts_by(Term(2), "p1")).await.unwrap();
    for what in ["the next term", "what it alone knows"] {
        proxy_record(&store, what, told).await;
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while of_term().await.is_none() {
            assert!(tokio::time::Instant::now() < deadline, "waited {PATIENCE:?} for what is told for good");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        store.restore(&backup);
        assert_eq!(of_term().await, None);
    }
    proxy_record(&store, "the same, of a second restoration", told).await;
    assert_eq!(topology.borrow().term, Term(4));
}

#[tokio::test]
async fn an_unreadable_record_leaves_the_last_view_and_says_so() {
    let store = cluster(Mode::Strict).await;
    let (view, _) = view(&store, Purpose::Observe);
    let mut topology = view.topology();
    until("open", &mut topology, |t| t.gate == Gate::Open).await;
    put(&store, keys().policy(), b"{not json".to_vec()).await;
    let mut health = view.health();
    let told = health.wait_for(|h| h.error.as_ref().is_some_and(|e| e.contains("/pgtenure/test/policy is unreadable")));
    tokio::time::timeout(PATIENCE, told).await.expect("an error in time").unwrap();
    assert_eq!(topology.borrow().gate, Gate::Open);
}

#[tokio::test]
async fn one_nodes_unreadable_record_hides_no_change_of_primary() {
    let store = cluster(Mode::Strict).await;
    let (view, _) = view(&store, Purpose::Observe);
    let mut topology = view.topology();
    until("open", &mut topology, |t| t.gate == Gate::Open && t.standbys.iter().all(|s| !s.fenced)).await;
    put(&store, keys().maintenance() + "Not-A-Name!", b"x".to_vec()).await;
    put(&store, keys().members() + "n9", b"{}".to_vec()).await;
    put(&store, keys().fence(&"n2".parse().unwrap()), b"{}".to_vec()).await;
    put(&store, keys().term(), json(&term(4, Phase::Active))).await;
    let next = until("the next term", &mut topology, |t| t.term == Term(4)).await;
    assert!(next.standbys.iter().any(|s| s.node.as_str() == "n2" && s.fenced), "a fence holds by existing: {next:?}");
    assert_eq!((view.health().borrow().error.clone(), next.gate), (None, Gate::Open));
}

#[tokio::test]
async fn a_proxy_writes_in_async_mode_only_while_it_is_registered() {
    let store = cluster(Mode::Async).await;
    let link = store.client();
    let view = start(Arc::new(link.clone()), keys(), TIMES, Purpose::Proxy, &Registry::new()).unwrap();
    let mut topology = view.topology();
    let stale = Gate::Closed(Closed::Stale);
    until("a first view, not valid", &mut topology, |t| t.term == Term(3) && gate_now(t) == stale).await;
    let of = |gate, busy| ProxyState {
        term: Term(3),
        epoch: 1,
        gate,
        busy,
        below_mode: BelowMode::default(),
        doubts: PerTerm::default(),
    };
    let (state, states) = watch::channel(of(stale, 0));
    let registration = view.register("p1", states);
    until("open", &mut topology, |t| gate_now(t) == Gate::Open).await;
    // A term that opens without it waits for as long as its view lasts, which it alone knows.
    let told = ("stale", 600);
    proxy_record(&store, "the key", |r| r.is_some_and(|r| (r.gate.as_str(), r.view_ms) == told)).await;
    state.send_replace(of(Gate::Draining, 2));
    proxy_record(&store, "draining", |r| r.is_some_and(|r| (r.gate.as_str(), r.busy) == ("draining", 2))).await;
    state.send_replace(of(Gate::Draining, 0));
    proxy_record(&store, "no more busy sessions", |r| r.is_some_and(|r| r.busy == 0)).await;
    // The lease is lost without the proxy's fault: it registers anew by itself.
    let before = store.get(&keys().proxy("p1")).await.unwrap().unwrap().lease;
    assert!(store.expire_holder(&keys().proxy("p1")));
    proxy_record(&store, "a new registration", |r| r.is_some()).await;
    assert_ne!(store.get(&keys().proxy("p1")).await.unwrap().unwrap().lease, before);
    until("open again", &mut topology, |t| gate_now(t) == Gate::Open).await;
    registration.end().await;
    assert_eq!(store.get(&keys().proxy("p1")).await.unwrap(), None);
    until("no valid view after the registration's end", &mut topology, |t| gate_now(t) == stale).await;
}

#[tokio::test]
async fn what_a_proxy_alone_knows_of_a_terms_commits_outlives_it() {
    let store = cluster(Mode::Strict).await;
    let link = store.client();
    let view = start(Arc::new(link.clone()), keys(), TIMES, Purpose::Proxy, &Registry::new()).unwrap();
    let mut now = ProxyState {
        term: Term(3),
        epoch: 1,
        gate: Gate::Open,
        busy: 0,
        below_mode: BelowMode::default(),
        doubts: PerTerm::default(),
    };
    let (state, states) = watch::channel(now);
    let registration = view.register("p1", states);
    proxy_record(&store, "the key", |r| r.is_some()).await;
    let told = async |term| {
        let found = store.get(&keys().doubts_by(Term(term), "p1")).await.unwrap();
        found.map(|v| serde_json::from_slice::<DoubtsRecord>(&v.value).unwrap())
    };
    assert_eq!(told(2).await, None, "there was none");
    for fate in [Fate::Survived, Fate::Lost, Fate::Lost, Fate::Unknown] {
        now.doubts.add(Term(2), fate.into());
    }
    state.send_replace(now);
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while told(2).await.is_none() {
        assert!(tokio::time::Instant::now() < deadline, "waited for the doubts of term 2");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let of = |term, [survived, lost, unknown]: [u64; 3], below_mode| {
        Some(DoubtsRecord { term: Term(term), proxy: "p1".into(), survived, lost, unknown, below_mode })
    };
    assert_eq!(told(2).await, of(2, [1, 2, 1], 0));
    // The last ones are told on the way out, and stay when the proxy's own key is gone.
    now.doubts.add(Term(2), Fate::Survived.into());
    now.doubts.add(Term(3), Fate::Unknown.into());
    now.below_mode.add(Term(3), 7);
    // The last term's, as of a proxy that was cut off with its primary.
    now.below_mode.add(Term(1), 5);
    state.send_replace(now);
    registration.end().await;
    assert_eq!(store.get(&keys().proxy("p1")).await.unwrap(), None);
    assert_eq!((told(2).await, told(3).await), (of(2, [2, 2, 1], 0), of(3, [0, 0, 1], 7)));
    assert_eq!(told(1).await, of(1, [0; 3], 5));
}
