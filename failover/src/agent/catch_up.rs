//! Receiving, while frozen, what another node frozen for the same term has: see `fsm::catch_up`.

use super::commands::CommandError;
use super::recovery_conf::Upstream;
use super::sql::Sql;
use super::{Agent, postgres};
use crate::api::{CatchUp, Frozen, Refused};
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
            let sql = Sql::local(&self.env, "postgres", self.env.config.probe_timeout).await;
            let sql = sql.map_err(|e| self.failed("catching up", &e))?;
            self.receive_from(order).await?;
            self.until_received(order, &sql).await;
            self.cut_off().await.map_err(|e| self.failed("cutting off the WAL receiver", &e))?;
        }
        self.freeze(order.term).await
    }

    async fn receive_from(&self, order: &CatchUp) -> Result<(), CommandError> {
        let mut conf = self.conf.lock().await;
        // Under the lock that a freeze needs: either its promise is seen here, or it cuts off after us.
        self.promise(order.term)?;
        self.cut_off_for.store(0, Ordering::Release);
        // It begins anew: with the age of the former upstream's silence it would be tried at leisure at once.
        let now = self.env.clock.now();
        self.state.change(|o| o.not_streaming_since = Some(now));
        let (node, endpoint) = (order.from.clone(), order.endpoint.clone());
        conf.connect(Upstream { node, endpoint, term: order.term });
        conf.write(&self.env).map_err(|e| self.failed("writing settings", &e))?;
        postgres::reload(&self.env);
        tracing::info!(
            node = %self.env.config.node, term = order.term.0, from = %order.from, lsn = %order.to.lsn, "catching up"
        );
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
