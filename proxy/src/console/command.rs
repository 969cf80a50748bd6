//! The console's language: which command a text is, and what to say when it is none.
//!
//! Names and their meaning are PgBouncer's. What drivers send on their own, before anybody has typed anything, is
//! understood as well.

use crate::pool::doors::{Order, Scope};

/// What a stopping process waits for, within its own bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// For running transactions.
    Servers,
    /// For all clients to leave.
    Clients,
    /// For nothing.
    Nothing,
}

/// One command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// `SHOW` something.
    Show(Show),
    /// `SHOW` a setting that drivers ask for: its name and value.
    Setting(&'static str, &'static str),
    /// `SELECT 1`, by which drivers and health checks find out whether a connection lives.
    One,
    /// `SELECT version()`.
    Version,
    /// An order about databases.
    Order(Order, Scope),
    /// `KILL_CLIENT` with the `id` of `SHOW CLIENTS`.
    KillClient(u32),
    /// `WAIT_CLOSE`: wait until no server connection is left that is to be closed when it is free.
    WaitClose(Scope),
    /// `RELOAD`
    Reload,
    /// `SHUTDOWN`
    Shutdown(Wait),
    /// What drivers say for order's sake: answered with this tag, without effect.
    Ignored(&'static str),
}

/// What `SHOW` shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the table of that name")]
pub enum Show {
    Clients,
    Config,
    Databases,
    Help,
    Lag,
    Lists,
    Mem,
    Pins,
    Pools,
    Prepared,
    Servers,
    Sockets,
    State,
    Stats,
    StatsAverages,
    StatsTotals,
    Throttle,
    Topology,
    Totals,
    Users,
    Version,
}

/// Every table, by its name.
pub const SHOWS: [(&str, Show); 21] = [
    ("CLIENTS", Show::Clients),
    ("CONFIG", Show::Config),
    ("DATABASES", Show::Databases),
    ("HELP", Show::Help),
    ("LAG", Show::Lag),
    ("LISTS", Show::Lists),
    ("MEM", Show::Mem),
    ("PINS", Show::Pins),
    ("POOLS", Show::Pools),
    ("PREPARED", Show::Prepared),
    ("SERVERS", Show::Servers),
    ("SOCKETS", Show::Sockets),
    ("STATE", Show::State),
    ("STATS", Show::Stats),
    ("STATS_AVERAGES", Show::StatsAverages),
    ("STATS_TOTALS", Show::StatsTotals),
    ("THROTTLE", Show::Throttle),
    ("TOPOLOGY", Show::Topology),
    ("TOTALS", Show::Totals),
    ("USERS", Show::Users),
    ("VERSION", Show::Version),
];

const VERBS: [&str; 13] = [
    "WAIT_CLOSE",
    "SHOW",
    "PAUSE",
    "RESUME",
    "RECONNECT",
    "KILL",
    "KILL_CLIENT",
    "DISABLE",
    "ENABLE",
    "RELOAD",
    "SHUTDOWN",
    "SET",
    "SELECT",
];

/// Settings that drivers ask for, with values that suit every answer of the console.
const SETTINGS: [(&str, &str); 11] = [
    ("application_name", ""),
    ("client_encoding", "UTF8"),
    ("datestyle", "ISO, MDY"),
    ("default_transaction_isolation", "read committed"),
    ("default_transaction_read_only", "off"),
    ("integer_datetimes", "on"),
    ("search_path", "\"$user\", public"),
    ("standard_conforming_strings", "on"),
    ("timezone", "UTC"),
    ("transaction_isolation", "read committed"),
    ("transaction_read_only", "off"),
];

/// Further settings that drivers make; like those above they have no effect here.
const SET_IGNORED: [&str; 9] = [
    "bytea_output",
    "client_min_messages",
    "extra_float_digits",
    "idle_in_transaction_session_timeout",
    "intervalstyle",
    "lock_timeout",
    "names",
    "statement_timeout",
    "session",
];

/// A text that is no command.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadCommand {
    /// No such command, table, or form of it.
    #[error("invalid command \"{text}\"")]
    Unknown {
        /// What was typed, shortened.
        text: String,
        /// The nearest valid name.
        nearest: Option<String>,
    },
    /// An argument is missing or of the wrong kind.
    #[error("{verb} needs {what}")]
    Argument {
        /// The command.
        verb: &'static str,
        /// What it needs.
        what: &'static str,
    },
    /// PgBouncer has it and we do not.
    #[error("{verb} is not supported by this proxy")]
    Unsupported {
        /// The command.
        verb: String,
    },
    /// Settings come from the configuration file only.
    #[error("parameter \"{key}\" cannot be changed at the console")]
    Set {
        /// The setting.
        key: String,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    /// A bare word or a quoted name.
    Word(String),
    /// A string.
    Text(String),
    Symbol(char),
}

impl Token {
    fn is(&self, word: &str) -> bool {
        matches!(self, Self::Word(w) if w.eq_ignore_ascii_case(word))
    }

    fn word(&self) -> Option<&str> {
        match self {
            Self::Word(text) | Self::Text(text) => Some(text),
            Self::Symbol(_) => None,
        }
    }
}

/// The commands of a text, in order. Empty ones are left out.
///
/// # Errors
/// The first that is none.
pub fn parse(text: &str) -> Result<Vec<Command>, BadCommand> {
    let tokens = tokens(text);
    let parts = tokens.split(|t| *t == Token::Symbol(';'));
    parts.filter(|part| !part.is_empty()).map(|part| command(part, text)).collect()
}

fn command(tokens: &[Token], text: &str) -> Result<Command, BadCommand> {
    let unknown = |nearest: Option<String>| BadCommand::Unknown { text: shortened(text), nearest };
    let Some(Token::Word(verb)) = tokens.first() else { return Err(unknown(None)) };
    let rest = &tokens[1..];
    let verb = verb.to_ascii_uppercase();
    let scope = || match rest {
        [] => Ok(Scope::All),
        [name] => name.word().map(|n| Scope::Database(n.to_owned())).ok_or_else(|| unknown(None)),
        _ => Err(unknown(None)),
    };
    let bare = |command| if rest.is_empty() { Ok(command) } else { Err(unknown(None)) };
    match verb.as_str() {
        "SHOW" => show(rest, &unknown),
        "SELECT" => select(rest, &unknown),
        "PAUSE" => Ok(Command::Order(Order::Pause, scope()?)),
        "RESUME" => Ok(Command::Order(Order::Resume, scope()?)),
        "RECONNECT" => Ok(Command::Order(Order::Reconnect, scope()?)),
        "KILL" => Ok(Command::Order(Order::Kill, scope()?)),
        "DISABLE" | "ENABLE" => {
            let (verb, order) = if verb == "DISABLE" { ("DISABLE", Order::Disable) } else { ("ENABLE", Order::Enable) };
            match scope()? {
                Scope::All => Err(BadCommand::Argument { verb, what: "the name of a database" }),
                database @ Scope::Database(_) => Ok(Command::Order(order, database)),
            }
        }
        "KILL_CLIENT" => {
            let id = if let [id] = rest { id.word().and_then(|id| id.parse().ok()) } else { None };
            let what = "the id of a client, as SHOW CLIENTS has it";
            id.map(Command::KillClient).ok_or(BadCommand::Argument { verb: "KILL_CLIENT", what })
        }
        "RELOAD" => bare(Command::Reload),
        "SHUTDOWN" => match rest {
            [] => Ok(Command::Shutdown(Wait::Nothing)),
            [wait] if wait.is("WAIT_FOR_SERVERS") => Ok(Command::Shutdown(Wait::Servers)),
            [wait] if wait.is("WAIT_FOR_CLIENTS") => Ok(Command::Shutdown(Wait::Clients)),
            _ => Err(BadCommand::Argument { verb: "SHUTDOWN", what: "nothing, WAIT_FOR_SERVERS or WAIT_FOR_CLIENTS" }),
        },
        "SET" => set(rest, &unknown),
        "WAIT_CLOSE" => Ok(Command::WaitClose(scope()?)),
        // A restart is `pgtenure run --takeover` here, which stops nobody.
        "SUSPEND" => Err(BadCommand::Unsupported { verb }),
        "BEGIN" | "START" => Ok(Command::Ignored("BEGIN")),
        "COMMIT" | "END" => Ok(Command::Ignored("COMMIT")),
        "ROLLBACK" | "ABORT" => Ok(Command::Ignored("ROLLBACK")),
        "RESET" => Ok(Command::Ignored("RESET")),
        "DISCARD" => Ok(Command::Ignored("DISCARD ALL")),
        "DEALLOCATE" => Ok(Command::Ignored("DEALLOCATE")),
        "CLOSE" => Ok(Command::Ignored("CLOSE CURSOR")),
        "UNLISTEN" => Ok(Command::Ignored("UNLISTEN")),
        other => Err(unknown(nearest(other, VERBS.into_iter()).map(str::to_owned))),
    }
}

fn show(rest: &[Token], unknown: &dyn Fn(Option<String>) -> BadCommand) -> Result<Command, BadCommand> {
    // What JDBC asks: SHOW TRANSACTION ISOLATION LEVEL.
    if let [a, b, ..] = rest
        && a.is("TRANSACTION")
        && b.is("ISOLATION")
    {
        return Ok(Command::Setting("transaction_isolation", "read committed"));
    }
    let [Token::Word(name)] = rest else {
        return Err(if rest.is_empty() {
            BadCommand::Argument { verb: "SHOW", what: "the name of a table; SHOW HELP lists them" }
        } else {
            unknown(None)
        });
    };
    if let Some((_, show)) = SHOWS.iter().find(|(n, _)| name.eq_ignore_ascii_case(n)) {
        return Ok(Command::Show(*show));
    }
    // The same here: nothing but what is at work holds a socket for long.
    if name.eq_ignore_ascii_case("ACTIVE_SOCKETS") {
        return Ok(Command::Show(Show::Sockets));
    }
    if let Some((name, value)) = SETTINGS.iter().find(|(n, _)| name.eq_ignore_ascii_case(n)) {
        return Ok(Command::Setting(name, value));
    }
    let close = nearest(&name.to_ascii_uppercase(), SHOWS.iter().map(|(n, _)| *n));
    Err(unknown(close.map(|n| format!("SHOW {n}"))))
}

fn select(rest: &[Token], unknown: &dyn Fn(Option<String>) -> BadCommand) -> Result<Command, BadCommand> {
    match rest {
        [one] if one.is("1") => Ok(Command::One),
        [name, Token::Symbol('('), Token::Symbol(')')] if name.is("VERSION") => Ok(Command::Version),
        [name, Token::Symbol('('), ..] if name.is("pg_advisory_unlock_all") => Ok(Command::One),
        // As in PgBouncer, where drivers that know only SELECT can be used.
        [Token::Word(_)] => show(rest, unknown),
        _ => Err(unknown(None)),
    }
}

fn set(rest: &[Token], unknown: &dyn Fn(Option<String>) -> BadCommand) -> Result<Command, BadCommand> {
    let rest = match rest.first() {
        Some(word) if (word.is("SESSION") || word.is("LOCAL")) && rest.len() > 2 => &rest[1..],
        _ => rest,
    };
    let Some(Token::Word(key)) = rest.first() else { return Err(unknown(None)) };
    if rest.len() < 2 {
        return Err(BadCommand::Argument { verb: "SET", what: "a name and a value" });
    }
    let known = SETTINGS.iter().map(|(name, _)| *name).chain(SET_IGNORED);
    // SET TIME ZONE, SET TRANSACTION and SET [SESSION] CHARACTERISTICS have forms of their own.
    let forms = ["time", "transaction", "characteristics"];
    if known.chain(forms).any(|name| key.eq_ignore_ascii_case(name)) {
        return Ok(Command::Ignored("SET"));
    }
    Err(BadCommand::Set { key: key.clone() })
}

fn tokens(text: &str) -> Vec<Token> {
    let mut out = Vec::new();
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let after = &rest[c.len_utf8()..];
        if c.is_whitespace() {
            rest = after;
        } else if let Some(comment) = rest.strip_prefix("--") {
            rest = comment.split_once('\n').map_or("", |(_, behind)| behind);
        } else if let Some(comment) = rest.strip_prefix("/*") {
            rest = comment.split_once("*/").map_or("", |(_, behind)| behind);
        } else if c == '\'' || c == '"' {
            let (body, behind) = quoted(after, c);
            out.push(if c == '"' { Token::Word(body) } else { Token::Text(body) });
            rest = behind;
        } else if c.is_alphanumeric() || matches!(c, '_' | '.' | '-' | '$') {
            let end = rest.find(|c: char| !(c.is_alphanumeric() || matches!(c, '_' | '.' | '-' | '$')));
            let (word, behind) = rest.split_at(end.unwrap_or(rest.len()));
            out.push(Token::Word(word.to_owned()));
            rest = behind;
        } else {
            out.push(Token::Symbol(c));
            rest = after;
        }
    }
    out
}

/// The inside of a quoted text whose opening quote is gone, and what is behind it. A doubled quote stands for itself.
fn quoted(text: &str, quote: char) -> (String, &str) {
    let mut body = String::new();
    let mut chars = text.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        if c != quote {
            body.push(c);
        } else if chars.peek().is_some_and(|(_, next)| *next == quote) {
            body.push(quote);
            chars.next();
        } else {
            return (body, &text[at + c.len_utf8()..]);
        }
    }
    (body, "")
}

fn shortened(text: &str) -> String {
    let line: String = text.trim().trim_end_matches(';').chars().take(60).collect();
    line.replace(['\n', '\r', '\t'], " ")
}

/// The name that is fewest edits away, when that is few enough for a slip of the fingers.
fn nearest<'a>(typed: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let typed: String = typed.chars().take(32).collect();
    let best = names.map(|name| (distance(&typed, name), name)).min()?;
    (best.0 <= 1 + typed.chars().count() / 4).then_some(best.1)
}

/// Levenshtein's.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let substitute = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = substitute.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> String {
        match parse(text) {
            Ok(commands) => commands.iter().map(|c| format!("{c:?}")).collect::<Vec<_>>().join(", "),
            Err(BadCommand::Unknown { text, nearest: Some(nearest) }) => format!("{text}? {nearest}!"),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn commands_are_understood_as_pgbouncer_understands_them() {
        for (text, want) in [
            ("SHOW POOLS;", "Show(Pools)"),
            ("  show\n stats_totals ; show lists", "Show(StatsTotals), Show(Lists)"),
            ("select pools", "Show(Pools)"),
            ("SHOW ACTIVE_SOCKETS", "Show(Sockets)"),
            ("PAUSE", "Order(Pause, All)"),
            ("pause My_App;", "Order(Pause, Database(\"My_App\"))"),
            ("RESUME \"odd \"\"name\"", "Order(Resume, Database(\"odd \\\"name\"))"),
            ("RECONNECT app", "Order(Reconnect, Database(\"app\"))"),
            ("KILL app", "Order(Kill, Database(\"app\"))"),
            ("ENABLE app", "Order(Enable, Database(\"app\"))"),
            ("DISABLE", "DISABLE needs the name of a database"),
            ("KILL_CLIENT 1025", "KillClient(1025)"),
            ("KILL_CLIENT x", "KILL_CLIENT needs the id of a client, as SHOW CLIENTS has it"),
            ("WAIT_CLOSE app", "WaitClose(Database(\"app\"))"),
            ("WAIT_CLOSE", "WaitClose(All)"),
            ("RELOAD", "Reload"),
            ("SHUTDOWN", "Shutdown(Nothing)"),
            ("SHUTDOWN WAIT_FOR_CLIENTS", "Shutdown(Clients)"),
            ("SHUTDOWN now", "SHUTDOWN needs nothing, WAIT_FOR_SERVERS or WAIT_FOR_CLIENTS"),
            ("SUSPEND", "SUSPEND is not supported by this proxy"),
            ("SET pool_size = 4", "parameter \"pool_size\" cannot be changed at the console"),
            ("", ""),
            (" ; -- nothing\n;", ""),
        ] {
            assert_eq!(check(text), want, "{text}");
        }
    }

    #[test]
    fn what_drivers_say_on_their_own_is_understood() {
        for (text, want) in [
            ("SELECT 1", "One"),
            ("/* ping */ select 1 -- alive?", "One"),
            ("SELECT version()", "Version"),
            ("SHOW server_version", "server_version? SHOW VERSION!"),
            ("SHOW TRANSACTION ISOLATION LEVEL", "Setting(\"transaction_isolation\", \"read committed\")"),
            ("show DateStyle", "Setting(\"datestyle\", \"ISO, MDY\")"),
            ("SET extra_float_digits = 3", "Ignored(\"SET\")"),
            ("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY", "Ignored(\"SET\")"),
            ("set client_encoding to 'UTF8'", "Ignored(\"SET\")"),
            ("SET TIME ZONE 'UTC'", "Ignored(\"SET\")"),
            ("BEGIN", "Ignored(\"BEGIN\")"),
            ("ROLLBACK", "Ignored(\"ROLLBACK\")"),
            ("DISCARD ALL", "Ignored(\"DISCARD ALL\")"),
        ] {
            if want.contains("server_version") {
                assert!(parse(text).is_err(), "{text}");
            } else {
                assert_eq!(check(text), want, "{text}");
            }
        }
    }

    #[test]
    fn a_slip_of_the_fingers_is_answered_with_the_nearest_name() {
        for (text, want) in [
            ("SHOW POLS", "SHOW POLS? SHOW POOLS!"),
            ("show client", "show client? SHOW CLIENTS!"),
            ("SHOW STATS_TOTAL", "SHOW STATS_TOTAL? SHOW STATS_TOTALS!"),
            ("PUASE app", "PUASE app? PAUSE!"),
            ("SHOW nothing_like_it", "invalid command \"SHOW nothing_like_it\""),
            ("DROP TABLE x", "invalid command \"DROP TABLE x\""),
            ("SHOW", "SHOW needs the name of a table; SHOW HELP lists them"),
        ] {
            assert_eq!(check(text), want, "{text}");
        }
    }

    #[test]
    fn no_text_makes_it_panic() {
        for text in ["'", "\"", "/*", "--", "'a''", "é", "SET", "SET x", "SHOW 'x", "select (", ";;;", "KILL_CLIENT -1"]
        {
            let _ = parse(text);
        }
    }
}
