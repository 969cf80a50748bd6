//! Queries of ours: settings for the server, and what becomes of the answers to all of them.

use crate::session::cancel::Waiters;
use crate::session::client::{Failure, Loss, Session, Tail, Turn};
use crate::session::presence::Activity;
use crate::session::timers::STUCK_AFTER;
use crate::session::tracking::{Asked, Reports};
use crate::session::{batch, in_force, lost, settings};
use crate::sql::{Access, PinReason};
use crate::wire::backend::{self, TxStatus};
use crate::wire::error_response::ClientError;
use crate::wire::frontend;
use cluster::{Instant, Role};

/// What a client is told whose notifications come from another server now.
const MISSED: &str = "notifications may have been missed";
const MISSED_DETAIL: &str = "The server that listened for this session was lost; another one listens now.";

/// The number of no session.
const NOBODY: u64 = u64::MAX;

/// A setting, by name.
const BUFFERS: &[u8] = b"temp_buffers";

/// Servers in a row that may fail to take a session's settings in time, before that is taken for a refusal.
const MAX_UNAPPLIED: u8 = 8;

impl Session {
    /// Give the server the session's settings. True when that takes an answer of the server first.
    pub(in crate::session) fn apply(&mut self) -> bool {
        let shown = self.shows();
        if !self.tracking.due && !shown {
            return false;
        }
        if shown && self.relay.busy() {
            return true;
        }
        let mut sql = if shown { self.forget_shown() } else { String::new() };
        let Some(server) = &mut self.server else { return false };
        let (meta, wanted) = (&mut *server.meta, &self.tracking.settings);
        if std::mem::take(&mut meta.listens) {
            sql.push_str("UNLISTEN *;");
        }
        if shown {
            meta.shown.clear();
        }
        if meta.is_strange_to(self.tracking.number) {
            meta.estranged = 0;
            sql.push_str("RESET ALL;");
            sql.extend(settings::apply(wanted, &settings::not_reset(&meta.given), |_| None));
        } else {
            sql.extend(settings::apply(wanted, &meta.given, |name| meta.reported(name)));
        }
        if sql.is_empty() {
            meta.given = wanted.clone();
            self.tracking.due = false;
            return false;
        }
        self.tracking.asked = Some(Asked::Apply);
        self.send_hidden(&sql);
        true
    }

    pub(in crate::session) fn send_hidden(&mut self, sql: &str) {
        let Some(server) = &mut self.server else { return };
        // A simple query destroys the unnamed statement.
        server.meta.statements.unnamed = None;
        self.relay.hide();
        if matches!(self.presence.doing.get().activity, Activity::Idle | Activity::Waiting) && self.hold.is_none() {
            // What has a statement behind it has the limits of that, and a proof its own. A server that only stands still for a
            // while costs nobody what binds the session to it, however short statements are held.
            let over = self.w.now() + self.w.config().hold_timeout.max(STUCK_AFTER);
            self.presence.asked.set(Some(over));
            self.w.look_no_later(over);
        }
        let mut out = Vec::with_capacity(sql.len() + 6);
        frontend::write_query(&mut out, sql);
        self.send(&out);
    }

    /// A query of ours is answered.
    pub(in crate::session) fn hidden_done(&mut self, now: Instant) -> Result<bool, Turn> {
        let mut hidden = std::mem::take(&mut self.relay.hidden);
        self.rescan = true;
        self.presence.asked.set(None);
        match self.tracking.asked.take() {
            Some(Asked::Apply) => match hidden.error {
                None => {
                    (self.tracking.due, self.tracking.unapplied) = (false, 0);
                    if let Some(server) = &mut self.server {
                        server.meta.given = self.tracking.settings.clone();
                    }
                    self.correct();
                    if std::mem::take(&mut self.listens) {
                        self.send_listen();
                    } else if self.inbox.is_empty() {
                        // The statement that it was for has been given up, and no other is to come to an end here.
                        self.idle(now);
                    }
                }
                Some(frame) => self.not_applied(&frame)?,
            },
            Some(Asked::Question { settings, pins }) => {
                let Some(server) = &self.server else { return Ok(true) };
                match hidden.error {
                    None => {
                        hidden.rows.retain(|row| !in_force::is_shown(row, &server.meta.shown));
                        self.tracking.answer((settings, pins), &hidden.rows, &mut self.pins, &*server.meta);
                        self.settled();
                    }
                    Some(frame) if limits(&frame) && self.tracking.ask_again(pins) => {
                        if settings {
                            self.pins.add(PinReason::Set);
                        }
                    }
                    Some(frame) => {
                        let message = String::from_utf8_lossy(backend::fields(&frame).message).into_owned();
                        tracing::debug!(reason = message.as_str(), "session pinned, its settings could not be read");
                        self.tracking.unanswered();
                    }
                }
                self.idle(now);
            }
            Some(Asked::Begin) => self.block_begun(hidden.error),
            Some(Asked::Columns { name, text, parsed }) => self.columns_told(&name, &text, parsed, hidden),
            Some(Asked::Close) => self.other_columns_closed(),
            Some(Asked::Discard) => match hidden.error {
                None => self.begin_draws(false),
                Some(frame) => {
                    self.fail = Some(Failure::Frame(frame));
                    self.rest(now);
                }
            },
            Some(Asked::Position { at }) => {
                self.positioned(at, &hidden);
                self.idle(now);
            }
            // A server that refuses them will say so again when it is asked for them.
            Some(Asked::Tell) => self.told = true,
            Some(Asked::Proof { since }) => self.proof_answered(since, &hidden),
            Some(Asked::Durability) => self.durability_told(&hidden),
            Some(Asked::Listen) if hidden.error.is_some() => return Err(self.deaf()),
            Some(Asked::Listen) => {
                self.to_client.append(|out| backend::write_warning(out, MISSED, MISSED_DETAIL));
                self.idle(now);
            }
            None => {}
        }
        Ok(true)
    }

    /// The server refuses the settings: a standby need not have them, but no statement may run without.
    fn not_applied(&mut self, frame: &[u8]) -> Result<(), Turn> {
        let Some(server) = &mut self.server else { return Ok(()) };
        // What the session before has set there, and this one may not take back by name, goes with RESET ALL, which asks for no
        // privilege.
        let left = settings::not_reset(&server.meta.given);
        if !limits(frame) && *server.meta.given != left {
            (server.meta.given, server.meta.estranged) = (left.into(), NOBODY);
            self.apply();
            return Ok(());
        }
        server.meta.spoilt = true;
        let (node, role) = (server.meta.node.clone(), server.meta.role);
        if self.inbox.is_empty() {
            // The statement that they were for has been given up.
            self.mark_rest(self.w.now());
        }
        if (limits(frame) || buffers_taken(frame)) && self.tracking.unapplied < MAX_UNAPPLIED {
            // They were given under the limits of the session before, or to a server that has had temporary tables: that says
            // nothing of them, nor of another server.
            self.tracking.unapplied += 1;
            self.leave_draws();
            if self.listens || self.is_bound() {
                // What it has there is lost with the server, and its client is told.
                return Err(Turn::Lost(Loss::Violation("settings not taken in time")));
            }
            (self.server_in, self.behind) = (Vec::new(), false);
            self.drop_server();
            return Ok(());
        }
        self.give_back(self.w.now());
        if role == Role::Standby {
            self.avoid.push(node);
            return Ok(());
        }
        let why = String::from_utf8_lossy(backend::fields(frame).message).into_owned();
        self.fatal(&ClientError::SettingsRefused { node, why });
        Err(Turn::Close)
    }

    /// Is another server to listen for the client, that has been told what became of its block?
    pub(in crate::session) fn must_listen(&self) -> bool {
        self.relistens && self.server.is_none() && !self.lost_block.exists()
    }

    /// The server that listened for the client is lost: find another one, and warn. False when there is none.
    pub(in crate::session) async fn listen_again(&mut self) -> bool {
        self.relistens = false;
        // Nothing else sends what the loss was answered while a server is looked for.
        self.to_client.try_flush(&mut self.client);
        // A limit that was exceeded while the server was there says nothing about this wait.
        self.presence.expired.set(None);
        if !self.tracking.knows_channels() {
            self.deaf();
            return false;
        }
        self.acquire(Access::Write, 0).await;
        self.waiting_since = None;
        match self.fail.take() {
            None => {}
            // That was meant for a statement that waits behind this, if there is one.
            Some(cancelled @ Failure::Error(ClientError::Cancelled)) => {
                (self.listens, self.relistens) = (false, true);
                self.fail = Some(cancelled).filter(|_| !self.inbox.is_empty());
                self.mark_rest(self.w.now());
                return true;
            }
            Some(_) => {
                self.deaf();
                return false;
            }
        }
        self.listens = self.server.is_some();
        // Something else ended the search, and the client is still there.
        self.relistens = !self.listens;
        if self.listens {
            self.pins.add(PinReason::Listen);
            // The settings first: names are read by the client's encoding, and what the server listens to for nobody ends
            // with all that it listens to.
            if !self.apply() {
                self.listens = false;
                self.send_listen();
            }
        }
        true
    }

    /// The server begins to listen. One that is lost at once is noticed by the next turn.
    fn send_listen(&mut self) {
        self.tracking.asked = Some(Asked::Listen);
        self.send_hidden(&self.tracking.listen_again());
    }

    /// Nobody listens for a client that waits for notifications: it must notice.
    pub(in crate::session) fn deaf(&mut self) -> Turn {
        if let Some(error) = self.view_of_loss() {
            self.fatal(&error);
        }
        Turn::Close
    }

    fn view_of_loss(&self) -> Option<ClientError> {
        let view = self.w.view.borrow();
        let node = view.topology.primary.as_ref()?.node.clone();
        Some(ClientError::SessionLost { node, lost: vec![PinReason::Listen] })
    }

    /// A cancel request has come while a query of ours is in flight: it must not hit that, unless the client's
    /// statement waits for what it waits for.
    pub(in crate::session) fn cancel_hidden(&mut self, waiters: Waiters) {
        if self.give_up_proof(Some(ClientError::Cancelled)) {
            return;
        }
        // That stands for the client's own statement, and may wait for as long as that: for a lock on its tables.
        if matches!(self.tracking.asked, Some(Asked::Columns { .. } | Asked::Discard)) {
            return self.forward_cancel(waiters);
        }
        let waits = self.tail == Tail::None && self.relay.status == TxStatus::Idle && !self.inbox.is_empty();
        if !waits || self.listens {
            return;
        }
        match self.tracking.asked {
            // That is for the statement, and what binds the session to the server is nothing yet.
            Some(Asked::Apply | Asked::Begin | Asked::Tell | Asked::Close) if !self.is_bound() => self.leave_asked(),
            // That is of use to the next one as well.
            Some(Asked::Apply) => {}
            // That was not asked for it.
            Some(Asked::Question { .. } | Asked::Position { .. }) if self.message_waits() => {}
            _ => return,
        }
        self.fail = Some(Failure::Error(ClientError::Cancelled));
        self.rescan = true;
    }

    /// The server finishes alone what it was asked, and serves others then; the session is as if it had not been found.
    pub(in crate::session) fn leave_asked(&mut self) {
        let replants = self.replants;
        if self.may_part() {
            // Nothing of it is the client's.
            self.part();
        }
        lost::leave(self);
        // A block that was to begin anew fails with the statement.
        self.replants = replants;
    }

    /// Has the client sent a whole message that is not dealt with?
    fn message_waits(&self) -> bool {
        let head = batch::frame_head(&self.inbox, self.longest_message());
        matches!(head, Ok(Some(head)) if head.total <= self.inbox.len())
    }
}

/// Is the error of a limit of the session's own, to which our queries are held as well? It says nothing of what they ask.
fn limits(frame: &[u8]) -> bool {
    matches!(backend::fields(frame).code, b"57014" | b"55P03")
}

/// Is it `temp_buffers` that is refused? It cannot be set any more on a server where any session has used a temporary table. Its
/// name stands in the message in every language.
fn buffers_taken(frame: &[u8]) -> bool {
    let said = backend::fields(frame);
    said.code == b"22023" && said.message.windows(BUFFERS.len()).any(|part| part == BUFFERS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::codec;

    #[test]
    fn a_server_refuses_another_setting_than_temp_buffers_for_good() {
        for (code, said, taken) in [
            ("22023", "invalid value for parameter \"temp_buffers\": 2048", true),
            ("22023", "ungültiger Wert für Parameter »temp_buffers«: 2048", true),
            ("22023", "invalid value for parameter \"TimeZone\": \"Mars/Olympus\"", false),
            ("42501", "permission denied to set parameter \"temp_buffers\"", false),
        ] {
            let mut frame = Vec::new();
            let fields = format!("SERROR\0C{code}\0M{said}\0\0");
            codec::message(&mut frame, b'E', |body| body.extend_from_slice(fields.as_bytes()));
            assert_eq!(buffers_taken(&frame), taken, "{said}");
        }
    }
}
