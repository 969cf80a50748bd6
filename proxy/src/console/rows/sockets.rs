//! Rows about connections: `SHOW CLIENTS`, `SERVERS` and `SOCKETS`, and when things happened.

use super::Facts;
use crate::console::table::{Cell, Row};
use crate::net::Origin;
use crate::pool::view::{ClientView, ServerView};
use crate::session::cancel::pid_of;
use crate::session::presence::Activity;
use cluster::Instant;
use std::time::Duration;

/// A moment as `2026-11-23 22:00:00 UTC`, from seconds since 1970.
pub(super) fn timestamp(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Days are counted from 1 March of year 0, so that leap days come last. H. Hinnant, chrono-compatible algorithms.
    let z = days + 719_468;
    let (era, of_era) = (z / 146_097, z % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let m = (5 * of_year + 2) / 153;
    let day = of_year - (153 * m + 2) / 5 + 1;
    let month = if m < 10 { m + 3 } else { m - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
}

/// `version/cipher`, as PgBouncer has it.
fn encryption(tls: Option<(&'static str, &'static str)>) -> String {
    tls.map_or(String::new(), |(version, cipher)| format!("{version}/{cipher}"))
}

pub(super) fn id_of(worker: usize, place: usize) -> u32 {
    pid_of(worker, place)
}

impl Facts<'_> {
    pub(super) fn wall_of(&self, moment: Instant) -> Cell {
        timestamp(self.wall.saturating_sub(self.now.since(moment).as_secs())).into()
    }

    pub(super) fn clients(&self) -> Vec<Row> {
        self.view.clients.iter().map(|c| self.client(c)).collect()
    }

    fn client(&self, c: &ClientView) -> Row {
        let (addr, port) = match c.origin {
            Origin::Tcp(addr) => (addr.ip().to_string(), addr.port()),
            Origin::Local { .. } => ("unix".to_owned(), 0),
        };
        let state = match c.activity {
            Activity::Idle => "idle",
            Activity::Waiting => "waiting",
            Activity::Active | Activity::InTransaction => "active",
        };
        let waited = if c.activity == Activity::Waiting { self.now.since(c.since) } else { Duration::ZERO };
        let id = id_of(c.worker, c.place);
        let link = c.server.as_ref().map_or(String::new(), |(node, pid)| format!("{node}:{pid}"));
        vec![
            "C".into(),
            c.user.clone().into(),
            c.database.clone().into(),
            c.replication.unwrap_or("none").into(),
            state.into(),
            addr.into(),
            port.into(),
            self.listen.ip().to_string().into(),
            self.listen.port().into(),
            self.wall_of(c.connected),
            self.wall_of(c.transaction_since.unwrap_or(c.since)),
            waited.as_secs().into(),
            waited.subsec_micros().into(),
            0u64.into(),
            format!("{id:#x}").into(),
            link.into(),
            0u64.into(),
            encryption(c.tls).into(),
            c.application_name.clone().into(),
            c.prepared.into(),
            id.into(),
            c.server.as_ref().map(|(node, _)| node.to_string()).into(),
        ]
    }

    pub(super) fn servers(&self) -> Vec<Row> {
        self.view.servers.iter().map(|s| self.server(s)).collect()
    }

    fn server(&self, s: &ServerView) -> Row {
        let member = self.topology.member(&s.node);
        let addr = s.addr.map(|a| a.ip().to_string()).or_else(|| member.map(|m| m.postgres.host.clone()));
        let port = s.addr.map(|a| a.port()).or_else(|| member.map(|m| m.postgres.port));
        let link = s.client.map_or(String::new(), |place| format!("{:#x}", id_of(s.worker, place)));
        vec![
            "S".into(),
            s.user.clone().into(),
            s.database.clone().into(),
            s.replication.unwrap_or("none").into(),
            s.state.as_str().into(),
            addr.unwrap_or_default().into(),
            port.unwrap_or_default().into(),
            "".into(),
            0u64.into(),
            self.wall_of(s.born),
            self.wall_of(s.since),
            0u64.into(),
            0u64.into(),
            // Closed as soon as it is free: RECONNECT, or a pause.
            self.doors.must_close(&s.database, s.born).into(),
            format!("{}:{}", s.node, s.pid).into(),
            link.into(),
            s.pid.into(),
            encryption(s.tls).into(),
            s.application_name.clone().into(),
            s.prepared.into(),
            s.pid.into(),
            s.node.to_string().into(),
        ]
    }
}
