//! The `pgtenure` program: configuration, the wiring of its roles, the admin HTTP, the operator's commands, the demo.
//!
//! The library holds everything but the process's entry, so that tests can reach it. Roles live in the crates
//! `proxy`, `lagmon` and `failover`, which know nothing of each other; this package joins them.

pub mod admin;
pub mod args;
pub mod config;
pub mod ctl;
pub mod demo;
pub mod handover;
pub mod process;
pub mod userlist;
pub mod wiring;

use args::{Command, ConfigCommand, UserlistCommand, VerifyCommand};
use std::process::ExitCode;

/// Tried and failed.
pub const EXIT_FAILED: u8 = 1;
/// Not tried, for reasons that were printed.
pub const EXIT_REFUSED: u8 = 2;
/// Wrong usage: EX_USAGE of sysexits.h.
pub const EXIT_USAGE: u8 = 64;

/// Do what the command line says.
pub fn run(command: Command) -> ExitCode {
    match command {
        Command::Run(args) => exit(wiring::run(&args.config, args.takeover)),
        Command::Config(args) => {
            let ConfigCommand::Check { file } = args.command;
            exit(check(&file))
        }
        Command::Userlist(args) => {
            let UserlistCommand::Entry { user } = args.command;
            exit(userlist::entry(&user))
        }
        Command::Demo(args) => demo::run(&args),
        Command::Reload(args) => ctl::reload::run(&args),
        Command::Route(args) => ctl::route::run(&args),
        Command::Verify(args) => {
            let VerifyCommand::Reads(args) = args.command;
            ctl::verify::run(&args)
        }
        Command::Adopt(args) => ctl::adopt::run(&args),
        Command::Rebuild(args) => ctl::rebuild::run(&args),
        Command::Status(_)
        | Command::Lag(_)
        | Command::Switchover(_)
        | Command::Failover(_)
        | Command::Fence(_)
        | Command::Unfence(_)
        | Command::Pause(_)
        | Command::Node(_)
        | Command::Maintenance(_)
        | Command::Resume(_)
        | Command::Policy(_)
        | Command::Report(_)
        | Command::History(_) => ctl::run(command),
    }
}

fn check(file: &std::path::Path) -> anyhow::Result<()> {
    let config = config::load(file)?;
    if !config.removed.is_empty() {
        // A service that checks its file before it starts must not fail for what the process itself starts with.
        eprintln!("{}", config::ConfigError::Wrong { file: file.to_owned(), problems: config.removed });
    }
    let roles = config.roles.iter().map(|r| r.as_str()).collect::<Vec<_>>().join(", ");
    println!("{}: ok, roles: {roles}", file.display());
    Ok(())
}

/// One line (or one per problem) on standard error, and the exit code.
fn exit(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::from(EXIT_FAILED)
        }
    }
}
