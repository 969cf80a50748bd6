//! What the workers do, summed up: for the managers, and for the metrics.

use crate::metrics::Totals;
use crate::silence::{self, Silence, Silenced};
use crate::worker::{Board, Shared};
use cluster::Clock;
use cluster::lag::LagSnapshot;
use cluster::topology::{BelowMode, PerTerm, ProxyState, Topology};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// How often sums are shown at most.
pub(crate) const TICK: Duration = Duration::from_millis(100);
/// How often they are shown while the workers say nothing new.
const QUIET_TICK: Duration = Duration::from_secs(1);

/// What the managers are told.
pub(crate) fn state_of(shared: &Shared) -> ProxyState {
    // The oldest view of any worker is what the whole process can be relied on to act on.
    let oldest = shared.boards.iter().map(Board::applied).min_by_key(|a| (a.term, a.revision)).unwrap_or_default();
    let (mut below_mode, mut doubts) = (BelowMode::default(), PerTerm::default());
    for board in &shared.boards {
        below_mode.merge(board.below_mode());
        doubts.merge(board.doubts());
    }
    let busy = shared.boards.iter().map(Board::busy).sum();
    ProxyState { term: oldest.term, epoch: oldest.epoch, gate: oldest.gate, busy, below_mode, doubts }
}

/// Sessions that a server works for, or that have a transaction on one, the standbys included: managers know only of
/// those on the primary. Those that look for the outcome of a COMMIT count as well.
pub(crate) fn working(shared: &Shared) -> u64 {
    shared.boards.iter().map(|board| board.busy() + board.reading() + board.resolving()).sum()
}

/// Until `stop`, and then once more when no worker is left: who is dismissed may be told that nobody knows what became of
/// a write. `workers` ends with the last of them.
pub(crate) async fn publish_state(
    shared: &Shared,
    publish: watch::Sender<ProxyState>,
    (topology, lag): (watch::Receiver<Topology>, watch::Receiver<Arc<LagSnapshot>>),
    mut stop: watch::Receiver<bool>,
    mut workers: mpsc::Receiver<()>,
) {
    let (mut shown, mut silence) = (None, Silence::default());
    loop {
        tokio::select! {
            () = shared.applied.notified() => {}
            () = tokio::time::sleep(QUIET_TICK) => shown = None,
            _ = stop.wait_for(|stop| *stop) => break,
        }
        let now = Clock.now();
        if shown.is_none_or(|shown| now.since(shown) >= TICK) {
            shown = Some(now);
            shared.metrics.show(&totals(shared));
            let snapshot = lag.borrow().clone();
            let known = snapshot.standbys.iter().filter_map(|s| Some((s, s.staleness_at(now).ok()?)));
            shared.metrics.show_staleness(known.map(|(s, staleness)| (s.node.as_str(), staleness.as_secs_f64())));
            let proof = silence::proof(&topology.borrow(), &snapshot, now);
            shared.metrics.show_proof(proof.age());
            shared.metrics.show_catalogs(shared.catalogs.kept(), shared.catalogs.unread());
            tell_silence(silence.observe(proof, now));
        }
        let state = state_of(shared);
        publish.send_if_modified(|old| std::mem::replace(old, state) != state);
    }
    // Nothing is ever sent.
    while workers.recv().await.is_some() {}
    publish.send_replace(state_of(shared));
}

/// Reads go on all the same, but by etcd alone.
fn tell_silence(news: Option<Silenced>) {
    match news {
        None => {}
        Some(Silenced::Began { term, age }) => tracing::warn!(
            term = term.0,
            age_ms = age.map(|age| age.as_millis()),
            "no standby is seen to receive from the primary, reads and writes wait for etcd to prove the term"
        ),
        Some(Silenced::Ended { term }) => {
            tracing::info!(term = term.0, "standbys are seen to receive from the primary")
        }
    }
}

/// The gauges of all workers.
pub(crate) fn totals(shared: &Shared) -> Totals {
    let mut sum = Totals::default();
    shared.boards.iter().for_each(|board| sum += board.totals());
    sum
}
