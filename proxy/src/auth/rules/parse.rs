//! A line of the rules, read.

use super::{Addresses, BadRule, Certificate, Database, Kind, Method, Rule, User};
use core::net::IpAddr;
use std::str::FromStr;

impl FromStr for Rule {
    type Err = BadRule;

    fn from_str(line: &str) -> Result<Self, BadRule> {
        let mut columns = columns(line)?.into_iter();
        let mut next = || columns.next().ok_or(BadRule::Columns);
        let kind = kind(&next()?)?;
        let databases = next()?.into_iter().map(Word::database).collect::<Result<_, _>>()?;
        let users = next()?.into_iter().map(Word::user).collect::<Result<_, _>>()?;
        let addresses = if kind == Kind::Local { Addresses::All } else { addresses(&single(next()?)?)? };
        let method = method(&single(next()?)?)?;
        let mut certificate = Certificate::None;
        for option in columns {
            certificate = match single(option)?.as_str() {
                "clientcert=verify-ca" => Certificate::Valid,
                "clientcert=verify-full" => Certificate::OfUser,
                other => return Err(BadRule::Option(other.to_owned())),
            };
        }
        let needs_tls = method == Method::Cert || certificate != Certificate::None;
        let mismatch = match kind {
            Kind::Local => needs_tls,
            Kind::HostSsl => method == Method::Peer,
            Kind::Host | Kind::HostNoSsl => needs_tls || method == Method::Peer,
        };
        if mismatch {
            let method = if needs_tls { "cert or clientcert" } else { method.as_str() };
            return Err(BadRule::Mismatch { method, kind: kind.as_str() });
        }
        Ok(Self { kind, databases, users, addresses, method, certificate })
    }
}

/// A word of a column; in quotes it is a name whatever it says.
struct Word {
    text: String,
    quoted: bool,
}

impl Word {
    fn database(self) -> Result<Database, BadRule> {
        Ok(match (self.quoted, self.text.as_str()) {
            (false, "all") => Database::All,
            (false, "sameuser") => Database::SameUser,
            (false, "replication") => Database::Replication,
            (false, "samerole" | "samegroup") => return Err(BadRule::Unknowable(self.text)),
            (false, text) if text.starts_with(['+', '@', '/']) => return Err(BadRule::Unknowable(self.text)),
            _ => Database::Named(self.text),
        })
    }

    fn user(self) -> Result<User, BadRule> {
        Ok(match (self.quoted, self.text.as_str()) {
            (false, "all") => User::All,
            (false, text) if text.starts_with(['+', '@', '/']) => return Err(BadRule::Unknowable(self.text)),
            _ => User::Named(self.text),
        })
    }
}

/// Cut a line into columns, each a list of words with commas between them.
fn columns(line: &str) -> Result<Vec<Vec<Word>>, BadRule> {
    let mut columns: Vec<Vec<Word>> = Vec::new();
    let (mut rest, mut joined) = (line.trim_start(), false);
    while !rest.is_empty() {
        let (word, after) = word(rest)?;
        match columns.last_mut() {
            Some(column) if joined => column.push(word),
            _ => columns.push(vec![word]),
        }
        let trimmed = after.trim_start();
        joined = trimmed.starts_with(',');
        rest = if joined { trimmed[1..].trim_start() } else { trimmed };
    }
    if joined { Err(BadRule::Columns) } else { Ok(columns) }
}

fn word(text: &str) -> Result<(Word, &str), BadRule> {
    if let Some(inner) = text.strip_prefix('"') {
        let (name, after) = inner.split_once('"').ok_or(BadRule::Quote)?;
        return Ok((Word { text: name.to_owned(), quoted: true }, after));
    }
    let end = text.find(|c: char| c.is_whitespace() || c == ',').unwrap_or(text.len());
    if end == 0 {
        return Err(BadRule::Columns);
    }
    Ok((Word { text: text[..end].to_owned(), quoted: false }, &text[end..]))
}

fn single(mut words: Vec<Word>) -> Result<String, BadRule> {
    let word = words.pop().ok_or(BadRule::Columns)?;
    if words.is_empty() { Ok(word.text) } else { Err(BadRule::Columns) }
}

fn kind(words: &[Word]) -> Result<Kind, BadRule> {
    match words {
        [word] => match word.text.as_str() {
            "local" => Ok(Kind::Local),
            "host" => Ok(Kind::Host),
            "hostssl" => Ok(Kind::HostSsl),
            "hostnossl" => Ok(Kind::HostNoSsl),
            other => Err(BadRule::Kind(other.to_owned())),
        },
        _ => Err(BadRule::Columns),
    }
}

fn addresses(text: &str) -> Result<Addresses, BadRule> {
    if text == "all" {
        return Ok(Addresses::All);
    }
    let bad = || BadRule::Address(text.to_owned());
    let (base, bits) = text.split_once('/').ok_or_else(bad)?;
    let base: IpAddr = base.parse().map_err(|_| bad())?;
    let most = if base.is_ipv4() { 32 } else { 128 };
    let bits = bits.parse().ok().filter(|bits| *bits <= most).ok_or_else(bad)?;
    Ok(Addresses::Network { base, bits })
}

fn method(text: &str) -> Result<Method, BadRule> {
    let all = [Method::Scram, Method::Md5, Method::Password, Method::Cert, Method::Peer, Method::Trust, Method::Reject];
    all.into_iter().find(|m| m.as_str() == text).ok_or_else(|| BadRule::Method(text.to_owned()))
}
