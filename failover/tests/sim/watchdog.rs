//! A device per node that resets its host when it is not fed, in half of the clusters whose fence may be the lease. The
//! shipped decision says when it is fed. With it, no primary whose commits wait for nobody outlives its lease, whatever
//! stands still.

use super::node::Names;
use super::{World, ms, name};
use cluster::Instant;
use failover::fsm::watchdog::{Act, Facts, decide, must_stop};
use failover::record::Phase;
use failover::view::topology::shortened;
use std::time::Duration;

const TIMEOUT: Duration = ms(1000);

/// A device that counts down.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Armed {
    pub(crate) fires_at: Instant,
    starves: bool,
}

impl World {
    fn watchdog_facts(&self, n: usize) -> Facts {
        let node = &self.nodes[n];
        let read = node.view.as_ref().and_then(|v| v.term.as_ref()).map(|t| &t.value);
        let named = read.is_some_and(|t| t.node.as_ref() == Some(&node.name));
        let before = read.is_some_and(|t| matches!(t.phase, Phase::Promoting | Phase::Opening));
        Facts {
            armed: node.watchdog.is_some(),
            protects: self.policy(n).is_some_and(|p| p.protects()),
            serves: self.served(n).is_some(),
            becoming: named && before,
            stopped: !node.is_primary(),
            // The lease is counted by the node's own clock, and shortened by what clocks may differ.
            lease_left: node.lease.map(|(_, end)| (end - (super::LEASE - shortened(super::LEASE))).since(self.now)),
            timeout: TIMEOUT,
        }
    }

    /// `Agent::tend_watchdog`.
    pub(crate) fn tend_watchdog(&mut self, n: usize) {
        if !self.devices {
            return;
        }
        let facts = self.watchdog_facts(n);
        match decide(&facts) {
            Act::Feed => self.feed_watchdog(n),
            Act::Starve => self.nodes[n].watchdog = self.nodes[n].watchdog.map(|w| Armed { starves: true, ..w }),
            Act::Disarm => {
                if self.nodes[n].watchdog.is_some_and(|w| w.starves) {
                    self.reach("a watchdog that starved and was stopped in time");
                } else if facts.serves && facts.protects {
                    self.reach("a watchdog stopped because a quorum fences again");
                }
                self.nodes[n].watchdog = None;
            }
            Act::Rest => {}
        }
    }

    fn feed_watchdog(&mut self, n: usize) {
        let fires_at = self.now + self.counted(n, TIMEOUT);
        self.nodes[n].watchdog = Some(Armed { fires_at, starves: false });
    }

    /// `Agent::must_have_watchdog`: arm it before commits are let through.
    pub(crate) fn has_watchdog(&mut self, n: usize) -> bool {
        let left = self.watchdog_facts(n).lease_left.filter(|_| self.served(n).is_some());
        let fits = left.is_none_or(|left| left >= TIMEOUT);
        if self.devices && fits {
            self.feed_watchdog(n);
        }
        fits || !self.devices
    }

    /// `Agent::watchdog_is_about_to_fire`.
    pub(crate) fn must_stop(&self, n: usize) -> bool {
        let fires_in = self.nodes[n].watchdog.map(|w| w.fires_at.since(self.now));
        must_stop(&self.watchdog_facts(n), fires_in)
    }

    /// Time has come to here: devices fire.
    pub(crate) fn fire_watchdogs(&mut self) {
        for n in 0..self.nodes.len() {
            if self.nodes[n].watchdog.is_none_or(|w| w.fires_at > self.now) {
                continue;
            }
            self.say(format!("the watchdog of {} resets its host", name(n)));
            self.reach("a host reset by its watchdog");
            self.nodes[n].paused_until = self.now;
            self.crash_host(n, self.now + ms(1500));
        }
    }

    /// A term opens: where there are devices nobody else acknowledges by a lease any more, even if it stands still.
    pub(crate) fn check_watchdogs(&mut self, opened: usize) {
        let left = |n: &usize| {
            let node = &self.nodes[*n];
            let leased = node.lease.is_some_and(|(term, _)| node.serves(term));
            *n != opened && leased && node.names != Names::Armed
        };
        if let Some(n) = (0..self.nodes.len()).find(left).filter(|_| self.devices) {
            self.fail(format!("{} still runs by its lease when {} opens a term", name(n), name(opened)));
        }
    }
}
