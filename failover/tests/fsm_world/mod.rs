//! The world of a scenario: etcd's records, agents' reports and time, as its commands make them.

mod parse;
mod records;
mod show;

use cluster::timeline::{Fork, History};
use cluster::{Endpoint, Instant, Lsn, NodeId, Term, TimelineId};
use failover::api::{AgentState, Armed, Frozen, Opened, Prepared, Promoted, Refused, Stopped};
use failover::fsm::action::{
    Action, Change, ChangeKind, ChangeOutcome, CommandError, CommandKind, Input, Operation, PolicyChange, Reply,
};
use failover::fsm::blocker::list;
use failover::fsm::observe::Records;
use failover::fsm::planner::Planner;
use failover::fsm::timers::Settings;
use failover::record::{FenceRecord, MemberRecord, Phase, PrimaryRecord, Standing, Suspension};
use parse::Words;
use std::collections::BTreeMap;

/// Everything a scenario can change.
pub(crate) struct World {
    planner: Planner,
    now: Instant,
    /// What the manager's host takes for the time of day.
    wall: u64,
    records: Records,
    /// etcd as it was backed up.
    backup: Records,
    sent: Vec<Change>,
    /// Journals are in `sent`, too; otherwise etcd takes them at once.
    journals_wait: bool,
    orders: BTreeMap<(NodeId, CommandKind), Term>,
    reports: BTreeMap<NodeId, Heard>,
    seen: Vec<String>,
}

struct Heard {
    state: AgentState,
    /// Both sightings grow from this instant.
    lost_since: Option<Instant>,
    /// But that of the agent.
    agent_answers: bool,
    /// Since when its agent has learnt nothing of its PostgreSQL, which is full, or being stopped.
    unseen_since: Option<Instant>,
}

type Done = Result<(), String>;

fn member(node: &NodeId, i: u16) -> MemberRecord {
    let port = |base: u16| Endpoint { host: "127.0.0.1".into(), port: base + i };
    MemberRecord {
        node: node.clone(),
        postgres: port(22000),
        agent: port(22010),
        pg_version: 150_000,
        system_id: None,
        host: "h".into(),
        standing: Standing::default(),
        slots: true,
        holder: None,
    }
}

impl Default for World {
    fn default() -> Self {
        Self {
            planner: Planner::new("m1", Settings::default()),
            now: Instant::from_millis(1_000_000),
            wall: 1000,
            records: Records { revision: 100, ..Records::default() },
            backup: Records::default(),
            sent: Vec::new(),
            journals_wait: false,
            orders: BTreeMap::new(),
            reports: BTreeMap::new(),
            seen: Vec::new(),
        }
    }
}

impl World {
    /// What the planner did since the last call, and its verdict.
    pub(crate) fn take_seen(&mut self) -> Vec<String> {
        let mut seen = std::mem::take(&mut self.seen);
        seen.push(show::verdict(self.planner.verdict()));
        seen
    }

    /// Perform one line.
    pub(crate) fn command(&mut self, line: &str) -> Done {
        let mut words = Words::new(line);
        match words.next()? {
            "cluster" => self.cluster(&mut words)?,
            "lead" => self.step(Input::Leading { revision: 50 }),
            "unlead" => self.step(Input::NotLeading),
            // From here on another manager, which knows by etcd alone what was before it.
            "manager" => self.planner = Planner::new(words.next()?, Settings::default()),
            "report" => self.report(&mut words)?,
            "silent" => {
                let node = words.parse()?;
                let refused = words.flag("refused");
                self.step(Input::Silent { node, refused });
            }
            "run" => self.run(&mut words)?,
            "journals" => {
                words.expect("wait")?;
                self.journals_wait = true;
            }
            "done" | "lost" | "unmade" | "unknown" => return self.outcome(line),
            "read" => self.read(),
            "wall" => self.wall = words.parse()?,
            "backup" => self.backup = self.records.clone(),
            "restore" => {
                self.records = self.backup.clone();
                self.read();
            }
            "record" => self.record(&mut words)?,
            // `journal term=N started=MS`: of a round that was begun then.
            "journal" => {
                let (term, started): (u64, u64) = (words.value("term")?, words.value("started")?);
                let journal = serde_json::json!({
                    "term": term, "cause": "failover", "observed": [], "from": null, "to": null, "started": started, "phases": [],
                    "recruits": [], "m": 3, "k": 1, "fork": null, "xid_bound": null, "window": null, "finished": null,
                    "data_loss_allowed": false,
                });
                self.records.journal = Some(serde_json::from_value(journal).map_err(|e| e.to_string())?);
                self.bump();
                self.read();
            }
            "proxy" => self.proxy(&mut words)?,
            // Whether a manager that does not lead would take the lead.
            "would" => {
                words.expect("replace")?;
                let term = self.planner.would_replace(self.now);
                let what = term.map_or_else(|| "nothing".to_owned(), |t| format!("the primary of term {}", t.value));
                self.seen.push(format!("would replace {what}"));
            }
            // Whether it could leave the lead to another.
            "may" => {
                words.expect("yield")?;
                let may = self.planner.may_yield();
                self.seen.push(may.map_or_else(|| "may not yield".to_owned(), |t| format!("may yield in term {t}")));
            }
            "safe" => {
                let safety = self.planner.safety(self.now);
                self.seen.push(format!("safe: {}; {}", safety.safe, list(&safety.why)));
            }
            "fence" => {
                let node: NodeId = words.parse()?;
                let fence =
                    FenceRecord { by: "someone".into(), at: 0, stop_writes: words.flag("stop_writes"), removed: false };
                self.records.fences.insert(node, fence);
                self.bump();
                self.read();
            }
            // A node has registered; one that does not vote, if it is not known.
            "member" => {
                let node: NodeId = words.parse()?;
                let mut member = self.records.members.get(&node).cloned().unwrap_or_else(|| member(&node, 9));
                member.slots = !words.flag("slotless");
                self.records.members.insert(node, member);
                self.bump();
                self.read();
            }
            // What a member is meant for: `meant NODE [priority=] [zone=] [delay_ms=] [never]`.
            "meant" => {
                let node: NodeId = words.parse()?;
                let standing = Standing {
                    priority: words.optional("priority")?.unwrap_or(100),
                    zone: words.optional("zone")?,
                    never_promote: words.flag("never"),
                    apply_delay_ms: words.optional("delay_ms")?.unwrap_or(0),
                    serve_reads: true,
                };
                self.records.members.get_mut(&node).ok_or("no such member")?.standing = standing;
                self.bump();
                self.read();
            }
            "lease" => {
                words.expect("gone")?;
                self.records.primary = None;
                self.bump();
                self.read();
            }
            "frozen" | "recovered" | "caught_up" => return self.frozen(line),
            "promoted" => self.promoted(&mut words)?,
            "opened" => self.opened(&mut words)?,
            "stopped" => self.stopped(&mut words)?,
            "obeyed" => {
                let (node, kind) = (words.parse()?, parse::kind(words.next()?)?);
                self.answer(&node, kind, Ok(Reply::Done))?;
            }
            // `armed NODE LSN [epoch=]`: the answer to an order of the policy in force, or of an earlier one.
            "armed" => {
                let (node, lsn): (NodeId, Lsn) = (words.parse()?, words.parse()?);
                let current = self.records.policy.as_ref().map_or(0, |p| p.value.epoch);
                let policy_epoch = words.optional("epoch")?.unwrap_or(current);
                let term = self.orders.get(&(node.clone(), CommandKind::Arm)).copied();
                self.answer(&node, CommandKind::Arm, Ok(Reply::Armed(Armed { lsn, policy_epoch })))?;
                // The order of the policy in force is still to be answered.
                if let Some(term) = term.filter(|_| policy_epoch != current) {
                    self.orders.insert((node, CommandKind::Arm), term);
                }
            }
            "relaxed" => {
                let (node, lsn) = (words.parse()?, words.parse()?);
                self.answer(&node, CommandKind::Relax, Ok(Reply::Relaxed(failover::api::Relaxed { lsn })))?;
            }
            // The time that commits may go unprotected is over.
            "grace" => {
                words.expect("over")?;
                self.records.grace = false;
                self.bump();
                self.read();
            }
            "failed" => self.failed(&mut words)?,
            "op" => self.operator(&mut words)?,
            other => return Err(format!("unknown command {other}")),
        }
        words.end()
    }

    fn step(&mut self, input: Input) {
        let mut taken = Vec::new();
        for action in self.planner.step(self.now, input) {
            self.seen.push(show::action(&action));
            match action {
                Action::Change(change) if change.kind == ChangeKind::Journal && !self.journals_wait => {
                    taken.push(change.id);
                }
                Action::Change(change) => self.sent.push(*change),
                Action::Send { node, command, .. } => {
                    self.orders.insert((node, command.kind()), command.term());
                }
                Action::Read | Action::Answer { .. } | Action::Ended { .. } => {}
            }
        }
        for id in taken {
            self.step(Input::Changed { id, outcome: ChangeOutcome::Done(self.records.revision) });
        }
    }

    fn bump(&mut self) {
        self.records.revision += 1;
    }

    fn read(&mut self) {
        let records = Box::new(self.records.clone());
        self.step(Input::Records { sent_at: self.now, records });
    }

    fn answer(&mut self, node: &NodeId, kind: CommandKind, result: Result<Reply, CommandError>) -> Done {
        let order = self.orders.remove(&(node.clone(), kind));
        let term = order.ok_or_else(|| format!("{node} was not ordered to {}", kind.as_str()))?;
        self.step(Input::Answered { node: node.clone(), term, kind, result: Box::new(result) });
        Ok(())
    }

    /// `frozen NODE TL:LSN|none [replay=] [quarantine=TL:LSN] [was_primary] [recorded=TERM] [line=TL:LSN]`, `recovered …` likewise.
    fn frozen(&mut self, line: &str) -> Done {
        let mut words = Words::new(line);
        let kind = match words.next()? {
            "frozen" => CommandKind::Freeze,
            "caught_up" => CommandKind::CatchUp,
            _ => CommandKind::Recover,
        };
        let node: NodeId = words.parse()?;
        let position = match words.next()? {
            "none" => None,
            p => Some(parse::position(p)?),
        };
        let term = self.orders.get(&(node.clone(), kind)).copied().unwrap_or_default();
        let fork = |p: &str| parse::position(p).map(|p| Fork { timeline: p.timeline, lsn: p.lsn });
        let line = words.optional::<String>("line")?;
        let forks = line.map(|l| l.split(',').map(fork).collect::<Result<Vec<Fork>, _>>()).transpose()?;
        // Who began them, `mark=TL:TEXT,…`.
        let mark = |m: &str| m.split_once(':').and_then(|(t, by)| Some((TimelineId(t.parse().ok()?), by.to_owned())));
        let marks = words
            .optional::<String>("mark")?
            .map_or_else(Default::default, |m| m.split(',').filter_map(mark).collect());
        let history = position.zip(forks).map(|(p, forks)| History { timeline: p.timeline, forks, marks });
        let frozen = Frozen {
            node: node.clone(),
            term,
            position,
            replay_lsn: words.optional("replay")?.or(position.map(|p| p.lsn)),
            history,
            quarantine: words.optional::<String>("quarantine")?.map(|q| parse::position(&q)).transpose()?,
            was_primary: words.flag("was_primary"),
            system_id: words.optional("sysid")?,
            recorded: words.optional("recorded")?.map(Term),
        };
        words.end()?;
        self.answer(&node, kind, Ok(Reply::Frozen(frozen)))
    }

    fn promoted(&mut self, words: &mut Words<'_>) -> Done {
        let node: NodeId = words.parse()?;
        let base = parse::position(&words.value::<String>("fork")?)?;
        let record_lsn = words.value("record")?;
        let fork = Fork { timeline: base.timeline, lsn: base.lsn };
        let oldest: Vec<String> = words
            .optional::<String>("prepared")?
            .map(|l| l.split(',').map(str::to_owned).collect())
            .unwrap_or_default();
        let prepared = Prepared { count: oldest.len() as u64, oldest };
        let promoted =
            Promoted { fork, forks: vec![fork], xid_bound: 700, xid_bounds: Vec::new(), record_lsn, prepared };
        self.answer(&node, CommandKind::Promote, Ok(Reply::Promoted(promoted)))
    }

    /// `opened NODE [silently]`: its agent makes T3; silently: the answer is lost and only a read shows it.
    fn opened(&mut self, words: &mut Words<'_>) -> Done {
        let node: NodeId = words.parse()?;
        self.bump();
        let revision = self.records.revision;
        let term = self.records.term.as_mut().ok_or("no term")?;
        (term.value.phase, term.revision) = (Phase::Active, revision);
        let record = PrimaryRecord { term: term.value.term, node: node.clone(), holder: "h".into() };
        self.records.primary = Some(record);
        if words.flag("silently") {
            return Ok(());
        }
        if let Some(s) = words.optional::<Lsn>("suspended")? {
            let term = self.records.term.as_ref().map_or(Term(0), |t| t.value.term);
            let policy = self.records.policy.as_mut().ok_or("no policy")?;
            policy.value.suspended =
                Some(Suspension { term, since: s, since_wall: 0, why: "lossy".into(), lowered: None });
            policy.value.epoch += 1;
            policy.revision = revision;
        }
        self.answer(&node, CommandKind::Open, Ok(Reply::Opened(Opened { revision })))?;
        self.read();
        Ok(())
    }

    /// `stopped NODE TL:LSN` cleanly, `stopped NODE hard`.
    fn stopped(&mut self, words: &mut Words<'_>) -> Done {
        let node: NodeId = words.parse()?;
        let stopped = match words.next()? {
            "hard" => Stopped { clean: false, end: None },
            p => Stopped { clean: true, end: Some(parse::position(p)?) },
        };
        self.answer(&node, CommandKind::Stop, Ok(Reply::Stopped(stopped)))
    }

    /// `failed NODE KIND no_answer|unreachable|failed|promised=N`
    fn failed(&mut self, words: &mut Words<'_>) -> Done {
        let (node, kind): (NodeId, _) = (words.parse()?, parse::kind(words.next()?)?);
        let term = self.orders.get(&(node.clone(), kind)).copied().unwrap_or_default();
        let error = if let Some(promised) = words.optional("promised")? {
            CommandError::Refused(Refused::LowerTerm { node: node.clone(), term, promised: Term(promised) })
        } else {
            match words.next()? {
                "no_answer" => CommandError::NoAnswer("nothing within the bound".into()),
                "unreachable" => CommandError::Unreachable("connection refused".into()),
                "failed" => {
                    let (what, why) = (kind.as_str().to_owned(), "it did not work".to_owned());
                    CommandError::Failed(failover::api::Failed { node: node.clone(), what, why, at: 0 })
                }
                other => return Err(format!("unknown failure {other}")),
            }
        };
        self.answer(&node, kind, Err(error))
    }

    /// `op ID switchover|failover [to=] [expect=] [lossy]`, `op ID fence NODE [stop_writes]`, `op ID unfence NODE`,
    /// `op ID pause [for=] [why=]`, `op ID resume`, `op ID policy [voters=] [k=] [expect=]`
    fn operator(&mut self, words: &mut Words<'_>) -> Done {
        let id = words.parse()?;
        let operation = match words.next()? {
            "switchover" => {
                let (to, expect_term) = (words.optional("to")?, words.optional("expect")?.map(Term));
                Operation::Switchover { to, expect_term, by: "an operator".into() }
            }
            "failover" => Operation::Failover {
                to: words.optional("to")?,
                expect_term: words.optional("expect")?.map(Term),
                allow_data_loss: words.flag("lossy"),
                by: "an operator".into(),
            },
            "fence" => {
                let node = words.parse()?;
                Operation::Fence { node, stop_writes: words.flag("stop_writes"), by: "me".into() }
            }
            "unfence" => Operation::Unfence { node: words.parse()? },
            "pause" => {
                let length = words.optional::<cluster::config::Span>("for")?.map(|s| s.0);
                Operation::Pause { by: "me".into(), why: words.optional("why")?.unwrap_or_default(), length }
            }
            "resume" => Operation::Resume,
            // `op ID maintain NODE [for=] [stop_writes]`, `op ID maintained NODE`
            "maintain" => Operation::BeginMaintenance {
                node: words.parse()?,
                stop_writes: words.flag("stop_writes"),
                by: "me".into(),
                why: String::new(),
                length: words.optional::<cluster::config::Span>("for")?.map(|s| s.0),
            },
            "remove" => Operation::RemoveNode { node: words.parse()?, by: "me".into() },
            "maintained" => Operation::EndMaintenance { node: words.parse()? },
            "policy" => Operation::SetPolicy(PolicyChange {
                mode: words.optional::<String>("mode")?.map(|m| parse::mode(&m)).transpose()?,
                voters: words.optional::<String>("voters")?.map(|l| parse::nodes(&l)),
                k: words.optional("k")?,
                max_loss_bytes: words.optional::<cluster::config::Size>("max_loss")?.map(|s| s.0),
                max_time: words.optional::<cluster::config::Span>("max_time")?.map(|s| s.0),
                expect_epoch: words.optional("expect")?,
            }),
            other => return Err(format!("unknown operation {other}")),
        };
        self.step(Input::Operator { id, operation });
        Ok(())
    }
}
