//! What managers order, and what an agent answers.

use super::node::{Is, Names, SOFT};
use super::{Event, LEASE, RECORDS, World, name};
use cluster::timeline::XidBound;
use cluster::{Lsn, Term};
use failover::api::{
    Arm, Armed, CatchUp, Frozen, Open, Opened, Position, Prepared, Promote, Promoted, Refused, Relaxed, Stopped,
};
use failover::fsm::action::{Command, CommandError, Reply};
use failover::fsm::agent::later_leader;
use failover::fsm::sync_set;
use failover::record::{Phase, PrimaryRecord};

impl World {
    /// A command arrives at an agent.
    pub(crate) fn order(&mut self, manager: usize, life: u32, n: usize, command: &Command, answered: bool) {
        let (term, kind) = (command.term(), command.kind());
        if let Some(wait) = self.bound_by_signature(n, command) {
            let command = Box::new(command.clone());
            return self.after(wait, Event::Order { manager, life, node: n, command, answered });
        }
        if self.reachable(n) && !self.nodes[n].flushes(self.now) {
            // Its promise comes first, and that is not on disk yet.
            let (wait, command) =
                (self.nodes[n].disk.1.since(self.now).as_millis() as u64 + 1, Box::new(command.clone()));
            return self.after(wait, Event::Order { manager, life, node: n, command, answered });
        }
        if self.waits_for_slots(n, command) {
            self.reach("an order to wait for two that waited for slots");
            let command = Box::new(command.clone());
            return self.after(100, Event::Order { manager, life, node: n, command, answered });
        }
        let result =
            if self.reachable(n) { self.obey(n, command) } else { Err(CommandError::Unreachable("no route".into())) };
        let short = match &result {
            Ok(_) => "done".to_owned(),
            Err(error) => error.to_string(),
        };
        self.say(format!("{} is ordered to {} in term {term}: {short}", name(n), kind.as_str()));
        if matches!(&result, Err(CommandError::Refused(Refused::LowerTerm { .. }))) {
            self.reach("a command refused for its term");
        }
        if answered {
            let wait = self.delay();
            self.after(wait, Event::Answer { manager, life, node: n, term, kind, result: Box::new(result) });
        }
    }

    fn obey(&mut self, n: usize, command: &Command) -> Result<Reply, CommandError> {
        let (term, promised) = (command.term(), self.nodes[n].promise);
        if term < promised {
            return Err(CommandError::Refused(Refused::LowerTerm { node: name(n), term, promised }));
        }
        self.nodes[n].promise = term;
        if self.nodes[n].fenced && matches!(command, Command::Recover(_) | Command::CatchUp(_) | Command::Promote(_)) {
            return Err(CommandError::Refused(Refused::Fenced { node: name(n) }));
        }
        let asks_postgres = matches!(
            command,
            Command::Promote(_) | Command::Open(_) | Command::Checkpoint(_) | Command::Relax(_) | Command::Arm(_)
        );
        if asks_postgres && self.nodes[n].hangs(self.now) {
            return Err(CommandError::NoAnswer("PostgreSQL hangs".into()));
        }
        match command {
            Command::Freeze(_) | Command::Recover(_) if self.nodes[n].serves(term) => {
                self.reach("a freeze that came late");
                Err(wrong_state(n, "not the primary of the term already"))
            }
            Command::Freeze(_) | Command::Recover(_) if self.nodes[n].opened >= term => {
                Err(wrong_state(n, "in a term that is not open yet"))
            }
            Command::Freeze(_) => Ok(Reply::Frozen(self.freeze(n, term))),
            Command::Recover(_) => {
                if matches!(self.nodes[n].is, Is::Stopped { .. }) {
                    if self.nodes[n].quarantine.is_some() {
                        return Err(wrong_state(n, "out of quarantine"));
                    }
                    self.nodes[n].start_detached();
                }
                Ok(Reply::Frozen(self.freeze(n, term)))
            }
            Command::CatchUp(order) => self.catch_up(n, order),
            Command::Promote(order) => self.promote(n, order),
            Command::Follow(order) => {
                let p = (0..self.nodes.len()).find(|p| name(*p) == order.primary).expect("a node of ours");
                if let Some(base) = order.ahead {
                    return self.attend(n, p, term, base);
                }
                self.nodes[n].ordered = Some((p, term));
                Ok(Reply::Done)
            }
            Command::Open(order) => self.open(n, order),
            Command::Checkpoint(_) => Ok(Reply::Done),
            Command::Stop(order) => {
                if let Some(newest) = later_leader(order.leader, self.nodes[n].leader) {
                    let (node, leader) = (name(n), order.leader);
                    return Err(CommandError::Refused(Refused::EarlierLeader { node, leader, newest }));
                }
                if self.nodes[n].serves(term) {
                    self.nodes[n].stop();
                    self.nodes[n].clean = true;
                } else if matches!(self.nodes[n].is, Is::Stopped { .. }) {
                    self.reach("a primary that was stopped when the order to stop came");
                } else {
                    return Err(wrong_state(n, "primary of the term"));
                }
                let (node, clean) = (&self.nodes[n], self.nodes[n].clean);
                Ok(Reply::Stopped(Stopped { clean, end: clean.then(|| node.end()) }))
            }
            Command::Relax(order) => self.relax(n, term, order.policy_epoch),
            Command::Arm(order) => self.arm(n, order),
        }
    }

    fn freeze(&mut self, n: usize, term: Term) -> Frozen {
        let node = &mut self.nodes[n];
        node.frozen_for = Some(term);
        (node.upstream, node.receiver) = (None, None);
        let was_primary = matches!(node.is, Is::Primary | Is::Stopped { was_primary: true });
        let hung = node.hangs(self.now);
        if node.is == Is::Primary {
            node.stop();
        }
        if hung {
            self.reach("a primary that hung and was stopped");
        }
        let node = &self.nodes[n];
        let position = (node.is == Is::Standby).then(|| node.end());
        let replay_lsn = position.map(|_| node.whole_end().lsn);
        if node.quarantine.is_some() {
            self.quarantined.insert((term, n));
        } else {
            self.quarantined.remove(&(term, n));
        }
        let node = &self.nodes[n];
        let history = position.map(|_| node.history()).filter(|h| !h.forks.is_empty());
        let records = node.wal.iter().filter(|e| e.1 >= RECORDS).map(|e| Term(e.1 - RECORDS));
        let asked = position.is_some_and(|p| node.opened.timeline() < Some(p.timeline));
        let recorded = records.max().filter(|_| asked);
        let (node, quarantine) = (node.name.clone(), node.quarantine);
        Frozen {
            node,
            term,
            position,
            replay_lsn,
            history,
            quarantine,
            was_primary: was_primary && position.is_none(),
            system_id: None,
            recorded,
        }
    }

    /// Connects to the node that is being promoted.
    fn attend(&mut self, n: usize, p: usize, term: Term, base: Position) -> Result<Reply, CommandError> {
        let node = &self.nodes[n];
        if node.fenced {
            return Err(CommandError::Refused(Refused::Fenced { node: name(n) }));
        }
        if node.is != Is::Standby || node.frozen_for != Some(term) {
            return Err(wrong_state(n, "frozen for this term"));
        }
        if node.target.is_some_and(|t| t > base.timeline) {
            return Err(wrong_state(n, "a standby that knows of no timeline above its own"));
        }
        let have = node.end();
        // The order may come late.
        if node.quarantine.is_some() || have.timeline != base.timeline || have.lsn > base.lsn {
            return Err(CommandError::Refused(Refused::OtherPosition { node: name(n), have: Some(have), want: base }));
        }
        self.follow(n, p, term);
        self.reach("a recruit that connects ahead of the promotion");
        // A promotion takes its time; here all of it happens at once.
        if self.chance.percent(50) {
            self.receive(n);
        }
        Ok(Reply::Done)
    }

    /// Receives all that the other has, some of it, or nothing when that is not reached.
    fn catch_up(&mut self, n: usize, order: &CatchUp) -> Result<Reply, CommandError> {
        if self.nodes[n].is != Is::Standby || self.nodes[n].frozen_for != Some(order.term) {
            return Err(wrong_state(n, "frozen for this term"));
        }
        let from = (0..self.nodes.len()).find(|p| name(*p) == order.from).expect("a node of ours");
        let fits = self.nodes[from].is == Is::Standby && self.nodes[from].wal.starts_with(&self.nodes[n].wal);
        if fits && self.linked(n, from) {
            let (have, all) = (self.nodes[n].wal.len(), self.nodes[from].wal.len());
            let upto = if self.chance.below(4) == 0 { have + (all - have) / 2 } else { all };
            let new = self.nodes[from].wal[have..upto].to_vec();
            let half = self.nodes[from].half.filter(|_| upto == all);
            let node = &mut self.nodes[n];
            node.wal.extend(new);
            node.timeline = node.wal.last().map_or(1, |e| e.0);
            node.half = half;
            self.reach("a recruit that caught up with another");
        }
        Ok(Reply::Frozen(self.freeze(n, order.term)))
    }

    fn promote(&mut self, n: usize, order: &Promote) -> Result<Reply, CommandError> {
        let node = &self.nodes[n];
        let again = node.serves(order.term);
        if !again {
            if node.is != Is::Standby || node.frozen_for != Some(order.term) {
                return Err(wrong_state(n, "frozen for this term"));
            }
            let have = node.end();
            if have != order.base {
                let refused = Refused::OtherPosition { node: name(n), have: Some(have), want: order.base };
                return Err(CommandError::Refused(refused));
            }
            if node.quarantine.is_some() && self.loss_in != order.term {
                self.fail(format!("{} is promoted for term {} in quarantine", name(n), order.term));
            }
            let timeline = order.term.timeline().expect("a small term");
            // An operator who lets something be lost, and whose one request comes to nothing, would have to ask again.
            if self.faulty() && !self.lossy && self.chance.percent(4) {
                return Err(self.promotion_given_up(n, order));
            }
            if order.sync_names.is_empty() {
                self.has_watchdog(n);
            }
            let node = &mut self.nodes[n];
            (node.is, node.timeline, node.frozen_for, node.target) = (Is::Primary, timeline.0, None, None);
            node.names = if order.sync_names.is_empty() { Names::Off } else { Names::Armed };
            node.waits_for = order.sync_names.parse().expect("a list that the planner wrote");
            node.released = node.wal.len();
            self.append(n, RECORDS + order.term.0);
            // Who had connected ahead confirms once more what it has from before.
            self.acknowledge(n);
        }
        let node = &self.nodes[n];
        let forks = node.history().forks;
        let fork = *forks.last().expect("it was promoted");
        let term_of = |what: u64| Term(what.saturating_sub(RECORDS));
        let begun = node.wal.iter().enumerate().filter(|(_, e)| e.1 >= RECORDS);
        let xid_bounds: Vec<XidBound> =
            begun.map(|(at, e)| XidBound { term: term_of(e.1), xid: at as u64 + 1 }).collect();
        Ok(Reply::Promoted(Promoted {
            fork,
            forks,
            xid_bound: xid_bounds.last().map_or(1, |b| b.xid),
            xid_bounds,
            record_lsn: Lsn(fork.lsn.0 + 1),
            prepared: Prepared::default(),
        }))
    }

    /// It took longer than its bound, so PostgreSQL is stopped: before it has become a primary, or after, with or without
    /// the term's record, and its timeline is on its disk then.
    fn promotion_given_up(&mut self, n: usize, order: &Promote) -> CommandError {
        let timeline = order.term.timeline().expect("a small term");
        if self.chance.percent(50) {
            self.reach("a promotion given up after it happened");
            (self.nodes[n].is, self.nodes[n].timeline) = (Is::Primary, timeline.0);
            // A record that ends recovery; where the term has none of its own, it is all that there is of it.
            self.append(n, RECORDS + order.term.0);
        } else {
            self.reach("a promotion given up before it happened");
        }
        self.say(format!("{} gives up its promotion and stops", name(n)));
        self.nodes[n].stop();
        let (what, why) = ("promoting".to_owned(), "promotion took longer than its bound".to_owned());
        CommandError::Failed(failover::api::Failed { node: name(n), what, why, at: 0 })
    }

    fn open(&mut self, n: usize, order: &Open) -> Result<Reply, CommandError> {
        let (term, term_revision) = (order.term, order.term_revision);
        if !self.nodes[n].serves(term) {
            return Err(wrong_state(n, "primary of the term"));
        }
        let away = || {
            let (what, why) = ("opening".to_owned(), "etcd is away".to_owned());
            CommandError::Failed(failover::api::Failed { node: name(n), what, why, at: 0 })
        };
        if !self.etcd_up() {
            return Err(away());
        }
        let Some(record) = self.records.term.clone() else { return Err(away()) };
        let mine = record.value.term == term && record.value.node == Some(name(n));
        if mine && record.value.phase == Phase::Active {
            return Ok(Reply::Opened(Opened { revision: record.revision }));
        }
        if !mine || record.revision != term_revision || self.records.primary.is_some() {
            return Err(wrong_state(n, "the chosen node of an unchanged term record"));
        }
        if let Some(suspend) = &order.suspend {
            self.has_watchdog(n);
            self.nodes[n].names = Names::Off;
            let revision = self.records.revision + 1;
            let Some(policy) = self.records.policy.as_mut().filter(|p| p.revision == order.policy_revision) else {
                return Err(wrong_state(n, "an unchanged policy"));
            };
            policy.revision = revision;
            policy.value.epoch += 1;
            policy.value.suspended = Some(suspend.clone());
            self.reach("a term opened alone");
        } else if let Some(policy) = self.records.policy.as_ref().filter(|p| p.value.protects()) {
            if self.nodes[n].names != Names::Armed {
                self.nodes[n].waits_for = sync_set::armed_names(&policy.value, &name(n));
            }
            self.nodes[n].names = Names::Armed;
        }
        let revision = self.bump();
        self.primary_ends = self.now + LEASE;
        // Its agent has seen it as primary, which has replayed all there is.
        self.nodes[n].quarantine = None;
        (self.nodes[n].lease, self.nodes[n].renewed) = (Some((term, self.now + self.counted(n, LEASE))), self.now);
        if let Some(record) = &mut self.records.term {
            (record.value.phase, record.revision) = (Phase::Active, revision);
        }
        self.records.primary = Some(PrimaryRecord { term, node: name(n), holder: "h".into() });
        self.say(format!("{} opens term {term}", name(n)));
        if order.suspend.is_none() && self.records.policy.as_ref().is_some_and(|p| !p.value.protects()) {
            self.reach("a failover of a suspended cluster");
        }
        self.opened(n);
        Ok(Reply::Opened(Opened { revision }))
    }

    fn relax(&mut self, n: usize, term: Term, epoch: u64) -> Result<Reply, CommandError> {
        if !self.nodes[n].serves(term) {
            return Err(wrong_state(n, "primary of the term"));
        }
        if !self.etcd_up() {
            return Err(CommandError::NoAnswer("etcd is away".into()));
        }
        self.nodes[n].view = Some(self.records.clone());
        let policy = self.policy(n).filter(|p| p.epoch == epoch);
        let allowed = policy.is_some_and(|p| !sync_set::waits(&p, &name(n)).protects());
        let leased = self.nodes[n].lease.is_some_and(|(t, end)| t == term && self.now + SOFT < end);
        if self.now < self.nodes[n].vouched_until {
            return Err(CommandError::NoAnswer("what was vouched for is not over".into()));
        }
        let late = self.nodes[n].armed >= epoch;
        if late {
            self.reach("an order to let commits through that came late");
        }
        if late || !allowed || !leased || self.served(n) != Some(term) || !self.has_watchdog(n) {
            return Err(wrong_state(n, "allowed to"));
        }
        self.note_let_through(n);
        self.nodes[n].names = Names::Off;
        self.reach("commits let through without a standby");
        self.acknowledge(n);
        Ok(Reply::Relaxed(Relaxed { lsn: self.nodes[n].end().lsn }))
    }

    fn arm(&mut self, n: usize, order: &Arm) -> Result<Reply, CommandError> {
        let (term, epoch) = (order.term, order.policy_epoch);
        if !self.nodes[n].serves(term) || !self.etcd_up() {
            return Err(wrong_state(n, "primary of the term, and in touch with etcd"));
        }
        self.nodes[n].view = Some(self.records.clone());
        if self.policy(n).is_none_or(|p| p.epoch != epoch) {
            return Err(wrong_state(n, "an order of the policy in force"));
        }
        self.nodes[n].armed = self.nodes[n].armed.max(epoch);
        let waits_for = order.sync_names.parse().expect("a list that the planner wrote");
        self.nodes[n].arming = None;
        let nodes = self.not_through_slots(n, &waits_for);
        if !nodes.is_empty() {
            let (what, why) = ("arming".to_owned(), format!("not through slots: {nodes:?}"));
            return Err(CommandError::Failed(failover::api::Failed { node: name(n), what, why, at: 0 }));
        }
        (self.nodes[n].names, self.nodes[n].waits_for) = (Names::Armed, waits_for);
        Ok(Reply::Armed(Armed { lsn: self.nodes[n].end().lsn, policy_epoch: order.policy_epoch }))
    }
}

fn wrong_state(n: usize, needs: &str) -> CommandError {
    let state = "otherwise".to_owned();
    CommandError::Refused(Refused::WrongState { node: name(n), state, needs: needs.to_owned() })
}
