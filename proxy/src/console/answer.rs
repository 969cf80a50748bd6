//! Carrying a command out, and its answer.

use crate::console::command::{Command, SHOWS, Show};
use crate::console::rows::{self, Facts};
use crate::console::table::{self, Formats, Row};
use crate::console::{Access, columns, is_console};
use crate::control::{ProcessOrder, Refused, Wait};
use crate::pool::admin::{self, OrderError};
use crate::pool::{Order, Scope};
use crate::session::cancel::place_of;
use crate::wire::backend;
use crate::wire::console_error;
use crate::wire::error_response::Report;
use crate::worker::Worker;
use std::rc::Rc;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::oneshot;

/// How long workers have to say what they have.
const VIEW_LIMIT: Duration = Duration::from_secs(5);
/// How long the process has to reload, or to agree to stop.
const PROCESS_LIMIT: Duration = Duration::from_secs(30);

/// Carry a command out and append its rows and its end. The columns have been sent already.
pub(super) async fn run(
    w: &Rc<Worker>,
    access: Access,
    command: &Command,
    formats: &Formats,
    out: &mut Vec<u8>,
) -> Result<(), Report> {
    let tag = match command {
        Command::Show(Show::Help) => {
            table::write_notice(out, "Console usage", Some(&help()));
            "SHOW"
        }
        Command::Show(show) => {
            let found = show_rows(w, *show).await?;
            write_rows(out, command, &found, formats);
            "SHOW"
        }
        Command::Setting(_, value) => {
            write_rows(out, command, &[vec![(*value).into()]], formats);
            "SHOW"
        }
        Command::One => {
            write_rows(out, command, &[vec![1u64.into()]], formats);
            "SELECT 1"
        }
        Command::Version => {
            write_rows(out, command, &[vec![rows::version().into()]], formats);
            "SELECT 1"
        }
        Command::Ignored(tag) => {
            if *tag == "SET" {
                table::write_notice(out, "SET ignored", None);
            }
            tag
        }
        Command::Order(..)
        | Command::WaitClose(_)
        | Command::KillClient(_)
        | Command::Reload
        | Command::Shutdown(_) => {
            if access != Access::Admin {
                return Err(console_error::admins_only());
            }
            act(w, command, out).await?
        }
    };
    backend::write_command_complete(out, tag);
    Ok(())
}

fn write_rows(out: &mut Vec<u8>, command: &Command, found: &[Row], formats: &Formats) {
    let columns = columns::of(command).unwrap_or_default();
    found.iter().for_each(|row| table::write_row(out, &columns, row, formats));
}

async fn show_rows(w: &Rc<Worker>, show: Show) -> Result<Vec<Row>, Report> {
    let shared = &w.shared;
    let view = admin::view(shared, VIEW_LIMIT).await.map_err(|e| console_error::order_failed(&e.to_string()))?;
    let doors = shared.doors.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let (config, cluster) = (w.config(), w.view.borrow());
    let facts = Facts {
        view: &view,
        config: &config,
        doors: &doors,
        topology: &cluster.topology,
        lag: cluster.lag.snapshot(),
        listen: config.listen.first(),
        now: w.now(),
        wall: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
        resident: resident(),
        users: shared.users(),
        logging_in: shared.strangers(),
        consoles: shared.consoles.load(Ordering::Relaxed),
    };
    Ok(rows::of(show, &facts))
}

/// Bytes of memory the process has in use, as the kernel counts them.
fn resident() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib * 1024)
}

async fn act(w: &Rc<Worker>, command: &Command, out: &mut Vec<u8>) -> Result<&'static str, Report> {
    match command {
        Command::Order(order, scope) => {
            must_be_known(w, scope).await?;
            let limit = w.config().console.command_timeout;
            tracing::info!(?order, ?scope, "operator's order at the console");
            let done = admin::order(&w.shared, *order, scope.clone(), limit).await;
            done.map_err(|error| console_error::order_failed(&error.to_string()))?;
            Ok(match order {
                Order::Pause => "PAUSE",
                Order::Resume => "RESUME",
                Order::Reconnect => "RECONNECT",
                Order::Kill => "KILL",
                Order::Disable => "DISABLE",
                Order::Enable => "ENABLE",
            })
        }
        Command::WaitClose(scope) => {
            must_be_known(w, scope).await?;
            let done = admin::wait_close(&w.shared, scope, w.config().console.command_timeout).await;
            done.map_err(|error| console_error::order_failed(&error.to_string()))?;
            Ok("WAIT_CLOSE")
        }
        Command::KillClient(id) => {
            let Some((worker, place)) = place_of(*id) else { return Err(console_error::no_client(*id)) };
            match admin::kill_client(&w.shared, worker, place, VIEW_LIMIT).await {
                Ok(()) => Ok("KILL_CLIENT"),
                Err(OrderError::NoClient) => Err(console_error::no_client(*id)),
                Err(error) => Err(console_error::order_failed(&error.to_string())),
            }
        }
        Command::Reload => {
            let (answer, outcome) = oneshot::channel();
            let done = ask(w, ProcessOrder::Reload(answer), outcome).await?;
            let done = done.map_err(|Refused(reasons)| console_error::reload_refused(&reasons))?;
            if !done.needs_restart.is_empty() {
                let keys = done.needs_restart.join(", ");
                table::write_notice(out, &format!("needs a restart: {keys}"), None);
            }
            Ok("RELOAD")
        }
        Command::Shutdown(wait) => {
            let (answer, outcome) = oneshot::channel();
            let agreed = ask(w, ProcessOrder::Shutdown { wait: *wait, answer }, outcome).await?;
            agreed.map_err(|Refused(reasons)| console_error::order_failed(&reasons.join("; ")))?;
            let most = match wait {
                Wait::Nothing => None,
                Wait::Servers => Some("half of process.drain_timeout is waited for transactions at most"),
                Wait::Clients => {
                    Some("process.drain_timeout is waited for clients at most, then half of it for transactions")
                }
            };
            most.into_iter().for_each(|most| table::write_notice(out, most, None));
            Ok("SHUTDOWN")
        }
        Command::Show(_) | Command::Setting(..) | Command::One | Command::Version | Command::Ignored(_) => {
            unreachable!("these change nothing and are answered elsewhere")
        }
    }
}

/// An order about a database that nobody has heard of is a slip of the fingers: to say that it was carried out would let
/// whoever gave it go on while the database that was meant is in use.
async fn must_be_known(w: &Rc<Worker>, scope: &Scope) -> Result<(), Report> {
    let Scope::Database(name) = scope else { return Ok(()) };
    if is_console(name) {
        return Err(console_error::own_database());
    }
    let said = w.shared.doors.lock().unwrap_or_else(PoisonError::into_inner).knows(name);
    if said || w.config().pools.databases.contains_key(name) {
        return Ok(());
    }
    let view = admin::view(&w.shared, VIEW_LIMIT).await.map_err(|e| console_error::order_failed(&e.to_string()))?;
    let used = view.databases().any(|database| database == name);
    if used { Ok(()) } else { Err(console_error::no_database(name)) }
}

async fn ask<T>(w: &Rc<Worker>, order: ProcessOrder, outcome: oneshot::Receiver<T>) -> Result<T, Report> {
    let nobody = || console_error::order_failed("the process takes no orders at present");
    w.shared.orders.try_send(order).map_err(|_| nobody())?;
    match tokio::time::timeout(PROCESS_LIMIT, outcome).await {
        Ok(Ok(outcome)) => Ok(outcome),
        Ok(Err(_)) => Err(nobody()),
        Err(_) => Err(console_error::order_failed("the process did not answer in time")),
    }
}

fn help() -> String {
    let shows: Vec<&str> = SHOWS.iter().map(|(name, _)| *name).collect();
    format!(
        "\n\tSHOW {}\n\tRELOAD\n\tPAUSE [<db>]\n\tRESUME [<db>]\n\tDISABLE <db>\n\tENABLE <db>\n\tRECONNECT [<db>]\n\tWAIT_CLOSE [<db>]\n\t\
         KILL [<db>]\n\tKILL_CLIENT <client_id>\n\tSHUTDOWN\n\tSHUTDOWN WAIT_FOR_SERVERS|WAIT_FOR_CLIENTS",
        shows.join("|")
    )
}
