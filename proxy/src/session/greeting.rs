//! What a client is told of its settings when it logs in: written once for all clients of an identity. Pure.

use crate::session::tracking::APPLICATION_NAME;
use crate::wire::backend::write_parameter_status;
use crate::worker::Settings;
use std::sync::Arc;

/// What a primary reported, and the messages that tell it.
#[derive(Debug)]
pub struct Greeting {
    /// What was reported.
    pub settings: Arc<Settings>,
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
        let (mut messages, mut own) = (Vec::with_capacity(1024), None);
        for (name, value) in &*settings {
            match name.as_str() {
                APPLICATION_NAME => own = Some((value.clone(), messages.len())),
                "in_hot_standby" => write_parameter_status(&mut messages, name, in_hot_standby),
                _ => write_parameter_status(&mut messages, name, value),
            }
        }
        Self { settings, messages: messages.into(), name: own }
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

#[cfg(test)]
mod tests {
    use super::*;

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
