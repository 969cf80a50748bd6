//! What the same reads take that are promised nothing: at the primary, through the same endpoints and at the same time.
//! What a promise adds is the difference. Nothing of them is checked.

use super::ground::{Endpoint, PATIENCE};
use super::reader::{self, PAUSE};
use super::run::Run;
use cluster::{Clock, Instant};
use std::rc::Rc;

/// Most sessions of them: each is as one of the readers of a mode.
pub(super) const SESSIONS: usize = 4;

/// One session after another.
pub(super) struct Baseline {
    /// Its number among them.
    pub(super) index: usize,
    pub(super) endpoint: Endpoint,
}

impl Baseline {
    /// Read until the run is over.
    pub(super) async fn read_on(self, run: Rc<Run>) {
        let settings = [("pgtenure.read_from", "primary".to_owned()), ("pgtenure.consistency", "eventual".to_owned())];
        let mut reads = 0;
        while !run.is_over() {
            let opened = async {
                let client = self.endpoint.connect(&settings).await?;
                let read = client.prepare(&reader::query()).await?;
                Ok::<_, tokio_postgres::Error>((client, read))
            };
            let Ok((client, read)) = opened.await else {
                tokio::time::sleep(PAUSE).await;
                continue;
            };
            while !run.is_over() && !client.is_closed() {
                let (style, begun_at) = (reader::style(self.index, reads, false), Clock.now());
                let mut answers = Vec::new();
                let asked = tokio::time::timeout(PATIENCE, reader::ask(&client, &read, style, "", &mut answers)).await;
                let answered: Vec<Instant> = answers.into_iter().map(|(_, answered)| answered).collect();
                let ended = match asked {
                    Ok(Ok(())) => tokio::time::timeout(PATIENCE, reader::end(&client, style)).await,
                    Ok(Err(error)) => Ok(Err(error)),
                    Err(elapsed) => Err(elapsed),
                };
                match ended {
                    Ok(Ok(())) => answered.iter().for_each(|at| run.read_unpromised(at.since(begun_at))),
                    Ok(Err(_)) => drop(tokio::time::timeout(PATIENCE, client.batch_execute("rollback")).await),
                    // What comes of it belongs to nothing any more.
                    Err(_) => break,
                }
                reads += 1;
                tokio::time::sleep(run.read_pause()).await;
            }
        }
    }
}
