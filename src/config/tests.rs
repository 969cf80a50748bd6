//! The example file against the structs, and relations across sections.

use super::shape::Shape;
use super::*;
use crate::wiring::reload::is_live;
use std::collections::BTreeMap;

const EXAMPLE: &str = include_str!("../../configs/example.toml");

/// A file that is right for every role.
fn good() -> String {
    EXAMPLE.to_owned()
}

fn problems(text: &str) -> Vec<String> {
    check(text, None).err().unwrap_or_default().iter().map(ToString::to_string).collect()
}

/// `text` with the value of `key` (of the section that stands last before it) replaced.
fn with(text: &str, section: &str, key: &str, value: &str) -> String {
    let mut current = String::new();
    let mut changed = false;
    let mut out = String::new();
    for line in text.lines() {
        if line.starts_with('[') {
            current = line.trim_matches(['[', ']']).to_owned();
        }
        // One that is not set by default is shown as a comment.
        let shown = line.strip_prefix('#').unwrap_or(line);
        if !changed && current == section && shown.starts_with(&format!("{key} = ")) {
            out.push_str(&format!("{key} = {value}\n"));
            changed = true;
        } else {
            out.push_str(line);
            out.push('\n');
        }
    }
    assert!(changed, "the example has no {section}.{key}");
    out
}

#[test]
fn the_example_is_accepted() {
    assert_eq!(problems(EXAMPLE), Vec::<String>::new());
}

/// Comment lines directly above each key, by full dotted key.
fn comments() -> BTreeMap<String, String> {
    let (mut section, mut comment) = (String::new(), String::new());
    let mut all = BTreeMap::new();
    for line in EXAMPLE.lines() {
        if let Some(header) = line.strip_prefix('[') {
            section = header.trim_end_matches(']').to_owned();
            all.insert(section.clone(), std::mem::take(&mut comment));
        } else if let Some((key, _)) = line.split_once(" = ").filter(|_| !line.starts_with("# ")) {
            let key = key.trim_start_matches('#');
            let full = if section.is_empty() { key.to_owned() } else { format!("{section}.{key}") };
            all.insert(full, std::mem::take(&mut comment));
        } else if let Some(text) = line.strip_prefix("# ") {
            comment.push_str(text);
            comment.push(' ');
        } else {
            comment.clear();
        }
    }
    all
}

#[test]
fn every_key_is_in_the_example_with_its_meaning_and_default() {
    let comments = comments();
    let mut lacking = Vec::new();
    for key in Shape::of::<RawConfig>().leaves() {
        match comments.get(&key) {
            None => lacking.push(format!("{key} is not in configs/example.toml")),
            Some(c) if c.len() < 40 => lacking.push(format!("{key} has no explanation")),
            Some(c) if !c.contains("efault") => lacking.push(format!("{key} does not say its default")),
            Some(c) if is_live(&key) != c.contains("Reload to change.") => {
                lacking.push(format!("{key} does not say truly whether a reload changes it"));
            }
            Some(c) if !["Reload to change.", "Restart to change.", "Used once."].iter().any(|w| c.contains(w)) => {
                lacking.push(format!("{key} does not say when a change takes effect"));
            }
            Some(_) => {}
        }
    }
    assert!(lacking.is_empty(), "\n{}", lacking.join("\n"));
}

#[test]
fn every_key_of_the_example_parses_and_states_the_real_default() {
    // Keys without a value of their own are commented out, as `#key = value`.
    let uncommented: String = EXAMPLE
        .lines()
        .map(|l| {
            l.strip_prefix('#').filter(|r| !r.starts_with(' ') && r.contains(" = ")).unwrap_or(l).to_owned() + "\n"
        })
        .collect();
    let shape = Shape::of::<RawConfig>();
    let parsed = parse::parse::<RawConfig>(&uncommented, &shape);
    assert_eq!(parsed.problems, Vec::new());

    // Once through the structs, so that 60s and 1min are the same.
    let stated: toml::Table = EXAMPLE.parse().unwrap();
    let example = toml::Table::try_from(parse::parse::<RawConfig>(EXAMPLE, &shape).raw).unwrap();
    let defaults = toml::Table::try_from(RawConfig::default()).unwrap();
    let comments = comments();
    let mut wrong = Vec::new();
    for key in shape.leaves() {
        let (shown, real) = (parse::value_at(&stated, &key), parse::value_at(&defaults, &key));
        let comment = &comments[&key];
        if comment.contains("No default") {
            assert!(shown.is_some(), "{key} must be given, so the example gives it");
        } else if comment.contains("Default none") {
            let empty = real.is_none_or(|v| match v {
                toml::Value::Array(a) => a.is_empty(),
                toml::Value::Table(t) => t.is_empty(),
                toml::Value::String(s) => s.is_empty(),
                _ => false,
            });
            assert!(empty, "{key} says it has no default and has {real:?}");
            assert!(shown.is_none(), "{key} has no default, so the example comments it out");
        } else {
            assert_eq!(parse::value_at(&example, &key), real, "{key}: the example's value is its default");
            let text = match shown {
                Some(toml::Value::String(text)) => text.clone(),
                Some(value @ (toml::Value::Integer(_) | toml::Value::Boolean(_))) => value.to_string(),
                // A list is described in words.
                _ => String::new(),
            };
            if !comment.contains(&format!("efault {text}")) && !text.is_empty() {
                wrong.push(format!("{key} = {text}: its comment names another default: {comment}"));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn relations_between_sections_name_both_keys() {
    let cases = [
        (
            with(&good(), "lagmon", "probe_interval", "\"900ms\""),
            vec![
                "lagmon.probe_interval = 900ms: must be below proxy.max_replay_lag (1s) / 2, or no standby is ever fresh",
            ],
        ),
        (
            with(&good(), "proxy", "hold_timeout", "\"3s\""),
            vec![
                "proxy.hold_timeout = 3s: must be above manager.detect_timeout (1s) + agent.lease_ttl (3s), or \
                 statements give up before a failover can end",
            ],
        ),
        (
            with(&with(&good(), "proxy", "hold_timeout", "\"13s\""), "manager", "lease_ttl", "\"12s\""),
            vec![
                "proxy.hold_timeout = 13s: must be above manager.detect_timeout (1s) + manager.lease_ttl (12s), or \
                 statements give up before a failover can end",
            ],
        ),
        // A registration's time to live bounds no failover.
        (with(&good(), "etcd", "lease_ttl", "\"40s\""), vec![]),
        (
            with(&good(), "agent", "node", "\"n9\""),
            vec!["agent.node = n9: is not among cluster.voters (n1, n2, n3), and agent.joins is not set"],
        ),
        (
            with(&good(), "agent", "parameters", "{ max_wal_senders = \"4\", Superuser_reserved_connections = \"3\" }"),
            vec![
                "agent.parameters.max_wal_senders = 4: at least 5 for the 3 of cluster.voters: two for each other one, and the \
                 agent's",
                "agent.parameters.superuser_reserved_connections = 3: at least 5: the agent's sessions, which must not be kept out",
            ],
        ),
        (
            with(&with(&good(), "cluster", "k", "2"), "agent", "parameters", "{ max_replication_slots = \"1\" }"),
            vec![
                "agent.parameters.max_replication_slots = 1: at least 2: where cluster.k is 2 or more each other node has a slot",
            ],
        ),
        (
            with(&good(), "agent", "parameters", "{ max_connections = \"30\", reserved_connections = \"22\" }"),
            vec![
                "agent.parameters.superuser_reserved_connections = 3: at least 5: the agent's sessions, which must not be kept out",
            ],
        ),
        (with(&good(), "agent", "parameters", "{ max_connections = \"30\", reserved_connections = \"20\" }"), vec![]),
        (
            with(&good(), "agent", "listen", "\"127.0.0.1:7400\""),
            vec!["agent.listen = \"127.0.0.1:7400\": is also admin.listen"],
        ),
    ];
    for (text, expected) in cases {
        let found = problems(&text);
        assert_eq!(found, expected);
    }
}

#[test]
fn a_key_that_was_removed_says_what_is_meant() {
    let text = good().replace("[etcd]\n", "[etcd]\nlease_margin = \"500ms\"\n");
    let why = "it never had an effect; the primary's is agent.lease_margin, so remove this one";
    let found = check(&text, None).expect("an older file is good").removed;
    assert_eq!(
        found.iter().map(ToString::to_string).collect::<Vec<_>>(),
        [format!("etcd.lease_margin: is no more; {why}")]
    );
    assert_eq!(
        problems(&text.replace("[etcd]\n", "[etcd]\nttl = 1\n")).len(),
        2,
        "beside what is wrong it is told too"
    );
}

#[test]
fn a_section_of_a_role_that_is_not_played_is_not_checked() {
    let text = "roles = [\"lagmon\"]\n[cluster]\nname = \"demo\"\n";
    assert_eq!(problems(text), Vec::<String>::new());
    let text = "roles = [\"agent\"]\n[cluster]\nname = \"demo\"\n";
    let found = problems(text).join("\n");
    assert!(found.contains("cluster.voters") && found.contains("agent.data_dir"), "{found}");
}

#[test]
fn a_file_without_roles_is_refused_and_problems_come_in_the_order_of_lines() {
    assert_eq!(
        problems(""),
        [
            "roles = []: name at least one of proxy, lagmon, agent, manager",
            "cluster.name = : expected 1 to 63 letters, digits, _ or -",
        ]
    );
    let found = check("roles = [\"proxi\"]\n[admin]\nlisten = \"x\"\nadvertise = \"y\"\n", None).unwrap_err();
    let lines: Vec<_> = found.iter().map(|p| p.line).collect();
    assert!(lines.is_sorted_by_key(|l| l.unwrap_or(usize::MAX)), "{found:?}");
    assert_eq!(lines[0], Some(1));
}
