//! The manager's IO against agents that only pretend, over a store with faults: election, lost answers, takeover.

use cluster::keys::Keys;
use cluster::secret::Secret;
use cluster::timeline::Fork;
use cluster::{Endpoint, Lsn, NodeId, Term, TimelineId};
use failover::api::*;
use failover::config::manager::{ManagerRaw, check};
use failover::fsm::status::Status;
use failover::manager::{ManagerConfig, ManagerHandle, start};
use failover::record::*;
use failover::store::memory::{Fault, MemoryStore};
use failover::store::{
    Compare, Granted, Hints, LeaseId, Range, Snapshot, Store, StoreError, StoreResult, Txn, TxnOutcome,
};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::TcpListener;

const SECRET: &str = "shared by all in this test";

/// An agent without PostgreSQL: obeys every order at once and remembers the terms it promised.
#[derive(Clone)]
struct Pretender {
    state: Arc<Mutex<AgentState>>,
    store: MemoryStore,
    keys: Keys,
    frozen_terms: Arc<Mutex<Vec<Term>>>,
    changed: Arc<tokio::sync::Notify>,
}

fn standby(timeline: u32, at: u64, from: Option<&str>) -> PostgresState {
    PostgresState::Standby(Standby {
        timeline: TimelineId(timeline),
        receive_lsn: Lsn(at),
        replay_lsn: Lsn(at),
        streams_from: from.map(|n| n.parse().unwrap()),
        replay_paused: false,
        sync_names: String::new(),
    })
}

fn primary(timeline: u32, at: u64) -> PostgresState {
    PostgresState::Primary(Primary {
        timeline: TimelineId(timeline),
        insert_lsn: Lsn(at),
        flush_lsn: Lsn(at),
        sync_names: String::new(),
        followers: Vec::new(),
        impostors: Vec::new(),
        doubted: Vec::new(),
    })
}

impl Pretender {
    async fn start(node: &str, postgres: PostgresState, store: MemoryStore, keys: Keys) -> (Self, u16) {
        let state = AgentState {
            seq: 1,
            node: node.parse().unwrap(),
            holder: node.into(),
            host: "h".into(),
            promise: Term(0),
            opened: Term(0),
            postgres,
            observed_ms_ago: 0,
            system_id: None,
            memory_of: None,
            frozen_for: None,
            quarantine: None,
            rejoin: None,
            fenced: false,
            sees_primary: None,
            lease_left_ms: None,
            fsync_probe_ms: None,
            trouble: None,
            namesake: None,
            slot_room: None,
            ending: false,
            policy: None,
        };
        let me = Self {
            state: Arc::new(Mutex::new(state)),
            store,
            keys,
            frozen_terms: Arc::default(),
            changed: Arc::default(),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = me.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let me = server.clone();
                let service = service_fn(move |request| {
                    let me = me.clone();
                    async move { Ok::<_, Infallible>(me.answer(request).await) }
                });
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service),
                );
            }
        });
        (me, port)
    }

    fn change(&self, change: impl FnOnce(&mut AgentState)) {
        let mut state = self.state.lock().unwrap();
        change(&mut state);
        state.seq += 1;
        self.changed.notify_waiters();
    }

    /// As an agent: at once if something changed since the last answer, else at a change or after the time asked for.
    async fn state_after(&self, query: &str) -> Vec<u8> {
        let number = |name: &str| {
            let found = query.split('&').filter_map(|p| p.split_once('=')).find(|(k, _)| *k == name);
            found.and_then(|(_, v)| v.parse::<u64>().ok()).unwrap_or(0)
        };
        let changed = self.changed.notified();
        if self.state.lock().unwrap().seq <= number("after") {
            let _ = tokio::time::timeout(Duration::from_millis(number("wait_ms")), changed).await;
        }
        serde_json::to_vec(&*self.state.lock().unwrap()).unwrap()
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        assert_eq!(request.headers()["authorization"], format!("Bearer {SECRET}"));
        let path = request.uri().path().to_owned();
        let query = request.uri().query().unwrap_or("").to_owned();
        let body = request.into_body().collect().await.unwrap().to_bytes();
        let json = match path.as_str() {
            "/agent/state" => Ok(self.state_after(&query).await),
            "/agent/freeze" => serde_json::to_vec(&self.freeze(&serde_json::from_slice(&body).unwrap())),
            "/agent/recover" => {
                let order: Recover = serde_json::from_slice(&body).unwrap();
                self.change(|s| s.postgres = standby(7, 0x6000, None));
                let frozen = self.position(order.term);
                serde_json::to_vec(&Frozen { was_primary: true, ..frozen })
            }
            "/agent/promote" => serde_json::to_vec(&self.promote(&serde_json::from_slice(&body).unwrap())),
            "/agent/follow" => {
                let order: Follow = serde_json::from_slice(&body).unwrap();
                if order.ahead.is_none() {
                    let timeline = u32::try_from(order.term.0).unwrap();
                    self.change(|s| s.postgres = standby(timeline, 0x6100, Some(order.primary.as_str())));
                }
                Ok(b"{}".to_vec())
            }
            "/agent/open" => serde_json::to_vec(&self.open(serde_json::from_slice(&body).unwrap()).await),
            other => panic!("no order is expected at {other}"),
        };
        Response::new(Full::new(Bytes::from(json.unwrap())))
    }

    fn freeze(&self, order: &Freeze) -> Frozen {
        self.frozen_terms.lock().unwrap().push(order.term);
        self.change(|s| s.promise = s.promise.max(order.term));
        self.position(order.term)
    }

    fn position(&self, term: Term) -> Frozen {
        let state = self.state.lock().unwrap();
        let (position, was_primary) = match &state.postgres {
            PostgresState::Standby(s) => (Some(Position { timeline: s.timeline, lsn: s.receive_lsn }), false),
            _ => (None, true),
        };
        let node = state.node.clone();
        let replay_lsn = position.map(|p| p.lsn);
        Frozen {
            node,
            term,
            position,
            replay_lsn,
            history: None,
            quarantine: None,
            was_primary,
            system_id: None,
            recorded: None,
        }
    }

    fn promote(&self, order: &Promote) -> Promoted {
        let timeline = u32::try_from(order.term.0).unwrap();
        self.change(|s| s.postgres = primary(timeline, 0x6100));
        let fork = Fork { timeline: order.base.timeline, lsn: order.base.lsn };
        Promoted {
            fork,
            forks: vec![fork],
            xid_bound: 700,
            xid_bounds: Vec::new(),
            record_lsn: Lsn(0x6100),
            prepared: Prepared::default(),
        }
    }

    async fn open(&self, order: Open) -> Opened {
        let found = self.store.get(&self.keys.term()).await.unwrap().unwrap();
        let mut record: TermRecord = serde_json::from_slice(&found.value).unwrap();
        record.phase = Phase::Active;
        let txn = Txn::new()
            .when(Compare::ModRevision(self.keys.term(), order.term_revision))
            .put(self.keys.term(), serde_json::to_vec(&record).unwrap());
        let done = self.store.txn(txn).await.unwrap();
        assert!(done.succeeded, "the order to open names another revision");
        Opened { revision: done.revision }
    }
}

/// Loses the answer of the next change of the term record.
struct Lossy {
    inner: MemoryStore,
    term: String,
    next: Mutex<Option<Fault>>,
}

impl Store for Lossy {
    fn read(&self, ranges: Vec<Range>) -> StoreResult<'_, Snapshot> {
        self.inner.read(ranges)
    }

    fn txn(&self, txn: Txn) -> StoreResult<'_, TxnOutcome> {
        let hit = txn.puts.iter().any(|p| p.key == self.term);
        let fault = if hit { self.next.lock().unwrap().take() } else { None };
        Box::pin(async move {
            if matches!(fault, None | Some(Fault::DoneButUnknown)) {
                let done = self.inner.txn(txn).await?;
                if fault.is_none() {
                    return Ok(done);
                }
            }
            Err(StoreError::Indeterminate { what: "txn", why: "the test lost the answer".into() })
        })
    }

    fn grant(&self, ttl: Duration) -> StoreResult<'_, Granted> {
        self.inner.grant(ttl)
    }

    fn keep_alive(&self, lease: LeaseId) -> StoreResult<'_, Duration> {
        self.inner.keep_alive(lease)
    }

    fn revoke(&self, lease: LeaseId) -> StoreResult<'_, ()> {
        self.inner.revoke(lease)
    }

    fn watch(&self, prefix: &str) -> Hints {
        self.inner.watch(prefix)
    }

    fn apart(&self) -> Arc<dyn Store> {
        self.inner.apart()
    }
}

struct World {
    store: MemoryStore,
    keys: Keys,
    agents: Vec<Pretender>,
}

impl World {
    /// Term 7 of n1 is active, n2 and n3 stream.
    async fn new() -> Self {
        Self::named(MemoryStore::new(), "t").await
    }

    /// One of several clusters in a store.
    async fn named(store: MemoryStore, name: &str) -> Self {
        let keys = Keys::new("/t", name);
        let mut agents = Vec::new();
        let mut txn = Txn::new();
        let voters: Vec<NodeId> = ["n1", "n2", "n3"].map(|n| n.parse().unwrap()).to_vec();
        for node in &voters {
            let is = if node.as_str() == "n1" { primary(7, 0x6000) } else { standby(7, 0x6000, Some("n1")) };
            let (agent, port) = Pretender::start(node.as_str(), is, store.client(), keys.clone()).await;
            agents.push(agent);
            let at = |port| Endpoint { host: "127.0.0.1".into(), port };
            let (host, node) = ("h".into(), node.clone());
            let member = MemberRecord {
                node: node.clone(),
                postgres: at(1),
                agent: at(port),
                pg_version: 0,
                system_id: None,
                host,
                standing: Standing::default(),
                slots: true,
                holder: None,
            };
            txn = txn.put(keys.member(&node), serde_json::to_vec(&member).unwrap());
        }
        let term = TermRecord {
            term: Term(7),
            phase: Phase::Active,
            coordinator: "m0".into(),
            node: Some(voters[0].clone()),
            cause: Cause::Bootstrap,
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
        };
        let policy = PolicyRecord {
            epoch: 1,
            voters,
            k: 1,
            mode: Mode::Strict,
            suspended: None,
            limits: Limits::default(),
            joint: None,
            rearmed: None,
        };
        let txn = txn
            .put(keys.term(), serde_json::to_vec(&term).unwrap())
            .put(keys.policy(), serde_json::to_vec(&policy).unwrap());
        assert!(store.txn(txn).await.unwrap().succeeded);
        Self { store, keys, agents }
    }

    fn manager(&self, store: Arc<dyn Store>, admin: &str) -> ManagerHandle {
        let config = ManagerConfig {
            cluster: "t".into(),
            one_of_several: false,
            keys: self.keys.clone(),
            section: check(&ManagerRaw::default()).unwrap(),
            secret: Secret::new(SECRET),
            admin: admin.into(),
            view_validity: Duration::from_secs(1),
        };
        start(config, store, &prometheus::Registry::new()).unwrap()
    }

    fn kill_n1(&self) {
        let stopped =
            PostgresState::Stopped { clean: false, timeline: TimelineId(7), was_primary: true, checkpoint_lsn: Lsn(1) };
        self.agents[0].change(|s| s.postgres = stopped);
    }
}

async fn status_is(m: &ManagerHandle, what: &str, test: impl Fn(&Status) -> bool) -> Arc<Status> {
    let mut status = m.status();
    match tokio::time::timeout(Duration::from_secs(60), status.wait_for(|s| test(s))).await {
        Ok(found) => Arc::clone(&found.unwrap()),
        Err(_) => panic!("waited for {what}; the manager says {:#?}", m.status().borrow()),
    }
}

fn heard_all(s: &Status) -> bool {
    s.leading && s.nodes.len() == 3 && s.nodes.iter().all(|n| n.agent_reachable)
}

#[tokio::test]
async fn a_failover_goes_on_although_the_answer_to_its_first_transaction_is_lost() {
    let world = World::new().await;
    let (inner, term) = (world.store.client(), world.keys.term());
    let link = Arc::new(Lossy { inner, term, next: Mutex::new(None) });
    let m = world.manager(link.clone(), "a:1");
    status_is(&m, "the agents", heard_all).await;
    for fault in [Fault::DoneButUnknown, Fault::NotDoneAndUnknown] {
        let before = m.status().borrow().term.unwrap();
        *link.next.lock().unwrap() = Some(fault);
        let dead = m.status().borrow().primary.clone().unwrap();
        let index = world.agents.iter().position(|a| a.state.lock().unwrap().node == dead).unwrap();
        world.agents[index].change(|s| {
            s.postgres = PostgresState::Stopped {
                clean: false,
                timeline: before.timeline().unwrap(),
                was_primary: true,
                checkpoint_lsn: Lsn(1),
            };
        });
        let s = status_is(&m, "the next term", |s| s.term > Some(before) && s.phase == Some(Phase::Active)).await;
        assert_eq!(s.term, Some(before.next()), "one term for one death");
        assert_ne!(s.primary, Some(dead));
    }
    m.stop().await;
}

#[tokio::test]
async fn a_leader_that_loses_etcd_is_replaced_and_its_round_taken_over() {
    let world = World::new().await;
    let first_link = world.store.client();
    let first = world.manager(Arc::new(first_link.clone()), "a:1");
    status_is(&first, "the agents", heard_all).await;
    let second = world.manager(Arc::new(world.store.client()), "b:1");
    status_is(&second, "the leader", |s| s.leader.as_ref().is_some_and(|l| l.admin == "a:1")).await;
    let (code, answer) = second.routes().handle("GET", "/status", "", b"").await.unwrap();
    assert_eq!((code, answer.pointer("/leader/admin").and_then(|a| a.as_str())), (307, Some("a:1")));

    first_link.set_down(true);
    world.kill_n1();
    status_is(&first, "the first to step down", |s| !s.leading).await;
    assert!(world.store.expire_holder(&world.keys.manager()));
    let s = status_is(&second, "term 8", |s| s.term == Some(Term(8)) && s.phase == Some(Phase::Active)).await;
    assert!(s.leading);
    for agent in &world.agents {
        assert_eq!(*agent.frozen_terms.lock().unwrap(), [Term(8)], "frozen once, by the second manager");
    }
    let (code, answer) = first.routes().handle("POST", "/ops/failover", "", b"").await.unwrap();
    assert_eq!(code, 307, "{answer}");
    first.stop().await;
    second.stop().await;
}

#[tokio::test]
async fn one_of_the_others_takes_the_lead_from_a_leader_that_does_nothing() {
    let world = World::new().await;
    let link = world.store.client();
    let first = world.manager(Arc::new(link.clone()), "a:1");
    status_is(&first, "the agents", heard_all).await;
    let others = ["b:1", "c:1"].map(|admin| world.manager(Arc::new(world.store.client()), admin));
    for m in &others {
        let follows = |s: &Status| s.leader.as_ref().is_some_and(|l| l.admin == "a:1");
        let hears = |s: &Status| s.nodes.len() == 3 && s.nodes.iter().all(|n| n.agent_reachable);
        status_is(m, "the leader and the agents", |s| follows(s) && hears(s)).await;
    }
    // Its lease does not end by itself in this store.
    link.set_down(true);
    world.kill_n1();
    let mut leading = 0;
    for m in &others {
        let opened = |s: &Status| s.term == Some(Term(8)) && s.phase == Some(Phase::Active);
        leading += u32::from(status_is(m, "term 8", opened).await.leading);
    }
    assert_eq!(leading, 1, "the other one follows");
    for agent in &world.agents {
        assert_eq!(*agent.frozen_terms.lock().unwrap(), [Term(8)], "one round, by one manager");
    }
    assert!(world.store.get(&world.keys.spent_on(Term(8))).await.unwrap().is_some(), "the budget counts it");
    for m in others {
        m.stop().await;
    }
    first.stop().await;
}

/// CPU time of this process's threads of that name.
fn cpu_of(threads: &str) -> Duration {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    let named =
        tasks.filter(|t| std::fs::read_to_string(t.path().join("comm")).is_ok_and(|comm| comm.trim() == threads));
    // User and system time, in hundredths of a second, are the 14th and 15th field; the name may contain spaces.
    let ticks = |t: std::fs::DirEntry| {
        let stat = std::fs::read_to_string(t.path().join("stat")).unwrap_or_default();
        let fields: Vec<u64> =
            stat.rsplit(')').next().unwrap_or("").split(' ').map(|f| f.parse().unwrap_or(0)).collect();
        fields.get(12).copied().unwrap_or(0) + fields.get(13).copied().unwrap_or(0)
    };
    Duration::from_millis(named.map(ticks).sum::<u64>() * 10)
}

/// How late a task of this runtime is that wants to run every 25 ms, as a planner does that is told the time: sorted, for
/// as long as `during` takes.
async fn lateness(during: impl Future<Output = ()>) -> Vec<Duration> {
    const TICK: Duration = Duration::from_millis(25);
    let (end, mut ended) = tokio::sync::oneshot::channel::<()>();
    let watch = tokio::spawn(async move {
        let mut late = Vec::new();
        loop {
            let due = tokio::time::Instant::now() + TICK;
            tokio::select! {
                () = tokio::time::sleep_until(due) => late.push(due.elapsed()),
                _ = &mut ended => break,
            }
        }
        late.sort_unstable();
        late
    });
    during.await;
    let _ = end.send(());
    watch.await.expect("it does not panic")
}

/// What a process with two hundred clusters is held to by `make bench-managers`: half of a core while nothing happens, all
/// but one tick in a hundred no later than this, and this many milliseconds for a failover, of which five happen at once
/// while the agents that pretend share its CPUs.
const BUDGET: (f64, Duration, u64) = (0.5, Duration::from_millis(50), 3000);

/// `MANAGED_CLUSTERS=200` is `make bench-managers`, which also measures ten seconds in which nothing happens, and asserts
/// the budget.
#[test]
fn one_process_steers_many_clusters_each_by_itself() {
    let asked = std::env::var("MANAGED_CLUSTERS").ok().and_then(|n| n.parse::<usize>().ok());
    let clusters = asked.unwrap_or(10);
    let runtime = |name: &str, threads| {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(threads)
            .thread_name(name)
            .enable_all()
            .build()
            .unwrap()
    };
    let (agents, managers) = (runtime("agents", 2), runtime("managers", 2));
    // The store that pretends to be etcd looks at all its keys at each read, so that only ten share one.
    let stores: Vec<MemoryStore> = (0..clusters.div_ceil(10)).map(|_| MemoryStore::new()).collect();
    let worlds = agents.block_on(async {
        let mut worlds = Vec::new();
        for i in 0..clusters {
            worlds.push(World::named(stores[i / 10].clone(), &format!("c{i}")).await);
        }
        worlds
    });
    managers.block_on(async {
        let all: Vec<ManagerHandle> = worlds.iter().map(|w| w.manager(Arc::new(w.store.client()), "a:1")).collect();
        for m in &all {
            status_is(m, "the agents", heard_all).await;
        }
        if asked.is_some() {
            let (cpu, begun) = (cpu_of("managers"), std::time::Instant::now());
            let late = lateness(tokio::time::sleep(Duration::from_secs(10))).await;
            let share = (cpu_of("managers") - cpu).as_secs_f64() / begun.elapsed().as_secs_f64();
            let (of_hundred, worst) = (late[late.len() * 99 / 100], late[late.len() - 1]);
            println!(
                "{clusters} clusters, nothing happens: {:.1} % of one CPU; ticks late by {of_hundred:?} (99 %), {worst:?} (worst)",
                share * 100.0
            );
            assert!(share < BUDGET.0, "{share} of a CPU, the budget is {}", BUDGET.0);
            assert!(of_hundred < BUDGET.1, "ticks are late by {of_hundred:?}, the budget is {:?}", BUDGET.1);
        }
        // A tenth of them lose their primary, five at once: the agents that pretend share these CPUs.
        let (cpu, begun) = (cpu_of("managers"), std::time::Instant::now());
        let victims: Vec<usize> = (0..clusters).step_by(10).collect();
        let opened = |term| move |s: &Status| s.leading && s.term == Some(Term(term)) && s.phase == Some(Phase::Active);
        let mut took = Vec::new();
        for group in victims.chunks(5) {
            group.iter().for_each(|i| worlds[*i].kill_n1());
            for i in group {
                let s = status_is(&all[*i], "the next term", opened(8)).await;
                took.extend(s.last_failover.iter().filter_map(|j| j.phases.last().map(|p| p.ms)));
            }
        }
        for (_, m) in all.iter().enumerate().filter(|(i, _)| !victims.contains(i)) {
            status_is(m, "the term it had", opened(7)).await;
        }
        took.sort_unstable();
        let worst = took.last().copied().unwrap_or(u64::MAX);
        assert!(asked.is_none() || worst < BUDGET.2, "a failover took {worst} ms, the budget is {}", BUDGET.2);
        let cpu = cpu_of("managers") - cpu;
        println!("{} failovers, {took:?} ms each, {cpu:?} of CPU in {:?}", took.len(), begun.elapsed());
        for (i, world) in worlds.iter().enumerate() {
            let frozen = world.agents.iter().any(|a| !a.frozen_terms.lock().unwrap().is_empty());
            assert_eq!(frozen, i % 10 == 0, "only where the primary died is anybody frozen");
        }
        for m in all {
            m.stop().await;
        }
    });
}
