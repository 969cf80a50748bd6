//! TLS at the doors: a client's request for it, and ours to a server.

use crate::config::tls::{Negotiation, ServerMode};
use crate::net::Stream;
use crate::tls::{AcceptError, Contexts, SecureError};
use crate::wire::error_response::ClientError;
use crate::wire::startup::SSL_REQUEST;
use std::io;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Semaphore;

/// The first byte of a TLS handshake; no startup packet is so long that it could begin with it.
const TLS_HANDSHAKE: u8 = 0x16;

/// Does the client begin TLS without asking? `buf` is what it sent first.
pub(super) fn is_direct(buf: &[u8]) -> bool {
    buf.first() == Some(&TLS_HANDSHAKE)
}

/// Complete a handshake that a client begins without asking.
///
/// # Errors
/// It failed, or there is no TLS here. PostgreSQL says nothing then either: the client understands TLS only.
pub(super) async fn accept_direct(
    stream: &mut Stream,
    contexts: &Contexts,
    first: Vec<u8>,
    turns: &Semaphore,
) -> Result<(), AcceptError> {
    match &contexts.acceptor {
        Some(acceptor) if !stream.is_local() => acceptor.accept(stream, first, true, turns).await,
        _ => Err(AcceptError::Handshake(io::ErrorKind::Unsupported.into())),
    }
}

/// Answer an SSLRequest. True when the connection is encrypted now.
///
/// # Errors
/// The handshake failed.
pub(super) async fn answer(stream: &mut Stream, contexts: &Contexts, turns: &Semaphore) -> Result<bool, AcceptError> {
    match &contexts.acceptor {
        Some(acceptor) if !stream.is_local() => {
            stream.write_all(b"S").await?;
            acceptor.accept(stream, Vec::new(), false, turns).await?;
            Ok(true)
        }
        _ => {
            stream.write_all(b"N").await?;
            Ok(false)
        }
    }
}

/// May this client go on?
///
/// # Errors
/// It must use TLS and does not.
pub(super) fn check(stream: &Stream, contexts: &Contexts) -> Result<(), ClientError> {
    let required = contexts.acceptor.as_ref().is_some_and(|a| a.required);
    if required && stream.tls().is_none() && !stream.is_local() { Err(ClientError::TlsRequired) } else { Ok(()) }
}

/// Encrypt a new connection to the server of that host, as the mode wants it.
///
/// # Errors
/// See [`SecureError`].
pub(crate) async fn secure(
    stream: &mut Stream,
    contexts: &Contexts,
    host: &str,
    turns: &Semaphore,
) -> Result<(), SecureError> {
    let connector = &contexts.connector;
    if connector.mode == ServerMode::Disable {
        return Ok(());
    }
    if connector.negotiation == Negotiation::Direct {
        return connector.secure(stream, host, turns).await;
    }
    stream.write_all(&SSL_REQUEST).await?;
    // One byte and no more: what comes behind it in clear is never taken for the server's.
    let mut answer = [0];
    stream.read_exact(&mut answer).await?;
    match (answer[0], connector.mode) {
        (b'S', _) => connector.secure(stream, host, turns).await,
        (b'N', ServerMode::Prefer) => Ok(()),
        (b'N', _) => Err(SecureError::Declined),
        _ => Err(SecureError::Unexpected),
    }
}
