//! TLS on both sides: towards clients and towards servers.

mod context;
pub mod live;
mod stream;
mod trust;
pub mod x509;

pub use context::{AcceptError, Acceptor, Connector, Contexts, LoadError, SecureError};
pub use stream::Tls;

use std::sync::Arc;

/// What TLS tells of the other end of a connection, and what a login can be bound to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The protocol version as PostgreSQL names it: `TLSv1.2` or `TLSv1.3`.
    pub version: &'static str,
    /// The name of the cipher suite.
    pub cipher: &'static str,
    /// A client's verified certificate, if it presented one. Of a server: `None`.
    pub certificate: Option<Certificate>,
    /// `tls-server-end-point`: the hash of the certificate that the server of this connection presented, which towards
    /// clients is ours. `None` when its signature algorithm defines none: SCRAM-SHA-256-PLUS is not possible then.
    pub server_end_point: Option<Arc<[u8]>>,
}

/// A client's certificate, verified against `proxy.tls.client_ca`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// The common name of its subject.
    pub common_name: Option<String>,
}
