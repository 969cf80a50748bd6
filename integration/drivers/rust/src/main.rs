//! The common script with tokio-postgres and with sqlx. Connects as the environment says. Prints one line of JSON per
//! step. Usage: drivers tokio-postgres|sqlx

mod sqlx_script;
mod tokio_script;

use serde_json::{Value, json};

type Ended = Result<(), Box<dyn std::error::Error>>;

fn say(step: &str, value: impl Into<Value>) {
    println!("{}", json!([step, value.into()]));
}

fn env(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set"))
}

/// The version in this package's lock file.
fn version(of: &str) -> String {
    let lock = include_str!("../Cargo.lock");
    let after = lock.split(&format!("name = \"{of}\"\nversion = \"")).nth(1);
    after.and_then(|rest| rest.split('"').next()).unwrap_or("unknown").to_owned()
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Ended {
    match std::env::args().nth(1).as_deref() {
        Some("tokio-postgres") => tokio_script::run().await,
        Some("sqlx") => sqlx_script::run().await,
        _ => Err("usage: drivers tokio-postgres|sqlx".into()),
    }
}
