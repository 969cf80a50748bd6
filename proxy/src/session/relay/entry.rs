//! What was forwarded and not answered: one entry a message, with what to take back when it fails.

use crate::session::outcome::Record;
use crate::session::statements::{ByName, Named, ServerStatements, Text, Unnamed};
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
    /// A Query of ours in front of a COMMIT, that marks it.
    Mark,
    /// A Query of ours behind what may have committed, for the primary's position.
    Position,
    /// A Query of ours in front of what may draw from sequences, that discards what was drawn before.
    Discard,
}

impl Kind {
    /// Does it owe a ReadyForQuery?
    pub const fn owes_ready(self) -> bool {
        matches!(self, Self::Sync | Self::Query | Self::Function | Self::Mark | Self::Position | Self::Discard)
    }
}

/// What the client had as its unnamed statement, where that was changed.
type Client = Option<Option<Unnamed>>;
/// The serial of the server's, where that was changed.
type Server = Option<Option<u64>>;

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
        client: Client,
        /// The serial of the server's.
        server: Server,
        /// The text is none in UTF-8: a server that cannot read it leaves the unnamed statement as it was.
        illegible: bool,
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
    /// A client's statement was left to the server, which may have dropped it: its number and its name there. Taken back
    /// only when the server has not looked at what might.
    LetGo(Named, Option<(u64, Box<[u8]>)>),
    /// Everything was to be dropped: what the client had, and the server unless it has done so.
    Forgotten(Box<(ByName, Option<ServerStatements>)>),
    /// Several of these, the last first.
    All(Vec<Undo>),
}

impl Undo {
    /// Does it change which statements there are under a name, the client's or ours?
    pub(super) fn names(&self) -> bool {
        match self {
            Self::Registered(_)
            | Self::Removed(..)
            | Self::RemovedOwn(..)
            | Self::Prepared(..)
            | Self::LetGo(..)
            | Self::Forgotten(..)
            | Self::Closed(..) => true,
            Self::All(all) => all.iter().any(Self::names),
            Self::None | Self::Unnamed { .. } | Self::Moved(..) => false,
        }
    }

    /// The client's name that it would take back, if any.
    pub(super) fn registers(&self) -> Option<&[u8]> {
        match self {
            Self::Registered(name) | Self::Prepared(_, Some(name)) => Some(name),
            Self::All(all) => all.iter().find_map(Self::registers),
            Self::None
            | Self::Unnamed { .. }
            | Self::Removed(..)
            | Self::Prepared(_, None)
            | Self::Closed(..)
            | Self::Moved(..)
            | Self::RemovedOwn(..)
            | Self::LetGo(..)
            | Self::Forgotten(..) => None,
        }
    }

    /// This and another one.
    pub fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::None, one) | (one, Self::None) => one,
            (Self::All(mut all), other) => {
                all.push(other);
                Self::All(all)
            }
            (one, other) => Self::All(vec![one, other]),
        }
    }

    /// The change of the unnamed statement among them: the client's and the server's.
    pub(super) fn unnamed(&mut self) -> Option<(&mut Client, &mut Server)> {
        match self {
            Self::Unnamed { client, server, .. } => Some((client, server)),
            Self::All(all) => all.iter_mut().find_map(Self::unnamed),
            _ => None,
        }
    }

    /// Is the unnamed statement among what it changes?
    pub(super) fn is_of_unnamed(&self) -> bool {
        match self {
            Self::Unnamed { .. } => true,
            Self::All(all) => all.iter().any(Self::is_of_unnamed),
            _ => false,
        }
    }

    /// What is left of it when the statement itself was run and has failed with this SQLSTATE. A simple query has
    /// destroyed the unnamed statement all the same, unless its bytes were not even a text.
    pub(super) fn of_failed(self, code: &[u8; 5]) -> Self {
        match self {
            // Which one the server has is not known then, so that it is sent again.
            Self::Unnamed { client, illegible: true, .. } if is_no_text(code) => {
                Self::Unnamed { client, server: None, illegible: true }
            }
            Self::Unnamed { .. } | Self::LetGo(..) => Self::None,
            Self::All(all) => all.into_iter().fold(Self::None, |sum, undo| sum.and(undo.of_failed(code))),
            other => other,
        }
    }

    /// What is left of it for a server that has done what it was told.
    pub(super) fn of_client(self) -> Self {
        match self {
            Self::Prepared(_, Some(name)) => Self::Registered(name),
            Self::Unnamed { client, illegible, .. } => Self::Unnamed { client, server: None, illegible },
            Self::RemovedOwn(named) | Self::LetGo(named, _) => Self::Removed(named),
            Self::All(all) => Self::All(all.into_iter().map(Self::of_client).collect()),
            Self::Prepared(_, None) | Self::Closed(..) => Self::None,
            Self::Forgotten(before) => Self::Forgotten(Box::new((before.0, None))),
            Self::None | Self::Registered(_) | Self::Removed(..) | Self::Moved(..) => self,
        }
    }
}

/// The SQLSTATEs of bytes that are no text in the client's encoding, or none in the server's.
pub(super) fn is_no_text(code: &[u8; 5]) -> bool {
    matches!(code, b"22021" | b"22P05")
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

impl Survivors {
    /// Add what this would take back.
    pub(super) fn add(&mut self, undo: &Undo) {
        match undo {
            Undo::Registered(name) => self.names.push(name.clone()),
            Undo::Prepared(text, name) => {
                self.ids.push(text.id);
                self.names.extend(name.clone());
            }
            Undo::All(all) => all.iter().for_each(|undo| self.add(undo)),
            Undo::None
            | Undo::Unnamed { .. }
            | Undo::Removed(..)
            | Undo::RemovedOwn(..)
            | Undo::LetGo(..)
            | Undo::Forgotten(..)
            | Undo::Closed(..)
            | Undo::Moved(..) => {}
        }
    }
}
