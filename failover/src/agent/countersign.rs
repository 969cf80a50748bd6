//! Without etcd: a primary whose lease is its fence goes on while every other member's agent signs for its term.
//!
//! A signature is a promise not to answer a freeze of a later term before it is over. Where commits wait for nobody one
//! frozen node suffices for a failover, whichever it is; so one node that has not signed could be promoted, and all must.
//! Those whose etcd answers sign too: what counts is that none of them can be promoted meanwhile. A standby that streams
//! and is no member that this agent knows of may be one that joined since: then nothing is signed for.
//!
//! Where commits wait for standbys nothing is signed: the quorum fences.

use super::Agent;
use super::commands::CommandError;
use super::env::Env;
use super::memory::Memory;
use crate::api::{Countersign, Countersigned, PostgresState};
use crate::manager::client::AgentLink;
use crate::record::TermRecord;
use crate::view::topology::{lengthened, shortened};
use cluster::{Endpoint, Instant, NodeId, Term};
use hyper::body::Bytes;
use hyper::{Method, StatusCode};
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::task::JoinSet;

/// The last signature given.
#[derive(Clone, Copy, Debug)]
pub(super) struct Signature {
    term: Term,
    until: Instant,
}

/// What an agent must assume that one before it has signed. For which term is not known, only that it was none above the
/// promise; a freeze may have promised its own before it waited, so whatever begins here now waits.
pub(super) fn remembered(env: &Env, memory: &Memory) -> Signature {
    let now = env.clock.now();
    let until = if memory.signed { now + lengthened(memory.signed_for(env.config.lease_ttl)) } else { now };
    Signature { term: Term(0), until }
}

/// Is it time to ask for signatures? Two renewals in a row must have failed, and as many more must still fit. PURE.
fn is_due(sent_at: Instant, renew: Duration, now: Instant) -> bool {
    now.since(sent_at) >= renew + renew / 2
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Whose signatures are needed: of all members but this one. `None`: somebody follows who is none of them. PURE.
fn signers<'a>(
    own: &NodeId,
    members: impl Iterator<Item = (&'a NodeId, &'a Endpoint)>,
    followers: &[NodeId],
) -> Option<Vec<(NodeId, Endpoint)>> {
    let all: Vec<(NodeId, Endpoint)> = members.map(|(n, e)| (n.clone(), e.clone())).collect();
    let known: BTreeSet<&NodeId> = all.iter().map(|(n, _)| n).collect();
    let complete = followers.iter().all(|f| known.contains(f));
    complete.then(|| all.iter().filter(|(n, _)| n != own).cloned().collect())
}

impl Agent {
    /// `/agent/countersign`.
    pub(super) fn countersign(&self, order: &Countersign) -> Result<Countersigned, CommandError> {
        let node = self.env.config.node.clone();
        self.promise(order.term)?;
        let newer = self.records.borrow().term.as_ref().map(|t| t.value.term).filter(|t| *t > order.term);
        if let Some(newer) = newer {
            return Err(self.wrong_state(&format!("in term {}, not {newer}", order.term)));
        }
        if self.state.look(|o| matches!(o.postgres, PostgresState::Primary(_))) {
            return Err(self.wrong_state("not a primary"));
        }
        let lasts = Duration::from_millis(order.lasts_ms).min(self.env.config.lease_ttl);
        let mut signature = self.signature.lock().expect("no holder of this lock panics");
        // A freeze promises first and looks here then: one of a later term is either seen here or sees this.
        self.promise(order.term)?;
        let lasts_ms = millis(lasts);
        let memory = self.memory();
        if !memory.signed || memory.signed_ms < lasts_ms {
            let longest = if memory.signed { memory.signed_ms.max(lasts_ms) } else { lasts_ms };
            self.remember(|m| (m.signed, m.signed_ms) = (true, longest)).map_err(|e| self.failed("signing", &e))?;
        }
        if !memory.signed {
            tracing::warn!(%node, term = order.term.0, primary = %order.primary, "signing for a primary that has lost etcd");
        }
        let until = self.env.clock.now() + lengthened(lasts);
        *signature = Signature { term: order.term, until: signature.until.max(until) };
        Ok(Countersigned { node, lasts_ms })
    }

    /// Wait until nothing is signed for a term below `term`, which is promised. Bounded by the lease's length.
    ///
    /// # Errors
    /// The term has opened meanwhile, by the nodes that had not to wait: who follows its primary now is not cut off.
    pub(super) async fn outlast_signature(&self, term: Term) -> Result<(), CommandError> {
        let signature = *self.signature.lock().expect("no holder of this lock panics");
        let left = signature.until.since(self.env.clock.now());
        if signature.term < term && !left.is_zero() {
            tracing::info!(node = %self.env.config.node, term = term.0, ?left, "waiting until what was signed is over");
            let mut records = self.records.subscribe();
            let open = |t: &TermRecord| t.term >= term && t.is_open();
            let opens = records.wait_for(|r| r.term.as_ref().is_some_and(|t| open(&t.value)));
            if tokio::time::timeout(left, opens).await.is_ok() {
                return Err(self.wrong_state("in a term that is not open yet"));
            }
        }
        Ok(())
    }

    /// etcd answers and what was signed is over: a restart needs not wait for it.
    pub(super) fn forget_signature(&self) {
        if !self.memory().signed {
            return;
        }
        let signature = self.signature.lock().expect("no holder of this lock panics");
        if self.env.clock.now() >= signature.until
            && let Err(error) = self.remember(|m| m.signed = false)
        {
            tracing::debug!(%error, "the end of a signature is not remembered");
        }
    }

    /// While this node serves, its lease is its fence and etcd does not renew it: have the others sign. Ends never.
    pub(super) async fn gather_signatures(&self) {
        let renew = self.env.config.lease_renew;
        let mut signed = false;
        loop {
            tokio::time::sleep(renew / 2).await;
            let Some((term, lease)) = self.serves().zip(self.lease()) else { continue };
            let due = lease.term == term && is_due(lease.sent_at, renew, self.env.clock.now());
            if self.protects() || self.lacks_watchdog() || !due {
                let silent = self.records.borrow().read_at.map(|at| self.env.clock.now().since(at));
                if signed && silent.is_some_and(|s| s < renew * 2) {
                    signed = false;
                    tracing::info!(node = %self.env.config.node, term = term.0, "etcd renews the lease again");
                }
                self.metrics.countersigned.set(i64::from(signed));
                continue;
            }
            match self.all_sign(term).await {
                Ok(()) if !std::mem::replace(&mut signed, true) => {
                    tracing::warn!(
                        node = %self.env.config.node, term = term.0,
                        "etcd does not answer: going on by the other agents' signatures; no failover is possible"
                    );
                }
                Ok(()) => {}
                Err(why) => {
                    tracing::debug!(node = %self.env.config.node, term = term.0, why, "not signed by all");
                    signed = false;
                }
            }
            self.metrics.countersigned.set(i64::from(signed));
        }
    }

    async fn all_sign(&self, term: Term) -> Result<(), String> {
        let followers = self.state.look(|o| match &o.postgres {
            PostgresState::Primary(p) => p.followers.iter().map(|f| f.node.clone()).collect(),
            _ => Vec::new(),
        });
        let needed = {
            let records = self.records.borrow();
            let members = records.members.iter().map(|(n, m)| (n, &m.agent));
            signers(&self.env.config.node, members, &followers)
        };
        let needed = needed.ok_or_else(|| "a standby streams that is no member known here".to_owned())?;
        let (sent, ttl) = (self.env.clock.now(), self.env.config.lease_ttl);
        let order = Countersign { term, primary: self.env.config.node.clone(), lasts_ms: millis(ttl) };
        let body = Bytes::from(serde_json::to_vec(&order).expect("texts and numbers are JSON"));
        let bound = self.env.config.probe_timeout.max(self.env.config.lease_renew);
        let mut asked = JoinSet::new();
        for (node, endpoint) in needed {
            let mut link = AgentLink::new(endpoint, self.env.secret.clone());
            let body = body.clone();
            asked.spawn(async move {
                let exchange = link.exchange(Method::POST, "/agent/countersign", body, bound);
                match tokio::time::timeout(bound, exchange).await {
                    Ok(Ok((StatusCode::OK, body))) => match serde_json::from_slice::<Countersigned>(&body) {
                        Ok(signed) if signed.lasts_ms > 0 => Ok(Duration::from_millis(signed.lasts_ms)),
                        Ok(_) => Err(format!("{node}: does not tell for how long")),
                        Err(error) => Err(format!("{node}: {error}")),
                    },
                    Ok(Ok((status, body))) => Err(format!("{node}: HTTP {status}: {}", String::from_utf8_lossy(&body))),
                    Ok(Err(error)) => Err(format!("{node}: {error}")),
                    Err(_) => Err(format!("{node}: no answer within {bound:?}")),
                }
            });
        }
        // Each promises for no longer than its own configuration says: the first to be free again counts.
        let mut lasts = ttl;
        while let Some(done) = asked.join_next().await {
            lasts = lasts.min(done.map_err(|e| e.to_string())??);
        }
        self.lease_signed(term, sent, shortened(lasts));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_must_sign_and_a_stranger_among_the_followers_forbids_it() {
        let n = |name: &str| -> NodeId { name.parse().unwrap() };
        let at = Endpoint { host: "h".into(), port: 1 };
        let members = [n("n1"), n("n2"), n("r1")];
        let of = |followers: &[NodeId]| {
            let named = signers(&n("n1"), members.iter().map(|m| (m, &at)), followers);
            named.map(|s| s.into_iter().map(|(n, _)| n).collect::<Vec<_>>())
        };
        assert_eq!(of(&[]), Some(vec![n("n2"), n("r1")]), "also who does not stream or vote");
        assert_eq!(of(&[n("n2")]), Some(vec![n("n2"), n("r1")]));
        assert_eq!(of(&[n("n2"), n("n4")]), None);
    }

    #[test]
    fn signatures_are_asked_for_when_etcd_has_failed_twice_and_not_before() {
        let renew = Duration::from_millis(600);
        let due = |ms| is_due(Instant::from_millis(1000), renew, Instant::from_millis(ms));
        assert_eq!((due(1700), due(1899), due(1900)), (false, false, true));
    }
}
