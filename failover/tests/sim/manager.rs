//! Managers: the shipped planner, and a shell around it that loses, delays and repeats.

use super::{Event, HEALED, World, ms, name};
use cluster::{Instant, NodeId, Term};
use failover::api::{Follow, Position};
use failover::fsm::action::{
    Action, Change, ChangeKind, ChangeOutcome, Command, CommandError, CommandKind, Input, Operation, PolicyChange,
    Reply,
};
use failover::fsm::blocker::Verdict;
use failover::fsm::observe::Records;
use failover::fsm::overdue::{Inaction, Overdue};
use failover::fsm::planner::Planner;
use failover::fsm::timers::Settings;
use failover::record::Mode;

pub(crate) struct Manager {
    pub(crate) planner: Planner,
    /// Counts restarts: what an earlier process had asked for comes to nobody.
    pub(crate) life: u32,
    pub(crate) paused_until: Instant,
    lease_until: Instant,
    read_at: Instant,
    overdue: Overdue,
    /// The lead was taken from another, or that is under way, or it was found out of date.
    taken_for: Term,
    outdated: Option<Inaction>,
}

impl Manager {
    pub(crate) fn new(m: usize, mode: Mode) -> Self {
        let mut settings = Settings { failover_budget: 1000, restart_grace: ms(3000), ..Settings::default() };
        if mode == Mode::Available {
            settings.suspend_after = ms(1000);
            // So that what cannot be finished is followed by something else.
            settings.operation_timeout = ms(4000);
        }
        Self {
            planner: Planner::new(format!("m{m}"), settings),
            life: 0,
            paused_until: Instant::default(),
            lease_until: Instant::default(),
            read_at: Instant::default(),
            overdue: Overdue::default(),
            taken_for: Term(0),
            outdated: None,
        }
    }
}

impl World {
    /// Put what a paused manager is to learn off until it wakes.
    fn asleep(&self, m: usize) -> Option<u64> {
        let left = self.managers[m].paused_until.since(self.now).as_millis() as u64;
        (left > 0).then_some(left + 1)
    }

    pub(crate) fn step(&mut self, m: usize, input: Input) {
        let actions = self.managers[m].planner.step(self.now, input);
        for action in actions {
            self.perform(m, action);
        }
    }

    pub(crate) fn manage(&mut self, m: usize) {
        if let Some(wait) = self.asleep(m) {
            return self.after(wait, Event::Manage(m));
        }
        let leads = self.managers[m].planner.leads();
        if leads && self.now >= self.managers[m].lease_until {
            self.say(format!("manager {m} does not lead any more"));
            self.step(m, Input::NotLeading);
        } else if self.now.since(self.managers[m].read_at) >= ms(300) {
            self.managers[m].read_at = self.now;
            self.perform(m, Action::Read);
        }
        self.step(m, Input::Tick { wall: 0 });
        self.note_overdue(m);
        self.after(50, Event::Manage(m));
    }

    /// `Overdue` and `Election::campaign`: a leader that does not begin a failover which another would begin loses its place
    /// to that one.
    fn note_overdue(&mut self, m: usize) {
        let leader = self.leader.filter(|(_, _, until)| *until > self.now).map(|(_, since, _)| since);
        let manager = &mut self.managers[m];
        let dead = manager.planner.would_replace(self.now);
        let Some(instead) = manager.overdue.look(self.now, dead, leader) else { return };
        if instead.term <= manager.taken_for || manager.outdated == Some(instead) || self.lost() {
            return;
        }
        // One campaign at a time: the same is not begun again.
        let (manager, life) = (m, self.managers[m].life);
        self.managers[m].outdated = Some(instead);
        let wait = self.delay().max(self.chance.below(400));
        self.after(wait, Event::Take { manager, life, instead });
    }

    pub(crate) fn take_lead(&mut self, m: usize, life: u32, instead: Inaction) {
        let leader = self.leader.filter(|(_, _, until)| *until > self.now).map(|(_, since, _)| since);
        let revision = self.records.term.as_ref().map(|t| t.revision);
        if !self.etcd_up() || self.managers[m].life != life || leader != instead.leader {
            return;
        }
        if revision != Some(instead.term_revision) {
            return self.reach("a lead not taken because the leader had begun");
        }
        let since = self.bump();
        let until = self.now + ms(2000);
        if self.lost() {
            // Whoever campaigned knows nothing of it, and the key ends with its lease.
            self.leader = Some((usize::MAX, since, until));
            return self.reach("a lead taken without knowing");
        }
        self.leader = Some((m, since, until));
        let (wait, sent) = (self.delay(), self.now);
        self.after(wait, Event::Taken { manager: m, life, revision: since, sent });
    }

    pub(crate) fn taken(&mut self, m: usize, life: u32, revision: i64, sent: Instant) {
        let until = sent + ms(1500);
        if self.managers[m].life != life || self.now >= until {
            return;
        }
        if let Some(wait) = self.asleep(m) {
            return self.after(wait, Event::Taken { manager: m, life, revision, sent });
        }
        let manager = &mut self.managers[m];
        (manager.lease_until, manager.taken_for) = (until, manager.outdated.map_or(Term(0), |i| i.term));
        self.say(format!("manager {m} takes the lead"));
        self.reach("a manager took the lead from another");
        self.step(m, Input::Leading { revision });
    }

    pub(crate) fn elect(&mut self, m: usize) {
        if let Some(wait) = self.asleep(m) {
            return self.after(wait, Event::Elect(m));
        }
        if self.etcd_up() && !self.lost() {
            let held = self.leader.filter(|(_, _, until)| *until > self.now);
            match held {
                Some((leader, since, _)) if leader == m => {
                    self.leader = Some((m, since, self.now + ms(2000)));
                    self.managers[m].lease_until = self.now + ms(1500);
                    if !self.managers[m].planner.leads() {
                        self.step(m, Input::Leading { revision: since });
                    }
                }
                Some(_) => {}
                None => {
                    let revision = self.bump();
                    self.leader = Some((m, revision, self.now + ms(2000)));
                    self.managers[m].lease_until = self.now + ms(1500);
                    self.say(format!("manager {m} leads"));
                    self.step(m, Input::Leading { revision });
                }
            }
        }
        let next = 200 + self.chance.below(50);
        self.after(next, Event::Elect(m));
    }

    pub(crate) fn restart_manager(&mut self, m: usize) {
        self.say(format!("manager {m} is restarted"));
        let life = self.managers[m].life + 1;
        self.managers[m] = Manager { life, ..Manager::new(m, self.mode) };
        if self.leader.is_some_and(|(leader, ..)| leader == m) {
            // Nobody knows its lease any more.
            self.leader = self.leader.map(|(_, since, until)| (usize::MAX, since, until));
        }
    }

    /// A node's report reaches the manager, or does not.
    pub(crate) fn poll(&mut self, m: usize, n: usize) {
        if let Some(wait) = self.asleep(m) {
            return self.after(wait, Event::Poll(m, n));
        }
        if self.reachable(n) && !self.lost() {
            let report = self.report(n);
            self.step(m, Input::Report(Box::new(report)));
        } else {
            self.step(m, Input::Silent { node: name(n), refused: false });
        }
        let next = 50 + self.chance.below(20);
        self.after(next, Event::Poll(m, n));
    }

    pub(crate) fn read(&mut self, m: usize, life: u32, sent: Instant, records: Box<Records>) {
        if let Some(wait) = self.asleep(m) {
            return self.after(wait, Event::Read { manager: m, life, sent, records });
        }
        if self.managers[m].life == life {
            self.step(m, Input::Records { sent_at: sent, records });
        }
    }

    pub(crate) fn answer(
        &mut self,
        m: usize,
        life: u32,
        n: usize,
        term: Term,
        kind: CommandKind,
        result: Box<Result<Reply, CommandError>>,
    ) {
        if let Some(wait) = self.asleep(m) {
            return self.after(wait, Event::Answer { manager: m, life, node: n, term, kind, result });
        }
        if self.managers[m].life == life {
            self.step(m, Input::Answered { node: name(n), term, kind, result });
        }
    }

    pub(crate) fn outcome(&mut self, m: usize, life: u32, id: u64, outcome: ChangeOutcome) {
        if let Some(wait) = self.asleep(m) {
            return self.after(wait, Event::Outcome { manager: m, life, id, outcome });
        }
        if self.suspending == Some((m, life, id)) {
            self.suspending = None;
        }
        if self.managers[m].life == life {
            self.step(m, Input::Changed { id, outcome });
        }
    }

    pub(crate) fn ask_to_switch_over(&mut self) {
        let leader = (0..self.managers.len()).find(|m| self.managers[*m].planner.leads());
        if let Some(m) = leader {
            self.say(format!("an operator asks manager {m} for a switchover"));
            let operation = Operation::Switchover { to: None, expect_term: None, by: "an operator".into() };
            self.step(m, Input::Operator { id: 1, operation });
        }
    }

    /// A primary is replaced by what there is.
    pub(crate) fn ask_to_lose(&mut self) {
        let Some(m) = (0..self.managers.len()).find(|m| self.managers[*m].planner.leads()) else { return };
        // Whoever is asked for is liked better than who has most.
        let to = Some(name(self.chance.below(self.nodes.len() as u64) as usize)).filter(|_| self.chance.percent(50));
        self.allow_loss(m, to);
    }

    /// What an operator has allowed was for one term. Where that was not opened, as its leader or its node was lost, nobody may
    /// lose anything for the next one, and it is held back until the operator, who reads that, orders it again.
    pub(crate) fn insist(&mut self) {
        let unopened = self.records.term.as_ref().is_some_and(|t| t.value.data_loss_allowed && !t.value.is_open());
        let leader = (0..self.managers.len()).find(|m| self.managers[*m].planner.leads());
        let held = |m: &usize| matches!(self.managers[*m].planner.verdict(), Verdict::Hold { .. });
        if let Some(m) = leader.filter(held) {
            if unopened {
                self.allow_loss(m, None);
            } else if let Some(last) = self.last_without_a_vote() {
                self.allow_loss(m, Some(last));
            }
        }
        if self.elapsed() < HEALED - 8000 {
            self.after(5000, Event::Insist);
        }
    }

    /// A failover while voters changed made it the primary, and the change took its vote: nobody but an operator takes it
    /// again, although it has everything.
    fn last_without_a_vote(&self) -> Option<NodeId> {
        let term = self.records.term.as_ref().map(|t| &t.value).filter(|t| !t.is_open())?;
        let policy = &self.records.policy.as_ref()?.value;
        term.prev.as_ref().map(|last| last.node.clone()).filter(|last| !policy.counts(last))
    }

    fn allow_loss(&mut self, m: usize, to: Option<NodeId>) {
        self.say(format!("an operator asks manager {m} for a failover, and allows data loss"));
        let operation = Operation::Failover { to, expect_term: None, allow_data_loss: true, by: "an operator".into() };
        self.step(m, Input::Operator { id: 2, operation });
    }

    /// One more or one less votes, k is another, a node is taken out for good or comes back.
    pub(crate) fn ask_to_change_voters(&mut self) {
        let leader = (0..self.managers.len()).find(|m| self.managers[*m].planner.leads());
        let Some((m, policy)) = leader.zip(self.records.policy.as_ref().map(|p| p.value.clone())) else { return };
        let n = self.chance.below(self.nodes.len() as u64) as usize;
        let kind = self.chance.below(6);
        let (mut voters, k) = (policy.voters.clone(), policy.k);
        let votes = voters.contains(&name(n));
        let removed = self.records.fences.keys().next().cloned();
        let to =
            |voters, k| Operation::SetPolicy(PolicyChange { voters: Some(voters), k: Some(k), ..Default::default() });
        let operation = match (kind, removed) {
            (0 | 1, Some(node)) => Operation::Unfence { node },
            (0, None) if voters.len() > 2 => Operation::RemoveNode { node: name(n), by: "o".into() },
            // What was, while a change is under way: that takes it back.
            (1, _) if policy.joint.is_some() => to(voters, k),
            (2, _) => to(voters, if k == 1 { 2 } else { 1 }),
            _ if votes && voters.len() > 3 => {
                voters.retain(|v| *v != name(n));
                to(voters, 1)
            }
            _ if !votes => {
                voters.push(name(n));
                let k = if voters.len() > 3 { 2 } else { 1 };
                to(voters, k)
            }
            _ => return,
        };
        self.say(format!("an operator asks manager {m} for {operation:?}"));
        self.operations += 1;
        let id = 1000 + self.operations;
        self.step(m, Input::Operator { id, operation });
    }

    fn perform(&mut self, m: usize, action: Action) {
        let life = self.managers[m].life;
        match action {
            Action::Send { node, command, within } => {
                let within = (within.as_millis() as u64).min(5000);
                self.send(m, life, &node, command, within);
            }
            Action::Change(change) => self.send_change(m, life, change),
            Action::Read => {
                if self.etcd_up() && !self.lost() {
                    let (sent, records) = (self.now, Box::new(self.records.clone()));
                    let wait = self.delay();
                    self.after(wait, Event::Read { manager: m, life, sent, records });
                }
            }
            Action::Answer { id, answer } => {
                self.say(format!("manager {m} answers {id}: {answer:?}"));
                self.note_refused(id, &answer);
            }
            Action::Ended { cause, active, journal } => {
                self.say(format!(
                    "manager {m}: {cause:?} {}: {:?}",
                    if active { "done" } else { "ended" },
                    journal.finished
                ));
            }
        }
    }

    fn send(&mut self, m: usize, life: u32, node: &NodeId, command: Box<Command>, within: u64) {
        let Some(n) = (0..self.nodes.len()).find(|n| name(*n) == *node) else { return };
        let (term, kind) = (command.term(), command.kind());
        if let Command::Follow(Follow { ahead: Some(base), primary, .. }) = &*command {
            self.check_ahead(n, primary, term, *base);
        }
        let arrives = !self.lost();
        let answered = arrives && !self.lost();
        if arrives {
            if self.faulty() && self.chance.percent(2) {
                // The network repeats it; the second answer finds nobody.
                let late = 1 + self.chance.below(5000);
                let command = command.clone();
                self.after(late, Event::Order { manager: m, life: u32::MAX, node: n, command, answered: true });
            }
            let wait = self.delay();
            self.after(wait, Event::Order { manager: m, life, node: n, command, answered });
        }
        if !answered {
            if kind == CommandKind::Promote {
                self.reach("a promotion's answer lost");
            }
            let result = Box::new(Err(CommandError::NoAnswer("nothing in time".into())));
            self.after(within, Event::Answer { manager: m, life, node: n, term, kind, result });
        }
    }

    /// Who is ordered to connect ahead, and frozen, has nothing but a beginning of what the candidate has, and counts. Nobody is
    /// promoted in this term yet.
    fn check_ahead(&mut self, n: usize, primary: &NodeId, term: Term, base: Position) {
        let node = &self.nodes[n];
        let (have, counts) = (node.end(), node.quarantine.is_none());
        let candidate = self.nodes.iter().find(|c| c.name == *primary);
        // Of a timeline that was begun twice PostgreSQL would overwrite the other beginning.
        let begins = candidate.is_some_and(|c| c.wal.starts_with(&node.wal));
        let fits = counts && begins && have.timeline == base.timeline && have.lsn <= base.lsn;
        if node.frozen_for == Some(term) && !fits {
            self.fail(format!(
                "{} with {have:?}, counting: {counts}, is ordered to connect ahead to {base:?}",
                name(n)
            ));
        }
    }

    fn send_change(&mut self, m: usize, life: u32, change: Box<Change>) {
        self.note_suspending(m, life, &change);
        let heard = !self.lost();
        if !heard {
            let outcome = ChangeOutcome::Unknown("no answer".into());
            self.after(1000, Event::Outcome { manager: m, life, id: change.id, outcome });
            // It may not even have arrived. Of the others, which are guarded by what they change, the answer is lost.
            if change.kind == ChangeKind::Journal {
                return;
            }
        }
        let wait = self.delay();
        self.after(wait, Event::Transact { manager: m, life, change, heard });
    }
}
