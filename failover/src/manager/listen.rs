//! Listens to one agent: long polls of its state. Managers that do not lead listen as well, so that whoever comes to lead
//! knows already what the leader knew.

use crate::api::AgentState;
use crate::fsm::action::Input;
use crate::manager::client::{AgentLink, ExchangeError};
use cluster::secret::Secret;
use cluster::{Endpoint, NodeId};
use hyper::body::Bytes;
use hyper::{Method, StatusCode};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::sleep;
use tracing::{info, warn};

/// How often agents are asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pace {
    /// Answer at a change, or after the configured wait.
    Walk,
    /// Answer at once: a change of primary waits for positions.
    Hurry,
}

/// An agent's answer is awaited for so long when in a hurry.
const HURRY_WAIT: Duration = Duration::from_millis(15);
/// Pause after an exchange that failed.
const RETRY: Duration = Duration::from_millis(100);

pub(super) struct Listener {
    pub(super) node: NodeId,
    pub(super) endpoint: Endpoint,
    pub(super) secret: Secret,
    pub(super) pace: watch::Receiver<Pace>,
    pub(super) inputs: mpsc::Sender<Input>,
    pub(super) wait: Duration,
    pub(super) timeout: Duration,
}

impl Listener {
    /// Listen until the planner is gone.
    pub(super) async fn run(mut self) {
        let mut link = AgentLink::new(self.endpoint.clone(), self.secret.clone());
        let mut seq = 0;
        let mut silent = false;
        while self.pace.has_changed().is_ok() {
            let hurry = *self.pace.borrow_and_update() == Pace::Hurry;
            let wait = if hurry { HURRY_WAIT } else { self.wait };
            let path = format!("/agent/state?after={seq}&wait_ms={}", wait.as_millis());
            let asked = link.exchange(Method::GET, &path, Bytes::new(), wait + self.timeout);
            let answer = tokio::select! {
                answer = asked => answer,
                // A long poll is cut short when the pace changes.
                Ok(()) = self.pace.changed() => continue,
            };
            match answer.and_then(understand) {
                Ok(state) if state.node == self.node => {
                    if silent {
                        info!(node = %self.node, "agent answers again");
                    }
                    (silent, seq) = (false, state.seq);
                    if self.inputs.send(Input::Report(Box::new(state))).await.is_err() {
                        return;
                    }
                }
                Ok(state) => {
                    warn!(node = %self.node, found = %state.node, address = %self.endpoint, "another node's agent answers");
                    if !self.report_silence(&mut silent, false).await {
                        return;
                    }
                }
                Err(error) => {
                    if !silent {
                        warn!(node = %self.node, address = %self.endpoint, %error, "agent does not answer");
                    }
                    seq = 0;
                    let refused = matches!(error, ExchangeError::ConnectionRefused);
                    if !self.report_silence(&mut silent, refused).await {
                        return;
                    }
                }
            }
        }
    }

    async fn report_silence(&mut self, silent: &mut bool, refused: bool) -> bool {
        *silent = true;
        let told = self.inputs.send(Input::Silent { node: self.node.clone(), refused }).await.is_ok();
        sleep(RETRY).await;
        told
    }
}

fn understand((status, bytes): (StatusCode, Bytes)) -> Result<AgentState, ExchangeError> {
    if status != StatusCode::OK {
        return Err(ExchangeError::Lost(format!("HTTP {status}")));
    }
    serde_json::from_slice(&bytes).map_err(|e| ExchangeError::Lost(e.to_string()))
}
