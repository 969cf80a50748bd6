//! The userlist: users and their secrets, in the form PgBouncer reads.
//!
//! One user a line, both parts in double quotes, a quote inside doubled: `"alice" "SCRAM-SHA-256$4096:…$…:…"`. The
//! secret is a SCRAM verifier, an MD5 hash (`md5` and 32 hexadecimal digits), or else a password in plain text; an empty
//! one lets nobody in by password. Lines that start with `;` or `#` and blank lines are skipped; what follows the two
//! parts is ignored, as PgBouncer does.

use super::credentials::Credentials;
use super::md5::Md5Hash;
use super::scram::{BadVerifier, Verifier};
use crate::wire::lossless;
use cluster::secret::Secret;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

/// Largest file read, bytes.
const MAX_FILE: u64 = 64 << 20;

/// Users and their secrets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Userlist {
    users: BTreeMap<String, Stored>,
}

/// What is known of a user's password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stored {
    /// A SCRAM verifier.
    Scram(Verifier),
    /// An MD5 hash.
    Md5(Md5Hash),
    /// The password.
    Plain(Secret),
    /// That there is none.
    Nothing,
}

impl Stored {
    /// Read a secret as it stands in a userlist or in `pg_authid.rolpassword`.
    ///
    /// # Errors
    /// What begins like a verifier and is none.
    pub fn parse(secret: &str) -> Result<Self, BadVerifier> {
        if secret.is_empty() {
            return Ok(Self::Nothing);
        }
        if secret.starts_with("SCRAM-SHA-256$") {
            return secret.parse().map(Self::Scram);
        }
        Ok(secret.parse().map_or_else(|_| Self::Plain(Secret::new(secret)), Self::Md5))
    }

    /// What it is good for at servers. A verifier only tells whether others know the password.
    pub fn credentials(&self) -> Credentials {
        match self {
            Self::Scram(_) | Self::Nothing => Credentials::Nothing,
            Self::Md5(hash) => Credentials::Md5(hash.clone()),
            Self::Plain(password) => Credentials::Password(password.clone()),
        }
    }
}

/// A line of a userlist that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {problem}")]
pub struct BadLine {
    /// Its number, from 1.
    pub line: usize,
    /// What is wrong with it. Never the secret itself.
    pub problem: BadEntry,
}

/// What is wrong with a line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadEntry {
    /// Not two quoted strings.
    #[error("expected \"user\" \"secret\", both in double quotes")]
    Form,
    /// The user is empty.
    #[error("the user is empty")]
    NoUser,
    /// The user stands on an earlier line already.
    #[error("user {0:?} stands on an earlier line already")]
    Twice(String),
    /// What the password is cannot be said.
    #[error("user {0:?}: the password is not UTF-8")]
    Encoding(String),
    /// A broken verifier.
    #[error("user {user:?}: {source}")]
    Verifier {
        /// The user.
        user: String,
        /// What is wrong with it.
        source: BadVerifier,
    },
}

/// A userlist that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum LoadUserlistError {
    /// The file.
    #[error("could not read userlist {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Its content.
    #[error("userlist {path}, {source}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// The first bad line.
        source: BadLine,
    },
}

impl Userlist {
    /// Read a file. Blocks.
    ///
    /// # Errors
    /// The file cannot be read or holds a line that cannot be used.
    pub fn load(path: &Path) -> Result<Self, LoadUserlistError> {
        let failed = |source| LoadUserlistError::Read { path: path.to_owned(), source };
        let length = std::fs::metadata(path).map_err(failed)?.len();
        if length > MAX_FILE {
            return Err(failed(io::Error::other(format!("{length} bytes, {MAX_FILE} are the limit"))));
        }
        let text = std::fs::read(path).map_err(failed)?;
        Self::parse(&lossless::keep(&text)).map_err(|source| LoadUserlistError::Parse { path: path.to_owned(), source })
    }

    /// Parse a file's text, as [`lossless`] keeps it.
    ///
    /// # Errors
    /// The first line that cannot be used.
    pub fn parse(text: &str) -> Result<Self, BadLine> {
        let mut users = BTreeMap::new();
        for (i, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with([';', '#']) {
                continue;
            }
            let bad = |problem| BadLine { line: i + 1, problem };
            let (user, stored) = entry(line).map_err(bad)?;
            if users.insert(user.clone(), stored).is_some() {
                return Err(bad(BadEntry::Twice(user)));
            }
        }
        Ok(Self { users })
    }

    /// What is known of `user`; `None` when there is no such user.
    pub fn get(&self, user: &str) -> Option<&Stored> {
        self.users.get(user)
    }

    /// How many users there are.
    pub fn len(&self) -> usize {
        self.users.len()
    }

    /// Is there no user?
    pub fn is_empty(&self) -> bool {
        self.users.is_empty()
    }
}

/// A line for `user`, ready for a file.
pub fn line(user: &str, verifier: &Verifier) -> String {
    format!("\"{}\" \"{verifier}\"", user.replace('"', "\"\""))
}

fn entry(line: &str) -> Result<(String, Stored), BadEntry> {
    let (user, rest) = quoted(line).ok_or(BadEntry::Form)?;
    let (secret, _) = quoted(rest.trim_start()).ok_or(BadEntry::Form)?;
    if user.is_empty() {
        return Err(BadEntry::NoUser);
    }
    match Stored::parse(&secret) {
        Ok(Stored::Plain(_)) if !lossless::is_utf8(&secret) => Err(BadEntry::Encoding(user)),
        Ok(stored) => Ok((user, stored)),
        Err(source) => Err(BadEntry::Verifier { user, source }),
    }
}

/// A string in double quotes at the start of `text`, and what follows it.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut rest = text.strip_prefix('"')?;
    let mut value = String::new();
    loop {
        let (part, tail) = rest.split_once('"')?;
        value.push_str(part);
        match tail.strip_prefix('"') {
            Some(more) => {
                value.push('"');
                rest = more;
            }
            None => return Some((value, tail)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verifier() -> Verifier {
        Verifier::from_password("secret", [7; 16], 4096)
    }

    #[test]
    fn a_line_written_is_read_back() {
        let odd = "we\"ird user";
        let text = format!("; comment\n# too\n\n{}\n  {}  \n", line("alice", &verifier()), line(odd, &verifier()));
        let list = Userlist::parse(&text).unwrap();
        assert_eq!(list.len(), 2);
        assert_eq!(list.get("alice"), Some(&Stored::Scram(verifier())));
        assert_eq!(list.get(odd), Some(&Stored::Scram(verifier())));
        assert_eq!(list.get("Alice"), None);
    }

    #[test]
    fn every_form_of_pgbouncer_is_read() {
        let text = "\"a\" \"md50123456789abcdef0123456789ABCDEF\"\n\"b\" \"hunter\"\"2\" ignored\n\"c\" \"\"\n\"d\" \"md5short\"\n";
        let list = Userlist::parse(text).unwrap();
        let md5 = "md50123456789abcdef0123456789abcdef".parse().unwrap();
        assert_eq!(list.get("a"), Some(&Stored::Md5(md5)));
        assert_eq!(list.get("b"), Some(&Stored::Plain(Secret::new("hunter\"2"))));
        assert_eq!(list.get("c"), Some(&Stored::Nothing));
        // As PgBouncer and PostgreSQL take it: not a hash, so a password.
        assert_eq!(list.get("d"), Some(&Stored::Plain(Secret::new("md5short"))));
    }

    #[test]
    fn a_line_that_cannot_be_used_is_named_without_its_secret() {
        let v = verifier();
        for (text, want) in [
            ("alice x", "line 1: expected \"user\" \"secret\", both in double quotes".to_owned()),
            ("\n\"alice\" \"x", "line 2: expected \"user\" \"secret\", both in double quotes".to_owned()),
            ("\"\" \"x\"", "line 1: the user is empty".to_owned()),
            (
                "\"bob\" \"SCRAM-SHA-256$4096:AAAA$x:y\"",
                "line 1: user \"bob\": not a SCRAM-SHA-256 verifier: the StoredKey is not 32 bytes in base64"
                    .to_owned(),
            ),
            (
                &format!("\"a\" \"{v}\"\n\"a\" \"{v}\""),
                "line 2: user \"a\" stands on an earlier line already".to_owned(),
            ),
        ] {
            assert_eq!(Userlist::parse(text).unwrap_err().to_string(), want);
        }
    }

    #[test]
    fn names_are_bytes_and_passwords_are_not() {
        let of = |text: &[u8]| Userlist::parse(&lossless::keep(text));
        let list = of(b"\"gr\xfcn\" \"secret\"\n").unwrap();
        assert_eq!(list.get(&lossless::keep(b"gr\xfcn")), Some(&Stored::Plain(Secret::new("secret"))));
        let error = of(b"\"a\" \"gr\xfcn\"\n").unwrap_err();
        assert_eq!(error.to_string(), "line 1: user \"a\": the password is not UTF-8");
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = Userlist::load(Path::new("/nonexistent/userlist.txt")).unwrap_err();
        assert_eq!(error.to_string(), "could not read userlist /nonexistent/userlist.txt");
    }
}
