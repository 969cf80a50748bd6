//! What prepared statements take, and whose they are. Pure.
//!
//! Those of all clients together have a limit. When it is exceeded, that is nobody's fault but theirs who have more than a
//! fair share of it: their clients may each keep less, and nothing more at all once it is exceeded twice. Everybody else
//! goes on.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

/// Prepared statements of all clients together may take so many times what those of one may,
const TOGETHER: usize = 32;
/// and each client this part of that at least, while they do not take much more.
const LEAST: usize = 16;

/// One user's at one worker.
#[derive(Debug, PartialEq, Eq)]
pub struct Account {
    /// What its clients keep, and what they were the first to prepare of what others have too, bytes.
    bytes: Cell<usize>,
    /// What each of them may keep, bytes.
    most: Cell<usize>,
}

impl Default for Account {
    fn default() -> Self {
        Self { bytes: Cell::new(0), most: Cell::new(usize::MAX) }
    }
}

impl Account {
    /// It takes so much more.
    pub fn add(&self, bytes: usize) {
        self.bytes.set(self.bytes.get() + bytes);
    }

    /// It takes so much less.
    pub fn subtract(&self, bytes: usize) {
        self.bytes.set(self.bytes.get() - bytes);
    }

    /// What each client may keep, where `configured` says so for everybody.
    pub fn most(&self, configured: usize) -> usize {
        self.most.get().min(configured)
    }
}

/// Those of all users at one worker.
#[derive(Debug, Default)]
pub struct Accounts {
    of: BTreeMap<Arc<str>, (Rc<Account>, usize)>,
}

/// What a user's clients take, and how many there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// Bytes.
    pub bytes: usize,
    /// Clients.
    pub clients: usize,
}

impl Accounts {
    /// One more client of that user.
    pub fn enter(&mut self, user: &str) -> Rc<Account> {
        if let Some((account, clients)) = self.of.get_mut(user) {
            *clients += 1;
            return account.clone();
        }
        let account = Rc::<Account>::default();
        self.of.insert(user.into(), (account.clone(), 1));
        account
    }

    /// One less.
    pub fn leave(&mut self, user: &str) {
        let Some((account, clients)) = self.of.get_mut(user) else { return };
        *clients -= 1;
        // What it was the first to prepare others may have still: it counts in the sum of all.
        if *clients == 0 && account.bytes.get() == 0 {
            self.of.remove(user);
        }
    }

    /// What everybody takes here.
    pub fn taken(&self) -> BTreeMap<Arc<str>, Taken> {
        let taken = |(account, clients): &(Rc<Account>, usize)| Taken { bytes: account.bytes.get(), clients: *clients };
        self.of.iter().map(|(user, of)| (user.clone(), taken(of))).collect()
    }

    /// Clients of these users may each keep so much, and everybody else's what is configured.
    pub fn limit(&mut self, most: &BTreeMap<Arc<str>, usize>) {
        self.of.retain(|_, (account, clients)| *clients > 0 || account.bytes.get() > 0);
        for (user, (account, _)) in &self.of {
            account.most.set(most.get(user).copied().unwrap_or(usize::MAX));
        }
    }
}

/// Do statements take too much that take so much together, where those of one client may take `configured`?
pub fn is_crowded(all: usize, configured: usize) -> bool {
    all > configured.saturating_mul(TOGETHER)
}

/// What each client of those users may keep who have more than a fair share, when all take too much.
pub fn limits(taken: &BTreeMap<Arc<str>, Taken>, configured: usize) -> BTreeMap<Arc<str>, usize> {
    let together = configured.saturating_mul(TOGETHER);
    let all: usize = taken.values().map(|taken| taken.bytes).sum();
    let share = fair_share(taken.values().map(|taken| taken.bytes).collect(), together);
    let beyond = taken.iter().filter(|(_, taken)| taken.bytes > share);
    let limit = |taken: &Taken| {
        let each = (share / taken.clients.max(1)).max(configured / LEAST).min(configured);
        // Nothing is left at twice as much as there should be.
        let left = together.saturating_mul(2).saturating_sub(all).min(together);
        usize::try_from(each as u128 * left as u128 / together.max(1) as u128).unwrap_or(usize::MAX)
    };
    beyond.map(|(user, taken)| (user.clone(), limit(taken))).collect()
}

/// Who takes most, and how much that is.
pub fn largest(taken: &BTreeMap<Arc<str>, Taken>) -> Option<(Arc<str>, Taken)> {
    taken.iter().max_by_key(|(_, taken)| taken.bytes).map(|(user, taken)| (user.clone(), *taken))
}

/// The most that each may have of `together`, where who wants less leaves the rest to others.
fn fair_share(mut wanted: Vec<usize>, together: usize) -> usize {
    wanted.sort_unstable();
    let (mut left, mut among) = (together, wanted.len());
    for wanted in wanted {
        let share = left / among;
        if wanted > share {
            return share;
        }
        (left, among) = (left - wanted, among - 1);
    }
    usize::MAX
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What each client may have of users who take so much with so many clients, where one may have 64 and all 2048.
    fn check(users: &[(usize, usize)], want: &[Option<usize>]) {
        let name = |i: usize| -> Arc<str> { format!("u{i}").into() };
        let taken =
            users.iter().enumerate().map(|(i, &(bytes, clients))| (name(i), Taken { bytes, clients })).collect();
        let limits = limits(&taken, 64);
        let seen: Vec<_> = (0..users.len()).map(|i| limits.get(&name(i)).copied()).collect();
        assert_eq!(seen, want, "{users:?}");
    }

    #[test]
    fn who_takes_more_than_a_share_may_keep_less_and_nobody_else() {
        assert!(!is_crowded(2048, 64) && is_crowded(2049, 64));
        check(&[(2048, 1)], &[None]);
        // One user alone: its clients share what all may have, each with a sixteenth of what one may at least.
        check(&[(2176, 100)], &[Some(18)]);
        check(&[(2176, 1000)], &[Some(3)]);
        check(&[(2176, 5)], &[Some(60)]);
        // At twice as much nothing more is taken.
        check(&[(3072, 1000)], &[Some(2)]);
        check(&[(4096, 10), (0, 10)], &[Some(0), None]);
        check(&[(9999, 10)], &[Some(0)]);
        // Of several only who has more than the others leave.
        check(&[(2000, 33), (100, 1000)], &[Some(57), None]);
        check(&[(1100, 100), (1100, 10), (10, 10)], &[Some(9), Some(58), None]);
        check(&[], &[]);
    }

    #[test]
    fn an_account_ends_with_its_last_client_or_with_the_last_that_it_was_the_first_to_prepare() {
        let mut accounts = Accounts::default();
        let (a, again) = (accounts.enter("a"), accounts.enter("a"));
        assert!(Rc::ptr_eq(&a, &again));
        a.add(100);
        accounts.enter("b");
        accounts.leave("b");
        accounts.leave("a");
        let of = |accounts: &Accounts| {
            accounts.taken().into_iter().map(|(user, t)| (user.to_string(), t)).collect::<Vec<_>>()
        };
        assert_eq!(of(&accounts), [("a".to_owned(), Taken { bytes: 100, clients: 1 })]);
        accounts.leave("a");
        accounts.limit(&[("a".into(), 5)].into());
        assert_eq!((a.most(64), of(&accounts).len()), (5, 1));
        accounts.limit(&BTreeMap::new());
        assert_eq!((a.most(64), of(&accounts).len()), (64, 1));
        a.subtract(100);
        accounts.limit(&BTreeMap::new());
        assert_eq!(of(&accounts), []);
    }
}
