//! The two questions asked of a node, and how their answers are read. PostgreSQL 13 to 18.
//!
//! The first is asked at every probe and reads shared memory only. The second, for slots, senders and conflicts, is
//! asked less often: before PostgreSQL 15 statistics come from a file that is written for whoever asks.

use crate::model::detail::{Conflicts, NAMED, NodeDetail};
use crate::model::sample::{Facts, PrimaryFacts, StandbyFacts};
use cluster::lag::{Pause, ServerStart};
use cluster::{Endpoint, Lsn, TimelineId};
use serde::de::DeserializeOwned;
use std::time::Duration;
use tokio_postgres::Row;

/// An answer that cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AnswerError {
    #[error("a column is missing or of another type")]
    Column(#[source] tokio_postgres::Error),
    #[error("{column} is {value:?}, which cannot be read")]
    Unreadable { column: &'static str, value: String },
}

/// The major version of `server_version` as the server reports it ("15.14 (Debian …)", "18beta1"); 13 when it does
/// not, whose questions every later version understands.
pub(crate) fn major(server_version: Option<&str>) -> u32 {
    let text = server_version.unwrap_or_default();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    text[..digits].parse().unwrap_or(13)
}

/// Up to where the standbys that commits wait for have confirmed them, by one position of theirs (flushed, or applied), as many of
/// them as have to. Between `ANY` (or nothing) and the list, the setting has the number. The senders by their function, as their
/// view asks for sessions too, of which a statement sees what it saw first.
fn by_list(position: &str) -> String {
    format!(
        "\
(SELECT a.{position} FROM pg_stat_get_wal_senders() a WHERE a.sync_state IN ('sync', 'quorum')
  ORDER BY a.{position} DESC NULLS LAST LIMIT 1
 OFFSET coalesce(substring(current_setting('synchronous_standby_names') FROM '([0-9]+) *[(]')::int, 1) - 1)"
    )
}

/// Do commits wait for standbys by default? Then what these have confirmed stays confirmed. By settings alone, so that it cannot
/// contradict what is found out beside it.
const BY_LIST: &str = "current_setting('synchronous_standby_names') <> '' \
                       AND current_setting('synchronous_commit') NOT IN ('local', 'off')";

/// What a primary is asked for, in this order, so that who comes to wait later is not covered by what was flushed or confirmed
/// before: its positions; what standbys have confirmed; and then, once, who waits for them, and for how long the oldest such
/// command runs by the node's clock, negative where one has begun later than now, by a clock that was set back since.
fn of_primary() -> String {
    let (flushed, applied) = (by_list("flush_lsn"), by_list("replay_lsn"));
    format!(
        "\
SELECT p.*, s.waiting, s.waits_ms
  FROM (SELECT CASE WHEN NOT r.in_recovery THEN pg_current_wal_insert_lsn() END AS insert_lsn,
               CASE WHEN NOT r.in_recovery THEN pg_current_wal_flush_lsn() END AS flush_lsn,
               CASE WHEN NOT r.in_recovery THEN {flushed} END AS flushed,
               CASE WHEN NOT r.in_recovery THEN {applied} END AS applied OFFSET 0) p
 CROSS JOIN LATERAL (
       SELECT count(*) > 0 AS waiting,
              (extract(epoch FROM CASE WHEN min(w.age) < interval '0' THEN min(w.age) ELSE max(w.age) END) * 1000)::float8
                  AS waits_ms
         FROM (SELECT clock_timestamp() - coalesce(b.state_change, b.backend_start) AS age
                 FROM pg_stat_activity b WHERE b.wait_event = 'SyncRep' AND p.insert_lsn IS NOT NULL) w OFFSET 0) s"
    )
}

/// Asks a server for its system identifier and when it was started, once per connection: neither changes. `start`: the latter
/// may be asked.
pub(crate) fn identity(start: bool) -> String {
    let start = if start { ServerStart::EXPRESSION } else { "NULL::bigint" };
    format!("SELECT system_identifier::text, {start} AS started FROM pg_control_system()")
}

/// Commits wait for nobody where the list is empty, and where it is for those that ask: what this session has by default is what
/// the cluster's mode says. Then what is flushed is confirmed, while nobody is seen to wait: a list that is emptied is so for
/// those that wait a moment later than for those that ask.
const WAIT_FOR_NOBODY: &str = "(current_setting('synchronous_standby_names') = '' \
                               OR current_setting('synchronous_commit') IN ('local', 'off')) AND NOT x.waiting";

/// Asks a node for its positions. The branches of CASE are not evaluated on a node of the other kind, where they would
/// fail; OFFSET 0 keeps what is asked from being asked more than once, or in another order. `silent_ms` compares two times of
/// the node's own clock. A delay is shown with a unit that interval understands.
pub(crate) fn positions(major: u32) -> String {
    let pause = if major >= 14 {
        "pg_get_wal_replay_pause_state()"
    } else {
        "CASE WHEN pg_is_wal_replay_paused() THEN 'paused' ELSE 'not paused' END"
    };
    let of_primary = of_primary();
    format!(
        "\
SELECT r.in_recovery,
       x.insert_lsn::text AS insert_lsn,
       x.flush_lsn::text AS flush_lsn,
       CASE WHEN NOT r.in_recovery THEN pg_walfile_name(x.insert_lsn) END AS walfile,
       (CASE WHEN {WAIT_FOR_NOBODY} THEN x.flush_lsn ELSE x.flushed END)::text AS confirmed_lsn,
       (CASE WHEN {WAIT_FOR_NOBODY} THEN x.flush_lsn ELSE x.applied END)::text AS applied_lsn,
       x.waits_ms AS waits_ms,
       ({BY_LIST}) AS confirmed_by_list,
       CASE WHEN r.in_recovery THEN pg_last_wal_replay_lsn()::text END AS replay_lsn,
       CASE WHEN r.in_recovery THEN pg_last_wal_receive_lsn()::text END AS receive_lsn,
       CASE WHEN r.in_recovery THEN {pause} END AS pause,
       CASE WHEN r.in_recovery THEN (extract(epoch FROM
            current_setting('recovery_min_apply_delay')::interval) * 1000)::float8 END AS apply_delay_ms,
       w.status AS status,
       w.written_lsn::text AS written_lsn,
       w.received_tli AS received_tli,
       w.sender_host AS sender_host,
       w.sender_port AS sender_port,
       (extract(epoch FROM clock_timestamp() - w.last_msg_receipt_time) * 1000)::float8 AS silent_ms
  FROM (SELECT pg_is_in_recovery() AS in_recovery OFFSET 0) r
 CROSS JOIN LATERAL ({of_primary}) x
  LEFT JOIN pg_stat_wal_receiver w ON r.in_recovery"
    )
}

/// Asks a node for its slots and senders, and a standby for its recovery conflicts, each as JSON; and for the versions of its
/// operating system's collations.
pub(crate) fn details(major: u32) -> String {
    let since = |from: u32, column: &str| if major >= from { column.to_owned() } else { "NULL".to_owned() };
    let inactive = since(17, "(extract(epoch FROM clock_timestamp() - s.inactive_since) * 1000)::bigint");
    let database = if major >= 15 {
        "UNION ALL SELECT 'database ' || pg_database_collation_actual_version(oid) FROM pg_database \
         WHERE datname = current_database()"
    } else {
        ""
    };
    let (reason, logicalslot) = (since(17, "s.invalidation_reason"), since(16, "sum(confl_active_logicalslot)"));
    format!(
        "\
WITH here AS (SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END AS lsn)
SELECT (SELECT json_agg(x)::text FROM (
          SELECT s.slot_name AS name, s.slot_type = 'logical' AS logical, s.active, s.wal_status,
                 greatest(pg_wal_lsn_diff(here.lsn, s.restart_lsn), 0)::bigint AS retained_bytes,
                 s.safe_wal_size AS safe_wal_bytes, {inactive} AS inactive_ms, {reason} AS invalidation_reason
            FROM pg_replication_slots s, here ORDER BY s.slot_name LIMIT {NAMED}) x) AS slots,
       (SELECT json_agg(x)::text FROM (
          SELECT a.application_name, a.state, a.sync_state,
                 EXISTS (SELECT FROM pg_replication_slots l
                          WHERE l.active_pid = a.pid AND l.slot_type = 'logical') AS logical,
                 greatest(pg_wal_lsn_diff(a.sent_lsn, a.flush_lsn), 0)::bigint AS unflushed_bytes
            FROM pg_stat_replication a ORDER BY a.application_name, a.pid LIMIT {NAMED}) x) AS senders,
       (SELECT json_build_object(
                 'tablespace', coalesce(sum(confl_tablespace), 0), 'lock', coalesce(sum(confl_lock), 0),
                 'snapshot', coalesce(sum(confl_snapshot), 0), 'bufferpin', coalesce(sum(confl_bufferpin), 0),
                 'deadlock', coalesce(sum(confl_deadlock), 0), 'logicalslot', coalesce({logicalslot}, 0))::text
          FROM pg_stat_database_conflicts WHERE pg_is_in_recovery()) AS conflicts,
       (SELECT string_agg(x.what, ', ' ORDER BY x.what COLLATE \"C\") FROM (
          SELECT 'libc ' || max(pg_collation_actual_version(oid)) FROM pg_collation WHERE collprovider = 'c'
          UNION ALL SELECT 'icu ' || pg_collation_actual_version(oid) FROM pg_collation WHERE collname = 'und-x-icu'
          {database}) x(what)) AS collations"
    )
}

/// Who answers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Identity {
    pub(crate) system_id: u64,
    pub(crate) started: Option<ServerStart>,
}

/// Read the answer to [`identity`].
pub(crate) fn identified(row: &Row) -> Result<Identity, AnswerError> {
    let text: String = row.try_get(0).map_err(AnswerError::Column)?;
    let system_id = text.parse().map_err(|_| AnswerError::Unreadable { column: "system_identifier", value: text })?;
    let started = row.try_get::<_, Option<i64>>("started").map_err(AnswerError::Column)?.map(ServerStart);
    Ok(Identity { system_id, started })
}

/// Read the answer to [`positions`].
pub(crate) fn facts(row: &Row) -> Result<Facts, AnswerError> {
    let text = |column: &'static str| row.try_get::<_, Option<String>>(column).map_err(AnswerError::Column);
    let lsn = |column: &'static str| -> Result<Option<Lsn>, AnswerError> {
        let parse = |t: String| t.parse().map_err(|_| AnswerError::Unreadable { column, value: t });
        text(column)?.map(parse).transpose()
    };
    let number = |column: &'static str| row.try_get::<_, Option<i32>>(column).map_err(AnswerError::Column);
    let needed = |column: &'static str| lsn(column)?.ok_or(AnswerError::Unreadable { column, value: String::new() });
    let millis = |column: &'static str| {
        let ms = row.try_get::<_, Option<f64>>(column).map_err(AnswerError::Column)?;
        // A clock that was set back makes it negative: heard just now.
        Ok(ms.map(|ms| Duration::try_from_secs_f64(ms.max(0.0) / 1000.0).unwrap_or(Duration::MAX)))
    };
    if !row.try_get::<_, bool>("in_recovery").map_err(AnswerError::Column)? {
        let walfile = text("walfile")?.unwrap_or_default();
        let timeline = timeline_of(&walfile).ok_or(AnswerError::Unreadable { column: "walfile", value: walfile })?;
        let insert_lsn = needed("insert_lsn")?.normalised_insert();
        let (flush_lsn, confirmed_lsn) = (needed("flush_lsn")?, lsn("confirmed_lsn")?);
        let waits = row.try_get::<_, Option<f64>>("waits_ms").map_err(AnswerError::Column)?.map(waits);
        let applied_lsn = lsn("applied_lsn")?;
        let confirmed_by_list = row.try_get("confirmed_by_list").map_err(AnswerError::Column)?;
        let facts =
            PrimaryFacts { timeline, insert_lsn, flush_lsn, confirmed_lsn, confirmed_by_list, applied_lsn, waits };
        return Ok(Facts::Primary(facts));
    }
    let streaming = text("status")?.as_deref() == Some("streaming");
    let timeline = number("received_tli")?;
    let port = number("sender_port")?.and_then(|p| u16::try_from(p).ok());
    Ok(Facts::Standby(StandbyFacts {
        replay_lsn: lsn("replay_lsn")?,
        receive_lsn: lsn("receive_lsn")?,
        written_lsn: lsn("written_lsn")?,
        pause: pause(text("pause")?)?,
        apply_delay: millis("apply_delay_ms")?.unwrap_or_default(),
        streams: timeline.filter(|_| streaming).map(|t| TimelineId(t.cast_unsigned())),
        sender: text("sender_host")?.zip(port).map(|(host, port)| Endpoint { host, port }),
        silent: millis("silent_ms")?,
    }))
}

/// Nobody can tell since when one waits who has begun later than now.
fn waits(ms: f64) -> Duration {
    Duration::try_from_secs_f64(ms / 1000.0).unwrap_or(Duration::MAX)
}

/// Read the answer to [`details`].
pub(crate) fn detail(row: &Row) -> Result<NodeDetail, AnswerError> {
    fn json<T: DeserializeOwned>(row: &Row, column: &'static str) -> Result<Option<T>, AnswerError> {
        let Some(text) = row.try_get::<_, Option<String>>(column).map_err(AnswerError::Column)? else {
            return Ok(None);
        };
        serde_json::from_str(&text).map_err(|_| AnswerError::Unreadable { column, value: text })
    }
    Ok(NodeDetail {
        slots: json(row, "slots")?.unwrap_or_default(),
        senders: json(row, "senders")?.unwrap_or_default(),
        conflicts: json::<Conflicts>(row, "conflicts")?,
        collations: row.try_get("collations").map_err(AnswerError::Column)?,
    })
}

/// A state that we do not know is taken for a pause: then nothing is said to be fresh.
fn pause(state: Option<String>) -> Result<Option<Pause>, AnswerError> {
    match state.as_deref() {
        Some("not paused") => Ok(None),
        Some("pause requested") => Ok(Some(Pause::Requested)),
        Some(_) => Ok(Some(Pause::Paused)),
        None => Err(AnswerError::Unreadable { column: "pause", value: String::new() }),
    }
}

/// The timeline that a WAL file's name begins with. `pg_control` is of no use here: it has the last checkpoint's.
fn timeline_of(walfile: &str) -> Option<TimelineId> {
    walfile.get(..8).and_then(|hex| u32::from_str_radix(hex, 16).ok()).map(TimelineId)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_timeline_is_read_from_the_walfiles_name() {
        assert_eq!(timeline_of("0000001A0000000000000003"), Some(TimelineId(26)));
        for bad in ["", "0000", "zzzzzzzz0000000000000003"] {
            assert_eq!(timeline_of(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_server_is_asked_for_what_its_version_has() {
        let versions = [Some("13.22"), Some("15.14 (Debian 15.14-0+deb12u1)"), Some("18beta1"), Some("devel"), None];
        assert_eq!(versions.map(major), [13, 15, 18, 13, 13]);
        assert!(!positions(13).contains("pause_state") && positions(14).contains("pause_state"));
        let wants = |version| {
            ["confl_active_logicalslot", "inactive_since", "invalidation_reason"].map(|column| {
                details(version).contains(&format!("{column})")) || details(version).contains(&format!(".{column}"))
            })
        };
        assert_eq!([14, 15].map(|v| details(v).contains("pg_database_collation_actual_version")), [false, true]);
        assert_eq!([15, 16, 17].map(wants), [[false; 3], [true, false, false], [true; 3]]);
    }

    #[test]
    fn who_waits_since_later_than_now_may_wait_for_ever() {
        assert_eq!([0.0, 1500.0, -1.0].map(waits), [Duration::ZERO, Duration::from_millis(1500), Duration::MAX]);
    }

    #[test]
    fn a_pause_of_an_unknown_kind_is_a_pause() {
        let states = ["not paused", "pause requested", "paused", "something new"].map(|s| pause(Some(s.into())).ok());
        let want = [None, Some(Pause::Requested), Some(Pause::Paused), Some(Pause::Paused)];
        assert_eq!(states, want.map(Some));
        assert!(pause(None).is_err());
    }
}
