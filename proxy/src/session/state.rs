//! What a session is between units: what binds it to its server, and what it still has to be told.

use crate::sql::PinReason;
use crate::wire::backend::TxStatus;
use crate::wire::error_response::ClientError;

const ALL: [PinReason; 9] = [
    PinReason::Set,
    PinReason::Temp,
    PinReason::Listen,
    PinReason::AdvisoryLock,
    PinReason::HeldCursor,
    PinReason::Prepare,
    PinReason::Load,
    PinReason::Seed,
    PinReason::Dblink,
];

/// A set of reasons to stay on a server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pins(u16);

impl Pins {
    /// Add a reason.
    pub fn add(&mut self, reason: PinReason) {
        self.0 |= 1 << reason as u16;
    }

    /// Add all reasons of another set.
    pub fn join(&mut self, other: Self) {
        self.0 |= other.0;
    }

    /// Nothing binds?
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Is this one of the reasons?
    pub const fn has(self, reason: PinReason) -> bool {
        self.0 & (1 << reason as u16) != 0
    }

    /// The reasons, in a fixed order.
    pub fn list(self) -> Vec<PinReason> {
        ALL.into_iter().filter(|&r| self.has(r)).collect()
    }
}

/// A transaction block that exists for the client only: its server is gone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum LostBlock {
    /// None.
    #[default]
    None,
    /// The client has not been told: its next statement is.
    Untold(Box<ClientError>),
    /// It was told: PostgreSQL's own rules for a failed block hold.
    Told,
}

impl LostBlock {
    /// The status to report.
    pub fn status(&self) -> TxStatus {
        match self {
            Self::None => TxStatus::Idle,
            // Until it is told, the client believes in its block.
            Self::Untold(_) => TxStatus::Block,
            Self::Told => TxStatus::Failed,
        }
    }

    /// Is there one?
    pub fn exists(&self) -> bool {
        *self != Self::None
    }

    /// The error for a statement in it; from now on the client knows.
    pub fn tell(&mut self) -> ClientError {
        match std::mem::replace(self, Self::Told) {
            Self::Untold(error) => *error,
            Self::Told | Self::None => ClientError::InFailedTransaction,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_is_listed_once() {
        let mut pins = Pins::default();
        assert!(pins.is_empty() && pins.list().is_empty());
        for reason in ALL.into_iter().rev().chain(ALL) {
            pins.add(reason);
            assert!(pins.has(reason));
        }
        assert_eq!(pins.list(), ALL);
    }

    #[test]
    fn a_lost_block_is_told_once() {
        let mut block = LostBlock::Untold(Box::new(ClientError::Cancelled));
        assert_eq!(block.tell(), ClientError::Cancelled);
        assert_eq!(block.tell(), ClientError::InFailedTransaction);
        assert_eq!(block.status(), TxStatus::Failed);
    }
}
