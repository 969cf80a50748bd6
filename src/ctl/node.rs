//! `pgtenure node add`: waits for a copy, showing how far it is, and then gives the node its vote.

use super::client::CallError;
use super::{Method, Request, ask, failed, finish, render};
use crate::EXIT_FAILED;
use crate::args::NodeAddArgs;
use failover::fsm::status::{NodeStatus, Status};
use serde_json::{Value, json};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Between two looks at the copy.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What the node does, in a line; `None` when it follows and may vote.
fn standing(node: Option<&NodeStatus>, name: &str) -> Option<String> {
    let Some(node) = node else {
        return Some(format!("{name} has not registered: start its agent with agent.joins = true"));
    };
    let follows = node.state == "streaming" && node.quarantine.is_none();
    if follows {
        return None;
    }
    let more = node.rejoin.iter().chain(&node.trouble).cloned().collect::<Vec<_>>().join("; ");
    let past = node.quarantine.map_or_else(String::new, |q| format!(", replays up to {}", q.lsn));
    Some(format!("{name} is {}{}{more}{past}", node.state, if more.is_empty() { "" } else { ": " }))
}

/// Add the node.
pub(super) async fn add(args: &NodeAddArgs) -> ExitCode {
    let look = Request { method: Method::Get, path: "/status".into(), show: render::status };
    let order = |verb: &str, body: Value| Request {
        method: Method::Post(body),
        path: format!("/ops/{verb}"),
        show: render::done,
    };
    let deadline = Instant::now() + args.wait;
    let (mut told, mut lifted) = (String::new(), false);
    let status = loop {
        let found = match ask(&args.target, &look).await {
            Ok(Ok(found)) => found,
            Ok(refused) => return finish(&args.target, &look, refused),
            Err(error) => return failed(&error),
        };
        let Ok(status) = serde_json::from_value::<Status>(found) else {
            return failed(&anyhow::anyhow!("the manager's status is of another version"));
        };
        let node = status.nodes.iter().find(|n| n.node.as_str() == args.node);
        let Some(standing) = standing(node, &args.node) else { break status };
        if node.is_none() && !lifted {
            // One that was removed earlier does not register before its fence is lifted.
            lifted = true;
            let unfence = order("unfence", json!({ "node": args.node }));
            match ask(&args.target, &unfence).await {
                Ok(Ok(_) | Err(CallError::Refused(_))) => continue,
                Ok(other) => return finish(&args.target, &unfence, other),
                Err(error) => return failed(&error),
            }
        }
        if standing != told {
            eprintln!("{standing}");
            told = standing;
        }
        if Instant::now() >= deadline {
            eprintln!(
                "not finished within {}; it goes on, and this command can be given again",
                humantime::format_duration(args.wait)
            );
            return ExitCode::from(EXIT_FAILED);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    };
    let policy = status.policy;
    let votes = policy.as_ref().is_some_and(|p| p.target().0.iter().any(|v| v.as_str() == args.node));
    if args.no_vote || votes {
        println!("{} follows the primary{}", args.node, if votes { " and votes" } else { "" });
        return ExitCode::SUCCESS;
    }
    let Some(policy) = policy else { return failed(&anyhow::anyhow!("no policy is known")) };
    let voters: Vec<&str> = policy.target().0.iter().map(|v| v.as_str()).chain([args.node.as_str()]).collect();
    let vote = order("policy", json!({ "voters": voters, "expect_epoch": policy.epoch }));
    match ask(&args.target, &vote).await {
        Ok(outcome) => finish(&args.target, &vote, outcome),
        Err(error) => failed(&error),
    }
}
