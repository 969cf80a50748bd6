//! A transaction that may write waits while the standbys do not keep up (`route::throttle`).

use crate::session::acquire::Want;
use crate::sql::Access;
use crate::worker::Worker;

/// Wait with a transaction that may write while the standbys do not keep up: by the delay of the moment, so never for
/// longer than `proxy.throttle.max_delay`.
pub async fn down(w: &Worker, want: &Want) {
    if want.access == Access::Read {
        return;
    }
    let (began, mut why) = (w.now(), None);
    loop {
        let mut changed = std::pin::pin!(w.changed.notified());
        changed.as_mut().enable();
        let Some(slowed) = w.slowed() else { break };
        let left = slowed.delay.saturating_sub(w.now().since(want.since));
        if left.is_zero() {
            break;
        }
        why = Some(slowed.cause);
        let _ = tokio::time::timeout(left, changed).await;
    }
    if let Some(cause) = why {
        w.counts.slowed(cause, w.now().since(began));
    }
}
