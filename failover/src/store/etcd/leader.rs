//! etcd's own leader is kept off the hosts that it must not die with.
//!
//! Whoever loses the primary's host and etcd's leader in one waits for an election before anything can be recorded, and
//! then for leases that the new leader has extended (etcd's lessor, `Promote`): seconds, in which nobody can write.

use super::EtcdStore;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;
use tracing::{debug, info, warn};

/// Between two looks.
const LOOK: Duration = Duration::from_secs(1);
/// After a move that was tried: etcd's leader does not go back and forth for those who want different things.
const PAUSE: Duration = Duration::from_secs(10);
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
    let best = seats.iter().filter(free).filter(follows).max_by_key(|s| (s.index, s.id))?;
    Some((leader.endpoint, best.id))
}

impl EtcdStore {
    /// Move etcd's leader, for ever, whenever it is on one of the hosts that `avoid` names and another member is not.
    pub async fn keep_leader_off(&self, avoid: impl Fn() -> BTreeSet<String>) {
        let mut warned: Option<tokio::time::Instant> = None;
        loop {
            tokio::time::sleep(LOOK).await;
            let hosts = avoid();
            if hosts.is_empty() {
                continue;
            }
            match self.move_leader(&hosts).await {
                Ok(None) => continue,
                Ok(Some((from, to))) => {
                    info!(from, to, "etcd's leader was moved off the primary's host");
                }
                Err(reason) if warned.is_none_or(|at| at.elapsed() >= WARN_AGAIN) => {
                    warned = Some(tokio::time::Instant::now());
                    warn!(
                        reason,
                        "etcd's leader is on the primary's host and was not moved (manager.move_etcd_leader)"
                    );
                }
                Err(reason) => debug!(reason, "etcd's leader was not moved"),
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Move it once, if there is reason to; from and to which endpoint.
    ///
    /// # Errors
    /// Why it was not moved although there is reason to.
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
                client.status().await
            };
            let Ok(Ok(status)) = tokio::time::timeout(bound, asked).await else { continue };
            let Some(id) = status.header().map(etcd_client::ResponseHeader::member_id) else { continue };
            seats.push(Seat {
                endpoint,
                id,
                leader: status.leader(),
                index: status.raft_index(),
                learner: status.is_learner(),
                addresses: addresses(&host_of(&at.url), bound).await,
            });
        }
        let Some((from, to)) = successor(&seats, &avoid) else { return Ok(None) };
        let moved = async {
            let mut client = shared.endpoints[from].client().await?;
            client.move_leader(to).await
        };
        match tokio::time::timeout(bound, moved).await {
            Ok(Ok(_)) => {
                let url = |endpoint: usize| shared.endpoints[endpoint].url.clone();
                let to = seats.iter().find(|s| s.id == to).map_or_else(String::new, |s| url(s.endpoint));
                Ok(Some((url(from), to)))
            }
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("no answer within {bound:?}")),
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
        Seat { endpoint: usize::try_from(id).unwrap(), id, leader: 1, index, learner: false, addresses }
    }

    #[test]
    fn the_leader_leaves_the_primarys_host_for_a_member_that_has_the_log() {
        let host = |n: u8| IpAddr::from([10, 0, 0, n]);
        let all = [seat(1, 5000), seat(2, 4990), seat(3, 5000)];
        let to = |seats: &[Seat], avoid: &[u8]| successor(seats, &avoid.iter().map(|n| host(*n)).collect());
        assert_eq!(to(&all, &[1]), Some((1, 3)));
        assert_eq!(to(&all, &[1, 3]), Some((1, 2)), "another cluster's primary is there");
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
