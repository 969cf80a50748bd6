//! Does anybody in a database ask for what was drawn from sequences, by `currval` or `lastval`?
//!
//! Where nobody does, nothing has to be discarded when another session writes on a connection. That is found out: from the
//! texts that pass, from what the catalog shows of functions, defaults, views and rules, and by waiting for a while, as who
//! asks does so again and again.

use super::bodies::{HAS_PARSED, PARSED};
use super::read::rows;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// So many changes of writers pass before it is taken that nobody asks.
const LEARNING: u32 = 1000;

/// What asks by itself whenever something is called or used: by the numbers of `currval` and `lastval` where it is kept parsed.
const ASKING: &str = "\
    SELECT FROM (SELECT BODY AS body FROM pg_proc WHERE oid >= 16384 OFFSET 0) p WHERE p.body ~* '\\m(currval|lastval)\\M' \
    UNION ALL \
    SELECT FROM (SELECT adbin::text FROM pg_attrdef \
                 UNION ALL SELECT ev_action::text FROM pg_rewrite WHERE oid >= 16384 \
                 UNION ALL SELECT tgqual::text FROM pg_trigger WHERE tgqual IS NOT NULL \
                 UNION ALL SELECT concat(polqual, polwithcheck) FROM pg_policy \
                 UNION ALL SELECT conbin::text FROM pg_constraint WHERE conbin IS NOT NULL \
                 UNION ALL SELECT typdefaultbin::text FROM pg_type WHERE typdefaultbin IS NOT NULL \
                 UNION ALL SELECT proargdefaults::text FROM pg_proc WHERE oid >= 16384 AND proargdefaults IS NOT NULL) t(tree) \
    WHERE t.tree ~ ':funcid (1575|2559) ' LIMIT 1";

/// What is known of it.
#[derive(Debug, Default)]
pub struct Draws {
    asked: AtomicBool,
    /// The catalog could not be read last.
    unread: AtomicBool,
    changes: AtomicU32,
}

impl Draws {
    /// Somebody asks.
    pub fn ask(&self) {
        if !self.asked.load(Ordering::Relaxed) {
            self.asked.store(true, Ordering::Relaxed);
        }
    }

    /// What was read of the catalog: whether something in it asks, if that could be read.
    pub(super) fn read(&self, asks: Option<bool>) {
        if asks == Some(true) {
            self.ask();
        }
        self.unread.store(asks.is_none(), Ordering::Relaxed);
    }

    /// Is it known that somebody asks?
    pub(super) fn is_asked(&self) -> bool {
        self.asked.load(Ordering::Relaxed)
    }

    /// May anybody ask, as far as is known now?
    pub fn may_ask(&self) -> bool {
        let learns = self.changes.load(Ordering::Relaxed) < LEARNING;
        learns || self.is_asked() || self.unread.load(Ordering::Relaxed)
    }

    /// Another session writes on a connection than before: may anybody ask there for what it draws?
    pub fn follows(&self) -> bool {
        let learns = || {
            self.changes.load(Ordering::Relaxed) < LEARNING && self.changes.fetch_add(1, Ordering::Relaxed) < LEARNING
        };
        self.is_asked() || self.unread.load(Ordering::Relaxed) || learns()
    }
}

/// Does anything in the database ask by itself? `None` when that could not be read. An error only of the connection.
pub(super) async fn asks(client: &tokio_postgres::Client) -> Result<Option<bool>, tokio_postgres::Error> {
    let parsed = rows(&client.simple_query(HAS_PARSED).await?).next().is_some();
    let query = ASKING.replace("BODY", if parsed { PARSED } else { "prosrc" });
    match client.simple_query(&query).await {
        Ok(answer) => Ok(Some(rows(&answer).next().is_some())),
        Err(error) if error.as_db_error().is_some() => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_asks_for_in_a_while_is_not_followed_until_somebody_does() {
        let draws = Draws::default();
        assert!((0..LEARNING).all(|_| draws.may_ask() && draws.follows()));
        assert!((0..10).all(|_| !draws.follows() && !draws.may_ask()));
        // A catalog that cannot be read counts until it can.
        draws.read(None);
        assert!(draws.follows() && draws.may_ask());
        draws.read(Some(false));
        assert!(!draws.follows());
        draws.read(Some(true));
        draws.read(Some(false));
        assert!(draws.follows() && draws.may_ask() && draws.is_asked());
    }
}
