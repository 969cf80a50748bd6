//! What a statement does beyond reading and writing: to the transaction block, and to the session.

use super::bodies::Used;
use super::keyword::Keyword as K;
use super::{Control, Isolation, Local, Modes, Names, PinReason, Pins};

/// How many leading words are kept: `CREATE OR REPLACE LOCAL TEMP` is the longest run that matters.
const HEAD: usize = 6;

/// What stopped the run of leading words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// The end of the statement, or the run is full.
    End,
    /// A literal.
    Literal,
    /// A dot or an operator: the word before it is a name.
    NamePart,
    /// Anything else.
    Other,
}

/// The leading words of a statement, and the word pairs met anywhere in it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Head {
    words: [K; HEAD],
    len: usize,
    stop: Option<Stop>,
    /// The modes of a transaction that came by.
    pub(super) modes: Modes,
    /// `AND CHAIN` came by.
    pub(super) chain: bool,
    /// `WITH HOLD` came by.
    pub(super) with_hold: bool,
    /// `INTO TEMP` came by, not as the target of an INSERT.
    pub(super) into_temp: bool,
    /// A name in the session's temporary schema came by.
    pub(super) pg_temp: bool,
    /// What the functions that are called leave in the session.
    pub(super) calls: Pins,
    /// A function that may end what binds the session is called.
    pub(super) unlocks: bool,
    /// A function of advisory locks is called.
    pub(super) advisory: bool,
    /// Something in it changes rows.
    pub(super) changes: bool,
    /// What it calls, or uses otherwise, may set something for the transaction.
    pub(super) local: Local,
    /// What the relations that are named leave in the session when they are changed, whether that may end something, and
    /// what it sets for the transaction.
    changed: (Pins, bool, Local),
}

impl Head {
    pub(super) fn new() -> Self {
        Self {
            words: [K::None; HEAD],
            len: 0,
            stop: None,
            modes: Modes::default(),
            chain: false,
            with_hold: false,
            into_temp: false,
            pg_temp: false,
            calls: Pins::NONE,
            unlocks: false,
            advisory: false,
            changes: false,
            local: Local::Nothing,
            changed: (Pins::NONE, false, Local::Nothing),
        }
    }

    /// A word of the statement.
    pub(super) fn word(&mut self, word: K) {
        if self.stop.is_none() {
            if self.len < HEAD {
                self.words[self.len] = word;
                self.len += 1;
            } else {
                self.stop = Some(Stop::End);
            }
        }
    }

    /// Something that is not a word.
    pub(super) fn stop(&mut self, stop: Stop) {
        self.stop.get_or_insert(stop);
    }

    /// A word and the two before it.
    pub(super) fn pair(&mut self, before: [K; 2], word: K) {
        match (before[1], word) {
            (K::Read, K::Only) => self.modes.read_only = Some(true),
            (K::Read, K::Write) => self.modes.read_only = Some(false),
            (K::Read, K::Committed) => self.modes.isolation = Some(Isolation::ReadCommitted),
            (K::Read, K::Uncommitted) => self.modes.isolation = Some(Isolation::ReadUncommitted),
            (K::Repeatable, K::Read) => self.modes.isolation = Some(Isolation::RepeatableRead),
            (_, K::Serializable) => self.modes.isolation = Some(Isolation::Serializable),
            (before, K::Deferrable) => self.modes.deferrable = Some(before != K::Not),
            (K::And, K::Chain) => self.chain = true,
            (K::With, K::Hold) => self.with_hold = true,
            (K::Into, K::Temp) => self.into_temp |= !matches!(before[0], K::Insert | K::Merge),
            (K::Local | K::Global, K::Temp) => self.into_temp |= before[0] == K::Into,
            _ => {}
        }
    }

    /// A function call: does it leave something in the session?
    pub(super) fn call(&mut self, name: &[u8]) {
        let reason = match name {
            b"setseed" => PinReason::Seed,
            b"pg_advisory_lock" | b"pg_advisory_lock_shared" => PinReason::AdvisoryLock,
            b"pg_try_advisory_lock" | b"pg_try_advisory_lock_shared" => PinReason::AdvisoryLock,
            b"dblink_connect" | b"dblink_connect_u" => PinReason::Dblink,
            b"currval" | b"lastval" => PinReason::Sequence,
            // Of pg_trgm: it changes a setting.
            b"set_limit" => PinReason::Set,
            // Of isn, and the server's own.
            b"isn_weak" | b"pg_replication_origin_session_setup" | b"pg_backup_start" | b"pg_start_backup" => {
                PinReason::Extension
            }
            // A temporary one is the server's, and others cannot use it; whether it is one an argument says.
            b"pg_create_logical_replication_slot"
            | b"pg_create_physical_replication_slot"
            | b"pg_copy_logical_replication_slot"
            | b"pg_copy_physical_replication_slot" => PinReason::Extension,
            _ => {
                self.unlocks |= name.starts_with(b"pg_advisory_unlock");
                self.advisory |= name.starts_with(b"pg_advisory_") || name.starts_with(b"pg_try_advisory_");
                return;
            }
        };
        self.advisory |= reason == PinReason::AdvisoryLock;
        self.calls.add(reason);
    }

    /// A relation is named whose use leaves something in the session.
    #[cold]
    pub(super) fn relation(&mut self, used: &Used) {
        self.calls.join(used.read.pins);
        self.unlocks |= used.read.unpins;
        self.advisory |= used.read.advisory;
        self.changed.0.join(used.changed.pins);
        self.changed.1 |= used.changed.unpins;
        self.local = self.local.max(used.read.local);
        self.changed.2 = self.changed.2.max(used.changed.local);
    }

    /// `pg_settings` is named: to change it is to change settings.
    pub(super) fn settings_named(&mut self) {
        self.changed.0.add(PinReason::Set);
    }

    /// What the functions leave that are called, and the relations that are used.
    pub(super) fn left(&self) -> Pins {
        let mut pins = self.calls;
        if self.changes {
            pins.join(self.changed.0);
        }
        pins
    }

    /// `set_config` is called, for the transaction only or not.
    pub(super) fn sets(&mut self, for_transaction: bool) {
        if for_transaction {
            self.local = self.local.max(Local::Named);
        } else {
            self.calls.add(PinReason::Set);
        }
    }

    fn second(&self) -> K {
        self.words[1]
    }

    fn words(&self) -> &[K] {
        &self.words[..self.len]
    }

    /// Does it contain what could commit? COMMIT PREPARED is counted too: harmless, and simpler to trust.
    pub(super) fn may_commit(&self) -> bool {
        match self.words[0] {
            K::Commit | K::End => true,
            K::Prepare => self.second() == K::Transaction,
            _ => false,
        }
    }

    /// Is it BEGIN or START TRANSACTION?
    pub(super) fn begins(&self) -> bool {
        matches!(self.words[0], K::Begin | K::Start)
    }

    /// What it does to the transaction block.
    pub(super) fn control(&self) -> Control {
        match self.words[0] {
            K::Begin | K::Start => Control::Begin(self.modes),
            K::Set if self.is_set_transaction() => Control::SetTransaction(self.modes),
            K::Commit | K::Rollback | K::End | K::Abort if self.second() == K::Prepared => Control::FinishPrepared,
            K::Commit | K::End => Control::Commit { chain: self.chain },
            K::Rollback | K::Abort if self.words().contains(&K::To) => Control::RollbackTo,
            K::Rollback | K::Abort => Control::Rollback { chain: self.chain },
            K::Savepoint => Control::Savepoint,
            K::Release => Control::Release,
            K::Prepare if self.is_prepare_transaction() => Control::PrepareTransaction,
            K::Deallocate if self.words().get(1..3).is_some_and(|w| w == [K::Prepare, K::All]) => {
                Control::DeallocateAll
            }
            K::Deallocate if self.second() == K::All => Control::DeallocateAll,
            K::Deallocate => Control::Deallocate,
            K::Discard if self.second() == K::All => Control::DiscardAll,
            K::Discard => Control::Discard,
            _ => Control::None,
        }
    }

    /// What it does with prepared statements by its verb.
    pub(super) fn names(&self) -> Names {
        match self.words[0] {
            K::Prepare if !self.is_prepare_transaction() => Names::Prepare,
            K::Deallocate | K::Discard => match self.control() {
                Control::Deallocate => Names::Deallocate,
                Control::DeallocateAll | Control::DiscardAll => Names::All,
                _ => Names::None,
            },
            _ => Names::None,
        }
    }

    /// What it leaves in the session.
    pub(super) fn pins(&self) -> Pins {
        let own = match self.words[0] {
            K::Set => (!self.is_set_of_transaction()).then_some(PinReason::Set),
            K::Reset => Some(PinReason::Set),
            K::Discard => (self.second() == K::All).then_some(PinReason::Set),
            K::Listen => Some(PinReason::Listen),
            K::Load => Some(PinReason::Load),
            K::Declare => self.with_hold.then_some(PinReason::HeldCursor),
            K::Create => (self.is_create_temp() || self.pg_temp).then_some(PinReason::Temp),
            _ => None,
        };
        let mut pins = self.left();
        for reason in own.into_iter().chain((self.into_temp || self.pg_temp).then_some(PinReason::Temp)) {
            pins.add(reason);
        }
        pins
    }

    /// May it end what binds the session to its server? What ends with its transaction is not meant.
    pub(super) fn unpins(&self) -> bool {
        let verb = self.words[0];
        self.unlocks
            || self.changes && self.changed.1
            || matches!(verb, K::Close | K::Deallocate | K::Discard | K::Drop | K::Unlisten | K::Do | K::Call)
    }

    /// What it may set for its transaction only.
    pub(super) fn local(&self) -> Local {
        let sets = self.words[0] == K::Set && self.second() == K::Local && self.is_set_of_transaction();
        let own = if sets { Local::Named } else { Local::Nothing };
        let of_rows = if self.changes { self.changed.2 } else { Local::Nothing };
        own.max(self.local).max(of_rows)
    }

    /// `SET LOCAL`, `SET TRANSACTION`, `SET CONSTRAINTS`; not a setting that is named like one of them.
    fn is_set_of_transaction(&self) -> bool {
        let named_so = self.len == 2 && self.stop == Some(Stop::NamePart) || self.words.get(2) == Some(&K::To);
        matches!(self.second(), K::Local | K::Transaction | K::Constraints) && !named_so
    }

    /// `SET TRANSACTION` and modes: not a setting of that name, and not the import of a snapshot.
    fn is_set_transaction(&self) -> bool {
        let modes = self.modes != Modes::default() && !matches!(self.stop, Some(Stop::Literal | Stop::NamePart));
        self.second() == K::Transaction && self.is_set_of_transaction() && modes
    }

    /// `PREPARE TRANSACTION 'gid'`; a statement may be named `transaction`.
    fn is_prepare_transaction(&self) -> bool {
        self.len == 2 && self.second() == K::Transaction && self.stop == Some(Stop::Literal)
    }

    /// `CREATE [OR REPLACE] [GLOBAL | LOCAL] { TEMP | TEMPORARY } …`
    fn is_create_temp(&self) -> bool {
        let mut rest = &self.words()[1..];
        if let [K::Or, K::Replace, tail @ ..] = rest {
            rest = tail;
        }
        if let [K::Global | K::Local, tail @ ..] = rest {
            rest = tail;
        }
        matches!(rest, [K::Temp, ..])
    }
}

/// A call of `set_config` whose arguments are being read: with a plain `true` as the third it lasts for the
/// transaction only, as SET LOCAL.
#[derive(Clone, Copy, Debug)]
pub(super) struct SetConfig {
    /// Depth of its arguments.
    depth: u32,
    commas: u32,
    third: Third,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Third {
    Nothing,
    True,
    Other,
}

impl SetConfig {
    /// A call whose arguments begin at `depth`.
    pub(super) fn new(depth: u32) -> Self {
        Self { depth, commas: 0, third: Third::Nothing }
    }

    /// A comma at `depth`.
    pub(super) fn comma(&mut self, depth: u32) {
        self.commas += u32::from(depth == self.depth);
    }

    /// Anything else among its arguments.
    pub(super) fn token(&mut self, is_true: bool) {
        if self.commas == 2 {
            self.third = if is_true && self.third == Third::Nothing { Third::True } else { Third::Other };
        }
    }

    /// A parenthesis closed, back to `depth`. `Some` when that ended the call: is it for the transaction only?
    pub(super) fn close(&mut self, depth: u32) -> Option<bool> {
        if depth >= self.depth {
            self.token(false);
            return None;
        }
        Some(self.commas == 2 && self.third == Third::True)
    }
}
