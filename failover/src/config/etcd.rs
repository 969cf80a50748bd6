//! The `[etcd]` section: where the cluster's records are kept, and the times that hang on them.

use cluster::config::{BadSetting, Span};
use cluster::secret::Secret;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::time::Duration;

/// The variable that overrides `etcd.password_file`.
pub const PASSWORD_VARIABLE: &str = "PGTENURE_ETCD_PASSWORD";

/// `[etcd]` as typed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Raw {
    /// URLs of all etcd members. Default: one on this host. List them all: a client that knows one member is down
    /// when that one is.
    pub endpoints: Vec<String>,
    /// All keys are below `<prefix>/<cluster.name>/`. Default `/pgtenure`: etcd is often shared.
    pub prefix: String,
    /// etcd user. Default none: etcd without authentication.
    pub username: Option<String>,
    /// File with that user's password; the variable PGTENURE_ETCD_PASSWORD wins over it. A new one in the file is taken by
    /// itself, as with `cert_file`. Default none.
    pub password_file: Option<PathBuf>,
    /// PEM file with the authorities that etcd's certificates are checked against. Default none: the certificates
    /// that https endpoints present must then be of no private authority, so https needs it in practice. A new file is
    /// taken by itself, as with `cert_file`.
    pub ca_file: Option<PathBuf>,
    /// PEM file with this process's client certificate. When a request to etcd fails and the file is another than it was, it
    /// is read again and taken if it gets in. Default none.
    pub cert_file: Option<PathBuf>,
    /// PEM file with the key of `cert_file`. Default none.
    pub key_file: Option<PathBuf>,
    /// How long to wait for a TCP connection to one endpoint. Default 300ms: members are in one region.
    pub connect_timeout: Span,
    /// Longest wait for the answer to one request, over all endpoints. Default 1s: longer than an answer takes while
    /// etcd is well, shorter than an etcd election, after which asking again finds the new leader.
    pub request_timeout: Span,
    /// Time to live of a proxy's registration, by which managers know whom a change of primary concerns; etcd grants more
    /// when its election timeout is longer. Default 3s: shorter ones expire in an etcd election. That of the primary's
    /// lease is `agent.lease_ttl`, that of the managers' `manager.lease_ttl`.
    pub lease_ttl: Span,
    /// How long a proxy may send writes on what it last read here, where safety hangs on time (async mode). A manager
    /// waits as long before it opens a new term past a proxy that is silent, and longer where that has told of a longer time.
    /// Default 2s: three attempts to read again fit.
    pub view_validity: Span,
}

impl Default for Raw {
    fn default() -> Self {
        Self {
            endpoints: vec!["http://127.0.0.1:2379".to_owned()],
            prefix: "/pgtenure".to_owned(),
            username: None,
            password_file: None,
            ca_file: None,
            cert_file: None,
            key_file: None,
            connect_timeout: Span::millis(300),
            request_timeout: Span::secs(1),
            lease_ttl: Span::secs(3),
            view_validity: Span::secs(2),
        }
    }
}

/// `[etcd]` checked. See [`Raw`] for what each field means.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// At least one URL.
    pub endpoints: Vec<String>,
    /// Starts with `/`.
    pub prefix: String,
    /// User and where the password comes from.
    pub login: Option<Login>,
    /// Certificates.
    pub tls: Tls,
    /// Per endpoint.
    pub connect_timeout: Duration,
    /// Per request.
    pub request_timeout: Duration,
    /// Of a proxy's registration. Asked for; what is granted counts.
    pub lease_ttl: Duration,
    /// T_p.
    pub view_validity: Duration,
}

/// How to log in to etcd.
#[derive(Clone, Debug, PartialEq)]
pub struct Login {
    /// etcd user.
    pub username: String,
    /// From the environment, if it was set there.
    pub password: Option<Secret>,
    /// Else from this file, read at the start, and again when a request has failed.
    pub password_file: Option<PathBuf>,
}

/// Files with certificates, read at the start, and again when a request has failed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// Authorities.
    pub ca_file: Option<PathBuf>,
    /// Client certificate and its key.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// Check the section. `password` is the value of [`PASSWORD_VARIABLE`], if set.
///
/// # Errors
/// Every setting that is out of range or contradicts another.
pub fn check(raw: Raw, password: Option<Secret>) -> Result<Config, Vec<BadSetting>> {
    let mut bad = times(&raw);
    bad.extend(addresses(&raw));
    let login = match (raw.username, raw.password_file, password) {
        (Some(username), password_file, password) => {
            if password_file.is_none() && password.is_none() {
                let problem = format!("needs etcd.password_file or the variable {PASSWORD_VARIABLE}");
                bad.push(BadSetting::new("etcd.username", &username, problem));
            }
            Some(Login { username, password, password_file })
        }
        (None, Some(file), _) => {
            let problem = "has no effect without etcd.username";
            bad.push(BadSetting::new("etcd.password_file", file.display(), problem));
            None
        }
        (None, None, _) => None,
    };
    let identity = match (raw.cert_file, raw.key_file) {
        (Some(cert), Some(key)) => Some((cert, key)),
        (None, None) => None,
        (Some(only), None) | (None, Some(only)) => {
            let problem = "etcd.cert_file and etcd.key_file belong together";
            bad.push(BadSetting::new("etcd.cert_file", only.display(), problem));
            None
        }
    };
    if !bad.is_empty() {
        return Err(bad);
    }
    Ok(Config {
        endpoints: raw.endpoints,
        prefix: raw.prefix.trim_end_matches('/').to_owned(),
        login,
        tls: Tls { ca_file: raw.ca_file, identity },
        connect_timeout: raw.connect_timeout.0,
        request_timeout: raw.request_timeout.0,
        lease_ttl: raw.lease_ttl.0,
        view_validity: raw.view_validity.0,
    })
}

fn addresses(raw: &Raw) -> Vec<BadSetting> {
    let mut bad = Vec::new();
    if raw.endpoints.is_empty() {
        bad.push(BadSetting::new("etcd.endpoints", "[]", "at least one is needed"));
    }
    for url in &raw.endpoints {
        let rest = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
        if rest.is_none_or(|host| host.is_empty() || host.contains('/')) {
            bad.push(BadSetting::new("etcd.endpoints", url, "expected http://HOST:PORT or https://HOST:PORT"));
        }
        let wants_tls = raw.ca_file.is_some() || raw.cert_file.is_some();
        if wants_tls && url.starts_with("http://") {
            let problem = "is not encrypted although etcd.ca_file or etcd.cert_file is set: use https://";
            bad.push(BadSetting::new("etcd.endpoints", url, problem));
        }
    }
    if !raw.prefix.starts_with('/') || raw.prefix.len() < 2 {
        bad.push(BadSetting::new("etcd.prefix", &raw.prefix, "must start with / and name something"));
    }
    bad
}

fn times(raw: &Raw) -> Vec<BadSetting> {
    let mut bad = Vec::new();
    let mut must = |ok: bool, key: &str, value: Span, problem: String| {
        if !ok {
            bad.push(BadSetting::new(key, value, problem));
        }
    };
    let zero = Span::millis(0);
    must(raw.connect_timeout > zero, "etcd.connect_timeout", raw.connect_timeout, "must be above 0s".into());
    must(
        raw.request_timeout >= Span::millis(100),
        "etcd.request_timeout",
        raw.request_timeout,
        "must be at least 100ms: an etcd write takes two disk flushes and a round trip".into(),
    );
    must(
        raw.lease_ttl >= Span::secs(1),
        "etcd.lease_ttl",
        raw.lease_ttl,
        "must be at least 1s, the least that etcd grants".into(),
    );
    must(
        raw.request_timeout.0 * 2 <= raw.lease_ttl.0,
        "etcd.request_timeout",
        raw.request_timeout,
        format!(
            "must be at most half of etcd.lease_ttl ({}): one lost renewal must not lose a proxy's registration",
            raw.lease_ttl
        ),
    );
    must(
        raw.view_validity >= Span::millis(500) && raw.view_validity <= raw.lease_ttl,
        "etcd.view_validity",
        raw.view_validity,
        format!("must be between 500ms and etcd.lease_ttl ({})", raw.lease_ttl),
    );
    bad
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(change: impl FnOnce(&mut Raw)) -> Vec<String> {
        let mut raw = Raw::default();
        change(&mut raw);
        check(raw, None).err().unwrap_or_default().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_defaults_are_valid() {
        assert_eq!(problems(|_| ()), Vec::<String>::new());
    }

    #[test]
    fn broken_relations_name_both_keys() {
        type Change = fn(&mut Raw);
        let cases: [(Change, &str); 8] = [
            (|r| r.endpoints.clear(), "etcd.endpoints = []: at least one is needed"),
            (
                |r| r.endpoints = vec!["127.0.0.1:2379".into()],
                "etcd.endpoints = 127.0.0.1:2379: expected http://HOST:PORT or https://HOST:PORT",
            ),
            (
                |r| r.ca_file = Some("/ca.pem".into()),
                "etcd.endpoints = http://127.0.0.1:2379: is not encrypted although etcd.ca_file or etcd.cert_file is set: use https://",
            ),
            (
                |r| r.username = Some("u".into()),
                "etcd.username = u: needs etcd.password_file or the variable PGTENURE_ETCD_PASSWORD",
            ),
            (|r| r.password_file = Some("/p".into()), "etcd.password_file = /p: has no effect without etcd.username"),
            (
                |r| r.request_timeout = Span::secs(2),
                "etcd.request_timeout = 2s: must be at most half of etcd.lease_ttl (3s): one lost renewal must not lose a proxy's registration",
            ),
            (
                |r| r.view_validity = Span::secs(4),
                "etcd.view_validity = 4s: must be between 500ms and etcd.lease_ttl (3s)",
            ),
            (|r| r.prefix = "/".into(), "etcd.prefix = /: must start with / and name something"),
        ];
        for (change, want) in cases {
            assert_eq!(problems(change), [want]);
        }
    }

    #[test]
    fn a_password_in_the_environment_needs_no_file_and_is_not_printed() {
        let raw = Raw { username: Some("u".into()), ..Raw::default() };
        let config = check(raw, Some(Secret::new("hush"))).unwrap();
        assert!(!format!("{config:?}").contains("hush"));
    }
}
