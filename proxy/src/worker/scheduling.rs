//! How the kernel schedules a worker's thread. A thread of the batch policy does not interrupt what runs on its core when
//! something arrives for it: it waits until that sleeps or has had its time, and finds more to do then.

/// What a thread has been told, so that it is told only what is new.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Scheduling {
    batch: bool,
}

impl Scheduling {
    /// Have the calling thread scheduled so. A kernel that will not is as good as one that was not asked.
    pub(super) fn obey(self, batch: bool) -> Self {
        if self.batch == batch {
            return self;
        }
        match apply(batch) {
            Ok(()) => Self { batch },
            Err(error) => {
                tracing::warn!(batch, %error, "worker is scheduled as before");
                self
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
