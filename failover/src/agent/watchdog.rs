//! The host's watchdog device, as the agent has it fed and stopped.
//!
//! What is done is decided in [`crate::fsm::watchdog`], on the thread that keeps the lease: a process that is busy must not
//! lose its host. The device is talked to on a thread of its own, in which a driver may take its time: nobody waits for it
//! longer than [`ANSWERS_WITHIN`], and a device that does not answer counts as failed until it does. Whoever opens it has
//! begun its countdown.

mod device;

use self::device::{Armed, Held, NotDone};
use super::Agent;
use super::commands::CommandError;
use super::env::Env;
use crate::api::PostgresState;
use crate::config::watchdog::WatchdogMode;
use crate::fsm::watchdog::{self, Act, Facts, decide};
use crate::record::Phase;
use crate::view::topology::shortened;
use cluster::Instant;
use cluster::lease::Lease;
use std::io;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::oneshot;

/// Between two feedings at most, however long the timeout is: so exactly is it known when it fires.
const LONGEST_TICK: Duration = Duration::from_millis(200);

/// So long is an answer of the device waited for. Less than the shortest timeout, so that it is known to have failed before
/// it fires.
const ANSWERS_WITHIN: Duration = Duration::from_millis(500);

/// What is to be done with the device.
struct Order {
    act: Act,
    /// To feed it later would let it fire too late.
    not_after: Option<Instant>,
    /// The agent ends.
    last: bool,
    done: oneshot::Sender<Result<(), NotDone>>,
}

/// What is known of it.
#[derive(Clone, Debug, Default)]
struct Seen {
    armed: Option<Armed>,
    /// Why it could not be opened or fed when that was last tried.
    failed: Option<String>,
}

/// The way to the thread that has the device.
#[derive(Debug)]
pub(super) struct Watchdog {
    seen: Arc<Mutex<Seen>>,
    /// One order waits at most while another is carried out.
    orders: SyncSender<Order>,
}

/// Carry orders out, until nobody can give one any more.
fn serve(
    orders: &Receiver<Order>,
    seen: &Mutex<Seen>,
    mut act: impl FnMut(&Order) -> (Result<(), NotDone>, Option<Armed>),
) {
    while let Ok(order) = orders.recv() {
        let (done, armed) = act(&order);
        {
            let mut seen = seen.lock().expect("no holder of this lock panics");
            seen.armed = armed;
            match &done {
                Ok(()) => seen.failed = None,
                Err(NotDone::Failed(why)) => seen.failed = Some(why.clone()),
                Err(NotDone::Late) => {}
            }
        }
        let _ = order.done.send(done); // whoever gave it may have gone
    }
}

impl Watchdog {
    /// Start the thread. The device is not touched.
    pub(super) fn start(env: &Env) -> io::Result<Self> {
        let (mut held, clock) = (Held::new(env.config.watchdog.clone()), env.clock);
        Self::with(move |order| {
            let now = || clock.now();
            let done = if order.last {
                held.leave(now());
                Ok(())
            } else {
                held.act(order.act, order.not_after, &now)
            };
            (done, held.armed())
        })
    }

    fn with(act: impl FnMut(&Order) -> (Result<(), NotDone>, Option<Armed>) + Send + 'static) -> io::Result<Self> {
        let (orders, taken) = sync_channel(1);
        let seen = Arc::new(Mutex::new(Seen::default()));
        let known = Arc::clone(&seen);
        std::thread::Builder::new().name("watchdog".to_owned()).spawn(move || serve(&taken, &known, act))?;
        Ok(Self { seen, orders })
    }

    fn seen(&self) -> Seen {
        self.seen.lock().expect("no holder of this lock panics").clone()
    }

    /// Have it done, and wait for that no longer than [`ANSWERS_WITHIN`]. An act that does not touch the device says nothing
    /// about it: what failed stays so.
    async fn order(&self, act: Act, not_after: Option<Instant>, last: bool) -> Result<(), NotDone> {
        if matches!(act, Act::Starve | Act::Rest) {
            return Ok(());
        }
        let (done, answer) = oneshot::channel();
        let sent = self.orders.try_send(Order { act, not_after, last, done });
        let answered = match sent {
            Ok(()) => tokio::time::timeout(ANSWERS_WITHIN, answer).await.ok().and_then(Result::ok),
            Err(_) => None,
        };
        answered.unwrap_or_else(|| {
            let why = format!("the watchdog device has not answered for {} ms", ANSWERS_WITHIN.as_millis());
            self.seen.lock().expect("no holder of this lock panics").failed = Some(why.clone());
            Err(NotDone::Failed(why))
        })
    }

    /// What is left until it fires.
    fn fires_in(&self, now: Instant) -> Option<Duration> {
        let armed = self.seen().armed?;
        Some((armed.fed_at? + armed.timeout).since(now))
    }
}

/// After this the device must not be fed by a lease that ends then.
fn last_feeding(lease: &Lease, timeout: Duration) -> Instant {
    lease.sent_at + shortened(lease.ttl).saturating_sub(timeout)
}

impl Agent {
    /// Feed the device while it must be. Ends never.
    pub(super) async fn tend_watchdog(&self) {
        let config = &self.env.config.watchdog;
        if config.mode == WatchdogMode::Off {
            return std::future::pending().await;
        }
        loop {
            tokio::time::sleep((config.timeout / 5).min(LONGEST_TICK)).await;
            let facts = self.watchdog_facts();
            let lease = self.lease().filter(|_| !facts.becoming);
            let not_after = lease.map(|l| last_feeding(&l, facts.timeout));
            let _ = self.have_done(decide(&facts), not_after).await; // told, and tried again
        }
    }

    /// Do it, and tell when the device can no longer be used, or can again.
    async fn have_done(&self, act: Act, not_after: Option<Instant>) -> Result<(), NotDone> {
        let before = self.watchdog.seen().failed;
        let done = self.watchdog.order(act, not_after, false).await;
        let Seen { armed, failed } = self.watchdog.seen();
        self.metrics.watchdog_armed.set(i64::from(armed.is_some()));
        match failed {
            failed if failed == before => {}
            Some(why) => {
                tracing::error!(node = %self.env.config.node, why, ?act, "the watchdog cannot be used");
                self.trouble(&why);
            }
            None => self.untroubled(),
        }
        done
    }

    /// Must PostgreSQL be stopped now, or the device fires before the stop is done?
    pub(super) fn watchdog_is_about_to_fire(&self) -> bool {
        watchdog::must_stop(&self.watchdog_facts(), self.watchdog.fires_in(self.env.clock.now()))
    }

    /// Does the device count down?
    pub(super) fn has_armed_watchdog(&self) -> bool {
        self.watchdog.seen().armed.is_some()
    }

    /// PostgreSQL was just stopped, which is not seen yet: the device needs not wait for that.
    pub(super) async fn disarm_watchdog(&self) {
        if self.has_armed_watchdog() {
            let _ = self.have_done(Act::Disarm, None).await; // told; tried again once the stop is seen
        }
    }

    fn watchdog_facts(&self) -> Facts {
        let now = self.env.clock.now();
        let becoming = {
            let records = self.records.borrow();
            records.term.as_ref().is_some_and(|t| {
                let ours = t.value.node.as_ref() == Some(&self.env.config.node);
                ours && matches!(t.value.phase, Phase::Promoting | Phase::Opening)
            })
        };
        let stopped = self.state.look(|o| {
            matches!(o.postgres, PostgresState::Stopped { .. } | PostgresState::Absent | PostgresState::Standby(_))
        });
        let armed = self.watchdog.seen().armed;
        Facts {
            armed: armed.is_some(),
            protects: self.protects(),
            serves: self.serves().is_some() || self.is_unguarded(),
            becoming,
            stopped,
            lease_left: self.lease().map(|l| (l.sent_at + shortened(l.ttl)).since(now)),
            timeout: armed.map_or(self.env.config.watchdog.timeout, |d| d.timeout),
        }
    }

    /// Before commits may be acknowledged by the lease alone: is the device armed that is to fence this node then, and does
    /// it fire before `lease` ends, if that is what commits are acknowledged by?
    pub(super) async fn must_have_watchdog(&self, what: &str, lease: Option<Lease>) -> Result<(), CommandError> {
        let config = &self.env.config.watchdog;
        if config.mode != WatchdogMode::Required {
            return Ok(());
        }
        let timeout = self.watchdog.seen().armed.map_or(config.timeout, |d| d.timeout);
        let not_after = lease.map(|l| last_feeding(&l, timeout));
        self.have_done(Act::Feed, not_after).await.map_err(|why| {
            let told = io::Error::other(format!("agent.watchdog.mode is required, and {why}"));
            self.failed(what, &told).into()
        })
    }

    /// A lease was taken by which commits may be acknowledged: it does not count where the device is required for that and
    /// cannot be used.
    pub(super) async fn lease_counts(&self, lease: Lease) -> bool {
        self.protects() || self.must_have_watchdog("taking the lease", Some(lease)).await.is_ok()
    }

    /// A primary that must not be one without the device does not renew its lease without it.
    pub(super) fn lacks_watchdog(&self) -> bool {
        self.env.config.watchdog.mode == WatchdogMode::Required
            && !self.protects()
            && self.watchdog.seen().failed.is_some()
    }

    /// The agent ends, and PostgreSQL has or is to go on without it.
    pub(super) async fn leave_watchdog(&self) {
        if self.watchdog.seen().armed.is_none() {
            return;
        }
        if let Err(why) = self.watchdog.order(Act::Disarm, None, true).await {
            tracing::error!(node = %self.env.config.node, %why, "the watchdog could not be stopped: the host may be reset");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A device that takes its time: each answer is one that the test gives.
    fn slow() -> (Watchdog, SyncSender<Result<(), NotDone>>) {
        let (answers, given) = sync_channel(4);
        let watchdog = Watchdog::with(move |order| {
            let done: Result<(), NotDone> = given.recv().unwrap_or(Err(NotDone::Late));
            let armed = (order.act == Act::Feed && done.is_ok())
                .then_some(Armed { timeout: Duration::from_secs(1), fed_at: Some(Instant::from_millis(500)) });
            (done, armed)
        });
        (watchdog.unwrap(), answers)
    }

    async fn until(watchdog: &Watchdog, what: &str, test: impl Fn(&Seen) -> bool) {
        let seen = async {
            while !test(&watchdog.seen()) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let ended = tokio::time::timeout(Duration::from_secs(20), seen).await;
        assert!(ended.is_ok(), "waited for {what}: {:?}", watchdog.seen());
    }

    #[tokio::test]
    async fn a_device_that_does_not_answer_has_failed_until_it_does_and_holds_nobody_up() {
        let (watchdog, answers) = slow();
        let told = watchdog.order(Act::Feed, None, false).await.unwrap_err().to_string();
        assert!(told.contains("has not answered"), "{told}");
        // One order waits behind it, no more.
        assert!(watchdog.order(Act::Feed, None, false).await.is_err());
        assert!(watchdog.order(Act::Disarm, None, false).await.is_err());
        assert_eq!(watchdog.seen().armed, None);
        assert!(watchdog.seen().failed.is_some());
        answers.send(Ok(())).unwrap();
        until(&watchdog, "the first feeding", |s| s.armed.is_some() && s.failed.is_none()).await;
        assert_eq!(watchdog.fires_in(Instant::from_millis(800)), Some(Duration::from_millis(700)));
        answers.send(Ok(())).unwrap();
        answers.send(Ok(())).unwrap();
        watchdog.order(Act::Disarm, None, false).await.unwrap();
        assert_eq!(watchdog.seen().armed, None);
    }

    #[tokio::test]
    async fn what_failed_stays_so_until_the_device_is_tried_again() {
        let (watchdog, answers) = slow();
        let gone = NotDone::Failed("gone".into());
        answers.send(Err(gone.clone())).unwrap();
        assert_eq!(watchdog.order(Act::Feed, None, false).await, Err(gone));
        for idle in [Act::Rest, Act::Starve] {
            watchdog.order(idle, None, false).await.unwrap();
            assert_eq!(watchdog.seen().failed.as_deref(), Some("gone"), "{idle:?} has not tried it");
        }
        answers.send(Err(NotDone::Late)).unwrap();
        assert_eq!(watchdog.order(Act::Feed, None, false).await, Err(NotDone::Late));
        assert!(watchdog.seen().failed.is_some(), "it was not tried");
        answers.send(Ok(())).unwrap();
        watchdog.order(Act::Feed, None, false).await.unwrap();
        assert_eq!(watchdog.seen().failed, None);
        answers.send(Err(NotDone::Late)).unwrap();
        assert_eq!(watchdog.order(Act::Feed, None, false).await, Err(NotDone::Late));
        assert_eq!(watchdog.seen().failed, None, "what comes late says nothing against the device");
    }
}
