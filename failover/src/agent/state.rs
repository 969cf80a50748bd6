//! What the agent knows of its node, in one place; what changes wakes long polls.

use super::Env;
use crate::api::{AgentState, Position, PostgresState, Sighting};
use crate::fsm::namesake::Place;
use crate::record::PolicyRecord;
use cluster::{Instant, Lsn, NodeId, Term, TimelineId};
use std::time::Duration;
use tokio::sync::watch;

/// The WAL receiver as `pg_stat_wal_receiver` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Receiver {
    pub(crate) pid: i32,
    pub(crate) streaming: bool,
    pub(crate) timeline: Option<TimelineId>,
    pub(crate) host: String,
    pub(crate) port: u16,
}

/// A WAL receiver that lives for as long is one that streams.
const STEADY_FOR: Duration = Duration::from_secs(1);

/// Since when no WAL receiver has streamed for [`STEADY_FOR`]. PostgreSQL shows one as streaming once it has connected; one that
/// is told then that its WAL is gone is followed by the next, and each may be seen just while it seems to stream.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Unsteady {
    since: Option<Instant>,
    /// The receiver that streams, and since when it was seen to.
    streams: Option<(i32, Instant)>,
}

impl Unsteady {
    /// It is given an address.
    pub(crate) const fn anew(now: Instant) -> Self {
        Self { since: Some(now), streams: None }
    }

    pub(crate) const fn since(&self) -> Option<Instant> {
        self.since
    }

    /// The process that seems to stream, if any.
    pub(crate) fn saw(&mut self, streams: Option<i32>, now: Instant) {
        self.streams = streams.map(|pid| self.streams.filter(|(former, _)| *former == pid).unwrap_or((pid, now)));
        let steady = self.streams.is_some_and(|(_, since)| now.since(since) >= STEADY_FOR);
        self.since = if steady { None } else { self.since.or(Some(now)) };
    }
}

/// How often an agent notes that it runs.
pub(crate) const PULSE: Duration = Duration::from_millis(100);
/// Longer than this between two of them, and it has stood still: stopped, suspended or starved. What it did not hear
/// meanwhile is nobody's silence.
const LONGEST_PULSE: Duration = Duration::from_millis(300);

/// Something that does not answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Silence {
    /// When it last did.
    pub(crate) since: Instant,
    /// For how long this agent has stood still since.
    missed: Duration,
}

impl Silence {
    pub(crate) fn from(since: Instant) -> Self {
        Self { since, missed: Duration::ZERO }
    }

    /// This agent stood still from `ran_at` to `now`; a pause between two pulses of that counts as hearing.
    fn missed(&mut self, ran_at: Instant, now: Instant) {
        self.missed += now.since((ran_at + LONGEST_PULSE).max(self.since));
    }

    fn lasts(&self, ran_at: Instant, now: Instant) -> Duration {
        now.min(ran_at + LONGEST_PULSE).since(self.since).saturating_sub(self.missed)
    }
}

/// The primary as this node reaches it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sight {
    pub(crate) node: NodeId,
    pub(crate) term: Term,
    pub(crate) agent_at: Instant,
    pub(crate) sql_at: Instant,
    /// When it last answered a new connection.
    pub(crate) accept_at: Instant,
    /// When it last said that it has no connection left.
    pub(crate) full_at: Option<Instant>,
    pub(crate) agent_refused: bool,
    pub(crate) sql_refused: bool,
}

/// WAL that a manager waits for, until it is received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Awaited {
    pub(crate) timeline: TimelineId,
    pub(crate) lsn: Lsn,
    pub(crate) since: Instant,
    /// When whoever has it was last made the upstream.
    pub(crate) asked: Instant,
}

/// Everything known.
#[derive(Clone, Debug)]
pub(crate) struct Observed {
    pub(crate) seq: u64,
    pub(crate) promise: Term,
    pub(crate) opened: Term,
    pub(crate) quarantine: Option<Position>,
    pub(crate) postgres: PostgresState,
    /// Its postmaster is dead, and its other processes are being ended.
    pub(crate) ending: bool,
    /// WAL that clients wait for.
    pub(crate) awaited: Option<Awaited>,
    /// Since when what `postgres` says is known: when it last told, or was seen not to run.
    pub(crate) known_at: Instant,
    /// Since PostgreSQL last answered, if only that it is full (or was seen to be stopped).
    pub(crate) answered: Silence,
    /// Since its postmaster last answered a new connection.
    pub(crate) accepted: Silence,
    /// It was a primary when it last answered.
    pub(crate) was_primary: bool,
    pub(crate) receiver: Option<Receiver>,
    /// Since when the WAL receiver has not streamed.
    pub(crate) not_streaming_since: Option<Instant>,
    /// The same, where one that has only just connected does not count.
    pub(crate) unsteady: Unsteady,
    /// Since when PostgreSQL has been starting.
    pub(crate) starting_since: Option<Instant>,
    /// The timeline of the last WAL received or replayed, as known exactly at some time.
    pub(crate) last_timeline: Option<TimelineId>,
    pub(crate) system_id: Option<String>,
    /// Of the cluster whose terms and policy are remembered.
    pub(crate) memory_of: Option<String>,
    pub(crate) frozen_for: Option<Term>,
    pub(crate) rejoin: Option<String>,
    pub(crate) fenced: bool,
    pub(crate) sees: Option<Sight>,
    /// When this agent last noted that it runs.
    pub(crate) ran_at: Instant,
    pub(crate) lease_until: Option<Instant>,
    pub(crate) fsync_ms: Option<u64>,
    /// Since when something is to be written that is not yet; what fails is tried again.
    pub(crate) fsync_since: Option<Instant>,
    pub(crate) trouble: Option<String>,
    /// No place is left for who has to connect, in words.
    pub(crate) full: Option<String>,
    /// A replication slot that is needed cannot be made or used, in words.
    pub(crate) no_slot: Option<String>,
    /// `max_replication_slots`, as last seen.
    pub(crate) most_slots: Option<usize>,
    /// How many of them could be ours.
    pub(crate) slot_room: Option<usize>,
    /// It streams through its slot, or need not: from then on it does where it must.
    pub(crate) slots_seen_to: bool,
    /// The primary's PostgreSQL refuses who observes it, in words.
    pub(crate) locked_out: Option<String>,
    /// Data was set aside that somebody must look at, in words.
    pub(crate) unexamined: Option<String>,
    /// Another agent lives under this node's name, in words; until when that counts.
    pub(crate) namesake: Option<(Instant, String)>,
    /// Whose place the record of this node is.
    pub(crate) place: Place,
    pub(crate) policy: Option<PolicyRecord>,
}

/// The holder of [`Observed`].
#[derive(Debug)]
pub(crate) struct State(watch::Sender<Observed>);

impl State {
    pub(crate) fn new(now: Instant) -> Self {
        let first = Observed {
            seq: 1,
            promise: Term(0),
            opened: Term(0),
            quarantine: None,
            postgres: PostgresState::Absent,
            ending: false,
            awaited: None,
            known_at: now,
            answered: Silence::from(now),
            accepted: Silence::from(now),
            was_primary: false,
            receiver: None,
            not_streaming_since: None,
            unsteady: Unsteady::default(),
            starting_since: None,
            last_timeline: None,
            system_id: None,
            memory_of: None,
            frozen_for: None,
            rejoin: None,
            fenced: false,
            sees: None,
            ran_at: now,
            lease_until: None,
            fsync_ms: None,
            fsync_since: None,
            trouble: None,
            full: None,
            no_slot: None,
            most_slots: None,
            slot_room: None,
            slots_seen_to: false,
            locked_out: None,
            unexamined: None,
            namesake: None,
            place: Place::Unknown,
            policy: None,
        };
        Self(watch::channel(first).0)
    }

    /// Change it. Long polls are answered when more than ages and positions changed.
    pub(crate) fn change(&self, change: impl FnOnce(&mut Observed)) {
        self.0.send_if_modified(|o| {
            let before = shape(o);
            change(o);
            let starting = o.postgres == PostgresState::Starting;
            o.starting_since = if starting { o.starting_since.or(Some(o.ran_at)) } else { None };
            let changed = shape(o) != before;
            o.seq += u64::from(changed);
            changed
        });
    }

    pub(crate) fn get(&self) -> Observed {
        self.0.borrow().clone()
    }

    /// Look without a copy.
    pub(crate) fn look<T>(&self, f: impl FnOnce(&Observed) -> T) -> T {
        f(&self.0.borrow())
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<Observed> {
        self.0.subscribe()
    }
}

/// What makes a change worth telling: all but ages and positions.
fn shape(o: &Observed) -> impl PartialEq + use<> {
    let mut postgres = o.postgres.clone();
    match &mut postgres {
        PostgresState::Standby(s) => {
            s.receive_lsn = Lsn::INVALID;
            s.replay_lsn = Lsn::INVALID;
        }
        PostgresState::Primary(p) => {
            p.insert_lsn = Lsn::INVALID;
            p.flush_lsn = Lsn::INVALID;
            for f in &mut p.followers {
                f.flush_lsn = None;
                f.replay_lsn = None;
            }
        }
        PostgresState::Hung { for_ms } => *for_ms = 0,
        PostgresState::Absent | PostgresState::Stopped { .. } | PostgresState::Starting => {}
    }
    let sees = o.sees.as_ref().map(|s| (s.node.clone(), s.term, s.agent_refused && s.sql_refused));
    (
        (postgres, (o.promise, o.opened), o.quarantine, o.system_id.clone(), o.frozen_for, o.rejoin.clone()),
        o.memory_of.clone(),
        (o.fenced, sees, o.lease_until.is_some(), o.troubles(), o.ending, o.awaited.is_some()),
        (o.policy.clone(), o.slot_room, o.slots_seen_to),
    )
}

impl Observed {
    /// This agent runs at `now`. The time for which it has not is taken off the primary's silence.
    pub(crate) fn runs(&mut self, now: Instant) {
        let gap = now.since(self.ran_at);
        self.namesake = self.namesake.take().filter(|(until, _)| *until > now);
        if gap > LONGEST_PULSE {
            self.answered.missed(self.ran_at, now);
            self.accepted.missed(self.ran_at, now);
            if let Some(sight) = &mut self.sees {
                sight.agent_at = (sight.agent_at + gap).min(now);
                sight.sql_at = (sight.sql_at + gap).min(now);
                sight.accept_at = (sight.accept_at + gap).min(now);
                sight.full_at = sight.full_at.map(|at| (at + gap).min(now));
            }
        }
        self.ran_at = now;
    }

    /// For how long PostgreSQL has answered no query while this agent could have heard it.
    pub(crate) fn unanswered(&self, now: Instant) -> Duration {
        self.answered.lasts(self.ran_at, now)
    }

    /// For how long its postmaster has answered no new connection while this agent could have heard it.
    pub(crate) fn unaccepted(&self, now: Instant) -> Duration {
        self.accepted.lasts(self.ran_at, now)
    }

    /// A freeze for `term` counts from now on. False: a later term has been promised, and it is that one's node.
    pub(crate) fn freeze_for(&mut self, term: Term) -> bool {
        let counts = self.promise <= term;
        if counts {
            self.frozen_for = Some(term);
        }
        counts
    }

    /// PostgreSQL answered.
    pub(crate) fn heard(&mut self, at: Instant) {
        self.answered = Silence::from(at);
    }

    /// Its postmaster answered a new connection.
    pub(crate) fn accepts(&mut self, at: Instant) {
        self.accepted = Silence::from(at);
    }

    /// The WAL's disk is written to.
    pub(crate) fn disk_is_tried(&mut self, at: Instant) {
        self.fsync_since = self.fsync_since.or(Some(at));
    }

    /// It took so long; `None` when it failed: as long as every write fails it is no better than a disk that hangs.
    pub(crate) fn disk_was_tried(&mut self, took: Option<Duration>) {
        if let Some(took) = took {
            self.fsync_since = None;
            self.fsync_ms = Some(took.as_millis().try_into().unwrap_or(u64::MAX));
        }
    }

    /// PostgreSQL was seen not to run, or to be starting: it is not silent.
    pub(crate) fn not_expected(&mut self, at: Instant) {
        (self.answered, self.accepted) = (Silence::from(at), Silence::from(at));
        (self.known_at, self.full) = (at, None);
    }

    /// It was stopped when a look that began at `at` had not ended yet.
    pub(crate) fn stopped_since(&self, at: Instant) -> bool {
        matches!(self.postgres, PostgresState::Stopped { .. }) && self.known_at > at
    }

    /// A look that began at `at` ended at `now` with an error of this SQLSTATE, if any: its state is not known any better.
    pub(crate) fn not_told(&mut self, at: Instant, now: Instant, code: Option<&str>, probe_timeout: Duration) {
        let since = self.unanswered(now);
        let up =
            matches!(self.postgres, PostgresState::Standby(_) | PostgresState::Primary(_) | PostgresState::Hung { .. });
        match code {
            // Sessions have hung, and nothing has answered since: that no more can begin is no sign that it does not hang.
            Some("53300") if matches!(self.postgres, PostgresState::Hung { for_ms: 1.. }) => {
                self.postgres = PostgresState::Hung { for_ms: since.as_millis().try_into().unwrap_or(u64::MAX) };
            }
            // It is full, and so it neither hangs nor starts. What it said last is no younger for that.
            Some("53300") => {
                self.heard(at);
                if !up || matches!(self.postgres, PostgresState::Hung { .. }) {
                    self.postgres = PostgresState::Hung { for_ms: 0 };
                }
            }
            code if code == Some("57P03") || !up => {
                self.postgres = PostgresState::Starting;
                self.not_expected(at);
            }
            _ if since >= probe_timeout => {
                self.postgres = PostgresState::Hung { for_ms: since.as_millis().try_into().unwrap_or(u64::MAX) };
            }
            _ => {} // not for long enough
        }
    }

    /// How long a write takes, ms: one that hangs counts for as long as it hangs.
    fn disk_takes(&self, now: Instant) -> Option<u64> {
        let hangs = self.fsync_since.map(|s| u64::try_from(now.since(s).as_millis()).unwrap_or(u64::MAX));
        hangs.max(self.fsync_ms)
    }

    /// All that is wrong.
    pub(crate) fn troubles(&self) -> Option<String> {
        let all =
            self.trouble.iter().chain(&self.full).chain(&self.no_slot).chain(&self.locked_out).chain(&self.unexamined);
        let all: Vec<&str> = all.chain(self.namesake.iter().map(|(_, what)| what)).map(String::as_str).collect();
        (!all.is_empty()).then(|| all.join("; "))
    }

    /// As told to managers at `now`.
    pub(crate) fn told(&self, env: &Env, now: Instant) -> AgentState {
        let ms = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
        // Woken up just now, it is asked before it has looked again.
        let lived = now.min(self.ran_at + LONGEST_PULSE);
        AgentState {
            seq: self.seq,
            node: env.config.node.clone(),
            holder: env.holder.clone(),
            host: env.host.clone(),
            promise: self.promise,
            opened: self.opened,
            postgres: self.postgres.clone(),
            ending: self.ending,
            observed_ms_ago: ms(now.since(self.known_at)),
            system_id: self.system_id.clone(),
            memory_of: self.memory_of.clone(),
            frozen_for: self.frozen_for,
            quarantine: self.quarantine,
            rejoin: self.rejoin.clone(),
            fenced: self.fenced,
            sees_primary: self.sees.as_ref().map(|s| Sighting {
                node: s.node.clone(),
                term: s.term,
                agent_ms_ago: ms(lived.since(s.agent_at)),
                sql_ms_ago: ms(lived.since(s.sql_at)),
                accept_ms_ago: Some(ms(lived.since(s.accept_at))),
                full_ms_ago: s.full_at.map(|at| ms(lived.since(at))),
                refused: s.agent_refused && s.sql_refused,
            }),
            lease_left_ms: self.lease_until.and_then(|end| end.checked_since(now)).map(ms),
            fsync_probe_ms: self.disk_takes(now),
            trouble: self.troubles(),
            namesake: self.namesake.as_ref().map(|(_, what)| what.clone()),
            slot_room: self.slot_room,
            policy: self.policy.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn receivers_that_follow_each_other_do_not_stream_and_one_that_lives_does() {
        let ms = Instant::from_millis;
        let mut unsteady = Unsteady::anew(ms(0));
        // Each look finds one that has just connected, or none.
        for (at, pid) in [(200, Some(1)), (400, None), (600, Some(2)), (1200, Some(3)), (2200, Some(4)), (3100, None)] {
            unsteady.saw(pid, ms(at));
            assert_eq!(unsteady.since(), Some(ms(0)), "{at}");
        }
        for (at, since) in [(3200, Some(ms(0))), (4199, Some(ms(0))), (4200, None), (9000, None)] {
            unsteady.saw(Some(5), ms(at));
            assert_eq!(unsteady.since(), since, "{at}");
        }
        unsteady.saw(None, ms(9100));
        unsteady.saw(Some(6), ms(9200));
        assert_eq!(unsteady.since(), Some(ms(9100)));
    }

    #[test]
    fn positions_and_ages_do_not_wake_a_long_poll_and_everything_else_does() {
        let state = State::new(Instant::from_millis(0));
        state.change(|o| o.postgres = PostgresState::Hung { for_ms: 5 });
        let seq = state.get().seq;
        state.change(|o| {
            o.postgres = PostgresState::Hung { for_ms: 500 };
            o.heard(Instant::from_millis(9));
        });
        assert_eq!(state.get().seq, seq);
        state.change(|o| o.trouble = Some("disk full".into()));
        assert_eq!(state.get().seq, seq + 1);
    }

    #[test]
    fn a_freeze_that_goes_on_after_a_later_terms_does_not_count() {
        let mut o = State::new(Instant::from_millis(0)).get();
        o.promise = Term(2);
        assert!(o.freeze_for(Term(2)));
        o.promise = Term(3);
        assert!(!o.freeze_for(Term(2)) && o.freeze_for(Term(3)) && !o.freeze_for(Term(2)));
        assert_eq!(o.frozen_for, Some(Term(3)));
    }

    #[test]
    fn a_disk_that_fails_every_write_is_as_slow_as_it_has_failed_for_long() {
        let at = Instant::from_millis;
        let mut o = State::new(at(0)).get();
        assert_eq!(o.disk_takes(at(0)), None);
        o.disk_is_tried(at(0));
        o.disk_was_tried(Some(Duration::from_millis(5)));
        assert_eq!(o.disk_takes(at(900)), Some(5));
        for second in 1..4 {
            o.disk_is_tried(at(second * 1000));
            o.disk_was_tried(None);
        }
        assert_eq!(o.disk_takes(at(4000)), Some(3000));
        o.disk_is_tried(at(4000));
        o.disk_was_tried(Some(Duration::from_millis(7)));
        assert_eq!(o.disk_takes(at(9000)), Some(7));
    }

    #[test]
    fn a_full_postgres_neither_hangs_nor_starts_and_what_it_said_grows_old() {
        let at = Instant::from_millis;
        let bound = Duration::from_secs(1);
        // An agent that was restarted beside it has never heard what it is.
        let mut o = State::new(at(0)).get();
        o.not_told(at(100), at(110), Some("53300"), bound);
        assert_eq!(o.postgres, PostgresState::Hung { for_ms: 0 });
        // Full for long, it is not silent; what is known of it is as old as the last look.
        (1..=100).for_each(|i| o.runs(at(100 * i)));
        o.not_told(at(10_000), at(10_010), Some("53300"), bound);
        assert_eq!(o.postgres, PostgresState::Hung { for_ms: 0 });
        assert_eq!((o.answered.since, o.known_at), (at(10_000), at(0)));
        o.not_told(at(10_100), at(10_200), None, bound);
        assert_eq!(o.postgres, PostgresState::Hung { for_ms: 0 }, "silent for 200 ms only");
        o.not_told(at(10_300), at(10_310), Some("57P03"), bound);
        assert_eq!((&o.postgres, o.known_at), (&PostgresState::Starting, at(10_300)));
    }

    #[test]
    fn a_postgres_whose_sessions_hang_until_it_is_full_still_hangs() {
        let at = Instant::from_millis;
        let bound = Duration::from_secs(1);
        let mut o = State::new(at(0)).get();
        o.postgres = PostgresState::Hung { for_ms: 0 };
        (1..=30).for_each(|i| o.runs(at(100 * i)));
        o.not_told(at(1000), at(2000), None, bound);
        assert_eq!(o.postgres, PostgresState::Hung { for_ms: 2000 });
        o.not_told(at(2990), at(3000), Some("53300"), bound);
        assert_eq!(o.postgres, PostgresState::Hung { for_ms: 3000 });
    }

    #[test]
    fn the_time_for_which_the_agent_stood_still_is_nobody_elses_silence() {
        let at = Instant::from_millis;
        let mut o = State::new(at(0)).get();
        o.heard(at(900));
        let (node, term) = ("n1".parse().unwrap(), Term(7));
        let (agent_at, sql_at, accept_at, full_at) = (at(950), at(700), at(200), None);
        let (agent_refused, sql_refused) = (false, false);
        o.sees = Some(Sight { node, term, agent_at, sql_at, accept_at, full_at, agent_refused, sql_refused });
        (0..=10).for_each(|i| o.runs(at(100 * i)));
        assert_eq!(o.unanswered(at(1100)), Duration::from_millis(200));
        // It stands still from 1000 to 6000. Asked before it has noted that, it does not count what it did not hear.
        assert_eq!(o.unanswered(at(6000)), Duration::from_millis(400));
        o.runs(at(6000));
        let sees = o.sees.clone().unwrap();
        assert_eq!((sees.agent_at, sees.sql_at, sees.accept_at), (at(5950), at(5700), at(5200)));
        assert_eq!(o.unaccepted(at(6000)), Duration::from_millis(1300), "1 s before it stood still, and one pause");
        assert_eq!(
            o.unanswered(at(6100)),
            Duration::from_millis(500),
            "what it has heard before it stood still counts"
        );
        // Silence while it runs counts as before.
        (61..=80).for_each(|i| o.runs(at(100 * i)));
        assert_eq!(o.sees.unwrap().sql_at, at(5700));
    }

    #[test]
    fn on_a_busy_host_a_silent_postgres_is_noticed_and_one_that_has_answered_begins_anew() {
        let at = Instant::from_millis;
        let mut o = State::new(at(0)).get();
        // Every pulse comes late.
        (1..=10).for_each(|i| o.runs(at(400 * i)));
        assert_eq!(o.unanswered(at(4000)), Duration::from_secs(3));
        o.heard(at(4100));
        o.runs(at(4600));
        assert_eq!(
            o.unanswered(at(4700)),
            Duration::from_millis(300),
            "silent from 4100 on, unheard from 4300 to 4600"
        );
    }
}
