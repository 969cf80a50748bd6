//! A thread of the process with a runtime of its own, for what must go on while every other task waits its turn: keeping
//! leases alive.
//!
//! It sleeps nearly always, so that the kernel runs it at once when its time has come, however many others are busy. What
//! runs here waits for nothing but time and etcd.

use std::future::Future;
use std::io;
use std::sync::{Mutex, PoisonError};
use tokio::runtime::{Builder, Handle};
use tokio::task::JoinHandle;

/// The thread's runtime, once it was needed. It lasts as long as the process.
static RUNTIME: Mutex<Option<Handle>> = Mutex::new(None);

fn runtime() -> io::Result<Handle> {
    let mut started = RUNTIME.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(runtime) = &*started {
        return Ok(runtime.clone());
    }
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let handle = runtime.handle().clone();
    let serve = move || runtime.block_on(std::future::pending::<()>());
    std::thread::Builder::new().name("leases".to_owned()).spawn(serve)?;
    *started = Some(handle.clone());
    Ok(handle)
}

/// A task on that thread. Dropped, it ends at its next wait.
#[derive(Debug)]
pub(crate) struct Apart(JoinHandle<()>);

impl Apart {
    /// Run a task there.
    ///
    /// # Errors
    /// When there is no thread or no runtime to be had.
    pub(crate) fn spawn(task: impl Future<Output = ()> + Send + 'static) -> io::Result<Self> {
        Ok(Self(runtime()?.spawn(task)))
    }

    /// Ends when the task has.
    pub(crate) async fn ended(&mut self) {
        // Why makes no difference: by itself, by a panic or by `stop`.
        let _ = (&mut self.0).await;
    }

    /// End it, and wait until what it held is dropped.
    pub(crate) async fn stop(mut self) {
        self.0.abort();
        self.ended().await;
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    #[tokio::test(flavor = "current_thread")]
    async fn it_goes_on_while_the_runtime_that_started_it_is_blocked_and_ends_when_stopped() {
        let beats = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&beats);
        let apart = Apart::spawn(async move {
            loop {
                counted.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
        .unwrap();
        // No await: this runtime does nothing else meanwhile.
        let begun = std::time::Instant::now();
        while beats.load(Ordering::Relaxed) < 5 {
            assert!(begun.elapsed() < Duration::from_secs(20), "it waits for the runtime that is blocked");
            std::hint::spin_loop();
        }
        apart.stop().await;
        assert_eq!(Arc::strong_count(&beats), 1, "what it held is dropped");
    }
}
