//! Commands that make etcd's records and agents' reports: a cluster, what a node says of itself, what became of a change,
//! what somebody else wrote.

use super::parse::{self, Words};
use super::{Done, Heard, World, member};
use cluster::timeline::Fork;
use cluster::{Lsn, NodeId, Term, TimelineId};
use failover::api::{AgentState, Sighting};
use failover::fsm::action::{ChangeOutcome, Input, RecordKey, RecordPut};
use failover::fsm::observe::At;
use failover::record::{
    Cause, Chosen, Limits, Mode, Phase, PolicyRecord, PrimaryRecord, ProxyRecord, Suspension, Tenure, TermRecord,
};
use std::time::Duration;

impl World {
    /// `cluster primary=n1 term=7 [voters=n1,n2,n3] [mode=async] [k=1] [phase=active] [suspended=LSN]`: records, a
    /// leading manager, and every node well.
    pub(super) fn cluster(&mut self, words: &mut Words<'_>) -> Done {
        let primary: NodeId = words.value("primary")?;
        let term = Term(words.value("term")?);
        let voters: Vec<NodeId> = words.optional("voters")?.map_or_else(
            || ["n1", "n2", "n3"].map(|n| n.parse().unwrap()).to_vec(),
            |l: String| l.split(',').map(|n| n.parse().unwrap()).collect(),
        );
        let mode = words.optional::<String>("mode")?.map_or(Ok(Mode::Strict), |m| parse::mode(&m))?;
        let k = words.optional("k")?.unwrap_or(1);
        let phase = words.optional::<String>("phase")?.map_or(Ok(Phase::Active), |p| parse::phase(&p))?;
        let since: Option<Lsn> = words.optional("suspended")?;
        let why = "an operator allowed data loss".to_owned();
        let suspended = since.map(|since| Suspension { term, since, since_wall: 0, why, lowered: None });
        for (i, node) in voters.iter().enumerate() {
            self.records.members.insert(node.clone(), member(node, u16::try_from(i).unwrap()));
        }
        let record = TermRecord {
            term,
            phase,
            coordinator: "m0".into(),
            node: Some(primary.clone()),
            cause: Cause::Bootstrap,
            prev: None,
            fork: None,
            forks: Vec::new(),
            xid_bound: None,
            xid_bounds: Vec::new(),
            record_lsn: Some(Lsn(0x100)),
            policy_epoch: 1,
            newest_timeline: None,
            holds_all_of: None,
            holds_written_of: None,
            history_lost: false,
            lossy_timelines: Vec::new(),
            chosen_before: None,
            data_loss_allowed: false,
        };
        self.records.term = Some(At { value: record, revision: 90 });
        let policy = PolicyRecord {
            epoch: 1,
            voters: voters.clone(),
            k,
            mode,
            suspended,
            limits: Limits::default(),
            joint: None,
            rearmed: None,
        };
        self.records.policy = Some(At { value: policy, revision: 91 });
        self.records.primary = Some(PrimaryRecord { term, node: primary.clone(), holder: "h".into() });
        self.records.system_id = words.optional("sysid")?;
        self.step(Input::Leading { revision: 50 });
        self.read();
        if words.flag("unheard") {
            return Ok(());
        }
        for node in &voters {
            let role = if *node == primary { "primary" } else { "standby" };
            self.report(&mut Words::new(&format!("{node} {role}")))?;
        }
        self.seen.clear();
        Ok(())
    }

    /// `report NODE primary|standby|stopped|starting|absent [tl=] [at=] [replay=] [from=] [sees=lost|hung|full|refused|ok]
    /// [sql_answers] [accepts=MS] [full] [acks=LSN] [flush=LSN] [fsync=MS] [for_ms=MS] [quarantine=TL:LSN] [fenced] [clean] [promise=] [opened=]
    /// [memory=SYSID] [policy=EPOCH[:K]] [ending] [unseen] [doubted=NODES] [room=SLOTS] [namesake=ADDRESS]`; what is not said is as in a healthy cluster.
    pub(super) fn report(&mut self, words: &mut Words<'_>) -> Done {
        let node: NodeId = words.parse()?;
        let term = self.records.term.as_ref().map_or(Term(1), |t| t.value.term);
        let primary = self.records.term.as_ref().and_then(|t| t.value.node.clone());
        let is = words.next()?.to_owned();
        let timeline = TimelineId(words.optional("tl")?.unwrap_or(u32::try_from(term.0).unwrap()));
        let at: Lsn = words.optional("at")?.unwrap_or(Lsn(0x5000));
        let postgres = parse::postgres(&is, timeline, at, primary.clone(), words)?;
        let sees = words.optional::<String>("sees")?;
        let lost = matches!(sees.as_deref(), Some("lost" | "hung" | "full"));
        let kept = self.reports.get(&node).and_then(|h| h.lost_since).unwrap_or(self.now);
        let (sql_fresh, accepts) = (words.flag("sql_answers"), words.optional("accepts")?);
        let agent_answers = sees.as_deref() == Some("hung");
        let unseen_since = (words.flag("full") | words.flag("unseen")).then_some(self.now);
        let looks = primary.filter(|p| *p != node && sees.as_deref() != Some("nothing"));
        let state = AgentState {
            seq: 1,
            node: node.clone(),
            holder: format!("a-{node}"),
            host: "h".into(),
            promise: Term(words.optional("promise")?.unwrap_or(0)),
            opened: Term(words.optional("opened")?.unwrap_or(0)),
            postgres,
            observed_ms_ago: 0,
            system_id: words.optional("sysid")?,
            memory_of: words.optional("memory")?,
            frozen_for: None,
            quarantine: words.optional::<String>("quarantine")?.map(|q| parse::position(&q)).transpose()?,
            rejoin: words.optional("rejoin")?,
            fenced: words.flag("fenced"),
            sees_primary: looks.map(|p| Sighting {
                node: p,
                term,
                agent_ms_ago: 0,
                sql_ms_ago: if sql_fresh { 1 } else { 0 },
                accept_ms_ago: accepts,
                full_ms_ago: (sees.as_deref() == Some("full")).then_some(0),
                refused: sees.as_deref() == Some("refused"),
            }),
            lease_left_ms: None,
            fsync_probe_ms: words.optional("fsync")?.or(Some(1)),
            trouble: None,
            namesake: words.optional::<String>("namesake")?.map(|at| format!("another agent lives at {at}")),
            slot_room: words.optional("room")?,
            ending: words.flag("ending"),
            policy: self.known_policy(words)?,
        };
        self.reports
            .insert(node.clone(), Heard { state, lost_since: lost.then_some(kept), agent_answers, unseen_since });
        self.hear(&node);
        Ok(())
    }

    /// `policy=EPOCH[:K]`: as in etcd but for that.
    fn known_policy(&self, words: &mut Words<'_>) -> Result<Option<PolicyRecord>, String> {
        let Some(text) = words.optional::<String>("policy")? else { return Ok(None) };
        let policy = self.records.policy.as_ref().ok_or("no policy")?.value.clone();
        let (epoch, k) = text.split_once(':').unwrap_or((&text, ""));
        let epoch = epoch.parse().map_err(|_| "no epoch")?;
        Ok(Some(PolicyRecord { epoch, k: k.parse().unwrap_or(policy.k), ..policy }))
    }

    /// Send the node's report again, with its sightings as old as they are now.
    fn hear(&mut self, node: &NodeId) {
        let Some(heard) = self.reports.get(node) else { return };
        let mut state = heard.state.clone();
        if let (Some(since), Some(s)) = (heard.lost_since, &mut state.sees_primary) {
            let ms = u64::try_from(self.now.since(since).as_millis()).unwrap();
            s.agent_ms_ago = if heard.agent_answers { 0 } else { ms };
            s.sql_ms_ago = if s.sql_ms_ago == 1 { 1 } else { ms };
        }
        if let Some(since) = heard.unseen_since {
            state.observed_ms_ago = u64::try_from(self.now.since(since).as_millis()).unwrap();
        }
        self.step(Input::Report(Box::new(state)));
    }

    /// `run 1200ms [heard=n2,n3]`: time passes in steps of 50 ms; those heard report as before.
    pub(super) fn run(&mut self, words: &mut Words<'_>) -> Done {
        let span: cluster::config::Span = words.parse()?;
        let heard: Vec<NodeId> = words
            .optional::<String>("heard")?
            .map_or_else(|| self.reports.keys().cloned().collect(), |l| parse::nodes(&l));
        let mut left = span.0;
        while !left.is_zero() {
            let by = left.min(Duration::from_millis(50));
            left -= by;
            self.now = self.now + by;
            for node in &heard {
                self.hear(node);
            }
            self.step(Input::Tick { wall: self.wall });
        }
        Ok(())
    }

    /// `done KIND` makes the change; `lost KIND`, `unmade KIND`; `unknown KIND [made]`.
    pub(super) fn outcome(&mut self, line: &str) -> Done {
        let mut words = Words::new(line);
        let how = words.next()?.to_owned();
        let kind = words.next()?.to_owned();
        let made = how == "done" || words.flag("made");
        let index = self.sent.iter().rposition(|c| c.kind.as_str() == kind).ok_or("no such change was sent")?;
        let change = self.sent.remove(index);
        if made {
            self.bump();
            let revision = self.records.revision;
            for put in change.puts.clone() {
                match put {
                    RecordPut::Term(value) => self.records.term = Some(At { value, revision }),
                    RecordPut::Policy(value) => self.records.policy = Some(At { value, revision }),
                    RecordPut::Fence(node, fence) => drop(self.records.fences.insert(node, fence)),
                    RecordPut::Maintenance(node, m, _) => drop(self.records.maintenance.insert(node, m)),
                    RecordPut::Pause(pause, _) => self.records.pause = Some(pause),
                    RecordPut::Grace(_) => self.records.grace = true,
                    RecordPut::Spent(term, _) => drop(self.records.spent.insert(term)),
                    RecordPut::Journal(journal) => self.records.journal = Some(*journal),
                }
            }
            for key in &change.deletes {
                match key {
                    RecordKey::Primary => self.records.primary = None,
                    RecordKey::Fence(node) => drop(self.records.fences.remove(node)),
                    RecordKey::Member(node) => drop(self.records.members.remove(node)),
                    RecordKey::Maintenance(node) => drop(self.records.maintenance.remove(node)),
                    RecordKey::Pause => self.records.pause = None,
                }
            }
        }
        let outcome = match how.as_str() {
            "done" => ChangeOutcome::Done(self.records.revision),
            "lost" => ChangeOutcome::Lost,
            "unmade" => ChangeOutcome::NotMade("etcd is away".into()),
            _ => ChangeOutcome::Unknown("answer lost".into()),
        };
        self.step(Input::Changed { id: change.id, outcome });
        Ok(())
    }

    /// `record term=9 phase=recruiting by=m9 [node=n2] [prev=7:n1]`: somebody else changed the term.
    pub(super) fn record(&mut self, words: &mut Words<'_>) -> Done {
        self.bump();
        let old = self.records.term.clone().ok_or("no term yet")?.value;
        let prev = words.optional::<String>("prev")?.map(|p| -> Result<Tenure, String> {
            let (t, n) = p.split_once(':').ok_or("prev=TERM:NODE")?;
            let t: u32 = t.parse().map_err(|_| "prev=TERM:NODE")?;
            let node = n.parse().map_err(|_| "a node's name")?;
            Ok(Tenure { term: Term(t.into()), node, timeline: TimelineId(t) })
        });
        let prev = prev.transpose()?.or(old.prev.clone());
        let fork = words.optional::<String>("fork")?.map(|f| parse::position(&f)).transpose()?;
        // `chosen=NODE@TL:LSN [chosen_by=EPOCH]`: in vain, before.
        let policy_epoch = words.optional("chosen_by")?.unwrap_or(old.policy_epoch);
        let chosen = words.optional::<String>("chosen")?.map(|c| -> Result<Chosen, String> {
            let (node, base) = c.split_once('@').ok_or("chosen=NODE@TL:LSN")?;
            let (node, base) = (node.parse().map_err(|_| "a node's name")?, parse::position(base)?);
            Ok(Chosen { node, base: Fork { timeline: base.timeline, lsn: base.lsn }, policy_epoch })
        });
        let value = TermRecord {
            chosen_before: chosen.transpose()?,
            term: Term(words.optional("term")?.unwrap_or(old.term.0)),
            phase: words.optional::<String>("phase")?.map_or(Ok(old.phase), |p| parse::phase(&p))?,
            coordinator: words.optional("by")?.unwrap_or_else(|| old.coordinator.clone()),
            node: words.optional("node")?.or(old.node),
            newest_timeline: words.optional("newest")?.map(TimelineId).or(prev.as_ref().map(|p| p.timeline)),
            holds_all_of: None,
            holds_written_of: None,
            history_lost: words.flag("history_lost"),
            fork: fork.map(|f| Fork { timeline: f.timeline, lsn: f.lsn }),
            prev,
            record_lsn: words.optional("record")?.or(old.record_lsn),
            data_loss_allowed: words.flag("lossy"),
            ..old
        };
        self.records.term = Some(At { value, revision: self.records.revision });
        self.read();
        Ok(())
    }

    pub(super) fn proxy(&mut self, words: &mut Words<'_>) -> Done {
        let id = words.next()?.to_owned();
        if words.flag("gone") {
            self.records.proxies.remove(&id);
        } else {
            let (term, gate) = (Term(words.value("term")?), words.value("gate")?);
            let busy = words.optional("busy")?.unwrap_or(0);
            let epoch = words.optional("epoch")?.unwrap_or(1);
            let system_id = words.optional("sysid")?;
            let view_ms = words.optional("view_ms")?.unwrap_or(0);
            let record = ProxyRecord { term, epoch, gate, busy, system_id, view_ms, below_mode: Vec::new() };
            self.records.proxies.insert(id, record);
        }
        self.bump();
        self.read();
        Ok(())
    }
}
