//! Change hints from etcd's watch.
//!
//! A watch only says "look again": when it breaks, the gap is covered by one hint when it is set up anew, so no
//! revision is remembered and compaction does not matter.

use super::super::Hints;
use super::Shared;
use etcd_client::{WatchOptions, WatchStream};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::timeout;
use tracing::{debug, info};

/// Silence after which a watch is asked whether it lives. A frozen member gives no error.
const QUIET: Duration = Duration::from_secs(2);
/// Its answer must come within this.
const PONG: Duration = Duration::from_millis(500);
/// Pause between attempts to set a watch up: grows from the first to the last while no endpoint works.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// Watch `prefix` in a task that ends when nobody listens any more.
pub(super) fn start(shared: Arc<Shared>, prefix: String) -> Hints {
    let (changes, hints) = watch::channel(0);
    tokio::spawn(async move {
        tokio::select! {
            () = changes.closed() => (),
            () = run(&shared, &prefix, &changes) => (),
        }
    });
    Hints::new(hints)
}

async fn run(shared: &Shared, prefix: &str, changes: &watch::Sender<u64>) {
    let mut index = shared.preferred.load(std::sync::atomic::Ordering::Relaxed);
    let mut pause = PAUSE.0;
    let mut broken = false;
    loop {
        let endpoint = &shared.endpoints[index];
        let opened = timeout(shared.request_timeout, open(endpoint, prefix)).await;
        let why = match opened {
            Ok(Ok(stream)) => {
                if broken {
                    info!(endpoint = endpoint.url, prefix, "etcd watch set up again");
                }
                (pause, broken) = (PAUSE.0, false);
                hint(changes);
                follow(stream, changes).await
            }
            Ok(Err(error)) => {
                endpoint.failed();
                error.to_string()
            }
            Err(_) => format!("no answer within {:?}", shared.request_timeout),
        };
        if broken {
            debug!(endpoint = endpoint.url, prefix, reason = why, "etcd watch failed");
        } else {
            info!(endpoint = endpoint.url, prefix, reason = why, "etcd watch broken");
        }
        broken = true;
        index = (index + 1) % shared.endpoints.len();
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE.1);
    }
}

async fn open(endpoint: &super::Endpoint, prefix: &str) -> Result<WatchStream, etcd_client::Error> {
    let mut client = endpoint.client().await?;
    let mut stream = client.watch(prefix, Some(WatchOptions::new().with_prefix())).await?;
    // etcd confirms the watch with a first message; changes made after it are seen.
    match stream.message().await? {
        Some(first) if first.created() && !first.canceled() => Ok(stream),
        Some(first) => Err(etcd_client::Error::WatchError(format!("cancelled: {}", first.cancel_reason()))),
        None => Err(etcd_client::Error::WatchError("closed".to_owned())),
    }
}

/// Pass on hints until the stream breaks; tells why it did.
async fn follow(mut stream: WatchStream, changes: &watch::Sender<u64>) -> String {
    let mut asked = false;
    loop {
        let message = match timeout(if asked { PONG } else { QUIET }, stream.message()).await {
            Ok(message) => message,
            Err(_) if asked => return format!("no answer to a ping within {PONG:?}"),
            Err(_) => {
                if let Err(error) = stream.request_progress().await {
                    return error.to_string();
                }
                asked = true;
                continue;
            }
        };
        asked = false;
        match message {
            Ok(Some(answer)) if answer.canceled() => return format!("cancelled: {}", answer.cancel_reason()),
            Ok(Some(answer)) if !answer.events().is_empty() => hint(changes),
            Ok(Some(_progress)) => (),
            Ok(None) => return "closed".to_owned(),
            Err(error) => return error.to_string(),
        }
    }
}

fn hint(changes: &watch::Sender<u64>) {
    changes.send_modify(|n| *n += 1);
}
