//! etcd's own leader is kept off the hosts that it must not die with.
//!
//! Whoever loses the primary's host and etcd's leader in one waits for an election before anything can be recorded, and
//! then for leases that the new leader has extended (etcd's lessor, `Promote`): seconds, in which nobody can write. A move
//! extends them, too, all that etcd has: it is made seldom, and never for somebody's wish against another's.

use super::EtcdStore;
use super::classify::{Fate, fate};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;
use tokio::time::Instant;
use tracing::{debug, info, warn};

/// Between two looks.
const LOOK: Duration = Duration::from_secs(1);
/// After a move that was tried; twice as long each time that it was undone.
const PAUSE: Duration = Duration::from_secs(10);
/// The same, once another node is primary.
const SHORT_PAUSE: Duration = Duration::from_secs(2);
/// The longest.
const LONG_PAUSE: Duration = Duration::from_secs(3600);
/// Between two warnings that it cannot be moved.
const WARN_AGAIN: Duration = Duration::from_secs(600);
/// Entries that a member may lack and still take over at once.
const NEAR: u64 = 1000;

/// An etcd member as one of our endpoints told of it.
#[derive(Clone, Debug)]
struct Seat {
    /// Index of the endpoint.
    endpoint: usize,
    /// etcd's id of the member.
    id: u64,
    /// Who leads, by this member.
    leader: u64,
    /// How much of the log it has.
    index: u64,
    learner: bool,
    /// How long it took to answer.
    round_trip: Duration,
    /// The addresses of its host.
    addresses: BTreeSet<IpAddr>,
}

/// The endpoint whose member leads from a host that is to be avoided, and the member that should instead. PURE.
fn successor(seats: &[Seat], avoid: &BTreeSet<IpAddr>) -> Option<(usize, u64)> {
    let leader = seats.iter().find(|s| s.id == s.leader)?;
    let free = |s: &&Seat| s.addresses.is_disjoint(avoid) && !s.addresses.is_empty();
    if leader.addresses.is_disjoint(avoid) {
        return None;
    }
    let follows = |s: &&Seat| s.leader == leader.id && !s.learner && s.index + NEAR >= leader.index;
    // A distant one would make every change slow.
    let best = seats.iter().filter(free).filter(follows).min_by_key(|s| (s.round_trip.as_millis(), s.id))?;
    Some((leader.endpoint, best.id))
}

/// Hosts that etcd's leader is to be kept off.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Avoid {
    /// Of all primaries that are known, so that processes that know the same do not undo each other's moves.
    pub hosts: BTreeSet<String>,
    /// May it be moved now?
    pub now: bool,
}

/// How long to leave etcd's leader where it was moved to. PURE.
#[derive(Debug, Default)]
struct Patience {
    last: Option<Tried>,
}

/// A move that was tried.
#[derive(Debug)]
struct Tried {
    /// Off these hosts.
    hosts: BTreeSet<String>,
    at: Instant,
    /// Until it is tried again off the same.
    pause: Duration,
}

impl Patience {
    /// May it be moved off these hosts? Another primary's host is not waited for as long as who moves it back.
    fn allows(&mut self, hosts: &BTreeSet<String>, now: Instant) -> bool {
        let Some(last) = &mut self.last else { return true };
        if last.hosts != *hosts {
            *last = Tried { hosts: hosts.clone(), at: last.at, pause: SHORT_PAUSE };
        }
        now.duration_since(last.at) >= last.pause
    }

    /// It was moved off these hosts. Off the same as the last time, and not long after that: somebody has moved it back.
    fn tried(&mut self, hosts: BTreeSet<String>, now: Instant) {
        let undone = self
            .last
            .as_ref()
            .filter(|last| last.hosts == hosts && last.pause >= PAUSE && now.duration_since(last.at) < last.pause * 2);
        let pause = undone.map_or(PAUSE, |last| LONG_PAUSE.min(last.pause * 2));
        self.last = Some(Tried { hosts, at: now, pause });
    }
}

impl EtcdStore {
    /// Move etcd's leader, for ever, whenever it is on one of the hosts that `avoid` names and another member is not.
    pub async fn keep_leader_off(&self, avoid: impl Fn() -> Avoid) {
        let mut warned: Option<Instant> = None;
        let mut patience = Patience::default();
        loop {
            tokio::time::sleep(LOOK).await;
            let Avoid { hosts, now } = avoid();
            if !now || hosts.is_empty() || !patience.allows(&hosts, Instant::now()) {
                continue;
            }
            match self.move_leader(&hosts).await {
                Ok(None) => continue,
                Ok(Some((from, to))) => info!(from, to, "etcd's leader was moved off the primary's host"),
                Err(reason) if warned.is_none_or(|at| at.elapsed() >= WARN_AGAIN) => {
                    warned = Some(Instant::now());
                    warn!(reason, "etcd's leader cannot be kept off the primary's host (manager.move_etcd_leader)");
                }
                Err(reason) => debug!(reason, "etcd's leader was not moved"),
            }
            patience.tried(hosts, Instant::now());
        }
    }

    /// Move it once, if there is reason to; from and to which endpoint.
    ///
    /// # Errors
    /// Why it was not moved although there is reason to, or why that cannot be known.
    pub async fn move_leader(&self, hosts: &BTreeSet<String>) -> Result<Option<(String, String)>, String> {
        let (shared, bound) = (&self.shared, self.shared.request_timeout);
        let mut avoid = BTreeSet::new();
        for host in hosts {
            avoid.extend(addresses(host, bound).await);
        }
        let mut seats = Vec::new();
        for (endpoint, at) in shared.endpoints.iter().enumerate() {
            let asked = async {
                let mut client = at.client().await?;
                let sent = Instant::now();
                client.status().await.map(|status| (status, sent.elapsed()))
            };
            let (status, round_trip) = match tokio::time::timeout(bound, asked).await {
                Ok(Ok(answer)) => answer,
                Ok(Err(error)) if fate(&error) == Fate::Refused => {
                    return Err(format!("{} does not tell who leads: {error}", at.url));
                }
                Ok(Err(_)) | Err(_) => continue,
            };
            let Some(id) = status.header().map(etcd_client::ResponseHeader::member_id) else { continue };
            seats.push(Seat {
                endpoint,
                id,
                leader: status.leader(),
                index: status.raft_index(),
                learner: status.is_learner(),
                round_trip,
                addresses: addresses(&host_of(&at.url), bound).await,
            });
        }
        let Some((from, to)) = successor(&seats, &avoid) else { return Ok(None) };
        let url = |endpoint: usize| shared.endpoints[endpoint].url.clone();
        let moved = async {
            let mut client = shared.endpoints[from].client().await?;
            client.move_leader(to).await
        };
        match tokio::time::timeout(bound, moved).await {
            Ok(Ok(_)) => {
                let to = seats.iter().find(|s| s.id == to).map_or_else(String::new, |s| url(s.endpoint));
                Ok(Some((url(from), to)))
            }
            Ok(Err(error)) => Err(format!("{}: {error}", url(from))),
            Err(_) => Err(format!("{}: no answer within {bound:?}", url(from))),
        }
    }
}

/// The host of an endpoint's URL.
fn host_of(url: &str) -> String {
    let authority = url.split_once("://").map_or(url, |(_, rest)| rest).split('/').next().unwrap_or_default();
    let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
    host.trim_start_matches('[').trim_end_matches(']').to_owned()
}

/// A host's addresses; none if they are not found in time.
async fn addresses(host: &str, bound: Duration) -> BTreeSet<IpAddr> {
    if let Ok(address) = host.parse() {
        return BTreeSet::from([address]);
    }
    match tokio::time::timeout(bound, tokio::net::lookup_host((host, 0))).await {
        Ok(Ok(found)) => found.map(|a| a.ip()).collect(),
        Ok(Err(_)) | Err(_) => BTreeSet::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seat(id: u64, index: u64) -> Seat {
        let addresses = BTreeSet::from([IpAddr::from([10, 0, 0, u8::try_from(id).unwrap()])]);
        let (endpoint, round_trip) = (usize::try_from(id).unwrap(), Duration::from_millis(2));
        Seat { endpoint, id, leader: 1, index, learner: false, round_trip, addresses }
    }

    #[test]
    fn the_leader_leaves_the_primarys_host_for_a_member_that_has_the_log() {
        let host = |n: u8| IpAddr::from([10, 0, 0, n]);
        let all = [seat(1, 5000), seat(2, 4990), seat(3, 5000)];
        let to = |seats: &[Seat], avoid: &[u8]| successor(seats, &avoid.iter().map(|n| host(*n)).collect());
        assert_eq!(to(&all, &[1]), Some((1, 2)));
        let mut far = all.clone();
        far[1].round_trip = Duration::from_millis(80);
        assert_eq!(to(&far, &[1]), Some((1, 3)), "every change would wait for the distant one");
        assert_eq!(to(&all, &[1, 2]), Some((1, 3)), "another cluster's primary is there");
        assert_eq!(to(&all, &[2]), None, "it leads from elsewhere");
        assert_eq!(to(&all, &[1, 2, 3]), None, "there is nowhere to go");
        assert_eq!(to(&all, &[]), None);
        assert_eq!(to(&all[1..], &[1]), None, "the leader does not answer");
        assert_eq!(to(&[seat(1, 5000), seat(2, 100)], &[1]), None, "it would have to catch up first");
        let mut learns = seat(3, 5000);
        learns.learner = true;
        assert_eq!(to(&[seat(1, 5000), learns], &[1]), None, "it has no vote");
        let mut disagrees = seat(3, 5000);
        disagrees.leader = 2;
        assert_eq!(to(&[seat(1, 5000), disagrees], &[1]), None, "an election is under way");
        let mut unknown = seat(3, 5000);
        unknown.addresses.clear();
        assert_eq!(to(&[seat(1, 5000), unknown], &[1]), None, "nobody knows where it is");
    }

    #[test]
    fn moves_that_are_undone_become_seldom() {
        let hosts = |names: &[&str]| names.iter().map(ToString::to_string).collect::<BTreeSet<_>>();
        let (mut patience, mut now) = (Patience::default(), Instant::now());
        let wait = |patience: &mut Patience, now: &mut Instant, name: &str| {
            let began = *now;
            while !patience.allows(&hosts(&[name]), *now) {
                *now += Duration::from_secs(1);
            }
            patience.tried(hosts(&[name]), *now);
            now.duration_since(began).as_secs()
        };
        let pauses: Vec<u64> = (0..12).map(|_| wait(&mut patience, &mut now, "h1")).collect();
        assert_eq!(pauses, [0, 10, 20, 40, 80, 160, 320, 640, 1280, 2560, 3600, 3600]);
        assert_eq!(wait(&mut patience, &mut now, "h2"), SHORT_PAUSE.as_secs(), "another node is primary");
        assert_eq!(wait(&mut patience, &mut now, "h2"), PAUSE.as_secs());
        assert!(!patience.allows(&hosts(&["h2"]), now));
        assert_eq!(wait(&mut patience, &mut now, "h1"), SHORT_PAUSE.as_secs());
        patience.allows(&hosts(&["h2"]), now);
        assert_eq!(
            wait(&mut patience, &mut now, "h1"),
            SHORT_PAUSE.as_secs(),
            "it was on the way of a primary that came back"
        );
        let later = now + LONG_PAUSE;
        patience.tried(hosts(&["h1"]), later);
        assert!(patience.allows(&hosts(&["h1"]), later + PAUSE), "it stayed for long");
    }

    #[test]
    fn the_host_of_an_url() {
        for (url, host) in [
            ("http://10.0.0.1:2379", "10.0.0.1"),
            ("https://etcd-1.example:2379/", "etcd-1.example"),
            ("http://[::1]:2379", "::1"),
            ("http://etcd", "etcd"),
        ] {
            assert_eq!(host_of(url), host, "{url}");
        }
    }
}
