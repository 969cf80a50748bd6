//! `[proxy.tls]`, towards clients, and `[proxy.server_tls]`, towards servers: as typed, and checked.

use cluster::config::BadSetting;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Which connections of clients are encrypted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClientMode {
    /// None: TLS is declined.
    #[default]
    Disable,
    /// Those that ask for it.
    Allow,
    /// All; the Unix-domain socket excepted.
    Require,
}

/// Whether connections to servers are encrypted, and what is verified. The words are libpq's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ServerMode {
    /// Never.
    #[default]
    Disable,
    /// Where the server offers it; nothing is verified.
    Prefer,
    /// Always; nothing is verified.
    Require,
    /// Always; the certificate must come from `ca`.
    VerifyCa,
    /// Always; the certificate must come from `ca` and be for the host.
    VerifyFull,
}

/// How TLS is begun with servers. The words are libpq's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Negotiation {
    /// They are asked first, in clear.
    #[default]
    Postgres,
    /// With its handshake.
    Direct,
}

/// The oldest protocol version spoken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub enum MinVersion {
    /// TLS 1.2
    #[default]
    #[serde(rename = "TLSv1.2")]
    Tls12,
    /// TLS 1.3
    #[serde(rename = "TLSv1.3")]
    Tls13,
}

/// `[proxy.tls]` as typed. Reloads: for connections made afterwards. The files are also read again when they change.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClientRaw {
    /// `disable`, `allow` (who asks gets it) or `require`. Default disable: there is no certificate to offer.
    pub mode: ClientMode,
    /// PEM file with the certificate that clients see, followed by those between it and its authority. Default none;
    /// needed unless mode is disable.
    pub cert: Option<PathBuf>,
    /// PEM file with its private key, readable by its owner only. Default none; needed unless mode is disable.
    pub key: Option<PathBuf>,
    /// PEM file with the authorities of clients' certificates. Clients are asked for a certificate then, need not have
    /// one, and are refused with one that does not verify. Default none: they are not asked.
    pub client_ca: Option<PathBuf>,
    /// `TLSv1.2` or `TLSv1.3`. Default TLSv1.2: the oldest that is sound, as in PostgreSQL.
    pub min_version: MinVersion,
}

/// `[proxy.server_tls]` as typed. Reloads: for connections made afterwards. The files are also read again when they
/// change.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct ServerRaw {
    /// `disable`, `prefer`, `require`, `verify-ca` or `verify-full`, as libpq's sslmode. Default disable: encryption
    /// costs both ends, and only verify-full keeps an attacker in the network out.
    pub mode: ServerMode,
    /// `postgres`, by an SSLRequest, or `direct`, as libpq's sslnegotiation. Default postgres: before 17 servers know nothing
    /// else.
    pub negotiation: Negotiation,
    /// PEM file with the authorities of servers' certificates. Default none; needed for verify-ca and verify-full.
    pub ca: Option<PathBuf>,
    /// PEM file with our certificate, where servers ask for one. Default none.
    pub cert: Option<PathBuf>,
    /// PEM file with its private key, readable by its owner only. Default none.
    pub key: Option<PathBuf>,
}

/// A certificate and its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentityFiles {
    /// The certificate and those up to its authority.
    pub cert: PathBuf,
    /// The key.
    pub key: PathBuf,
}

/// `[proxy.tls]` checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientTls {
    /// TLS is declined.
    Disabled,
    /// TLS is spoken.
    Enabled {
        /// Must it be?
        required: bool,
        /// `cert` and `key`
        identity: IdentityFiles,
        /// `client_ca`
        client_ca: Option<PathBuf>,
        /// `min_version`
        min_version: MinVersion,
    },
}

/// `[proxy.server_tls]` checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerTls {
    /// `mode`
    pub mode: ServerMode,
    /// `negotiation`
    pub negotiation: Negotiation,
    /// `ca`; there when the mode verifies.
    pub ca: Option<PathBuf>,
    /// `cert` and `key`
    pub identity: Option<IdentityFiles>,
}

/// Check `[proxy.tls]`; what is wrong is added to `bad`.
pub fn check_client(raw: ClientRaw, bad: &mut Vec<BadSetting>) -> ClientTls {
    let ClientRaw { mode, cert, key, client_ca, min_version } = raw;
    let identity = identity("proxy.tls", cert, key, bad);
    if mode == ClientMode::Disable {
        return ClientTls::Disabled;
    }
    let Some(identity) = identity else {
        let mode = if mode == ClientMode::Allow { "allow" } else { "require" };
        bad.push(BadSetting::new("proxy.tls.mode", mode, "needs proxy.tls.cert and proxy.tls.key"));
        return ClientTls::Disabled;
    };
    ClientTls::Enabled { required: mode == ClientMode::Require, identity, client_ca, min_version }
}

/// Check `[proxy.server_tls]`; what is wrong is added to `bad`.
pub fn check_server(raw: ServerRaw, bad: &mut Vec<BadSetting>) -> ServerTls {
    let ServerRaw { mode, negotiation, ca, cert, key } = raw;
    let identity = identity("proxy.server_tls", cert, key, bad);
    let verifies = match mode {
        ServerMode::VerifyCa => Some("verify-ca"),
        ServerMode::VerifyFull => Some("verify-full"),
        ServerMode::Disable | ServerMode::Prefer | ServerMode::Require => None,
    };
    if let Some(mode) = verifies.filter(|_| ca.is_none()) {
        bad.push(BadSetting::new("proxy.server_tls.mode", mode, "needs proxy.server_tls.ca"));
    }
    if negotiation == Negotiation::Direct && matches!(mode, ServerMode::Disable | ServerMode::Prefer) {
        let problem = "needs proxy.server_tls.mode require, verify-ca or verify-full";
        bad.push(BadSetting::new("proxy.server_tls.negotiation", "direct", problem));
    }
    ServerTls { mode, negotiation, ca: ca.filter(|_| verifies.is_some()), identity }
}

fn identity(
    section: &str,
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
    bad: &mut Vec<BadSetting>,
) -> Option<IdentityFiles> {
    let (given, path, lacking) = match (cert, key) {
        (Some(cert), Some(key)) => return Some(IdentityFiles { cert, key }),
        (None, None) => return None,
        (Some(cert), None) => ("cert", cert, "key"),
        (None, Some(key)) => ("key", key, "cert"),
    };
    let problem = format!("needs {section}.{lacking} as well");
    bad.push(BadSetting::new(&format!("{section}.{given}"), path.display(), problem));
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mode_without_its_files_is_refused() {
        let mut bad = Vec::new();
        check_client(ClientRaw { mode: ClientMode::Require, ..ClientRaw::default() }, &mut bad);
        check_client(ClientRaw { cert: Some("/c".into()), ..ClientRaw::default() }, &mut bad);
        let server = ServerRaw { mode: ServerMode::VerifyFull, key: Some("/k".into()), ..ServerRaw::default() };
        check_server(server, &mut bad);
        let direct = |mode| ServerRaw { mode, negotiation: Negotiation::Direct, ..ServerRaw::default() };
        check_server(direct(ServerMode::Prefer), &mut bad);
        check_server(direct(ServerMode::Require), &mut bad);
        assert_eq!(
            bad.iter().map(BadSetting::to_string).collect::<Vec<_>>(),
            [
                "proxy.tls.mode = require: needs proxy.tls.cert and proxy.tls.key",
                "proxy.tls.cert = /c: needs proxy.tls.key as well",
                "proxy.server_tls.key = /k: needs proxy.server_tls.cert as well",
                "proxy.server_tls.mode = verify-full: needs proxy.server_tls.ca",
                "proxy.server_tls.negotiation = direct: needs proxy.server_tls.mode require, verify-ca or verify-full",
            ]
        );
    }

    #[test]
    fn the_defaults_use_no_tls() {
        let mut bad = Vec::new();
        assert_eq!(check_client(ClientRaw::default(), &mut bad), ClientTls::Disabled);
        let server = check_server(ServerRaw::default(), &mut bad);
        assert_eq!((server.mode, bad.len()), (ServerMode::Disable, 0));
    }
}
