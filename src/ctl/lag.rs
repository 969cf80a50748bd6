//! `pgtenure lag`: once, or again and again with the recent past as a line.
//!
//! With the file of a process that has the role lagmon that process is asked, which knows most; else the leading
//! manager, which knows what the agents reported.

mod draw;

use super::client::{Admin, CallError};
use super::{Method, Request, ask, finish};
use crate::args::LagArgs;
use crate::config;
use draw::Past;
use serde_json::Value;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

/// Clears what is below the cursor, brought to the top left before (ECMA-48 CUP, ED).
const REDRAW: &str = "\x1b[H\x1b[J";

/// How long the past may take to arrive. Who has none refuses at once.
const PAST_BOUND: Duration = Duration::from_secs(3);

/// Show it.
pub(super) async fn run(args: &LagArgs) -> ExitCode {
    let request = Request { method: Method::Get, path: "/lag".to_owned(), show: draw::table };
    let near = near(args);
    if args.watch {
        return watch(args, &request, near.as_ref()).await;
    }
    match look(args, &request, near.as_ref()).await {
        Ok(outcome) => finish(&args.target, &request, outcome),
        Err(error) => super::failed(&error),
    }
}

async fn look(args: &LagArgs, request: &Request, near: Option<&Admin>) -> anyhow::Result<Result<Value, CallError>> {
    if let Some(near) = near {
        match near.get(&request.path).await {
            // It may not run just now: then whoever leads.
            Err(CallError::Unreachable(_)) => {}
            answered => return Ok(answered),
        }
    }
    ask(&args.target, request).await
}

/// The process whose file was given, when it has the role lagmon. A file that is wrong is complained of later.
fn near(args: &LagArgs) -> Option<Admin> {
    let file = args.target.config.as_ref().filter(|_| args.target.admin.is_none())?;
    let config = config::load(file).ok().filter(|c| c.lagmon.is_some())?;
    Some(Admin::new(vec![config.admin.listen.to_string()], None))
}

async fn watch(args: &LagArgs, request: &Request, near: Option<&Admin>) -> ExitCode {
    let mut past = Past::default();
    let given = args.target.admin.as_ref().map(|urls| Admin::new(urls.split(',').map(str::to_owned).collect(), None));
    if let Some(admin) = near.or(given.as_ref()) {
        let asked = tokio::time::timeout(PAST_BOUND, admin.get("/lag/history")).await;
        if let Ok(Ok(history)) = asked {
            past.begin(&history, args.interval.0);
        }
    }
    let redraw = std::io::stdout().is_terminal() && !args.target.json;
    let mut ticks = tokio::time::interval(args.interval.0);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut code = ExitCode::SUCCESS;
    let mut looks = 0;
    while args.count.is_none_or(|count| looks < count) {
        ticks.tick().await;
        looks += 1;
        let frame = match look(args, request, near).await {
            Ok(Ok(answer)) => {
                code = ExitCode::SUCCESS;
                past.add(&answer);
                if args.target.json { format!("{answer}\n") } else { draw::frame(&answer, &past) }
            }
            Ok(Err(error)) => {
                code = ExitCode::from(crate::EXIT_FAILED);
                missed(args, &error.to_string())
            }
            // What was typed is wrong: looking again does not help.
            Err(error) => return super::failed(&error),
        };
        let frame = if redraw { format!("{REDRAW}{frame}") } else { frame };
        let mut out = std::io::stdout().lock();
        if out.write_all(frame.as_bytes()).and_then(|()| out.flush()).is_err() {
            // Nobody reads any more.
            break;
        }
    }
    code
}

fn missed(args: &LagArgs, why: &str) -> String {
    if args.target.json { format!("{}\n", serde_json::json!({ "error": why })) } else { format!("{why}\n") }
}
