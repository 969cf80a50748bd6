//! Samples on demand: somebody waits for one, so that the nodes are asked at once and not at the next tick.
//!
//! The primary first, and the standbys when it has answered: what they have replayed by then is what is waited for. All
//! who wait share these rounds. Who asks while one is on its way waits for the next: positions that were asked for before
//! say nothing about now. Rounds keep a distance, so that many who wait cost no more than one. While nobody asks nothing
//! happens.

use cluster::lag::LagSnapshot;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until, timeout};

/// That somebody waits.
#[derive(Debug, Default)]
pub(crate) struct Demand {
    primary: Wish,
    standbys: Wish,
}

impl Demand {
    /// Ask, from any thread. While a round that has not begun is asked for it is two atomic exchanges.
    pub(crate) fn ask(&self) {
        self.primary.ask();
        self.standbys.ask();
    }
}

#[derive(Debug, Default)]
struct Wish {
    waits: AtomicBool,
    told: Notify,
}

impl Wish {
    fn ask(&self) {
        // An exchange and not a load: who finds it set has to come before the round that clears it.
        if !self.waits.swap(true, Ordering::AcqRel) {
            self.told.notify_one();
        }
    }

    /// Ends when somebody has asked.
    async fn asked(&self) {
        while !self.waits.load(Ordering::Acquire) {
            self.told.notified().await;
        }
    }

    /// What is sent from here on is for all who have asked by now.
    fn begin(&self) {
        self.waits.swap(false, Ordering::AcqRel);
    }
}

/// Begins rounds as they are asked for.
pub(crate) struct Rounds {
    pub(crate) demand: Arc<Demand>,
    /// Told when the primary is to be asked.
    pub(crate) primary: watch::Sender<()>,
    /// Told when the standbys are.
    pub(crate) standbys: watch::Sender<()>,
    pub(crate) lag: watch::Receiver<Arc<LagSnapshot>>,
    /// Between two rounds.
    pub(crate) gap: Duration,
    /// Counts those of the primary.
    pub(crate) counter: prometheus::IntCounter,
}

impl Rounds {
    /// Never ends.
    pub(crate) async fn run(self) {
        tokio::join!(self.of_primary(), self.of_standbys(self.lag.clone()));
    }

    async fn of_primary(&self) {
        loop {
            self.demand.primary.asked().await;
            self.demand.primary.begin();
            let next = Instant::now() + self.gap;
            self.counter.inc();
            self.primary.send_replace(());
            sleep_until(next).await;
        }
    }

    async fn of_standbys(&self, mut lag: watch::Receiver<Arc<LagSnapshot>>) {
        let sampled = |s: &LagSnapshot| s.primary.as_ref().map(|p| p.sent_at);
        loop {
            self.demand.standbys.asked().await;
            let before = sampled(&lag.borrow_and_update());
            // The primary may not answer: the standbys need not wait for it longer than it ordinarily takes.
            let _ = timeout(self.gap * 2, lag.wait_for(|s| sampled(s) != before)).await;
            self.demand.standbys.begin();
            let next = Instant::now() + self.gap;
            self.standbys.send_replace(());
            sleep_until(next).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GAP: Duration = Duration::from_millis(5);

    #[tokio::test]
    async fn all_who_ask_before_a_round_begins_share_it_and_rounds_keep_their_distance() {
        let demand = Arc::new(Demand::default());
        let counter = prometheus::IntCounter::new("rounds", "rounds").unwrap();
        let ((primary, mut asked), (standbys, mut asked_too)) = (watch::channel(()), watch::channel(()));
        let (_publisher, lag) = watch::channel(Arc::default());
        let rounds = Rounds { demand: Arc::clone(&demand), primary, standbys, lag, gap: GAP, counter: counter.clone() };
        let task = tokio::spawn(rounds.run());
        let start = std::time::Instant::now();
        for round in 0_u32..4 {
            // Whoever asks while the last round is on its way gets another, and all of them one.
            (0..10).for_each(|_| demand.ask());
            asked.changed().await.expect("the task runs");
            assert_eq!(counter.get(), u64::from(round) + 1);
            assert!(start.elapsed() >= GAP * round, "round {round} after {:?}", start.elapsed());
        }
        // Also when the primary does not answer.
        asked_too.changed().await.expect("the task runs");
        task.abort();
    }
}
