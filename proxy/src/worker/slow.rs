//! Back-pressure as a worker carries it out: the delay is worked out when the lag, the topology or the configuration
//! changes, so that a statement only looks at it.

use super::Worker;
use crate::route::throttle::{self, Slowed};
use std::time::Duration;
use tracing::{info, warn};

/// Writes that have not been slowed for so long are not slowed any more, as far as the log is concerned.
const CALM: Duration = Duration::from_secs(10);

impl Worker {
    /// How long a transaction that may write and begins now waits, and why; `None`: not at all.
    pub fn slowed(&self) -> Option<Slowed> {
        self.slowed.get()
    }

    /// Work out anew how long writes wait. One worker speaks for all.
    pub(super) fn throttle(&self) {
        let slowed = {
            let view = self.view.borrow();
            throttle::slowed(&self.config.borrow().throttle, view.lag.snapshot(), &view.topology)
        };
        self.slowed.set(slowed);
        if self.index > 0 {
            return;
        }
        self.shared.metrics.show_write_delay(slowed);
        let now = self.now();
        match (slowed, self.slow.get()) {
            (Some(slowed), None) => warn!(
                delay_ms = u64::try_from(slowed.delay.as_millis()).unwrap_or(u64::MAX),
                cause = slowed.cause.as_str(),
                lag = %slowed.cause,
                "new write transactions are slowed, the standbys do not keep up"
            ),
            // Lag around the limit would be told at every sample.
            (None, Some(last)) if now.since(last) >= CALM => {
                self.slow.set(None);
                info!("new write transactions are not slowed any more");
            }
            (Some(_) | None, _) => {}
        }
        if slowed.is_some() {
            self.slow.set(Some(now));
        }
    }
}
