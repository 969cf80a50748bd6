//! Statements that a [`Raw`] client prepares, and how often servers were made to.

use super::Cluster;
use super::raw::{Raw, bind, execute, parse, sync, words};
use proxy::console::tally::Counter;

/// Bind and execute a statement by its name.
pub fn use_it(out: &mut Vec<u8>, name: &str) {
    bind(out, "", name, &[]);
    execute(out, "");
    sync(out);
}

pub fn prepare(client: &mut Raw, name: &str, sql: &str) -> String {
    client.write(|out| {
        parse(out, name, sql);
        sync(out);
    });
    words(&client.until_ready())
}

pub fn used(client: &mut Raw, name: &str) -> String {
    client.write(|out| use_it(out, name));
    words(&client.until_ready())
}

/// `Parse` messages that servers were sent.
pub fn server_parses(c: &Cluster) -> u64 {
    c.tally(Counter::ServerParses)
}
