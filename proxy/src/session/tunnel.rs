//! Replication connections: bytes pass in both directions as they are, for as long as their server is the primary of
//! its term.
//!
//! A walsender's conversation is its own (COPY in both directions, commands that are no SQL), lasts for days, and cannot
//! move to another server. So such a client has a server connection of its own, that is never used again. Messages are
//! followed only to know where one ends: the farewell must not stand within another. One of a database runs SQL as well, which
//! nobody looks at: only that a cancel request ends no wait for standbys is seen to.

use crate::session::before_commit::Unless;
use crate::session::cancel::Asks;
use crate::session::client::{Session, fill};
use crate::wire::codec::Follower;
use crate::wire::error_response::ClientError;
use crate::wire::error_response::Severity;
use std::future::poll_fn;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

/// Rounds before other sessions get theirs.
const MAX_ROUNDS: usize = 16;

/// How long the rest of a server's message may take before the farewell.
const REST: Duration = Duration::from_millis(500);

/// Why the connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    /// The client has gone, or broke its own connection.
    Client,
    /// The server closed the connection.
    Server,
    /// The server is not the primary of its term any more, or the process stops.
    Deposed,
}

/// Run a replication connection to its end.
pub(super) async fn run(mut s: Session) {
    let mut frames = Follower::default();
    // Nothing is classified.
    s.table = s.w.no_table.clone();
    let ending = poll_fn(|cx| pump(&mut s, &mut frames, cx)).await;
    if ending == Ending::Deposed {
        // Where the server is alive the rest of its message is on its way.
        let _ = tokio::time::timeout(REST, poll_fn(|cx| finish(&mut s, &mut frames, cx))).await;
    }
    let (between, said) = (frames.between(), frames.last() == b'E');
    let node = s.drop_server().map(|(node, _)| node);
    let stopping = s.w.shared.stopping.load(Ordering::Relaxed) || s.presence.end.take();
    tracing::info!(?node, ?ending, between, "replication connection ended");
    let told = match ending {
        Ending::Client => return,
        // The server has said why.
        Ending::Server if said => true,
        // In the middle of a message nothing can be said; the client sees its connection end, as when a server dies.
        Ending::Server | Ending::Deposed => !between,
    };
    if !told {
        let mut report = ClientError::ShuttingDown.report();
        report.severity = Severity::Fatal;
        if ending == Ending::Deposed && !stopping {
            let detail = "The server is not the primary any more; connect again to reach the new one.";
            report.detail = Some(detail.to_owned());
        }
        s.to_client.append(|out| report.encode(out));
    }
    let limit = s.w.config().connect_timeout;
    let flushed = poll_fn(|cx| match s.to_client.flush(&mut s.client, cx) {
        Ok(_) if !s.to_client.is_empty() => Poll::Pending,
        _ => Poll::Ready(()),
    });
    let _ = tokio::time::timeout(limit, flushed).await;
}

fn pump(s: &mut Session, frames: &mut Follower, cx: &mut Context<'_>) -> Poll<Ending> {
    s.presence.park(cx.waker());
    if s.w.shared.stopping.load(Ordering::Relaxed) || s.presence.end.get() {
        return Poll::Ready(Ending::Deposed);
    }
    if s.generation != s.w.generation.get() {
        s.generation = s.w.generation.get();
        if !s.server.as_ref().is_some_and(|server| s.w.still_valid(&server.meta)) {
            return Poll::Ready(Ending::Deposed);
        }
    }
    if let Some(waiters) = s.presence.cancel.take() {
        if s.identity.is_physical() {
            s.forward_cancel(waiters);
        } else {
            s.cancel_unless(Unless::Waiting, Asks::Client, waiters);
        }
    }
    s.cancelling = s.server.as_ref().is_some_and(|server| server.cancels.running());
    for _ in 0..MAX_ROUNDS {
        match round(s, frames, cx) {
            Ok(true) => {}
            Ok(false) => return Poll::Pending,
            Err(ending) => return Poll::Ready(ending),
        }
    }
    cx.waker().wake_by_ref();
    Poll::Pending
}

/// Pass on the rest of the message that is under way, and nothing behind it.
fn finish(s: &mut Session, frames: &mut Follower, cx: &mut Context<'_>) -> Poll<()> {
    let mut buf = [0; 4096];
    loop {
        match s.to_client.flush(&mut s.client, cx) {
            Ok(_) if s.to_client.is_empty() => {}
            Ok(_) => return Poll::Pending,
            Err(_) => return Poll::Ready(()),
        }
        let wanted = frames.wanted().min(buf.len());
        let Some(server) = s.server.as_mut().filter(|_| wanted > 0) else { return Poll::Ready(()) };
        let read = match server.stream.poll_fill(&mut buf[..wanted], cx) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(read) => read.unwrap_or(0),
        };
        if read == 0 || frames.follow(&buf[..read]).is_err() || s.to_client.send(&mut s.client, &buf[..read]).is_err() {
            return Poll::Ready(());
        }
    }
}

/// Move what can be moved in each direction. True when something was.
fn round(s: &mut Session, frames: &mut Follower, cx: &mut Context<'_>) -> Result<bool, Ending> {
    let Some(server) = &mut s.server else { return Err(Ending::Server) };
    let mut moved = s.to_client.flush(&mut s.client, cx).map_err(|_| Ending::Client)?;
    moved |= s.to_server.flush(&mut server.stream, cx).map_err(|_| Ending::Server)?;
    let limit = s.w.config().relay_buffer;
    let mut scratch = s.w.take_scratch();
    fill(&mut scratch, &[], limit);
    let outcome = (|| {
        if s.to_client.is_empty()
            && let Poll::Ready(read) = server.stream.poll_fill(&mut scratch[..limit], cx)
        {
            let bytes = &scratch[..read.ok().filter(|&n| n > 0).ok_or(Ending::Server)?];
            frames.follow(bytes).map_err(|_| Ending::Server)?;
            s.to_client.send(&mut s.client, bytes).map_err(|_| Ending::Client)?;
            moved = true;
        }
        if s.to_server.is_empty()
            && !s.cancelling
            && let Poll::Ready(read) = s.client.poll_fill(&mut scratch[..limit], cx)
        {
            let bytes = &scratch[..read.ok().filter(|&n| n > 0).ok_or(Ending::Client)?];
            s.to_server.send(&mut server.stream, bytes).map_err(|_| Ending::Server)?;
            moved = true;
        }
        Ok(moved)
    })();
    s.w.put_scratch(scratch);
    outcome
}
