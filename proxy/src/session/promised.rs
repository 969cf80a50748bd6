//! What this session's reads are promised: the configuration's words as the session's settings change them, worked out
//! again when either has changed.

use crate::config::{Config, reads};
use crate::route::Promise;
use crate::route::promise::{self, BadPromise};
use crate::session::client::Session;
use crate::session::settings::Shared;
use crate::sql::Access;
use crate::wire::backend;
use std::rc::Rc;
use std::sync::Arc;

/// A promise, and what it was worked out from.
pub(super) struct Promised {
    promise: Promise,
    config: Rc<Config>,
    settings: Shared,
    /// What runs outside blocks is SERIALIZABLE, which is not to be had on a standby.
    serializable: bool,
    /// Settings the client was warned of.
    bad: Vec<BadPromise>,
}

impl Session {
    /// What the session's reads outside blocks need, when [`promise`](Self::promise) has just been asked: a standby
    /// cannot run them SERIALIZABLE.
    pub(super) fn access_outside(&self) -> Access {
        let serializable = self.promised.as_deref().is_some_and(|known| known.serializable);
        if serializable { Access::Write } else { Access::Read }
    }

    /// What reads are promised now. A setting that means nothing is told to the client once.
    pub(super) fn promise(&mut self) -> Promise {
        let config = self.w.config();
        let known = self.promised.as_deref();
        let same = |p: &&Promised| Rc::ptr_eq(&p.config, &config) && Arc::ptr_eq(&p.settings, &self.tracking.settings);
        if let Some(known) = known.filter(same) {
            return known.promise;
        }
        let settings = self.tracking.settings.clone();
        let identity = &self.identity;
        let startup: Vec<(String, String)> = identity
            .parameters
            .iter()
            .flat_map(|(name, value)| match name.to_ascii_lowercase() {
                options if options == "options" => promise::in_options(value),
                name => vec![(name, value.clone())],
            })
            .collect();
        let startup = startup.iter().map(|(n, v)| (n.as_str(), v.as_str()));
        // What was set since comes later and wins.
        let startup = startup.filter(|(name, _)| settings.get(name).is_none());
        let configured =
            reads::resolve(&config.reads, config.max_replay_lag, &config.pools, &identity.database, &identity.user);
        let (promise, bad) = promise::resolve(configured, startup.chain(settings.iter()));
        let told = self.promised.take().map(|p| p.bad).unwrap_or_default();
        for new in bad.iter().filter(|b| !told.contains(b)) {
            let detail = "Reads of this session go to the primary until it is set to a valid value or reset.";
            self.to_client.append(|out| backend::write_warning(out, &new.to_string(), detail));
        }
        let isolation = self.default_of("default_transaction_isolation");
        let serializable = isolation.is_some_and(|level| level.eq_ignore_ascii_case("serializable"));
        self.promised = Some(Box::new(Promised { promise, config, settings, serializable, bad }));
        promise
    }
}
