//! What a session is between units: what binds it to its server, and what it still has to be told.

pub use crate::sql::Pins;
use crate::wire::backend::TxStatus;
use crate::wire::error_response::ClientError;

/// A transaction block that exists for the client only: its server is gone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum LostBlock {
    /// None.
    #[default]
    None,
    /// The client has not been told: its next statement is.
    Untold(Box<ClientError>),
    /// It was told this: PostgreSQL's own rules for a failed block hold.
    Told(Box<ClientError>),
    /// The client has ended it, in a unit whose Sync is still to come.
    Ended,
}

impl LostBlock {
    /// The status to report.
    pub fn status(&self) -> TxStatus {
        match self {
            Self::None | Self::Ended => TxStatus::Idle,
            // Until it is told, the client believes in its block.
            Self::Untold(_) => TxStatus::Block,
            Self::Told(_) => TxStatus::Failed,
        }
    }

    /// Is there one?
    pub fn exists(&self) -> bool {
        *self != Self::None
    }

    /// The error for a statement in it; from now on the client knows.
    pub fn tell(&mut self) -> ClientError {
        if let Self::Untold(error) = self {
            let told = ClientError::clone(error);
            *self = Self::Told(Box::new(told.clone()));
            return told;
        }
        ClientError::InFailedTransaction
    }

    /// The error for a statement that wants to go on with the block, which takes more than the client's leaving it.
    pub fn tell_again(&mut self) -> ClientError {
        match self {
            Self::Told(error) => ClientError::clone(error),
            Self::Untold(_) | Self::None | Self::Ended => self.tell(),
        }
    }

    /// Does the client know?
    pub fn is_told(&self) -> bool {
        matches!(self, Self::Told(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_block_is_told_once() {
        let mut block = LostBlock::Untold(Box::new(ClientError::Cancelled));
        assert_eq!(block.tell(), ClientError::Cancelled);
        assert_eq!(block.tell(), ClientError::InFailedTransaction);
        assert_eq!(block.tell_again(), ClientError::Cancelled);
        assert_eq!(block.status(), TxStatus::Failed);
    }
}
