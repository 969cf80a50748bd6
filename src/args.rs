//! The command line.

use clap::parser::ValueSource;
use clap::{ArgGroup, ArgMatches, Args, FromArgMatches, Parser, Subcommand, ValueEnum};
use cluster::config::Span;
use std::ops::Deref;
use std::path::PathBuf;
use std::time::Duration;

/// A drop-in PostgreSQL endpoint that survives its primary.
#[derive(Debug, Parser)]
#[command(name = "pgtenure", version, about, after_help = EXIT_CODES)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const EXIT_CODES: &str = "Exit codes: 0 done; 1 failed; 2 refused, with the reasons and their numbers; 64 wrong usage.";

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the roles that a configuration file asks for, until SIGTERM or SIGINT.
    Run(RunArgs),
    /// Check a configuration file.
    Config(ConfigArgs),
    /// Make userlist entries.
    Userlist(UserlistArgs),
    /// Run a whole cluster on loopback, in a scratch directory.
    Demo(crate::demo::Args),
    /// Let a running process read its configuration file again.
    Reload(ReloadArgs),
    /// Tell where a statement would go, and why.
    Route(RouteArgs),
    /// Show the cluster, and whether losing the primary now would be safe.
    Status(StatusArgs),
    /// Show the replication lag of every standby.
    Lag(LagArgs),
    /// Make another node primary, with the primary's help and without loss.
    Switchover(SwitchoverArgs),
    /// Make another node primary without the old one's help.
    Failover(FailoverArgs),
    /// Stop a node and take it out of routing and candidates.
    Fence(FenceArgs),
    /// Let a fenced node take part again.
    Unfence(UnfenceArgs),
    /// Let the managers change nothing by themselves until resume.
    Pause(PauseArgs),
    /// End a pause.
    Resume(ResumeArgs),
    /// Take over a primary and its standbys that run without agents: show the plan, with --yes carry it out.
    Adopt(AdoptArgs),
    /// Make the records anew from the agents' disks after etcd lost all its data: show the plan, with --yes carry it out.
    Rebuild(RebuildArgs),
    /// Add a node to the cluster, or remove one for good.
    Node(NodeArgs),
    /// Work on a node: its PostgreSQL may be stopped, reads go elsewhere, nobody is switched over to it.
    Maintenance(MaintenanceArgs),
    /// Show or change who votes and how many copies a commit needs.
    Policy(PolicyArgs),
    /// What a failover lost: bytes, time and transactions.
    Report(ReportArgs),
    /// How each term came about.
    History(TargetArgs),
    /// Check a promise on the running cluster.
    Verify(VerifyArgs),
}

/// `pgtenure run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// The configuration file.
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Take the listening sockets of the process at process.handover_socket, if one runs, and let it finish.
    #[arg(long)]
    pub takeover: bool,
}

/// `pgtenure config …`.
#[derive(Debug, Args)]
pub struct ConfigArgs {
    /// What to do with it.
    #[command(subcommand)]
    pub command: ConfigCommand,
}

/// Verbs on configuration files.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// List everything wrong with FILE.
    Check {
        /// The file.
        file: PathBuf,
    },
}

/// `pgtenure reload`.
#[derive(Debug, Args)]
pub struct ReloadArgs {
    /// The configuration file of the process; tells its admin address and its secret.
    #[arg(long, value_name = "FILE", env = "PGTENURE_CONFIG")]
    pub config: PathBuf,
    /// Its admin address, as in http://db1:7400, when it is not the file's.
    #[arg(long, value_name = "URL")]
    pub admin: Option<String>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// `pgtenure route`.
#[derive(Debug, Args)]
pub struct RouteArgs {
    /// The statement.
    pub sql: String,
    /// The database, by the name clients ask for.
    #[arg(long, value_name = "NAME", default_value = "postgres")]
    pub database: String,
    /// The user.
    #[arg(long, value_name = "NAME", default_value = "postgres")]
    pub user: String,
    /// Ask the running proxy of this configuration file. Without it and --admin only the text counts.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Admin address of a running proxy, as in http://app1:7430.
    #[arg(long, value_name = "URL")]
    pub admin: Option<String>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// `pgtenure userlist …`.
#[derive(Debug, Args)]
pub struct UserlistArgs {
    /// What to make.
    #[command(subcommand)]
    pub command: UserlistCommand,
}

/// Verbs on userlists.
#[derive(Debug, Subcommand)]
pub enum UserlistCommand {
    /// Read a password from standard input and print USER's line with its SCRAM verifier.
    Entry {
        /// The PostgreSQL user.
        user: String,
    },
}

/// Which cluster a verb is for, and how the answer is printed.
#[derive(Clone, Debug)]
pub struct TargetArgs(TargetFields);

/// What [`TargetArgs`] holds. Both `config` and `admin` only where both were typed.
#[derive(Clone, Debug, Args)]
#[command(group = ArgGroup::new("where").args(["config", "admin"]).required(true).multiple(true))]
pub struct TargetFields {
    /// Find the leading manager through the etcd of this configuration file, whose secret is used too, also for --admin.
    /// What is typed counts, not the other's variable.
    #[arg(long, value_name = "FILE", env = "PGTENURE_CONFIG")]
    pub config: Option<PathBuf>,
    /// The cluster, where managers look after several; without it the one of --config, or their first.
    #[arg(long, value_name = "NAME")]
    pub cluster: Option<String>,
    /// Admin address of any manager, as in http://db1:7400, or several with commas; the leader is found from there.
    #[arg(long, value_name = "URL", env = "PGTENURE_ADMIN")]
    pub admin: Option<String>,
    /// File with the shared secret, needed by verbs that change something (not needed with --config).
    #[arg(long, value_name = "FILE")]
    pub secret_file: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

impl Deref for TargetArgs {
    type Target = TargetFields;

    fn deref(&self) -> &TargetFields {
        &self.0
    }
}

impl FromArgMatches for TargetArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let typed = |id| matches.value_source(id) == Some(ValueSource::CommandLine);
        let mut fields = TargetFields::from_arg_matches(matches)?;
        match (typed("config"), typed("admin")) {
            (true, false) => fields.admin = None,
            // Of the variables alone that of the managers counts, too.
            (false, _) if fields.admin.is_some() => fields.config = None,
            _ => {}
        }
        Ok(Self(fields))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Args for TargetArgs {
    fn augment_args(command: clap::Command) -> clap::Command {
        TargetFields::augment_args(command)
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        TargetFields::augment_args_for_update(command)
    }
}

/// `pgtenure status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Which cluster.
    #[command(flatten)]
    pub target: TargetArgs,
}

/// `pgtenure lag`.
#[derive(Debug, Args)]
pub struct LagArgs {
    /// Which cluster.
    #[command(flatten)]
    pub target: TargetArgs,
    /// Show it again and again, with the recent past of every standby as a line, until Ctrl-C.
    #[arg(long)]
    pub watch: bool,
    /// Between two looks, as in 500ms or 2s; 100ms at least.
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = interval, requires = "watch")]
    pub interval: Span,
    /// End after so many looks.
    #[arg(long, value_name = "N", requires = "watch")]
    pub count: Option<u64>,
}

fn size(text: &str) -> Result<u64, String> {
    text.parse::<cluster::config::Size>().map(|s| s.0).map_err(|e| e.to_string())
}

fn interval(text: &str) -> Result<Span, String> {
    let span: Span = text.parse().map_err(|e: cluster::config::UnitError| e.to_string())?;
    if span < Span::millis(100) { Err("must be at least 100ms".to_owned()) } else { Ok(span) }
}

/// `pgtenure switchover`.
#[derive(Debug, Args)]
pub struct SwitchoverArgs {
    /// Which cluster.
    #[command(flatten)]
    pub target: TargetArgs,
    /// The node to become primary; without it the most advanced standby.
    #[arg(long, value_name = "NODE")]
    pub to: Option<String>,
    /// Refuse unless the cluster is in this term.
    #[arg(long, value_name = "TERM")]
    pub expect_term: Option<u64>,
}

/// `pgtenure failover`.
#[derive(Debug, Args)]
pub struct FailoverArgs {
    /// Which cluster.
    #[command(flatten)]
    pub target: TargetArgs,
    /// The node to become primary, if it lacks nothing that another has.
    #[arg(long, value_name = "NODE")]
    pub to: Option<String>,
    /// Refuse unless the cluster is in this term.
    #[arg(long, value_name = "TERM")]
    pub expect_term: Option<u64>,
    /// Go on with the standbys there are, and open even when commits are then unprotected.
    #[arg(long)]
    pub allow_data_loss: bool,
}

/// `pgtenure fence`.
#[derive(Debug, Args)]
pub struct FenceArgs {
    /// Which cluster.
    #[command(flatten)]
    pub target: TargetArgs,
    /// The node.
    pub node: String,
    /// Fence it even if it is the primary: the cluster then accepts no writes.
    #[arg(long)]
    pub stop_writes: bool,
}

/// `pgtenure unfence`.
#[derive(Debug, Args)]
pub struct UnfenceArgs {
    /// Which cluster.
    #[command(flatten)]
    pub target: TargetArgs,
    /// The node.
    pub node: String,
}

/// `pgtenure pause`.
#[derive(Debug, Args)]
pub struct PauseArgs {
    /// Which cluster.
    #[command(flatten)]
    pub target: TargetArgs,
    /// It ends by itself after so long, as in 30min or 2h, at most 30days; without it, only by resume.
    #[arg(long = "for", value_name = "TIME", value_parser = humantime::parse_duration)]
    pub length: Option<std::time::Duration>,
    /// Why, for those who find the cluster paused.
    #[arg(long, value_name = "WORDS", default_value = "")]
    pub why: String,
}

/// `pgtenure resume`.
#[derive(Debug, Args)]
pub struct ResumeArgs {
    /// Which cluster.
    #[command(flatten)]
    pub target: TargetArgs,
}

/// `pgtenure adopt`.
#[derive(Debug, Args)]
pub struct AdoptArgs {
    /// The configuration file of the agent on the primary's host.
    #[arg(long, value_name = "FILE", env = "PGTENURE_CONFIG")]
    pub config: PathBuf,
    /// The running primary, as a libpq connection string or URI of a superuser.
    #[arg(long, value_name = "DSN")]
    pub primary: String,
    /// Carry the plan out.
    #[arg(long)]
    pub yes: bool,
    /// Take an adoption back whose primary was not touched yet.
    #[arg(long, conflicts_with = "yes")]
    pub undo: bool,
    /// How long to wait for each step.
    #[arg(long, value_name = "TIME", default_value = "10min", value_parser = humantime::parse_duration)]
    pub wait: Duration,
}

/// `pgtenure rebuild`.
#[derive(Debug, Args)]
pub struct RebuildArgs {
    /// The configuration file of any agent or manager of the cluster.
    #[arg(long, value_name = "FILE", env = "PGTENURE_CONFIG")]
    pub config: PathBuf,
    /// Go on without these nodes, whose agents do not answer; the plan says what that risks.
    #[arg(long, value_name = "NODES", value_delimiter = ',')]
    pub without: Vec<String>,
    /// Carry the plan out.
    #[arg(long)]
    pub yes: bool,
    /// How long to wait for the term to open.
    #[arg(long, value_name = "TIME", default_value = "2min", value_parser = humantime::parse_duration)]
    pub wait: Duration,
}

/// `pgtenure node …`.
#[derive(Debug, Args)]
pub struct NodeArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: NodeCommand,
}

/// Verbs on nodes.
#[derive(Debug, Subcommand)]
pub enum NodeCommand {
    /// Wait until a node whose agent was started with agent.joins has copied the data and follows, then let it vote.
    Add(NodeAddArgs),
    /// Take a node's vote away, stop it and forget it.
    Remove(NodeRemoveArgs),
}

/// `pgtenure node add`.
#[derive(Debug, Args)]
pub struct NodeAddArgs {
    /// Which cluster.
    #[command(flatten)]
    pub target: TargetArgs,
    /// The node.
    pub node: String,
    /// It only follows.
    #[arg(long)]
    pub no_vote: bool,
    /// How long to wait for the copy, as in 30min or 2h.
    #[arg(long, value_name = "TIME", default_value = "6h", value_parser = humantime::parse_duration)]
    pub wait: Duration,
}

/// `pgtenure node remove`.
#[derive(Debug, Args)]
pub struct NodeRemoveArgs {
    /// Which cluster.
    #[command(flatten)]
    pub target: TargetArgs,
    /// The node.
    pub node: String,
}

/// `pgtenure maintenance`.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("begin or end").args(["on", "off"]).required(true))]
pub struct MaintenanceArgs {
    /// Which cluster.
    #[command(flatten)]
    pub target: TargetArgs,
    /// The node.
    pub node: String,
    /// The work begins.
    #[arg(long)]
    pub on: bool,
    /// The work is done.
    #[arg(long)]
    pub off: bool,
    /// It ends by itself after so long, as in 30min or 2h, at most 30days; without it, only by --off.
    #[arg(long = "for", value_name = "TIME", value_parser = humantime::parse_duration, requires = "on", conflicts_with = "off")]
    pub length: Option<std::time::Duration>,
    /// Why, for those who find the node in maintenance.
    #[arg(long, value_name = "WORDS", default_value = "")]
    pub why: String,
    /// If the node is the primary, switch over to another first.
    #[arg(long, requires = "on", conflicts_with = "off")]
    pub switchover: bool,
    /// Also when commits then wait because too few standbys are left.
    #[arg(long, requires = "on", conflicts_with = "off")]
    pub stop_writes: bool,
}

/// `pgtenure policy`.
#[derive(Debug, Args)]
pub struct PolicyArgs {
    /// Which cluster.
    #[command(flatten)]
    pub target: TargetArgs,
    /// What a commit is promised: strict, available or async. Without this and the following the policy is only shown.
    #[arg(long, value_name = "MODE", value_parser = ["strict", "available", "async"])]
    pub mode: Option<String>,
    /// In available mode: most WAL that may go unprotected, as in 1GiB; beyond it commits wait again.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub max_loss: Option<u64>,
    /// In available mode: for how long commits may go unprotected, as in 2h.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub max_time: Option<std::time::Duration>,
    /// Show the policies that have been in force.
    #[arg(long, conflicts_with_all = ["mode", "max_loss", "max_time", "voters", "k"])]
    pub history: bool,
    /// The nodes that are to vote, with commas.
    #[arg(long, value_name = "NODES", value_delimiter = ',')]
    pub voters: Option<Vec<String>>,
    /// Standbys that must have flushed a commit before it is acknowledged.
    #[arg(long, value_name = "NUMBER")]
    pub k: Option<u32>,
    /// Refuse unless the policy is in this epoch.
    #[arg(long, value_name = "EPOCH")]
    pub expect_epoch: Option<u64>,
}

/// `pgtenure report`.
#[derive(Debug, Args)]
pub struct ReportArgs {
    /// Which cluster.
    #[command(flatten)]
    pub target: TargetArgs,
    /// The term that the failover began; without it the newest.
    pub term: Option<u64>,
}

/// `pgtenure verify …`.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// What to check.
    #[command(subcommand)]
    pub command: VerifyCommand,
}

/// What can be checked.
#[derive(Debug, Subcommand)]
pub enum VerifyCommand {
    /// Write and read through the endpoint, in a schema of its own, and check that no read is staler than promised.
    Reads(VerifyReadsArgs),
}

/// What is checked of reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum VerifyMode {
    /// No read misses what was acknowledged longer than --max-replay-lag before it began.
    Bounded,
    /// That, and no session goes back.
    Monotonic,
    /// That, and a session sees its own writes.
    Session,
    /// No read misses what was acknowledged through any endpoint before it began.
    Global,
    /// All of them, at once.
    All,
}

/// `pgtenure verify reads`.
#[derive(Debug, Args)]
pub struct VerifyReadsArgs {
    /// The endpoint, as a libpq connection string or URI. Several, of different proxies, to check between them.
    #[arg(long, value_name = "DSN", required = true)]
    pub dsn: Vec<String>,
    /// What is checked.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "all")]
    pub mode: Vec<VerifyMode>,
    /// How long, at most.
    #[arg(long, value_name = "N", default_value_t = 30)]
    pub seconds: u64,
    /// End when every mode has so many checked reads, and fail when it has not in time.
    #[arg(long, value_name = "N")]
    pub reads: Option<u64>,
    /// Sessions that read, for each mode.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..))]
    pub readers: u16,
    /// Sessions that write.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..))]
    pub writers: u16,
    /// The bound that sessions ask for, and that is checked.
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = humantime::parse_duration)]
    pub max_replay_lag: Duration,
    /// How long sessions ask to wait for a standby. Default: 1s for global, the endpoint's for others.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub standby_wait: Option<Duration>,
    /// Longest pause of a session between two reads; pauses are random.
    #[arg(long, value_name = "TIME", default_value = "4ms", value_parser = humantime::parse_duration)]
    pub read_pause: Duration,
    /// Longest pause of a writer between two writes.
    #[arg(long, value_name = "TIME", default_value = "40ms", value_parser = humantime::parse_duration)]
    pub write_pause: Duration,
    /// Let all sessions ask for this consistency instead, to see that the check can fail.
    #[arg(long, value_name = "CONSISTENCY")]
    pub ask: Option<String>,
    /// Fail when standbys have served less than this share of the reads of a mode, or none.
    #[arg(long, value_name = "SHARE", default_value_t = 0.3, value_parser = share, conflicts_with = "primary_only")]
    pub standby_share: f64,
    /// Do not fail when no standby has served any read of a mode.
    #[arg(long)]
    pub primary_only: bool,
    /// Drop the schema first that a run which was killed has left.
    #[arg(long)]
    pub replace: bool,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

fn share(text: &str) -> Result<f64, String> {
    let share = text.parse().ok().filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| "a share is between 0 and 1".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn what_is_missing_is_named_with_what_may_stand_for_it() {
        let missing = |line: &str| {
            let words = line.split(' ');
            Cli::try_parse_from(words).map_or_else(|e| e.to_string(), |_| "nothing".to_owned())
        };
        if std::env::var_os("PGTENURE_CONFIG").is_none() && std::env::var_os("PGTENURE_ADMIN").is_none() {
            assert!(
                missing("pgtenure status").contains("<--config <FILE>|--admin <URL>>"),
                "{}",
                missing("pgtenure status")
            );
        }
        let neither = missing("pgtenure maintenance n1 --admin a");
        assert!(neither.contains("<--on|--off>"), "{neither}");
        assert_eq!(missing("pgtenure status --config f --admin a"), "nothing");
        for more in ["--on", "--switchover", "--stop-writes", "--for 1h"] {
            let both = missing(&format!("pgtenure maintenance n1 --admin a --off {more}"));
            assert!(both.contains("cannot be used with"), "--off {more}: {both}");
        }
    }
}
