//! How far a check goes, and which protection is taken away.

use crate::wal::Numbering;

/// Bounds of a check. Everything within them is explored.
#[derive(Clone, Copy, Debug)]
pub struct Scope {
    /// Copies besides the primary's; 0: async mode.
    pub k: u8,
    /// Highest term: one more than the number of failovers.
    pub terms: u8,
    /// Commits that clients send.
    pub writes: u8,
    /// Records that a primary writes of its own accord, such as a checkpoint.
    pub noise: u8,
    /// Hosts or agents that crash.
    pub crashes: u8,
    /// Answers that are lost: of agents to managers, and of etcd to either.
    pub lost: u8,
    /// Rounds that another manager goes on with while the one before it still acts.
    pub leads: u8,
    /// May recruits receive from others what they lack?
    pub catch_up: bool,
    /// Connections that standbys leave and that count on. With these slots are there, too.
    pub reconnects: u8,
    /// Waits of commits that are cancelled.
    pub cancels: u8,
    /// May etcd be lost to the primary whose lease is its fence, so that the others sign for it?
    pub signatures: bool,
    /// May etcd be restored, once, from a backup that was taken while a term was open? Not together with changes.
    pub restores: bool,
    /// Changes of the policy.
    pub change: Change,
    /// The protection taken away.
    pub without: Option<Protection>,
    /// Do not tell nodes apart that differ by name only. A counterexample then changes names midway.
    pub symmetric: bool,
}

/// What an operator, or the primary's agent, does to the policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Nothing.
    None,
    /// Suspends protection and restores it.
    Suspension,
    /// As suspension, in available mode: within a term knowingly, and with its opening where nobody follows.
    Available,
    /// As available mode, and while commits are let through one more votes or one less. All but the last node vote at first.
    Replaced,
    /// Changes k to this.
    Copies(u8),
    /// All but the last node vote at first. One more does and k becomes this; then one less, with k as before.
    Voters(u8),
}

/// What the protocol rests on. Each can be taken away to see that the properties notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protection {
    /// An agent's promise is on disk before it answers.
    PromiseFsync,
    /// T1 compares the policy.
    BeginPolicyCompare,
    /// T2 compares the policy.
    ChoicePolicyCompare,
    /// Both of the two.
    PolicyCompare,
    /// T1 compares the term's record.
    TermCompare,
    /// T5 compares the term's record.
    ChangeTermCompare,
    /// T5 compares the policy and the term's record.
    ChangeCompare,
    /// T3 waits for the term's record on k standbys.
    RecordWait,
    /// A timeline's number is its term's.
    TimelineIsTerm,
    /// While k changes a failover satisfies the old rule and the new one.
    JointRule,
    /// Who loses its vote while commits are let through leaves behind others that have all that was promised.
    Owed,
    /// A freeze ends the WAL receiver.
    ReceiverKill,
    /// A primary that was restarted goes through a new term.
    RestartGate,
    /// Whoever follows a term's primary has promised the term.
    FollowPromises,
    /// m − k recruits.
    Quorum,
    /// A node that was rewound counts for nothing until it has replayed what it once held.
    Quarantine,
    /// Beside a node that was chosen in a term since the last open one it is counted, but nowhere else.
    ChosenThere,
    /// Without protected commits T3 waits until no proxy acts on an older view.
    ViewWait,
    /// T2 compares the term's record: of several managers that make one term, one chooses.
    ChoiceCompare,
    /// Who is told to receive from a recruit is frozen for that term.
    CatchUpFrozen,
    /// It receives from a recruit, and from nobody else.
    CatchUpRecruit,
    /// A commit whose wait was cancelled is told as of unknown outcome.
    CancelUnknown,
    /// Nobody but a node acknowledges under its name.
    UniqueNames,
    /// Where two or more confirm a commit each streams through a slot, which one connection has at a time.
    Slots,
    /// So it is before two may confirm one.
    SlotsFirst,
    /// Who has signed for a term answers no freeze of a later one before that is over.
    SignatureBinds,
    /// All others sign, not just most.
    AllSign,
    /// After etcd was restored from a backup a term begins above all promises.
    AboveThePromised,
    /// Then it freezes as many as suffice whoever was primary last.
    AnyPrimary,
}

impl Scope {
    /// m = 3, k = 1, two failovers, two crashes, two lost answers, two writes.
    pub const fn three() -> Self {
        Self {
            k: 1,
            terms: 3,
            writes: 2,
            noise: 0,
            crashes: 2,
            lost: 2,
            leads: 0,
            catch_up: false,
            reconnects: 0,
            cancels: 0,
            signatures: false,
            restores: false,
            change: Change::None,
            without: None,
            symmetric: true,
        }
    }

    /// Is this protection gone?
    pub fn lacks(&self, protection: Protection) -> bool {
        let both = matches!(protection, Protection::BeginPolicyCompare | Protection::ChoicePolicyCompare);
        self.without == Some(protection) || both && self.without == Some(Protection::PolicyCompare)
    }

    /// How timelines are numbered.
    pub fn numbering(&self) -> Numbering {
        if self.lacks(Protection::TimelineIsTerm) { Numbering::Next } else { Numbering::Term }
    }
}
