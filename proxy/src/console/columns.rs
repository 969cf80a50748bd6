//! The columns of every table, with PgBouncer's names and types where it has the table.
//!
//! Source: src/admin.c and src/stats.c of PgBouncer 1.25.

use crate::console::command::{Command, Show};
use crate::console::table::Column;
use crate::console::table::Kind::{Int4, Int8, Numeric, Text};

const SOCKETS: &[Column] = &[
    ("type", Text),
    ("user", Text),
    ("database", Text),
    ("replication", Text),
    ("state", Text),
    ("addr", Text),
    ("port", Int4),
    ("local_addr", Text),
    ("local_port", Int4),
    ("connect_time", Text),
    ("request_time", Text),
    ("wait", Int4),
    ("wait_us", Int4),
    ("close_needed", Int4),
    ("ptr", Text),
    ("link", Text),
    ("remote_pid", Int4),
    ("tls", Text),
    ("application_name", Text),
    ("prepared_statements", Int4),
    ("id", Int8),
    // Ours.
    ("node", Text),
];

const DATABASES: &[Column] = &[
    ("name", Text),
    ("host", Text),
    ("port", Int4),
    ("database", Text),
    ("force_user", Text),
    ("pool_size", Int4),
    ("min_pool_size", Int4),
    ("reserve_pool_size", Int4),
    ("server_lifetime", Int4),
    ("pool_mode", Text),
    ("load_balance_hosts", Text),
    ("max_connections", Int4),
    ("current_connections", Int4),
    ("max_client_connections", Int4),
    ("current_client_connections", Int4),
    ("paused", Int4),
    ("disabled", Int4),
    // As older versions called it; exporters that know those ask for nothing else.
    ("reserve_pool", Int4),
];

const POOLS: &[Column] = &[
    ("database", Text),
    ("user", Text),
    ("cl_active", Int4),
    ("cl_waiting", Int4),
    ("cl_active_cancel_req", Int4),
    ("cl_waiting_cancel_req", Int4),
    ("sv_active", Int4),
    ("sv_active_cancel", Int4),
    ("sv_being_canceled", Int4),
    ("sv_idle", Int4),
    ("sv_used", Int4),
    ("sv_tested", Int4),
    ("sv_login", Int4),
    ("maxwait", Int4),
    ("maxwait_us", Int4),
    ("pool_mode", Text),
    ("load_balance_hosts", Text),
];

const USERS: &[Column] = &[
    ("name", Text),
    ("pool_size", Text),
    ("reserve_pool_size", Text),
    ("pool_mode", Text),
    ("max_user_connections", Int4),
    ("current_connections", Int4),
    ("max_user_client_connections", Int4),
    ("current_client_connections", Int4),
];

const STATS: &[Column] = &[
    ("database", Text),
    ("total_server_assignment_count", Numeric),
    ("total_xact_count", Numeric),
    ("total_query_count", Numeric),
    ("total_received", Numeric),
    ("total_sent", Numeric),
    ("total_xact_time", Numeric),
    ("total_query_time", Numeric),
    ("total_wait_time", Numeric),
    ("total_client_parse_count", Numeric),
    ("total_server_parse_count", Numeric),
    ("total_bind_count", Numeric),
    ("total_client_login_count", Numeric),
    ("avg_server_assignment_count", Numeric),
    ("avg_xact_count", Numeric),
    ("avg_query_count", Numeric),
    ("avg_recv", Numeric),
    ("avg_sent", Numeric),
    ("avg_xact_time", Numeric),
    ("avg_query_time", Numeric),
    ("avg_wait_time", Numeric),
    ("avg_client_parse_count", Numeric),
    ("avg_server_parse_count", Numeric),
    ("avg_bind_count", Numeric),
    ("avg_client_login_count", Numeric),
    // Queries, as older versions called them.
    ("total_requests", Numeric),
];

const STATS_PART: &[Column] = &[
    ("database", Text),
    ("server_assignment_count", Numeric),
    ("xact_count", Numeric),
    ("query_count", Numeric),
    ("bytes_received", Numeric),
    ("bytes_sent", Numeric),
    ("xact_time", Numeric),
    ("query_time", Numeric),
    ("wait_time", Numeric),
    ("client_parse_count", Numeric),
    ("server_parse_count", Numeric),
    ("bind_count", Numeric),
    ("client_login_count", Numeric),
];

const LAG: &[Column] = &[
    ("node", Text),
    ("freshness", Text),
    ("staleness_ms", Int8),
    ("replay_lag_ms", Int8),
    ("replay_lag_bytes", Int8),
    ("sample_age_ms", Int8),
    ("receive_lsn", Text),
    ("replay_lsn", Text),
    ("reason", Text),
    ("write_lag_ms", Int8),
    ("write_lag_bytes", Int8),
    ("flush_lag_ms", Int8),
    ("flush_lag_bytes", Int8),
    ("stream_age_ms", Int8),
    ("streams_from", Text),
    ("replay_pause", Text),
    ("apply_delay_ms", Int8),
    ("recovery_conflicts", Int8),
];

const THROTTLE: &[Column] =
    &[("slowing", Int4), ("delay_ms", Int8), ("cause", Text), ("lag", Text), ("max_delay_ms", Int8)];

const TOPOLOGY: &[Column] = &[
    ("node", Text),
    ("role", Text),
    ("host", Text),
    ("port", Int4),
    ("fenced", Int4),
    ("term", Int8),
    ("gate", Text),
    ("zone", Text),
];

const PREPARED: &[Column] =
    &[("name", Text), ("worker", Int4), ("references", Int8), ("query_bytes", Int8), ("query", Text)];

const PINS: &[Column] = &[
    ("id", Int8),
    ("database", Text),
    ("user", Text),
    ("node", Text),
    ("remote_pid", Int4),
    ("reasons", Text),
    ("state", Text),
];

/// The columns of a command's answer; `None` when it has no rows. One name is the caller's own: a setting's.
pub fn of(command: &Command) -> Option<Vec<Column>> {
    Some(match command {
        Command::Show(show) => return of_show(*show).map(<[Column]>::to_vec),
        Command::Setting(name, _) => vec![(name, Text)],
        Command::One => vec![("?column?", Int4)],
        Command::Version => vec![("version", Text)],
        Command::Order(..)
        | Command::WaitClose(_)
        | Command::KillClient(_)
        | Command::Reload
        | Command::Shutdown(_)
        | Command::Ignored(_) => {
            return None;
        }
    })
}

fn of_show(show: Show) -> Option<&'static [Column]> {
    Some(match show {
        Show::Clients | Show::Servers | Show::Sockets => SOCKETS,
        Show::Config => &[("key", Text), ("value", Text), ("default", Text), ("changeable", Text)],
        Show::Databases => DATABASES,
        // A notice.
        Show::Help => return None,
        Show::Lag => LAG,
        Show::Lists => &[("list", Text), ("items", Int4)],
        Show::Mem => &[("name", Text), ("size", Int4), ("used", Int4), ("free", Int4), ("memtotal", Int8)],
        Show::Pins => PINS,
        Show::Pools => POOLS,
        Show::Prepared => PREPARED,
        Show::State => &[("key", Text), ("value", Text)],
        Show::Stats => STATS,
        Show::StatsAverages | Show::StatsTotals => STATS_PART,
        Show::Throttle => THROTTLE,
        Show::Topology => TOPOLOGY,
        Show::Totals => &[("name", Text), ("value", Numeric)],
        Show::Users => USERS,
        Show::Version => &[("version", Text)],
    })
}
