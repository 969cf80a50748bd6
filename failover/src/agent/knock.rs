//! Does a postmaster take new connections? The sessions it has started do not need it, so that they go on answering when it
//! stands still.
//!
//! Whatever the answer is, it counts: an error says that somebody is there. Nobody logs in, so that it costs a process and
//! little more, needs none of `max_connections` to be free, and leaves nothing in the log (but with `log_connections`).

use super::Agent;
use super::env::{Env, MONITOR_USER};
use super::sql::{socket, startup};
use crate::api::KNOCK;
use cluster::Endpoint;
use std::io;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

/// How long one attempt waits. Much longer than whoever counts its silence: who begins anew is the last in the queue of a
/// postmaster that is merely busy.
const PATIENCE: Duration = Duration::from_secs(10);

/// A request for TLS. Over the Unix socket it is answered with no by every version, before anybody says who he is.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

impl Agent {
    /// Knock at our own postmaster, for ever.
    pub(super) async fn knock(&self) {
        loop {
            if answers(local(&self.env)).await {
                let now = self.env.clock.now();
                self.state.change(|o| o.accepts(now));
            }
            tokio::time::sleep(KNOCK).await;
        }
    }

    /// Knock at the primary's, for ever.
    pub(super) async fn knock_at_primary(&self) {
        loop {
            if let Some(whom) = self.observed()
                && answers(remote(&whom.postgres)).await
                // It may have been replaced meanwhile.
                && self.observed().as_ref() == Some(&whom)
            {
                let now = self.env.clock.now();
                self.sighted(&whom, |s| s.accept_at = now);
            }
            tokio::time::sleep(KNOCK).await;
        }
    }
}

async fn answers(attempt: impl Future<Output = io::Result<()>>) -> bool {
    tokio::time::timeout(PATIENCE, attempt).await.is_ok_and(|answer| answer.is_ok())
}

async fn local(env: &Env) -> io::Result<()> {
    let mut stream = UnixStream::connect(socket(env)).await?;
    stream.write_all(&SSL_REQUEST).await?;
    stream.read_u8().await.map(drop)
}

/// Over TCP a server that has TLS would begin it and log that nobody goes on: it is asked for a password instead.
async fn remote(to: &Endpoint) -> io::Result<()> {
    let mut stream = TcpStream::connect((to.host.as_str(), to.port)).await?;
    stream.write_all(&startup(&["user", MONITOR_USER, "database", "postgres"])).await?;
    stream.read_u8().await?;
    // All of the answer: a connection closed with something unread is reset, and the server would log that.
    let length = stream.read_u32().await?;
    let mut rest = vec![0; length.saturating_sub(4).min(64 * 1024) as usize];
    stream.read_exact(&mut rest).await.map(drop)
}
