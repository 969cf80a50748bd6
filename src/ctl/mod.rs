//! The operator's commands: each is one question or order to the leading manager.
//!
//! Exit codes: 0 done; 2 refused, nothing was done, and every reason with its numbers was printed; 1 tried and failed,
//! or no manager could be asked, and where things stand was printed as far as it is known.

pub mod adopt;
pub mod client;
mod lag;
mod node;
pub mod rebuild;
pub mod reload;
pub mod render;
pub mod route;
mod table;
pub mod verify;

use crate::args::{Command, NodeArgs, NodeCommand, TargetArgs};
use crate::config;
use crate::{EXIT_FAILED, EXIT_REFUSED};
use anyhow::{Context, Result, bail};
use client::{Admin, CallError};
use cluster::keys::Keys;
use failover::record::LeaderRecord;
use failover::store::etcd::EtcdStore;
use failover::store::{Range, Store, StoreError};
use serde_json::{Value, json};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// How long to wait for a leading manager.
const LEADER_BOUND: Duration = Duration::from_secs(5);
/// Between two looks for one.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// How long to ask etcd again that does not answer. It may stand still for a moment, in which the leader leads on.
const ETCD_BOUND: Duration = Duration::from_secs(2);

/// What a verb asks for, and how the answer is shown.
struct Request {
    method: Method,
    path: String,
    show: fn(&Value) -> String,
}

enum Method {
    Get,
    Post(Value),
}

/// Carry out an operator's command. Commands that are none of these are a mistake of the caller's.
pub fn run(command: Command) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => return failed(&anyhow::Error::new(e).context("cannot start the runtime")),
    };
    let command = match command {
        Command::Lag(args) => return runtime.block_on(lag::run(&args)),
        Command::Node(NodeArgs { command: NodeCommand::Add(args) }) => return runtime.block_on(node::add(&args)),
        other => other,
    };
    let mut moved = None;
    if let Command::Maintenance(a) = &command
        && a.switchover
    {
        match runtime.block_on(move_away(&a.target, &a.node)) {
            Ok(true) => moved = Some(a.node.clone()),
            Ok(false) => {}
            Err(code) => return code,
        }
    }
    let Some((target, request)) = request(command) else {
        eprintln!("pgtenure: not an operator's command");
        return ExitCode::from(EXIT_FAILED);
    };
    let begun = Instant::now();
    let mut outcome = runtime.block_on(ask_for(&target, &request, first_patience(&request)));
    let unled = match &outcome {
        Ok(Err(error)) => matches!(error, CallError::NoLeader(_) | CallError::Unreachable(_)),
        Err(_) => true, // etcd, most likely: it would have named the leader
        Ok(Ok(_)) => false,
    };
    if unled
        && request.path == "/status"
        && let Some(seen) = runtime.block_on(seen_by_any(&target))
    {
        return finish_unled(&target, &request, &seen);
    }
    // Nobody else tells anything.
    if outcome.as_ref().is_err_and(is_passing) && first_patience(&request) < ETCD_BOUND {
        outcome = runtime.block_on(ask_for(&target, &request, ETCD_BOUND.saturating_sub(begun.elapsed())));
    }
    match (outcome, moved) {
        (Ok(Err(CallError::Refused(answer))), Some(node)) => finish_moved(&target, &node, &answer),
        (Ok(outcome), _) => finish(&target, &request, outcome),
        (Err(e), _) => failed(&e),
    }
}

/// Switch over to another node if this one is the primary: was it?
///
/// # Errors
/// The exit code when that, or finding out, did not succeed.
async fn move_away(target: &TargetArgs, node: &str) -> Result<bool, ExitCode> {
    let status = Request { method: Method::Get, path: "/status".into(), show: render::status };
    let found = match ask(target, &status).await {
        Ok(Ok(found)) => found,
        Ok(refused) => return Err(finish(target, &status, refused)),
        Err(e) => return Err(failed(&e)),
    };
    if found["primary"] != node {
        return Ok(false);
    }
    eprintln!("{node} is the primary: switching over first");
    let order = json!({ "expect_term": found["term"], "by": operator() });
    let order = Request { method: Method::Post(order), path: "/ops/switchover".into(), show: render::done };
    match ask(target, &order).await {
        Ok(Ok(_)) => Ok(true),
        Ok(refused) => Err(finish(target, &order, refused)),
        Err(e) => Err(failed(&e)),
    }
}

/// What a manager knows that does not lead: the ones named, or the one of the configuration file. Without etcd none leads,
/// and that is when one most wants to see something.
async fn seen_by_any(target: &TargetArgs) -> Option<Value> {
    let urls = match (&target.admin, &target.config) {
        (Some(urls), _) => urls.split(',').map(str::to_owned).collect(),
        (None, Some(file)) => {
            let config = config::load(file).ok()?;
            config.manager.is_some().then(|| vec![config.admin.advertise.clone()])?
        }
        (None, None) => return None,
    };
    Admin::new(urls, None).get(&of_cluster("/status?local=1", meant(target).ok()?.as_deref())).await.ok()
}

/// Nobody leads: not an answer to rely on, so the exit code says that it failed.
fn finish_unled(target: &TargetArgs, request: &Request, seen: &Value) -> ExitCode {
    if target.json {
        println!("{seen:#}");
    } else {
        print!("{}", (request.show)(seen));
    }
    ExitCode::from(EXIT_FAILED)
}

/// The order was refused, but the primary has been moved for it: that something was done, the exit code says.
fn finish_moved(target: &TargetArgs, node: &str, answer: &Value) -> ExitCode {
    if target.json {
        println!("{answer:#}");
    } else {
        eprint!("{node} is not the primary any more, but not in maintenance:\n{}", render::reasons(answer));
    }
    ExitCode::from(EXIT_FAILED)
}

/// Ask the leading manager, whichever it is by the time that one can be asked: after a manager's death its successor
/// leads within its lease. Nothing was sent in the cases that are tried again.
async fn ask(target: &TargetArgs, request: &Request) -> Result<Result<Value, CallError>> {
    ask_for(target, request, ETCD_BOUND).await
}

/// The same, with an etcd that does not answer asked again for `patience`.
async fn ask_for(target: &TargetArgs, request: &Request, patience: Duration) -> Result<Result<Value, CallError>> {
    let start = Instant::now();
    let cluster = meant(target)?;
    loop {
        let outcome = match admin(target).await {
            Ok(Some(admin)) => send(&admin, request, cluster.as_deref()).await,
            Ok(None) => Err(CallError::NoLeader("etcd names none".to_owned())),
            Err(e) if is_passing(&e) && start.elapsed() < patience => {
                tokio::time::sleep(LOOK_EVERY).await;
                continue;
            }
            Err(e) => return Err(e),
        };
        let again = match &outcome {
            Err(CallError::NoLeader(_)) => true,
            // An address that was typed may simply be wrong; one from etcd may be that of a leader that just died.
            Err(CallError::Unreachable(_)) => target.admin.is_none(),
            Ok(_) | Err(CallError::Refused(_) | CallError::Failed { .. } | CallError::Secret { .. }) => false,
        };
        if !again || start.elapsed() > LEADER_BOUND {
            return Ok(outcome);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// How long to ask etcd before anybody else: of the status a manager that does not lead tells as well, and what it tells then is wanted
/// at once.
fn first_patience(request: &Request) -> Duration {
    if request.path == "/status" { Duration::ZERO } else { ETCD_BOUND }
}

/// Did etcd not answer, which it may do the next time?
fn is_passing(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(StoreError::Unavailable { .. }))
}

fn request(command: Command) -> Option<(TargetArgs, Request)> {
    let get = |path: String, show| Request { method: Method::Get, path, show };
    let post = |verb: &str, body: Value| Request {
        method: Method::Post(body),
        path: format!("/ops/{verb}"),
        show: render::done,
    };
    Some(match command {
        Command::Status(a) => (a.target, get("/status".into(), render::status)),
        Command::History(a) => (a, get("/history".into(), render::history)),
        Command::Report(a) => {
            let path = a.term.map_or_else(|| "/report".to_owned(), |t| format!("/report?term={t}"));
            (a.target, get(path, render::report))
        }
        Command::Switchover(a) => {
            let body = json!({ "to": a.to, "expect_term": a.expect_term, "by": operator() });
            (a.target, post("switchover", body))
        }
        Command::Failover(a) => {
            let lossy = a.allow_data_loss;
            let body = json!({ "to": a.to, "expect_term": a.expect_term, "allow_data_loss": lossy, "by": operator() });
            (a.target, post("failover", body))
        }
        Command::Fence(a) => {
            let body = json!({ "node": a.node, "stop_writes": a.stop_writes, "by": operator() });
            (a.target, post("fence", body))
        }
        Command::Unfence(a) => (a.target, post("unfence", json!({ "node": a.node }))),
        Command::Pause(a) => {
            // Below a second a pause would be over before anybody has read that it began.
            let seconds = a.length.map(|l| l.as_secs().max(1));
            (a.target, post("pause", json!({ "by": operator(), "why": a.why, "seconds": seconds })))
        }
        Command::Node(NodeArgs { command: NodeCommand::Remove(a) }) => {
            (a.target, post("remove", json!({ "node": a.node, "by": operator() })))
        }
        Command::Maintenance(a) => {
            let seconds = a.length.map(|l| l.as_secs().max(1));
            let body = json!({
                "node": a.node, "on": a.on, "stop_writes": a.stop_writes, "by": operator(), "why": a.why,
                "seconds": seconds,
            });
            (a.target, post("maintenance", body))
        }
        Command::Policy(a) if a.history => (a.target, get("/policy/history".into(), render::policies)),
        Command::Policy(a) => {
            let body = json!({
                "mode": a.mode, "voters": a.voters, "k": a.k, "max_loss_bytes": a.max_loss,
                "max_seconds": a.max_time.map(|t| t.as_secs().max(1)), "expect_epoch": a.expect_epoch,
            });
            let asked = ["mode", "voters", "k", "max_loss_bytes", "max_seconds"].iter().any(|k| !body[k].is_null());
            if asked { (a.target, post("policy", body)) } else { (a.target, get("/status".into(), render::policy)) }
        }
        Command::Resume(a) => (a.target, post("resume", json!({}))),
        Command::Run(_)
        | Command::Config(_)
        | Command::Userlist(_)
        | Command::Demo(_)
        | Command::Reload(_)
        | Command::Route(_)
        | Command::Verify(_)
        | Command::Adopt(_)
        | Command::Rebuild(_)
        | Command::Node(_)
        | Command::Lag(_) => return None,
    })
}

/// The password that libpq would take where a connection string has none. An argument is seen by everybody on the host, for
/// as long as the command runs.
fn with_password(login: &mut tokio_postgres::Config) {
    if login.get_password().is_none()
        && let Some(password) = std::env::var_os("PGPASSWORD")
    {
        login.password(password.as_encoded_bytes());
    }
}

/// `user@host`, for the record of a fence or a pause. Taken from the environment, so a note and no proof.
fn operator() -> String {
    let user = std::env::var("SUDO_USER").or_else(|_| std::env::var("USER")).unwrap_or_else(|_| "unknown".to_owned());
    let host = nix::unistd::gethostname().ok().and_then(|h| h.into_string().ok()).unwrap_or_else(|| "unknown".into());
    format!("{user}@{host}")
}

async fn send(admin: &Admin, request: &Request, cluster: Option<&str>) -> Result<Value, CallError> {
    let path = of_cluster(&request.path, cluster);
    match &request.method {
        Method::Get => admin.get(&path).await,
        Method::Post(body) => match admin.post(&path, body).await {
            Err(CallError::Failed { status: 400, answer }) if field_unknown(&answer, "by") => {
                admin.post(&path, &without_by(body)).await
            }
            other => other,
        },
    }
}

/// Does a manager of an earlier version not know that field? It has done nothing then.
fn field_unknown(answer: &Value, name: &str) -> bool {
    answer["error"].as_str().is_some_and(|why| why.contains(&format!("unknown field `{name}`")))
}

/// The order as it was before it said who gives it: during an upgrade the leader may be of the version before.
fn without_by(order: &Value) -> Value {
    let mut order = order.clone();
    if let Some(fields) = order.as_object_mut() {
        fields.remove("by");
    }
    order
}

/// The cluster asked for. Managers would take one that is not named for their first, which need not be the one of the file.
fn meant(target: &TargetArgs) -> Result<Option<String>> {
    match (&target.cluster, &target.config) {
        (None, Some(file)) => Ok(Some(config::load(file)?.name)),
        (typed, _) => Ok(typed.clone()),
    }
}

/// A path that asks for one of several clusters.
fn of_cluster(path: &str, cluster: Option<&str>) -> String {
    match cluster {
        Some(name) => format!("{path}{}cluster={name}", if path.contains('?') { '&' } else { '?' }),
        None => path.to_owned(),
    }
}

/// Print the outcome; answers on standard output, complaints on standard error.
fn finish(target: &TargetArgs, request: &Request, outcome: Result<Value, CallError>) -> ExitCode {
    let (code, answer) = match &outcome {
        Ok(answer) => (0, Some(answer)),
        Err(CallError::Refused(answer)) => (EXIT_REFUSED, Some(answer)),
        Err(CallError::Failed { answer, .. }) => (EXIT_FAILED, Some(answer)),
        Err(_) => (EXIT_FAILED, None),
    };
    match (&outcome, answer) {
        (_, Some(answer)) if target.json => println!("{answer:#}"),
        (Ok(answer), _) => print!("{}", (request.show)(answer)),
        (Err(CallError::Refused(answer)), _) => eprint!("{}", render::refused(answer)),
        (Err(CallError::Failed { answer, .. }), _) => eprint!("{}", render::failed(answer)),
        (Err(error), _) if target.json => println!("{:#}", json!({ "error": error.to_string() })),
        (Err(error), _) => eprintln!("{error}"),
    }
    ExitCode::from(code)
}

fn failed(error: &anyhow::Error) -> ExitCode {
    eprintln!("{error:#}");
    ExitCode::from(EXIT_FAILED)
}

/// Where the managers are: as given, or found in etcd; `None` when it names no leader.
async fn admin(target: &TargetArgs) -> Result<Option<Admin>> {
    let secret = |file: &Path| -> Result<String> {
        let secret =
            config::read_secret(file).with_context(|| format!("cannot read the shared secret {}", file.display()))?;
        Ok(secret.expose().to_owned())
    };
    let given = target.secret_file.as_deref().map(secret).transpose()?;
    // Reading needs no secret, so one that cannot be read only matters when an order is refused for lack of it.
    let with = |urls: Vec<String>, config: &config::Config| match (&given, config.secret_file.as_deref().map(secret)) {
        (None, Some(Err(unread))) => Admin::without_secret(urls, format!("{unread:#}")),
        (None, Some(Ok(secret))) => Admin::new(urls, Some(secret)),
        (given, _) => Admin::new(urls, given.clone()),
    };
    if let Some(url) = &target.admin {
        let urls = url.split(',').map(str::to_owned).collect();
        return Ok(Some(match target.config.as_deref().filter(|_| given.is_none()) {
            Some(file) => with(urls, &config::load(file)?),
            None => Admin::new(urls, given),
        }));
    }
    let Some(file) = &target.config else { bail!("give --config FILE or --admin URL") };
    let config = config::load(file)?;
    if let (Some(wanted), Some(manager)) = (&target.cluster, &config.manager) {
        let named: Vec<&str> = manager.further.iter().map(|f| f.name.as_str()).chain([config.name.as_str()]).collect();
        if !named.contains(&wanted.as_str()) {
            bail!("{} names no cluster {wanted}; it names {}", file.display(), named.join(", "));
        }
    }
    let store = EtcdStore::new(&config.etcd).context("cannot reach etcd")?;
    let further = config.manager.iter().flat_map(|m| &m.further).find(|f| target.cluster.as_ref() == Some(&f.name));
    let prefix = further.and_then(|f| f.prefix.as_ref()).unwrap_or(&config.etcd.prefix);
    let key = Keys::new(prefix, target.cluster.as_ref().unwrap_or(&config.name)).manager();
    let found = store.read(vec![Range::Key(key.clone())]).await.context("cannot ask etcd for the leading manager")?;
    let Some(entry) = found.get(&key) else { return Ok(None) };
    let leader: LeaderRecord =
        serde_json::from_slice(&entry.value).with_context(|| format!("cannot understand {key}"))?;
    Ok(Some(with(vec![leader.admin], &config)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_to_a_manager_of_before_does_not_say_who_gives_it() {
        let why =
            "the request cannot be understood: unknown field `by`, expected `to` or `expect_term` at line 1 column 5";
        assert!(field_unknown(&json!({ "error": why }), "by") && !field_unknown(&json!({ "error": why }), "to"));
        assert_eq!(without_by(&json!({ "to": "n2", "by": "me" })), json!({ "to": "n2" }));
    }

    /// Of what is wrong with etcd, its silence alone is worth another question.
    #[test]
    fn an_etcd_that_does_not_answer_is_asked_again() {
        let wrong = |e: StoreError| -> Result<()> { Err(e).context("cannot ask etcd for the leading manager") };
        let (what, why) = ("read", String::new());
        assert!(is_passing(&wrong(StoreError::Unavailable { what, why: why.clone() }).unwrap_err()));
        assert!(!is_passing(&wrong(StoreError::Refused { what, why }).unwrap_err()));
        assert!(!is_passing(&anyhow::anyhow!("give --config FILE or --admin URL")));
    }

    #[test]
    fn the_status_does_not_wait_for_an_etcd_that_is_away_and_everything_else_does() {
        let request = |method, path: &str| Request { method, path: path.to_owned(), show: render::status };
        assert_eq!(first_patience(&request(Method::Get, "/status")), Duration::ZERO);
        assert_eq!(first_patience(&request(Method::Get, "/history")), ETCD_BOUND);
        assert_eq!(first_patience(&request(Method::Post(json!({})), "/ops/switchover")), ETCD_BOUND);
    }

    #[test]
    fn a_path_names_the_cluster_it_is_for() {
        assert_eq!(of_cluster("/status", None), "/status");
        assert_eq!(of_cluster("/status", Some("orders")), "/status?cluster=orders");
        assert_eq!(of_cluster("/report?term=7", Some("orders")), "/report?term=7&cluster=orders");
    }
}
