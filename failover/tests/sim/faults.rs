//! What goes wrong: one thing after the other, by chance, until all heals.

use super::node::Node;
use super::{Event, World, ms, name};
use cluster::Instant;
use failover::record::Mode;

impl World {
    /// The primary's PostgreSQL stands still, and nothing else.
    fn hang(&mut self, span: u64) {
        let Some(n) = self.nodes.iter().position(Node::is_primary) else { return };
        self.say(format!("PostgreSQL of {} hangs for {span} ms", name(n)));
        self.nodes[n].hung = (self.now, self.now + ms(span));
    }

    /// Everything that a host writes waits.
    fn hang_disk(&mut self, n: usize, span: u64) {
        let n = self.nodes.iter().position(Node::is_primary).filter(|_| self.chance.percent(50)).unwrap_or(n);
        self.say(format!("the disk of {} hangs for {span} ms", name(n)));
        self.nodes[n].disk = (self.now, self.now + ms(span));
    }

    /// A standby leaves its connection and connects anew; now and then when it alone has confirmed the last commits.
    fn reconnect(&mut self, n: usize, until: Instant) {
        if self.chance.percent(50) {
            self.leave_connection(n, until);
            return;
        }
        self.say(format!("the WAL receivers of all but {} stall", name(n)));
        let others = self.nodes.iter_mut().enumerate().filter(|(other, _)| *other != n);
        others.for_each(|(_, node)| node.stalled_until = until);
        let wait = 100 + self.chance.below(400);
        self.after(wait, Event::Leave(n));
    }

    /// What it confirms twice may be lost with it and the primary, and whoever stood still goes on.
    pub(crate) fn leave(&mut self, n: usize) {
        let Some((p, _)) = self.nodes[n].upstream else { return };
        let until = self.now + ms(200 + self.chance.below(6000));
        if self.leave_connection(n, until) && self.chance.percent(50) {
            let wait = 100 + self.chance.below(400);
            self.after(wait, Event::Bereave(p, n));
        }
    }

    /// The hosts of a primary and of its standby crash.
    pub(crate) fn bereave(&mut self, p: usize, n: usize) {
        let until = self.now + ms(2000 + self.chance.below(4000));
        self.crash_host(p, until);
        self.crash_host(n, until);
        let now = self.now;
        self.nodes.iter_mut().for_each(|node| node.stalled_until = now);
    }

    /// That is what allowing data loss is for: one host is left.
    pub(crate) fn strand(&mut self, n: usize, until: Instant) {
        (0..3).filter(|other| *other != n).for_each(|other| self.crash_host(other, until));
        self.ask_to_lose();
    }

    pub(crate) fn fault(&mut self) {
        if !self.faulty() {
            return;
        }
        if self.restore() {
            return self.after(6000, Event::Fault);
        }
        if self.lose_standbys() {
            return self.after(4000, Event::Fault);
        }
        let n = self.chance.below(self.nodes.len() as u64) as usize;
        let m = self.chance.below(2) as usize;
        let span = 200 + self.chance.below(6000);
        let until = self.now + ms(span);
        let kinds = if self.mode == Mode::Strict { 12 } else { 16 };
        let two = self.records.policy.as_ref().is_some_and(|p| p.value.k >= 2);
        let more = if self.nodes.len() > 3 { 7 + 3 * u64::from(two) } else { u64::from(self.lossy) * 2 };
        match self.chance.below(kinds + more) {
            kind if kind >= kinds && self.nodes.len() == 3 => match self.chance.below(4) {
                0 | 1 => self.ask_to_lose(),
                2 => self.strand(n, until),
                _ => {
                    // First it comes to lack something.
                    self.nodes[n].stalled_until = self.now + ms(1000);
                    let wait = 200 + self.chance.below(400);
                    self.after(wait, Event::Strand(n, until + ms(wait)));
                }
            },
            kind if kind >= kinds + 5 => self.reconnect(n, until),
            kind if kind >= kinds => self.ask_to_change_voters(),
            0 | 1 => self.crash_postgres(n),
            2 => self.crash_host(n, until),
            3 => {
                self.say(format!("{} is paused for {span} ms", self.nodes[n].name));
                self.nodes[n].paused_until = until;
            }
            4 => {
                self.say(format!("{} is cut off for {span} ms", self.nodes[n].name));
                self.nodes[n].cut_until = until;
                self.maroon(n, until);
            }
            5 => {
                self.say(format!("etcd is away for {span} ms"));
                self.etcd_down_until = until;
            }
            6 => {
                self.say(format!("manager {m} is paused for {span} ms"));
                self.managers[m].paused_until = until;
            }
            7 => self.restart_manager(m),
            8 => {
                self.say(format!("the WAL receiver of {} stalls for {span} ms", self.nodes[n].name));
                self.nodes[n].stalled_until = until;
            }
            10 => self.hang(span),
            // Long enough to be found out, now and then.
            kind if kind == kinds - 1 => self.hang_disk(n, span + 3000),
            11 => {
                self.say(format!("the proxy is cut off from etcd for {span} ms"));
                self.proxy.cut = until;
            }
            12..=14 => {
                let primary = self.nodes.iter().position(Node::is_primary).unwrap_or(0);
                self.say(format!("all but {} are cut off for {span} ms", self.nodes[primary].name));
                for other in (0..self.nodes.len()).filter(|o| *o != primary) {
                    self.nodes[other].cut_until = until;
                }
            }
            _ => self.ask_to_switch_over(),
        }
        self.cut_reader(until);
        let next = 500 + self.chance.below(4000);
        self.after(next, Event::Fault);
    }
}
