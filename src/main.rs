//! The process's entry: parse the command line, do what it says, turn the outcome into an exit code.

use clap::Parser;
use pgtenure::args::Cli;
use std::process::ExitCode;

fn main() -> ExitCode {
    match Cli::try_parse() {
        Ok(cli) => pgtenure::run(cli.command),
        Err(error) => {
            // clap's own code for wrong usage is 2, which here means that a verb was refused.
            let _ = error.print();
            ExitCode::from(if error.use_stderr() { pgtenure::EXIT_USAGE } else { 0 })
        }
    }
}
