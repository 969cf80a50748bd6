//! What a client is told of its settings when it logs in: written once for all clients of an identity. Pure.

use crate::session::tracking::APPLICATION_NAME;
use crate::sql::LexRules;
use crate::wire::backend::write_parameter_status;
use crate::worker::Settings;
use std::sync::Arc;

/// What a primary reported, and the messages that tell it.
#[derive(Debug)]
pub struct Greeting {
    /// What was reported.
    pub settings: Arc<Settings>,
    /// How texts are read under these.
    pub lex: LexRules,
    /// The messages, but for the application's name.
    messages: Box<[u8]>,
    /// That name on the server, and where it comes among the messages.
    name: Option<(String, usize)>,
}

impl Greeting {
    /// Of what a primary, or a standby in its place, reported.
    pub fn new(settings: Arc<Settings>) -> Self {
        Self::with(settings, "off")
    }

    /// The same as a standby tells it, which is how clients find one.
    pub fn of_standby(settings: Arc<Settings>) -> Self {
        Self::with(settings, "on")
    }

    fn with(settings: Arc<Settings>, in_hot_standby: &str) -> Self {
        let (mut messages, mut own, mut lex) = (Vec::with_capacity(1024), None, LexRules::STANDARD);
        for (name, value) in &*settings {
            lex.learn(name, value);
            match name.as_str() {
                APPLICATION_NAME => own = Some((value.clone(), messages.len())),
                "in_hot_standby" => write_parameter_status(&mut messages, name, in_hot_standby),
                _ => write_parameter_status(&mut messages, name, value),
            }
        }
        Self { settings, lex, messages: messages.into(), name: own }
    }

    /// Append the messages for a client whose application has this name, if it gave one.
    pub fn write(&self, application_name: Option<&str>, out: &mut Vec<u8>) {
        // Room for the key and what else comes behind it.
        out.reserve(self.messages.len() + 256);
        let Some((on_server, at)) = &self.name else { return out.extend_from_slice(&self.messages) };
        out.extend_from_slice(&self.messages[..*at]);
        write_parameter_status(out, APPLICATION_NAME, application_name.unwrap_or(on_server));
        out.extend_from_slice(&self.messages[*at..]);
    }
}

/// Longest name of an application, bytes: PostgreSQL's for names of any kind.
const MAX_NAME: usize = 63;

/// The name of an application as a server with these settings shows it. What is not printable ASCII is a question mark,
/// or since PostgreSQL 16 its number; the whole is no longer than a name, as servers are given it by SET.
pub fn shown_name(given: &[u8], settings: &Settings) -> String {
    if given.len() <= MAX_NAME
        && given.iter().all(|b| matches!(b, b' '..=b'~'))
        && let Ok(plain) = std::str::from_utf8(given)
    {
        return plain.to_owned();
    }
    let version = settings.iter().find(|(name, _)| name == "server_version").map(|(_, version)| version.as_str());
    let major = version.and_then(|v| v.split(|c: char| !c.is_ascii_digit()).next()?.parse::<u32>().ok());
    let numbers = major.is_some_and(|major| major >= 16);
    let mut shown = String::with_capacity(MAX_NAME);
    for &b in given.iter().take(MAX_NAME) {
        match b {
            b' '..=b'~' => shown.push(b as char),
            _ if numbers => shown.push_str(&format!("\\x{b:02x}")),
            _ => shown.push('?'),
        }
    }
    shown.truncate(MAX_NAME);
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_shown_as_the_version_of_the_server_shows_it() {
        let with = |version: &str| vec![("server_version".to_owned(), version.to_owned())];
        for (version, given, shown) in [
            ("15.18 (Debian 15.18-0+deb12u1)", "caf\u{e9}\n", "caf???"),
            ("16.1", "caf\u{e9}\n", "caf\\xc3\\xa9\\x0a"),
            ("18beta1", "\u{e9}", "\\xc3\\xa9"),
            ("", "\u{e9}", "??"),
        ] {
            assert_eq!(shown_name(given.as_bytes(), &with(version)), shown, "{version}");
        }
        assert_eq!(shown_name("\u{e9}".repeat(40).as_bytes(), &with("17.0")).len(), 63);
    }

    #[test]
    fn the_name_of_the_application_is_told_in_its_place() {
        let settings = [("a", "1"), (APPLICATION_NAME, "server"), ("in_hot_standby", "on"), ("z", "")];
        let settings: Settings = settings.map(|(n, v)| (n.to_owned(), v.to_owned())).into();
        for (given, told) in [(Some("psql"), "psql"), (None, "server")] {
            let (mut got, mut want) = (b"before".to_vec(), b"before".to_vec());
            Greeting::new(Arc::new(settings.clone())).write(given, &mut got);
            for (name, value) in [("a", "1"), (APPLICATION_NAME, told), ("in_hot_standby", "off"), ("z", "")] {
                write_parameter_status(&mut want, name, value);
            }
            assert_eq!(got, want);
        }
        let mut standby = Vec::new();
        Greeting::of_standby(Arc::new(settings)).write(None, &mut standby);
        assert!(standby.windows(18).any(|w| w == b"in_hot_standby\0on\0"));
        let mut none = Vec::new();
        Greeting::new(Arc::new(vec![("a".to_owned(), "1".to_owned())])).write(Some("psql"), &mut none);
        assert_eq!(none, b"S\0\0\0\x08a\x001\0");
    }
}
