//! What the planner does, one line each.

use failover::fsm::action::{Action, Answer, ChangeKind, Command, Guard, RecordKey, RecordPut};
use failover::fsm::blocker::{Verdict, list};
use failover::record::{JournalRecord, Mode, TermRecord};

pub(super) fn verdict(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Following => "verdict: following".into(),
        Verdict::Steady => "verdict: steady".into(),
        Verdict::Acting { term, step } => format!("verdict: term {term}, {step}"),
        Verdict::Hold { blockers } => format!("verdict: hold: {}", list(blockers)),
    }
}

pub(super) fn action(action: &Action) -> String {
    match action {
        Action::Send { node, command, .. } => format!("send {node}: {}", order(command)),
        // Whatever it says is shown when the round ends.
        Action::Change(change) if change.kind == ChangeKind::Journal => {
            let of_term = change.guards.iter().any(|g| matches!(g, Guard::Term(_)));
            format!("write journal{}", if of_term { " if term" } else { "" })
        }
        Action::Change(change) => {
            let puts: Vec<String> = change.puts.iter().map(put).collect();
            let deletes = change.deletes.iter().map(|d| match d {
                RecordKey::Primary => "delete primary".to_owned(),
                RecordKey::Fence(node) => format!("delete fence {node}"),
                RecordKey::Member(node) => format!("delete member {node}"),
                RecordKey::Maintenance(node) => format!("delete maintenance {node}"),
                RecordKey::Pause => "delete pause".to_owned(),
            });
            let all: Vec<String> = puts.into_iter().chain(deletes).filter(|p| !p.is_empty()).collect();
            let guards: Vec<&str> = change.guards.iter().map(guard).collect();
            format!("change {}: {} if {}", change.kind.as_str(), all.join(", "), guards.join(", "))
        }
        Action::Read => "read".into(),
        Action::Answer { id, answer } => format!("answer {id}: {}", reply(answer)),
        Action::Ended { cause, active, journal } => {
            format!("ended {cause:?} active={active}; {}", ended(journal))
        }
    }
}

fn order(command: &Command) -> String {
    let term = command.term();
    match command {
        Command::Promote(p) => {
            let asked = if p.on_request { " on request" } else { "" };
            format!("promote term={term} base={}:{} names=\"{}\"{asked}", p.base.timeline, p.base.lsn, p.sync_names)
        }
        Command::CatchUp(c) => format!("catch_up term={term} from {} to {}:{}", c.from, c.to.timeline, c.to.lsn),
        Command::Follow(f) => {
            let ahead = if f.ahead.is_some() { " ahead" } else { "" };
            format!("follow term={term} {}{ahead}", f.primary)
        }
        Command::Open(o) => match &o.suspend {
            Some(s) => format!("open term={term} suspended since {}: {}", s.since, s.why),
            None => format!("open term={term}"),
        },
        Command::Stop(s) => {
            let only = if s.only_if_hung { " if it hangs" } else { "" };
            format!("stop term={term} within {} ms{only}", s.deadline_ms)
        }
        Command::Relax(r) => format!("relax term={term} epoch={}", r.policy_epoch),
        Command::Arm(a) => format!("arm term={term} names=\"{}\"", a.sync_names),
        Command::Freeze(f) => format!("freeze term={term}{}", if f.is_stopped { " stopped" } else { "" }),
        Command::Recover(_) | Command::Checkpoint(_) => format!("{} term={term}", command.kind().as_str()),
    }
}

fn put(put: &RecordPut) -> String {
    match put {
        RecordPut::Term(TermRecord { term, phase, node, prev, holds_all_of, holds_written_of, .. }) => {
            let node = node.as_ref().map_or_else(String::new, |n| format!(" {n}"));
            let prev = prev.as_ref().map_or_else(String::new, |p| format!(" after {} of {}", p.term, p.node));
            let all = match (holds_all_of, holds_written_of) {
                (Some(_), _) => " with all of it",
                (None, Some(_)) => " with all that was written",
                (None, None) => "",
            };
            format!("term {term} {phase:?}{node}{prev}{all}")
        }
        RecordPut::Policy(p) => {
            let joint = p.joint.as_ref().map_or_else(String::new, |j| format!(" to {} k={}", list(&j.voters), j.k));
            let quorum = format!("{} k={}", list(&p.voters), p.k);
            let lowered = p.suspended.as_ref().and_then(|s| Some((s, s.lowered.as_ref()?)));
            let mode = if p.mode == Mode::Strict { String::new() } else { format!(" {}", p.mode.as_str()) };
            let lowered = lowered.map_or_else(String::new, |(s, l)| {
                let ended = l.ended.as_ref().map_or_else(String::new, |e| format!(", ended: {e}"));
                let from = l.complete_from.map_or_else(|| "unknown".to_owned(), |lsn| lsn.to_string());
                format!(
                    " (since {} of term {}: {}; promised to {}, complete from {from}{ended})",
                    s.since, s.term, s.why, l.k
                )
            });
            let ended = p.rearmed.map_or_else(String::new, |r| format!(" rearmed at {} of term {}", r.lsn, r.term));
            format!(
                "policy epoch={}{mode} suspended={}{lowered}{ended} {quorum}{joint}",
                p.epoch,
                p.suspended.is_some()
            )
        }
        // Taken along, as it is not known to be there.
        RecordPut::Journal(j) if j.finished.is_some() => format!("journal of term {}", j.term),
        // Of whose writes its report is to tell, where the last one of etcd's is not it.
        RecordPut::Journal(j) => match (j.ended, j.ended()) {
            (None, Some(ended)) => format!("report of term {ended}"),
            _ => String::new(),
        },
        RecordPut::Maintenance(node, m, length) => format!("maintenance {node} by {} for {length:?}", m.by),
        RecordPut::Pause(p, length) => format!("pause by {} for {length:?}", p.by),
        RecordPut::Spent(term, _) => format!("failover {term} counted"),
        RecordPut::Grace(length) => format!("grace {length:?}"),
        RecordPut::Fence(node, f) => {
            let removed = if f.removed { " removed" } else { "" };
            format!("fence {node} by {} stop_writes={}{removed}", f.by, f.stop_writes)
        }
    }
}

const fn guard(guard: &Guard) -> &'static str {
    match guard {
        Guard::Term(_) => "term",
        Guard::Policy(_) => "policy",
        Guard::Leader(_) => "leader",
        Guard::NoPrimary => "no primary",
        Guard::NotPaused => "not paused",
    }
}

fn reply(answer: &Answer) -> String {
    match answer {
        Answer::Done { note, .. } => format!("done: {note}"),
        Answer::Refused(blockers) => format!("refused: {}", list(blockers)),
        Answer::Failed { why, .. } => format!("failed: {why}"),
    }
}

fn ended(journal: &JournalRecord) -> String {
    let phases: Vec<String> = journal.phases.iter().map(|p| format!("{} {}", p.phase, p.ms)).collect();
    let window = journal.window.map_or_else(String::new, |w| format!("; window {} bytes, {:?} ms", w.bytes, w.ms));
    let prepared = journal.observed.iter().find(|o| o.contains("prepared transactions"));
    let prepared = prepared.map_or_else(String::new, |o| format!("; {o}"));
    // Of a term that was taken over the leave is known from its record alone.
    let told = journal.observed.iter().any(|o| o.contains("allowed data loss") || o.contains("taken over"));
    let untold = if journal.data_loss_allowed && !told { "; LEAVE TO LOSE DATA NOT TOLD" } else { "" };
    format!("{}; {}{window}{prepared}{untold}", journal.finished.as_deref().unwrap_or("unfinished"), phases.join(", "))
}
