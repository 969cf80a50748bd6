//! What was forwarded and not answered: one entry a message, with what to take back when it fails.

use crate::session::outcome::Record;
use crate::session::statements::{Named, Text, Unnamed};
use crate::wire::error_response::ClientError;
use std::rc::Rc;

/// What was forwarded, or answered in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Parse.
    Parse,
    /// Bind.
    Bind,
    /// Describe of a statement.
    DescribeStatement,
    /// Describe of a portal.
    DescribePortal,
    /// Execute.
    Execute,
    /// Close.
    Close,
    /// Sync.
    Sync,
    /// Query.
    Query,
    /// FunctionCall.
    Function,
    /// A Parse that needs no server: ParseComplete is ours.
    LocalParse,
    /// A Close that needs no server: CloseComplete is ours.
    LocalClose,
}

impl Kind {
    /// Does it owe a ReadyForQuery?
    pub const fn owes_ready(self) -> bool {
        matches!(self, Self::Sync | Self::Query | Self::Function)
    }
}

/// What to take back when a message fails or is skipped.
#[derive(Clone, Debug, Default)]
pub enum Undo {
    /// Nothing.
    #[default]
    None,
    /// The unnamed statement was replaced or destroyed. What the client had, and which one the server had; the outer
    /// `None` where nothing was changed.
    Unnamed {
        /// The client's.
        client: Option<Option<Unnamed>>,
        /// The serial of the server's.
        server: Option<Option<u64>>,
    },
    /// A client's statement was registered under this name.
    Registered(Box<[u8]>),
    /// A client's statement was removed.
    Removed(Named),
    /// A text was to be prepared on the server; for a named Parse also the client's name.
    Prepared(Rc<Text>, Option<Box<[u8]>>),
    /// A statement was to be closed on the server: its number and its name there.
    Closed(u64, Box<[u8]>),
    /// A client's statement of this name had this text, before its session's settings changed.
    Moved(Rc<[u8]>, Rc<Text>),
    /// A client's statement was removed and was to be closed on the server, where it has the same name.
    RemovedOwn(Named),
}

impl Undo {
    /// Does it change which statements there are under a name, the client's or ours?
    pub(super) const fn names(&self) -> bool {
        match self {
            Self::Registered(_) | Self::Removed(..) | Self::RemovedOwn(..) | Self::Prepared(..) | Self::Closed(..) => {
                true
            }
            Self::None | Self::Unnamed { .. } | Self::Moved(..) => false,
        }
    }

    /// What is left of it for a server that has done what it was told.
    pub(super) fn of_client(self) -> Self {
        match self {
            Self::Prepared(_, Some(name)) => Self::Registered(name),
            Self::Unnamed { client, .. } => Self::Unnamed { client, server: None },
            Self::RemovedOwn(named) => Self::Removed(named),
            Self::Prepared(_, None) | Self::Closed(..) => Self::None,
            Self::None | Self::Registered(_) | Self::Removed(..) | Self::Moved(..) => self,
        }
    }
}

/// A shared statement that a message names.
#[derive(Clone, Debug)]
pub struct Use {
    /// What it is.
    pub text: Rc<Text>,
    /// The client's name for it.
    pub name: Rc<[u8]>,
    /// The client uses it for the first time.
    pub first: bool,
    /// It was prepared under other settings than the client has now: how it fails says nothing about it.
    pub foreign: bool,
}

/// A message whose answer is owed.
#[derive(Clone, Debug)]
pub struct Entry {
    /// What it is.
    pub kind: Kind,
    /// Injected by us: its answer is not for the client.
    pub hidden: bool,
    /// For what owes a ReadyForQuery: what its unit does.
    pub record: Option<Record>,
    /// What to take back when it fails.
    pub undo: Undo,
    /// It is bound to fail, and this is the error to report in place of the server's.
    pub refusal: Option<Box<ClientError>>,
    /// The shared statement it names.
    pub uses: Option<Use>,
}

impl Entry {
    /// A message of the client without more to it.
    pub const fn plain(kind: Kind) -> Self {
        Self { kind, hidden: false, record: None, undo: Undo::None, refusal: None, uses: None }
    }
}

/// Statements that outlive a DEALLOCATE ALL, because they were prepared behind it.
#[derive(Debug, Default)]
pub struct Survivors {
    /// By the client's names.
    pub names: Vec<Box<[u8]>>,
    /// By their numbers on the server.
    pub ids: Vec<u64>,
}
