//! What is needed to speak TLS: certificates, keys and authorities, read from the configured files as one whole.

use crate::config::Config;
use crate::config::tls::{ClientTls, IdentityFiles, MinVersion, Negotiation, ServerMode, ServerTls};
use crate::net::Stream;
use crate::tls::x509::{self, BadCertificate, Hash};
use crate::tls::{Certificate, Peer, Tls, trust};
use ring::digest;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{ClientConfig, ClientConnection, CommonState, Connection, RootCertStore, ServerConfig, ServerConnection};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::Semaphore;

/// The name of PostgreSQL's protocol in ALPN.
const ALPN: &[u8] = b"postgresql";

/// Why the files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// One cannot be read, or is not PEM.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: pem::Error,
    },
    /// A file of certificates has none.
    #[error("no certificate in {}", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// A private key that others may read.
    #[error("private key file {} has group or world access", path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
    },
    /// A certificate that we cannot read.
    #[error("cannot use the certificate in {}", path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: BadCertificate,
    },
    /// A certificate and a key that do not belong together, or of a kind that is not supported.
    #[error("cannot use {} with {}", identity.cert.display(), identity.key.display())]
    Identity {
        /// The files.
        identity: IdentityFiles,
        /// Why.
        #[source]
        source: rustls::Error,
    },
    /// An authority that cannot be used.
    #[error("cannot use the authorities in {}", path.display())]
    Authorities {
        /// The file.
        path: PathBuf,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// All of it, for both sides.
#[derive(Clone, Debug)]
pub struct Contexts {
    /// Towards clients; `None` when TLS is disabled.
    pub acceptor: Option<Acceptor>,
    /// Towards servers.
    pub connector: Connector,
}

impl Contexts {
    /// Read the files that the configuration names.
    ///
    /// # Errors
    /// See [`LoadError`].
    pub fn load(config: &Config) -> Result<Self, LoadError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let acceptor = match &config.tls {
            ClientTls::Disabled => None,
            ClientTls::Enabled { required, identity, client_ca, min_version } => {
                Some(Acceptor::load(*required, identity, client_ca.as_deref(), *min_version, &provider)?)
            }
        };
        Ok(Self { acceptor, connector: Connector::load(&config.server_tls, &provider)? })
    }
}

/// Speaks TLS with clients.
#[derive(Clone, Debug)]
pub struct Acceptor {
    /// Are clients without TLS refused?
    pub required: bool,
    /// When the certificate ends, seconds since 1970.
    pub not_after: i64,
    config: Arc<ServerConfig>,
    server_end_point: Option<Arc<[u8]>>,
}

/// Why a client's handshake failed.
#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    /// The handshake did.
    #[error("TLS handshake failed")]
    Handshake(#[from] io::Error),
    /// A direct connection must say which protocol it is for.
    #[error("direct TLS connection without ALPN protocol postgresql")]
    NoAlpn,
    /// Its certificate was verified, and yet cannot be read.
    #[error("client certificate cannot be used")]
    Certificate(#[from] BadCertificate),
}

impl Acceptor {
    fn load(
        required: bool,
        identity: &IdentityFiles,
        client_ca: Option<&Path>,
        min_version: MinVersion,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Self, LoadError> {
        let versions: &[_] = match min_version {
            MinVersion::Tls12 => &[&rustls::version::TLS13, &rustls::version::TLS12],
            MinVersion::Tls13 => &[&rustls::version::TLS13],
        };
        let builder = ServerConfig::builder_with_provider(provider.clone()).with_protocol_versions(versions);
        let builder = builder.expect("ring has suites for both versions");
        let builder = match client_ca {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let roots = Arc::new(authorities(path)?);
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider.clone());
                // Whether one is needed depends on who logs in, which is not known yet.
                let verifier = verifier.allow_unauthenticated().build();
                let bad = |e: rustls::server::VerifierBuilderError| authorities_error(path, e);
                builder.with_client_cert_verifier(verifier.map_err(bad)?)
            }
        };
        let Material { chain, key, facts, server_end_point } = Material::load(identity)?;
        let unusable = |source| LoadError::Identity { identity: identity.clone(), source };
        let mut config = builder.with_single_cert(chain, key).map_err(unusable)?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        // As in PostgreSQL: a session that is resumed would outlive a change of the authorities.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Self { required, not_after: facts.not_after, config: Arc::new(config), server_end_point })
    }

    /// Complete a handshake; `first` is what the client has sent of it. `direct`: no SSLRequest came before.
    ///
    /// # Errors
    /// See [`AcceptError`].
    pub async fn accept(
        &self,
        stream: &mut Stream,
        first: Vec<u8>,
        direct: bool,
        turns: &Semaphore,
    ) -> Result<(), AcceptError> {
        let conn = ServerConnection::new(self.config.clone()).map_err(io::Error::other)?;
        let judge = |conn: &Connection| {
            if direct && conn.alpn_protocol() != Some(ALPN) {
                return Err(AcceptError::NoAlpn);
            }
            let certificate = match conn.peer_certificates().and_then(<[_]>::first) {
                None => None,
                Some(der) => Some(Certificate { common_name: x509::read(der)?.common_name }),
            };
            Ok(peer(conn, certificate, self.server_end_point.clone()))
        };
        Tls::begin(stream, conn.into(), first, turns, judge).await
    }
}

/// Speaks TLS with servers.
#[derive(Clone, Debug)]
pub struct Connector {
    /// Whether, and what is verified.
    pub mode: ServerMode,
    /// How it is begun.
    pub negotiation: Negotiation,
    /// When our certificate ends, seconds since 1970, if we have one.
    pub not_after: Option<i64>,
    config: Arc<ClientConfig>,
}

/// Why the handshake with a server failed.
#[derive(Debug, thiserror::Error)]
pub enum SecureError {
    /// The host is neither a name nor an address.
    #[error("{0:?} cannot be verified: it is neither a host name nor an address")]
    Name(String),
    /// The handshake did.
    #[error("TLS handshake failed")]
    Handshake(#[from] io::Error),
    /// The server does not want to.
    #[error("server does not support TLS, which proxy.server_tls.mode requires")]
    Declined,
    /// A direct connection must agree on which protocol it is for: else the server may be one of another.
    #[error("server did not agree on ALPN protocol postgresql, which direct TLS requires")]
    NoAlpn,
    /// The server's answer to an SSLRequest is none.
    #[error("server answered the request for TLS with neither yes nor no")]
    Unexpected,
}

impl Connector {
    fn load(wanted: &ServerTls, provider: &Arc<CryptoProvider>) -> Result<Self, LoadError> {
        let builder = ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions();
        let builder = builder.expect("ring has suites for both versions").dangerous();
        let builder = match (&wanted.ca, wanted.mode) {
            (Some(path), ServerMode::VerifyCa | ServerMode::VerifyFull) => {
                let verifier = trust::Authorities::new(authorities(path)?, wanted.mode, provider.clone());
                let bad = |e: rustls::server::VerifierBuilderError| authorities_error(path, e);
                builder.with_custom_certificate_verifier(Arc::new(verifier.map_err(bad)?))
            }
            _ => builder.with_custom_certificate_verifier(Arc::new(trust::Anyone::new(provider.clone()))),
        };
        let (mut config, not_after) = match &wanted.identity {
            None => (builder.with_no_client_auth(), None),
            Some(identity) => {
                let Material { chain, key, facts, .. } = Material::load(identity)?;
                let unusable = |source| LoadError::Identity { identity: identity.clone(), source };
                (builder.with_client_auth_cert(chain, key).map_err(unusable)?, Some(facts.not_after))
            }
        };
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.resumption = rustls::client::Resumption::disabled();
        Ok(Self { mode: wanted.mode, negotiation: wanted.negotiation, not_after, config: Arc::new(config) })
    }

    /// Complete a handshake with the server of that host, which has agreed to it where it was to be asked.
    ///
    /// # Errors
    /// See [`SecureError`].
    pub async fn secure(&self, stream: &mut Stream, host: &str, turns: &Semaphore) -> Result<(), SecureError> {
        let name = ServerName::try_from(host.to_owned()).map_err(|_| SecureError::Name(host.to_owned()))?;
        let conn = ClientConnection::new(self.config.clone(), name).map_err(io::Error::other)?;
        let direct = self.negotiation == Negotiation::Direct;
        let judge = |conn: &Connection| {
            if direct && conn.alpn_protocol() != Some(ALPN) {
                return Err(SecureError::NoAlpn);
            }
            let der = conn.peer_certificates().and_then(<[_]>::first);
            let server_end_point = der.and_then(|der| end_point(der, x509::read(der).ok()?.binding_hash));
            Ok(peer(conn, None, server_end_point))
        };
        Tls::begin(stream, conn.into(), Vec::new(), turns, judge).await
    }
}

fn peer(conn: &CommonState, certificate: Option<Certificate>, server_end_point: Option<Arc<[u8]>>) -> Peer {
    let version = match conn.protocol_version() {
        Some(rustls::ProtocolVersion::TLSv1_2) => "TLSv1.2",
        Some(rustls::ProtocolVersion::TLSv1_3) => "TLSv1.3",
        _ => "unknown",
    };
    let suite = conn.negotiated_cipher_suite().and_then(|s| s.suite().as_str());
    Peer { version, cipher: suite.unwrap_or("unknown"), certificate, server_end_point }
}

fn end_point(der: &[u8], hash: Option<Hash>) -> Option<Arc<[u8]>> {
    let algorithm = match hash? {
        Hash::Sha256 => &digest::SHA256,
        Hash::Sha384 => &digest::SHA384,
        Hash::Sha512 => &digest::SHA512,
    };
    Some(digest::digest(algorithm, der).as_ref().into())
}

/// A certificate, its key, and what we read in it.
struct Material {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    facts: x509::Facts,
    server_end_point: Option<Arc<[u8]>>,
}

impl Material {
    fn load(files: &IdentityFiles) -> Result<Self, LoadError> {
        let chain = certificates(&files.cert)?;
        let own = chain.first().ok_or_else(|| LoadError::Empty { path: files.cert.clone() })?;
        let bad = |source| LoadError::Certificate { path: files.cert.clone(), source };
        let facts = x509::read(own).map_err(bad)?;
        let server_end_point = end_point(own, facts.binding_hash);
        let unread = |source| LoadError::Read { path: files.key.clone(), source };
        let metadata = std::fs::metadata(&files.key).map_err(|e| unread(pem::Error::Io(e)))?;
        // PostgreSQL's rule: nothing for others, and group access only where root owns the file.
        let allowed = if metadata.uid() == 0 { 0o640 } else { 0o600 };
        if metadata.mode() & 0o777 & !allowed & 0o077 != 0 {
            return Err(LoadError::Exposed { path: files.key.clone() });
        }
        let key = PrivateKeyDer::from_pem_file(&files.key).map_err(unread)?;
        Ok(Self { chain, key, facts, server_end_point })
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, LoadError> {
    let unread = |source| LoadError::Read { path: path.to_owned(), source };
    CertificateDer::pem_file_iter(path).and_then(Iterator::collect).map_err(unread)
}

fn authorities(path: &Path) -> Result<RootCertStore, LoadError> {
    let mut store = RootCertStore::empty();
    for der in certificates(path)? {
        store.add(der).map_err(|e| authorities_error(path, e))?;
    }
    if store.is_empty() {
        return Err(LoadError::Empty { path: path.to_owned() });
    }
    Ok(store)
}

fn authorities_error(path: &Path, error: impl std::error::Error + Send + Sync + 'static) -> LoadError {
    LoadError::Authorities { path: path.to_owned(), source: Box::new(error) }
}
