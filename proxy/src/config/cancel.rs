//! The `[proxy.cancel]` table: cancel requests that reach another process than their session's.

use crate::config::key_of;
use cluster::config::BadSetting;
use cluster::node::Endpoint;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Peers at most: each request is compared with each.
const MAX_PEERS: usize = 64;

/// `[proxy.cancel]` as typed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Raw {
    /// This process among those that share `secret_file`, 1 to 255, each its own. Default 0: it shares nothing.
    pub id: u8,
    /// File with the secret that the processes share, at least 16 bytes. Default none: one of this process alone.
    pub secret_file: Option<PathBuf>,
    /// The other processes, as `id=host:port` of their `listen`. Default none.
    pub peers: Vec<String>,
}

/// `[proxy.cancel]` checked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cancel {
    /// `id`
    pub id: u8,
    /// `secret_file`
    pub secret_file: Option<PathBuf>,
    /// `peers`: ids and addresses.
    pub peers: Vec<(u8, Endpoint)>,
}

/// Check it.
///
/// # Errors
/// Every setting that cannot be used.
pub(super) fn check(raw: &Raw) -> Result<Cancel, Vec<BadSetting>> {
    let (mut bad, mut peers) = (Vec::new(), Vec::new());
    let mut tell = |key: &str, value: String, problem: &str| bad.push(BadSetting::new(&key_of(key), value, problem));
    for peer in &raw.peers {
        let parts = peer.split_once('=').and_then(|(id, address)| Some((id.parse::<u8>().ok()?, endpoint(address)?)));
        match parts.filter(|(id, _)| *id > 0) {
            None => tell("cancel.peers", format!("{peer:?}"), "must be id=host:port, the id from 1 to 255"),
            Some((id, _)) if id == raw.id => {
                tell("cancel.peers", format!("{peer:?}"), "has the id of this process (proxy.cancel.id)");
            }
            Some((id, address)) => peers.push((id, address)),
        }
    }
    if raw.peers.len() > MAX_PEERS {
        tell("cancel.peers", raw.peers.len().to_string(), "must be 64 at most");
    }
    if !raw.peers.is_empty() && (raw.secret_file.is_none() || raw.id == 0) {
        tell("cancel.peers", format!("{:?}", raw.peers), "needs proxy.cancel.id and proxy.cancel.secret_file");
    }
    if bad.is_empty() { Ok(Cancel { id: raw.id, secret_file: raw.secret_file.clone(), peers }) } else { Err(bad) }
}

/// `host:port`; an IPv6 address may be in brackets.
fn endpoint(address: &str) -> Option<Endpoint> {
    let (host, port) = address.rsplit_once(':')?;
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let port = port.parse().ok().filter(|&port| port > 0)?;
    (!host.is_empty()).then(|| Endpoint { host: host.to_owned(), port })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_need_an_id_and_a_secret_of_their_own() {
        let problems = |raw: &Raw| -> Vec<String> {
            check(raw).err().unwrap_or_default().iter().map(BadSetting::to_string).collect()
        };
        let peers = vec!["2=db2:6432".to_owned(), "1=db1:6432".to_owned(), "x".to_owned()];
        let raw = Raw { id: 1, secret_file: Some("/s".into()), peers };
        assert_eq!(
            problems(&raw),
            [
                "proxy.cancel.peers = \"1=db1:6432\": has the id of this process (proxy.cancel.id)",
                "proxy.cancel.peers = \"x\": must be id=host:port, the id from 1 to 255",
            ]
        );
        let peers = ["2=[::1]:6432", "3=db3:6432"].map(str::to_owned).to_vec();
        let at = |host: &str| Endpoint { host: host.to_owned(), port: 6432 };
        assert_eq!(check(&Raw { peers, ..raw }).unwrap().peers, [(2, at("::1")), (3, at("db3"))]);
        for bad in ["2=db2", "2=db2:", "2=db2:0", "2=db2:http", "2=:6432"] {
            let raw = Raw { id: 1, secret_file: Some("/s".into()), peers: vec![bad.to_owned()] };
            assert!(check(&raw).is_err(), "{bad}");
        }
        let alone = Raw { peers: vec!["2=db2:6432".to_owned()], ..Raw::default() };
        assert_eq!(
            problems(&alone),
            ["proxy.cancel.peers = [\"2=db2:6432\"]: needs proxy.cancel.id and proxy.cancel.secret_file"]
        );
    }
}
