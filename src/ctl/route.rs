//! `pgtenure route`: where a statement would go, and why. Asked of a running proxy, or answered here from its text alone.

use super::client::{Admin, CallError};
use crate::args::RouteArgs;
use crate::{EXIT_FAILED, config};
use anyhow::{Context, Result, bail};
use proxy::explain::meaning;
use proxy::sql::FunctionTable;
use serde_json::{Value, json};
use std::fmt::Write;
use std::process::ExitCode;

/// Find it out and print it.
pub fn run(args: &RouteArgs) -> ExitCode {
    match answer(args) {
        Ok(answer) if args.json => println!("{answer:#}"),
        Ok(answer) => print!("{}", shown(&answer)),
        Err(error) if args.json => {
            println!("{:#}", json!({ "error": format!("{error:#}") }));
            return ExitCode::from(EXIT_FAILED);
        }
        Err(error) => {
            eprintln!("{error:#}");
            return ExitCode::from(EXIT_FAILED);
        }
    }
    ExitCode::SUCCESS
}

fn answer(args: &RouteArgs) -> Result<Value> {
    let url = match (&args.admin, &args.config) {
        (Some(url), _) => url.clone(),
        (None, Some(file)) => {
            let config = config::load(file)?;
            if config.proxy.is_none() {
                bail!(
                    "{} has no role proxy: give the file of a proxy, or the address of one as --admin",
                    file.display()
                );
            }
            config.admin.listen.to_string()
        }
        (None, None) => return Ok(json!(meaning(args.sql.as_bytes(), &FunctionTable::unloaded()))),
    };
    let [database, user, sql] = [&args.database, &args.user, &args.sql].map(|text| encoded(text));
    let path = format!("/route?database={database}&user={user}&sql={sql}");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("cannot start the runtime")?;
    match runtime.block_on(Admin::new(vec![url], None).get(&path)) {
        Err(CallError::Unreachable(why)) => bail!("no proxy answers: {}", why.join("; ")),
        answer => Ok(answer?),
    }
}

/// Percent-encoded: everything but letters and digits.
fn encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() {
            out.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

fn shown(answer: &Value) -> String {
    let text = |key: &str| answer[key].as_str().unwrap_or_default().to_owned();
    let word = answer["word"].as_str().map(|word| format!(" \"{word}\"")).unwrap_or_default();
    let mut out =
        format!("{}, by {}{word}: {}\n", text("class"), text("decided_by").replace('_', " "), text("because"));
    if answer["target"].is_string() {
        let node = answer["node"].as_str().map(|node| format!(" {node}")).unwrap_or_default();
        let _ = writeln!(out, "to {}{node}, {}: {}", text("target"), text("reason"), text("detail"));
    } else {
        out.push_str("where that goes depends on the cluster: ask a proxy with --config or --admin\n");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_alone_tells_what_it_is() {
        let of = |sql: &str| shown(&json!(meaning(sql.as_bytes(), &FunctionTable::unloaded())));
        let ask = "where that goes depends on the cluster: ask a proxy with --config or --admin\n";
        for (sql, want) in [
            ("select 1", "read, by proven read: every word is understood and none can write\n"),
            ("select 1 for share", "write, by word \"share\": it writes, locks rows or is about the server itself\n"),
            (
                "select f(1)",
                "write, by function \"f\": what the function does is not known without the database's catalog\n",
            ),
        ] {
            assert_eq!(of(sql), format!("{want}{ask}"), "{sql}");
        }
    }

    #[test]
    fn an_answer_of_a_proxy_names_the_node() {
        let answer = json!({
            "class": "read", "decided_by": "proven_read", "because": "so", "catalog": true,
            "target": "standby", "node": "n2", "reason": "fresh", "detail": "3 ms stale, replayed 0/64",
        });
        let want = "read, by proven read: so\nto standby n2, fresh: 3 ms stale, replayed 0/64\n";
        assert_eq!(shown(&answer), want);
        assert_eq!(encoded("a='é'"), "a%3D%27%C3%A9%27");
    }
}
