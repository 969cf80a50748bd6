//! A question of ours to a server that no session holds.

use crate::session::relay::Hidden;
use crate::session::server::{MAX_LOGIN_MESSAGES, Server};
use crate::wire::backend::{self, TxStatus, fields};
use crate::wire::codec::head;
use crate::wire::frontend;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Longest message of an answer, bytes.
const MAX_ANSWER: usize = 64 * 1024;

impl Server {
    /// Run statements of ours, outside a transaction, to their end. `None`: the connection is of no use any more.
    pub async fn ask(&mut self, sql: &str) -> Option<Hidden> {
        // A simple query destroys the unnamed statement.
        self.meta.statements.unnamed = None;
        let mut question = Vec::with_capacity(sql.len() + 6);
        frontend::write_query(&mut question, sql);
        self.stream.write_all(&question).await.ok()?;
        self.stream.flush().await.ok()?;
        let (mut answer, mut heard) = (Hidden::default(), Vec::new());
        for _ in 0..MAX_LOGIN_MESSAGES {
            let mut at = 0;
            while let Some(total) = head(&heard[at..]).ok()?.map(|h| h.total) {
                if total > MAX_ANSWER {
                    return None;
                }
                let Some(frame) = heard.get(at..at + total) else { break };
                at += total;
                if self.hear(frame, &mut answer)? {
                    return heard.get(at..).is_some_and(<[u8]>::is_empty).then_some(answer);
                }
            }
            heard.drain(..at);
            if !self.stream.read_buf(&mut heard).await.is_ok_and(|n| n > 0) {
                return None;
            }
        }
        None
    }

    /// One message of the answer; is it the last? `None`: it is none of an answer.
    fn hear(&mut self, frame: &[u8], answer: &mut Hidden) -> Option<bool> {
        match frame[0] {
            b'D' if answer.rows.len() < MAX_LOGIN_MESSAGES => answer.rows.push(backend::text_row(frame)?),
            b'E' if fields(frame).is_fatal() => return None,
            b'E' => answer.error = Some(frame.to_vec()),
            b'N' => answer.unreplicated |= fields(frame).routine == b"SyncRepWaitForLSN",
            b'S' => {
                let (name, value) = backend::parameter_status(frame)?;
                self.meta.report(name, &value);
            }
            b'A' => self.meta.listens = true,
            b'T' | b'C' | b'I' => {}
            b'Z' => return (backend::ready_status(frame)? == TxStatus::Idle).then_some(true),
            _ => return None,
        }
        Some(false)
    }
}
