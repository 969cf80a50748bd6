//! When a session has taken too long over what it does.
//!
//! No statement arms a timer. A worker looks at all its sessions at the time when the first of them could be over its
//! limit, and computes from what it finds when to look again.

use crate::config::timeouts::Timeouts;
use cluster::Instant;
use std::time::Duration;

/// How long a server has to obey a cancel request before its connection is given up.
pub(super) const STUCK_AFTER: Duration = Duration::from_secs(10);
/// A timeout is noticed this late at most: so that many sessions with limits close to each other are one look.
const GRAIN: Duration = Duration::from_millis(50);

/// What a session does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activity {
    /// Nothing: it is outside a transaction and nothing is owed to it.
    #[default]
    Idle,
    /// Its statement waits for a server.
    Waiting,
    /// A server works for it.
    Active,
    /// It is inside a transaction, and nothing is owed to it.
    InTransaction,
}

/// What a session does, and since when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Doing {
    /// What.
    pub activity: Activity,
    /// Since when.
    pub since: Instant,
    /// When its transaction began, or its statement outside of one.
    pub began: Instant,
}

/// What a session has taken too long over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expiry {
    /// It was idle outside a transaction.
    Idle,
    /// It was idle inside a transaction.
    IdleInTransaction,
    /// Its statement.
    Query,
    /// Its transaction.
    Transaction,
    /// Its statement was cancelled, or a query of ours sent, and the server does not answer.
    Stuck,
    /// It takes nothing of what is sent to it.
    Write,
}

/// What the limits depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// What it does.
    pub doing: Doing,
    /// When it was told that its statement is over its limit.
    pub told: Option<Instant>,
    /// When a query of ours is given up that no statement is behind.
    pub asked: Option<Instant>,
    /// Since when its client has taken nothing of what waits for it.
    pub blocked: Option<Instant>,
}

/// The first limit that a session reaches, and when.
pub fn first(p: &Progress, t: &Timeouts) -> Option<(Instant, Expiry)> {
    let Doing { activity, since, began } = p.doing;
    let after = |from: Instant, limit: Option<Duration>, expiry| limit.map(|limit| (from + limit, expiry));
    let (own, transaction) = match activity {
        Activity::Idle | Activity::Waiting if p.asked.is_some() => (p.asked.map(|at| (at, Expiry::Stuck)), None),
        Activity::Idle => (after(since, t.client_idle, Expiry::Idle), None),
        // Who waits for a server has limits of its own; a transaction is not let go for our slowness.
        Activity::Waiting => (None, None),
        Activity::InTransaction => (
            after(since, t.idle_in_transaction, Expiry::IdleInTransaction),
            after(began, t.transaction, Expiry::Transaction),
        ),
        Activity::Active => match p.told {
            Some(told) => (Some((told + STUCK_AFTER, Expiry::Stuck)), None),
            None => (after(since, t.query, Expiry::Query), after(began, t.transaction, Expiry::Transaction)),
        },
    };
    let blocked = p.blocked.and_then(|since| after(since, t.client_write, Expiry::Write));
    [blocked, own, transaction].into_iter().flatten().min_by_key(|(at, _)| *at)
}

/// What is over at `now`; else when to look again.
///
/// # Errors
/// Not over: the time of its first limit, if it has any.
pub fn over(p: &Progress, t: &Timeouts, now: Instant) -> Result<Expiry, Option<Instant>> {
    match first(p, t) {
        Some((at, expiry)) if at <= now => Ok(expiry),
        Some((at, _)) => Err(Some(at.max(now + GRAIN))),
        None => Err(None),
    }
}

/// The shortest limit on what sessions do: none of them is over sooner after it begins something.
pub fn shortest(t: &Timeouts) -> Option<Duration> {
    [t.client_idle, t.idle_in_transaction, t.query, t.transaction].into_iter().flatten().min()
}

#[cfg(test)]
mod tests {
    use super::*;
    use Activity::{Active, Idle, InTransaction, Waiting};

    fn at(s: u64) -> Instant {
        Instant::from_millis(s * 1000)
    }

    const fn secs(s: u64) -> Option<Duration> {
        Some(Duration::from_secs(s))
    }

    const ALL: Timeouts = Timeouts {
        server_check_delay: Duration::ZERO,
        client_idle: secs(100),
        idle_in_transaction: secs(20),
        query: secs(5),
        transaction: secs(50),
        client_write: secs(30),
        client_tcp_user: None,
    };

    fn progress(activity: Activity, since: u64, began: u64) -> Progress {
        Progress {
            doing: Doing { activity, since: at(since), began: at(began) },
            told: None,
            asked: None,
            blocked: None,
        }
    }

    #[test]
    fn each_activity_has_its_own_limit() {
        for (activity, since, began, want) in [
            (Idle, 1000, 10, Some((1100, Expiry::Idle))),
            (Waiting, 1000, 10, None),
            (InTransaction, 1000, 990, Some((1020, Expiry::IdleInTransaction))),
            (InTransaction, 1000, 955, Some((1005, Expiry::Transaction))),
            (Active, 1000, 1000, Some((1005, Expiry::Query))),
            (Active, 1000, 952, Some((1002, Expiry::Transaction))),
        ] {
            let found = first(&progress(activity, since, began), &ALL);
            assert_eq!(found, want.map(|(s, expiry)| (at(s), expiry)), "{activity:?}");
        }
    }

    #[test]
    fn a_cancelled_statement_gets_time_to_end_and_not_a_second_cancel() {
        let p = Progress { told: Some(at(1005)), ..progress(Active, 1000, 900) };
        assert_eq!(first(&p, &ALL), Some((at(1015), Expiry::Stuck)));
    }

    #[test]
    fn a_query_of_ours_has_a_limit_where_no_statement_is_behind_it() {
        for (activity, want) in [
            (Idle, (at(1007), Expiry::Stuck)),
            (Waiting, (at(1007), Expiry::Stuck)),
            (InTransaction, (at(1020), Expiry::IdleInTransaction)),
            (Active, (at(1005), Expiry::Query)),
        ] {
            let p = Progress { asked: Some(at(1007)), ..progress(activity, 1000, 1000) };
            assert_eq!(first(&p, &ALL), Some(want), "{activity:?}");
        }
    }

    #[test]
    fn a_client_that_takes_nothing_is_over_whatever_it_does() {
        for activity in [Idle, Waiting, InTransaction, Active] {
            let p = Progress { blocked: Some(at(970)), ..progress(activity, 1000, 1000) };
            assert_eq!(over(&p, &ALL, at(1000)), Ok(Expiry::Write), "{activity:?}");
        }
    }

    #[test]
    fn without_limits_nothing_is_ever_looked_at() {
        for activity in [Idle, Waiting, InTransaction, Active] {
            assert_eq!(over(&progress(activity, 0, 0), &Timeouts::default(), at(1_000_000)), Err(None));
        }
        assert_eq!(shortest(&Timeouts::default()), None);
        assert_eq!(shortest(&ALL), secs(5));
    }

    #[test]
    fn looks_are_a_grain_apart() {
        let p = progress(Active, 1000, 1000);
        let just_before = Instant::from_millis(1_004_999);
        assert_eq!(over(&p, &ALL, just_before), Err(Some(just_before + GRAIN)));
        assert_eq!(over(&p, &ALL, at(1001)), Err(Some(at(1005))));
        assert_eq!(over(&p, &ALL, at(1005)), Ok(Expiry::Query));
    }
}
