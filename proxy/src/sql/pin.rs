//! Why a session must stay on its server.

/// What a session keeps on its server, so that it cannot move to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PinReason {
    /// Settings that have changed and are not known yet, or cannot be known.
    Set,
    /// Temporary tables, views, sequences or functions.
    Temp,
    /// LISTEN.
    Listen,
    /// A session-level advisory lock.
    AdvisoryLock,
    /// A cursor WITH HOLD.
    HeldCursor,
    /// SQL PREPARE.
    Prepare,
    /// LOAD of a library.
    Load,
    /// `setseed`.
    Seed,
    /// A named dblink connection.
    Dblink,
    /// `currval` or `lastval`: what the session has drawn from sequences.
    Sequence,
    /// State that the configuration says a function or a setting stands for.
    Extension,
}

impl PinReason {
    /// Every reason, in the order of [`Pins::list`].
    pub const ALL: [Self; 11] = [
        Self::Set,
        Self::Temp,
        Self::Listen,
        Self::AdvisoryLock,
        Self::HeldCursor,
        Self::Prepare,
        Self::Load,
        Self::Seed,
        Self::Dblink,
        Self::Sequence,
        Self::Extension,
    ];

    /// What is kept, in words for the client.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Set => "session settings (SET)",
            Self::Temp => "temporary objects",
            Self::Listen => "notifications (LISTEN)",
            Self::AdvisoryLock => "session-level advisory locks",
            Self::HeldCursor => "cursors WITH HOLD",
            Self::Prepare => "statements of SQL PREPARE",
            Self::Load => "loaded libraries (LOAD)",
            Self::Seed => "the seed of random()",
            Self::Dblink => "dblink connections",
            Self::Sequence => "values drawn from sequences (currval, lastval)",
            Self::Extension => "state of extensions (pin_functions, pin_settings)",
        }
    }

    /// One word, for metrics and the console.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Set => "set",
            Self::Temp => "temp",
            Self::Listen => "listen",
            Self::AdvisoryLock => "advisory_lock",
            Self::HeldCursor => "held_cursor",
            Self::Prepare => "prepare",
            Self::Load => "load",
            Self::Seed => "seed",
            Self::Dblink => "dblink",
            Self::Sequence => "sequence",
            Self::Extension => "extension",
        }
    }
}

/// A set of reasons to stay on a server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pins(u16);

impl Pins {
    /// No reason.
    pub const NONE: Self = Self(0);

    /// What nothing tells, and may be anything: no reason by itself, but one to ask the server.
    pub const ANYTHING: Self = Self(1 << 15);

    /// Take away what nothing tells. Was it there?
    pub const fn take_anything(&mut self) -> bool {
        let anything = self.0 & Self::ANYTHING.0 != 0;
        self.0 &= !Self::ANYTHING.0;
        anything
    }

    /// One reason.
    pub const fn of(reason: PinReason) -> Self {
        Self(1 << reason as u16)
    }

    /// Add a reason.
    pub const fn add(&mut self, reason: PinReason) {
        self.0 |= 1 << reason as u16;
    }

    /// Take a reason away.
    pub const fn remove(&mut self, reason: PinReason) {
        self.0 &= !(1 << reason as u16);
    }

    /// Add all reasons of another set.
    pub const fn join(&mut self, other: Self) {
        self.0 |= other.0;
    }

    /// The reasons that another set does not have.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
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
        PinReason::ALL.into_iter().filter(|&r| self.has(r)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_is_listed_once() {
        let mut pins = Pins::default();
        assert!(pins.is_empty() && pins.list().is_empty());
        for reason in PinReason::ALL.into_iter().rev().chain(PinReason::ALL) {
            pins.add(reason);
            assert!(pins.has(reason));
        }
        assert_eq!(pins.list(), PinReason::ALL);
        assert!(pins.without(pins).is_empty());
        pins.remove(PinReason::Temp);
        assert!(!pins.has(PinReason::Temp) && pins.has(PinReason::Listen));
    }
}
