//! Receiving, while frozen, what another node frozen for the same term has: see `fsm::catch_up`.

use super::commands::CommandError;
use super::recovery_conf::Upstream;
use super::sql::Sql;
use super::state::Unsteady;
use super::{Agent, postgres};
use crate::api::{CatchUp, Follow, Frozen, Position, PostgresState, Refused};
use crate::fsm::agent::{Recruit, ends_by};
use cluster::Term;
use std::sync::atomic::Ordering;
use std::time::Duration;

impl Agent {
    /// `/agent/catch_up`: whatever came of it, the node is frozen again when it answers.
    pub(super) async fn catch_up(&self, order: &CatchUp) -> Result<Frozen, CommandError> {
        self.promise(order.term)?;
        if self.state.look(|o| o.fenced) {
            return Err(Refused::Fenced { node: self.env.config.node.clone() }.into());
        }
        if self.state.look(|o| o.frozen_for) != Some(order.term) || order.from == self.env.config.node {
            return Err(self.wrong_state("frozen for the term, and another node's WAL"));
        }
        {
            let _held = self.act_alone().await?;
            let sql = self.own_sql().await.map_err(|e| self.failed("catching up", &e))?;
            self.receive_from(
                order.term,
                Upstream { node: order.from.clone(), endpoint: order.endpoint.clone(), term: order.term },
                false,
            )
            .await?;
            tracing::info!(
                node = %self.env.config.node, term = order.term.0, from = %order.from, lsn = %order.to.lsn, "catching up"
            );
            self.until_received(order, &sql).await;
            self.cut_off().await.map_err(|e| self.failed("cutting off the WAL receiver", &e))?;
        }
        self.freeze(order.term, false).await
    }

    /// `/agent/follow` of a node that is still to be promoted. Its timeline is this node's, and it has all that this
    /// node has, so there is nothing to compare.
    pub(super) async fn attend(&self, order: &Follow, base: Position) -> Result<(), CommandError> {
        let node = self.env.config.node.clone();
        if self.state.look(|o| o.fenced) {
            return Err(Refused::Fenced { node }.into());
        }
        let _held = self.act_alone().await?;
        let (memory, seen) = (self.memory(), self.state.get());
        let recruit = Recruit {
            frozen_for: seen.frozen_for,
            cut_off_for: Term(self.cut_off_for.load(Ordering::Acquire)),
            standby: matches!(seen.postgres, PostgresState::Standby(_)),
            rewinding: memory.rewinding,
            examined: memory.examined.is_some(),
            quarantined: memory.quarantine.is_some(),
        };
        recruit.may_connect_ahead(order.term).map_err(|needs| self.wrong_state(needs))?;
        let sql = self.own_sql().await.map_err(|e| self.failed("connecting ahead", &e))?;
        let replay = self.replay(&sql).await.map_err(|e| self.failed("connecting ahead", &e))?;
        let lsn = replay.receive.unwrap_or_default().max(replay.replay);
        let have = self.state.look(|o| o.last_timeline).map(|timeline| Position { timeline, lsn });
        if !ends_by(base, have) {
            return Err(Refused::OtherPosition { node, have, want: base }.into());
        }
        // It may be on the way to such a timeline, and would not take the one that is to come.
        let others = self.histories_above(base.timeline);
        if !others.map_err(|e| self.failed("connecting ahead", &e))?.is_empty() {
            return Err(self.wrong_state("a standby that knows of no timeline above its own"));
        }
        let (primary, endpoint) = (order.primary.clone(), order.endpoint.clone());
        self.receive_from(order.term, Upstream { node: primary, endpoint, term: order.term }, true).await?;
        tracing::info!(%node, term = order.term.0, primary = %order.primary, "connecting ahead of the promotion");
        Ok(())
    }

    /// The WAL receiver gets an upstream again, and is not ended as one that a freeze has overlooked. `ahead` of its promotion.
    async fn receive_from(&self, term: Term, upstream: Upstream, ahead: bool) -> Result<(), CommandError> {
        let mut conf = self.conf.lock().await;
        // Under the lock that a freeze needs: either its promise is seen here, or it cuts off after us.
        self.promise(term)?;
        self.cut_off_for.store(0, Ordering::Release);
        // It begins anew: with the age of the former upstream's silence it would be tried at leisure at once.
        let now = self.env.clock.now();
        drop(self.standing.take_replication());
        self.state.change(|o| {
            (o.not_streaming_since, o.unsteady, o.frozen_for) = (Some(now), Unsteady::anew(now), None);
        });
        if ahead {
            conf.connect_ahead(upstream, now)
        } else {
            conf.connect(upstream)
        }
        if let Some(through) = self.through_slots() {
            conf.go_through_slot(through);
        }
        if let Err(error) = conf.write(&self.env).and_then(|()| postgres::reload(&self.env)) {
            // It stays frozen.
            conf.upstream = None;
            self.state.change(|o| o.frozen_for = Some(term));
            return Err(self.failed("writing settings", &error).into());
        }
        Ok(())
    }

    /// Until all of it is here, the time is up, or a newer term was promised.
    async fn until_received(&self, order: &CatchUp, sql: &Sql) {
        let reached = async {
            loop {
                match self.replay(sql).await {
                    Ok(now) if now.receive.max(Some(now.replay)) >= Some(order.to.lsn) => return,
                    Ok(_) => tokio::time::sleep(Duration::from_millis(5)).await,
                    Err(error) => {
                        tracing::warn!(node = %self.env.config.node, %error, "catching up cannot be watched");
                        return;
                    }
                }
            }
        };
        let mut state = self.state.subscribe();
        tokio::select! {
            () = reached => {}
            () = tokio::time::sleep(Duration::from_millis(order.deadline_ms)) => {}
            _ = state.wait_for(|o| o.promise > order.term) => {}
        }
    }
}
