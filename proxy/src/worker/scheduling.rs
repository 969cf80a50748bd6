//! How the kernel schedules a worker's thread. A thread of the batch policy does not interrupt what runs on its core when
//! something arrives for it: it waits until that sleeps or has had its time, and finds more to do then.

use crate::config::BatchScheduling;

/// Connections that serve at the same time from which on a worker is busy: its clients wait for each other anyway.
const BUSY: u64 = 6;
/// Below so many it is busy no more.
const CALM: u64 = 3;

/// What a thread has been told, so that it is told only what is new.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Scheduling {
    batch: bool,
    /// The kernel would not, and is not asked again.
    refused: bool,
}

impl Scheduling {
    /// Should the thread wait for others, when `most` connections have served at the same time lately?
    pub(super) fn wants(self, configured: BatchScheduling, most: u64) -> bool {
        match configured {
            BatchScheduling::Never => false,
            BatchScheduling::Busy => most >= if self.batch { CALM } else { BUSY },
            BatchScheduling::Always => true,
        }
    }

    /// Have the calling thread scheduled so. A kernel that will not is as good as one that was not asked.
    pub(super) fn obey(self, batch: bool) -> Self {
        if self.batch == batch || self.refused {
            return self;
        }
        match apply(batch) {
            Ok(()) => Self { batch, ..self },
            Err(error) => {
                tracing::warn!(batch, %error, "worker is scheduled as before");
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
        })
        .join()
        .unwrap();
    }
}
