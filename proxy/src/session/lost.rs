//! A server is gone: the session is told what that means, and goes on.
//!
//! [`outcome`](super::outcome) decides; here its answers become messages, one for each unit that was sent. What is
//! left of a transaction block lives on in the session until the client ends it.

use crate::ledger::{Mark, Verdict, Why};
use crate::metrics::{Retried, bump};
use crate::session::client::{Failure, Loss, Session, Tail};
use crate::session::follow::Reading;
use crate::session::outcome::{Answer, answers, are_sent_again};
use crate::session::relay::{Entry, Kind};
use crate::session::resolve::InDoubt;
use crate::session::state::{LostBlock, Pins};
use crate::session::statements::Named;
use crate::session::{block, label, losses};
use crate::sql::PinReason;
use crate::wire::backend::{self, TxStatus};
use crate::wire::error_response::{ClientError, Doubt};
use cluster::topology::Gate;
use cluster::{NodeId, Term};

mod rest;

use rest::session_lost;
pub(super) use rest::step;

/// Explain a loss to the client. False when the connection cannot go on: the server died within a message that was
/// too long to be held back, and nothing can be said in the middle of it.
pub(super) fn explain(s: &mut Session, loss: Loss) -> bool {
    let Some(meta) = s.server.as_ref().map(|server| &server.meta) else { return true };
    let (node, term, wrote_in, born) = (meta.node.clone(), meta.term, meta.wrote_in(), meta.born);
    let started = meta.started;
    let level = s.relay.commits.waits().unwrap_or_default().most;
    if s.desynchronised {
        s.drop_server();
        return desynchronised(s);
    }
    note(s, &node, term, loss);
    let (fresh, standby) = (s.fresh.take(), s.relay.standby);
    let (status, delivered, broken) = (s.relay.status, s.relay.delivered(), s.relay.mid_frame());
    // What is held of a unit that is half sent gets the one error of that.
    let (mut sent, open) = (s.relay.sent(), s.relay.open.is_some());
    // The server's last words came before it has begun the COMMIT.
    let unbegun = is_last_word(loss) && s.relay.awaits_mark();
    // Or there is nothing to commit: no function that its block calls can have written either.
    let only_read = !standby && status == TxStatus::Block && !s.may_have_xid && s.table.doubtful().is_empty();
    if let Some(commit) = sent.first_mut().filter(|commit| unbegun || only_read && commit.is_commit()) {
        *commit = commit.on_standby();
    }
    // Or whoever was idle for too long was so until then: a server looks for that before it looks at what has come.
    let unrun = was_idle(loss) && !delivered;
    if unrun {
        sent.iter_mut().for_each(|record| *record = record.unrun());
    }
    let undone = status != TxStatus::Idle && (unbegun || unrun || !s.relay.may_commit());
    let mark = s.relay.mark().filter(|_| loss != Loss::HoldTimeout);
    let lacks = s.relay.lacks.take().filter(|_| matches!(loss, Loss::Refused(_)));
    if let Loss::Refused(code) = loss {
        s.remember_refusal(code, 0);
    }
    let named = |(unit, name)| Some((unit, s.statements.named(name)?.clone()));
    let registered: Vec<(usize, Named)> = s.relay.registers().filter_map(named).collect();
    // A standby that refuses a statement is as good as it was.
    let entries = match loss {
        Loss::Refused(_) if s.may_part() => s.part(),
        _ => {
            s.drop_server();
            s.relay.abandon()
        }
    };
    for undo in std::mem::take(&mut s.relay.undone) {
        s.undo(undo);
    }
    drop_rest(s);
    (s.server_in, s.behind, s.hint_warned) = (Vec::new(), false, false);
    s.rescan = true;
    s.set_busy(None);
    if broken {
        return false;
    }
    if let Loss::Refused(_) = loss {
        s.avoid.push(node.clone());
    }
    if let Some(told) = lacks {
        s.recheck(told);
    }
    let wrote = s.forget_transaction(delivered || status != TxStatus::Idle);
    if delivered && standby {
        s.saw_at(&node, started);
    }
    // The next server has its own time to be proven; and with a block goes what was held in it.
    s.hold = None;
    if status != TxStatus::Idle {
        s.waiting_since = None;
    }
    let listened = s.tracking.listened;
    if lose_session(s, Some(&node), undone) {
        if loss == Loss::HoldTimeout {
            // Nobody would tell a client that waits for notifications only.
            s.deaf();
            return false;
        }
        // Listening is taken up elsewhere, without waiting for a statement of the client.
        s.listens = true;
    }
    let first = (sent.len(), delivered, s.retained_lens.front().is_some_and(|&len| len > 0));
    let view = losses::View { term: s.w.view.borrow().topology.term, open: s.w.gate(s.w.now()) == Gate::Open };
    let times = (s.presence.doing.get().since, s.w.now());
    let again = !s.cancelled && (sent.is_empty() || s.losses.allow(loss, (&node, born), view, times));
    let survives = again && s.lost_pins.is_none() && block::survives(fresh, first, loss);
    if standby && status == TxStatus::Block && survives {
        (s.fresh, s.replants) = (fresh.map(block::Fresh::unsent), true);
        s.w.counts.retried(retried_for(loss, false));
        return begin_again(s, !sent.is_empty());
    }
    if s.replants {
        // It was about to begin anew, and still is.
        s.fresh = fresh;
    }
    let mut verdicts = answers(status, &sent, delivered || !again);
    if !standby && !unrun {
        label::doubt(s, &sent, &mut verdicts);
    }
    let doubt = if loss == Loss::ViewStale { Doubt::ViewStale } else { Doubt::ServerLost };
    let before = s.losses.first().filter(|_| !again).cloned();
    let facts = Facts { node, term, doubt, before };
    if verdicts.contains(&Answer::Unknown) || wrote {
        s.causality.borrow_mut().wrote(s.w.now());
    }
    match (sent.is_empty(), status) {
        (true, TxStatus::Block) => s.lost_block = LostBlock::Untold(Box::new(facts.block())),
        (true, TxStatus::Failed) => s.lost_block = LostBlock::Told(Box::new(facts.block())),
        (true, TxStatus::Idle) | (false, _) => {}
    }
    if loss == Loss::HoldTimeout && !open {
        hold_timeout(s);
    }
    if loss == Loss::Stuck && sent.is_empty() && status == TxStatus::Idle && !s.inbox.is_empty() {
        // What was asked for it has not ended: on another server that would not end either.
        s.fail = Some(Failure::Error(ClientError::Cancelled));
    }
    let cancelled = std::mem::take(&mut s.cancelled) || loss == Loss::Stuck;
    let owed = Owed { verdicts, entries, registered, facts, loss, listened, cancelled };
    match mark.filter(|_| owed.verdicts.first() == Some(&Answer::Unknown)) {
        // Nothing is told before it is known.
        Some(mark) => s.in_doubt = Some(Box::new(InDoubt { mark, term: wrote_in, level, owed })),
        None => tell(s, owed, None),
    }
    true
}

/// Has the server itself said that it ends its session, for an order, a limit or a shutdown?
fn is_last_word(loss: Loss) -> bool {
    matches!(loss, Loss::Fatal(code) if code.starts_with(b"57P") || code.starts_with(b"25"))
}

/// Has the server ended its session because nothing came for too long?
fn was_idle(loss: Loss) -> bool {
    matches!(loss, Loss::Fatal([b'2', b'5', b'P', b'0', b'3'] | [b'5', b'7', b'P', b'0', b'5']))
}

/// What a client is to be told about all that was sent and not answered.
pub(super) struct Owed {
    verdicts: Vec<Answer>,
    entries: Vec<Entry>,
    /// The statements that it registered, each with the number of its unit.
    registered: Vec<(usize, Named)>,
    facts: Facts,
    loss: Loss,
    /// A LISTEN was sent that the server has not told the channel of.
    listened: bool,
    /// Its client, or a limit, had it cancelled.
    cancelled: bool,
}

/// Tell the client what became of its COMMIT, and of what it sent behind it.
pub(super) fn tell_resolved(s: &mut Session, owed: Owed, mark: &Mark, verdict: Verdict) {
    let (node, term, doubt) = (owed.facts.node.clone(), owed.facts.term, owed.facts.doubt);
    let first = match verdict {
        Verdict::Survived => Ok(()),
        Verdict::Lost(proof) => Err(ClientError::CommitLost { node, term, xid: mark.xid, proof }),
        Verdict::Unknown(why) => Err(ClientError::CommitUnresolved { node, term, mark: *mark, why, doubt }),
        Verdict::Ask(_) | Verdict::Running | Verdict::Unconfirmed => {
            Err(ClientError::CommitUnresolved { node, term, mark: *mark, why: Why::NoPrimary, doubt })
        }
    };
    if first.is_ok() && owed.listened {
        // It was committed with the rest, and nobody listens for it.
        s.tracking.channels.clear();
        s.listens = true;
    }
    tell(s, owed, Some(first));
}

/// One answer for each unit; `first` is that of the first where more is known of it.
fn tell(s: &mut Session, owed: Owed, mut first: Option<Result<(), ClientError>>) {
    let Owed { verdicts, entries, registered, facts, loss, listened: _, cancelled } = owed;
    let mut entries = entries.into_iter();
    let (mut kept, mut repeats) = (0, false);
    for (i, verdict) in verdicts.iter().enumerate() {
        let unit: Vec<Entry> = take_unit(&mut entries);
        let len = s.retained_lens.get(i).copied().unwrap_or(0);
        if are_sent_again(&verdicts[i..], s.retained_lens.iter().skip(i)) && s.lost_pins.is_none() {
            let asks = s.rechecks.as_deref().is_some_and(|recheck| recheck.told.is_some());
            s.w.counts.retried(retried_for(loss, asks));
            repeat(s, kept);
            repeats = i == 0;
            break;
        }
        kept += len;
        s.losses.forget();
        let succeeds = matches!(first, Some(Ok(()))) || *verdict == Answer::RollbackDone;
        match first.take() {
            Some(known) => {
                match known {
                    Ok(()) => succeed(s, &unit, "COMMIT"),
                    Err(error) => s.error(&error),
                }
                s.lost_block = LostBlock::None;
                s.ready(TxStatus::Idle);
            }
            // It was cancelled, and nothing that it does can be committed.
            None if matches!(verdict, Answer::ReadLost | Answer::BlockAborted(TxStatus::Failed))
                && cancelled
                && i == 0 =>
            {
                let status = verdict.status().unwrap_or(TxStatus::Idle);
                say(s, Some(ClientError::Cancelled), status, &unit, &facts);
            }
            None => answer(s, *verdict, &unit, &facts),
        }
        if succeeds {
            // The client was told that they are there.
            let named: Vec<&Named> = registered.iter().filter(|(of, _)| *of == i).map(|(_, named)| named).collect();
            named.iter().for_each(|named| s.statements.insert((*named).clone()));
            let parses = |e: &&Entry| matches!(e.kind, Kind::Parse | Kind::LocalParse) && !e.hidden;
            if unit.iter().filter(parses).count() > named.len() {
                // The unnamed statement is this one now, and not again what it was before.
                s.statements.unnamed = None;
            }
        }
    }
    if !repeats {
        s.forget_refusals();
    }
    s.correct();
    s.retained.clear();
    s.retained_lens.clear();
}

/// Why something runs again, for the metric. `asks`: the primary is asked whether a standby lacks what it names.
fn retried_for(loss: Loss, asks: bool) -> Retried {
    match loss {
        Loss::Refused(_) if asks => Retried::Lacking,
        Loss::Refused(code) | Loss::Fatal(code) => match &code {
            b"25006" | b"0A000" | b"55000" => Retried::Refused,
            b"40001" | b"40P01" | b"57P04" => Retried::RecoveryConflict,
            b"57P01" | b"57P02" | b"57P03" => Retried::ServerStops,
            _ => Retried::ServerError,
        },
        Loss::Gone | Loss::Violation(_) | Loss::Stuck => Retried::ServerLost,
        Loss::Deposed | Loss::ViewStale | Loss::HoldTimeout => Retried::Deposed,
    }
}

/// The block begins on another server, and what was sent of it is sent there.
fn begin_again(s: &mut Session, sent: bool) -> bool {
    if sent {
        repeat(s, 0);
    }
    s.correct();
    s.retained.clear();
    s.retained_lens.clear();
    true
}

/// A block is given up for an error of ours, nothing being owed: its server is closed, which rolls it back, and the
/// client is told at its next statement.
pub(super) fn fail_block(s: &mut Session, error: ClientError) {
    leave(s);
    s.lost_block = LostBlock::Untold(Box::new(error));
}

/// The server is closed, whatever it does; nothing is owed to the client.
pub(super) fn leave(s: &mut Session) {
    // An earlier transaction's answer may have come with what began this one.
    if s.forget_transaction(true) {
        s.causality.borrow_mut().wrote(s.w.now());
    }
    let node = s.drop_server().map(|(node, _)| node);
    s.relay.abandon();
    for undo in std::mem::take(&mut s.relay.undone) {
        s.undo(undo);
    }
    drop_rest(s);
    (s.server_in, s.behind, s.hint_warned) = (Vec::new(), false, false);
    // What was held there is over.
    (s.hold, s.waiting_since) = (None, None);
    s.rescan = true;
    s.set_busy(None);
    // First the client is told what is due.
    s.relistens |= lose_session(s, node.as_ref(), true);
    (s.fresh, s.replants) = (None, false);
    s.correct();
    s.retained.clear();
    s.retained_lens.clear();
}

/// What the session has on its server is lost with it; `undone`: what was in flight has changed nothing. Has it listened there?
fn lose_session(s: &mut Session, node: Option<&NodeId>, undone: bool) -> bool {
    let unheard = s.tracking.asks_channels();
    s.leave_draws();
    s.tracking.lose(&mut s.pins, undone);
    (s.parse_key, s.reading) = (s.shared_key(), Reading::Usual);
    s.statements.apart = false;
    if unheard {
        s.tracking.channels.clear();
    }
    let listened = s.pins.has(PinReason::Listen) && (unheard || !s.tracking.channels.is_empty());
    if listened {
        s.pins.remove(PinReason::Listen);
    }
    s.durability.settle();
    s.count_pins(Pins::NONE);
    let pins = std::mem::take(&mut s.pins);
    if let Some(node) = node.filter(|_| !pins.is_empty()) {
        s.lost_pins = Some((node.clone(), pins));
    }
    s.relay.status = TxStatus::Idle;
    listened
}

/// What was to be sent to the server is for no other, nor is the rest of a message that the client has not sent whole: the
/// next one would take it for messages of its own.
fn drop_rest(s: &mut Session) {
    s.to_server.clear();
    s.long = None;
    if let Tail::Forward(left) = s.tail {
        s.tail = Tail::Discard(left);
    }
}

/// The server has said what is wrong, and then that it ends the connection.
fn desynchronised(s: &mut Session) -> bool {
    if !s.relay.mid_frame() {
        let what = "terminating connection because protocol synchronization was lost".to_owned();
        s.fatal(&ClientError::ProtocolViolation { what });
    }
    false
}

struct Facts {
    node: NodeId,
    term: Term,
    doubt: Doubt,
    /// The server that the first unit had lost before, when it is not sent again for that.
    before: Option<NodeId>,
}

impl Facts {
    fn block(&self) -> ClientError {
        ClientError::BlockAborted { node: self.node.clone(), term: self.term }
    }
}

fn note(s: &Session, node: &NodeId, term: Term, loss: Loss) {
    let reason = match loss {
        Loss::Gone => "connection ended",
        Loss::Fatal(_) => "closed by the server",
        Loss::Deposed => "no longer of this role",
        Loss::ViewStale => "view of the cluster ran out",
        Loss::Refused(_) => "read refused by standby",
        Loss::Violation(what) => what,
        Loss::HoldTimeout => "held too long",
        Loss::Stuck => "cancelled statement not ended",
    };
    if !matches!(loss, Loss::Refused(_)) {
        bump(&s.w.counts.server_losses);
    }
    let sqlstate = match loss {
        Loss::Fatal(code) | Loss::Refused(code) => String::from_utf8_lossy(&code).into_owned(),
        Loss::Gone | Loss::Deposed | Loss::ViewStale | Loss::Violation(_) | Loss::HoldTimeout | Loss::Stuck => {
            String::new()
        }
    };
    let owed = s.relay.owed();
    tracing::debug!(%node, term = term.0, reason, sqlstate, owed, "server connection lost in a session");
}

/// A unit of a session that kept its server waited for the gate until its time was over.
fn hold_timeout(s: &mut Session) {
    let now = s.w.now();
    let since = now - s.w.config().hold_timeout;
    s.fail = Some(Failure::Error(super::acquire::hold_timeout(&s.w, None, since, now)));
    if s.lost_block.exists() {
        s.lost_block.tell();
    }
}

/// The entries of the next unit, up to what owes its ReadyForQuery.
fn take_unit(entries: &mut impl Iterator<Item = Entry>) -> Vec<Entry> {
    let mut unit = Vec::new();
    for entry in entries {
        let ends = entry.kind.owes_ready() && !entry.hidden;
        unit.push(entry);
        if ends {
            break;
        }
    }
    unit
}

/// All units from here on are sent again: they go back to the head of the inbox.
fn repeat(s: &mut Session, from: usize) {
    let mut again = s.retained.split_off(from);
    again.append(&mut s.inbox);
    s.inbox = again;
    s.rescan = true;
}

fn answer(s: &mut Session, verdict: Answer, unit: &[Entry], facts: &Facts) {
    let status = verdict.status().unwrap_or(TxStatus::Idle);
    let node = || facts.node.clone();
    let error = match verdict {
        Answer::RollbackDone => {
            succeed(s, unit, "ROLLBACK");
            None
        }
        Answer::Repeat if s.lost_pins.is_some() => Some(session_lost(s)),
        Answer::Repeat | Answer::ReadLost => Some(ClientError::ReadLost { node: node(), before: facts.before.clone() }),
        Answer::BlockAborted(_) => Some(facts.block()),
        Answer::InFailedBlock => Some(ClientError::InFailedTransaction),
        Answer::Unknown => Some(ClientError::CommitUnknown { node: node(), term: facts.term, doubt: facts.doubt }),
    };
    say(s, error, status, unit, facts);
}

/// The end of a unit, with an error or behind what was said already.
fn say(s: &mut Session, error: Option<ClientError>, status: TxStatus, unit: &[Entry], facts: &Facts) {
    if let Some(error) = error {
        s.error(&error);
    }
    let complete = unit.last().is_some_and(|e| e.kind.owes_ready());
    s.lost_block = match status {
        TxStatus::Failed => LostBlock::Told(Box::new(facts.block())),
        TxStatus::Idle | TxStatus::Block => LostBlock::None,
    };
    if complete {
        s.ready(status);
    } else {
        // The rest of the unit is on its way; its Sync gets the ReadyForQuery.
        s.skip = true;
    }
}

/// Answer the messages of a unit as if all had gone well.
fn succeed(s: &mut Session, unit: &[Entry], tag: &str) {
    s.to_client.append(|out| {
        for entry in unit.iter().filter(|e| !e.hidden) {
            match entry.kind {
                Kind::Parse | Kind::LocalParse => backend::write_bare(out, b'1'),
                Kind::Bind => backend::write_bare(out, b'2'),
                Kind::Close | Kind::LocalClose => backend::write_bare(out, b'3'),
                Kind::DescribePortal => backend::write_bare(out, b'n'),
                Kind::DescribeStatement => {
                    backend::write_no_parameters(out);
                    backend::write_bare(out, b'n');
                }
                Kind::Execute | Kind::Query => backend::write_command_complete(out, tag),
                Kind::Sync | Kind::Function | Kind::Mark | Kind::Position | Kind::Discard => {}
            }
        }
    });
}
