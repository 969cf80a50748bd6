//! Which keys take effect without a restart, and what a reload leaves as it was.
//!
//! The workers take the whole configuration in one piece, so a key is live unless something was built from it when
//! the process started. Those are listed here, once: what keeps the running value is also what names the key.

use super::{Config, Raw};

/// Puts the running value of a key into the new configuration.
type Keep = fn(&Config, &mut Config);

/// Keys of `[proxy]` that are read when the proxy starts and never again, without the section's name.
const AT_START: &[(&str, Keep)] = &[
    ("listen", |old, new| new.listen = old.listen.clone()),
    ("listen_read_only", |old, new| new.listen_read_only.clone_from(&old.listen_read_only)),
    ("workers", |old, new| new.workers = old.workers),
    ("unix_socket_dir", |old, new| new.unix_socket_dir.clone_from(&old.unix_socket_dir)),
    ("unix_socket_permissions", |old, new| new.unix_socket_permissions = old.unix_socket_permissions),
    ("pools.pin_functions", |old, new| {
        new.pools.defaults.pin_functions.clone_from(&old.pools.defaults.pin_functions);
    }),
    ("timeouts.client_tcp_user_timeout", |old, new| new.timeouts.client_tcp_user = old.timeouts.client_tcp_user),
    ("cancel.id", |old, new| new.cancel.id = old.cancel.id),
    ("auth.max_logins", |old, new| new.auth.max_logins = old.auth.max_logins),
    ("catalog_refresh", |old, new| new.catalog_refresh = old.catalog_refresh),
    ("monitor_user", |old, new| new.monitor_user.clone_from(&old.monitor_user)),
    ("monitor_password_file", |old, new| new.monitor_password.clone_from(&old.monitor_password)),
    ("monitor_password_env", |old, new| new.monitor_password.clone_from(&old.monitor_password)),
];

/// Does a change of this key, as in `listen` or `tls.certificate`, need a restart? A table counts with all its keys.
pub fn needs_restart(key: &str) -> bool {
    AT_START.iter().any(|(k, _)| key.strip_prefix(k).is_some_and(|rest| rest.is_empty() || rest.starts_with('.')))
}

/// `new`, with the running values of the keys that need a restart.
pub fn applied(old: &Config, mut new: Config) -> Config {
    AT_START.iter().for_each(|(_, keep)| keep(old, &mut new));
    new.typed = Box::new(typed(&old.typed, &new.typed));
    new
}

/// What is shown: as typed now, but for the keys that were not taken over.
fn typed(old: &Raw, new: &Raw) -> Raw {
    let both = serde_json::to_value(old).ok().zip(serde_json::to_value(new).ok());
    let kept = both.and_then(|(old, mut new)| {
        for (key, _) in AT_START {
            let place = format!("/{}", key.replace('.', "/"));
            if let (Some(new), Some(old)) = (new.pointer_mut(&place), old.pointer(&place)) {
                *new = old.clone();
            }
        }
        serde_json::from_value(new).ok()
    });
    kept.unwrap_or_else(|| new.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::check;
    use cluster::config::Span;

    #[test]
    fn a_reload_changes_what_is_live_and_keeps_the_rest() {
        let old = check(Raw::default()).unwrap();
        let raw = Raw {
            listen: ([127, 0, 0, 1], 1).into(),
            hold_timeout: Span::secs(1),
            monitor_password_env: Some("X".into()),
            ..Raw::default()
        };
        let new = applied(&old, check(raw).unwrap());
        assert_eq!(new.hold_timeout, std::time::Duration::from_secs(1));
        assert_eq!((new.typed.listen.clone(), new.typed.hold_timeout), (old.typed.listen.clone(), Span::secs(1)));
        assert_eq!(Config { hold_timeout: old.hold_timeout, typed: old.typed.clone(), ..new }, old);
    }

    #[test]
    fn every_key_that_needs_a_restart_is_a_key() {
        let json = serde_json::to_value(Raw::default()).unwrap();
        for (key, _) in AT_START {
            assert!(json.pointer(&format!("/{}", key.replace('.', "/"))).is_some(), "{key}");
            assert!(needs_restart(key) && needs_restart(&format!("{key}.x")) && !needs_restart(&format!("{key}x")));
        }
    }
}
