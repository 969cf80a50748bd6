//! The common script with tokio-postgres and with sqlx. Connects as the environment says. Prints one line of JSON per
//! step. Usage: drivers [turns] tokio-postgres|sqlx

mod sqlx_script;
mod tokio_script;
mod turns;

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
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["tokio-postgres"] => tokio_script::run().await,
        ["sqlx"] => sqlx_script::run().await,
        ["turns", driver @ ("tokio-postgres" | "sqlx")] => turns::run(driver).await,
        _ => Err("usage: drivers [turns] tokio-postgres|sqlx".into()),
    }
}
