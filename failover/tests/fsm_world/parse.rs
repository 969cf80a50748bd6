//! Words of a scenario's line: positional ones, `key=value`, and flags.

use cluster::{Lsn, NodeId, TimelineId};
use failover::api::{Follower, Position, PostgresState, Primary, Standby};
use failover::fsm::action::CommandKind;
use failover::record::{Mode, Phase};
use std::str::FromStr;

/// What is left of a line.
pub(super) struct Words<'a> {
    left: Vec<&'a str>,
}

impl<'a> Words<'a> {
    pub(super) fn new(line: &'a str) -> Self {
        Self { left: line.split_whitespace().collect() }
    }

    /// The next positional word.
    pub(super) fn next(&mut self) -> Result<&'a str, String> {
        if self.left.is_empty() { Err("a word is missing".into()) } else { Ok(self.left.remove(0)) }
    }

    pub(super) fn parse<T: FromStr>(&mut self) -> Result<T, String> {
        let word = self.next()?;
        word.parse().map_err(|_| format!("cannot read {word}"))
    }

    pub(super) fn expect(&mut self, word: &str) -> Result<(), String> {
        if self.next()? == word { Ok(()) } else { Err(format!("expected {word}")) }
    }

    pub(super) fn flag(&mut self, name: &str) -> bool {
        let found = self.left.iter().position(|w| *w == name);
        found.map(|i| self.left.remove(i)).is_some()
    }

    pub(super) fn optional<T: FromStr>(&mut self, key: &str) -> Result<Option<T>, String> {
        let found = self.left.iter().position(|w| w.split_once('=').is_some_and(|(k, _)| k == key));
        let Some(i) = found else { return Ok(None) };
        let word = self.left.remove(i);
        let value = word.split_once('=').map_or("", |(_, v)| v);
        value.parse().map(Some).map_err(|_| format!("cannot read {word}"))
    }

    pub(super) fn value<T: FromStr>(&mut self, key: &str) -> Result<T, String> {
        self.optional(key)?.ok_or_else(|| format!("{key}= is missing"))
    }

    /// Everything was understood.
    pub(super) fn end(&self) -> Result<(), String> {
        if self.left.is_empty() { Ok(()) } else { Err(format!("not understood: {:?}", self.left)) }
    }
}

pub(super) fn nodes(list: &str) -> Vec<NodeId> {
    list.split(',').filter(|n| !n.is_empty()).map(|n| n.parse().unwrap()).collect()
}

/// `TL:LSN`
pub(super) fn position(text: &str) -> Result<Position, String> {
    let (tl, lsn) = text.split_once(':').ok_or("expected TIMELINE:LSN")?;
    let timeline = TimelineId(tl.parse().map_err(|_| format!("no timeline: {tl}"))?);
    Ok(Position { timeline, lsn: lsn.parse().map_err(|_| format!("no LSN: {lsn}"))? })
}

pub(super) fn mode(text: &str) -> Result<Mode, String> {
    [Mode::Strict, Mode::Available, Mode::Async].into_iter().find(|m| m.as_str() == text).ok_or("no such mode".into())
}

pub(super) fn phase(text: &str) -> Result<Phase, String> {
    Ok(match text {
        "recruiting" => Phase::Recruiting,
        "promoting" => Phase::Promoting,
        "opening" => Phase::Opening,
        "active" => Phase::Active,
        "draining" => Phase::Draining,
        other => return Err(format!("no phase: {other}")),
    })
}

pub(super) fn kind(text: &str) -> Result<CommandKind, String> {
    use CommandKind::{Arm, CatchUp, Checkpoint, Follow, Freeze, Open, Promote, Recover, Relax, Stop};
    let all = [Freeze, Recover, CatchUp, Promote, Follow, Open, Checkpoint, Stop, Arm, Relax];
    all.into_iter().find(|k| k.as_str() == text).ok_or_else(|| format!("no command: {text}"))
}

/// These, or everybody but n1, have flushed up to here; those that do not vote are not counted.
fn followers(named: Option<String>, flush: Lsn) -> Vec<Follower> {
    let follower = |node: NodeId| Follower {
        node,
        state: "streaming".into(),
        flush_lsn: Some(flush),
        replay_lsn: Some(flush),
        sync_state: "quorum".into(),
    };
    let everybody = || (2..=7).map(|n: u32| format!("n{n}").parse().expect("a name")).collect();
    named.map_or_else(everybody, |list| nodes(&list)).into_iter().map(follower).collect()
}

pub(super) fn postgres(
    is: &str,
    timeline: TimelineId,
    at: Lsn,
    primary: Option<NodeId>,
    words: &mut Words<'_>,
) -> Result<PostgresState, String> {
    Ok(match is {
        "primary" => PostgresState::Primary(Primary {
            timeline,
            insert_lsn: at,
            flush_lsn: words.optional("flush")?.unwrap_or(at),
            sync_names: words.optional::<String>("names")?.unwrap_or_default().replace('_', " "),
            followers: {
                let behind = words.optional::<String>("catching_up")?.map_or_else(Vec::new, |l| nodes(&l));
                let mut all = followers(words.optional("followers")?, words.optional("acks")?.unwrap_or(at));
                all.iter_mut().filter(|f| behind.contains(&f.node)).for_each(|f| f.state = "catchup".into());
                all
            },
            impostors: words.optional::<String>("impostors")?.map(|i| i.replace('_', " ")).into_iter().collect(),
            doubted: words.optional::<String>("doubted")?.map_or_else(Vec::new, |l| nodes(&l)),
        }),
        "standby" => PostgresState::Standby(Standby {
            timeline,
            receive_lsn: at,
            replay_lsn: words.optional("replay")?.unwrap_or(at),
            streams_from: match words.optional::<String>("from")?.as_deref() {
                Some("nobody") => None,
                Some(n) => Some(n.parse().map_err(|_| "no node")?),
                None => primary,
            },
            replay_paused: words.flag("paused"),
            sync_names: String::new(),
        }),
        "stopped" => PostgresState::Stopped {
            clean: words.flag("clean"),
            timeline,
            was_primary: words.flag("was_primary"),
            checkpoint_lsn: at,
        },
        "starting" => PostgresState::Starting,
        "absent" => PostgresState::Absent,
        "hung" => PostgresState::Hung { for_ms: words.value("for_ms")? },
        other => return Err(format!("no state: {other}")),
    })
}
