//! A certificate for the endpoint and for the servers, and the authority that signed it.

use integration::process::give_to_postgres;
use integration::scratch::Scratch;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

/// The files, in a directory of their own.
pub struct Authority {
    scratch: Scratch,
}

impl Authority {
    pub fn new() -> Self {
        let authority = Self { scratch: Scratch::new() };
        let mut params = CertificateParams::new(Vec::new()).expect("no names are good names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // Not that of what it signs, which would seem to have signed itself.
        params.distinguished_name.push(DnType::CommonName, "authority");
        let key = || KeyPair::generate().expect("a key");
        let issuer = CertifiedIssuer::self_signed(params, key()).expect("a certificate");
        let (own, names) = (key(), ["127.0.0.1".to_owned(), "localhost".to_owned()]);
        let server =
            CertificateParams::new(names).expect("good names").signed_by(&own, &issuer).expect("a certificate");
        for (name, text) in
            [("ca.crt", issuer.pem()), ("server.crt", server.pem()), ("server.key", own.serialize_pem())]
        {
            authority.scratch.file(name, &text);
        }
        // PostgreSQL and the endpoint run as the same user, and want its key to be nobody else's.
        let key = authority.path("server.key");
        std::fs::set_permissions(&key, PermissionsExt::from_mode(0o600)).expect("it is ours");
        give_to_postgres(&key);
        authority
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }
}
