//! Making a connection for somebody who wants one, unless the cluster changes meanwhile.

use super::{Want, check};
use crate::pool::{Checkout, Permit, Pool, Share};
use crate::session::challenge::Allowed;
use crate::session::server::{self, ConnectError, Login, Server};
use crate::worker::Worker;
use cluster::Role;
use cluster::topology::{Gate, Member};
use std::rc::Rc;
use std::time::Duration;

/// Make a connection, within `left`.
///
/// # Errors
/// Why it failed; `None` when the cluster changed meanwhile, or when its turn did not come or others failed before that.
pub async fn open(
    w: &Rc<Worker>,
    want: &Want,
    member: &Member,
    role: Role,
    permit: Permit,
    left: Duration,
) -> Result<Server, Option<ConnectError>> {
    let config = w.config();
    let (term, generation) = (w.view.borrow().topology.term, w.generation.get());
    let (keyring, own) = (&w.shared.keyring, &want.credentials);
    let newest = want.entered.then(|| keyring.newest(&want.identity, own)).flatten();
    let pool = w.pools.of(&member.node, &want.identity);
    let (begun, failures) = (w.now(), w.failures(&pool));
    let left = || left.saturating_sub(w.now().since(begun));
    let connecting = async {
        let turns = w.connects_to(&member.node);
        let _turn = match turns.try_acquire() {
            Ok(turn) => turn,
            Err(_) => {
                let turn = tokio::time::timeout(left(), turns.acquire()).await.ok()?.ok()?;
                // Who had theirs before may have found that it is of no use.
                if left().is_zero() {
                    return None;
                }
                if w.failures(&pool) > failures {
                    // Nor would it be to who waits for its place.
                    permit.forgo();
                    return None;
                }
                turn
            }
        };
        let login = Login {
            member,
            role,
            term,
            identity: &want.identity,
            credentials: newest.as_deref().unwrap_or(own),
            allowed: Allowed { md5: config.auth.server_md5, password: config.auth.server_password },
            hashing: &w.shared.hashing,
            worker: w,
            connect_timeout: config.connect_timeout.min(left()),
            login_timeout: config.login_timeout.min(left()),
        };
        let mut permit = Some(permit);
        let first = server::connect(login.clone(), &mut permit, w.now()).await;
        let (Err(refused), Some(newest)) = (&first, newest.as_ref().filter(|newest| *newest != own)) else {
            return Some(first);
        };
        // Who logged in last need not have the newest password.
        let left = left();
        if !refused.is_of_proof() || left.is_zero() {
            return Some(first);
        }
        let (connect_timeout, login_timeout) = (login.connect_timeout.min(left), login.login_timeout.min(left));
        let login = Login { credentials: own, connect_timeout, login_timeout, ..login };
        let second = server::connect(login, &mut permit, w.now()).await;
        // What a standby still takes may be the old one.
        if role == Role::Primary && second.is_ok() {
            keyring.restore(&want.identity, newest, own);
        }
        Some(second)
    };
    let moved = async {
        loop {
            w.changed.notified().await;
            // Lag samples come all the time; only the topology matters here.
            if w.generation.get() != generation && !serves(w, member, role, term) {
                return;
            }
        }
    };
    let opening = Opening::new(pool.clone());
    let result = tokio::select! {
        result = connecting => result.ok_or(None)?,
        () = moved => return Err(None),
    };
    drop(opening);
    w.counts.connect(result.as_ref().map_or_else(ConnectError::label, |_| "ok"));
    match &result {
        Ok(server) if server.stream.tls().is_some() => w.counts.handshake("server", true),
        Err(ConnectError::Tls { .. }) => w.counts.handshake("server", false),
        Ok(_) | Err(_) => {}
    }
    let replication = want.identity.is_replication();
    let blame = result.as_ref().err().map(|error| error.blame(role, replication));
    let words = match &result {
        Err(error @ ConnectError::Refused { frame, .. }) if error.limit().is_some() => Some(&frame[..]),
        Ok(_) | Err(_) => None,
    };
    w.note_full(&pool, blame, words);
    w.connected(&pool, blame.map_or(Ok(()), Err));
    let mut server = result.map_err(Some)?;
    if role == Role::Primary {
        server.meta.settings = w.keep_welcome(&want.identity, &server.meta.settings);
    }
    if w.still_valid(&server.meta) { Ok(server) } else { Err(None) }
}

/// Counts a connection that is being made.
struct Opening(Rc<Pool>);

impl Opening {
    fn new(pool: Rc<Pool>) -> Self {
        pool.opening.set(pool.opening.get() + 1);
        Self(pool)
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        self.0.opening.set(self.0.opening.get() - 1);
    }
}

fn serves(w: &Worker, member: &Member, role: Role, term: cluster::Term) -> bool {
    crate::pool::checkout::still_valid(&member.node, role, term, &w.view.borrow().topology)
}

/// A connection to any standby, for what it reports at login: when there is no primary to ask.
pub async fn any_standby(w: &Rc<Worker>, want: &Want) -> Option<Server> {
    let standbys = w.view.borrow().topology.standbys.clone();
    for member in standbys.iter().filter(|m| !m.fenced) {
        let (pool, limit) = (w.pools.of(&member.node, &want.identity), w.config().connect_timeout);
        let permit = match pool.checkout(w.check_before(w.now()), Share::Usual) {
            Checkout::Ready(server) => return Some(server),
            Checkout::Check(server) => match check(w, server, limit).await {
                Some(server) => return Some(server),
                // Its place is free now.
                None => pool.limit.permit(Share::Usual).ok(),
            },
            Checkout::Full(_) => None,
            Checkout::Open(permit) => Some(permit),
        };
        let Some(permit) = permit else { continue };
        match open(w, want, member, Role::Standby, permit, limit).await {
            Ok(server) => return Some(server),
            Err(Some(error)) => {
                tracing::debug!(node = %member.node, error = %describe(&error), "standby not asked");
            }
            // There may be a primary by now.
            Err(None) if w.gate(w.now()) == Gate::Open => return None,
            Err(None) => {}
        }
    }
    None
}

pub(super) fn describe(error: &ConnectError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
