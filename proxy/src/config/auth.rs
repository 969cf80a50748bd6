//! The `[proxy.auth]` table: who may log in, and with what we log in to servers.

use crate::auth::rules::Rules;
use crate::config::key_of;
use cluster::config::BadSetting;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// `[proxy.auth]` as typed.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Raw {
    /// Who may log in from where and how, as lines of a pg_hba.conf: TYPE DATABASE USER [ADDRESS] METHOD; the first
    /// that fits decides. Default two: every user by scram-sha-256, from anywhere and over the Unix socket.
    pub rules: Vec<String>,
    /// File in the form of a userlist with what we log in to servers with as each user; goes before what the client's
    /// own login leaves. Default none: what the client's login leaves, or the userlist's password or MD5 hash.
    pub server_userlist: Option<PathBuf>,
    /// Answer servers that ask for an MD5 hash. Default false: whoever hears it can guess the password.
    pub server_md5: bool,
    /// Answer servers that ask for the password itself. Default false: whoever answers at a server's address gets it.
    pub server_password: bool,
    /// Logins that one worker works on at the same time; more wait for their turn, within `login_timeout`. Default 256.
    pub max_logins: usize,
}

impl Default for Raw {
    fn default() -> Self {
        Self {
            rules: vec!["local all all scram-sha-256".to_owned(), "host all all all scram-sha-256".to_owned()],
            server_userlist: None,
            server_md5: false,
            server_password: false,
            max_logins: 256,
        }
    }
}

/// `[proxy.auth]` checked. Each field means what its key in [`Raw`] says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Auth {
    /// `rules`
    pub rules: Rules,
    /// `server_userlist`
    pub server_userlist: Option<PathBuf>,
    /// `server_md5`
    pub server_md5: bool,
    /// `server_password`
    pub server_password: bool,
    /// `max_logins`
    pub max_logins: usize,
}

/// Check it.
///
/// # Errors
/// Every setting that cannot be used.
pub(super) fn check(raw: &Raw) -> Result<Auth, Vec<BadSetting>> {
    let mut bad = Vec::new();
    if !(1..=100_000).contains(&raw.max_logins) {
        bad.push(BadSetting::new(&key_of("auth.max_logins"), raw.max_logins, "must be between 1 and 100000"));
    }
    let rules = Rules::parse(&raw.rules).unwrap_or_else(|problems| {
        let tell = |(i, problem): (usize, crate::auth::rules::BadRule)| {
            BadSetting::new(&key_of("auth.rules"), format!("{:?}", raw.rules[i]), problem.to_string())
        };
        bad.extend(problems.into_iter().map(tell));
        Rules::default()
    });
    if !bad.is_empty() {
        return Err(bad);
    }
    Ok(Auth {
        rules,
        server_userlist: raw.server_userlist.clone(),
        server_md5: raw.server_md5,
        server_password: raw.server_password,
        max_logins: raw.max_logins,
    })
}
