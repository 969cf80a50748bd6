//! `pgtenure userlist entry USER`: turns a password into the line that the proxy's userlist and a new cluster need.

use anyhow::{Context, Result, bail};
use nix::sys::termios::{LocalFlags, SetArg, tcgetattr, tcsetattr};
use proxy::auth::scram::Verifier;
use std::io::{BufRead, IsTerminal, Write};

/// PostgreSQL's own default (`scram_iterations`).
const ITERATIONS: u32 = 4096;

/// Print `user`'s line on standard output. The password is the first line of standard input, asked for without echo
/// on a terminal.
pub fn entry(user: &str) -> Result<()> {
    let password = read_password(user)?;
    println!("{}", line(user, &password, rand::random())?);
    Ok(())
}

fn line(user: &str, password: &str, salt: [u8; 16]) -> Result<String> {
    if user.is_empty() || user.contains(['\n', '\0']) {
        bail!("{user:?} is not the name of a PostgreSQL user");
    }
    if password.is_empty() {
        bail!("the password is empty");
    }
    // PgBouncer's form: a quote inside quotes is doubled.
    Ok(format!("\"{}\" \"{}\"", user.replace('"', "\"\""), Verifier::from_password(password, salt, ITERATIONS)))
}

fn read_password(user: &str) -> Result<String> {
    let input = std::io::stdin();
    let mut typed = String::new();
    if input.is_terminal() {
        eprint!("password of {user}: ");
        std::io::stderr().flush()?;
        let shown = tcgetattr(&input).context("cannot read the terminal's settings")?;
        let mut hidden = shown.clone();
        hidden.local_flags.remove(LocalFlags::ECHO);
        tcsetattr(&input, SetArg::TCSAFLUSH, &hidden).context("cannot turn echo off")?;
        let read = input.lock().read_line(&mut typed);
        tcsetattr(&input, SetArg::TCSAFLUSH, &shown).context("cannot turn echo on again")?;
        eprintln!();
        read
    } else {
        input.lock().read_line(&mut typed)
    }
    .context("cannot read the password")?;
    Ok(typed.trim_end_matches(['\n', '\r']).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_back_by_the_proxy() {
        let text = line("app \"x\"", "correct horse", [7; 16]).unwrap();
        let list = proxy::auth::userlist::Userlist::parse(&text).unwrap();
        assert!(list.get("app \"x\"").is_some(), "{text}");
        assert!(!text.contains("correct"));
    }

    #[test]
    fn an_empty_password_is_refused() {
        assert!(line("app", "", [0; 16]).is_err());
    }
}
