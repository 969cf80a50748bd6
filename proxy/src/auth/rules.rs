//! Who may log in from where, and how it must prove itself: `proxy.auth.rules`, in the form of pg_hba.conf's lines.
//!
//! The first rule that fits a connection's kind, database, user and address decides; where none fits the connection is
//! refused. What a proxy cannot know (membership in roles, host names, this host's networks) is refused when the rules
//! are read, so that a rule never means less than its author thinks.
//! Source: PostgreSQL documentation, "The pg_hba.conf File".

use core::net::IpAddr;
use std::fmt;
use std::str::FromStr;

/// The rules, in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules(Vec<Rule>);

/// One line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    kind: Kind,
    databases: Vec<Database>,
    users: Vec<User>,
    addresses: Addresses,
    method: Method,
    certificate: Certificate,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Local,
    Host,
    HostSsl,
    HostNoSsl,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Database {
    All,
    SameUser,
    Replication,
    Named(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum User {
    All,
    Named(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Addresses {
    All,
    Network { base: IpAddr, bits: u8 },
}

/// How a client proves who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// SCRAM-SHA-256, over TLS also -PLUS.
    Scram,
    /// An MD5 hash of password and challenge; SCRAM for users whose secret is a verifier, as PostgreSQL does it.
    Md5,
    /// The password itself.
    Password,
    /// A client certificate whose common name is the user.
    Cert,
    /// The operating system's user at the other end of a Unix-domain socket has the same name.
    Peer,
    /// It need not.
    Trust,
    /// It may not log in.
    Reject,
}

/// What is asked of a client's certificate besides the method's own proof.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Certificate {
    /// Nothing.
    #[default]
    None,
    /// `clientcert=verify-ca`: one that is valid.
    Valid,
    /// `clientcert=verify-full`: one whose common name is the user.
    OfUser,
}

/// The way a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// A Unix-domain socket.
    Local,
    /// TCP.
    Host {
        /// The client's address.
        address: IpAddr,
        /// Is it encrypted?
        tls: bool,
    },
}

/// A connection that asks to be let in.
#[derive(Clone, Copy, Debug)]
pub struct Attempt<'a> {
    /// Where it comes from.
    pub way: Way,
    /// The database asked for.
    pub database: &'a str,
    /// The user it claims to be.
    pub user: &'a str,
    /// It asks for physical replication, which belongs to no database.
    pub replication: bool,
}

/// What has to be proven.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Demand {
    /// How.
    pub method: Method,
    /// What is asked of its certificate as well.
    pub certificate: Certificate,
}

/// A line that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadRule {
    /// Fewer columns than needed.
    #[error("expected TYPE DATABASE USER [ADDRESS] METHOD, the address for all types but local")]
    Columns,
    /// The type.
    #[error("{0:?} is not one of local, host, hostssl, hostnossl")]
    Kind(String),
    /// The address.
    #[error("{0:?} is neither all nor an address with its number of bits, as in 10.0.0.0/8")]
    Address(String),
    /// The method.
    #[error("{0:?} is not one of scram-sha-256, md5, password, cert, peer, trust, reject")]
    Method(String),
    /// An option behind the method.
    #[error("{0:?} is not one of clientcert=verify-ca, clientcert=verify-full")]
    Option(String),
    /// A name the proxy cannot look up.
    #[error("{0:?} needs what only the server knows: name databases and users one by one, or all")]
    Unknowable(String),
    /// A quote without its end.
    #[error("a quote is not closed")]
    Quote,
    /// A method that cannot work with that type.
    #[error("method {method} does not go with type {kind}")]
    Mismatch {
        /// The method.
        method: &'static str,
        /// The type.
        kind: &'static str,
    },
}

impl Rules {
    /// Read the lines.
    ///
    /// # Errors
    /// Every line that cannot be used, with its index.
    pub fn parse(lines: &[String]) -> Result<Self, Vec<(usize, BadRule)>> {
        let (mut rules, mut bad) = (Vec::new(), Vec::new());
        for (i, line) in lines.iter().enumerate() {
            match line.parse() {
                Ok(rule) => rules.push(rule),
                Err(problem) => bad.push((i, problem)),
            }
        }
        if bad.is_empty() { Ok(Self(rules)) } else { Err(bad) }
    }

    /// What the first rule that fits demands; `None` where none fits.
    pub fn demand(&self, attempt: &Attempt<'_>) -> Option<Demand> {
        let rule = self.0.iter().find(|rule| rule.fits(attempt))?;
        Some(Demand { method: rule.method, certificate: rule.certificate })
    }

    /// Rules that let anybody in from another host, whom the network alone then guards.
    pub fn trusting(&self) -> impl Iterator<Item = &Rule> {
        self.0.iter().filter(|r| r.method == Method::Trust && r.kind != Kind::Local && !r.addresses.are_loopback())
    }

    /// Does any rule use the method?
    pub fn use_method(&self, method: Method) -> bool {
        self.0.iter().any(|r| r.method == method)
    }
}

impl Rule {
    fn fits(&self, attempt: &Attempt<'_>) -> bool {
        let way = match (self.kind, attempt.way) {
            (Kind::Local, Way::Local) => true,
            (Kind::Local, Way::Host { .. })
            | (Kind::Host | Kind::HostSsl | Kind::HostNoSsl, Way::Local)
            | (Kind::HostSsl, Way::Host { tls: false, .. })
            | (Kind::HostNoSsl, Way::Host { tls: true, .. }) => false,
            (Kind::Host | Kind::HostSsl | Kind::HostNoSsl, Way::Host { address, .. }) => {
                self.addresses.contain(address)
            }
        };
        let database = self.databases.iter().any(|d| match d {
            // As in PostgreSQL: `all` is every database, and physical replication is none.
            Database::All => !attempt.replication,
            Database::SameUser => !attempt.replication && attempt.database == attempt.user,
            Database::Replication => attempt.replication,
            Database::Named(name) => !attempt.replication && name == attempt.database,
        });
        let user = || {
            self.users.iter().any(|u| match u {
                User::All => true,
                User::Named(name) => name == attempt.user,
            })
        };
        way && database && user()
    }
}

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

/// For logs: the kind and the addresses are what makes a rule dangerous.
impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, method) = (self.kind.as_str(), self.method.as_str());
        match &self.addresses {
            Addresses::All => write!(f, "{kind} from all by {method}"),
            Addresses::Network { base, bits } => write!(f, "{kind} from {base}/{bits} by {method}"),
        }
    }
}

impl Method {
    /// The word of the rule.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Scram => "scram-sha-256",
            Self::Md5 => "md5",
            Self::Password => "password",
            Self::Cert => "cert",
            Self::Peer => "peer",
            Self::Trust => "trust",
            Self::Reject => "reject",
        }
    }
}

impl Kind {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Host => "host",
            Self::HostSsl => "hostssl",
            Self::HostNoSsl => "hostnossl",
        }
    }
}

impl Addresses {
    fn contain(&self, address: IpAddr) -> bool {
        match self {
            Self::All => true,
            // A listener for both families shows IPv4 clients as ::ffff:a.b.c.d.
            Self::Network { base, bits } => match (base, address.to_canonical()) {
                (IpAddr::V4(base), IpAddr::V4(a)) => {
                    let mask = u32::MAX.checked_shl(32 - u32::from(*bits)).unwrap_or(0);
                    (base.to_bits() ^ a.to_bits()) & mask == 0
                }
                (IpAddr::V6(base), IpAddr::V6(a)) => {
                    let mask = u128::MAX.checked_shl(128 - u32::from(*bits)).unwrap_or(0);
                    (base.to_bits() ^ a.to_bits()) & mask == 0
                }
                (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
            },
        }
    }

    fn are_loopback(&self) -> bool {
        match self {
            Self::All => false,
            Self::Network { base: IpAddr::V4(base), bits } => base.is_loopback() && *bits >= 8,
            Self::Network { base: IpAddr::V6(base), bits } => base.is_loopback() && *bits == 128,
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(lines: &[&str]) -> Rules {
        Rules::parse(&lines.iter().map(|&l| l.to_owned()).collect::<Vec<_>>()).expect("the test's rules are right")
    }

    fn host(address: &str, tls: bool) -> Way {
        Way::Host { address: address.parse().unwrap(), tls }
    }

    /// The method that `lines` demand of `user` for `database` from `origin`.
    fn check(lines: &[&str], way: Way, database: &str, user: &str, want: Option<Method>) {
        let attempt = Attempt { way, database, user, replication: false };
        assert_eq!(rules(lines).demand(&attempt).map(|d| d.method), want, "{lines:?} {attempt:?}");
    }

    #[test]
    fn the_first_rule_that_fits_decides() {
        let lines = ["host all all 10.0.0.0/8 reject", "host app ann all trust", "host all all all md5"];
        check(&lines, host("10.1.2.3", false), "app", "ann", Some(Method::Reject));
        check(&lines, host("11.1.2.3", false), "app", "ann", Some(Method::Trust));
        check(&lines, host("11.1.2.3", false), "app", "bob", Some(Method::Md5));
        check(&lines, Way::Local, "app", "ann", None);
    }

    #[test]
    fn the_type_tells_sockets_and_encryption_apart() {
        let lines = ["local all all peer", "hostssl all all all cert", "hostnossl all all all reject"];
        check(&lines, Way::Local, "d", "u", Some(Method::Peer));
        check(&lines, host("::1", true), "d", "u", Some(Method::Cert));
        check(&lines, host("::1", false), "d", "u", Some(Method::Reject));
        check(&["hostssl all all all scram-sha-256"], host("1.1.1.1", false), "d", "u", None);
    }

    #[test]
    fn networks_contain_what_their_bits_say() {
        for (network, inside, outside) in [
            ("192.168.4.0/22", "192.168.7.255", "192.168.8.0"),
            ("10.0.0.7/32", "10.0.0.7", "10.0.0.6"),
            ("0.0.0.0/0", "255.255.255.255", "::1"),
            ("2001:db8::/32", "2001:db8:ffff::1", "2001:db9::1"),
            ("::1/128", "::1", "::2"),
            ("10.0.0.0/8", "::ffff:10.1.1.1", "::ffff:11.1.1.1"),
        ] {
            let line = format!("host all all {network} trust");
            check(&[&line], host(inside, false), "d", "u", Some(Method::Trust));
            check(&[&line], host(outside, false), "d", "u", None);
        }
    }

    #[test]
    fn names_are_lists_and_quotes_take_a_keywords_meaning_away() {
        let lines = ["host \"all\", app , \"my db\" \"ann\",bob all trust", "host sameuser all all password"];
        let from = host("1.1.1.1", false);
        check(&lines, from, "all", "bob", Some(Method::Trust));
        check(&lines, from, "my db", "ann", Some(Method::Trust));
        check(&lines, from, "other", "ann", None);
        check(&lines, from, "eve", "eve", Some(Method::Password));
    }

    #[test]
    fn replication_belongs_to_no_database() {
        let rules = rules(&["host all all all trust", "host replication rep all md5"]);
        let attempt = |user| Attempt { way: host("1.1.1.1", false), database: "", user, replication: true };
        assert_eq!(rules.demand(&attempt("rep")).map(|d| d.method), Some(Method::Md5));
        assert_eq!(rules.demand(&attempt("other")), None);
    }

    #[test]
    fn a_certificate_can_be_asked_for_as_well() {
        let rules = rules(&["hostssl all all all scram-sha-256 clientcert=verify-full"]);
        let attempt = Attempt { way: host("1.1.1.1", true), database: "d", user: "u", replication: false };
        let want = Demand { method: Method::Scram, certificate: Certificate::OfUser };
        assert_eq!(rules.demand(&attempt), Some(want));
    }

    #[test]
    fn a_rule_that_cannot_mean_what_it_says_is_refused() {
        for (line, want) in [
            ("host all all", "expected TYPE DATABASE USER [ADDRESS] METHOD, the address for all types but local"),
            ("host all all all", "expected TYPE DATABASE USER [ADDRESS] METHOD, the address for all types but local"),
            ("hosts all all all md5", "\"hosts\" is not one of local, host, hostssl, hostnossl"),
            (
                "host all all 10.0.0.0 md5",
                "\"10.0.0.0\" is neither all nor an address with its number of bits, as in 10.0.0.0/8",
            ),
            (
                "host all all 10.0.0.0/33 md5",
                "\"10.0.0.0/33\" is neither all nor an address with its number of bits, as in 10.0.0.0/8",
            ),
            (
                "host all all samenet md5",
                "\"samenet\" is neither all nor an address with its number of bits, as in 10.0.0.0/8",
            ),
            ("host all all all gss", "\"gss\" is not one of scram-sha-256, md5, password, cert, peer, trust, reject"),
            (
                "host all +staff all md5",
                "\"+staff\" needs what only the server knows: name databases and users one by one, or all",
            ),
            ("host all \"ann all md5", "a quote is not closed"),
            ("host all all all peer", "method peer does not go with type host"),
            ("host all all all cert", "method cert or clientcert does not go with type host"),
            ("hostssl all all all md5 map=x", "\"map=x\" is not one of clientcert=verify-ca, clientcert=verify-full"),
            (
                "host all all all md5,",
                "expected TYPE DATABASE USER [ADDRESS] METHOD, the address for all types but local",
            ),
        ] {
            assert_eq!(line.parse::<Rule>().unwrap_err().to_string(), want, "{line}");
        }
    }

    #[test]
    fn trust_from_elsewhere_is_noticed() {
        let lines = [
            "local all all trust",
            "host all all 127.0.0.1/32 trust",
            "host all all ::1/128 trust",
            "host all all 10.0.0.0/8 trust",
            "host all all all trust",
        ];
        let found: Vec<String> = rules(&lines).trusting().map(ToString::to_string).collect();
        assert_eq!(found, ["host from 10.0.0.0/8 by trust", "host from all by trust"]);
    }
}
