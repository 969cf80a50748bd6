//! What is said before a running cluster is taken over: the steps, what forbids it, and what changes. Functions of what was found.

use crate::config::agent::OWNED_PARAMETERS;
use crate::record::{MemberRecord, Mode};
use cluster::{Lsn, NodeId, TimelineId};
use std::collections::BTreeMap;

/// The running primary as it was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// `server_version_num`.
    pub version: u32,
    /// It is a standby.
    pub in_recovery: bool,
    /// PostgreSQL's system identifier.
    pub system_id: String,
    /// The timeline that it writes.
    pub timeline: TimelineId,
    /// How far it has written.
    pub lsn: Lsn,
    /// Its port.
    pub port: u16,
    /// Settings by name.
    pub settings: BTreeMap<String, String>,
    /// Those that its configuration sets otherwise than by default.
    pub changed: BTreeMap<String, String>,
    /// The user asking is a superuser.
    pub superuser: bool,
    /// The role `postgres`, which agents use, exists and is a superuser.
    pub has_postgres: bool,
    /// Replication slots.
    pub slots: Vec<String>,
    /// Tablespaces besides PostgreSQL's own.
    pub tablespaces: Vec<String>,
    /// Standbys by application_name.
    pub standbys: Vec<String>,
}

/// What the cluster is to become.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The node of the running primary.
    pub primary: NodeId,
    /// Who is to vote.
    pub voters: Vec<NodeId>,
    /// What a commit is promised.
    pub mode: Mode,
    /// Copies besides the primary's.
    pub k: u32,
    /// Members that have registered.
    pub members: BTreeMap<NodeId, MemberRecord>,
    /// A manager leads.
    pub led: bool,
}

/// What would be done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// What was found and what will be done, in order.
    pub steps: Vec<String>,
    /// What will be other than it is.
    pub notes: Vec<String>,
    /// What forbids it.
    pub obstacles: Vec<String>,
}

/// Settings that a standby must not have lower than its primary, or replay stops.
const SIZES: [&str; 5] = [
    "max_connections",
    "max_worker_processes",
    "max_prepared_transactions",
    "max_locks_per_transaction",
    "max_wal_senders",
];

/// Decide whether it can be done.
pub fn plan(found: &Found, wanted: &Wanted) -> Plan {
    let mut plan = Plan::default();
    check_server(found, senders_needed(wanted.voters.len()), &mut plan.obstacles);
    check_members(found, wanted, &mut plan.obstacles);
    notes(found, &mut plan.notes);
    let (primary, timeline, k) = (&wanted.primary, found.timeline, wanted.k);
    let standbys: Vec<&str> = wanted.voters.iter().filter(|v| *v != primary).map(NodeId::as_str).collect();
    let standbys = standbys.join(", ");
    plan.steps = vec![
        format!(
            "{primary}: PostgreSQL {}, system identifier {}, timeline {timeline}",
            found.version / 10_000,
            found.system_id
        ),
        format!(
            "on {primary}, running: create the roles pgtenure_repl and pgtenure_monitor and the table pgtenure.term"
        ),
        format!("in etcd: the cluster in term {timeline}, paused, commits waiting for nobody"),
        format!(
            "{standbys}, one after the other, each once the one before it streams: its agent stops PostgreSQL, moves its \
             directory, starts it as a standby of {primary} (seconds without reads there)"
        ),
        format!(
            "{primary}: stop PostgreSQL cleanly, move its directory; the managers open the next term (seconds without writes)"
        ),
        format!("once {k} of {standbys} stream, commits wait for {k}"),
    ];
    plan
}

/// Places for receivers of WAL that a primary needs: each other voter's, twice while it is copied anew, and the agent's.
pub const fn senders_needed(voters: usize) -> usize {
    let all = 2 * voters.saturating_sub(1) + 1;
    if all < 5 { 5 } else { all }
}

/// `max_wal_senders` where nothing else is configured.
pub const fn senders(voters: usize) -> usize {
    let needed = senders_needed(voters);
    if needed < 16 { 16 } else { needed }
}

fn check_server(found: &Found, needed: usize, obstacles: &mut Vec<String>) {
    let setting = |name: &str| found.settings.get(name).map_or("", String::as_str);
    let mut needs = |holds: bool, what: String| obstacles.extend((!holds).then_some(what));
    needs(found.version >= 130_000, format!("PostgreSQL {} found, 13 or later is needed", found.version / 10_000));
    needs(!found.in_recovery, "the server that was named is a standby; name the primary".into());
    needs(found.superuser, "a superuser is needed on the primary".into());
    needs(
        found.has_postgres,
        "the role postgres must exist and be a superuser: agents use it on the Unix socket".into(),
    );
    let level = setting("wal_level");
    needs(matches!(level, "replica" | "logical"), format!("wal_level is {level}: set it to replica and restart"));
    let rewinds = setting("wal_log_hints") == "on" || setting("data_checksums") == "on";
    needs(rewinds, "neither wal_log_hints nor data checksums are on: no old primary could be rewound".into());
    let senders: usize = setting("max_wal_senders").parse().unwrap_or(0);
    needs(senders >= needed, format!("max_wal_senders is {senders}, at least {needed} are needed"));
    let names = setting("synchronous_standby_names");
    let other = !names.is_empty() && !names.contains('*');
    needs(
        !other,
        format!(
            "synchronous_standby_names is '{names}': commits would wait for standbys that go by other names soon; empty it and reload"
        ),
    );
    needs(setting("fsync") == "on", "fsync is off: what a commit promises is not on disk".into());
}

fn check_members(found: &Found, wanted: &Wanted, obstacles: &mut Vec<String>) {
    if wanted.mode == Mode::Async {
        // Nothing would keep a standby from being promoted beside a primary that is not under its agent yet.
        obstacles.push("cluster.mode is async: adopt as strict or available, and change the mode afterwards".into());
    }
    if !wanted.led {
        obstacles.push("no manager leads: start the managers first".into());
    }
    for voter in &wanted.voters {
        let Some(member) = wanted.members.get(voter) else {
            obstacles.push(format!("{voter} has not registered: start its agent, with agent.adopt set"));
            continue;
        };
        match &member.system_id {
            Some(id) if *id == found.system_id => {}
            Some(id) => obstacles.push(format!("{voter} has another cluster's data: system identifier {id}")),
            None => obstacles.push(format!("{voter} has no data at its agent.adopt")),
        }
        if member.pg_version / 10_000 != found.version / 10_000 {
            let (theirs, ours) = (member.pg_version / 10_000, found.version / 10_000);
            obstacles.push(format!("{voter}'s agent.bin_dir is of PostgreSQL {theirs}, the primary runs {ours}"));
        }
    }
    let port = wanted.members.get(&wanted.primary).map(|m| m.postgres.port);
    if let Some(port) = port.filter(|p| *p != found.port) {
        let have = found.port;
        obstacles.push(format!("agent.postgres_port of {} is {port}, the primary listens on {have}", wanted.primary));
    }
}

fn notes(found: &Found, notes: &mut Vec<String>) {
    let setting = |name: &str| found.settings.get(name).map_or("", String::as_str);
    let names = setting("synchronous_standby_names");
    if !names.is_empty() {
        notes.push(format!(
            "synchronous_standby_names = '{names}' will be the agents'; writes wait while the standbys are taken over"
        ));
    }
    for slot in &found.slots {
        notes.push(format!(
            "replication slot {slot}: not used by agents; drop it when nobody needs it, or it keeps WAL"
        ));
    }
    for space in &found.tablespaces {
        notes.push(format!(
            "tablespace {space} stays where it is; a standby cloned later on the same host needs another place"
        ));
    }
    let owned = |name: &str| OWNED_PARAMETERS.iter().any(|(owned, _)| *owned == name);
    for (name, value) in found.changed.iter().filter(|(name, _)| !owned(name)) {
        let must = if SIZES.contains(&name.as_str()) { " (on no node lower, or its replay stops)" } else { "" };
        notes.push(format!("{name} = '{value}' holds on only if it is in agent.parameters{must}"));
    }
    notes.push(
        "pg_hba.conf becomes agent.pg_hba with the agents' own lines before it: who receives WAL needs a line there"
            .into(),
    );
    notes.push("disable whatever else starts these servers, as a unit of the distribution".into());
    for name in &found.standbys {
        notes.push(format!("standby {name} follows now"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Standing;
    use cluster::Endpoint;

    fn found() -> Found {
        let settings = [
            ("wal_level", "replica"),
            ("wal_log_hints", "off"),
            ("data_checksums", "on"),
            ("max_wal_senders", "10"),
            ("fsync", "on"),
        ];
        Found {
            version: 150_018,
            in_recovery: false,
            system_id: "77".into(),
            timeline: TimelineId(3),
            lsn: Lsn(0x5000),
            port: 5432,
            settings: settings.map(|(n, v)| (n.to_owned(), v.to_owned())).into(),
            changed: [("port".to_owned(), "5432".to_owned()), ("max_connections".into(), "300".into())].into(),
            superuser: true,
            has_postgres: true,
            slots: vec!["s2".into()],
            tablespaces: Vec::new(),
            standbys: vec!["walreceiver".into()],
        }
    }

    fn wanted() -> Wanted {
        let voters: Vec<NodeId> = ["n1", "n2", "n3"].map(|n| n.parse().unwrap()).to_vec();
        let at = |port| Endpoint { host: "h".into(), port };
        let member = |node: &NodeId| MemberRecord {
            node: node.clone(),
            postgres: at(5432),
            agent: at(7401),
            pg_version: 150_018,
            system_id: Some("77".into()),
            host: "h".into(),
            standing: Standing::default(),
            slots: true,
            holder: None,
        };
        let members = voters.iter().map(|v| (v.clone(), member(v))).collect();
        Wanted { primary: voters[0].clone(), voters, mode: Mode::Strict, k: 1, members, led: true }
    }

    #[test]
    fn a_cluster_that_fits_has_steps_and_no_obstacle() {
        let plan = plan(&found(), &wanted());
        assert_eq!(plan.obstacles, Vec::<String>::new());
        assert!(plan.steps[2].contains("term 3"), "{:?}", plan.steps);
        let notes = plan.notes.join("\n");
        assert!(notes.contains("slot s2") && notes.contains("max_connections = '300'"), "{notes}");
        assert!(!notes.contains("port ="), "the agent sets that itself: {notes}");
    }

    #[test]
    fn async_is_refused_whatever_number_of_copies_its_sessions_may_ask_for() {
        for (mode, refused) in [(Mode::Strict, false), (Mode::Available, false), (Mode::Async, true)] {
            let obstacles = plan(&found(), &Wanted { mode, ..wanted() }).obstacles;
            assert_eq!(obstacles.iter().any(|o| o.starts_with("cluster.mode is async")), refused, "{mode:?}");
        }
    }

    #[test]
    fn every_obstacle_is_named_at_once() {
        let mut found = Found { in_recovery: true, superuser: false, port: 5433, ..found() };
        found.settings.insert("wal_level".into(), "minimal".into());
        found.settings.insert("data_checksums".into(), "off".into());
        found.settings.insert("max_wal_senders".into(), "2".into());
        found.settings.insert("synchronous_standby_names".into(), "FIRST 1 (b)".into());
        let mut wanted = Wanted { led: false, mode: Mode::Async, ..wanted() };
        wanted.members.remove(&wanted.voters[2]);
        wanted.members.get_mut(&wanted.voters[1]).unwrap().system_id = Some("78".into());
        assert_eq!(plan(&found, &wanted).obstacles.len(), 11, "{:#?}", plan(&found, &wanted).obstacles);
    }
}
