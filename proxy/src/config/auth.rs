//! The `[proxy.auth]` table: who may log in, and with what we log in to servers.

use crate::auth::rules::Rules;
use crate::config::{PasswordFrom, key_of};
use cluster::config::{BadSetting, Span};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::time::Duration;

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
    /// SQL that looks up a user whom the userlist does not have: `$1` is its name, the second column its secret as in
    /// `pg_authid.rolpassword`. Name schemas; only `pg_catalog` is searched. Default none: the userlist has all users.
    pub query: Option<String>,
    /// The user that runs the query. Default none: needed with it.
    pub query_user: Option<String>,
    /// File holding that user's password. Default none.
    pub query_password_file: Option<PathBuf>,
    /// Environment variable holding that user's password. Default none.
    pub query_password_env: Option<String>,
    /// The database to run the query in. Default none: the one that the client asks for, and `postgres` for the console
    /// and for physical replication.
    pub query_database: Option<String>,
    /// How long one look-up may take. Default 5s: half of `login_timeout`.
    pub query_timeout: Span,
    /// How long a user that was found is not looked up again, unless its password is wrong. Default 60s.
    pub query_cache_ttl: Span,
    /// How long a user that was not found is not looked up again. Default 5s: it may be created at any time.
    pub query_negative_cache_ttl: Span,
    /// Logins that one worker works on at the same time; more wait for their turn, within `login_timeout`. A client that is
    /// waited for takes no turn. Default 256.
    pub max_logins: usize,
}

impl Default for Raw {
    fn default() -> Self {
        Self {
            rules: vec!["local all all scram-sha-256".to_owned(), "host all all all scram-sha-256".to_owned()],
            server_userlist: None,
            server_md5: false,
            server_password: false,
            query: None,
            query_user: None,
            query_password_file: None,
            query_password_env: None,
            query_database: None,
            query_timeout: Span::secs(5),
            query_cache_ttl: Span::secs(60),
            query_negative_cache_ttl: Span::secs(5),
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
    /// `query` and what belongs to it.
    pub query: Option<Query>,
    /// `max_logins`
    pub max_logins: usize,
}

/// `query` and the keys that begin with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// `query`
    pub text: String,
    /// `query_user`
    pub user: String,
    /// `query_password_file` or `query_password_env`
    pub password: PasswordFrom,
    /// `query_database`
    pub database: Option<String>,
    /// `query_timeout`
    pub timeout: Duration,
    /// `query_cache_ttl`
    pub cache_ttl: Duration,
    /// `query_negative_cache_ttl`
    pub negative_cache_ttl: Duration,
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
    let spans = [
        ("query_timeout", raw.query_timeout, Span::millis(100), Span::secs(600)),
        ("query_cache_ttl", raw.query_cache_ttl, Span::secs(0), Span::secs(24 * 3600)),
        ("query_negative_cache_ttl", raw.query_negative_cache_ttl, Span::secs(0), Span::secs(3600)),
    ];
    for (key, value, least, most) in spans {
        if value < least || value > most {
            let key = key_of(&format!("auth.{key}"));
            bad.push(BadSetting::new(&key, value, format!("must be between {least} and {most}")));
        }
    }
    let query = check_query(raw).unwrap_or_else(|problem| {
        bad.push(problem);
        None
    });
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
        query,
        max_logins: raw.max_logins,
    })
}

fn check_query(raw: &Raw) -> Result<Option<Query>, BadSetting> {
    if let (Some(path), Some(_)) = (&raw.query_password_file, &raw.query_password_env) {
        let problem = "proxy.auth.query_password_env is set as well: give one of them";
        return Err(BadSetting::new("proxy.auth.query_password_file", path.display(), problem));
    }
    let Some(text) = raw.query.clone() else { return Ok(None) };
    if !text.contains("$1") {
        let problem = "must take the user's name as the parameter $1";
        return Err(BadSetting::new("proxy.auth.query", format!("{text:?}"), problem));
    }
    let needed = || BadSetting::new("proxy.auth.query", format!("{text:?}"), "needs proxy.auth.query_user");
    let user = raw.query_user.clone().ok_or_else(needed)?;
    let password = match (&raw.query_password_file, &raw.query_password_env) {
        (Some(path), _) => PasswordFrom::File(path.clone()),
        (None, Some(name)) => PasswordFrom::Env(name.clone()),
        (None, None) => PasswordFrom::Nowhere,
    };
    let database = raw.query_database.clone();
    let (timeout, cache_ttl) = (raw.query_timeout.0, raw.query_cache_ttl.0);
    let negative_cache_ttl = raw.query_negative_cache_ttl.0;
    Ok(Some(Query { text, user, password, database, timeout, cache_ttl, negative_cache_ttl }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(raw: &Raw) -> Vec<String> {
        check(raw).err().unwrap_or_default().iter().map(BadSetting::to_string).collect()
    }

    #[test]
    fn a_rule_or_query_that_cannot_work_is_refused_with_its_reason() {
        let raw = Raw {
            rules: vec!["host all all all trusted".to_owned()],
            query: Some("select 1".to_owned()),
            max_logins: 0,
            ..Raw::default()
        };
        assert_eq!(
            problems(&raw),
            [
                "proxy.auth.max_logins = 0: must be between 1 and 100000",
                "proxy.auth.query = \"select 1\": must take the user's name as the parameter $1",
                "proxy.auth.rules = \"host all all all trusted\": \"trusted\" is not one of scram-sha-256, md5, \
                 password, cert, peer, trust, reject",
            ]
        );
        let raw = Raw { query: Some("select $1".to_owned()), ..Raw::default() };
        assert_eq!(problems(&raw), ["proxy.auth.query = \"select $1\": needs proxy.auth.query_user"]);
    }
}
