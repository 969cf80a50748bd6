//! `pgtenure reload`: one order to one process, through the admin HTTP that its own file names.
//!
//! The file is checked here first, by the version that is installed; what counts is the check of the process.

use super::client::{Admin, CallError};
use crate::args::ReloadArgs;
use crate::config;
use crate::{EXIT_FAILED, EXIT_REFUSED};
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::fmt::Write;
use std::process::ExitCode;

/// Order it, print what came of it.
pub fn run(args: &ReloadArgs) -> ExitCode {
    match order(args) {
        Ok(Ok(answer)) => {
            if args.json {
                println!("{answer:#}");
            } else {
                print!("{}", done(&answer));
            }
            ExitCode::SUCCESS
        }
        Ok(Err(CallError::Refused(answer))) => {
            if args.json {
                println!("{answer:#}");
            } else {
                eprint!("{}", refused(&answer));
            }
            ExitCode::from(EXIT_REFUSED)
        }
        Ok(Err(error)) => failed(args, &explained(error)),
        // The file itself is wrong, so the running process would refuse it for the same reasons.
        Err(error) if error.downcast_ref::<config::ConfigError>().is_some() => {
            eprintln!("nothing was changed:\n{error:#}");
            ExitCode::from(EXIT_REFUSED)
        }
        Err(error) => failed(args, &format!("{error:#}")),
    }
}

fn order(args: &ReloadArgs) -> Result<Result<Value, CallError>> {
    let config = config::load(&args.config)?;
    let read = |file: &std::path::PathBuf| {
        config::read_secret(file).with_context(|| format!("cannot read the shared secret {}", file.display()))
    };
    let secret = config.secret_file.as_ref().map(read).transpose()?;
    let url = args.admin.clone().unwrap_or_else(|| config.admin.listen.to_string());
    let admin = Admin::new(vec![url], secret.map(|s| s.expose().to_owned()));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("cannot start the runtime")?;
    Ok(runtime.block_on(admin.post("/reload", &json!({}))))
}

fn list<'a>(answer: &'a Value, key: &str) -> Vec<&'a str> {
    answer[key].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

fn done(answer: &Value) -> String {
    let (applied, later) = (list(answer, "applied"), list(answer, "needs_restart"));
    let mut text = String::from("reloaded\n");
    for (title, keys) in [("in force", applied), ("needs a restart", later)] {
        if !keys.is_empty() {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{title}: {}", keys.join(", "));
        }
    }
    text
}

fn refused(answer: &Value) -> String {
    let reasons: String = list(answer, "reasons").iter().map(|r| format!("{r}\n")).collect();
    format!("nothing was changed:\n{reasons}")
}

fn explained(error: CallError) -> String {
    match error {
        CallError::Unreachable(why) => format!("no process answers: {}", why.join("; ")),
        CallError::Secret { url, .. } => format!(
            "{url} takes no orders with this secret: set cluster.secret_file in the process's file, or send SIGHUP"
        ),
        other => other.to_string(),
    }
}

fn failed(args: &ReloadArgs, why: &str) -> ExitCode {
    if args.json {
        println!("{:#}", json!({ "error": why }));
    } else {
        eprintln!("{why}");
    }
    ExitCode::from(EXIT_FAILED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_names_every_key() {
        let answer = json!({ "applied": ["proxy.hold_timeout"], "needs_restart": ["proxy.listen", "admin.listen"] });
        let text = "reloaded\nin force: proxy.hold_timeout\nneeds a restart: proxy.listen, admin.listen\n";
        assert_eq!(done(&answer), text);
        assert_eq!(done(&json!({ "applied": [], "needs_restart": [] })), "reloaded\n");
        assert_eq!(refused(&json!({ "reasons": ["a", "b"] })), "nothing was changed:\na\nb\n");
    }
}
