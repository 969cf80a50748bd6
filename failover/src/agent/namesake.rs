//! Another agent that lives under this node's name: a second one by mistake, or a restored copy of its host.
//!
//! A name has one address on record, and orders go there. Whoever finds another agent there that answers leaves the record alone,
//! and asks again and again, which is how that one knows. Both say so and refuse to be frozen: which of them has what the node has
//! acknowledged nobody can tell. Managers do not count on either, so they begin nothing that it would be needed for. One that
//! cannot be reached is taken for the node's last, which is dead or has moved, unless it has written the record behind this one.

use super::Agent;
use super::records::At;
use crate::api::AgentState;
use crate::fsm::namesake::{Namesake, Other, Place};
use crate::manager::client::{AgentLink, ExchangeError};
use crate::record::MemberRecord;
use hyper::body::Bytes;
use hyper::{Method, StatusCode};
use std::net::SocketAddr;
use std::time::Duration;

/// For so long one counts as there that has asked or answered. Whoever is not on record asks every second.
const LASTS: Duration = Duration::from_secs(5);

impl Agent {
    /// May this agent put its own record in the place of `found`?
    pub(super) async fn may_register(&self, found: Option<&At<MemberRecord>>, other: &mut Other) -> bool {
        let own = |holder: &String| *holder == self.env.holder || self.predecessors.contains(holder);
        // Older agents do not say who they are.
        let found = found.and_then(|f| Some((&f.value, f.value.holder.as_ref().filter(|h| !own(h))?, f.revision)));
        let namesake = match found {
            Some((found, holder, _)) => self.look_for_namesake(found, holder).await,
            None => Namesake::Gone,
        };
        let may = other.may_register(namesake, found.map(|(_, _, revision)| revision), self.env.clock.now());
        self.takes(other.place());
        if let Some((found, ..)) = found.filter(|_| other.was_heard()) {
            let (node, at) = (&self.env.config.node, &found.agent);
            self.has_namesake(format!(
                "another agent is on record as {node}, at {at}: give one of them its own name, or stop it; \
                 at most a minute after that one is gone this one takes its place"
            ));
        }
        may
    }

    /// What it acts by.
    pub(super) fn takes(&self, place: Place) {
        if self.state.look(|o| o.place != place) {
            self.state.change(|o| o.place = place);
            self.wake.notify_one();
        }
    }

    async fn look_for_namesake(&self, found: &MemberRecord, holder: &str) -> Namesake {
        let mut link = AgentLink::new(found.agent.clone(), self.env.secret.clone());
        let path = format!(
            "/agent/state?node={}&namesake={}&port={}",
            self.env.config.node,
            self.env.holder,
            self.listen.port()
        );
        match link.exchange(Method::GET, &path, Bytes::new(), self.env.config.probe_timeout).await {
            Ok((StatusCode::OK, body)) => match serde_json::from_slice::<AgentState>(&body) {
                Ok(state) if state.holder == holder => Namesake::Lives,
                // This agent itself at an address that was the other's, say.
                _ => Namesake::Gone,
            },
            Err(ExchangeError::ConnectionRefused) => Namesake::Refused,
            // Nor is one that has another secret known to be another cluster's.
            Ok(_) | Err(_) => Namesake::Silent,
        }
    }

    /// Another agent has said under which name it lives. The address may have been another node's.
    pub(super) fn is_asked_by_namesake(&self, node: &str, holder: &str, at: SocketAddr) {
        if node == self.env.config.node.as_str() && holder != self.env.holder {
            self.has_namesake(format!(
                "another agent lives under the name of {node}, at {at}: give it its own, or stop it"
            ));
        }
    }

    fn has_namesake(&self, what: String) {
        let node = &self.env.config.node;
        let until = self.env.clock.now() + LASTS;
        self.state.change(|o| {
            if o.namesake.as_ref().is_none_or(|(_, known)| *known != what) {
                tracing::error!(%node, reason = %what, "two agents of one name");
            }
            o.namesake = Some((until, what));
        });
    }

    /// What the node has acknowledged may be with the other one.
    pub(super) fn must_be_alone(&self) -> Result<(), super::commands::CommandError> {
        match self.state.look(|o| o.namesake.as_ref().map(|(_, what)| what.clone())) {
            Some(what) => Err(self.failed("freezing", &std::io::Error::other(what)).into()),
            None => Ok(()),
        }
    }
}
