//! A certificate for the proxy, and clients that trust it.

use anyhow::Context;
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The files of the certificate and its key, next to the userlist.
pub(crate) fn files(userlist: &Path) -> (PathBuf, PathBuf) {
    (userlist.with_file_name("endpoint.crt"), userlist.with_file_name("endpoint.key"))
}

/// Make them.
pub(crate) fn write(userlist: &Path) -> anyhow::Result<()> {
    let (cert, key) = files(userlist);
    let pair = KeyPair::generate()?;
    let certificate = CertificateParams::new(vec!["localhost".to_owned()])?.self_signed(&pair)?;
    std::fs::write(cert, certificate.pem())?;
    std::fs::write(&key, pair.serialize_pem())?;
    std::fs::set_permissions(&key, PermissionsExt::from_mode(0o600)).context("the key's permissions")
}

/// What clients use. Nothing is resumed: each handshake is a whole one.
pub(crate) fn client(userlist: &Path) -> anyhow::Result<Arc<rustls::ClientConfig>> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(files(userlist).0)?)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}
