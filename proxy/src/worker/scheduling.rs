//! How the kernel schedules a worker's thread. A thread of the batch policy does not interrupt what runs on its core when
//! something arrives for it: it waits until that sleeps or has had its time, and finds more to do then.

use crate::config::BatchScheduling;
use std::cell::Cell;

/// Sessions that servers work for at the same time from which on a worker is busy: its clients wait for each other anyway.
const BUSY: u64 = 6;
/// Below so many it is busy no more.
const CALM: u64 = 3;

/// For how many sessions servers work. One that only holds its connection is not among them.
#[derive(Debug, Default)]
pub(super) struct Working {
    now: Cell<u64>,
    most: Cell<u64>,
}

impl Working {
    /// A server begins or ends to work for a session.
    pub(super) fn count(&self, begins: bool) {
        let now = if begins { self.now.get() + 1 } else { self.now.get().saturating_sub(1) };
        self.now.set(now);
        self.most.set(self.most.get().max(now));
    }

    /// The most at the same time since this was asked last.
    pub(super) fn take_most(&self) -> u64 {
        self.most.replace(self.now.get())
    }
}

/// What a thread has been told, so that it is told only what is new.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Scheduling {
    batch: bool,
    /// The kernel would not, and is not asked to have it wait again.
    refused: bool,
}

impl Scheduling {
    /// Should the thread wait for others, when servers have worked for `most` sessions at the same time lately?
    pub(super) fn wants(self, configured: BatchScheduling, most: u64) -> bool {
        match configured {
            BatchScheduling::Never => false,
            BatchScheduling::Busy => most >= if self.batch { CALM } else { BUSY },
            BatchScheduling::Always => true,
        }
    }

    /// Have the calling thread scheduled so. A kernel that will not is as good as one that was not asked.
    pub(super) fn obey(self, batch: bool) -> Self {
        // To be scheduled as threads are by default is asked for until it is so.
        if self.batch == batch || self.refused && batch {
            return self;
        }
        match apply(batch) {
            Ok(()) => Self { batch, ..self },
            Err(error) => {
                if !self.refused {
                    tracing::warn!(batch, %error, "worker is scheduled as before");
                }
                Self { refused: true, ..self }
            }
        }
    }
}

#[cfg(target_os = "linux")]
fn apply(batch: bool) -> std::io::Result<()> {
    let policy = if batch { libc::SCHED_BATCH } else { libc::SCHED_OTHER };
    let priority = libc::sched_param { sched_priority: 0 };
    // SAFETY: the pointer is to a structure that lives for the call, which only reads it; 0 is the calling thread.
    if unsafe { libc::sched_setscheduler(0, policy, &raw const priority) } < 0 {
        return Err(std::io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(not(target_os = "linux"))]
fn apply(_batch: bool) -> std::io::Result<()> {
    Err(std::io::ErrorKind::Unsupported.into())
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_busy_worker_waits_for_others_until_it_is_calm() {
        use BatchScheduling::{Always, Busy, Never};
        let (calm, busy) = (Scheduling::default(), Scheduling { batch: true, refused: false });
        for (now, configured, most, wants) in [
            (calm, Busy, 0, false),
            (calm, Busy, BUSY - 1, false),
            (calm, Busy, BUSY, true),
            (busy, Busy, BUSY - 1, true),
            (busy, Busy, CALM, true),
            (busy, Busy, CALM - 1, false),
            (busy, Never, 100, false),
            (calm, Always, 0, true),
        ] {
            assert_eq!(now.wants(configured, most), wants, "{now:?} {configured:?} {most}");
        }
    }

    #[test]
    fn a_kernel_that_refuses_is_not_asked_again() {
        let refused = Scheduling { batch: false, refused: true };
        assert!(!refused.obey(true).batch);
    }

    #[test]
    fn the_most_at_the_same_time_are_counted_anew_from_those_that_are_left() {
        let working = Working::default();
        [true, true, true, false].into_iter().for_each(|begins| working.count(begins));
        assert_eq!([working.take_most(), working.take_most()], [3, 2]);
        [false, false, true].into_iter().for_each(|begins| working.count(begins));
        assert_eq!([working.take_most(), working.take_most()], [2, 1]);
    }

    #[test]
    fn a_thread_is_scheduled_as_it_was_told_last() {
        // Of this test's thread alone.
        std::thread::spawn(|| {
            // SAFETY: no pointers are passed.
            let policy = || unsafe { libc::sched_getscheduler(0) };
            let first = Scheduling::default().obey(false);
            assert_eq!(policy(), libc::SCHED_OTHER);
            let second = first.obey(true);
            assert_eq!(policy(), libc::SCHED_BATCH);
            assert!(!second.obey(true).obey(false).batch);
            assert_eq!(policy(), libc::SCHED_OTHER);
            // A refusal does not keep it from what threads are by default.
            let refused = Scheduling { refused: true, ..first.obey(true) };
            assert!(refused.batch && !refused.obey(false).batch);
            assert_eq!(policy(), libc::SCHED_OTHER);
        })
        .join()
        .unwrap();
    }
}
