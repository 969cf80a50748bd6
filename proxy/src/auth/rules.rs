//! Who may log in from where, and how it must prove itself: `proxy.auth.rules`, in the form of pg_hba.conf's lines.
//!
//! The first rule that fits a connection's kind, database, user and address decides; where none fits the connection is
//! refused. What a proxy cannot know (membership in roles, host names, this host's networks) is refused when the rules
//! are read, so that a rule never means less than its author thinks.
//! Source: PostgreSQL documentation, "The pg_hba.conf File".

mod parse;

use core::net::IpAddr;
use std::fmt;

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

#[cfg(test)]
mod tests;
