//! What a lost server means for what was sent to it.
//!
//! Two facts decide: the status of the last ReadyForQuery, and what was forwarded since. Each unit that owes a
//! ReadyForQuery (a Query, a FunctionCall, or extended messages up to their Sync) is kept as a [`Record`]: what it
//! does from each of the three states a transaction can be in. A part of a unit counts as the whole of it: bytes
//! handed to a socket may have been acted on.

use crate::sql::{Access, Control, Statement};
use crate::wire::backend::TxStatus;

/// What a unit does when it starts in one given state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Course {
    /// The state it starts in, and later the one it has reached.
    at: TxStatus,
    /// It may have reached the end of its block instead.
    or_idle: bool,
    /// It may have made something durable already.
    commits: bool,
    /// It wrote outside a block: the end of the unit commits that.
    pending: bool,
}

/// One unit, as far as its outcome goes. A few bytes, so that long pipelines stay small.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    courses: [Course; 3],
    /// Nothing in it is more than a proven read.
    reads_only: bool,
    /// It contains an explicit COMMIT, PREPARE TRANSACTION, or COMMIT or ROLLBACK PREPARED.
    pub commits_explicitly: bool,
    /// It contains a string of several in which a block ends.
    pub ends_within: bool,
    /// It executes statements, one of which is more than a proven read or block control.
    pub writes: bool,
    statements: Statements,
}

/// Where a server is behind what it was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct At {
    /// In this state,
    pub status: TxStatus,
    /// or in no block any more: that of a string in which blocks end and begin is not known.
    pub or_idle: bool,
}

impl From<TxStatus> for At {
    fn from(status: TxStatus) -> Self {
        Self { status, or_idle: false }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Statements {
    None,
    /// Exactly one, BEGIN.
    Begin,
    /// Exactly one, ROLLBACK without AND CHAIN.
    Rollback,
    /// Exactly one, COMMIT without AND CHAIN.
    Commit,
    Other,
}

impl Default for Record {
    fn default() -> Self {
        let course = |at| Course { at, or_idle: false, commits: false, pending: false };
        Self {
            courses: [course(TxStatus::Idle), course(TxStatus::Block), course(TxStatus::Failed)],
            reads_only: true,
            commits_explicitly: false,
            ends_within: false,
            writes: false,
            statements: Statements::None,
        }
    }
}

impl Record {
    /// Add a statement that is executed.
    pub fn execute(&mut self, s: &Statement) {
        let known = match s.control {
            Control::Begin(_) => Statements::Begin,
            Control::Rollback { chain: false } => Statements::Rollback,
            Control::Commit { chain: false } => Statements::Commit,
            Control::Empty => return,
            _ => Statements::Other,
        };
        self.statements = if self.statements == Statements::None { known } else { Statements::Other };
        self.reads_only &= s.access == Access::Read && matches!(s.control, Control::None);
        let ends = matches!(s.control, Control::Commit { .. } | Control::PrepareTransaction | Control::FinishPrepared);
        self.commits_explicitly |= ends;
        self.ends_within |= matches!(s.control, Control::Multi { ends: true, .. });
        self.writes |= s.access == Access::Write && !is_block_control(s.control);
        for course in &mut self.courses {
            course.step(s);
        }
    }

    /// Add what the other holds: a unit whose ReadyForQuery was swallowed by an error before it.
    pub fn absorb(&mut self, other: &Self) {
        self.reads_only &= other.reads_only;
        self.commits_explicitly |= other.commits_explicitly;
        self.ends_within |= other.ends_within;
        self.writes |= other.writes;
        if other.statements != Statements::None {
            self.statements = Statements::Other;
        }
        for (mine, theirs) in self.courses.iter_mut().zip(&other.courses) {
            mine.commits |= theirs.commits;
            mine.pending |= theirs.pending;
        }
    }

    /// Could sending this, from there, make something durable?
    pub fn may_commit(&self, from: impl Into<At>) -> bool {
        let commits = |course: &Course| course.commits || (course.pending && course.at == TxStatus::Idle);
        let At { status, or_idle } = from.into();
        commits(self.course(status)) || or_idle && commits(self.course(TxStatus::Idle))
    }

    /// Could it make something durable before its end?
    pub fn commits_by_itself(&self, status: TxStatus) -> bool {
        self.course(status).commits
    }

    /// Is it a COMMIT, without AND CHAIN, and nothing else?
    pub fn is_commit(&self) -> bool {
        self.statements == Statements::Commit
    }

    /// Is nothing in it more than a proven read?
    pub const fn is_read(&self) -> bool {
        self.reads_only
    }

    /// The same, sent to a standby: nothing of it can become durable.
    #[must_use]
    pub fn on_standby(mut self) -> Self {
        for course in &mut self.courses {
            (course.commits, course.pending) = (false, false);
        }
        // From outside a block it can be run again as a whole, a block of its own included.
        (self.reads_only, self.commits_explicitly, self.writes) = (true, false, false);
        self.ends_within = false;
        self
    }

    /// The same, of which its server has run nothing.
    #[must_use]
    pub fn unrun(mut self) -> Self {
        for course in &mut self.courses {
            (course.commits, course.pending) = (false, false);
        }
        self
    }

    /// The same, sent into a transaction that what was executed without a Sync has begun: the Sync of this one commits that, if
    /// it has one.
    #[must_use]
    pub fn in_implicit(mut self) -> Self {
        let [_, course, _] = &mut self.courses;
        (course.commits, course.or_idle) = (true, true);
        self
    }

    /// Does it neither begin nor end a block?
    pub fn stays(&self) -> bool {
        self.leads_to(TxStatus::Idle) == TxStatus::Idle && self.leads_to(TxStatus::Block) == TxStatus::Block
    }

    /// The state it leads to from `status` when nothing fails; a block where that is not certain.
    pub fn leads_to(&self, status: TxStatus) -> TxStatus {
        self.course(status).at
    }

    /// Where it leads to from there when nothing fails.
    pub fn from(&self, from: At) -> At {
        let (mut course, idle) = (*self.course(from.status), *self.course(TxStatus::Idle));
        if from.or_idle {
            course.or_idle |= idle.or_idle || idle.at == TxStatus::Idle || course.at == TxStatus::Idle;
            course.at = if course.at == TxStatus::Idle { idle.at } else { course.at };
        }
        At { status: course.at, or_idle: course.or_idle && course.at != TxStatus::Idle }
    }

    /// May it be sent again, when nothing of its answer has reached the client?
    pub fn repeatable(&self, status: TxStatus) -> bool {
        status == TxStatus::Idle && (self.reads_only || self.statements == Statements::Begin)
    }

    fn course(&self, status: TxStatus) -> &Course {
        &self.courses[match status {
            TxStatus::Idle => 0,
            TxStatus::Block => 1,
            TxStatus::Failed => 2,
        }]
    }
}

fn is_block_control(c: Control) -> bool {
    match c {
        Control::Begin(_)
        | Control::SetTransaction(_)
        | Control::Commit { .. }
        | Control::Rollback { .. }
        | Control::Savepoint
        | Control::RollbackTo
        | Control::Release
        | Control::Empty => true,
        Control::None
        | Control::PrepareTransaction
        | Control::FinishPrepared
        | Control::Deallocate
        | Control::DeallocateAll
        | Control::DiscardAll
        | Control::Discard
        | Control::Multi { .. } => false,
    }
}

impl Course {
    fn step(&mut self, s: &Statement) {
        match s.control {
            Control::Begin(_) => {
                if self.at == TxStatus::Idle {
                    // BEGIN adopts what the implicit transaction did so far, but what CALL, DO or CREATE DATABASE have
                    // committed by themselves.
                    self.commits |= self.pending;
                    (self.at, self.pending) = (TxStatus::Block, false);
                }
            }
            Control::Commit { chain } => {
                self.commits |= self.at != TxStatus::Failed;
                self.end(chain);
            }
            Control::Rollback { chain } => self.end(chain),
            Control::RollbackTo => {
                if self.at == TxStatus::Failed {
                    self.at = TxStatus::Block;
                }
            }
            Control::PrepareTransaction => {
                self.commits |= self.at != TxStatus::Failed;
                self.end(false);
            }
            Control::Multi { begins, ends, revives, over } => {
                // The order inside the string is not known, but for its end: assume the worst of it.
                let wrote = s.access == Access::Write;
                self.commits |= s.may_commit || (wrote && self.at == TxStatus::Idle && !begins);
                self.or_idle = ends && begins && !over;
                self.at = match self.at {
                    _ if ends && (!begins || over) => TxStatus::Idle,
                    _ if ends => TxStatus::Block,
                    TxStatus::Idle if begins => TxStatus::Block,
                    TxStatus::Failed if revives => TxStatus::Block,
                    at => at,
                };
            }
            Control::None
            | Control::Empty
            | Control::SetTransaction(_)
            | Control::Savepoint
            | Control::Release
            | Control::FinishPrepared
            | Control::Deallocate
            | Control::DeallocateAll
            | Control::DiscardAll
            | Control::Discard => {
                if self.at != TxStatus::Failed {
                    self.commits |= s.may_commit;
                    self.pending |= s.access == Access::Write && self.at == TxStatus::Idle;
                }
            }
        }
    }

    fn end(&mut self, chain: bool) {
        self.commits |= self.pending;
        self.at = if chain && self.at != TxStatus::Idle { TxStatus::Block } else { TxStatus::Idle };
        self.pending = false;
    }
}

/// What the client is told about one unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Nothing: it is sent again, to another server or once there is one.
    Repeat,
    /// ERROR 40001, status `I`: a read that was cut off.
    ReadLost,
    /// ERROR 40001, and the status behind it: `E`, or `I` when the unit itself ended the block.
    BlockAborted(TxStatus),
    /// ERROR 25P02, status `E`: inside the block that was reported lost by an earlier unit.
    InFailedBlock,
    /// Success, tag ROLLBACK, status `I`.
    RollbackDone,
    /// ERROR 08007, status `I`.
    Unknown,
}

impl Answer {
    /// The status that the client reads behind this answer; `None` when it gets none yet.
    pub const fn status(self) -> Option<TxStatus> {
        match self {
            Self::Repeat => None,
            Self::ReadLost | Self::RollbackDone | Self::Unknown => Some(TxStatus::Idle),
            Self::BlockAborted(status) => Some(status),
            Self::InFailedBlock => Some(TxStatus::Failed),
        }
    }
}

/// One answer per unit that was sent and not answered, oldest first.
///
/// `status` is that of the last ReadyForQuery; `delivered` says whether part of the first unit's answer has reached
/// the client already.
pub fn answers(status: TxStatus, sent: &[Record], delivered: bool) -> Vec<Answer> {
    let first = usize::from(delivered);
    if status == TxStatus::Idle && sent.iter().all(|r| r.reads_only)
        || matches!(sent, [only] if only.repeatable(status) && !delivered)
    {
        let mut out = vec![Answer::Repeat; sent.len()];
        out.iter_mut().zip(sent).take(first).for_each(|(a, record)| *a = one(status.into(), record, &[]));
        return out;
    }
    let mut out = Vec::with_capacity(sent.len());
    // What the server may have been through, and what the client has been told.
    let (mut at, mut told) = (At::from(status), None);
    for (i, record) in sent.iter().enumerate() {
        let answer = match told {
            Some(TxStatus::Failed) if commits_before_idle(at, &sent[i..]) => Answer::Unknown,
            Some(TxStatus::Failed) => in_failed_block(record),
            Some(TxStatus::Idle | TxStatus::Block) | None => one(at, record, &sent[i..]),
        };
        at = record.from(at);
        told = answer.status();
        out.push(answer);
    }
    out
}

/// Are all units from this one on to be sent again, and can they be? `kept` has the bytes that were kept of each, 0 of one that
/// was too long. Those behind it would be answered in its place.
pub fn are_sent_again<'a>(verdicts: &[Answer], kept: impl Iterator<Item = &'a usize>) -> bool {
    let lens = kept.copied().chain(std::iter::repeat(0));
    verdicts.iter().zip(lens).all(|(verdict, len)| *verdict == Answer::Repeat && len > 0)
}

fn one(at: At, record: &Record, rest: &[Record]) -> Answer {
    if commits_before_idle(at, rest) {
        return Answer::Unknown;
    }
    let At { status: at, .. } = at;
    match (at, record.statements) {
        (TxStatus::Block | TxStatus::Failed, Statements::Rollback) => Answer::RollbackDone,
        (TxStatus::Failed, Statements::Commit) => Answer::RollbackDone,
        (TxStatus::Idle, _) if record.leads_to(at) == TxStatus::Idle && !record.writes => Answer::ReadLost,
        (TxStatus::Failed, _) if record.leads_to(at) == TxStatus::Failed => Answer::InFailedBlock,
        _ => Answer::BlockAborted(match record.leads_to(at) {
            TxStatus::Idle => TxStatus::Idle,
            TxStatus::Block | TxStatus::Failed => TxStatus::Failed,
        }),
    }
}

fn in_failed_block(record: &Record) -> Answer {
    match record.statements {
        Statements::Rollback | Statements::Commit => Answer::RollbackDone,
        Statements::None | Statements::Begin | Statements::Other => Answer::InFailedBlock,
    }
}

/// May the transaction that is open at the start of `rest` be made durable by it?
fn commits_before_idle(mut at: At, rest: &[Record]) -> bool {
    for record in rest {
        if record.may_commit(at) {
            return true;
        }
        at = record.from(at);
        if at.status == TxStatus::Idle {
            return false;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sql::{FunctionTable, LexRules, Modes, Names, Pins, classify};

    const PLAIN: Statement = Statement {
        access: Access::Write,
        quiet: false,
        strange: false,
        control: Control::None,
        may_commit: false,
        pins: Pins::NONE,
        unpins: false,
        advisory: false,
        ours: false,
        aside: false,
        local: crate::sql::Local::Nothing,
        names: Names::None,
    };

    /// The statements of the tables below, by one word each.
    fn statement(word: &str) -> Statement {
        let with = |control| Statement { control, ..PLAIN };
        match word {
            "read" => Statement { access: Access::Read, ..PLAIN },
            "write" => PLAIN,
            "begin" => with(Control::Begin(Modes::default())),
            "commit" => Statement { may_commit: true, ..with(Control::Commit { chain: false }) },
            "rollback" => with(Control::Rollback { chain: false }),
            "rollback-and-chain" => with(Control::Rollback { chain: true }),
            "rollback-to" => with(Control::RollbackTo),
            "savepoint" => with(Control::Savepoint),
            "prepare-transaction" => Statement { may_commit: true, ..with(Control::PrepareTransaction) },
            "do" => Statement { may_commit: true, ..PLAIN },
            "empty" => Statement { access: Access::Read, ..with(Control::Empty) },
            // A string of several.
            text => classify(text.replace('_', " ").as_bytes(), &FunctionTable::unloaded(), LexRules::STANDARD),
        }
    }

    /// `sent`: units separated by `|`, statements by blanks.
    fn check(status: char, sent: &str, delivered: bool) -> String {
        check_at(status, sent, delivered, |record| record)
    }

    fn check_at(status: char, sent: &str, delivered: bool, server: fn(Record) -> Record) -> String {
        let status = TxStatus::from_byte(status as u8).unwrap();
        let units = sent.split('|').filter(|u| !u.is_empty());
        let records: Vec<Record> = units
            .map(|unit| {
                let mut r = Record::default();
                unit.split_whitespace().for_each(|w| r.execute(&statement(w)));
                server(r)
            })
            .collect();
        let words = answers(status, &records, delivered).into_iter().map(|a| match a {
            Answer::Repeat => "repeat",
            Answer::ReadLost => "40001 I",
            Answer::BlockAborted(TxStatus::Failed) => "40001 E",
            Answer::BlockAborted(_) => "40001 I",
            Answer::InFailedBlock => "25P02 E",
            Answer::RollbackDone => "rollback I",
            Answer::Unknown => "08007 I",
        });
        words.collect::<Vec<_>>().join(", ")
    }

    #[test]
    fn a_lost_server_is_explained_by_the_last_status_and_what_was_sent() {
        for (status, sent, want) in [
            // A proven read of which nothing reached the client runs again elsewhere.
            ('I', "read", "repeat"),
            ('I', "read|read", "repeat, repeat"),
            ('I', "begin", "repeat"),
            ('I', "", ""),
            ('I', "empty", "repeat"),
            // Every autocommit write is in doubt, however many statements it has.
            ('I', "write", "08007 I"),
            ('I', "read write", "08007 I"),
            ('I', "delete_from_t;delete_from_t", "08007 I"),
            ('I', "do", "08007 I"),
            ('I', "commit", "08007 I"),
            ('I', "read|write", "40001 I, 08007 I"),
            ('I', "write|read", "08007 I, 40001 I"),
            // A block with nothing sent that could commit it.
            ('T', "write", "40001 E"),
            ('T', "read", "40001 E"),
            ('T', "delete_from_t;delete_from_t", "40001 E"),
            ('T', "savepoint", "40001 E"),
            ('T', "rollback-to", "40001 E"),
            ('T', "write|read", "40001 E, 25P02 E"),
            ('T', "rollback-and-chain", "40001 E"),
            ('I', "begin write", "40001 E"),
            // What commits by itself is committed before a BEGIN or ROLLBACK of the same unit.
            ('I', "write begin", "08007 I"),
            ('I', "call_p() begin", "08007 I"),
            ('I', "call_p() rollback", "08007 I"),
            ('T', "call_p()", "40001 E"),
            ('I', "begin|write", "40001 E, 25P02 E"),
            // A ROLLBACK in flight is done.
            ('T', "rollback", "rollback I"),
            ('E', "rollback", "rollback I"),
            ('T', "write|rollback", "40001 E, rollback I"),
            ('T', "write rollback", "40001 I"),
            // A COMMIT of a failed block is a ROLLBACK.
            ('E', "commit", "rollback I"),
            ('E', "write", "25P02 E"),
            // Anything that may commit is in doubt, and with it what comes before in the same transaction.
            ('T', "commit", "08007 I"),
            ('T', "prepare-transaction", "08007 I"),
            ('T', "do", "08007 I"),
            ('T', "delete_from_t;commit", "08007 I"),
            ('T', "write|commit", "08007 I, 08007 I"),
            ('I', "begin write commit", "08007 I"),
            ('I', "begin|write|commit", "08007 I, 08007 I, 08007 I"),
            ('T', "rollback write", "08007 I"),
            ('T', "rollback|write", "rollback I, 08007 I"),
            ('E', "rollback-to commit", "08007 I"),
            ('E', "rollback-to|commit", "08007 I, 08007 I"),
            ('E', "rollback|write", "rollback I, 08007 I"),
            // Whatever is behind the end of the block in a string is committed with it.
            ('T', "rollback;delete_from_t", "08007 I"),
            ('E', "rollback;delete_from_t", "08007 I"),
            ('I', "begin;delete_from_t;rollback;delete_from_t", "08007 I"),
            ('T', "abort;begin;delete_from_t", "40001 E"),
            ('T', "abort;begin;delete_from_t|commit", "08007 I, 08007 I"),
            ('T', "rollback_and_chain;delete_from_t", "40001 E"),
            ('T', "delete_from_t;rollback", "40001 I"),
            ('T', "rollback;select_1", "40001 I"),
            ('T', "rollback_to_s;delete_from_t", "40001 E"),
            ('E', "rollback_to_s;delete_from_t", "40001 E"),
            ('E', "rollback_to_s;delete_from_t|commit", "08007 I, 08007 I"),
            ('T', "rollback;select_U&'x';delete_from_t", "08007 I"),
            // And what is sent behind the string is in no block.
            ('T', "commit;select_1|write", "08007 I, 08007 I"),
            ('I', "begin;delete_from_t;commit|write", "08007 I, 08007 I"),
            ('T', "rollback;select_1|write", "40001 I, 08007 I"),
            // Nor is a block open behind a string that holds whole ones.
            ('I', "begin;delete_from_t;commit|read", "08007 I, 40001 I"),
            ('I', "begin;delete_from_t;commit|read|read", "08007 I, 40001 I, 40001 I"),
            ('T', "commit;begin;delete_from_t;commit|read", "08007 I, 40001 I"),
            ('I', "begin;delete_from_t;rollback", "40001 I"),
            ('I', "begin;delete_from_t;rollback|read|write", "40001 I, 40001 I, 08007 I"),
            ('T', "rollback;begin;delete_from_t;rollback|commit", "40001 I, 08007 I"),
            ('I', "begin;delete_from_t;commit;begin|read", "08007 I, 40001 E"),
            ('I', "begin;delete_from_t;commit_and_chain|read", "08007 I, 40001 E"),
            ('I', "begin;delete_from_t;commit_and_chain|commit", "08007 I, 08007 I"),
        ] {
            assert_eq!(check(status, sent, false), want, "{status} {sent}");
        }
    }

    #[test]
    fn a_lost_standby_leaves_no_doubt() {
        for (status, sent, delivered, want) in [
            ('I', "read", false, "repeat"),
            ('I', "begin read", false, "repeat"),
            ('I', "begin read commit", false, "repeat"),
            ('I', "begin read", true, "40001 E"),
            ('I', "begin read commit", true, "40001 I"),
            ('T', "read", false, "40001 E"),
            ('T', "write", false, "40001 E"),
            ('T', "commit", false, "40001 I"),
            ('T', "read commit", false, "40001 I"),
            ('T', "rollback", false, "rollback I"),
            ('E', "commit", false, "rollback I"),
        ] {
            assert_eq!(check_at(status, sent, delivered, Record::on_standby), want, "{status} {sent}");
        }
    }

    #[test]
    fn what_an_idle_server_has_not_looked_at_leaves_no_doubt() {
        for (status, sent, want) in [
            ('I', "read", "repeat"),
            ('I', "begin", "repeat"),
            ('I', "write", "40001 I"),
            ('I', "call_p()", "40001 I"),
            ('I', "write|write", "40001 I, 40001 I"),
            // What follows a BEGIN must not run outside of its block.
            ('I', "begin|write", "40001 E, 25P02 E"),
            ('I', "begin|write|commit", "40001 E, 25P02 E, rollback I"),
            ('T', "write", "40001 E"),
            ('T', "commit", "40001 I"),
            ('T', "write|commit", "40001 E, rollback I"),
            ('E', "rollback|write", "rollback I, 40001 I"),
        ] {
            assert_eq!(check_at(status, sent, false, Record::unrun), want, "{status} {sent}");
        }
    }

    #[test]
    fn nothing_is_sent_again_before_what_was_too_long_to_be_kept() {
        let reads = [Answer::Repeat; 4];
        let from = |kept: &[usize]| (0..4).map(|i| are_sent_again(&reads[i..], kept[i..].iter())).collect::<Vec<_>>();
        assert_eq!(from(&[9, 9, 9, 9]), [true; 4]);
        // The fourth would be answered in place of the third.
        assert_eq!(from(&[9, 9, 0, 9]), [false, false, false, true]);
        assert!(!are_sent_again(&reads, [9, 9, 9].iter()), "of one nothing was begun");
        assert!(!are_sent_again(&[Answer::ReadLost, Answer::Repeat], [9, 9].iter()));
    }

    #[test]
    fn what_reached_the_client_is_not_run_again() {
        assert_eq!(check('I', "read", true), "40001 I");
        assert_eq!(check('I', "read|read", true), "40001 I, repeat");
        assert_eq!(check('I', "write", true), "08007 I");
        assert_eq!(check('T', "read", true), "40001 E");
        assert_eq!(check('I', "begin", true), "40001 E");
    }
}
