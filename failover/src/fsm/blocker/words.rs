//! Blockers as sentences with their numbers. PURE.

use super::{Blocker, Missing, Unfit, list};
use std::fmt;

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.node)?;
        match &self.unfit {
            Unfit::Unreachable { silent_ms } => write!(f, "unreachable for {silent_ms} ms"),
            Unfit::Fenced => f.write_str("fenced"),
            Unfit::Namesake { what } => write!(f, "with a namesake ({what})"),
            Unfit::InMaintenance => f.write_str("stopped, in maintenance"),
            Unfit::Quarantined { floor } => {
                write!(f, "quarantined until it has replayed {} on timeline {}", floor.lsn, floor.timeline)
            }
            Unfit::Foreign { have } => write!(f, "with another cluster's data (system identifier {have})"),
            Unfit::PromotedPastUs { have, newest } => {
                write!(f, "promoted by somebody else (timeline {}, no term made one after {newest})", have.timeline)
            }
            Unfit::PromotedWithLoss { have } => write!(
                f,
                "on timeline {} of a term that was allowed to lose data and never opened (a failover with \
                 --allow-data-loss takes it)",
                have.timeline
            ),
            Unfit::NoData => f.write_str("without data"),
            Unfit::NotRecovered => f.write_str("stopped and not recovered"),
            Unfit::NotFrozen => f.write_str("not frozen yet"),
            Unfit::Hung { for_ms } => write!(f, "without an answer from PostgreSQL for {for_ms} ms"),
            Unfit::Rejoining { what } => write!(f, "{what}"),
        }
    }
}

impl fmt::Display for Blocker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotLeading => f.write_str("this manager does not lead"),
            Self::RecordsUnread => f.write_str("the records in etcd have not been read"),
            Self::NoCluster => f.write_str("the cluster has not been created yet"),
            Self::RecordsLost { promised } => write!(
                f,
                "etcd knows no term, and agents have promised term {promised}: it has lost what it held; restore a backup, or \
                 make the records anew with `pgtenure rebuild`"
            ),
            Self::TooFewRecruits { m, k, needed, have, missing } => write!(
                f,
                "too few standbys: m={m}, k={k}, {needed} needed, {} there ({}); missing: {}",
                have.len(),
                list(have),
                list(missing)
            ),
            Self::TooFewObservers { node, lost, needed, abstained } => write!(
                f,
                "{node} is silent to this manager, but only {lost} of {needed} observers needed have lost it; {}",
                list(abstained)
            ),
            Self::PrimaryStillAnswers { node, observers } => {
                write!(f, "{node} is silent to this manager but still answers others: {}", list(observers))
            }
            Self::PrimaryAwaited { node, left_ms } => write!(
                f,
                "only {node} has every acknowledged commit and it has not been heard since this manager leads; it is \
                 waited for, {left_ms} ms more"
            ),
            Self::PrimaryUnheard { node, term } => {
                write!(f, "{node} has not reported yet since it is known as the primary of term {term}")
            }
            Self::PrimaryHung { node, for_ms, limit_ms, others } if others.is_empty() => {
                write!(f, "PostgreSQL of {node} has not answered for {for_ms} ms of {limit_ms} ms")
            }
            Self::PrimaryHung { node, for_ms, others, .. } => write!(
                f,
                "PostgreSQL of {node} has not answered for {for_ms} ms; a failover would not help: {}",
                list(others)
            ),
            Self::PrimaryAnswersOthers { node, for_ms, observers } => write!(
                f,
                "PostgreSQL of {node} has not answered its own agent for {for_ms} ms but answers others: {}",
                list(observers)
            ),
            Self::PrimaryStuck { node, stuck, others } => {
                write!(f, "{node} cannot commit: {stuck}; a failover would not help: {}", list(others))
            }
            Self::PrimaryOnOtherTimeline { node, term, timeline } => {
                write!(f, "{node} writes timeline {timeline} in term {term}")
            }
            Self::PrimaryFenced { node, by } => write!(f, "writes are stopped: {node} was fenced by {by}"),
            Self::Paused { by, why } if why.is_empty() => {
                write!(f, "changes of primary were paused by {by}; `pgtenure resume` ends that")
            }
            Self::Paused { by, why } => {
                write!(f, "changes of primary were paused by {by} ({why}); `pgtenure resume` ends that")
            }
            Self::OtherEpoch { expected, current } => write!(f, "the policy's epoch is {current}, not {expected}"),
            Self::PolicyUnchanged { epoch, going_on: false } => {
                write!(f, "the policy of epoch {epoch} says that already")
            }
            Self::PolicyUnchanged { epoch, going_on: true } => {
                write!(f, "the policy of epoch {epoch} is being changed to that")
            }
            Self::PolicyChanging { epoch } => write!(
                f,
                "the policy of epoch {epoch} is still being changed: wait for that, or take it back by setting what was"
            ),
            Self::QuorumImpossible { m, k } => {
                write!(f, "m={m}, k={k}: k is from 1 (in async mode from 0) to the number of voters less one")
            }
            Self::PrimaryMustVote { node } => write!(f, "{node} is the primary: it must vote, or be left first"),
            Self::TooFewStreaming { needed, have } => write!(
                f,
                "commits would wait for {needed} standbys and only {} of the voters stream ({})",
                have.len(),
                list(have)
            ),
            Self::TooFewSlots { node, needed, room: Some(room) } => write!(
                f,
                "{node} has room for {room} replication slots of {needed} needed (max_replication_slots): where commits wait \
                 for two standbys or more, each streams through one"
            ),
            Self::TooFewSlots { node, .. } => write!(
                f,
                "the agent of {node} does not say that it knows of replication slots, through which standbys stream where commits \
                 wait for two or more: upgrade it first"
            ),
            Self::NotPaused => f.write_str("changes of primary are not paused"),
            Self::BudgetSpent { failovers, window_ms, next_in_ms: Some(next) } => {
                write!(f, "{failovers} automatic failovers within {window_ms} ms; the next is allowed in {next} ms")
            }
            Self::BudgetSpent { failovers, window_ms, next_in_ms: None } => {
                write!(f, "{failovers} automatic failovers within {window_ms} ms, some of them under an earlier leader")
            }
            Self::PolicyLost { have, known, unheard } => {
                let awaited = if unheard.is_empty() { "nobody".to_owned() } else { list(unheard) };
                write!(
                    f,
                    "etcd was restored from a backup: it holds policy epoch {have} and epoch {known} was in force; \
                     waiting for {awaited}"
                )
            }
            Self::ProxyAhead { proxy, term, next_in_ms } => {
                write!(
                    f,
                    "etcd was restored from a backup: proxy {proxy} has read of term {term} and ignores every term up to it, \
                     until one above it begins or that proxy is started anew"
                )?;
                let Some(next) = next_in_ms else { return Ok(()) };
                write!(f, "; terms were begun for proxies just before, the next is in {next} ms")
            }
            Self::RoundsFailed { rounds, next_in_ms } => write!(
                f,
                "{rounds} rounds in a row could not promote their candidate or lost it before it was opened; one more is tried \
                 in {next_in_ms} ms, or by `pgtenure failover`"
            ),
            Self::LeaseHeld { node, term } => {
                write!(f, "{node} may still hold the primary's lease of term {term}")
            }
            Self::ProxiesBehind { proxies, left_ms } => {
                write!(f, "proxies that may act on an older term: {}; at most {left_ms} ms more", list(proxies))
            }
            Self::StrictViews { unfrozen, left_ms } if unfrozen.is_empty() => write!(
                f,
                "proxies may act on a term or a policy that is not known here; at most {left_ms} ms more where no agent vouches \
                 for that"
            ),
            Self::StrictViews { unfrozen, left_ms } => write!(
                f,
                "{} were not frozen and may acknowledge to proxies that act on the older term; at most {left_ms} ms more where \
                 no agent vouches for that",
                list(unfrozen)
            ),
            Self::LossTooLarge { bytes, limit } => {
                write!(f, "a failover now would lose {bytes} bytes of WAL, the limit is {limit}")
            }
            Self::OldPrimaryAwaited { node } => write!(
                f,
                "{node} has every acknowledged commit and its agent answers: it is recovered before another takes its place"
            ),
            Self::Suspended { since, term } => {
                write!(f, "commits past {since} (term {term}) were acknowledged without a standby")
            }
            Self::ChosenAwaited { node, base, have: None } => write!(
                f,
                "{node} was chosen in a term that was never opened, and is enough beside those in quarantine as soon as it is there \
                 with all that it had then (up to {} on timeline {})",
                base.lsn, base.timeline
            ),
            Self::ChosenAwaited { node, base, have: Some(have) } => write!(
                f,
                "{node} was chosen in a term that was never opened, and would be enough beside those in quarantine, but has lost a \
                 part of what it had then: it ends at {} on timeline {}, and had {} on timeline {}",
                have.lsn, have.timeline, base.lsn, base.timeline
            ),
            Self::CommitsInDoubt { nodes, lsn, term } => write!(
                f,
                "commits up to {lsn} and past it (term {term}) may be only with somebody else under the name of {}: the old primary \
                 has them, another takes its place only by a failover with --allow-data-loss",
                list(nodes)
            ),
            Self::TooFewFollowers { needed, have, record_lsn } => write!(
                f,
                "{needed} standbys must have received {record_lsn} to open, {} have ({})",
                have.len(),
                list(have)
            ),
            Self::Busy { what } => write!(f, "busy: {what}"),
            Self::OtherTerm { expected, current } => write!(f, "the term is {current}, not {expected}"),
            Self::UnknownNode { node, known } if known.is_empty() => write!(f, "there is no node {node}"),
            Self::UnknownNode { node, known } => write!(f, "there is no node {node}; there are {}", list(known)),
            Self::AlreadyPrimary { node } => write!(f, "{node} is the primary already"),
            Self::PrimaryNotWell { node: Some(node) } => write!(f, "the primary {node} is not well"),
            Self::PrimaryNotWell { node: None } => f.write_str("there is no open primary"),
            Self::TargetUnfit { target } => write!(f, "{target}"),
            Self::TargetNotStreaming { node } => write!(f, "{node} does not stream from the primary"),
            Self::TargetBehind { node, bytes, limit } => {
                write!(f, "{node} is {bytes} bytes behind, the limit is {limit}")
            }
            Self::TargetShort { node, have, need } => {
                write!(f, "{node} ends at {}, the old primary at {}", have.lsn, need.lsn)
            }
            Self::WouldStopWrites { node, primary: true, .. } => {
                write!(f, "{node} is the primary: taking it out stops writes; --stop-writes does it all the same")
            }
            Self::WouldStopWrites { node, left, k, primary: false } => {
                write!(
                    f,
                    "without {node} {left} standbys stream and commits wait for {k}: taking it out stops writes; \
                     --stop-writes does it all the same"
                )
            }
            Self::PrimaryMustMove { node } => write!(f, "{node} is the primary: switch over to another node first"),
            Self::InMaintenance { node, by } => write!(f, "{node} is in maintenance ({by})"),
            Self::NotInMaintenance { node } => write!(f, "{node} is not in maintenance"),
            Self::AlreadyFenced { node } => write!(f, "{node} is fenced already"),
            Self::NotFenced { node } => write!(f, "{node} is not fenced"),
            Self::NeverPromoted { node, have: Some(have) } => write!(
                f,
                "only {node} has everything up to {} on timeline {}, and it is never promoted by itself; an operator can \
                 name it with --to",
                have.lsn, have.timeline
            ),
            Self::NeverPromoted { node, have: None } => {
                write!(f, "{node} is never promoted by itself; an operator can name it with --to")
            }
            Self::TargetDoesNotVote { node } => write!(
                f,
                "{node} does not vote, so that it may lack commits that were promised; --allow-data-loss takes what it has"
            ),
            Self::NoOtherVoter { node } => {
                write!(f, "{node} is the only voter: give another node a vote first (pgtenure policy --voters)")
            }
            Self::DelayedVoter { node, delay_ms } => write!(
                f,
                "{node} replays {delay_ms} ms later (agent.apply_delay): who votes must be able to take over at once"
            ),
            Self::BegunTwice { timeline, nodes } => write!(
                f,
                "timeline {timeline} was begun twice, at {}: which has what was acknowledged their WAL does not tell; an operator has to \
                 name one (--to, --allow-data-loss)",
                list(nodes)
            ),
            Self::CandidateLost { node } => write!(f, "the new primary {node} was lost before it was opened"),
            Self::Failing { what } => write!(f, "{what}"),
        }
    }
}
